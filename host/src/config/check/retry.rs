//! `retry` of a route.

use std::time::Duration;

use toml::Spanned;

use crate::config::retry::{RetryBudget, RetryCauses, RetryPolicy};

use super::super::file;
use super::super::source::At;
use super::super::suggest::nearest;
use super::super::units::show_time;
use super::Checker;
use super::values::to_usize;

/// How often a request is sent at most, unless told otherwise.
const TRIES: u32 = 3;
/// As Envoy's.
const BACKOFF: Duration = Duration::from_millis(25);
/// As Envoy's.
const MAX_BACKOFF: Duration = Duration::from_millis(250);
/// As Envoy's: a cluster that fails altogether gets a fifth more load, not three times as much.
const BUDGET: RetryBudget = RetryBudget { percent: 20, min: 3 };
/// Forms and API calls fit in, uploads do not.
const BUFFER_BYTES: usize = 64 * 1024;
/// Every request under way holds its buffered body.
const LARGEST_BUFFER: u64 = 16 << 20;
/// Those that may be sent twice by their definition (RFC 9110 section 9.2.2), of those that are served.
const METHODS: [&str; 5] = ["GET", "HEAD", "OPTIONS", "PUT", "DELETE"];
/// Causes that are not statuses. The first is always one: it stands in the list for those who want it said.
const WORDS: [&str; 6] = ["connect", "reset", "timeout", "bad_response", "gateway", "5xx"];

impl Checker<'_> {
    pub(super) fn retry(&mut self, object: &str, raw: Spanned<file::RetryTable>) -> RetryPolicy {
        let (span, raw) = (raw.span(), raw.into_inner());
        let object = format!("{object}: retry");
        let key = |key: &str| format!("{object}.{key}");
        let mut on = RetryCauses::default();
        match raw.on {
            Some(words) => words.iter().for_each(|word| self.cause(&key("on"), word, &mut on)),
            None => self.missing(&span, "on", &object, "write, for example, on = [\"reset\", \"503\"]"),
        }
        let backoff = raw.backoff.as_ref().map_or(BACKOFF, |time| time.get_ref().0);
        let max_backoff = raw.max_backoff.as_ref().map_or(MAX_BACKOFF.max(backoff), |time| time.get_ref().0);
        if max_backoff < backoff {
            let at = raw.max_backoff.as_ref().map_or(span.start, At::at);
            let (max, one) = (show_time(max_backoff), show_time(backoff));
            self.report.error(at, format!("{object}: max_backoff {max} is less than the backoff of {one}"));
        }
        let timeout = self.limit_of_time(&key("timeout"), raw.timeout.as_ref());
        let try_timeout = self.limit_of_time(&key("try_timeout"), raw.try_timeout.as_ref());
        let budget = raw.budget.unwrap_or_default();
        RetryPolicy {
            on,
            tries: self.integer(&key("tries"), raw.tries.as_ref(), 1..=100, TRIES),
            timeout,
            try_timeout,
            backoff,
            max_backoff,
            budget: RetryBudget {
                percent: self.integer(
                    &key("budget.percent"),
                    budget.percent.as_ref(),
                    0..=100,
                    BUDGET.percent,
                ),
                min: self.integer(&key("budget.min"), budget.min.as_ref(), 0..=1_000_000, BUDGET.min),
            },
            methods: self.methods(&key("methods"), raw.methods),
            buffer_bytes: self
                .size(&key("buffer"), raw.buffer.as_ref(), 0..=LARGEST_BUFFER)
                .map_or(BUFFER_BYTES, to_usize),
        }
    }

    fn cause(&mut self, object: &str, word: &Spanned<String>, on: &mut RetryCauses) {
        match word.get_ref().as_str() {
            "connect" => {}
            "reset" => on.reset = true,
            "timeout" => on.timeout = true,
            "bad_response" => on.bad_response = true,
            "gateway" => (502..=504).for_each(|status| on.add_status(status)),
            "5xx" => (500..=599).for_each(|status| on.add_status(status)),
            text => match text.parse() {
                Ok(status @ 400..=599) if text.len() == 3 => on.add_status(status),
                _ => {
                    let hint = match nearest(text, WORDS) {
                        Some(meant) => format!("did you mean \"{meant}\"?"),
                        None => format!("known are {}, and statuses from 400 to 599", WORDS.join(", ")),
                    };
                    self.report.error(word.at(), format!("{object}: {text:?} is not a cause ({hint})"));
                }
            },
        }
    }

    fn methods(&mut self, object: &str, methods: Option<Vec<Spanned<String>>>) -> Box<[Box<str>]> {
        let Some(methods) = methods else { return METHODS.map(Into::into).into() };
        for method in &methods {
            let is_upper = method.get_ref().bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'-');
            if !is_upper || method.get_ref().is_empty() {
                let right = "write it in capitals, such as \"GET\"";
                self.report.error(
                    method.at(),
                    format!("{object}: {:?} is not a method ({right})", method.get_ref()),
                );
            }
        }
        methods.into_iter().map(|method| method.into_inner().into()).collect()
    }
}
