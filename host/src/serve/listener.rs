//! Accepts connections, as many as are allowed, and gives each a task.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use tokio_rustls::server::TlsStream;

use crate::config;
use crate::http::stream::Stream;
use crate::net::address::{Address, Peer};
use crate::net::listening::{Listening, is_of_one_connection};
use crate::net::per_client::{Counted, PerClient};
use crate::net::proxy_protocol::{self, BadHeader};
use crate::serve::downstream::Downstream;
use crate::serve::drain::{Idle, Phase};
use crate::serve::http1::{self, FIRST_REQUEST_GRACE};
use crate::serve::http2::{self, ConnectedClient};
use crate::serve::thread::{ConnectionPlace, Thread};
use crate::tls::server::{self, Acceptor, NoHandshake};

/// Pause after a failed accept, as for want of descriptors; connections wait in the backlog.
const PAUSE: Duration = Duration::from_millis(50);
/// The same problem is logged at most this often.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Limits the connections of a listener, over all threads.
#[derive(Debug)]
pub(crate) struct Gate {
    /// Index of the listener in the configuration.
    pub(crate) listener: usize,
    /// Its address.
    pub(crate) address: Address,
    max: usize,
    tls: Option<Acceptor>,
    h2: bool,
    per_client: Option<Arc<PerClient>>,
    open: AtomicUsize,
    closed: Notify,
    /// The fate of its sockets when this worker hands over.
    fate: watch::Sender<Fate>,
}

/// The fate of a listener's sockets when its worker hands over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Another worker reads them.
    HandedOver,
    /// The new configuration has no such listener. It may still come back.
    Removed,
    /// This worker is the last to read them.
    Last,
}

/// One connection's place; given up when dropped.
struct AdmittedConnection {
    gate: Arc<Gate>,
    thread: Rc<Thread>,
    place: usize,
    /// Its count among its client's connections, where those are limited.
    counted: Option<Counted>,
}

/// Accepts until the worker drains. Connections made before are served too, unless another worker reads the socket from now on:
/// closing its last descriptor would reset connections that nobody has accepted.
pub(crate) async fn accept(
    thread: Rc<Thread>,
    socket: Listening,
    gate: Arc<Gate>,
    mut phase: watch::Receiver<Phase>,
) {
    let ending = tokio::select! {
        () = accept_for_ever(&thread, &socket, &gate) => return,
        ending = phase.wait_for(|phase| phase.is_ending()) => ending.map_or(Phase::Stopped, |phase| *phase),
    };
    if let Phase::Draining { until, idle: Idle::AnswerOneMore } = ending {
        let mut fate = gate.fate.subscribe();
        // It may still come back, so it is read on.
        tokio::select! {
            biased;
            _ = fate.wait_for(|fate| *fate != Fate::Removed) => {}
            _ = phase.wait_for(|phase| !phase.answers_one_more()) => {}
            () = tokio::time::sleep_until(until.into()) => {}
            () = accept_for_ever(&thread, &socket, &gate) => {}
        }
        if *fate.borrow() == Fate::HandedOver {
            // Dropped, the socket leaves this thread's epoll; nothing less would keep the kernel from waking it.
            return;
        }
    }
    if let Phase::Draining { until, .. } = ending {
        // Of those who have said nothing yet the kernel has not told us.
        socket.stop_deferring();
        let until = until.min(Instant::now() + FIRST_REQUEST_GRACE);
        tokio::select! {
            () = accept_for_ever(&thread, &socket, &gate) => {}
            () = tokio::time::sleep_until(until.into()) => {}
            _ = phase.wait_for(|phase| *phase == Phase::Stopped) => {}
        }
    }
    // Asked of the kernel itself: the reactor may not have heard of the last ones.
    while gate.has_room()
        && let Ok((stream, peer)) = socket.take()
    {
        admit(&thread, &gate, stream, peer);
    }
}

async fn accept_for_ever(thread: &Rc<Thread>, socket: &Listening, gate: &Arc<Gate>) {
    let mut logged: Option<Instant> = None;
    loop {
        gate.wait_for_room(thread).await;
        match socket.accept().await {
            Ok((stream, peer)) => admit(thread, gate, stream, peer),
            Err(e) if is_of_one_connection(&e) => {}
            Err(e) => {
                thread.metrics.accept_failed(gate.listener);
                if logged.is_none_or(|at| at.elapsed() >= LOG_INTERVAL) {
                    logged = Some(Instant::now());
                    tracing::error!(listener = %gate.address, "cannot accept connections, retrying: {e}");
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

fn admit(thread: &Rc<Thread>, gate: &Arc<Gate>, stream: TcpStream, peer: Peer) {
    let terms = thread.config.listeners[gate.listener].proxy_protocol.as_ref();
    let speaks_proxy = terms.is_some_and(|terms| terms.from.contains(peer));
    // Behind a balancer that sends PROXY headers, a client is counted once its address is known.
    let counted = match (&gate.per_client, peer.ip()) {
        (Some(per_client), Some(ip)) if !speaks_proxy => match per_client.enter(ip) {
            Some(counted) => Some(counted),
            None => return thread.metrics.client_full(gate.listener),
        },
        _ => None,
    };
    gate.open.fetch_add(1, Ordering::Relaxed);
    thread.metrics.connection_opened(gate.listener);
    let place = thread.join();
    let mut admitted =
        AdmittedConnection { gate: Arc::clone(gate), thread: Rc::clone(thread), place, counted };
    if speaks_proxy {
        let thread = Rc::clone(thread);
        tokio::task::spawn_local(async move {
            let Some((stream, peer)) = admitted.meet(stream, peer).await else { return };
            if admitted.gate.tls.is_some() {
                return serve_tls(thread, stream, peer, admitted).await;
            }
            let mut connection = Downstream::new(&thread, stream.into(), peer);
            admitted.gate.mark(&mut connection);
            http1::serve(thread, connection, admitted).await;
        });
        return;
    }
    if gate.tls.is_some() {
        tokio::task::spawn_local(serve_tls(Rc::clone(thread), stream, peer, admitted));
        return;
    }
    let mut connection = Downstream::new(thread, stream.into(), peer);
    gate.mark(&mut connection);
    tokio::task::spawn_local(http1::serve(Rc::clone(thread), connection, admitted));
}

/// Makes the TLS handshake, in a future that is dropped afterwards, and serves.
async fn serve_tls(thread: Rc<Thread>, socket: TcpStream, peer: Peer, admitted: AdmittedConnection) {
    let handshake = Box::pin(shake_hands(&thread, &admitted.gate, socket, peer));
    let Some(Secured { stream, identity, is_h2 }) = handshake.await else { return };
    if is_h2 {
        let client = ConnectedClient { peer, identity, listener: admitted.gate.number() };
        return Box::pin(http2::serve(thread, stream, Box::default(), client, admitted)).await;
    }
    let mut connection = Downstream::new(&thread, stream, peer);
    connection.listener = admitted.gate.number();
    connection.identity = identity;
    http1::serve(thread, connection, admitted).await;
}

/// A connection after its TLS handshake.
struct Secured {
    stream: Stream,
    /// Header lines that name its client's certificate.
    identity: Option<Rc<[u8]>>,
    is_h2: bool,
}

impl Secured {
    fn new(stream: TlsStream<TcpStream>) -> Self {
        let (identity, is_h2) = (server::identity(&stream), server::chose_h2(&stream));
        Self { stream: Stream::Tls(Box::new(stream.into())), identity, is_h2 }
    }
}

async fn shake_hands(thread: &Thread, gate: &Gate, socket: TcpStream, peer: Peer) -> Option<Secured> {
    let acceptor = gate.tls.as_ref()?;
    let patience = thread.config.timeouts.handshake;
    let why = match tokio::time::timeout(patience, acceptor.accept(socket)).await {
        Ok(Ok(stream)) => return Some(Secured::new(stream)),
        Ok(Err(NoHandshake::Plain(socket))) => {
            thread.metrics.handshake_failed(gate.listener);
            http1::refuse_plain(thread, socket, peer).await;
            return None;
        }
        Ok(Err(NoHandshake::Failed(why))) => why,
        Err(_) => format!("not done within {patience:?}"),
    };
    thread.metrics.handshake_failed(gate.listener);
    tracing::debug!(listener = %gate.address, client = %peer, "TLS handshake failed: {why}");
    None
}

impl AdmittedConnection {
    /// Reads a connection's PROXY header and returns the client's address; `None` where the connection is to be closed.
    async fn meet(&mut self, mut stream: TcpStream, peer: Peer) -> Option<(TcpStream, Peer)> {
        let (thread, gate) = (&self.thread, &self.gate);
        let terms = thread.config.listeners[gate.listener].proxy_protocol.as_ref()?;
        let why = match tokio::time::timeout(terms.timeout, proxy_protocol::read(&mut stream)).await {
            Ok(Ok(named)) => {
                let client = named.map_or(peer, Peer::Ip);
                if let Some((per_client, ip)) = gate.per_client.as_ref().zip(client.ip()) {
                    self.counted = per_client.enter(ip);
                    if self.counted.is_none() {
                        thread.metrics.client_full(gate.listener);
                        return None;
                    }
                }
                return Some((stream, client));
            }
            Ok(Err(BadHeader::Nothing)) => return None,
            Ok(Err(e)) => e.to_string(),
            Err(_) => format!("it did not come within {:?}", terms.timeout),
        };
        thread.metrics.bad_proxy_header(gate.listener);
        if let Some(left_out) = thread.may_log() {
            let listener = &gate.address;
            match left_out {
                0 => tracing::warn!(%listener, %peer, "connection closed, invalid PROXY header: {why}"),
                _ => {
                    tracing::warn!(%listener, %peer, left_out, "connection closed, invalid PROXY header: {why}");
                }
            }
        }
        None
    }
}

impl Gate {
    /// A gate for at most `max` connections, and for as many of each client as `terms` say; of TLS where there is an
    /// acceptor for it.
    pub(crate) fn new(
        listener: usize,
        address: Address,
        max: usize,
        terms: &config::Listener,
        tls: Option<Acceptor>,
    ) -> Self {
        let per_client =
            terms.max_connections_per_client.map(|max_each| Arc::new(PerClient::new(max_each, max)));
        Self {
            listener,
            address,
            max,
            tls,
            h2: terms.h2,
            per_client,
            open: AtomicUsize::new(0),
            closed: Notify::new(),
            fate: watch::Sender::new(Fate::HandedOver),
        }
    }

    /// Says what becomes of its sockets when this worker hands over.
    pub(crate) fn decide(&self, fate: Fate) {
        self.fate.send_replace(fate);
    }

    /// Facts of a listener for requests of a connection in clear text.
    fn mark(&self, connection: &mut Downstream) {
        connection.may_be_h2 = self.h2;
        connection.listener = self.number();
    }

    /// Index of the listener as connections keep it.
    fn number(&self) -> u16 {
        u16::try_from(self.listener).unwrap_or(u16::MAX)
    }

    fn has_room(&self) -> bool {
        self.open.load(Ordering::SeqCst) < self.max
    }

    /// Several threads may pass at once, so there may be a few more connections than allowed, one a thread at most.
    async fn wait_for_room(&self, thread: &Thread) {
        if self.has_room() {
            return;
        }
        thread.metrics.listener_full(self.listener);
        loop {
            let closed = self.closed.notified();
            if self.has_room() {
                return;
            }
            closed.await;
        }
    }
}

impl ConnectionPlace for AdmittedConnection {
    fn index(&self) -> usize {
        self.place
    }
}

impl Drop for AdmittedConnection {
    fn drop(&mut self) {
        self.thread.leave(self.place);
        self.thread.metrics.connection_closed(self.gate.listener);
        if self.gate.open.fetch_sub(1, Ordering::SeqCst) >= self.gate.max {
            self.gate.closed.notify_waiters();
        }
    }
}
