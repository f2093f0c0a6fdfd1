//! `[[listener]]` and `[admin]`: addresses to listen on, and who may connect.

use toml::Spanned;

use crate::net::address::Address;

use super::super::source::At;
use super::super::{Access, Admin, Listener, RunAs, Syntax, file};
use super::cluster::CheckedClusters;
use super::{Checker, address};

/// Maximum connections of a listener by default: enough for most, and two sockets each stay below the descriptors
/// that systems commonly allow a service (65,536 and more).
const MAX_CONNECTIONS: usize = 16_384;

/// The keys of a listener about the file of its Unix socket.
struct RawAccess {
    mode: Option<Spanned<String>>,
    owner: Option<Spanned<String>>,
    group: Option<Spanned<String>>,
}

impl Checker<'_> {
    pub(super) fn listeners(&mut self, tables: Vec<Spanned<file::ListenerTable>>) -> Vec<Listener> {
        if tables.is_empty() && !self.report.is_touched(&self.root, "listener") {
            self.report.error_of_whole(match self.syntax {
                Syntax::Toml => {
                    "no [[listener]] (write, for example, address = \"127.0.0.1:8080\" below one)"
                }
                Syntax::Httpd => "no Listen (write, for example, Listen 127.0.0.1:8080)",
            });
        }
        let mut listeners: Vec<Listener> = Vec::new();
        for table in tables {
            listeners.extend(self.listener(table, &listeners));
        }
        listeners
    }

    /// `earlier` are the listeners above it.
    fn listener(&mut self, table: Spanned<file::ListenerTable>, earlier: &[Listener]) -> Option<Listener> {
        let (span, raw) = (table.span(), table.into_inner());
        let written = raw.address.as_ref().map_or("", |address| address.get_ref());
        let key = |key: &str| format!("listener \"{written}\": {key}");
        let most = raw.max_connections.as_ref();
        let max_connections = self.integer(&key("max_connections"), most, 1..=10_000_000, MAX_CONNECTIONS);
        let per_client = raw.max_connections_per_client.as_ref();
        let max_connections_per_client = per_client
            .map(|value| self.integer(&key("max_connections_per_client"), Some(value), 1..=16_000_000, 1));
        let proxy_protocol =
            raw.proxy_protocol.map(|table| self.proxy_protocol(&key("proxy_protocol"), table));
        let Some(text) = raw.address else {
            let right = "write, for example, address = \"127.0.0.1:8080\"";
            self.missing(&span, "address", "listener", right);
            return None;
        };
        let address = self.address("listener", &text)?;
        let same = |other: &&Listener| other.address == address && !address.is_any_port();
        if let Some(first) = earlier.iter().find(same) {
            let problem = format!("listener \"{text}\": the address is already used at {}", first.place);
            self.report.error(text.at(), problem);
        }
        let access = RawAccess { mode: raw.mode, owner: raw.owner, group: raw.group };
        let access = self.access("listener", &text, &address, access);
        let h2 = raw.h2.unwrap_or(raw.tls.is_some());
        let tls = raw.tls.map(|tls| self.listener_tls(&format!("listener \"{address}\""), tls, h2));
        Some(Listener {
            address,
            access,
            max_connections,
            max_connections_per_client,
            proxy_protocol,
            // Its problems have been reported.
            tls: tls.flatten(),
            h2,
            place: self.report.place(text.at()),
        })
    }

    pub(super) fn admin(
        &mut self,
        admin: Spanned<file::AdminTable>,
        listeners: &[Listener],
        clusters: &CheckedClusters,
    ) -> Option<Admin> {
        let (span, admin) = (admin.span(), admin.into_inner());
        let Some(text) = admin.address else {
            self.missing(&span, "address", "admin", "write, for example, address = \"127.0.0.1:9100\"");
            return None;
        };
        let address = self.address("admin", &text)?;
        let same = |listener: &&Listener| listener.address == address && !address.is_any_port();
        if let Some(listener) = listeners.iter().find(same) {
            let text = format!("admin \"{text}\": the address is already used at {}", listener.place);
            self.report.error(span.start, text);
        }
        let raw = RawAccess { mode: admin.mode, owner: admin.owner, group: admin.group };
        let access = self.access("admin", &text, &address, raw);
        let allow = admin.allow.map(|texts| {
            if texts.is_empty() {
                let right = "leave it out to allow everybody who can connect";
                self.report.error(span.start, format!("admin: allow lists no network ({right})"));
            }
            self.networks("admin: allow", &texts)
        });
        let hosts = admin.hosts.iter().filter_map(|host| self.admin_host(host)).collect();
        let needs = admin.ready_needs.iter();
        let ready_needs =
            needs.filter_map(|name| self.named_cluster("admin: ready_needs", name, clusters)).collect();
        Some(Admin { address, access, allow, hosts, ready_needs, place: self.report.place(text.at()) })
    }

    /// A name that requests to the admin listener may have in `Host`.
    fn admin_host(&mut self, text: &Spanned<String>) -> Option<Box<str>> {
        let name = text.get_ref().to_ascii_lowercase();
        let name = name.strip_suffix('.').unwrap_or(&name);
        let is_name = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'.' | b'_');
        if !name.is_empty() && name.bytes().all(is_name) {
            return Some(name.into());
        }
        let right = "write it without scheme and port, such as \"proxy.example.com\"";
        self.report.error(text.at(), format!("admin: hosts: \"{text}\" is not a host name ({right})"));
        None
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
        let mode = raw.mode.and_then(|text| self.file_mode(&object, &text));
        let owner = RunAs { user: self.account("owner", raw.owner), group: self.account("group", raw.group) };
        Access { mode: mode.unwrap_or(Access::default().mode), owner }
    }

    /// Permissions in octal digits.
    pub(super) fn file_mode(&mut self, object: &str, text: &Spanned<String>) -> Option<u32> {
        let digits = text.get_ref().bytes().all(|digit| (b'0'..=b'7').contains(&digit));
        let mode = u32::from_str_radix(text.get_ref(), 8).ok().filter(|mode| digits && *mode <= 0o777);
        if mode.is_none() {
            let right = "write, for example, mode = \"0660\"";
            let what = format!("{object}: mode \"{}\" is not a file mode ({right})", text.get_ref());
            self.report.error(text.at(), what);
        }
        mode
    }
}
