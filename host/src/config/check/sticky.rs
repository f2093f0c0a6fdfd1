//! `sticky` of a cluster.

use toml::Spanned;

use super::super::source::At;
use super::super::{KeySource, Server, Sticky, file};
use super::Checker;
use super::cluster::token;

/// A shorter secret could be found by trying.
const SECRET_BYTES: usize = 16;
/// httpd's.
const SEPARATOR: u8 = b'.';

impl Checker<'_> {
    pub(super) fn sticky(
        &mut self,
        cluster: &str,
        sticky: Spanned<file::Sticky>,
        servers: &[Server],
    ) -> Option<Sticky> {
        let (at, raw) = (sticky.at(), sticky.into_inner());
        let object = format!("{cluster}: sticky");
        let by_route = raw.app_cookie.is_some() || raw.url_parameter.is_some() || raw.header.is_some();
        match (&raw.cookie, by_route) {
            (Some(cookie), false) => {
                if let Some(separator) = &raw.separator {
                    self.report.error(separator.at(), format!("{object}: separator is not for cookie"));
                }
                self.issued(&object, cookie, raw.secret.as_ref())
            }
            (None, true) => self.by_route(&object, at, &raw, servers),
            (Some(_), true) | (None, false) => {
                let right = "write either cookie, or app_cookie, url_parameter or header";
                self.report.error(at, format!("{object}: what sessions are known by is not clear ({right})"));
                None
            }
        }
    }

    fn issued(
        &mut self,
        object: &str,
        cookie: &Spanned<String>,
        secret: Option<&Spanned<String>>,
    ) -> Option<Sticky> {
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
        Some(Sticky::Issued {
            cookie: name.into(),
            secret: secret.map(|secret| secret.get_ref().as_str().into()),
        })
    }

    fn by_route(
        &mut self,
        object: &str,
        at: usize,
        raw: &file::Sticky,
        servers: &[Server],
    ) -> Option<Sticky> {
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
        if let Some(secret) = &raw.secret {
            self.report.error(secret.at(), format!("{object}: secret is only for cookie"));
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
        if servers.iter().all(|server| server.route.is_none()) && !servers.is_empty() {
            let right = "write, for example, { url = \"…\", route = \"a\" }";
            self.report.error(at, format!("{object}: no server has a route ({right})"));
        }
        for (i, server) in servers.iter().enumerate() {
            if server.route.is_some()
                && let Some(first) = servers[..i].iter().find(|other| other.route == server.route)
            {
                let (route, first) = (server.route.as_deref().unwrap_or_default(), &first.url);
                self.report.error(at, format!("{object}: route {route:?} is that of server \"{first}\" too"));
            }
        }
        Some(Sticky::Route { sources, separator })
    }

    fn token<'a>(&mut self, object: &str, key: &str, name: &'a Spanned<String>) -> Option<&'a str> {
        let token = token(name.get_ref());
        if token.is_none() {
            let text =
                format!("{object}: {key}: {:?} is not a name as headers and cookies have", name.get_ref());
            self.report.error(name.at(), text);
        }
        token
    }
}
