//! A peer's byte stream: a plain connection (TCP, or a Unix socket; see [`crate::net::unix`]), TLS over one, or one stream of an
//! HTTP/2 connection.
//!
//! An enum instead of a trait object, so that plain connections stay as cheap as the socket and can be spliced.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::net::RecvFlags;
use rustls::ProtocolVersion;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

use crate::http::h2::client::ClientStream;
use crate::http::h2::connection::Carrier;
use crate::http::h2::server::ServerStream;
use crate::net::linger::Ending;
use crate::tls::send_close_notify;

/// A byte stream to a client or a server.
#[derive(Debug)]
pub enum Stream {
    /// Clear text.
    Tcp(TcpStream),
    /// TLS after the handshake.
    Tls(Box<TlsStream<TcpStream>>),
    /// A client's stream.
    H2Server(Box<ServerStream>),
    /// A stream to a server.
    H2Client(Box<ClientStream>),
}

impl Stream {
    /// The plain socket, which can be spliced.
    #[inline]
    pub fn plain(&self) -> Option<&TcpStream> {
        match self {
            Self::Tcp(socket) => Some(socket),
            Self::Tls(_) | Self::H2Server(_) | Self::H2Client(_) => None,
        }
    }

    /// Whether it ends with a message of its own. Without close_notify, a TLS connection may have been truncated (RFC 8446 section
    /// 6.1).
    #[inline]
    pub fn has_farewell(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    /// Sends close_notify on a connection that is dropped next, without waiting.
    pub fn say_farewell(&mut self) {
        let Self::Tls(tls) = self else { return };
        match &mut **tls {
            TlsStream::Client(tls) => {
                let (socket, session) = tls.get_mut();
                send_close_notify(socket, session);
            }
            TlsStream::Server(tls) => {
                let (socket, session) = tls.get_mut();
                send_close_notify(socket, session);
            }
        }
    }

    /// Whether the reactor knows of a failed connection, such as a reset; a plain end is no failure. For callers that cannot read
    /// on. Streams of HTTP/2 report failures themselves.
    pub fn has_failed(&self) -> bool {
        self.socket().is_some_and(|socket| socket.try_io(Interest::ERROR, || Ok(())).is_ok())
    }

    /// Whether it is encrypted.
    pub fn is_secure(&self) -> bool {
        match self {
            Self::Tcp(_) => false,
            Self::Tls(_) => true,
            Self::H2Server(stream) => stream.is_secure(),
            Self::H2Client(stream) => stream.is_secure(),
        }
    }

    /// Version of TLS and the name that the client asked for, of a client's connection that is encrypted.
    pub fn tls(&self) -> Option<(&'static str, Option<&str>)> {
        match self {
            Self::Tls(tls) => match &**tls {
                TlsStream::Server(tls) => {
                    let session = tls.get_ref().1;
                    let version = match session.protocol_version()? {
                        ProtocolVersion::TLSv1_2 => "1.2",
                        ProtocolVersion::TLSv1_3 => "1.3",
                        _ => "unknown",
                    };
                    Some((version, session.server_name()))
                }
                TlsStream::Client(_) => None,
            },
            Self::H2Server(stream) => stream.tls(),
            Self::Tcp(_) | Self::H2Client(_) => None,
        }
    }

    /// Whether it is a stream of HTTP/2, whose bodies have no framing of their own, and whose end and trailers are separate.
    #[inline]
    pub fn is_h2(&self) -> bool {
        match self {
            Self::Tcp(_) | Self::Tls(_) => false,
            Self::H2Server(_) | Self::H2Client(_) => true,
        }
    }

    /// Ends the written message, with these lines as trailers. Does nothing in HTTP/1.1, where the bytes say so.
    #[inline]
    pub fn finish(&mut self, trailers: &[u8]) {
        match self {
            Self::Tcp(_) | Self::Tls(_) => {}
            Self::H2Server(stream) => stream.finish(trailers),
            Self::H2Client(stream) => stream.finish(trailers),
        }
    }

    /// How many bytes the connection of a client's stream has sent, if the stream waits until others have had their turn: a slow
    /// client takes something all the while, though nothing of this stream.
    pub fn turn(&self) -> Option<u64> {
        match self {
            Self::H2Server(stream) => stream.turn(),
            Self::Tcp(_) | Self::Tls(_) | Self::H2Client(_) => None,
        }
    }

    /// Lines of the trailers after the end of the stream.
    pub fn trailers(&mut self) -> Vec<u8> {
        match self {
            Self::Tcp(_) | Self::Tls(_) => Vec::new(),
            Self::H2Server(stream) => stream.trailers(),
            Self::H2Client(stream) => stream.trailers(),
        }
    }

    /// Ready when more bytes can be read.
    ///
    /// # Errors
    /// The connection's.
    #[inline]
    pub fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(socket) => socket.poll_read_ready(cx),
            // Bytes that came with the end of the handshake are no longer in the socket.
            Self::Tls(tls) if tls.get_ref().1.wants_read() => tls.get_ref().0.poll_read_ready(cx),
            Self::Tls(_) | Self::H2Server(_) | Self::H2Client(_) => Poll::Ready(Ok(())),
        }
    }

    /// Makes the kernel detect a dead peer: the connection fails if nothing is acknowledged for `silence`, neither data nor
    /// keepalive probes.
    pub fn notice_death(&self, silence: Duration) {
        let Some(socket) = self.socket().map(SockRef::from) else { return };
        let asks = TcpKeepalive::new().with_time(silence / 2).with_interval(silence / 8).with_retries(4);
        // Unix sockets have neither and need neither; without them a connection still works.
        let _ = socket.set_tcp_keepalive(&asks);
        let _ = socket.set_tcp_user_timeout(Some(silence));
    }

    /// Has an HTTP/2 connection to a server carry no further requests, if nothing has come over it since this stream began.
    pub fn give_up_if_silent(&self) {
        if let Self::H2Client(stream) = self {
            stream.give_up_if_silent();
        }
    }

    /// The proxy's own end of the connection, of a client's stream too.
    ///
    /// # Errors
    /// It is gone, or it is a Unix socket.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        if let Self::H2Server(stream) = self {
            return stream.local_addr().ok_or(io::ErrorKind::AddrNotAvailable.into());
        }
        self.socket().ok_or(io::ErrorKind::NotConnected)?.local_addr()
    }

    /// The peer's end of the connection.
    ///
    /// # Errors
    /// It is gone, it is no connection of its own, or a Unix socket.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.socket().ok_or(io::ErrorKind::NotConnected)?.peer_addr()
    }

    /// Takes one byte of what is there, and says whether there was one; for a connection that is not read any further.
    pub fn has_unread(&self) -> bool {
        self.socket().is_some_and(|socket| matches!(socket.try_read(&mut [0]), Ok(1)))
    }

    /// Whether nothing has come since all was read: neither the end of the connection nor bytes that nobody asked for.
    /// The socket answers "would block" by itself until the reactor has seen something.
    #[inline]
    pub fn is_quiet(&self) -> bool {
        let socket = match self {
            Self::Tcp(socket) => socket,
            // Nothing decrypted is left over.
            Self::Tls(tls) if tls.get_ref().1.wants_read() => tls.get_ref().0,
            Self::Tls(_) | Self::H2Server(_) | Self::H2Client(_) => return false,
        };
        matches!(socket.try_read(&mut [0]), Err(e) if e.kind() == io::ErrorKind::WouldBlock)
    }

    /// The same, asked of the kernel.
    pub fn is_quiet_now(&self) -> bool {
        self.socket().is_some_and(|socket| {
            let peeked = rustix::net::recv(socket, &mut [0_u8; 1], RecvFlags::PEEK | RecvFlags::DONTWAIT);
            matches!(peeked, Err(rustix::io::Errno::WOULDBLOCK))
        })
    }

    #[inline]
    /// The number of its descriptor, where it has one of its own.
    pub(crate) fn descriptor(&self) -> Option<RawFd> {
        self.socket().map(AsRawFd::as_raw_fd)
    }

    fn socket(&self) -> Option<&TcpStream> {
        match self {
            Self::Tcp(socket) => Some(socket),
            Self::Tls(tls) => Some(tls.get_ref().0),
            Self::H2Server(_) | Self::H2Client(_) => None,
        }
    }
}

impl AsyncRead for Stream {
    #[inline]
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Tcp(socket) => Pin::new(socket).poll_read(cx, buf),
            Self::Tls(tls) => Pin::new(&mut **tls).poll_read(cx, buf),
            Self::H2Server(stream) => stream.poll_read(cx, buf),
            Self::H2Client(stream) => stream.poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    #[inline]
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Tcp(socket) => Pin::new(socket).poll_write(cx, buf),
            Self::Tls(tls) => Pin::new(&mut **tls).poll_write(cx, buf),
            Self::H2Server(stream) => stream.poll_write(cx, buf),
            Self::H2Client(stream) => stream.poll_write(cx, buf),
        }
    }

    #[inline]
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Tcp(socket) => Pin::new(socket).poll_write_vectored(cx, bufs),
            Self::Tls(tls) => Pin::new(&mut **tls).poll_write_vectored(cx, bufs),
            Self::H2Server(_) | Self::H2Client(_) => {
                let first = bufs.iter().find(|buf| !buf.is_empty()).map_or(&[][..], |buf| &**buf);
                self.poll_write(cx, first)
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// When this is ready, all written bytes are in the socket; only TLS holds anything back. Streams are flushed by
    /// their connection's task.
    #[inline]
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Tcp(_) | Self::H2Server(_) | Self::H2Client(_) => Poll::Ready(Ok(())),
            Self::Tls(tls) => Pin::new(&mut **tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Tcp(socket) => Pin::new(socket).poll_shutdown(cx),
            Self::Tls(tls) => Pin::new(&mut **tls).poll_shutdown(cx),
            Self::H2Server(_) | Self::H2Client(_) => Poll::Ready(Ok(())),
        }
    }
}

impl Carrier for Stream {
    fn is_secure(&self) -> bool {
        self.is_secure()
    }

    fn peer(&self) -> Option<SocketAddr> {
        self.peer_addr().ok()
    }

    fn notice_death(&self, silence: Duration) {
        self.notice_death(silence);
    }
}

impl Ending for Stream {
    /// The bytes of TLS as they come: nothing is read behind them, and decrypting them would cost something.
    fn poll_discard(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tls(tls) => Pin::new(tls.get_mut().0).poll_read(cx, buf),
            stream => Pin::new(stream).poll_read(cx, buf),
        }
    }

    /// A stream of HTTP/2 always is, unless it was finished.
    fn set_reset_on_close(&self, reset: bool) {
        if let Some(socket) = self.socket() {
            // Where it fails the connection is gone already.
            let _ = SockRef::from(socket).set_linger(reset.then_some(Duration::ZERO));
        }
    }
}

impl From<TcpStream> for Stream {
    fn from(socket: TcpStream) -> Self {
        Self::Tcp(socket)
    }
}
