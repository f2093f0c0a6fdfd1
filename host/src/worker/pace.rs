//! Slow modules are told: in the log and as an event, each at most once a minute.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::{MissedTickBehavior, interval};

use crate::cluster::Clusters;
use crate::observe::events::{Event, EventLog};
use crate::observe::metrics::{Metrics, ModulePace, SlowModule};

/// Time over which the calls of a module are averaged.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Time between two warnings of one module.
const SAY_EVERY: Duration = Duration::from_secs(60);

/// Looks at the time that modules take, for ever. They are slow beyond `limit`; zero is no limit.
pub(super) async fn watch(clusters: Clusters, metrics: Arc<Metrics>, events: Arc<EventLog>, limit: Duration) {
    let mut ticks = interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut pace = ModulePace::new(&metrics, limit, Instant::now());
    let mut said = SaidModules::default();
    loop {
        ticks.tick().await;
        let now = Instant::now();
        let mut slow = pace.look(&metrics, now);
        slow.retain(|slow| said.may_say(&slow.module, now));
        if !slow.is_empty() {
            events.note(slow.iter().map(|slow| say(&clusters, slow, limit)).collect());
        }
    }
}

/// Logs it, and makes an event of it.
fn say(clusters: &Clusters, slow: &SlowModule, limit: Duration) -> Event {
    let SlowModule { cluster, module, average, n_timed } = slow;
    let cluster = &*clusters[*cluster].config.name;
    let text = format!(
        "the module is slow: a request spends {:.3} ms in its calls on average ({n_timed} were timed; module_slow is {limit:?})",
        average.as_secs_f64() * 1e3
    );
    tracing::warn!(module = &**module, cluster, "{text}");
    Event::now("slow", text).of_cluster(cluster).of_module(module)
}

/// Modules of which was said that they are slow, and when.
#[derive(Debug, Default)]
struct SaidModules(HashMap<Arc<str>, Instant>);

impl SaidModules {
    fn may_say(&mut self, module: &Arc<str>, now: Instant) -> bool {
        let may = self.0.get(module).is_none_or(|said| now >= *said + SAY_EVERY);
        if may {
            self.0.insert(Arc::clone(module), now);
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_is_named_once_a_minute_whatever_the_others() {
        let (mut said, start) = (SaidModules::default(), Instant::now());
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let mut may = |module, s| said.may_say(module, start + Duration::from_secs(s));
        assert!(may(&a, 0) && !may(&a, 0) && !may(&a, 59));
        assert!(may(&b, 59));
        assert!(may(&a, 60) && !may(&b, 60) && !may(&a, 61));
    }
}
