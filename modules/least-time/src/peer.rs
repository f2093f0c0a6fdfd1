//! The average time of one endpoint, in nginx's whole milliseconds.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU32, AtomicU64};

/// Kept one after the other for all endpoints, because a scan that follows a pointer to each takes half as long again.
#[derive(Debug)]
pub(crate) struct Peer {
    /// Average time of responses, ms, in the upper half, 0 while nothing is known; in the lower half what it is in steps, so
    /// that a scan need not divide.
    time: AtomicU64,
    /// When it was last found worth a new look: seconds, or one of the constants below.
    checked: AtomicU32,
    /// Shared by all instances that follow one another.
    inflight: Arc<InFlight>,
}

/// Requests to one endpoint that have no answer yet. Behind a pointer, which only a look at their age follows.
#[derive(Debug, Default)]
struct InFlight {
    /// Average age of what is in flight, ms, as it was at each look.
    time: AtomicU32,
    /// Requests without an answer in the lower [`COUNT_BITS`], and the sum of the milliseconds at which they began in the
    /// others, where it wraps round. One word, so that both are always of one moment.
    begun: AtomicU64,
}

/// A request that has no answer yet. It counts until it is dropped, whatever happens to it, and whichever instance it began in.
#[derive(Debug)]
pub(crate) struct Waiting {
    inflight: Arc<InFlight>,
    begun: u64,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.inflight.begun.fetch_sub(self.begun, Relaxed);
    }
}

/// Enough for a million requests to one endpoint.
const COUNT_BITS: u32 = 20;

/// Never chosen, and so nothing is known. (nginx has 0, so long ago that any time would count as nothing.)
const NEVER: u32 = u32::MAX;
/// Nobody knows when, since it is from saved state: the next look counts as that.
const RESTORED: u32 = 0;

/// More seconds than a time-out has.
const EARLY: u32 = 24 * 3600 + 1;

/// The time of a look, and what it is compared with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Look {
    ms: u64,
    /// Counted from so early that [`RESTORED`] is longer ago than any time-out.
    secs: u32,
    fail_timeout_secs: u32,
    /// A server checked before that was checked longer ago than the time-out.
    oldest: u32,
}

impl Look {
    /// At this time; the time-out is a day at most.
    pub(crate) fn new(now_ns: u64, fail_timeout_secs: u32) -> Self {
        let secs = (now_ns / 1_000_000_000) as u32 + EARLY;
        Self {
            ms: now_ns / 1_000_000,
            secs,
            fail_timeout_secs,
            oldest: secs.saturating_sub(fail_timeout_secs),
        }
    }
}

impl Peer {
    pub(crate) fn unknown() -> Self {
        Self::with(0, NEVER)
    }

    pub(crate) fn restored(time: u32) -> Self {
        Self::with(time, if time == 0 { NEVER } else { RESTORED })
    }

    fn with(time: u32, checked: u32) -> Self {
        Self { time: AtomicU64::new(pack(time)), checked: AtomicU32::new(checked), inflight: Arc::default() }
    }

    /// The same as known now, for an instance that takes over; what is in flight is counted for both.
    pub(crate) fn taken_over(&self) -> Self {
        Self { inflight: Arc::clone(&self.inflight), ..Self::with(self.time(), self.checked.load(Relaxed)) }
    }

    /// The average time, for those who save it.
    pub(crate) fn time(&self) -> u32 {
        (self.time.load(Relaxed) >> 32) as u32
    }

    /// A response took so long.
    pub(crate) fn learn(&self, ms: u32) {
        let update = |packed: u64| Some(pack(average((packed >> 32) as u32, ms)));
        // It always has an answer.
        let _ = self.time.fetch_update(Relaxed, Relaxed, update);
        if self.checked.load(Relaxed) == NEVER {
            // Stickiness sent it requests before it was ever chosen.
            self.checked.store(RESTORED, Relaxed);
        }
    }

    /// The time that a request is expected to take, in nginx's steps, of which there are 251.
    ///
    /// Nothing on its way is a call, for which a scan would have to keep its registers free: hence `inline(always)` below.
    #[inline]
    pub(crate) fn expected_ms(&self, look: &Look) -> u64 {
        if self.checked.load(Relaxed) < look.oldest {
            cold();
            return step(self.halved_ms(look)).into();
        }
        self.time.load(Relaxed) & u64::from(u32::MAX)
    }

    /// The same, or how long those in flight have waited where that is more.
    #[inline]
    pub(crate) fn expected_with_inflight_ms(&self, look: &Look) -> u64 {
        match self.inflight.begun.load(Relaxed) {
            0 => self.expected_ms(look),
            inflight => step(self.halved_ms(look).max(self.look_at_inflight(inflight, look.ms))).into(),
        }
    }

    #[inline(always)]
    fn halved_ms(&self, look: &Look) -> u32 {
        self.time() >> self.halvings(look).min(31)
    }

    /// Once in the time-out an endpoint's time is halved, so that a slow one gets another chance.
    #[inline(always)]
    fn halvings(&self, look: &Look) -> u32 {
        let checked = match self.checked.load(Relaxed) {
            RESTORED => {
                self.checked.store(look.secs, Relaxed);
                look.secs
            }
            checked => checked,
        };
        if checked < look.oldest { (look.secs - checked) / (look.fail_timeout_secs + 1) } else { 0 }
    }

    /// The average age of what is in flight, averaged over the looks at it.
    fn look_at_inflight(&self, inflight: u64, now_ms: u64) -> u32 {
        let count = inflight & ((1 << COUNT_BITS) - 1);
        // In the upper bits, where the sum of beginnings wraps round and the sum of ages does not. Threads read their clocks
        // at about the same time only, so that an age may be less than nothing.
        let ages = (count.wrapping_mul(now_ms) << COUNT_BITS).wrapping_sub(inflight - count);
        let ages = (ages.cast_signed() >> COUNT_BITS).max(0).cast_unsigned();
        let age = ages / count.max(1);
        let time = average(self.inflight.time.load(Relaxed), u32::try_from(age).unwrap_or(u32::MAX));
        self.inflight.time.store(time, Relaxed);
        time
    }

    /// It was chosen.
    #[inline]
    pub(crate) fn choose(&self, look: &Look) {
        let checked = self.checked.load(Relaxed);
        if checked == NEVER || checked < look.oldest {
            self.checked.store(look.secs, Relaxed);
        }
    }

    /// A request to it begins at this time.
    pub(crate) fn begin(&self, look: &Look) -> Waiting {
        let begun = (look.ms << COUNT_BITS).wrapping_add(1);
        self.inflight.begun.fetch_add(begun, Relaxed);
        Waiting { inflight: Arc::clone(&self.inflight), begun }
    }
}

/// Says which way is rarely taken, as `std::hint::cold_path` does, which is newer than the compiler that we ask for.
#[cold]
#[inline]
fn cold() {}

/// Above 5 s all are equally bad; below, those that are within 20 ms are alike, and so take turns.
#[inline(always)]
fn step(ms: u32) -> u32 {
    if ms > 5000 { 5000 } else { ms + 20 - ms % 20 }
}

fn pack(ms: u32) -> u64 {
    u64::from(ms) << 32 | u64::from(step(ms))
}

/// nginx's: a twentieth of each new value, rounded to whole milliseconds; the first value as it is, and after a 0 the next
/// one is the first again.
fn average(average: u32, ms: u32) -> u32 {
    match average {
        0 => ms,
        average => (0.5 + (f64::from(ms) * 0.05 + f64::from(average) * 0.95)) as u32,
    }
}

#[cfg(test)]
mod tests;
