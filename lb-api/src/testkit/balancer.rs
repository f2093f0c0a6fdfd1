//! A balancer under test.

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use super::calls::{Instance, TrylistCalls};
use super::cluster::{FakeRequest, World};
use super::host::event_kind;
use super::trylist::TestTrylist;
use crate::outcome::EventKind;
use crate::trylist::Next;

/// A balancer behind its table of calls. Dropping it calls `drop_balancer`.
pub struct TestBalancer<B> {
    pub(super) instance: Instance,
    pub(super) n_endpoints: usize,
    pub(super) world: Arc<World>,
    pub(super) of: PhantomData<fn() -> B>,
}

impl<B> TestBalancer<B> {
    /// Makes the trylist of a request.
    ///
    /// # Panics
    /// The balancer panicked.
    pub fn load_balance(&self, request: FakeRequest) -> TestTrylist<'_, B> {
        self.try_load_balance(request).unwrap_or_else(|why| panic!("load_balance: {why}"))
    }

    /// The same, where a test expects the balancer to panic.
    ///
    /// # Errors
    /// Message and place of the panic.
    pub fn try_load_balance(&self, request: FakeRequest) -> Result<TestTrylist<'_, B>, String> {
        let calls = TrylistCalls::load_balance(&self.instance, request)?;
        Ok(TestTrylist::new(self, calls))
    }

    /// The answers of `n` requests that are all served at the first try: the balancer's sequence.
    pub fn sequence(&self, n: usize) -> Vec<usize> {
        (0..n)
            .map(|_| {
                let mut trylist = self.load_balance(FakeRequest::get("/"));
                let Next::Endpoint(endpoint) = trylist.next() else { panic!("no endpoint for a first try") };
                trylist.serve();
                endpoint
            })
            .collect()
    }

    /// How often each endpoint was the first choice in `n` requests.
    pub fn distribution(&self, n: usize) -> Vec<usize> {
        let mut counts = vec![0; self.n_endpoints];
        self.sequence(n).into_iter().for_each(|endpoint| counts[endpoint] += 1);
        counts
    }

    /// Time of `n` requests that are all served at the first try: all calls that a host makes for such a request, and nothing
    /// else. The answers are not checked.
    ///
    /// # Panics
    /// The balancer panicked, or refused a call.
    pub fn time(&self, request: FakeRequest, n: usize) -> Duration {
        self.time_of(request, n, false)
    }

    /// The same where the first try cannot be established, and the second one is served.
    ///
    /// # Panics
    /// As [`time`](Self::time).
    pub fn time_of_failure(&self, request: FakeRequest, n: usize) -> Duration {
        self.time_of(request, n, true)
    }

    fn time_of(&self, request: FakeRequest, n: usize, fails: bool) -> Duration {
        let calls = TrylistCalls::load_balance(&self.instance, request);
        let calls = calls.unwrap_or_else(|why| panic!("load_balance: {why}"));
        let took = calls.time(n, (self.world.now_ns(), self.world.random()), fails);
        took.unwrap_or_else(|why| panic!("a request: {why}"))
    }

    /// Time that its `build` took.
    pub fn built_in(&self) -> Duration {
        self.instance.built_in()
    }

    /// Its saved state, wrapped as a host gets it; empty if it saves nothing.
    ///
    /// # Panics
    /// The balancer panicked.
    pub fn save(&self) -> Vec<u8> {
        self.instance.save().unwrap_or_else(|why| panic!("save: {why}"))
    }

    /// Lines that it wrote to the log, the first thousand.
    pub fn logged(&self) -> Vec<String> {
        self.instance.logged()
    }

    /// Whether it asked for events of this kind.
    pub fn observes(&self, kind: EventKind) -> bool {
        self.instance.observes(event_kind(kind))
    }
}
