//! `backend_load`: weights from what servers report of their own load, as Envoy's client-side weighted round robin.
//!
//! Gives each server requests by a weight that its own load reports set. Use it where servers differ in speed, or
//! share machines with others, and can report their load. A choice costs a counter and a look into a table. Source:
//! Envoy's client-side weighted round robin.
//!
//! Servers say in a header of their responses how many requests they serve in a second and how busy that keeps them:
//!
//! ```text
//! endpoint-load-metrics: TEXT cpu_utilization=0.3,rps_fractional=120,eps=0
//! endpoint-load-metrics: JSON {"application_utilization": 0.3, "rps_fractional": 120, "eps": 0}
//! ```
//!
//! The quotient is what a server could serve if it were busy all the time, and that is its weight: 120 / 0.3 = 400. So
//! a server that a neighbour slows down reports more use for the same requests, and gets fewer of them, until all are
//! about equally busy. Busy is the largest of the named metrics that `metrics` lists, else `application_utilization`,
//! else `cpu_utilization`; errors count on top, `eps` / `rps_fractional` times `error_penalty`, lest a server that
//! fails fast looks idle.
//!
//! By hand: a reports 100 requests at 0.5, b 100 at 0.25 and c 100 at 0.25 with 25 errors. The weights are 200, 400 and
//! 100 / (0.25 + 25 / 100) = 200, so that of every eight requests b gets four and the others two each.
//!
//! **Reports are trusted slowly and not for ever.** They count when they have come for the time of `blackout`, and
//! until none has come for `expiry`; after that the blackout begins anew. Weights are computed every `update`. A server
//! whose reports do not count gets the median of those that do. As long as none counts, the configured weights hold.
//!
//! Weights, their ages and the turn are saved: a reload is no blackout. An instance that takes over in the same process, when
//! servers come and go, shares them with the one before it, so that reports to either count for both.
//!
//! **What the host says holds too**: a server in slow start gets that part of its
//! weight, a server that is not available nothing. Configured weights play no part where reports count, as in Envoy:
//! the servers know better.
//!
//! **The order of turns** is spread by the golden ratio (see `schedule.rs`), where Envoy keeps a heap of deadlines for
//! each thread: the shares are the same, and all threads have one sequence. A request whose try failed takes further
//! turns.
//!
//! **A header that cannot be read** is ignored: the report before it stays. One line a minute at most says so in the
//! log, with the server, the reason, and how many there were. The binary form (`BIN`) is not read.
//!
//! **When**: servers whose strength differs or changes in ways that only they know, such as shared machines and mixed
//! generations of hardware. **When not**: servers that do not report (`least_request`, `peak_ewma`); sudden changes,
//! because a weight follows with the delay of reports and `update`.
//!
//! | setting | default | meaning |
//! |---|---|---|
//! | `blackout` | `"10s"` | reports count when they have come for so long |
//! | `expiry` | `"3m"` | the last report counts for so long, no less than `update` |
//! | `update` | `"1s"` | time between computations, 100ms at least |
//! | `error_penalty` | 1.0 | how much use an error for each request is, 0 or more |
//! | `metrics` | `[]` | named metrics that say how busy a server is |
//!
//! Durations are up to `"24h"`. **Cost**: constant for each request, and a pass over all servers for each update.
//! **Source**: Envoy, `source/extensions/load_balancing_policies/common/orca_weight_manager.cc` and
//! `source/common/orca/orca_parser.cc`; gRPC's proposal A58.
#![forbid(unsafe_code)]

mod learned;
mod report;
mod schedule;
mod settings;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, TryLockError};

use arc_swap::ArcSwap;
use lb_api::{
    Balancer, BuildCx, BuildError, Cluster, Endpoint, Event, EventKind, Live, Log, Needs, Next, NextCx,
    Request, export_balancer,
};

use learned::{Learned, Periods, median};
use report::{Report, Unreadable};
use schedule::Schedule;
pub use settings::Settings;

/// Time between two lines about unreadable headers.
const LOG_EVERY_NS: u64 = 60_000_000_000;

/// Turns taken in vain before a request looks at all servers.
const TURNS: u32 = 8;

/// The instance for one cluster.
#[derive(Debug)]
pub struct BackendLoad {
    cluster: Cluster,
    servers: Box<[Server]>,
    settings: Settings,
    periods: Periods,
    plan: ArcSwap<Plan>,
    making: Mutex<()>,
    shared: Arc<Shared>,
    log: Log,
}

/// The state that successive instances share, beside the reports.
#[derive(Debug, Default)]
struct Shared {
    turn: Turn,
    /// When the last report came.
    now_ns: AtomicU64,
    unreadable: Complaints,
}

#[derive(Debug)]
struct Server {
    id: u64,
    url: Box<str>,
    live: Live,
    /// As configured, in the fixed point of [`Live::effective_weight`].
    weight: u32,
    /// Shared by the instances that follow one another.
    learned: Arc<Learned>,
}

/// The turns, as of an epoch and until a time.
#[derive(Debug)]
struct Plan {
    epoch: u64,
    until_ns: u64,
    schedule: Option<Schedule>,
}

/// The counter of turns: written by every request, so that it has cache lines of its own, away from what all read.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Turn(AtomicU64);

/// Headers that could not be read, and when that was last said.
#[derive(Debug, Default)]
struct Complaints {
    /// 0 for never.
    said_ns: AtomicU64,
    unsaid: AtomicU64,
}

impl Balancer for BackendLoad {
    const ID: &'static str = "backend_load";
    const SUMMARY: &'static str =
        "weights from the load that servers report (ORCA), as Envoy's client-side weighted round robin";
    /// The number of the turn, 64 bits, little-endian; then what `learned::save` writes.
    const STATE_VERSION: u32 = 2;
    type Settings = Settings;
    type Trylist = ();

    fn build(cx: &BuildCx<'_, Self>, settings: Settings) -> Result<Self, BuildError> {
        settings.check()?;
        let (shared, known) = match cx.previous() {
            Some(previous) => (Arc::clone(&previous.shared), previous.known()),
            None => {
                // A reload is no reason for the first server to be the first again.
                let saved = cx.saved().unwrap_or_default().split_first_chunk();
                let (turn, saved) =
                    saved.map_or((0, &[][..]), |(turn, saved)| (u64::from_le_bytes(*turn), saved));
                let shared = Shared { turn: Turn(AtomicU64::new(turn)), ..Shared::default() };
                (Arc::new(shared), learned::restore(saved))
            }
        };
        let servers: Box<[Server]> =
            cx.endpoints().iter().map(|endpoint| Server::new(endpoint, &known)).collect();
        let epoch = cx.cluster().epoch();
        // No time is known here: what is learned already counts from the first request on.
        let configured: Vec<u64> = servers.iter().map(Server::effective).collect();
        let mut schedule = Schedule::new(&configured);
        if let Some(previous) = cx.previous() {
            let turn = shared.turn.0.load(Relaxed);
            let next = previous.next_of(&servers, turn);
            schedule = schedule.map(|schedule| schedule.going_on(turn, next));
        }
        let plan = Plan { epoch, until_ns: 0, schedule };
        Ok(Self {
            cluster: cx.cluster(),
            servers,
            periods: settings.periods(),
            settings,
            plan: ArcSwap::from_pointee(plan),
            making: Mutex::new(()),
            shared,
            log: cx.log().clone(),
        })
    }

    fn needs(&self) -> Needs {
        Needs::default().response_header("endpoint-load-metrics")
    }

    #[inline]
    fn load_balance(&self, _: &Request<'_>) {}

    #[inline]
    fn next(&self, (): &mut (), cx: &NextCx<'_>) -> Next {
        let mut plan = self.plan.load();
        if plan.epoch != self.cluster.epoch() || cx.now_ns() >= plan.until_ns {
            self.replan(cx.now_ns());
            plan = self.plan.load();
        }
        if let Some(schedule) = &plan.schedule {
            for _ in 0..TURNS {
                let server = schedule.at(self.shared.turn.0.fetch_add(1, Relaxed));
                if self.fits(server, cx) {
                    return Next::Endpoint(server);
                }
            }
        }
        self.draw(cx)
    }

    fn observe(&self, (): &mut (), event: &Event<'_>) {
        if event.kind != EventKind::ResponseHeaders {
            return;
        }
        let (Some(header), Some(server)) = (event.header(0), self.servers.get(event.endpoint)) else {
            return;
        };
        let weight = Report::read(header, &self.settings.metrics)
            .and_then(|report| report.weight(self.settings.error_penalty));
        self.shared.now_ns.store(event.now_ns, Relaxed);
        match weight {
            Ok(weight) => server.learned.report(weight, event.now_ns),
            Err(why) => self.complain(server, header, &why, event.now_ns),
        }
    }

    fn save(&self) -> Option<Vec<u8>> {
        let learned = self.servers.iter().map(|server| (server.id, &*server.learned));
        let mut saved = self.shared.turn.0.load(Relaxed).to_le_bytes().to_vec();
        saved.extend(learned::save(learned, self.shared.now_ns.load(Relaxed)));
        Some(saved)
    }

    fn explain(&self, (): &()) -> Option<String> {
        Some(match &self.plan.load().schedule {
            None => "no server has a weight".to_owned(),
            Some(Schedule::Equal(members, _)) => {
                format!("a turn among {} servers of equal weight", members.len())
            }
            Some(Schedule::Weighted(places)) => format!("a turn among weights of {} in all", places.total()),
        })
    }
}

impl Server {
    fn new(endpoint: Endpoint<'_>, known: &HashMap<u64, Arc<Learned>>) -> Self {
        Self {
            id: endpoint.id(),
            url: endpoint.url().into(),
            live: endpoint.live(),
            weight: endpoint.weight() << 16,
            learned: known.get(&endpoint.id()).cloned().unwrap_or_default(),
        }
    }

    fn effective(&self) -> u64 {
        if self.live.is_available() { self.live.effective_weight().into() } else { 0 }
    }

    /// This reported weight, as far as the host lets the server have it: in 16.16 fixed point.
    fn scaled(&self, reported: u32) -> u64 {
        let scaled =
            u128::from(reported) * u128::from(self.effective()) * (1 << 16) / u128::from(self.weight.max(1));
        // A configured weight of 1 may be raised 65,535 times; then a reported one of any size is no less than
        // enormous.
        (scaled.min(1 << 48) as u64).max(u64::from(self.effective() > 0))
    }
}

impl BackendLoad {
    /// The reports of each server, for the instance that takes over.
    fn known(&self) -> HashMap<u64, Arc<Learned>> {
        self.servers.iter().map(|server| (server.id, Arc::clone(&server.learned))).collect()
    }

    /// Place among these servers of the one whose turn it is here, or of the first behind it that is among them.
    fn next_of(&self, servers: &[Server], turn: u64) -> usize {
        let places: HashMap<u64, usize> = servers.iter().map(|server| server.id).zip(0..).collect();
        let plan = self.plan.load();
        let mut turns = plan.schedule.iter().flat_map(|schedule| schedule.from(turn));
        turns.find_map(|server| places.get(&self.servers[server].id).copied()).unwrap_or(0)
    }

    #[inline]
    fn fits(&self, server: usize, cx: &NextCx<'_>) -> bool {
        !cx.tried(server) && self.servers[server].live.is_available()
    }

    /// The first caller makes the new plan; others use the old one meanwhile.
    #[cold]
    fn replan(&self, now_ns: u64) {
        let _making = match self.making.try_lock() {
            Ok(making) => making,
            // A panic here leaves a plan that is as good as any.
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        let epoch = self.cluster.epoch();
        let turn = self.shared.turn.0.load(Relaxed);
        let next = self.plan.load().schedule.as_ref().and_then(|schedule| schedule.from(turn).next());
        let schedule = Schedule::new(&self.weights(now_ns));
        let schedule = match next {
            Some(next) => schedule.map(|schedule| schedule.going_on(turn, next)),
            None => schedule,
        };
        let until_ns = now_ns.saturating_add(self.settings.update.as_nanos() as u64);
        self.plan.store(Arc::new(Plan { epoch, until_ns, schedule }));
    }

    fn weights(&self, now_ns: u64) -> Vec<u64> {
        let reported: Vec<Option<u32>> =
            self.servers.iter().map(|server| server.learned.weight(now_ns, self.periods)).collect();
        let mut known: Vec<u32> = reported.iter().flatten().copied().collect();
        match median(&mut known) {
            None => self.servers.iter().map(Server::effective).collect(),
            Some(median) => {
                let reported = self.servers.iter().zip(reported);
                reported.map(|(server, weight)| server.scaled(weight.unwrap_or(median))).collect()
            }
        }
    }

    /// One at random of all that fit, for requests that took turns in vain.
    #[cold]
    fn draw(&self, cx: &NextCx<'_>) -> Next {
        let fitting = || (0..self.servers.len()).filter(|server| self.fits(*server, cx));
        let weighted = || fitting().filter(|server| self.servers[*server].effective() > 0);
        let nth = cx.rng().below(weighted().count() as u64) as usize;
        weighted().nth(nth).or_else(|| fitting().next()).map_or(Next::Exhausted, Next::Endpoint)
    }

    #[cold]
    fn complain(&self, server: &Server, header: &[u8], why: &Unreadable, now_ns: u64) {
        let unsaid = self.shared.unreadable.unsaid.fetch_add(1, Relaxed) + 1;
        let said = self.shared.unreadable.said_ns.load(Relaxed);
        if said != 0 && now_ns.saturating_sub(said) < LOG_EVERY_NS {
            return;
        }
        // One of several threads says it.
        if self.shared.unreadable.said_ns.compare_exchange(said, now_ns.max(1), Relaxed, Relaxed).is_ok() {
            self.shared.unreadable.unsaid.fetch_sub(unsaid, Relaxed);
            let shown = &header[..header.len().min(80)];
            self.log.warn(format_args!(
                "server \"{}\": endpoint-load-metrics \"{}\" is ignored: {why} ({unsaid} ignored since this was last \
                 said)",
                server.url,
                shown.escape_ascii(),
            ));
        }
    }
}

export_balancer!(BackendLoad);

#[cfg(test)]
mod tests;
