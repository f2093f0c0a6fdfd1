//! A request without a whole response: the reason, the client's error response, and the log line.

use std::sync::Arc;
use std::time::Instant;

use lb_api::wire;

use super::report::{RequestReport, Served, end, write_whole};
use super::request::{AfterRequest, Memory, Request};
use crate::http::h1::head::Framing;
use crate::serve::downstream::Downstream;
use crate::serve::error::{Error, Side};
use crate::serve::respond::{self, ErrorReply, Written, status_of};
use crate::serve::trylist::Trylist;
use crate::serve::upstream::NoResponse;

/// Why a request ended without a whole response.
pub(super) struct RequestFailure {
    pub(super) error: Error,
    pub(super) outcome: u32,
    /// The client got a part of a response already, and can get no error response.
    pub(super) begun: Option<RequestReport>,
}

/// A try that failed after the request was sent, or as it was sent.
pub(super) struct FailedTry {
    /// One of [`wire`]'s `TRY_*`.
    pub(super) result: u32,
    /// One of [`wire`]'s `OUTCOME_*`, where the request ends with this try.
    pub(super) outcome: u32,
    pub(super) error: Error,
    /// The failure in words, unless the client is the cause.
    pub(super) text: Option<String>,
}

impl FailedTry {
    /// The client is the cause.
    pub(super) fn of_client(error: Error) -> Self {
        Self { result: wire::TRY_ABORTED, outcome: wire::OUTCOME_ABORTED, error, text: None }
    }

    fn without_response(e: NoResponse) -> Self {
        let (result, text) = match e {
            NoResponse::Client(error) => return Self::of_client(error),
            NoResponse::TimedOut(allowed) => {
                let text = Some(format!("no response within {allowed:?}"));
                let (result, outcome) = (wire::TRY_TIMED_OUT, wire::OUTCOME_TIMED_OUT);
                return Self { result, outcome, error: Error::ServerTimeout, text };
            }
            NoResponse::Bad(refusal) => (wire::TRY_BAD_RESPONSE, format!("bad response: {refusal}")),
            NoResponse::Closed(None) => (wire::TRY_CLOSED_EARLY, "closed without a response".into()),
            NoResponse::Closed(Some(e)) | NoResponse::Reset(e) => {
                (wire::TRY_CLOSED_EARLY, format!("no response: {e}"))
            }
            NoResponse::Unprocessed(e) => (wire::TRY_CLOSED_EARLY, format!("not processed: {e}")),
            NoResponse::Cut => (wire::TRY_CLOSED_EARLY, "closed within the response's head".into()),
        };
        Self { result, outcome: wire::OUTCOME_FAILED, error: Error::BadResponse, text: Some(text) }
    }
}

impl Request<'_> {
    /// Ends a try that brought no response.
    pub(super) fn no_response(
        &mut self,
        trylist: &mut Trylist<'_>,
        endpoint: usize,
        e: NoResponse,
    ) -> RequestFailure {
        let failed = FailedTry::without_response(e);
        self.end_failed(trylist, endpoint, &failed, Instant::now());
        RequestFailure { error: failed.error, outcome: failed.outcome, begun: None }
    }

    /// Ends a try, and notes its failure for the log.
    pub(super) fn end_failed(
        &mut self,
        trylist: &mut Trylist<'_>,
        endpoint: usize,
        failed: &FailedTry,
        now: Instant,
    ) {
        if let Some(text) = &failed.text {
            self.note(trylist, endpoint, text);
        }
        trylist.end_try(failed.result, now);
    }

    /// No endpoint is left.
    pub(super) fn exhausted(&self, trylist: &Trylist<'_>) -> RequestFailure {
        let (error, outcome) = match trylist.tries().last() {
            None => (Error::NoEndpoint, wire::OUTCOME_NO_ENDPOINT),
            Some(last) if last.failure == Some(wire::FAILURE_CONNECT_TIMEOUT) => {
                (Error::ServerTimeout, wire::OUTCOME_TIMED_OUT)
            }
            Some(_) => (Error::Failed, wire::OUTCOME_FAILED),
        };
        RequestFailure { error, outcome, begun: None }
    }

    /// Logs the failure and sends an error response; `more` is additional header lines.
    pub(super) async fn fail(
        &mut self,
        down: &mut Downstream,
        memory: &mut Memory,
        failure: RequestFailure,
        more: &[u8],
    ) -> Served {
        let RequestFailure { error, outcome, begun } = failure;
        self.log_failure(error);
        if let Some(report) = begun {
            return Served { report, then: AfterRequest::Close, at: Instant::now() };
        }
        let status_of = status_of(error);
        if status_of.status == 0 {
            let received_bytes = self.view.head.len() as u64;
            let report = RequestReport { outcome, received_bytes, ..RequestReport::default() };
            return Served { report, then: AfterRequest::Close, at: Instant::now() };
        }
        let keep = status_of.keep && self.view.head.framing == Framing::None && self.keeps(down);
        memory.response.clear();
        let now = Instant::now();
        let pages = self.view.plan.route.errors.as_deref().unwrap_or(&self.thread.config.errors);
        let reply = ErrorReply { error, head: Some(self.view.head), keep, more, pages };
        let Written { body_bytes, rest, .. } =
            respond::write_error((&self.thread.date, now), &reply, &mut memory.response);
        if let Some(rules) = self.view.plan.route.response_headers.as_deref() {
            let values = self.values(down, None, status_of.status);
            respond::apply_rules(rules, &values, &mut memory.response);
        }
        let sent = write_whole(self.thread, down, &memory.response, rest).await;
        let report = RequestReport {
            status: status_of.status,
            outcome,
            received_bytes: self.view.head.len() as u64,
            sent_bytes: if sent { (memory.response.len() + rest.len()) as u64 } else { 0 },
            body_bytes: if sent { body_bytes } else { 0 },
        };
        Served { report, then: end(sent, keep), at: Instant::now() }
    }

    fn log_failure(&self, error: Error) {
        let (cluster, client) = (&*self.cluster.config.name, self.view.plan.client.address);
        let target = String::from_utf8_lossy(self.view.head.text(self.view.head.target));
        if error.side() == Side::Downstream {
            tracing::debug!(cluster, %client, %target, "request aborted: {error}");
            return;
        }
        let Some(left_out) = self.thread.may_log() else { return };
        let why = if self.failures.is_empty() { String::new() } else { format!(" ({})", self.failures) };
        match left_out {
            0 => tracing::error!(cluster, %client, %target, "request failed: {error}{why}"),
            _ => tracing::error!(cluster, %client, %target, left_out, "request failed: {error}{why}"),
        }
    }

    /// Logs a request that was served, but not by the first server that was tried.
    #[cold]
    pub(super) fn log_recovery(&self) {
        let Some(left_out) = self.thread.may_log() else { return };
        let (cluster, failures) = (&*self.cluster.config.name, &self.failures);
        let what = match self.is_last_resort {
            false => "another server served a request",
            true => "no other server served a request",
        };
        match left_out {
            0 => tracing::warn!(cluster, "{what}: {failures}"),
            _ => tracing::warn!(cluster, left_out, "{what}: {failures}"),
        }
    }

    /// Remembers why the current try failed.
    #[cold]
    pub(super) fn note(&mut self, trylist: &Trylist<'_>, endpoint: usize, text: &str) {
        let (try_idx, url) = (trylist.tries().len(), Arc::clone(&trylist.member(endpoint).url));
        self.failures.add(try_idx, url, text);
    }
}
