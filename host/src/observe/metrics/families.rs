//! Sinks for the walk over all metric families: text for a scrape, or totals for the next generation.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use super::format::{FamilyKind, SampleValue, Text, Unit};
use super::totals::{ENDPOINTS, Label, Times, Totals, key};

/// Takes families one after the other.
pub(super) enum MetricSink<'a> {
    /// Text, with the counts of earlier generations in every sum.
    Text(&'a mut Text, Arc<Totals>),
    /// Counts of this worker only.
    Totals(&'a mut Totals),
    /// The names of those that are in totals.
    Names(&'a mut BTreeSet<Box<str>>),
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
        let Self::Text(out, _) = self else { return Ok(()) };
        out.family(name, FamilyKind::Info, None, help)?;
        let mut labels_text = String::new();
        key(&labels, &mut labels_text);
        out.sample("_info", &labels_text, 1_u64)
    }

    /// A family of counters. Those of [`Unit::Seconds`] are given in nanoseconds.
    pub(super) fn counter<'l, const N: usize>(
        &mut self,
        name: &str,
        unit: Option<&Unit>,
        help: &str,
        series: impl IntoIterator<Item = ([Label<'l>; N], u64)>,
    ) -> fmt::Result {
        self.counter_from(0, name, unit, help, series)
    }

    /// A family of counters that appear once they are above zero.
    pub(super) fn rare_counter<'l, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = ([Label<'l>; N], u64)>,
    ) -> fmt::Result {
        self.counter_from(1, name, None, help, series)
    }

    fn counter_from<'l, const N: usize>(
        &mut self,
        least: u64,
        name: &str,
        unit: Option<&Unit>,
        help: &str,
        series: impl IntoIterator<Item = ([Label<'l>; N], u64)>,
    ) -> fmt::Result {
        let mut labels_text = String::new();
        match self {
            Self::Names(names) => _ = names.insert(name.into()),
            Self::Totals(totals) => {
                let mut counted = BTreeMap::new();
                for (labels, n) in series {
                    if n > 0 || name == ENDPOINTS {
                        key(&labels, &mut labels_text);
                        counted.insert(labels_text.as_str().into(), n);
                    }
                }
                totals.put_counters(name, counted);
            }
            Self::Text(out, base) => {
                out.family(name, FamilyKind::Counter, unit, help)?;
                let base = base.counters(name);
                for (labels, n) in series {
                    key(&labels, &mut labels_text);
                    let before = base.and_then(|base| base.get(labels_text.as_str()));
                    let n = n.wrapping_add(before.copied().unwrap_or(0));
                    if n < least {
                        continue;
                    }
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
        let Self::Text(out, _) = self else { return Ok(()) };
        out.family(name, FamilyKind::Counter, Some(&Unit::Seconds), help)?;
        out.sample("_total", "", value)
    }

    /// A family of gauges.
    pub(super) fn gauge<'l, const N: usize, V: SampleValue>(
        &mut self,
        name: &str,
        unit: Option<&Unit>,
        help: &str,
        series: impl IntoIterator<Item = ([Label<'l>; N], V)>,
    ) -> fmt::Result {
        let Self::Text(out, _) = self else { return Ok(()) };
        out.family(name, FamilyKind::Gauge, unit, help)?;
        let mut labels_text = String::new();
        for (labels, value) in series {
            key(&labels, &mut labels_text);
            out.sample("", &labels_text, value)?;
        }
        Ok(())
    }

    /// A family of histograms, all in seconds.
    pub(super) fn histogram<'l, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = ([Label<'l>; N], HistogramValue)>,
    ) -> fmt::Result {
        let mut labels_text = String::new();
        match self {
            Self::Names(names) => _ = names.insert(name.into()),
            Self::Totals(totals) => {
                let mut counted = BTreeMap::new();
                for (labels, HistogramValue { times, .. }) in series {
                    if times.count() > 0 {
                        key(&labels, &mut labels_text);
                        counted.insert(labels_text.as_str().into(), times);
                    }
                }
                totals.put_histograms(name, counted);
            }
            Self::Text(out, base) => {
                out.family(name, FamilyKind::Histogram, Some(&Unit::Seconds), help)?;
                let base = base.histograms(name);
                for (labels, HistogramValue { mut times, bound }) in series {
                    key(&labels, &mut labels_text);
                    if let Some(before) = base.and_then(|base| base.get(labels_text.as_str())) {
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

pub(super) fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}
