//! `key` and `key_missing` of a cluster.

use toml::Spanned;

use super::super::settings::flatten;
use super::super::shape::Short;
use super::super::source::At;
use super::super::{KeyMissing, KeySource, file};
use super::Checker;
use super::headers::token;
use super::module::CheckedModules;

impl Checker<'_> {
    pub(super) fn key_source(&mut self, object: &str, text: &Spanned<String>) -> Option<KeySource> {
        let source = match text.get_ref().split_once(':') {
            None => match text.get_ref().as_str() {
                "client" => Some(KeySource::Client),
                "path" => Some(KeySource::Path),
                "uri" => Some(KeySource::Uri),
                _ => None,
            },
            // A header's name is also what a cookie's name may be made of (RFC 6265: a token).
            Some(("header", name)) => {
                token(name).map(|name| KeySource::Header(name.to_ascii_lowercase().into()))
            }
            Some(("cookie", name)) => token(name).map(|name| KeySource::Cookie(name.into())),
            Some(("query", name)) => {
                Some(name).filter(|name| !name.is_empty()).map(|name| KeySource::Query(name.into()))
            }
            Some(_) => None,
        };
        if source.is_none() {
            let right = "\"client\", \"header:X-Id\", \"cookie:sid\", \"query:user\", \"path\" and \"uri\"";
            self.report.error(text.at(), format!("{object}: key: \"{text}\" is not one of {right}"));
        }
        source
    }

    pub(super) fn key_missing(
        &mut self,
        object: &str,
        missing: Spanned<Short<file::KeyMissingTable>>,
        has_key: bool,
        module: &str,
        modules: &CheckedModules,
    ) -> Option<KeyMissing> {
        let (span, missing) = (missing.span(), missing.into_inner());
        let object = format!("{object}: key_missing");
        let missing = match missing {
            Short::Text(id) => {
                file::KeyMissingTable { module: Some(Spanned::new(span.clone(), id)), ..Default::default() }
            }
            Short::Table(missing) => missing,
        };
        if !has_key {
            let right = "write, for example, key = \"header:X-Id\", or leave key_missing out";
            self.report.error(span.start, format!("{object} without key ({right})"));
        }
        let Some(named) = missing.module else {
            self.missing(&span, "module", &object, "write, for example, module = \"round_robin\"");
            return None;
        };
        if named.get_ref() == module {
            let right = "name another one, or leave key_missing out";
            self.report.error(
                named.at(),
                format!("{object}: \"{module}\" is the module of the cluster itself ({right})"),
            );
        }
        Some(KeyMissing {
            module: self.module_of(&object, span.start, Some(&named), modules)?,
            settings: missing.settings.map(|settings| flatten(settings, self.report)).unwrap_or_default(),
            place: self.report.place(named.at()),
        })
    }
}
