//! One endpoint's latency as it is estimated: a moving average that jumps up to every peak and decays with time.
//!
//! Estimate and time of the last sample stand in one word, so that both are always of one moment and neither reading nor
//! writing takes a lock. The estimate is an `f32` of nanoseconds (7 digits), the time counts 65,536ths of the decay time
//! (1.5 parts in 100,000 of a decay). It wraps round after 65,536 decay times, a week for 10 s: an endpoint that is not
//! asked for just so long keeps an estimate that it should have lost, until it decays once more.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// Ticks of one decay time.
const TICKS: u32 = 1 << 16;

/// The clock of estimates.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Clock {
    /// Ticks of a nanosecond, in parts of 2^64.
    ticks: u64,
}

impl Clock {
    /// For this decay time, which is a millisecond or more, and so a tick is more than a nanosecond.
    pub(crate) fn new(decay: Duration) -> Self {
        Self { ticks: ((u128::from(TICKS) << 64) / decay.as_nanos().max(1_000_000)) as u64 }
    }

    #[inline]
    pub(crate) fn at(self, now_ns: u64) -> u32 {
        ((u128::from(now_ns) * u128::from(self.ticks)) >> 64) as u32
    }
}

/// See above.
#[derive(Debug)]
pub(crate) struct Estimate(AtomicU64);

#[derive(Clone, Copy, Debug, PartialEq)]
struct Word {
    ns: f32,
    /// None before anybody has looked: `build` reads no clock.
    at: Option<u32>,
}

impl Word {
    /// An estimate is never negative, so that its sign is free to say that there is no time yet.
    fn pack(self) -> u64 {
        let ns = if self.at.is_some() { self.ns } else { -self.ns };
        u64::from(ns.to_bits()) << 32 | u64::from(self.at.unwrap_or(0))
    }

    #[inline]
    fn unpack(word: u64) -> Self {
        let ns = f32::from_bits((word >> 32) as u32);
        Self { ns: ns.abs(), at: ns.is_sign_positive().then_some(word as u32) }
    }

    /// What is left of it at this time.
    #[inline]
    fn decayed(self, now: u32) -> f32 {
        self.ns * self.left(now)
    }

    /// e^(-elapsed / decay). The time goes back by a little where threads have read their clocks at about the same time.
    #[inline]
    fn left(self, now: u32) -> f32 {
        let elapsed = self.at.map_or(0, |at| now.wrapping_sub(at));
        if elapsed == 0 || elapsed > u32::MAX - TICKS {
            return 1.0;
        }
        exp_minus(elapsed as f32 / TICKS as f32)
    }
}

/// e^-x for an x of 0 or more.
#[inline]
fn exp_minus(x: f32) -> f32 {
    // An endpoint under load was sampled a moment ago. The next term, x³/6, is less than a millionth then, and the library's
    // way to it costs as much as all the rest of a choice.
    if x < 1.0 / 64.0 { 1.0 - x + x * x / 2.0 } else { (-x).exp() }
}

impl Estimate {
    /// Decays from when it is first looked at.
    pub(crate) fn new(ns: f64) -> Self {
        Self(AtomicU64::new(Word { ns: ns as f32, at: None }.pack()))
    }

    /// The estimate at this time, nanoseconds. Decays while there are no samples, and so an endpoint that was slow is tried
    /// again.
    #[inline]
    pub(crate) fn read(&self, now: u32) -> f32 {
        let packed = self.0.load(Relaxed);
        let word = Word::unpack(packed);
        if word.at.is_none() {
            self.begin(packed, now);
        }
        word.decayed(now)
    }

    #[cold]
    fn begin(&self, packed: u64, now: u32) {
        let begun = Word { at: Some(now), ..Word::unpack(packed) };
        // Whoever was faster has begun it, or has a sample.
        let _ = self.0.compare_exchange(packed, begun.pack(), Relaxed, Relaxed);
    }

    /// A request took so long.
    pub(crate) fn sample(&self, rtt_ns: f32, now: u32) {
        self.update(now, |word| {
            // A peak counts at once, anything less as much as time has passed.
            if word.ns < rtt_ns {
                return Some(rtt_ns);
            }
            let left = word.left(now);
            Some(word.ns * left + rtt_ns * (1.0 - left))
        });
    }

    /// A request took so long or longer, and nobody knows how long it would have taken.
    pub(crate) fn at_least(&self, ns: f32, now: u32) {
        self.update(now, |word| (word.decayed(now) < ns).then_some(ns));
    }

    fn update(&self, now: u32, to: impl Fn(Word) -> Option<f32>) {
        let _ = self.0.fetch_update(Relaxed, Relaxed, |packed| {
            to(Word::unpack(packed)).map(|ns| Word { ns, at: Some(now) }.pack())
        });
    }

    /// The estimate as of its last sample, and when that was.
    pub(crate) fn last(&self) -> (f32, Option<u32>) {
        let word = Word::unpack(self.0.load(Relaxed));
        (word.ns, word.at)
    }
}

/// What is left of these estimates at the time of the latest of them. An unknown time counts as that one.
pub(crate) fn as_of_the_latest(estimates: &[(f32, Option<u32>)]) -> impl Iterator<Item = f32> {
    let times = || estimates.iter().filter_map(|(_, at)| *at);
    // Times wrap round: later is what is less than half the way round ahead.
    let later = |a: u32, b: u32| if b.wrapping_sub(a) <= u32::MAX / 2 { b } else { a };
    let latest = times().reduce(later);
    estimates.iter().map(move |(ns, at)| Word { ns: *ns, at: *at }.decayed(latest.unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use lb_api::Rng;

    use super::*;

    const DECAY: Duration = Duration::from_secs(10);
    const MS: f64 = 1e6;

    /// tower's `RttEstimate`, word for word, with the time as an argument.
    struct Tower {
        update_at: f64,
        rtt_ns: f64,
    }

    impl Tower {
        fn update(&mut self, rtt: f64, now: f64) -> f64 {
            self.rtt_ns = if self.rtt_ns < rtt {
                rtt
            } else {
                let elapsed = now - self.update_at;
                let decay = (-elapsed / DECAY.as_nanos() as f64).exp();
                let recency = 1.0 - decay;
                (self.rtt_ns * decay) + (rtt * recency)
            };
            self.update_at = now;
            self.rtt_ns
        }

        fn read(&mut self, now: f64) -> f64 {
            self.update(0.0, now)
        }
    }

    #[track_caller]
    fn assert_near(found: f64, expected: f64) {
        assert!((found - expected).abs() <= 1e-3 * expected + 1.0, "{found} for {expected}");
    }

    #[test]
    fn is_what_tower_estimates_from_the_same_samples() {
        let clock = Clock::new(DECAY);
        let mut rng = Rng::new(1);
        for _ in 0..200 {
            let mut now = rng.below(1 << 50);
            let estimate = Estimate::new(1000.0 * MS);
            assert_eq!(estimate.read(clock.at(now)), 1e9);
            let mut tower = Tower { update_at: now as f64, rtt_ns: 1000.0 * MS };
            for _ in 0..rng.below(20) {
                now += rng.below(5_000_000_000);
                // From 1 ms to 4 s.
                let rtt = (1_u64 << (20 + rng.below(13))) as f64;
                estimate.sample(rtt as f32, clock.at(now));
                assert_near(estimate.last().0.into(), tower.update(rtt, now as f64));
            }
            now += rng.below(60_000_000_000);
            assert_near(estimate.read(clock.at(now)).into(), tower.read(now as f64));
        }
    }

    #[test]
    fn the_exponential_is_exact_to_a_millionth() {
        for step in 0..2_000_000_u32 {
            let x = step as f32 / 100_000.0;
            let (found, expected) = (f64::from(exp_minus(x)), (-f64::from(x)).exp());
            assert!((found / expected - 1.0).abs() < 1e-6, "{found} for e^-{x}");
        }
        assert_eq!(exp_minus(65_536.0), 0.0);
    }

    /// tower's own tests, `default_decay` and `compound_decay`.
    #[test]
    fn tower_s_examples_come_out() {
        let clock = Clock::new(Duration::from_secs(1));
        let at = |ms: u64| clock.at(ms * 1_000_000);
        let estimate = Estimate::new(10.0 * MS);
        let read = |ms| f64::from(estimate.read(at(ms))) / MS;
        assert_eq!(read(0), 10.0);
        assert!((9.0..10.0).contains(&read(100)) && (8.0..9.0).contains(&read(200)));
        estimate.sample(200e6, at(300));
        assert_eq!(read(300), 200.0);
        estimate.sample(200e6, at(400));
        assert_eq!(read(400).round(), 200.0);
        assert!(read(1_400) < 100.0 && read(11_400) < 0.1);
    }

    #[test]
    fn a_reading_changes_nothing() {
        let estimate = Estimate::new(7.0);
        assert_eq!((estimate.read(5), estimate.last()), (7.0, (7.0, Some(5))));
        assert!(estimate.read(5 + 65_536) < 2.6);
        assert_eq!(estimate.last(), (7.0, Some(5)));
    }

    #[test]
    fn a_request_without_an_end_raises_and_never_lowers() {
        let estimate = Estimate::new(50.0);
        let _ = estimate.read(0);
        estimate.at_least(49.0, 0);
        assert_eq!(estimate.last(), (50.0, Some(0)));
        estimate.at_least(80.0, 10);
        assert_eq!(estimate.last(), (80.0, Some(10)));
        // 80 has decayed to 29 by then.
        estimate.at_least(30.0, 10 + 65_536);
        assert_eq!(estimate.last(), (30.0, Some(10 + 65_536)));
    }

    #[test]
    fn the_clock_may_wrap_round_and_go_back_a_little() {
        let estimate = Estimate::new(0.0);
        estimate.sample(1000.0, u32::MAX - 10);
        assert_eq!(estimate.read(u32::MAX - 20), 1000.0);
        assert_near(estimate.read(65_525).into(), 1000.0 / std::f64::consts::E);
    }

    #[test]
    fn saved_estimates_are_of_the_time_of_the_latest() {
        let e = std::f32::consts::E;
        let estimates = [(100.0, Some(u32::MAX - 65_535)), (30.0, Some(0)), (5.0, None)];
        let decayed: Vec<_> = as_of_the_latest(&estimates).collect();
        assert_near(decayed[0].into(), f64::from(100.0 / e));
        assert_eq!(decayed[1..], [30.0, 5.0]);
        assert_eq!(as_of_the_latest(&[(5.0, None)]).collect::<Vec<_>>(), [5.0]);
    }

    #[test]
    fn no_peak_is_lost_between_threads() {
        for _ in 0..100 {
            let estimate = Estimate::new(1.0);
            std::thread::scope(|scope| {
                for thread in 0..4_u16 {
                    let estimate = &estimate;
                    scope.spawn(move || {
                        (0..100_u16).for_each(|step| estimate.sample(f32::from(10 * step + thread), 7));
                    });
                }
            });
            assert_eq!(estimate.last().0, 993.0);
        }
    }
}
