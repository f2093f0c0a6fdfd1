//! Events of a worker: notes of its clusters, and balancers that get into quarantine.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

use super::relay::Relay;
use crate::cluster::Clusters;
use crate::cluster::journal::{ClusterNote, NoteKind};
use crate::observe::events::{Event, EventLog, MAX_EVENTS};

/// Notes that come within this time go together.
const GATHER: Duration = Duration::from_millis(200);

/// Takes the events of a worker to its supervisor.
pub(super) fn to_relay(relay: Arc<Relay>) -> Box<dyn Fn(Vec<Event>) + Send + Sync> {
    Box::new(move |events| relay.events(events))
}

/// Makes events of what happens to clusters, for ever.
pub(super) async fn keep(clusters: Clusters, mut notes: mpsc::Receiver<ClusterNote>, log: Arc<EventLog>) {
    let mut ticks = interval(GATHER);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut quarantined = BTreeSet::new();
    loop {
        ticks.tick().await;
        let mut events: Vec<Event> = std::iter::from_fn(|| notes.try_recv().ok()).map(event).collect();
        events.extend(new_in_quarantine(&clusters, &mut quarantined));
        // Nobody would see the others.
        events.drain(..events.len().saturating_sub(MAX_EVENTS));
        if !events.is_empty() {
            log.note(events);
        }
    }
}

fn event(note: ClusterNote) -> Event {
    let kind = match note.kind {
        NoteKind::Server => "server",
        NoteKind::Panic => "panic",
        NoteKind::Refused => "refused",
    };
    let event = Event::at(note.at_ms, kind, note.text).of_cluster(&note.cluster);
    match note.server {
        Some(server) => event.of_server(&server),
        None => event,
    }
}

/// Modules that are in quarantine in a cluster since the last look.
fn new_in_quarantine(clusters: &Clusters, known: &mut BTreeSet<(usize, Arc<str>)>) -> Vec<Event> {
    let mut events = Vec::new();
    for (idx, cluster) in clusters.iter().enumerate() {
        for module in cluster.config.modules() {
            let key = (idx, Arc::clone(module));
            if !cluster.is_quarantined(module) {
                known.remove(&key);
            } else if known.insert(key) {
                let text = "the host chooses in the place of the module, which is in quarantine";
                let event = Event::now("quarantine", text).of_cluster(&cluster.config.name);
                events.push(event.of_module(module));
            }
        }
    }
    events
}
