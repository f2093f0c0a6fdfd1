//! Errors as clients see them: the one place that gives an error its status.

use std::io::Write;
use std::time::Instant;

use crate::error::{Error, Side};
use crate::headers;
use crate::http1::head::{Method, Refusal, RequestHead, Version};
use crate::thread::Thread;

/// An error's status, and whether its connection can go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// HTTP status; 0 where nobody is left to get one.
    pub status: u16,
    /// Whether what follows on the connection can be told from what went wrong.
    pub keep: bool,
}

/// What becomes of an error.
pub fn verdict(error: Error) -> Verdict {
    let (status, keep) = match error {
        Error::Head(refusal) => match refusal {
            Refusal::LineTooLong => (414, false),
            Refusal::HeadTooLarge => (431, false),
            Refusal::Version => (505, false),
            Refusal::TransferCoding => (501, false),
            Refusal::Expectation => (417, false),
            Refusal::Malformed(_) => (400, false),
        },
        Error::HeadTimeout | Error::BodyTimeout => (408, false),
        Error::Target(_) | Error::Body(_) => (400, false),
        Error::Method => (405, true),
        Error::BodyTooLarge => (413, false),
        Error::NoRoute => (404, true),
        Error::NoEndpoint | Error::Busy | Error::Overloaded => (503, true),
        Error::Failed | Error::BadResponse => (502, true),
        Error::ServerTimeout => (504, true),
        Error::ClientGone => (0, false),
    };
    Verdict { status, keep }
}

/// Writes the whole response to an error, and returns how much of it is body: one line that says what happened and whose
/// fault it was. `more` is header lines beside those of every such response.
pub fn write_error(
    thread: &Thread,
    error: Error,
    head: Option<&RequestHead>,
    keep: bool,
    more: &[u8],
    now: Instant,
    out: &mut Vec<u8>,
) -> u64 {
    let status = verdict(error).status;
    let who = match error.side() {
        Side::Downstream => "",
        Side::Upstream => "trylist: ",
    };
    let body = format!("{status} {}: {who}{error}\n", reason(status));
    write_head(thread, status, body.len(), now, out);
    let client = head.map_or(Version::Http11, |head| head.version);
    headers::write_connection(keep, client, out);
    match error {
        Error::Method => out.extend_from_slice(b"Allow: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS\r\n"),
        Error::NoEndpoint | Error::Busy | Error::Overloaded => out.extend_from_slice(b"Retry-After: 1\r\n"),
        _ => {}
    }
    out.extend_from_slice(more);
    out.extend_from_slice(b"\r\n");
    if head.is_some_and(|head| head.method == Method::Head) {
        return 0;
    }
    out.extend_from_slice(body.as_bytes());
    body.len() as u64
}

/// Writes the proxy's own answer to OPTIONS that it is not to pass on (`Max-Forwards: 0`).
pub fn write_options(thread: &Thread, head: &RequestHead, keep: bool, now: Instant, out: &mut Vec<u8>) {
    write_head(thread, 204, 0, now, out);
    headers::write_connection(keep, head.version, out);
    out.extend_from_slice(b"Allow: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS\r\n\r\n");
}

fn write_head(thread: &Thread, status: u16, body_bytes: usize, now: Instant, out: &mut Vec<u8>) {
    // Writing to a vector cannot fail.
    let _ = write!(out, "HTTP/1.1 {status} {}\r\nServer: trylist\r\nDate: ", reason(status));
    thread.write_date(now, out);
    out.extend_from_slice(b"\r\n");
    if status != 204 {
        let _ = write!(out, "Content-Type: text/plain; charset=utf-8\r\nContent-Length: {body_bytes}\r\n");
    }
}

/// The phrase of a status that the proxy itself gives.
fn reason(status: u16) -> &'static str {
    match status {
        204 => "No Content",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        413 => "Content Too Large",
        414 => "URI Too Long",
        417 => "Expectation Failed",
        431 => "Request Header Fields Too Large",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "Error",
    }
}
