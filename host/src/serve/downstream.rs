//! One client's connection: requests one after the other, time-outs, and next to no memory in between.
//!
//! What a request needs (buffers, heads, the state of everything that waits) lives in `requests`, in a future that
//! exists only while the connection is busy. A connection that was idle for `LINGER` waits as a socket and a timer.

use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::AsyncWrite;
use tokio::net::TcpStream;

use crate::http::h1::buffer::Buffer;
use crate::http::h1::head::PREFACE_HEAD;
use crate::http::h1::head::{HeadLimits, Refusal, RequestHead, Scan};
use crate::http::stream::Stream;
use crate::net::address::Peer;
use crate::net::linger::{Ending as _, Linger};
use crate::net::timer::Timer;
use crate::serve::drain::{Idle, Phase};
use crate::serve::error::Error;
use crate::serve::forward::{self, Memory};
use crate::serve::http2::{self, Client};
use crate::serve::thread::Thread;

/// An idle connection keeps its request memory for this long, so that a busy client does not pay for giving it back.
const LINGER: Duration = Duration::from_secs(1);
/// What a connection without a request yet gets for it, from its beginning, while a worker ends.
pub const FIRST_REQUEST_GRACE: Duration = Duration::from_millis(500);

/// One client's connection.
#[derive(Debug)]
pub struct Downstream {
    /// The connection.
    pub stream: Stream,
    /// The client.
    pub peer: Peer,
    /// What was read and not used.
    pub buffer: Buffer,
    /// Header lines that say whose certificate the client has shown.
    pub identity: Option<Rc<[u8]>>,
    /// The connection's one timer.
    pub timer: Timer,
    /// What a buffer for heads takes.
    head_bytes: usize,
    /// The client has ended its half of the connection; it may still wait for a response.
    pub read_closed: bool,
    /// What was taken from the buffer may be needed again: nothing is to be read over it.
    pub holds_body: bool,
    /// It ends by a reset.
    resets: bool,
    /// Our half has ended.
    has_ended: bool,
    /// HTTP/2 may be spoken over it, by who begins with that.
    pub may_be_h2: bool,
    /// Requests served.
    pub n_requests: u64,
    /// When the last one was, or the connection began.
    pub served_at: Instant,
}

/// How a run of requests ended.
enum Run {
    /// The client is silent.
    Idle,
    /// The connection is over.
    Closed,
    /// The client speaks HTTP/2.
    Http2,
}

/// What a wait for a request brought.
enum Wait {
    Head,
    Idle,
    Closed,
    Refused(Error),
}

/// What the requests of a connection use one after the other; lent by the thread while the connection is busy.
#[derive(Debug, Default)]
pub(crate) struct Active {
    head: RequestHead,
    memory: Memory,
}

/// Serves a connection until it ends. `place` is the connection's in [`Thread::join`].
///
/// This future is what an idle connection costs.
#[expect(clippy::manual_async_fn, reason = "an `async fn` would keep its arguments twice")]
pub fn serve(thread: Rc<Thread>, mut down: Downstream, place: impl Place) -> impl Future<Output = ()> {
    async move {
        poll_fn(|cx| {
            thread.set_waker(place.index(), cx.waker());
            Poll::Ready(())
        })
        .await;
        while down.is_readable(&thread).await {
            match Box::pin(requests(&thread, &mut down)).await {
                Run::Idle => {
                    down.buffer = Buffer::default();
                    down.timer.set(down.served_at + thread.config.timeouts.keepalive);
                }
                Run::Closed => break,
                Run::Http2 => return Box::pin(down.into_h2(thread, place)).await,
            }
        }
        // Without a word where none was asked for: a client that has sent nothing would take an answer for that to the
        // request that it is about to send.
        if down.stream.has_farewell() {
            Box::pin(down.end(thread.config.timeouts.body)).await;
        }
    }
}

/// Tells a client that speaks no TLS where it is to be spoken, in the words that it speaks.
pub async fn refuse_plain(thread: &Thread, socket: TcpStream, peer: Peer) {
    let mut down = Downstream::new(thread, socket.into(), peer);
    let end = forward::refuse(thread, &mut down, &mut Memory::default(), Error::PlainHttp, None).await;
    if end == forward::End::CloseUnread {
        down.discard(thread.config.timeouts.body).await;
    }
}

/// The request of an HTTP/2 stream.
#[derive(Clone, Copy, Debug)]
pub struct StreamRequest<'a> {
    /// Its head as one of HTTP/1.1.
    pub head: &'a [u8],
    /// Why it is none.
    pub malformed: Option<&'static str>,
    /// Whether a body follows.
    pub has_body: bool,
}

/// Serves the one request of an HTTP/2 stream.
pub async fn serve_stream(thread: &Thread, down: &mut Downstream, request: StreamRequest<'_>) {
    let mut active = thread.lend_active();
    let Active { head, memory } = &mut *active;
    head.clear();
    down.n_requests = 1;
    let limits = &thread.config.limits;
    let limits = HeadLimits { line_bytes: limits.request_line_bytes, headers: limits.headers };
    let taken = match request.malformed {
        None => head.take_h2(request.head, request.has_body, &limits),
        Some(reason) => Err(Refusal::Malformed(reason)),
    };
    down.prepare_buffer(thread.config.limits.head_bytes);
    match taken {
        Ok(()) => _ = forward::forward(thread, down, memory, head).await,
        Err(refusal) => _ = forward::refuse(thread, down, memory, Error::Head(refusal), Some(head)).await,
    }
    thread.return_active(active);
}

/// A connection's place among those of its thread, given up when dropped.
pub trait Place {
    /// Which it is; see [`Thread::join`].
    fn index(&self) -> usize;
}

async fn requests(thread: &Thread, down: &mut Downstream) -> Run {
    let mut active = thread.lend_active();
    let run = serve_requests(thread, down, &mut active).await;
    thread.return_active(active);
    run
}

async fn serve_requests(thread: &Thread, down: &mut Downstream, active: &mut Active) -> Run {
    let Active { head, memory } = active;
    loop {
        match down.next_head(thread, head).await {
            Wait::Head => {}
            Wait::Idle => return Run::Idle,
            Wait::Closed => return Run::Closed,
            Wait::Refused(_) if down.may_be_h2 && down.n_requests == 0 && head.is_h2_preface() => {
                return Run::Http2;
            }
            Wait::Refused(error) => {
                if forward::refuse(thread, down, memory, error, Some(head)).await == forward::End::CloseUnread
                {
                    down.discard(thread.config.timeouts.body).await;
                }
                return Run::Closed;
            }
        }
        down.n_requests += 1;
        match forward::forward(thread, down, memory, head).await {
            forward::End::Keep => {}
            forward::End::Close => return Run::Closed,
            forward::End::CloseUnread => {
                down.discard(thread.config.timeouts.body).await;
                return Run::Closed;
            }
        }
    }
}

impl Downstream {
    /// A connection that was just accepted.
    pub fn new(thread: &Thread, stream: Stream, peer: Peer) -> Self {
        let now = Instant::now();
        Self {
            stream,
            peer,
            buffer: Buffer::default(),
            identity: None,
            timer: Timer::new(now, thread.config.timeouts.request_head),
            head_bytes: 0,
            read_closed: false,
            holds_body: false,
            resets: false,
            has_ended: false,
            may_be_h2: false,
            n_requests: 0,
            served_at: now,
        }
    }

    /// Serves it as one of HTTP/2, of whose first bytes the head was taken already.
    async fn into_h2(self, thread: Rc<Thread>, place: impl Place) {
        let before = [PREFACE_HEAD, self.buffer.bytes()].concat().into_boxed_slice();
        let client = Client { peer: self.peer, identity: self.identity };
        http2::serve(thread, self.stream, before, client, place).await;
    }

    /// Waits until there is something to read; false when the connection's time is over instead.
    async fn is_readable(&mut self, thread: &Thread) -> bool {
        poll_fn(|cx| {
            if self.stream.poll_read_ready(cx).is_ready() {
                return Poll::Ready(true);
            }
            if self.ends(thread.phase()) {
                return Poll::Ready(false);
            }
            ready!(self.timer.poll_expired(cx));
            Poll::Ready(false)
        })
        .await
    }

    /// Whether an idle connection is to be closed now. One that was just accepted has its request on the way, most
    /// often, and gets a moment for it.
    fn ends(&mut self, phase: Phase) -> bool {
        match phase {
            Phase::Serving | Phase::Draining { idle: Idle::AnswerOneMore, .. } => false,
            Phase::Draining { idle: Idle::Close, .. } if self.n_requests == 0 => {
                self.timer.set(self.served_at + FIRST_REQUEST_GRACE);
                false
            }
            Phase::Draining { idle: Idle::Close, .. } | Phase::Stopped => true,
        }
    }

    /// Reads the next request's head.
    async fn next_head(&mut self, thread: &Thread, head: &mut RequestHead) -> Wait {
        let limits = &thread.config.limits;
        let head_limits = HeadLimits { line_bytes: limits.request_line_bytes, headers: limits.headers };
        self.prepare_buffer(limits.head_bytes);
        head.clear();
        let mut scan = Scan::default();
        let mut reading = self.has_begun();
        if reading || self.n_requests > 0 {
            let timeouts = &thread.config.timeouts;
            let patience = if reading { timeouts.request_head } else { LINGER.min(timeouts.keepalive) };
            self.timer.set(self.served_at + patience);
        }
        poll_fn(|cx| {
            loop {
                match head.read(&mut self.buffer, &mut scan, &head_limits) {
                    Ok(true) => return Poll::Ready(Wait::Head),
                    Ok(false) => {}
                    Err(refusal) => return Poll::Ready(Wait::Refused(Error::Head(refusal))),
                }
                if self.read_closed {
                    return Poll::Ready(Wait::Closed);
                }
                match self.buffer.poll_fill(cx, &mut self.stream, usize::MAX) {
                    Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Wait::Closed),
                    Poll::Ready(Ok(_)) if !reading && self.has_begun() => {
                        reading = true;
                        self.timer.set(Instant::now() + thread.config.timeouts.request_head);
                    }
                    Poll::Ready(Ok(_)) => {}
                    Poll::Pending => break,
                }
            }
            if !reading && self.ends(thread.phase()) {
                return Poll::Ready(Wait::Closed);
            }
            ready!(self.timer.poll_expired(cx));
            // The first request's time began with the connection. It can come here without a byte: a new socket may be
            // reported readable when it is not.
            Poll::Ready(match (reading, self.n_requests) {
                (true, _) => Wait::Refused(Error::HeadTimeout),
                (false, 0) => Wait::Closed,
                (false, _) => Wait::Idle,
            })
        })
        .await
    }

    /// Whether something of a request has come: empty lines are sent after bodies by some, and are none.
    fn has_begun(&self) -> bool {
        self.buffer.bytes().iter().any(|byte| !matches!(byte, b'\r' | b'\n'))
    }

    /// Makes the buffer one for heads, with what is waiting at its front.
    fn prepare_buffer(&mut self, head_bytes: usize) {
        self.head_bytes = head_bytes;
        if self.buffer.room() + self.buffer.range().end == head_bytes {
            self.buffer.compact();
            return;
        }
        // It grew for a body. What follows one of known length is not read with it, and `watch` reads no more than fits.
        let mut buffer = Buffer::for_head(head_bytes);
        let kept = buffer.append(self.buffer.bytes());
        debug_assert_eq!(kept, self.buffer.len(), "bytes of the client's stream are lost");
        self.buffer = buffer;
    }

    /// Looks whether the client is still there while a response is awaited. What it sends meanwhile is kept, as far as
    /// there is room; that it has ended its half means only that this is its last request.
    ///
    /// # Errors
    /// The connection is broken.
    pub fn watch(&mut self, cx: &mut Context<'_>) -> Result<(), Error> {
        if let Stream::H2Server(stream) = &mut self.stream {
            return if stream.poll_gone(cx).is_ready() { Err(Error::ClientGone) } else { Ok(()) };
        }
        while !self.read_closed {
            if self.buffer.is_empty() && !self.holds_body {
                self.buffer.restart_at(0);
            }
            // No more than a buffer for heads takes over.
            let limit = self.buffer.room().min(self.head_bytes.saturating_sub(self.buffer.len()));
            if limit == 0 {
                return if self.stream.has_failed() { Err(Error::ClientGone) } else { Ok(()) };
            }
            match self.buffer.poll_fill(cx, &mut self.stream, limit) {
                Poll::Ready(Ok(0)) => self.read_closed = true,
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(_)) => return Err(Error::ClientGone),
                Poll::Pending => return Ok(()),
            }
        }
        Ok(())
    }

    /// Whether the connection is reset when it is closed, as where its mere end would pass for the end of a body.
    pub fn reset_on_close(&mut self, reset: bool) {
        self.resets = reset;
        self.stream.set_reset_on_close(reset);
    }

    /// Whether the client has sent something that was not used, as far as that is known without asking the kernel.
    pub fn has_unread(&self) -> bool {
        !self.buffer.is_empty() || self.stream.has_unread()
    }

    /// Ends our half and reads on for a while, so that the client can read why it was refused. `patience` is for a client
    /// that takes nothing.
    async fn discard(&mut self, patience: Duration) {
        let mut linger = Linger::ending(patience);
        poll_fn(|cx| linger.poll(cx, &mut self.stream)).await;
        self.has_ended = true;
    }

    /// Ends our half, unless that was done or would pass for the end of a body that broke off. `patience` is for a client
    /// that takes nothing.
    async fn end(&mut self, patience: Duration) {
        if self.has_ended || self.resets {
            return;
        }
        self.timer.set(Instant::now() + patience);
        poll_fn(|cx| {
            // That it fails says that the client is gone.
            if Pin::new(&mut self.stream).poll_shutdown(cx).is_pending() {
                ready!(self.timer.poll_expired(cx));
                self.stream.set_reset_on_close(true);
            }
            Poll::Ready(())
        })
        .await;
    }
}
