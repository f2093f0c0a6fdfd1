//! `proxy_lb`: plain round robin over the servers in the order of the file.
//!
//! Each request's trylist starts one server further than the one before it. When a try fails, the trylist goes on to the next
//! server. This is the balancer of Bill Stoddard's patch to httpd's proxy of 2003, and the smallest module here; the guide in
//! [`lb_api`] walks through it without the lines that carry the turn on.
//!
//! A reload goes on with the next server. So does an instance that takes over in the same process, when servers come and go: the
//! two share the counter of turns, and the new one finds the server whose turn it is by its id.
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

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use lb_api::{Balancer, BuildCx, BuildError, Endpoint, Next, NextCx, Request, export_balancer};

/// The instance for one cluster.
#[derive(Debug)]
pub struct ProxyLb {
    ids: Box<[u64]>,
    /// One for all instances that follow one another: a turn is taken once, whoever takes it.
    turn: Arc<AtomicU64>,
    /// The server of turn 0.
    first: u64,
}

impl Balancer for ProxyLb {
    const ID: &'static str = "proxy_lb";
    const SUMMARY: &'static str = "round robin over the servers in the order of the file";
    type Settings = ();
    /// The server to go to next.
    type Trylist = usize;

    fn build(cx: &BuildCx<'_, Self>, (): ()) -> Result<Self, BuildError> {
        let ids: Box<[u64]> = cx.endpoints().iter().map(Endpoint::id).collect();
        if let Some(previous) = cx.previous() {
            let (turn, n) = (previous.turn.load(Relaxed), ids.len() as u64);
            let first = (previous.next_of(&ids, turn) + n - turn % n) % n;
            return Ok(Self { ids, turn: Arc::clone(&previous.turn), first });
        }
        // A reload goes on with the next server: without this, each reload sends one more request to the first one.
        let saved = cx.saved().and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes);
        Ok(Self { ids, turn: Arc::new(AtomicU64::new(saved)), first: 0 })
    }

    fn load_balance(&self, _: &Request<'_>) -> usize {
        self.server(self.turn.fetch_add(1, Relaxed))
    }

    fn next(&self, server: &mut usize, cx: &NextCx<'_>) -> Next {
        for _ in 0..self.ids.len() {
            let candidate = *server;
            *server = (candidate + 1) % self.ids.len();
            if !cx.tried(candidate) {
                return Next::Endpoint(candidate);
            }
        }
        Next::Exhausted
    }

    fn save(&self) -> Option<Vec<u8>> {
        Some(self.turn.load(Relaxed).wrapping_add(self.first).to_le_bytes().to_vec())
    }

    fn explain(&self, server: &usize) -> Option<String> {
        Some(format!("in the order of the file; the next would be endpoint {server}"))
    }
}

impl ProxyLb {
    fn server(&self, turn: u64) -> usize {
        (turn.wrapping_add(self.first) % self.ids.len() as u64) as usize
    }

    /// Place among these endpoints of the one whose turn it is here, or of the first behind it that is among them.
    fn next_of(&self, ids: &[u64], turn: u64) -> u64 {
        let places: HashMap<u64, u64> = ids.iter().copied().zip(0..).collect();
        let (passed, to_come) = self.ids.split_at(self.server(turn));
        to_come.iter().chain(passed).find_map(|id| places.get(id)).copied().unwrap_or(0)
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
    fn goes_on_with_the_next_server_when_servers_come_and_go() {
        let all = FakeCluster::equal(6);
        let before = all.reordered(&[0, 1, 2, 3]).balancer::<ProxyLb>().build().unwrap();
        assert_eq!(before.sequence(6), [0, 1, 2, 3, 0, 1]);
        // The third is next. It is the fifth here, and what came before it is new.
        let cluster = all.reordered(&[4, 5, 0, 1, 2, 3]);
        let after = cluster.balancer::<ProxyLb>().previous(&before).build().unwrap();
        assert_eq!(after.sequence(1), [4]);
        // Turns that the old one still takes are not taken again.
        assert_eq!((before.sequence(1), after.sequence(2)), (vec![3], vec![0, 1]));
        // The server whose turn it is has left: the one behind it is next.
        let fewer = all.reordered(&[3, 1, 4]);
        let last = fewer.balancer::<ProxyLb>().previous(&after).build().unwrap();
        assert_eq!(last.sequence(4), [1, 2, 0, 1]);
        let restarted = fewer.balancer::<ProxyLb>().saved(last.save()).build().unwrap();
        assert_eq!(restarted.sequence(1), [2]);
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
