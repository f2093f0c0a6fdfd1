//! HTTP/2 towards clients: one task for the connection, and one for each stream.

use std::cell::RefCell;
use std::future::{Future as _, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::Request;

use super::inbox::Inbox;
use super::watch::{self, Budget, Watched};
use super::{SEND_BUFFER, STREAM_WINDOW, connection_window, io_error, text};
use crate::http::stream::Stream;
use crate::net::address::Peer;
use crate::net::linger;
use crate::net::timer::Timer;
use crate::serve::downstream::{self, Downstream, Place};
use crate::serve::drain::{Idle, Phase};
use crate::serve::thread::Thread;

/// Requests that one connection may have under way. As nginx; more wait at the client.
const MAX_STREAMS: u32 = 128;
/// Streams that a client opened and reset before they were looked at; more end the connection (rapid reset). As many as its
/// budget pays for: a browser that leaves a page may take back all that it has open.
const PENDING_RESETS: usize = 100;
/// Streams that were reset here and are remembered, for frames that were on their way.
const REMEMBERED_RESETS: usize = MAX_STREAMS as usize;
/// What small DATA frames may cost until they are taken off `h2` (256 for each, less its length): more than what comes
/// between two turns of the streams, which take in all that is there (see [`Inbox`] and [`watch::PORTION`]).
const DATA_FRAME_BUDGET: usize = 4 << 20;
/// What a connection without requests gets to send its first, or to go, while a worker ends.
const GRACE: Duration = Duration::from_millis(500);

/// One stream, as a connection that carries one request and its response.
#[derive(Debug)]
pub struct ServerStream {
    body: Body,
    respond: SendResponse<Bytes>,
    /// Once the response's head was sent.
    send: Option<SendStream<Bytes>>,
    budget: Rc<Budget>,
    /// A response's head, as far as it was written.
    head: Vec<u8>,
    /// What is left of a body of known length.
    left: Option<u64>,
    is_head: bool,
    ended: bool,
    is_secure: bool,
    /// The proxy's end of its connection.
    local: Option<SocketAddr>,
}

/// The body of a request.
#[derive(Debug)]
enum Body {
    /// The request ended with its head.
    None(RecvStream),
    /// Shared with the stream's task, which takes in what comes.
    Coming(Rc<RefCell<Inbox>>),
}

/// Who speaks over a connection.
#[derive(Clone, Debug)]
pub struct Client {
    /// Its address.
    pub peer: Peer,
    /// Header lines that say whose certificate it has shown.
    pub identity: Option<Rc<[u8]>>,
}

/// Serves a connection until it ends. `before` is what was read of it already.
pub async fn serve(thread: Rc<Thread>, stream: Stream, before: Box<[u8]>, client: Client, place: impl Place) {
    let limits = &thread.config.limits;
    let budget = Rc::new(Budget::new(Instant::now()));
    let (is_secure, local) = (stream.is_secure(), stream.local_addr().ok());
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(connection_window(MAX_STREAMS as usize))
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(u32::try_from(limits.head_bytes).unwrap_or(u32::MAX))
        .max_send_buffer_size(SEND_BUFFER)
        .max_concurrent_reset_streams(REMEMBERED_RESETS)
        .max_pending_accept_reset_streams(PENDING_RESETS)
        .data_frame_budget(DATA_FRAME_BUDGET)
        // For as long as a connection lasts, and without a difference of costs: `watch` counts them.
        .max_local_error_reset_streams(None);
    let handshake = builder.handshake(Watched::new(stream, before, Rc::clone(&budget)));
    let Ok(Ok(connection)) = tokio::time::timeout(thread.config.timeouts.request_head, handshake).await
    else {
        return;
    };
    let now = Instant::now();
    let mut connection = Connection {
        timer: Timer::new(now, thread.config.timeouts.request_head),
        h2: connection,
        n_requests: 0,
        budget,
        is_secure,
        local,
        client,
        ending: None,
        was_busy: false,
        thread,
    };
    poll_fn(|cx| {
        connection.thread.set_waker(place.index(), cx.waker());
        Poll::Ready(())
    })
    .await;
    poll_fn(|cx| connection.poll(cx)).await;
}

struct Connection {
    thread: Rc<Thread>,
    h2: h2::server::Connection<Watched, Bytes>,
    timer: Timer,
    n_requests: u64,
    budget: Rc<Budget>,
    is_secure: bool,
    local: Option<SocketAddr>,
    client: Client,
    /// Why no further request is taken.
    ending: Option<Ending>,
    was_busy: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// The worker ends, or it was idle, or it has had all of its requests. What is under way goes on.
    Graceful,
    /// The client floods.
    Refused,
}

impl Connection {
    /// Ready when the connection is over.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.ending.is_none() && self.thread.phase().is_ending() {
            self.end_gracefully();
        }
        if self.thread.phase() == Phase::Stopped {
            return Poll::Ready(());
        }
        if self.budget.poll_spent(cx).is_ready() && self.ending != Some(Ending::Refused) {
            tracing::debug!(client = %self.client.peer, "too many frames beside requests: the connection is ended");
            self.ending = Some(Ending::Refused);
            // Where it does not even take that, nothing is read off either.
            self.timer.bring_forward(Instant::now() + linger::TIME);
            self.h2.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
        }
        loop {
            match self.h2.poll_accept(cx) {
                Poll::Ready(Some(Ok((request, respond)))) => self.begin(request, respond),
                Poll::Ready(Some(Err(e))) => {
                    tracing::debug!(client = %self.client.peer, "HTTP/2 connection ended: {e}");
                    return Poll::Ready(());
                }
                Poll::Ready(None) => return Poll::Ready(()),
                Poll::Pending => break,
            }
        }
        let is_busy = self.h2.has_streams();
        if is_busy {
            self.was_busy = true;
            return Poll::Pending;
        }
        if std::mem::take(&mut self.was_busy) {
            let patience = match self.ending {
                None => self.thread.config.timeouts.keepalive,
                Some(Ending::Graceful) => GRACE,
                Some(Ending::Refused) => linger::TIME,
            };
            self.timer.set(Instant::now() + patience);
        }
        ready!(self.timer.poll_expired(cx));
        if self.ending.is_some() {
            // It was told, and does not close.
            return Poll::Ready(());
        }
        self.end_gracefully();
        self.timer.set(Instant::now() + GRACE);
        // For GOAWAY to be sent.
        match self.h2.poll_closed(cx) {
            Poll::Ready(_) => Poll::Ready(()),
            Poll::Pending => self.timer.poll_expired(cx),
        }
    }

    fn end_gracefully(&mut self) {
        self.ending = Some(Ending::Graceful);
        self.h2.graceful_shutdown();
        let patience = match self.thread.phase() {
            Phase::Draining { idle: Idle::Close, .. } => GRACE,
            _ => self.thread.config.timeouts.keepalive,
        };
        if !self.h2.has_streams() {
            self.timer.set(Instant::now() + patience.min(GRACE));
        }
    }

    fn begin(&mut self, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
        self.n_requests += 1;
        if self.thread.config.limits.requests_per_connection.is_some_and(|max| self.n_requests >= max)
            && self.ending.is_none()
        {
            self.end_gracefully();
        }
        let (parts, mut body) = request.into_parts();
        if is_reset(&mut respond) {
            // It is no load for any server.
            if was_reset_here(&mut body) {
                self.budget.spend(watch::RESET_COST);
            }
            return;
        }
        let (thread, budget) = (Rc::clone(&self.thread), Rc::clone(&self.budget));
        let (client, is_secure, local) = (self.client.clone(), self.is_secure, self.local);
        // In a box, since the runtime moves a task's future several times.
        tokio::task::spawn_local(Box::pin(async move {
            let (body, inbox) = match body.is_end_stream() {
                true => (Body::None(body), None),
                false => {
                    let inbox = Rc::new(RefCell::new(Inbox::new(body)));
                    (Body::Coming(Rc::clone(&inbox)), Some(inbox))
                }
            };
            let stream = ServerStream {
                body,
                respond,
                send: None,
                budget,
                head: Vec::new(),
                left: None,
                is_head: parts.method == http::Method::HEAD,
                ended: false,
                is_secure,
                local,
            };
            let mut down = Downstream::new(&thread, Stream::H2Server(Box::new(stream)), client.peer);
            down.identity = client.identity;
            let mut head = Vec::with_capacity(512);
            let malformed = text::write_request(&parts, &mut head).err();
            drop(parts);
            let request = downstream::StreamRequest { head: &head, malformed, has_body: inbox.is_some() };
            {
                let mut serving = pin!(downstream::serve_stream(&thread, &mut down, request));
                poll_fn(|cx| {
                    if let Some(inbox) = &inbox {
                        inbox.borrow_mut().absorb(cx);
                    }
                    serving.as_mut().poll(cx)
                })
                .await;
            }
            if let Stream::H2Server(stream) = &mut down.stream {
                stream.settle();
            }
        }));
    }
}

/// Whether a stream was reset by either side, or lost its connection, before anybody looked at it.
fn is_reset(respond: &mut SendResponse<Bytes>) -> bool {
    respond.poll_reset(&mut Context::from_waker(Waker::noop())).is_ready()
}

/// Whether `h2` has reset a stream because of what its client did wrong on it. What is left of its body is lost.
fn was_reset_here(body: &mut RecvStream) -> bool {
    loop {
        match body.poll_data(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Some(Ok(_))) => {}
            Poll::Ready(Some(Err(e))) => return e.is_reset() && e.is_library(),
            Poll::Ready(None) | Poll::Pending => return false,
        }
    }
}

impl ServerStream {
    /// Whether its connection is encrypted.
    pub fn is_secure(&self) -> bool {
        self.is_secure
    }

    /// The proxy's end of its connection, where that is an IP address.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.local
    }

    /// Has the client's budget grow by a request that was answered, or pay for one that it had reset: a server may have had
    /// the work (CVE-2025-8671).
    fn settle(&mut self) {
        if self.ended {
            return self.budget.answered();
        }
        let was_reset = match &mut self.body {
            Body::None(body) => was_reset_here(body),
            Body::Coming(inbox) => was_reset_here(&mut inbox.borrow_mut().body),
        };
        if was_reset {
            self.budget.spend(watch::RESET_COST);
        }
    }

    /// As `AsyncRead` has it.
    ///
    /// # Errors
    /// The client has reset the stream.
    pub fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut tokio::io::ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.body {
            Body::None(body) => match ready!(body.poll_data(cx)) {
                Some(Err(e)) => Poll::Ready(Err(io_error(e))),
                Some(Ok(_)) | None => Poll::Ready(Ok(())),
            },
            Body::Coming(inbox) => inbox.borrow_mut().poll_read(cx, buf),
        }
    }

    /// Lines of the trailers behind a body that was read to its end.
    pub fn trailers(&mut self) -> Vec<u8> {
        match &mut self.body {
            Body::None(_) => Vec::new(),
            Body::Coming(inbox) => take_trailers(&mut inbox.borrow_mut().body),
        }
    }

    /// Takes a response: its head (and those of interim responses before it) as text, then its body.
    ///
    /// # Errors
    /// The client has reset the stream, or what was written is no response.
    pub fn poll_write(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.ended {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let Some(send) = &mut self.send else { return Poll::Ready(self.take_head(buf)) };
        let n = ready!(poll_send(send, cx, buf, &mut self.left))?;
        if n == buf.len() {
            self.budget.sent_whole();
        }
        self.ended = self.left == Some(0);
        Poll::Ready(Ok(n))
    }

    fn take_head(&mut self, buf: &[u8]) -> io::Result<usize> {
        // Mostly whole in one piece.
        let before = self.head.len();
        if before > 0 {
            self.head.extend_from_slice(buf);
        }
        let text = if before > 0 { &self.head[..] } else { buf };
        let read = text::read_response(text, self.is_head).map_err(io::Error::other)?;
        let Some(text::Head { message: response, ends, length, taken }) = read else {
            if before == 0 {
                self.head.extend_from_slice(buf);
            }
            return Ok(buf.len());
        };
        self.head = Vec::new();
        if response.status().is_informational() {
            self.respond.send_informational(response).map_err(io_error)?;
            return Ok(taken - before);
        }
        self.left = length;
        self.send = Some(self.respond.send_response(response, ends).map_err(io_error)?);
        self.ended = ends;
        Ok(taken - before)
    }

    /// The response is complete, with these lines as its trailers.
    pub fn finish(&mut self, trailers: &[u8]) {
        let Some(send) = self.send.as_mut().filter(|_| !self.ended) else { return };
        // A stream that the client has reset takes nothing, and nobody is left to care.
        if trailers.is_empty() {
            let _ = send.send_data(Bytes::new(), true);
        } else {
            let _ = send.send_trailers(text::read_trailers(trailers));
        }
        self.ended = true;
    }

    /// Ready when the client has reset the stream or lost its connection.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let reset = match &mut self.send {
            Some(send) => send.poll_reset(cx),
            None => self.respond.poll_reset(cx),
        };
        reset.map(|_| ())
    }
}

impl Drop for ServerStream {
    /// A response that breaks off is never taken for a whole one.
    fn drop(&mut self) {
        if !self.ended {
            match &mut self.send {
                Some(send) => send.send_reset(Reason::INTERNAL_ERROR),
                None => self.respond.send_reset(Reason::INTERNAL_ERROR),
            }
        }
    }
}

/// Sends of a body as much as the peer's window lets through; the last bytes of a known length end the stream.
pub(super) fn poll_send(
    send: &mut SendStream<Bytes>,
    cx: &mut Context<'_>,
    buf: &[u8],
    left: &mut Option<u64>,
) -> Poll<io::Result<usize>> {
    if buf.is_empty() {
        return Poll::Ready(Ok(0));
    }
    send.reserve_capacity(buf.len().min(SEND_BUFFER));
    let mut capacity = send.capacity();
    while capacity == 0 {
        capacity = match ready!(send.poll_capacity(cx)) {
            Some(Ok(n)) => n,
            Some(Err(e)) => return Poll::Ready(Err(io_error(e))),
            None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        };
    }
    let n = buf.len().min(capacity);
    if let Some(left) = left {
        *left = left.checked_sub(n as u64).ok_or_else(|| io::Error::other("more body than its length"))?;
    }
    send.send_data(Bytes::copy_from_slice(&buf[..n]), *left == Some(0)).map_err(io_error)?;
    Poll::Ready(Ok(n))
}

pub(super) fn take_trailers(body: &mut RecvStream) -> Vec<u8> {
    let mut lines = Vec::new();
    // After the end of the data they are there or there are none.
    if let Poll::Ready(Ok(Some(trailers))) = body.poll_trailers(&mut Context::from_waker(Waker::noop())) {
        text::write_trailers(&trailers, &mut lines);
    }
    lines
}
