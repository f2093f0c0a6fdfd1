//! `proxy_lb`: plain round robin over the servers in the order of the file.
//!
//! Each request's trylist starts one server further than the one before it. When a try fails, the trylist goes on to the next
//! server. A reload goes on with the next server too. This is the balancer of Bill Stoddard's patch to httpd's proxy of 2003, and
//! the smallest module here; the guide in [`lb_api`] walks through it without the lines that survive a reload.
//!
//! By hand, for servers a, b, c of which b does not answer: the first request goes to a, the second to b and then to c, the
//! third to c, the fourth to a.
//!
//! It ignores weights and health. The host declines a server that is down, and that server's share goes to the next one in the
//! file; `round_robin` spreads it over all.
//!
//! **When**: to learn how a module is made, or for a few servers of equal strength. **When not**: weights, or a server that
//! is down for long. **Settings**: none. **Cost**: one atomic addition a request. **Source**: `mod_proxy_lb.c` of the patch.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use lb_api::{Balancer, BuildCx, BuildError, Next, NextCx, Request, export_balancer};

/// The instance for one cluster.
#[derive(Debug)]
pub struct ProxyLb {
    n_endpoints: usize,
    turn: AtomicU64,
}

impl Balancer for ProxyLb {
    const ID: &'static str = "proxy_lb";
    const SUMMARY: &'static str = "round robin over the servers in the order of the file";
    type Settings = ();
    /// The server to go to next.
    type Trylist = usize;

    fn build(cx: &BuildCx<'_, Self>, (): ()) -> Result<Self, BuildError> {
        // A reload goes on with the next server: without this, each reload sends one more request to the first one.
        let saved = || cx.saved().and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes);
        let turn = cx.previous().map(|previous| previous.turn.load(Relaxed)).or_else(saved).unwrap_or(0);
        Ok(Self { n_endpoints: cx.endpoints().len(), turn: AtomicU64::new(turn) })
    }

    fn load_balance(&self, _: &Request<'_>) -> usize {
        (self.turn.fetch_add(1, Relaxed) % self.n_endpoints as u64) as usize
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

    fn save(&self) -> Option<Vec<u8>> {
        Some(self.turn.load(Relaxed).to_le_bytes().to_vec())
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
    fn goes_on_after_a_reload() {
        let cluster = FakeCluster::equal(3);
        let before = cluster.balancer::<ProxyLb>().build().unwrap();
        assert_eq!(before.sequence(4), [0, 1, 2, 0]);
        let after = cluster.balancer::<ProxyLb>().saved(before.save()).build().unwrap();
        assert_eq!(after.sequence(2), [1, 2]);
        let after = cluster.balancer::<ProxyLb>().previous(&before).build().unwrap();
        assert_eq!(after.sequence(2), [1, 2]);
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
