//! The reachability of one address: whether it takes connections, and when an address that failed is tried again.
//!
//! Shared by all threads, and kept over look-ups for as long as the name has the address.
//!
//! An address that fails waits for 5 s. Then one connection tries it again, and each failure of such a trial doubles the wait.
//! Connections that were under way at the first failure, or that are made while the address waits, say nothing new:
//!
//! ```text
//! connections  ─x x x─ ─ ─ ─x─ ─ ─ ─x (the trial)─ ─ ─x─ ─ ─ ─ ─ ─ ─ ─x (the trial)
//! wait           │◄──── 5 s ────►│   │◄───────── 10 s ─────────►│      │◄── 20 s ─ ─
//! ```

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// The wait after the first failure. It doubles with each failed trial.
const SHORTEST_PAUSE: Duration = Duration::from_secs(5);
/// The longest wait.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Failures after which the wait is the longest.
const MAX_FAILURES: u64 = 5;

/// One address.
#[derive(Debug, Default)]
pub(crate) struct Reach(
    /// A [`Pause`]; 0 while the address takes connections. One word, so that no thread sees half of a change.
    AtomicU64,
);

/// An address that failed waits.
#[derive(Clone, Copy, Debug)]
struct Pause {
    /// When the wait ends, by [`clock`].
    end_ms: u64,
    /// From 1 up to [`MAX_FAILURES`].
    failures: u64,
    /// A trial is under way. Until the wait ends there is no other.
    is_on_trial: bool,
}

impl Reach {
    /// It took a connection. One load where it did before.
    pub(crate) fn worked(&self) {
        if !self.is_well() {
            self.0.store(0, Relaxed);
        }
    }

    /// A connection that began then has failed, or others were made much sooner.
    pub(crate) fn failed(&self, began: Instant, now: Instant) {
        let next = |word: u64| {
            let failures = match Pause::of(word) {
                None => 1,
                Some(pause) if pause.is_answered_by(began) => (pause.failures + 1).min(MAX_FAILURES),
                Some(_) => return None,
            };
            let end_ms = clock(now + length(failures));
            Some(Pause { end_ms, failures, is_on_trial: false }.word())
        };
        // Refused where the failure is no news.
        let _ = self.0.fetch_update(Relaxed, Relaxed, next);
    }

    /// Whether its last connection did not fail.
    pub(crate) fn is_well(&self) -> bool {
        self.0.load(Relaxed) == 0
    }

    /// Whether it is tried before those that failed: it is well, or its wait is over. One caller alone is told of the latter,
    /// and is to try it.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        let word = self.0.load(Relaxed);
        let Some(pause) = Pause::of(word) else { return true };
        if clock(now) < pause.end_ms {
            return false;
        }
        let trial = Pause { end_ms: clock(now + pause.trial_length()), is_on_trial: true, ..pause };
        self.0.compare_exchange(word, trial.word(), Relaxed, Relaxed).is_ok()
    }
}

impl Pause {
    fn of(word: u64) -> Option<Self> {
        let pause = Self { end_ms: word >> 4, failures: word >> 1 & 7, is_on_trial: word & 1 != 0 };
        (word != 0).then_some(pause)
    }

    fn word(self) -> u64 {
        self.end_ms << 4 | self.failures << 1 | u64::from(self.is_on_trial)
    }

    /// Whether a connection that began then is a new trial of the address.
    fn is_answered_by(self, began: Instant) -> bool {
        let trial_ms = match self.is_on_trial {
            true => self.end_ms.saturating_sub(milliseconds(self.trial_length())),
            false => self.end_ms,
        };
        clock(began) >= trial_ms
    }

    /// How long a trial is the only one.
    fn trial_length(self) -> Duration {
        length((self.failures + 1).min(MAX_FAILURES))
    }
}

/// The wait after so many failures.
fn length(failures: u64) -> Duration {
    (SHORTEST_PAUSE * (1 << (failures - 1))).min(LONGEST_PAUSE)
}

/// Milliseconds since the first call in this process, and 1.
fn clock(time: Instant) -> u64 {
    static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);
    milliseconds(time.saturating_duration_since(*BEGAN)).saturating_add(1)
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_failed_is_due_after_pauses_that_grow_and_for_one_caller_each_time() {
        let (reach, mut now) = (Reach::default(), Instant::now());
        assert!(reach.is_due(now) && reach.is_due(now));
        for pause in [5, 10, 20, 40, 60, 60] {
            reach.failed(now, now);
            assert!(!reach.is_due(now + Duration::from_millis(pause * 1000 - 2)), "{pause} s");
            now += Duration::from_secs(pause);
            assert!(reach.is_due(now), "{pause} s");
            assert!(!reach.is_due(now), "one is enough");
        }
        reach.worked();
        assert!(reach.is_due(now) && reach.is_due(now));
        reach.failed(now, now);
        assert!(reach.is_due(now + SHORTEST_PAUSE), "it begins anew");
    }

    /// They raised the count one by one: 64 connections that failed at once were ten failures in a row, and a minute.
    #[test]
    fn connections_that_fail_together_are_one_failure() {
        let (reach, now) = (Reach::default(), Instant::now());
        let after = |ms: u64| now + Duration::from_millis(ms);
        for i in 0..64 {
            reach.failed(now, after(10 * i));
        }
        // Where every address is ill, all are tried all the time.
        reach.failed(after(4000), after(4001));
        assert!(reach.is_due(after(5000)), "the wait began with the first");
        // One that hung since the beginning, and then the trial with others beside it.
        reach.failed(now, after(5001));
        assert!(!reach.is_due(after(5002)));
        for i in 0..64 {
            reach.failed(after(5000 + i), after(5100));
        }
        assert!(!reach.is_due(after(15_099)) && reach.is_due(after(15_101)), "the second wait");
    }

    #[test]
    fn a_trial_that_nobody_heard_of_again_is_made_again() {
        let (reach, now) = (Reach::default(), Instant::now());
        reach.failed(now, now);
        let trial = now + SHORTEST_PAUSE;
        assert!(reach.is_due(trial));
        assert!(!reach.is_due(trial + SHORTEST_PAUSE), "it may still end");
        assert!(reach.is_due(trial + 2 * SHORTEST_PAUSE));
    }
}
