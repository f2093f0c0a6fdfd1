//! One try against one endpoint: a connection, the request sent, the response's head received.

use std::future::poll_fn;
use std::io;
use std::task::{Poll, ready};
use std::time::{Duration, Instant};

use lb_api::wire;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::config::Limits;
use crate::downstream::Downstream;
use crate::endpoint::Endpoint;
use crate::error::Error;
use crate::headers;
use crate::http1::buffer::Buffer;
use crate::http1::head::{HeadLimits, Refusal, RequestHead, ResponseHead, Scan, Version};
use crate::http1::pump::{Pump, PumpError};
use crate::resolve::Addresses;

/// A response is first read up to here. Whole where it is small; of a large one no more than has to be copied, so that the
/// rest can be spliced.
const FIRST_READ_BYTES: usize = 16 * 1024;

/// Why a connection could not be made.
#[derive(Debug)]
pub struct ConnectError {
    /// One of [`wire`]'s `FAILURE_*`.
    pub kind: u32,
    /// `errno`, where there is one.
    pub os_error: Option<i32>,
    /// In words.
    pub text: String,
}

/// Why a request that was sent, or was being sent, got no response.
#[derive(Debug)]
pub enum NoResponse {
    /// The server closed the connection before it sent a byte; `io::Error` where it said how.
    Closed(Option<io::Error>),
    /// It closed within the head.
    Cut,
    /// What it sent is not a response.
    Bad(Refusal),
    /// It sent nothing in time.
    TimedOut,
    /// It is the client's doing.
    Client(Error),
}

/// Limits of one exchange.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// From the request's last byte to the response's first.
    pub response: Duration,
    /// Without a byte in the request's body.
    pub request_body: Duration,
}

/// Makes a connection, to whichever of the endpoint's addresses answers first in their order.
///
/// # Errors
/// The name has no address, or no address could be connected to within `patience`.
pub async fn connect(endpoint: &Endpoint, patience: Duration) -> Result<TcpStream, ConnectError> {
    match tokio::time::timeout(patience, connect_any(endpoint)).await {
        Ok(result) => result,
        Err(_) => Err(ConnectError {
            kind: wire::FAILURE_CONNECT_TIMEOUT,
            os_error: None,
            text: format!("no connection within {patience:?}"),
        }),
    }
}

async fn connect_any(endpoint: &Endpoint) -> Result<TcpStream, ConnectError> {
    let answer;
    let addresses = match &endpoint.addresses {
        Addresses::Fixed(address) => &address[..],
        Addresses::Named(name) => {
            answer = name.addresses().await;
            answer.as_ref().as_ref().map_err(|e| ConnectError {
                kind: wire::FAILURE_RESOLVE,
                os_error: None,
                text: format!("look-up failed: {e}"),
            })?
        }
    };
    let mut failed = None;
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => {
                // Only a hint to the kernel: a connection without it still works.
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Err(e) => failed = Some(e),
        }
    }
    Err(failed.map_or_else(
        || ConnectError {
            kind: wire::FAILURE_RESOLVE,
            os_error: None,
            text: "the name has no address".into(),
        },
        ConnectError::from,
    ))
}

/// Sends the request, as far as the server takes it, until the head of its final response is there. Interim responses
/// go to the client on the way. What of the request is not sent by then is left in `request`.
///
/// # Errors
/// There is no response, for one of the reasons of [`NoResponse`].
pub async fn response_head(
    down: &mut Downstream,
    server: &mut TcpStream,
    buffer: &mut Buffer,
    request: &mut Pump,
    request_head: &RequestHead,
    response: &mut ResponseHead,
    limits: &Limits,
    patience: Patience,
    now: Instant,
) -> Result<(), NoResponse> {
    let head_limits = HeadLimits { line_bytes: limits.head_bytes, headers: limits.headers };
    let mut exchange = Exchange { sent: false, sink_failed: None, got_any: false, now: Some(now) };
    let mut scan = Scan::default();
    down.timer.set(now + patience.request_body);
    loop {
        poll_fn(|cx| {
            exchange.poll_send(cx, down, server, request, patience)?;
            loop {
                // A second head may have come with the first.
                match response.read(buffer, &mut scan, &head_limits, request_head.method) {
                    Ok(true) => return Poll::Ready(Ok(())),
                    Ok(false) => {}
                    Err(refusal) => return Poll::Ready(Err(NoResponse::Bad(refusal))),
                }
                match buffer.poll_fill(cx, server, FIRST_READ_BYTES) {
                    Poll::Ready(Ok(0)) => return Poll::Ready(Err(exchange.closed(None))),
                    Poll::Ready(Ok(_)) => exchange.got_any = true,
                    Poll::Ready(Err(e)) => return Poll::Ready(Err(exchange.closed(Some(e)))),
                    Poll::Pending => break,
                }
            }
            if exchange.sent {
                down.watch(cx).map_err(NoResponse::Client)?;
            }
            ready!(down.timer.poll_expired(cx));
            Poll::Ready(Err(if exchange.sent || request.waits_for_sink {
                NoResponse::TimedOut
            } else {
                NoResponse::Client(Error::BodyTimeout)
            }))
        })
        .await?;
        if !response.is_interim() {
            return Ok(());
        }
        if response.status == 101 {
            // No upgrade is passed on, so nobody asked for this.
            return Err(NoResponse::Bad(Refusal::Malformed("101 Switching Protocols that nobody asked for")));
        }
        scan = Scan::default();
        if request_head.version == Version::Http11 {
            let mut out = Vec::new();
            headers::write_interim(response, &mut out);
            let written = tokio::time::timeout(patience.request_body, down.stream.write_all(&out)).await;
            if !matches!(written, Ok(Ok(()))) {
                return Err(NoResponse::Client(Error::ClientGone));
            }
        }
    }
}

/// How far the sending half has come.
struct Exchange {
    sent: bool,
    /// The server takes no more of the request. It may have answered already, so its response is still waited for.
    sink_failed: Option<io::Error>,
    got_any: bool,
    /// The time, for the first poll; later ones read the clock.
    now: Option<Instant>,
}

impl Exchange {
    fn poll_send(
        &mut self,
        cx: &mut std::task::Context<'_>,
        down: &mut Downstream,
        server: &mut TcpStream,
        request: &mut Pump,
        patience: Patience,
    ) -> Result<(), NoResponse> {
        if self.sent || self.sink_failed.is_some() {
            return Ok(());
        }
        let polled = request.poll(cx, &mut down.stream, &mut down.buffer, server);
        let progressed = std::mem::take(&mut request.progressed);
        let known = self.now.take();
        let now = || known.unwrap_or_else(Instant::now);
        match polled {
            Poll::Ready(Ok(())) => {
                self.sent = true;
                down.timer.set(now() + patience.response);
            }
            Poll::Ready(Err(PumpError::SinkFailed(e))) => {
                self.sink_failed = Some(e);
                down.timer.set(now() + patience.response);
            }
            Poll::Ready(Err(e)) => return Err(NoResponse::Client(client_error(&e))),
            Poll::Pending if progressed => down.timer.set(now() + patience.request_body),
            Poll::Pending => {}
        }
        Ok(())
    }

    fn closed(&mut self, how: Option<io::Error>) -> NoResponse {
        if self.got_any { NoResponse::Cut } else { NoResponse::Closed(self.sink_failed.take().or(how)) }
    }
}

/// What a failure of the request's own side means.
pub fn client_error(e: &PumpError) -> Error {
    match e {
        PumpError::SourceFailed(_) | PumpError::SourceEnded | PumpError::SinkFailed(_) => Error::ClientGone,
        PumpError::Malformed(text) => Error::Body(text),
        PumpError::TooLarge => Error::BodyTooLarge,
    }
}

impl From<io::Error> for ConnectError {
    fn from(e: io::Error) -> Self {
        use rustix::io::Errno;
        let os_error = e.raw_os_error();
        let kind = match os_error.map(Errno::from_raw_os_error) {
            // What the proxy itself has run out of.
            Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM | Errno::ADDRNOTAVAIL) => {
                wire::FAILURE_LOCAL
            }
            Some(Errno::TIMEDOUT) => wire::FAILURE_CONNECT_TIMEOUT,
            _ => wire::FAILURE_CONNECT,
        };
        let text = match e.kind() {
            io::ErrorKind::ConnectionRefused => "connection refused".into(),
            _ => e.to_string(),
        };
        Self { kind, os_error, text }
    }
}
