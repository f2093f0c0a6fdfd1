//! `[[route]]`

use std::borrow::Cow;
use std::sync::Arc;

use toml::Spanned;

use crate::http::headers::rules::Rules;
use crate::http::path::normal_path;

use super::super::source::{At, Span};
use super::super::suggest::nearest;
use super::super::{Answer, ClusterConfig, ErrorPages, HostPattern, Listener, Route, Syntax, file};
use super::cluster::CheckedClusters;
use super::headers::Direction;
use super::{Checker, address};

/// The clusters and listeners that routes refer to.
#[derive(Clone, Copy)]
pub(super) struct RouteTerms<'a> {
    pub(super) listeners: &'a [Listener],
    pub(super) clusters: &'a CheckedClusters,
    pub(super) request_id: Option<&'a str>,
    pub(super) errors: &'a ErrorPages,
}

impl Checker<'_> {
    pub(super) fn routes(
        &mut self,
        tables: Vec<Spanned<file::RouteTable>>,
        terms: RouteTerms<'_>,
    ) -> Vec<Route> {
        if tables.is_empty() && !self.report.is_touched(&self.root, "route") {
            self.report.error_of_whole(match self.syntax {
                Syntax::Toml => "no [[route]] (write path = \"/\" and cluster = \"…\" below one)",
                Syntax::Httpd => "no route (write, for example, LBProxyPass / cluster1)",
            });
        }
        let n_errors = self.report.n_errors();
        let mut routes: Vec<Route> = Vec::new();
        let mut redirects = Vec::new();
        for table in tables {
            let (span, raw) = (table.span(), table.into_inner());
            let redirect = raw.redirect.as_ref().map(|table| (table.at(), object_of(&raw)));
            let Some(route) = self.route(&span, raw, terms) else { continue };
            match self.syntax {
                Syntax::Toml => self.check_duplicate(&span, &route, &routes),
                Syntax::Httpd => self.warn_if_hidden(&span, &route, &routes),
            }
            let idx = routes.len();
            routes.push(Route { idx, ..route });
            redirects.extend(redirect.map(|(at, object)| (idx, at, object)));
        }
        // A route whose cluster is unknown has none to compare.
        if self.report.n_errors() == n_errors {
            self.keep_cookies_apart(&terms.clusters.checked, &terms.clusters.cookies, &routes);
            self.refuse_endless(&redirects, &routes, terms.listeners);
            self.warn_of_idle_listeners(terms.listeners, &routes);
        }
        routes
    }

    fn route(&mut self, span: &Span, raw: file::RouteTable, terms: RouteTerms<'_>) -> Option<Route> {
        let object = object_of(&raw);
        let path = self.route_path(&object, span, raw.path.clone());
        let hosts = self.route_hosts(&object, raw.host.as_ref(), raw.hosts.as_ref());
        let listeners =
            raw.listeners.as_ref().map(|names| self.route_listeners(&object, names, terms.listeners));
        let rewrite = raw.rewrite.as_ref().and_then(|rewrite| self.rewrite(&object, rewrite));
        let (redirect, respond) = (raw.redirect.as_ref(), raw.respond.as_ref());
        let answer = self.answer(&object, (redirect, respond), &hosts, raw.rewrite.is_some());
        let cluster = self.route_target(&object, span, &raw, answer.as_ref(), terms.clusters);
        let host_header = raw.host_header.and_then(|text| self.host_header(&object, &text));
        let timeout = self.limit_of_time(&format!("{object}: timeout"), raw.timeout.as_ref());
        let retry = raw.retry.map(|retry| self.retry(&object, retry).into());
        let request_headers = self.header_rules(&object, Direction::Request, raw.request_headers);
        let response_headers = self.header_rules(&object, Direction::Response, raw.response_headers);
        let errors = raw.errors.map(|own| {
            let mut pages = terms.errors.clone();
            self.errors(&format!("{object}: errors."), own, &mut pages);
            pages
        });
        let (mut to_server, mut to_client) = (Rules::default(), Rules::default());
        if let Some(name) = terms.request_id {
            // It was checked, and the variable is known.
            let _ = to_server.set(name, "${request_id}");
        }
        if let Some(cluster) = cluster.and_then(|idx| terms.clusters.checked.get(idx)) {
            to_server = to_server.then(&cluster.request_headers);
            to_client = to_client.then(&cluster.response_headers);
        }
        let (to_server, to_client) = (to_server.then(&request_headers), to_client.then(&response_headers));
        let path = path?;
        Some(Route {
            // Set where all of them are known.
            idx: 0,
            hosts: hosts.into(),
            listeners: listeners.map(Into::into),
            rewrite: rewrite.map(Into::into),
            path: path.into(),
            cluster,
            answer: answer.map(Arc::new),
            errors: errors.map(Arc::new),
            host_header,
            timeout,
            retry,
            has_request_id: terms.request_id.is_some()
                || to_server.use_request_id()
                || to_client.use_request_id(),
            request_headers: (!to_server.is_empty()).then(|| to_server.into()),
            response_headers: (!to_client.is_empty()).then(|| to_client.into()),
            upgrade: raw.upgrade.is_none_or(Spanned::into_inner),
            place: self.report.place(span.start),
        })
    }

    /// The cluster of a route, which one that answers by itself mostly has not.
    fn route_target(
        &mut self,
        object: &str,
        span: &Span,
        raw: &file::RouteTable,
        answer: Option<&Answer>,
        clusters: &CheckedClusters,
    ) -> Option<usize> {
        let by_itself = match (answer, &raw.cluster) {
            (None, _) | (Some(_), Some(_)) => {
                if let (Some(answer), Some(cluster)) = (answer, &raw.cluster)
                    && answer.is_for(true)
                {
                    let what = "a route with a cluster answers by itself only redirect = { https = true }";
                    let right = "leave cluster out, or move the answer to a route of its own";
                    self.report.error(cluster.at(), format!("{object}: {what} ({right})"));
                }
                return self.route_cluster(object, span, raw.cluster.as_ref(), clusters);
            }
            (Some(answer), None) => answer,
        };
        let rewrite = raw.rewrite.as_ref().filter(|_| matches!(by_itself, Answer::Respond(_)));
        let of_servers = [
            ("rewrite", rewrite.map(At::at)),
            ("host_header", raw.host_header.as_ref().map(At::at)),
            ("timeout", raw.timeout.as_ref().map(At::at)),
            ("retry", raw.retry.as_ref().map(At::at)),
            ("upgrade", raw.upgrade.as_ref().map(At::at)),
        ];
        for (key, at) in of_servers {
            if let Some(at) = at {
                let what = "is for requests that go to a server, and this route answers all by itself";
                self.report.error(at, format!("{object}: {key} {what} (leave it out)"));
            }
        }
        None
    }

    /// The hosts of a route, by either key.
    fn route_hosts(
        &mut self,
        object: &str,
        host: Option<&Spanned<String>>,
        hosts: Option<&Spanned<Vec<Spanned<String>>>>,
    ) -> Vec<HostPattern> {
        if let (Some(_), Some(hosts)) = (host, hosts) {
            self.report.error(hosts.at(), format!("{object}: host and hosts (leave host out)"));
        }
        if let Some(hosts) = hosts.filter(|hosts| hosts.get_ref().is_empty()) {
            let right = "leave the key out for all hosts";
            self.report.error(hosts.at(), format!("{object}: hosts is empty ({right})"));
        }
        if let Some(host) = host {
            return self
                .route_host(object, host)
                .map(|host| HostPattern::Exact(host.into()))
                .into_iter()
                .collect();
        }
        let mut patterns: Vec<HostPattern> = Vec::new();
        for host in hosts.iter().flat_map(|hosts| hosts.get_ref()) {
            match address::parse_host_pattern(host.get_ref()) {
                Ok(pattern) if patterns.contains(&pattern) => {
                    let place = self.report.place(host.at());
                    self.report.warn(place, format!("{object}: hosts: \"{host}\" is there twice"));
                }
                Ok(pattern) => patterns.push(pattern),
                Err(reason) => {
                    self.report.error(host.at(), format!("{object}: hosts: \"{host}\": {reason}"));
                }
            }
        }
        patterns
    }

    /// The listeners that a route names by their addresses.
    fn route_listeners(
        &mut self,
        object: &str,
        names: &Spanned<Vec<Spanned<String>>>,
        listeners: &[Listener],
    ) -> Vec<usize> {
        if names.get_ref().is_empty() {
            let right = "leave the key out for all listeners";
            self.report.error(names.at(), format!("{object}: listeners is empty ({right})"));
        }
        let mut found = Vec::new();
        for name in names.get_ref() {
            let of_name = |address| listeners.iter().position(|listener| listener.address == address);
            match address::parse_listen(name.get_ref()).ok().and_then(of_name) {
                Some(idx) if found.contains(&idx) => {}
                Some(idx) => found.push(idx),
                None => {
                    let all: Vec<_> =
                        listeners.iter().map(|listener| format!("\"{}\"", listener.address)).collect();
                    let text = format!(
                        "{object}: listeners: no listener has the address \"{name}\" (there are: {})",
                        all.join(", ")
                    );
                    self.report.error(name.at(), text);
                }
            }
        }
        found.sort_unstable();
        found
    }

    /// Says which listeners no route is for.
    fn warn_of_idle_listeners(&mut self, listeners: &[Listener], routes: &[Route]) {
        for (idx, listener) in listeners.iter().enumerate() {
            let is_of = |route: &Route| route.listeners.as_ref().is_none_or(|of| of.contains(&idx));
            if !routes.is_empty() && !routes.iter().any(is_of) {
                let address = &listener.address;
                let text =
                    format!("listener \"{address}\": no route is for it, so every request is answered 404");
                self.report.warn(listener.place.clone(), text);
            }
        }
    }

    fn route_path(&mut self, object: &str, span: &Span, path: Option<Spanned<String>>) -> Option<String> {
        let Some(path) = path else {
            self.missing(span, "path", object, "write path = \"/\" for all of them");
            return None;
        };
        self.check_path(object, "path", &path).then(|| path.into_inner())
    }

    fn rewrite(&mut self, object: &str, rewrite: &Spanned<String>) -> Option<String> {
        self.check_path(object, "rewrite", rewrite).then(|| rewrite.get_ref().clone())
    }

    fn check_path(&mut self, object: &str, key: &str, path: &Spanned<String>) -> bool {
        let text = path.get_ref();
        let wrong = if !text.starts_with('/') {
            format!("does not begin with \"/\" (write \"/{text}\")")
        } else if let Some(mark) = text.chars().find(|c| matches!(c, '?' | '#')) {
            format!("has a {mark:?} in it, but only paths are matched")
        } else if let Some(odd) = text.chars().find(|c| !c.is_ascii_graphic()) {
            format!("has {odd:?} in it (write it percent-encoded, as clients send it)")
        } else {
            match normal_path(text.as_bytes()) {
                Cow::Owned(normal) if normal != text.as_bytes() => {
                    let normal = String::from_utf8_lossy(&normal);
                    format!("is not normalized (write \"{normal}\")")
                }
                Cow::Owned(_) | Cow::Borrowed(_) => return true,
            }
        };
        self.report.error(path.at(), format!("{object}: {key} {text:?} {wrong}"));
        false
    }

    fn route_host(&mut self, object: &str, host: &Spanned<String>) -> Option<String> {
        match address::parse_route_host(host.get_ref()) {
            Ok(host) => Some(host),
            Err(reason) => {
                self.report.error(host.at(), format!("{object}: host \"{host}\": {reason}"));
                None
            }
        }
    }

    fn route_cluster(
        &mut self,
        object: &str,
        span: &Span,
        name: Option<&Spanned<String>>,
        clusters: &CheckedClusters,
    ) -> Option<usize> {
        let Some(name) = name else {
            self.missing(span, "cluster", object, "write the name of one");
            return None;
        };
        self.named_cluster(object, name, clusters)
    }

    /// The place of a cluster, by its name.
    pub(super) fn named_cluster(
        &mut self,
        object: &str,
        name: &Spanned<String>,
        clusters: &CheckedClusters,
    ) -> Option<usize> {
        let is_it = |cluster: &ClusterConfig| *cluster.name == **name.get_ref();
        let found = clusters.checked.iter().position(is_it);
        if found.is_none() && !clusters.incomplete {
            let names = || clusters.checked.iter().map(|cluster| &*cluster.name);
            let hint = match nearest(name.get_ref(), names()) {
                Some(meant) => format!("did you mean \"{meant}\"?"),
                None => format!("there are: {}", names().collect::<Vec<_>>().join(", ")),
            };
            self.report.error(name.at(), format!("{object}: no cluster \"{name}\" ({hint})"));
        }
        found
    }

    /// Two routes are the same if a request could be for either and nothing says which.
    fn check_duplicate(&mut self, span: &Span, route: &Route, earlier: &[Route]) {
        for other in earlier.iter().filter(|other| other.path == route.path) {
            let meet = match (&route.listeners, &other.listeners) {
                (None, None) => true,
                (Some(own), Some(others)) => own.iter().any(|listener| others.contains(listener)),
                // The one that names its listeners wins.
                (None, Some(_)) | (Some(_), None) => false,
            };
            let Some(host) = same_host(&route.hosts, &other.hosts).filter(|_| meet) else { continue };
            let name = format!("{host}{}", route.path);
            return self
                .report
                .error(span.start, format!("route \"{name}\": already defined at {}", other.place));
        }
    }

    /// The first of the file wins, so what comes after a prefix of itself is never reached.
    fn warn_if_hidden(&mut self, span: &Span, route: &Route, earlier: &[Route]) {
        if let Some(first) = earlier.iter().find(|first| covers(&first.path, &route.path)) {
            let (path, by, place) = (&route.path, &first.path, &first.place);
            let right = if path == by { "drop one of them" } else { "put the longer one first" };
            let text =
                format!("LBProxyPass {path}: never reached, since {by} at {place} matches first ({right})");
            self.report.warn(self.report.place(span.start), text);
        }
    }
}

/// A route as messages call it.
fn object_of(raw: &file::RouteTable) -> String {
    let written = |text: Option<&Spanned<String>>| text.map_or("", |text| text.get_ref()).to_owned();
    let first = raw.hosts.as_ref().and_then(|hosts| hosts.get_ref().first());
    match written(raw.host.as_ref().or(first)) + &written(raw.path.as_ref()) {
        name if name.is_empty() => "route".to_owned(),
        name => format!("route \"{name}\""),
    }
}

/// A host that both name; empty where both are for all.
fn same_host(own: &[HostPattern], others: &[HostPattern]) -> Option<String> {
    let is_any = |hosts: &[HostPattern]| hosts.is_empty() || hosts.contains(&HostPattern::Any);
    if is_any(own) && is_any(others) {
        return Some(String::new());
    }
    own.iter().find(|host| others.contains(host)).map(ToString::to_string)
}

/// Whether every path that `inner` matches, `outer` matches too; by segment, as requests are routed.
pub(super) fn covers(outer: &str, inner: &str) -> bool {
    inner
        .strip_prefix(outer)
        .is_some_and(|rest| outer.ends_with('/') || rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn covers_by_segment() {
        assert!(covers("/", "/a") && covers("/a", "/a") && covers("/a", "/a/b") && covers("/a/", "/a/b"));
        assert!(!covers("/a", "/ab") && !covers("/a/b", "/a") && !covers("/a/", "/a"));
    }
}
