//! The form of a line.

use std::io::Write;
use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::net::address::UNIX;

/// The line of one request. Text may be any bytes; those that could end a field or a line are escaped.
#[derive(Clone, Copy, Debug)]
pub struct LogEntry<'a> {
    /// Address of the client; `None` over a Unix socket.
    pub client: Option<IpAddr>,
    /// Method as sent; empty if the request could not be parsed.
    pub method: &'a [u8],
    /// Target as sent.
    pub target: &'a [u8],
    /// `HTTP/1.1` or `HTTP/1.0`.
    pub version: &'a str,
    /// Host and port that the client asked for.
    pub host: Option<&'a [u8]>,
    /// `http` or `https`, as the client sees it.
    pub scheme: &'static str,
    /// TLS of its connection.
    pub tls: Option<TlsSeen<'a>>,
    /// Bytes of the request, as far as they were read.
    pub received_bytes: u64,
    /// Bytes of the response that were sent, with its head.
    pub sent_bytes: u64,
    /// Status sent to the client; 0 if none.
    pub status: u16,
    /// Bytes of the response's body sent to the client.
    pub body_bytes: u64,
    /// `Referer`, if any.
    pub referer: Option<&'a [u8]>,
    /// `User-Agent`, if any.
    pub user_agent: Option<&'a [u8]>,
    /// Name of the cluster; `None` if no route matched.
    pub cluster: Option<&'a str>,
    /// Module ID of the cluster's balancer.
    pub module: Option<&'a str>,
    /// URL of the endpoint that the response comes from.
    pub endpoint: Option<&'a str>,
    /// From the end of the request's head to the end of the response.
    pub duration_ns: u64,
    /// From the end of the request's head to the response's head, if a server answered.
    pub first_byte_ns: Option<u64>,
    /// The request's ID, if any.
    pub request_id: Option<&'a [u8]>,
}

/// TLS of a connection, as the log has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TlsSeen<'a> {
    /// `1.2` or `1.3`.
    pub version: &'static str,
    /// The name that the client asked for (SNI).
    pub name: Option<&'a str>,
}

/// One try of a request.
#[derive(Clone, Copy, Debug)]
pub struct Try<'a> {
    /// URL of the endpoint.
    pub endpoint: &'a str,
    /// How it ended, in one word: [`crate::observe::metrics::try_result`], or [`crate::observe::metrics::failure`] where it was not
    /// established.
    pub result: &'a str,
    /// Status of the server's response, also of one that was not passed on. 0 is no response; then it is not written.
    pub status: u16,
    /// How long it took.
    pub duration_ns: u64,
    /// Why it failed, in words.
    pub reason: Option<&'a str>,
}

impl LogEntry<'_> {
    /// Appends the line.
    pub(super) fn format<'t>(
        &self,
        line: &mut Vec<u8>,
        date: &[u8],
        tries: impl IntoIterator<Item = Try<'t>>,
    ) {
        self.put_combined(line, date);
        put_word(line, " cluster=", self.cluster);
        put_word(line, " module=", self.module);
        put_word(line, " endpoint=", self.endpoint);
        put(line, " tries=\"");
        put_tries(line, tries);
        put(line, "\" time=");
        put_seconds(line, self.duration_ns);
        put(line, " first_byte=");
        match self.first_byte_ns {
            Some(ns) => put_seconds(line, ns),
            None => put(line, "-"),
        }
        if let Some(id) = self.request_id {
            put(line, " request_id=");
            // Its bytes need no escapes.
            put(line, id);
        }
        put(line, "\n");
    }

    /// Appends the line in combined format, and nothing else.
    pub(super) fn format_combined(&self, line: &mut Vec<u8>, date: &[u8]) {
        self.put_combined(line, date);
        put(line, "\n");
    }

    fn put_combined(&self, line: &mut Vec<u8>, date: &[u8]) {
        self.put_client(line);
        put(line, " - - [");
        put(line, date);
        put(line, "] \"");
        self.put_request(line);
        put_format(line, format_args!("\" {:03} {}", self.status, self.body_bytes));
        put_quoted(line, self.referer);
        put_quoted(line, self.user_agent);
    }

    pub(super) fn put_client(&self, line: &mut Vec<u8>) {
        match self.client {
            Some(client) => put_format(line, format_args!("{client}")),
            None => put(line, UNIX),
        }
    }

    fn put_request(&self, line: &mut Vec<u8>) {
        if self.method.is_empty() {
            return put(line, "-");
        }
        escape(line, self.method);
        put(line, " ");
        escape(line, self.target);
        put(line, " ");
        escape(line, self.version.as_bytes());
    }
}

pub(super) fn put_tries<'t>(line: &mut Vec<u8>, tries: impl IntoIterator<Item = Try<'t>>) {
    let mut separator = "";
    for tried in tries {
        put(line, separator);
        separator = ", ";
        escape(line, tried.endpoint.as_bytes());
        put(line, " ");
        escape(line, tried.result.as_bytes());
        put(line, " ");
        if tried.status != 0 {
            put_format(line, format_args!("{:03} ", tried.status));
        }
        put_seconds(line, tried.duration_ns);
    }
    if separator.is_empty() {
        put(line, "-");
    }
}

pub(super) fn put(line: &mut Vec<u8>, text: impl AsRef<[u8]>) {
    line.extend_from_slice(text.as_ref());
}

/// Appends a header's value in quotes.
fn put_quoted(line: &mut Vec<u8>, value: Option<&[u8]>) {
    put(line, " \"");
    escape(line, value.unwrap_or(b"-"));
    put(line, "\"");
}

fn put_format(line: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    line.write_fmt(text).expect("writing to a vector cannot fail");
}

/// Appends a number. It is on the way of every request that is logged.
pub(super) fn put_number(line: &mut Vec<u8>, number: u64) {
    put_digits(line, number, 1);
}

/// Appends a number with at least so many digits.
fn put_digits(line: &mut Vec<u8>, mut number: u64, least: usize) {
    let (mut digits, mut at) = ([b'0'; 20], 20);
    while number > 0 {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
    }
    line.extend_from_slice(&digits[at.min(20 - least)..]);
}

pub(super) fn put_seconds(line: &mut Vec<u8>, ns: u64) {
    let us = ns / 1_000;
    put_number(line, us / 1_000_000);
    line.push(b'.');
    put_digits(line, us % 1_000_000, 6);
}

/// Appends bytes inside quotes. Escapes what nginx escapes: quotes, backslashes, control bytes, and non-ASCII bytes.
pub(super) fn escape(line: &mut Vec<u8>, bytes: &[u8]) {
    escape_if(line, bytes, |byte| matches!(byte, b'"' | b'\\' | ..b' ' | 0x7f..));
}

/// Appends `name=` and a word. A space would end the word; an absent one is a dash.
fn put_word(line: &mut Vec<u8>, name: &str, word: Option<&str>) {
    put(line, name);
    let word = word.filter(|word| !word.is_empty()).unwrap_or("-");
    escape_if(line, word.as_bytes(), |byte| matches!(byte, b'"' | b'\\' | ..=b' ' | 0x7f..));
}

fn escape_if(line: &mut Vec<u8>, mut bytes: &[u8], is_special: impl Fn(u8) -> bool) {
    while let Some(at) = bytes.iter().position(|byte| is_special(*byte)) {
        line.extend_from_slice(&bytes[..at]);
        put_format(line, format_args!("\\x{:02X}", bytes[at]));
        bytes = &bytes[at + 1..];
    }
    line.extend_from_slice(bytes);
}

const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// `23/Nov/2026:01:40:34 +0000`, made once a second.
#[derive(Debug, Default)]
pub(super) struct LogDate {
    of_s: u64,
    text: Vec<u8>,
    /// `2026-11-23T01:40:34`
    iso: Vec<u8>,
    ms: u32,
}

impl LogDate {
    pub(super) fn set(&mut self, now: SystemTime) {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let now_s = now.as_secs();
        self.ms = now.subsec_millis();
        if now_s == self.of_s && !self.text.is_empty() {
            return;
        }
        self.of_s = now_s;
        // `Mon, 23 Nov 2026 01:40:34 GMT`, which has every part in a fixed place.
        let http = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(now_s));
        self.text.clear();
        put_format(
            &mut self.text,
            format_args!("{}/{}/{}:{} +0000", &http[5..7], &http[8..11], &http[12..16], &http[17..25]),
        );
        let month = MONTHS.iter().position(|name| *name == &http[8..11]).map_or(0, |month| month + 1);
        self.iso.clear();
        put_format(
            &mut self.iso,
            format_args!("{}-{month:02}-{}T{}", &http[12..16], &http[5..7], &http[17..25]),
        );
    }

    /// Appends `2026-11-23T01:40:34.007Z` (RFC 3339).
    pub(super) fn put_iso(&self, line: &mut Vec<u8>) {
        put(line, &self.iso);
        line.push(b'.');
        put_digits(line, self.ms.into(), 3);
        line.push(b'Z');
    }

    pub(super) fn text(&self) -> &[u8] {
        &self.text
    }
}
