//! Counters and histograms in a form that outlives their process.
//!
//! A supervisor adds the totals of generations that have ended or drain, and hands the sum to the newest generation, which adds
//! it to its own. So counters never fall over a reload or a crash. Gauges belong to one process and are not here. Values are kept
//! as counted (`u64`, times in nanoseconds), so that nothing is lost to rounding.
//!
//! Servers come and go, but sums over a cluster never fall. Counts of servers that the serving generation does not have move to
//! `endpoint="gone"` of their cluster. For that, totals name each endpoint, also one that counted nothing.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// The endpoint label for the counts of servers that are gone. No URL is like it.
pub(super) const GONE: &str = "gone";

/// Maximum labels of a series besides those of its [`Subject`].
pub(super) const MAX_KINDS: usize = 2;

/// More buckets than any histogram has.
const MAX_BUCKETS: usize = 128;

/// Maximum series of the endpoint [`GONE`], rounded up. A worker that invents kinds cannot make more.
const MAX_GONE_SERIES: usize = 64;

/// Counters and histograms by their subject. Zeros are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    process: Counts,
    listeners: BTreeMap<Box<str>, Counts>,
    /// The cluster without a name has the requests that were not routed.
    clusters: BTreeMap<Box<str>, ClusterCounts>,
}

/// The counts of a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct ClusterCounts {
    own: Counts,
    /// Also endpoints that counted nothing.
    endpoints: BTreeMap<Box<str>, Counts>,
}

/// The series of one subject.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Counts {
    counters: BTreeMap<SeriesKey<'static>, u64>,
    histograms: BTreeMap<SeriesKey<'static>, Times>,
}

/// The listener, cluster or endpoint that a series describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Subject<'a> {
    /// The whole process.
    Process,
    /// The listener of this address.
    Listener(&'a str),
    /// The cluster of this name.
    Cluster(&'a str),
    /// An endpoint of the cluster that is named first.
    Endpoint(&'a str, &'a str),
}

/// A series of a subject.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct SeriesKey<'a> {
    family: Cow<'a, str>,
    /// Values of the further labels, in the family's order. Unused ones are empty.
    kinds: [Cow<'a, str>; MAX_KINDS],
}

/// A histogram.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Times {
    pub(super) sum_ns: u64,
    /// Not cumulative.
    pub(super) buckets: Vec<u64>,
}

/// Bounds of totals that come from an untrusted process.
#[derive(Debug)]
pub struct TotalsBounds {
    /// Names of families, as [`Metrics::counted_families`](super::Metrics::counted_families) has them.
    pub families: BTreeSet<Box<str>>,
    /// Names of clusters.
    pub clusters: BTreeSet<String>,
    /// Maximum of [`Totals::n_series`].
    pub max_series: usize,
    /// Maximum length of a series' label values together.
    pub max_label_bytes: usize,
}

impl Totals {
    /// Checks that they are within these bounds.
    ///
    /// # Errors
    /// The bound that they exceed, in words for the log.
    pub fn check(&self, bounds: &TotalsBounds) -> Result<(), String> {
        if self.n_series() > bounds.max_series {
            return Err("more metrics than its configuration can have".to_owned());
        }
        self.subjects().try_for_each(|(subject, counts)| {
            let is_known = match subject {
                Subject::Process | Subject::Listener(_) => true,
                Subject::Cluster(name) | Subject::Endpoint(name, _) => {
                    name.is_empty() || bounds.clusters.contains(name)
                }
            };
            if !is_known {
                return Err("metrics of a cluster that is not in its configuration".to_owned());
            }
            if subject.label_bytes() > bounds.max_label_bytes {
                return Err("metrics with labels that are too long".to_owned());
            }
            counts.check(subject, bounds)
        })
    }

    /// Number of series over all families. Each listener, cluster and endpoint counts as one more.
    pub fn n_series(&self) -> usize {
        let named = self.listeners.len() + self.clusters.len();
        let endpoints: usize = self.clusters.values().map(|cluster| cluster.endpoints.len()).sum();
        self.subjects().map(|(_, counts)| counts.n_series()).sum::<usize>() + named + endpoints
    }

    /// Adds others' counts. Series that only one of the two has are kept.
    pub fn add(&mut self, other: &Self) {
        for (subject, theirs) in other.subjects() {
            self.counts_mut(subject).add(theirs);
        }
    }

    /// As [`Self::add`], but has at most this many series afterwards, or as many as before if that is more. Endpoints that do not
    /// fit count as gone from their cluster, which may need a few series more. False if others were left out.
    pub fn add_up_to(&mut self, max_series: usize, other: &Self) -> bool {
        let mut room = max_series.saturating_sub(self.n_series());
        let mut is_all = true;
        for (subject, theirs) in other.subjects() {
            let rest = if self.counts(subject).is_some() {
                self.counts_mut(subject).add_fitting(theirs, &mut room)
            } else if room > 0 {
                room -= 1;
                self.counts_mut(subject).add_fitting(theirs, &mut room)
            } else {
                theirs.clone()
            };
            is_all &= match subject {
                _ if rest.is_empty() => true,
                Subject::Endpoint(cluster, _) => {
                    let gone = self.counts_mut(Subject::Endpoint(cluster, GONE));
                    let mut room = MAX_GONE_SERIES.saturating_sub(gone.n_series());
                    gone.add_fitting(&rest, &mut room).is_empty()
                }
                _ => false,
            };
        }
        is_all
    }

    /// Counts endpoints as gone that the generation with these totals does not have. Nothing changes in clusters of which it
    /// names no endpoint: it does not have them, or has not reported yet.
    pub fn move_gone(&mut self, serving: &Self) {
        self.move_where(|cluster, endpoint| {
            let serving = serving.clusters.get(cluster).map(|cluster| &cluster.endpoints);
            serving.is_some_and(|there| !there.is_empty() && !there.contains_key(endpoint))
        });
    }

    /// Counts these endpoints as gone from their cluster. `is_gone` is given the names of cluster and endpoint.
    pub(super) fn move_where(&mut self, is_gone: impl Fn(&str, &str) -> bool) {
        for (name, cluster) in &mut self.clusters {
            let known = cluster.endpoints.keys();
            let gone: Vec<_> =
                known.filter(|endpoint| &***endpoint != GONE && is_gone(name, endpoint)).cloned().collect();
            for endpoint in gone {
                let counts = cluster.endpoints.remove(&endpoint).unwrap_or_default();
                cluster.endpoints.entry(GONE.into()).or_default().add(&counts);
            }
        }
    }

    /// The endpoints that it names, each after its cluster.
    pub(super) fn endpoints(&self) -> impl Iterator<Item = (&str, &str)> {
        self.subjects().filter_map(|(subject, _)| match subject {
            Subject::Endpoint(cluster, endpoint) => Some((cluster, endpoint)),
            _ => None,
        })
    }

    /// The counts of a subject, if it is named.
    pub(super) fn counts(&self, subject: Subject<'_>) -> Option<&Counts> {
        match subject {
            Subject::Process => Some(&self.process),
            Subject::Listener(address) => self.listeners.get(address),
            Subject::Cluster(name) => self.clusters.get(name).map(|cluster| &cluster.own),
            Subject::Endpoint(cluster, endpoint) => self.clusters.get(cluster)?.endpoints.get(endpoint),
        }
    }

    /// The counts of a subject, which is named from now on.
    pub(super) fn counts_mut(&mut self, subject: Subject<'_>) -> &mut Counts {
        match subject {
            Subject::Process => &mut self.process,
            Subject::Listener(address) => named(&mut self.listeners, address),
            Subject::Cluster(name) => &mut named(&mut self.clusters, name).own,
            Subject::Endpoint(cluster, endpoint) => {
                named(&mut named(&mut self.clusters, cluster).endpoints, endpoint)
            }
        }
    }

    /// All subjects, a cluster before its endpoints.
    pub(super) fn subjects(&self) -> impl Iterator<Item = (Subject<'_>, &Counts)> {
        let listeners = self.listeners.iter().map(|(address, counts)| (Subject::Listener(address), counts));
        let clusters = self.clusters.iter().flat_map(|(name, cluster)| {
            let endpoints = cluster.endpoints.iter();
            let endpoints =
                endpoints.map(move |(endpoint, counts)| (Subject::Endpoint(name, endpoint), counts));
            std::iter::once((Subject::Cluster(name), &cluster.own)).chain(endpoints)
        });
        std::iter::once((Subject::Process, &self.process)).chain(listeners).chain(clusters)
    }
}

impl Subject<'_> {
    fn label_bytes(self) -> usize {
        match self {
            Self::Process => 0,
            Self::Listener(name) | Self::Cluster(name) => name.len(),
            Self::Endpoint(cluster, endpoint) => cluster.len() + endpoint.len(),
        }
    }
}

impl Counts {
    /// The counter's value, if it is above zero.
    pub(super) fn counter(&self, key: &SeriesKey<'_>) -> Option<u64> {
        let counters: &BTreeMap<SeriesKey<'_>, u64> = &self.counters;
        counters.get(key).copied()
    }

    /// The histogram, if it has an entry.
    pub(super) fn histogram<'a>(&'a self, key: &SeriesKey<'a>) -> Option<&'a Times> {
        let histograms: &'a BTreeMap<SeriesKey<'a>, Times> = &self.histograms;
        histograms.get(key)
    }

    pub(super) fn put_counter(&mut self, key: SeriesKey<'_>, n: u64) {
        if n > 0 {
            self.counters.insert(key.into_owned(), n);
        }
    }

    pub(super) fn put_histogram(&mut self, key: SeriesKey<'_>, times: Times) {
        if times.count() > 0 {
            self.histograms.insert(key.into_owned(), times);
        }
    }

    fn n_series(&self) -> usize {
        self.counters.len() + self.histograms.len()
    }

    fn is_empty(&self) -> bool {
        self.n_series() == 0
    }

    fn check(&self, subject: Subject<'_>, bounds: &TotalsBounds) -> Result<(), String> {
        for key in self.counters.keys().chain(self.histograms.keys()) {
            if !bounds.families.contains(&*key.family) {
                return Err("metrics of a family that does not exist".to_owned());
            }
            let kinds: usize = key.kinds.iter().map(|kind| kind.len()).sum();
            if subject.label_bytes() + kinds > bounds.max_label_bytes {
                return Err("metrics with labels that are too long".to_owned());
            }
        }
        match self.histograms.values().any(|times| times.buckets.len() > MAX_BUCKETS) {
            true => Err("a histogram with more buckets than any has".to_owned()),
            false => Ok(()),
        }
    }

    fn add(&mut self, other: &Self) {
        let mut room = usize::MAX;
        self.add_fitting(other, &mut room);
    }

    /// Adds as many series as there is room for, and returns the others.
    fn add_fitting(&mut self, other: &Self, room: &mut usize) -> Self {
        let mut rest = Self::default();
        let mut is_room = |is_new: bool| {
            let fits = !is_new || *room > 0;
            *room -= usize::from(is_new && fits);
            fits
        };
        for (key, n) in &other.counters {
            let fits = is_room(!self.counters.contains_key(key));
            let counters = if fits { &mut self.counters } else { &mut rest.counters };
            let total = counters.entry(key.clone()).or_default();
            *total = total.wrapping_add(*n);
        }
        for (key, times) in &other.histograms {
            let fits = is_room(!self.histograms.contains_key(key));
            let histograms = if fits { &mut self.histograms } else { &mut rest.histograms };
            histograms.entry(key.clone()).or_default().add(times);
        }
        rest
    }
}

impl<'a> SeriesKey<'a> {
    /// The series of this family whose further labels have these values.
    pub(super) fn new<const N: usize>(family: &'a str, kinds: [&'a str; N]) -> Self {
        const { assert!(N <= MAX_KINDS) }
        let mut key = Self { family: family.into(), kinds: Default::default() };
        for (kept, kind) in key.kinds.iter_mut().zip(kinds) {
            *kept = kind.into();
        }
        key
    }

    fn into_owned(self) -> SeriesKey<'static> {
        let owned = |text: Cow<'_, str>| Cow::Owned(text.into_owned());
        SeriesKey { family: owned(self.family), kinds: self.kinds.map(owned) }
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

/// The value of this name, which is made if it is missing.
fn named<'m, T: Default>(map: &'m mut BTreeMap<Box<str>, T>, name: &str) -> &'m mut T {
    if !map.contains_key(name) {
        map.insert(name.into(), T::default());
    }
    map.get_mut(name).expect("it was just made")
}

#[cfg(test)]
impl Totals {
    /// The counters of a family: their subjects, and the values of their further labels.
    pub(super) fn family(&self, family: &str) -> Vec<(Subject<'_>, &[Cow<'static, str>; MAX_KINDS], u64)> {
        let counters = self
            .subjects()
            .flat_map(|(subject, counts)| counts.counters.iter().map(move |(key, n)| (subject, key, *n)));
        counters.filter(|(_, key, _)| key.family == family).map(|(s, key, n)| (s, &key.kinds, n)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One series of the family `tries` for each subject, with this further label.
    fn totals(series: &[(Subject<'_>, &str)]) -> Totals {
        let mut totals = Totals::default();
        for (subject, kind) in series {
            totals.counts_mut(*subject).put_counter(SeriesKey::new("tries", [kind]), 1);
        }
        totals
    }

    fn bounds() -> TotalsBounds {
        TotalsBounds {
            families: ["tries".into()].into(),
            clusters: ["a".to_owned(), "ab".to_owned()].into(),
            max_series: 6,
            max_label_bytes: 40,
        }
    }

    #[test]
    fn totals_of_what_there_is_not_are_refused() {
        use Subject::{Cluster, Endpoint, Listener, Process};
        let long = "x".repeat(38);
        let unknown = Some("metrics of a cluster that is not in its configuration");
        let too_long = Some("metrics with labels that are too long");
        let many = Some("more metrics than its configuration can have");
        for (series, refused) in [
            (&[(Cluster("ab"), "y"), (Cluster(""), ""), (Process, "")][..], None),
            (&[(Listener("127.0.0.1:80"), "")], None),
            (&[(Endpoint("a", &long), "y")], None),
            (&[(Endpoint("a", &long), "yy")], too_long),
            (&[(Listener("127.0.0.1:80"), &long)], too_long),
            (&[(Cluster("abc"), "")], unknown),
            (&[(Endpoint("a\",endpoint=\"b", "c"), "")], unknown),
            (&[(Process, ""), (Listener("1"), ""), (Listener("2"), ""), (Listener("3"), "")], many),
        ] {
            assert_eq!(totals(series).check(&bounds()).err().as_deref(), refused, "{series:?}");
        }
        let mut of_no_family = Totals::default();
        of_no_family.process.put_counter(SeriesKey::new("tried", []), 1);
        let refused = of_no_family.check(&bounds()).unwrap_err();
        assert_eq!(refused, "metrics of a family that does not exist");
    }

    /// Names alone take memory, too.
    #[test]
    fn names_without_counts_are_bounded() {
        for is_listener in [true, false] {
            let mut totals = Totals::default();
            for n in 0..7 {
                let name = n.to_string();
                let subject =
                    if is_listener { Subject::Listener(&name) } else { Subject::Endpoint("a", &name) };
                totals.counts_mut(subject);
            }
            let refused = totals.check(&bounds()).unwrap_err();
            assert_eq!(refused, "more metrics than its configuration can have");
            let mut long = Totals::default();
            let name = "x".repeat(41);
            long.counts_mut(if is_listener {
                Subject::Listener(&name)
            } else {
                Subject::Endpoint("a", &name)
            });
            assert_eq!(long.check(&bounds()).unwrap_err(), "metrics with labels that are too long");
        }
    }

    #[test]
    fn a_histogram_with_too_many_buckets_is_refused() {
        for (n, is_refused) in [(MAX_BUCKETS, false), (MAX_BUCKETS + 1, true)] {
            let mut totals = Totals::default();
            let times = Times { sum_ns: 0, buckets: vec![1; n] };
            totals.process.put_histogram(SeriesKey::new("tries", []), times);
            assert_eq!(totals.check(&bounds()).is_err(), is_refused, "{n}");
        }
    }

    #[test]
    fn the_sum_stays_within_its_bound_and_goes_on_counting_what_it_has() {
        let of = |kinds: &[&'static str]| {
            totals(&kinds.iter().map(|kind| (Subject::Process, *kind)).collect::<Vec<_>>())
        };
        let mut sum = of(&["1", "2"]);
        assert!(sum.add_up_to(2, &of(&["1"])));
        let mut others = of(&["1", "3"]);
        others.add(&totals(&[(Subject::Listener("4"), "")]));
        assert!(!sum.add_up_to(3, &others));
        let n = |kind| sum.process.counter(&SeriesKey::new("tries", [kind]));
        assert_eq!((n("1"), n("3"), sum.n_series()), (Some(3), Some(1), 3));
    }

    /// The report of a generation with these endpoints, one try for each.
    fn report(endpoints: &[(&str, &str)]) -> Totals {
        let subjects = endpoints.iter().map(|(cluster, endpoint)| Subject::Endpoint(cluster, endpoint));
        totals(&subjects.map(|subject| (subject, "served")).collect::<Vec<_>>())
    }

    /// The tries of each endpoint.
    fn tries(totals: &Totals) -> Vec<(&str, &str, u64)> {
        let tries = totals.family("tries").into_iter();
        tries
            .map(|(subject, _, n)| match subject {
                Subject::Endpoint(cluster, endpoint) => (cluster, endpoint, n),
                _ => panic!("{subject:?}"),
            })
            .collect()
    }

    #[test]
    fn counts_of_servers_that_are_gone_stay_in_the_sum_of_their_cluster() {
        let mut kept = report(&[("c", "http://a"), ("c", "http://b"), ("d", "http://a")]);
        kept.add(&report(&[("c", "http://b"), ("c", "http://e")]));
        kept.move_gone(&Totals::default());
        assert_eq!(tries(&kept).len(), 4, "nothing is known of what is there");
        kept.move_gone(&report(&[("c", "http://a"), ("c", "http://n")]));
        assert_eq!(tries(&kept), [("c", GONE, 3), ("c", "http://a", 1), ("d", "http://a", 1)]);
        kept.move_gone(&report(&[("c", "http://b")]));
        assert_eq!(tries(&kept), [("c", GONE, 4), ("d", "http://a", 1)], "what is gone stays so");
    }

    #[test]
    fn endpoints_that_do_not_fit_count_as_gone() {
        let mut kept = report(&[("c", "http://a")]);
        for n in 0..100 {
            assert!(kept.add_up_to(5, &report(&[("c", "http://a"), ("c", &format!("http://{n}"))])));
        }
        assert_eq!(tries(&kept), [("c", GONE, 99), ("c", "http://0", 1), ("c", "http://a", 101)]);
    }

    #[test]
    fn kinds_of_servers_that_are_gone_are_bounded() {
        let mut kept = report(&[("c", "http://a")]);
        let mut is_all = true;
        for n in 0..1_000 {
            let invented = n.to_string();
            is_all &= kept.add_up_to(0, &totals(&[(Subject::Endpoint("c", "http://b"), &invented)]));
        }
        assert!(!is_all);
        assert!(kept.n_series() < 3 + 1 + 2 * MAX_GONE_SERIES, "{}", kept.n_series());
    }
}
