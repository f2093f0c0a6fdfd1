//! Error responses: the one place that gives an error its status.

use std::io::Write;
use std::time::Instant;

use crate::http::date::Date;
use crate::http::h1::head::{Method, Refusal, RequestHead, Version};
use crate::http::headers;
use crate::serve::error::{Error, Side};

/// An error's status, and whether its connection can go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ErrorStatus {
    /// HTTP status; 0 where the client is gone.
    pub(crate) status: u16,
    /// Whether the connection can go on: the next request can be found behind this one.
    pub(crate) keep: bool,
}

/// The status of an error.
pub(crate) fn status_of(error: Error) -> ErrorStatus {
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
        Error::PlainHttp | Error::Target(_) | Error::Body(_) => (400, false),
        Error::Method => (405, true),
        Error::BodyTooLarge => (413, false),
        Error::NoRoute => (404, true),
        Error::NoEndpoint | Error::Busy | Error::ClientBusy | Error::Overloaded => (503, true),
        Error::Failed | Error::BadResponse => (502, true),
        Error::ServerTimeout => (504, true),
        Error::ClientGone => (0, false),
    };
    ErrorStatus { status, keep }
}

/// Writes the whole response to an error, and returns the length of its body: one line that says what happened. "trylist:"
/// marks errors that are not the client's. `more` is additional header lines.
pub(crate) fn write_error(
    date: &Date,
    error: Error,
    head: Option<&RequestHead>,
    keep: bool,
    more: &[u8],
    now: Instant,
    out: &mut Vec<u8>,
) -> u64 {
    let status = status_of(error).status;
    let who = match error.side() {
        Side::Downstream => "",
        Side::Upstream => "trylist: ",
    };
    if let Some(grpc) = head.filter(|head| is_grpc(head)).and(grpc_status(status)) {
        write_grpc(date, grpc, &format!("{who}{error}"), now, out);
        return 0;
    }
    let body = format!("{status} {}: {who}{error}\n", reason(status));
    write_head(date, status, body.len(), now, out);
    let client = head.map_or(Version::Http11, |head| head.version);
    headers::write_connection(keep, client, out);
    match error {
        Error::Method => out.extend_from_slice(b"Allow: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS\r\n"),
        Error::NoEndpoint | Error::Busy | Error::ClientBusy | Error::Overloaded => {
            out.extend_from_slice(b"Retry-After: 1\r\n");
        }
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

/// Whether a request is a gRPC call: its client expects errors as gRPC statuses.
fn is_grpc(head: &RequestHead) -> bool {
    let is_type =
        |value: &[u8]| value.get(..16).is_some_and(|begin| begin.eq_ignore_ascii_case(b"application/grpc"));
    head.version == Version::Http2 && head.field(b"content-type").is_some_and(is_type)
}

/// The gRPC code of a status, by gRPC's "HTTP to gRPC Status Code Mapping". A client that is not at fault may try
/// again.
fn grpc_status(status: u16) -> Option<u8> {
    match status {
        400 | 408 | 431 => Some(13),
        404 => Some(12),
        // As its libraries say where a message is over its limit.
        413 => Some(8),
        502..=504 => Some(14),
        _ => None,
    }
}

/// Writes a response that is nothing but its end: "Trailers-Only".
fn write_grpc(date: &Date, grpc: u8, message: &str, now: Instant, out: &mut Vec<u8>) {
    out.extend_from_slice(b"HTTP/1.1 200 OK\r\nDate: ");
    date.write(now, out);
    // Writing to a vector cannot fail. No message of ours has a "%" or a byte that is not ASCII.
    let _ = write!(
        out,
        "\r\nContent-Type: application/grpc\r\ngrpc-status: {grpc}\r\ngrpc-message: {message}\r\nContent-Length: 0\r\n\r\n"
    );
}

/// Writes the proxy's own answer to OPTIONS that it is not to pass on (`Max-Forwards: 0`).
pub(crate) fn write_options(date: &Date, head: &RequestHead, keep: bool, now: Instant, out: &mut Vec<u8>) {
    write_head(date, 204, 0, now, out);
    headers::write_connection(keep, head.version, out);
    out.extend_from_slice(b"Allow: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS\r\n\r\n");
}

fn write_head(date: &Date, status: u16, body_bytes: usize, now: Instant, out: &mut Vec<u8>) {
    // Writing to a vector cannot fail.
    let _ = write!(out, "HTTP/1.1 {status} {}\r\nServer: trylist\r\nDate: ", reason(status));
    date.write(now, out);
    out.extend_from_slice(b"\r\n");
    if status != 204 {
        let _ = write!(out, "Content-Type: text/plain; charset=utf-8\r\nContent-Length: {body_bytes}\r\n");
    }
}

/// The reason phrase of a status that the proxy itself sends.
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
