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

    /// Makes the buffer one for heads, with what is waiting at its front.
    pub(super) fn prepare_buffer(&mut self, head_bytes: usize) {
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
                // What comes may be the rest of a chunked body, whose pieces are framed anew where they lie.
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
