//! Heads of HTTP/2 as the text of HTTP/1.1, and back.
//!
//! `h2` has checked the heads of peers: names are in lower case, values have no line ends, and the only hop-by-hop header is `te:
//! trailers`. Heads for peers are text that the proxy wrote itself.

use std::io::Write as _;
use std::mem::MaybeUninit;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode, Uri};

use crate::http::h1::head::{MAX_HEADERS, is_refused_as_trailer};

/// Maximum header lines of our heads: those of a peer, and those that the proxy and its operator add.
const MAX_LINES: usize = 2 * MAX_HEADERS;

/// Why a head is malformed.
pub type Malformed = &'static str;

/// A head of ours in the form of HTTP/2.
#[derive(Debug)]
pub struct Head<T> {
    /// Without headers that HTTP/2 expresses by frames.
    pub message: T,
    /// No body follows.
    pub ends: bool,
    /// Its Content-Length, if any.
    pub length: Option<u64>,
    /// Its length in bytes, empty line included.
    pub taken: usize,
}

/// Writes the head of a request that came over HTTP/2.
///
/// # Errors
/// The head is not passed on, such as one for two hosts.
pub fn write_request(request: &http::request::Parts, out: &mut Vec<u8>) -> Result<(), Malformed> {
    out.extend_from_slice(request.method.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(request.uri.path_and_query().map_or(b"/", |target| target.as_str().as_bytes()));
    out.extend_from_slice(b" HTTP/1.1\r\nHost: ");
    let mut hosts = request.headers.get_all(header::HOST).iter();
    let (host, more) = (hosts.next(), hosts.next());
    match (request.uri.authority(), host, more) {
        (_, _, Some(_)) => return Err("more than one Host"),
        (Some(authority), Some(host), None)
            if !host.as_bytes().eq_ignore_ascii_case(authority.as_str().as_bytes()) =>
        {
            return Err("Host is not :authority");
        }
        (Some(authority), _, None) => out.extend_from_slice(authority.as_str().as_bytes()),
        (None, Some(host), None) => out.extend_from_slice(host.as_bytes()),
        (None, None, None) => return Err("neither :authority nor Host"),
    }
    out.extend_from_slice(b"\r\n");
    let mut cookies = false;
    for (name, value) in &request.headers {
        match *name {
            header::HOST => {}
            header::COOKIE => cookies = true,
            _ => write_field(name, value, out),
        }
    }
    if cookies {
        // RFC 9113 section 8.2.3: one line again, as servers of HTTP/1.1 want it.
        out.extend_from_slice(b"cookie: ");
        let mut separator: &[u8] = b"";
        for value in request.headers.get_all(header::COOKIE).iter().filter(|value| !value.is_empty()) {
            out.extend_from_slice(separator);
            out.extend_from_slice(value.as_bytes());
            separator = b"; ";
        }
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
    Ok(())
}

/// Writes the head of a response that came over HTTP/2. `without_body`: it ended with its head, though its status and the
/// request's method allow a body.
pub fn write_response(status: StatusCode, headers: &HeaderMap, without_body: bool, out: &mut Vec<u8>) {
    // Writing to a vector cannot fail.
    let _ = write!(out, "HTTP/1.1 {} {}\r\n", status.as_str(), status.canonical_reason().unwrap_or(""));
    for (name, value) in headers {
        write_field(name, value, out);
    }
    if without_body && !headers.contains_key(header::CONTENT_LENGTH) {
        out.extend_from_slice(b"content-length: 0\r\n");
    }
    out.extend_from_slice(b"\r\n");
}

/// Writes trailers, each line ended by CRLF.
pub fn write_trailers(trailers: &HeaderMap, out: &mut Vec<u8>) {
    for (name, value) in trailers {
        if !is_refused_as_trailer(name.as_str().as_bytes()) {
            write_field(name, value, out);
        }
    }
}

fn write_field(name: &HeaderName, value: &HeaderValue, out: &mut Vec<u8>) {
    out.extend_from_slice(name.as_str().as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value.as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// Parses a head of ours as a response; `None` while it is incomplete.
///
/// # Errors
/// HTTP/2 cannot express it.
pub fn read_response(text: &[u8], is_head: bool) -> Result<Option<Head<Response<()>>>, Malformed> {
    let mut headers = [const { MaybeUninit::uninit() }; MAX_LINES];
    let mut parsed = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    let taken = match config.parse_response_with_uninit_headers(&mut parsed, text, &mut headers) {
        Ok(httparse::Status::Complete(taken)) => taken,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(_) => return Err("malformed response head"),
    };
    let status = parsed.code.and_then(|code| StatusCode::from_u16(code).ok()).ok_or("malformed status")?;
    let mut response = Response::new(());
    *response.status_mut() = status;
    let fields = read_fields(parsed.headers, response.headers_mut())?;
    let ends = is_head || matches!(status.as_u16(), 204 | 304) || fields.length == Some(0);
    Ok(Some(Head { message: response, ends, length: fields.length, taken }))
}

/// Parses a head of ours as a request; `None` while it is incomplete.
///
/// # Errors
/// HTTP/2 cannot express it.
pub fn read_request(text: &[u8], is_secure: bool) -> Result<Option<Head<Request<()>>>, Malformed> {
    let mut headers = [const { MaybeUninit::uninit() }; MAX_LINES];
    let mut parsed = httparse::Request::new(&mut []);
    let taken = match parsed.parse_with_uninit_headers(text, &mut headers) {
        Ok(httparse::Status::Complete(taken)) => taken,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(_) => return Err("malformed request head"),
    };
    let method = parsed.method.and_then(|method| Method::from_bytes(method.as_bytes()).ok());
    let mut request = Request::new(());
    *request.method_mut() = method.ok_or("malformed method")?;
    let fields = read_fields(parsed.headers, request.headers_mut())?;
    let authority = request.headers_mut().remove(header::HOST).ok_or("no Host")?;
    let target = parsed.path.unwrap_or("/");
    let build = |target: &str| {
        Uri::builder()
            .scheme(if is_secure { "https" } else { "http" })
            .authority(authority.as_bytes())
            .path_and_query(target)
            .build()
    };
    // Bytes that are valid in HTTP/1.1 only are escaped.
    *request.uri_mut() =
        build(target).or_else(|_| build(&escaped(target))).map_err(|_| "target cannot be sent by HTTP/2")?;
    let ends = !fields.is_chunked && fields.length.unwrap_or(0) == 0;
    Ok(Some(Head { message: request, ends, length: fields.length, taken }))
}

/// Parses trailers of ours.
pub fn read_trailers(lines: &[u8]) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    for line in lines.split(|&byte| byte == b'\n') {
        let Some(colon) = memchr::memchr(b':', line) else { continue };
        let (name, value) = (line[..colon].trim_ascii(), line[colon + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
            trailers.append(name, value);
        }
    }
    trailers
}

#[derive(Default)]
struct Fields {
    length: Option<u64>,
    is_chunked: bool,
}

fn read_fields(parsed: &[httparse::Header<'_>], out: &mut HeaderMap) -> Result<Fields, Malformed> {
    let mut fields = Fields::default();
    out.reserve(parsed.len());
    for field in parsed {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| "malformed header name")?;
        match name {
            // RFC 9113 section 8.2.2: frames express these.
            header::CONNECTION | header::UPGRADE => continue,
            header::TRANSFER_ENCODING => {
                fields.is_chunked = true;
                continue;
            }
            header::CONTENT_LENGTH => {
                fields.length = std::str::from_utf8(field.value).ok().and_then(|text| text.parse().ok());
            }
            _ if matches!(name.as_str(), "keep-alive" | "proxy-connection") => continue,
            _ => {}
        }
        // A copy: the peer's table of headers may keep it as long as the connection lasts.
        let value = HeaderValue::from_maybe_shared(Bytes::copy_from_slice(field.value));
        out.append(name, value.map_err(|_| "malformed header value")?);
    }
    Ok(fields)
}

fn escaped(target: &str) -> String {
    let mut out = String::with_capacity(target.len() + 16);
    for c in target.chars() {
        match c {
            '<' | '>' | '`' | '^' | '|' | '\\' | '"' | '{' | '}' | '#' => {
                out.push_str(&format!("%{:02X}", c as u32));
            }
            _ => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(builder: http::request::Builder) -> Result<String, Malformed> {
        let (parts, ()) = builder.body(()).expect("well-formed").into_parts();
        let mut out = Vec::new();
        write_request(&parts, &mut out).map(|()| String::from_utf8(out).expect("text"))
    }

    fn complete<T>(read: Result<Option<Head<T>>, Malformed>) -> Head<T> {
        read.expect("well-formed").expect("complete")
    }

    #[test]
    fn a_request_becomes_text() {
        let built = Request::get("https://a.test/x?y=z").header("cookie", "a=b").header("te", "trailers");
        assert_eq!(
            request(built.header("cookie", "c=d")).as_deref(),
            Ok("GET /x?y=z HTTP/1.1\r\nHost: a.test\r\nte: trailers\r\ncookie: a=b; c=d\r\n\r\n")
        );
    }

    #[test]
    fn a_request_for_two_hosts_or_none_is_refused() {
        let two = Request::get("https://a.test/").header("host", "b.test");
        assert_eq!(request(two), Err("Host is not :authority"));
        let same = Request::get("https://a.test/").header("host", "A.test");
        assert!(request(same).is_ok());
        let twice = Request::get("/").header("host", "a").header("host", "a");
        assert_eq!(request(twice), Err("more than one Host"));
        assert_eq!(request(Request::get("/")), Err("neither :authority nor Host"));
    }

    #[test]
    fn text_becomes_a_request_and_says_whether_a_body_follows() {
        let head = "POST /a\"b HTTP/1.1\r\nHost: s:1\r\nX: y\r\nTransfer-Encoding: chunked\r\nTE: trailers\r\nConnection: TE\r\n\r\n";
        let Head { message: request, ends, .. } = complete(read_request(head.as_bytes(), true));
        assert!(request.uri().to_string().starts_with("https://s:1/a"), "{}", request.uri());
        assert!(!ends);
        let mut names: Vec<_> = request.headers().keys().map(HeaderName::as_str).collect();
        // A map has an order of its own.
        names.sort_unstable();
        assert_eq!(names, ["te", "x"]);
        let head = b"GET /<a> HTTP/1.1\r\nHost: s\r\n\r\n";
        let Head { message: request, ends, taken, .. } = complete(read_request(head, false));
        assert_eq!(taken, head.len());
        assert_eq!((request.uri().path(), ends), ("/%3Ca%3E", true));
    }

    #[test]
    fn text_becomes_a_response() {
        let ends = |head: &str, is_head| complete(read_response(head.as_bytes(), is_head)).ends;
        assert!(!ends("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", false));
        assert!(!ends("HTTP/1.1 200 OK\r\n\r\n", false));
        assert!(ends("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", true));
        assert!(ends("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", false));
        assert!(ends("HTTP/1.1 304 Not Modified\r\nContent-Length: 3\r\n\r\n", false));
        let text = b"HTTP/1.1 503 \r\nConnection: close\r\nA: b\r\n\r\nbody";
        let head = complete(read_response(text, false));
        assert_eq!((head.message.status().as_u16(), head.message.headers().len()), (503, 1));
        assert_eq!((head.length, head.taken), (None, text.len() - "body".len()));
        for cut in 0..head.taken {
            assert!(matches!(read_response(&text[..cut], false), Ok(None)), "{cut}");
        }
    }

    #[test]
    fn trailers_go_both_ways() {
        let trailers = read_trailers(b"grpc-status: 0\r\nGrpc-Message: all: well\r\n");
        assert_eq!(trailers["grpc-message"], "all: well");
        let mut out = Vec::new();
        write_trailers(&trailers, &mut out);
        assert_eq!(out, b"grpc-status: 0\r\ngrpc-message: all: well\r\n");
    }
}
