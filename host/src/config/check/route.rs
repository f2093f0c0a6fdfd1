//! `[[route]]`

use std::borrow::Cow;

use toml::Spanned;

use crate::http::headers::rules::Rules;
use crate::http::path::normal_path;

use super::super::source::{At, Span};
use super::super::suggest::nearest;
use super::super::{ClusterConfig, Route, Syntax, file};
use super::cluster::CheckedClusters;
use super::headers::Direction;
use super::{Checker, address};

impl Checker<'_> {
    pub(super) fn routes(
        &mut self,
        tables: Vec<Spanned<file::RouteTable>>,
        clusters: &CheckedClusters,
        request_id: Option<&str>,
    ) -> Vec<Route> {
        if tables.is_empty() && !self.report.is_touched(&self.root, "route") {
            self.report.error_of_whole(match self.syntax {
                Syntax::Toml => "no [[route]] (write path = \"/\" and cluster = \"…\" below one)",
                Syntax::Httpd => "no route (write, for example, LBProxyPass / cluster1)",
            });
        }
        let n_errors = self.report.n_errors();
        let mut routes: Vec<Route> = Vec::new();
        for table in tables {
            let (span, raw) = (table.span(), table.into_inner());
            let Some(route) = self.route(&span, raw, clusters, request_id) else { continue };
            match self.syntax {
                Syntax::Toml => self.check_duplicate(&span, &route, &routes),
                Syntax::Httpd => self.warn_if_hidden(&span, &route, &routes),
            }
            routes.push(route);
        }
        // A route whose cluster is unknown has none to compare.
        if self.report.n_errors() == n_errors {
            self.keep_cookies_apart(&clusters.checked, &clusters.cookies, &routes);
        }
        routes
    }

    fn route(
        &mut self,
        span: &Span,
        raw: file::RouteTable,
        clusters: &CheckedClusters,
        request_id: Option<&str>,
    ) -> Option<Route> {
        let written =
            |text: &Option<Spanned<String>>| text.as_ref().map_or("", |text| text.get_ref()).to_owned();
        let object = match written(&raw.host) + &written(&raw.path) {
            name if name.is_empty() => "route".to_owned(),
            name => format!("route \"{name}\""),
        };
        let path = self.route_path(&object, span, raw.path);
        let host = raw.host.and_then(|host| self.route_host(&object, &host));
        let cluster = self.route_cluster(&object, span, raw.cluster, clusters);
        let rewrite = raw.rewrite.and_then(|rewrite| self.rewrite(&object, &rewrite));
        let host_header = raw.host_header.and_then(|text| self.host_header(&object, &text));
        let timeout = self.limit_of_time(&format!("{object}: timeout"), raw.timeout.as_ref());
        let retry = raw.retry.map(|retry| self.retry(&object, retry).into());
        let request_headers = self.header_rules(&object, Direction::Request, raw.request_headers);
        let response_headers = self.header_rules(&object, Direction::Response, raw.response_headers);
        let (mut to_server, mut to_client) = (Rules::default(), Rules::default());
        if let Some(name) = request_id {
            // It was checked, and the variable is known.
            let _ = to_server.set(name, "${request_id}");
        }
        if let Some(cluster) = cluster.and_then(|idx| clusters.checked.get(idx)) {
            to_server = to_server.then(&cluster.request_headers);
            to_client = to_client.then(&cluster.response_headers);
        }
        let (to_server, to_client) = (to_server.then(&request_headers), to_client.then(&response_headers));
        let path = path?;
        Some(Route {
            host: host.map(Into::into),
            rewrite: rewrite.map(Into::into),
            path: path.into(),
            cluster: cluster.unwrap_or_default(),
            host_header,
            timeout,
            retry,
            has_request_id: request_id.is_some() || to_server.use_request_id() || to_client.use_request_id(),
            request_headers: (!to_server.is_empty()).then(|| to_server.into()),
            response_headers: (!to_client.is_empty()).then(|| to_client.into()),
            upgrade: raw.upgrade.unwrap_or(true),
            place: self.report.place(span.start),
        })
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
        name: Option<Spanned<String>>,
        clusters: &CheckedClusters,
    ) -> Option<usize> {
        let Some(name) = name else {
            self.missing(span, "cluster", object, "write the name of one");
            return None;
        };
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

    fn check_duplicate(&mut self, span: &Span, route: &Route, earlier: &[Route]) {
        let is_same = |other: &&Route| other.path == route.path && other.host == route.host;
        if let Some(first) = earlier.iter().find(is_same) {
            let name = format!("{}{}", route.host.as_deref().unwrap_or_default(), route.path);
            self.report.error(span.start, format!("route \"{name}\": already defined at {}", first.place));
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

/// Whether every path that `inner` matches, `outer` matches too; by segment, as requests are routed.
fn covers(outer: &str, inner: &str) -> bool {
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
