//! The tools that keep scenarios short: real origins, a real proxy in this process on a free port, real `.so` modules, and
//! clients that see every byte. Whatever waits, waits for an event, and fails at [`DEADLINE`] instead of hanging.
#![allow(clippy::unwrap_used, reason = "a harness that unwraps fails its test, as it should")]

pub mod artifacts;
pub mod client;
pub mod command;
pub mod grpc;
pub mod h2;
pub mod dns;
pub mod hold;
pub mod journal;
pub mod log;
pub mod named;
pub mod nginx;
pub mod origin;
pub mod proxy;
pub mod schema;
pub mod site;
pub mod stream;
pub mod tls;
pub mod tool;
pub mod traffic;

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// For anything to happen that a test waits for. Far beyond what it takes, so that only a hang meets it.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// Asks again and again until there is an answer.
///
/// # Panics
/// Where there is none at the deadline; `what` says what was waited for.
#[track_caller]
pub fn eventually<T>(what: &str, ask: impl FnMut() -> Option<T>) -> T {
    eventually_within(DEADLINE, what, ask)
}

/// The same with a deadline of its own, for what may rightly take longer.
///
/// # Panics
/// As [`eventually`].
#[track_caller]
pub fn eventually_within<T>(deadline: Duration, what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + deadline;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < until, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Holds one side of a test until the other has come so far.
#[derive(Clone, Debug, Default)]
pub struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    /// Lets everybody through, now and later.
    pub fn open(&self) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.0.1.notify_all();
    }

    /// Waits until it is open.
    ///
    /// # Panics
    /// At the deadline.
    #[track_caller]
    pub fn wait(&self) {
        let open = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (open, _) = self
            .0
            .1
            .wait_timeout_while(open, DEADLINE, |open| !*open)
            .unwrap_or_else(PoisonError::into_inner);
        assert!(*open, "a gate stayed shut");
    }
}
