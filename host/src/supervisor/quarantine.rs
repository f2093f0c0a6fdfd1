//! Module files that are quarantined because workers died of them; and the pause before a worker is replaced.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

/// Deaths that are further apart have nothing to do with each other.
const WINDOW: Duration = Duration::from_secs(60);
/// A worker that ran for as long has shown that it can.
const PROVEN: Duration = Duration::from_secs(10);
/// The longest wait before a worker is replaced.
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// The first wait, which the second death in a row brings.
const FIRST_WAIT: Duration = Duration::from_millis(100);

type Hash = [u8; 32];

/// Module files by hash: another build is another file.
#[derive(Debug, Default)]
pub(super) struct FileQuarantine {
    deaths: BTreeMap<Hash, VecDeque<Instant>>,
    held: BTreeMap<Hash, HeldFile>,
}

/// A file in quarantine.
#[derive(Clone, Debug)]
pub(super) struct HeldFile {
    pub(super) module: String,
    pub(super) since: Instant,
    pub(super) reason: String,
}

impl FileQuarantine {
    /// A worker died of a module. True where its file is in quarantine from now on: it has brought down `limit` workers
    /// within a minute. 0 is no limit.
    pub(super) fn died(&mut self, file: Hash, module: &str, reason: &str, limit: u32, now: Instant) -> bool {
        let deaths = self.deaths.entry(file).or_default();
        deaths.push_back(now);
        while deaths.front().is_some_and(|first| now.saturating_duration_since(*first) > WINDOW) {
            deaths.pop_front();
        }
        if limit == 0 || deaths.len() < limit as usize || self.held.contains_key(&file) {
            return false;
        }
        let held = HeldFile { module: module.to_owned(), since: now, reason: reason.to_owned() };
        self.held.insert(file, held);
        true
    }

    /// Whether this file is not to be opened.
    pub(super) fn holds(&self, file: &Hash) -> bool {
        self.held.contains_key(file)
    }

    /// Lets all files go that had this module ID; false where there is none.
    pub(super) fn release(&mut self, module: &str) -> bool {
        let released: Vec<Hash> =
            self.held.iter().filter(|(_, held)| held.module == module).map(|(file, _)| *file).collect();
        for file in &released {
            self.held.remove(file);
            self.deaths.remove(file);
        }
        !released.is_empty()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Hash, &HeldFile)> {
        self.held.iter()
    }
}

/// How long to wait before the next worker is started.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    n_in_a_row: u32,
}

impl Backoff {
    /// A worker died after it had served for so long: the first is replaced at once, then ever later while they die young.
    pub(super) fn died(&mut self, served: Duration) -> Duration {
        if served >= PROVEN {
            self.n_in_a_row = 0;
        }
        let wait = match self.n_in_a_row {
            0 => Duration::ZERO,
            n => (FIRST_WAIT * 2_u32.saturating_pow(n - 1).min(1000)).min(LONGEST_WAIT),
        };
        self.n_in_a_row = self.n_in_a_row.saturating_add(1);
        wait
    }

    /// Forgets the deaths so far.
    pub(super) fn reset(&mut self) {
        self.n_in_a_row = 0;
    }
}

/// When it is tried again.
pub(super) fn next_attempt(wait: Duration) -> String {
    if wait.is_zero() { "restarting now".to_owned() } else { format!("next attempt in {wait:?}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn two_deaths_within_a_minute_are_too_many() {
        let (start, mut quarantine) = (Instant::now(), FileQuarantine::default());
        assert!(!quarantine.died([1; 32], "a", "x", 2, start));
        assert!(!quarantine.died([1; 32], "a", "x", 2, start + seconds(61)), "the first is too long ago");
        assert!(!quarantine.died([2; 32], "a", "x", 2, start + seconds(62)), "another file");
        assert!(quarantine.died([1; 32], "a", "SIGSEGV", 2, start + seconds(100)));
        assert!(quarantine.holds(&[1; 32]) && !quarantine.holds(&[2; 32]));
        assert_eq!(quarantine.iter().next().unwrap().1.reason, "SIGSEGV");
    }

    #[test]
    fn a_file_that_is_released_begins_anew() {
        let (start, mut quarantine) = (Instant::now(), FileQuarantine::default());
        quarantine.died([1; 32], "a", "x", 1, start);
        assert!(!quarantine.release("b") && quarantine.release("a"));
        assert!(!quarantine.holds(&[1; 32]));
        assert!(!quarantine.died([1; 32], "a", "x", 2, start), "its deaths are forgiven");
    }

    #[test]
    fn no_limit_is_no_limit() {
        let (start, mut quarantine) = (Instant::now(), FileQuarantine::default());
        assert!((0..100).all(|_| !quarantine.died([1; 32], "a", "x", 0, start)));
    }

    #[test]
    fn the_wait_grows_while_workers_die_young_and_never_beyond_ten_seconds() {
        let mut backoff = Backoff::default();
        let waits: Vec<u128> = (0..9).map(|_| backoff.died(Duration::ZERO).as_millis()).collect();
        assert_eq!(waits, [0, 100, 200, 400, 800, 1600, 3200, 6400, 10_000]);
        assert_eq!(backoff.died(seconds(10)), Duration::ZERO);
        assert_eq!(backoff.died(seconds(1)), FIRST_WAIT);
        assert!((0..100).all(|_| backoff.died(Duration::ZERO) <= LONGEST_WAIT));
    }
}
