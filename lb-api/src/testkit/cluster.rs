//! Endpoints, requests, time and chance, as the test wants them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::time::Duration;

use crate::balancer::Balancer;
use crate::endpoint::State;
use crate::testkit::build::Builder;
use crate::testkit::calls::Table;
use crate::trylist::Rng;
use crate::wire;

/// A cluster whose endpoints the test makes and changes. Clones are the same cluster.
#[derive(Clone)]
pub struct FakeCluster {
    pub(super) endpoints: Vec<FakeEndpoint>,
    pub(super) state: &'static wire::ClusterState,
    pub(super) world: Arc<World>,
}

#[derive(Clone)]
pub(super) struct FakeEndpoint {
    pub(super) id: u64,
    pub(super) weight: u32,
    pub(super) url: String,
    pub(super) name: String,
    pub(super) port: u16,
    pub(super) metadata: Vec<(String, String)>,
    /// Leaked, since a host promises that its slots live for ever.
    pub(super) counters: &'static wire::Counters,
}

/// Time and chance, shared by all threads of a test.
pub(super) struct World {
    now_ns: AtomicU64,
    seed: AtomicU64,
}

impl World {
    pub(super) fn now_ns(&self) -> u64 {
        self.now_ns.load(Relaxed)
    }

    pub(super) fn random(&self) -> u64 {
        Rng::new(self.seed.fetch_add(1, Relaxed).wrapping_mul(0x2545_f491_4f6c_dd1d)).bits()
    }
}

impl FakeCluster {
    /// `n` endpoints of weight 1, `http://10.0.0.1:8080` and so on, all available.
    pub fn equal(n: usize) -> Self {
        Self::weighted(&vec![1; n])
    }

    /// An endpoint for each of these configured weights, all available.
    pub fn weighted(weights: &[u32]) -> Self {
        Self {
            endpoints: weights
                .iter()
                .enumerate()
                .map(|(idx, weight)| FakeEndpoint::new(idx, *weight))
                .collect(),
            state: new_state(),
            world: Arc::new(World { now_ns: AtomicU64::new(1_000_000_000), seed: AtomicU64::new(0) }),
        }
        .counted()
    }

    fn counted(self) -> Self {
        self.count_available();
        self
    }

    /// Endpoints of weight 1 with these URLs, all available: `http://name:80`, which has no address yet,
    /// `http://[::1]:80`, or `unix:/path`. Ports are written out.
    pub fn at(urls: &[&str]) -> Self {
        let mut cluster = Self::equal(urls.len());
        for (endpoint, url) in cluster.endpoints.iter_mut().zip(urls) {
            endpoint.url = (*url).into();
            if let Some(path) = url.strip_prefix("unix:") {
                (endpoint.name, endpoint.port) = (path.into(), 0);
                continue;
            }
            let host = url.split_once("://").map_or(*url, |(_, host)| host);
            let (name, port) =
                host.rsplit_once(':').map_or((host, 80), |(name, port)| (name, port.parse().unwrap_or(80)));
            (endpoint.name, endpoint.port) = (name.trim_matches(['[', ']']).into(), port);
        }
        cluster
    }

    /// Adds a metadata pair to an endpoint.
    #[must_use]
    pub fn metadata(mut self, endpoint: usize, name: &str, value: &str) -> Self {
        self.endpoints[endpoint].metadata.push((name.into(), value.into()));
        self
    }

    /// How many endpoints there are.
    #[expect(clippy::len_without_is_empty, reason = "there is always one")]
    pub fn len(&self) -> usize {
        self.endpoints.len()
    }

    /// Id of an endpoint.
    pub fn id(&self, endpoint: usize) -> u64 {
        self.endpoints[endpoint].id
    }

    /// The same cluster with its endpoints in another order, or with fewer of them: what a reload may bring.
    #[must_use]
    pub fn reordered(&self, order: &[usize]) -> Self {
        Self { endpoints: order.iter().map(|idx| self.endpoints[*idx].clone()).collect(), ..self.clone() }
    }

    /// Another membership of the same cluster: these endpoints, in this order, with live numbers of the cluster that are its own.
    /// An endpoint of both has one slot.
    #[must_use]
    pub fn membership(&self, order: &[usize]) -> Self {
        Self { state: new_state(), ..self.reordered(order) }.counted()
    }

    /// The membership that follows another one. Endpoints that stay keep their slot and weight. All others get a slot of their
    /// own, also if they were there before.
    pub(super) fn membership_after(&self, before: &Self, order: &[usize]) -> Self {
        let mut next = self.membership(order);
        for it in &mut next.endpoints {
            match before.endpoints.iter().find(|before| before.id == it.id) {
                Some(before) => *it = before.clone(),
                None => it.counters = new_counters(it.weight),
            }
        }
        next.counted()
    }

    /// Poisons the slots of endpoints that are not in the next membership, and its own numbers: no instance of it is left.
    pub(super) fn leave_to(&self, next: &Self) {
        self.state.n_available.store(0, Relaxed);
        for (idx, it) in self.endpoints.iter().enumerate() {
            if !next.endpoints.iter().any(|next| std::ptr::eq(next.counters, it.counters)) {
                self.poison(idx);
            }
        }
    }

    /// Another configured weight. The effective weight falls at once; it rises with [`settle`](Self::settle), since no instance
    /// sees more than it was built with.
    pub(super) fn set_weight(&mut self, endpoint: usize, weight: u32) {
        let it = &mut self.endpoints[endpoint];
        it.weight = weight;
        it.counters.effective_weight.fetch_min(weight << 16, Relaxed);
        self.state.epoch.fetch_add(1, Release);
    }

    /// No instance of the membership before is left: effective weights rise to the configured ones.
    pub(super) fn settle(&self) {
        self.endpoints.iter().for_each(|it| it.counters.effective_weight.store(it.weight << 16, Relaxed));
        self.state.epoch.fetch_add(1, Release);
    }

    /// The slot of an endpoint that has left, as it may be found once no instance that was built with it lives: down, without a
    /// weight, and with numbers that no endpoint has.
    pub fn poison(&self, endpoint: usize) {
        let counters = self.endpoints[endpoint].counters;
        counters.state.store(wire::STATE_DOWN, Relaxed);
        counters.effective_weight.store(0, Relaxed);
        counters.in_flight.store(u32::MAX, Relaxed);
        counters.in_flight_older.store(u32::MAX, Relaxed);
        counters.max_in_flight.store(1, Relaxed);
        counters.latency_ns.store(u64::MAX, Relaxed);
    }

    /// Changes the state of an endpoint, and the epoch.
    pub fn set_state(&self, endpoint: usize, state: State) {
        let state = match state {
            State::Available => wire::STATE_AVAILABLE,
            State::Down => wire::STATE_DOWN,
            State::Ejected => wire::STATE_EJECTED,
            State::Draining => wire::STATE_DRAINING,
        };
        self.endpoints[endpoint].counters.state.store(state, Relaxed);
        self.count_available();
        self.state.epoch.fetch_add(1, Release);
    }

    fn count_available(&self) {
        let available =
            self.endpoints.iter().filter(|e| e.counters.state.load(Relaxed) == wire::STATE_AVAILABLE);
        self.state.n_available.store(available.count() as u32, Relaxed);
    }

    /// Whether an endpoint is available.
    pub fn is_available(&self, endpoint: usize) -> bool {
        self.endpoints[endpoint].counters.state.load(Acquire) == wire::STATE_AVAILABLE
    }

    /// Changes the effective weight of an endpoint, in 16.16 fixed point, and the epoch.
    pub fn set_effective_weight(&self, endpoint: usize, weight: u32) {
        self.endpoints[endpoint].counters.effective_weight.store(weight, Relaxed);
        self.state.epoch.fetch_add(1, Release);
    }

    /// Effective weight of an endpoint.
    pub fn effective_weight(&self, endpoint: usize) -> u32 {
        self.endpoints[endpoint].counters.effective_weight.load(Relaxed)
    }

    /// Sets how many requests an endpoint has in flight. A host counts them; here the test does.
    pub fn set_in_flight(&self, endpoint: usize, n: u32) {
        self.endpoints[endpoint].counters.in_flight.store(n, Relaxed);
    }

    /// Sets how many requests an endpoint may have in flight; 0 for no limit.
    pub fn set_max_in_flight(&self, endpoint: usize, n: u32) {
        self.endpoints[endpoint].counters.max_in_flight.store(n, Relaxed);
    }

    /// Sets the smoothed latency of an endpoint.
    pub fn set_latency(&self, endpoint: usize, latency: Duration) {
        self.endpoints[endpoint].counters.latency_ns.store(latency.as_nanos() as u64, Relaxed);
    }

    /// Lets time pass.
    pub fn advance(&self, by: Duration) {
        self.world.now_ns.fetch_add(by.as_nanos() as u64, Relaxed);
    }

    /// Starts the random numbers anew. Without, the seed is 0.
    pub fn seed(&self, seed: u64) {
        self.world.seed.store(seed, Relaxed);
    }

    /// A balancer on this cluster, to be given settings and the like.
    pub fn balancer<B: Balancer>(&self) -> Builder<'_, B> {
        Builder::new(self, Table::of::<B>())
    }

    /// The same for a module that was loaded.
    pub fn loaded(&self, table: Table) -> Builder<'_, Table> {
        Builder::new(self, table)
    }
}

impl FakeEndpoint {
    fn new(idx: usize, weight: u32) -> Self {
        let name = format!("10.0.{}.{}", idx / 250, idx % 250 + 1);
        Self {
            // Any ids will do that are not the indices.
            id: Rng::new(idx as u64).bits(),
            weight,
            url: format!("http://{name}:8080"),
            name,
            port: 8080,
            metadata: Vec::new(),
            counters: new_counters(weight),
        }
    }
}

/// The live numbers of a cluster, of one instance.
fn new_state() -> &'static wire::ClusterState {
    Box::leak(Box::new(wire::ClusterState {
        size: size_of::<wire::ClusterState>() as u32,
        n_available: AtomicU32::new(0),
        // As in a cluster that a host has just built: a table that was never made must not pass for one of this epoch.
        epoch: AtomicU64::new(0),
    }))
}

/// The slot of an endpoint that is available.
fn new_counters(weight: u32) -> &'static wire::Counters {
    Box::leak(Box::new(wire::Counters {
        size: size_of::<wire::Counters>() as u32,
        state: AtomicU32::new(wire::STATE_AVAILABLE),
        effective_weight: AtomicU32::new(weight << 16),
        in_flight: AtomicU32::new(0),
        in_flight_older: AtomicU32::new(0),
        max_in_flight: AtomicU32::new(0),
        latency_ns: AtomicU64::new(0),
    }))
}

/// A request that was never sent.
#[derive(Clone, Debug)]
pub struct FakeRequest {
    pub(super) method: String,
    pub(super) path: Vec<u8>,
    pub(super) query: Option<Vec<u8>>,
    pub(super) authority: Option<Vec<u8>>,
    pub(super) client: Option<SocketAddr>,
    pub(super) key: Option<Vec<u8>>,
    pub(super) headers: Vec<(String, Vec<u8>)>,
    pub(super) preferred: Option<usize>,
}

impl FakeRequest {
    /// `GET path`, with a query after a question mark, from 192.0.2.1 to `test.example`.
    pub fn get(path: &str) -> Self {
        let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
        Self {
            method: "GET".into(),
            path: path.into(),
            query: query.map(Into::into),
            authority: Some("test.example".into()),
            client: Some(SocketAddr::from(([192, 0, 2, 1], 40_000))),
            key: None,
            headers: Vec::new(),
            preferred: None,
        }
    }

    /// Another method.
    #[must_use]
    pub fn method(mut self, method: &str) -> Self {
        self.method = method.into();
        self
    }

    /// One more header line.
    #[must_use]
    pub fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.headers.push((name.into(), value.as_ref().into()));
        self
    }

    /// The key, for balancers that ask for one.
    #[must_use]
    pub fn key(mut self, key: impl AsRef<[u8]>) -> Self {
        self.key = Some(key.as_ref().into());
        self
    }

    /// Another client.
    #[must_use]
    pub fn client(mut self, client: SocketAddr) -> Self {
        self.client = Some(client);
        self
    }

    /// A client without an address: it came over a Unix socket.
    #[must_use]
    pub fn without_client(mut self) -> Self {
        self.client = None;
        self
    }

    /// Another path, of any bytes: HTTP allows those above 0x7f.
    #[must_use]
    pub fn path(mut self, path: impl AsRef<[u8]>) -> Self {
        self.path = path.as_ref().into();
        self
    }

    /// Another query, or none.
    #[must_use]
    pub fn query(mut self, query: Option<&[u8]>) -> Self {
        self.query = query.map(Into::into);
        self
    }

    /// Another `Host`, or none.
    #[must_use]
    pub fn authority(mut self, authority: Option<&str>) -> Self {
        self.authority = authority.map(Into::into);
        self
    }

    /// The endpoint that the host tries first by itself.
    #[must_use]
    pub fn preferred(mut self, endpoint: usize) -> Self {
        self.preferred = Some(endpoint);
        self
    }
}

/// A setting's value. Tables and arrays come into being with their elements, and need to be said only where they are empty
/// or their number of elements is to be something else.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the names say it all")]
pub enum SettingValue {
    String(String),
    Integer(i64),
    Float(f64),
    Boolean(bool),
    Table(usize),
    Array(usize),
}

impl From<&str> for SettingValue {
    fn from(value: &str) -> Self {
        Self::String(value.into())
    }
}

impl From<i64> for SettingValue {
    fn from(value: i64) -> Self {
        Self::Integer(value)
    }
}

impl From<f64> for SettingValue {
    fn from(value: f64) -> Self {
        Self::Float(value)
    }
}

impl From<bool> for SettingValue {
    fn from(value: bool) -> Self {
        Self::Boolean(value)
    }
}
