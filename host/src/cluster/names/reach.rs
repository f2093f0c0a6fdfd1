//! What dialling has learned of one address: whether it takes connections, and when one that did not is tried again.
//!
//! Shared by all threads and kept over look-ups for as long as the name has the address.

use std::sync::LazyLock;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// After its first failure an address is tried again so much later, by one connection; then after twice as long each time.
const SHORTEST_PAUSE: Duration = Duration::from_secs(5);
/// No pause is longer.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Doublings after which the longest pause is reached.
const MAX_DOUBLINGS: u32 = 4;

/// One address.
#[derive(Debug, Default)]
pub struct Reach {
    /// When it may be tried again, in milliseconds of [`clock`]; 0 where it did not fail.
    retry_ms: AtomicU64,
    failures: AtomicU32,
}

impl Reach {
    /// It took a connection. One load where it did before.
    pub(crate) fn worked(&self) {
        if self.retry_ms.load(Relaxed) != 0 {
            self.retry_ms.store(0, Relaxed);
            self.failures.store(0, Relaxed);
        }
    }

    /// It did not, or others did so much sooner.
    pub(crate) fn failed(&self, now: Instant) {
        let failures = self.failures.fetch_add(1, Relaxed).min(MAX_DOUBLINGS);
        self.retry_ms.store(clock(now + pause(failures)), Relaxed);
    }

    /// Whether it did not fail.
    pub(crate) fn is_well(&self) -> bool {
        self.retry_ms.load(Relaxed) == 0
    }

    /// Whether it is to be tried before those that failed: it did not fail itself, or it is time to try it again, which one
    /// caller is told alone.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        let retry_ms = self.retry_ms.load(Relaxed);
        if retry_ms == 0 {
            return true;
        }
        if clock(now) < retry_ms {
            return false;
        }
        let next = clock(now + pause(self.failures.load(Relaxed).min(MAX_DOUBLINGS)));
        self.retry_ms.compare_exchange(retry_ms, next, Relaxed, Relaxed).is_ok()
    }
}

fn pause(doublings: u32) -> Duration {
    (SHORTEST_PAUSE * (1 << doublings)).min(LONGEST_PAUSE)
}

/// Milliseconds since the first call in this process, and 1.
fn clock(time: Instant) -> u64 {
    static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);
    let elapsed = time.saturating_duration_since(*BEGAN).as_millis();
    u64::try_from(elapsed).unwrap_or(u64::MAX).saturating_add(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_failed_is_due_again_after_pauses_that_grow_and_for_one_caller_each_time() {
        let (reach, mut now) = (Reach::default(), Instant::now());
        assert!(reach.is_due(now) && reach.is_due(now));
        for pause in [5, 10, 20, 40, 60, 60] {
            reach.failed(now);
            assert!(!reach.is_due(now + Duration::from_millis(pause * 1000 - 2)), "{pause} s");
            now += Duration::from_secs(pause);
            assert!(reach.is_due(now), "{pause} s");
            assert!(!reach.is_due(now), "one is enough");
        }
        reach.worked();
        assert!(reach.is_due(now) && reach.is_due(now));
        reach.failed(now);
        assert!(reach.is_due(now + SHORTEST_PAUSE), "it begins anew");
    }
}
