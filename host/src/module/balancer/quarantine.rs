//! Quarantine of a balancer: after too many faults it gets no more requests.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Time for which a fault counts towards the limit.
pub(super) const WINDOW: Duration = Duration::from_secs(60);

/// Whether a balancer is in quarantine, and the times of its last faults. It stays in quarantine until the next reload, which
/// builds another one.
#[derive(Debug)]
pub(super) struct Quarantine {
    is_in: AtomicBool,
    n_faults: AtomicU64,
    /// Time of each of the last faults, in milliseconds plus one; 0 is none. There are as many as the limit, the n-th at n modulo
    /// the limit. No lock: faults come from threads that serve.
    times: Box<[AtomicU64]>,
}

impl Quarantine {
    /// Quarantine after this many faults within [`WINDOW`]; 0 is never.
    pub(super) fn after(limit: u32) -> Self {
        Self {
            is_in: AtomicBool::new(false),
            n_faults: AtomicU64::new(0),
            times: (0..limit).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    #[inline]
    pub(super) fn is_in(&self) -> bool {
        self.is_in.load(Ordering::Relaxed)
    }

    /// Puts it in at once; false if it was in already.
    pub(super) fn enter(&self) -> bool {
        !self.is_in.swap(true, Ordering::Relaxed)
    }

    pub(super) fn limit(&self) -> usize {
        self.times.len()
    }

    /// Counts a fault; true for the one that begins the quarantine. If several threads count at once, one may read a time that
    /// another is about to write; then the next fault begins it.
    pub(super) fn fault(&self, now: Duration) -> bool {
        let limit = self.times.len() as u64;
        if limit == 0 {
            return false;
        }
        let n = self.n_faults.fetch_add(1, Ordering::Relaxed);
        let now_ms = now.as_millis() as u64 + 1;
        self.times[(n % limit) as usize].store(now_ms, Ordering::Relaxed);
        let oldest_ms = self.times[((n + 1) % limit) as usize].load(Ordering::Relaxed);
        let is_too_much = oldest_ms != 0 && now_ms.saturating_sub(oldest_ms) < WINDOW.as_millis() as u64;
        is_too_much && self.enter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Which of faults at these seconds is too much, under a limit of three.
    fn too_much(seconds: &[u64]) -> Option<usize> {
        let quarantine = Quarantine::after(3);
        let at = seconds.iter().position(|s| quarantine.fault(Duration::from_secs(*s)));
        assert_eq!(quarantine.is_in(), at.is_some());
        at
    }

    #[test]
    fn as_many_as_the_limit_within_a_minute_are_too_much() {
        assert_eq!(too_much(&[0, 0]), None);
        assert_eq!(too_much(&[0, 0, 0]), Some(2));
        assert_eq!(too_much(&[5, 30, 64]), Some(2));
        assert_eq!(too_much(&[5, 30, 65]), None);
        assert_eq!(too_much(&[0, 30, 60, 90, 120]), None, "the older ones no longer count");
        assert_eq!(too_much(&[0, 30, 60, 61, 62, 63]), Some(3));
    }

    #[test]
    fn a_limit_of_one_suffers_none_and_a_limit_of_zero_any() {
        assert!(Quarantine::after(1).fault(Duration::ZERO));
        let never = Quarantine::after(0);
        assert!((0..1000).all(|_| !never.fault(Duration::ZERO)));
        assert!(!never.is_in());
    }

    #[test]
    fn it_begins_once() {
        let quarantine = Quarantine::after(2);
        let began: Vec<bool> = (0..6).map(|_| quarantine.fault(Duration::from_secs(1))).collect();
        assert_eq!(began, [false, true, false, false, false, false]);
    }

    #[test]
    fn many_threads_at_once_begin_it_once() {
        let quarantine = Quarantine::after(100);
        let began = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        began.fetch_add(u64::from(quarantine.fault(Duration::ZERO)), Ordering::Relaxed);
                    }
                });
            }
        });
        assert_eq!(began.load(Ordering::Relaxed), 1);
    }
}
