//! Serves a client's HTTP/2 connection: one task for the connection, and one for each stream.

use std::future::{Future as _, poll_fn};
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::Request;

use crate::http::h1::head::{HeadLimits, Refusal};
use crate::http::h2::server::{ServerStream, Terms, is_reset, was_reset_here};
use crate::http::h2::watch::{self, Budget, Watched};
use crate::http::h2::{SEND_BUFFER, STREAM_WINDOW, connection_window, text};
use crate::http::stream::Stream;
use crate::net::address::Peer;
use crate::net::linger;
use crate::net::timer::Timer;
use crate::serve::active::Active;
use crate::serve::downstream::Downstream;
use crate::serve::drain::{Idle, Phase};
use crate::serve::error::Error;
use crate::serve::forward;
use crate::serve::thread::{ConnectionPlace, Thread};

/// Maximum concurrent requests of a connection, as in nginx; more wait at the client.
const MAX_STREAMS: u32 = 128;

/// Streams that a client opened and reset before they were looked at; more end the connection (rapid reset). As many as its
/// budget pays for: a browser that leaves a page may take back all that it has open.
const PENDING_RESETS: usize = 100;

/// Streams that we reset and remember, for frames that were already under way.
const REMEMBERED_RESETS: usize = MAX_STREAMS as usize;

/// What small DATA frames may cost until they are taken off `h2` (256 for each, less its length): more than what comes
/// between two turns of the streams, which take in all that is there (see [`Inbox`] and [`watch::PORTION`]).
const DATA_FRAME_BUDGET: usize = 4 << 20;

/// While a worker drains, a connection without requests gets this long to send its first one or to close.
const GRACE: Duration = Duration::from_millis(500);

/// The client of a connection.
#[derive(Clone, Debug)]
pub(crate) struct ConnectedClient {
    /// Its address.
    pub(crate) peer: Peer,
    /// Header lines that name its certificate.
    pub(crate) identity: Option<Rc<[u8]>>,
}

/// Serves a connection until it ends. `before` are bytes that were read of it already.
pub(crate) async fn serve(
    thread: Rc<Thread>,
    stream: Stream,
    before: Box<[u8]>,
    client: ConnectedClient,
    place: impl ConnectionPlace,
) {
    let limits = &thread.config.limits;
    let budget = Rc::new(Budget::new(Instant::now()));
    let (is_secure, local) = (stream.is_secure(), stream.local_addr().ok());
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(connection_window(MAX_STREAMS as usize))
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(u32::try_from(limits.head_bytes).unwrap_or(u32::MAX))
        .max_send_buffer_size(SEND_BUFFER)
        .max_concurrent_reset_streams(REMEMBERED_RESETS)
        .max_pending_accept_reset_streams(PENDING_RESETS)
        .data_frame_budget(DATA_FRAME_BUDGET)
        // For as long as a connection lasts, and without a difference of costs: `watch` counts them.
        .max_local_error_reset_streams(None);
    let handshake = builder.handshake(Watched::new(stream, before, Rc::clone(&budget)));
    let Ok(Ok(connection)) = tokio::time::timeout(thread.config.timeouts.request_head, handshake).await
    else {
        return;
    };
    let now = Instant::now();
    let mut connection = ClientConnection {
        timer: Timer::new(now, thread.config.timeouts.request_head),
        h2: connection,
        n_requests: 0,
        budget,
        is_secure,
        local,
        client,
        ending: None,
        was_busy: false,
        thread,
    };
    poll_fn(|cx| {
        connection.thread.set_waker(place.index(), cx.waker());
        Poll::Ready(())
    })
    .await;
    poll_fn(|cx| connection.poll(cx)).await;
}

struct ClientConnection {
    thread: Rc<Thread>,
    h2: h2::server::Connection<Watched<Stream>, Bytes>,
    timer: Timer,
    n_requests: u64,
    budget: Rc<Budget>,
    is_secure: bool,
    local: Option<SocketAddr>,
    client: ConnectedClient,
    /// Why no further request is accepted.
    ending: Option<ConnectionEnding>,
    was_busy: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ConnectionEnding {
    /// The worker drains, the connection was idle, or it has had its maximum of requests. Running requests go on.
    Graceful,
    /// The client floods.
    Refused,
}

impl ClientConnection {
    /// Ready when the connection is over.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.ending.is_none() && self.thread.phase().is_ending() {
            self.end_gracefully();
        }
        if self.thread.phase() == Phase::Stopped {
            return Poll::Ready(());
        }
        if self.budget.poll_spent(cx).is_ready() && self.ending != Some(ConnectionEnding::Refused) {
            tracing::debug!(client = %self.client.peer, "connection closed: too many control frames");
            self.ending = Some(ConnectionEnding::Refused);
            // Where it does not even take that, nothing is read off either.
            self.timer.bring_forward(Instant::now() + linger::TIME);
            self.h2.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
        }
        loop {
            match self.h2.poll_accept(cx) {
                Poll::Ready(Some(Ok((request, respond)))) => self.begin(request, respond),
                Poll::Ready(Some(Err(e))) => {
                    tracing::debug!(client = %self.client.peer, "HTTP/2 connection ended: {e}");
                    return Poll::Ready(());
                }
                Poll::Ready(None) => return Poll::Ready(()),
                Poll::Pending => break,
            }
        }
        let is_busy = self.h2.has_streams();
        if is_busy {
            self.was_busy = true;
            return self.poll_stuck(cx);
        }
        if std::mem::take(&mut self.was_busy) {
            let patience = match self.ending {
                None => self.thread.config.timeouts.keepalive,
                Some(ConnectionEnding::Graceful) => GRACE,
                Some(ConnectionEnding::Refused) => linger::TIME,
            };
            self.timer.set(Instant::now() + patience);
        }
        ready!(self.timer.poll_expired(cx));
        if self.ending.is_some() {
            // It was told, and does not close.
            return Poll::Ready(());
        }
        self.end_gracefully();
        self.timer.set(Instant::now() + GRACE);
        // For GOAWAY to be sent.
        match self.h2.poll_closed(cx) {
            Poll::Ready(_) => Poll::Ready(()),
            Poll::Pending => self.timer.poll_expired(cx),
        }
    }

    /// Ready when the client has read nothing of its responses for `timeouts.body`.
    fn poll_stuck(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(since) = self.budget.stuck_since() else { return Poll::Pending };
        self.timer.set(since + self.thread.config.timeouts.body);
        ready!(self.timer.poll_expired(cx));
        tracing::debug!(client = %self.client.peer, "connection reset: the client reads nothing");
        self.budget.reset_on_close();
        Poll::Ready(())
    }

    fn end_gracefully(&mut self) {
        self.ending = Some(ConnectionEnding::Graceful);
        self.h2.graceful_shutdown();
        let patience = match self.thread.phase() {
            Phase::Draining { idle: Idle::Close, .. } => GRACE,
            _ => self.thread.config.timeouts.keepalive,
        };
        if !self.h2.has_streams() {
            self.timer.set(Instant::now() + patience.min(GRACE));
        }
    }

    fn begin(&mut self, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
        self.n_requests += 1;
        if self.thread.config.limits.requests_per_connection.is_some_and(|max| self.n_requests >= max)
            && self.ending.is_none()
        {
            self.end_gracefully();
        }
        let (parts, mut body) = request.into_parts();
        if is_reset(&mut respond) {
            // It is no load for any server.
            if was_reset_here(&mut body) {
                self.budget.spend(watch::RESET_COST);
            }
            return;
        }
        let (thread, budget) = (Rc::clone(&self.thread), Rc::clone(&self.budget));
        let (client, is_secure, local) = (self.client.clone(), self.is_secure, self.local);
        // In a box, since the runtime moves a task's future several times.
        tokio::task::spawn_local(Box::pin(async move {
            let terms = Terms { is_head: parts.method == http::Method::HEAD, is_secure, local, budget };
            let (stream, inbox) = ServerStream::new(body, respond, terms);
            let mut down = Downstream::new(&thread, Stream::H2Server(Box::new(stream)), client.peer);
            down.identity = client.identity;
            let mut head = Vec::with_capacity(512);
            let malformed = text::write_request(&parts, &mut head).err();
            drop(parts);
            let request = StreamRequest { head: &head, malformed, has_body: inbox.is_some() };
            {
                let mut serving = pin!(serve_stream(&thread, &mut down, request));
                poll_fn(|cx| {
                    if let Some(inbox) = &inbox {
                        inbox.absorb(cx);
                    }
                    serving.as_mut().poll(cx)
                })
                .await;
            }
            if let Stream::H2Server(stream) = &mut down.stream {
                stream.settle();
            }
        }));
    }
}

/// The request of an HTTP/2 stream.
#[derive(Clone, Copy, Debug)]
struct StreamRequest<'a> {
    /// Its head as one of HTTP/1.1.
    head: &'a [u8],
    /// Why it is invalid.
    malformed: Option<&'static str>,
    /// Whether a body follows.
    has_body: bool,
}

/// Serves the one request of an HTTP/2 stream.
async fn serve_stream(thread: &Thread, down: &mut Downstream, request: StreamRequest<'_>) {
    let mut active = Active::lend();
    let Active { head, memory } = &mut *active;
    head.clear();
    down.n_requests = 1;
    let limits = &thread.config.limits;
    let limits = HeadLimits { line_bytes: limits.request_line_bytes, headers: limits.headers };
    let taken = match request.malformed {
        None => head.take_h2(request.head, request.has_body, &limits),
        Some(reason) => Err(Refusal::Malformed(reason)),
    };
    down.prepare_buffer(thread.config.limits.head_bytes);
    match taken {
        Ok(()) => _ = forward::forward(thread, down, memory, head).await,
        Err(refusal) => _ = forward::refuse(thread, down, memory, Error::Head(refusal), Some(head)).await,
    }
    Active::give_back(active);
}
