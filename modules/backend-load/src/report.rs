//! A server's report of its load in the response header `endpoint-load-metrics` (ORCA,
//! xds.data.orca.v3.OrcaLoadReport):
//!
//! - `TEXT cpu_utilization=0.3, rps_fractional=120, named_metrics.queue=0.7`: names and values, with `=` or with the `:` of
//!   Envoy between them;
//! - `JSON {"cpu_utilization": 0.3, "rps_fractional": 120, "named_metrics": {"queue": 0.7}}`: names as here or as
//!   `cpuUtilization`, numbers as numbers or as strings.
//!
//! As in Envoy a name that the text form does not know is an error, one that JSON does not know is not. Stricter than
//! there, nothing may be below 0.

use std::fmt;

use lb_api::serde::de::{self, Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};

/// The parts of a report that make a weight. A missing part is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Report {
    pub(crate) cpu: f64,
    pub(crate) application: f64,
    pub(crate) requests_per_second: f64,
    pub(crate) errors_per_second: f64,
    /// The largest of the named metrics that the operator wants to be looked at.
    pub(crate) named: f64,
}

/// Why a header is no report.
#[derive(Debug, PartialEq)]
pub(crate) struct Unreadable(String);

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Report {
    /// Reads the header's value. `wanted` are the named metrics to look at.
    pub(crate) fn read(header: &[u8], wanted: &[String]) -> Result<Self, Unreadable> {
        let text = std::str::from_utf8(header).map_err(|_| unreadable("it is not text"))?;
        match text.trim().split_once(' ') {
            Some(("TEXT", fields)) => Self::from_text(fields, wanted),
            Some(("JSON", document)) => Self::from_json(document, wanted),
            _ => Err(unreadable("it begins with neither \"TEXT \" nor \"JSON \"")),
        }
    }

    fn from_text(fields: &str, wanted: &[String]) -> Result<Self, Unreadable> {
        let mut report = Self::default();
        let fields = || fields.split(',').map(str::trim).filter(|field| !field.is_empty());
        for (nth, field) in fields().enumerate() {
            let Some((name, value)) = field.split_once(['=', ':']) else {
                return Err(unreadable("a field has no value"));
            };
            let name = name.trim();
            // Few fields, so that comparing each with all before it beats remembering them.
            if fields().take(nth).any(|field| name_of(field) == name) {
                return Err(unreadable("a metric is there twice"));
            }
            let value: f64 = value.trim().parse().map_err(|_| unreadable("a value is no number"))?;
            report
                .set(name, checked(value)?, wanted)
                .ok_or_else(|| unreadable("it has a metric that ORCA does not"))?;
        }
        Ok(report)
    }

    fn from_json(document: &str, wanted: &[String]) -> Result<Self, Unreadable> {
        let mut json = serde_json::Deserializer::from_str(document);
        let report = json.deserialize_map(Fields { wanted }).and_then(|report| json.end().map(|()| report));
        // The parser's own words would repeat what the server sent.
        report.map_err(|error| match error.classify() {
            serde_json::error::Category::Data => unreadable("a value is not what ORCA has there"),
            _ => unreadable("it is not JSON"),
        })
    }

    /// None for a name that there is not.
    fn set(&mut self, name: &str, value: f64, wanted: &[String]) -> Option<()> {
        match name {
            "cpu_utilization" => self.cpu = value,
            "application_utilization" => self.application = value,
            "rps_fractional" => self.requests_per_second = value,
            "eps" => self.errors_per_second = value,
            "mem_utilization" => {}
            _ => match name.strip_prefix("named_metrics.") {
                Some("") | None => return None,
                Some(name) if wanted.iter().any(|wanted| wanted == name) => {
                    self.named = self.named.max(value);
                }
                Some(_) => {}
            },
        }
        Some(())
    }

    /// Requests in a second at full use of the server: what it can take, in its own words. Errors count as use, so that
    /// a server that fails fast does not look idle.
    pub(crate) fn weight(&self, error_penalty: f64) -> Result<u32, Unreadable> {
        if self.requests_per_second <= 0.0 {
            return Err(unreadable("it has no rps_fractional above 0"));
        }
        let known =
            [self.named, self.application, self.cpu].into_iter().find(|utilization| *utilization > 0.0);
        let utilization =
            known.unwrap_or(0.0) + self.errors_per_second / self.requests_per_second * error_penalty;
        if utilization <= 0.0 {
            return Err(unreadable("it has no utilization above 0"));
        }
        // As Envoy: whole numbers, at least 1.
        Ok(((self.requests_per_second / utilization) as u32).max(1))
    }
}

fn name_of(field: &str) -> &str {
    field.split(['=', ':']).next().unwrap_or(field).trim()
}

fn checked(value: f64) -> Result<f64, Unreadable> {
    if value.is_finite() && value >= 0.0 {
        Ok(value)
    } else {
        Err(unreadable("a value is below 0 or no number"))
    }
}

fn unreadable(why: &str) -> Unreadable {
    Unreadable(why.to_owned())
}

/// The JSON object.
struct Fields<'a> {
    wanted: &'a [String],
}

impl<'de> Visitor<'de> for Fields<'_> {
    type Value = Report;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a load report")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Report, A::Error> {
        let mut report = Report::default();
        while let Some(name) = map.next_key::<String>()? {
            let place = match name.as_str() {
                "cpu_utilization" | "cpuUtilization" => &mut report.cpu,
                "application_utilization" | "applicationUtilization" => &mut report.application,
                "rps_fractional" | "rpsFractional" => &mut report.requests_per_second,
                "eps" => &mut report.errors_per_second,
                "named_metrics" | "namedMetrics" => {
                    let metrics: Named = map.next_value()?;
                    let wanted = metrics.0.into_iter().filter(|(name, _)| self.wanted.contains(name));
                    report.named = wanted.fold(report.named, |most, (_, value)| most.max(value));
                    continue;
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            *place = map.next_value::<Number>()?.0;
        }
        Ok(report)
    }
}

/// A map of numbers.
struct Named(Vec<(String, f64)>);

impl<'de> Deserialize<'de> for Named {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = Named;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of metrics")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Named, A::Error> {
                let mut metrics = Vec::new();
                while let Some((name, Number(value))) = map.next_entry()? {
                    metrics.push((name, value));
                }
                Ok(Named(metrics))
            }
        }

        deserializer.deserialize_map(Entries)
    }
}

/// A number as protobuf's JSON has it: a number, or a string with one in it; null is 0.
struct Number(f64);

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;

        impl Visitor<'_> for Any {
            type Value = Number;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number from 0 on")
            }

            fn visit_f64<E: de::Error>(self, value: f64) -> Result<Number, E> {
                checked(value).map(Number).map_err(E::custom)
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Number, E> {
                Ok(Number(value as f64))
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Number, E> {
                self.visit_f64(value as f64)
            }

            fn visit_str<E: de::Error>(self, value: &str) -> Result<Number, E> {
                self.visit_f64(value.parse().map_err(E::custom)?)
            }

            fn visit_unit<E: de::Error>(self) -> Result<Number, E> {
                Ok(Number(0.0))
            }
        }

        deserializer.deserialize_any(Any)
    }
}

#[cfg(test)]
mod tests;
