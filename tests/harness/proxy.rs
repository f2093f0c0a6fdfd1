//! The proxy under test: a worker in this process, from the host's library, on a free port.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use lb_api::wire::{STATE_DOWN, STATE_DRAINING, STATE_EJECTED};
use trylist::cluster::health::HealthSource;
use trylist::cluster::{Cluster, Clusters};
use trylist::config::{self, Config, Syntax};
use trylist::module::registry::Registry;
use trylist::net::address::Address;
use trylist::worker::{Control, Given, Prepared, Sockets, StartError, Worker};

use crate::client::Client;
use crate::origin::Origin;
use crate::stream::Message;
use crate::{artifacts, log};

/// A running proxy; stopped when dropped.
#[derive(Debug)]
pub struct Proxy {
    worker: Option<Worker>,
    control: Control,
    cluster: String,
}

/// A configuration of one listener and one cluster, for as long as nothing else is said.
#[derive(Debug)]
pub struct Builder {
    cluster: String,
    /// URL and further keys of each.
    servers: Vec<(String, String)>,
    module: (String, String),
    more_modules: String,
    threads: usize,
    top: String,
    listener: String,
    in_cluster: String,
    routes: String,
    tables: String,
}

impl Proxy {
    /// In front of these servers, in this order.
    pub fn over<'a>(origins: impl IntoIterator<Item = &'a Origin>) -> Builder {
        Self::over_urls(origins.into_iter().map(Origin::url))
    }

    /// In front of the servers with these URLs.
    pub fn over_urls(urls: impl IntoIterator<Item = impl Into<String>>) -> Builder {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        Builder {
            cluster: format!("cluster-{}", COUNT.fetch_add(1, Ordering::Relaxed)),
            servers: urls.into_iter().map(|url| (url.into(), String::new())).collect(),
            module: ("proxy_lb".into(), String::new()),
            more_modules: String::new(),
            threads: 1,
            top: String::new(),
            listener: String::new(),
            in_cluster: String::new(),
            routes: String::new(),
            tables: "[admin]\naddress = \"127.0.0.1:0\"\n".into(),
        }
    }

    /// Of a whole configuration.
    ///
    /// # Errors
    /// Its modules or balancers are refused, or it cannot be bound.
    ///
    /// # Panics
    /// Where the configuration itself is refused.
    #[track_caller]
    pub fn of(name: &str, text: &str) -> Result<Self, StartError> {
        Self::without(name, text, &BTreeSet::new())
    }

    #[track_caller]
    fn after(name: &str, text: &str, old: &Self) -> Result<Self, StartError> {
        let config = Self::config(name, text);
        // As it comes through the supervisor.
        let state = serde_json::to_string(&old.worker().learned()).unwrap();
        let state = serde_json::from_str(&state).unwrap();
        let registry = Registry::load(&config.modules).map_err(StartError::Modules)?;
        Self::start(Prepared::over(config, registry, &state)?)
    }

    #[track_caller]
    fn without(name: &str, text: &str, quarantined: &BTreeSet<Arc<str>>) -> Result<Self, StartError> {
        Self::start(Prepared::without(Self::config(name, text), quarantined)?)
    }

    #[track_caller]
    fn config(name: &str, text: &str) -> Arc<Config> {
        log::start();
        let parsed = config::parse(name, text, Syntax::of(Path::new(name)));
        Arc::new(parsed.unwrap_or_else(|errors| panic!("{errors}\n{text}")).0)
    }

    fn start(prepared: Prepared) -> Result<Self, StartError> {
        let cluster = prepared.config.clusters[0].name.to_string();
        let sockets = Sockets::bind(&prepared.config)?;
        let worker = Worker::start_on(prepared, sockets, Given::default())?;
        Ok(Self { control: worker.control(), worker: Some(worker), cluster })
    }

    /// Where it listens.
    ///
    /// # Panics
    /// Where its first listener is a Unix socket.
    #[track_caller]
    pub fn address(&self) -> SocketAddr {
        self.worker().addresses()[0].ip().expect("an IP address")
    }

    /// Where all its listeners are that have an IP address, in the order of the configuration.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.worker().addresses().iter().filter_map(Address::ip).collect()
    }

    /// Where its admin listener is.
    ///
    /// # Panics
    /// Where its configuration has none.
    #[track_caller]
    pub fn admin_address(&self) -> SocketAddr {
        self.worker().admin_address().and_then(Address::ip).expect("the configuration has an admin listener")
    }

    /// Has an endpoint of its first cluster be in this state: the source that says so is the only one that says anything.
    pub fn set_state(&self, endpoint: usize, state: u32) {
        let sources = [
            (HealthSource::Drain, STATE_DRAINING),
            (HealthSource::Check, STATE_DOWN),
            (HealthSource::Ejection, STATE_EJECTED),
        ];
        // New marks before old ones end: it is never available in between.
        for holds in [true, false] {
            for (source, _) in sources.iter().filter(|(_, of)| (*of == state) == holds) {
                let endpoint = std::sync::Arc::clone(&self.first_cluster().newest().endpoints[endpoint]);
                self.first_cluster().set_source(&endpoint, *source, holds);
            }
        }
    }

    /// Its first cluster.
    pub fn first_cluster(&self) -> &Cluster {
        &self.worker().clusters()[0]
    }

    /// Its clusters.
    pub fn clusters(&self) -> &Clusters {
        self.worker().clusters()
    }

    /// Faults of each module.
    pub fn faults(&self) -> BTreeMap<Arc<str>, u64> {
        self.worker().faults()
    }

    /// Name of its first cluster.
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// To have it drain or stop.
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// A new connection to it.
    #[track_caller]
    pub fn connect(&self) -> Client {
        Client::connect(self.address())
    }

    /// One request on a connection of its own.
    #[track_caller]
    pub fn get(&self, path: &str) -> Message {
        self.connect().get(path).reply()
    }

    /// The bodies of so many requests, one after the other: the names of the servers that answered.
    #[track_caller]
    pub fn names(&self, n: usize) -> String {
        let mut client = self.connect();
        (0..n).map(|_| client.get("/").reply().text()).collect::<Vec<_>>().join(" ")
    }

    /// One number of its metrics, by the name and labels of its line but for the cluster, which stands as `%`. A number
    /// without a line is 0.
    ///
    /// # Panics
    /// Where the admin listener does not answer, or what it answers is no number.
    #[track_caller]
    pub fn metric(&self, series: &str) -> f64 {
        let series = series.replace('%', &self.cluster);
        let metrics = self.metrics();
        let mut values = metrics.lines().filter_map(|line| line.strip_prefix(&*series)?.strip_prefix(' '));
        values.next().map_or(0.0, |value| value.trim().parse().expect("a number"))
    }

    /// Waits until a metric has this value.
    ///
    /// # Panics
    /// At the deadline.
    #[track_caller]
    pub fn wait_for_metric(&self, series: &str, value: f64) {
        crate::eventually(&format!("{series} at {value}"), || (self.metric(series) == value).then_some(()));
    }

    /// Waits until so many requests wait in the cluster's queue.
    ///
    /// # Panics
    /// At the deadline.
    #[track_caller]
    pub fn wait_for_queue(&self, n: usize) {
        self.wait_for_metric("trylist_queue_length{cluster=\"%\"}", n as f64);
    }

    /// All its metrics.
    #[track_caller]
    pub fn metrics(&self) -> String {
        let mut client = Client::connect(self.admin_address());
        client.send("GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").reply().text()
    }

    /// Tries of its first cluster that ended in another way than this.
    #[track_caller]
    pub fn tries_but(&self, result: &str) -> f64 {
        let (cluster, result) = (format!("cluster=\"{}\"", self.cluster), format!("result=\"{result}\""));
        let metrics = self.metrics();
        let tries = metrics
            .lines()
            .filter(|line| line.starts_with("trylist_tries_total{") && line.contains(&cluster));
        let others = tries.filter(|line| !line.contains(&result));
        others.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().expect("a number")).sum()
    }

    /// Waits until it has ended by itself.
    ///
    /// # Panics
    /// Where it does not end until the deadline.
    #[track_caller]
    pub fn wait(mut self) {
        let worker = self.worker.take().expect("it runs until it is dropped");
        let thread = std::thread::spawn(move || worker.wait());
        crate::eventually("the worker's end", || thread.is_finished().then_some(()));
    }

    fn worker(&self) -> &Worker {
        self.worker.as_ref().expect("it runs until it is dropped")
    }
}

impl Builder {
    /// With this one of this workspace's modules.
    #[must_use]
    pub fn module(self, id: &str) -> Self {
        let file = artifacts::module(id);
        self.module_file(id, &file)
    }

    /// With this module, from this file.
    #[must_use]
    pub fn module_file(mut self, id: &str, file: &Path) -> Self {
        self.module = (id.into(), file.display().to_string());
        self
    }

    /// With this one of this workspace's modules loaded beside the cluster's.
    #[must_use]
    pub fn and_module(mut self, id: &str) -> Self {
        self.more_modules += &format!("{id} = {:?}\n", artifacts::module(id));
        self
    }

    /// With this module loaded beside the cluster's, from this file.
    #[must_use]
    pub fn and_module_file(mut self, id: &str, file: &Path) -> Self {
        self.more_modules += &format!("{id} = {file:?}\n");
        self
    }

    /// With a module of `tests/broken` loaded beside the cluster's.
    #[must_use]
    pub fn and_broken(mut self, fault: &str) -> Self {
        self.more_modules += &format!("{} = {:?}\n", fault.replace('-', "_"), artifacts::broken(fault));
        self
    }

    /// With a module of `tests/broken`.
    #[must_use]
    pub fn broken(self, fault: &str) -> Self {
        let file = artifacts::broken(fault);
        let id = fault.replace('-', "_");
        self.module_file(&id, &file)
    }

    /// With these worker threads.
    #[must_use]
    pub fn threads(mut self, n: usize) -> Self {
        self.threads = n;
        self
    }

    /// With this line before all tables.
    #[must_use]
    pub fn top(mut self, line: &str) -> Self {
        self.top += &format!("{line}\n");
        self
    }

    /// With this line in the listener's table.
    #[must_use]
    pub fn listener(mut self, line: &str) -> Self {
        self.listener += &format!("{line}\n");
        self
    }

    /// With this name for the cluster.
    #[must_use]
    pub fn named(mut self, cluster: &str) -> Self {
        self.cluster = cluster.into();
        self
    }

    /// With these keys for this server.
    #[must_use]
    pub fn server(mut self, idx: usize, keys: &str) -> Self {
        self.servers[idx].1 = format!(", {keys}");
        self
    }

    /// With these keys for every server.
    #[must_use]
    pub fn each_server(mut self, keys: &str) -> Self {
        for server in &mut self.servers {
            server.1 = format!(", {keys}");
        }
        self
    }

    /// With this line in the cluster's table.
    #[must_use]
    pub fn in_cluster(mut self, line: &str) -> Self {
        self.in_cluster += &format!("{line}\n");
        self
    }

    /// With these lines as a route to the cluster, in place of the one for everything.
    #[must_use]
    pub fn route(mut self, lines: &str) -> Self {
        self.routes += &format!("[[route]]\ncluster = \"{}\"\n{lines}\n", self.cluster);
        self
    }

    /// With these tables beside the others.
    #[must_use]
    pub fn tables(mut self, lines: &str) -> Self {
        self.tables += &format!("{lines}\n");
        self
    }

    /// The configuration.
    pub fn text(&self) -> String {
        let Self {
            cluster,
            servers,
            module: (id, file),
            more_modules,
            threads,
            top,
            listener,
            in_cluster,
            routes,
            tables,
        } = self;
        let server = |(url, keys): &(String, String)| format!("{{ url = {url:?}{keys} }}");
        let servers: Vec<_> = servers.iter().map(server).collect();
        let servers = servers.join(", ");
        let file = if file.is_empty() { artifacts::module(id).display().to_string() } else { file.clone() };
        let routes = if routes.is_empty() {
            format!("[[route]]\npath = \"/\"\ncluster = \"{cluster}\"\n")
        } else {
            routes.clone()
        };
        format!(
            "threads = {threads}\n{top}[[listener]]\naddress = \"127.0.0.1:0\"\n{listener}[load_module]\n{id} = {file:?}\n{more_modules}\
             [[cluster]]\nname = \"{cluster}\"\nmodule = \"{id}\"\nservers = [{servers}]\n{in_cluster}{routes}{tables}"
        )
    }

    /// Starts it.
    ///
    /// # Panics
    /// Where it does not start.
    #[track_caller]
    pub fn start(self) -> Proxy {
        Proxy::of("test.toml", &self.text()).unwrap_or_else(|error| panic!("{error}\n{}", self.text()))
    }

    /// Starts it with its module in quarantine.
    ///
    /// # Panics
    /// Where it does not start.
    #[track_caller]
    pub fn start_without_module(self) -> Proxy {
        let quarantined = BTreeSet::from([self.module.0.as_str().into()]);
        Proxy::without("test.toml", &self.text(), &quarantined)
            .unwrap_or_else(|error| panic!("{error}\n{}", self.text()))
    }

    /// Starts it with what this one knows, as after a reload.
    ///
    /// # Panics
    /// Where it does not start.
    #[track_caller]
    pub fn start_after(self, old: &Proxy) -> Proxy {
        Proxy::after("test.toml", &self.text(), old)
            .unwrap_or_else(|error| panic!("{error}\n{}", self.text()))
    }

    /// Starts it, where that is to be refused.
    ///
    /// # Errors
    /// Why it was.
    #[track_caller]
    pub fn try_start(self) -> Result<Proxy, StartError> {
        Proxy::of("test.toml", &self.text())
    }
}
