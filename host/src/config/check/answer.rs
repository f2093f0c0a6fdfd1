//! `redirect`, `respond` and `errors`: answers that the proxy gives without a server.

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;

use http::HeaderValue;
use toml::Spanned;

use super::super::answer::{Answer, ERROR_STATUSES, ErrorPages, Page, Redirect, Respond};
use super::super::shape::{Named, Short};
use super::super::source::{At, Span};
use super::super::{HostPattern, Listener, Route, file};
use super::{Checker, address, reach};
use crate::http::path::normal_path;

/// Maximum size of a page. A larger one is content, which a server should send.
const MAX_PAGE_BYTES: usize = 1 << 20;

/// The type of a text that is written in the configuration.
const TEXT: &str = "text/plain; charset=utf-8";

/// Types by the ending of a file's name; those of text are UTF-8, as nearly all such files are.
const TYPES: [(&str, &str); 11] = [
    ("html", "text/html; charset=utf-8"),
    ("htm", "text/html; charset=utf-8"),
    ("txt", TEXT),
    ("css", "text/css; charset=utf-8"),
    ("js", "text/javascript; charset=utf-8"),
    ("json", "application/json"),
    ("xml", "application/xml"),
    ("svg", "image/svg+xml"),
    ("png", "image/png"),
    ("ico", "image/x-icon"),
    ("pdf", "application/pdf"),
];

/// `redirect` and `respond` of a route.
type AnswerTables<'a> = (Option<&'a Spanned<file::RedirectTable>>, Option<&'a Spanned<file::RespondTable>>);

impl Checker<'_> {
    /// A route's answer without a server; at most one of its two tables may be there.
    pub(super) fn answer(
        &mut self,
        object: &str,
        (redirect, respond): AnswerTables<'_>,
        hosts: &[HostPattern],
        rewrites: bool,
    ) -> Option<Answer> {
        if let (Some(_), Some(respond)) = (redirect, respond) {
            let text = format!("{object}: redirect and respond (leave one of them out)");
            self.report.error(respond.at(), text);
        }
        match (redirect, respond) {
            (Some(table), _) => Some(Answer::Redirect(self.redirect(object, table, hosts, rewrites))),
            (None, Some(table)) => Some(Answer::Respond(self.respond(object, table))),
            (None, None) => None,
        }
    }

    /// `redirect` of a route. `hosts` are the route's own, and `rewrites` says whether it replaces the prefix.
    fn redirect(
        &mut self,
        object: &str,
        table: &Spanned<file::RedirectTable>,
        hosts: &[HostPattern],
        rewrites: bool,
    ) -> Redirect {
        let (span, raw) = (table.span(), table.get_ref());
        let object = format!("{object}: redirect");
        let https = raw.https.as_ref().is_some_and(|https| *https.get_ref());
        if let (true, Some(scheme)) = (https, &raw.scheme) {
            self.report.error(scheme.at(), format!("{object}: scheme with https = true (leave scheme out)"));
        }
        let scheme = raw.scheme.as_ref().and_then(|text| {
            self.word(&format!("{object}: scheme"), text, &[("http", "http"), ("https", "https")])
        });
        let host = raw.host.as_ref().and_then(|host| self.redirect_host(&object, host));
        let port =
            raw.port.as_ref().map(|port| self.integer(&format!("{object}: port"), Some(port), 1..=65_535, 0));
        let path = raw.path.as_ref().and_then(|path| self.redirect_path(&object, path));
        if let (Some(path), true) = (&raw.path, rewrites) {
            self.report.error(path.at(), format!("{object}: path with rewrite (leave one of them out)"));
        }
        let nothing = !https && raw.scheme.is_none() && raw.port.is_none() && raw.path.is_none() && !rewrites;
        let same_host = |host: &Spanned<String>| {
            let host = host.get_ref().to_ascii_lowercase();
            matches!(hosts, [HostPattern::Exact(own)] if **own == host)
        };
        if nothing && raw.host.as_ref().is_none_or(same_host) {
            let right = "write https = true, or a host, scheme, port or path";
            self.report.error(span.start, format!("{object}: leads to the same URL again ({right})"));
        } else if raw.host.is_none() && hosts.is_empty() {
            let right = "write hosts = [\"www.example.com\"] in the route, hosts = [\"*\"] to allow every host, or a host here";
            let what = "would repeat whatever host a client names";
            self.report.error(span.start, format!("{object}: {what} ({right})"));
        }
        Redirect {
            only_http: https,
            scheme: if https { Some("https") } else { scheme },
            host,
            port,
            path,
            status: self.redirect_status(&object, raw.status.as_ref(), https),
        }
    }

    /// Refuses redirects whose URL leads to their own route again. `redirects` has for each the index of its route, and how
    /// messages call it. A URL that another route takes, or whose port or host nobody here names, leads elsewhere.
    pub(super) fn refuse_endless(
        &mut self,
        redirects: &[(usize, usize, String)],
        routes: &[Route],
        listeners: &[Listener],
    ) {
        for (idx, at, object) in redirects {
            let route = &routes[*idx];
            let Some(Answer::Redirect(redirect)) = route.answer.as_deref() else { continue };
            let path = match (&redirect.path, &route.rewrite) {
                (Some(path), _) => path.split('?').next().unwrap_or_default(),
                (None, Some(path)) => path,
                (None, None) => &route.path,
            };
            let path = normal_path(path.as_bytes());
            let path = String::from_utf8_lossy(&path);
            let targets: Vec<_> = match &redirect.host {
                Some(host) => {
                    let named = HostPattern::Exact(host.clone());
                    route.hosts.contains(&named).then_some(Cow::Borrowed(&**host)).into_iter().collect()
                }
                None => reach::hosts(route).iter().map(HostPattern::sample).collect(),
            };
            let leads_here = |(listener, of): (usize, &Listener)| {
                let is_own = route.listeners.as_ref().is_none_or(|own| own.contains(&listener));
                let is_reached = |host| reach::is_reached(route, routes, (host, &path), Some(&[listener]));
                is_own && leads_to(redirect, of, listeners) && targets.iter().any(|host| is_reached(host))
            };
            if !redirect.only_http && listeners.iter().enumerate().any(leads_here) {
                let right = "write https = true, or another host, scheme, port or path";
                self.report.error(*at, format!("{object}: redirect: leads to its own route again ({right})"));
            }
        }
    }

    /// A redirect to https is for ever, and keeps the method. Others may be taken back.
    fn redirect_status(&mut self, object: &str, status: Option<&Spanned<i64>>, https: bool) -> u16 {
        let Some(status) = status else { return if https { 308 } else { 302 } };
        match *status.get_ref() {
            known @ (301 | 302 | 303 | 307 | 308) => known as u16,
            other => {
                let right = "301, 302, 303, 307 or 308";
                self.report.error(status.at(), format!("{object}: status {other} is not {right}"));
                302
            }
        }
    }

    fn redirect_host(&mut self, object: &str, host: &Spanned<String>) -> Option<Box<str>> {
        match address::parse_route_host(host.get_ref()) {
            Ok(host) => Some(host.into()),
            Err(reason) => {
                let reason = match host.get_ref().contains(':') {
                    true => format!("{reason}; a port has a key of its own"),
                    false => reason,
                };
                self.report.error(host.at(), format!("{object}: host \"{host}\": {reason}"));
                None
            }
        }
    }

    fn redirect_path(&mut self, object: &str, path: &Spanned<String>) -> Option<Box<str>> {
        let text = path.get_ref();
        let wrong = if !text.starts_with('/') {
            format!("does not begin with \"/\" (write \"/{text}\")")
        } else if let Some(odd) = text.chars().find(|c| !c.is_ascii_graphic() || *c == '#') {
            format!("has {odd:?} in it (write it percent-encoded)")
        } else {
            return Some(text.as_str().into());
        };
        self.report.error(path.at(), format!("{object}: path {text:?} {wrong}"));
        None
    }

    /// `respond` of a route.
    fn respond(&mut self, object: &str, table: &Spanned<file::RespondTable>) -> Respond {
        let (span, raw) = (table.span(), table.get_ref());
        let object = format!("{object}: respond");
        if raw.status.is_none() {
            self.missing(&span, "status", &object, "write, for example, status = 503");
        }
        let status = self.integer(&format!("{object}: status"), raw.status.as_ref(), 200..=599, 200);
        let body = raw.body.as_ref().or(raw.file.as_ref());
        if let (Some(_), Some(file)) = (&raw.body, &raw.file) {
            self.report.error(file.at(), format!("{object}: body and file (leave one of them out)"));
        }
        if let (204 | 205 | 304, Some(body)) = (status, body) {
            let text = format!("{object}: status {status} has no body (leave it out)");
            self.report.error(body.at(), text);
        }
        let kind = raw.kind.as_ref().and_then(|kind| self.content_type(&object, kind));
        let page = match (&raw.body, &raw.file) {
            (Some(text), _) => Page {
                content_type: kind.unwrap_or_else(|| TEXT.into()),
                body: text.get_ref().as_bytes().into(),
            },
            (None, Some(file)) => self.page(&object, file, kind).unwrap_or_else(no_page),
            (None, None) => Page { content_type: kind.unwrap_or_else(|| TEXT.into()), ..no_page() },
        };
        Respond { status, page }
    }

    /// `[errors]`, or the same of a route.
    pub(super) fn errors(
        &mut self,
        object: &str,
        raw: Named<Short<file::PageTable>>,
        pages: &mut ErrorPages,
    ) {
        for (status, page) in raw.0 {
            let text = status.get_ref();
            let known = text.parse().ok().filter(|status| ERROR_STATUSES.contains(status));
            let object = format!("{object}{text}");
            let Some(known) = known else {
                let all: Vec<_> = ERROR_STATUSES.iter().map(u16::to_string).collect();
                let what = "the proxy itself answers no such status; errors of servers are passed on";
                let text = format!("{object}: {what} (known: {})", all.join(", "));
                self.report.error(status.at(), text);
                continue;
            };
            let span = page.span();
            let (file, kind) = match page.into_inner() {
                Short::Text(file) => (Some(Spanned::new(span.clone(), file)), None),
                Short::Table(table) => (table.file, table.kind),
            };
            if let Some(page) = self.error_page(&object, &span, file, kind) {
                pages.set(known, page);
            }
        }
    }

    fn error_page(
        &mut self,
        object: &str,
        span: &Span,
        file: Option<Spanned<String>>,
        kind: Option<Spanned<String>>,
    ) -> Option<Page> {
        let kind = kind.and_then(|kind| self.content_type(object, &kind));
        let Some(file) = file else {
            self.missing(span, "file", object, "write, for example, file = \"sorry.html\"");
            return None;
        };
        self.page(object, &file, kind)
    }

    /// Reads a page: once, so that a worker has the bytes that were checked.
    fn page(&mut self, object: &str, file: &Spanned<String>, kind: Option<Arc<str>>) -> Option<Page> {
        let text = file.get_ref();
        let wrong = match self.bytes_of(file) {
            _ if text.is_empty() => "is empty; write a file's name".to_owned(),
            Ok(bytes) if bytes.len() > MAX_PAGE_BYTES => {
                format!("is larger than {} MiB; let a server send it", MAX_PAGE_BYTES >> 20)
            }
            Ok(bytes) => {
                let content_type = kind.unwrap_or_else(|| type_of(Path::new(text)).into());
                return Some(Page { content_type, body: (*bytes).into() });
            }
            Err(reason) => reason,
        };
        self.report.error(file.at(), format!("{object}: file {text:?} {wrong}"));
        None
    }

    fn content_type(&mut self, object: &str, kind: &Spanned<String>) -> Option<Arc<str>> {
        let text = kind.get_ref();
        let is_type = text.split_once('/').is_some_and(|(kind, rest)| !kind.is_empty() && !rest.is_empty());
        if is_type && text.is_ascii() && HeaderValue::from_str(text).is_ok() {
            return Some(text.as_str().into());
        }
        let right = "write, for example, \"text/html; charset=utf-8\"";
        self.report.error(kind.at(), format!("{object}: type {text:?} is not a media type ({right})"));
        None
    }
}

/// Whether a request at this listener is redirected to the same listener. Where none listens at a scheme's own port, another
/// machine may pass that on to any.
fn leads_to(redirect: &Redirect, of: &Listener, listeners: &[Listener]) -> bool {
    let is_secure = of.tls.is_some();
    if redirect.scheme.is_some_and(|scheme| (scheme == "https") != is_secure) {
        return false;
    }
    let listens_at = |of: &Listener, port| of.address.ip().is_some_and(|ip| ip.port() == port);
    match redirect.port {
        Some(port) => listens_at(of, port),
        None if redirect.scheme.is_none() && redirect.host.is_none() => true,
        None => {
            let own = if is_secure { 443 } else { 80 };
            let takes_it = |other: &Listener| other.tls.is_some() == is_secure && listens_at(other, own);
            listens_at(of, own) || !listeners.iter().any(takes_it)
        }
    }
}

/// Nothing, where a page has been reported or there is to be none.
fn no_page() -> Page {
    Page { content_type: TEXT.into(), body: [].into() }
}

fn type_of(file: &Path) -> &'static str {
    let ending = file.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
    let known = TYPES.iter().find(|(known, _)| known.eq_ignore_ascii_case(ending));
    known.map_or("application/octet-stream", |(_, kind)| kind)
}
