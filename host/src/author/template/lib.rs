//! `@ID@`: round robin in runs. `run` requests in a row go to one server, the next `run` requests to the next server.
//!
//! By hand, for servers a, b, c and runs of 2: a a b b c c a a. A server that is not available is skipped as long as there are
//! others. A try that fails goes on with the next server and does not change the turns of other requests.
//!
//! **Settings**: `run`, the number of requests in a row for one server, 1 or more; 1 by default.
//!
//! **When**: servers of equal strength. **When not**: weights, which it ignores.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use lb_api::serde::Deserialize;
use lb_api::{Balancer, BuildCx, BuildError, Live, Next, NextCx, Request, export_balancer};

/// The cluster's table `settings`.
#[derive(Debug, Deserialize)]
#[serde(crate = "lb_api::serde", default)]
pub struct Settings {
    run: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { run: 1 }
    }
}

/// The instance for one cluster and one list of its endpoints, shared by all threads.
#[derive(Debug)]
pub struct Runs {
    endpoints: Box<[Live]>,
    run: u64,
    /// Shared by all instances that follow one another in a process.
    n_requests: Arc<AtomicU64>,
}

impl Balancer for Runs {
    const ID: &'static str = "@ID@";
    const SUMMARY: &'static str = "round robin in runs of requests";
    /// Raise it when the form of the saved bytes changes.
    const STATE_VERSION: u32 = 1;
    type Settings = Settings;
    /// The server that this request tries first.
    type Trylist = usize;

    fn build(cx: &BuildCx<'_, Self>, settings: Settings) -> Result<Self, BuildError> {
        if settings.run == 0 {
            return Err(BuildError::setting("run", "expected 1 or more, found 0"));
        }
        let n_requests = match cx.previous() {
            // Endpoints came or went: go on where the instance before stands. It is still in use, so both count together. What
            // is learned of an endpoint is shared like this too, keyed by `Endpoint::id`, since indices differ.
            Some(previous) => Arc::clone(&previous.n_requests),
            // A reload starts a new process: go on with the turn that the old one saved.
            None => {
                let saved = cx.saved().and_then(|bytes| bytes.try_into().ok());
                Arc::new(saved.map_or(0, u64::from_le_bytes).into())
            }
        };
        Ok(Self {
            endpoints: cx.endpoints().live(),
            run: settings.run,
            n_requests,
        })
    }

    fn load_balance(&self, _: &Request<'_>) -> usize {
        let run = self.n_requests.fetch_add(1, Relaxed) / self.run;
        (run % self.endpoints.len() as u64) as usize
    }

    fn next(&self, first: &mut usize, cx: &NextCx<'_>) -> Next {
        let n = self.endpoints.len();
        let mut untried = (0..n)
            .map(|step| (*first + step) % n)
            .filter(|idx| !cx.tried(*idx));
        let any = untried.clone().next();
        let available = untried.find(|idx| self.endpoints[*idx].is_available());
        available.or(any).map_or(Next::Exhausted, Next::Endpoint)
    }

    fn save(&self) -> Option<Vec<u8>> {
        Some(self.n_requests.load(Relaxed).to_le_bytes().to_vec())
    }
}

export_balancer!(Runs);

#[cfg(test)]
mod tests {
    use lb_api::State;
    use lb_api::testkit::{Contract, FakeCluster, FakeRequest};

    use super::*;

    #[test]
    fn keeps_the_contract() {
        Contract::<Runs>::new().skips_unavailable().check();
        Contract::<Runs>::new()
            .setting("run", 3)
            .skips_unavailable()
            .check();
    }

    #[test]
    fn stays_for_a_run_of_requests() {
        let cluster = FakeCluster::equal(3);
        let balancer = cluster
            .balancer::<Runs>()
            .setting("run", 2)
            .build()
            .unwrap();
        assert_eq!(balancer.sequence(8), [0, 0, 1, 1, 2, 2, 0, 0]);
    }

    #[test]
    fn passes_over_what_is_down() {
        let cluster = FakeCluster::equal(3);
        cluster.set_state(1, State::Down);
        let balancer = cluster.balancer::<Runs>().build().unwrap();
        assert_eq!(balancer.sequence(3), [0, 2, 2]);
    }

    #[test]
    fn goes_on_with_the_next_server_when_a_try_fails() {
        let cluster = FakeCluster::equal(3);
        let balancer = cluster.balancer::<Runs>().build().unwrap();
        let order = || balancer.load_balance(FakeRequest::get("/")).all();
        assert_eq!([order(), order()], [[0, 1, 2], [1, 2, 0]]);
    }

    #[test]
    fn goes_on_after_a_reload() {
        let cluster = FakeCluster::equal(3);
        let before = cluster.balancer::<Runs>().build().unwrap();
        assert_eq!(before.sequence(4), [0, 1, 2, 0]);
        let after = cluster
            .balancer::<Runs>()
            .saved(before.save())
            .build()
            .unwrap();
        assert_eq!(after.sequence(2), [1, 2]);
    }

    #[test]
    fn goes_on_when_servers_come_and_go() {
        let all = FakeCluster::equal(4);
        let three = all.membership(&[0, 1, 2]);
        let before = three.balancer::<Runs>().build().unwrap();
        assert_eq!(before.sequence(2), [0, 1]);
        let after = all.balancer::<Runs>().previous(&before).build().unwrap();
        assert_eq!(after.sequence(2), [2, 3]);
    }

    #[test]
    fn refuses_runs_of_nothing() {
        let refused = FakeCluster::equal(3)
            .balancer::<Runs>()
            .setting("run", 0)
            .build();
        assert_eq!(
            refused.err().unwrap().to_string(),
            "run: expected 1 or more, found 0"
        );
    }
}
