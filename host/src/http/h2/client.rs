//! HTTP/2 towards servers: one stream of a connection that a thread's requests share.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, SendStream};
use tokio::io::ReadBuf;

use super::connection::Lease;
use super::inbox::Inbox;
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
    body: Option<Inbox>,
    /// The response did not end with its head, and may go on.
    has_body: bool,
    /// What of the response's head was not read yet.
    response_head: Bytes,
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

    /// Takes in what has come of the response's body, while its client takes nothing.
    pub fn absorb(&mut self, cx: &mut Context<'_>) {
        if let Some(body) = &mut self.body {
            body.absorb(cx);
        }
    }

    fn poll_body(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Some(body) = &mut self.body else {
            // The request was not sent yet, and who sends it will be woken.
            return if self.is_lost { Poll::Ready(Ok(())) } else { Poll::Pending };
        };
        let filled = buf.filled().len();
        ready!(body.poll_read(cx, buf))?;
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
        self.body = Some(Inbox::new(body));
        Poll::Ready(Ok(head.into()))
    }

    /// Lines of the trailers behind a body that was read to its end.
    pub fn trailers(&mut self) -> Vec<u8> {
        self.body.as_mut().map_or_else(Vec::new, |inbox| take_trailers(&mut inbox.body))
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

impl Drop for ClientStream {
    /// A request that is given up is no load for its server any more.
    fn drop(&mut self) {
        if let Some(send) = self.send.as_mut().filter(|_| !(self.sent_all && self.received_all)) {
            // Does nothing to a stream that has ended by itself.
            send.send_reset(Reason::CANCEL);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::pin::pin;

    use tokio::net::{TcpListener, TcpStream};
    use tokio::task::{LocalSet, spawn_local};

    use super::*;
    use crate::http::h2::STREAM_WINDOW;
    use crate::http::h2::connection::Connection;
    use crate::http::stream::Stream;

    const N_MESSAGES: usize = 20_000;

    /// Answers a request with messages of one byte each.
    async fn serve(socket: TcpStream) {
        let mut connection = h2::server::handshake(socket).await.expect("a client");
        let (_, mut respond) = connection.accept().await.expect("a request").expect("a good one");
        let mut body = respond.send_response(http::Response::new(()), false).expect("a head");
        body.reserve_capacity(N_MESSAGES);
        let mut allowed = 0;
        while allowed < N_MESSAGES {
            let capacity = poll_fn(|cx| {
                // Nothing moves unless the connection is driven.
                assert!(connection.poll_accept(cx).is_pending());
                body.poll_capacity(cx)
            });
            allowed = capacity.await.expect("an open stream").expect("an open stream");
        }
        for i in 0..N_MESSAGES {
            body.send_data(Bytes::from(vec![i as u8]), i + 1 == N_MESSAGES).expect("within the window");
        }
        while connection.accept().await.is_some() {}
    }

    /// In `h2` they cost 5 MB.
    #[tokio::test]
    async fn small_frames_that_nobody_reads_cost_what_they_carry() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let connect = TcpStream::connect(listener.local_addr().expect("bound"));
        let (ours, theirs) = tokio::join!(connect, listener.accept());
        let (ours, theirs) = (ours.expect("connected"), theirs.expect("accepted").0);
        let read = async {
            let server = spawn_local(serve(theirs));
            let begin = Connection::begin(Stream::from(ours), 1, Box::new(|_| ()));
            let connection = begin.await.expect("a connection");
            let mut stream = ClientStream::new(Lease::new(&connection));
            let head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
            let n = poll_fn(|cx| stream.poll_write(cx, head)).await.expect("sent");
            assert_eq!(n, head.len());
            stream.finish(b"");
            let mut memory = [0; 4096];
            let mut buf = ReadBuf::new(&mut memory[..1]);
            poll_fn(|cx| stream.poll_read(cx, &mut buf)).await.expect("the first byte of a head");
            let kept = poll_fn(|cx| {
                stream.absorb(cx);
                let (n_bytes, kept) = stream.body.as_ref().expect("a body").sizes();
                if n_bytes == N_MESSAGES { Poll::Ready(kept) } else { Poll::Pending }
            });
            assert!(kept.await <= STREAM_WINDOW as usize);
            let mut received = Vec::new();
            loop {
                let mut buf = ReadBuf::new(&mut memory);
                poll_fn(|cx| stream.poll_read(cx, &mut buf)).await.expect("read");
                if buf.filled().is_empty() {
                    break;
                }
                received.extend_from_slice(buf.filled());
            }
            let body = received.split_off(received.len() - N_MESSAGES);
            assert!(body.iter().enumerate().all(|(i, byte)| *byte == i as u8), "bytes are out of order");
            drop((stream, connection));
            server.await.expect("the server ends");
        };
        LocalSet::new().run_until(pin!(read)).await;
    }
}
