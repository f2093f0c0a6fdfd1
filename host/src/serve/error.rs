//! Errors of a request that its client is told of.

use std::fmt;

use crate::http::h1::head::Refusal;

/// Why a request was not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Error {
    /// Its head is invalid.
    Head(Refusal),
    /// Its head did not come in time.
    HeadTimeout,
    /// Plain HTTP was sent to a TLS port.
    PlainHttp,
    /// A reverse proxy does not serve this form of target.
    Target(&'static str),
    /// The method is not allowed.
    Method,
    /// Its body is invalid.
    Body(&'static str),
    /// Its body exceeds the limit.
    BodyTooLarge,
    /// Its body did not come in time.
    BodyTimeout,
    /// No route matches its host and path.
    NoRoute,
    /// No endpoint was available, and none was tried.
    NoEndpoint,
    /// All endpoints are full, and the queue is full too or did not move in time.
    Busy,
    /// All endpoints are full, and the client has as many requests in the queue as it may.
    ClientBusy,
    /// The cluster has its maximum of concurrent requests.
    Overloaded,
    /// Every endpoint that was tried failed.
    Failed,
    /// The server's response is invalid.
    BadResponse,
    /// The server did not answer in time.
    ServerTimeout,
    /// The client went away.
    ClientGone,
}

/// The side at fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// The client.
    Downstream,
    /// The servers.
    Upstream,
}

impl Error {
    /// The side at fault.
    pub(crate) fn side(self) -> Side {
        match self {
            Self::Head(_)
            | Self::HeadTimeout
            | Self::PlainHttp
            | Self::Target(_)
            | Self::Method
            | Self::Body(_)
            | Self::BodyTooLarge
            | Self::BodyTimeout
            | Self::NoRoute
            | Self::ClientGone => Side::Downstream,
            Self::NoEndpoint
            | Self::Busy
            | Self::ClientBusy
            | Self::Overloaded
            | Self::Failed
            | Self::BadResponse
            | Self::ServerTimeout => Side::Upstream,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Head(refusal) => refusal.fmt(f),
            Self::HeadTimeout => f.write_str("timed out reading the request head"),
            Self::PlainHttp => f.write_str("plain HTTP request sent to an HTTPS port"),
            Self::Target(text) | Self::Body(text) => f.write_str(text),
            Self::Method => f.write_str("method not allowed"),
            Self::BodyTooLarge => f.write_str("request body too large"),
            Self::BodyTimeout => f.write_str("timed out reading the request body"),
            Self::NoRoute => f.write_str("no route for this host and path"),
            Self::NoEndpoint => f.write_str("no server available"),
            Self::Busy => f.write_str("all servers busy"),
            Self::ClientBusy => f.write_str("all servers busy, and too many requests of this client wait"),
            Self::Overloaded => f.write_str("too many concurrent requests"),
            Self::Failed => f.write_str("no server could be reached"),
            Self::BadResponse => f.write_str("bad response from the server"),
            Self::ServerTimeout => f.write_str("timed out waiting for the server's response"),
            Self::ClientGone => f.write_str("client closed the connection"),
        }
    }
}
