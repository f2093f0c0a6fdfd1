//! What can go wrong with a request, as far as its client is to be told.

use std::fmt;

use crate::http::h1::head::Refusal;

/// Why a request was not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// Its head was refused.
    Head(Refusal),
    /// Its head did not come in time.
    HeadTimeout,
    /// It came in clear text where TLS is spoken.
    PlainHttp,
    /// Its target is none that a reverse proxy serves.
    Target(&'static str),
    /// A method that is not served.
    Method,
    /// Its body was refused.
    Body(&'static str),
    /// Its body is over the limit.
    BodyTooLarge,
    /// Its body stopped coming.
    BodyTimeout,
    /// No route covers it.
    NoRoute,
    /// No endpoint was available, and none was tried.
    NoEndpoint,
    /// All endpoints are full, and the queue is full too or did not move in time.
    Busy,
    /// All endpoints are full, and the client has as many requests in the queue as it may.
    ClientBusy,
    /// The cluster has as many requests as it may.
    Overloaded,
    /// Every endpoint that was tried failed.
    Failed,
    /// The server's response was refused.
    BadResponse,
    /// The server did not answer in time.
    ServerTimeout,
    /// The client went away.
    ClientGone,
}

/// Who is at fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The client.
    Downstream,
    /// The servers.
    Upstream,
}

impl Error {
    /// Who is at fault.
    pub fn side(self) -> Side {
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
            Self::HeadTimeout => f.write_str("request head not complete in time"),
            Self::PlainHttp => f.write_str("plain HTTP sent to a port where HTTPS is spoken"),
            Self::Target(text) | Self::Body(text) => f.write_str(text),
            Self::Method => f.write_str("method not served"),
            Self::BodyTooLarge => f.write_str("request body over its limit"),
            Self::BodyTimeout => f.write_str("request body not complete in time"),
            Self::NoRoute => f.write_str("no route for this host and path"),
            Self::NoEndpoint => f.write_str("no server available"),
            Self::Busy => f.write_str("all servers busy"),
            Self::ClientBusy => f.write_str("all servers busy, and too many requests of this client wait"),
            Self::Overloaded => f.write_str("too many requests at once"),
            Self::Failed => f.write_str("no server could be reached"),
            Self::BadResponse => f.write_str("bad response from the server"),
            Self::ServerTimeout => f.write_str("no response from the server in time"),
            Self::ClientGone => f.write_str("client gone"),
        }
    }
}
