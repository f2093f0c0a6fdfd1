//! The types of a checked configuration. Every name is resolved, and every value has the type of what it means.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;

use super::health::{Ejection, HealthCheck};
use super::retry;
use crate::http::headers::forwarded::Forwarded;
use crate::http::headers::rules::Rules;
use crate::net::address::Address;
use crate::net::network::Networks;
use crate::net::proxy_protocol;
use crate::tls::client::{ClientTls, Protocol};
use crate::tls::server::ServerTls;

/// How a configuration is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Syntax {
    /// TOML, as in `conf/reference.toml`.
    Toml,
    /// Directives, as in `conf/mail.conf`.
    Httpd,
}

impl Syntax {
    /// Told by the file's name.
    pub fn of(path: &Path) -> Self {
        match path.extension() {
            Some(extension) if extension == "conf" => Self::Httpd,
            _ => Self::Toml,
        }
    }
}

/// Everything a worker needs to know.
#[derive(Debug)]
pub struct Config {
    /// The file that it was read from, as named by the operator.
    pub source: PathBuf,
    /// Worker threads, each with its own runtime and its own upstream connections.
    pub threads: usize,
    /// Where requests come in; at least one.
    pub listeners: Vec<Listener>,
    /// Modules to load, each ID once.
    pub modules: Vec<ModuleFile>,
    /// Groups of servers. `Route::cluster` is an index into these.
    pub clusters: Vec<ClusterConfig>,
    /// Which requests go where, in the order of the file.
    pub routes: Vec<Route>,
    /// Which route wins where several match.
    pub route_order: RouteOrder,
    /// The header in which servers get the request's ID, if they do.
    pub request_id: Option<Arc<str>>,
    /// What proxies in front say, and whether it is believed.
    pub forwarded: Forwarded,
    /// How much of anything a client or a server may take.
    pub limits: Limits,
    /// How long anything may take.
    pub timeouts: Timeouts,
    /// Who serves, where root starts it.
    pub run_as: RunAs,
    /// The supervisor's socket for commands, unless it is where [`Config::source`] says.
    pub control: Option<PathBuf>,
    /// Where the supervisor writes its process ID.
    pub pid_file: Option<PathBuf>,
    /// Names of environment variables that workers get beside those that they always get.
    pub pass_environment: Vec<Box<str>>,
    /// Whether a worker that dies may leave its memory, keys included, in a core dump.
    pub core_dumps: bool,
    /// What a module may do to its worker before it is held to account.
    pub supervision: Supervision,
    /// How servers' names are looked up.
    pub resolver: ResolverConfig,
    /// One line a request, or none.
    pub access_log: AccessLogTarget,
    /// Where metrics are served, if anywhere.
    pub admin: Option<Admin>,
    /// Clients that may ask why a request went where it went; none, unless said otherwise.
    pub explain_to: Networks,
}

/// Where in a configuration something was said; the edge prints it as `file:line`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file, as named.
    pub file: Arc<str>,
    /// Line, from 1.
    pub line: usize,
}

/// One listening address.
#[derive(Clone, Debug)]
pub struct Listener {
    /// Where to listen.
    pub address: Address,
    /// Who may connect, where that is a Unix socket.
    pub access: Access,
    /// Connections open at once over all threads; above it the listener stops accepting until one ends.
    pub max_connections: usize,
    /// Connections that one client may have open at once; more are closed. `None` is no limit.
    pub max_connections_per_client: Option<u32>,
    /// Who begins connections with a PROXY header.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// TLS, where it is spoken.
    pub tls: Option<ServerTls>,
    /// Whether HTTP/2 is spoken: over TLS where the client chooses it, in clear text where it begins with it.
    pub h2: bool,
    /// Where it was said.
    pub place: Place,
}

/// Who may connect to a Unix socket: whoever may write to its file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// Its permissions.
    pub mode: u32,
    /// Whose file it is, where it is not to be that of whoever starts the proxy.
    pub owner: RunAs,
}

/// Which connections begin with a PROXY header.
#[derive(Clone, Debug)]
pub struct ProxyProtocol {
    /// Those from here; all others do not.
    pub from: Networks,
    /// How long it may take.
    pub timeout: Duration,
}

/// One line of `[load_module]`.
#[derive(Clone, Debug)]
pub struct ModuleFile {
    /// Module ID.
    pub id: Arc<str>,
    /// The file as it was written: absolute, or to be looked for in `search`.
    pub file: PathBuf,
    /// Directories in which a relative file is looked for: as written, then by its name alone, then with `lib` before
    /// the name.
    pub search: Arc<[PathBuf]>,
    /// The hash that the file must have.
    pub sha256: Option<[u8; 32]>,
    /// Where it was said.
    pub place: Place,
}

/// A named group of servers, balanced together.
#[derive(Clone, Debug)]
pub struct ClusterConfig {
    /// Its name.
    pub name: Arc<str>,
    /// Module ID of its balancer; one of [`Config::modules`].
    pub module: Arc<str>,
    /// Its servers, at least one.
    pub servers: Vec<Server>,
    /// How those that are reached by https are spoken to.
    pub tls: Option<ClientTls>,
    /// What is spoken with servers.
    pub protocol: Protocol,
    /// Requests that one HTTP/2 connection to a server carries at once.
    pub h2_streams: usize,
    /// The module's own settings, flattened for the boundary.
    pub settings: Vec<Setting>,
    /// Where requests get their key from, for modules that ask for one.
    pub key: Option<KeySource>,
    /// Who balances requests that have no key; the cluster's own module where it is not said.
    pub key_missing: Option<KeyMissing>,
    /// How the `Host` header is set on the way to a server.
    pub host_header: HostHeader,
    /// Time for a connection to one server to stand, name look-up included.
    pub connect_timeout: Duration,
    /// Time from the request's last byte to the response's first.
    pub response_timeout: Duration,
    /// Time without a byte in a body, either way.
    pub body_timeout: Duration,
    /// How long an unused connection to a server is kept. Less than what servers commonly allow (5 s for Node and
    /// httpd), so that few requests meet a connection that is just being closed.
    pub keepalive_timeout: Duration,
    /// Unused connections kept to each server, per thread.
    pub keepalive: usize,
    /// How long a request may wait where all servers are full.
    pub queue_timeout: Duration,
    /// Requests that may wait at once, over all threads.
    pub queue: usize,
    /// Requests of one client, an IPv4 address or a /64 of IPv6, that may wait at once; 0 is no limit.
    pub queue_per_client: u32,
    /// Which of them comes first.
    pub queue_order: QueueOrder,
    /// What a request does where all servers of its tier are full.
    pub when_full: WhenFull,
    /// How long the weight of a server that becomes available rises to its own; zero is not at all.
    pub slow_start: Duration,
    /// 1 for a straight line; with more it rises faster at first.
    pub slow_start_aggression: f64,
    /// When a server whose tries fail is left alone.
    pub ejection: Ejection,
    /// How its servers are asked whether they are well.
    pub health_check: Option<HealthCheck>,
    /// With a smaller percentage of its servers available, all but those that drain get requests; 0 is never.
    pub panic_threshold: u8,
    /// What to do where no server is available.
    pub all_down: AllDown,
    /// How requests of one session find their server again.
    pub sticky: Option<StickyConfig>,
    /// Requests that it may have under way at once, over all threads, those that wait included; 0 is no limit.
    pub max_requests: u32,
    /// The PROXY header that its servers get, if they do. Then `keepalive` is 0.
    pub send_proxy_protocol: Option<proxy_protocol::ProxyVersion>,
    /// What becomes of request headers, before the route's own rules.
    pub request_headers: Rules,
    /// What becomes of response headers, before the route's own rules.
    pub response_headers: Rules,
    /// Where it was said.
    pub place: Place,
}

/// One server of a cluster.
#[derive(Clone, Debug)]
pub struct Server {
    /// The URL as written; for one of several addresses of a name, with `#` and the address behind it.
    pub url: Arc<str>,
    /// Host name or address, without brackets.
    pub host: Arc<str>,
    /// What a name stands for.
    pub resolve: Resolve,
    /// Of a name of which each address is a server: which of them this is. A configuration as it is read has none.
    pub address: Option<IpAddr>,
    /// Port as written, or 80 (443 for https).
    pub port: u16,
    /// The path of its Unix socket, where it has one. Then that is its `host` as well, and its port is 0.
    pub unix: Option<Arc<Path>>,
    /// The name that its certificate must be for, where it is reached by https.
    pub tls_name: Option<ServerName<'static>>,
    /// The same for its checks, where they are by TLS.
    pub check_name: Option<ServerName<'static>>,
    /// 1 to 65,535.
    pub weight: u16,
    /// Requests that it may have in flight at once; 0 is no limit.
    pub max_requests: u32,
    /// Used once no server of a lower tier is left.
    pub tier: u16,
    /// Finishes what runs, takes nothing new.
    pub drain: bool,
    /// What clients' sessions call it.
    pub route: Option<Arc<str>>,
    /// Pairs for the module's eyes, in the order of the file.
    pub metadata: Vec<(Arc<str>, Arc<str>)>,
    /// Where it was said.
    pub place: Place,
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
    /// Where it was said.
    pub place: Place,
}

/// What a server that is written with a name is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Resolve {
    /// One server, wherever its name leads at the time.
    #[default]
    One,
    /// As many servers as the name has addresses; see [`crate::cluster::discovery`].
    All,
}

/// What becomes of a request when no server of its cluster is available.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AllDown {
    /// It is answered 503.
    Fail,
    /// It is tried on those that are down, but not on those that drain.
    TryAll,
}

/// Which of the requests that wait gets the server that comes free.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum QueueOrder {
    /// The one that has waited longest.
    #[default]
    Fifo,
    /// The one that has waited shortest: under overload some are served quickly and the others not at all.
    Lifo,
}

/// What a request does where all servers of its tier are full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenFull {
    /// It waits in the queue.
    Wait,
    /// It goes on to the next tier, and waits where all tiers are full.
    Spill,
}

/// How requests of one session find their server again.
#[derive(Clone, PartialEq, Eq)]
pub enum StickyConfig {
    /// By a cookie that the proxy sets.
    Issued {
        /// Its name.
        cookie: Arc<str>,
        /// What it is signed with; random for each process where there is none.
        secret: Option<Arc<str>>,
        /// Its attributes.
        terms: CookieTerms,
    },
    /// By a [`Server::route`] that the application puts into something of its own.
    Route {
        /// Where it may stand, in the order of looking.
        sources: Vec<KeySource>,
        /// What stands before it. Where there is none, the whole is the route.
        separator: Option<u8>,
    },
}

/// Attributes of a cookie that the proxy sets (RFC 6265 section 4.1.2). It is always `HttpOnly`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CookieTerms {
    /// Whether it is `Secure`, that is, never sent in clear text. `None`: where the request came by TLS.
    pub secure: Option<bool>,
    /// To which requests from pages of other sites it is added.
    pub same_site: SameSite,
    /// The path below which it is sent. Begins with a slash.
    pub path: Arc<str>,
    /// The domain whose hosts get it; `None` is the host that the request was for, and no other.
    pub domain: Option<Arc<str>>,
    /// How long it is kept, to the second; `None` is until the browser is closed.
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
    /// Where it was said.
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

/// What a request's key is made of.
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

/// What servers get as `Host`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostHeader {
    /// What the client sent.
    Keep,
    /// The server's name and port as written.
    Server,
    /// This.
    Fixed(Arc<str>),
}

/// Requests of one host and path prefix.
#[derive(Clone, Debug)]
pub struct Route {
    /// Lower-case host without port, or all hosts.
    pub host: Option<Box<str>>,
    /// Path prefix, by segment: `/a` matches `/a` and `/a/b`, not `/ab`. Begins with a slash.
    pub path: Box<str>,
    /// What replaces the prefix on the way to the server, as written (slashes are evened out when it is used), or nothing
    /// is replaced. Begins with a slash.
    pub rewrite: Option<Box<str>>,
    /// Index into [`Config::clusters`].
    pub cluster: usize,
    /// `Host` for this route, where it differs from its cluster's.
    pub host_header: Option<HostHeader>,
    /// For a whole request, where it differs from [`Timeouts::request`].
    pub timeout: Option<Duration>,
    /// When requests are sent again; never, where there is none.
    pub retry: Option<Arc<retry::RetryPolicy>>,
    /// What becomes of request headers; the cluster's rules are among them.
    pub request_headers: Option<Arc<Rules>>,
    /// What becomes of response headers; the cluster's rules are among them.
    pub response_headers: Option<Arc<Rules>>,
    /// Something of the above, or the log, wants the request's ID.
    pub has_request_id: bool,
    /// Whether connections may switch to other protocols.
    pub upgrade: bool,
    /// Where it was said.
    pub place: Place,
}

/// Which route wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteOrder {
    /// Routes of the request's own host before those of all hosts, then the longest path.
    Longest,
    /// The first of the file, as httpd does.
    First,
}

/// How much of anything a peer may take.
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

/// How long anything may take on the client's side, and the end of a worker.
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
    /// How long an idle client connection is kept.
    pub keepalive: Duration,
    /// How long a draining worker lets running requests go on.
    pub drain: Duration,
}

/// Whom a worker that root starts becomes, before it opens any module; by name or number, as written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunAs {
    /// The user.
    pub user: Option<(Box<str>, Place)>,
    /// The group; the user's own where there is none.
    pub group: Option<(Box<str>, Place)>,
}

/// What a module may do to its worker before it is held to account.
#[derive(Clone, Debug)]
pub struct Supervision {
    /// For one call on a request's way; a worker with a call that takes longer is replaced.
    pub module_time_limit: Duration,
    /// Faults of one balancer within a minute after which it is not asked any more; 0 is no limit.
    pub module_faults: u32,
    /// Workers that one module file may kill or hang up within a minute; then it is not opened any more. 0 is no limit.
    pub module_deaths: u32,
    /// A generation that a module kills sooner than this is rolled back to the one before.
    pub probation: Duration,
    /// For a new generation to be ready.
    pub start_timeout: Duration,
    /// Generations that may drain at once; what would have more drain is refused.
    pub max_draining: usize,
}

/// Families of addresses that servers' names are looked up for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Families {
    /// Both, each by a look-up of its own.
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

/// How servers' names are looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolverConfig {
    /// Name servers to ask; none are those of the system.
    pub servers: Vec<SocketAddr>,
    /// Addresses that are looked up and used.
    pub family: Families,
    /// For a whole look-up.
    pub timeout: Duration,
    /// A name is looked up again when its TTL says so, but no sooner than this.
    pub min_ttl: Duration,
    /// And no later than this.
    pub max_ttl: Duration,
}

/// Where access log lines go.
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
    /// Who may connect, where that is a Unix socket.
    pub access: Access,
    /// Where it was said.
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
    /// As for other files of services: for its owner and its group.
    fn default() -> Self {
        Self { mode: 0o660, owner: RunAs::default() }
    }
}

impl Default for Supervision {
    fn default() -> Self {
        Self {
            module_time_limit: Duration::from_secs(1),
            // Bears with a panic at one odd request, and not with a module that fails at every tenth.
            module_faults: 10,
            module_deaths: 2,
            probation: Duration::from_secs(10),
            start_timeout: Duration::from_secs(60),
            max_draining: 16,
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

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}
