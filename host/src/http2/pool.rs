//! HTTP/2 connections to one endpoint, shared by the requests of one thread.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::SendRequest;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;

use super::client::ClientStream;
use super::{CONNECTION_WINDOW, SEND_BUFFER, STREAM_WINDOW};
use crate::resolve::Addresses;
use crate::stream::Stream;
use crate::upstream::ConnectError;

/// Header list of a response; what is larger is refused by its stream alone.
const MAX_HEADER_LIST: u32 = 64 * 1024;
/// A server that acknowledges nothing for so long is gone: what gRPC's libraries wait. Many requests share its connection,
/// and would each learn it by their own time-outs.
const SILENCE: Duration = Duration::from_secs(20);

/// The connections of one thread to one endpoint.
#[derive(Debug, Default)]
pub struct Connections {
    open: RefCell<Vec<Rc<Connection>>>,
    /// The one that is being made.
    attempt: RefCell<Option<Rc<Attempt>>>,
    /// The last one that was made turned out to speak HTTP/2.
    is_known: Cell<bool>,
}

#[derive(Debug)]
struct Connection {
    sender: RefCell<SendRequest<Bytes>>,
    n_streams: Cell<usize>,
    /// Nothing more is begun on it.
    is_over: Cell<bool>,
    idle_since: Cell<Instant>,
    is_secure: bool,
    /// Where it goes; `None` for a Unix socket.
    peer: Option<SocketAddr>,
    n_reads: Rc<Cell<u64>>,
}

/// A connection that counts how often something was read of it.
struct Heard {
    stream: Stream,
    n_reads: Rc<Cell<u64>>,
}

/// A connection that is being made, for all who wait for it.
#[derive(Debug, Default)]
struct Attempt {
    done: Notify,
    /// Those who wait, with the one who makes it.
    n_waiting: Cell<usize>,
    failed: RefCell<Option<ConnectError>>,
}

/// What to do for a stream.
#[derive(Debug)]
pub enum Turn<'a> {
    /// Make a connection.
    Connect(Making<'a>),
    /// The connection that was waited for failed.
    Failed(ConnectError),
    /// Look again.
    Again,
}

/// Somebody makes a connection, and others may wait for it; whatever becomes of it, they hear.
#[derive(Debug)]
pub struct Making<'a> {
    connections: &'a Connections,
    attempt: Rc<Attempt>,
}

/// One stream's place on a connection, given up when dropped.
#[derive(Debug)]
pub struct Lease(Rc<Connection>);

impl Connections {
    /// A stream on a connection that has room for it.
    pub fn take(&self, max_streams: usize) -> Option<ClientStream> {
        let open = self.open.borrow();
        let has_room = |connection: &&Rc<Connection>| {
            let max = max_streams.min(connection.sender.borrow().current_max_send_streams());
            !connection.is_over() && connection.n_streams.get() < max
        };
        open.iter().find(has_room).map(|connection| ClientStream::new(Lease::new(connection)))
    }

    /// Whether the server is known to speak HTTP/2, so that it is worth waiting for somebody else's connection.
    pub fn is_known(&self) -> bool {
        self.is_known.get()
    }

    /// Waits for the connection that is being made, or has the caller make one.
    pub async fn turn(&self, max_streams: usize) -> Turn<'_> {
        let attempt = self.attempt.borrow().clone();
        match attempt.filter(|attempt| attempt.n_waiting.get() < max_streams) {
            None => {
                let attempt = Rc::new(Attempt::default());
                attempt.n_waiting.set(1);
                *self.attempt.borrow_mut() = Some(Rc::clone(&attempt));
                Turn::Connect(Making { connections: self, attempt })
            }
            Some(attempt) => {
                attempt.n_waiting.set(attempt.n_waiting.get() + 1);
                // Nothing is lost between: all is of one thread, and this is polled before anybody else runs.
                attempt.done.notified().await;
                let failed = attempt.failed.borrow();
                failed.as_ref().map_or(Turn::Again, |e| Turn::Failed(e.clone()))
            }
        }
    }

    /// Begins HTTP/2 on a connection, and takes its first stream.
    ///
    /// # Errors
    /// It ended at once.
    pub async fn begin(&self, stream: Stream) -> Result<ClientStream, h2::Error> {
        let is_secure = stream.is_secure();
        let peer = stream.peer_addr().ok();
        stream.notice_death(SILENCE);
        let n_reads = Rc::new(Cell::new(0));
        let stream = Heard { stream, n_reads: Rc::clone(&n_reads) };
        let mut builder = h2::client::Builder::new();
        builder
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buffer_size(SEND_BUFFER)
            .max_header_list_size(MAX_HEADER_LIST)
            .enable_push(false);
        let (sender, driver) = builder.handshake(stream).await?;
        let connection = Rc::new(Connection {
            sender: RefCell::new(sender),
            n_streams: Cell::new(0),
            is_over: Cell::new(false),
            idle_since: Cell::new(Instant::now()),
            is_secure,
            peer,
            n_reads,
        });
        let first = ClientStream::new(Lease::new(&connection));
        self.open.borrow_mut().push(Rc::clone(&connection));
        self.is_known.set(true);
        let weak = Rc::downgrade(&connection);
        tokio::task::spawn_local(async move {
            // Its streams say what went wrong.
            let _ = driver.await;
            if let Some(connection) = weak.upgrade() {
                connection.is_over.set(true);
            }
        });
        Ok(first)
    }

    /// Drops connections that are over, were idle for too long, or go to none of these addresses; streams that are open on
    /// them go on.
    pub fn sweep(&self, addresses: &Addresses, now: Instant, timeout: Duration) {
        self.open.borrow_mut().retain(|connection| {
            let is_idle = connection.n_streams.get() == 0;
            let expired = now.saturating_duration_since(connection.idle_since.get()) >= timeout;
            let goes_on = addresses.still_contain(connection.peer);
            goes_on && !(connection.is_over() || is_idle && expired)
        });
    }

    /// Drops all; streams that are open go on.
    pub fn clear(&self) {
        self.open.borrow_mut().clear();
    }
}

impl Connection {
    /// Whether nothing more can be begun on it.
    fn is_over(&self) -> bool {
        // Never pending for a handle that has no request of its own waiting.
        let given_up = || self.sender.borrow_mut().poll_ready(&mut Context::from_waker(Waker::noop()));
        if !self.is_over.get() && matches!(given_up(), Poll::Ready(Err(_))) {
            self.is_over.set(true);
        }
        self.is_over.get()
    }
}

impl Making<'_> {
    /// It could not be made.
    pub fn failed(&self, e: &ConnectError) {
        *self.attempt.failed.borrow_mut() = Some(e.clone());
    }
}

impl Drop for Making<'_> {
    fn drop(&mut self) {
        let mut attempt = self.connections.attempt.borrow_mut();
        if attempt.as_ref().is_some_and(|attempt| Rc::ptr_eq(attempt, &self.attempt)) {
            *attempt = None;
        }
        self.attempt.done.notify_waiters();
    }
}

impl Lease {
    fn new(connection: &Rc<Connection>) -> Self {
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

    /// Nothing more is to be begun on this connection.
    pub(super) fn give_up(&self) {
        self.0.is_over.set(true);
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

impl AsyncRead for Heard {
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

impl AsyncWrite for Heard {
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
