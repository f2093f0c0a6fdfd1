//! HTTP/2: one connection for many streams.
//!
//! A stream is shown to the rest of the proxy as a connection that carries one exchange of HTTP/1.1 with its framing
//! taken out: the body as it is, and an end that is told apart from it. Heads of requests come as [`message`] has put them
//! together, all others as text. So one request is routed,
//! balanced, tried, relayed, counted and logged by the same code whatever its client and its server speak, and each of the
//! four combinations is made of the same two halves: [`server`] and [`client`].
//!
//! ```text
//!  bytes ─► driver ─► session ─► server: a task for each stream ─► downstream, forward ─► HTTP/1.1 or client ─► session ─► bytes
//! ```

pub mod client;
pub mod connection;
#[cfg(test)]
mod differential;
pub(crate) mod driver;
pub(crate) mod frame;
pub(crate) mod hpack;
pub(crate) mod lines;
pub(crate) mod message;
pub mod server;
pub(crate) mod session;
pub(crate) mod switch;

pub use self::session::PingTerms;

use std::error::Error;
use std::{fmt, io};

use self::frame::ErrorCode;
use self::session::StreamFailure;

/// The end of a stream by its server, or before it began, where that says more than the end of a connection.
#[derive(Debug)]
pub(crate) enum StreamError {
    /// HTTP/2 cannot say the request; in words.
    Unsendable(&'static str),
    /// The connection was given up before, or the server says that it has not looked at the request: it is safe to send
    /// again, whatever its method (RFC 9113 section 8.7).
    Unprocessed(StreamFailure),
    /// It is what the server has to say to this request.
    Reset(ErrorCode),
}

impl StreamError {
    /// Whether that is what an error of a stream says.
    pub(crate) fn of(e: &io::Error) -> Option<&Self> {
        e.get_ref()?.downcast_ref()
    }
}

impl fmt::Display for StreamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsendable(text) => f.write_str(text),
            Self::Unprocessed(failure) => failure.fmt(f),
            Self::Reset(code) => write!(f, "stream reset: {code}"),
        }
    }
}

impl Error for StreamError {}

impl From<StreamError> for io::Error {
    fn from(e: StreamError) -> Self {
        Self::new(io::ErrorKind::ConnectionReset, e)
    }
}
