//! A worker's messages to its supervisor: reports, load, and saved state.
//!
//! Two threads tell it. One reports; the other asks modules what to save, so that none of them delays a report.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::memberships::Memberships;
use super::status::StatusReader;
use super::{Control, Worker, layout};
use crate::cluster::learned::Learned;
use crate::cluster::{Cluster, Clusters};
use crate::config::{Config, ModuleFile};
use crate::module::board::Board;
use crate::module::crash;
use crate::observe::metrics::Metrics;
use crate::process::channel::Sender;
use crate::process::channel::message::{Load, ToSupervisor, WorkerReport};
use crate::tls::tickets::TicketKeys;

/// How often the supervisor hears how it goes.
const REPORT_EVERY: Duration = Duration::from_secs(2);
/// The same while the worker drains: what it counts is added to what another one shows.
const REPORT_DRAINING_EVERY: Duration = Duration::from_secs(1);
/// How often the load is looked at while other generations run: with as long again in the supervisor, each hears of the
/// others every 100 ms.
const LOAD_EVERY: Duration = Duration::from_millis(50);
/// How often what was learned goes to the supervisor, so that a crash forgets little.
const SAVE_EVERY: Duration = Duration::from_secs(5);
/// The first time is sooner.
const FIRST_SAVE: Duration = Duration::from_secs(2);

/// For both threads to end, so that no module runs while the process ends.
const END_TIMEOUT: Duration = Duration::from_secs(1);

/// The two threads.
pub(super) struct Reporter {
    orders: mpsc::Sender<ReporterOrder>,
    saves: mpsc::Sender<()>,
    /// Closed when both threads have ended.
    end: mpsc::Receiver<()>,
}

enum ReporterOrder {
    TellLoad(bool),
    TellState(u64, Option<String>),
    Draining,
    Stop,
}

/// Ends a reporter from elsewhere.
pub(super) struct Stopper(mpsc::Sender<ReporterOrder>);

struct Reporting {
    to: Sender<ToSupervisor>,
    clusters: Clusters,
    metrics: Arc<Metrics>,
    reader: StatusReader,
    config: Arc<Config>,
    is_draining: bool,
    tells_load: bool,
    /// As it was told last.
    told: Option<(bool, Load)>,
}

struct Saver {
    to: Sender<ToSupervisor>,
    clusters: Clusters,
    ticket_keys: Arc<TicketKeys>,
    memberships: Arc<Memberships>,
    /// Tells that the worker drains: what it learns from then on is of no use.
    control: Control,
    board: Option<&'static Board>,
    place: usize,
}

impl Reporter {
    pub(super) fn start(worker: &Worker, config: &Arc<Config>, to: Sender<ToSupervisor>) -> io::Result<Self> {
        let (orders, inbox) = mpsc::channel();
        let (saves, wanted) = mpsc::channel();
        let (ending, end) = mpsc::channel::<()>();
        let reporter_ending = ending.clone();
        let reporting = Reporting {
            to: to.clone(),
            clusters: Arc::clone(worker.clusters()),
            metrics: Arc::clone(worker.metrics()),
            reader: worker.reader().clone(),
            config: Arc::clone(config),
            is_draining: false,
            tells_load: false,
            told: None,
        };
        let saver = Saver {
            to,
            clusters: Arc::clone(worker.clusters()),
            ticket_keys: Arc::clone(worker.ticket_keys()),
            memberships: Arc::clone(worker.memberships()),
            control: worker.control(),
            board: worker.board,
            place: config.threads + 2,
        };
        std::thread::Builder::new().name("reporter".into()).spawn(move || {
            let _ending = reporter_ending;
            reporting.run(&inbox);
        })?;
        std::thread::Builder::new().name("saver".into()).spawn(move || {
            let _ending = ending;
            saver.run(&wanted);
        })?;
        Ok(Self { orders, saves, end })
    }

    pub(super) fn save(&self) {
        let _ = self.saves.send(());
    }

    pub(super) fn tell_load(&self, tells: bool) {
        let _ = self.orders.send(ReporterOrder::TellLoad(tells));
    }

    pub(super) fn tell_state(&self, number: u64, cluster: Option<String>) {
        let _ = self.orders.send(ReporterOrder::TellState(number, cluster));
    }

    pub(super) fn drains(&self) {
        let _ = self.orders.send(ReporterOrder::Draining);
    }

    pub(super) fn stopper(&self) -> Stopper {
        Stopper(self.orders.clone())
    }
}

impl Stopper {
    pub(super) fn stop(&self) {
        let _ = self.0.send(ReporterOrder::Stop);
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        let _ = self.orders.send(ReporterOrder::Stop);
        self.saves = mpsc::channel().0;
        // Code of a module should not run while the process ends; but what hangs in there is not waited for.
        let _ = self.end.recv_timeout(END_TIMEOUT);
    }
}

impl Reporting {
    fn run(mut self, inbox: &mpsc::Receiver<ReporterOrder>) {
        let mut reported = Instant::now();
        loop {
            let report_at = reported + if self.is_draining { REPORT_DRAINING_EVERY } else { REPORT_EVERY };
            let wait = report_at.saturating_duration_since(Instant::now());
            match inbox.recv_timeout(if self.tells_load { wait.min(LOAD_EVERY) } else { wait }) {
                Ok(ReporterOrder::TellLoad(tells)) => {
                    self.tells_load = tells;
                    self.told = None;
                }
                Ok(ReporterOrder::TellState(number, cluster)) => self.tell_state(number, cluster.as_deref()),
                Ok(ReporterOrder::Draining) => self.is_draining = true,
                Ok(ReporterOrder::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {}
            }
            if self.tells_load {
                self.tell_load();
            }
            if Instant::now() >= report_at {
                reported = Instant::now();
                self.report();
            }
        }
    }

    fn tell_load(&mut self) {
        let now = Some((self.is_draining, load_of(&self.clusters)));
        if now == self.told {
            return;
        }
        if let Some((is_draining, load)) = &now {
            let message = ToSupervisor::Load { is_draining: *is_draining, load: load.clone() };
            // A supervisor that is gone wants nothing.
            let _ = self.to.send(&message, &[]);
        }
        self.told = now;
    }

    fn tell_state(&self, number: u64, cluster: Option<&str>) {
        // A status has no keys that JSON cannot have.
        let json = serde_json::to_string(&self.reader.status(cluster)).unwrap_or_default();
        let _ = self.to.send(&ToSupervisor::State { number, json }, &[]);
    }

    fn report(&self) {
        let faults = layout::faults(&self.clusters);
        let of_module = |module: &ModuleFile| faults.get(&module.id).copied().unwrap_or(0);
        let report = WorkerReport {
            totals: self.metrics.totals(),
            faults: self.config.modules.iter().map(of_module).collect(),
            connections: self.metrics.open_connections(),
            refused: layout::refused(&self.clusters),
        };
        let _ = self.to.send(&ToSupervisor::Report(Box::new(report)), &[]);
    }
}

impl Saver {
    fn run(self, wanted: &mpsc::Receiver<()>) {
        if let Some(board) = self.board {
            crash::take_place(board, self.place);
        }
        // A crash soon after the start should not forget what names stand for.
        let mut wait = FIRST_SAVE;
        loop {
            match wanted.recv_timeout(wait) {
                Ok(()) => self.save(true),
                Err(RecvTimeoutError::Timeout) if self.control.is_ending() => {}
                Err(RecvTimeoutError::Timeout) => self.save(false),
                Err(RecvTimeoutError::Disconnected) => return,
            }
            wait = SAVE_EVERY;
        }
    }

    fn save(&self, is_answer: bool) {
        let mut state = Learned::of(&self.clusters, &self.ticket_keys, &self.memberships.addresses());
        for (cluster, module) in state.shorten() {
            tracing::warn!(
                cluster,
                module,
                "the balancer's state is not saved: all balancers together saved too much"
            );
        }
        let _ = self.to.send(&ToSupervisor::Saved { state, is_answer }, &[]);
    }
}

fn load_of(clusters: &[Cluster]) -> Load {
    let cluster = |cluster: &Cluster| {
        let n = cluster.n_counted();
        (n > 0).then(|| (cluster.config.name.to_string(), n))
    };
    Load {
        endpoints: clusters.iter().flat_map(Cluster::in_flight_by_id).collect(),
        clusters: clusters.iter().filter_map(cluster).collect(),
    }
}
