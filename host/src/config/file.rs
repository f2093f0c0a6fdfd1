//! The tables of a TOML file, one struct for each; serde only, no logic. [`super::check`] has meaning, range and default of
//! each key; `conf/reference.toml` documents them.
//!
//! Every field is optional, so that [`super::check`] can report missing keys together with all other problems.

use serde::Deserialize;
use toml::Spanned;

use super::settings::SettingTree;
use super::shape::{Expecting, Named, Short, Switched, Tables};
use super::units::{SizeValue, StatusRange, TimeValue};

/// The whole file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct RootTable {
    /// Read before, in `gather.rs`.
    #[expect(dead_code, reason = "so that it is known here")]
    pub(super) include: Option<Vec<Spanned<String>>>,
    pub(super) threads: Option<Spanned<i64>>,
    pub(super) module_path: Option<Vec<Spanned<String>>>,
    pub(super) module_files: Option<Spanned<String>>,
    pub(super) user: Option<Spanned<String>>,
    pub(super) group: Option<Spanned<String>>,
    pub(super) control: Option<Spanned<Switched<ControlTable>>>,
    pub(super) pid_file: Option<Spanned<String>>,
    pub(super) state: Option<Spanned<String>>,
    pub(super) pass_environment: Option<Vec<Spanned<String>>>,
    pub(super) core_dumps: Option<bool>,
    pub(super) request_id: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) listener: Tables<ListenerTable>,
    pub(super) load_module: Option<Spanned<Named<Short<ModuleTable>>>>,
    #[serde(default)]
    pub(super) cluster: Tables<ClusterTable>,
    #[serde(default)]
    pub(super) route: Tables<RouteTable>,
    pub(super) forwarded: Option<ForwardedTable>,
    pub(super) limits: Option<LimitsTable>,
    pub(super) timeouts: Option<TimeoutsTable>,
    pub(super) supervision: Option<SupervisionTable>,
    pub(super) resolver: Option<ResolverTable>,
    pub(super) access_log: Option<Spanned<AccessLogTable>>,
    pub(super) log: Option<LogTable>,
    pub(super) admin: Option<Spanned<AdminTable>>,
    pub(super) explain: Option<ExplainTable>,
    pub(super) errors: Option<Named<Short<PageTable>>>,
}

/// `control`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct ControlTable {
    pub(super) path: Option<Spanned<String>>,
    pub(super) mode: Option<Spanned<String>>,
    pub(super) group: Option<Spanned<String>>,
}

/// `[[listener]]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct ListenerTable {
    pub(super) address: Option<Spanned<String>>,
    pub(super) mode: Option<Spanned<String>>,
    pub(super) owner: Option<Spanned<String>>,
    pub(super) group: Option<Spanned<String>>,
    pub(super) max_connections: Option<Spanned<i64>>,
    pub(super) tls: Option<Spanned<ListenerTlsTable>>,
    pub(super) h2: Option<bool>,
    pub(super) max_connections_per_client: Option<Spanned<i64>>,
    pub(super) proxy_protocol: Option<Spanned<ProxyProtocolTable>>,
}

/// `proxy_protocol` of a listener.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct ProxyProtocolTable {
    pub(super) from: Option<Vec<Spanned<String>>>,
    pub(super) timeout: Option<Spanned<TimeValue>>,
}

/// `tls` of a listener.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct ListenerTlsTable {
    pub(super) certificates: Option<Vec<Spanned<KeyPairTable>>>,
    pub(super) client_auth: Option<Spanned<String>>,
    pub(super) client_ca: Option<Spanned<String>>,
    pub(super) min_version: Option<Spanned<String>>,
}

/// An element of `certificates`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table such as { cert = \"site.pem\", key = \"site.key\" }")]
pub(super) struct KeyPairTable {
    pub(super) cert: Option<Spanned<String>>,
    pub(super) key: Option<Spanned<String>>,
}

/// A value of `[load_module]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct ModuleTable {
    pub(super) path: Option<Spanned<String>>,
    pub(super) sha256: Option<Spanned<String>>,
}

/// `[[cluster]]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct ClusterTable {
    pub(super) name: Option<Spanned<String>>,
    pub(super) module: Option<Spanned<String>>,
    pub(super) servers: Option<Vec<Spanned<Short<ServerTable>>>>,
    #[serde(default)]
    pub(super) discover: Tables<DiscoverTable>,
    pub(super) tls: Option<Spanned<ClusterTlsTable>>,
    pub(super) protocol: Option<Spanned<String>>,
    pub(super) h2_streams: Option<Spanned<i64>>,
    pub(super) h2_ping: Option<Spanned<TimeValue>>,
    pub(super) h2_ping_timeout: Option<Spanned<TimeValue>>,
    pub(super) settings: Option<Named<SettingTree>>,
    pub(super) key: Option<Spanned<String>>,
    pub(super) key_missing: Option<Spanned<Short<KeyMissingTable>>>,
    pub(super) host_header: Option<Spanned<String>>,
    pub(super) connect_timeout: Option<Spanned<TimeValue>>,
    pub(super) response_timeout: Option<Spanned<TimeValue>>,
    pub(super) body_timeout: Option<Spanned<TimeValue>>,
    pub(super) keepalive: Option<Spanned<i64>>,
    pub(super) keepalive_timeout: Option<Spanned<TimeValue>>,
    pub(super) keepalive_requests: Option<Spanned<i64>>,
    pub(super) keepalive_time: Option<Spanned<TimeValue>>,
    pub(super) queue: Option<Spanned<i64>>,
    pub(super) queue_per_client: Option<Spanned<i64>>,
    pub(super) queue_timeout: Option<Spanned<TimeValue>>,
    pub(super) queue_order: Option<Spanned<String>>,
    pub(super) when_full: Option<Spanned<String>>,
    pub(super) slow_start: Option<Spanned<TimeValue>>,
    pub(super) slow_start_aggression: Option<Spanned<f64>>,
    pub(super) settle: Option<Spanned<TimeValue>>,
    pub(super) ejection: Option<EjectionTable>,
    pub(super) health_check: Option<Spanned<HealthCheckTable>>,
    pub(super) panic_threshold: Option<Spanned<i64>>,
    pub(super) all_down: Option<Spanned<String>>,
    pub(super) spill: Option<Spanned<String>>,
    pub(super) sticky: Option<Spanned<StickyTable>>,
    pub(super) max_requests: Option<Spanned<i64>>,
    pub(super) send_proxy_protocol: Option<Spanned<String>>,
    pub(super) request_headers: Option<HeadersTable>,
    pub(super) response_headers: Option<HeadersTable>,
}

/// `key_missing` of a cluster.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct KeyMissingTable {
    pub(super) module: Option<Spanned<String>>,
    pub(super) settings: Option<Named<SettingTree>>,
}

/// `request_headers` and `response_headers` of a cluster or a route.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct HeadersTable {
    pub(super) remove: Option<Vec<Spanned<String>>>,
    pub(super) set: Option<Named<String>>,
    pub(super) add: Option<Named<String>>,
}

/// `tls` of a cluster.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct ClusterTlsTable {
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
pub(super) struct EjectionTable {
    pub(super) failures: Option<Spanned<i64>>,
    pub(super) statuses: Option<Spanned<String>>,
    pub(super) failure_percent: Option<Spanned<i64>>,
    pub(super) interval: Option<Spanned<TimeValue>>,
    pub(super) min_requests: Option<Spanned<i64>>,
    pub(super) time: Option<Spanned<TimeValue>>,
    pub(super) max_time: Option<Spanned<TimeValue>>,
    pub(super) max_percent: Option<Spanned<i64>>,
}

/// `health_check` of a cluster.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct HealthCheckTable {
    #[serde(rename = "type")]
    pub(super) kind: Option<Spanned<String>>,
    pub(super) method: Option<Spanned<String>>,
    pub(super) path: Option<Spanned<String>>,
    pub(super) host: Option<Spanned<String>>,
    pub(super) statuses: Option<Spanned<Vec<StatusRange>>>,
    pub(super) body: Option<Spanned<String>>,
    pub(super) service: Option<Spanned<String>>,
    pub(super) port: Option<Spanned<i64>>,
    pub(super) tls: Option<Spanned<bool>>,
    pub(super) interval: Option<Spanned<TimeValue>>,
    pub(super) timeout: Option<Spanned<TimeValue>>,
    pub(super) rise: Option<Spanned<i64>>,
    pub(super) fall: Option<Spanned<i64>>,
}

/// `sticky` of a cluster.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct StickyTable {
    pub(super) cookie: Option<Spanned<String>>,
    pub(super) secret: Option<Spanned<String>>,
    pub(super) secure: Option<Spanned<bool>>,
    pub(super) same_site: Option<Spanned<String>>,
    pub(super) path: Option<Spanned<String>>,
    pub(super) domain: Option<Spanned<String>>,
    pub(super) max_age: Option<Spanned<TimeValue>>,
    pub(super) app_cookie: Option<Spanned<String>>,
    pub(super) url_parameter: Option<Spanned<String>>,
    pub(super) header: Option<Spanned<String>>,
    pub(super) separator: Option<Spanned<String>>,
}

/// An element of `servers`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct ServerTable {
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

/// `[[cluster.discover]]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct DiscoverTable {
    #[serde(rename = "type")]
    pub(super) kind: Option<Spanned<String>>,
    pub(super) name: Option<Spanned<String>>,
    pub(super) path: Option<Spanned<String>>,
    pub(super) command: Option<Spanned<Vec<Spanned<String>>>>,
    pub(super) environment: Option<Spanned<Named<String>>>,
    pub(super) url: Option<Spanned<String>>,
    pub(super) record: Option<Spanned<String>>,
    pub(super) interval: Option<Spanned<TimeValue>>,
    pub(super) timeout: Option<Spanned<TimeValue>>,
    pub(super) token_file: Option<Spanned<String>>,
    pub(super) ca: Option<Spanned<String>>,
    pub(super) empty: Option<Spanned<String>>,
    pub(super) schemes: Option<Vec<Spanned<String>>>,
    pub(super) unix: Option<Vec<Spanned<String>>>,
    pub(super) server: Option<TemplateTable>,
}

/// `server` of a source.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct TemplateTable {
    pub(super) weight: Option<Spanned<i64>>,
    pub(super) max_requests: Option<Spanned<i64>>,
    pub(super) tier: Option<Spanned<i64>>,
    pub(super) metadata: Option<Named<String>>,
}

/// `[[route]]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct RouteTable {
    pub(super) path: Option<Spanned<String>>,
    pub(super) host: Option<Spanned<String>>,
    pub(super) hosts: Option<Spanned<Vec<Spanned<String>>>>,
    pub(super) listeners: Option<Spanned<Vec<Spanned<String>>>>,
    pub(super) cluster: Option<Spanned<String>>,
    pub(super) redirect: Option<Spanned<RedirectTable>>,
    pub(super) respond: Option<Spanned<RespondTable>>,
    pub(super) errors: Option<Named<Short<PageTable>>>,
    pub(super) rewrite: Option<Spanned<String>>,
    pub(super) host_header: Option<Spanned<String>>,
    pub(super) timeout: Option<Spanned<TimeValue>>,
    pub(super) retry: Option<Spanned<RetryTable>>,
    pub(super) request_headers: Option<HeadersTable>,
    pub(super) response_headers: Option<HeadersTable>,
    pub(super) upgrade: Option<Spanned<bool>>,
}

/// `redirect` of a route.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table such as { https = true }")]
pub(super) struct RedirectTable {
    pub(super) https: Option<Spanned<bool>>,
    pub(super) scheme: Option<Spanned<String>>,
    pub(super) host: Option<Spanned<String>>,
    pub(super) port: Option<Spanned<i64>>,
    pub(super) path: Option<Spanned<String>>,
    pub(super) status: Option<Spanned<i64>>,
}

/// `respond` of a route.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table such as { status = 503, body = \"closed\" }")]
pub(super) struct RespondTable {
    pub(super) status: Option<Spanned<i64>>,
    pub(super) body: Option<Spanned<String>>,
    pub(super) file: Option<Spanned<String>>,
    #[serde(rename = "type")]
    pub(super) kind: Option<Spanned<String>>,
}

/// A page of `errors`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct PageTable {
    pub(super) file: Option<Spanned<String>>,
    #[serde(rename = "type")]
    pub(super) kind: Option<Spanned<String>>,
}

/// `retry` of a route.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct RetryTable {
    pub(super) on: Option<Vec<Spanned<String>>>,
    pub(super) tries: Option<Spanned<i64>>,
    pub(super) timeout: Option<Spanned<TimeValue>>,
    pub(super) try_timeout: Option<Spanned<TimeValue>>,
    pub(super) backoff: Option<Spanned<TimeValue>>,
    pub(super) max_backoff: Option<Spanned<TimeValue>>,
    pub(super) budget: Option<BudgetTable>,
    pub(super) methods: Option<Vec<Spanned<String>>>,
    pub(super) buffer: Option<Spanned<SizeValue>>,
}

/// `budget` of `retry`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct BudgetTable {
    pub(super) percent: Option<Spanned<i64>>,
    pub(super) min: Option<Spanned<i64>>,
}

/// `[forwarded]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct ForwardedTable {
    pub(super) trusted: Option<Vec<Spanned<String>>>,
    pub(super) read: Option<Spanned<String>>,
    pub(super) write: Option<Vec<Spanned<String>>>,
}

/// `[limits]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct LimitsTable {
    pub(super) request_line_bytes: Option<Spanned<SizeValue>>,
    pub(super) head_bytes: Option<Spanned<SizeValue>>,
    pub(super) headers: Option<Spanned<i64>>,
    pub(super) body_bytes: Option<Spanned<SizeValue>>,
    pub(super) requests_per_connection: Option<Spanned<i64>>,
}

/// `[timeouts]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct TimeoutsTable {
    pub(super) request_head: Option<Spanned<TimeValue>>,
    pub(super) handshake: Option<Spanned<TimeValue>>,
    pub(super) body: Option<Spanned<TimeValue>>,
    pub(super) request: Option<Spanned<TimeValue>>,
    pub(super) tunnel: Option<Spanned<TimeValue>>,
    pub(super) keepalive: Option<Spanned<TimeValue>>,
    pub(super) drain: Option<Spanned<TimeValue>>,
    pub(super) stop_delay: Option<Spanned<TimeValue>>,
}

/// `[supervision]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct SupervisionTable {
    pub(super) module_time_limit: Option<Spanned<TimeValue>>,
    pub(super) module_slow: Option<Spanned<TimeValue>>,
    pub(super) module_faults: Option<Spanned<i64>>,
    pub(super) module_deaths: Option<Spanned<i64>>,
    pub(super) probation: Option<Spanned<TimeValue>>,
    pub(super) start_timeout: Option<Spanned<TimeValue>>,
    pub(super) max_draining: Option<Spanned<i64>>,
    pub(super) sandbox: Option<Spanned<String>>,
}

/// `[resolver]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct ResolverTable {
    pub(super) servers: Option<Vec<Spanned<String>>>,
    pub(super) family: Option<Spanned<String>>,
    pub(super) timeout: Option<Spanned<TimeValue>>,
    pub(super) min_ttl: Option<Spanned<TimeValue>>,
    pub(super) max_ttl: Option<Spanned<TimeValue>>,
}

/// `[access_log]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct AccessLogTable {
    pub(super) path: Option<Spanned<String>>,
    pub(super) format: Option<Spanned<String>>,
}

/// `[log]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct LogTable {
    pub(super) format: Option<Spanned<String>>,
    pub(super) level: Option<Spanned<String>>,
    pub(super) file: Option<Spanned<String>>,
    pub(super) syslog: Option<Spanned<String>>,
}

/// `[admin]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct AdminTable {
    pub(super) address: Option<Spanned<String>>,
    pub(super) mode: Option<Spanned<String>>,
    pub(super) owner: Option<Spanned<String>>,
    pub(super) group: Option<Spanned<String>>,
    pub(super) allow: Option<Vec<Spanned<String>>>,
    #[serde(default)]
    pub(super) hosts: Vec<Spanned<String>>,
    #[serde(default)]
    pub(super) ready_needs: Vec<Spanned<String>>,
}

/// `[explain]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct ExplainTable {
    #[serde(default)]
    pub(super) allow: Vec<Spanned<String>>,
}

impl Expecting for ModuleTable {
    const EXPECTED: &str = "a module's file, or a table such as { path = \"libmod_x.so\", sha256 = \"…\" }";
}

impl Expecting for ControlTable {
    const EXPECTED: &str =
        "false, a path, or a table such as { path = \"/run/site/trylist.sock\", group = \"ops\" }";
}

impl Expecting for PageTable {
    const EXPECTED: &str = "a file, or a table such as { file = \"sorry.html\", type = \"text/html\" }";
}

impl Expecting for KeyMissingTable {
    const EXPECTED: &str = "a module's ID such as \"round_robin\", or a table such as { module = \"least_request\", settings = { … } }";
}

impl Expecting for ServerTable {
    const EXPECTED: &str =
        "a URL such as \"http://127.0.0.1:9001\", or a table such as { url = \"…\", weight = 2 }";
}
