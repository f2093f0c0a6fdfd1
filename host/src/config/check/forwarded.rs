//! `[forwarded]`, and `proxy_protocol` of listeners: who is believed about whom it asks for.

use std::time::Duration;

use toml::Spanned;

use crate::http::headers::forwarded::{Forwarded, Source};
use crate::net::network::Networks;

use super::super::source::At;
use super::super::{ProxyProtocol, file};
use super::Checker;

/// Balancers send the header with the first packet; what is lost is sent again after a second, and two.
const PROXY_TIMEOUT: Duration = Duration::from_secs(5);

const X_FORWARDED_FOR: &str = "X-Forwarded-For";
const FORWARDED: &str = "Forwarded";

impl Checker<'_> {
    pub(super) fn forwarded(&mut self, raw: file::ForwardedTable) -> Forwarded {
        let defaults = Forwarded::default();
        let trusted = raw.trusted.map(|networks| self.networks("forwarded.trusted", &networks));
        let read = raw.read.and_then(|text| self.source("forwarded.read", &text));
        let written: Option<Vec<Source>> = raw
            .write
            .map(|texts| texts.iter().filter_map(|text| self.source("forwarded.write", text)).collect());
        let writes = |source, default| written.as_ref().map_or(default, |all| all.contains(&source));
        Forwarded {
            trusted: trusted.unwrap_or_default(),
            read: read.unwrap_or(defaults.read),
            write_x: writes(Source::XForwardedFor, defaults.write_x),
            write_standard: writes(Source::Standard, defaults.write_standard),
        }
    }

    pub(super) fn proxy_protocol(
        &mut self,
        object: &str,
        raw: Spanned<file::ProxyProtocolTable>,
    ) -> ProxyProtocol {
        let (span, raw) = (raw.span(), raw.into_inner());
        let from = match raw.from {
            Some(networks) => self.networks(&format!("{object}.from"), &networks),
            None => {
                self.missing(&span, "from", object, "write, for example, from = [\"10.0.0.0/8\"]");
                Networks::default()
            }
        };
        let timeout = self.time(&format!("{object}.timeout"), raw.timeout.as_ref(), PROXY_TIMEOUT);
        ProxyProtocol { from, timeout }
    }

    fn source(&mut self, object: &str, text: &Spanned<String>) -> Option<Source> {
        match text.get_ref() {
            name if name.eq_ignore_ascii_case(X_FORWARDED_FOR) => Some(Source::XForwardedFor),
            name if name.eq_ignore_ascii_case(FORWARDED) => Some(Source::Standard),
            name => {
                let right = format!("\"{X_FORWARDED_FOR}\" and \"{FORWARDED}\"");
                self.report.error(text.at(), format!("{object}: {name:?} is not one of {right}"));
                None
            }
        }
    }
}
