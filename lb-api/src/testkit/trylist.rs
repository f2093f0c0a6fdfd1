//! A trylist under test.

use std::time::Duration;

use super::balancer::TestBalancer;
use super::calls::TrylistCalls;
use super::host::{self, event_kind, outcome};
use crate::outcome::{EventKind, FailureKind, OutcomeKind, TryResult};
use crate::trylist::Next;
use crate::wire;

/// A trylist in its storage. Dropping it calls `drop_trylist`, whatever came before.
pub struct TestTrylist<'a, B> {
    of: &'a TestBalancer<B>,
    calls: TrylistCalls<'a>,
    /// A bit for each endpoint that was answered or marked.
    tried: Vec<u64>,
    /// Endpoints that were answered, in their order.
    tries: Vec<usize>,
}

impl<'a, B> TestTrylist<'a, B> {
    pub(super) fn new(of: &'a TestBalancer<B>, calls: TrylistCalls<'a>) -> Self {
        Self { of, calls, tried: Vec::new(), tries: Vec::new() }
    }

    /// Asks for the next endpoint and checks the answer as a host does. The endpoint then counts as tried.
    ///
    /// # Panics
    /// The balancer panicked, or answered with an endpoint that does not exist or was answered before.
    #[expect(clippy::should_implement_trait, reason = "named after the call")]
    pub fn next(&mut self) -> Next {
        self.try_next().unwrap_or_else(|why| panic!("next: {why}"))
    }

    /// The same, where a test expects the balancer to fail.
    ///
    /// # Errors
    /// Message and place of a panic, or what is wrong with the answer.
    pub fn try_next(&mut self) -> Result<Next, String> {
        let world = &self.of.world;
        let answer = self.calls.next(self.tries.len(), world.now_ns(), world.random(), &self.tried)?;
        match answer.kind {
            wire::NEXT_ENDPOINT => {
                let (idx, n) = (answer.endpoint as usize, self.of.n_endpoints);
                if idx >= n {
                    return Err(format!("answered endpoint {idx} of {n}"));
                }
                if self.was_tried(idx) && !self.tries.contains(&idx) {
                    return Err(format!("answered endpoint {idx}, which the host had tried before"));
                }
                if self.was_tried(idx) {
                    return Err(format!("answered endpoint {idx} twice (tried: {:?})", self.tries));
                }
                self.mark_tried(idx);
                self.tries.push(idx);
                Ok(Next::Endpoint(idx))
            }
            wire::NEXT_EXHAUSTED => Ok(Next::Exhausted),
            wire::NEXT_BUSY => Ok(Next::Busy),
            other => Err(format!("answered the unknown kind {other}")),
        }
    }

    /// All endpoints in the order in which this trylist answers them when every one fails to connect.
    pub fn all(&mut self) -> Vec<usize> {
        let mut order = Vec::new();
        while let Next::Endpoint(endpoint) = self.next() {
            order.push(endpoint);
            self.fail();
        }
        order
    }

    /// Marks an endpoint as answered before, as a host does with the preferred one.
    pub fn mark_tried(&mut self, endpoint: usize) {
        // No longer than need be, so that balancers meet words that are not there.
        let words = endpoint / 64 + 1;
        if self.tried.len() < words {
            self.tried.resize(words, 0);
        }
        self.tried[endpoint / 64] |= 1 << (endpoint % 64);
    }

    /// Forgets what was tried, as a host does that was told to wait: all of it was full, and may be answered again.
    pub(super) fn wait(&mut self) {
        self.tries.clear();
        self.tried.clear();
    }

    /// Takes back the last answer, as a host does that found the endpoint full and has waited since: it was no try, and
    /// may be answered again.
    pub fn decline_and_wait(&mut self) {
        if let Some(endpoint) = self.tries.pop() {
            self.tried[endpoint / 64] &= !(1 << (endpoint % 64));
        }
    }

    /// The last try was refused.
    pub fn fail(&mut self) {
        self.fail_with(FailureKind::Connect);
    }

    /// The last try could not be established: calls `report_failure`, and `observe` where that was asked for.
    ///
    /// # Panics
    /// The balancer panicked.
    pub fn fail_with(&mut self, kind: FailureKind) {
        let kind = match kind {
            FailureKind::Resolve => wire::FAILURE_RESOLVE,
            FailureKind::Connect => wire::FAILURE_CONNECT,
            FailureKind::ConnectTimeout => wire::FAILURE_CONNECT_TIMEOUT,
            FailureKind::Tls => wire::FAILURE_TLS,
            FailureKind::Local => wire::FAILURE_LOCAL,
        };
        let failure = wire::Failure {
            endpoint: self.last(),
            try_id: self.tries.len() as u32,
            ..host::failure(kind, self.of.world.now_ns())
        };
        self.calls.report_failure(&failure).unwrap_or_else(|why| panic!("report_failure: {why}"));
        self.observe(EventKind::TryEnded, None, Some(TryResult::NotEstablished), Duration::from_millis(1));
    }

    /// Tells that the last try goes on, where the balancer asked for such events.
    ///
    /// # Panics
    /// The balancer panicked.
    pub fn observe(
        &mut self,
        kind: EventKind,
        status: Option<u16>,
        result: Option<TryResult>,
        total: Duration,
    ) {
        self.observe_headers(kind, status, result, total, &[]);
    }

    /// The same with response headers, of which the balancer gets those that it asked for.
    ///
    /// # Panics
    /// The balancer panicked.
    pub fn observe_headers(
        &mut self,
        kind: EventKind,
        status: Option<u16>,
        result: Option<TryResult>,
        total: Duration,
        headers: &[(&str, &str)],
    ) {
        if !self.of.observes(kind) {
            return;
        }
        let total_ns = total.as_nanos() as u64;
        let event = wire::Event {
            size: size_of::<wire::Event>() as u32,
            kind: event_kind(kind),
            try_id: self.tries.len() as u32,
            endpoint: self.last(),
            status: status.unwrap_or_default().into(),
            result: match result {
                None => 0,
                Some(TryResult::Served) => wire::TRY_SERVED,
                Some(TryResult::NotEstablished) => wire::TRY_NOT_ESTABLISHED,
                Some(TryResult::ClosedEarly) => wire::TRY_CLOSED_EARLY,
                Some(TryResult::BadResponse) => wire::TRY_BAD_RESPONSE,
                Some(TryResult::TimedOut) => wire::TRY_TIMED_OUT,
                Some(TryResult::Broken) => wire::TRY_BROKEN,
                Some(TryResult::Aborted) => wire::TRY_ABORTED,
            },
            now_ns: self.of.world.now_ns(),
            connect_ns: 0,
            first_byte_ns: if status.is_some() { total_ns } else { 0 },
            total_ns,
            bytes_sent: 100,
            bytes_received: if status.is_some() { 1000 } else { 0 },
            headers: std::ptr::null(),
            n_headers: 0,
        };
        self.calls.observe(event, headers).unwrap_or_else(|why| panic!("observe: {why}"));
    }

    /// The last try is served with a 200 after a millisecond, and the request ends.
    pub fn serve(self) {
        self.serve_after(Duration::from_millis(1));
    }

    /// The same after this time, for balancers that learn. The cluster's clock stands where it is; see
    /// [`FakeCluster::advance`](super::FakeCluster::advance).
    ///
    /// # Panics
    /// The balancer panicked.
    pub fn serve_after(mut self, total: Duration) {
        self.observe(EventKind::Connected, None, None, total);
        self.observe(EventKind::ResponseHeaders, Some(200), None, total);
        self.observe(EventKind::TryEnded, Some(200), Some(TryResult::Served), total);
        self.end(OutcomeKind::Served, Some(200), total);
    }

    /// The request ends: calls `finish`, then `drop_trylist`.
    ///
    /// # Panics
    /// The balancer panicked.
    pub fn finish(self, kind: OutcomeKind, status: Option<u16>) {
        self.end(kind, status, Duration::from_millis(1));
    }

    fn end(mut self, kind: OutcomeKind, status: Option<u16>, total: Duration) {
        let endpoint = if kind == OutcomeKind::Served { self.last() } else { wire::NO_ENDPOINT };
        let times = (self.of.world.now_ns(), total.as_nanos() as u64);
        let outcome = outcome(outcome_kind(kind), endpoint, status, self.tries.len(), times);
        self.calls.finish(&outcome).unwrap_or_else(|why| panic!("finish: {why}"));
    }

    /// Its explanation of its choice; empty if it has none.
    ///
    /// # Panics
    /// The balancer panicked.
    pub fn explain(&mut self) -> String {
        self.calls.explain().unwrap_or_else(|why| panic!("explain: {why}"))
    }

    fn was_tried(&self, endpoint: usize) -> bool {
        self.tried.get(endpoint / 64).is_some_and(|word| word >> (endpoint % 64) & 1 == 1)
    }

    fn last(&self) -> u32 {
        self.tries.last().map_or(wire::NO_ENDPOINT, |endpoint| *endpoint as u32)
    }
}

fn outcome_kind(kind: OutcomeKind) -> u32 {
    match kind {
        OutcomeKind::Served => wire::OUTCOME_SERVED,
        OutcomeKind::NoEndpoint => wire::OUTCOME_NO_ENDPOINT,
        OutcomeKind::Failed => wire::OUTCOME_FAILED,
        OutcomeKind::TimedOut => wire::OUTCOME_TIMED_OUT,
        OutcomeKind::Broken => wire::OUTCOME_BROKEN,
        OutcomeKind::Aborted => wire::OUTCOME_ABORTED,
    }
}
