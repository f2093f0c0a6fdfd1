//! The TOML file, mirrored one to one; serde only, no logic. What a key means and what it must be is said in
//! [`super::check`], defaults included; what can be written is said in `conf/reference.toml`.
//!
//! Every field is optional, so that a file is read as far as it goes and [`super::check`] can say what is missing
//! together with everything else.

use serde::Deserialize;
use toml::Spanned;

use super::settings::Value;
use super::shape::{Expecting, Named, Short, Tables};
use super::units::{Size, Statuses, Time};

/// The whole file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct File {
    pub(super) threads: Option<Spanned<i64>>,
    pub(super) module_path: Option<Vec<Spanned<String>>>,
    pub(super) user: Option<Spanned<String>>,
    pub(super) group: Option<Spanned<String>>,
    pub(super) control: Option<Spanned<String>>,
    pub(super) pid_file: Option<Spanned<String>>,
    pub(super) pass_environment: Option<Vec<Spanned<String>>>,
    pub(super) core_dumps: Option<bool>,
    pub(super) request_id: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) listener: Tables<Listener>,
    pub(super) load_module: Option<Spanned<Named<Short<ModuleFile>>>>,
    #[serde(default)]
    pub(super) cluster: Tables<Cluster>,
    #[serde(default)]
    pub(super) route: Tables<Route>,
    pub(super) forwarded: Option<Forwarded>,
    pub(super) limits: Option<Limits>,
    pub(super) timeouts: Option<Timeouts>,
    pub(super) supervision: Option<Supervision>,
    pub(super) resolver: Option<Resolver>,
    pub(super) access_log: Option<Spanned<AccessLog>>,
    pub(super) admin: Option<Spanned<Admin>>,
    pub(super) explain: Option<Explain>,
}

/// `[[listener]]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct Listener {
    pub(super) address: Option<Spanned<String>>,
    pub(super) mode: Option<Spanned<String>>,
    pub(super) owner: Option<Spanned<String>>,
    pub(super) group: Option<Spanned<String>>,
    pub(super) max_connections: Option<Spanned<i64>>,
    pub(super) tls: Option<Spanned<ListenerTls>>,
    pub(super) h2: Option<bool>,
    pub(super) max_connections_per_client: Option<Spanned<i64>>,
    pub(super) proxy_protocol: Option<Spanned<ProxyProtocol>>,
}

/// `proxy_protocol` of a listener.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct ProxyProtocol {
    pub(super) from: Option<Vec<Spanned<String>>>,
    pub(super) timeout: Option<Spanned<Time>>,
}

/// `tls` of a listener.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct ListenerTls {
    pub(super) certificates: Option<Vec<Spanned<KeyPair>>>,
    pub(super) client_auth: Option<Spanned<String>>,
    pub(super) client_ca: Option<Spanned<String>>,
    pub(super) min_version: Option<Spanned<String>>,
}

/// An element of `certificates`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table such as { cert = \"site.pem\", key = \"site.key\" }")]
pub(super) struct KeyPair {
    pub(super) cert: Option<Spanned<String>>,
    pub(super) key: Option<Spanned<String>>,
}

/// A value of `[load_module]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct ModuleFile {
    pub(super) path: Option<Spanned<String>>,
    pub(super) sha256: Option<Spanned<String>>,
}

/// `[[cluster]]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct Cluster {
    pub(super) name: Option<Spanned<String>>,
    pub(super) module: Option<Spanned<String>>,
    pub(super) servers: Option<Vec<Spanned<Short<Server>>>>,
    pub(super) tls: Option<Spanned<ClusterTls>>,
    pub(super) protocol: Option<Spanned<String>>,
    pub(super) h2_streams: Option<Spanned<i64>>,
    pub(super) settings: Option<Named<Value>>,
    pub(super) key: Option<Spanned<String>>,
    pub(super) key_missing: Option<Spanned<Short<KeyMissing>>>,
    pub(super) host_header: Option<Spanned<String>>,
    pub(super) connect_timeout: Option<Spanned<Time>>,
    pub(super) response_timeout: Option<Spanned<Time>>,
    pub(super) body_timeout: Option<Spanned<Time>>,
    pub(super) keepalive: Option<Spanned<i64>>,
    pub(super) keepalive_timeout: Option<Spanned<Time>>,
    pub(super) queue: Option<Spanned<i64>>,
    pub(super) queue_timeout: Option<Spanned<Time>>,
    pub(super) queue_order: Option<Spanned<String>>,
    pub(super) when_full: Option<Spanned<String>>,
    pub(super) slow_start: Option<Spanned<Time>>,
    pub(super) slow_start_aggression: Option<Spanned<f64>>,
    pub(super) ejection: Option<Ejection>,
    pub(super) health_check: Option<Spanned<HealthCheck>>,
    pub(super) panic_threshold: Option<Spanned<i64>>,
    pub(super) all_down: Option<Spanned<String>>,
    pub(super) sticky: Option<Spanned<Sticky>>,
    pub(super) max_requests: Option<Spanned<i64>>,
    pub(super) send_proxy_protocol: Option<Spanned<String>>,
    pub(super) request_headers: Option<Headers>,
    pub(super) response_headers: Option<Headers>,
}

/// `key_missing` of a cluster.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct KeyMissing {
    pub(super) module: Option<Spanned<String>>,
    pub(super) settings: Option<Named<Value>>,
}

/// `request_headers` and `response_headers` of a cluster or a route.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct Headers {
    pub(super) remove: Option<Vec<Spanned<String>>>,
    pub(super) set: Option<Named<String>>,
    pub(super) add: Option<Named<String>>,
}

/// `tls` of a cluster.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct ClusterTls {
    pub(super) ca: Option<Spanned<String>>,
    pub(super) verify: Option<Spanned<bool>>,
    pub(super) server_name: Option<Spanned<String>>,
    pub(super) cert: Option<Spanned<String>>,
    pub(super) key: Option<Spanned<String>>,
    pub(super) min_version: Option<Spanned<String>>,
}

/// `ejection` of a cluster.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct Ejection {
    pub(super) failures: Option<Spanned<i64>>,
    pub(super) statuses: Option<Spanned<String>>,
    pub(super) failure_percent: Option<Spanned<i64>>,
    pub(super) interval: Option<Spanned<Time>>,
    pub(super) min_requests: Option<Spanned<i64>>,
    pub(super) time: Option<Spanned<Time>>,
    pub(super) max_time: Option<Spanned<Time>>,
    pub(super) max_percent: Option<Spanned<i64>>,
}

/// `health_check` of a cluster.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct HealthCheck {
    #[serde(rename = "type")]
    pub(super) kind: Option<Spanned<String>>,
    pub(super) method: Option<Spanned<String>>,
    pub(super) path: Option<Spanned<String>>,
    pub(super) host: Option<Spanned<String>>,
    pub(super) statuses: Option<Spanned<Vec<Statuses>>>,
    pub(super) body: Option<Spanned<String>>,
    pub(super) service: Option<Spanned<String>>,
    pub(super) port: Option<Spanned<i64>>,
    pub(super) tls: Option<Spanned<bool>>,
    pub(super) interval: Option<Spanned<Time>>,
    pub(super) timeout: Option<Spanned<Time>>,
    pub(super) rise: Option<Spanned<i64>>,
    pub(super) fall: Option<Spanned<i64>>,
}

/// `sticky` of a cluster.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct Sticky {
    pub(super) cookie: Option<Spanned<String>>,
    pub(super) secret: Option<Spanned<String>>,
    pub(super) secure: Option<Spanned<bool>>,
    pub(super) same_site: Option<Spanned<String>>,
    pub(super) path: Option<Spanned<String>>,
    pub(super) domain: Option<Spanned<String>>,
    pub(super) max_age: Option<Spanned<Time>>,
    pub(super) app_cookie: Option<Spanned<String>>,
    pub(super) url_parameter: Option<Spanned<String>>,
    pub(super) header: Option<Spanned<String>>,
    pub(super) separator: Option<Spanned<String>>,
}

/// An element of `servers`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct Server {
    pub(super) url: Option<Spanned<String>>,
    pub(super) resolve: Option<Spanned<String>>,
    pub(super) weight: Option<Spanned<i64>>,
    pub(super) max_requests: Option<Spanned<i64>>,
    pub(super) tier: Option<Spanned<i64>>,
    pub(super) backup: Option<Spanned<bool>>,
    pub(super) drain: Option<bool>,
    pub(super) route: Option<Spanned<String>>,
    pub(super) metadata: Option<Named<String>>,
}

/// `[[route]]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct Route {
    pub(super) path: Option<Spanned<String>>,
    pub(super) host: Option<Spanned<String>>,
    pub(super) cluster: Option<Spanned<String>>,
    pub(super) rewrite: Option<Spanned<String>>,
    pub(super) host_header: Option<Spanned<String>>,
    pub(super) timeout: Option<Spanned<Time>>,
    pub(super) retry: Option<Spanned<Retry>>,
    pub(super) request_headers: Option<Headers>,
    pub(super) response_headers: Option<Headers>,
    pub(super) upgrade: Option<bool>,
}

/// `retry` of a route.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct Retry {
    pub(super) on: Option<Vec<Spanned<String>>>,
    pub(super) tries: Option<Spanned<i64>>,
    pub(super) timeout: Option<Spanned<Time>>,
    pub(super) try_timeout: Option<Spanned<Time>>,
    pub(super) backoff: Option<Spanned<Time>>,
    pub(super) max_backoff: Option<Spanned<Time>>,
    pub(super) budget: Option<Budget>,
    pub(super) methods: Option<Vec<Spanned<String>>>,
    pub(super) buffer: Option<Spanned<Size>>,
}

/// `budget` of `retry`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct Budget {
    pub(super) percent: Option<Spanned<i64>>,
    pub(super) min: Option<Spanned<i64>>,
}

/// `[forwarded]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct Forwarded {
    pub(super) trusted: Option<Vec<Spanned<String>>>,
    pub(super) read: Option<Spanned<String>>,
    pub(super) write: Option<Vec<Spanned<String>>>,
}

/// `[limits]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct Limits {
    pub(super) request_line_bytes: Option<Spanned<Size>>,
    pub(super) head_bytes: Option<Spanned<Size>>,
    pub(super) headers: Option<Spanned<i64>>,
    pub(super) body_bytes: Option<Spanned<Size>>,
    pub(super) requests_per_connection: Option<Spanned<i64>>,
}

/// `[timeouts]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct Timeouts {
    pub(super) request_head: Option<Spanned<Time>>,
    pub(super) handshake: Option<Spanned<Time>>,
    pub(super) body: Option<Spanned<Time>>,
    pub(super) request: Option<Spanned<Time>>,
    pub(super) tunnel: Option<Spanned<Time>>,
    pub(super) keepalive: Option<Spanned<Time>>,
    pub(super) drain: Option<Spanned<Time>>,
}

/// `[supervision]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct Supervision {
    pub(super) module_time_limit: Option<Spanned<Time>>,
    pub(super) module_faults: Option<Spanned<i64>>,
    pub(super) module_deaths: Option<Spanned<i64>>,
    pub(super) probation: Option<Spanned<Time>>,
    pub(super) start_timeout: Option<Spanned<Time>>,
    pub(super) max_draining: Option<Spanned<i64>>,
}

/// `[resolver]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct Resolver {
    pub(super) servers: Option<Vec<Spanned<String>>>,
    pub(super) family: Option<Spanned<String>>,
    pub(super) timeout: Option<Spanned<Time>>,
    pub(super) min_ttl: Option<Spanned<Time>>,
    pub(super) max_ttl: Option<Spanned<Time>>,
}

/// `[access_log]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct AccessLog {
    pub(super) path: Option<Spanned<String>>,
}

/// `[admin]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct Admin {
    pub(super) address: Option<Spanned<String>>,
    pub(super) mode: Option<Spanned<String>>,
    pub(super) owner: Option<Spanned<String>>,
    pub(super) group: Option<Spanned<String>>,
}

/// `[explain]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct Explain {
    #[serde(default)]
    pub(super) allow: Vec<Spanned<String>>,
}

impl Expecting for ModuleFile {
    const EXPECTED: &str = "a module's file, or a table such as { path = \"libmod_x.so\", sha256 = \"…\" }";
}

impl Expecting for KeyMissing {
    const EXPECTED: &str = "a module's ID such as \"round_robin\", or a table such as { module = \"least_request\", settings = { … } }";
}

impl Expecting for Server {
    const EXPECTED: &str =
        "a URL such as \"http://127.0.0.1:9001\", or a table such as { url = \"…\", weight = 2 }";
}
