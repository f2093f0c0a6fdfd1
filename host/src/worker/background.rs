//! The thread beside those that serve: look-ups, health checks, TLS tickets, and the admin listener.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinHandle};

use super::serving::HOUSEKEEPING;
use super::upkeep::Upkeep;
use crate::cluster::checks::FirstCheck;
use crate::cluster::discovery::Watch;
use crate::cluster::journal::Journal;
use crate::cluster::names::Resolver;
use crate::cluster::{self, Clusters};
use crate::module::board::{self, Board};
use crate::module::crash;
use crate::observe::admin::{self, AdminServed};
use crate::observe::events::EventLog;
use crate::observe::metrics::Metrics;
use crate::process::sockets::Bound;
use crate::serve::drain::{Idle, Phase};
use crate::tls::tickets::TicketKeys;

/// The data of the thread.
pub(super) struct Background {
    pub(super) clusters: Clusters,
    pub(super) served: Arc<AdminServed>,
    pub(super) events: Arc<EventLog>,
    pub(super) metrics: Arc<Metrics>,
    /// From when on modules are slow.
    pub(super) module_slow: Duration,
    pub(super) ticket_keys: Arc<TicketKeys>,
    pub(super) phase: watch::Receiver<Phase>,
    /// Set once the threads that serve have ended.
    pub(super) has_served: watch::Receiver<bool>,
    /// With its place on it.
    pub(super) board: Option<(&'static Board, usize)>,
    pub(super) admin: Option<Bound>,
    /// Follows the members of the clusters.
    pub(super) upkeep: Arc<Upkeep>,
    /// Names of which each address is a server, with what looks them up.
    pub(super) watch: Option<(Watch, Arc<Resolver>)>,
}

impl Background {
    /// Runs to the end of the drain.
    pub(super) fn run(self, runtime: Runtime) {
        if let Some((board, place)) = self.board {
            crash::take_place(board, place);
        }
        runtime.block_on(self.work());
        // A look-up may still run in a thread of the runtime's, and nobody waits for its answer.
        runtime.shutdown_background();
        board::leave_place();
    }

    async fn work(mut self) {
        let watching = self.ask();
        let upkeep = Arc::clone(&self.upkeep);
        let Self { clusters, served, events, ticket_keys, mut phase, has_served, board, admin, .. } = self;
        let pace =
            super::pace::watch(Arc::clone(&clusters), self.metrics, Arc::clone(&events), self.module_slow);
        tokio::spawn(pace);
        let (journal, notes) = Journal::new();
        clusters.iter().for_each(|cluster| cluster.keep_journal(&journal));
        tokio::spawn(super::events::keep(clusters, notes, events));
        tokio::spawn(ticket_keys.keep_rotating());
        if board.is_some() {
            tokio::spawn(keep_ticking());
        }
        let (ready, readiness) = watch::channel(admin::Readiness::Ready);
        let admin = tokio::spawn(serve_admin(admin, served, readiness));
        // A sender that is gone means the same as a stop.
        let ending = phase.wait_for(|phase| phase.is_ending()).await.map_or(Phase::Stopped, |phase| *phase);
        // One generation asks servers and name servers how they are, and that is the one that serves.
        watching.iter().for_each(AbortHandle::abort);
        upkeep.end_checks();
        let _ = ready.send(match ending {
            Phase::Draining { idle: Idle::AnswerOneMore, .. } => admin::Readiness::HandedOver,
            _ => admin::Readiness::Draining,
        });
        tokio::select! {
            _ = phase.wait_for(|phase| *phase == Phase::Stopped) => {}
            () = finish_admin(has_served, ending, ready, admin) => {}
        }
    }

    /// Begins to ask name servers and servers how they are. The handles end what follows names.
    fn ask(&mut self) -> Vec<AbortHandle> {
        cluster::keep(&self.clusters);
        for idx in 0..self.clusters.len() {
            self.upkeep.follow(idx, FirstCheck::Spread);
        }
        let watch = self.watch.take();
        watch.map_or_else(Vec::new, |(watch, resolver)| watch.begin(&resolver))
    }
}

async fn serve_admin(
    admin: Option<Bound>,
    served: Arc<AdminServed>,
    readiness: watch::Receiver<admin::Readiness>,
) {
    if let Some(Bound { address, mut sockets, .. }) = admin
        && let Some(socket) = sockets.pop()
        && let Err(e) = admin::serve(&address, socket, served, readiness).await
    {
        tracing::error!("admin listener: {e}");
    }
}

/// Once the threads have ended, lets the admin listener finish its responses until the drain ends, so that a large scrape is
/// not cut off where no requests are left to wait for.
async fn finish_admin(
    mut has_served: watch::Receiver<bool>,
    ending: Phase,
    ready: watch::Sender<admin::Readiness>,
    admin: JoinHandle<()>,
) {
    // A sender that is gone means the same.
    let _ = has_served.wait_for(|has_served| *has_served).await;
    ready.send_if_modified(|ready| {
        let is_new = *ready != admin::Readiness::HandedOver;
        if is_new {
            *ready = admin::Readiness::Ending;
        }
        is_new
    });
    if let Phase::Draining { until, .. } = ending {
        // One that panicked has said so.
        let _ = tokio::time::timeout_at(until.into(), admin).await;
    }
}

/// Shows the supervisor that the background gets on.
async fn keep_ticking() {
    let mut interval = tokio::time::interval(HOUSEKEEPING);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        board::tick();
    }
}
