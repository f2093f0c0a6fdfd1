//! The calls of a request's trylist, in the order that its module was promised.
#![allow(
    unsafe_code,
    reason = "keeps the promises that module calls rest on: storage that stays, calls in order"
)]

use std::ffi::c_void;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Instant;

use lb_api::wire;

use super::{CallState, Trylist, why};
use crate::module::balancer::{Balancer, Panicked};
use crate::module::wire::ns;
use crate::observe::metrics::ModuleCall;

impl Trylist<'_> {
    /// Has the tier's balancer, if it may, begin a trylist, of which there is none now.
    pub(super) fn load_balance(&mut self) {
        let (members, view) = (Rc::clone(&self.members), self.view);
        // Of another tier, it is not wanted: its session moves to the tier in use.
        let preferred = view.preferred.map_or(wire::NO_ENDPOINT, |endpoint| self.wire_idx(endpoint));
        self.preferred =
            Some(preferred as usize).filter(|idx| preferred != wire::NO_ENDPOINT && !self.was_tried(*idx));
        self.slot_mut().forget_answers();
        let chooser = members.tiers.get(self.tier_idx).and_then(|tier| tier.chooser(view.key.is_some()));
        self.asks_module = chooser.is_some();
        let Some(balancer) = chooser else { return };
        self.slot_mut().prepare(balancer, view, preferred);
        let storage = self.storage(balancer);
        let request = self.slot().request();
        // SAFETY: `storage` has the module's size and alignment and, like `request`, stays in its box until `drop_trylist`;
        // the request's text is borrowed for `'a`. Nothing is in the storage yet.
        let started =
            self.timed(ModuleCall::LoadBalance, || unsafe { balancer.load_balance(request, storage) });
        self.state = if started.is_ok() { CallState::Chosen } else { CallState::None };
    }

    /// Tells the module of a try that could not be established.
    pub(super) fn report_failure(&mut self, failure: &wire::Failure) {
        self.tell(ModuleCall::ReportFailure, |balancer, trylist| {
            // SAFETY: `tell` passes the storage of a trylist that is alive.
            unsafe { balancer.report_failure(trylist, failure) }
        });
    }

    /// The request is over; `kind` is one of [`wire`]'s `OUTCOME_*`, `status` what the client got, 0 where it got none.
    pub(crate) fn finish(&mut self, kind: u32, status: u16, now: Instant) {
        // One that still runs counts where the trylist ends before its request.
        let running = self.current.as_ref().map(|current| current.endpoint);
        let endpoint = running.or(self.last.endpoint);
        let outcome = wire::Outcome {
            size: size_of::<wire::Outcome>() as u32,
            kind,
            endpoint: endpoint.map_or(wire::NO_ENDPOINT, |endpoint| self.wire_idx(endpoint)),
            status: u32::from(status),
            n_tries: self.slot().tries.len() as u32 + u32::from(running.is_some()),
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
        if self.state != CallState::None {
            self.state = CallState::Ended;
        }
    }

    pub(super) fn drop_trylist(&mut self) {
        let members = Rc::clone(&self.members);
        let Some(balancer) = self.balancer(&members).filter(|_| self.state != CallState::None) else {
            return;
        };
        let storage = self.storage(balancer);
        // SAFETY: the trylist is alive until this call, its last, as the state says from here on.
        let dropped = self.timed(ModuleCall::Drop, || unsafe { balancer.drop_trylist(storage) });
        // A panic in it is counted already, and nothing is left to be done about it.
        let _ = dropped;
        self.state = CallState::None;
    }

    /// Runs this to its end, and lets the trylist go once its snapshot is over. The future is pinned by the caller, because an
    /// argument would be a second copy of it in every request.
    pub(crate) async fn let_go_during<F: Future>(&mut self, mut running: Pin<&mut F>) -> F::Output {
        poll_fn(|cx| {
            self.let_go_if_over();
            running.as_mut().poll(cx)
        })
        .await
    }

    /// Ends the trylist where its snapshot is over, though the request runs: the module hears what it hears when a client leaves.
    /// One load where it is not.
    #[inline]
    fn let_go_if_over(&mut self) {
        if self.members.is_over() {
            self.let_go();
        }
    }

    #[cold]
    fn let_go(&mut self) {
        let now = Instant::now();
        if self.current.is_some() && self.wants(wire::EVENT_TRY_ENDED) {
            self.observe(wire::EVENT_TRY_ENDED, wire::TRY_ABORTED, &[], now);
        }
        self.finish(wire::OUTCOME_ABORTED, 0, now);
        self.drop_trylist();
        self.keep_tried();
        self.asks_module = false;
        // With the newest members it holds no balancer for longer than these last.
        self.members = self.thread.members(self.cluster_idx);
        self.tier_idx = super::NO_TIER;
    }

    /// Asks the module for the next endpoint.
    pub(super) fn ask(&mut self, balancer: &Balancer, now: Instant) -> Result<wire::Answer, Panicked> {
        let n_tries = self.slot().tries.len() as u32;
        let n_endpoints = self.n_endpoints();
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

    /// The module's words about its last answer, as a valid header value.
    #[cold]
    pub(super) fn ask_why(&mut self) -> String {
        let is_alive = !matches!(self.state, CallState::Ended | CallState::None);
        let members = Rc::clone(&self.members);
        let Some(balancer) = self.balancer(&members).filter(|_| is_alive) else { return String::new() };
        let (storage, mut words) = (self.storage(balancer), Vec::new());
        // SAFETY: as the state says, the trylist is alive in its storage, and has heard no end.
        if unsafe { balancer.explain(storage, &mut words) }.is_err() {
            self.state = CallState::Ended;
            return String::new();
        }
        why::plain(&words)
    }

    /// Tells the module of an event of the current try.
    pub(super) fn observe(&mut self, kind: u32, result: u32, headers: &[wire::Str], now: Instant) {
        let Some(current) = &self.current else { return };
        let event = wire::Event {
            size: size_of::<wire::Event>() as u32,
            kind,
            try_id: self.slot().tries.len() as u32 + 1,
            endpoint: self.wire_idx(current.endpoint),
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
        let hears = !matches!(self.state, CallState::Ended | CallState::None);
        let members = Rc::clone(&self.members);
        let Some(balancer) = self.balancer(&members).filter(|_| hears) else { return };
        let storage = self.storage(balancer);
        if self.timed(call, || tell(balancer, storage)).is_err() {
            self.state = CallState::Ended;
        }
    }

    #[inline]
    fn timed<R>(&mut self, call: ModuleCall, enter: impl FnOnce() -> R) -> R {
        self.thread.metrics.module_call(self.cluster_idx, self.module_idx, call);
        let Some((time, n_calls)) = &mut self.module_time else { return enter() };
        let before = Instant::now();
        let result = enter();
        *time += before.elapsed();
        *n_calls += 1;
        result
    }

    fn storage(&mut self, balancer: &Balancer) -> *mut c_void {
        self.slot_mut().storage(balancer.module().trylist().size)
    }

    #[inline]
    pub(super) fn wants(&self, event: u32) -> bool {
        self.balancer(&self.members).is_some_and(|balancer| balancer.wants(event))
    }
}
