//! `[[cluster.discover]]`: sources of servers.

use std::net::IpAddr;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use rustls::pki_types::ServerName;
use toml::Spanned;

use super::super::discover::MAX_URL_BYTES;
use super::super::shape::{Named, Tables};
use super::super::source::{At, Span};
use super::super::{
    ClusterConfig, Discover, DnsRecord, LAST_TIER, MAX_REQUESTS, MayName, MemberTemplate, SourceKind,
    SourceSpec, WhenEmpty, file,
};
use super::server::pairs;
use super::{Checker, address};

/// The types of sources.
const TYPES: [&str; 4] = ["file", "exec", "http", "dns"];

/// As often as operators look: an inventory is a small text, and a change that has not happened costs a 304.
const INTERVAL: Duration = Duration::from_secs(10);
/// Longer than any inventory needs that is well.
const TIMEOUT: Duration = Duration::from_secs(10);

impl Checker<'_> {
    /// The sources of a cluster whose name and `settle` are known.
    pub(super) fn discover(
        &mut self,
        cluster: &str,
        of: &ClusterConfig,
        tables: Tables<file::DiscoverTable>,
    ) -> Vec<Discover> {
        let mut sources: Vec<Discover> = Vec::new();
        for table in tables.0 {
            let (span, raw) = (table.span(), table.into_inner());
            let place = self.report.place(span.start);
            let Some((source, template)) = self.one_source(cluster, of, &span, raw, sources.len()) else {
                continue;
            };
            if let Some(first) = sources.iter().find(|other| other.source.name == source.name) {
                let text = format!(
                    "{cluster}: source \"{}\": the name is already used at {} (write name = \"…\")",
                    source.name, first.place
                );
                self.report.error(span.start, text);
            }
            // Its addresses are those of a name, which is the one in their certificates.
            let tls_name = match &source.kind {
                SourceKind::Dns { host, is_secure: true, record: DnsRecord::Address, .. } => {
                    ServerName::try_from(host.clone()).ok()
                }
                _ => None,
            };
            sources.push(Discover { source, template, tls_name, place });
        }
        sources
    }

    fn one_source(
        &mut self,
        cluster: &str,
        of: &ClusterConfig,
        span: &Span,
        mut raw: file::DiscoverTable,
        n_before: usize,
    ) -> Option<(SourceSpec, MemberTemplate)> {
        let object = format!("{cluster}: discover");
        let Some(kind) = &raw.kind else {
            self.missing(span, "type", &object, "write, for example, type = \"file\"");
            return None;
        };
        let words = TYPES.map(|word| (word, word));
        let word = self.word(&format!("{object}: type"), kind, &words)?;
        let name = raw.name.as_ref().map_or_else(
            || if n_before == 0 { word.to_owned() } else { format!("{word}-{}", n_before + 1) },
            |name| self.source_name(&object, name),
        );
        let object = format!("{cluster}: source \"{name}\"");
        self.check_keys_of_type(&object, word, &raw);
        let kind = match word {
            "file" => self.file_source(&object, span, raw.path.as_ref()),
            "exec" => self.exec_source(&object, span, raw.command.take(), raw.environment.take()),
            "http" => self.http_source(&object, span, &raw),
            _ => self.dns_source(&object, span, &raw),
        }?;
        let empty = [("keep", WhenEmpty::Keep), ("obey", WhenEmpty::Obey)];
        let empty = raw.empty.as_ref().and_then(|text| self.word(&format!("{object}: empty"), text, &empty));
        let mut may_name = self.may_name(&object, raw.schemes, raw.unix);
        if let SourceKind::Dns { is_secure, .. } = kind {
            (may_name.http, may_name.https) = (!is_secure, is_secure);
        }
        let template = self.template(&object, raw.server.unwrap_or_default());
        let spec = SourceSpec {
            cluster: of.name.to_string(),
            name,
            kind,
            may_name,
            empty: empty.unwrap_or_default(),
            settle: of.settle,
        };
        Some((spec, template))
    }

    fn source_name(&mut self, object: &str, name: &Spanned<String>) -> String {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
        if name.get_ref().is_empty() || name.get_ref().len() > 64 || !name.get_ref().bytes().all(fits) {
            let right = "1 to 64 letters, digits, \"_\", \"-\" and \".\"";
            self.report.error(name.at(), format!("{object}: name {:?} is not {right}", name.get_ref()));
        }
        name.get_ref().clone()
    }

    fn file_source(
        &mut self,
        object: &str,
        span: &Span,
        path: Option<&Spanned<String>>,
    ) -> Option<SourceKind> {
        let Some(path) = path else {
            self.missing(span, "path", object, "write, for example, path = \"servers.json\"");
            return None;
        };
        let path = self.file_name(&format!("{object}: path"), path)?;
        Some(SourceKind::File { path })
    }

    fn exec_source(
        &mut self,
        object: &str,
        span: &Span,
        command: Option<Spanned<Vec<Spanned<String>>>>,
        environment: Option<Spanned<Named<String>>>,
    ) -> Option<SourceKind> {
        let Some(command) = command else {
            self.missing(
                span,
                "command",
                object,
                "write, for example, command = [\"/usr/local/bin/inventory\"]",
            );
            return None;
        };
        let at = command.at();
        let command: Vec<String> = command.into_inner().into_iter().map(Spanned::into_inner).collect();
        if !command.first().is_some_and(|program| program.starts_with('/')) {
            let right = "write the path of a program from the root, then its arguments";
            self.report.error(at, format!("{object}: command {command:?} ({right})"));
        }
        if command.iter().any(|word| word.contains('\0')) {
            self.report.error(at, format!("{object}: command: a zero byte"));
        }
        let mut variables = Vec::new();
        for (name, value) in environment.map(|named| named.into_inner().0).unwrap_or_default() {
            let is_fine = !name.get_ref().is_empty() && !name.get_ref().contains(['=', '\0']);
            if !is_fine || value.get_ref().contains('\0') {
                self.report.error(
                    name.at(),
                    format!("{object}: environment: {:?} is not a variable", name.get_ref()),
                );
            }
            variables.push((name.into_inner(), value.into_inner()));
        }
        Some(SourceKind::Exec { command, environment: variables })
    }

    fn http_source(&mut self, object: &str, span: &Span, raw: &file::DiscoverTable) -> Option<SourceKind> {
        let Some(url) = &raw.url else {
            self.missing(
                span,
                "url",
                object,
                "write, for example, url = \"https://inventory.internal/servers\"",
            );
            return None;
        };
        let key = |key: &str| format!("{object}: {key}");
        match url.get_ref().parse::<Uri>() {
            Ok(uri) if is_absolute(&uri) => {
                let is_clear = uri.scheme_str() == Some("http");
                if let Some(token) = raw.token_file.as_ref().filter(|_| is_clear) {
                    let place = self.report.place(token.at());
                    self.report.warn(
                        place,
                        format!("{object}: token_file: the token is sent in clear text (write https)"),
                    );
                }
            }
            _ => {
                let right = "write http://host[:port]/path or https://host[:port]/path, without a user";
                self.report.error(url.at(), format!("{object}: url \"{url}\" ({right})"));
            }
        }
        Some(SourceKind::Http {
            url: url.get_ref().clone(),
            interval: self.time(&key("interval"), raw.interval.as_ref(), INTERVAL),
            timeout: self.time(&key("timeout"), raw.timeout.as_ref(), TIMEOUT),
            token_file: raw.token_file.as_ref().and_then(|path| self.file_name(&key("token_file"), path)),
            ca: raw.ca.as_ref().and_then(|path| self.file_name(&key("ca"), path)),
        })
    }

    fn dns_source(&mut self, object: &str, span: &Span, raw: &file::DiscoverTable) -> Option<SourceKind> {
        let Some(url) = &raw.url else {
            self.missing(span, "url", object, "write, for example, url = \"http://app.internal:8080\"");
            return None;
        };
        let words = [("address", DnsRecord::Address), ("srv", DnsRecord::Srv)];
        let record =
            raw.record.as_ref().and_then(|text| self.word(&format!("{object}: record"), text, &words));
        let record = record.unwrap_or_default();
        let authority = match address::parse_server(url.get_ref()) {
            Ok(authority) => authority,
            Err(reason) => {
                self.report.error(url.at(), format!("{object}: url \"{url}\": {reason}"));
                return None;
            }
        };
        if authority.unix.is_some() || authority.host.parse::<IpAddr>().is_ok() {
            let right = "write the name whose records are the servers";
            self.report.error(url.at(), format!("{object}: url \"{url}\": has no name ({right})"));
        }
        let has_port = url.get_ref().rsplit('/').next().is_some_and(|rest| rest.contains(':'));
        if record == DnsRecord::Srv && has_port {
            let right = "SRV records have their own ports";
            self.report
                .error(url.at(), format!("{object}: url \"{url}\": a port with record = \"srv\" ({right})"));
        }
        let address::Authority { host, port, is_secure, .. } = authority;
        Some(SourceKind::Dns { host: host.to_ascii_lowercase(), port, is_secure, record })
    }

    /// Keys of other types mean a mistake.
    fn check_keys_of_type(&mut self, object: &str, word: &str, raw: &file::DiscoverTable) {
        let keys: [(&str, Option<usize>, &[&str]); 10] = [
            ("path", raw.path.as_ref().map(At::at), &["file"]),
            ("command", raw.command.as_ref().map(At::at), &["exec"]),
            ("environment", raw.environment.as_ref().map(At::at), &["exec"]),
            ("url", raw.url.as_ref().map(At::at), &["http", "dns"]),
            ("record", raw.record.as_ref().map(At::at), &["dns"]),
            ("interval", raw.interval.as_ref().map(At::at), &["http"]),
            ("timeout", raw.timeout.as_ref().map(At::at), &["http"]),
            ("token_file", raw.token_file.as_ref().map(At::at), &["http"]),
            ("ca", raw.ca.as_ref().map(At::at), &["http"]),
            (
                "schemes",
                raw.schemes.as_ref().and_then(|all| all.first()).map(At::at),
                &["file", "exec", "http"],
            ),
        ];
        for (key, at, types) in keys {
            if let Some(at) = at.filter(|_| !types.contains(&word)) {
                let types: Vec<String> = types.iter().map(|word| format!("\"{word}\"")).collect();
                let types = types.join(" and ");
                self.report.error(at, format!("{object}: {key} is only for type {types}"));
            }
        }
    }

    fn may_name(
        &mut self,
        object: &str,
        schemes: Option<Vec<Spanned<String>>>,
        unix: Option<Vec<Spanned<String>>>,
    ) -> MayName {
        let (mut http, mut https) = (schemes.is_none(), false);
        for scheme in schemes.into_iter().flatten() {
            match self.word(&format!("{object}: schemes"), &scheme, &[("http", false), ("https", true)]) {
                Some(true) => https = true,
                Some(false) => http = true,
                None => {}
            }
        }
        let mut folders = Vec::new();
        for folder in unix.into_iter().flatten() {
            let path = PathBuf::from(folder.get_ref());
            if !path.is_absolute() || path.components().any(|part| part == Component::ParentDir) {
                let right = "write the folder of the sockets, such as \"/run/app\"";
                self.report.error(folder.at(), format!("{object}: unix: \"{folder}\" ({right})"));
            }
            folders.push(path);
        }
        MayName { http, https, unix: folders }
    }

    fn template(&mut self, object: &str, raw: file::TemplateTable) -> MemberTemplate {
        let key = |key: &str| format!("{object}: server.{key}");
        MemberTemplate {
            weight: self.integer(&key("weight"), raw.weight.as_ref(), 1..=65_535, 1),
            max_requests: self.integer(&key("max_requests"), raw.max_requests.as_ref(), 0..=MAX_REQUESTS, 0),
            tier: self.integer(&key("tier"), raw.tier.as_ref(), 0..=LAST_TIER.into(), 0),
            metadata: raw.metadata.map(pairs).unwrap_or_default(),
        }
    }
}

/// Whether it says whom to ask, by a protocol that is known, and for what.
fn is_absolute(uri: &Uri) -> bool {
    let is_known = matches!(uri.scheme_str(), Some("http" | "https"));
    let is_plain = uri.authority().is_some_and(|authority| !authority.as_str().contains('@'));
    is_known && is_plain && uri.host().is_some_and(|host| !host.is_empty())
}

impl SourceSpec {
    /// A server's URL in the form that identifies it (`http://10.0.0.1:80`, in lower case, with its port), if this source may
    /// name such a server.
    ///
    /// # Errors
    /// It is not the URL of a server, or not one that this source may name; in words that follow the URL.
    pub(crate) fn admit(&self, url: &str) -> Result<Arc<str>, String> {
        if url.len() > MAX_URL_BYTES {
            return Err(format!("is longer than {MAX_URL_BYTES} bytes"));
        }
        let authority = address::parse_server(url)?;
        let MayName { http, https, unix } = &self.may_name;
        if let Some(path) = &authority.unix {
            return match is_in_any(path, unix) {
                true => Ok(url.into()),
                false => {
                    Err("a Unix socket that this source may not name (the key unix says which)".to_owned())
                }
            };
        }
        let (scheme, is_allowed) = if authority.is_secure { ("https", *https) } else { ("http", *http) };
        if !is_allowed {
            return Err(format!(
                "this source may not name servers of scheme {scheme} (the key schemes says which)"
            ));
        }
        Ok(canonical(&authority).into())
    }
}

/// The URL by which a server is the same as another one, however it was written.
///
/// # Errors
/// It is not the URL of a server.
pub(crate) fn canonical_url(url: &str) -> Result<String, String> {
    address::parse_server(url).map(|authority| canonical(&authority))
}

fn canonical(authority: &address::Authority) -> String {
    let address::Authority { host, port, unix, is_secure } = authority;
    if unix.is_some() {
        return format!("unix:{host}");
    }
    let scheme = if *is_secure { "https" } else { "http" };
    // Addresses have several forms in IPv6.
    let host = match host.parse::<std::net::IpAddr>() {
        Ok(std::net::IpAddr::V6(ip)) => format!("[{ip}]"),
        Ok(ip) => ip.to_string(),
        Err(_) => host.to_ascii_lowercase(),
    };
    format!("{scheme}://{host}:{port}")
}

fn is_in_any(path: &Path, folders: &[PathBuf]) -> bool {
    let goes_up = path.components().any(|part| part == Component::ParentDir);
    !goes_up && folders.iter().any(|folder| path.starts_with(folder) && path != folder)
}
