//! The input and output of a trylist.

use std::time::Duration;

use crate::http::h1::head::RequestHead;
use crate::serve::plan::Plan;

/// A request, as its trylist and its tries see it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View<'a> {
    /// Its head.
    pub(crate) head: &'a RequestHead,
    /// The decisions of head and configuration.
    pub(crate) plan: &'a Plan<'a>,
    /// The cluster's key, if a module asked for it and the request has one.
    pub(crate) key: Option<&'a [u8]>,
    /// The endpoint that is to be tried first: its session is there.
    pub(crate) preferred: Option<usize>,
}

/// The next step of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NextTry {
    /// Try this endpoint.
    Endpoint(usize),
    /// Wait until one comes free, then ask again.
    Wait,
    /// There is none left.
    Exhausted,
}

/// One try that has ended, as the access log tells it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tried {
    /// The endpoint.
    pub(crate) endpoint: usize,
    /// One of [`wire`](lb_api::wire)'s `TRY_*`.
    pub(crate) result: u32,
    /// One of [`wire`](lb_api::wire)'s `FAILURE_*`, where the try was not established.
    pub(crate) failure: Option<u32>,
    /// Status of the server's response; 0 where none came.
    pub(crate) status: u16,
    /// How long it took.
    pub(crate) total: Duration,
}
