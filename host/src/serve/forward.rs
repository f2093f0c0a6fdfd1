//! One request, from its head to the end of its response: route, load_balance, try, move on or give up, relay.
//!
//! [`request`] is what is known of a request under way. The other files are the steps of this story, in its order: [`queue`],
//! [`attempt`], [`again`], [`relay`] or [`tunnel`], [`failure`] where there is no response, [`report`]. [`notes`] has the reasons of
//! failed tries. [`answer`] is for routes whose requests go to no server.

mod again;
mod answer;
mod attempt;
mod explain;
mod failure;
mod notes;
mod queue;
mod relay;
mod report;
mod request;
mod tunnel;

use std::time::Instant;

use crate::http::h1::head::RequestHead;
use crate::module::board;
use crate::serve::downstream::Downstream;
use crate::serve::error::Error;
use crate::serve::plan::Plan;
use crate::serve::thread::Thread;
use crate::serve::trylist::{NextTry, Trylist, View};

use self::again::LastResort;
use self::attempt::TryError;
use self::failure::RequestFailure;
use self::report::Served;
pub(crate) use self::report::refuse;
use self::report::refuse_routed;
use self::request::Request;
pub(crate) use self::request::{AfterRequest, Memory};

/// Serves the request whose head was just read.
pub(crate) async fn forward(
    thread: &Thread,
    down: &mut Downstream,
    memory: &mut Memory,
    head: &RequestHead,
) -> AfterRequest {
    let _serves = board::serves();
    let started = Instant::now();
    let plan = match Plan::of(thread, head, down) {
        Ok(plan) => plan,
        Err(error) => return refuse(thread, down, memory, error, Some(head)).await,
    };
    if plan.max_forwards == Some(0) {
        return report::answer_options(thread, down, memory, head, started).await;
    }
    if let Some(answer) = &plan.route.answer {
        if answer.is_for(plan.client.is_https) {
            return Box::pin(answer::answer(thread, down, memory, (&plan, head), answer, started)).await;
        }
        if plan.route.cluster.is_none() {
            return Box::pin(refuse_routed(thread, down, memory, (&plan, head), Error::NoRoute)).await;
        }
    }
    let cluster = &thread.clusters[plan.cluster];
    let Ok(_admitted) = cluster.admit() else {
        thread.metrics.overloaded(plan.cluster);
        return refuse_routed(thread, down, memory, (&plan, head), Error::Overloaded).await;
    };
    let members = thread.members(plan.cluster);
    let key = cluster.key_source(&members).and_then(|source| plan.key(source, head));
    let sticky = members.sticky.as_ref();
    let preferred =
        sticky.and_then(|sticky| plan.preferred(sticky, head)).map(|idx| members.endpoints[idx].place);
    drop(members);
    let view = View { head, plan: &plan, key: key.as_deref(), preferred };
    let mut trylist = Trylist::start(thread, plan.cluster, &view, started);
    if head.asks_why && explain::may_ask(thread, plan.client.address) {
        trylist.explain();
    }
    let mut request = Request::new(thread, cluster, &view, started);
    let served = match request.serve(down, memory, &mut trylist).await {
        Ok(served) => {
            if !request.failures.is_empty() {
                request.log_recovery();
            }
            served
        }
        Err(failure) => {
            let more = explain::header_lines(&trylist, Instant::now());
            request.fail(down, memory, failure, &more).await
        }
    };
    let Served { report, then, at } = served;
    trylist.finish(report.outcome, report.status, at);
    request.conclude(down, &trylist, report, at);
    down.served_at = at;
    then
}

impl Request<'_> {
    /// Tries endpoints until one answers, and relays its response.
    ///
    /// A rare case has a future of its own, so that all others stay small.
    async fn serve(
        &mut self,
        down: &mut Downstream,
        memory: &mut Memory,
        trylist: &mut Trylist<'_>,
    ) -> Result<Served, RequestFailure> {
        let mut now = self.started;
        let mut last: Option<LastResort> = None;
        loop {
            let (endpoint, then) = match self.next_endpoint(down, trylist, now).await {
                Ok(next) => next,
                Err(failure) => return Box::pin(self.give_up(down, memory, trylist, last, failure)).await,
            };
            now = then;
            let kept = match self.attempt(down, memory, trylist, endpoint, now).await {
                Ok(exchange) if self.retries_response(&memory.response_head, &exchange) => {
                    self.let_go(trylist, last, now);
                    self.hold(memory, trylist, endpoint, exchange)
                }
                Ok(exchange) => {
                    self.let_go(trylist, last, now);
                    if memory.response_head.status == 101 {
                        return Box::pin(self.tunnel(down, memory, trylist, endpoint, exchange)).await;
                    }
                    return self.relay(down, memory, trylist, endpoint, exchange).await;
                }
                Err(TryError::NotEstablished(e)) => {
                    now = Instant::now();
                    self.note(trylist, endpoint, &e.text);
                    trylist.not_established(e.kind, e.os_error, now);
                    if self.is_overdue(now) {
                        let failure = self.out_of_time();
                        return Box::pin(self.give_up(down, memory, trylist, last, failure)).await;
                    }
                    continue;
                }
                Err(TryError::NoResponse(e)) => {
                    self.let_go(trylist, last, now);
                    let is_retried = self.retries_failure(&e);
                    let failure = self.no_response(trylist, endpoint, e);
                    if !is_retried {
                        return Err(failure);
                    }
                    LastResort::Failure(failure)
                }
            };
            match Box::pin(self.back_off(down)).await? {
                Some(then) => (now, last) = (then, Some(kept)),
                None => return Box::pin(self.settle(down, memory, trylist, kept)).await,
            }
        }
    }

    /// The endpoint of the next try, once one has room.
    ///
    /// # Errors
    /// There is none left, or the wait for one has ended without.
    async fn next_endpoint(
        &self,
        down: &mut Downstream,
        trylist: &mut Trylist<'_>,
        mut now: Instant,
    ) -> Result<(usize, Instant), RequestFailure> {
        // Newcomers stand behind those who wait, or those might wait for ever.
        let is_behind =
            trylist.members().has_limits && trylist.tries().is_empty() && self.cluster.queue.has_precedence();
        let mut next = if is_behind { NextTry::Wait } else { trylist.next(now) };
        if next == NextTry::Wait {
            (next, now) = self.wait_for_endpoint(down, trylist).await?;
        }
        match next {
            NextTry::Endpoint(endpoint) => Ok((endpoint, now)),
            NextTry::Wait | NextTry::Exhausted => Err(self.exhausted(trylist)),
        }
    }

    /// Ends where no further try is to be made: with what the tries before have left, or else with this.
    async fn give_up(
        &mut self,
        down: &mut Downstream,
        memory: &mut Memory,
        trylist: &mut Trylist<'_>,
        last: Option<LastResort>,
        failure: RequestFailure,
    ) -> Result<Served, RequestFailure> {
        match last {
            Some(last) if failure.error != Error::ClientGone => {
                self.settle(down, memory, trylist, last).await
            }
            _ => Err(failure),
        }
    }
}
