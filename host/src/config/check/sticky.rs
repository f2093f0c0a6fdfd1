//! `sticky` of a cluster.

use std::collections::{BTreeMap, BTreeSet};

use toml::Spanned;

use super::super::source::At;
use super::super::units::TimeValue;
use super::super::{ClusterConfig, CookieTerms, HostPattern, KeySource, Route, SameSite, StickyConfig, file};
use super::headers::token;
use super::{Checker, reach};

/// A shorter secret could be found by trying.
const SECRET_BYTES: usize = 16;
/// httpd's.
const SEPARATOR: u8 = b'.';

impl Checker<'_> {
    pub(super) fn sticky(
        &mut self,
        cluster: &str,
        sticky: Spanned<file::StickyTable>,
        of: &ClusterConfig,
    ) -> Option<StickyConfig> {
        let (at, raw) = (sticky.at(), sticky.into_inner());
        let object = format!("{cluster}: sticky");
        let by_route = raw.app_cookie.is_some() || raw.url_parameter.is_some() || raw.header.is_some();
        match (&raw.cookie, by_route) {
            (Some(cookie), false) => {
                if let Some(separator) = &raw.separator {
                    self.report.error(separator.at(), format!("{object}: separator is not for cookie"));
                }
                self.issued(&object, cookie, &raw)
            }
            (None, true) => self.by_route(&object, at, &raw, of),
            (Some(_), true) | (None, false) => {
                let right = "write either cookie, or app_cookie, url_parameter or header";
                self.report.error(at, format!("{object}: sessions need exactly one kind of key ({right})"));
                None
            }
        }
    }

    fn issued(
        &mut self,
        object: &str,
        cookie: &Spanned<String>,
        raw: &file::StickyTable,
    ) -> Option<StickyConfig> {
        let secret = raw.secret.as_ref();
        let terms = self.cookie_terms(object, cookie, raw);
        let name = self.token(object, "cookie", cookie)?;
        match secret {
            None => {
                let place = self.report.place(cookie.at());
                let right = "write secret = \"…\"";
                self.report.warn(
                    place,
                    format!("{object}: no secret, so sessions are lost at every start ({right})"),
                );
            }
            Some(secret) if secret.get_ref().len() < SECRET_BYTES => {
                let text = format!("{object}: secret has fewer than {SECRET_BYTES} bytes");
                self.report.error(secret.at(), text);
            }
            Some(_) => {}
        }
        Some(StickyConfig::Issued {
            cookie: name.into(),
            secret: secret.map(|secret| secret.get_ref().as_str().into()),
            terms,
        })
    }

    fn cookie_terms(
        &mut self,
        object: &str,
        cookie: &Spanned<String>,
        raw: &file::StickyTable,
    ) -> CookieTerms {
        let mut terms = CookieTerms::default();
        if let Some(text) = &raw.same_site {
            match &**text.get_ref() {
                "lax" => terms.same_site = SameSite::Lax,
                "strict" => terms.same_site = SameSite::Strict,
                "none" => terms.same_site = SameSite::None,
                other => {
                    let right = "write \"lax\", \"strict\" or \"none\"";
                    self.report
                        .error(text.at(), format!("{object}: same_site {other:?} is unknown ({right})"));
                }
            }
        }
        if let Some(path) = &raw.path {
            let text = path.get_ref();
            match text.starts_with('/') && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b';') {
                true => terms.path = text.as_str().into(),
                false => {
                    let right = "write \"/\", or a path as clients send it";
                    self.report
                        .error(path.at(), format!("{object}: path {text:?} is not a cookie path ({right})"));
                }
            }
        }
        if let Some(domain) = &raw.domain {
            let text = domain.get_ref();
            match is_domain(text) {
                true => terms.domain = Some(text.to_ascii_lowercase().into()),
                false => {
                    let right = "write, for example, \"example.com\"";
                    let text = format!("{object}: domain {text:?} is not a domain name ({right})");
                    self.report.error(domain.at(), text);
                }
            }
        }
        if let Some(max_age) = &raw.max_age {
            let TimeValue(time) = *max_age.get_ref();
            if time.as_secs() == 0 {
                let right = "leave the key out for a cookie that goes when the browser is closed";
                self.report.error(max_age.at(), format!("{object}: max_age: must be 1s or longer ({right})"));
            }
            terms.max_age = Some(time);
        }
        self.secure_cookie(object, cookie, raw, &mut terms);
        terms
    }

    /// Browsers refuse cookies whose terms do not fit to each other (RFC 6265bis sections 5.7 and 4.1.3).
    fn secure_cookie(
        &mut self,
        object: &str,
        cookie: &Spanned<String>,
        raw: &file::StickyTable,
        terms: &mut CookieTerms,
    ) {
        terms.secure = raw.secure.as_ref().map(|secure| *secure.get_ref());
        let is_of_host = cookie.get_ref().starts_with("__Host-");
        let why = match () {
            () if terms.same_site == SameSite::None => "with same_site = \"none\"".to_owned(),
            () if is_of_host || cookie.get_ref().starts_with("__Secure-") => format!("called \"{cookie}\""),
            () => return,
        };
        if let Some(secure) = raw.secure.as_ref().filter(|secure| !*secure.get_ref()) {
            let text =
                format!("{object}: browsers refuse a cookie {why} that is not Secure (leave secure out)");
            self.report.error(secure.at(), text);
        }
        terms.secure = Some(true);
        if is_of_host && (terms.domain.is_some() || *terms.path != *"/") {
            let right = "leave domain and path out, or choose another name";
            let text = format!(
                "{object}: browsers refuse a cookie {why} with a domain, or a path but \"/\" ({right})"
            );
            self.report.error(cookie.at(), text);
        }
    }

    /// Refuses two clusters whose cookies overwrite each other in a client: each would undo the other's sessions. `cookies` has
    /// for each cluster the place of its cookie.
    pub(super) fn keep_cookies_apart(
        &mut self,
        clusters: &[ClusterConfig],
        cookies: &[Option<usize>],
        routes: &[Route],
    ) {
        // The routes to clusters with a cookie, each with its cluster; by the cookie's name, path and domain.
        type Owners<'a> = Vec<(usize, &'a Route)>;
        let mut owners: BTreeMap<(&str, &str, Option<&str>), Owners<'_>> = BTreeMap::new();
        let mut told = BTreeSet::new();
        for route in routes {
            let Some((idx, cluster)) = route.cluster.and_then(|idx| Some((idx, clusters.get(idx)?))) else {
                continue;
            };
            let Some(StickyConfig::Issued { cookie, terms, .. }) = &cluster.sticky else { continue };
            let owners = owners.entry((&**cookie, &*terms.path, terms.domain.as_deref())).or_default();
            // With a domain, clients send it to other hosts than the one that has set it.
            let meets = |other: &Route| terms.domain.is_some() || share_a_host(route, other, routes);
            let other = owners.iter().find(|(other, of)| *other != idx && meets(of));
            if let (Some((other, _)), Some(Some(at))) = (other, cookies.get(idx))
                && told.insert(idx)
            {
                let (name, other) = (&cluster.name, &clusters[*other].name);
                let right = "give them different names or paths";
                let text = format!(
                    "cluster \"{name}\": sticky: cookie \"{cookie}\" is also that of cluster \"{other}\", \
                     which has the same host, so that each breaks the other's sessions ({right})"
                );
                self.report.error(*at, text);
            }
            owners.push((idx, route));
        }
    }

    fn by_route(
        &mut self,
        object: &str,
        at: usize,
        raw: &file::StickyTable,
        of: &ClusterConfig,
    ) -> Option<StickyConfig> {
        let mut sources = Vec::new();
        if let Some(name) = &raw.url_parameter {
            sources.push(KeySource::Query(self.token(object, "url_parameter", name)?.into()));
        }
        if let Some(name) = &raw.app_cookie {
            sources.push(KeySource::Cookie(self.token(object, "app_cookie", name)?.into()));
        }
        if let Some(name) = &raw.header {
            sources.push(KeySource::Header(self.token(object, "header", name)?.to_ascii_lowercase().into()));
        }
        let of_cookie = [
            ("secret", raw.secret.as_ref().map(At::at)),
            ("secure", raw.secure.as_ref().map(At::at)),
            ("same_site", raw.same_site.as_ref().map(At::at)),
            ("path", raw.path.as_ref().map(At::at)),
            ("domain", raw.domain.as_ref().map(At::at)),
            ("max_age", raw.max_age.as_ref().map(At::at)),
        ];
        for (key, at) in of_cookie {
            if let Some(at) = at {
                self.report.error(at, format!("{object}: {key} is only for cookie"));
            }
        }
        let separator = match raw.separator.as_ref().map(|text| (text, text.get_ref().as_bytes())) {
            None => Some(SEPARATOR),
            Some((_, [])) => None,
            Some((_, [byte])) => Some(*byte),
            Some((text, _)) => {
                let right = "write one ASCII character, or \"\" where the whole is the route";
                self.report.error(text.at(), format!("{object}: separator {:?} ({right})", text.get_ref()));
                None
            }
        };
        let servers = &of.servers;
        let is_known = !servers.is_empty() && of.discover.is_empty();
        if servers.iter().all(|server| server.route.is_none()) && is_known {
            let right = "write, for example, { url = \"…\", route = \"a\" }";
            self.report.error(at, format!("{object}: no server has a route ({right})"));
        }
        for (i, server) in servers.iter().enumerate() {
            if server.route.is_some()
                && let Some(first) = servers[..i].iter().find(|other| other.route == server.route)
            {
                let (route, first) = (server.route.as_deref().unwrap_or_default(), &first.url);
                self.report
                    .error(at, format!("{object}: route {route:?} is also that of server \"{first}\""));
            }
        }
        Some(StickyConfig::Route { sources, separator })
    }

    fn token<'a>(&mut self, object: &str, key: &str, name: &'a Spanned<String>) -> Option<&'a str> {
        let token = token(name.get_ref());
        if token.is_none() {
            let text =
                format!("{object}: {key}: {:?} is not a valid name of a header or a cookie", name.get_ref());
            self.report.error(name.at(), text);
        }
        token
    }
}

/// Whether requests at one host can reach either route.
fn share_a_host(one: &Route, other: &Route, routes: &[Route]) -> bool {
    let samples = |route| reach::hosts(route).iter().map(HostPattern::sample);
    let is_reached = |route: &Route, host: &str| {
        reach::is_reached(route, routes, (host, &route.path), route.listeners.as_deref())
    };
    // Where two patterns meet, one has all hosts of the other.
    let are_for = |host: &str| reach::is_for(one, host) && reach::is_for(other, host);
    let is_shared = |host: &str| are_for(host) && is_reached(one, host) && is_reached(other, host);
    samples(one).chain(samples(other)).any(|host| is_shared(&host))
}

/// Whether it can stand as a cookie's `Domain`, which has no dot before it (RFC 6265 section 5.2.3 drops one).
fn is_domain(text: &str) -> bool {
    let is_label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    text.split('.').all(is_label)
}
