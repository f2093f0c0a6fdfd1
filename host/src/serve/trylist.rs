//! One request's trylist, held as a guard: whatever happens to the request, the module hears what it was promised.
//!
//! - `next` is asked as the design says: answers are checked like input, an endpoint that takes nothing now is declined
//!   and asked past, a fault hands the rest of the request to the host's own choice.
//! - a try that was begun is ended, `finish` comes at most once, `drop` exactly once and last; after a panic only `drop`.

mod calls;
mod choice;
mod explain;
mod slot;
mod view;
mod why;

use std::hash::{DefaultHasher, Hasher as _};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lb_api::wire;

use crate::cluster::ejection::{self, Trial};
use crate::cluster::endpoint::{Endpoint, InFlight, Which};
use crate::cluster::{Cluster, Snapshot, Tier};
use crate::http::h1::head::ResponseHead;
use crate::module::balancer::Balancer;
use crate::module::wire::ns;
use crate::observe::metrics::EndedTry;
use crate::serve::thread::{Members, Thread};

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use self::choice::check_answer;
use self::slot::Slot;
pub(crate) use self::view::{NextTry, Tried, View};
use self::why::Explanation;

/// One request's candidates.
#[derive(Debug)]
pub(crate) struct Trylist<'a> {
    thread: &'a Thread,
    cluster_idx: usize,
    cluster: &'a Cluster,
    /// The members that it chooses among.
    members: Members,
    /// Tried members of snapshots before that one.
    older: Vec<Arc<Endpoint>>,
    /// It has chosen before: members may have changed since.
    has_chosen: bool,
    tier_idx: usize,
    /// The tier that it began with.
    begun_in: usize,
    /// Index of the module that chooses, in the metrics.
    module_idx: usize,
    /// The tier's balancer chooses, and not the host.
    asks_module: bool,
    which: Which,
    /// The tier's endpoint to be tried before the module is asked.
    preferred: Option<usize>,
    /// The last answer was to wait, and endpoints were declined before it.
    has_waited: bool,
    /// A full tier was passed over.
    has_spilled: bool,
    /// The module has answered full endpoints only, and left out others that may have room.
    is_choosy: bool,
    /// It leaves alone the endpoints that others wait for.
    yields: bool,
    /// The endpoint of its session is full, and nothing else is wrong with it.
    is_session_kept: bool,
    view: &'a View<'a>,
    slot: Option<Box<Slot>>,
    state: CallState,
    started: Instant,
    current: Option<CurrentTry>,
    last: TryTotals,
    /// Time spent in module calls, and their number, if those of this request are sampled.
    module_time: Option<(Duration, u32)>,
    /// The record for a client that asks for an explanation; nearly always `None`.
    why: Option<Box<Explanation>>,
}

/// The calls that the module may still get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CallState {
    /// There is a trylist, and the module chooses.
    Chosen,
    /// There is a trylist, but the host chooses, because the module answered what it must not.
    Overruled,
    /// There is a trylist, which is to be dropped: the module panicked, or has heard the end.
    Ended,
    /// There is no trylist: the module panicked in `load_balance`, or was not asked.
    None,
}

/// The tier to begin with. A session whose endpoint drains is served in the tier of that endpoint.
fn first_tier(thread: &Thread, members: &Snapshot, view: &View<'_>) -> (usize, Which) {
    let first = members.first_tier(|| draw(thread, view)).unwrap_or((NO_TIER, Which::Available));
    let idx = view.preferred.and_then(|place| members.index_of_place(place));
    match idx.map(|idx| (idx, &members.endpoints[idx])) {
        Some((idx, endpoint)) if endpoint.is_usable(Which::Session) => {
            (members.tiers.iter().rposition(|tier| tier.first <= idx).unwrap_or(first.0), first.1)
        }
        _ => first,
    }
}

/// Where tiers have shares: requests of one key go to one tier.
#[cold]
fn draw(thread: &Thread, view: &View<'_>) -> u64 {
    let Some(key) = view.key else { return thread.random() };
    let mut hasher = DefaultHasher::new();
    hasher.write(key);
    hasher.finish()
}

/// The cluster has no members, and so no tier.
const NO_TIER: usize = usize::MAX;

/// The try that is under way.
#[derive(Debug)]
struct CurrentTry {
    endpoint: usize,
    started: Instant,
    connect: Duration,
    first_byte: Option<Duration>,
    status: u16,
    sent: u64,
    received: u64,
    failure: Option<u32>,
    os_error: Option<i32>,
    was_hurried: bool,
    trial: Trial,
    _in_flight: InFlight,
}

/// The tries so far, for `finish`.
#[derive(Clone, Copy, Debug, Default)]
struct TryTotals {
    endpoint: Option<usize>,
    connect: Duration,
    first_byte: Option<Duration>,
    sent: u64,
    received: u64,
}

impl<'a> Trylist<'a> {
    /// Calls the hook. The head stays borrowed until the trylist is dropped, as the module was promised.
    pub(crate) fn start(thread: &'a Thread, cluster_idx: usize, view: &'a View<'a>, now: Instant) -> Self {
        let cluster = &thread.clusters[cluster_idx];
        let members = thread.members(cluster_idx);
        let (tier_idx, which) = first_tier(thread, &members, view);
        let mut slot = Slot::lend();
        slot.tries.clear();
        let mut trylist = Self {
            thread,
            cluster_idx,
            cluster,
            tier_idx,
            begun_in: tier_idx,
            module_idx: cluster.module_idx(view.key.is_some()),
            asks_module: false,
            which,
            preferred: None,
            has_waited: false,
            has_spilled: false,
            is_choosy: false,
            yields: members.has_limits,
            members,
            older: Vec::new(),
            has_chosen: false,
            is_session_kept: false,
            view,
            slot: Some(slot),
            state: CallState::None,
            started: now,
            current: None,
            last: TryTotals::default(),
            module_time: thread.is_sampled().then_some((Duration::ZERO, 0)),
            why: None,
        };
        trylist.load_balance();
        trylist
    }

    /// ID of the module that chooses, also where the host chooses in its place.
    pub(crate) fn module(&self) -> &'a str {
        self.cluster.module(self.view.key.is_some())
    }

    /// Decides on the next try. For [`NextTry::Endpoint`] the try has begun: the endpoint's in-flight count has risen, and one of
    /// [`Trylist::not_established`] and [`Trylist::end_try`] is to follow.
    pub(crate) fn next(&mut self, now: Instant) -> NextTry {
        debug_assert!(self.current.is_none(), "the last try was not ended");
        self.is_choosy = false;
        if std::mem::replace(&mut self.has_chosen, true) {
            self.move_to_newest(now);
        }
        if self.has_waited {
            // Declined endpoints may be free or available by now.
            self.has_waited = false;
            let n_endpoints = self.n_endpoints();
            self.slot_mut().forget_declined(n_endpoints);
        }
        if self.has_spilled {
            self.has_spilled = false;
            self.enter_first_tier(now);
        }
        let mut step = self.next_in_tier(now);
        let mut is_full = step == NextTry::Wait;
        while (step == NextTry::Exhausted || step == NextTry::Wait && self.spills())
            && self.enter_next_tier(now)
        {
            self.has_spilled |= is_full;
            step = self.next_in_tier(now);
            is_full |= step == NextTry::Wait;
        }
        if is_full && step == NextTry::Exhausted {
            // A tier before this one is full, and no more than that.
            step = NextTry::Wait;
        }
        self.has_waited = step == NextTry::Wait && self.slot().has_declined();
        if self.why.is_some() {
            self.note_step(step);
        }
        step
    }

    /// The try could not be established: nothing of the request was sent.
    pub(crate) fn not_established(&mut self, kind: u32, os_error: Option<i32>, now: Instant) {
        let try_id = self.slot().tries.len() as u32 + 1;
        let Some(endpoint) = self.current.as_ref().map(|current| self.wire_idx(current.endpoint)) else {
            return;
        };
        let Some(current) = &mut self.current else { return };
        (current.failure, current.os_error) = (Some(kind), os_error);
        let failure = wire::Failure {
            size: size_of::<wire::Failure>() as u32,
            kind,
            endpoint,
            try_id,
            os_error: os_error.unwrap_or(0),
            reserved: 0,
            now_ns: self.thread.ns(now),
            elapsed_ns: ns(now.saturating_duration_since(current.started)),
        };
        self.report_failure(&failure);
        self.end_try(wire::TRY_NOT_ESTABLISHED, now);
    }

    /// The try has its connection: a new one, `connect` long in the making, or one that was kept alive.
    pub(crate) fn connected(&mut self, connect: Duration, now: impl FnOnce() -> Instant) {
        let Some(current) = &mut self.current else { return };
        current.connect = connect;
        if self.wants(wire::EVENT_CONNECTED) {
            self.observe(wire::EVENT_CONNECTED, 0, &[], now());
        }
    }

    /// The head of the response is here.
    pub(crate) fn response_headers(&mut self, head: &ResponseHead, now: Instant) {
        let Some(current) = &mut self.current else { return };
        let first_byte = now.saturating_duration_since(current.started);
        current.first_byte = Some(first_byte);
        current.status = head.status;
        let (place, trial) = (current.endpoint, current.trial);
        let endpoint = self.member(place);
        endpoint.learn_latency(ns(first_byte));
        if trial == Trial::Own
            && let Some(outlier) = &self.cluster.outlier
        {
            outlier.answered(endpoint, head.status, now);
        }
        let members = Rc::clone(&self.members);
        if let Some(balancer) =
            self.balancer(&members).filter(|balancer| balancer.wants(wire::EVENT_RESPONSE_HEADERS))
        {
            let mut values = std::mem::take(&mut self.slot_mut().response_headers);
            values.clear();
            let names = balancer.needs().response_headers.iter();
            values.extend(names.map(|name| wire::Str::maybe(head.field(name.as_bytes()))));
            self.observe(wire::EVENT_RESPONSE_HEADERS, 0, &values, now);
            self.slot_mut().response_headers = values;
        }
    }

    /// The current try ends for want of time. It had `fair` by the configuration, had nothing come before it; `not_its` of the
    /// time since it began was not its server's. With less than half of `fair` the server is not to blame.
    pub(crate) fn ran_out_of_time(&mut self, fair: Duration, not_its: Duration, now: Instant) {
        if let Some(current) = &mut self.current {
            let had = now.saturating_duration_since(current.started).saturating_sub(not_its);
            current.was_hurried = had < fair / 2;
        }
    }

    /// Whether its session stays with its endpoint, though another one serves this request: that endpoint was full.
    pub(crate) fn is_session_kept(&self) -> bool {
        self.is_session_kept
    }

    /// The request has a place in the queue, and may take endpoints that others wait for.
    pub(crate) fn yields_no_longer(&mut self) {
        self.yields = false;
    }

    /// Whether this endpoint takes a request now.
    pub(crate) fn has_room(&self, endpoint: usize) -> bool {
        self.members.at_place(endpoint).is_some_and(|endpoint| endpoint.takes(self.which))
    }

    /// Counts bytes of the current try.
    pub(crate) fn count_bytes(&mut self, sent: u64, received: u64) {
        if let Some(current) = &mut self.current {
            current.sent = sent;
            current.received = received;
        }
    }

    /// The try is over; `result` is one of [`wire`]'s `TRY_*`.
    pub(crate) fn end_try(&mut self, result: u32, now: Instant) {
        if self.wants(wire::EVENT_TRY_ENDED) && self.current.is_some() {
            self.observe(wire::EVENT_TRY_ENDED, result, &[], now);
        }
        let Some(current) = self.current.take() else { return };
        let total = now.saturating_duration_since(current.started);
        let CurrentTry { endpoint, failure, status, .. } = current;
        self.slot_mut().tries.push(Tried { endpoint, result, failure, status, total });
        self.thread.metrics.try_ended(
            self.cluster_idx,
            endpoint,
            &EndedTry { result, failure, status, duration_ns: ns(total) },
        );
        if result != wire::TRY_NOT_ESTABLISHED {
            self.last.endpoint = Some(current.endpoint);
        }
        self.last.connect = current.connect;
        self.last.first_byte = current.first_byte;
        self.last.sent += current.sent;
        self.last.received += current.received;
        if let Some(outlier) = &self.cluster.outlier {
            let end = ejection::TryEnd {
                result,
                failure: current.failure.map(|kind| (kind, current.os_error)),
                status: current.status,
                total,
                was_hurried: current.was_hurried,
                trial: current.trial,
            };
            outlier
                .try_ended(self.cluster, self.member(current.endpoint), &end, now, || self.thread.random());
        }
        let endpoint = current.endpoint;
        drop(current);
        self.cluster.queue.freed(endpoint);
    }

    /// The tries that have ended, in their order.
    pub(crate) fn tries(&self) -> &[Tried] {
        &self.slot().tries
    }

    /// The endpoint of the last try that was established.
    pub(crate) fn last_endpoint(&self) -> Option<usize> {
        self.last.endpoint
    }

    /// From the beginning of the last try to the response headers.
    pub(crate) fn first_byte(&self) -> Option<Duration> {
        self.last.first_byte
    }

    /// The members that it chooses among.
    pub(crate) fn members(&self) -> &Members {
        &self.members
    }

    /// The member at this place: one that is or was tried.
    pub(crate) fn member(&self, place: usize) -> &Endpoint {
        let older = self.older.iter().find(|member| member.place == place);
        older.or_else(|| self.members.at_place(place)).expect("what was tried is kept")
    }

    /// The tier that chooses; `None` where the cluster has no members.
    fn tier(&self) -> Option<&Tier> {
        self.members.tiers.get(self.tier_idx)
    }

    fn n_endpoints(&self) -> usize {
        self.tier().map_or(0, |tier| tier.n_endpoints)
    }

    /// The endpoint of the tier that has this index in it.
    fn place(&self, idx: usize) -> usize {
        self.endpoint(idx).place
    }

    fn endpoint(&self, idx: usize) -> &Endpoint {
        let first = self.tier().map_or(0, |tier| tier.first);
        &self.members.endpoints[first + idx]
    }

    /// The endpoint at this place as the tier's balancer calls it; none where it is of another tier.
    fn wire_idx(&self, place: usize) -> u32 {
        let idx = self.tier().and_then(|tier| {
            let idx = self.members.index_of_place(place)?.wrapping_sub(tier.first);
            (idx < tier.n_endpoints).then_some(idx)
        });
        idx.and_then(|idx| u32::try_from(idx).ok()).unwrap_or(wire::NO_ENDPOINT)
    }

    /// The balancer that chooses, if one does.
    fn balancer<'m>(&self, members: &'m Snapshot) -> Option<&'m Balancer> {
        let tier = members.tiers.get(self.tier_idx).filter(|_| self.asks_module)?;
        tier.instance.balancer_of(self.view.key.is_some())
    }

    fn slot(&self) -> &Slot {
        self.slot.as_deref().expect("the slot leaves only in drop")
    }

    fn slot_mut(&mut self) -> &mut Slot {
        self.slot.as_deref_mut().expect("the slot leaves only in drop")
    }
}

impl Drop for Trylist<'_> {
    /// Reports what is still missing: a request that is dropped half-way was given up by the client, or by the worker's
    /// end.
    fn drop(&mut self) {
        if self.current.is_some() {
            self.end_try(wire::TRY_ABORTED, Instant::now());
        }
        if matches!(self.state, CallState::Chosen | CallState::Overruled) {
            self.finish(wire::OUTCOME_ABORTED, 0, Instant::now());
        }
        self.drop_trylist();
        // A module that was not called has spent no time.
        if let Some((time, n_calls)) = self.module_time.filter(|(_, n_calls)| *n_calls > 0) {
            self.thread.metrics.module_time(self.cluster_idx, self.module_idx, ns(time), n_calls);
        }
        if let Some(slot) = self.slot.take() {
            Slot::give_back(slot);
        }
    }
}
