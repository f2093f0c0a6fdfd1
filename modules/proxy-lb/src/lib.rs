//! `proxy_lb`: plain round robin over the servers in the order of the file.
//!
//! The balancer that Bill Stoddard's patch to httpd's proxy came with in 2003, and the smallest module there is; the guide
//! in [`lb_api`] walks through it. Each request's trylist starts one server further than that of the request before it, and
//! goes on from there, server by server, as tries fail.
//!
//! By hand, for servers a, b, c of which b does not answer: the first request goes to a, the second to b and then to c, the
//! third to c, the fourth to a.
//!
//! It knows neither weights nor health: a server that is down is offered and declined, or tried and found to fail, and its
//! share goes to the server behind it. `round_robin` spreads that share over all.
//!
//! **When**: to see how a module is made, or for a few servers of equal strength. **When not**: weights, or a server that
//! is down for long. **Settings**: none. **Source**: `mod_proxy_lb.c` of the patch.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use lb_api::{Balancer, BuildCx, BuildError, Next, NextCx, Request, export_balancer};

/// The instance for one cluster.
#[derive(Debug)]
pub struct ProxyLb {
    n_endpoints: usize,
    turn: AtomicUsize,
}

impl Balancer for ProxyLb {
    const ID: &'static str = "proxy_lb";
    const SUMMARY: &'static str = "round robin over the servers in the order of the file";
    type Settings = ();
    /// The server to go to next.
    type Trylist = usize;

    fn build(cx: &BuildCx<'_, Self>, (): ()) -> Result<Self, BuildError> {
        Ok(Self { n_endpoints: cx.endpoints().len(), turn: AtomicUsize::new(0) })
    }

    fn load_balance(&self, _: &Request<'_>) -> usize {
        self.turn.fetch_add(1, Relaxed) % self.n_endpoints
    }

    fn next(&self, server: &mut usize, cx: &NextCx<'_>) -> Next {
        for _ in 0..self.n_endpoints {
            let candidate = *server;
            *server = (candidate + 1) % self.n_endpoints;
            if !cx.tried(candidate) {
                return Next::Endpoint(candidate);
            }
        }
        Next::Exhausted
    }

    fn explain(&self, server: &usize) -> Option<String> {
        Some(format!("in the order of the file; the next would be endpoint {server}"))
    }
}

export_balancer!(ProxyLb);

#[cfg(test)]
mod tests {
    use lb_api::testkit::{Contract, FakeCluster, FakeRequest};

    use super::*;

    #[test]
    fn keeps_the_contract() {
        Contract::<ProxyLb>::new().check();
    }

    #[test]
    fn goes_through_the_servers_in_the_order_of_the_file() {
        let balancer = FakeCluster::equal(3).balancer::<ProxyLb>().build().unwrap();
        assert_eq!(balancer.sequence(7), [0, 1, 2, 0, 1, 2, 0]);
    }

    #[test]
    fn each_trylist_starts_one_further_and_goes_on_in_order() {
        let balancer = FakeCluster::equal(3).balancer::<ProxyLb>().build().unwrap();
        let order = || balancer.load_balance(FakeRequest::get("/")).all();
        assert_eq!([order(), order(), order(), order()], [[0, 1, 2], [1, 2, 0], [2, 0, 1], [0, 1, 2]]);
    }

    #[test]
    fn the_example_of_the_docs_comes_out() {
        let balancer = FakeCluster::equal(3).balancer::<ProxyLb>().build().unwrap();
        let tried = |n_failures: usize| {
            let mut trylist = balancer.load_balance(FakeRequest::get("/"));
            (0..=n_failures).map(|_| trylist.next()).collect::<Vec<_>>()
        };
        assert_eq!(tried(0), [Next::Endpoint(0)]);
        assert_eq!(tried(1), [Next::Endpoint(1), Next::Endpoint(2)]);
        assert_eq!(tried(0), [Next::Endpoint(2)]);
        assert_eq!(tried(0), [Next::Endpoint(0)]);
    }

    #[test]
    fn says_where_it_stands() {
        let balancer = FakeCluster::equal(3).balancer::<ProxyLb>().build().unwrap();
        let mut trylist = balancer.load_balance(FakeRequest::get("/"));
        assert_eq!((trylist.next(), trylist.next()), (Next::Endpoint(0), Next::Endpoint(1)));
        assert_eq!(trylist.explain(), "in the order of the file; the next would be endpoint 2");
    }

    #[test]
    fn gives_every_server_the_same_share() {
        let balancer = FakeCluster::equal(7).balancer::<ProxyLb>().build().unwrap();
        assert_eq!(balancer.distribution(7000), [1000; 7]);
    }
}
