//! HTTP/2 connections to one endpoint, shared by the requests of one thread.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use lb_api::wire;
use tokio::sync::Notify;

use crate::cluster::dial::ConnectError;
use crate::cluster::names::Addresses;
use crate::http::h2::PingTerms;
use crate::http::h2::client::ClientStream;
use crate::http::h2::connection::{Connection, ConnectionReadiness, Lease};
use crate::http::stream::Stream;

/// The connections of one thread to one endpoint.
#[derive(Debug, Default)]
pub(crate) struct SharedConnections {
    open: RefCell<Vec<Rc<Connection>>>,
    making: Rc<Latest>,
    /// The last one that was made turned out to speak HTTP/2.
    is_known: Cell<bool>,
}

/// The connection that is being made, and what the one before it has shown.
#[derive(Debug, Default)]
struct Latest {
    attempt: RefCell<Option<Rc<PendingConnection>>>,
    /// Concurrent streams that the server allowed on the latest connection of which it is known.
    max_streams: Cell<Option<usize>>,
}

/// A connection that is being made, for all who wait for it.
#[derive(Debug, Default)]
struct PendingConnection {
    done: Notify,
    /// Those who wait, with the one who makes it.
    n_waiting: Cell<usize>,
    failed: RefCell<Option<ConnectError>>,
}

/// The next step for a stream.
#[derive(Debug)]
pub(crate) enum Turn {
    /// Make a connection.
    Connect(Making),
    /// The connection that was waited for failed.
    Failed(ConnectError),
    /// Look again.
    Again,
}

/// Somebody makes a connection, and others may wait until it takes their streams; whatever becomes of it, they hear.
#[derive(Debug)]
pub(crate) struct Making {
    latest: Rc<Latest>,
    attempt: Rc<PendingConnection>,
}

impl SharedConnections {
    /// A stream on a connection that has room for it.
    pub(crate) fn take(&self, max_streams: usize) -> Option<ClientStream> {
        let open = self.open.borrow();
        let has_room = |connection: &&Rc<Connection>| {
            !connection.is_over() && connection.n_streams() < max_streams.min(connection.max_streams())
        };
        open.iter().find(has_room).map(|connection| ClientStream::new(Lease::new(connection)))
    }

    /// Whether the server is known to speak HTTP/2, so that it is worth waiting for somebody else's connection.
    pub(crate) fn is_known(&self) -> bool {
        self.is_known.get()
    }

    /// The server has chosen HTTP/1.1: nobody waits for connections that carry one request each.
    pub(crate) fn chose_http1(&self) {
        self.is_known.set(false);
    }

    /// Waits for the connection that is being made, or has the caller make one. As many wait for one connection as it will
    /// take, by what the server said on the last one.
    pub(crate) async fn turn(&self, max_streams: usize) -> Turn {
        let attempt = self.making.attempt.borrow().clone();
        let max = self.making.max_streams.get().map_or(max_streams, |told| told.clamp(1, max_streams));
        match attempt.filter(|attempt| attempt.n_waiting.get() < max) {
            None => Turn::Connect(self.make()),
            Some(attempt) => {
                let _place = PendingPlace::new(&attempt);
                // Nothing is lost between: all is of one thread, and this is polled before anybody else runs.
                attempt.done.notified().await;
                let failed = attempt.failed.borrow();
                failed.as_ref().map_or(Turn::Again, |e| Turn::Failed(e.clone()))
            }
        }
    }

    fn make(&self) -> Making {
        let attempt = Rc::new(PendingConnection::default());
        attempt.n_waiting.set(1);
        *self.making.attempt.borrow_mut() = Some(Rc::clone(&attempt));
        Making { latest: Rc::clone(&self.making), attempt }
    }

    /// Begins HTTP/2 on a connection, and takes its first stream. Requests that wait for `making` wait on until the server's
    /// SETTINGS are there. Where the connection ends before, all of them fail.
    pub(crate) fn begin(
        &self,
        stream: Stream,
        ping: Option<PingTerms>,
        making: &mut Option<Making>,
    ) -> ClientStream {
        let making = making.take().unwrap_or_else(|| self.make());
        let on_readiness = move |readiness| {
            match readiness {
                ConnectionReadiness::Allows(max_streams) => making.latest.max_streams.set(Some(max_streams)),
                ConnectionReadiness::Unsaid => {}
                ConnectionReadiness::Ended => {
                    making.failed(&not_begun("connection ended before the server's SETTINGS"));
                }
            }
            // Dropped with this: those who wait look again, or hear of the failure.
        };
        let connection = Connection::begin(stream, ping, Box::new(on_readiness));
        let first = ClientStream::new(Lease::new(&connection));
        self.open.borrow_mut().push(connection);
        self.is_known.set(true);
        first
    }

    /// Drops connections that are over, were idle for too long, or go to none of these addresses; streams that are open on
    /// them go on.
    pub(crate) fn sweep(&self, addresses: &Addresses, now: Instant, timeout: Duration) {
        self.open.borrow_mut().retain(|connection| {
            let is_idle = connection.n_streams() == 0;
            let expired = now.saturating_duration_since(connection.idle_since()) >= timeout;
            let goes_on = addresses.still_contain(connection.peer());
            goes_on && !(connection.is_over() || is_idle && expired)
        });
    }

    /// Drops all, and what was learnt of the server: another one has this place.
    pub(crate) fn forget(&self) {
        self.clear();
        self.is_known.set(false);
        self.making.max_streams.set(None);
    }

    /// Drops all; streams that are open go on.
    pub(crate) fn clear(&self) {
        self.open.borrow_mut().clear();
    }
}

fn not_begun(why: &str) -> ConnectError {
    let text = format!("HTTP/2 does not begin: {why}");
    ConnectError { kind: wire::FAILURE_CONNECT, os_error: None, text }
}

/// The place of a request that waits for an attempt; given up when dropped.
struct PendingPlace<'a>(&'a PendingConnection);

impl<'a> PendingPlace<'a> {
    fn new(attempt: &'a PendingConnection) -> Self {
        attempt.n_waiting.set(attempt.n_waiting.get() + 1);
        Self(attempt)
    }
}

impl Drop for PendingPlace<'_> {
    fn drop(&mut self) {
        self.0.n_waiting.set(self.0.n_waiting.get() - 1);
    }
}

impl Making {
    /// It could not be made.
    pub(crate) fn failed(&self, e: &ConnectError) {
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

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Waker};

    use tokio::net::{TcpListener, TcpStream};
    use tokio::task::LocalSet;

    use super::*;

    /// Each of those that waited made a connection of its own, one after the other, and each failed.
    #[tokio::test]
    async fn all_that_wait_for_a_connection_hear_that_it_ended_before_it_could_be_used() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let connections = SharedConnections::default();
        let Turn::Connect(making) = connections.turn(10).await else { panic!("nobody makes one yet") };
        let connect = async {
            let connect = TcpStream::connect(listener.local_addr().expect("bound"));
            let (ours, theirs) = tokio::join!(connect, listener.accept());
            let first = connections.begin(ours.expect("connected").into(), None, &mut Some(making));
            drop(theirs);
            first
        };
        let waiting = [(); 3].map(|()| connections.turn(10));
        let [a, b, c] = waiting;
        let (a, b, c, _first) = LocalSet::new().run_until(async { tokio::join!(a, b, c, connect) }).await;
        for turn in [a, b, c] {
            let Turn::Failed(e) = turn else { panic!("{turn:?}") };
            assert!(e.text.starts_with("HTTP/2 does not begin: "), "{}", e.text);
        }
        assert!(matches!(connections.turn(10).await, Turn::Connect(_)), "the next request tries again");
    }

    #[tokio::test]
    async fn who_gives_up_waiting_leaves_its_place_to_another() {
        let connections = SharedConnections::default();
        let Turn::Connect(_making) = connections.turn(2).await else { panic!("nobody makes one yet") };
        let mut cx = Context::from_waker(Waker::noop());
        for _ in 0..3 {
            let turn = pin!(connections.turn(2));
            assert!(turn.poll(&mut cx).is_pending(), "it waits for the same connection");
        }
    }
}
