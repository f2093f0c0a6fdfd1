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
const X_REAL_IP: &str = "X-Real-IP";

impl Checker<'_> {
    pub(super) fn forwarded(&mut self, raw: file::ForwardedTable) -> Forwarded {
        let defaults = Forwarded::default();
        let trusted = raw.trusted.map(|networks| self.networks("forwarded.trusted", &networks));
        let read = raw.read.and_then(|text| match text.get_ref().eq_ignore_ascii_case(X_REAL_IP) {
            true => Some(Source::RealIp),
            false => self.source("forwarded.read", &text, &[X_FORWARDED_FOR, FORWARDED, X_REAL_IP]),
        });
        let written: Option<Vec<Source>> = raw.write.map(|texts| {
            let known = [X_FORWARDED_FOR, FORWARDED];
            texts.iter().filter_map(|text| self.source("forwarded.write", text, &known)).collect()
        });
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

    /// One of the first two; `known` are all that may stand there.
    fn source(&mut self, object: &str, text: &Spanned<String>, known: &[&str]) -> Option<Source> {
        match text.get_ref() {
            name if name.eq_ignore_ascii_case(X_FORWARDED_FOR) => Some(Source::XForwardedFor),
            name if name.eq_ignore_ascii_case(FORWARDED) => Some(Source::Standard),
            name => {
                let (last, others) = known.split_last().expect("there are some");
                let others: Vec<_> = others.iter().map(|name| format!("{name:?}")).collect();
                let right = format!("{} and {last:?}", others.join(", "));
                self.report.error(text.at(), format!("{object}: {name:?} is not one of {right}"));
                None
            }
        }
    }
}
