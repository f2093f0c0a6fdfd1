//! Slow start: the effective weight of an endpoint that has just become available rises to the configured one.
//!
//! Requests pay nothing for it. A task on the worker's background runtime makes the steps. Each is an epoch of its tier, so
//! modules see it like any other change.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::cluster::live::Live;

/// The weight starts at this part of the configured one.
const LEAST: f64 = 0.1;
/// Steps in a window: finer than what 10 % to 100 % of a usual weight can show.
const STEPS: u32 = 64;
/// No step is shorter: modules rebuild their tables at each.
const SHORTEST_STEP: Duration = Duration::from_millis(100);

/// The endpoints of one cluster whose weight is rising.
#[derive(Debug)]
pub(crate) struct SlowStart {
    window: Duration,
    aggression: f64,
    rising: Mutex<Vec<Rising>>,
    begun: Notify,
}

#[derive(Debug)]
struct Rising {
    live: Arc<Live>,
    since: Instant,
    /// How far into its window it was then, in an earlier worker.
    before: Duration,
}

impl Rising {
    fn elapsed(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.since).saturating_add(self.before)
    }
}

impl SlowStart {
    /// With this window. An aggression of 1 is a straight line; more rises faster at first.
    pub(crate) fn new(window: Duration, aggression: f64) -> Self {
        Self { window, aggression, rising: Mutex::default(), begun: Notify::new() }
    }

    /// An endpoint has become available. The caller shows the change to its instances.
    pub(crate) fn begin(&self, live: &Arc<Live>) {
        self.go_on(live, Duration::ZERO);
    }

    /// An endpoint has been available for so long, in an earlier worker. The caller shows the change to its instances.
    pub(crate) fn go_on(&self, live: &Arc<Live>, before: Duration) {
        let since = Instant::now();
        let mut rising = self.rising();
        rising.retain(|other| !Arc::ptr_eq(&other.live, live));
        live.counters.effective_weight.store(self.weight(live.weight(), before), Relaxed);
        rising.push(Rising { live: Arc::clone(live), since, before });
        drop(rising);
        self.begun.notify_one();
    }

    /// Gives an endpoint its whole weight at once.
    pub(crate) fn skip(&self, live: &Arc<Live>) {
        let mut rising = self.rising();
        rising.retain(|other| !Arc::ptr_eq(&other.live, live));
        let full = u32::from(live.weight()) << 16;
        if live.counters.effective_weight.swap(full, Relaxed) != full {
            live.changed();
        }
    }

    /// Gives an endpoint another configured weight. One whose weight still rises gets its part of it.
    pub(crate) fn set_weight(&self, live: &Live, weight: u16) {
        let now = Instant::now();
        let rising = self.rising();
        match rising.iter().find(|rising| std::ptr::eq(&*rising.live, live)) {
            Some(it) => live.set_rising_weight(weight, self.weight(weight, it.elapsed(now))),
            None => live.set_weight(weight),
        }
    }

    /// How far into its window this endpoint is, if its weight still rises.
    pub(crate) fn elapsed(&self, live: &Live) -> Option<Duration> {
        let now = Instant::now();
        let rising = self.rising();
        let it = rising.iter().find(|rising| std::ptr::eq(&*rising.live, live))?;
        Some(it.elapsed(now)).filter(|elapsed| *elapsed < self.window)
    }

    /// Makes the steps, for ever.
    pub(crate) async fn run(&self) {
        let step = (self.window / STEPS).max(SHORTEST_STEP);
        loop {
            self.begun.notified().await;
            while self.step(Instant::now()) {
                tokio::time::sleep(step).await;
            }
        }
    }

    /// Gives each endpoint its weight by now. False if no weight rises any more.
    fn step(&self, now: Instant) -> bool {
        let mut rising = self.rising();
        rising.retain(|endpoint| {
            // No longer available. It starts again when it is. The state that modules see may come a moment later.
            let live = &endpoint.live;
            if !live.is_available() {
                return false;
            }
            let elapsed = endpoint.elapsed(now);
            let weight = self.weight(live.weight(), elapsed);
            if live.counters.effective_weight.swap(weight, Relaxed) != weight {
                live.changed();
            }
            elapsed < self.window
        });
        !rising.is_empty()
    }

    /// The effective weight in 16.16 fixed point: Envoy's formula, but without its least second, so that windows of less
    /// than a few seconds rise too.
    fn weight(&self, weight: u16, elapsed: Duration) -> u32 {
        let full = u32::from(weight) << 16;
        if elapsed >= self.window {
            return full;
        }
        let share = (elapsed.as_secs_f64() / self.window.as_secs_f64()).powf(1.0 / self.aggression);
        (f64::from(full) * share.max(LEAST)) as u32
    }

    fn rising(&self) -> MutexGuard<'_, Vec<Rising>> {
        self.rising.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::health::HealthSource;
    use crate::cluster::live::tests::{listed, set};

    const WINDOW: Duration = Duration::from_secs(100);

    /// Percent of the weight after so many percent of the window.
    fn percent(aggression: f64, elapsed: u32) -> u32 {
        let weight = SlowStart::new(WINDOW, aggression).weight(100, WINDOW / 100 * elapsed);
        (f64::from(weight) / 65536.0).round() as u32
    }

    #[test]
    fn rises_along_its_curve_from_a_tenth() {
        let curve = |aggression| [0, 5, 10, 25, 50, 81, 100, 500].map(|elapsed| percent(aggression, elapsed));
        assert_eq!(curve(1.0), [10, 10, 10, 25, 50, 81, 100, 100]);
        assert_eq!(curve(2.0), [10, 22, 32, 50, 71, 90, 100, 100]);
        assert_eq!(curve(0.5), [10, 10, 10, 10, 25, 66, 100, 100]);
    }

    #[test]
    fn the_largest_and_the_least_weight_fit() {
        let slow_start = SlowStart::new(WINDOW, 1.0);
        assert_eq!(slow_start.weight(65_535, WINDOW), 65_535 << 16);
        assert_eq!(slow_start.weight(1, Duration::ZERO), 6553);
    }

    /// A member of weight 2, and the epochs that its instance has seen.
    fn member() -> (Arc<Live>, impl Fn() -> u64) {
        let (live, instance) = listed();
        live.set_weight(2);
        let begun = instance.get().epoch.load(Relaxed);
        (live, move || instance.get().epoch.load(Relaxed) - begun)
    }

    #[tokio::test(start_paused = true)]
    async fn steps_are_epochs_and_end_with_the_window() {
        let slow_start = Arc::new(SlowStart::new(WINDOW, 1.0));
        let task = tokio::spawn({
            let slow_start = Arc::clone(&slow_start);
            async move { slow_start.run().await }
        });
        let (live, epochs) = member();
        let weight = || f64::from(live.counters.effective_weight.load(Relaxed)) / 65536.0;
        slow_start.begin(&live);
        assert_eq!((weight() * 10.0).round(), 2.0);
        tokio::time::sleep(WINDOW / 2).await;
        assert!((0.96..=1.0).contains(&weight()), "{}", weight());
        let half = epochs();
        assert!((25..=33).contains(&half), "{half} epochs");
        tokio::time::sleep(WINDOW).await;
        assert_eq!(weight(), 2.0);
        let end = epochs();
        tokio::time::sleep(WINDOW).await;
        assert_eq!(epochs(), end, "and no more");
        task.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn goes_on_where_an_earlier_worker_was() {
        let slow_start = SlowStart::new(WINDOW, 1.0);
        let (live, _) = member();
        assert_eq!(slow_start.elapsed(&live), None);
        slow_start.begin(&live);
        tokio::time::advance(WINDOW / 4).await;
        let elapsed = slow_start.elapsed(&live);
        assert_eq!(elapsed, Some(WINDOW / 4));
        let (next, (live, _)) = (SlowStart::new(WINDOW, 1.0), member());
        next.go_on(&live, WINDOW / 4);
        assert_eq!(live.counters.effective_weight.load(Relaxed), 1 << 15);
        assert!(next.step(Instant::now() + WINDOW / 2));
        assert_eq!(live.counters.effective_weight.load(Relaxed), 3 << 15);
        assert!(!next.step(Instant::now() + WINDOW / 4 * 3), "it is over");
        assert_eq!(next.elapsed(&live), None);
    }

    #[tokio::test(start_paused = true)]
    async fn an_endpoint_that_is_gone_again_rises_no_more() {
        let slow_start = SlowStart::new(WINDOW, 1.0);
        let (live, epochs) = member();
        slow_start.begin(&live);
        set(&live, HealthSource::Ejection, true);
        let seen = epochs();
        assert!(!slow_start.step(Instant::now() + WINDOW));
        assert_eq!(epochs(), seen);
    }
}
