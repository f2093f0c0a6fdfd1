//! State of one worker thread. Nothing in here is shared, so nothing in here waits.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Waker;
use std::time::Instant;

use arc_swap::Guard;
use slab::Slab;
use tokio::sync::Notify;

use crate::cluster::endpoint::Endpoint;
use crate::cluster::random::Random;
use crate::cluster::{Cluster, Clusters, Snapshot};
use crate::config::Config;
use crate::http::date::Date;
use crate::http::stream::Stream;
use crate::module::wire::ns;
use crate::observe::access_log;
use crate::observe::metrics::Shard;
use crate::serve::drain::Phase;
use crate::serve::pool::Pool;
use crate::serve::route::Routes;

/// Lines about failed requests that one thread logs in a second: a server that is down at full load must not turn the log
/// into the bottleneck. The metrics and the access log count all.
const LOG_LINES_PER_SECOND: u32 = 10;

/// One request of so many has its module calls timed: two readings of the clock cost more than most calls.
const TIMED_OF: u32 = 64;

/// At least so many in a second, if there are so many: enough to judge a module by.
const TIMED_A_SECOND: u32 = 8;

/// The members of a cluster as one thread sees them. Its requests share it, and it costs them no atomic operation.
pub(crate) type Members = Rc<Arc<Snapshot>>;

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
    pub(crate) access_log: Option<RefCell<access_log::AccessLogWriter>>,
    /// Idle connections to servers.
    pub(crate) pool: Pool,
    /// The current date as a header value.
    pub(crate) date: Date,
    /// The members of each cluster, as this thread sees them.
    members: Box<[RefCell<Members>]>,
    /// Its number, from 0.
    number: usize,
    /// Snapshots that are over, as of the last switch.
    n_over: Cell<u64>,
    phase: Cell<Phase>,
    epoch: Instant,
    random: Random,
    /// Requests until the next one whose module calls are timed.
    until_timed: Cell<u32>,
    /// So many that follow it are timed as well.
    n_to_time: Cell<u32>,
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
        access_log: Option<access_log::AccessLogWriter>,
        epoch: Instant,
        number: usize,
    ) -> Self {
        let members = |cluster: &Cluster| RefCell::new(Rc::new(cluster.newest().clone()));
        let thread = Self {
            members: clusters.iter().map(members).collect(),
            number,
            n_over: Cell::new(0),
            pool: Pool::new(&clusters),
            config,
            routes,
            clusters,
            metrics,
            access_log: access_log.map(RefCell::new),
            phase: Cell::new(Phase::Serving),
            epoch,
            random: Random::new(),
            until_timed: Cell::new(0),
            n_to_time: Cell::new(0),
            date: Date::default(),
            log_budget: Cell::default(),
            connections: RefCell::default(),
            connection_ended: Notify::new(),
        };
        thread.tell_use();
        // Snapshots that were published meanwhile.
        thread.switch();
        thread
    }

    /// The members of a cluster, as this thread sees them now.
    #[inline]
    pub(crate) fn members(&self, cluster: usize) -> Members {
        Rc::clone(&self.members[cluster].borrow())
    }

    /// Chooses among the newest members of each cluster from now on. Costs O(members) where they have changed.
    pub(crate) fn switch(&self) {
        for (idx, cluster) in self.clusters.iter().enumerate() {
            let newest = Guard::into_inner(cluster.newest());
            let before = self.members(idx);
            if newest.number != before.number {
                self.pool.switch(idx, &before, &newest);
                self.members[idx].replace(Rc::new(newest));
            }
        }
        self.tell_use();
        let n_over = self.clusters.iter().map(Cluster::n_over).sum();
        if self.n_over.replace(n_over) != n_over {
            self.wake_connections();
        }
    }

    /// Nothing of this thread chooses any more.
    pub(crate) fn ends(&self) {
        self.clusters.iter().for_each(|cluster| cluster.uses(self.number, u64::MAX));
    }

    fn tell_use(&self) {
        for (idx, cluster) in self.clusters.iter().enumerate() {
            cluster.uses(self.number, self.members(idx).number);
        }
    }

    /// Closes idle connections that are of no more use.
    pub(crate) fn sweep(&self, now: Instant) {
        let members: Vec<Members> = (0..self.clusters.len()).map(|idx| self.members(idx)).collect();
        self.pool.sweep(members.iter().map(|members| &***members), now);
    }

    /// Keeps a connection on which nothing is outstanding, unless its member has left.
    pub(crate) fn keep_connection(&self, cluster: usize, member: &Endpoint, stream: Stream, now: Instant) {
        if self.members(cluster).by_id(member).is_some() {
            self.pool.put(cluster, member.place, stream, now);
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

    /// Counts a request and says whether its module calls are timed: one in 64, and the first ones of each second.
    #[inline]
    pub(crate) fn is_sampled(&self) -> bool {
        let left = self.until_timed.get();
        if left > 0 {
            self.until_timed.set(left - 1);
            return false;
        }
        let n = self.n_to_time.get();
        self.n_to_time.set(n.saturating_sub(1));
        self.until_timed.set(if n > 0 { 0 } else { TIMED_OF - 1 });
        true
    }

    /// A second begins. Without this a module is timed too seldom where requests are few.
    pub(crate) fn time_next_requests(&self) {
        self.until_timed.set(0);
        self.n_to_time.set(TIMED_A_SECOND - 1);
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
        self.wake_connections();
    }

    fn wake_connections(&self) {
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
