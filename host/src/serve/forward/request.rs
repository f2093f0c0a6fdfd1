//! A request under way: what is known of it, what its tries have left, and what becomes of its connection.

use std::time::{Duration, Instant};

use super::notes::FailureNotes;
use crate::cluster::Cluster;
use crate::cluster::endpoint::Endpoint;
use crate::cluster::retries::Retrying;
use crate::http::h1::head::{RequestHead, ResponseHead};
use crate::http::headers::rules::Values;
use crate::http::pump::Rest;
use crate::serve::downstream::Downstream;
use crate::serve::plan::Plan;
use crate::serve::thread::Thread;
use crate::serve::trylist::View;

/// Memory that the requests of one connection use one after the other.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    pub(super) request: Vec<u8>,
    pub(super) response: Vec<u8>,
    pub(super) response_head: ResponseHead,
}

/// The fate of the client's connection after a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AfterRequest {
    /// The next request may come.
    Keep,
    /// It is to be closed.
    Close,
    /// It is to be closed, but the client may still be sending.
    CloseUnread,
}

/// One request under way.
pub(super) struct Request<'a> {
    pub(super) thread: &'a Thread,
    pub(super) view: &'a View<'a>,
    pub(super) cluster: &'a Cluster,
    pub(super) started: Instant,
    /// Why each failed try failed, for the log.
    pub(super) failures: FailureNotes,
    /// How often it was sent.
    pub(super) n_sent: u32,
    /// Of these, the last that was counted as a retry.
    pub(super) n_retried: u32,
    /// The part of its body that was read, and the part still to come, after a try that can be repeated.
    pub(super) rest: Option<Rest>,
    /// Whether the last try left what it took of the body where it was.
    pub(super) is_untouched: bool,
    /// How long its client took to send it, in all tries but the last.
    pub(super) sending: Duration,
    /// The same in the last try.
    pub(super) uploading: Duration,
    /// The client has got an interim response.
    pub(super) has_passed_on: bool,
    /// Its share of the cluster's retry budget, once it has one.
    pub(super) retrying: Option<Retrying<'a>>,
    /// The client gets a response that another server would have bettered, but none was there.
    pub(super) is_last_resort: bool,
}

impl<'a> Request<'a> {
    pub(super) fn new(
        thread: &'a Thread,
        cluster: &'a Cluster,
        view: &'a View<'a>,
        started: Instant,
    ) -> Self {
        Self {
            thread,
            view,
            cluster,
            started,
            failures: FailureNotes::default(),
            n_sent: 0,
            n_retried: 0,
            rest: None,
            is_untouched: false,
            sending: Duration::ZERO,
            uploading: Duration::ZERO,
            has_passed_on: false,
            retrying: None,
            is_last_resort: false,
        }
    }

    /// Values of this request for headers, and of the endpoint that answers it, if one does.
    #[cold]
    pub(super) fn values<'b>(
        &'b self,
        down: &Downstream,
        endpoint: Option<&'b Endpoint>,
        status: u16,
    ) -> Values<'b> {
        let View { head, plan, .. } = self.view;
        let server = (&*self.cluster.config.name, endpoint.map_or("", |endpoint| &endpoint.url));
        values((plan, head), down, server, status)
    }

    pub(super) fn keeps(&self, down: &Downstream) -> bool {
        keeps(self.thread, down, self.view.head)
    }
}

/// Values of a request for headers. `server` is the name of its cluster and the URL of its endpoint, or empty texts.
#[cold]
pub(super) fn values<'a>(
    (plan, head): (&'a Plan<'_>, &'a RequestHead),
    down: &Downstream,
    (cluster, endpoint): (&'a str, &'a str),
    status: u16,
) -> Values<'a> {
    Values {
        client: plan.client.address,
        peer: down.peer,
        request_id: plan.request_id.as_deref().unwrap_or_default(),
        scheme: plan.scheme(),
        host: plan.authority.unwrap_or_default(),
        method: head.text(head.method_text),
        path: &plan.path,
        query: plan.query.unwrap_or_default(),
        cluster,
        endpoint,
        status,
    }
}

/// Whether the client's connection goes on after this request, as far as that can be said beforehand.
pub(super) fn keeps(thread: &Thread, down: &Downstream, head: &RequestHead) -> bool {
    head.keep_alive
        // A client that sends nothing more may have sent further requests already.
        && !(down.read_closed && down.buffer.is_empty())
        && !thread.phase().is_ending()
        && thread.config.limits.requests_per_connection.is_none_or(|max| down.n_requests < max)
}
