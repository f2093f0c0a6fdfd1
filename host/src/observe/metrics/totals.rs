//! What was counted, in a form that outlives the process that counted it.
//!
//! A supervisor adds the totals of generations that have ended or still drain, and hands the sum to the newest, which
//! shows it as part of its own: counters then never fall, whatever is reloaded or dies. There are no gauges here: what
//! *is* belongs to one process. Everything is kept as the `u64` that was counted (times in nanoseconds), so that nothing
//! is lost to rounding however often it is handed on.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

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

/// More than any histogram has.
const MAX_BUCKETS: usize = 128;

/// A histogram.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Times {
    pub(super) sum_ns: u64,
    /// Each by itself, not those below it included.
    pub(super) buckets: Vec<u64>,
}

/// What totals may hold that come from a process that is not trusted.
#[derive(Debug)]
pub struct TotalsBounds {
    /// Names of families, as [`Metrics::counted_families`](super::Metrics::counted_families) has them.
    pub families: BTreeSet<Box<str>>,
    /// Names of clusters.
    pub clusters: BTreeSet<String>,
    /// Series of all families together.
    pub max_series: usize,
    /// Of one series.
    pub max_label_bytes: usize,
}

impl Totals {
    /// Whether they are within these bounds.
    ///
    /// # Errors
    /// What is not.
    pub fn check(&self, bounds: &TotalsBounds) -> Result<(), String> {
        let families = self.counters.keys().chain(self.histograms.keys());
        if !families.into_iter().all(|family| bounds.families.contains(family)) {
            return Err("metrics of a family that does not exist".to_owned());
        }
        if self.n_series() > bounds.max_series {
            return Err("more metrics than its configuration can have".to_owned());
        }
        let clusters = bounds.clusters.iter().map(String::as_str).chain([""]);
        let beginnings: BTreeSet<String> = clusters.map(cluster_label).collect();
        let is_known = |labels: &str| {
            let cluster = beginnings.range::<str, _>((Bound::Unbounded, Bound::Included(labels))).next_back();
            labels.len() <= bounds.max_label_bytes
                && (labels.is_empty()
                    || labels.starts_with("listener=\"")
                    || cluster.is_some_and(|beginning| labels.starts_with(beginning.as_str())))
        };
        let counters = self.counters.values().flat_map(Series::keys);
        let histograms = self.histograms.values().flat_map(Series::keys);
        if !counters.chain(histograms).all(|labels| is_known(labels)) {
            return Err("metrics of what is not in its configuration".to_owned());
        }
        let times = self.histograms.values().flat_map(Series::values);
        if times.into_iter().any(|times| times.buckets.len() > MAX_BUCKETS) {
            return Err("a histogram with more buckets than any has".to_owned());
        }
        Ok(())
    }

    /// How many series there are, over all families.
    pub fn n_series(&self) -> usize {
        let counters = self.counters.values().map(Series::len).sum::<usize>();
        counters + self.histograms.values().map(Series::len).sum::<usize>()
    }

    /// As [`Self::add`], but has no more series than this one afterwards, or than before if that is more. False where some were
    /// left out.
    pub fn add_up_to(&mut self, max_series: usize, other: &Self) -> bool {
        let mut room = max_series.saturating_sub(self.n_series());
        let mut is_room = |is_new: bool| {
            let fits = !is_new || room > 0;
            room -= usize::from(is_new && fits);
            fits
        };
        let (mut is_all, mut added) = (true, other.clone());
        for (family, theirs) in &mut added.counters {
            let ours = self.counters.get(family);
            theirs.retain(|labels, _| {
                let fits = is_room(ours.is_none_or(|ours| !ours.contains_key(labels)));
                is_all &= fits;
                fits
            });
        }
        for (family, theirs) in &mut added.histograms {
            let ours = self.histograms.get(family);
            theirs.retain(|labels, _| {
                let fits = is_room(ours.is_none_or(|ours| !ours.contains_key(labels)));
                is_all &= fits;
                fits
            });
        }
        self.add(&added);
        is_all
    }

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

/// The labels of a cluster's series begin with this.
fn cluster_label(name: &str) -> String {
    let mut text = String::new();
    key(&[("cluster", name)], &mut text);
    text
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

    fn totals(series: &[(&str, &str)]) -> Totals {
        let mut totals = Totals::default();
        for (family, labels) in series {
            totals.counters.entry((*family).into()).or_default().insert((*labels).into(), 1);
        }
        totals
    }

    #[test]
    fn totals_of_what_there_is_not_are_refused() {
        let bounds = TotalsBounds {
            families: ["tries".into()].into(),
            clusters: ["a".to_owned(), "ab".to_owned()].into(),
            max_series: 3,
            max_label_bytes: 40,
        };
        let long = format!("cluster=\"a\",endpoint=\"{}\"", "x".repeat(30));
        for (series, refused) in [
            (&[("tries", "cluster=\"ab\",x=\"y\""), ("tries", "cluster=\"\""), ("tries", "")][..], None),
            (&[("tries", "listener=\"127.0.0.1:80\"")], None),
            (&[("tried", "")], Some("metrics of a family that does not exist")),
            (&[("tries", "cluster=\"abc\"")], Some("metrics of what is not in its configuration")),
            (&[("tries", "x=\"y\"")], Some("metrics of what is not in its configuration")),
            (&[("tries", &long)], Some("metrics of what is not in its configuration")),
            (
                &[
                    ("tries", ""),
                    ("tries", "listener=\"1\""),
                    ("tries", "listener=\"2\""),
                    ("tries", "listener=\"3\""),
                ],
                Some("more metrics than its configuration can have"),
            ),
        ] {
            assert_eq!(totals(series).check(&bounds).err().as_deref(), refused, "{series:?}");
        }
    }

    #[test]
    fn the_sum_stays_within_its_bound_and_goes_on_counting_what_it_has() {
        let mut sum = totals(&[("tries", "1"), ("tries", "2")]);
        assert!(sum.add_up_to(2, &totals(&[("tries", "1")])));
        assert!(!sum.add_up_to(3, &totals(&[("tries", "1"), ("tries", "3"), ("other", "4")])));
        let tries = sum.counters("tries").expect("some");
        assert_eq!((tries.get("1"), tries.get("3"), sum.n_series()), (Some(&3), None, 3));
    }

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
