//! `request_headers` and `response_headers` of clusters and routes, and `request_id`.

use std::sync::Arc;

use http::{HeaderName, HeaderValue};
use toml::Spanned;

use crate::http::h1::head::Name;
use crate::http::headers::rules::{BadValue, Rules, Variable};

use super::super::file;
use super::super::source::At;
use super::super::suggest::nearest;
use super::Checker;

/// Which messages rules are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// From client to server.
    Request,
    /// From server to client.
    Response,
}

impl Checker<'_> {
    pub(super) fn header_rules(
        &mut self,
        object: &str,
        direction: Direction,
        raw: Option<file::HeadersTable>,
    ) -> Rules {
        let mut rules = Rules::default();
        let Some(raw) = raw else { return rules };
        let object = match direction {
            Direction::Request => format!("{object}: request_headers"),
            Direction::Response => format!("{object}: response_headers"),
        };
        for name in raw.remove.unwrap_or_default() {
            if self.may_be_ruled(&format!("{object}.remove"), direction, &name) {
                rules.remove(name.get_ref());
            }
        }
        for (name, value) in raw.set.map(|set| set.0).unwrap_or_default() {
            let object = format!("{object}.set");
            if self.may_be_ruled(&object, direction, &name) {
                let compiled = rules.set(name.get_ref(), value.get_ref());
                self.value(&object, direction, &name, &value, compiled);
            }
        }
        for (name, value) in raw.add.map(|add| add.0).unwrap_or_default() {
            let object = format!("{object}.add");
            if self.may_be_ruled(&object, direction, &name) {
                let compiled = rules.add(name.get_ref(), value.get_ref());
                self.value(&object, direction, &name, &value, compiled);
            }
        }
        rules
    }

    /// The name of the header with the request's ID.
    pub(super) fn request_id(&mut self, name: &Spanned<String>) -> Option<Arc<str>> {
        let fits = self.may_be_ruled("request_id", Direction::Request, name);
        fits.then(|| name.get_ref().as_str().into())
    }

    /// Whether an operator may say what becomes of a header: not of those that frame messages or speak of one connection.
    fn may_be_ruled(&mut self, object: &str, direction: Direction, name: &Spanned<String>) -> bool {
        let text = name.get_ref();
        let wrong = match Name::meant_by(text.as_bytes()) {
            _ if token(text).is_none() => "is not a header name",
            Name::ContentLength | Name::TransferEncoding | Name::Trailer => {
                "frames messages; only the proxy sets it"
            }
            Name::Host if direction == Direction::Request => {
                "selects the route (set host_header for what servers get)"
            }
            Name::Expect | Name::MaxForwards => "is set by the proxy only",
            kind if kind.is_hop_by_hop() => "is hop-by-hop; only the proxy sets it",
            _ => return true,
        };
        self.report.error(name.at(), format!("{object}: {text:?} {wrong}"));
        false
    }

    fn value(
        &mut self,
        object: &str,
        direction: Direction,
        name: &Spanned<String>,
        value: &Spanned<String>,
        compiled: Result<(), BadValue>,
    ) {
        let text = value.get_ref();
        let wrong = match compiled {
            Err(BadValue::Unclosed) => {
                "has a \"${\" without its \"}\" (write \"$${\" for the text)".to_owned()
            }
            Err(BadValue::Unknown(variable)) => {
                let names = || Variable::ALL.iter().map(|(name, _)| *name);
                let hint = match nearest(&variable, names()) {
                    Some(meant) => format!("did you mean \"${{{meant}}}\"?"),
                    None => format!("known are {}", names().collect::<Vec<_>>().join(", ")),
                };
                format!("uses the unknown variable {variable:?} ({hint})")
            }
            Ok(()) if HeaderValue::from_str(text).is_err() => {
                "contains a character that is not valid in headers".to_owned()
            }
            Ok(()) if direction == Direction::Request && text.contains("${status}") => {
                "names \"status\", which only responses have".to_owned()
            }
            Ok(()) => return,
        };
        self.report.error(value.at(), format!("{object}: value {text:?} of {:?} {wrong}", name.get_ref()));
    }
}

/// The text, where it can be the name of a header (RFC 9110 section 5.6.2).
pub(super) fn token(name: &str) -> Option<&str> {
    let is_value = HeaderValue::from_str(name).is_ok();
    (is_value && HeaderName::from_bytes(name.as_bytes()).is_ok()).then_some(name)
}
