//! Where the walk over all families ends up: in a text for who scrapes, or in totals for who carries them on.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use prometheus_client::encoding::{
    DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, MetricEncoder, NoLabelSet,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

use super::totals::{Times, Totals, key};

/// Name and value.
pub(super) type Label<'a> = (&'static str, &'a str);

/// Takes families one after the other.
pub(super) enum Families<'a> {
    /// As text, with what earlier generations counted in every sum.
    Text(DescriptorEncoder<'a>, Arc<Totals>),
    /// What this worker counted, and nothing else.
    Totals(&'a mut Totals),
}

/// One histogram.
pub(super) struct Histogram {
    pub(super) times: Times,
    /// Bound of each bucket, in seconds.
    pub(super) bound: fn(usize) -> f64,
}

impl Families<'_> {
    /// A family of constants.
    pub(super) fn info<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        labels: [Label<'_>; N],
    ) -> fmt::Result {
        let Self::Text(out, _) = self else { return Ok(()) };
        out.encode_descriptor(name, help, None, MetricType::Info)?.encode_info(&labels)
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

    /// A family of counters that appear once they are not zero.
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
            Self::Totals(totals) => {
                let mut counted = BTreeMap::new();
                for (labels, n) in series {
                    if n > 0 {
                        key(&labels, &mut labels_text);
                        counted.insert(labels_text.as_str().into(), n);
                    }
                }
                totals.put_counters(name, counted);
            }
            Self::Text(out, base) => {
                let mut family = out.encode_descriptor(name, help, unit, MetricType::Counter)?;
                let base = base.counters(name);
                for (labels, n) in series {
                    let before = base.and_then(|base| {
                        key(&labels, &mut labels_text);
                        base.get(labels_text.as_str())
                    });
                    let n = n.wrapping_add(before.copied().unwrap_or(0));
                    if n < least {
                        continue;
                    }
                    match unit {
                        Some(Unit::Seconds) => encode_counter(&mut family, &labels, &seconds(n))?,
                        _ => encode_counter(&mut family, &labels, &n)?,
                    }
                }
            }
        }
        Ok(())
    }

    /// A counter of the process and not of what it does: it begins anew with each.
    pub(super) fn process_seconds(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        let Self::Text(out, _) = self else { return Ok(()) };
        let mut family = out.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Counter)?;
        encode_counter(&mut family, &[], &value)
    }

    /// A family of gauges.
    pub(super) fn gauge<'l, const N: usize, V: EncodeGaugeValue>(
        &mut self,
        name: &str,
        unit: Option<&Unit>,
        help: &str,
        series: impl IntoIterator<Item = ([Label<'l>; N], V)>,
    ) -> fmt::Result {
        let Self::Text(out, _) = self else { return Ok(()) };
        let mut family = out.encode_descriptor(name, help, unit, MetricType::Gauge)?;
        for (labels, value) in series {
            if N == 0 {
                family.encode_gauge(&value)?;
            } else {
                family.encode_family(&labels)?.encode_gauge(&value)?;
            }
        }
        Ok(())
    }

    /// A family of histograms, which are all of seconds.
    pub(super) fn histogram<'l, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = ([Label<'l>; N], Histogram)>,
    ) -> fmt::Result {
        let mut labels_text = String::new();
        match self {
            Self::Totals(totals) => {
                let mut counted = BTreeMap::new();
                for (labels, Histogram { times, .. }) in series {
                    if times.count() > 0 {
                        key(&labels, &mut labels_text);
                        counted.insert(labels_text.as_str().into(), times);
                    }
                }
                totals.put_histograms(name, counted);
            }
            Self::Text(out, base) => {
                let unit = Some(&Unit::Seconds);
                let mut family = out.encode_descriptor(name, help, unit, MetricType::Histogram)?;
                let base = base.histograms(name);
                for (labels, Histogram { mut times, bound }) in series {
                    let before = base.and_then(|base| {
                        key(&labels, &mut labels_text);
                        base.get(labels_text.as_str())
                    });
                    if let Some(before) = before {
                        times.add(before);
                    }
                    let buckets: Vec<(f64, u64)> =
                        times.buckets.iter().enumerate().map(|(idx, n)| (bound(idx), *n)).collect();
                    family.encode_family(&labels)?.encode_histogram::<NoLabelSet>(
                        seconds(times.sum_ns),
                        times.count(),
                        &buckets,
                        None,
                    )?;
                }
            }
        }
        Ok(())
    }
}

fn encode_counter(
    family: &mut MetricEncoder<'_>,
    labels: &[Label<'_>],
    value: &impl EncodeCounterValue,
) -> fmt::Result {
    if labels.is_empty() {
        return family.encode_counter::<NoLabelSet, _, u64>(value, None);
    }
    family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(value, None)
}

pub(super) fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}
