//! What was counted, in a form that outlives the process that counted it.
//!
//! A supervisor adds the totals of generations that have ended or still drain, and hands the sum to the newest, which
//! shows it as part of its own: counters then never fall, whatever is reloaded or dies. There are no gauges here: what
//! *is* belongs to one process. Everything is kept as the `u64` that was counted (times in nanoseconds), so that nothing
//! is lost to rounding however often it is handed on.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::cluster::endpoint::ADDRESS_MARK;

/// Counters and histograms by family and labels. Those that are zero are not in it, so that its size is that of what
/// happened. An upper bound is the number of series that [`Metrics::text`](super::Metrics::text) shows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    counters: BTreeMap<Box<str>, Series<u64>>,
    histograms: BTreeMap<Box<str>, Series<Times>>,
}

/// The series of one family, by their labels as [`key`] writes them.
type Series<T> = BTreeMap<Box<str>, T>;

/// A histogram.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Times {
    pub(super) sum_ns: u64,
    /// Each by itself, not those below it included.
    pub(super) buckets: Vec<u64>,
}

impl Totals {
    /// Adds what others counted. Series that only one of the two has are kept.
    pub fn add(&mut self, other: &Self) {
        for (family, theirs) in &other.counters {
            let ours = self.counters.entry(family.clone()).or_default();
            for (labels, n) in theirs {
                let total = ours.entry(labels.clone()).or_default();
                *total = total.wrapping_add(*n);
            }
        }
        for (family, theirs) in &other.histograms {
            let ours = self.histograms.entry(family.clone()).or_default();
            for (labels, times) in theirs {
                ours.entry(labels.clone()).or_default().add(times);
            }
        }
    }

    /// Forgets the series of servers that were made of a name's address (see [`crate::cluster::discovery`]), but for these addresses:
    /// names that go on getting new ones would have it grow for ever.
    pub fn keep_addresses(&mut self, is_kept: impl Fn(&str) -> bool) {
        let stays = |labels: &str| address_of(labels).is_none_or(&is_kept);
        self.counters.values_mut().for_each(|series| series.retain(|labels, _| stays(labels)));
        self.histograms.values_mut().for_each(|series| series.retain(|labels, _| stays(labels)));
    }

    /// Whether nothing was counted.
    pub fn is_empty(&self) -> bool {
        self.counters.is_empty() && self.histograms.is_empty()
    }

    pub(super) fn counters(&self, family: &str) -> Option<&Series<u64>> {
        self.counters.get(family)
    }

    pub(super) fn histograms(&self, family: &str) -> Option<&Series<Times>> {
        self.histograms.get(family)
    }

    pub(super) fn put_counters(&mut self, family: &str, series: Series<u64>) {
        if !series.is_empty() {
            self.counters.insert(family.into(), series);
        }
    }

    pub(super) fn put_histograms(&mut self, family: &str, series: Series<Times>) {
        if !series.is_empty() {
            self.histograms.insert(family.into(), series);
        }
    }
}

impl Times {
    /// Bounds are a family's own and never change, so buckets of the same index are the same bucket.
    pub(super) fn add(&mut self, other: &Self) {
        self.sum_ns = self.sum_ns.wrapping_add(other.sum_ns);
        if self.buckets.len() < other.buckets.len() {
            self.buckets.resize(other.buckets.len(), 0);
        }
        for (ours, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            *ours = ours.wrapping_add(*theirs);
        }
    }

    pub(super) fn count(&self) -> u64 {
        self.buckets.iter().fold(0, |sum, n| sum.wrapping_add(*n))
    }
}

/// Which of a name's addresses the server is that a series is of, if it is one.
fn address_of(labels: &str) -> Option<&str> {
    let (_, url) = labels.split_once("endpoint=\"http")?;
    let (url, _) = url.split_once('"')?;
    url.split_once(ADDRESS_MARK).map(|(_, address)| address)
}

/// Writes labels into `text` as they are exposed, so that no two series have the same.
pub(super) fn key(labels: &[Label<'_>], text: &mut String) {
    text.clear();
    for (i, (name, value)) in labels.iter().enumerate() {
        if i > 0 {
            text.push(',');
        }
        text.push_str(name);
        text.push_str("=\"");
        for c in value.chars() {
            match c {
                '\\' => text.push_str("\\\\"),
                '"' => text.push_str("\\\""),
                '\n' => text.push_str("\\n"),
                c => text.push(c),
            }
        }
        text.push('"');
    }
}

/// Name and value.
pub(super) type Label<'a> = (&'static str, &'a str);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_series_of_addresses_that_are_gone_are_forgotten() {
        let mut totals = Totals::default();
        let of = |endpoint: &str| format!("cluster=\"c\",endpoint=\"{endpoint}\",result=\"served\"").into();
        let series = ["http://a:1#10.0.0.1", "http://a:1#10.0.0.2", "http://b", "unix:/x#y"];
        totals.put_counters("tries", series.iter().map(|endpoint| (of(endpoint), 1)).collect());
        totals.keep_addresses(|address| address == "10.0.0.2");
        let left: Vec<_> = totals.counters("tries").expect("some").keys().cloned().collect();
        assert_eq!(left, [of(series[1]), of(series[2]), of(series[3])]);
    }
}
