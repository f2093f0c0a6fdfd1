//! Knowledge of one server from its reports, and its age.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// No time: there is no report, or none that counts.
const NEVER: u64 = u64::MAX;

/// Added to the host's clock, which begins with each process: reports that an earlier one got were before that. Twice the
/// longest time that any setting may be.
const CLOCK_BEGINS_NS: u64 = 48 * 3600 * 1_000_000_000;

/// Bytes of one server in what is saved.
const SAVED_BYTES: usize = 32;

/// A server's last report. Its parts are written one by one: who reads between them takes a weight for one report older
/// than it is.
#[derive(Debug)]
pub(crate) struct Learned {
    weight: AtomicU32,
    /// Since when reports have come without a gap.
    since_ns: AtomicU64,
    last_ns: AtomicU64,
}

/// How long reports count.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Periods {
    pub(crate) blackout_ns: u64,
    pub(crate) expiry_ns: u64,
}

impl Default for Learned {
    fn default() -> Self {
        Self { weight: AtomicU32::new(0), since_ns: AtomicU64::new(NEVER), last_ns: AtomicU64::new(NEVER) }
    }
}

impl Learned {
    pub(crate) fn report(&self, weight: u32, now_ns: u64) {
        let now_ns = now_ns.saturating_add(CLOCK_BEGINS_NS);
        self.weight.store(weight, Relaxed);
        self.last_ns.store(now_ns, Relaxed);
        // Somebody else's moment is as good as this one.
        let _ = self.since_ns.compare_exchange(NEVER, now_ns, Relaxed, Relaxed);
    }

    /// The weight, if reports have come for as long as the blackout is and the last is not expired. After a gap that
    /// long the blackout begins anew.
    pub(crate) fn weight(&self, now_ns: u64, periods: Periods) -> Option<u32> {
        let now_ns = now_ns.saturating_add(CLOCK_BEGINS_NS);
        let (since, last) = (self.since_ns.load(Relaxed), self.last_ns.load(Relaxed));
        // A report of another thread may be a little ahead of this thread's clock.
        if since == NEVER || now_ns.saturating_sub(since) < periods.blackout_ns {
            return None;
        }
        if now_ns.saturating_sub(last) > periods.expiry_ns {
            self.since_ns.store(NEVER, Relaxed);
            return None;
        }
        Some(self.weight.load(Relaxed))
    }
}

/// The learned state of servers, by their ids: for each that has reported id, weight, and for how long reports have come and for
/// how long none has, 64 bits each, little-endian. No process knows the time of another, so these are the ages at `now_ns`.
pub(crate) fn save<'a>(servers: impl Iterator<Item = (u64, &'a Learned)>, now_ns: u64) -> Vec<u8> {
    let now_ns = now_ns.saturating_add(CLOCK_BEGINS_NS);
    let age = |time: &AtomicU64| now_ns.saturating_sub(time.load(Relaxed));
    let reporting = servers.filter(|(_, learned)| learned.since_ns.load(Relaxed) != NEVER);
    let saved = reporting.flat_map(|(id, learned)| {
        let weight = learned.weight.load(Relaxed).into();
        [id, weight, age(&learned.since_ns), age(&learned.last_ns)]
    });
    saved.flat_map(u64::to_le_bytes).collect()
}

/// The saved state, as if the process began in that moment.
pub(crate) fn restore(saved: &[u8]) -> HashMap<u64, Arc<Learned>> {
    let server = |bytes: &[u8]| {
        let number = |at: usize| bytes[at..at + 8].iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte));
        let time = |at: usize| AtomicU64::new(CLOCK_BEGINS_NS.saturating_sub(number(at)));
        let weight = u32::try_from(number(8)).unwrap_or(u32::MAX);
        (number(0), Arc::new(Learned { weight: weight.into(), since_ns: time(16), last_ns: time(24) }))
    };
    saved.chunks_exact(SAVED_BYTES).map(server).collect()
}

/// The middle one of these, or the mean of the two in the middle, as Envoy has it for servers without a weight of their
/// own.
pub(crate) fn median(weights: &mut [u32]) -> Option<u32> {
    weights.sort_unstable();
    let middle = weights.len() / 2;
    let upper = *weights.get(middle)?;
    if weights.len() % 2 == 1 {
        return Some(upper);
    }
    Some(((u64::from(weights[middle - 1]) + u64::from(upper)) / 2) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERIODS: Periods = Periods { blackout_ns: 10, expiry_ns: 180 };

    #[test]
    fn counts_after_the_blackout_and_until_it_expires() {
        let learned = Learned::default();
        assert_eq!(learned.weight(1000, PERIODS), None);
        learned.report(7, 1000);
        assert_eq!(learned.weight(1009, PERIODS), None);
        assert_eq!(learned.weight(1010, PERIODS), Some(7));
        assert_eq!(learned.weight(1180, PERIODS), Some(7));
        assert_eq!(learned.weight(1181, PERIODS), None);
    }

    #[test]
    fn each_report_puts_the_expiry_off_but_not_the_blackout() {
        let learned = Learned::default();
        learned.report(7, 1000);
        learned.report(8, 1009);
        assert_eq!(learned.weight(1010, PERIODS), Some(8));
        assert_eq!(learned.weight(1189, PERIODS), Some(8));
        assert_eq!(learned.weight(1190, PERIODS), None);
        // It had expired, and so the blackout begins again.
        learned.report(9, 1200);
        assert_eq!(learned.weight(1205, PERIODS), None);
        assert_eq!(learned.weight(1210, PERIODS), Some(9));
    }

    #[test]
    fn a_clock_that_is_behind_is_no_expiry() {
        let learned = Learned::default();
        learned.report(7, 1000);
        let at_once = Periods { blackout_ns: 0, expiry_ns: 180 };
        assert_eq!(learned.weight(990, at_once), Some(7));
    }

    #[test]
    fn a_process_goes_on_where_the_one_before_was() {
        let (learned, silent) = (Learned::default(), Learned::default());
        learned.report(7, 1000);
        learned.report(8, 1100);
        let saved = save([(1, &learned), (2, &silent)].into_iter(), 1150);
        let restored = restore(&saved);
        assert_eq!(restored.len(), 1, "nothing is known of the other");
        let learned = &restored[&1];
        assert_eq!(learned.weight(0, PERIODS), Some(8), "its blackout was over");
        assert_eq!(learned.weight(130, PERIODS), Some(8));
        assert_eq!(learned.weight(131, PERIODS), None, "50 and 131 are more than 180");
        // Ages that are longer than anything counts.
        let ages = [1, 9, u64::MAX, u64::MAX].map(u64::to_le_bytes).concat();
        assert_eq!(restore(&ages)[&1].weight(0, PERIODS), None);
    }

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(&mut []), None);
        assert_eq!(median(&mut [5]), Some(5));
        assert_eq!(median(&mut [9, 1, 5]), Some(5));
        assert_eq!(median(&mut [9, 1, 4, 100]), Some(6));
        assert_eq!(median(&mut [u32::MAX, u32::MAX]), Some(u32::MAX));
    }
}
