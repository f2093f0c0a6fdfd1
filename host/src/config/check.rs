//! The raw form, checked as a whole: every problem is reported, and only a configuration without any comes out.
//!
//! A check that fails reports and goes on with a default, so that one run finds everything. What could not even be
//! read (see [`super::read`]) is not called missing as well.

mod address;
mod cluster;
mod health;
mod forwarded;
mod headers;
mod module;
mod retry;
mod route;
mod sticky;
mod tls;

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::Spanned;

use super::file::{self, RootTable};
use super::source::{At, Diagnostics, Span};
use super::units::{SizeValue, TimeValue, show_time};
use super::{
    Access, AccessLogTarget, Admin, Config, Families, Files, Limits, Listener, Place, ResolverConfig,
    RouteOrder, RunAs, Supervision, Syntax, Timeouts,
};
use crate::http::h1::head::MAX_HEADERS;
use crate::net::address::Address;
use crate::net::network::Networks;

/// As many as one listener takes unless told otherwise: enough for most, and two sockets each stay below the
/// descriptors that systems commonly allow a service (65,536 and more).
const MAX_CONNECTIONS: usize = 16_384;

/// A head is held in memory while it is read, so a slow client's costs this much at most.
const LARGEST_HEAD: u64 = 1 << 20;

/// What `sun_path` of `sockaddr_un` holds, with the zero at its end.
pub(super) const LONGEST_SOCKET_PATH: usize = 107;

/// Keys of whoever listens on a Unix socket.
struct RawAccess {
    mode: Option<Spanned<String>>,
    owner: Option<Spanned<String>>,
    group: Option<Spanned<String>>,
}

/// What the checks share.
pub(super) struct Checker<'a> {
    pub(super) report: &'a mut Diagnostics,
    /// What certificates and keys are read by.
    pub(super) files: &'a mut Files,
    /// The syntax whose words the messages use.
    pub(super) syntax: Syntax,
    /// The span of the whole, as marks know it.
    pub(super) root: Span,
    /// The file that the operator named; relative paths start in its directory.
    pub(super) source: &'a Path,
}

impl Checker<'_> {
    /// Everything; the result means nothing if the report has errors afterwards.
    pub(super) fn check(&mut self, file: RootTable) -> Config {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = self.integer("threads", file.threads.as_ref(), 1..=1024, threads);
        let listeners = self.listeners(file.listener.0);
        let modules = self.modules(file.load_module, file.module_path);
        let clusters = self.clusters(file.cluster.0, &modules);
        self.warn_of_unused(&modules.checked, &clusters.checked);
        let request_id = file.request_id.and_then(|name| self.request_id(&name));
        let routes = self.routes(file.route.0, &clusters, request_id.as_deref());
        let admin = file.admin.and_then(|admin| self.admin(admin, &listeners));
        Config {
            source: self.source.to_owned(),
            threads,
            listeners,
            modules: modules.checked,
            clusters: clusters.checked,
            routes,
            route_order: match self.syntax {
                Syntax::Toml => RouteOrder::Longest,
                Syntax::Httpd => RouteOrder::First,
            },
            request_id,
            forwarded: self.forwarded(file.forwarded.unwrap_or_default()),
            limits: self.limits(file.limits.unwrap_or_default()),
            timeouts: self.timeouts(file.timeouts.unwrap_or_default()),
            run_as: RunAs { user: self.account("user", file.user), group: self.account("group", file.group) },
            control: self.control(file.control),
            pid_file: file.pid_file.and_then(|path| self.file_name("pid_file", &path)),
            pass_environment: self.variables(file.pass_environment.unwrap_or_default()),
            core_dumps: file.core_dumps.unwrap_or(false),
            supervision: self.supervision(file.supervision.unwrap_or_default()),
            resolver: self.resolver(file.resolver.unwrap_or_default()),
            access_log: file.access_log.map_or(AccessLogTarget::Off, |log| self.access_log(log)),
            admin,
            explain_to: self.networks("explain.allow", &file.explain.unwrap_or_default().allow),
        }
    }

    fn listeners(&mut self, tables: Vec<Spanned<file::ListenerTable>>) -> Vec<Listener> {
        if tables.is_empty() && !self.report.is_touched(&self.root, "listener") {
            self.report.error_of_whole(match self.syntax {
                Syntax::Toml => {
                    "no [[listener]] (write, for example, address = \"127.0.0.1:8080\" below one)"
                }
                Syntax::Httpd => "no Listen (write, for example, Listen 127.0.0.1:8080)",
            });
        }
        let mut listeners = Vec::new();
        let mut seen = HashMap::new();
        for table in tables {
            let (span, listener) = (table.span(), table.into_inner());
            let written = listener.address.as_ref().map_or("", |address| address.get_ref());
            let object = format!("listener \"{written}\": max_connections");
            let max_connections =
                self.integer(&object, listener.max_connections.as_ref(), 1..=10_000_000, MAX_CONNECTIONS);
            let object = format!("listener \"{written}\": max_connections_per_client");
            let per_client = listener.max_connections_per_client;
            let max_connections_per_client =
                per_client.map(|per_client| self.integer(&object, Some(&per_client), 1..=16_000_000, 1));
            let object = format!("listener \"{written}\": proxy_protocol");
            let proxy_protocol = listener.proxy_protocol.map(|terms| self.proxy_protocol(&object, terms));
            let Some(text) = listener.address else {
                self.missing(
                    &span,
                    "address",
                    "listener",
                    "write, for example, address = \"127.0.0.1:8080\"",
                );
                continue;
            };
            let Some(address) = self.address("listener", &text) else { continue };
            let place = self.report.place(text.at());
            let raw = RawAccess { mode: listener.mode, owner: listener.owner, group: listener.group };
            let access = self.access("listener", &text, &address, raw);
            let is_any_port = address.is_any_port();
            if let Some(first) = seen.insert(address.clone(), place.clone()).filter(|_| !is_any_port) {
                self.report
                    .error(text.at(), format!("listener \"{text}\": already listening there by {first}"));
            }
            let h2 = listener.h2.unwrap_or(listener.tls.is_some());
            let tls = listener.tls.map(|tls| self.listener_tls(&format!("listener \"{address}\""), tls, h2));
            listeners.push(Listener {
                address,
                access,
                max_connections,
                max_connections_per_client,
                proxy_protocol,
                // What is wrong with it was said.
                tls: tls.flatten(),
                h2,
                place,
            });
        }
        listeners
    }

    fn admin(&mut self, admin: Spanned<file::AdminTable>, listeners: &[Listener]) -> Option<Admin> {
        let (span, admin) = (admin.span(), admin.into_inner());
        let Some(text) = admin.address else {
            self.missing(&span, "address", "admin", "write, for example, address = \"127.0.0.1:9100\"");
            return None;
        };
        let address = self.address("admin", &text)?;
        let same = |listener: &&Listener| listener.address == address && !address.is_any_port();
        if let Some(listener) = listeners.iter().find(same) {
            let text = format!("admin \"{text}\": already listening there by {}", listener.place);
            self.report.error(span.start, text);
        }
        let raw = RawAccess { mode: admin.mode, owner: admin.owner, group: admin.group };
        let access = self.access("admin", &text, &address, raw);
        Some(Admin { address, access, place: self.report.place(text.at()) })
    }

    fn networks(&mut self, object: &str, texts: &[Spanned<String>]) -> Networks {
        let parse = |text: &Spanned<String>| match text.get_ref().parse() {
            Ok(network) => Some(network),
            Err(reason) => {
                self.report.error(text.at(), format!("{object}: \"{text}\": {reason}"));
                None
            }
        };
        texts.iter().filter_map(parse).collect()
    }

    fn address(&mut self, object: &str, text: &Spanned<String>) -> Option<Address> {
        match address::parse_listen(text.get_ref()) {
            Ok(address) => Some(address),
            Err(reason) => {
                self.report.error(text.at(), format!("{object} \"{text}\": {reason}"));
                None
            }
        }
    }

    fn access(&mut self, object: &str, text: &Spanned<String>, address: &Address, raw: RawAccess) -> Access {
        let object = format!("{object} \"{text}\"");
        let keys = [("mode", &raw.mode), ("owner", &raw.owner), ("group", &raw.group)];
        if matches!(address, Address::Ip(_)) {
            for (key, value) in keys.into_iter().filter_map(|(key, value)| Some((key, value.as_ref()?))) {
                let right = "only a Unix socket is a file: leave it out";
                self.report.error(value.at(), format!("{object}: {key}: not for an IP address ({right})"));
            }
            return Access::default();
        }
        let mode = raw.mode.and_then(|text| {
            let digits = text.get_ref().bytes().all(|digit| (b'0'..=b'7').contains(&digit));
            let mode = u32::from_str_radix(text.get_ref(), 8).ok().filter(|mode| digits && *mode <= 0o777);
            if mode.is_none() {
                let right = "write, for example, mode = \"0660\"";
                self.report
                    .error(text.at(), format!("{object}: mode \"{text}\" is no mode of a file ({right})"));
            }
            mode
        });
        let owner = RunAs { user: self.account("owner", raw.owner), group: self.account("group", raw.group) };
        Access { mode: mode.unwrap_or(Access::default().mode), owner }
    }

    fn limits(&mut self, raw: file::LimitsTable) -> Limits {
        let defaults = Limits::default();
        let line = self.size("limits.request_line_bytes", raw.request_line_bytes.as_ref(), 64..=LARGEST_HEAD);
        let head = self.size("limits.head_bytes", raw.head_bytes.as_ref(), 64..=LARGEST_HEAD);
        let body = self.size("limits.body_bytes", raw.body_bytes.as_ref(), 1..=u64::MAX);
        let requests = raw.requests_per_connection;
        let limits = Limits {
            request_line_bytes: line.map_or(defaults.request_line_bytes, to_usize),
            head_bytes: head.map_or(defaults.head_bytes, to_usize),
            headers: self.integer(
                "limits.headers",
                raw.headers.as_ref(),
                1..=MAX_HEADERS as i64,
                defaults.headers,
            ),
            body_bytes: body,
            requests_per_connection: requests.map(|requests| {
                self.integer("limits.requests_per_connection", Some(&requests), 1..=i64::MAX, 1)
            }),
        };
        if limits.head_bytes < limits.request_line_bytes {
            let at = raw.head_bytes.or(raw.request_line_bytes).map_or(0, |key| key.at());
            let (head, line) = (limits.head_bytes, limits.request_line_bytes);
            let text =
                format!("limits.head_bytes: {head} is less than the {line} of limits.request_line_bytes");
            self.report.error(at, format!("{text}, and the line is part of the head"));
        }
        limits
    }

    fn timeouts(&mut self, raw: file::TimeoutsTable) -> Timeouts {
        let defaults = Timeouts::default();
        Timeouts {
            request_head: self.time(
                "timeouts.request_head",
                raw.request_head.as_ref(),
                defaults.request_head,
            ),
            handshake: self.time("timeouts.handshake", raw.handshake.as_ref(), defaults.handshake),
            body: self.time("timeouts.body", raw.body.as_ref(), defaults.body),
            request: self.limit_of_time("timeouts.request", raw.request.as_ref()),
            tunnel: self.time("timeouts.tunnel", raw.tunnel.as_ref(), defaults.tunnel),
            keepalive: self.time("timeouts.keepalive", raw.keepalive.as_ref(), defaults.keepalive),
            // Zero is a wish that makes sense here: cut at once.
            drain: raw.drain.map_or(defaults.drain, |drain| drain.get_ref().0),
        }
    }

    /// Whether there is such an account is asked where it is needed: the machine that checks may not be the one that runs.
    fn account(&mut self, key: &str, name: Option<Spanned<String>>) -> Option<(Box<str>, Place)> {
        let name = name?;
        if name.get_ref().is_empty() {
            self.report.error(name.at(), format!("{key}: is empty; write a name, or leave it out"));
            return None;
        }
        let place = self.report.place(name.at());
        Some((name.into_inner().into(), place))
    }

    fn control(&mut self, path: Option<Spanned<String>>) -> Option<PathBuf> {
        let path = path?;
        let checked = self.file_name("control", &path)?;
        let (bytes, most) = (checked.as_os_str().len(), LONGEST_SOCKET_PATH);
        if bytes > most {
            let text =
                format!("control: \"{}\" has {bytes} bytes, a socket's path {most} at most", path.get_ref());
            self.report.error(path.at(), text);
        }
        Some(checked)
    }

    fn file_name(&mut self, key: &str, path: &Spanned<String>) -> Option<PathBuf> {
        if path.get_ref().is_empty() {
            self.report.error(path.at(), format!("{key}: is empty; write a file's name, or leave it out"));
            return None;
        }
        Some(self.relative(path.get_ref()))
    }

    /// Names of environment variables.
    fn variables(&mut self, names: Vec<Spanned<String>>) -> Vec<Box<str>> {
        for name in &names {
            if name.get_ref().is_empty() || name.get_ref().contains(['=', '\0']) {
                let right = "write its name alone, such as \"HTTPS_PROXY\"";
                let text = format!("pass_environment: {:?} names no variable ({right})", name.get_ref());
                self.report.error(name.at(), text);
            }
        }
        names.into_iter().map(|name| name.into_inner().into()).collect()
    }

    fn supervision(&mut self, raw: file::SupervisionTable) -> Supervision {
        let defaults = Supervision::default();
        let of = |key: &str| format!("supervision.{key}");
        Supervision {
            module_time_limit: self.time(
                &of("module_time_limit"),
                raw.module_time_limit.as_ref(),
                defaults.module_time_limit,
            ),
            module_faults: self.integer(
                &of("module_faults"),
                raw.module_faults.as_ref(),
                0..=1000,
                defaults.module_faults,
            ),
            module_deaths: self.integer(
                &of("module_deaths"),
                raw.module_deaths.as_ref(),
                0..=1000,
                defaults.module_deaths,
            ),
            // Zero is a wish that makes sense here: no generation is rolled back.
            probation: raw.probation.map_or(defaults.probation, |probation| probation.get_ref().0),
            start_timeout: self.time(
                &of("start_timeout"),
                raw.start_timeout.as_ref(),
                defaults.start_timeout,
            ),
            max_draining: self.integer(
                &of("max_draining"),
                raw.max_draining.as_ref(),
                1..=256,
                defaults.max_draining,
            ),
        }
    }

    fn resolver(&mut self, raw: file::ResolverTable) -> ResolverConfig {
        let defaults = ResolverConfig::default();
        let mut servers = Vec::new();
        for text in raw.servers.into_iter().flatten() {
            match address::parse_name_server(text.get_ref()) {
                Ok(server) => servers.push(server),
                Err(reason) => {
                    self.report.error(text.at(), format!("resolver.servers: \"{text}\" {reason}"));
                }
            }
        }
        let family = raw.family.map_or(defaults.family, |text| match &**text.get_ref() {
            "any" => Families::Any,
            "ipv4" => Families::Ipv4,
            "ipv6" => Families::Ipv6,
            other => {
                let problem =
                    format!("resolver.family: {other:?} is not one of \"any\", \"ipv4\" and \"ipv6\"");
                self.report.error(text.at(), problem);
                defaults.family
            }
        });
        let resolver = ResolverConfig {
            servers,
            family,
            timeout: self.time("resolver.timeout", raw.timeout.as_ref(), defaults.timeout),
            min_ttl: self.time("resolver.min_ttl", raw.min_ttl.as_ref(), defaults.min_ttl),
            max_ttl: self.time("resolver.max_ttl", raw.max_ttl.as_ref(), defaults.max_ttl),
        };
        if resolver.max_ttl < resolver.min_ttl {
            let at = raw.max_ttl.or(raw.min_ttl).map_or(0, |time| time.at());
            let (max, min) = (show_time(resolver.max_ttl), show_time(resolver.min_ttl));
            let text = format!("resolver.max_ttl: {max} is less than the {min} of resolver.min_ttl");
            self.report.error(at, text);
        }
        resolver
    }

    fn access_log(&mut self, log: Spanned<file::AccessLogTable>) -> AccessLogTarget {
        let (span, log) = (log.span(), log.into_inner());
        let Some(path) = log.path else {
            self.missing(&span, "path", "access_log", "write path = \"stdout\" or a file's name");
            return AccessLogTarget::Off;
        };
        match path.get_ref().as_str() {
            "" => {
                let text =
                    "access_log.path: is empty; write \"stdout\" or a file's name, or leave [access_log] out";
                self.report.error(path.at(), text);
                AccessLogTarget::Off
            }
            "stdout" => AccessLogTarget::Stdout,
            file => AccessLogTarget::File(self.relative(file)),
        }
    }

    /// Reports a key that is not there, unless it is there and was complained of already.
    fn missing(&mut self, table: &Span, key: &str, object: &str, right: &str) {
        if !self.report.is_lost(table, key) {
            self.report.error(table.start, format!("{object}: no {key} ({right})"));
        }
    }

    fn integer<T: TryFrom<i64>>(
        &mut self,
        object: &str,
        value: Option<&Spanned<i64>>,
        range: RangeInclusive<i64>,
        default: T,
    ) -> T {
        let Some(value) = value else { return default };
        let in_range = Some(*value.get_ref()).filter(|value| range.contains(value));
        if let Some(Ok(checked)) = in_range.map(T::try_from) {
            return checked;
        }
        let right = match *range.end() {
            i64::MAX => format!("a number from {}", range.start()),
            end => format!("a number from {} to {end}", range.start()),
        };
        self.report.error(value.at(), format!("{object}: {value} is not {right}"));
        default
    }

    fn size(
        &mut self,
        object: &str,
        value: Option<&Spanned<SizeValue>>,
        range: RangeInclusive<u64>,
    ) -> Option<u64> {
        let value = value?;
        let SizeValue(bytes) = *value.get_ref();
        if range.contains(&bytes) {
            return Some(bytes);
        }
        let text = match *range.end() {
            u64::MAX => {
                format!("{object}: {bytes} bytes let nothing through; leave the key out for no limit")
            }
            end => format!("{object}: {bytes} bytes are not in the range from {} to {end}", range.start()),
        };
        self.report.error(value.at(), text);
        None
    }

    /// A duration that makes no sense as zero.
    fn time(&mut self, object: &str, value: Option<&Spanned<TimeValue>>, default: Duration) -> Duration {
        let Some(value) = value else { return default };
        let TimeValue(time) = *value.get_ref();
        if time.is_zero() {
            let usual = show_time(default);
            self.report
                .error(value.at(), format!("{object}: must be longer than 0s (the default is {usual})"));
        }
        time
    }

    /// A duration that makes no sense as zero, and without which there is no limit.
    fn limit_of_time(&mut self, object: &str, value: Option<&Spanned<TimeValue>>) -> Option<Duration> {
        let value = value?;
        let TimeValue(time) = *value.get_ref();
        if time.is_zero() {
            let right = "leave the key out for no limit";
            self.report.error(value.at(), format!("{object}: must be longer than 0s ({right})"));
        }
        Some(time)
    }

    /// A path, from the directory of the configuration.
    fn relative(&self, path: &str) -> PathBuf {
        self.source.parent().unwrap_or(Path::new("")).join(path)
    }
}

fn to_usize(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}
