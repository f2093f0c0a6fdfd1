//! One request's trylist, held as a guard: whatever happens to the request, the module hears what it was promised.
//!
//! - `next` is asked as the design says: answers are checked like input, an endpoint that takes nothing now is declined
//!   and asked past, a fault hands the rest of the request to the host's own choice.
//! - a try that was begun is ended, `finish` comes at most once, `drop` exactly once and last; after a panic only `drop`.
#![allow(
    unsafe_code,
    reason = "keeps the promises that module calls rest on: storage that stays, calls in order"
)]

mod slot;
mod why;

use std::ffi::c_void;
use std::time::{Duration, Instant};

use lb_api::wire;

use crate::cluster::ejection::{self, Trial};
use crate::cluster::endpoint::{Declined, InFlight, Which};
use crate::cluster::{Cluster, Tier, Wanted};
use crate::config::WhenFull;
use crate::http::h1::head::{RequestHead, ResponseHead};
use crate::module::balancer::{Balancer, ModuleFault, Panicked};
use crate::module::wire::ns;
use crate::net::address::Peer;
use crate::observe::metrics::{EndedTry, ModuleCall};
use crate::serve::thread::Thread;

use self::slot::Slot;
use self::why::{By, Why};

/// So many times the module may answer with an endpoint that takes nothing now, before the host looks by itself.
const MAX_DECLINES: usize = 16;

/// One request's candidates.
#[derive(Debug)]
pub struct Trylist<'a> {
    thread: &'a Thread,
    cluster_idx: usize,
    cluster: &'a Cluster,
    tier_idx: usize,
    tier: &'a Tier,
    /// Which of the cluster's modules chooses, as metrics count it.
    module_idx: usize,
    /// The tier's balancer; none where the host chooses.
    balancer: Option<&'a Balancer>,
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
    /// The endpoint of its session was full, and only that.
    is_session_kept: bool,
    view: &'a View<'a>,
    slot: Option<Box<Slot>>,
    state: State,
    started: Instant,
    current: Option<Current>,
    last: Last,
    /// Time spent in module calls, if this request is one whose calls are timed.
    module_time: Option<Duration>,
    /// What is written down for who asked why; nearly always nothing.
    why: Option<Box<Why>>,
}

/// What the module is still to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// There is a trylist, and the module chooses.
    Chosen,
    /// There is a trylist, but the host chooses, because the module answered what it must not.
    Overruled,
    /// There is a trylist to be dropped and nothing else: the module panicked, or has heard the end.
    Ended,
    /// There is none: it panicked when it was to begin one, or nobody asked it to.
    None,
}

/// What to do for the next try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Try this endpoint.
    Try(usize),
    /// Wait until one comes free, then ask again.
    Wait,
    /// There is none left.
    Exhausted,
}

/// What a module may look at of a request, beside its head.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The head.
    pub head: &'a RequestHead,
    /// Host and port asked for.
    pub authority: Option<&'a [u8]>,
    /// Path.
    pub path: &'a [u8],
    /// Query, without the question mark.
    pub query: Option<&'a [u8]>,
    /// The client.
    pub client: Peer,
    /// Whether it came by TLS.
    pub is_secure: bool,
    /// The cluster's key, if there is one and the module asked for it.
    pub key: Option<&'a [u8]>,
    /// The endpoint that is to be tried first.
    pub preferred: Option<usize>,
}

/// One try, as the access log tells it.
#[derive(Clone, Copy, Debug)]
pub struct Tried {
    /// The endpoint.
    pub endpoint: usize,
    /// One of [`wire`]'s `TRY_*`.
    pub result: u32,
    /// One of [`wire`]'s `FAILURE_*`, where the try was not established.
    pub failure: Option<u32>,
    /// Status of the server's response; 0 where none came.
    pub status: u16,
    /// How long it took.
    pub total: Duration,
}

/// The try that is under way.
#[derive(Debug)]
struct Current {
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

/// What `finish` is told of the tries.
#[derive(Clone, Copy, Debug, Default)]
struct Last {
    endpoint: Option<usize>,
    connect: Duration,
    first_byte: Option<Duration>,
    sent: u64,
    received: u64,
}

impl<'a> Trylist<'a> {
    /// Calls the hook. The head stays borrowed until the trylist is dropped, as the module was promised.
    pub fn start(thread: &'a Thread, cluster_idx: usize, view: &'a View<'a>, now: Instant) -> Self {
        let cluster = &thread.clusters[cluster_idx];
        let (tier_idx, which) = cluster.first_tier();
        let mut slot = Slot::lend();
        slot.tries.clear();
        let mut trylist = Self {
            thread,
            cluster_idx,
            cluster,
            tier_idx,
            tier: &cluster.tiers[tier_idx],
            module_idx: cluster.module_idx(view.key.is_some()),
            balancer: None,
            which,
            preferred: None,
            has_waited: false,
            has_spilled: false,
            is_choosy: false,
            yields: cluster.has_limits,
            is_session_kept: false,
            view,
            slot: Some(slot),
            state: State::None,
            started: now,
            current: None,
            last: Last::default(),
            module_time: thread.is_sampled().then_some(Duration::ZERO),
            why: None,
        };
        trylist.load_balance();
        trylist
    }

    /// The cluster.
    pub fn cluster(&self) -> &'a Cluster {
        self.cluster
    }

    /// ID of the module whose choice it is, also where the host chooses in its place.
    pub fn module(&self) -> &'a str {
        self.cluster.module(self.view.key.is_some())
    }

    /// Decides on the next try. For [`Step::Try`] the try has begun: the endpoint's in-flight count has risen, and one of
    /// [`Trylist::not_established`] and [`Trylist::end_try`] is to follow.
    pub fn next(&mut self, now: Instant) -> Step {
        debug_assert!(self.current.is_none(), "the last try was not ended");
        self.is_choosy = false;
        if self.has_waited {
            // What was declined may be free or available by now.
            self.has_waited = false;
            let n_endpoints = self.tier.n_endpoints;
            self.slot_mut().forget_declined(n_endpoints);
        }
        if self.has_spilled {
            self.has_spilled = false;
            self.enter_first_tier(now);
        }
        let mut step = self.next_in_tier(now);
        let mut is_full = step == Step::Wait;
        while (step == Step::Exhausted || step == Step::Wait && self.spills()) && self.enter_next_tier(now) {
            self.has_spilled |= is_full;
            step = self.next_in_tier(now);
            is_full |= step == Step::Wait;
        }
        if is_full && step == Step::Exhausted {
            // A tier before this one is full, and no more than that.
            step = Step::Wait;
        }
        self.has_waited = step == Step::Wait && self.slot().has_declined();
        if self.why.is_some() {
            self.note_step(step);
        }
        step
    }

    fn next_in_tier(&mut self, now: Instant) -> Step {
        if let Some(preferred) = self.preferred.take() {
            self.note_chooser(By::Session);
            if let Some(step) = self.begin(preferred, now) {
                return step;
            }
            let endpoint = &self.cluster.endpoints[self.tier.first + preferred];
            self.is_session_kept = endpoint.is_usable(self.which);
            self.note_chooser(By::Module);
        }
        let (State::Chosen, Some(balancer)) = (self.state, self.balancer) else {
            return self.host_choice(now);
        };
        for _ in 0..MAX_DECLINES {
            let Ok(answer) = self.ask(balancer, now) else {
                self.state = State::Ended;
                return self.host_choice(now);
            };
            let endpoint = match self.checked(&answer) {
                Ok(Step::Try(endpoint)) => endpoint,
                Ok(Step::Exhausted) => return self.exhausted(now),
                Ok(Step::Wait) => return Step::Wait,
                Err((fault, detail)) => {
                    balancer.fault(fault, &detail);
                    self.state = State::Overruled;
                    return self.host_choice(now);
                }
            };
            if let Some(step) = self.begin(endpoint, now) {
                return step;
            }
            self.thread.metrics.declined(self.cluster_idx, self.module_idx);
        }
        self.host_choice(now)
    }

    /// The try could not be established: nothing of the request was sent.
    pub fn not_established(&mut self, kind: u32, os_error: Option<i32>, now: Instant) {
        let try_id = self.slot().tries.len() as u32 + 1;
        let Some(current) = &mut self.current else { return };
        (current.failure, current.os_error) = (Some(kind), os_error);
        let failure = wire::Failure {
            size: size_of::<wire::Failure>() as u32,
            kind,
            endpoint: wire_idx(self.tier, current.endpoint),
            try_id,
            os_error: os_error.unwrap_or(0),
            reserved: 0,
            now_ns: self.thread.ns(now),
            elapsed_ns: ns(now.saturating_duration_since(current.started)),
        };
        self.tell(ModuleCall::ReportFailure, |balancer, trylist| {
            // SAFETY: `tell` passes the storage of a trylist that is alive.
            unsafe { balancer.report_failure(trylist, &failure) }
        });
        self.end_try(wire::TRY_NOT_ESTABLISHED, now);
    }

    /// The try has its connection: a new one, `connect` long in the making, or one that was kept alive.
    pub fn connected(&mut self, connect: Duration, now: impl FnOnce() -> Instant) {
        let Some(current) = &mut self.current else { return };
        current.connect = connect;
        if self.wants(wire::EVENT_CONNECTED) {
            self.observe(wire::EVENT_CONNECTED, 0, &[], now());
        }
    }

    /// The head of the response is here.
    pub fn response_headers(&mut self, head: &ResponseHead, now: Instant) {
        let Some(current) = &mut self.current else { return };
        let first_byte = now.saturating_duration_since(current.started);
        current.first_byte = Some(first_byte);
        current.status = head.status;
        let endpoint = &self.cluster.endpoints[current.endpoint];
        endpoint.learn_latency(ns(first_byte));
        if current.trial == Trial::Own
            && let Some(outlier) = &self.cluster.outlier
        {
            outlier.answered(endpoint, head.status, now);
        }
        if let Some(balancer) = self.balancer.filter(|b| b.wants(wire::EVENT_RESPONSE_HEADERS)) {
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
    pub fn ran_out_of_time(&mut self, fair: Duration, not_its: Duration, now: Instant) {
        if let Some(current) = &mut self.current {
            let had = now.saturating_duration_since(current.started).saturating_sub(not_its);
            current.was_hurried = had < fair / 2;
        }
    }

    /// Whether its session stays with its endpoint, though another one serves this request: that endpoint was full.
    pub fn is_session_kept(&self) -> bool {
        self.is_session_kept
    }

    /// Which servers the request waits for, after [`Step::Wait`] or before it has asked.
    #[cold]
    pub fn wanted(&self) -> Wanted {
        let (slot, first) = (self.slot(), self.tier.first);
        if self.is_choosy && !self.has_spilled {
            let answered = (0..self.tier.n_endpoints).filter(|idx| slot.is_declined(*idx));
            return Wanted::Only(answered.map(|idx| first + idx).collect());
        }
        if self.is_choosy || !slot.tries.is_empty() {
            return Wanted::AllBut(slot.tries.iter().map(|tried| tried.endpoint).collect());
        }
        Wanted::Any
    }

    /// Its turn has come: it takes what has room, whoever else waits for it.
    pub fn yields_no_longer(&mut self) {
        self.yields = false;
    }

    /// Whether this endpoint takes a request now.
    pub fn has_room(&self, endpoint: usize) -> bool {
        self.cluster.endpoints[endpoint].takes(self.which)
    }

    /// Counts bytes of the current try.
    pub fn count_bytes(&mut self, sent: u64, received: u64) {
        if let Some(current) = &mut self.current {
            current.sent = sent;
            current.received = received;
        }
    }

    /// The try is over; `result` is one of [`wire`]'s `TRY_*`.
    pub fn end_try(&mut self, result: u32, now: Instant) {
        if self.wants(wire::EVENT_TRY_ENDED) && self.current.is_some() {
            self.observe(wire::EVENT_TRY_ENDED, result, &[], now);
        }
        let Some(current) = self.current.take() else { return };
        let total = now.saturating_duration_since(current.started);
        let Current { endpoint, failure, status, .. } = current;
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
            outlier.try_ended(self.cluster, current.endpoint, &end, now, || self.thread.random());
        }
        let endpoint = current.endpoint;
        drop(current);
        self.cluster.queue.freed(endpoint);
    }

    /// The request is over; `kind` is one of [`wire`]'s `OUTCOME_*`, `status` what the client got, 0 where it got none.
    pub fn finish(&mut self, kind: u32, status: u16, now: Instant) {
        let outcome = wire::Outcome {
            size: size_of::<wire::Outcome>() as u32,
            kind,
            endpoint: self.last.endpoint.map_or(wire::NO_ENDPOINT, |endpoint| wire_idx(self.tier, endpoint)),
            status: u32::from(status),
            n_tries: self.slot().tries.len() as u32,
            reserved: 0,
            now_ns: self.thread.ns(now),
            connect_ns: ns(self.last.connect),
            first_byte_ns: self.last.first_byte.map_or(0, ns),
            total_ns: ns(now.saturating_duration_since(self.started)),
            bytes_sent: self.last.sent,
            bytes_received: self.last.received,
        };
        self.tell(ModuleCall::Finish, |balancer, trylist| {
            // SAFETY: `tell` passes the storage of a trylist that is alive; the state below makes this the only `finish`.
            unsafe { balancer.finish(trylist, &outcome) }
        });
        if self.state != State::None {
            self.state = State::Ended;
        }
    }

    /// The tries that have ended, in their order.
    pub fn tries(&self) -> &[Tried] {
        &self.slot().tries
    }

    /// The endpoint of the last try that was established.
    pub fn endpoint(&self) -> Option<usize> {
        self.last.endpoint
    }

    /// From the beginning of the last try to the response headers.
    pub fn first_byte(&self) -> Option<Duration> {
        self.last.first_byte
    }

    /// Has the tier's balancer, if it may, begin a trylist, of which there is none now.
    fn load_balance(&mut self) {
        let (tier, view) = (self.tier, self.view);
        // Of another tier, it is not wanted: its session moves to the tier in use.
        let preferred = view.preferred.map_or(wire::NO_ENDPOINT, |endpoint| wire_idx(tier, endpoint));
        self.preferred =
            Some(preferred as usize).filter(|idx| preferred != wire::NO_ENDPOINT && !self.was_tried(*idx));
        self.slot_mut().forget_answers();
        self.balancer = tier.chooser(view.key.is_some());
        let Some(balancer) = self.balancer else { return };
        self.slot_mut().prepare(balancer, view, preferred);
        let storage = self.storage(balancer);
        let request = self.slot().request();
        // SAFETY: `storage` has the module's size and alignment and, like `request`, stays in its box until `drop_trylist`;
        // the request's text is borrowed for `'a`. Nothing is in the storage yet.
        let started =
            self.timed(ModuleCall::LoadBalance, || unsafe { balancer.load_balance(request, storage) });
        self.state = if started.is_ok() { State::Chosen } else { State::None };
    }

    /// Whether full tiers are passed over.
    fn spills(&self) -> bool {
        self.cluster.config.when_full == WhenFull::Spill
    }

    /// Goes on to the next tier that has an endpoint available; false where there is none.
    #[cold]
    fn enter_next_tier(&mut self, now: Instant) -> bool {
        let next = self.tier_idx + 1;
        let tier_idx = match self.which {
            Which::Available => self.cluster.available_tier(next),
            Which::NotDraining => Some(next).filter(|next| *next < self.cluster.tiers.len()),
        };
        let Some(tier_idx) = tier_idx else { return false };
        self.enter_tier(tier_idx, now);
        true
    }

    /// Begins anew after a wait for any of several tiers.
    #[cold]
    fn enter_first_tier(&mut self, now: Instant) {
        let tier_idx = match self.which {
            Which::Available => self.cluster.available_tier(0),
            Which::NotDraining => Some(0),
        };
        if let Some(tier_idx) = tier_idx.filter(|idx| *idx != self.tier_idx) {
            self.enter_tier(tier_idx, now);
        }
    }

    /// Has the balancer of another tier choose. The one before hears that its trylist has come to nothing.
    fn enter_tier(&mut self, tier_idx: usize, now: Instant) {
        let has_tried = !self.slot().tries.is_empty();
        self.finish(if has_tried { wire::OUTCOME_FAILED } else { wire::OUTCOME_NO_ENDPOINT }, 0, now);
        self.drop_trylist();
        self.tier_idx = tier_idx;
        self.tier = &self.cluster.tiers[tier_idx];
        self.load_balance();
        let (first, n_endpoints) = (self.tier.first, self.tier.n_endpoints);
        let slot = self.slot_mut();
        for n in 0..slot.tries.len() {
            let idx = slot.tries[n].endpoint.wrapping_sub(first);
            // This tier was tried before another one.
            if idx < n_endpoints {
                slot.spread(n_endpoints);
                slot.answered(idx);
            }
        }
        self.note_chooser(By::Module);
        self.note_candidates();
    }

    fn drop_trylist(&mut self) {
        let Some(balancer) = self.balancer.filter(|_| self.state != State::None) else { return };
        let storage = self.storage(balancer);
        // SAFETY: the trylist is alive until this call, its last, as the state says from here on.
        let dropped = self.timed(ModuleCall::Drop, || unsafe { balancer.drop_trylist(storage) });
        // A panic in it is counted already, and nothing is left to be done about it.
        let _ = dropped;
        self.state = State::None;
    }

    fn ask(&mut self, balancer: &Balancer, now: Instant) -> Result<wire::Answer, Panicked> {
        let n_tries = self.slot().tries.len() as u32;
        let n_endpoints = self.tier.n_endpoints;
        let storage = self.storage(balancer);
        let slot = self.slot_mut();
        slot.spread(n_endpoints);
        let cx = wire::NextCx {
            size: size_of::<wire::NextCx>() as u32,
            n_tries,
            now_ns: 0,
            random: 0,
            tried: slot.answered_bits.as_ptr(),
            n_tried_words: slot.answered_bits.len(),
            request: slot.request(),
        };
        let cx = wire::NextCx { now_ns: self.thread.ns(now), random: self.thread.random(), ..cx };
        let mut answer = wire::Answer {
            size: size_of::<wire::Answer>() as u32,
            kind: 0,
            endpoint: wire::NO_ENDPOINT,
            reserved: 0,
        };
        // SAFETY: only called while the state is `Chosen`: the trylist is alive in its storage.
        self.timed(ModuleCall::Next, || unsafe { balancer.next(storage, &cx, &mut answer) })?;
        Ok(answer)
    }

    /// What the module says of its last answer, as a header's value may have it.
    #[cold]
    fn ask_why(&mut self) -> String {
        let is_alive = !matches!(self.state, State::Ended | State::None);
        let Some(balancer) = self.balancer.filter(|_| is_alive) else { return String::new() };
        let (storage, mut words) = (self.storage(balancer), Vec::new());
        // SAFETY: as the state says, the trylist is alive in its storage, and has heard no end.
        if unsafe { balancer.explain(storage, &mut words) }.is_err() {
            self.state = State::Ended;
            return String::new();
        }
        why::plain(&words)
    }

    /// Judges an answer like input. Whether the endpoint takes requests is not asked here: not to is no fault.
    fn checked(&self, answer: &wire::Answer) -> Result<Step, (ModuleFault, String)> {
        let step = judged(answer, self.tier.n_endpoints, |endpoint| self.slot().is_answered(endpoint))?;
        if matches!(step, Step::Wait) {
            self.thread.metrics.busy(self.cluster_idx, self.module_idx);
        }
        Ok(step)
    }

    /// The module has none left. Where some of what it answered was full, that is waited for: a module need not know of
    /// limits. One that kept an account of its own of what it answered will not answer it again, so the
    /// host chooses among those.
    fn exhausted(&mut self, now: Instant) -> Step {
        if self.which == Which::NotDraining {
            // Most modules leave out what is not available.
            return self.host_choice(now);
        }
        if !self.slot().has_declined() {
            return Step::Exhausted;
        }
        self.note_chooser(By::Host);
        let (slot, thread) = (self.slot(), self.thread);
        let chosen =
            self.cluster.fall_back(self.tier, self.which, |i| !slot.is_declined(i), || thread.random());
        if let Some(step) = chosen.and_then(|endpoint| self.begin(endpoint, now)) {
            self.thread.metrics.fallback(self.cluster_idx, self.module_idx);
            return step;
        }
        if !self.is_any_full(|idx| self.slot().is_declined(idx)) {
            return Step::Exhausted;
        }
        let endpoints = self.cluster.endpoints_of(self.tier).iter().enumerate();
        self.is_choosy |= endpoints.into_iter().any(|(idx, endpoint)| {
            !self.slot().is_answered(idx) && endpoint.is_usable(self.which) && endpoint.effective_weight() > 0
        });
        Step::Wait
    }

    fn host_choice(&mut self, now: Instant) -> Step {
        self.thread.metrics.fallback(self.cluster_idx, self.module_idx);
        self.note_chooser(By::Host);
        let n_endpoints = self.tier.n_endpoints;
        self.slot_mut().spread(n_endpoints);
        loop {
            let (slot, thread) = (self.slot(), self.thread);
            match self.cluster.fall_back(self.tier, self.which, |i| slot.is_answered(i), || thread.random()) {
                Some(endpoint) => {
                    if let Some(step) = self.begin(endpoint, now) {
                        return step;
                    }
                }
                None if self.is_any_full(|idx| !self.was_tried(idx)) => return Step::Wait,
                None => return Step::Exhausted,
            }
        }
    }

    /// Whether a try of the tier's endpoint of this index has ended.
    fn was_tried(&self, idx: usize) -> bool {
        self.slot().tries.iter().any(|tried| tried.endpoint == self.tier.first + idx)
    }

    fn is_any_full(&self, of: impl Fn(usize) -> bool) -> bool {
        let endpoints = self.cluster.endpoints_of(self.tier);
        self.cluster.has_limits
            && endpoints.iter().enumerate().any(|(idx, endpoint)| {
                of(idx) && (endpoint.is_full(self.which) || self.is_left_to_others(self.tier.first + idx))
            })
    }

    /// Whether others wait for this endpoint and this request has not waited yet.
    #[inline]
    fn is_left_to_others(&self, endpoint: usize) -> bool {
        self.yields && self.cluster.queue.is_reserved(endpoint)
    }

    /// Begins a try of the tier's endpoint of this index, unless it takes none now.
    #[inline]
    fn begin(&mut self, idx: usize, now: Instant) -> Option<Step> {
        self.slot_mut().answered(idx);
        let endpoint = self.tier.first + idx;
        let (in_flight, trial) = match self.enter(endpoint) {
            Ok(entered) => entered,
            Err(Declined) => {
                let n_endpoints = self.tier.n_endpoints;
                self.slot_mut().declined(idx, n_endpoints);
                if self.why.is_some() {
                    self.note_declined(endpoint);
                }
                return None;
            }
        };
        if self.slot().has_declined() {
            self.slot_mut().no_longer_declined(idx);
        }
        self.yields = false;
        self.current = Some(Current {
            endpoint,
            started: now,
            connect: Duration::ZERO,
            first_byte: None,
            status: 0,
            sent: 0,
            received: 0,
            failure: None,
            os_error: None,
            was_hurried: false,
            trial,
            _in_flight: in_flight,
        });
        Some(Step::Try(endpoint))
    }

    /// Counts the request as on its way to the endpoint.
    #[inline]
    fn enter(&self, endpoint: usize) -> Result<(InFlight, Trial), Declined> {
        if self.is_left_to_others(endpoint) {
            return Err(Declined);
        }
        match self.cluster.endpoints[endpoint].enter(self.which) {
            Ok(in_flight) => Ok((in_flight, Trial::None)),
            Err(Declined) => self.cluster.enter_on_trial(endpoint, self.which),
        }
    }

    fn observe(&mut self, kind: u32, result: u32, headers: &[wire::Str], now: Instant) {
        let Some(current) = &self.current else { return };
        let event = wire::Event {
            size: size_of::<wire::Event>() as u32,
            kind,
            try_id: self.slot().tries.len() as u32 + 1,
            endpoint: wire_idx(self.tier, current.endpoint),
            status: u32::from(current.status),
            result,
            now_ns: self.thread.ns(now),
            connect_ns: ns(current.connect),
            first_byte_ns: current.first_byte.map_or(0, ns),
            total_ns: ns(now.saturating_duration_since(current.started)),
            bytes_sent: current.sent,
            bytes_received: current.received,
            headers: headers.as_ptr(),
            n_headers: headers.len(),
        };
        self.tell(ModuleCall::Observe, |balancer, trylist| {
            // SAFETY: `tell` passes the storage of a trylist that is alive.
            unsafe { balancer.observe(trylist, &event) }
        });
    }

    /// Makes a call on the trylist, if there still is one that may hear of anything.
    fn tell(&mut self, call: ModuleCall, tell: impl FnOnce(&Balancer, *mut c_void) -> Result<(), Panicked>) {
        let hears = !matches!(self.state, State::Ended | State::None);
        let Some(balancer) = self.balancer.filter(|_| hears) else { return };
        let storage = self.storage(balancer);
        if self.timed(call, || tell(balancer, storage)).is_err() {
            self.state = State::Ended;
        }
    }

    #[inline]
    fn timed<R>(&mut self, call: ModuleCall, enter: impl FnOnce() -> R) -> R {
        self.thread.metrics.module_call(self.cluster_idx, self.module_idx, call);
        let Some(time) = &mut self.module_time else { return enter() };
        let before = Instant::now();
        let result = enter();
        *time += before.elapsed();
        result
    }

    fn storage(&mut self, balancer: &Balancer) -> *mut c_void {
        self.slot_mut().storage(balancer.module().trylist().size)
    }

    #[inline]
    fn wants(&self, event: u32) -> bool {
        self.balancer.is_some_and(|balancer| balancer.wants(event))
    }

    fn slot(&self) -> &Slot {
        self.slot.as_deref().expect("the slot leaves only in drop")
    }

    fn slot_mut(&mut self) -> &mut Slot {
        self.slot.as_deref_mut().expect("the slot leaves only in drop")
    }
}

impl Drop for Trylist<'_> {
    /// What was not said yet is said: a request that is dropped half-way was given up by the client, or by the worker's
    /// end.
    fn drop(&mut self) {
        if self.current.is_some() {
            self.end_try(wire::TRY_ABORTED, Instant::now());
        }
        if matches!(self.state, State::Chosen | State::Overruled) {
            self.finish(wire::OUTCOME_ABORTED, 0, Instant::now());
        }
        self.drop_trylist();
        // Where it was not called, that is no time of its.
        if let Some(time) = self.module_time.filter(|time| !time.is_zero()) {
            self.thread.metrics.module_time(self.cluster_idx, self.module_idx, ns(time));
        }
        if let Some(slot) = self.slot.take() {
            Slot::give_back(slot);
        }
    }
}

/// An endpoint as the tier's balancer calls it; none where it is of another tier.
fn wire_idx(tier: &Tier, endpoint: usize) -> u32 {
    let idx = endpoint.wrapping_sub(tier.first);
    if idx < tier.n_endpoints { u32::try_from(idx).unwrap_or(wire::NO_ENDPOINT) } else { wire::NO_ENDPOINT }
}

/// What a module's answer means in a tier of so many endpoints, of which some were answered before in this request.
///
/// # Errors
///
/// What of it is wrong.
#[inline]
pub(crate) fn judged(
    answer: &wire::Answer,
    n_endpoints: usize,
    is_answered: impl Fn(usize) -> bool,
) -> Result<Step, (ModuleFault, String)> {
    match answer.kind {
        wire::NEXT_ENDPOINT => {
            let endpoint = answer.endpoint as usize;
            if endpoint >= n_endpoints {
                Err((ModuleFault::OutOfRange, format!("answered endpoint {endpoint} of {n_endpoints}")))
            } else if is_answered(endpoint) {
                Err((ModuleFault::AlreadyTried, format!("answered endpoint {endpoint} twice in a request")))
            } else {
                Ok(Step::Try(endpoint))
            }
        }
        wire::NEXT_EXHAUSTED => Ok(Step::Exhausted),
        wire::NEXT_BUSY => Ok(Step::Wait),
        kind => Err((ModuleFault::UnknownKind, format!("answered kind {kind}, which is none"))),
    }
}
