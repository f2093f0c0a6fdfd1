//! HTTP/2 connections to one endpoint, shared by the requests of one thread.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::cluster::dial::ConnectError;
use crate::cluster::names::Addresses;
use crate::http::h2::client::ClientStream;
use crate::http::h2::connection::{Connection, Lease};
use crate::http::stream::Stream;

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

impl Connections {
    /// A stream on a connection that has room for it.
    pub fn take(&self, max_streams: usize) -> Option<ClientStream> {
        let open = self.open.borrow();
        let has_room = |connection: &&Rc<Connection>| {
            !connection.is_over() && connection.n_streams() < max_streams.min(connection.max_streams())
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
        let making = making.take().unwrap_or_else(|| self.make());
        let told = move |max_streams: Option<usize>| {
            if max_streams.is_some() {
                making.latest.max_streams.set(max_streams);
            }
            // Dropped with this: those who wait look again.
        };
        let connection = Connection::begin(stream, max_streams, Box::new(told)).await?;
        let first = ClientStream::new(Lease::new(&connection));
        self.open.borrow_mut().push(Rc::clone(&connection));
        self.is_known.set(true);
        Ok(first)
    }

    /// Drops connections that are over, were idle for too long, or go to none of these addresses; streams that are open on
    /// them go on.
    pub fn sweep(&self, addresses: &Addresses, now: Instant, timeout: Duration) {
        self.open.borrow_mut().retain(|connection| {
            let is_idle = connection.n_streams() == 0;
            let expired = now.saturating_duration_since(connection.idle_since()) >= timeout;
            let goes_on = addresses.still_contain(connection.peer());
            goes_on && !(connection.is_over() || is_idle && expired)
        });
    }

    /// Drops all; streams that are open go on.
    pub fn clear(&self) {
        self.open.borrow_mut().clear();
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
