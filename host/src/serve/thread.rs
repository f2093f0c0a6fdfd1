//! State of one worker thread. Nothing in here is shared, so nothing in here waits.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::task::Waker;
use std::time::Instant;

use slab::Slab;
use tokio::sync::Notify;

use crate::cluster::Clusters;
use crate::cluster::random::Random;
use crate::config::Config;
use crate::http::date::Date;
use crate::module::wire::ns;
use crate::observe::access_log;
use crate::observe::metrics::Shard;
use crate::serve::drain::Phase;
use crate::serve::pool::Pool;
use crate::serve::route::Routes;

/// Lines about failed requests that one thread logs in a second: a server that is down at full load must not turn the log
/// into the bottleneck. The metrics and the access log count all.
const LOG_LINES_PER_SECOND: u32 = 10;

/// State of one worker thread, and its references to shared state.
#[derive(Debug)]
pub(crate) struct Thread {
    /// The configuration.
    pub(crate) config: Arc<Config>,
    /// The routes.
    pub(crate) routes: Arc<Routes>,
    /// All clusters, in the order of the configuration.
    pub(crate) clusters: Clusters,
    /// This thread's numbers.
    pub(crate) metrics: Arc<Shard>,
    /// This thread's end of the access log, if there is one.
    pub(crate) access_log: Option<RefCell<access_log::LogWriter>>,
    /// Idle connections to servers.
    pub(crate) pool: Pool,
    /// The current date as a header value.
    pub(crate) date: Date,
    phase: Cell<Phase>,
    epoch: Instant,
    random: Random,
    requests: Cell<u64>,
    log_budget: Cell<LogBudget>,
    connections: RefCell<Slab<Option<Waker>>>,
    connection_ended: Notify,
}

/// Log lines that are left in this second.
#[derive(Clone, Copy, Debug, Default)]
struct LogBudget {
    second: Option<Instant>,
    used: u32,
    left_out: u64,
}

impl Thread {
    /// `epoch` is the zero of the times that modules see, the same for all threads.
    pub(crate) fn new(
        config: Arc<Config>,
        routes: Arc<Routes>,
        clusters: Clusters,
        metrics: Arc<Shard>,
        access_log: Option<access_log::LogWriter>,
        epoch: Instant,
    ) -> Self {
        Self {
            pool: Pool::new(&clusters),
            config,
            routes,
            clusters,
            metrics,
            access_log: access_log.map(RefCell::new),
            phase: Cell::new(Phase::Serving),
            epoch,
            random: Random::new(),
            requests: Cell::new(0),
            date: Date::default(),
            log_budget: Cell::default(),
            connections: RefCell::default(),
            connection_ended: Notify::new(),
        }
    }

    /// Uniform random bits. Not secret: for balancing only.
    #[inline]
    pub(crate) fn random(&self) -> u64 {
        self.random.next()
    }

    /// A time as modules see it.
    #[inline]
    pub(crate) fn ns(&self, time: Instant) -> u64 {
        ns(time.saturating_duration_since(self.epoch))
    }

    /// Counts a request and says whether it is the one in 64 whose module calls are timed.
    #[inline]
    pub(crate) fn is_sampled(&self) -> bool {
        let n = self.requests.get();
        self.requests.set(n.wrapping_add(1));
        n.is_multiple_of(64)
    }

    /// Whether a line about a failed request may be logged, and how many were left out since the last one.
    pub(crate) fn may_log(&self) -> Option<u64> {
        let (now, mut budget) = (Instant::now(), self.log_budget.get());
        if budget.second.is_none_or(|second| now.saturating_duration_since(second).as_secs() >= 1) {
            budget = LogBudget { second: Some(now), used: 0, ..budget };
        }
        let may = budget.used < LOG_LINES_PER_SECOND;
        let left_out = budget.left_out;
        if may {
            budget.used += 1;
            budget.left_out = 0;
        } else {
            budget.left_out += 1;
        }
        self.log_budget.set(budget);
        may.then_some(left_out)
    }

    /// The phase of the worker.
    #[inline]
    pub(crate) fn phase(&self) -> Phase {
        self.phase.get()
    }

    /// Enters the next phase and wakes every connection, so that each can react to it.
    pub(crate) fn enter_phase(&self, phase: Phase) {
        self.phase.set(phase);
        for waker in self.connections.borrow().iter().filter_map(|(_, waker)| waker.as_ref()) {
            waker.wake_by_ref();
        }
    }

    /// Takes a place in the list of connections that are woken when the phase changes.
    pub(crate) fn join(&self) -> usize {
        self.connections.borrow_mut().insert(None)
    }

    /// Sets the waker of a connection; once for the life of a task.
    pub(crate) fn set_waker(&self, place: usize, waker: &Waker) {
        self.connections.borrow_mut()[place] = Some(waker.clone());
    }

    /// Gives the place up.
    pub(crate) fn leave(&self, place: usize) {
        self.connections.borrow_mut().remove(place);
        if self.phase().is_ending() {
            self.connection_ended.notify_one();
        }
    }

    /// Completes when a connection has ended since the last time it did; only once the worker is ending.
    pub(crate) async fn a_connection_ended(&self) {
        self.connection_ended.notified().await;
    }

    /// Connections of this thread.
    pub(crate) fn n_connections(&self) -> usize {
        self.connections.borrow().len()
    }
}

/// A connection's place among those of its thread, given up when dropped.
pub(crate) trait ConnectionPlace {
    /// Which it is; see [`Thread::join`].
    fn index(&self) -> usize;
}
