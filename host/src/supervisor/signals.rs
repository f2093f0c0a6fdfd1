//! Signals, read from a descriptor: nothing interrupts the supervisor's one thread.

use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// The signals that the supervisor handles: blocked for this thread, and read instead.
pub(super) struct Signals(SignalFd);

/// The order that a signal stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SignalOrder {
    Stop(&'static str),
    Reload(&'static str),
    ReopenLog,
}

impl Signals {
    pub(super) fn new() -> nix::Result<Self> {
        let mut set = SigSet::empty();
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGUSR2] {
            set.add(signal);
        }
        set.thread_block()?;
        SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC).map(Self)
    }

    /// The signals that have come.
    pub(super) fn take(&mut self) -> Vec<SignalOrder> {
        let mut asked = Vec::new();
        while let Ok(Some(signal)) = self.0.read_signal() {
            asked.extend(match Signal::try_from(signal.ssi_signo as i32) {
                Ok(Signal::SIGTERM) => Some(SignalOrder::Stop("SIGTERM")),
                Ok(Signal::SIGINT) => Some(SignalOrder::Stop("SIGINT")),
                Ok(Signal::SIGHUP) => Some(SignalOrder::Reload("SIGHUP")),
                Ok(Signal::SIGUSR1) => Some(SignalOrder::Reload("SIGUSR1")),
                Ok(Signal::SIGUSR2) => Some(SignalOrder::ReopenLog),
                _ => None,
            });
        }
        asked
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
