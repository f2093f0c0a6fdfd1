//! A cluster as requests see it: its members, who may come and go while requests run, and the balancers that order them.
//!
//! ```text
//!  membership ─► publish ─► build ─► snapshot: endpoints and balancers, as of one publication
//!                             │
//!                             ▼
//!           endpoint ─► live (its place, numbers, health) ◄─ standing ◄─ checks, ejection, panic: may it be asked?
//!              ▲                                      │
//!  names ─► dial: a connection                        └─► slow_start, queue
//! ```

pub(crate) mod arena;
mod build;
pub(crate) mod membership;
mod at_once;
mod publish;
mod lives;
pub(crate) mod listing;
pub(crate) mod places;
pub(crate) mod live;
mod queue;
mod standing;
pub mod endpoint;
pub mod health;
pub(crate) mod checks;
pub mod ejection;
pub(crate) mod slow_start;
pub(crate) mod tier_loads;
pub(crate) mod snapshot;
mod session;
pub(crate) mod journal;
pub(crate) mod sticky;
pub(crate) mod retries;
pub(crate) mod names;
pub(crate) mod discovery;
pub(crate) mod dial;
pub mod learned;
pub(crate) mod random;

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use arc_swap::{ArcSwap, ArcSwapOption, Guard};
use lb_api::wire;
use tokio::sync::Notify;

use crate::cluster::ejection::{Outlier, Trial};
use crate::cluster::endpoint::{Declined, Endpoint, InFlight, Which};
use crate::cluster::journal::{Journal, NoteKind};
use crate::cluster::names::HostName;
use crate::cluster::retries::Retries;
use crate::cluster::slow_start::SlowStart;
use crate::config::{self, HostHeader, KeySource};
use crate::module::balancer::{ModuleFault, ModuleScope};
use crate::net::per_client::PerClient;

pub(crate) use self::build::IfRefused;
use self::build::{ClusterModules, Publishing};
pub(crate) use self::lives::InFlightById;
use self::lives::Lives;
pub(crate) use self::publish::{PublishHooks, Published};
pub(crate) use self::queue::{QueuePlace, QueueSignal, WaitQueue, Wanted};
pub use self::snapshot::{Instance, KeylessChooser, Snapshot, Tier};
pub use self::standing::HealthFacts;
pub(crate) use self::standing::keep;

/// One cluster. Shared by all threads; what changes in it is atomic.
#[derive(Debug)]
pub struct Cluster {
    /// Its configuration.
    pub config: config::ClusterConfig,
    newest: ArcSwap<Snapshot>,
    publishing: Mutex<Publishing>,
    /// Its members by their IDs, with those that left and still have requests.
    lives: Arc<Lives>,
    modules: ClusterModules,
    /// Held by the thread that writes what holds of members at once.
    turn: Mutex<()>,
    /// The number of the snapshot that each thread uses.
    in_use: OnceLock<Box<[AtomicU64]>>,
    /// Snapshots whose trylists are to end.
    n_over: AtomicU64,
    /// The members of now are refused.
    refusal: ArcSwapOption<MembershipRefusal>,
    /// Where endpoints that become available get little at first.
    pub(crate) slow_start: Option<SlowStart>,
    /// Where endpoints whose tries fail are left alone for a while.
    pub outlier: Option<Outlier>,
    /// Requests that wait because every endpoint is full.
    pub(crate) queue: WaitQueue,
    /// How many of them are each client's, where that is limited.
    pub(crate) queue_shares: Option<Arc<PerClient>>,
    panics: AtomicBool,
    /// A health source of some endpoint has changed.
    changed: Notify,
    /// Where it notes what happens, once somebody looks on.
    journal: OnceLock<Journal>,
    /// Retries that are under way.
    pub(crate) retries: Retries,
    /// Requests under way; counted only if they have a limit.
    requests: AtomicU32,
    /// Requests of other generations, as last reported.
    requests_elsewhere: AtomicU32,
}

/// Members that are not in use as they should be, since the last change of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MembershipRefusal {
    /// The modules that refuse them, with their reasons.
    pub why: String,
    /// They are in use all the same, and the host chooses among them. Otherwise the members of before are, but for those that left.
    pub host_chooses: bool,
}

/// A request that was let in; counted until this is dropped.
#[derive(Debug)]
pub(crate) struct Admitted<'a>(&'a AtomicU32);

impl Drop for Admitted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Cluster {
    /// Its members as of the newest publication. Threads that serve use the snapshot that they have switched to.
    pub fn newest(&self) -> Guard<Arc<Snapshot>> {
        self.newest.load()
    }

    /// The member with this index in the newest snapshot.
    ///
    /// # Panics
    /// If there is none.
    pub fn member(&self, idx: usize) -> Arc<Endpoint> {
        Arc::clone(&self.newest().endpoints[idx])
    }

    /// The names of its members that are looked up.
    pub(crate) fn names(&self) -> Vec<Arc<HostName>> {
        self.newest().endpoints.iter().filter_map(|member| member.addresses.name().cloned()).collect()
    }

    /// Sets how many requests of other generations, in processes of their own, are on their way to endpoints: they count
    /// towards limits and wherever the less busy of two is wanted. An endpoint that is still to come has its number when it
    /// comes; one that is not named has none. Where a number falls, those who wait are woken. From any thread.
    pub(crate) fn set_in_flight_elsewhere(&self, by_id: &Arc<InFlightById>) {
        for (place, n_freed) in self.lives.set_elsewhere(by_id) {
            self.queue.freed_several(place, n_freed as usize);
        }
    }

    /// The same where only one endpoint has any. Public for tests.
    pub fn set_in_flight_older(&self, endpoint: &Endpoint, n: u32) {
        self.set_in_flight_elsewhere(&Arc::new(InFlightById::from_iter([(endpoint.id, n)])));
    }

    /// Requests of this generation on their way to endpoints, by ID; also to those that have left.
    pub(crate) fn in_flight_by_id(&self) -> Vec<(u64, u32)> {
        self.lives.in_flight()
    }

    /// Sets how many requests of other generations this cluster has under way. They count towards its limit. From any thread.
    pub(crate) fn set_requests_elsewhere(&self, n: u32) {
        self.requests_elsewhere.store(n, Ordering::Relaxed);
    }

    /// Requests of this generation that count towards the cluster's limit, here and in other generations. Without a limit here
    /// it looks at every endpoint.
    pub(crate) fn n_counted(&self) -> u32 {
        match self.config.max_requests {
            0 => {
                let in_flight: u64 = self.in_flight_by_id().iter().map(|(_, n)| u64::from(*n)).sum();
                u32::try_from(in_flight + self.queue.n_waiting() as u64).unwrap_or(u32::MAX)
            }
            _ => self.requests.load(Ordering::Relaxed),
        }
    }

    /// Counts a request as on its way to an endpoint that declined it, if that is on trial and may have it.
    ///
    /// # Errors
    /// It is not on trial, or may not have it.
    #[cold]
    pub(crate) fn enter_on_trial(
        &self,
        endpoint: &Endpoint,
        which: Which,
    ) -> Result<(InFlight, Trial), Declined> {
        let outlier = self.outlier.as_ref().filter(|_| endpoint.is_on_trial());
        outlier.map_or(Err(Declined), |outlier| outlier.enter(self, endpoint, which))
    }

    /// Admits a request, unless the cluster has reached its limit. Waiting requests count, and those of other generations as last
    /// reported. `None` where there is no limit.
    ///
    /// # Errors
    /// The cluster has reached its limit.
    #[inline]
    pub(crate) fn admit(&self) -> Result<Option<Admitted<'_>>, Declined> {
        match self.config.max_requests {
            0 => Ok(None),
            max => {
                let elsewhere = self.requests_elsewhere.load(Ordering::Relaxed);
                let next = |n: u32| (n.saturating_add(elsewhere) < max).then(|| n + 1);
                let entered = self.requests.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
                entered.map(|_| Some(Admitted(&self.requests))).map_err(|_| Declined)
            }
        }
    }

    /// Requests on their way to an endpoint, and those that wait for one. Looks at every endpoint.
    pub fn n_requests(&self) -> u64 {
        let in_flight = |e: &Arc<Endpoint>| u64::from(e.counters.in_flight.load(Ordering::Relaxed));
        self.newest().endpoints.iter().map(in_flight).sum::<u64>() + self.queue.n_waiting() as u64
    }

    /// `Host` for requests to this endpoint, or `None` to keep the client's.
    pub fn host_header<'a>(
        &'a self,
        route: Option<&'a HostHeader>,
        endpoint: &'a Endpoint,
    ) -> Option<&'a str> {
        match route.unwrap_or(&self.config.host_header) {
            HostHeader::Keep => None,
            HostHeader::Server => Some(&endpoint.authority),
            HostHeader::Fixed(host) => Some(host),
        }
    }

    /// Where requests get their key from, if a balancer asked for one, or requests without one are another's.
    #[inline]
    pub fn key_source(&self, members: &Snapshot) -> Option<&KeySource> {
        self.config.key.as_ref().filter(|_| members.uses_key || self.config.key_missing.is_some())
    }

    /// Warnings for the operator, one line each.
    pub fn warnings(&self) -> Vec<String> {
        let newest = self.newest();
        let mut balancers = newest.tiers.iter().filter_map(|tier| tier.instance.balancer.as_ref()).peekable();
        let config::ClusterConfig { name, module, key, place, .. } = &self.config;
        // The needs of a module in quarantine are unknown.
        let is_known = balancers.peek().is_some();
        let learns = balancers.peek().is_some_and(|balancer| balancer.wants(wire::EVENT_TRY_ENDED));
        let counts_none = matches!(self.config.ejection.statuses, config::CountedStatuses::None);
        let blind = (learns && counts_none).then(|| {
            format!(
                "{place}: cluster \"{name}\": module \"{module}\" learns from each response, and ejection.statuses is \
                 \"none\": a server that answers errors at once looks like the best one (write statuses = \"gateway\" in \
                 ejection)"
            )
        });
        let text = match (key, balancers.any(|balancer| balancer.needs().key)) {
            // It would scatter requests that belong together, and nobody would see why.
            (None, true) => format!(
                "module \"{module}\" needs a key, but none is set (for example, key = \"client\"): all requests count \
                 as requests without a key"
            ),
            (Some(_), false) if is_known => {
                format!("key: ignored, because module \"{module}\" does not use one")
            }
            _ => String::new(),
        };
        let key = (!text.is_empty()).then(|| format!("{place}: cluster \"{name}\": {text}"));
        key.into_iter().chain(blind).collect()
    }

    /// ID of the module of requests with a key, or without.
    pub(crate) fn module(&self, has_key: bool) -> &Arc<str> {
        let keyless = self.config.key_missing.as_ref().filter(|_| !has_key);
        keyless.map_or(&self.config.module, |missing| &missing.module)
    }

    /// Its index among [`config::ClusterConfig::modules`].
    #[inline]
    pub(crate) fn module_idx(&self, has_key: bool) -> usize {
        usize::from(!has_key && self.config.key_missing.is_some())
    }

    /// This module of the cluster; `None` where its file is in quarantine.
    pub(crate) fn scope_of(&self, id: &str) -> Option<&Arc<ModuleScope>> {
        self.modules.scope_of(id)
    }

    /// Whether the host chooses in this module's place, because its file is in quarantine, or it is in this cluster.
    pub(crate) fn is_quarantined(&self, module: &str) -> bool {
        self.scope_of(module).is_none_or(|scope| scope.is_quarantined())
    }

    /// Why its members are not in use as they should be, if they are not.
    pub(crate) fn refusal(&self) -> Option<Arc<MembershipRefusal>> {
        self.refusal.load_full()
    }

    /// Has it note from now on what happens.
    pub(crate) fn keep_journal(&self, journal: &Journal) {
        let _ = self.journal.set(journal.clone());
    }

    /// Notes something, of a server or of all. From any thread; waits for nobody.
    fn note(&self, server: Option<&Endpoint>, kind: NoteKind, text: impl FnOnce() -> String) {
        if let Some(journal) = self.journal.get() {
            journal.note(&self.config.name, server.map(|server| &server.url), kind, text());
        }
    }

    fn set_refusal(&self, refusal: Option<MembershipRefusal>) {
        if let Some(refusal) = &refusal {
            self.note(None, NoteKind::Refused, || {
                format!("a change of its servers is refused: {}", refusal.why)
            });
        }
        self.refusal.store(refusal.map(Arc::new));
    }

    /// How often this module of the cluster did this wrong.
    pub fn faults(&self, module: &str, fault: ModuleFault) -> u64 {
        self.scope_of(module).map_or(0, |scope| scope.faults(fault))
    }
}

/// The clusters of a worker, shared by its threads.
pub type Clusters = Arc<[Cluster]>;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::future::Future as _;
    use std::pin::pin;
    use std::task::{Context, Waker};

    use super::*;
    use crate::cluster::learned::Learned;
    use crate::cluster::membership::{Duty, Member};
    use crate::module::registry::Registry;

    /// Two servers, without a module.
    pub(super) fn cluster(keys: &str) -> Cluster {
        cluster_of(keys, "")
    }

    /// The same, of a cluster with these keys.
    pub(super) fn cluster_with(keys: &str) -> Cluster {
        cluster_of("", keys)
    }

    fn cluster_of(keys: &str, more: &str) -> Cluster {
        let text = format!(
            "[[listener]]\naddress = \"127.0.0.1:0\"\n[load_module]\na = \"a.so\"\n[[cluster]]\nname = \"c\"\n\
             servers = [{{ url = \"http://127.0.0.1:1\"{keys} }}, {{ url = \"http://127.0.0.1:2\"{keys} }}]\n\
             {more}\n[[route]]\npath = \"/\"\ncluster = \"c\"\n"
        );
        let (config, _) = config::parse("t.toml", &text, config::Syntax::Toml).expect("a good file");
        let registry =
            Registry::load_except(&config.modules, &BTreeSet::from(["a".into()])).expect("none to load");
        let member = |server: &config::Server| Member { server: server.clone(), duty: Duty::Ready };
        let members: Vec<Member> = config.clusters[0].servers.iter().map(member).collect();
        Cluster::build(0, &config.clusters[0], &members, &registry, &Learned::new(), 10, IfRefused::Nothing)
            .expect("no module that could refuse")
    }

    #[test]
    fn as_many_as_places_came_free_are_woken_when_older_requests_end() {
        let cluster = cluster(", max_requests = 2");
        let set = |n| cluster.set_in_flight_older(&cluster.member(0), n);
        set(2);
        let places = [(); 3].map(|()| cluster.queue.enter(9, Wanted::Any).expect("there is room"));
        let mut cx = Context::from_waker(Waker::noop());
        let mut told = || places.each_ref().map(|place| pin!(place.told()).poll(&mut cx).is_ready());
        set(2);
        assert_eq!(told(), [false; 3], "nothing came free");
        set(0);
        assert_eq!(told(), [true, true, false], "two places, and not three");
    }

    #[test]
    fn the_fallback_prefers_whom_older_generations_use_less() {
        let cluster = cluster("");
        let newest = cluster.newest();
        let weight = u64::from(newest.endpoints[0].effective_weight());
        for (busy, idle) in [(0, 1), (1, 0)] {
            cluster.set_in_flight_older(&newest.endpoints[busy], 3);
            // The first endpoint is kept for certain; these draw one of them first and the other second.
            for bits in [[0, 0, 0, weight], [0, 0, weight, 0]] {
                let mut bits = bits.into_iter();
                let random = || bits.next().expect("two draws for each of two");
                let chosen = newest.fall_back(&newest.tiers[0], Which::Available, |_| false, random);
                assert_eq!(chosen, Some(idle));
            }
        }
    }
}
