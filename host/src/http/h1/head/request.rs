//! Heads of requests, and all that makes one ambiguous.

use std::io::Write as _;
use std::mem::MaybeUninit;
use std::ops::Range;

use super::{
    Field, Framing, HeadLimits, MAX_HEADERS, Method, Name, Persistence, Refusal, Scan, Span, Version,
    content_length, first_line, is_authority, is_chunked, later_minor, nominate, refusal, same_name, tokens,
    write_fields,
};
use crate::http::h1::buffer::Buffer;
use crate::http::h1::head::PREFACE_HEAD;

/// A request's head, as spans of its text. Reused from request to request. The text is copied out of the read buffer
/// (some hundred bytes), so that it stays while the buffer takes the body.
#[derive(Debug)]
pub struct RequestHead {
    text: Vec<u8>,
    /// Which method.
    pub method: Method,
    /// The method as sent.
    pub method_text: Span,
    /// The target as sent, but for bytes above 0x7f, of which each stands as its escape (`%C3`).
    pub target: Span,
    /// The protocol's version.
    pub version: Version,
    /// All header lines in their order.
    pub fields: Vec<Field>,
    /// Value of `Host`.
    pub host: Option<Span>,
    /// How long the body is.
    pub framing: Framing,
    /// Whether the client wants to go on after this request.
    pub keep_alive: bool,
    /// Whether the client waits for a `100 Continue` before it sends its body.
    pub expects_continue: bool,
    /// Whether the client takes trailers.
    pub takes_trailers: bool,
    /// Whether the client asks for another protocol on this connection (RFC 9110 section 7.8).
    pub asks_upgrade: bool,
    /// Whether the client wants to know why its request goes where it goes. That it may is not said here.
    pub asks_why: bool,
}

impl Default for RequestHead {
    fn default() -> Self {
        Self {
            text: Vec::new(),
            method: Method::Other,
            method_text: Span::default(),
            target: Span::default(),
            version: Version::Http11,
            fields: Vec::with_capacity(32),
            host: None,
            framing: Framing::None,
            keep_alive: false,
            expects_continue: false,
            takes_trailers: false,
            asks_upgrade: false,
            asks_why: false,
        }
    }
}

impl RequestHead {
    /// Takes the head that is waiting in `buffer`, and says whether it is complete. `scan` starts as its default for
    /// each head.
    ///
    /// # Errors
    /// What is wrong with it; the connection cannot be used further, since nobody can say where the next head begins.
    pub fn read(
        &mut self,
        buffer: &mut Buffer,
        scan: &mut Scan,
        limits: &HeadLimits,
    ) -> Result<bool, Refusal> {
        let Some(len) = scan.head_len(buffer.bytes(), limits, true)? else {
            return if buffer.room() == 0 { Err(Refusal::HeadTooLarge) } else { Ok(false) };
        };
        let mut text = std::mem::take(&mut self.text);
        text.clear();
        text.extend_from_slice(&buffer.bytes()[..len]);
        buffer.consume(len);
        let result = self.parse_any(&mut text, limits);
        self.text = text;
        result.map(|()| true)
    }

    /// Takes a head that came by HTTP/2, written as one of HTTP/1.1. `has_body` says whether the stream goes on
    /// after it, since the body's length need not be said.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn take_h2(&mut self, head: &[u8], has_body: bool, limits: &HeadLimits) -> Result<(), Refusal> {
        let mut text = std::mem::take(&mut self.text);
        text.clear();
        text.extend_from_slice(head);
        let line = memchr::memchr(b'\r', &text).unwrap_or(text.len());
        let result = if line > limits.line_bytes {
            Err(Refusal::LineTooLong)
        } else {
            self.parse_any(&mut text, limits)
        };
        self.text = text;
        self.version = Version::Http2;
        self.framing = match self.framing {
            Framing::Length(n) => Framing::Length(n),
            // No body, and the stream's end comes by itself.
            _ if self.known(Name::ContentLength).is_some() => Framing::None,
            _ if has_body => Framing::UntilClose,
            _ => Framing::None,
        };
        result
    }

    /// Whether this is how a client of HTTP/2 begins.
    pub fn is_h2_preface(&self) -> bool {
        self.text == PREFACE_HEAD
    }

    /// Parses a head after what the parser does not take was written in the way that it does.
    fn parse_any(&mut self, text: &mut Vec<u8>, limits: &HeadLimits) -> Result<(), Refusal> {
        let line = first_line(text);
        if !text[line.clone()].is_ascii() {
            escape_target(text, line);
        }
        match self.parse(text, limits) {
            Err(Refusal::Version) => {
                let line = first_line(text);
                let mut spaces = memchr::memchr_iter(b' ', &text[line.clone()]);
                let version = match (spaces.next(), spaces.next(), spaces.next()) {
                    (Some(_), Some(space), None) if space + 9 == line.len() => line.start + space + 1,
                    _ => return Err(Refusal::Malformed("request line is not METHOD TARGET HTTP/1.1")),
                };
                let minor = later_minor(text, version)?;
                text[minor] = b'1';
                self.parse(text, limits)
            }
            result => result,
        }
    }

    fn parse(&mut self, text: &[u8], limits: &HeadLimits) -> Result<(), Refusal> {
        let mut headers = [const { MaybeUninit::uninit() }; MAX_HEADERS];
        let mut parsed = httparse::Request::new(&mut []);
        match parsed.parse_with_uninit_headers(text, &mut headers[..limits.headers.min(MAX_HEADERS)]) {
            Ok(httparse::Status::Complete(_)) => {}
            Ok(httparse::Status::Partial) => return Err(Refusal::Malformed("request head ends too early")),
            Err(e) => return Err(refusal(e)),
        }
        let (Some(method), Some(target), Some(version)) = (parsed.method, parsed.path, parsed.version) else {
            return Err(Refusal::Malformed("request line has no method, target or version"));
        };
        self.method = Method::of(method.as_bytes());
        self.method_text = Span::within(text, method.as_bytes());
        self.target = Span::within(text, target.as_bytes());
        self.version = if version == 0 { Version::Http10 } else { Version::Http11 };
        self.check_fields(text, parsed.headers)
    }

    /// The text of a span of this head.
    pub fn text(&self, span: Span) -> &[u8] {
        span.of(&self.text)
    }

    /// Bytes of the whole head.
    pub fn len(&self) -> usize {
        self.text.len()
    }

    /// Whether there is no head.
    pub fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    /// Forgets everything, for a head that was refused and must not be taken for the last good one.
    pub fn clear(&mut self) {
        *self = Self {
            text: std::mem::take(&mut self.text),
            fields: std::mem::take(&mut self.fields),
            ..Self::default()
        };
        self.text.clear();
        self.fields.clear();
    }

    /// Value of the first header of this name.
    pub fn field(&self, name: &[u8]) -> Option<&[u8]> {
        self.fields.iter().find(|f| same_name(self.text(f.name), name)).map(|f| self.text(f.value))
    }

    /// Value of the first header of this kind.
    pub fn known(&self, kind: Name) -> Option<&[u8]> {
        self.fields.iter().find(|f| f.kind == kind).map(|f| self.text(f.value))
    }

    /// Appends all header lines but those that `leave_out` names, each ended by CRLF.
    pub fn write_fields(&self, out: &mut Vec<u8>, leave_out: impl Fn(Name) -> bool) {
        write_fields(&self.text, &self.fields, false, out, |field| leave_out(field.kind));
    }

    /// The same, by name too.
    pub fn write_fields_by(&self, out: &mut Vec<u8>, leave_out: impl Fn(Name, &[u8]) -> bool) {
        write_fields(&self.text, &self.fields, false, out, |field| {
            leave_out(field.kind, self.text(field.name))
        });
    }

    fn check_fields(&mut self, text: &[u8], headers: &[httparse::Header<'_>]) -> Result<(), Refusal> {
        self.fields.clear();
        self.host = None;
        self.expects_continue = false;
        self.takes_trailers = false;
        self.asks_upgrade = false;
        self.asks_why = false;
        let mut length = None;
        let mut chunked = false;
        let mut persistence = Persistence::default();
        for header in headers {
            let field = Field::new(text, header);
            match field.kind {
                Name::Host => {
                    if self.host.replace(field.value).is_some() {
                        return Err(Refusal::Malformed("more than one Host"));
                    }
                    // RFC 9112 section 3.2: empty where the target has no host.
                    if !header.value.is_empty() && !is_authority(header.value) {
                        return Err(Refusal::Malformed("Host is not a host and port"));
                    }
                }
                Name::ContentLength if length.is_some() => {
                    return Err(Refusal::Malformed("more than one Content-Length"));
                }
                Name::ContentLength => length = Some(content_length(header.value)?),
                Name::TransferEncoding => {
                    if chunked {
                        return Err(Refusal::Malformed("more than one Transfer-Encoding"));
                    }
                    is_chunked(header.value)?;
                    chunked = true;
                }
                Name::Connection => persistence.read(header.value),
                Name::Expect => {
                    if !header.value.eq_ignore_ascii_case(b"100-continue") {
                        return Err(Refusal::Expectation);
                    }
                    self.expects_continue = self.version == Version::Http11;
                }
                Name::Te => {
                    self.takes_trailers |= tokens(header.value).any(|t| t.eq_ignore_ascii_case(b"trailers"));
                }
                Name::XTrylistExplain => self.asks_why |= header.value == b"1",
                _ => {}
            }
            self.fields.push(field);
        }
        if persistence.nominates {
            nominate(&mut self.fields, text)?;
            self.asks_upgrade = persistence.upgrade
                && self.version == Version::Http11
                && self.fields.iter().any(|field| field.kind == Name::Upgrade);
        }
        if self.version == Version::Http11 && self.host.is_none() {
            return Err(Refusal::Malformed("no Host"));
        }
        self.framing = match (chunked, length) {
            (true, _) if self.version == Version::Http10 => {
                return Err(Refusal::Malformed("Transfer-Encoding in an HTTP/1.0 request"));
            }
            (true, Some(_)) => {
                return Err(Refusal::Malformed("both Transfer-Encoding and Content-Length"));
            }
            (true, None) => Framing::Chunked,
            (false, Some(0) | None) => Framing::None,
            (false, Some(n)) => Framing::Length(n),
        };
        self.keep_alive = persistence.keeps(self.version);
        Ok(())
    }
}

/// Writes each byte above 0x7f of the path and query of a target as its escape, as browsers do. Such bytes may not stand in
/// a target (RFC 3986 section 2.1), but some clients send them, in UTF-8 or not; a server never gets them raw. Nothing
/// changes in a line that is not one of a request, nor in a host.
#[cold]
fn escape_target(text: &mut Vec<u8>, line: Range<usize>) {
    let spaces = |line: &[u8]| Some((memchr::memchr(b' ', line)?, memchr::memrchr(b' ', line)?));
    let Some((first, last)) = spaces(&text[line.clone()]).filter(|(first, last)| first < last) else {
        return;
    };
    let target = line.start + first + 1..line.start + last;
    // In absolute form, from behind the host.
    let path = match memchr::memmem::find(&text[target.clone()], b"://") {
        Some(colon) if text[target.start] != b'/' => {
            let host = target.start + colon + 3;
            memchr::memchr2(b'/', b'?', &text[host..target.end]).map_or(target.end, |len| host + len)
        }
        _ => target.start,
    };
    let mut escaped = Vec::with_capacity(3 * (target.end - path));
    for &byte in &text[path..target.end] {
        if byte.is_ascii() {
            escaped.push(byte);
        } else {
            // Writing to a vector cannot fail.
            let _ = write!(escaped, "%{byte:02X}");
        }
    }
    text.splice(path..target.end, escaped);
}
