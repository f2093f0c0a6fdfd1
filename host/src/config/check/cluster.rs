//! `[[cluster]]`, step by step.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use toml::Spanned;

use crate::http::h2::PingTerms;
use crate::http::headers::rules::Rules;
use crate::net::address::Address;
use crate::net::proxy_protocol::ProxyVersion;
use crate::tls::client::Protocol;

use super::super::settings::flatten;
use super::super::source::{At, Span};
use super::super::units::TimeValue;
use super::super::{
    AllDown, ClusterConfig, Ejection, HostHeader, Listener, MAX_REQUESTS, Place, QueueOrder, Route, Server,
    Spill, Syntax, WhenFull, file,
};
use super::headers::Direction;
use super::module::CheckedModules;
use super::{Checker, address};

/// Long enough for two lost SYNs (sent again after 1 s and 3 s), short enough to try the next server while the
/// client still waits.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// As many as nginx allows, and twice as many as most applications need.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(60);
/// Like `timeouts.body` on the client's side.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);
/// A second less than Node and httpd keep theirs.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(4);
/// Enough for some thousand requests a second and thread at 10 ms each, at one descriptor a connection.
const KEEPALIVE: usize = 64;
/// Servers commonly allow as many (nginx 128, Go 250, most others 100).
const H2_STREAMS: usize = 100;
/// What libraries of gRPC wait.
const H2_PING_TIMEOUT: Duration = Duration::from_secs(20);
/// Short for people, and time enough for what changes together.
const SETTLE: Duration = Duration::from_millis(100);
/// A few seconds' worth for a cluster that is only just full; more is better refused at once.
const QUEUE: usize = 1024;
/// Longer than a request takes where servers are full by a moment's burst.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(1);

/// The clusters that passed, and whether that is all of them.
pub(super) struct CheckedClusters {
    pub(super) checked: Vec<ClusterConfig>,
    /// A cluster's name could not be read, so a name that is not here may still be right.
    pub(super) incomplete: bool,
    /// For each, where the cookie was written that it sets.
    pub(super) cookies: Vec<Option<usize>>,
}

/// Whether connections to a server arrive at this listener, as far as that can be told without looking names up.
fn is_itself(server: &Server, listener: &Address) -> bool {
    match (listener, &server.unix) {
        (Address::Unix(path), Some(own)) => path == own,
        (Address::Ip(listener), None) if listener.port() == server.port && server.port != 0 => {
            let host = match server.host.parse::<IpAddr>() {
                Ok(host) => host,
                Err(_) if &*server.host == "localhost" => Ipv4Addr::LOCALHOST.into(),
                Err(_) => return false,
            };
            listener.ip() == host || listener.ip().is_unspecified() && host.is_loopback()
        }
        _ => false,
    }
}

impl Checker<'_> {
    pub(super) fn clusters(
        &mut self,
        tables: Vec<Spanned<file::ClusterTable>>,
        modules: &CheckedModules,
    ) -> CheckedClusters {
        if tables.is_empty() && !self.report.is_touched(&self.root, "cluster") {
            self.report.error_of_whole(match self.syntax {
                Syntax::Toml => "no [[cluster]] (write name = \"…\" and servers = [\"http://…\"] below one)",
                Syntax::Httpd => {
                    "no cluster (write, for example, LBServerCluster cluster1 http://127.0.0.1:9001)"
                }
            });
        }
        let incomplete = self.report.is_lost(&self.root, "cluster");
        let mut clusters = CheckedClusters { checked: Vec::new(), incomplete, cookies: Vec::new() };
        let mut seen = HashMap::new();
        for table in tables {
            let (span, cluster) = (table.span(), table.into_inner());
            clusters.incomplete |= cluster.name.is_none();
            let place = self.report.place(span.start);
            if let Some(name) = &cluster.name
                && let Some(first) = seen.insert(name.get_ref().clone(), place)
            {
                self.report
                    .error(name.at(), format!("cluster \"{name}\": the name is already used at {first}"));
            }
            let cookie = cluster.sticky.as_ref().and_then(|sticky| sticky.get_ref().cookie.as_ref());
            clusters.cookies.push(cookie.map(At::at));
            clusters.checked.push(self.cluster(&span, cluster, modules));
        }
        clusters
    }

    /// Says which clusters no route is for.
    pub(super) fn warn_of_idle_clusters(&mut self, clusters: &[ClusterConfig], routes: &[Route]) {
        for (idx, cluster) in clusters.iter().enumerate() {
            if !routes.iter().any(|route| route.cluster == Some(idx)) {
                let text = format!("cluster \"{}\": no route is for it", cluster.name);
                self.report.warn(cluster.place.clone(), text);
            }
        }
    }

    /// Says which servers are this proxy itself: a request to one would come in again and again.
    pub(super) fn warn_of_loops(&mut self, clusters: &[ClusterConfig], listeners: &[Listener]) {
        for cluster in clusters {
            for server in &cluster.servers {
                if let Some(listener) = listeners.iter().find(|listener| is_itself(server, &listener.address))
                {
                    let Listener { address, place, .. } = listener;
                    let (name, url) = (&cluster.name, &server.url);
                    let text = format!(
                        "cluster \"{name}\": server \"{url}\" is this proxy's own listener \"{address}\" at {place}, so \
                         that its requests come in again"
                    );
                    self.report.warn(server.place.clone(), text);
                }
            }
        }
    }

    fn cluster(
        &mut self,
        span: &Span,
        mut raw: file::ClusterTable,
        modules: &CheckedModules,
    ) -> ClusterConfig {
        let name = self.cluster_name(span, raw.name.take());
        let object = match &*name {
            "" => "cluster".to_owned(),
            name => format!("cluster \"{name}\""),
        };
        let mut cluster = ClusterConfig::with_defaults(name, self.report.place(span.start));
        let module = self.module_of(&object, span.start, raw.module.as_ref(), modules);
        cluster.module = module.unwrap_or_default();
        let settings = raw.settings.take();
        cluster.settings = settings.map(|settings| flatten(settings, self.report)).unwrap_or_default();
        cluster.servers = self.servers(&object, span, raw.servers.take(), !raw.discover.0.is_empty());
        // Sources wait for each other as long as changes do. Zero is valid: every change is built at once.
        cluster.settle = raw.settle.as_ref().map_or(SETTLE, |time| time.get_ref().0);
        let sources = std::mem::take(&mut raw.discover);
        cluster.discover = self.discover(&object, &cluster, sources);
        self.set_protocol(&mut cluster, &object, span, &mut raw);
        self.set_connections(&mut cluster, &object, &raw);
        self.set_key(&mut cluster, &object, &mut raw, modules);
        self.set_queue(&mut cluster, &object, &raw);
        self.set_health(&mut cluster, &object, &mut raw);
        self.set_headers(&mut cluster, &object, &mut raw);
        let sticky = raw.sticky;
        cluster.sticky = sticky.and_then(|sticky| self.sticky(&object, sticky, &cluster));
        cluster
    }

    /// The protocol with servers, and TLS.
    fn set_protocol(
        &mut self,
        cluster: &mut ClusterConfig,
        object: &str,
        span: &Span,
        raw: &mut file::ClusterTable,
    ) {
        let words = [("http1", Protocol::Http1), ("h2", Protocol::H2), ("auto", Protocol::Auto)];
        if let Some(text) = &raw.protocol {
            let protocol = self.word(&format!("{object}: protocol"), text, &words);
            cluster.protocol = protocol.unwrap_or(cluster.protocol);
            let is_secure = cluster.servers.iter().all(|server| server.tls_name.is_some())
                && cluster.discover.iter().all(|discover| !discover.source.may_name.http);
            if cluster.protocol == Protocol::Auto && !is_secure {
                let what = "protocol \"auto\" is for servers that are all reached by https";
                let right = "write \"http1\" or \"h2\"";
                self.report.error(text.at(), format!("{object}: {what} ({right})"));
                cluster.protocol = Protocol::Http1;
            }
        }
        let streams = raw.h2_streams.as_ref();
        cluster.h2_streams =
            self.integer(&format!("{object}: h2_streams"), streams, 1..=10_000, cluster.h2_streams);
        cluster.h2_ping = self.h2_ping(object, raw);
        let by_tls = raw.health_check.as_ref().and_then(|check| check.get_ref().tls.as_ref());
        cluster.tls = self.cluster_tls(object, span.start, raw.tls.take(), by_tls, cluster);
    }

    fn h2_ping(&mut self, object: &str, raw: &file::ClusterTable) -> Option<PingTerms> {
        let (every, timeout) = (raw.h2_ping.as_ref(), raw.h2_ping_timeout.as_ref());
        let every = self.limit_of_time(&format!("{object}: h2_ping"), every);
        let timeout = self.time(&format!("{object}: h2_ping_timeout"), timeout, H2_PING_TIMEOUT);
        every.map(|every| PingTerms { every, timeout })
    }

    /// Connections to servers: their times, how many are kept, and the PROXY header.
    fn set_connections(&mut self, cluster: &mut ClusterConfig, object: &str, raw: &file::ClusterTable) {
        let key = |key: &str| format!("{object}: {key}");
        let (connect, response) = (raw.connect_timeout.as_ref(), raw.response_timeout.as_ref());
        cluster.connect_timeout = self.time(&key("connect_timeout"), connect, cluster.connect_timeout);
        cluster.response_timeout = self.time(&key("response_timeout"), response, cluster.response_timeout);
        cluster.body_timeout =
            self.time(&key("body_timeout"), raw.body_timeout.as_ref(), cluster.body_timeout);
        cluster.keepalive = self.integer(&key("keepalive"), raw.keepalive.as_ref(), 0..=65_535, KEEPALIVE);
        cluster.keepalive_timeout = self.keepalive_timeout(object, raw.keepalive_timeout.as_ref());
        let most = raw.keepalive_requests.as_ref();
        cluster.keepalive_requests =
            most.map(|most| self.integer(&key("keepalive_requests"), Some(most), 1..=i64::from(u32::MAX), 1));
        cluster.keepalive_time = self.limit_of_time(&key("keepalive_time"), raw.keepalive_time.as_ref());
        let versions = [("v1", ProxyVersion::V1), ("v2", ProxyVersion::V2)];
        let version = raw.send_proxy_protocol.as_ref();
        cluster.send_proxy_protocol =
            version.and_then(|text| self.word(&key("send_proxy_protocol"), text, &versions));
        if cluster.send_proxy_protocol.is_some() {
            self.check_not_shared(object, cluster.protocol, raw);
            cluster.keepalive = 0;
        }
    }

    /// A connection that begins with a PROXY header belongs to one client.
    fn check_not_shared(&mut self, object: &str, protocol: Protocol, raw: &file::ClusterTable) {
        if let Some(text) = raw.protocol.as_ref().filter(|_| protocol != Protocol::Http1) {
            let what = "send_proxy_protocol with connections that clients share";
            self.report.error(text.at(), format!("{object}: {what} (write protocol = \"http1\")"));
        }
        if let Some(value) = raw.keepalive.as_ref().filter(|value| *value.get_ref() > 0) {
            let right = "a connection with a PROXY header belongs to one client: write keepalive = 0";
            let place = self.report.place(value.at());
            self.report.warn(place, format!("{object}: keepalive: has no effect here ({right})"));
        }
    }

    /// The key of requests, and the module of those without one.
    fn set_key(
        &mut self,
        cluster: &mut ClusterConfig,
        object: &str,
        raw: &mut file::ClusterTable,
        modules: &CheckedModules,
    ) {
        let has_key = raw.key.is_some();
        cluster.key = raw.key.take().and_then(|text| self.key_source(object, &text));
        let missing = raw.key_missing.take();
        cluster.key_missing =
            missing.and_then(|missing| self.key_missing(object, missing, has_key, &cluster.module, modules));
    }

    /// Limits, and what requests do beyond them.
    fn set_queue(&mut self, cluster: &mut ClusterConfig, object: &str, raw: &file::ClusterTable) {
        let key = |key: &str| format!("{object}: {key}");
        let most = raw.max_requests.as_ref();
        cluster.max_requests = self.integer(&key("max_requests"), most, 0..=MAX_REQUESTS, 0);
        cluster.queue = self.integer(&key("queue"), raw.queue.as_ref(), 0..=1_000_000, QUEUE);
        let per_client = raw.queue_per_client.as_ref();
        cluster.queue_per_client = self.integer(&key("queue_per_client"), per_client, 0..=1_000_000, 0);
        // Zero is valid: no request waits.
        cluster.queue_timeout = raw.queue_timeout.as_ref().map_or(QUEUE_TIMEOUT, |time| time.get_ref().0);
        let orders = [("fifo", QueueOrder::Fifo), ("lifo", QueueOrder::Lifo)];
        let order = raw.queue_order.as_ref().and_then(|text| self.word(&key("queue_order"), text, &orders));
        cluster.queue_order = order.unwrap_or_default();
        let ways = [("wait", WhenFull::Wait), ("spill", WhenFull::Spill)];
        let when_full = raw.when_full.as_ref().and_then(|text| self.word(&key("when_full"), text, &ways));
        // If no request can wait, "wait" would answer 503 beside an idle backup.
        let can_wait = cluster.queue > 0 && !cluster.queue_timeout.is_zero();
        cluster.when_full = when_full.unwrap_or(if can_wait { WhenFull::Wait } else { WhenFull::Spill });
    }

    /// Ejection, checks, and what follows from them.
    fn set_health(&mut self, cluster: &mut ClusterConfig, object: &str, raw: &mut file::ClusterTable) {
        let key = |key: &str| format!("{object}: {key}");
        cluster.ejection = self.ejection(object, raw.ejection.take());
        cluster.health_check = raw.health_check.take().and_then(|check| self.health_check(object, check));
        let threshold = raw.panic_threshold.as_ref();
        cluster.panic_threshold = self.integer(&key("panic_threshold"), threshold, 0..=100, 0);
        let words = [("fail", AllDown::Fail), ("try_all", AllDown::TryAll)];
        let all_down = raw.all_down.as_ref().and_then(|text| self.word(&key("all_down"), text, &words));
        cluster.all_down = all_down.unwrap_or(AllDown::Fail);
        let ways = [("empty", Spill::Empty), ("health", Spill::Health)];
        let spill = raw.spill.as_ref().and_then(|text| self.word(&key("spill"), text, &ways));
        cluster.spill = spill.unwrap_or_default();
        // Zero is valid: no slow start.
        cluster.slow_start = raw.slow_start.as_ref().map_or(Duration::ZERO, |time| time.get_ref().0);
        let aggression = raw.slow_start_aggression.as_ref();
        cluster.slow_start_aggression = self.aggression(&key("slow_start_aggression"), aggression);
    }

    fn set_headers(&mut self, cluster: &mut ClusterConfig, object: &str, raw: &mut file::ClusterTable) {
        let host = raw.host_header.take().and_then(|text| self.host_header(object, &text));
        cluster.host_header = host.unwrap_or(HostHeader::Keep);
        let (requests, responses) = (raw.request_headers.take(), raw.response_headers.take());
        cluster.request_headers = self.header_rules(object, Direction::Request, requests);
        cluster.response_headers = self.header_rules(object, Direction::Response, responses);
    }

    fn cluster_name(&mut self, span: &Span, name: Option<Spanned<String>>) -> Arc<str> {
        let Some(name) = name else {
            self.missing(span, "name", "cluster", "write, for example, name = \"app\"");
            return "".into();
        };
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
        if name.get_ref().is_empty() || !name.get_ref().bytes().all(fits) {
            let text = format!(
                "cluster {:?}: a name is made of letters, digits, \"_\", \"-\" and \".\"",
                name.get_ref()
            );
            self.report.error(name.at(), text);
        }
        name.into_inner().into()
    }

    /// `Host` as a cluster or a route sets it.
    pub(super) fn host_header(&mut self, object: &str, text: &Spanned<String>) -> Option<HostHeader> {
        match text.get_ref().as_str() {
            "keep" => Some(HostHeader::Keep),
            "server" => Some(HostHeader::Server),
            fixed => match address::check_host_header(fixed) {
                Ok(()) => Some(HostHeader::Fixed(fixed.into())),
                Err(reason) => {
                    let right = "write \"keep\", \"server\" or a host such as \"app.example.com\"";
                    self.report.error(text.at(), format!("{object}: host_header: {reason} ({right})"));
                    None
                }
            },
        }
    }

    fn aggression(&mut self, key: &str, value: Option<&Spanned<f64>>) -> f64 {
        let Some(value) = value else { return 1.0 };
        let aggression = *value.get_ref();
        if !(0.1..=100.0).contains(&aggression) {
            self.report.error(value.at(), format!("{key}: {aggression} is not a number from 0.1 to 100"));
        }
        aggression
    }

    fn keepalive_timeout(&mut self, object: &str, time: Option<&Spanned<TimeValue>>) -> Duration {
        if let Some(time) = time.filter(|time| time.get_ref().0.is_zero()) {
            let right = "write keepalive = 0 to keep no connections";
            self.report
                .error(time.at(), format!("{object}: keepalive_timeout: must be longer than 0s ({right})"));
        }
        time.map_or(KEEPALIVE_TIMEOUT, |time| time.get_ref().0)
    }
}

impl ClusterConfig {
    /// A cluster without module and servers, in which every key has its default.
    fn with_defaults(name: Arc<str>, place: Place) -> Self {
        Self {
            name,
            module: "".into(),
            servers: Vec::new(),
            discover: Vec::new(),
            server_name: None,
            tls: None,
            protocol: Protocol::Http1,
            h2_streams: H2_STREAMS,
            h2_ping: None,
            settings: Vec::new(),
            key: None,
            key_missing: None,
            host_header: HostHeader::Keep,
            connect_timeout: CONNECT_TIMEOUT,
            response_timeout: RESPONSE_TIMEOUT,
            body_timeout: BODY_TIMEOUT,
            keepalive_timeout: KEEPALIVE_TIMEOUT,
            keepalive: KEEPALIVE,
            keepalive_requests: None,
            keepalive_time: None,
            queue_timeout: QUEUE_TIMEOUT,
            queue: QUEUE,
            queue_per_client: 0,
            queue_order: QueueOrder::Fifo,
            when_full: WhenFull::Wait,
            slow_start: Duration::ZERO,
            slow_start_aggression: 1.0,
            settle: SETTLE,
            ejection: Ejection::default(),
            health_check: None,
            panic_threshold: 0,
            all_down: AllDown::Fail,
            spill: Spill::default(),
            sticky: None,
            max_requests: 0,
            send_proxy_protocol: None,
            request_headers: Rules::default(),
            response_headers: Rules::default(),
            place,
        }
    }
}
