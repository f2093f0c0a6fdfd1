//! HTTP/2 connections to one endpoint, shared by the requests of one thread.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::SendRequest;
use tokio::sync::Notify;

use super::client::ClientStream;
use super::{CONNECTION_WINDOW, SEND_BUFFER, STREAM_WINDOW};
use crate::stream::Stream;
use crate::upstream::ConnectError;

/// Header list of a response; what is larger is refused by its stream alone.
const MAX_HEADER_LIST: u32 = 64 * 1024;

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
            !connection.is_over.get() && connection.n_streams.get() < max
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

    /// Drops connections that are over, or were idle for too long.
    pub fn sweep(&self, now: Instant, timeout: Duration) {
        self.open.borrow_mut().retain(|connection| {
            let is_idle = connection.n_streams.get() == 0;
            let expired = now.saturating_duration_since(connection.idle_since.get()) >= timeout;
            !(connection.is_over.get() || is_idle && expired)
        });
    }

    /// Drops all; streams that are open go on.
    pub fn clear(&self) {
        self.open.borrow_mut().clear();
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
