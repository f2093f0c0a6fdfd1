//! A line as a JSON object (RFC 8259) with every field. An unknown value is `null`.

use super::line::{LogDate, LogEntry, Try, put, put_number, put_seconds};
use crate::net::address::UNIX;

impl LogEntry<'_> {
    /// Appends the object and the end of its line.
    pub(super) fn format_json<'t>(
        &self,
        line: &mut Vec<u8>,
        date: &LogDate,
        tries: impl IntoIterator<Item = Try<'t>>,
    ) {
        put(line, "{\"time\":\"");
        date.put_iso(line);
        put(line, "\",\"client\":");
        put_client(line, self);
        text(line, "method", some(self.method));
        text(line, "target", some(self.target));
        text(line, "version", some(self.version.as_bytes()));
        text(line, "host", self.host);
        text(line, "scheme", some(self.scheme.as_bytes()));
        text(line, "tls_version", self.tls.map(|tls| tls.version.as_bytes()));
        text(line, "sni", self.tls.and_then(|tls| tls.name).map(str::as_bytes));
        number(line, "status", self.status.into());
        number(line, "received_bytes", self.received_bytes);
        number(line, "sent_bytes", self.sent_bytes);
        number(line, "body_bytes", self.body_bytes);
        text(line, "referer", self.referer);
        text(line, "user_agent", self.user_agent);
        text(line, "cluster", self.cluster.map(str::as_bytes));
        text(line, "module", self.module.map(str::as_bytes));
        text(line, "endpoint", self.endpoint.map(str::as_bytes));
        put(line, ",\"tries\":[");
        put_tries(line, tries);
        put(line, "],\"duration\":");
        put_seconds(line, self.duration_ns);
        put(line, ",\"first_byte\":");
        match self.first_byte_ns {
            Some(ns) => put_seconds(line, ns),
            None => put(line, "null"),
        }
        text(line, "request_id", self.request_id);
        put(line, "}\n");
    }
}

fn some(text: &[u8]) -> Option<&[u8]> {
    Some(text).filter(|text| !text.is_empty())
}

fn put_client(line: &mut Vec<u8>, entry: &LogEntry<'_>) {
    put(line, "\"");
    match entry.client {
        Some(_) => entry.put_client(line),
        None => put(line, UNIX),
    }
    put(line, "\"");
}

fn put_tries<'t>(line: &mut Vec<u8>, tries: impl IntoIterator<Item = Try<'t>>) {
    let mut separator = "";
    for tried in tries {
        put(line, separator);
        separator = ",";
        put(line, "{\"endpoint\":");
        put_text(line, Some(tried.endpoint.as_bytes()));
        text(line, "result", Some(tried.result.as_bytes()));
        put(line, ",\"status\":");
        match tried.status {
            0 => put(line, "null"),
            status => put_number(line, status.into()),
        }
        put(line, ",\"time\":");
        put_seconds(line, tried.duration_ns);
        if let Some(reason) = tried.reason {
            text(line, "reason", Some(reason.as_bytes()));
        }
        put(line, "}");
    }
}

/// Appends `,"name":number`.
fn number(line: &mut Vec<u8>, name: &str, number: u64) {
    put_name(line, name);
    put_number(line, number);
}

/// Appends `,"name":"text"`.
fn text(line: &mut Vec<u8>, name: &str, text: Option<&[u8]>) {
    put_name(line, name);
    put_text(line, text);
}

fn put_name(line: &mut Vec<u8>, name: &str) {
    put(line, ",\"");
    put(line, name);
    put(line, "\":");
}

/// Appends a string. Bytes that are not UTF-8 become U+FFFD, so that every line is valid.
fn put_text(line: &mut Vec<u8>, text: Option<&[u8]>) {
    let Some(text) = text else { return put(line, "null") };
    put(line, "\"");
    let is_plain = |byte: &u8| matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\');
    if text.iter().all(is_plain) {
        put(line, text);
    } else {
        put_odd(line, text);
    }
    put(line, "\"");
}

#[cold]
fn put_odd(line: &mut Vec<u8>, text: &[u8]) {
    for chunk in text.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '"' => put(line, "\\\""),
                '\\' => put(line, "\\\\"),
                // Also those that a terminal would obey.
                c if c.is_control() => put(line, format!("\\u{:04x}", u32::from(c))),
                c => put(line, c.encode_utf8(&mut [0; 4])),
            }
        }
        if !chunk.invalid().is_empty() {
            put(line, "\u{fffd}");
        }
    }
}
