//! Counters and histograms in a form that outlives their process.
//!
//! A supervisor adds the totals of generations that have ended or drain, and hands the sum to the newest generation, which adds
//! it to its own. So counters never fall over a reload or a crash. Gauges belong to one process and are not here. Values are kept
//! as counted (`u64`, times in nanoseconds), so that nothing is lost to rounding.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::Bound;

use serde::{Deserialize, Serialize};

/// Counters and histograms by family and labels, without those that are zero. At most as many series as
/// [`Metrics::text`](super::Metrics::text) shows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    counters: BTreeMap<Box<str>, Series<u64>>,
    histograms: BTreeMap<Box<str>, Series<Times>>,
}

/// The series of one family, by their labels as [`key`] writes them.
pub(super) type Series<T> = BTreeMap<Box<str>, Counted<T>>;

/// What was counted in one series.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Counted<T> {
    pub(super) value: T,
    /// The address, for an endpoint that is one of several addresses of a name.
    address: Option<IpAddr>,
}

/// More than any histogram has.
const MAX_BUCKETS: usize = 128;

/// A histogram.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Times {
    pub(super) sum_ns: u64,
    /// Not cumulative.
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
        if times.into_iter().any(|times| times.value.buckets.len() > MAX_BUCKETS) {
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
                let total = &mut n.of_same(ours, labels).value;
                *total = total.wrapping_add(n.value);
            }
        }
        for (family, theirs) in &other.histograms {
            let ours = self.histograms.entry(family.clone()).or_default();
            for (labels, times) in theirs {
                times.of_same(ours, labels).value.add(&times.value);
            }
        }
    }

    /// Forgets the series of servers that stand for one address of a name (see [`crate::cluster::discovery`]), except for
    /// these addresses. Otherwise a name with ever new addresses would make the totals grow without bound.
    pub fn keep_addresses(&mut self, is_kept: impl Fn(IpAddr) -> bool) {
        let stays = |address: Option<IpAddr>| address.is_none_or(&is_kept);
        self.counters.values_mut().for_each(|series| series.retain(|_, counted| stays(counted.address)));
        self.histograms.values_mut().for_each(|series| series.retain(|_, counted| stays(counted.address)));
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
    /// The bounds of a family never change, so equal indices are equal buckets.
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

impl<T: Default> Counted<T> {
    /// Of the series with these labels.
    pub(super) fn new(labels: &[Label<'_>], value: T) -> Self {
        Self { value, address: labels.iter().find_map(|label| label.address) }
    }

    /// The same series in other totals, where it begins at zero.
    fn of_same<'a>(&self, theirs: &'a mut Series<T>, labels: &str) -> &'a mut Self {
        theirs.entry(labels.into()).or_insert_with(|| Self { value: T::default(), address: self.address })
    }
}

/// The labels of a cluster's series begin with this.
fn cluster_label(name: &str) -> String {
    let mut text = String::new();
    key(&[label("cluster", name)], &mut text);
    text
}

/// Writes labels into `text` as they are exposed.
pub(super) fn key(labels: &[Label<'_>], text: &mut String) {
    text.clear();
    for (i, Label { name, value, .. }) in labels.iter().enumerate() {
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

/// A label of a series.
#[derive(Clone, Copy, Debug)]
pub(super) struct Label<'a> {
    name: &'static str,
    value: &'a str,
    address: Option<IpAddr>,
}

/// A label of this name and value.
pub(super) fn label<'a>(name: &'static str, value: &'a str) -> Label<'a> {
    Label { name, value, address: None }
}

impl<'a> Label<'a> {
    /// The label of an endpoint, with its address where it is one of several addresses of a name.
    pub(super) fn endpoint(url: &'a str, address: Option<IpAddr>) -> Self {
        Self { address, ..label("endpoint", url) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn totals(series: &[(&str, &str)]) -> Totals {
        let mut totals = Totals::default();
        for (family, labels) in series {
            totals
                .counters
                .entry((*family).into())
                .or_default()
                .insert((*labels).into(), Counted::new(&[], 1));
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
        let n = |labels| tries.get(labels).map(|counted| counted.value);
        assert_eq!((n("1"), n("3"), sum.n_series()), (Some(3), None, 3));
    }

    #[test]
    fn only_series_of_addresses_that_are_gone_are_forgotten() {
        let (gone, stays) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let endpoints = [
            ("http://a:1#10.0.0.1", Some(gone)),
            // A second server of the same address.
            ("http://a:1#10.0.0.2 #2", Some(stays)),
            ("http://b", None),
            ("unix:/x#10.0.0.1", None),
        ];
        let mut counted = Series::default();
        for (url, address) in endpoints {
            let labels = [label("cluster", "c"), Label::endpoint(url, address), label("result", "served")];
            let mut text = String::new();
            key(&labels, &mut text);
            counted.insert(text.into(), Counted::new(&labels, 1));
        }
        let mut series = Totals::default();
        series.put_counters("tries", counted);
        // What was added to other totals keeps its address.
        let mut totals = Totals::default();
        totals.add(&series);
        totals.keep_addresses(|address| address == stays);
        let left: Vec<_> = totals.counters("tries").expect("some").keys().cloned().collect();
        let text = |url| format!("cluster=\"c\",endpoint=\"{url}\",result=\"served\"").into();
        assert_eq!(left, endpoints[1..].iter().map(|(url, _)| text(url)).collect::<Vec<Box<str>>>());
    }
}
