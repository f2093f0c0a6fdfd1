//! Counters and histograms in a form that outlives their process.
//!
//! A supervisor adds the totals of generations that have ended or drain, and hands the sum to the newest generation, which adds
//! it to its own. So counters never fall over a reload or a crash. Gauges belong to one process and are not here. Values are kept
//! as counted (`u64`, times in nanoseconds), so that nothing is lost to rounding.
//!
//! Servers come and go, but sums over a cluster never fall. Counts of servers that the serving generation does not have move to
//! `endpoint="gone"` of their cluster. For that, totals name each endpoint, also one that counted nothing.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::Bound;

use serde::{Deserialize, Serialize};

/// Counters and histograms by family and labels. Zeros are left out, except in [`ENDPOINTS`]. At most as many series as
/// [`Metrics::text`](super::Metrics::text) shows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    counters: BTreeMap<Box<str>, Series<u64>>,
    histograms: BTreeMap<Box<str>, Series<Times>>,
}

/// The series of one family, by their labels as [`key`] writes them.
pub(super) type Series<T> = BTreeMap<Box<str>, T>;

/// The label of what servers counted that are gone. No URL is like it.
pub(super) const GONE: &str = "gone";

/// The family that has one series of each endpoint.
pub(super) const ENDPOINTS: &str = "trylist_try";

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

    /// As [`Self::add`], but has at most this many series afterwards, or as many as before if that is more. Endpoints that do not
    /// fit count as gone from their cluster, which may need a few series more. False if others were left out.
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
            let mut gone = Series::default();
            theirs.retain(|labels, n| {
                let fits = is_room(ours.is_none_or(|ours| !ours.contains_key(labels)));
                match EndpointLabels::of(labels).filter(|_| !fits) {
                    Some(endpoint) => add_to(&mut gone, endpoint.gone(), *n),
                    None => is_all &= fits,
                }
                fits
            });
            gone.into_iter().for_each(|(labels, n)| add_to(theirs, labels, n));
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
            theirs.iter().for_each(|(labels, n)| add_to(ours, labels.clone(), *n));
        }
        for (family, theirs) in &other.histograms {
            let ours = self.histograms.entry(family.clone()).or_default();
            for (labels, times) in theirs {
                ours.entry(labels.clone()).or_default().add(times);
            }
        }
    }

    /// Counts endpoints as gone that the generation with these totals does not have. Nothing changes in clusters of which it
    /// names no endpoint: it does not have them, or has not reported yet.
    pub fn move_gone(&mut self, serving: &Self) {
        let Some(there) = serving.counters(ENDPOINTS) else { return };
        let clusters: HashSet<&str> = serving.endpoints().map(|labels| labels.cluster).collect();
        self.move_where(|labels| clusters.contains(labels.cluster) && !there.contains_key(labels.endpoint));
    }

    /// Counts these endpoints as gone from their cluster.
    pub(super) fn move_where(&mut self, is_gone: impl Fn(&EndpointLabels<'_>) -> bool) {
        for series in self.counters.values_mut() {
            let moved: Vec<_> = series
                .iter()
                .filter_map(|(labels, n)| {
                    let endpoint = EndpointLabels::of(labels).filter(&is_gone)?;
                    Some((labels.clone(), endpoint.gone(), *n))
                })
                .collect();
            for (labels, gone, n) in moved {
                series.remove(&labels);
                add_to(series, gone, n);
            }
        }
    }

    /// The endpoints that it names.
    pub(super) fn endpoints(&self) -> impl Iterator<Item = EndpointLabels<'_>> {
        let labels = self.counters(ENDPOINTS).into_iter().flat_map(Series::keys);
        labels.filter_map(|labels| EndpointLabels::of(labels))
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

/// The labels of an endpoint's series, as [`key`] writes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct EndpointLabels<'a> {
    /// The cluster's label.
    pub(super) cluster: &'a str,
    /// The labels of cluster and endpoint.
    pub(super) endpoint: &'a str,
    all: &'a str,
}

impl<'a> EndpointLabels<'a> {
    /// `None` if these are not the labels of an endpoint.
    pub(super) fn of(all: &'a str) -> Option<Self> {
        const CLUSTER: &str = "cluster=\"";
        const ENDPOINT: &str = ",endpoint=\"";
        let cluster = CLUSTER.len() + quoted_len(all.strip_prefix(CLUSTER)?)?;
        let endpoint = cluster + ENDPOINT.len() + quoted_len(all[cluster..].strip_prefix(ENDPOINT)?)?;
        Some(Self { cluster: &all[..cluster], endpoint: &all[..endpoint], all })
    }

    /// The same labels of what is gone from the cluster.
    fn gone(&self) -> Box<str> {
        format!("{},endpoint=\"{GONE}\"{}", self.cluster, &self.all[self.endpoint.len()..]).into()
    }
}

/// Length of a label's value with the quote that ends it.
fn quoted_len(text: &str) -> Option<usize> {
    let mut is_escaped = false;
    let end = text.bytes().position(|byte| {
        let ends = byte == b'"' && !is_escaped;
        is_escaped = byte == b'\\' && !is_escaped;
        ends
    });
    end.map(|end| end + 1)
}

fn add_to(series: &mut Series<u64>, labels: Box<str>, n: u64) {
    let total = series.entry(labels).or_default();
    *total = total.wrapping_add(n);
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
    for (i, Label { name, value }) in labels.iter().enumerate() {
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
}

/// A label of this name and value.
pub(super) fn label<'a>(name: &'static str, value: &'a str) -> Label<'a> {
    Label { name, value }
}

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
        let n = |labels| tries.get(labels).copied();
        assert_eq!((n("1"), n("3"), sum.n_series()), (Some(3), None, 3));
    }

    /// The labels of an endpoint's series.
    fn series(cluster: &str, endpoint: &str, result: &str) -> Box<str> {
        let mut text = String::new();
        let labels = [label("cluster", cluster), label("endpoint", endpoint), label("result", result)];
        key(&labels[..if result.is_empty() { 2 } else { 3 }], &mut text);
        text.into()
    }

    /// What a generation with these endpoints reports, one try for each.
    fn report(endpoints: &[(&str, &str)]) -> Totals {
        let mut totals = Totals::default();
        totals.put_counters("tries", endpoints.iter().map(|(c, e)| (series(c, e, "served"), 1)).collect());
        totals.put_counters(ENDPOINTS, endpoints.iter().map(|(c, e)| (series(c, e, ""), 0)).collect());
        totals
    }

    fn tries(totals: &Totals) -> Vec<(&str, u64)> {
        totals.counters("tries").expect("some").iter().map(|(labels, n)| (&**labels, *n)).collect()
    }

    #[test]
    fn labels_of_endpoints_are_told_from_others() {
        let odd = "a\\\",endpoint=\"";
        let labels = series(odd, "http://x#10.0.0.1 #2", "served");
        let found = EndpointLabels::of(&labels).expect("it is one");
        assert_eq!(found.cluster, cluster_label(odd));
        assert_eq!(found.endpoint, &*series(odd, "http://x#10.0.0.1 #2", ""));
        assert_eq!(found.gone(), series(odd, GONE, "served"));
        let unterminated = "cluster=\"a\\\",endpoint=\"b\"";
        for other in ["", "cluster=\"a\"", "cluster=\"a\",endpoint=\"b", unterminated, "listener=\"1\""] {
            assert_eq!(EndpointLabels::of(other), None, "{other}");
        }
    }

    #[test]
    fn counts_of_servers_that_are_gone_stay_in_the_sum_of_their_cluster() {
        let mut kept = report(&[("c", "http://a"), ("c", "http://b"), ("d", "http://a")]);
        kept.add(&report(&[("c", "http://b"), ("c", "http://e")]));
        kept.move_gone(&Totals::default());
        assert_eq!(kept.n_series(), 8, "nothing is known of what is there");
        kept.move_gone(&report(&[("c", "http://a"), ("c", "http://n")]));
        let (a, gone) = (series("c", "http://a", "served"), series("c", GONE, "served"));
        let other = series("d", "http://a", "served");
        assert_eq!(tries(&kept), [(&*gone, 3), (&*a, 1), (&*other, 1)]);
        kept.move_gone(&report(&[("c", "http://b")]));
        assert_eq!(tries(&kept), [(&*gone, 4), (&*other, 1)], "what is gone stays so");
    }

    #[test]
    fn endpoints_that_do_not_fit_count_as_gone() {
        let mut kept = report(&[("c", "http://a")]);
        for n in 0..100 {
            assert!(kept.add_up_to(4, &report(&[("c", "http://a"), ("c", &format!("http://{n}"))])));
        }
        let sum: u64 = tries(&kept).iter().map(|(_, n)| n).sum();
        assert_eq!((sum, kept.n_series() <= 6), (201, true), "{kept:?}");
        let (a, gone) = (series("c", "http://a", "served"), series("c", GONE, "served"));
        assert!(tries(&kept).contains(&(&*a, 101)) && tries(&kept).contains(&(&*gone, 99)), "{kept:?}");
    }
}
