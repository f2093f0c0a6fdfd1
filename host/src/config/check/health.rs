//! `ejection`, `health_check` and `panic_threshold` of a cluster.

use std::ops::RangeInclusive;
use std::time::Duration;

use http::uri::PathAndQuery;
use toml::Spanned;

use super::super::source::{At, Span};
use super::super::units::{StatusRange, show_time};
use super::super::{CountedStatuses, Ejection, HealthCheck, HttpProbe, Probe, ProbeMethod, file};
use super::{Checker, address};

/// Twelve a minute: seldom enough to cost nothing, often enough that a server is down after a quarter of one.
const INTERVAL: Duration = Duration::from_secs(5);
/// A health page that takes longer is not well.
const TIMEOUT: Duration = Duration::from_secs(2);
/// HAProxy's.
const RISE: u32 = 2;
const FALL: u32 = 3;
/// nginx's and HAProxy's: what is neither an error of the client's nor the server's.
const STATUSES: RangeInclusive<u16> = 200..=399;

/// More in a row is a mistake of unit.
const MOST_IN_ROW: i64 = 1000;

impl Checker<'_> {
    pub(super) fn ejection(&mut self, cluster: &str, raw: Option<file::EjectionTable>) -> Ejection {
        let default = Ejection::default();
        let Some(raw) = raw else { return default };
        let key = |key: &str| format!("{cluster}: ejection.{key}");
        let time = self.time(&key("time"), raw.time.as_ref(), default.time);
        // A longer time that stands alone is on purpose.
        let max_time = self.time(&key("max_time"), raw.max_time.as_ref(), default.max_time.max(time));
        let ejection = Ejection {
            failures: self.integer(
                &key("failures"),
                raw.failures.as_ref(),
                0..=MOST_IN_ROW,
                default.failures,
            ),
            statuses: raw
                .statuses
                .map_or(default.statuses, |text| self.counted_statuses(&key("statuses"), &text)),
            failure_percent: self.integer(
                &key("failure_percent"),
                raw.failure_percent.as_ref(),
                0..=100,
                default.failure_percent,
            ),
            interval: self.time(&key("interval"), raw.interval.as_ref(), default.interval),
            min_requests: self.integer(
                &key("min_requests"),
                raw.min_requests.as_ref(),
                1..=1_000_000,
                default.min_requests,
            ),
            time,
            max_time,
            max_percent: self.integer(
                &key("max_percent"),
                raw.max_percent.as_ref(),
                1..=100,
                default.max_percent,
            ),
        };
        if ejection.max_time < ejection.time {
            let at = raw.max_time.or(raw.time).map_or(0, |time| time.at());
            let (max, time) = (show_time(ejection.max_time), show_time(ejection.time));
            let text =
                format!("{cluster}: ejection.max_time: {max} is less than the {time} of ejection.time");
            self.report.error(at, text);
        }
        ejection
    }

    fn counted_statuses(&mut self, object: &str, text: &Spanned<String>) -> CountedStatuses {
        match text.get_ref().as_str() {
            "none" => CountedStatuses::None,
            "gateway" => CountedStatuses::Gateway,
            "5xx" => CountedStatuses::All5xx,
            other => {
                let right = "\"none\", \"gateway\" (502, 503 and 504) and \"5xx\"";
                self.report.error(text.at(), format!("{object}: {other:?} is not one of {right}"));
                CountedStatuses::None
            }
        }
    }

    pub(super) fn health_check(
        &mut self,
        cluster: &str,
        raw: Spanned<file::HealthCheckTable>,
    ) -> Option<HealthCheck> {
        let (at, span, raw) = (raw.at(), raw.span(), raw.into_inner());
        let object = format!("{cluster}: health_check");
        let key = |key: &str| format!("{object}.{key}");
        let interval = self.time(&key("interval"), raw.interval.as_ref(), INTERVAL);
        let timeout = self.time(&key("timeout"), raw.timeout.as_ref(), TIMEOUT.min(interval));
        if timeout > interval {
            let at = raw.timeout.as_ref().or(raw.interval.as_ref()).map_or(at, At::at);
            let (timeout, interval) = (show_time(timeout), show_time(interval));
            let what = format!("timeout: {timeout} is longer than the interval of {interval}");
            let text = format!("{object}.{what}, so that a silent server is noticed late");
            self.report.warn(self.report.place(at), text);
        }
        let rise = self.integer(&key("rise"), raw.rise.as_ref(), 1..=MOST_IN_ROW, RISE);
        let fall = self.integer(&key("fall"), raw.fall.as_ref(), 1..=MOST_IN_ROW, FALL);
        let port = raw.port.as_ref();
        let port = port.map(|port| self.integer(&key("port"), Some(port), 1..=65_535, 1));
        let http = [
            ("method", raw.method.as_ref().map(At::at)),
            ("path", raw.path.as_ref().map(At::at)),
            ("host", raw.host.as_ref().map(At::at)),
            ("statuses", raw.statuses.as_ref().map(At::at)),
            ("body", raw.body.as_ref().map(At::at)),
        ];
        let grpc = [("service", raw.service.as_ref().map(At::at))];
        let kind = raw.kind.as_ref().map_or("http", |kind| kind.get_ref());
        let (probe, foreign) = match kind {
            "http" => (self.http_probe(&object, &span, &raw).map(Probe::Http), &grpc[..]),
            "tcp" => (Some(Probe::Tcp), &[&http[..], &grpc[..]].concat()[..]),
            "grpc" => {
                let service = raw.service.as_ref().map_or("", |service| service.get_ref());
                (Some(Probe::Grpc { service: service.into() }), &http[..])
            }
            other => {
                let at = raw.kind.as_ref().map_or(at, At::at);
                let right = "\"http\", \"tcp\" and \"grpc\"";
                self.report.error(at, format!("{object}.type: {other:?} is not one of {right}"));
                return None;
            }
        };
        for (key, at) in foreign {
            if let Some(at) = at {
                self.report.error(*at, format!("{object}.{key} is not for checks of type \"{kind}\""));
            }
        }
        Some(HealthCheck { probe: probe?, interval, timeout, rise, fall, port })
    }

    fn http_probe(&mut self, object: &str, span: &Span, raw: &file::HealthCheckTable) -> Option<HttpProbe> {
        let method = match &raw.method {
            None => ProbeMethod::Get,
            Some(method) => match method.get_ref().as_str() {
                "GET" => ProbeMethod::Get,
                "HEAD" => ProbeMethod::Head,
                other => {
                    let text = format!("{object}.method: {other:?} is not one of \"GET\" and \"HEAD\"");
                    self.report.error(method.at(), text);
                    return None;
                }
            },
        };
        let path = raw.path.as_ref().map_or("/", |path| path.get_ref());
        let is_path = path.starts_with('/') && !path.contains('#') && path.parse::<PathAndQuery>().is_ok();
        if !is_path {
            let right = "it begins with \"/\" and has no space; write, for example, \"/healthz\"";
            let at = raw.path.as_ref().map_or(0, At::at);
            self.report.error(at, format!("{object}.path: {path:?} is not a valid path ({right})"));
            return None;
        }
        if let Some(host) = &raw.host
            && let Err(reason) = address::check_host_header(host.get_ref())
        {
            self.report.error(host.at(), format!("{object}.host: {reason}"));
            return None;
        }
        if let (Some(body), ProbeMethod::Head) = (&raw.body, method) {
            let right = "a response to HEAD has none; write method = \"GET\"";
            self.report.error(body.at(), format!("{object}.body: needs a body ({right})"));
        }
        // An earlier error may be about the same value.
        let is_empty = |list: &&Spanned<Vec<StatusRange>>| {
            list.get_ref().is_empty() && !self.report.is_lost(span, "statuses")
        };
        if let Some(statuses) = raw.statuses.as_ref().filter(is_empty) {
            let right = "write, for example, [200, \"3xx\"]";
            self.report.error(statuses.at(), format!("{object}.statuses: is empty ({right})"));
        }
        let statuses = raw.statuses.as_ref().map_or_else(
            || vec![STATUSES],
            |list| list.get_ref().iter().map(|StatusRange(range)| range.clone()).collect(),
        );
        Some(HttpProbe {
            method,
            path: path.into(),
            host: raw.host.as_ref().map(|host| host.get_ref().as_str().into()),
            statuses,
            body: raw.body.as_ref().map(|body| body.get_ref().as_str().into()),
        })
    }
}
