//! One HTTP/2 connection to a server, shared by the streams of one thread.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::{Future as _, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::SendRequest;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{SEND_BUFFER, STREAM_WINDOW, connection_window};

/// What a connection runs over.
pub trait Carrier: AsyncRead + AsyncWrite + Unpin + 'static {
    /// Whether it is encrypted.
    fn is_secure(&self) -> bool;

    /// Where it goes; `None` for a Unix socket.
    fn peer(&self) -> Option<SocketAddr>;

    /// Has the system end it when the peer acknowledges nothing for so long.
    fn notice_death(&self, silence: Duration);
}

/// What a new connection turns out to be good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionReadiness {
    /// The server has sent its SETTINGS, and allows so many streams at once.
    Allows(usize),
    /// The server has answered a request without having sent them.
    Unsaid,
    /// The connection ended, or was given up, before they came.
    Ended,
}

/// Called once, when it is known what a new connection is good for.
pub type OnReadiness = Box<dyn FnOnce(ConnectionReadiness)>;

/// Header list of a response; what is larger is refused by its stream alone.
const MAX_HEADER_LIST: u32 = 64 * 1024;

/// Concurrent streams of a connection whose server has not sent its SETTINGS yet. No server can send this number.
const UNTOLD: usize = usize::MAX - 1;

/// A server that acknowledges nothing for so long is gone: what gRPC's libraries wait. Many requests share its connection,
/// and would each learn it by their own time-outs.
const SILENCE: Duration = Duration::from_secs(20);

/// A connection; dropped by all who hold it, it goes on until its streams have ended.
pub struct Connection {
    sender: RefCell<SendRequest<Bytes>>,
    n_streams: Cell<usize>,
    /// Until the server's SETTINGS have come, which say how many streams it allows: one is begun, and others wait.
    awaited: RefCell<Option<OnReadiness>>,
    /// Nothing more is begun on it.
    is_over: Cell<bool>,
    idle_since: Cell<Instant>,
    is_secure: bool,
    /// Where it goes; `None` for a Unix socket.
    peer: Option<SocketAddr>,
    n_reads: Rc<Cell<u64>>,
}

/// A connection that counts how often something was read of it.
struct Heard<S> {
    stream: S,
    n_reads: Rc<Cell<u64>>,
}

/// One stream's place on a connection, given up when dropped.
#[derive(Debug)]
pub struct Lease(Rc<Connection>);

/// Drives a connection to its end; its streams say what went wrong.
async fn drive<T: AsyncRead + AsyncWrite + Unpin>(
    mut driver: h2::client::Connection<T, Bytes>,
    connection: Weak<Connection>,
) {
    let mut is_told = false;
    poll_fn(|cx| {
        let polled = Pin::new(&mut driver).poll(cx);
        if !is_told {
            let told = driver.max_concurrent_send_streams();
            is_told = told != UNTOLD;
            if let Some(connection) = connection.upgrade().filter(|_| is_told) {
                connection.tell(ConnectionReadiness::Allows(told));
            }
        }
        polled.map(|_| ())
    })
    .await;
    if let Some(connection) = connection.upgrade() {
        connection.is_over.set(true);
        connection.tell(ConnectionReadiness::Ended);
    }
}

impl Connection {
    /// Begins HTTP/2 on a connection that is to carry up to `max_streams` at once. Until `on_readiness` is called it takes one
    /// stream.
    ///
    /// # Errors
    /// It ended at once.
    pub async fn begin(
        stream: impl Carrier,
        max_streams: usize,
        on_readiness: OnReadiness,
    ) -> Result<Rc<Self>, h2::Error> {
        let (is_secure, peer) = (stream.is_secure(), stream.peer());
        stream.notice_death(SILENCE);
        let n_reads = Rc::new(Cell::new(0));
        let stream = Heard { stream, n_reads: Rc::clone(&n_reads) };
        let mut builder = h2::client::Builder::new();
        builder
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(connection_window(max_streams))
            .initial_max_send_streams(UNTOLD)
            .max_send_buffer_size(SEND_BUFFER)
            .max_header_list_size(MAX_HEADER_LIST)
            // Windows bound what a server's small frames cost, and to end the connection would break all streams.
            .data_frame_budget(usize::MAX)
            // What a server does wrong on its streams is theirs, however long the connection lasts.
            .max_local_error_reset_streams(None)
            // Each of them may be given up at once, with DATA for it on the way.
            .max_concurrent_reset_streams(max_streams)
            .enable_push(false);
        let (sender, driver) = builder.handshake(stream).await?;
        let connection = Rc::new(Connection {
            sender: RefCell::new(sender),
            n_streams: Cell::new(0),
            awaited: RefCell::new(Some(on_readiness)),
            is_over: Cell::new(false),
            idle_since: Cell::new(Instant::now()),
            is_secure,
            peer,
            n_reads,
        });
        tokio::task::spawn_local(drive(driver, Rc::downgrade(&connection)));
        Ok(connection)
    }

    /// Streams that are open on it.
    pub fn n_streams(&self) -> usize {
        self.n_streams.get()
    }

    /// Since when it has carried no stream; of meaning only while it carries none.
    pub fn idle_since(&self) -> Instant {
        self.idle_since.get()
    }

    /// Where it goes; `None` for a Unix socket.
    pub fn peer(&self) -> Option<SocketAddr> {
        self.peer
    }

    /// How many streams its server allows at once, as far as is known.
    pub fn max_streams(&self) -> usize {
        if self.awaited.borrow().is_some() { 1 } else { self.sender.borrow().current_max_send_streams() }
    }

    fn tell(&self, readiness: ConnectionReadiness) {
        if let Some(on_readiness) = self.awaited.take() {
            on_readiness(readiness);
        }
    }

    /// Whether nothing more can be begun on it.
    pub fn is_over(&self) -> bool {
        // Never pending for a handle that has no request of its own waiting.
        let given_up = || self.sender.borrow_mut().poll_ready(&mut Context::from_waker(Waker::noop()));
        if !self.is_over.get() && matches!(given_up(), Poll::Ready(Err(_))) {
            self.is_over.set(true);
        }
        self.is_over.get()
    }
}

impl Lease {
    /// One more on this connection.
    pub fn new(connection: &Rc<Connection>) -> Self {
        connection.n_streams.set(connection.n_streams.get() + 1);
        Self(Rc::clone(connection))
    }

    pub(super) fn sender(&self) -> SendRequest<Bytes> {
        self.0.sender.borrow().clone()
    }

    pub(super) fn is_secure(&self) -> bool {
        self.0.is_secure
    }

    /// How often something has come over the connection.
    pub(super) fn n_reads(&self) -> u64 {
        self.0.n_reads.get()
    }

    /// A response has come over it: a server that answers without having sent SETTINGS is not waited for.
    pub(super) fn is_answered(&self) {
        self.0.tell(ConnectionReadiness::Unsaid);
    }

    /// Nothing more is to be begun on this connection.
    pub(super) fn give_up(&self) {
        self.0.is_over.set(true);
        self.0.tell(ConnectionReadiness::Ended);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let left = self.0.n_streams.get() - 1;
        self.0.n_streams.set(left);
        if left == 0 {
            self.0.idle_since.set(Instant::now());
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Heard<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        if polled.is_ready() {
            self.n_reads.set(self.n_reads.get() + 1);
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Heard<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("peer", &self.peer)
            .field("n_streams", &self.n_streams)
            .finish_non_exhaustive()
    }
}
