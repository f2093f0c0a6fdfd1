//! A worker in this very process, without a supervisor: until signals end it.

use std::io;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::timeout;

use trylist::process::sockets;
use trylist::serve::drain::Idle;
use trylist::worker::{Control, Worker};

use crate::output::{CommandFailure, print};

/// For a worker to end that was told to stop at once; it needs milliseconds, unless a module does not return.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);

/// Starts a worker and runs it until signals end it. The text that `start` returns is printed when the worker listens.
pub(crate) fn run(
    start: impl FnOnce() -> Result<(Worker, String), CommandFailure>,
) -> Result<(), CommandFailure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime =
        runtime.map_err(|error| CommandFailure::new(format_args!("no runtime for signals: {error}")))?;
    let result = runtime.block_on(run_until_stopped(start));
    // Without waiting for a worker that does not end.
    runtime.shutdown_background();
    result
}

async fn run_until_stopped(
    start: impl FnOnce() -> Result<(Worker, String), CommandFailure>,
) -> Result<(), CommandFailure> {
    // Before anything listens, so that no signal ends the process unseen.
    let signals = ForegroundSignals::new()
        .map_err(|error| CommandFailure::new(format_args!("no signal handler: {error}")))?;
    sockets::raise_descriptor_limit();
    let (worker, introduction) = start()?;
    for address in worker.addresses() {
        tracing::info!("listening on {address}");
    }
    if let Some(address) = worker.admin_address() {
        tracing::info!("metrics on {address}");
    }
    print(&introduction)?;
    obey_signals(worker, signals).await
}

async fn obey_signals(worker: Worker, mut signals: ForegroundSignals) -> Result<(), CommandFailure> {
    let control: Control = worker.control();
    let mut ended = tokio::task::spawn_blocking(move || worker.wait());
    let mut is_draining = false;
    loop {
        let order = tokio::select! {
            cut_off = &mut ended => return match cut_off {
                Ok(0) if is_draining => Ok(()),
                Ok(n) if is_draining => {
                    Err(CommandFailure::new(format_args!("{n} connections closed by the drain timeout")))
                }
                Ok(_) | Err(_) => Err(CommandFailure::new("the worker ended unexpectedly")),
            },
            order = signals.recv() => order,
        };
        match order {
            ForegroundOrder::ReopenLog => {
                control.reopen_access_log();
                tracing::info!("SIGUSR2: reopening the access log");
            }
            ForegroundOrder::Stop(name) if !is_draining => {
                is_draining = true;
                control.drain(Idle::Close);
                tracing::info!("{name}: draining; a second signal stops at once");
            }
            ForegroundOrder::Stop(name) => {
                tracing::warn!("{name}: stopping at once");
                control.stop();
                let _ = timeout(STOP_TIMEOUT, ended).await;
                return Err(CommandFailure::new("stopped by a second signal before all requests had ended"));
            }
        }
    }
}

/// The order that a signal stands for.
enum ForegroundOrder {
    Stop(&'static str),
    ReopenLog,
}

/// SIGTERM, SIGINT and SIGUSR2.
struct ForegroundSignals {
    terminate: Signal,
    interrupt: Signal,
    user2: Signal,
}

impl ForegroundSignals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            user2: signal(SignalKind::user_defined2())?,
        })
    }

    async fn recv(&mut self) -> ForegroundOrder {
        tokio::select! {
            _ = self.terminate.recv() => ForegroundOrder::Stop("SIGTERM"),
            _ = self.interrupt.recv() => ForegroundOrder::Stop("SIGINT"),
            _ = self.user2.recv() => ForegroundOrder::ReopenLog,
        }
    }
}
