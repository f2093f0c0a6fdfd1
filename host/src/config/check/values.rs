//! Values that many keys have: numbers, sizes, durations, words and networks.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::Spanned;

use crate::net::network::Networks;

use super::super::files::FileBytes;
use super::super::source::{At, Span};
use super::super::units::{SizeValue, TimeValue, show_time};
use super::Checker;

impl Checker<'_> {
    /// Reports a missing key, unless it is there and was reported for another reason.
    pub(super) fn missing(&mut self, table: &Span, key: &str, object: &str, right: &str) {
        if !self.report.is_lost(table, key) {
            self.report.error(table.start, format!("{object}: no {key} ({right})"));
        }
    }

    pub(super) fn integer<T: TryFrom<i64>>(
        &mut self,
        object: &str,
        value: Option<&Spanned<i64>>,
        range: RangeInclusive<i64>,
        default: T,
    ) -> T {
        let Some(value) = value else { return default };
        let in_range = Some(*value.get_ref()).filter(|value| range.contains(value));
        if let Some(Ok(checked)) = in_range.map(T::try_from) {
            return checked;
        }
        let right = match *range.end() {
            i64::MAX => format!("a number from {}", range.start()),
            end => format!("a number from {} to {end}", range.start()),
        };
        self.report.error(value.at(), format!("{object}: {value} is not {right}"));
        default
    }

    pub(super) fn size(
        &mut self,
        object: &str,
        value: Option<&Spanned<SizeValue>>,
        range: RangeInclusive<u64>,
    ) -> Option<u64> {
        let value = value?;
        let SizeValue(bytes) = *value.get_ref();
        if range.contains(&bytes) {
            return Some(bytes);
        }
        let text = match *range.end() {
            u64::MAX => {
                format!("{object}: {bytes} bytes is too small (leave the key out for no limit)")
            }
            end => format!("{object}: {bytes} bytes are not in the range from {} to {end}", range.start()),
        };
        self.report.error(value.at(), text);
        None
    }

    /// A duration that makes no sense as zero.
    pub(super) fn time(
        &mut self,
        object: &str,
        value: Option<&Spanned<TimeValue>>,
        default: Duration,
    ) -> Duration {
        let Some(value) = value else { return default };
        let TimeValue(time) = *value.get_ref();
        if time.is_zero() {
            let usual = show_time(default);
            self.report
                .error(value.at(), format!("{object}: must be longer than 0s (the default is {usual})"));
        }
        time
    }

    /// A duration that makes no sense as zero, and without which there is no limit.
    pub(super) fn limit_of_time(
        &mut self,
        object: &str,
        value: Option<&Spanned<TimeValue>>,
    ) -> Option<Duration> {
        let value = value?;
        let TimeValue(time) = *value.get_ref();
        if time.is_zero() {
            let right = "leave the key out for no limit";
            self.report.error(value.at(), format!("{object}: must be longer than 0s ({right})"));
        }
        Some(time)
    }

    pub(super) fn networks(&mut self, object: &str, texts: &[Spanned<String>]) -> Networks {
        let parse = |text: &Spanned<String>| match text.get_ref().parse() {
            Ok(network) => Some(network),
            Err(reason) => {
                self.report.error(text.at(), format!("{object}: \"{text}\": {reason}"));
                None
            }
        };
        texts.iter().filter_map(parse).collect()
    }

    /// A path, from the directory of the configuration.
    pub(super) fn relative(&self, path: &str) -> PathBuf {
        self.source.parent().unwrap_or(Path::new("")).join(path)
    }

    /// A file that the configuration names, or the reason as words that follow its name.
    pub(super) fn bytes_of(&mut self, name: &Spanned<String>) -> Result<FileBytes, String> {
        let path = self.relative(name.get_ref());
        self.files.bytes(&path).map_err(|reason| {
            // Its writer may expect it beside an included file.
            let is_included = Path::new(&*self.report.place(name.at()).file) != self.source;
            match is_included && Path::new(name.get_ref()).is_relative() {
                true => format!("{reason}; it is looked for as \"{}\", from the main file", path.display()),
                false => reason,
            }
        })
    }

    /// The value that a word stands for, if `words` has it. `key` is the key with its object, as messages show it.
    pub(super) fn word<T: Copy>(
        &mut self,
        key: &str,
        text: &Spanned<String>,
        words: &[(&str, T)],
    ) -> Option<T> {
        let found = words.iter().find(|(word, _)| word == text.get_ref());
        if found.is_none() {
            let words: Vec<_> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
            let (last, others) = words.split_last().expect("a list of words has some");
            let right = format!("{} and {last}", others.join(", "));
            self.report.error(text.at(), format!("{key}: {:?} is not one of {right}", text.get_ref()));
        }
        found.map(|(_, value)| *value)
    }
}

pub(super) fn to_usize(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}
