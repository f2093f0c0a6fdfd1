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

    /// Its value at this time, decayed.
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
        // Another thread was faster: it has begun, or has a sample.
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

/// These estimates, decayed to the time of the latest of them. An unknown time counts as that one.
pub(crate) fn as_of_the_latest(estimates: &[(f32, Option<u32>)]) -> impl Iterator<Item = f32> {
    let times = || estimates.iter().filter_map(|(_, at)| *at);
    // Times wrap round: later is what is less than half the way round ahead.
    let later = |a: u32, b: u32| if b.wrapping_sub(a) <= u32::MAX / 2 { b } else { a };
    let latest = times().reduce(later);
    estimates.iter().map(move |(ns, at)| Word { ns: *ns, at: *at }.decayed(latest.unwrap_or(0)))
}

#[cfg(test)]
mod tests;
