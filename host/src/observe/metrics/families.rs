//! Sinks for the walk over all metric families: text for a scrape, or totals for the next generation.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use super::format::{FamilyKind, Label, SampleValue, Text, Unit, label, write_labels};
use super::totals::{SeriesKey, Subject, Times, Totals};

/// Takes families one after the other.
pub(super) enum MetricSink<'a> {
    /// Text, with the counts of earlier generations in every sum; where a cluster is named, without the series of others.
    Text(&'a mut Text, Arc<Totals>, Option<&'a str>),
    /// Counts of this worker only.
    Totals(&'a mut Totals),
    /// The names of those that are in totals.
    Names(&'a mut BTreeSet<Box<str>>),
}

/// The labels of one series.
#[derive(Clone, Copy, Debug)]
pub(super) struct SeriesLabels<'a, const N: usize> {
    pub(super) subject: Subject<'a>,
    /// Further labels.
    pub(super) kinds: [Label<'a>; N],
}

/// One histogram.
pub(super) struct HistogramValue {
    pub(super) times: Times,
    /// Bound of each bucket, in seconds.
    pub(super) bound: fn(usize) -> f64,
}

impl MetricSink<'_> {
    /// A family of constants.
    pub(super) fn info<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        labels: [Label<'_>; N],
    ) -> fmt::Result {
        let Self::Text(out, ..) = self else { return Ok(()) };
        out.family(name, FamilyKind::Info, None, help)?;
        let mut labels_text = String::new();
        write_labels(&labels, &mut labels_text);
        out.sample("_info", &labels_text, 1_u64)
    }

    /// A family of counters. Those of [`Unit::Seconds`] are given in nanoseconds.
    pub(super) fn counter<'l, const N: usize>(
        &mut self,
        name: &str,
        unit: Option<&Unit>,
        help: &str,
        series: impl IntoIterator<Item = (SeriesLabels<'l, N>, u64)>,
    ) -> fmt::Result {
        self.counter_from(0, name, unit, help, series)
    }

    /// A family of counters that appear once they are above zero.
    pub(super) fn rare_counter<'l, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = (SeriesLabels<'l, N>, u64)>,
    ) -> fmt::Result {
        self.counter_from(1, name, None, help, series)
    }

    fn counter_from<'l, const N: usize>(
        &mut self,
        least: u64,
        name: &str,
        unit: Option<&Unit>,
        help: &str,
        series: impl IntoIterator<Item = (SeriesLabels<'l, N>, u64)>,
    ) -> fmt::Result {
        let mut labels_text = String::new();
        match self {
            Self::Names(names) => _ = names.insert(name.into()),
            Self::Totals(totals) => {
                for (labels, n) in series {
                    // Totals name each endpoint.
                    if n > 0 || matches!(labels.subject, Subject::Endpoint(..)) {
                        totals.counts_mut(labels.subject).put_counter(labels.key(name), n);
                    }
                }
            }
            Self::Text(out, base, only) => {
                out.family(name, FamilyKind::Counter, unit, help)?;
                for (labels, n) in series.into_iter().filter(|(labels, _)| labels.is_of(*only)) {
                    let before = base.counts(labels.subject);
                    let before = before.and_then(|before| before.counter(&labels.key(name)));
                    let n = n.wrapping_add(before.unwrap_or(0));
                    if n < least {
                        continue;
                    }
                    labels.write(&mut labels_text);
                    match unit {
                        Some(Unit::Seconds) => out.sample("_total", &labels_text, seconds(n))?,
                        _ => out.sample("_total", &labels_text, n)?,
                    }
                }
            }
        }
        Ok(())
    }

    /// A counter of the process, which begins at zero in each process.
    pub(super) fn process_seconds(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        let Self::Text(out, ..) = self else { return Ok(()) };
        out.family(name, FamilyKind::Counter, Some(&Unit::Seconds), help)?;
        out.sample("_total", "", value)
    }

    /// A family of gauges.
    pub(super) fn gauge<'l, const N: usize, V: SampleValue>(
        &mut self,
        name: &str,
        unit: Option<&Unit>,
        help: &str,
        series: impl IntoIterator<Item = (SeriesLabels<'l, N>, V)>,
    ) -> fmt::Result {
        let Self::Text(out, _, only) = self else { return Ok(()) };
        out.family(name, FamilyKind::Gauge, unit, help)?;
        let mut labels_text = String::new();
        for (labels, value) in series.into_iter().filter(|(labels, _)| labels.is_of(*only)) {
            labels.write(&mut labels_text);
            out.sample("", &labels_text, value)?;
        }
        Ok(())
    }

    /// Whether gauges are shown.
    pub(super) fn is_text(&self) -> bool {
        matches!(self, Self::Text(..))
    }

    /// A family of histograms, all in seconds.
    pub(super) fn histogram<'l, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = (SeriesLabels<'l, N>, HistogramValue)>,
    ) -> fmt::Result {
        let mut labels_text = String::new();
        match self {
            Self::Names(names) => _ = names.insert(name.into()),
            Self::Totals(totals) => {
                for (labels, HistogramValue { times, .. }) in series {
                    if times.count() > 0 {
                        totals.counts_mut(labels.subject).put_histogram(labels.key(name), times);
                    }
                }
            }
            Self::Text(out, base, only) => {
                out.family(name, FamilyKind::Histogram, Some(&Unit::Seconds), help)?;
                let series = series.into_iter().filter(|(labels, _)| labels.is_of(*only));
                for (labels, HistogramValue { mut times, bound }) in series {
                    labels.write(&mut labels_text);
                    let before = base.counts(labels.subject);
                    if let Some(before) = before.and_then(|before| before.histogram(&labels.key(name))) {
                        times.add(before);
                    }
                    // Buckets are cumulative.
                    let mut count = 0_u64;
                    for (idx, n) in times.buckets.iter().enumerate() {
                        count = count.wrapping_add(*n);
                        out.bucket(bound(idx), &labels_text, count)?;
                    }
                    out.sample("_count", &labels_text, count)?;
                    out.sample("_sum", &labels_text, seconds(times.sum_ns))?;
                }
            }
        }
        Ok(())
    }
}

impl<'a> Subject<'a> {
    /// The labels of a series of this subject, with further ones.
    pub(super) fn with<const N: usize>(self, kinds: [Label<'a>; N]) -> SeriesLabels<'a, N> {
        SeriesLabels { subject: self, kinds }
    }
}

impl<'a, const N: usize> SeriesLabels<'a, N> {
    /// The key in totals of this family's series.
    fn key(&self, family: &'a str) -> SeriesKey<'a> {
        SeriesKey::new(family, self.kinds.map(|kind| kind.value))
    }

    /// Whether it is of this cluster, if one is named.
    fn is_of(&self, cluster: Option<&str>) -> bool {
        let Some(cluster) = cluster else { return true };
        matches!(self.subject, Subject::Cluster(name) | Subject::Endpoint(name, _) if name == cluster)
    }

    /// Replaces `text` by the labels as they are exposed.
    fn write(&self, text: &mut String) {
        text.clear();
        match self.subject {
            Subject::Process => {}
            Subject::Listener(address) => write_labels(&[label("listener", address)], text),
            Subject::Cluster(name) => write_labels(&[label("cluster", name)], text),
            Subject::Endpoint(cluster, endpoint) => {
                write_labels(&[label("cluster", cluster), label("endpoint", endpoint)], text);
            }
        }
        write_labels(&self.kinds, text);
    }
}

pub(super) fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}
