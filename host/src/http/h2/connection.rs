//! One HTTP/2 connection to a server, shared by the streams of one thread.

use std::cell::{Cell, RefCell, RefMut};
use std::fmt;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite};

use super::driver::{ConnectionEnd, SessionSocket};
use super::message::FieldLimits;
use super::session::{PingTerms, Session, SessionTerms, Side};
use crate::http::h1::head::MAX_HEADERS;
use crate::net::timer::Timer;

/// The byte stream under a connection.
pub trait Carrier: AsyncRead + AsyncWrite + Unpin + 'static {
    /// Whether it is encrypted.
    fn is_secure(&self) -> bool;

    /// Where it goes; `None` for a Unix socket.
    fn peer(&self) -> Option<SocketAddr>;

    /// Has the system end it when the peer acknowledges nothing for so long.
    fn notice_death(&self, silence: Duration);
}

/// The use of a new connection, once it is known.
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
const MAX_HEADER_LIST: usize = 64 * 1024;

/// A server that acknowledges nothing for so long is gone: what gRPC's libraries wait. Many requests share its connection,
/// and would each learn it by their own time-outs.
const SILENCE: Duration = Duration::from_secs(20);

/// A connection; dropped by all who hold it, it goes on until its streams have ended.
pub struct Connection {
    session: Rc<RefCell<Session>>,
    n_streams: Cell<usize>,
    /// Until the server's SETTINGS have come, which say how many streams it allows: one is begun, and others wait.
    awaited: RefCell<Option<OnReadiness>>,
    /// Nothing more is begun on it.
    is_over: Cell<bool>,
    idle_since: Cell<Instant>,
    is_secure: bool,
    /// Where it goes; `None` for a Unix socket.
    peer: Option<SocketAddr>,
}

/// One stream's place on a connection, given up when dropped.
#[derive(Debug)]
pub struct Lease(Rc<Connection>);

/// Drives a connection to its end; its streams report errors.
struct Driver<S> {
    socket: SessionSocket<S>,
    session: Rc<RefCell<Session>>,
    connection: Weak<Connection>,
    timer: Timer,
    /// The server's SETTINGS have come.
    is_told: bool,
    /// All was said, and the socket is being closed.
    is_closing: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Driver<S> {
    /// Ready when the connection is over.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.is_closing {
                return Pin::new(self.socket.get_mut()).poll_shutdown(cx).map(|_| ());
            }
            let polled = self.socket.poll(cx, &self.session);
            self.tell();
            match polled {
                Poll::Ready(ConnectionEnd::Lost) => return Poll::Ready(()),
                Poll::Ready(ConnectionEnd::Said) => self.is_closing = true,
                Poll::Pending => {
                    let deadline = self.session.borrow().deadline();
                    let Some(deadline) = deadline else { return Poll::Pending };
                    self.timer.set(deadline);
                    if self.timer.poll_expired(cx).is_pending() {
                        return Poll::Pending;
                    }
                    self.session.borrow_mut().check_deadlines(Instant::now());
                }
            }
        }
    }

    fn tell(&mut self) {
        let allowed = self.session.borrow().peer_max_streams().filter(|_| !self.is_told);
        if let Some(allowed) = allowed {
            self.is_told = true;
            if let Some(connection) = self.connection.upgrade() {
                connection.tell(ConnectionReadiness::Allows(allowed as usize));
            }
        }
    }
}

impl Connection {
    /// Begins HTTP/2 on a connection. Until `on_readiness` is called it takes one stream. By `ping` a silent server is noticed.
    pub fn begin(stream: impl Carrier, ping: Option<PingTerms>, on_readiness: OnReadiness) -> Rc<Self> {
        let (is_secure, peer) = (stream.is_secure(), stream.peer());
        stream.notice_death(SILENCE);
        let now = Instant::now();
        let limits = FieldLimits { list_bytes: MAX_HEADER_LIST, fields: MAX_HEADERS };
        let terms = SessionTerms { side: Side::Client, max_streams: 0, limits, ping };
        let session = Rc::new(RefCell::new(Session::new(terms, now)));
        let connection = Rc::new(Self {
            session: Rc::clone(&session),
            n_streams: Cell::new(0),
            awaited: RefCell::new(Some(on_readiness)),
            is_over: Cell::new(false),
            idle_since: Cell::new(now),
            is_secure,
            peer,
        });
        let mut driver = Driver {
            socket: SessionSocket::new(stream, Vec::new()),
            session,
            connection: Rc::downgrade(&connection),
            timer: Timer::new(now, SILENCE),
            is_told: false,
            is_closing: false,
        };
        tokio::task::spawn_local(async move {
            poll_fn(|cx| driver.poll(cx)).await;
            driver.session.borrow_mut().lost("connection closed");
            if let Some(connection) = driver.connection.upgrade() {
                connection.is_over.set(true);
                connection.tell(ConnectionReadiness::Ended);
            }
        });
        connection
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
        if self.awaited.borrow().is_some() {
            return 1;
        }
        self.session.borrow().peer_max_streams().map_or(usize::MAX, |max| max as usize)
    }

    fn tell(&self, readiness: ConnectionReadiness) {
        if let Some(on_readiness) = self.awaited.take() {
            on_readiness(readiness);
        }
    }

    /// Whether nothing more can be begun on it.
    pub fn is_over(&self) -> bool {
        self.is_over.get() || self.session.borrow().is_over()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.session.borrow_mut().close();
    }
}

impl Lease {
    /// One more on this connection.
    pub fn new(connection: &Rc<Connection>) -> Self {
        connection.n_streams.set(connection.n_streams.get() + 1);
        Self(Rc::clone(connection))
    }

    pub(super) fn session(&self) -> RefMut<'_, Session> {
        self.0.session.borrow_mut()
    }

    pub(super) fn is_secure(&self) -> bool {
        self.0.is_secure
    }

    /// How often something has come over the connection.
    pub(super) fn n_reads(&self) -> u64 {
        self.0.session.borrow().n_reads()
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

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("peer", &self.peer)
            .field("n_streams", &self.n_streams)
            .finish_non_exhaustive()
    }
}
