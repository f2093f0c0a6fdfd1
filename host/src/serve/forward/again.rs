//! Retries: whether a request is sent again to another server, and what its client gets otherwise.

use std::future::poll_fn;
use std::task::Poll;
use std::time::{Duration, Instant};

use lb_api::wire;
use tokio::time::Sleep;

use super::failure::RequestFailure;
use super::report::Served;
use super::request::{Memory, Request};
use crate::config::retry::RetryPolicy;
use crate::http::h1::body::BodyReader;
use crate::http::h1::head::{Framing, ResponseHead};
use crate::serve::downstream::Downstream;
use crate::serve::error::Error;
use crate::serve::trylist::Trylist;
use crate::serve::upstream::{Exchange, NoResponse};

/// The client's response unless another try brings a better one.
pub(super) enum LastResort {
    Failure(RequestFailure),
    Response(Box<HeldResponse>),
}

/// A response that is not passed on while another server is tried.
pub(super) struct HeldResponse {
    pub(super) endpoint: usize,
    pub(super) exchange: Exchange,
    pub(super) head: ResponseHead,
}

impl Request<'_> {
    /// Holds a response back while another server is tried.
    pub(super) fn hold(
        &mut self,
        memory: &mut Memory,
        trylist: &mut Trylist<'_>,
        endpoint: usize,
        mut exchange: Exchange,
    ) -> LastResort {
        let now = Instant::now();
        let head = std::mem::take(&mut memory.response_head);
        self.note(trylist, endpoint, &format!("answered {}", head.status));
        trylist.response_headers(&head, now);
        trylist.end_try(wire::TRY_SERVED, now);
        self.rest = exchange.request.take_rest();
        LastResort::Response(Box::new(HeldResponse { endpoint, exchange, head }))
    }

    /// The route's policy, where this request can be repeated by it. A body may turn out to be too long later.
    pub(super) fn policy(&self) -> Option<&RetryPolicy> {
        let policy = self.view.plan.route.retry.as_deref()?;
        let fits = match self.view.head.framing {
            // Of HTTP/2, where nothing need be said of a length.
            Framing::None | Framing::Chunked | Framing::UntilClose => true,
            Framing::Length(n) => n <= policy.buffer_bytes as u64,
        };
        (fits && policy.repeats(self.view.head.text(self.view.head.method_text))).then_some(policy)
    }

    /// Whether what the client sent can be sent again, after a try that has sent some or all of it.
    pub(super) fn is_repeatable(&self) -> bool {
        self.view.head.framing == Framing::None || self.rest.is_some()
    }

    /// The deadline of the whole request, and how long after its beginning that is.
    pub(super) fn last_moment(&self) -> Option<(Instant, Duration)> {
        self.view.plan.timeout.map(|allowed| (self.started + allowed, allowed))
    }

    /// The deadline of all tries. The time in which the client sends its body does not count.
    fn end_of_tries(&self) -> Option<Instant> {
        let allowed = self.view.plan.route.retry.as_deref()?.timeout?;
        Some(self.started + allowed + self.sending)
    }

    /// When no further try may begin.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match (self.last_moment(), self.end_of_tries()) {
            (Some((all, _)), Some(tries)) => Some(all.min(tries)),
            (all, tries) => all.map(|(all, _)| all).or(tries),
        }
    }

    /// Whether the request's time is up.
    pub(super) fn is_overdue(&self, now: Instant) -> bool {
        self.deadline().is_some_and(|until| now >= until)
    }

    /// How much a try has of a time that the cluster allows, and the configured time that this comes from.
    pub(super) fn patience(&self, allowed: Duration, now: Instant) -> (Duration, Duration) {
        let Some(policy) = self.view.plan.route.retry.as_deref() else { return (allowed, allowed) };
        let of_try = allowed.min(policy.try_timeout.unwrap_or(allowed));
        let left = self.end_of_tries().map(|until| until.saturating_duration_since(now));
        match (left, policy.timeout) {
            (Some(left), Some(timeout)) if left < of_try => (left, timeout),
            _ => (of_try, of_try),
        }
    }

    /// The time that a first try would have of a time that the cluster allows.
    pub(super) fn fair(&self, allowed: Duration) -> Duration {
        let policy = self.view.plan.route.retry.as_deref();
        let others =
            [policy.and_then(|p| p.try_timeout), policy.and_then(|p| p.timeout), self.view.plan.timeout];
        others.into_iter().flatten().fold(allowed, Duration::min)
    }

    /// Whether a request that got this response is to be sent again. Only one that was sent whole is: while it is not,
    /// the response and its request cannot be held both.
    pub(super) fn retries_response(&self, head: &ResponseHead, exchange: &Exchange) -> bool {
        self.policy().is_some_and(|policy| {
            policy.on.has_status(head.status)
                && exchange.request.is_done()
                && (self.view.head.framing == Framing::None || exchange.request.is_kept())
                && self.may_send_again(policy, exchange.has_passed_on)
        })
    }

    /// Whether a request that got none is to be sent again.
    pub(super) fn retries_failure(&self, e: &NoResponse) -> bool {
        self.policy().is_some_and(|policy| {
            let is_cause = match e {
                NoResponse::Closed(_)
                | NoResponse::Unprocessed(_)
                | NoResponse::Reset(_)
                | NoResponse::Cut => policy.on.reset,
                NoResponse::TimedOut(_) => policy.on.timeout,
                NoResponse::Bad(_) => policy.on.bad_response,
                NoResponse::Client(_) => false,
            };
            is_cause && self.is_repeatable() && self.may_send_again(policy, self.has_passed_on)
        })
    }

    fn may_send_again(&self, policy: &RetryPolicy, has_passed_on: bool) -> bool {
        !has_passed_on && self.n_sent < policy.tries
    }

    /// Waits until the request may be sent again, which it is not to be where this answers `None`: the budget is spent, or
    /// the wait would outlast the request's time.
    ///
    /// # Errors
    /// The client went away.
    pub(super) async fn back_off(
        &mut self,
        down: &mut Downstream,
    ) -> Result<Option<Instant>, RequestFailure> {
        let Some(policy) = self.view.plan.route.retry.as_deref() else { return Ok(None) };
        if self.retrying.is_none() {
            let cluster = self.cluster;
            // This request is not in flight now, but counts.
            self.retrying = cluster.retries.begin(policy.budget, || cluster.n_requests() + 1);
            if self.retrying.is_none() {
                self.thread.metrics.retry_denied(self.view.plan.cluster);
                return Ok(None);
            }
        }
        let wait = policy.wait(self.n_sent, self.thread.random());
        let now = Instant::now();
        if self.deadline().is_some_and(|until| now + wait >= until) {
            return Ok(None);
        }
        if !wait.is_zero() {
            let slept = tokio::time::sleep(wait);
            self.sleep_unless_gone(down, slept).await?;
        }
        Ok(Some(if wait.is_zero() { now } else { Instant::now() }))
    }

    async fn sleep_unless_gone(&self, down: &mut Downstream, sleep: Sleep) -> Result<(), RequestFailure> {
        let gone = poll_fn(|cx| match down.watch(cx) {
            Err(error) => Poll::Ready(error),
            Ok(()) => Poll::Pending,
        });
        tokio::select! {
            biased;
            error = gone => Err(RequestFailure { error, outcome: wire::OUTCOME_ABORTED, begun: None }),
            () = sleep => Ok(()),
        }
    }

    /// Ends the request with what the last try has left.
    pub(super) async fn settle(
        &mut self,
        down: &mut Downstream,
        memory: &mut Memory,
        trylist: &mut Trylist<'_>,
        last: LastResort,
    ) -> Result<Served, RequestFailure> {
        match last {
            LastResort::Failure(failure) => Err(failure),
            LastResort::Response(held) => {
                let HeldResponse { endpoint, exchange, head } = *held;
                memory.response_head = head;
                self.is_last_resort = true;
                self.relay(down, memory, trylist, endpoint, exchange).await
            }
        }
    }

    /// Drops a response that was held back: another try was made. A short response that has come whole leaves its connection
    /// usable.
    pub(super) fn let_go(&self, trylist: &Trylist<'_>, last: Option<LastResort>, now: Instant) {
        let Some(LastResort::Response(held)) = last else { return };
        let HeldResponse { endpoint, exchange: Exchange { server, mut buffer, .. }, head } = *held;
        let ends = BodyReader::of_response(head.framing).take(&mut buffer).is_ok_and(|piece| piece.last);
        if head.keep_alive && ends && buffer.is_empty() {
            self.thread.keep_connection(self.view.plan.cluster, trylist.member(endpoint), server, now);
        }
    }

    /// The failure where no time is left for another try.
    pub(super) fn out_of_time(&self) -> RequestFailure {
        RequestFailure { error: Error::ServerTimeout, outcome: wire::OUTCOME_TIMED_OUT, begun: None }
    }
}
