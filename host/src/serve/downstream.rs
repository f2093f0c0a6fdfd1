//! One client's connection, as its requests use it.

use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::AsyncWrite;

use crate::http::h1::body::HEAD_ROOM;
use crate::http::h1::buffer::Buffer;
use crate::http::stream::Stream;
use crate::net::address::Peer;
use crate::net::linger::{Ending as _, Linger};
use crate::net::timer::Timer;
use crate::serve::error::Error;
use crate::serve::thread::Thread;

/// One client's connection.
#[derive(Debug)]
pub(crate) struct Downstream {
    /// The connection.
    pub(crate) stream: Stream,
    /// The client.
    pub(crate) peer: Peer,
    /// Bytes that were read and not used.
    pub(crate) buffer: Buffer,
    /// Header lines that name the client's certificate.
    pub(crate) identity: Option<Rc<[u8]>>,
    /// The connection's one timer.
    pub(crate) timer: Timer,
    /// Capacity of a buffer for heads.
    head_bytes: usize,
    /// The client has ended its half of the connection; it may still wait for a response.
    pub(crate) read_closed: bool,
    /// Bytes taken from the buffer may be needed again: they must not be overwritten.
    pub(crate) holds_body: bool,
    /// It ends by a reset.
    resets: bool,
    /// Our half has ended.
    has_ended: bool,
    /// Number of its listener in the configuration.
    pub(crate) listener: u16,
    /// The client may speak HTTP/2 without TLS (prior knowledge).
    pub(crate) may_be_h2: bool,
    /// Requests served.
    pub(crate) n_requests: u64,
    /// When the last request ended, or the connection began.
    pub(crate) served_at: Instant,
}

impl Downstream {
    /// A connection that was just accepted.
    pub(crate) fn new(thread: &Thread, stream: Stream, peer: Peer) -> Self {
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
            listener: 0,
            may_be_h2: false,
            n_requests: 0,
            served_at: now,
        }
    }

    /// Makes the buffer one for heads, with waiting bytes at its front.
    pub(super) fn prepare_buffer(&mut self, head_bytes: usize) {
        self.head_bytes = head_bytes;
        if self.buffer.room() + self.buffer.range().end == head_bytes {
            self.buffer.compact();
            return;
        }
        // It grew for a body. Bytes behind a body of known length are not read with it, and `watch` reads no more than fits.
        let mut buffer = Buffer::for_head(head_bytes);
        let kept = buffer.append(self.buffer.bytes());
        debug_assert_eq!(kept, self.buffer.len(), "bytes of the client's stream are lost");
        self.buffer = buffer;
    }

    /// Looks whether the client is still there while a response is awaited. Its bytes are kept meanwhile, as far as
    /// there is room; that it has ended its half means only that this is its last request.
    ///
    /// # Errors
    /// The connection is broken.
    pub(crate) fn watch(&mut self, cx: &mut Context<'_>) -> Result<(), Error> {
        if let Stream::H2Server(stream) = &mut self.stream {
            return if stream.poll_gone(cx).is_ready() { Err(Error::ClientGone) } else { Ok(()) };
        }
        while !self.read_closed {
            if self.buffer.is_empty() && !self.holds_body {
                // These bytes may be the rest of a chunked body, whose chunks are framed anew in place.
                self.buffer.restart_at(HEAD_ROOM);
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

    /// Sets whether the connection is reset when it is closed: where an ordinary end would be taken for the end of a body.
    pub(crate) fn reset_on_close(&mut self, reset: bool) {
        self.resets = reset;
        self.stream.set_reset_on_close(reset);
    }

    /// Whether the client has sent something that was not used, as far as that is known without asking the kernel.
    pub(crate) fn has_unread(&self) -> bool {
        !self.buffer.is_empty() || self.stream.has_unread()
    }

    /// Ends our half and reads on for a while, so that the client can read why it was refused. `patience` is for a client
    /// that takes nothing.
    pub(super) async fn discard(&mut self, patience: Duration) {
        let mut linger = Linger::ending(patience);
        poll_fn(|cx| linger.poll(cx, &mut self.stream)).await;
        self.has_ended = true;
    }

    /// Ends our half, unless that was done or would pass for the end of a body that broke off. `patience` is for a client
    /// that takes nothing.
    pub(super) async fn end(&mut self, patience: Duration) {
        if self.has_ended || self.resets {
            return;
        }
        self.timer.set(Instant::now() + patience);
        poll_fn(|cx| {
            // A failure means that the client is gone.
            if Pin::new(&mut self.stream).poll_shutdown(cx).is_pending() {
                ready!(self.timer.poll_expired(cx));
                self.stream.set_reset_on_close(true);
            }
            Poll::Ready(())
        })
        .await;
    }
}
