//! `[limits]` and `[timeouts]`.

use crate::http::h1::head::MAX_HEADERS;

use super::super::source::At;
use super::super::{Limits, Timeouts, file};
use super::Checker;
use super::values::to_usize;

/// A head is held in memory while it is read: this is the most that a slow client costs.
const LARGEST_HEAD: u64 = 1 << 20;

impl Checker<'_> {
    pub(super) fn limits(&mut self, raw: file::LimitsTable) -> Limits {
        let defaults = Limits::default();
        let line = self.size("limits.request_line_bytes", raw.request_line_bytes.as_ref(), 64..=LARGEST_HEAD);
        let head = self.size("limits.head_bytes", raw.head_bytes.as_ref(), 64..=LARGEST_HEAD);
        let body = self.size("limits.body_bytes", raw.body_bytes.as_ref(), 1..=u64::MAX);
        let requests = raw.requests_per_connection;
        let limits = Limits {
            request_line_bytes: line.map_or(defaults.request_line_bytes, to_usize),
            head_bytes: head.map_or(defaults.head_bytes, to_usize),
            headers: self.integer(
                "limits.headers",
                raw.headers.as_ref(),
                1..=MAX_HEADERS as i64,
                defaults.headers,
            ),
            body_bytes: body,
            requests_per_connection: requests.map(|requests| {
                self.integer("limits.requests_per_connection", Some(&requests), 1..=i64::MAX, 1)
            }),
        };
        if limits.head_bytes < limits.request_line_bytes {
            let at = raw.head_bytes.or(raw.request_line_bytes).map_or(0, |key| key.at());
            let (head, line) = (limits.head_bytes, limits.request_line_bytes);
            let text =
                format!("limits.head_bytes: {head} is less than the {line} of limits.request_line_bytes");
            self.report.error(at, format!("{text}, and the line is part of the head"));
        }
        limits
    }

    pub(super) fn timeouts(&mut self, raw: file::TimeoutsTable) -> Timeouts {
        let defaults = Timeouts::default();
        Timeouts {
            request_head: self.time(
                "timeouts.request_head",
                raw.request_head.as_ref(),
                defaults.request_head,
            ),
            handshake: self.time("timeouts.handshake", raw.handshake.as_ref(), defaults.handshake),
            body: self.time("timeouts.body", raw.body.as_ref(), defaults.body),
            request: self.limit_of_time("timeouts.request", raw.request.as_ref()),
            tunnel: self.time("timeouts.tunnel", raw.tunnel.as_ref(), defaults.tunnel),
            keepalive: self.time("timeouts.keepalive", raw.keepalive.as_ref(), defaults.keepalive),
            // Zero is valid: requests are cut at once.
            drain: raw.drain.map_or(defaults.drain, |drain| drain.get_ref().0),
            stop_delay: raw.stop_delay.map_or(defaults.stop_delay, |delay| delay.get_ref().0),
        }
    }
}
