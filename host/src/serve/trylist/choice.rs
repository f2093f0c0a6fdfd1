//! How the endpoint of the next try is chosen: by the module of a tier, whose answers are checked like input, or by the host.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lb_api::wire;

use super::view::NextTry;
use super::why::ChosenBy;
use super::{CallState, CurrentTry, NO_TIER, Trylist};
use crate::cluster::Wanted;
use crate::cluster::ejection::Trial;
use crate::cluster::endpoint::{Declined, InFlight, Which};
use crate::config::WhenFull;
use crate::module::balancer::ModuleFault;

/// The module may answer this often with an endpoint that takes no request now; then the host chooses.
const MAX_DECLINES: usize = 16;

impl Trylist<'_> {
    /// Which servers the request waits for, after [`NextTry::Wait`] or before it has asked.
    #[cold]
    pub(crate) fn wanted(&self) -> Wanted {
        let slot = self.slot();
        if self.is_choosy && !self.has_spilled {
            let answered = (0..self.n_endpoints()).filter(|idx| slot.is_declined(*idx));
            return Wanted::Only(answered.map(|idx| self.place(idx)).collect());
        }
        if self.is_choosy || !slot.tries.is_empty() {
            return Wanted::AllBut(slot.tries.iter().map(|tried| tried.endpoint).collect());
        }
        Wanted::Any
    }

    /// Decides on the next try in this tier.
    pub(super) fn next_in_tier(&mut self, now: Instant) -> NextTry {
        if let Some(preferred) = self.preferred.take() {
            self.note_chooser(ChosenBy::Session);
            let which = self.which_of_session(preferred);
            if let Some(step) = self.begin(preferred, which, now) {
                return step;
            }
            self.is_session_kept = self.endpoint(preferred).is_usable(which);
            self.note_chooser(ChosenBy::Module);
        }
        let members = Rc::clone(&self.members);
        let (CallState::Chosen, Some(balancer)) = (self.state, self.balancer(&members)) else {
            return self.host_choice(now);
        };
        for _ in 0..MAX_DECLINES {
            let Ok(answer) = self.ask(balancer, now) else {
                self.state = CallState::Ended;
                return self.host_choice(now);
            };
            let endpoint = match self.checked(&answer) {
                Ok(NextTry::Endpoint(endpoint)) => endpoint,
                Ok(NextTry::Exhausted) => return self.exhausted(now),
                Ok(NextTry::Wait) => return NextTry::Wait,
                Err((fault, detail)) => {
                    balancer.fault(fault, &detail);
                    self.state = CallState::Overruled;
                    return self.host_choice(now);
                }
            };
            if let Some(step) = self.begin(endpoint, self.which, now) {
                return step;
            }
            self.thread.metrics.declined(self.cluster_idx, self.module_idx);
        }
        self.host_choice(now)
    }

    /// Whether requests go on to the next tier when one is full.
    pub(super) fn spills(&self) -> bool {
        self.cluster.config.when_full == WhenFull::Spill
    }

    /// Goes on to the next tier that has an endpoint available; false where there is none.
    #[cold]
    pub(super) fn enter_next_tier(&mut self, now: Instant) -> bool {
        if self.tier_idx == NO_TIER {
            return false;
        }
        // With shares a request may have begun anywhere: the others follow from the first on.
        let has_shares = self.members.has_tier_shares() && self.which == Which::Available;
        let next = if has_shares && self.tier_idx == self.begun_in { 0 } else { self.tier_idx + 1 };
        let is_left = |idx: &usize| match self.which {
            Which::Available => {
                self.members.tiers[*idx].n_available() > 0 && !(has_shares && *idx == self.begun_in)
            }
            Which::NotDraining | Which::Session => true,
        };
        let Some(tier_idx) = (next..self.members.tiers.len()).find(is_left) else { return false };
        self.enter_tier(tier_idx, now);
        true
    }

    /// Begins again with the first tier after a wait for several tiers.
    #[cold]
    pub(super) fn enter_first_tier(&mut self, now: Instant) {
        let tier_idx = match self.which {
            Which::Available if self.members.has_tier_shares() => Some(self.begun_in),
            Which::Available => self.members.available_tier(0),
            Which::NotDraining | Which::Session => Some(0),
        };
        if let Some(tier_idx) = tier_idx.filter(|idx| *idx != self.tier_idx) {
            self.enter_tier(tier_idx, now);
        }
    }

    /// The endpoints that a session with this one of the tier may go to: the endpoint keeps its sessions while it drains.
    fn which_of_session(&self, idx: usize) -> Which {
        if self.endpoint(idx).is_usable(self.which) { self.which } else { Which::Session }
    }

    /// Chooses among the newest members from now on. The balancer before hears that its trylist has come to nothing, as at the end
    /// of a tier; tried members are known by their places.
    pub(super) fn move_to_newest(&mut self, now: Instant) {
        let newest = self.thread.members(self.cluster_idx);
        if newest.number == self.members.number {
            return;
        }
        self.end_trylist(now);
        self.keep_tried();
        self.has_spilled = false;
        self.yields &= newest.has_limits;
        let first = newest.first_tier(|| super::draw(self.thread, self.view));
        (self.tier_idx, self.which) = first.unwrap_or((NO_TIER, Which::Available));
        self.begun_in = self.tier_idx;
        self.members = newest;
        self.begin_tier();
    }

    /// Keeps the members that were tried and that of the session, for logs, counts and explanations, when the snapshot goes.
    pub(super) fn keep_tried(&mut self) {
        let tried = self.slot().tries.iter().map(|tried| tried.endpoint);
        let current = self.current.as_ref().map(|current| current.endpoint);
        // Another member might take the place of the session's, and get its requests.
        let told = self.why.iter().flat_map(|why| why.places());
        let tried: Vec<usize> = tried.chain(current).chain(self.view.preferred).chain(told).collect();
        for place in tried {
            if !self.older.iter().any(|member| member.place == place)
                && let Some(member) = self.members.at_place(place)
            {
                self.older.push(Arc::clone(member));
            }
        }
    }

    /// Has the balancer of another tier choose. The one before hears that its trylist has come to nothing.
    fn enter_tier(&mut self, tier_idx: usize, now: Instant) {
        self.end_trylist(now);
        self.tier_idx = tier_idx;
        self.begin_tier();
    }

    /// Tells the balancer that its trylist has come to nothing.
    fn end_trylist(&mut self, now: Instant) {
        let has_tried = !self.slot().tries.is_empty();
        self.finish(if has_tried { wire::OUTCOME_FAILED } else { wire::OUTCOME_NO_ENDPOINT }, 0, now);
        self.drop_trylist();
    }

    /// Has the balancer of the tier begin a trylist.
    fn begin_tier(&mut self) {
        self.load_balance();
        let n_endpoints = self.n_endpoints();
        for n in 0..self.slot().tries.len() {
            let idx = self.wire_idx(self.slot().tries[n].endpoint);
            // This tier was tried before another one, or before these were the members.
            if idx != wire::NO_ENDPOINT {
                let slot = self.slot_mut();
                slot.spread(n_endpoints);
                slot.answered(idx as usize);
            }
        }
        self.note_chooser(ChosenBy::Module);
        self.note_candidates();
    }

    /// Checks an answer like input. An endpoint that takes no request now is no fault.
    fn checked(&self, answer: &wire::Answer) -> Result<NextTry, (ModuleFault, String)> {
        let next = check_answer(answer, self.n_endpoints(), |endpoint| self.slot().is_answered(endpoint))?;
        if next == NextTry::Wait {
            self.thread.metrics.busy(self.cluster_idx, self.module_idx);
        }
        Ok(next)
    }

    /// The module has none left. Where some of what it answered was full, that is waited for: a module need not know of
    /// limits. One that kept an account of its own of what it answered will not answer it again, so the
    /// host chooses among those.
    fn exhausted(&mut self, now: Instant) -> NextTry {
        if self.which == Which::NotDraining {
            // Most modules leave out endpoints that are not available.
            return self.host_choice(now);
        }
        if !self.slot().has_declined() {
            return NextTry::Exhausted;
        }
        self.note_chooser(ChosenBy::Host);
        let (slot, thread) = (self.slot(), self.thread);
        let chosen = self.fall_back(|i| !slot.is_declined(i), || thread.random());
        if let Some(step) = chosen.and_then(|endpoint| self.begin(endpoint, self.which, now)) {
            self.thread.metrics.fallback(self.cluster_idx, self.module_idx);
            return step;
        }
        if !self.is_any_full(|idx| self.slot().is_declined(idx)) {
            return NextTry::Exhausted;
        }
        self.is_choosy |= (0..self.n_endpoints()).any(|idx| {
            let endpoint = self.endpoint(idx);
            !self.slot().is_answered(idx) && endpoint.is_usable(self.which) && endpoint.effective_weight() > 0
        });
        NextTry::Wait
    }

    /// The host's own choice in this tier.
    fn fall_back(&self, is_tried: impl Fn(usize) -> bool, random: impl FnMut() -> u64) -> Option<usize> {
        self.members.fall_back(self.tier()?, self.which, is_tried, random)
    }

    fn host_choice(&mut self, now: Instant) -> NextTry {
        self.thread.metrics.fallback(self.cluster_idx, self.module_idx);
        self.note_chooser(ChosenBy::Host);
        let n_endpoints = self.n_endpoints();
        self.slot_mut().spread(n_endpoints);
        loop {
            let (slot, thread) = (self.slot(), self.thread);
            match self.fall_back(|i| slot.is_answered(i), || thread.random()) {
                Some(endpoint) => {
                    if let Some(step) = self.begin(endpoint, self.which, now) {
                        return step;
                    }
                }
                None if self.is_any_full(|idx| !self.was_tried(idx)) => return NextTry::Wait,
                None => return NextTry::Exhausted,
            }
        }
    }

    /// Whether a try of the tier's endpoint of this index has ended.
    pub(super) fn was_tried(&self, idx: usize) -> bool {
        self.slot().tries.iter().any(|tried| tried.endpoint == self.place(idx))
    }

    fn is_any_full(&self, of: impl Fn(usize) -> bool) -> bool {
        self.members.has_limits
            && (0..self.n_endpoints()).any(|idx| {
                let endpoint = self.endpoint(idx);
                of(idx) && (endpoint.is_full(self.which) || self.is_left_to_others(endpoint.place))
            })
    }

    /// Whether others wait for this endpoint and this request has not waited yet.
    #[inline]
    fn is_left_to_others(&self, endpoint: usize) -> bool {
        self.yields && self.cluster.queue.is_reserved(endpoint)
    }

    /// Begins a try of the tier's endpoint of this index, unless it takes none now.
    #[inline]
    fn begin(&mut self, idx: usize, which: Which, now: Instant) -> Option<NextTry> {
        self.slot_mut().answered(idx);
        let endpoint = self.place(idx);
        let (in_flight, trial) = match self.enter(idx, which) {
            Ok(entered) => entered,
            Err(Declined) => {
                let n_endpoints = self.n_endpoints();
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
        self.current = Some(CurrentTry {
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
        Some(NextTry::Endpoint(endpoint))
    }

    /// Counts the request as on its way to the endpoint.
    #[inline]
    fn enter(&self, idx: usize, which: Which) -> Result<(InFlight, Trial), Declined> {
        let endpoint = self.endpoint(idx);
        if self.is_left_to_others(endpoint.place) {
            return Err(Declined);
        }
        match endpoint.enter(which) {
            Ok(in_flight) => Ok((in_flight, Trial::None)),
            Err(Declined) => self.cluster.enter_on_trial(endpoint, which),
        }
    }
}

/// The meaning of a module's answer in a tier of so many endpoints, of which some were answered before in this request.
///
/// # Errors
/// It is wrong; how, and in words.
#[inline]
pub(crate) fn check_answer(
    answer: &wire::Answer,
    n_endpoints: usize,
    is_answered: impl Fn(usize) -> bool,
) -> Result<NextTry, (ModuleFault, String)> {
    match answer.kind {
        wire::NEXT_ENDPOINT => {
            let endpoint = answer.endpoint as usize;
            if endpoint >= n_endpoints {
                Err((ModuleFault::OutOfRange, format!("answered endpoint {endpoint} of {n_endpoints}")))
            } else if is_answered(endpoint) {
                Err((ModuleFault::AlreadyTried, format!("answered endpoint {endpoint} twice in a request")))
            } else {
                Ok(NextTry::Endpoint(endpoint))
            }
        }
        wire::NEXT_EXHAUSTED => Ok(NextTry::Exhausted),
        wire::NEXT_BUSY => Ok(NextTry::Wait),
        kind => Err((ModuleFault::UnknownKind, format!("answered kind {kind}, which is none"))),
    }
}
