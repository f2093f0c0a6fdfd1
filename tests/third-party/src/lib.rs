#![forbid(unsafe_code)]
#![deny(missing_docs)]
//! `least_used`: for servers that meter their use. Each request has a cost in units, and goes to the server that has used
//! the fewest units so far. The count survives reloads and restarts.
//!
//! ```toml
//! [cluster.settings]
//! header = "x-units"   # the request header that names a request's cost; a request without it costs 1
//! quota = 1000         # a server that has used so many gets nothing more; 0, the default, for no quota
//! ```
//!
//! A server is charged when it is chosen, so that requests at the same time spread out, and the charge is taken back
//! unless the server answers.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::Arc;

use lb_api::serde::Deserialize;
use lb_api::{
    export_balancer, Balancer, BuildCx, BuildError, Event, EventKind, Live, Needs, Next, NextCx, Request,
    TryResult,
};

/// The module's settings.
#[derive(Debug, Deserialize)]
#[serde(crate = "lb_api::serde", default)]
pub struct Settings {
    header: String,
    quota: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { header: "x-units".into(), quota: 0 }
    }
}

/// The instance for one cluster.
#[derive(Debug)]
pub struct LeastUsed {
    servers: Vec<Server>,
    settings: Settings,
}

#[derive(Debug)]
struct Server {
    id: u64,
    live: Live,
    used: Arc<AtomicU64>,
}

/// A request's cost, and whom it is charged to as long as nobody has answered.
#[derive(Debug)]
pub struct Bill {
    units: u64,
    charged: Option<Arc<AtomicU64>>,
}

impl Bill {
    fn charge(&mut self, server: &Server) {
        self.take_back();
        server.used.fetch_add(self.units, Relaxed);
        self.charged = Some(Arc::clone(&server.used));
    }

    fn take_back(&mut self) {
        if let Some(used) = self.charged.take() {
            used.fetch_sub(self.units, Relaxed);
        }
    }
}

impl Drop for Bill {
    fn drop(&mut self) {
        self.take_back();
    }
}

impl Balancer for LeastUsed {
    const ID: &'static str = "least_used";
    const SUMMARY: &'static str = "the server that has used the fewest units";
    const STATE_VERSION: u32 = 2;
    type Settings = Settings;
    type Trylist = Bill;

    fn build(cx: &BuildCx<'_, Self>, settings: Settings) -> Result<Self, BuildError> {
        if settings.header.is_empty() {
            return Err(BuildError::setting("header", "expected the name of a header, found \"\""));
        }
        let saved: Vec<(u64, u64)> = cx.saved().unwrap_or_default().chunks_exact(16).map(pair).collect();
        let used_before = |id: u64| {
            let previous = cx.previous().and_then(|p| p.servers.iter().find(|server| server.id == id));
            match previous {
                // The previous instance goes on charging while this one starts, so that the count is shared.
                Some(server) => Arc::clone(&server.used),
                None => Arc::new(AtomicU64::new(
                    saved.iter().find(|(of, _)| *of == id).map_or(0, |(_, used)| *used),
                )),
            }
        };
        let servers: Vec<_> = cx
            .endpoints()
            .iter()
            .map(|endpoint| Server {
                id: endpoint.id(),
                live: endpoint.live(),
                used: used_before(endpoint.id()),
            })
            .collect();
        cx.log().info(format_args!("{} servers, quota {}", servers.len(), settings.quota));
        Ok(Self { servers, settings })
    }

    fn needs(&self) -> Needs {
        Needs::default().request_header(self.settings.header.as_str()).event(EventKind::TryEnded)
    }

    fn load_balance(&self, request: &Request<'_>) -> Bill {
        let units = request.header(0).and_then(|value| std::str::from_utf8(value).ok());
        Bill { units: units.and_then(|units| units.trim().parse().ok()).unwrap_or(1), charged: None }
    }

    fn next(&self, bill: &mut Bill, cx: &NextCx<'_>) -> Next {
        bill.take_back();
        let within =
            |server: &Server| self.settings.quota == 0 || server.used.load(Relaxed) < self.settings.quota;
        let fitting = self
            .servers
            .iter()
            .enumerate()
            .filter(|(idx, server)| !cx.tried(*idx) && server.live.is_available() && within(server));
        match fitting.min_by_key(|(_, server)| server.used.load(Relaxed)) {
            Some((idx, server)) => {
                bill.charge(server);
                Next::Endpoint(idx)
            }
            None => Next::Exhausted,
        }
    }

    fn observe(&self, bill: &mut Bill, event: &Event<'_>) {
        if event.result == Some(TryResult::Served) {
            bill.charged = None;
        }
    }

    fn save(&self) -> Option<Vec<u8>> {
        let pairs = self.servers.iter().map(|server| [server.id, server.used.load(Relaxed)]);
        Some(pairs.flatten().flat_map(u64::to_le_bytes).collect())
    }

    fn explain(&self, bill: &Bill) -> Option<String> {
        let used: Vec<_> = self.servers.iter().map(|server| server.used.load(Relaxed)).collect();
        Some(format!("costs {}; used so far: {used:?}", bill.units))
    }
}

fn pair(bytes: &[u8]) -> (u64, u64) {
    let number = |half: &[u8]| half.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte));
    (number(&bytes[..8]), number(&bytes[8..]))
}

export_balancer!(LeastUsed);

#[cfg(test)]
mod tests {
    use lb_api::testkit::{Contract, FakeCluster, FakeRequest};

    use super::*;

    #[test]
    fn keeps_the_contract() {
        Contract::<LeastUsed>::new().skips_unavailable().check();
        Contract::<LeastUsed>::new().setting("quota", 1_000_000).setting("header", "x-cost").check();
    }

    #[test]
    fn chooses_the_server_that_has_used_the_least() {
        let balancer = FakeCluster::equal(2).balancer::<LeastUsed>().build().unwrap();
        let mut trylist = balancer.load_balance(FakeRequest::get("/").header("X-Units", "3"));
        assert_eq!(trylist.next(), Next::Endpoint(0));
        assert_eq!(trylist.explain(), "costs 3; used so far: [3, 0]");
        trylist.serve();
        assert_eq!(balancer.sequence(5), [1, 1, 1, 0, 1]);
    }

    #[test]
    fn takes_a_charge_back_unless_the_server_answered() {
        let balancer = FakeCluster::equal(2).balancer::<LeastUsed>().build().unwrap();
        let mut failed = balancer.load_balance(FakeRequest::get("/"));
        assert_eq!(failed.all(), [0, 1]);
        drop(failed);
        let mut gone = balancer.load_balance(FakeRequest::get("/"));
        assert_eq!(gone.next(), Next::Endpoint(0));
        drop(gone);
        assert_eq!(balancer.load_balance(FakeRequest::get("/")).explain(), "costs 1; used so far: [0, 0]");
    }

    #[test]
    fn stops_at_the_quota() {
        let balancer = FakeCluster::equal(2).balancer::<LeastUsed>().setting("quota", 2).build().unwrap();
        assert_eq!(balancer.sequence(4), [0, 1, 0, 1]);
        assert_eq!(balancer.load_balance(FakeRequest::get("/")).next(), Next::Exhausted);
    }

    #[test]
    fn remembers_over_reloads_and_restarts() {
        let cluster = FakeCluster::equal(3);
        let first = cluster.balancer::<LeastUsed>().build().unwrap();
        assert_eq!(first.sequence(4), [0, 1, 2, 0]);
        let reordered = cluster.reordered(&[0, 2]);
        let second = reordered.balancer::<LeastUsed>().previous(&first).build().unwrap();
        assert_eq!(second.sequence(2), [1, 0]);
        let restarted = cluster.balancer::<LeastUsed>().saved(second.save()).build().unwrap();
        assert_eq!(
            restarted.load_balance(FakeRequest::get("/")).explain(),
            "costs 1; used so far: [3, 0, 2]"
        );
    }

    #[test]
    fn refuses_settings_that_make_no_sense() {
        let cluster = FakeCluster::equal(1);
        let refused = cluster.balancer::<LeastUsed>().setting("header", "").build().err().unwrap();
        assert_eq!(refused.to_string(), "header: expected the name of a header, found \"\"");
        let refused =
            cluster.balancer::<LeastUsed>().setting("qouta", 1).setting("header", 2).build().err().unwrap();
        assert_eq!(
            refused.to_string(),
            "header: expected a string, found 2; qouta: unknown setting (did you mean \"quota\"?)"
        );
    }
}
