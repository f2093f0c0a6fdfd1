//! HTTP/2 towards servers: one stream of a connection that a thread's requests share.

use std::borrow::Cow;
use std::io;
use std::task::{Context, Poll, ready};

use tokio::io::ReadBuf;

use super::StreamError;
use super::connection::Lease;
use super::lines::{BodyLeft, HeadLines};
use super::session::{RequestLine, StreamFailure};
use super::switch::Switch;
use crate::http::h1::head::{Name, is_authority};

/// One stream, as a connection that carries one request and its response.
#[derive(Debug)]
pub struct ClientStream {
    lease: Lease,
    /// How often something had come over the connection before.
    n_reads: u64,
    /// Once the request was begun.
    slot: Option<usize>,
    /// A request's head, as far as it was written.
    head: Vec<u8>,
    /// The rest of a body of known length.
    left: BodyLeft,
    sent_all: bool,
    /// It is to become a tunnel, and its request has not been said to be complete: what follows belongs to the other protocol.
    is_switching: bool,
    is_answered: bool,
    /// The request could not be begun, so nothing comes back.
    is_lost: bool,
}

impl ClientStream {
    /// On a connection that has room for it.
    pub fn new(lease: Lease) -> Self {
        let n_reads = lease.n_reads();
        Self {
            lease,
            n_reads,
            slot: None,
            head: Vec::new(),
            left: BodyLeft::default(),
            sent_all: false,
            is_switching: false,
            is_answered: false,
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
        let Some(slot) = self.slot else {
            let polled = self.poll_head(cx, buf);
            self.is_lost |= matches!(polled, Poll::Ready(Err(_)));
            return polled;
        };
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let is_last = self.left.ends_with(buf)?;
        let sent = ready!(self.lease.session().poll_data(slot, cx, buf, is_last));
        let n = sent.map_err(|failure| self.error(failure))?;
        self.sent_all = self.left.sent(n);
        Poll::Ready(Ok(n))
    }

    fn poll_head(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        // Mostly whole in one piece.
        let before = self.head.len();
        if before > 0 {
            self.head.extend_from_slice(buf);
        }
        let text = if before > 0 { &self.head[..] } else { buf };
        let Some(head) = HeadLines::of(text) else {
            if before == 0 {
                self.head.extend_from_slice(buf);
            }
            return Poll::Ready(Ok(buf.len()));
        };
        let (taken, length) = (head.taken, head.length());
        let is_chunked = head.each().any(|(name, _)| Name::of(name) == Name::TransferEncoding);
        let switch = match Switch::asked_by(&head)
            .map(|switch| (switch, self.lease.session().poll_takes_tunnels(cx)))
        {
            Some((_, Poll::Pending)) => {
                self.head.truncate(before);
                return Poll::Pending;
            }
            Some((switch, Poll::Ready(true))) => Some(switch),
            // A server may ignore that it is asked for another protocol (RFC 9110 section 7.8), and this one is not asked.
            Some((_, Poll::Ready(false))) | None => None,
        };
        let ends = !is_chunked && length.unwrap_or(0) == 0 && switch.is_none();
        let begun = with_line(&head, self.lease.is_secure(), |line| {
            self.lease.session().poll_begin(cx, RequestLine { switch: switch.as_ref(), ..line }, &head, ends)
        });
        let polled = begun.map_err(StreamError::Unsendable)?;
        if polled.is_pending() {
            self.head.truncate(before);
        }
        let slot = ready!(polled).map_err(|failure| self.error(failure))?;
        (self.slot, self.left, self.sent_all) = (Some(slot), BodyLeft::of(length), ends);
        self.is_switching = switch.is_some();
        self.head = Vec::new();
        Poll::Ready(Ok(taken - before))
    }

    /// Reads the response: its head (and those of interim responses before it) as text, then its body.
    ///
    /// # Errors
    /// The server has reset the stream or given up the connection.
    pub fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Some(slot) = self.slot else {
            // The request was not sent yet, and who sends it will be woken.
            return if self.is_lost { Poll::Ready(Ok(())) } else { Poll::Pending };
        };
        let read = ready!(self.lease.session().poll_read(slot, cx, buf));
        read.map_err(|failure| self.error(failure))?;
        if !std::mem::replace(&mut self.is_answered, true) {
            self.lease.is_answered();
        }
        Poll::Ready(Ok(()))
    }

    /// Lines of the trailers behind a body that was read to its end.
    pub fn trailers(&mut self) -> Vec<u8> {
        self.slot.map_or_else(Vec::new, |slot| self.lease.session().take_trailers(slot))
    }

    /// The request is complete, with these lines as its trailers; and, the second time, a tunnel's bytes are.
    pub fn finish(&mut self, trailers: &[u8]) {
        if std::mem::take(&mut self.is_switching) {
            return;
        }
        if let Some(slot) = self.slot.filter(|_| !self.sent_all) {
            // A stream that the server has reset takes nothing; its response says why.
            self.lease.session().finish(slot, trailers);
            self.sent_all = true;
        }
    }

    fn error(&self, failure: StreamFailure) -> io::Error {
        match failure {
            StreamFailure::Reset(code) | StreamFailure::Refused(code) => StreamError::Reset(code).into(),
            StreamFailure::NotAccepted => StreamError::Unprocessed(failure).into(),
            StreamFailure::GoneAway(_) | StreamFailure::NotBegun(_) => {
                self.lease.give_up();
                StreamError::Unprocessed(failure).into()
            }
            StreamFailure::Lost(_) => {
                self.lease.give_up();
                failure.into()
            }
        }
    }
}

impl Drop for ClientStream {
    /// A request that is given up is no load for its server any more.
    fn drop(&mut self) {
        if let Some(slot) = self.slot {
            self.lease.session().release(slot);
        }
    }
}

/// Calls `begin` with the request line of a head of ours in the form of HTTP/2.
///
/// # Errors
/// HTTP/2 cannot express it.
fn with_line<T>(
    head: &HeadLines<'_>,
    is_secure: bool,
    begin: impl FnOnce(RequestLine<'_>) -> T,
) -> Result<T, &'static str> {
    let mut parts = head.first.splitn(3, |byte| *byte == b' ');
    let (Some(method), Some(target)) = (parts.next(), parts.next()) else {
        return Err("malformed request head");
    };
    let host = head.each().find(|(name, _)| Name::of(name) == Name::Host);
    let (_, authority) = host.ok_or("no Host")?;
    if !is_authority(authority) || authority.contains(&b'%') || !matches!(target, [b'/', ..] | b"*") {
        return Err("target cannot be sent by HTTP/2");
    }
    let scheme: &[u8] = if is_secure { b"https" } else { b"http" };
    Ok(begin(RequestLine { method, scheme, authority, path: &escaped(target), switch: None }))
}

/// A target without bytes that many servers of HTTP/2 refuse, though HTTP/1.1 lets them pass.
fn escaped(target: &[u8]) -> Cow<'_, [u8]> {
    let is_refused = |byte: &u8| matches!(byte, b'"' | b'#' | b'<' | b'>' | b'`');
    if !target.iter().any(is_refused) {
        return Cow::Borrowed(target);
    }
    let mut out = Vec::with_capacity(target.len() + 16);
    for byte in target {
        if is_refused(byte) {
            out.extend_from_slice(format!("%{byte:02X}").as_bytes());
        } else {
            out.push(*byte);
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::pin::pin;

    use bytes::Bytes;
    use tokio::net::{TcpListener, TcpStream};
    use tokio::task::{LocalSet, spawn_local};

    use super::*;
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
            let connection = Connection::begin(Stream::from(ours), None, Box::new(|_| ()));
            let mut stream = ClientStream::new(Lease::new(&connection));
            let head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
            let n = poll_fn(|cx| stream.poll_write(cx, head)).await.expect("sent");
            assert_eq!(n, head.len());
            stream.finish(b"");
            let mut memory = [0; 4096];
            let mut buf = ReadBuf::new(&mut memory[..1]);
            poll_fn(|cx| stream.poll_read(cx, &mut buf)).await.expect("the first byte of a head");
            let slot = stream.slot.expect("begun");
            let kept = loop {
                let (n_bytes, kept) = stream.lease.session().sizes(slot);
                if n_bytes >= N_MESSAGES {
                    break kept;
                }
                tokio::task::yield_now().await;
            };
            assert!(kept <= 4 * N_MESSAGES, "{kept}");
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

    fn line(text: &[u8]) -> Result<[String; 4], &'static str> {
        let head = HeadLines::of(text).expect("complete");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        with_line(&head, true, |line| [line.method, line.scheme, line.authority, line.path].map(text))
    }

    #[test]
    fn a_request_line_is_taken_apart_and_escaped() {
        let said = line(b"POST /{a}\"b?<c> HTTP/1.1\r\nX: y\r\nHost: s:1\r\n\r\n").expect("sendable");
        assert_eq!(said, ["POST", "https", "s:1", "/{a}%22b?%3Cc%3E"]);
        assert!(line(b"OPTIONS * HTTP/1.1\r\nHost: s\r\n\r\n").is_ok());
        assert!(line(b"GET / HTTP/1.1\r\nHost: a%20b\r\n\r\n").is_err());
        assert!(line(b"GET / HTTP/1.1\r\nHost: \r\n\r\n").is_err());
        assert!(line(b"GET / HTTP/1.1\r\nX: y\r\n\r\n").is_err());
    }
}
