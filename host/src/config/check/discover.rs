//! `[[cluster.discover]]`: sources of servers.

use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use toml::Spanned;

use super::super::discover::MAX_URL_BYTES;
use super::super::shape::Tables;
use super::super::source::{At, Span};
use super::super::{
    ClusterConfig, Discover, LAST_TIER, MayName, MemberTemplate, SourceKind, SourceSpec, WhenEmpty, file,
};
use super::cluster::MAX_REQUESTS;
use super::server::pairs;
use super::{Checker, address};

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
            sources.push(Discover { source, template, place });
        }
        sources
    }

    fn one_source(
        &mut self,
        cluster: &str,
        of: &ClusterConfig,
        span: &Span,
        raw: file::DiscoverTable,
        n_before: usize,
    ) -> Option<(SourceSpec, MemberTemplate)> {
        let object = format!("{cluster}: discover");
        let Some(kind) = &raw.kind else {
            self.missing(span, "type", &object, "write, for example, type = \"file\"");
            return None;
        };
        let words = [("file", "file")];
        let word = self.word(&format!("{object}: type"), kind, &words)?;
        let name = raw.name.as_ref().map_or_else(
            || if n_before == 0 { word.to_owned() } else { format!("{word}-{}", n_before + 1) },
            |name| self.source_name(&object, name),
        );
        let object = format!("{cluster}: source \"{name}\"");
        let kind = self.file_source(&object, span, raw.path.as_ref())?;
        let empty = [("keep", WhenEmpty::Keep), ("obey", WhenEmpty::Obey)];
        let empty = raw.empty.as_ref().and_then(|text| self.word(&format!("{object}: empty"), text, &empty));
        let may_name = self.may_name(&object, raw.schemes, raw.unix);
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
