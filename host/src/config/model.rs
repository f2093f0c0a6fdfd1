//! The types of a checked configuration. Every name is resolved, and every value has the type of what it means.

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use serde::{Deserialize, Serialize};

use super::answer::{Answer, ErrorPages};
use super::discover::{MemberTemplate, SourceSpec};
use super::health::{Ejection, HealthCheck};
use super::log_format::LogFormat;
use super::retry;
use crate::http::h2::PingTerms;
use crate::http::headers::forwarded::Forwarded;
use crate::http::headers::rules::Rules;
use crate::net::address::Address;
use crate::net::network::Networks;
use crate::net::proxy_protocol;
use crate::os::log::LogSettings;
use crate::tls::client::{ClientTls, Protocol};
use crate::tls::server::ServerTls;

/// Syntax of a configuration file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Syntax {
    /// TOML, as in `conf/reference.toml`.
    Toml,
    /// Directives, as in `conf/mail.conf`.
    Httpd,
}

impl Syntax {
    /// Syntax by the file's name.
    pub fn of(path: &Path) -> Self {
        match path.extension() {
            Some(extension) if extension == "conf" => Self::Httpd,
            _ => Self::Toml,
        }
    }
}

/// A checked configuration.
#[derive(Debug)]
pub struct Config {
    /// The file that it was read from, as given on the command line.
    pub source: PathBuf,
    /// Worker threads, each with its own runtime and its own upstream connections.
    pub threads: usize,
    /// Addresses to listen on; at least one.
    pub listeners: Vec<Listener>,
    /// Modules to load, each ID once.
    pub modules: Vec<ModuleFile>,
    /// Groups of servers. `Route::cluster` is an index into these.
    pub clusters: Vec<ClusterConfig>,
    /// Routes, in the order of the file.
    pub routes: Vec<Route>,
    /// Precedence if several routes match.
    pub route_order: RouteOrder,
    /// Pages for the proxy's own errors.
    pub errors: ErrorPages,
    /// The header in which servers get the request's ID, if any.
    pub request_id: Option<Arc<str>>,
    /// Trust in proxies in front, and headers for servers.
    pub forwarded: Forwarded,
    /// Maximum sizes and counts.
    pub limits: Limits,
    /// Timeouts towards clients, and of the drain.
    pub timeouts: Timeouts,
    /// User and group of the workers, if root starts the proxy.
    pub run_as: RunAs,
    /// The control socket.
    pub control: ControlSocket,
    /// The folder in which the last answers of sources are kept.
    pub state: Option<PathBuf>,
    /// The file for the supervisor's process ID.
    pub pid_file: Option<PathBuf>,
    /// Names of further environment variables for workers.
    pub pass_environment: Vec<Box<str>>,
    /// Whether a crashed worker may leave a core dump, which contains keys.
    pub core_dumps: bool,
    /// Limits for modules, and of generations.
    pub supervision: Supervision,
    /// DNS look-ups of servers' names.
    pub resolver: ResolverConfig,
    /// Target of the access log.
    pub access_log: AccessLogTarget,
    /// The form of its lines.
    pub access_log_format: Arc<LogFormat>,
    /// The error log.
    pub log: LogSettings,
    /// The admin listener, if any.
    pub admin: Option<Admin>,
    /// Clients that may ask for explanations; empty by default.
    pub explain_to: Networks,
}

/// A place in a configuration file. Shown as `file:line`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file, as given.
    pub file: Arc<str>,
    /// Line, from 1.
    pub line: usize,
}

/// One listening address.
#[derive(Clone, Debug)]
pub struct Listener {
    /// The address.
    pub address: Address,
    /// Permissions and owner, for a Unix socket.
    pub access: Access,
    /// Maximum open connections over all threads. Beyond it the listener stops accepting until one ends.
    pub max_connections: usize,
    /// Maximum open connections of one client; more are closed. `None` means no limit.
    pub max_connections_per_client: Option<u32>,
    /// Connections that begin with a PROXY header.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// TLS, if it is on.
    pub tls: Option<ServerTls>,
    /// Whether HTTP/2 is accepted: over TLS by ALPN, in clear text with prior knowledge.
    pub h2: bool,
    /// Its place in the file.
    pub place: Place,
}

/// Where commands are taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ControlSocket {
    /// At a path that is derived from [`Config::source`], for the user of the supervisor alone.
    #[default]
    Derived,
    /// At this path.
    At {
        /// The socket.
        path: PathBuf,
        /// Users who may connect; `None` is the user of the supervisor alone.
        access: Option<Access>,
    },
    /// Nowhere; there are signals.
    Off,
}

/// Permissions and owner of a Unix socket. Clients need write permission.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// Permissions of the file.
    pub mode: u32,
    /// Owner and group of the file; by default those of the process that starts the proxy.
    pub owner: RunAs,
}

/// PROXY protocol of a listener.
#[derive(Clone, Debug)]
pub struct ProxyProtocol {
    /// Networks whose connections all begin with a PROXY header; others never do.
    pub from: Networks,
    /// Maximum time for the header.
    pub timeout: Duration,
}

/// One line of `[load_module]`.
#[derive(Clone, Debug)]
pub struct ModuleFile {
    /// Module ID.
    pub id: Arc<str>,
    /// The file as written: absolute, or relative to the directories of `search`.
    pub file: PathBuf,
    /// Directories in which a relative file is searched: as written, then its name alone, then its name with `lib`
    /// before it.
    pub search: Arc<[PathBuf]>,
    /// The required SHA-256 of the file, if any.
    pub sha256: Option<[u8; 32]>,
    /// Folder in which its copy has a name (`module_files`); without it the copy is in memory.
    pub kept_in: Option<Arc<Path>>,
    /// Its place in the file.
    pub place: Place,
}

/// The most servers of a cluster, whoever names them.
pub const MAX_SERVERS: usize = 65_535;
/// Concurrent requests that may be allowed. Each takes a connection, and no address has ports for more than a tenth of them.
pub(crate) const MAX_REQUESTS: i64 = 1_000_000;

/// The highest tier. Each has a balancer of its own; more than a few are a mistake.
pub(crate) const LAST_TIER: u16 = 15;

/// One source of a cluster's servers.
#[derive(Clone, Debug)]
pub struct Discover {
    /// The source, as the process that asks it is told.
    pub source: SourceSpec,
    /// Values of its servers where it does not give them itself.
    pub template: MemberTemplate,
    /// The name in the certificates of its servers, where it is not that of their URL.
    pub tls_name: Option<ServerName<'static>>,
    /// Its place in the file.
    pub place: Place,
}

/// A named group of servers, balanced together.
#[derive(Clone, Debug)]
pub struct ClusterConfig {
    /// Its name.
    pub name: Arc<str>,
    /// Module ID of its balancer; one of [`Config::modules`].
    pub module: Arc<str>,
    /// Its servers; at least one, unless there are sources of further ones.
    pub servers: Vec<Server>,
    /// Sources of further servers, the first ranks highest.
    pub discover: Vec<Discover>,
    /// The name in the certificate of every server, if the configuration says one.
    pub server_name: Option<ServerName<'static>>,
    /// TLS to servers that are reached by https.
    pub tls: Option<ClientTls>,
    /// Protocol to servers.
    pub protocol: Protocol,
    /// Maximum concurrent requests on one HTTP/2 connection to a server.
    pub h2_streams: usize,
    /// When a silent server of HTTP/2 is asked whether it is there, if ever.
    pub h2_ping: Option<PingTerms>,
    /// The module's own settings, flattened for the boundary.
    pub settings: Vec<Setting>,
    /// Key of requests, for modules that hash.
    pub key: Option<KeySource>,
    /// Module for requests without a key; by default the cluster's own.
    pub key_missing: Option<KeyMissing>,
    /// How the `Host` header is set on the way to a server.
    pub host_header: HostHeader,
    /// Maximum time to connect to one server, including look-up and handshake.
    pub connect_timeout: Duration,
    /// Maximum time from the request's last byte to the response's first.
    pub response_timeout: Duration,
    /// Time without a byte in a body, either way.
    pub body_timeout: Duration,
    /// Maximum idle time of a connection to a server. Less than what servers commonly allow (5 s for Node and
    /// httpd), so that few requests meet a connection that is just being closed.
    pub keepalive_timeout: Duration,
    /// Maximum idle connections to each server, per thread.
    pub keepalive: usize,
    /// Requests after which a connection of HTTP/1.1 to a server is closed; `None` is no limit.
    pub keepalive_requests: Option<u32>,
    /// Age after which such a connection is used for no further request; `None` is no limit.
    pub keepalive_time: Option<Duration>,
    /// Maximum time in the queue.
    pub queue_timeout: Duration,
    /// Maximum requests in the queue, over all threads.
    pub queue: usize,
    /// Requests of one client, an IPv4 address or a /64 of IPv6, that may wait at once; 0 is no limit.
    pub queue_per_client: u32,
    /// Order of the queue.
    pub queue_order: QueueOrder,
    /// Behaviour of a request if all servers of its tier are full.
    pub when_full: WhenFull,
    /// Time of slow start; zero means none.
    pub slow_start: Duration,
    /// Shape of slow start: 1 is a straight line; more rises faster at first.
    pub slow_start_aggression: f64,
    /// After a change of its servers the next one waits for this time.
    pub settle: Duration,
    /// Passive health.
    pub ejection: Ejection,
    /// Active health checks.
    pub health_check: Option<HealthCheck>,
    /// Below this percentage of available servers, health is ignored; 0 means never.
    pub panic_threshold: u8,
    /// Behaviour if no server is available.
    pub all_down: AllDown,
    /// The order in which tiers are used.
    pub spill: Spill,
    /// Sticky sessions.
    pub sticky: Option<StickyConfig>,
    /// Maximum concurrent requests, over all threads, including those in the queue; 0 means no limit.
    pub max_requests: u32,
    /// PROXY header for its servers, if any. Then `keepalive` is 0.
    pub send_proxy_protocol: Option<proxy_protocol::ProxyVersion>,
    /// Changes to request headers, before those of the route.
    pub request_headers: Rules,
    /// Changes to response headers, before those of the route.
    pub response_headers: Rules,
    /// Its place in the file.
    pub place: Place,
}

/// Separates the URL of a server, as written, from one of its addresses. No `http` URL as written contains it.
const ADDRESS_MARK: char = '#';

/// One server of a cluster.
#[derive(Clone, Debug)]
pub struct Server {
    /// The URL as written; for one of several addresses of a name, with `#` and the address behind it.
    pub url: Arc<str>,
    /// Host name or address, without brackets.
    pub host: Arc<str>,
    /// Meaning of a name with several addresses.
    pub resolve: Resolve,
    /// Of a name of which each address is a server: which of them this is. A configuration as it is read has none.
    pub address: Option<IpAddr>,
    /// Port as written, or 80 (443 for https).
    pub port: u16,
    /// The path of its Unix socket, where it has one. Then that is its `host` as well, and its port is 0.
    pub unix: Option<Arc<Path>>,
    /// The name for which its certificate must be valid, if it is reached by https.
    pub tls_name: Option<ServerName<'static>>,
    /// The same for its checks, if they use TLS.
    pub check_name: Option<ServerName<'static>>,
    /// 1 to 65,535.
    pub weight: u16,
    /// Maximum concurrent requests; 0 means no limit.
    pub max_requests: u32,
    /// Tier; it is used if no server of a lower tier is available.
    pub tier: u16,
    /// Whether it is drained: it finishes its requests and gets no new ones.
    pub drain: bool,
    /// Its name in clients' sessions.
    pub route: Option<Arc<str>>,
    /// Pairs of text for the module, in the order of the file.
    pub metadata: Vec<(Arc<str>, Arc<str>)>,
    /// Its place in the file.
    pub place: Place,
}

/// The URL of a server at one of the addresses of its name.
pub(crate) fn url_at(url: &str, address: IpAddr) -> String {
    format!("{url}{ADDRESS_MARK}{address}")
}

impl Server {
    /// The server at one of the addresses of its name.
    pub(crate) fn at(&self, address: IpAddr) -> Self {
        Self { url: url_at(&self.url, address).into(), address: Some(address), ..self.clone() }
    }

    /// Whether this URL, as an operator writes it, names the server or one of its addresses.
    pub(crate) fn is_named_by(&self, url: &str) -> bool {
        let behind = url.strip_prefix(&*self.url);
        let address = behind.and_then(|behind| behind.strip_prefix(ADDRESS_MARK)).map(str::parse::<IpAddr>);
        behind == Some("") || self.resolve == Resolve::All && matches!(address, Some(Ok(_)))
    }
}

impl ClusterConfig {
    /// IDs of its modules: the one that it names, then the one for requests without a key.
    pub fn modules(&self) -> impl Iterator<Item = &Arc<str>> {
        std::iter::once(&self.module).chain(self.key_missing.as_ref().map(|missing| &missing.module))
    }
}

/// The module of a cluster's requests without a key.
#[derive(Clone, Debug)]
pub struct KeyMissing {
    /// Its ID.
    pub module: Arc<str>,
    /// Its own settings, flattened for the boundary.
    pub settings: Vec<Setting>,
    /// Its place in the file.
    pub place: Place,
}

/// Meaning of a server's name with several addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Resolve {
    /// One server; its addresses are alternatives.
    #[default]
    One,
    /// One server for each address; see [`crate::cluster::discovery`].
    All,
}

/// Behaviour of a request if no server of its cluster is available.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AllDown {
    /// It is answered 503.
    Fail,
    /// It is tried on unavailable servers, but not on drained ones.
    TryAll,
}

/// When requests go to a tier behind the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Spill {
    /// Once no server of those before it is available.
    #[default]
    Empty,
    /// Each tier has a share by the health of those before it.
    Health,
}

/// Order in which waiting requests get free servers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum QueueOrder {
    /// The oldest request first.
    #[default]
    Fifo,
    /// The newest request first: under overload some are served quickly, the others not at all.
    Lifo,
}

/// Behaviour of a request if all servers of its tier are full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenFull {
    /// It waits in the queue.
    Wait,
    /// It goes to the next tier, and waits if all tiers are full.
    Spill,
}

/// Sticky sessions of a cluster.
#[derive(Clone, PartialEq, Eq)]
pub enum StickyConfig {
    /// By a cookie that the proxy sets.
    Issued {
        /// Its name.
        cookie: Arc<str>,
        /// The secret that signs it; random at each start by default.
        secret: Option<Arc<str>>,
        /// Its attributes.
        terms: CookieTerms,
    },
    /// By a [`Server::route`] in a value of the application.
    Route {
        /// Values that may contain it, in the order of search.
        sources: Vec<KeySource>,
        /// The character before it; without one, the whole value is the route.
        separator: Option<u8>,
    },
}

/// Attributes of a cookie that the proxy sets (RFC 6265 section 4.1.2). It is always `HttpOnly`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CookieTerms {
    /// Whether it is `Secure`. `None`: if the request came over TLS.
    pub secure: Option<bool>,
    /// Its `SameSite` attribute.
    pub same_site: SameSite,
    /// The path below which it is sent. Begins with a slash.
    pub path: Arc<str>,
    /// The domain whose hosts get it; `None` is the host of the request alone.
    pub domain: Option<Arc<str>>,
    /// Its lifetime in whole seconds; `None` is until the browser is closed.
    pub max_age: Option<Duration>,
}

impl Default for CookieTerms {
    fn default() -> Self {
        Self { secure: None, same_site: SameSite::Lax, path: "/".into(), domain: None, max_age: None }
    }
}

/// The `SameSite` attribute of a cookie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SameSite {
    /// Also to a request that goes to another page by a link.
    Lax,
    /// To none.
    Strict,
    /// To all.
    None,
}

/// One value of a module's settings; see [`lb_api::wire::Setting`] for the form of `path`.
#[derive(Clone, Debug, PartialEq)]
pub struct Setting {
    /// Where it stands in the table.
    pub path: Box<str>,
    /// The value.
    pub value: SettingValue,
    /// Its place in the file.
    pub place: Place,
}

/// A setting's value.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the names say it all")]
pub enum SettingValue {
    Table(usize),
    Array(usize),
    String(Box<str>),
    Integer(i64),
    Float(f64),
    Boolean(bool),
}

/// Source of a request's key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// The client's address, without port.
    Client,
    /// A request header.
    Header(Arc<str>),
    /// A cookie.
    Cookie(Arc<str>),
    /// A query parameter.
    Query(Arc<str>),
    /// The path.
    Path,
    /// Path and query.
    Uri,
}

/// `Host` header for servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostHeader {
    /// The client's.
    Keep,
    /// The server's name and port as written.
    Server,
    /// A fixed text.
    Fixed(Arc<str>),
}

/// Requests of one host and path prefix.
#[derive(Clone, Debug)]
pub struct Route {
    /// Its index in [`Config::routes`].
    pub idx: usize,
    /// Its hosts; empty means all.
    pub hosts: Arc<[HostPattern]>,
    /// Indices of its listeners in [`Config::listeners`]; `None` means all.
    pub listeners: Option<Arc<[usize]>>,
    /// Path prefix, by segment: `/a` matches `/a` and `/a/b`, not `/ab`. Begins with a slash.
    pub path: Box<str>,
    /// Replacement of the prefix on the way to the server, as written, if any. Begins with a slash; slashes are merged when
    /// it is used.
    pub rewrite: Option<Box<str>>,
    /// Index into [`Config::clusters`]; `None` if no request goes to a server.
    pub cluster: Option<usize>,
    /// Its answer without a server, for all requests or for those by http.
    pub answer: Option<Arc<Answer>>,
    /// Pages for the proxy's own errors, including [`Config::errors`], if they differ from those.
    pub errors: Option<Arc<ErrorPages>>,
    /// `Host` for this route, if it differs from its cluster's.
    pub host_header: Option<HostHeader>,
    /// Maximum time of a whole request, if it differs from [`Timeouts::request`].
    pub timeout: Option<Duration>,
    /// Retries of requests that were sent; `None` means never.
    pub retry: Option<Arc<retry::RetryPolicy>>,
    /// Changes to request headers, including the cluster's.
    pub request_headers: Option<Arc<Rules>>,
    /// Changes to response headers, including the cluster's.
    pub response_headers: Option<Arc<Rules>>,
    /// Whether the rules above or the log need the request's ID.
    pub has_request_id: bool,
    /// Whether connections may switch to other protocols.
    pub upgrade: bool,
    /// Its place in the file.
    pub place: Place,
}

/// The longest label of a route.
const MAX_ROUTE_LABEL_BYTES: usize = 128;

impl Route {
    /// Its name in metrics: its first host, how many more it has, and its path.
    pub fn label(&self) -> String {
        let mut label = match &*self.hosts {
            [] => String::new(),
            [only] => only.to_string(),
            [first, more @ ..] => format!("{first}+{}", more.len()),
        };
        label += &self.path;
        let end = (0..=MAX_ROUTE_LABEL_BYTES.min(label.len())).rev().find(|end| label.is_char_boundary(*end));
        label.truncate(end.unwrap_or(0));
        label
    }
}

/// Hosts of a route, in lower case and without port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostPattern {
    /// This one.
    Exact(Box<str>),
    /// Every host that ends with this and has more before it. It begins with a dot.
    Below(Box<str>),
    /// All hosts.
    Any,
}

/// Precedence of routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteOrder {
    /// Routes of the request's own host before those of patterns and of all hosts, then the longest path.
    Longest,
    /// The first of the file, as httpd does.
    First,
}

/// Maximum sizes and counts of messages.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of a request line; more is 414.
    pub request_line_bytes: usize,
    /// Bytes of a request's whole head, and of a response's; more is 431 (502).
    pub head_bytes: usize,
    /// Header lines of a head; more is 431 (502).
    pub headers: usize,
    /// Bytes of a request body; more is 413. `None` is no limit.
    pub body_bytes: Option<u64>,
    /// Requests on one client connection before it is closed. `None` is no limit.
    pub requests_per_connection: Option<u64>,
}

/// Timeouts towards clients, and of the drain.
#[derive(Clone, Debug)]
pub struct Timeouts {
    /// From the first byte of a request (or the connection) to the end of its head; later is 408.
    pub request_head: Duration,
    /// For a TLS handshake; a connection without one by then is closed.
    pub handshake: Duration,
    /// Time without a byte in a request body, or without the client taking a byte of a response.
    pub body: Duration,
    /// For a whole request, from the end of its head to the last byte of its response. `None` is no limit.
    pub request: Option<Duration>,
    /// Time without a byte, either way, on a connection that has switched protocols.
    pub tunnel: Duration,
    /// Maximum idle time of a client connection.
    pub keepalive: Duration,
    /// Time that a draining worker gives its requests.
    pub drain: Duration,
    /// Time before the drain of a stop, in which it serves as before but is not ready.
    pub stop_delay: Duration,
}

/// User and group of workers that root starts, by name or number, as written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunAs {
    /// The user.
    pub user: Option<(Box<str>, Place)>,
    /// The group; by default the user's primary group.
    pub group: Option<(Box<str>, Place)>,
}

/// Limits for modules, and of generations.
#[derive(Clone, Debug)]
pub struct Supervision {
    /// Maximum time of one call for a request; a worker with a longer call is replaced.
    pub module_time_limit: Duration,
    /// Average time of a request in the calls of a module beyond which the module is said to be slow; zero means never.
    pub module_slow: Duration,
    /// Faults of one balancer within 60 s before the host chooses in its place; 0 means no limit.
    pub module_faults: u32,
    /// Workers that one module file may kill or hang within 60 s before it is quarantined; 0 means no limit.
    pub module_deaths: u32,
    /// If a module kills a generation within this time, the previous one is started again.
    pub probation: Duration,
    /// Maximum time for a new generation to be ready.
    pub start_timeout: Duration,
    /// Maximum generations that drain at once; further reloads are refused.
    pub max_draining: usize,
    /// Whether workers confine themselves before they open a module.
    pub sandbox: bool,
}

/// Address families of look-ups.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Families {
    /// Both, looked up independently.
    #[default]
    Any,
    /// IPv4 alone (A records).
    Ipv4,
    /// IPv6 alone (AAAA records).
    Ipv6,
}

impl Families {
    /// Whether an address is of one of them.
    pub fn contain(self, address: IpAddr) -> bool {
        match self {
            Self::Any => true,
            Self::Ipv4 => address.is_ipv4(),
            Self::Ipv6 => address.is_ipv6(),
        }
    }
}

/// DNS look-ups of servers' names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolverConfig {
    /// Name servers; empty means those of the system.
    pub servers: Vec<SocketAddr>,
    /// Address families that are looked up and used.
    pub family: Families,
    /// Maximum time of one look-up.
    pub timeout: Duration,
    /// Minimum time between look-ups, whatever the TTL.
    pub min_ttl: Duration,
    /// Maximum time between look-ups, whatever the TTL.
    pub max_ttl: Duration,
}

/// Target of the access log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccessLogTarget {
    /// Nowhere.
    Off,
    /// Standard output.
    Stdout,
    /// A file, appended to, opened again on SIGUSR2.
    File(PathBuf),
}

/// The admin listener.
#[derive(Clone, Debug)]
pub struct Admin {
    /// Where it listens.
    pub address: Address,
    /// Permissions and owner, for a Unix socket.
    pub access: Access,
    /// Networks of those who may read; `None` means everybody who can connect.
    pub allow: Option<Networks>,
    /// Names besides addresses and `localhost` that requests may have in `Host`; in lower case.
    pub hosts: Vec<Box<str>>,
    /// Clusters without which the proxy is not ready, by their place in [`Config::clusters`].
    pub ready_needs: Vec<usize>,
    /// Its place in the file.
    pub place: Place,
}

impl fmt::Debug for StickyConfig {
    /// Without the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Issued { cookie, .. } => {
                f.debug_struct("Issued").field("cookie", cookie).finish_non_exhaustive()
            }
            Self::Route { sources, separator } => {
                f.debug_struct("Route").field("sources", sources).field("separator", separator).finish()
            }
        }
    }
}

impl Default for Access {
    /// As for other files of services: read and write for owner and group.
    fn default() -> Self {
        Self { mode: 0o660, owner: RunAs::default() }
    }
}

impl Default for Supervision {
    fn default() -> Self {
        Self {
            module_time_limit: Duration::from_secs(1),
            module_slow: Duration::from_millis(1),
            // Tolerates a panic at one odd request, but not a module that fails at every tenth.
            module_faults: 10,
            module_deaths: 2,
            probation: Duration::from_secs(10),
            start_timeout: Duration::from_secs(60),
            max_draining: 16,
            sandbox: true,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            request_line_bytes: 8 * 1024,
            head_bytes: 16 * 1024,
            headers: 100,
            body_bytes: None,
            requests_per_connection: None,
        }
    }
}

impl Default for ResolverConfig {
    fn default() -> Self {
        Self {
            servers: Vec::new(),
            family: Families::default(),
            timeout: Duration::from_secs(5),
            min_ttl: Duration::from_secs(1),
            max_ttl: Duration::from_secs(3600),
        }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            request_head: Duration::from_secs(15),
            handshake: Duration::from_secs(10),
            body: Duration::from_secs(60),
            request: None,
            tunnel: Duration::from_secs(5 * 60),
            keepalive: Duration::from_secs(75),
            drain: Duration::from_secs(30),
            stop_delay: Duration::ZERO,
        }
    }
}

impl fmt::Display for AccessLogTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::Stdout => f.write_str("stdout"),
            Self::File(path) => write!(f, "\"{}\"", path.display()),
        }
    }
}

impl HostPattern {
    /// Whether it is for this host, in lower case and without port.
    pub(super) fn covers(&self, host: &str) -> bool {
        match self {
            Self::Exact(own) => **own == *host,
            Self::Below(suffix) => host.len() > suffix.len() && host.ends_with(&**suffix),
            Self::Any => true,
        }
    }

    /// A host that this pattern is for. Where it is for many, no configuration can name this one.
    pub(super) fn sample(&self) -> Cow<'_, str> {
        match self {
            Self::Exact(host) => Cow::Borrowed(host),
            Self::Below(suffix) => Cow::Owned(format!("?{suffix}")),
            Self::Any => Cow::Borrowed("?"),
        }
    }
}

impl fmt::Display for HostPattern {
    /// As it is written in a configuration.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(host) => f.write_str(host),
            Self::Below(suffix) => write!(f, "*{suffix}"),
            Self::Any => f.write_str("*"),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}
