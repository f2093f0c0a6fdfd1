//! `servers` of a cluster.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use toml::Spanned;

use super::super::shape::{Named, Short};
use super::super::source::{At, Span};
use super::super::{ClusterConfig, LAST_TIER, MAX_REQUESTS, MAX_SERVERS, Resolve, Server, file};
use super::{Checker, address};

impl Checker<'_> {
    pub(super) fn servers(
        &mut self,
        object: &str,
        span: &Span,
        servers: Option<Vec<Spanned<Short<file::ServerTable>>>>,
        has_sources: bool,
    ) -> Vec<Server> {
        let servers = servers.unwrap_or_default();
        if servers.is_empty() && !has_sources && !self.report.is_touched(span, "servers") {
            let right = "write, for example, servers = [\"http://127.0.0.1:9001\"]";
            self.report.error(span.start, format!("{object}: no server ({right})"));
        }
        let servers: Vec<Server> =
            servers.into_iter().filter_map(|server| self.server(object, server)).collect();
        self.warn_of_twins(object, &servers);
        if servers.len() > MAX_SERVERS {
            let text = format!("{object}: {} servers, expected at most {MAX_SERVERS}", servers.len());
            self.report.error(span.start, text);
        }
        servers
    }

    /// To the module each of them is a server of its own, with its own limits and statistics; this is rarely intended.
    fn warn_of_twins(&mut self, object: &str, servers: &[Server]) {
        let mut seen = HashMap::new();
        for server in servers {
            let host = match &server.unix {
                Some(_) => server.host.to_string(),
                None => server.host.to_ascii_lowercase(),
            };
            let address = (host, server.port);
            if let Some(first) = seen.insert(address, &server.place) {
                let right = "to send it more requests, set its weight";
                let text =
                    format!("{object}: server \"{}\": already listed at {first} ({right})", server.url);
                self.report.warn(server.place.clone(), text);
            }
        }
    }

    fn server(&mut self, cluster: &str, server: Spanned<Short<file::ServerTable>>) -> Option<Server> {
        let (span, raw) = (server.span(), short_server(server));
        let Some(url) = raw.url else {
            let right = "write, for example, url = \"http://127.0.0.1:9001\"";
            self.missing(&span, "url", &format!("{cluster}: server"), right);
            return None;
        };
        let object = format!("{cluster}: server \"{url}\"");
        let key = |key: &str| format!("{object}: {key}");
        let weight = self.integer(&key("weight"), raw.weight.as_ref(), 1..=65_535, 1);
        let max_requests = self.integer(&key("max_requests"), raw.max_requests.as_ref(), 0..=MAX_REQUESTS, 0);
        let tier = self.tier(&object, raw.tier.as_ref(), raw.backup);
        let authority = match address::parse_server(url.get_ref()) {
            Ok(authority) => authority,
            Err(reason) => {
                self.report.error(url.at(), format!("{object}: {reason}"));
                return None;
            }
        };
        let tls_name = if authority.is_secure { self.tls_name(&object, &url, &authority.host) } else { None };
        let is_name = authority.unix.is_none() && authority.host.parse::<IpAddr>().is_err();
        let resolve = raw.resolve.map_or(Resolve::One, |text| self.resolve(&object, &text, is_name));
        if let (Resolve::All, Some(route)) = (resolve, &raw.route) {
            let right = "a session's route names one server: write a server for each address, or sticky with a cookie";
            self.report.error(route.at(), format!("{object}: route with resolve = \"all\" ({right})"));
        }
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
            route: raw.route.map(|route| route.into_inner().into()),
            drain: raw.drain.unwrap_or(false),
            metadata: raw.metadata.map(pairs).unwrap_or_default(),
        })
    }

    fn tier(&mut self, object: &str, tier: Option<&Spanned<i64>>, backup: Option<Spanned<bool>>) -> u16 {
        if let (Some(tier), Some(_)) = (tier, &backup) {
            let right = "\"backup = true\" is tier 1: write one of them";
            self.report.error(tier.at(), format!("{object}: tier and backup ({right})"));
        }
        let default = u16::from(backup.is_some_and(|backup| *backup.get_ref()));
        self.integer(&format!("{object}: tier"), tier, 0..=LAST_TIER.into(), default)
    }

    /// The name that the certificate of a server must have. Every host of a URL can be one, except names with "_" and
    /// with a dot at the end, which is left out here.
    fn tls_name(&mut self, object: &str, url: &Spanned<String>, host: &str) -> Option<ServerName<'static>> {
        let name = ServerName::try_from(host.strip_suffix('.').unwrap_or(host).to_owned());
        if name.is_err() {
            self.report.error(url.at(), format!("{object}: no certificate can be valid for this host"));
        }
        name.ok()
    }

    fn resolve(&mut self, object: &str, text: &Spanned<String>, is_name: bool) -> Resolve {
        let words = [("one", Resolve::One), ("all", Resolve::All)];
        let resolve = self.word(&format!("{object}: resolve"), text, &words).unwrap_or_default();
        if resolve == Resolve::All && !is_name {
            let right = "only a name can have several addresses";
            self.report.error(text.at(), format!("{object}: resolve \"all\" without a name ({right})"));
            return Resolve::One;
        }
        resolve
    }
}

/// A server in its long form.
fn short_server(server: Spanned<Short<file::ServerTable>>) -> file::ServerTable {
    let span = server.span();
    match server.into_inner() {
        Short::Text(url) => file::ServerTable { url: Some(Spanned::new(span, url)), ..Default::default() },
        Short::Table(table) => table,
    }
}

pub(super) fn pairs(Named(pairs): Named<String>) -> Vec<(Arc<str>, Arc<str>)> {
    pairs.into_iter().map(|(name, value)| (name.into_inner().into(), value.into_inner().into())).collect()
}

impl ClusterConfig {
    /// A server of this URL, with the default of every key, as an operator may add it at run time.
    ///
    /// # Errors
    /// The URL is not one of a server, or it is to be reached by https and the cluster has no settings for that.
    pub fn server_of(&self, url: &str) -> Result<Server, String> {
        let authority = address::parse_server(url)?;
        let name = authority.host.strip_suffix('.').unwrap_or(&authority.host).to_owned();
        let tls_name = match (authority.is_secure, &self.tls) {
            (false, _) => None,
            (true, Some(_)) if self.server_name.is_some() => self.server_name.clone(),
            (true, Some(_)) => {
                let name = ServerName::try_from(name);
                Some(name.map_err(|_| "no certificate can be valid for this host".to_owned())?)
            }
            (true, None) => {
                return Err(
                    "needs TLS, but no server of this cluster in the configuration is reached by https"
                        .to_owned(),
                );
            }
        };
        Ok(Server {
            url: url.into(),
            host: authority.host.into(),
            resolve: Resolve::One,
            address: None,
            port: authority.port,
            unix: authority.unix,
            check_name: tls_name.clone(),
            tls_name,
            weight: 1,
            max_requests: 0,
            tier: 0,
            drain: false,
            route: None,
            metadata: Vec::new(),
            place: self.place.clone(),
        })
    }
}
