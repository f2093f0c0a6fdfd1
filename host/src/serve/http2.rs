//! Serves a client's HTTP/2 connection: one task for the connection, and one for each stream.

use std::cell::RefCell;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use base64ct::{Base64, Encoding as _};

use crate::http::h1::head::{Name, Refusal, RequestHead};
use crate::http::h2::driver::{ConnectionEnd, SessionSocket};
use crate::http::h2::message::FieldLimits;
use crate::http::h2::server::{ServerStream, Terms, TlsOfConnection};
use crate::http::h2::session::{self, Accepted, Session, SessionTerms, Side};
use crate::http::stream::Stream;
use crate::net::address::Peer;
use crate::net::linger::{self, Ending as _, Linger};
use crate::net::timer::Timer;
use crate::serve::active::Active;
use crate::serve::downstream::Downstream;
use crate::serve::drain::{Idle, Phase};
use crate::serve::error::Error;
use crate::serve::forward;
use crate::serve::thread::{ConnectionPlace, Thread};

/// Maximum concurrent requests of a connection, as in nginx; more wait at the client.
const MAX_STREAMS: u32 = 128;

/// While a worker drains, a connection without requests gets this long to send its first one or to close.
const GRACE: Duration = Duration::from_millis(500);

/// The client of a connection.
#[derive(Clone, Debug)]
pub(crate) struct ConnectedClient {
    /// Its address.
    pub(crate) peer: Peer,
    /// Header lines that name its certificate.
    pub(crate) identity: Option<Rc<[u8]>>,
    /// Number of its listener in the configuration.
    pub(crate) listener: u16,
}

/// Serves a connection until it ends. `before` are bytes that were read of it already.
pub(crate) async fn serve(
    thread: Rc<Thread>,
    stream: Stream,
    before: Box<[u8]>,
    client: ConnectedClient,
    place: impl ConnectionPlace,
) {
    let now = Instant::now();
    let limits = &thread.config.limits;
    let terms = SessionTerms {
        side: Side::Server,
        max_streams: MAX_STREAMS,
        limits: FieldLimits { list_bytes: limits.head_bytes, fields: limits.headers },
        ping: None,
    };
    let first = thread.config.timeouts.request_head;
    let mut connection = ClientConnection {
        timer: Timer::new(now, first),
        idle_until: Some(now + first),
        session: Rc::new(RefCell::new(Session::new(terms, now))),
        is_secure: stream.is_secure(),
        local: stream.local_addr().ok(),
        tls: stream
            .tls()
            .map(|(version, name)| Rc::new(TlsOfConnection { version, name: name.map(Into::into) })),
        socket: SessionSocket::new(stream, before.into_vec()),
        n_requests: 0,
        client,
        ending: None,
        closing: None,
        thread,
    };
    poll_fn(|cx| {
        connection.thread.set_waker(place.index(), cx.waker());
        Poll::Ready(())
    })
    .await;
    poll_fn(|cx| connection.poll(cx)).await;
    // Streams that go on say that their client is gone.
    connection.session.borrow_mut().lost("connection closed");
}

struct ClientConnection {
    thread: Rc<Thread>,
    session: Rc<RefCell<Session>>,
    socket: SessionSocket<Stream>,
    timer: Timer,
    n_requests: u64,
    is_secure: bool,
    tls: Option<Rc<TlsOfConnection>>,
    local: Option<SocketAddr>,
    client: ConnectedClient,
    /// Why no further request is accepted.
    ending: Option<ConnectionEnding>,
    /// Without requests, it is closed then.
    idle_until: Option<Instant>,
    closing: Option<Closing>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ConnectionEnding {
    /// The worker drains, the connection was idle, or it has had its maximum of requests. Running requests go on.
    Graceful,
    /// The client floods, or breaks the protocol.
    Refused,
}

/// How far the end of a connection is.
enum Closing {
    /// Its last words are sent until then.
    Saying(Instant),
    /// They are sent, and the client may still be sending.
    Lingering(Linger),
}

impl ClientConnection {
    /// Ready when the connection is over.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.ending.is_none() && self.thread.phase().is_ending() {
            self.end_gracefully(Instant::now());
        }
        if self.thread.phase() == Phase::Stopped {
            return Poll::Ready(());
        }
        loop {
            if let Some(Closing::Lingering(linger)) = &mut self.closing {
                return linger.poll(cx, self.socket.get_mut());
            }
            let polled = self.socket.poll(cx, &self.session);
            self.begin_accepted();
            match polled {
                Poll::Ready(ConnectionEnd::Lost) => {
                    self.socket.get_mut().say_farewell();
                    return Poll::Ready(());
                }
                Poll::Ready(ConnectionEnd::Said) => {
                    self.note_refusal();
                    self.closing = Some(Closing::Lingering(Linger::ending(linger::TIME)));
                    continue;
                }
                Poll::Pending => self.note_refusal(),
            }
            let Some(deadline) = self.deadline() else { return Poll::Pending };
            self.timer.set(deadline);
            ready!(self.timer.poll_expired(cx));
            if self.is_over(Instant::now()) {
                return Poll::Ready(());
            }
        }
    }

    /// When something has to be done though nothing comes.
    fn deadline(&mut self) -> Option<Instant> {
        if let Some(Closing::Saying(until)) = self.closing {
            return Some(until);
        }
        let session = self.session.borrow();
        if session.n_streams() > 0 {
            self.idle_until = None;
        } else if self.idle_until.is_none() {
            let patience = match self.ending {
                None => self.thread.config.timeouts.keepalive,
                Some(ConnectionEnding::Graceful) => GRACE,
                Some(ConnectionEnding::Refused) => linger::TIME,
            };
            self.idle_until = Some(Instant::now() + patience);
        }
        let stuck = self.socket.stuck_since().map(|since| since + self.thread.config.timeouts.body);
        [self.idle_until, stuck, session.deadline()].into_iter().flatten().min()
    }

    /// Acts on deadlines; whether the connection is over.
    fn is_over(&mut self, now: Instant) -> bool {
        if let Some(Closing::Saying(until)) = self.closing {
            if until <= now {
                // Closed without that, the kernel would keep what the client does not take, for minutes.
                self.socket.get_mut().set_reset_on_close(true);
            }
            return until <= now;
        }
        if self.socket.stuck_since().is_some_and(|since| since + self.thread.config.timeouts.body <= now) {
            tracing::debug!(client = %self.client.peer, "connection reset: the client reads nothing");
            self.socket.get_mut().set_reset_on_close(true);
            return true;
        }
        self.session.borrow_mut().check_deadlines(now);
        if self.idle_until.is_none_or(|until| until > now) {
            return false;
        }
        if self.ending.is_some() || self.session.borrow().peer_max_streams().is_none() {
            // It was told, and does not close; or it has not even begun to speak HTTP/2.
            return true;
        }
        self.end_gracefully(now);
        self.idle_until = Some(now + GRACE);
        false
    }

    /// The client has broken the protocol: it hears why, as far as it takes that.
    fn note_refusal(&mut self) {
        let Some(e) = self.session.borrow().failure() else { return };
        if self.ending != Some(ConnectionEnding::Refused) {
            tracing::debug!(client = %self.client.peer, code = %e.code, "connection closed: {e}");
            self.ending = Some(ConnectionEnding::Refused);
            self.closing = Some(Closing::Saying(Instant::now() + linger::TIME));
        }
    }

    fn end_gracefully(&mut self, now: Instant) {
        self.ending = Some(ConnectionEnding::Graceful);
        let mut session = self.session.borrow_mut();
        session.begin_drain(now);
        let patience = match self.thread.phase() {
            Phase::Draining { idle: Idle::Close, .. } => GRACE,
            _ => self.thread.config.timeouts.keepalive,
        };
        if session.n_streams() == 0 {
            self.idle_until = Some(now + patience.min(GRACE));
        }
    }

    fn begin_accepted(&mut self) {
        loop {
            let accepted = self.session.borrow_mut().accept();
            let Some(accepted) = accepted else { return };
            self.n_requests += 1;
            let max = self.thread.config.limits.requests_per_connection;
            if max.is_some_and(|max| self.n_requests >= max) && self.ending.is_none() {
                self.end_gracefully(Instant::now());
            }
            self.begin(accepted);
        }
    }

    fn begin(&self, accepted: Accepted) {
        let Accepted { slot, mut head, refusal, is_head, is_connect } = accepted;
        if is_connect {
            add_key(&self.thread, &mut head);
        }
        let terms = Terms { is_head, is_connect, is_secure: self.is_secure, local: self.local };
        let stream = ServerStream::new(Rc::clone(&self.session), slot, terms).with_tls(self.tls.clone());
        let (thread, client) = (Rc::clone(&self.thread), self.client.clone());
        // In a box, since the runtime moves a task's future several times.
        tokio::task::spawn_local(Box::pin(async move {
            let mut down = Downstream::new(&thread, Stream::H2Server(Box::new(stream)), client.peer);
            down.listener = client.listener;
            down.identity = client.identity;
            serve_stream(&thread, &mut down, head, refusal).await;
        }));
    }
}

/// Adds the key that a server of HTTP/1.1 wants of a WebSocket, and that HTTP/2 has not (RFC 8441 section 5).
#[cold]
fn add_key(thread: &Thread, head: &mut RequestHead) {
    let mut key = [0; 16];
    for part in key.chunks_mut(8) {
        part.copy_from_slice(&thread.random().to_ne_bytes());
    }
    let mut text = [0; 24];
    // It has room for exactly that.
    let text = Base64::encode(&key, &mut text).unwrap_or_default();
    head.add_line(Name::Other, b"sec-websocket-key", text.as_bytes());
}

/// Serves the one request of an HTTP/2 stream. `refusal`: its head is answered by an error.
async fn serve_stream(
    thread: &Thread,
    down: &mut Downstream,
    mut request: Box<RequestHead>,
    refusal: Option<Refusal>,
) {
    let mut active = Active::lend();
    let Active { head, memory } = &mut *active;
    std::mem::swap(head, &mut request);
    session::give_back(request);
    down.n_requests = 1;
    let limits = &thread.config.limits;
    let is_too_long = head.first_line_len() > limits.request_line_bytes;
    down.prepare_buffer(limits.head_bytes);
    match refusal.or(is_too_long.then_some(Refusal::LineTooLong)) {
        None => _ = forward::forward(thread, down, memory, head).await,
        Some(refusal) => _ = forward::refuse(thread, down, memory, Error::Head(refusal), Some(head)).await,
    }
    Active::give_back(active);
}
