//! Responses of the proxy's own: errors, redirects, and what a configuration fixes. The one place that gives an error its status.

use std::io::Write;
use std::time::Instant;

use crate::config::{ErrorPages, Redirect, Respond};
use crate::http::date::Date;
use crate::http::h1::head::{Method, Refusal, RequestHead, Version};
use crate::http::headers;
use crate::http::headers::rules::{Rules, Values};
use crate::serve::error::{Error, Side};
use crate::serve::plan::Plan;
use crate::serve::route;

/// The type of the proxy's own lines.
const TEXT: &str = "text/plain; charset=utf-8";
/// A body up to this many bytes is sent in one piece with its head.
const MAX_COPIED: usize = 16 * 1024;

/// The writer of the date, and the time now.
type DateNow<'a> = (&'a Date, Instant);

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

/// An error, and what its response depends on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ErrorReply<'a> {
    pub(crate) error: Error,
    pub(crate) head: Option<&'a RequestHead>,
    /// Whether the connection goes on.
    pub(crate) keep: bool,
    /// Additional header lines.
    pub(crate) more: &'a [u8],
    /// The operator's pages.
    pub(crate) pages: &'a ErrorPages,
}

/// A response that was written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Written<'a> {
    pub(crate) status: u16,
    /// Length of its body, as it is sent.
    pub(crate) body_bytes: u64,
    /// The rest of the body to send: a long one is not copied.
    pub(crate) rest: &'a [u8],
}

/// Writes the response to an error: the operator's page, or one line that says what happened. "trylist:" marks errors that are
/// not the client's.
pub(crate) fn write_error<'a>(date: DateNow<'_>, reply: &ErrorReply<'a>, out: &mut Vec<u8>) -> Written<'a> {
    let ErrorReply { error, head, keep, more, pages } = *reply;
    let status = status_of(error).status;
    let who = match error.side() {
        Side::Downstream => "",
        Side::Upstream => "trylist: ",
    };
    if let Some(grpc) = head.filter(|head| is_grpc(head)).and(grpc_status(status)) {
        write_grpc(date, grpc, &format!("{who}{error}"), out);
        return Written { status, body_bytes: 0, rest: &[] };
    }
    let line;
    let (content_type, body) = match pages.get(status) {
        Some(page) => (&*page.content_type, Body::Page(&page.body)),
        None => {
            line = format!("{status} {}: {who}{error}\n", reason(status));
            (TEXT, Body::Line(line.as_bytes()))
        }
    };
    write_head(date, status, (content_type, body.len()), out);
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
    write_body(status, body, head, out)
}

/// Writes the fixed response of a route.
pub(crate) fn write_fixed<'a>(
    date: DateNow<'_>,
    fixed: &'a Respond,
    head: &RequestHead,
    keep: bool,
    out: &mut Vec<u8>,
) -> Written<'a> {
    let Respond { status, page } = fixed;
    write_head(date, *status, (&page.content_type, page.body.len()), out);
    headers::write_connection(keep, head.version, out);
    out.extend_from_slice(b"\r\n");
    write_body(*status, Body::Page(&page.body), Some(head), out)
}

/// Writes a redirect, whose `Location` is always a whole URL.
///
/// # Errors
/// The request names no host, and the redirect has none of its own.
pub(crate) fn write_redirect(
    date: DateNow<'_>,
    redirect: &Redirect,
    (plan, head): (&Plan<'_>, &RequestHead),
    keep: bool,
    out: &mut Vec<u8>,
) -> Result<Written<'static>, Error> {
    let status = redirect.status;
    // Its length comes before it. So it stands in front of the response until that is complete.
    let begin = out.len();
    write_location(redirect, plan, out)?;
    let location = begin..out.len();
    // "302 Found: https://example.com/\n".
    let body_bytes = "302 : \n".len() + reason(status).len() + location.len();
    write_head(date, status, (TEXT, body_bytes), out);
    out.extend_from_slice(b"Location: ");
    out.extend_from_within(location.clone());
    out.extend_from_slice(b"\r\n");
    headers::write_connection(keep, head.version, out);
    out.extend_from_slice(b"\r\n");
    let has_body = head.method != Method::Head;
    if has_body {
        // Writing to a vector cannot fail.
        let _ = write!(out, "{status} {}: ", reason(status));
        out.extend_from_within(location.clone());
        out.push(b'\n');
    }
    out.drain(location);
    Ok(Written { status, body_bytes: if has_body { body_bytes as u64 } else { 0 }, rest: &[] })
}

/// Appends the URL of a redirect. The request's host gets into it only where the route names its hosts.
fn write_location(redirect: &Redirect, plan: &Plan<'_>, out: &mut Vec<u8>) -> Result<(), Error> {
    out.extend_from_slice(redirect.scheme.map_or(plan.scheme(), str::as_bytes));
    out.extend_from_slice(b"://");
    let authority = plan.authority.unwrap_or_default();
    let own = route::host_of(authority);
    match &redirect.host {
        Some(host) => out.extend_from_slice(host.as_bytes()),
        None if own.is_empty() => return Err(Error::Target("request has no host to redirect to")),
        None => out.extend_from_slice(&own),
    }
    match (redirect.port, redirect.scheme) {
        (Some(port), _) => drop(write!(out, ":{port}")),
        // The port of the other scheme would be that of this listener.
        (None, Some(_)) => {}
        (None, None) if redirect.host.is_some() => {}
        (None, None) => {
            let port = memchr::memrchr(b':', authority).map(|at| &authority[at..]);
            let port = port.filter(|port| port.len() > 1 && port[1..].iter().all(u8::is_ascii_digit));
            out.extend_from_slice(port.unwrap_or_default());
        }
    }
    match &redirect.path {
        Some(path) => out.extend_from_slice(path.as_bytes()),
        // `OPTIONS *` is about the server as a whole, and goes where the root goes.
        None if *plan.path == *b"*" => write_escaped(&route::rewrite(plan.route, b"/"), out),
        None => write_escaped(&route::rewrite(plan.route, &plan.path), out),
    }
    let replaces_query = redirect.path.as_ref().is_some_and(|path| path.contains('?'));
    if let Some(query) = plan.query.filter(|_| !replaces_query) {
        out.push(b'?');
        write_escaped(query, out);
    }
    Ok(())
}

/// Appends a part of a URL, with whatever is no visible ASCII percent-encoded.
fn write_escaped(text: &[u8], out: &mut Vec<u8>) {
    for byte in text {
        match byte {
            b'!'..=b'~' => out.push(*byte),
            // Writing to a vector cannot fail.
            _ => drop(write!(out, "%{byte:02X}")),
        }
    }
}

/// Applies a route's rules for response headers to a response of the proxy's own, as to those of servers.
pub(crate) fn apply_rules(rules: &Rules, values: &Values<'_>, response: &mut Vec<u8>) {
    let end_of = |text: &[u8]| memchr::memmem::find(response, text).map(|at| at + 2);
    let (Some(first), Some(last)) = (end_of(b"\r\n"), end_of(b"\r\n\r\n")) else { return };
    // The new lines stand behind the response until they are complete.
    let end = response.len();
    let mut at = first;
    while at < last {
        let next = memchr::memchr(b'\n', &response[at..last]).map_or(last, |n| at + n + 1);
        if rules.keeps(&response[at..next]) {
            response.extend_from_within(at..next);
        }
        at = next;
    }
    rules.write(values, response);
    let n_new = response.len() - end;
    response[last..].rotate_right(n_new);
    response.drain(first..last);
}

/// A body.
#[derive(Clone, Copy, Debug)]
enum Body<'a, 'b> {
    /// Of the configuration.
    Page(&'a [u8]),
    /// Made for this response.
    Line(&'b [u8]),
}

impl Body<'_, '_> {
    fn len(&self) -> usize {
        match self {
            Self::Page(bytes) => bytes.len(),
            Self::Line(bytes) => bytes.len(),
        }
    }
}

/// Appends a body, or leaves it to be sent apart where it is long.
fn write_body<'a>(
    status: u16,
    body: Body<'a, '_>,
    head: Option<&RequestHead>,
    out: &mut Vec<u8>,
) -> Written<'a> {
    if head.is_some_and(|head| head.method == Method::Head) {
        return Written { status, body_bytes: 0, rest: &[] };
    }
    let body_bytes = body.len() as u64;
    match body {
        Body::Page(page) if page.len() > MAX_COPIED => Written { status, body_bytes, rest: page },
        Body::Page(bytes) | Body::Line(bytes) => {
            out.extend_from_slice(bytes);
            Written { status, body_bytes, rest: &[] }
        }
    }
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
fn write_grpc((date, now): DateNow<'_>, grpc: u8, message: &str, out: &mut Vec<u8>) {
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
    write_head((date, now), 204, (TEXT, 0), out);
    headers::write_connection(keep, head.version, out);
    out.extend_from_slice(b"Allow: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS\r\n\r\n");
}

fn write_head(
    (date, now): DateNow<'_>,
    status: u16,
    (content_type, body_bytes): (&str, usize),
    out: &mut Vec<u8>,
) {
    // Writing to a vector cannot fail.
    let _ = write!(out, "HTTP/1.1 {status} {}\r\nServer: trylist\r\nDate: ", reason(status));
    date.write(now, out);
    out.extend_from_slice(b"\r\n");
    match status {
        204 | 304 => {}
        205 => out.extend_from_slice(b"Content-Length: 0\r\n"),
        _ => {
            let _ = write!(out, "Content-Type: {content_type}\r\nContent-Length: {body_bytes}\r\n");
        }
    }
}

/// The reason phrase of a status.
fn reason(status: u16) -> &'static str {
    let known = http::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
    match status {
        // As RFC 9110 has them since 2022.
        413 => "Content Too Large",
        422 => "Unprocessable Content",
        _ => known.unwrap_or("Status"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ERROR_STATUSES;

    #[test]
    fn pages_can_be_set_for_every_status_that_has_an_error() {
        let errors = [
            Error::Head(Refusal::LineTooLong),
            Error::Head(Refusal::HeadTooLarge),
            Error::Head(Refusal::Version),
            Error::Head(Refusal::TransferCoding),
            Error::Head(Refusal::Expectation),
            Error::Head(Refusal::Malformed("x")),
            Error::HeadTimeout,
            Error::Method,
            Error::BodyTooLarge,
            Error::NoRoute,
            Error::NoEndpoint,
            Error::Failed,
            Error::ServerTimeout,
        ];
        let mut statuses = errors.map(|error| status_of(error).status);
        statuses.sort_unstable();
        assert_eq!(statuses, ERROR_STATUSES);
    }

    #[test]
    fn what_is_no_visible_ascii_does_not_get_into_a_location() {
        let mut out = Vec::new();
        write_escaped(b"/a%20b\xc3\xa9\r\n\x00~", &mut out);
        assert_eq!(out, b"/a%20b%C3%A9%0D%0A%00~");
    }
}
