//! HTTP/2 towards clients: one stream of a connection, as a connection that carries one request and its response.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};

use super::inbox::Inbox;
use super::watch::{self, Budget};
use super::{SEND_BUFFER, io_error, text};

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

/// What a stream needs to know of its request and connection.
#[derive(Debug)]
pub struct Terms {
    /// The request's method is HEAD.
    pub is_head: bool,
    /// The connection is encrypted.
    pub is_secure: bool,
    /// The proxy's end of the connection.
    pub local: Option<SocketAddr>,
    /// The client's budget for frames.
    pub budget: Rc<Budget>,
}

/// The incoming body of a request. The stream's task polls it, whatever else it waits for.
#[derive(Debug)]
pub struct Coming(Rc<RefCell<Inbox>>);

impl Coming {
    /// Takes in received frames, and wakes this task when more arrive.
    pub fn absorb(&self, cx: &mut Context<'_>) {
        self.0.borrow_mut().absorb(cx);
    }
}

/// Whether a stream was reset by either side, or lost its connection, before anybody looked at it.
pub fn is_reset(respond: &mut SendResponse<Bytes>) -> bool {
    respond.poll_reset(&mut Context::from_waker(Waker::noop())).is_ready()
}

/// Whether `h2` has reset a stream because of an error of its client. The rest of its body is dropped.
pub fn was_reset_here(body: &mut RecvStream) -> bool {
    loop {
        match body.poll_data(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Some(Ok(_))) => {}
            Poll::Ready(Some(Err(e))) => return e.is_reset() && e.is_library(),
            Poll::Ready(None) | Poll::Pending => return false,
        }
    }
}

impl ServerStream {
    /// The stream of a request, and its body unless it ended with its head.
    pub fn new(body: RecvStream, respond: SendResponse<Bytes>, terms: Terms) -> (Self, Option<Coming>) {
        let (body, coming) = match body.is_end_stream() {
            true => (Body::None(body), None),
            false => {
                let inbox = Rc::new(RefCell::new(Inbox::new(body)));
                (Body::Coming(Rc::clone(&inbox)), Some(Coming(inbox)))
            }
        };
        let Terms { is_head, is_secure, local, budget } = terms;
        let (send, head) = (None, Vec::new());
        (
            Self { body, respond, send, budget, head, left: None, is_head, ended: false, is_secure, local },
            coming,
        )
    }

    /// Whether its connection is encrypted.
    pub fn is_secure(&self) -> bool {
        self.is_secure
    }

    /// The proxy's end of its connection, where that is an IP address.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.local
    }

    /// Refunds the client's budget for an answered request, or charges it for a reset one, which may have cost a server work
    /// (CVE-2025-8671).
    pub fn settle(&mut self) {
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
    /// The client has reset the stream, or the bytes written are not a response.
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
        // If the client has reset the stream, this fails, and nobody needs it.
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
    /// Resets the stream of an incomplete response, so that it is not taken for a complete one.
    fn drop(&mut self) {
        if !self.ended {
            match &mut self.send {
                Some(send) => send.send_reset(Reason::INTERNAL_ERROR),
                None => self.respond.send_reset(Reason::INTERNAL_ERROR),
            }
        }
    }
}

/// Sends as much of a body as the peer's window allows; the last bytes of a known length end the stream.
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
