//! Accepts connections, as many as are allowed, and gives each a task.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};

use crate::downstream::{self, Downstream, Place};
use crate::drain::{Idle, Phase};
use crate::thread::Thread;

/// After accepting failed for want of something, it is tried again this much later; connections wait in the backlog.
const PAUSE: Duration = Duration::from_millis(50);
/// The same trouble is logged at most this often.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// How many connections a listener has, over all threads.
#[derive(Debug)]
pub struct Gate {
    /// Index of the listener in the configuration.
    pub listener: usize,
    /// Its address.
    pub address: SocketAddr,
    max: usize,
    open: AtomicUsize,
    closed: Notify,
    /// Nobody reads its sockets after this worker.
    is_last_reader: AtomicBool,
}

/// One connection's place; given up when dropped.
struct Admitted {
    gate: Arc<Gate>,
    thread: Rc<Thread>,
    place: usize,
}

/// Accepts until the worker ends. Connections that the kernel has made by then, and nobody has accepted, are served too,
/// unless somebody else reads the socket from now on: closing the last descriptor of it would reset them.
pub async fn accept(
    thread: Rc<Thread>,
    socket: TcpListener,
    gate: Arc<Gate>,
    mut phase: watch::Receiver<Phase>,
) {
    let ending = tokio::select! {
        () = accept_for_ever(&thread, &socket, &gate) => return,
        ending = phase.wait_for(|phase| phase.is_ending()) => ending.map_or(Phase::Stopped, |phase| *phase),
    };
    if matches!(ending, Phase::Draining { idle: Idle::AnswerOneMore, .. }) && !gate.is_last_reader() {
        // Dropped, the socket leaves this thread's epoll; nothing less would keep the kernel from waking it.
        return;
    }
    // Asked of the kernel itself: the reactor may not have heard of the last ones.
    let Ok(socket) = socket.into_std() else { return };
    while gate.has_room()
        && let Ok((stream, peer)) = socket.accept()
    {
        if stream.set_nonblocking(true).is_ok()
            && let Ok(stream) = TcpStream::from_std(stream)
        {
            admit(&thread, &gate, stream, peer);
        }
    }
}

async fn accept_for_ever(thread: &Rc<Thread>, socket: &TcpListener, gate: &Arc<Gate>) {
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
                    tracing::error!(listener = %gate.address, "cannot accept connections, trying again: {e}");
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

fn admit(thread: &Rc<Thread>, gate: &Arc<Gate>, stream: TcpStream, peer: SocketAddr) {
    gate.open.fetch_add(1, Ordering::Relaxed);
    thread.metrics.connection_opened(gate.listener);
    let place = thread.join();
    let admitted = Admitted { gate: Arc::clone(gate), thread: Rc::clone(thread), place };
    let connection = Downstream::new(thread, stream, peer);
    tokio::task::spawn_local(downstream::serve(Rc::clone(thread), connection, admitted));
}

impl Gate {
    /// A gate for at most `max` connections.
    pub fn new(listener: usize, address: SocketAddr, max: usize) -> Self {
        Self {
            listener,
            address,
            max,
            open: AtomicUsize::new(0),
            closed: Notify::new(),
            is_last_reader: AtomicBool::new(false),
        }
    }

    /// Says that its sockets end with this worker, though the worker hands others over.
    pub fn set_last_reader(&self) {
        self.is_last_reader.store(true, Ordering::Release);
    }

    fn is_last_reader(&self) -> bool {
        self.is_last_reader.load(Ordering::Acquire)
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

impl Place for Admitted {
    fn index(&self) -> usize {
        self.place
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.thread.leave(self.place);
        self.thread.metrics.connection_closed(self.gate.listener);
        if self.gate.open.fetch_sub(1, Ordering::SeqCst) >= self.gate.max {
            self.gate.closed.notify_waiters();
        }
    }
}

/// Errors that say something of the connection that was to be accepted, not of us (accept(2)).
fn is_of_one_connection(e: &std::io::Error) -> bool {
    use std::io::ErrorKind;
    matches!(
        e.kind(),
        ErrorKind::ConnectionAborted
            | ErrorKind::ConnectionReset
            | ErrorKind::Interrupted
            | ErrorKind::HostUnreachable
            | ErrorKind::NetworkUnreachable
            | ErrorKind::NetworkDown
    )
}
