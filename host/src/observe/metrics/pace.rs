//! The pace of modules: what they take of the threads' time, and which are slow. Judged once a second, from the requests whose calls
//! are timed anyway: no request pays for it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::Metrics;

/// A part of the time of all threads that serve, from 0 to 1. `f64`, as bits.
#[derive(Debug, Default)]
pub(super) struct ThreadShare(AtomicU64);

impl ThreadShare {
    pub(super) fn read(&self) -> f64 {
        f64::from_bits(self.0.load(Ordering::Relaxed))
    }

    fn set(&self, share: f64) {
        self.0.store(share.to_bits(), Ordering::Relaxed);
    }
}

/// A module that requests of a cluster wait for too long.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SlowModule {
    /// Index of the cluster.
    pub cluster: usize,
    /// ID of the module.
    pub module: Arc<str>,
    /// Average time of a request in its calls.
    pub average: Duration,
    /// So many requests were timed.
    pub n_timed: u64,
}

/// Counts of a module of a cluster, all threads together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Reading {
    calls: u64,
    timed_calls: u64,
    timed_requests: u64,
    /// Of those, the requests that took about the limit or more.
    long_requests: u64,
    ns: u64,
}

/// Looks at the modules once a second.
#[derive(Debug)]
pub(crate) struct ModulePace {
    limit: Duration,
    /// By cluster and balancer.
    tracks: Vec<Vec<Track>>,
}

/// One module of a cluster.
#[derive(Debug, Default)]
struct Track {
    /// The readings of the last [`SHARE_OF`] seconds, the oldest first.
    readings: VecDeque<(Instant, Reading)>,
    /// Where what is judged next begins.
    from: Reading,
}

/// Looks of which the share is.
const SHARE_OF: usize = 10;

/// Fewer requests say little: a thread that was not let run in one call makes that call a long one.
const MIN_TIMED: u64 = 8;

/// One of so many requests is long where a module is slow; else the machine was busy, or the module odd, and not slow.
const LONG_OF: u64 = 4;

impl ModulePace {
    /// Modules are slow beyond `limit`; zero is no limit.
    pub(crate) fn new(metrics: &Metrics, limit: Duration, now: Instant) -> Self {
        let tracks = metrics.readings(limit).map(|of| of.into_iter().map(|reading| Track::new(reading, now)));
        Self { limit, tracks: tracks.map(Iterator::collect).collect() }
    }

    /// Sets the shares anew, and returns the modules that are slow, the slowest first.
    pub(crate) fn look(&mut self, metrics: &Metrics, now: Instant) -> Vec<SlowModule> {
        let mut slow = Vec::new();
        for (cluster, readings) in metrics.readings(self.limit).enumerate() {
            let names = &metrics.clusters[cluster];
            for (idx, reading) in readings.into_iter().enumerate() {
                let track = &mut self.tracks[cluster][idx];
                names.shares[idx].set(track.share(reading, now, metrics.shards.len()));
                let Some((average, n_timed)) = track.judge(reading, self.limit) else { continue };
                let module = Arc::clone(&names.balancers[idx].module);
                slow.push(SlowModule { cluster, module, average, n_timed });
            }
        }
        slow.sort_by_key(|slow| std::cmp::Reverse(slow.average));
        slow
    }
}

impl Track {
    fn new(reading: Reading, now: Instant) -> Self {
        Self { readings: VecDeque::from([(now, reading)]), from: reading }
    }

    /// Its part of the time of so many threads: the average of the calls that were timed, for all calls.
    fn share(&mut self, reading: Reading, now: Instant, n_threads: usize) -> f64 {
        let (since, before) = self.readings.front().copied().unwrap_or((now, reading));
        self.readings.push_back((now, reading));
        if self.readings.len() > SHARE_OF {
            self.readings.pop_front();
        }
        let past = reading.since(&before);
        let time = now.saturating_duration_since(since).as_secs_f64() * n_threads as f64 * 1e9;
        if past.timed_calls == 0 || time <= 0.0 {
            return 0.0;
        }
        let average = past.ns as f64 / past.timed_calls as f64;
        (average * past.calls as f64 / time).min(1.0)
    }

    /// The average and number of what was timed, where that is too slow. What is too little for a judgement counts in the next one.
    fn judge(&mut self, reading: Reading, limit: Duration) -> Option<(Duration, u64)> {
        let past = reading.since(&self.from);
        if past.timed_requests < MIN_TIMED {
            return None;
        }
        self.from = reading;
        let average = Duration::from_nanos(past.ns / past.timed_requests);
        let is_slow =
            !limit.is_zero() && average > limit && past.long_requests >= past.timed_requests / LONG_OF;
        is_slow.then_some((average, past.timed_requests))
    }
}

impl Reading {
    fn since(&self, before: &Self) -> Self {
        Self {
            calls: self.calls.wrapping_sub(before.calls),
            timed_calls: self.timed_calls.wrapping_sub(before.timed_calls),
            timed_requests: self.timed_requests.wrapping_sub(before.timed_requests),
            long_requests: self.long_requests.wrapping_sub(before.long_requests),
            ns: self.ns.wrapping_sub(before.ns),
        }
    }
}

impl Metrics {
    /// The counts of each module, by cluster. Of generations before, nothing.
    fn readings(&self, limit: Duration) -> impl Iterator<Item = Vec<Reading>> {
        let of = move |cluster: usize, idx: usize| {
            let mut reading = Reading::default();
            for shard in &self.shards {
                let cells = &shard.clusters[cluster].balancers[idx];
                let (timed, long) = cells.time.counts(limit.as_nanos() as u64);
                let calls = cells.calls.iter().map(super::cells::Cell::read);
                reading.calls = calls.fold(reading.calls, u64::wrapping_add);
                reading.timed_calls = reading.timed_calls.wrapping_add(cells.timed_calls.read());
                reading.timed_requests = reading.timed_requests.wrapping_add(timed);
                reading.long_requests = reading.long_requests.wrapping_add(long);
                reading.ns = reading.ns.wrapping_add(cells.time.sum_ns.read());
            }
            reading
        };
        let clusters = self.clusters.iter().enumerate();
        clusters.map(move |(cluster, names)| (0..names.balancers.len()).map(|idx| of(cluster, idx)).collect())
    }

    /// What the module of a cluster took of the threads' time, lately.
    pub(crate) fn module_share(&self, cluster: usize, balancer: usize) -> f64 {
        self.clusters[cluster].shares[balancer].read()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn reading(timed_requests: u64, long_requests: u64, ms: u64) -> Reading {
        let timed_calls = timed_requests * 5;
        Reading { calls: timed_calls * 10, timed_calls, timed_requests, long_requests, ns: ms * 1_000_000 }
    }

    #[test]
    fn a_module_is_slow_where_its_average_is_and_no_single_call_makes_it_so() {
        let judge = |reading| Track::new(Reading::default(), Instant::now()).judge(reading, MS);
        assert_eq!(judge(reading(10, 10, 20)), Some((2 * MS, 10)));
        assert_eq!(judge(reading(10, 10, 10)), None, "not more than the limit");
        assert_eq!(judge(reading(7, 7, 700)), None, "too few");
        assert_eq!(judge(reading(100, 1, 500)), None, "one call was interrupted");
        assert_eq!(judge(reading(100, 25, 500)), Some((5 * MS, 100)));
        let mut track = Track::new(Reading::default(), Instant::now());
        assert_eq!(track.judge(reading(10, 10, 20), Duration::ZERO), None, "no limit");
    }

    #[test]
    fn requests_that_are_too_few_count_in_the_next_second() {
        let mut track = Track::new(Reading::default(), Instant::now());
        assert_eq!(track.judge(reading(5, 5, 15), MS), None);
        assert_eq!(track.judge(reading(8, 8, 24), MS), Some((3 * MS, 8)));
        assert_eq!(track.judge(reading(16, 8, 25), MS), None, "quick since");
    }

    #[test]
    fn the_share_is_of_all_calls_and_threads_in_the_last_ten_seconds() {
        let start = Instant::now();
        let second = |n: u64| start + Duration::from_secs(n);
        let mut track = Track::new(Reading::default(), start);
        // 50 calls took 40 ms, so 500 take 0.4 s of two threads' second.
        assert!((track.share(reading(10, 0, 40), second(1), 2) - 0.2).abs() < 1e-9);
        assert!((track.share(reading(10, 0, 40), second(2), 2) - 0.1).abs() < 1e-9);
        for n in 3..11 {
            track.share(reading(10, 0, 40), second(n), 2);
        }
        assert!(track.share(reading(10, 0, 40), second(11), 2).abs() < 1e-9, "it is over");
        assert!(
            (track.share(reading(100, 0, 400_000), second(12), 2) - 1.0).abs() < 1e-9,
            "never more than all"
        );
    }
}
