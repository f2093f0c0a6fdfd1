//! The form of a line.

use std::io::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{Entry, Try};
use crate::net::address::UNIX;

impl Entry<'_> {
    pub(super) fn format<'t>(
        &self,
        line: &mut Vec<u8>,
        date: &[u8],
        tries: impl IntoIterator<Item = Try<'t>>,
    ) {
        match self.client {
            Some(client) => put(line, format_args!("{client} - - [")),
            None => put(line, format_args!("{UNIX} - - [")),
        }
        line.extend_from_slice(date);
        line.extend_from_slice(b"] \"");
        if self.method.is_empty() {
            line.push(b'-');
        } else {
            escape(line, self.method);
            line.push(b' ');
            escape(line, self.target);
            line.push(b' ');
            escape(line, self.version.as_bytes());
        }
        put(line, format_args!("\" {:03} {}", self.status, self.body_bytes));
        for field in [self.referer, self.user_agent] {
            line.extend_from_slice(b" \"");
            escape(line, field.unwrap_or(b"-"));
            line.push(b'"');
        }
        for (name, value) in
            [(" cluster=", self.cluster), (" module=", self.module), (" endpoint=", self.endpoint)]
        {
            line.extend_from_slice(name.as_bytes());
            escape_word(line, value);
        }
        line.extend_from_slice(b" tries=\"");
        let mut separator = "";
        for tried in tries {
            line.extend_from_slice(separator.as_bytes());
            separator = ", ";
            escape(line, tried.endpoint.as_bytes());
            line.push(b' ');
            escape(line, tried.result.as_bytes());
            line.push(b' ');
            if tried.status != 0 {
                put(line, format_args!("{:03} ", tried.status));
            }
            put_seconds(line, tried.duration_ns);
        }
        if separator.is_empty() {
            line.push(b'-');
        }
        line.extend_from_slice(b"\" time=");
        put_seconds(line, self.duration_ns);
        line.extend_from_slice(b" first_byte=");
        match self.first_byte_ns {
            Some(ns) => put_seconds(line, ns),
            None => line.push(b'-'),
        }
        if let Some(id) = self.request_id {
            line.extend_from_slice(b" request_id=");
            // Made of what can stand in a line.
            line.extend_from_slice(id);
        }
        line.push(b'\n');
    }
}

fn put(line: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    line.write_fmt(text).expect("writing to a vector cannot fail");
}

fn put_seconds(line: &mut Vec<u8>, ns: u64) {
    let us = ns / 1_000;
    put(line, format_args!("{}.{:06}", us / 1_000_000, us % 1_000_000));
}

/// Bytes for within quotes. What nginx escapes: quotes, backslashes, control bytes, and all that is not ASCII.
fn escape(line: &mut Vec<u8>, bytes: &[u8]) {
    escape_if(line, bytes, |byte| matches!(byte, b'"' | b'\\' | ..b' ' | 0x7f..));
}

/// A word of its own: spaces would end it, and none is a dash.
fn escape_word(line: &mut Vec<u8>, word: Option<&str>) {
    let word = word.filter(|word| !word.is_empty()).unwrap_or("-");
    escape_if(line, word.as_bytes(), |byte| matches!(byte, b'"' | b'\\' | ..=b' ' | 0x7f..));
}

fn escape_if(line: &mut Vec<u8>, mut bytes: &[u8], is_special: impl Fn(u8) -> bool) {
    while let Some(at) = bytes.iter().position(|byte| is_special(*byte)) {
        line.extend_from_slice(&bytes[..at]);
        put(line, format_args!("\\x{:02X}", bytes[at]));
        bytes = &bytes[at + 1..];
    }
    line.extend_from_slice(bytes);
}

/// `23/Nov/2026:01:40:34 +0000`, made once a second.
#[derive(Debug, Default)]
pub(super) struct Date {
    of_s: u64,
    text: Vec<u8>,
}

impl Date {
    pub(super) fn set(&mut self, now: SystemTime) {
        let now_s = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        if now_s == self.of_s && !self.text.is_empty() {
            return;
        }
        self.of_s = now_s;
        // `Mon, 23 Nov 2026 01:40:34 GMT`, which has every part in a fixed place.
        let http = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(now_s));
        self.text.clear();
        put(
            &mut self.text,
            format_args!("{}/{}/{}:{} +0000", &http[5..7], &http[8..11], &http[12..16], &http[17..25]),
        );
    }

    pub(super) fn text(&self) -> &[u8] {
        &self.text
    }
}
