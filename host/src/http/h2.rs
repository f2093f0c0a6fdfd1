//! HTTP/2, by the `h2` crate.
//!
//! A stream is shown to the rest of the proxy as a connection that carries one exchange of HTTP/1.1 with its framing
//! taken out: a head as text, then the body as it is, and an end that is told apart from it. So one request is routed,
//! balanced, tried, relayed, counted and logged by the same code whatever its client and its server speak, and each of the
//! four combinations is made of the same two halves: [`server`] and [`client`].
//!
//! ```text
//!  frames ─► watch ─► h2 ─► server: a task for each stream ─► downstream, forward ─► HTTP/1.1 or client ─► h2 ─► frames
//! ```
//!
//! [`frame`], [`hpack`] and [`message`] are the bottom of a codec of our own: bytes of frames, blocks of fields, and what the
//! fields of a message may say.

pub mod client;
#[allow(dead_code, reason = "streams use it next")]
pub(crate) mod driver;
#[allow(dead_code, reason = "streams use it next")]
pub(crate) mod lines;
#[allow(dead_code, unused_imports, reason = "streams use it next")]
pub(crate) mod session;
#[allow(dead_code, reason = "the session uses it next")]
pub(crate) mod frame;
#[allow(dead_code, unused_imports, reason = "the session uses it next")]
pub(crate) mod hpack;
#[allow(dead_code, reason = "the session uses it next")]
pub(crate) mod message;
mod inbox;
pub mod connection;
pub mod server;
pub mod text;
pub mod watch;

use std::error::Error;
use std::{fmt, io};

use h2::Reason;

/// What one stream may send ahead of who takes it; RFC 9113's default.
pub const STREAM_WINDOW: u32 = 64 * 1024 - 1;
/// What is kept of a stream's body until the peer takes it.
pub const SEND_BUFFER: usize = 64 * 1024;

/// What becomes of a stream that its server ends, or that never begins, where that says more than the end of a connection.
#[derive(Debug)]
pub enum StreamError {
    /// HTTP/2 cannot say the request; in words.
    Unsendable(&'static str),
    /// The connection was given up before, or the server says that it has not looked at the request: it is safe to send
    /// again, whatever its method (RFC 9113 section 8.7).
    Unprocessed(h2::Error),
    /// It is what the server has to say to this request.
    Reset(Reason),
}

impl StreamError {
    /// Whether that is what an error of a stream says.
    pub fn of(e: &io::Error) -> Option<&Self> {
        e.get_ref()?.downcast_ref()
    }
}

impl fmt::Display for StreamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsendable(text) => f.write_str(text),
            Self::Unprocessed(e) => match e.reason() {
                Some(Reason::REFUSED_STREAM) => f.write_str("stream refused"),
                Some(reason) if e.is_go_away() => write!(f, "connection given up: {reason:?}"),
                _ => e.fmt(f),
            },
            Self::Reset(reason) => write!(f, "stream reset: {reason:?}"),
        }
    }
}

impl Error for StreamError {}

impl From<StreamError> for io::Error {
    fn from(e: StreamError) -> Self {
        Self::new(io::ErrorKind::ConnectionReset, e)
    }
}

/// What all streams of a connection may send ahead together: as much as each of them may, so that those that nobody reads
/// leave the others theirs.
pub fn connection_window(max_streams: usize) -> u32 {
    const MOST: u32 = (1 << 31) - 1;
    u32::try_from(max_streams).unwrap_or(MOST).saturating_mul(STREAM_WINDOW).min(MOST)
}

/// An error of a stream as that of a connection.
fn io_error(e: h2::Error) -> io::Error {
    if e.is_io() {
        return e.into_io().unwrap_or_else(|| io::ErrorKind::ConnectionReset.into());
    }
    // Streams that a server's GOAWAY does not leave out go on.
    if e.is_remote() && (e.is_go_away() || e.reason() == Some(Reason::REFUSED_STREAM)) {
        return StreamError::Unprocessed(e).into();
    }
    let text = match e.reason() {
        Some(reason) if e.is_go_away() => format!("connection given up: {reason:?}"),
        Some(reason) => return StreamError::Reset(reason).into(),
        None => e.to_string(),
    };
    io::Error::new(io::ErrorKind::ConnectionReset, text)
}
