//! One thread of a worker: it accepts, serves, and drains.

use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::LocalSet;

use crate::module::board::{self, Board};
use crate::module::crash;
use crate::net::address::Address;
use crate::net::listening::Listening;
use crate::process::sockets::Bound;
use crate::serve::drain::{Idle, Phase};
use crate::serve::listener::{self, Gate};
use crate::serve::thread::Thread;

/// How often a thread looks after its idle server connections and its access log, and shows that it gets on.
pub(super) const HOUSEKEEPING: Duration = Duration::from_secs(1);

/// For idle connections to close that are told to; it takes them a turn of their task.
const IDLE_CLOSE_TIMEOUT: Duration = Duration::from_millis(100);

/// The sockets that a thread reads.
pub(super) type SocketShare = Vec<(OwnedFd, Arc<Gate>)>;

/// Deals the sockets of all listeners out to threads.
///
/// # Errors
/// Too many descriptors are open; with the address of the listener.
pub(super) fn shares(
    listeners: Vec<Bound>,
    gates: &[Arc<Gate>],
    n_threads: usize,
) -> Result<Vec<SocketShare>, (Address, io::Error)> {
    let mut shares: Vec<SocketShare> = (0..n_threads).map(|_| Vec::new()).collect();
    for (bound, gate) in listeners.into_iter().zip(gates) {
        let n_sockets = bound.sockets.len();
        // Where there are fewer sockets than threads, threads share them: their number is fixed when they are bound.
        for (i, share) in shares.iter_mut().enumerate().skip(n_sockets) {
            let socket = bound.sockets[i % n_sockets].try_clone();
            share.push((socket.map_err(|error| (bound.address.clone(), error))?, Arc::clone(gate)));
        }
        for (i, socket) in bound.sockets.into_iter().enumerate() {
            shares[i % n_threads].push((socket, Arc::clone(gate)));
        }
    }
    Ok(shares)
}

/// Runs a thread to the end of its drain, in this place on the board. Returns how many connections were cut off.
pub(super) fn run(
    runtime: &Runtime,
    place: Option<(&'static Board, usize)>,
    start: impl FnOnce() -> Thread,
    share: SocketShare,
    phase: watch::Receiver<Phase>,
    published: watch::Receiver<u64>,
) -> usize {
    if let Some((board, place)) = place {
        crash::take_place(board, place);
    }
    // Its sockets would have nobody who reads them. With a supervisor, another process is the better end.
    let _end = place.map(|_| AbortOnPanic);
    let local = LocalSet::new();
    let cut_off = local.block_on(runtime, run_thread(Rc::new(start()), share, phase, published));
    // Requests that were cut off tell their modules as their tasks are dropped here, on the runtime.
    let _entered = runtime.enter();
    drop(local);
    board::leave_place();
    cut_off
}

/// Ends the process where its thread panics.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

/// Accepts until the drain, then drains. Returns the number of connections left, to be closed.
async fn run_thread(
    thread: Rc<Thread>,
    sockets: SocketShare,
    mut phase: watch::Receiver<Phase>,
    published: watch::Receiver<u64>,
) -> usize {
    let accepting: Vec<_> = sockets
        .into_iter()
        .filter_map(|(socket, gate)| match Listening::new(&gate.address, socket) {
            Ok(socket) => {
                let accept = listener::accept(Rc::clone(&thread), socket, gate, phase.clone());
                Some(tokio::task::spawn_local(accept))
            }
            Err(e) => {
                tracing::error!(listener = %gate.address, "cannot wait for connections: {e}");
                None
            }
        })
        .collect();
    let keeper = tokio::task::spawn_local(keep_house(Rc::clone(&thread)));
    let switcher = tokio::task::spawn_local(keep_switching(Rc::clone(&thread), published));
    let serving = phase.wait_for(|phase| phase.is_ending()).await.map_or(Phase::Stopped, |phase| *phase);
    thread.enter_phase(serving);
    for task in accepting {
        // One that panicked has said so.
        let _ = task.await;
    }
    drain(&thread, phase).await;
    keeper.abort();
    switcher.abort();
    thread.ends();
    thread.pool.clear();
    thread.n_connections()
}

/// Waits for the connections to end, for as long as they may.
async fn drain(thread: &Thread, mut phase: watch::Receiver<Phase>) {
    let drained = async || {
        while thread.n_connections() > 0 {
            thread.a_connection_ended().await;
        }
    };
    loop {
        let now = *phase.borrow_and_update();
        let Phase::Draining { until, idle } = now else { return };
        thread.enter_phase(now);
        tokio::select! {
            () = drained() => return,
            changed = phase.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return,
            },
            () = tokio::time::sleep_until(until.into()) => {}
        }
        if idle == Idle::AnswerOneMore {
            // Idle connections may close without loss.
            thread.enter_phase(Phase::Draining { until, idle: Idle::Close });
            let _ = tokio::time::timeout(IDLE_CLOSE_TIMEOUT, drained()).await;
        }
        if thread.n_connections() > 0 {
            tracing::warn!(
                connections = thread.n_connections(),
                "drain timeout: closing the remaining connections"
            );
        }
        return;
    }
}

/// Has the thread choose among the members of each publication.
async fn keep_switching(thread: Rc<Thread>, mut published: watch::Receiver<u64>) {
    while published.changed().await.is_ok() {
        thread.switch();
    }
}

async fn keep_house(thread: Rc<Thread>) {
    let mut interval = tokio::time::interval(HOUSEKEEPING);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        board::tick();
        thread.time_next_requests();
        thread.sweep(Instant::now());
        if let Some(log) = &thread.access_log {
            log.borrow_mut().flush();
        }
    }
}
