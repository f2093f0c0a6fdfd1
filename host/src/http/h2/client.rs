//! HTTP/2 towards servers: one stream of a connection that a thread's requests share.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use tokio::io::ReadBuf;

use super::connection::Lease;
use super::server::{poll_send, take_trailers};
use super::{StreamError, io_error, text};

/// One stream, as a connection that carries one request and its response.
#[derive(Debug)]
pub struct ClientStream {
    lease: Lease,
    /// How often something had come over the connection before.
    n_reads: u64,
    /// Until the request's head was sent.
    begin: Option<SendRequest<Bytes>>,
    /// A request's head, as far as it was written.
    head: Vec<u8>,
    send: Option<SendStream<Bytes>>,
    left: Option<u64>,
    sent_all: bool,
    is_head: bool,
    response: Option<ResponseFuture>,
    body: Option<RecvStream>,
    /// The response did not end with its head, and may go on.
    has_body: bool,
    /// What of the response's head was not read yet.
    response_head: Bytes,
    /// What came of its body and was not read yet.
    chunk: Bytes,
    received_all: bool,
    /// The request could not be begun, so nothing comes back.
    is_lost: bool,
}

impl ClientStream {
    /// On a connection that has room for it.
    pub fn new(lease: Lease) -> Self {
        let (begin, n_reads) = (Some(lease.sender()), lease.n_reads());
        Self {
            lease,
            n_reads,
            begin,
            head: Vec::new(),
            send: None,
            left: None,
            sent_all: false,
            is_head: false,
            response: None,
            body: None,
            has_body: false,
            response_head: Bytes::new(),
            chunk: Bytes::new(),
            received_all: false,
            is_lost: false,
        }
    }

    /// Whether its connection is encrypted.
    pub fn is_secure(&self) -> bool {
        self.lease.is_secure()
    }

    /// Has the connection carry no further requests, if nothing at all has come over it since this stream was begun: its
    /// server may be gone without a word.
    pub fn give_up_if_silent(&self) {
        if self.lease.n_reads() == self.n_reads {
            self.lease.give_up();
        }
    }

    /// Takes a request: its head as text, then its body.
    ///
    /// # Errors
    /// The server has reset the stream or given up the connection, or what was written is no request.
    pub fn poll_write(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.sent_all {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if let Some(send) = &mut self.send {
            let n = ready!(poll_send(send, cx, buf, &mut self.left))?;
            self.sent_all = self.left == Some(0);
            return Poll::Ready(Ok(n));
        }
        if let Some(begin) = &mut self.begin
            && let Err(e) = ready!(begin.poll_ready(cx))
        {
            self.lease.give_up();
            self.is_lost = true;
            return Poll::Ready(Err(StreamError::Unprocessed(e).into()));
        }
        let taken = self.take_head(buf);
        self.is_lost = taken.is_err();
        Poll::Ready(taken)
    }

    fn take_head(&mut self, buf: &[u8]) -> io::Result<usize> {
        let before = self.head.len();
        if before > 0 {
            self.head.extend_from_slice(buf);
        }
        let text = if before > 0 { &self.head[..] } else { buf };
        let read = text::read_request(text, self.lease.is_secure()).map_err(StreamError::Unsendable)?;
        let Some(text::Head { message: request, ends, length, taken }) = read else {
            if before == 0 {
                self.head.extend_from_slice(buf);
            }
            return Ok(buf.len());
        };
        self.head = Vec::new();
        self.is_head = request.method() == http::Method::HEAD;
        self.left = length;
        let mut begin = self.begin.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let (response, send) = begin.send_request(request, ends).map_err(|e| {
            if !(e.is_io() || e.is_go_away() || e.is_reset()) {
                return StreamError::Unsendable("request cannot be sent by HTTP/2");
            }
            self.lease.give_up();
            StreamError::Unprocessed(e)
        })?;
        self.response = Some(response);
        self.send = Some(send);
        self.sent_all = ends;
        Ok(taken - before)
    }

    /// Reads the response: its head (and those of interim responses before it) as text, then its body.
    ///
    /// # Errors
    /// The server has reset the stream or given up the connection.
    pub fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.response_head.is_empty() && self.response.is_some() {
            // Never empty.
            self.response_head = ready!(self.poll_head(cx))?;
        }
        if self.response_head.is_empty() {
            return self.poll_body(cx, buf);
        }
        let n = self.response_head.len().min(buf.remaining());
        buf.put_slice(&self.response_head[..n]);
        self.response_head.advance(n);
        if self.response_head.is_empty() && self.has_body && buf.remaining() > 0 {
            // What has come of the body goes with its head, to the client in one packet. Its end, or an error, is said
            // again.
            let _ = self.poll_body(cx, buf);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_body(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Some(body) = &mut self.body else {
            // The request was not sent yet, and who sends it will be woken.
            return if self.is_lost { Poll::Ready(Ok(())) } else { Poll::Pending };
        };
        let filled = buf.filled().len();
        ready!(poll_read_body(body, &mut self.chunk, cx, buf))?;
        self.received_all |= buf.filled().len() == filled;
        Poll::Ready(Ok(()))
    }

    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        let Some(response) = &mut self.response else { return Poll::Pending };
        let mut head = Vec::with_capacity(512);
        if let Poll::Ready(Some(Ok(interim))) = response.poll_informational(cx) {
            text::write_response(interim.status(), interim.headers(), false, &mut head);
            return Poll::Ready(Ok(head.into()));
        }
        let response = match ready!(Pin::new(response).poll(cx)) {
            Ok(response) => response,
            Err(e) => {
                if e.is_go_away() || e.is_io() {
                    self.lease.give_up();
                }
                return Poll::Ready(Err(io_error(e)));
            }
        };
        self.lease.is_answered();
        self.response = None;
        let (parts, body) = response.into_parts();
        let may_have_body = !self.is_head && !matches!(parts.status.as_u16(), 204 | 304);
        let is_empty = body.is_end_stream();
        text::write_response(parts.status, &parts.headers, may_have_body && is_empty, &mut head);
        self.has_body = may_have_body && !is_empty;
        self.body = Some(body);
        Poll::Ready(Ok(head.into()))
    }

    /// Lines of the trailers behind a body that was read to its end.
    pub fn trailers(&mut self) -> Vec<u8> {
        self.body.as_mut().map_or_else(Vec::new, take_trailers)
    }

    /// The request is complete, with these lines as its trailers.
    pub fn finish(&mut self, trailers: &[u8]) {
        let Some(send) = self.send.as_mut().filter(|_| !self.sent_all) else { return };
        // A stream that the server has reset takes nothing; its response says why.
        if trailers.is_empty() {
            let _ = send.send_data(Bytes::new(), true);
        } else {
            let _ = send.send_trailers(text::read_trailers(trailers));
        }
        self.sent_all = true;
    }
}

/// Reads of a response's body; nothing where it has ended.
fn poll_read_body(
    body: &mut RecvStream,
    chunk: &mut Bytes,
    cx: &mut Context<'_>,
    buf: &mut ReadBuf<'_>,
) -> Poll<io::Result<()>> {
    while chunk.is_empty() {
        match ready!(body.poll_data(cx)) {
            Some(Ok(data)) => *chunk = data,
            Some(Err(e)) => return Poll::Ready(Err(io_error(e))),
            None => return Poll::Ready(Ok(())),
        }
    }
    let n = chunk.len().min(buf.remaining());
    buf.put_slice(&chunk[..n]);
    chunk.advance(n);
    // Fails only where the stream is gone, which the next read says.
    let _ = body.flow_control().release_capacity(n);
    Poll::Ready(Ok(()))
}

impl Drop for ClientStream {
    /// A request that is given up is no load for its server any more.
    fn drop(&mut self) {
        if let Some(send) = self.send.as_mut().filter(|_| !(self.sent_all && self.received_all)) {
            // Does nothing to a stream that has ended by itself.
            send.send_reset(Reason::CANCEL);
        }
    }
}
