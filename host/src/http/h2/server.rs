//! HTTP/2 towards clients: one stream of a connection, as a connection that carries one request and its response.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::ReadBuf;

use super::lines::{BodyLeft, HeadLines};
use super::session::Session;

/// One stream, as a connection that carries one request and its response.
#[derive(Debug)]
pub struct ServerStream {
    session: Rc<RefCell<Session>>,
    slot: usize,
    /// A response's head, as far as it was written.
    head: Vec<u8>,
    /// The final head was sent.
    has_begun: bool,
    /// The rest of a body of known length.
    left: BodyLeft,
    /// The request's method is HEAD.
    is_head: bool,
    ended: bool,
    /// It asks to become a tunnel (RFC 8441).
    is_connect: bool,
    is_secure: bool,
    /// The proxy's end of its connection.
    local: Option<SocketAddr>,
    tls: Option<Rc<TlsOfConnection>>,
}

/// TLS of a connection, which all of its streams share.
#[derive(Debug)]
pub struct TlsOfConnection {
    /// `1.2` or `1.3`.
    pub version: &'static str,
    /// The name that the client asked for.
    pub name: Option<Box<str>>,
}

/// A stream's request and connection, as far as it needs them.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// The request's method is HEAD.
    pub is_head: bool,
    /// It asks to become a tunnel (extended CONNECT, RFC 8441).
    pub is_connect: bool,
    /// The connection is encrypted.
    pub is_secure: bool,
    /// The proxy's end of the connection.
    pub local: Option<SocketAddr>,
}

impl ServerStream {
    /// The stream of a request that was accepted; it stands at `slot`.
    pub(crate) fn new(session: Rc<RefCell<Session>>, slot: usize, terms: Terms) -> Self {
        let Terms { is_head, is_connect, is_secure, local } = terms;
        Self {
            session,
            slot,
            head: Vec::new(),
            has_begun: false,
            left: BodyLeft::default(),
            is_head,
            ended: false,
            is_connect,
            is_secure,
            local,
            tls: None,
        }
    }

    /// On a connection with this TLS.
    #[must_use]
    pub(crate) fn with_tls(mut self, tls: Option<Rc<TlsOfConnection>>) -> Self {
        self.tls = tls;
        self
    }

    /// Version of TLS and the name that the client asked for.
    pub fn tls(&self) -> Option<(&'static str, Option<&str>)> {
        self.tls.as_ref().map(|tls| (tls.version, tls.name.as_deref()))
    }

    /// Whether its connection is encrypted.
    pub fn is_secure(&self) -> bool {
        self.is_secure
    }

    /// The proxy's end of its connection, where that is an IP address.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.local
    }

    /// Reads the request's body; nothing at its end.
    ///
    /// # Errors
    /// The client has reset the stream.
    pub fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.session.borrow_mut().poll_read(self.slot, cx, buf).map_err(io::Error::from)
    }

    /// Lines of the trailers behind a body that was read to its end.
    pub fn trailers(&mut self) -> Vec<u8> {
        self.session.borrow_mut().take_trailers(self.slot)
    }

    /// Takes a response: its head (and those of interim responses before it) as text, then its body.
    ///
    /// # Errors
    /// The client has reset the stream, or the bytes written are not a response.
    pub fn poll_write(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.ended {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if !self.has_begun {
            return self.poll_head(cx, buf);
        }
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let is_last = self.left.ends_with(buf)?;
        let n = ready!(self.session.borrow_mut().poll_data(self.slot, cx, buf, is_last))?;
        self.ended = self.left.sent(n);
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
        let status = head.status().ok_or_else(|| io::Error::other("malformed response head"))?;
        // RFC 8441 section 4: in HTTP/2 a stream becomes a tunnel by success, and in HTTP/1.1 by 101 alone.
        let becomes_tunnel = self.is_connect && status == 101;
        if self.is_connect && matches!(status, 200..300) {
            return Poll::Ready(Err(io::Error::other("the server does not switch protocols")));
        }
        let status = if becomes_tunnel { 200 } else { status };
        let length = head.length().filter(|_| !becomes_tunnel);
        let is_final = status >= 200;
        let ends = is_final && (self.is_head || matches!(status, 204 | 304) || length == Some(0));
        let taken = head.taken;
        let polled = self.session.borrow_mut().poll_response(self.slot, cx, (status, &head), ends);
        if polled.is_pending() {
            self.head.truncate(before);
        }
        ready!(polled)?;
        self.head = Vec::new();
        if is_final {
            (self.has_begun, self.left, self.ended) = (true, BodyLeft::of(length), ends);
        }
        Poll::Ready(Ok(taken - before))
    }

    /// The response is complete, with these lines as its trailers.
    pub fn finish(&mut self, trailers: &[u8]) {
        if self.has_begun && !self.ended {
            self.session.borrow_mut().finish(self.slot, trailers);
            self.ended = true;
        }
    }

    /// How many bytes the connection has sent, if this stream waits until others have had their turn.
    pub fn turn(&self) -> Option<u64> {
        self.session.borrow_mut().turn(self.slot)
    }

    /// Ready when the client has reset the stream or lost its connection.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.session.borrow_mut().poll_gone(self.slot, cx)
    }
}

impl Drop for ServerStream {
    /// Resets the stream of an incomplete response, so that it is not taken for a complete one.
    fn drop(&mut self) {
        self.session.borrow_mut().release(self.slot);
    }
}
