//! HTTP/2 connections to one endpoint, shared by the requests of one thread.

use std::cell::{Cell, RefCell};
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
use tokio::sync::Notify;

use super::client::ClientStream;
use super::{SEND_BUFFER, STREAM_WINDOW, connection_window};
use crate::cluster::names::Addresses;
use crate::http::stream::Stream;
use crate::serve::upstream::ConnectError;

/// Header list of a response; what is larger is refused by its stream alone.
const MAX_HEADER_LIST: u32 = 64 * 1024;
/// Concurrent streams of a connection whose server has not sent its SETTINGS yet. No server can send this number.
const UNTOLD: usize = usize::MAX - 1;
/// A server that acknowledges nothing for so long is gone: what gRPC's libraries wait. Many requests share its connection,
/// and would each learn it by their own time-outs.
const SILENCE: Duration = Duration::from_secs(20);

/// The connections of one thread to one endpoint.
#[derive(Debug, Default)]
pub struct Connections {
    open: RefCell<Vec<Rc<Connection>>>,
    making: Rc<Latest>,
    /// The last one that was made turned out to speak HTTP/2.
    is_known: Cell<bool>,
}

/// The connection that is being made, and what the one before it has told.
#[derive(Debug, Default)]
struct Latest {
    attempt: RefCell<Option<Rc<Attempt>>>,
    /// Concurrent streams that the server allowed on the latest connection of which it is known.
    max_streams: Cell<Option<usize>>,
}

#[derive(Debug)]
struct Connection {
    sender: RefCell<SendRequest<Bytes>>,
    n_streams: Cell<usize>,
    /// Until the server's SETTINGS have come, which say how many streams it allows: one is begun, and others wait.
    making: RefCell<Option<Making>>,
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
pub enum Turn {
    /// Make a connection.
    Connect(Making),
    /// The connection that was waited for failed.
    Failed(ConnectError),
    /// Look again.
    Again,
}

/// Somebody makes a connection, and others may wait until it takes their streams; whatever becomes of it, they hear.
#[derive(Debug)]
pub struct Making {
    latest: Rc<Latest>,
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
            !connection.is_over() && connection.n_streams.get() < max_streams.min(connection.max_streams())
        };
        open.iter().find(has_room).map(|connection| ClientStream::new(Lease::new(connection)))
    }

    /// Whether the server is known to speak HTTP/2, so that it is worth waiting for somebody else's connection.
    pub fn is_known(&self) -> bool {
        self.is_known.get()
    }

    /// The server has chosen HTTP/1.1: nobody waits for connections that carry one request each.
    pub fn chose_http1(&self) {
        self.is_known.set(false);
    }

    /// Waits for the connection that is being made, or has the caller make one. As many wait for one connection as it will
    /// take, by what the server said on the last one.
    pub async fn turn(&self, max_streams: usize) -> Turn {
        let attempt = self.making.attempt.borrow().clone();
        let max = self.making.max_streams.get().map_or(max_streams, |told| told.clamp(1, max_streams));
        match attempt.filter(|attempt| attempt.n_waiting.get() < max) {
            None => Turn::Connect(self.make()),
            Some(attempt) => {
                attempt.n_waiting.set(attempt.n_waiting.get() + 1);
                // Nothing is lost between: all is of one thread, and this is polled before anybody else runs.
                attempt.done.notified().await;
                let failed = attempt.failed.borrow();
                failed.as_ref().map_or(Turn::Again, |e| Turn::Failed(e.clone()))
            }
        }
    }

    fn make(&self) -> Making {
        let attempt = Rc::new(Attempt::default());
        attempt.n_waiting.set(1);
        *self.making.attempt.borrow_mut() = Some(Rc::clone(&attempt));
        Making { latest: Rc::clone(&self.making), attempt }
    }

    /// Begins HTTP/2 on a connection that is to carry up to `max_streams` at once, and takes its first stream. Whoever
    /// waits for `making` waits on until the server's SETTINGS are there.
    ///
    /// # Errors
    /// It ended at once.
    pub async fn begin(
        &self,
        stream: Stream,
        max_streams: usize,
        making: &mut Option<Making>,
    ) -> Result<ClientStream, h2::Error> {
        let is_secure = stream.is_secure();
        let peer = stream.peer_addr().ok();
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
            making: RefCell::new(Some(making.take().unwrap_or_else(|| self.make()))),
            is_over: Cell::new(false),
            idle_since: Cell::new(Instant::now()),
            is_secure,
            peer,
            n_reads,
        });
        let first = ClientStream::new(Lease::new(&connection));
        self.open.borrow_mut().push(Rc::clone(&connection));
        self.is_known.set(true);
        tokio::task::spawn_local(drive(driver, Rc::downgrade(&connection)));
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
                connection.told(Some(told));
            }
        }
        polled.map(|_| ())
    })
    .await;
    if let Some(connection) = connection.upgrade() {
        connection.is_over.set(true);
        connection.told(None);
    }
}

impl Connection {
    /// How many streams its server allows at once, as far as is known.
    fn max_streams(&self) -> usize {
        if self.making.borrow().is_some() { 1 } else { self.sender.borrow().current_max_send_streams() }
    }

    /// The server has said how many streams it allows, or never will.
    fn told(&self, max_streams: Option<usize>) {
        if let Some(making) = self.making.take()
            && max_streams.is_some()
        {
            making.latest.max_streams.set(max_streams);
        }
    }

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

impl Making {
    /// It could not be made.
    pub fn failed(&self, e: &ConnectError) {
        *self.attempt.failed.borrow_mut() = Some(e.clone());
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        let mut attempt = self.latest.attempt.borrow_mut();
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

    /// A response has come over it: a server that answers without having sent SETTINGS is not waited for.
    pub(super) fn is_answered(&self) {
        if self.0.making.borrow().is_some() {
            self.0.told(None);
        }
    }

    /// Nothing more is to be begun on this connection.
    pub(super) fn give_up(&self) {
        self.0.is_over.set(true);
        self.0.told(None);
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
