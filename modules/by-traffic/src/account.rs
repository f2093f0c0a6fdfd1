//! The bytes that one endpoint has moved, in total and per weight.

use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicU32, AtomicU64};

use lb_api::WEIGHT_ONE;

/// The bytes of one endpoint. Instances that follow one another share it.
///
/// Bytes per weight take two divisions, which a scan over many endpoints has no time for. So they are worked out when
/// bytes are counted, and again where an instance looks that has another weight.
#[derive(Debug)]
pub(crate) struct Account {
    sent: AtomicU64,
    received: AtomicU64,
    /// Of `sent`, `received` and `weight`.
    traffic: AtomicU64,
    /// The weight that `traffic` is made with.
    weight: AtomicU32,
}

impl Account {
    pub(crate) fn new(sent: u64, received: u64) -> Self {
        Self {
            sent: AtomicU64::new(sent),
            received: AtomicU64::new(received),
            traffic: AtomicU64::new(0),
            // No scan compares with a weight of 0, so that the first that looks works `traffic` out.
            weight: AtomicU32::new(0),
        }
    }

    /// Bytes sent, and received.
    pub(crate) fn bytes(&self) -> (u64, u64) {
        (self.sent.load(Relaxed), self.received.load(Relaxed))
    }

    /// httpd's measure, at this weight, which is not 0.
    #[inline]
    pub(crate) fn traffic(&self, weight: u32) -> u64 {
        if self.weight.load(Relaxed) != weight {
            self.work_out(weight);
        }
        self.traffic.load(Relaxed)
    }

    /// Counts bytes that are going to be sent.
    pub(crate) fn charge(&self, bytes: u64, weight: u32) {
        // Never refused.
        let _ = self.sent.fetch_update(SeqCst, SeqCst, |sum| Some(sum.saturating_add(bytes)));
        self.work_out(weight);
    }

    /// Takes back what was charged, and counts these bytes in its place.
    pub(crate) fn settle(&self, charged: u64, sent: u64, received: u64, weight: u32) {
        let settled = |sum: u64| Some(sum.saturating_sub(charged).saturating_add(sent));
        // Never refused.
        let _ = self.sent.fetch_update(SeqCst, SeqCst, settled);
        let _ = self.received.fetch_update(SeqCst, SeqCst, |sum| Some(sum.saturating_add(received)));
        self.work_out(weight);
    }

    #[inline(never)]
    fn work_out(&self, weight: u32) {
        // Several threads may do this at once. All stores and loads here are in one order; whoever stores last looks again
        // after that, and so what stays is of the last bytes.
        loop {
            let (sent, received) = (self.sent.load(SeqCst), self.received.load(SeqCst));
            let traffic = measure(sent, received, lbfactor(weight));
            self.traffic.store(traffic, SeqCst);
            self.weight.store(weight, SeqCst);
            let stands = self.traffic.load(SeqCst) == traffic
                && self.weight.load(SeqCst) == weight
                && self.sent.load(SeqCst) == sent
                && self.received.load(SeqCst) == received;
            if stands {
                return;
            }
        }
    }
}

/// httpd's arithmetic: both are divided by themselves, and what is left over is dropped twice.
pub(crate) fn measure(sent: u64, received: u64, lbfactor: u64) -> u64 {
    let lbfactor = lbfactor.max(1);
    (sent / lbfactor).saturating_add(received / lbfactor)
}

/// The value of bytes that were moved at this effective weight, for an endpoint of this configured one.
pub(crate) fn at_weight(bytes: u64, configured: u32, effective: u32) -> u64 {
    if effective == configured || effective == 0 {
        return bytes;
    }
    let scaled = u128::from(bytes) * u128::from(configured) / u128::from(effective);
    u64::try_from(scaled).unwrap_or(u64::MAX)
}

/// httpd's: 100 for a weight of 1. Any weight but 0 counts for something.
pub(crate) fn lbfactor(weight: u32) -> u64 {
    (u64::from(weight) * 100).div_ceil(u64::from(WEIGHT_ONE))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use lb_api::Rng;

    use super::*;

    #[test]
    fn measures_as_httpd_does_whatever_the_bytes_and_weights() {
        let mut rng = Rng::new(3);
        let (account, mut transferred, mut read) = (Account::new(0, 0), 0_i64, 0_i64);
        for step in 0..10_000 {
            let (sent, received) = (rng.below(5_000), rng.below(1 << (step % 40)));
            let weight = 1 + rng.below(100) as u32;
            account.settle(0, sent, received, weight * WEIGHT_ONE);
            transferred += sent as i64;
            read += received as i64;
            // `worker->s->lbfactor`, and `is_best_bytraffic`.
            let lbfactor = i64::from(weight * 100);
            assert_eq!(account.bytes(), (transferred as u64, read as u64));
            let expected = (transferred / lbfactor + read / lbfactor) as u64;
            assert_eq!(account.traffic(weight * WEIGHT_ONE), expected, "step {step}");
        }
    }

    #[test]
    fn a_change_of_weight_is_seen_at_the_next_look() {
        let account = Account::new(1_000, 10_099);
        assert_eq!(account.traffic(WEIGHT_ONE), 10 + 100);
        assert_eq!(account.traffic(10 * WEIGHT_ONE), 1 + 10);
        assert_eq!(account.traffic(WEIGHT_ONE / 2), 20 + 201);
        // A weight so small that 1/100 is more.
        assert_eq!(account.traffic(1), 1_000 + 10_099);
    }

    #[test]
    fn bytes_of_slow_start_count_for_more_and_none_for_more_than_fits() {
        assert_eq!(at_weight(1_000, WEIGHT_ONE, WEIGHT_ONE), 1_000);
        assert_eq!(at_weight(1_000, 3 * WEIGHT_ONE, WEIGHT_ONE / 8), 24_000);
        assert_eq!(at_weight(1_000, WEIGHT_ONE, 0), 1_000, "the last resort");
        assert_eq!(at_weight(u64::MAX, WEIGHT_ONE, 1), u64::MAX);
        let account = Account::new(u64::MAX - 1, 0);
        account.charge(5, WEIGHT_ONE);
        assert_eq!(account.bytes(), (u64::MAX, 0));
    }

    #[test]
    fn threads_that_count_at_once_leave_the_measure_of_all_bytes() {
        for round in 0..200 {
            let account = Account::new(0, 0);
            let go = AtomicBool::new(false);
            std::thread::scope(|scope| {
                for _ in 0..3 {
                    scope.spawn(|| {
                        while !go.load(SeqCst) {
                            std::hint::spin_loop();
                        }
                        (0..50).for_each(|_| {
                            account.charge(9, 3 * WEIGHT_ONE);
                            account.settle(9, 7, 130, 3 * WEIGHT_ONE);
                        });
                    });
                }
                go.store(true, SeqCst);
            });
            assert_eq!(account.bytes(), (1_050, 19_500));
            // Not worked out anew by this look: the weight is the one that it was made with.
            assert_eq!(account.traffic(3 * WEIGHT_ONE), 3 + 65, "round {round}");
        }
    }
}
