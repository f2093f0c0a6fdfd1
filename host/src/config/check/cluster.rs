//! `[[cluster]]` and its servers.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use toml::Spanned;

use crate::net::proxy_protocol::ProxyVersion;

use super::super::settings::flatten;
use super::super::shape::{Named, Short};
use super::super::source::{At, Span};
use super::super::units::TimeValue;
use super::super::{
    AllDown, ClusterConfig, HostHeader, KeyMissing, KeySource, QueueOrder, Resolve, Server, Syntax, WhenFull,
    file,
};
use super::headers::{Direction, token};
use super::module::CheckedModules;
use super::{Checker, address};
use crate::tls::client::Protocol;

/// Long enough for two lost SYNs (sent again after 1 s and 3 s), short enough to try the next server while the
/// client still waits.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// What nginx allows, and twice what most applications need.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(60);
/// Like `timeouts.body` on the client's side.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);
/// A second less than Node and httpd keep theirs.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(4);
/// Enough for some thousand requests a second and thread at 10 ms each, at one descriptor a connection.
const KEEPALIVE: usize = 64;
/// What servers commonly allow (nginx 128, Go 250, most others 100).
const H2_STREAMS: usize = 100;
/// A few seconds' worth for a cluster that is only just full; more is better refused at once.
const QUEUE: usize = 1024;
/// Longer than a request takes where servers are full by a moment's burst.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(1);

/// Each takes a connection, and no address has ports for more than a tenth of them.
const MAX_REQUESTS: i64 = 1_000_000;

/// Each tier has a balancer of its own; more than a few are a mistake.
const LAST_TIER: i64 = 15;

/// The clusters that passed, and whether that is all of them.
pub(super) struct CheckedClusters {
    pub(super) checked: Vec<ClusterConfig>,
    /// A cluster's name could not be read, so a name that is not here may still be right.
    pub(super) incomplete: bool,
    /// For each, where the cookie was written that it sets.
    pub(super) cookies: Vec<Option<usize>>,
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
                self.report.error(name.at(), format!("cluster \"{name}\": this name is taken by {first}"));
            }
            let cookie = cluster.sticky.as_ref().and_then(|sticky| sticky.get_ref().cookie.as_ref());
            clusters.cookies.push(cookie.map(At::at));
            clusters.checked.push(self.cluster(&span, cluster, modules));
        }
        clusters
    }

    fn cluster(&mut self, span: &Span, raw: file::ClusterTable, modules: &CheckedModules) -> ClusterConfig {
        let name = self.cluster_name(span, raw.name);
        let object = match &*name {
            "" => "cluster".to_owned(),
            name => format!("cluster \"{name}\""),
        };
        let key = |key: &str| format!("{object}: {key}");
        let module = self.module_of(&object, span.start, raw.module.as_ref(), modules);
        let mut servers = self.servers(&object, span, raw.servers);
        let protocol_at = raw.protocol.as_ref().map(At::at);
        let protocol = raw.protocol.map_or(Protocol::Http1, |text| self.protocol(&object, &text, &servers));
        let by_tls = raw.health_check.as_ref().and_then(|check| check.get_ref().tls.as_ref());
        let tls = self.cluster_tls(&object, span.start, raw.tls, protocol, by_tls, &mut servers);
        let send_proxy_protocol =
            raw.send_proxy_protocol.and_then(|text| self.send_proxy_protocol(&object, &text));
        let mut keepalive = self.integer(&key("keepalive"), raw.keepalive.as_ref(), 0..=65_535, KEEPALIVE);
        if send_proxy_protocol.is_some() {
            if let Some(at) = protocol_at.filter(|_| protocol != Protocol::Http1) {
                let what = "send_proxy_protocol with connections that clients share";
                self.report.error(at, format!("{object}: {what} (write protocol = \"http1\")"));
            }
            if let Some(value) = raw.keepalive.as_ref().filter(|value| *value.get_ref() > 0) {
                let right = "a connection with a PROXY header is one client's: write keepalive = 0";
                let place = self.report.place(value.at());
                self.report.warn(place, format!("{object}: keepalive: without effect here ({right})"));
            }
            keepalive = 0;
        }
        let module = module.unwrap_or_default();
        let has_key = raw.key.is_some();
        let key_missing = raw
            .key_missing
            .and_then(|missing| self.key_missing(&object, missing, (&module, has_key), modules));
        let sticky = raw.sticky.and_then(|sticky| self.sticky(&object, sticky, &servers));
        let ejection = self.ejection(&object, raw.ejection);
        let queue = self.integer(&key("queue"), raw.queue.as_ref(), 0..=1_000_000, QUEUE);
        // Zero makes sense: nobody waits.
        let queue_timeout = raw.queue_timeout.map_or(QUEUE_TIMEOUT, |time| time.get_ref().0);
        let health_check = raw.health_check.and_then(|check| self.health_check(&object, check));
        ClusterConfig {
            module,
            servers,
            tls,
            protocol,
            h2_streams: self.integer(&key("h2_streams"), raw.h2_streams.as_ref(), 1..=10_000, H2_STREAMS),
            sticky,
            settings: raw.settings.map(|settings| flatten(settings, self.report)).unwrap_or_default(),
            key: raw.key.and_then(|text| self.key_source(&object, &text)),
            key_missing,
            host_header: raw
                .host_header
                .and_then(|text| self.host_header(&object, &text))
                .unwrap_or(HostHeader::Keep),
            connect_timeout: self.time(
                &key("connect_timeout"),
                raw.connect_timeout.as_ref(),
                CONNECT_TIMEOUT,
            ),
            response_timeout: self.time(
                &key("response_timeout"),
                raw.response_timeout.as_ref(),
                RESPONSE_TIMEOUT,
            ),
            body_timeout: self.time(&key("body_timeout"), raw.body_timeout.as_ref(), BODY_TIMEOUT),
            keepalive_timeout: self.keepalive_timeout(&object, raw.keepalive_timeout.as_ref()),
            keepalive,
            max_requests: self.integer(&key("max_requests"), raw.max_requests.as_ref(), 0..=MAX_REQUESTS, 0),
            send_proxy_protocol,
            request_headers: self.header_rules(&object, Direction::Request, raw.request_headers),
            response_headers: self.header_rules(&object, Direction::Response, raw.response_headers),
            queue,
            queue_per_client: self.integer(
                &key("queue_per_client"),
                raw.queue_per_client.as_ref(),
                0..=1_000_000,
                0,
            ),
            queue_timeout,
            queue_order: raw
                .queue_order
                .map_or(QueueOrder::Fifo, |text| self.queue_order(&key("queue_order"), &text)),
            when_full: match raw.when_full {
                Some(text) => self.when_full(&key("when_full"), &text),
                // Where no request can wait, to wait would be to fail beside an idle backup.
                None if queue == 0 || queue_timeout.is_zero() => WhenFull::Spill,
                None => WhenFull::Wait,
            },
            // Zero makes sense: no slow start.
            slow_start: raw.slow_start.map_or(Duration::ZERO, |time| time.get_ref().0),
            slow_start_aggression: self
                .aggression(&key("slow_start_aggression"), raw.slow_start_aggression.as_ref()),
            ejection,
            health_check,
            panic_threshold: self.integer(&key("panic_threshold"), raw.panic_threshold.as_ref(), 0..=100, 0),
            all_down: raw.all_down.map_or(AllDown::Fail, |text| self.all_down(&key("all_down"), &text)),
            place: self.report.place(span.start),
            name,
        }
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

    fn servers(
        &mut self,
        object: &str,
        span: &Span,
        servers: Option<Vec<Spanned<Short<file::ServerTable>>>>,
    ) -> Vec<Server> {
        let servers = servers.unwrap_or_default();
        if servers.is_empty() && !self.report.is_touched(span, "servers") {
            let right = "write, for example, servers = [\"http://127.0.0.1:9001\"]";
            self.report.error(span.start, format!("{object}: no server ({right})"));
        }
        let servers: Vec<Server> =
            servers.into_iter().filter_map(|server| self.server(object, server)).collect();
        self.warn_of_twins(object, &servers);
        servers
    }

    /// Each of them is a server of its own to the module, with limits and numbers of its own; hardly what was meant.
    fn warn_of_twins(&mut self, object: &str, servers: &[Server]) {
        let mut seen = HashMap::new();
        for server in servers {
            let host = match &server.unix {
                Some(_) => server.host.to_string(),
                None => server.host.to_ascii_lowercase(),
            };
            let address = (host, server.port);
            if let Some(first) = seen.insert(address, &server.place) {
                let right = "where it is to get more, write one with a weight";
                let text =
                    format!("{object}: server \"{}\": is there already, by {first} ({right})", server.url);
                self.report.warn(server.place.clone(), text);
            }
        }
    }

    fn server(&mut self, object: &str, server: Spanned<Short<file::ServerTable>>) -> Option<Server> {
        let (span, server) = (server.span(), server.into_inner());
        let server = match server {
            Short::Text(url) => file::ServerTable {
                url: Some(Spanned::new(span.clone(), url)),
                ..file::ServerTable::default()
            },
            Short::Table(server) => server,
        };
        let Some(url) = server.url else {
            self.missing(
                &span,
                "url",
                &format!("{object}: server"),
                "write, for example, url = \"http://127.0.0.1:9001\"",
            );
            return None;
        };
        let object = format!("{object}: server \"{url}\"");
        let key = |key: &str| format!("{object}: {key}");
        let weight = self.integer(&key("weight"), server.weight.as_ref(), 1..=65_535, 1);
        let max_requests =
            self.integer(&key("max_requests"), server.max_requests.as_ref(), 0..=MAX_REQUESTS, 0_u32);
        let backup = u16::from(server.backup.as_ref().is_some_and(|backup| *backup.get_ref()));
        let tier = self.integer(&key("tier"), server.tier.as_ref(), 0..=LAST_TIER, backup);
        if let (Some(tier), Some(_)) = (&server.tier, &server.backup) {
            let right = "\"backup = true\" is tier 1: write one of them";
            self.report.error(tier.at(), format!("{object}: tier and backup ({right})"));
        }
        let authority = match address::parse_server(url.get_ref()) {
            Ok(authority) => authority,
            Err(reason) => {
                self.report.error(url.at(), format!("{object}: {reason}"));
                return None;
            }
        };
        // Whatever may be the host of a URL may be that of a certificate, but for names with "_" or a dot at the end.
        let name = authority.host.strip_suffix('.').unwrap_or(&authority.host).to_owned();
        let tls_name = match (authority.is_secure, ServerName::try_from(name)) {
            (false, _) => None,
            (true, Ok(name)) => Some(name),
            (true, Err(_)) => {
                self.report.error(url.at(), format!("{object}: no certificate can be for this host"));
                None
            }
        };
        let is_name = authority.unix.is_none() && authority.host.parse::<IpAddr>().is_err();
        let resolve = server.resolve.map_or(Resolve::One, |text| self.resolve(&object, &text, is_name));
        if let (Resolve::All, Some(route)) = (resolve, &server.route) {
            let right = "a session's route names one server: write a server for each address, or sticky with a cookie";
            self.report.error(route.at(), format!("{object}: route with resolve = \"all\" ({right})"));
        }
        let metadata = server.metadata.map(|Named(pairs)| pairs).unwrap_or_default();
        let pair = |(name, value): (Spanned<String>, Spanned<String>)| {
            (name.into_inner().into(), value.into_inner().into())
        };
        Some(Server {
            place: self.report.place(url.at()),
            url: url.into_inner().into(),
            host: authority.host.into(),
            resolve,
            address: None,
            port: authority.port,
            unix: authority.unix,
            check_name: tls_name.clone(),
            tls_name,
            weight,
            max_requests,
            tier,
            route: server.route.map(|route| route.into_inner().into()),
            drain: server.drain.unwrap_or(false),
            metadata: metadata.into_iter().map(pair).collect(),
        })
    }

    fn resolve(&mut self, object: &str, text: &Spanned<String>, is_name: bool) -> Resolve {
        match text.get_ref().as_str() {
            "one" => Resolve::One,
            "all" if is_name => Resolve::All,
            "all" => {
                let right = "only a name can have several addresses";
                self.report.error(text.at(), format!("{object}: resolve \"all\" without a name ({right})"));
                Resolve::One
            }
            other => {
                let right = "\"one\" and \"all\"";
                self.report.error(text.at(), format!("{object}: resolve {other:?} is not one of {right}"));
                Resolve::One
            }
        }
    }

    fn aggression(&mut self, object: &str, value: Option<&Spanned<f64>>) -> f64 {
        let Some(value) = value else { return 1.0 };
        let aggression = *value.get_ref();
        if !(0.1..=100.0).contains(&aggression) {
            self.report.error(value.at(), format!("{object}: {aggression} is not a number from 0.1 to 100"));
        }
        aggression
    }

    fn protocol(&mut self, object: &str, text: &Spanned<String>, servers: &[Server]) -> Protocol {
        match text.get_ref().as_str() {
            "http1" => Protocol::Http1,
            "h2" => Protocol::H2,
            "auto" if servers.iter().all(|server| server.tls_name.is_some()) => Protocol::Auto,
            "auto" => {
                let right = "write \"http1\" or \"h2\"";
                let what = "protocol \"auto\" is for servers that are all reached by https";
                self.report.error(text.at(), format!("{object}: {what} ({right})"));
                Protocol::Http1
            }
            other => {
                let right = "\"http1\", \"h2\" and \"auto\"";
                self.report.error(text.at(), format!("{object}: protocol {other:?} is not one of {right}"));
                Protocol::Http1
            }
        }
    }

    fn all_down(&mut self, object: &str, text: &Spanned<String>) -> AllDown {
        match text.get_ref().as_str() {
            "fail" => AllDown::Fail,
            "try_all" => AllDown::TryAll,
            _ => {
                self.report.error(
                    text.at(),
                    format!("{object} {:?} is not one of \"fail\" and \"try_all\"", text.get_ref()),
                );
                AllDown::Fail
            }
        }
    }

    fn queue_order(&mut self, object: &str, text: &Spanned<String>) -> QueueOrder {
        match text.get_ref().as_str() {
            "fifo" => QueueOrder::Fifo,
            "lifo" => QueueOrder::Lifo,
            other => {
                self.report
                    .error(text.at(), format!("{object} {other:?} is not one of \"fifo\" and \"lifo\""));
                QueueOrder::Fifo
            }
        }
    }

    fn when_full(&mut self, object: &str, text: &Spanned<String>) -> WhenFull {
        match text.get_ref().as_str() {
            "wait" => WhenFull::Wait,
            "spill" => WhenFull::Spill,
            other => {
                self.report
                    .error(text.at(), format!("{object} {other:?} is not one of \"wait\" and \"spill\""));
                WhenFull::Wait
            }
        }
    }

    fn key_source(&mut self, object: &str, text: &Spanned<String>) -> Option<KeySource> {
        let source = match text.get_ref().split_once(':') {
            None => match text.get_ref().as_str() {
                "client" => Some(KeySource::Client),
                "path" => Some(KeySource::Path),
                "uri" => Some(KeySource::Uri),
                _ => None,
            },
            // A header's name is also what a cookie's name may be made of (RFC 6265: a token).
            Some(("header", name)) => {
                token(name).map(|name| KeySource::Header(name.to_ascii_lowercase().into()))
            }
            Some(("cookie", name)) => token(name).map(|name| KeySource::Cookie(name.into())),
            Some(("query", name)) => {
                Some(name).filter(|name| !name.is_empty()).map(|name| KeySource::Query(name.into()))
            }
            Some(_) => None,
        };
        if source.is_none() {
            let right = "\"client\", \"header:X-Id\", \"cookie:sid\", \"query:user\", \"path\" and \"uri\"";
            self.report.error(text.at(), format!("{object}: key \"{text}\" is not one of {right}"));
        }
        source
    }

    fn key_missing(
        &mut self,
        object: &str,
        missing: Spanned<Short<file::KeyMissingTable>>,
        (module, has_key): (&str, bool),
        modules: &CheckedModules,
    ) -> Option<KeyMissing> {
        let (span, missing) = (missing.span(), missing.into_inner());
        let object = format!("{object}: key_missing");
        let missing = match missing {
            Short::Text(id) => {
                file::KeyMissingTable { module: Some(Spanned::new(span.clone(), id)), ..Default::default() }
            }
            Short::Table(missing) => missing,
        };
        if !has_key {
            let right = "write, for example, key = \"header:X-Id\", or leave key_missing out";
            self.report.error(span.start, format!("{object} without key ({right})"));
        }
        let Some(named) = missing.module else {
            self.missing(&span, "module", &object, "write, for example, module = \"round_robin\"");
            return None;
        };
        if named.get_ref() == module {
            let right = "name another one, or leave key_missing out";
            self.report
                .error(named.at(), format!("{object}: \"{module}\" is the cluster's module ({right})"));
        }
        Some(KeyMissing {
            module: self.module_of(&object, span.start, Some(&named), modules)?,
            settings: missing.settings.map(|settings| flatten(settings, self.report)).unwrap_or_default(),
            place: self.report.place(named.at()),
        })
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

    fn send_proxy_protocol(&mut self, object: &str, text: &Spanned<String>) -> Option<ProxyVersion> {
        match text.get_ref().as_str() {
            "v1" => Some(ProxyVersion::V1),
            "v2" => Some(ProxyVersion::V2),
            _ => {
                let wrong = format!("send_proxy_protocol {:?} is not one of", text.get_ref());
                self.report.error(text.at(), format!("{object}: {wrong} \"v1\" and \"v2\""));
                None
            }
        }
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
