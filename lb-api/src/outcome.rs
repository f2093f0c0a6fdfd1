//! Reports to a balancer: how tries and requests went.

use std::time::Duration;

use crate::export::view::View;
use crate::wire;

/// A try that did not reach its server; nothing of the request was sent.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Failure {
    /// Why.
    pub kind: FailureKind,
    /// Which endpoint.
    pub endpoint: usize,
    /// The try's number within the request, from 1.
    pub try_id: u32,
    /// The operating system's error number, where there is one.
    pub os_error: Option<i32>,
    /// The time now, as [`NextCx::now_ns`](crate::NextCx::now_ns).
    pub now_ns: u64,
    /// How long the try took.
    pub elapsed: Duration,
}

/// Why a try could not be established.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FailureKind {
    /// The name did not resolve.
    Resolve,
    /// The connection was refused or failed. Also any kind that this version does not know.
    Connect,
    /// No connection within the time allowed.
    ConnectTimeout,
    /// The TLS handshake failed.
    Tls,
    /// The proxy itself lacked something (descriptors, ports): says nothing about the endpoint.
    Local,
}

/// How a try goes on. Only events asked for by [`Needs::event`](crate::Needs::event) come.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct Event<'a> {
    /// Kind of the event.
    pub kind: EventKind,
    /// Which endpoint.
    pub endpoint: usize,
    /// The try's number within the request, from 1.
    pub try_id: u32,
    /// HTTP status, once there is one.
    pub status: Option<u16>,
    /// How the try ended, for [`EventKind::TryEnded`].
    pub result: Option<TryResult>,
    /// The time now, as [`NextCx::now_ns`](crate::NextCx::now_ns).
    pub now_ns: u64,
    /// From the accepted answer to the connection; zero for one that was kept alive.
    pub connect: Duration,
    /// From the accepted answer to the response headers, once they are here.
    pub first_byte: Option<Duration>,
    /// From the accepted answer to now.
    pub total: Duration,
    /// Bytes sent to the endpoint so far, heads included.
    pub bytes_sent: u64,
    /// Bytes received from it so far, heads included.
    pub bytes_received: u64,
    view: View<'a, wire::Event>,
}

/// Kinds of [`Event`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EventKind {
    /// A connection stands, a new one or one kept alive.
    Connected,
    /// The response headers are here.
    ResponseHeaders,
    /// The try is over: also one that failed to connect, and one that was sent and is then retried.
    TryEnded,
}

/// How a try ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TryResult {
    /// The response was complete, whatever its status.
    Served,
    /// It could not be established; `report_failure` said why.
    NotEstablished,
    /// The connection ended before a response.
    ClosedEarly,
    /// The response was not valid HTTP. Also any result that this version does not know.
    BadResponse,
    /// No response, or no more of it, within the time allowed.
    TimedOut,
    /// The response broke off in its body.
    Broken,
    /// The client went away, or its request broke off.
    Aborted,
}

/// How a request ended.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Outcome {
    /// How.
    pub kind: OutcomeKind,
    /// Endpoint of the last try that was established.
    pub endpoint: Option<usize>,
    /// HTTP status that the client got, if it got any.
    pub status: Option<u16>,
    /// Tries made.
    pub n_tries: u32,
    /// The time now, as [`NextCx::now_ns`](crate::NextCx::now_ns).
    pub now_ns: u64,
    /// Of the last try, as in [`Event`].
    pub connect: Duration,
    /// Of the last try, as in [`Event`].
    pub first_byte: Option<Duration>,
    /// From `load_balance` to now.
    pub total: Duration,
    /// Bytes sent to endpoints, heads included.
    pub bytes_sent: u64,
    /// Bytes received from endpoints, heads included.
    pub bytes_received: u64,
}

/// Kinds of [`Outcome`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OutcomeKind {
    /// An endpoint's response went to the client whole, whatever its status.
    Served,
    /// No endpoint was left, and none was tried.
    NoEndpoint,
    /// Every try failed. Also any kind that this version does not know.
    Failed,
    /// The last try ran out of time.
    TimedOut,
    /// The response broke off in its body.
    Broken,
    /// The client went away, or its request broke off.
    Aborted,
}

impl Failure {
    #[inline]
    pub(crate) fn new(view: View<'_, wire::Failure>) -> Self {
        Self {
            kind: match view.kind {
                wire::FAILURE_RESOLVE => FailureKind::Resolve,
                wire::FAILURE_CONNECT_TIMEOUT => FailureKind::ConnectTimeout,
                wire::FAILURE_TLS => FailureKind::Tls,
                wire::FAILURE_LOCAL => FailureKind::Local,
                _ => FailureKind::Connect,
            },
            endpoint: view.endpoint as usize,
            try_id: view.try_id,
            os_error: Some(view.os_error).filter(|errno| *errno != 0),
            now_ns: view.now_ns,
            elapsed: Duration::from_nanos(view.elapsed_ns),
        }
    }
}

impl<'a> Event<'a> {
    /// None for a kind that this version does not know: such an event is ignored.
    #[inline]
    pub(crate) fn new(view: View<'a, wire::Event>) -> Option<Self> {
        let kind = match view.kind {
            wire::EVENT_CONNECTED => EventKind::Connected,
            wire::EVENT_RESPONSE_HEADERS => EventKind::ResponseHeaders,
            wire::EVENT_TRY_ENDED => EventKind::TryEnded,
            _ => return None,
        };
        let result = (kind == EventKind::TryEnded).then_some(match view.result {
            wire::TRY_SERVED => TryResult::Served,
            wire::TRY_NOT_ESTABLISHED => TryResult::NotEstablished,
            wire::TRY_CLOSED_EARLY => TryResult::ClosedEarly,
            wire::TRY_TIMED_OUT => TryResult::TimedOut,
            wire::TRY_BROKEN => TryResult::Broken,
            wire::TRY_ABORTED => TryResult::Aborted,
            _ => TryResult::BadResponse,
        });
        Some(Self {
            kind,
            endpoint: view.endpoint as usize,
            try_id: view.try_id,
            status: status(view.status),
            result,
            now_ns: view.now_ns,
            connect: Duration::from_nanos(view.connect_ns),
            first_byte: known(view.first_byte_ns),
            total: Duration::from_nanos(view.total_ns),
            bytes_sent: view.bytes_sent,
            bytes_received: view.bytes_received,
            view,
        })
    }

    /// Value of the `idx`-th header that [`Needs::response_header`](crate::Needs::response_header) asked for: the first
    /// line of that name; for [`EventKind::ResponseHeaders`] only.
    pub fn header(self, idx: usize) -> Option<&'a [u8]> {
        let headers = self.view.slice(|event| (event.headers, event.n_headers));
        View::of_element(headers.get(idx)?).bytes(|value| *value)
    }
}

impl Outcome {
    #[inline]
    pub(crate) fn new(view: View<'_, wire::Outcome>) -> Self {
        Self {
            kind: match view.kind {
                wire::OUTCOME_SERVED => OutcomeKind::Served,
                wire::OUTCOME_NO_ENDPOINT => OutcomeKind::NoEndpoint,
                wire::OUTCOME_TIMED_OUT => OutcomeKind::TimedOut,
                wire::OUTCOME_BROKEN => OutcomeKind::Broken,
                wire::OUTCOME_ABORTED => OutcomeKind::Aborted,
                _ => OutcomeKind::Failed,
            },
            endpoint: (view.endpoint != wire::NO_ENDPOINT).then_some(view.endpoint as usize),
            status: status(view.status),
            n_tries: view.n_tries,
            now_ns: view.now_ns,
            connect: Duration::from_nanos(view.connect_ns),
            first_byte: known(view.first_byte_ns),
            total: Duration::from_nanos(view.total_ns),
            bytes_sent: view.bytes_sent,
            bytes_received: view.bytes_received,
        }
    }
}

#[inline]
fn status(status: u32) -> Option<u16> {
    u16::try_from(status).ok().filter(|status| *status != 0)
}

#[inline]
fn known(ns: u64) -> Option<Duration> {
    (ns != 0).then(|| Duration::from_nanos(ns))
}
