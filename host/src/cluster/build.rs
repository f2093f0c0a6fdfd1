//! How a snapshot is built: its endpoints, then the balancers of each tier over them.
//!
//! An endpoint whose source says the same of it as before is the same object, and a tier of the same endpoints in the same order
//! keeps its balancers. New balancers are listed with their members before any module is asked, so that a change of state during
//! `build` is counted.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use std::sync::{Arc, Mutex, OnceLock};

use arc_swap::{ArcSwap, ArcSwapOption};
use rustc_hash::FxHashMap;
use tokio::sync::Notify;

use super::{Cluster, Instance, KeylessChooser, MembershipRefusal, Snapshot, Tier, WaitQueue};
use crate::cluster::ejection::Outlier;
use crate::cluster::endpoint::{Endpoint, addresses_of};
use crate::cluster::health::HealthSource;
use crate::cluster::learned::{Learned, LearnedCluster};
use crate::cluster::live::{Arenas, InstanceState, Live};
use crate::cluster::lives::Lives;
use crate::cluster::membership::{Duty, Member};
use crate::cluster::places::Places;
use crate::cluster::retries::Retries;
use crate::cluster::slow_start::SlowStart;
use crate::cluster::snapshot::{NO_INDEX, RefusedInstance};
use crate::cluster::sticky::Sticky;
use crate::config::{self, LAST_TIER, Server, Setting};
use crate::module::balancer::{self, Balancer, BuildError, BuildInput, BuildProblem, ModuleScope};
use crate::module::registry::Registry;
use crate::net::per_client::PerClient;

/// The inputs of a cluster's snapshots.
#[derive(Debug)]
pub(super) struct Builder {
    modules: ClusterModules,
    /// The key that signs sessions where the configuration has no secret.
    secret: [u8; 32],
    arenas: Arenas,
    /// The life of each member, as long as anything refers to it.
    lives: Arc<Lives>,
    n_instances: u64,
}

/// The modules of a cluster.
#[derive(Clone, Debug)]
pub(super) struct ClusterModules {
    /// The module of all requests; `None` where its file is in quarantine.
    main: Option<Arc<ModuleScope>>,
    /// The module of requests without a key, where the configuration names one.
    keyless: Option<Arc<ModuleScope>>,
}

impl ClusterModules {
    fn of(idx: usize, config: &config::ClusterConfig, registry: &Registry, fault_limit: u32) -> Self {
        let scope = |id: &str| {
            registry.module(id).map(|module| ModuleScope::new(module, &config.name, Some(idx), fault_limit))
        };
        let main = scope(&config.module);
        let keyless = config.key_missing.as_ref().and_then(|missing| match &main {
            Some(main) if *missing.module == *config.module => Some(Arc::clone(main)),
            _ => scope(&missing.module),
        });
        Self { main, keyless }
    }

    /// The module of this ID; `None` where its file is in quarantine.
    pub(super) fn scope_of(&self, id: &str) -> Option<&Arc<ModuleScope>> {
        self.main.iter().chain(&self.keyless).find(|scope| scope.module().id() == id)
    }
}

/// The state for publications of a cluster.
#[derive(Debug)]
pub(super) struct Publishing {
    pub(super) builder: Builder,
    /// Snapshots that requests may still use. They end here, and on no thread that serves: a module's `drop` may take long.
    pub(super) superseded: Vec<Arc<Snapshot>>,
}

impl Publishing {
    pub(super) fn new(builder: Builder) -> Self {
        Self { builder, superseded: Vec::new() }
    }

    /// Snapshots that no request uses any more, to be dropped by a thread that may wait.
    pub(super) fn take_unused(&mut self) -> Vec<Arc<Snapshot>> {
        self.superseded.extract_if(.., |snapshot| Arc::strong_count(snapshot) == 1).collect()
    }
}

impl Cluster {
    /// Builds the endpoints of these members and the balancers, which begin with the learned state of an earlier generation. A
    /// module in quarantine has no balancer, and the host chooses among the endpoints. `idx` is the cluster's index in the
    /// configuration; `fault_limit` is that of [`ModuleScope::new`].
    ///
    /// # Errors
    /// The module refuses its settings or its endpoints, unless the host is to choose then.
    ///
    /// # Panics
    /// If a module of the cluster is not in the registry, which the checked configuration rules out.
    pub(crate) fn build(
        idx: usize,
        config: &config::ClusterConfig,
        members: &[Member],
        registry: &Registry,
        learned: &Learned,
        fault_limit: u32,
        if_refused: IfRefused,
    ) -> Result<Self, BuildError> {
        for id in config.modules() {
            assert!(
                registry.module(id).is_some() || registry.is_quarantined(id),
                "a checked cluster names modules that are loaded"
            );
        }
        let known = learned.cluster(&config.name);
        let mut builder = Builder {
            modules: ClusterModules::of(idx, config, registry, fault_limit),
            secret: *learned.secret(),
            arenas: Arenas::default(),
            lives: Arc::default(),
            n_instances: 0,
        };
        let ids = Endpoint::ids(&config.name, members.iter().map(|member| &member.server));
        let endpoints = builder.endpoints(members, &ids, None);
        if let Some(known) = known {
            known.restore(&endpoints);
        }
        for endpoint in &endpoints {
            endpoint.live.set_weight(endpoint.weight);
        }
        let from = BuildFrom { before: None, known };
        let (snapshot, refused) = builder.snapshot(1, config, endpoints, &from, if_refused)?;
        let cluster = Self::over(config, snapshot, builder);
        if let Some(refused) = refused {
            cluster.set_refusal(Some(MembershipRefusal { why: refused.to_string(), host_chooses: true }));
            tracing::error!("cluster \"{}\": the host chooses among its servers: {refused}", config.name);
        }
        cluster.set_duties(&duties(&ids, members));
        if let Some(known) = known {
            cluster.take_over_health(known.health());
            known.tell_on(&cluster.newest().endpoints);
        }
        Ok(cluster)
    }

    fn over(config: &config::ClusterConfig, snapshot: Snapshot, builder: Builder) -> Self {
        let has_slow_start = !config.slow_start.is_zero();
        // Sources may name servers of any tier.
        let of_sources = if config.discover.is_empty() { 0..=0 } else { 0..=LAST_TIER };
        let mut tiers: Vec<u16> = config.servers.iter().map(|server| server.tier).chain(of_sources).collect();
        tiers.sort_unstable();
        tiers.dedup();
        let cluster = Self {
            config: config.clone(),
            newest: ArcSwap::from_pointee(snapshot),
            lives: Arc::clone(&builder.lives),
            modules: builder.modules.clone(),
            publishing: Mutex::new(Publishing::new(builder)),
            turn: Mutex::default(),
            in_use: OnceLock::new(),
            n_over: AtomicU64::new(0),
            refusal: ArcSwapOption::empty(),
            slow_start: has_slow_start
                .then(|| SlowStart::new(config.slow_start, config.slow_start_aggression)),
            outlier: Outlier::new(&config.ejection, tiers),
            queue: WaitQueue::new(config.queue_order),
            queue_shares: (config.queue_per_client > 0)
                .then(|| Arc::new(PerClient::new(config.queue_per_client, config.queue))),
            retries: Retries::default(),
            panics: AtomicBool::new(false),
            changed: Notify::new(),
            journal: OnceLock::new(),
            requests: AtomicU32::new(0),
            requests_elsewhere: AtomicU32::new(0),
        };
        cluster.count_members();
        cluster
    }
}

impl Builder {
    /// The endpoints of these members, which have these IDs, by tier and then in their order. Those of `before` go on.
    pub(super) fn endpoints(
        &self,
        members: &[Member],
        ids: &[u64],
        before: Option<&Snapshot>,
    ) -> Vec<Arc<Endpoint>> {
        let before: FxHashMap<u64, &Arc<Endpoint>> =
            before.iter().flat_map(|before| &before.endpoints).map(|member| (member.id, member)).collect();
        let mut endpoints: Vec<Arc<Endpoint>> = Vec::with_capacity(members.len());
        for (Member { server, .. }, &id) in members.iter().zip(ids) {
            match before.get(&id) {
                Some(known) if known.is_as(server) => endpoints.push(Arc::clone(known)),
                _ => endpoints
                    .extend(self.live(server, id).map(|live| Endpoint::new(server, id, &live).into())),
            }
        }
        endpoints.sort_by_key(|endpoint| endpoint.tier);
        endpoints
    }

    /// The life of a member, or a new one; `None` where there is no room for one more.
    fn live(&self, server: &Server, id: u64) -> Option<Arc<Live>> {
        self.lives.get_or(id, || self.new_live(server))
    }

    fn new_live(&self, server: &Server) -> Option<Arc<Live>> {
        let Some(place) = self.arenas.places.take() else {
            tracing::error!(
                "server \"{}\" is left out: a cluster has at most {} members",
                server.url,
                Places::MOST
            );
            return None;
        };
        let reasons = if server.drain { HealthSource::Drain.bit() } else { 0 };
        let live = Live::new(place, &self.arenas.counters, addresses_of(server), reasons);
        live.set_limit(server.max_requests);
        Some(live)
    }

    /// Forgets members of which nothing is left.
    pub(super) fn forget_gone(&self) {
        self.lives.forget_gone();
    }

    /// One more than the highest place of any member.
    pub(super) fn n_places(&self) -> usize {
        self.arenas.places.bound()
    }

    /// A snapshot of these endpoints, which are in order. Tiers that are as before keep their balancers. Where a module refuses
    /// and `refused` says so, the host chooses in its place; the first refusal is told beside.
    ///
    /// # Errors
    /// A module refuses. Nothing that was built for this is left then.
    pub(super) fn snapshot(
        &mut self,
        number: u64,
        config: &config::ClusterConfig,
        endpoints: Vec<Arc<Endpoint>>,
        from: &BuildFrom<'_>,
        if_refused: IfRefused,
    ) -> Result<(Snapshot, Option<BuildError>), BuildError> {
        let mut tiers: Vec<Tier> = Vec::new();
        let (mut first, mut refused) = (0, None);
        for members in endpoints.chunk_by(|a, b| a.tier == b.tier) {
            let previous = from.instance_of(members[0].tier);
            let instance = match previous {
                Some(previous) if previous.refused.is_none() && is_same(&previous.endpoints, members) => {
                    Ok(Arc::clone(previous))
                }
                _ => {
                    self.instance(config, members, previous, from.known, if_refused).map(|(built, error)| {
                        refused = refused.take().or(error);
                        built
                    })
                }
            };
            match instance {
                Ok(instance) => tiers.push(Tier { first, n_endpoints: members.len(), instance }),
                Err(error) => {
                    let is_new = |tier: &&Tier| Arc::strong_count(&tier.instance) == 1;
                    tiers.iter().filter(is_new).for_each(|tier| tier.instance.unlist());
                    return Err(error);
                }
            }
            first += members.len();
        }
        let mut by_place = vec![NO_INDEX; self.n_places()].into_boxed_slice();
        for (idx, endpoint) in (0..).zip(&endpoints) {
            by_place[endpoint.place] = idx;
        }
        let balancers = || tiers.iter().filter_map(|tier| tier.instance.balancer.as_ref());
        let sticky = config.sticky.as_ref();
        let snapshot = Snapshot {
            number,
            sticky: sticky.map(|sticky| Sticky::new(&config.name, sticky, &endpoints, &self.secret)),
            has_limits: endpoints.iter().any(|endpoint| endpoint.limit > 0),
            uses_key: balancers().any(|balancer| balancer.needs().key),
            all_down: config.all_down,
            spill: config.spill,
            endpoints: endpoints.into(),
            tiers: tiers.into(),
            by_place,
            is_over: AtomicBool::new(false),
        };
        Ok((snapshot, refused))
    }

    /// The balancers of one tier.
    fn instance(
        &mut self,
        config: &config::ClusterConfig,
        members: &[Arc<Endpoint>],
        previous: Option<&Arc<Instance>>,
        known: Option<&LearnedCluster>,
        if_refused: IfRefused,
    ) -> Result<(Arc<Instance>, Option<BuildError>), BuildError> {
        self.n_instances += 1;
        let state = InstanceState::new(self.n_instances, &self.arenas.states);
        members.iter().for_each(|member| member.live.list(&state));
        let last_built = previous.and_then(|previous| match &previous.refused {
            Some(refused) => refused.last_built.as_ref(),
            None => Some(previous),
        });
        let build = InstanceBuild { builder: self, config, members, state: &state, known };
        let (balancer, keyless, error) = match (build.balancers(last_built.map(|built| &**built)), if_refused)
        {
            (Ok((balancer, keyless)), _) => (balancer, keyless, None),
            (Err(error), IfRefused::HostChooses) => {
                let has_two = config.key_missing.is_some();
                let keyless = if has_two { KeylessChooser::Host } else { KeylessChooser::Same };
                (None, keyless, Some(error))
            }
            (Err(error), IfRefused::Nothing) => {
                members.iter().for_each(|member| member.live.unlist(&state));
                return Err(error);
            }
        };
        let refused = error.is_some().then(|| RefusedInstance { last_built: last_built.cloned() });
        let (tier, endpoints) = (members[0].tier, members.into());
        let instance = Arc::new(Instance { tier, endpoints, balancer, keyless, state, refused });
        Ok((instance, error))
    }
}

/// The inputs of a snapshot, beside its members.
pub(super) struct BuildFrom<'a> {
    /// The one before it.
    pub(super) before: Option<&'a Snapshot>,
    /// The learned state of an earlier generation.
    pub(super) known: Option<&'a LearnedCluster>,
}

impl BuildFrom<'_> {
    fn instance_of(&self, tier: u16) -> Option<&Arc<Instance>> {
        let mut tiers = self.before.iter().flat_map(|before| &before.tiers);
        tiers.find(|known| known.number() == tier).map(|known| &known.instance)
    }
}

/// The result for members that a module refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum IfRefused {
    /// Nothing: there are others to go on with.
    Nothing,
    /// The host chooses among them: nobody else could serve.
    HostChooses,
}

/// One instance that is being built.
struct InstanceBuild<'a> {
    builder: &'a Builder,
    config: &'a config::ClusterConfig,
    members: &'a [Arc<Endpoint>],
    state: &'a InstanceState,
    known: Option<&'a LearnedCluster>,
}

impl InstanceBuild<'_> {
    fn balancers(
        &self,
        previous: Option<&Instance>,
    ) -> Result<(Option<Balancer>, KeylessChooser), BuildError> {
        let before = previous.and_then(|previous| previous.balancer.as_ref());
        let ClusterModules { main, keyless } = &self.builder.modules;
        let balancer = self.balancer(main.as_ref(), &self.config.settings, before)?;
        let Some(missing) = &self.config.key_missing else { return Ok((balancer, KeylessChooser::Same)) };
        let before = previous.and_then(|previous| match &previous.keyless {
            KeylessChooser::Own(balancer) => Some(balancer),
            KeylessChooser::Same | KeylessChooser::Host => None,
        });
        let Some(keyless) = self.balancer(keyless.as_ref(), &missing.settings, before)? else {
            return Ok((balancer, KeylessChooser::Host));
        };
        if keyless.needs().key {
            return Err(self.needs_a_key(missing));
        }
        Ok((balancer, KeylessChooser::Own(keyless)))
    }

    /// The module's balancer; `None` where the module, or its file, is in quarantine.
    fn balancer(
        &self,
        module: Option<&Arc<ModuleScope>>,
        settings: &[Setting],
        previous: Option<&Balancer>,
    ) -> Result<Option<Balancer>, BuildError> {
        let Some(scope) = module.filter(|scope| !scope.is_quarantined()) else { return Ok(None) };
        let seen: Vec<balancer::EndpointInput<'_>> = self.members.iter().map(|member| seen(member)).collect();
        let saved = self.known.filter(|_| previous.is_none());
        let input = BuildInput {
            endpoints: &seen,
            state: self.state.get(),
            settings,
            previous,
            saved: saved.and_then(|known| known.saved(self.members[0].tier, scope.module().id())),
        };
        Balancer::build(scope, input).map(Some)
    }

    /// The balancer for requests without a key must do without one.
    fn needs_a_key(&self, missing: &config::KeyMissing) -> BuildError {
        let text = "needs a key, but is to balance requests without one (name another module in key_missing)";
        BuildError {
            cluster: (&*self.config.name).into(),
            module: (&*missing.module).into(),
            problems: vec![BuildProblem {
                path: "".into(),
                text: text.into(),
                place: Some(missing.place.clone()),
            }],
        }
    }
}

/// The duty of each member, by ID.
pub(super) type Duties = FxHashMap<u64, Duty>;

/// The duties of these members, which have these IDs.
pub(super) fn duties(ids: &[u64], members: &[Member]) -> Duties {
    ids.iter().copied().zip(members.iter().map(|member| member.duty)).collect()
}

/// Whether these are the same endpoints in the same order.
pub(super) fn is_same(before: &[Arc<Endpoint>], now: &[Arc<Endpoint>]) -> bool {
    before.len() == now.len() && before.iter().zip(now).all(|(a, b)| Arc::ptr_eq(a, b))
}

/// An endpoint as a balancer sees it.
fn seen(endpoint: &Endpoint) -> balancer::EndpointInput<'_> {
    balancer::EndpointInput {
        id: endpoint.id,
        url: &endpoint.url,
        name: &endpoint.name,
        port: endpoint.port,
        address: endpoint.addresses.as_fixed().map(|address| address.ip()),
        weight: endpoint.weight,
        metadata: &endpoint.metadata,
        counters: endpoint.counters,
    }
}
