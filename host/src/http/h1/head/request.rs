//! Heads of requests.

use std::io::Write as _;
use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut, Range};

use super::{
    Field, Framing, HeadLimits, HeadText, MAX_HEADERS, MessageFields, Method, Name, Refusal, Scan, Span,
    Version, first_line, is_authority, later_minor, nominate, refusal, tokens,
};
use crate::http::h1::buffer::Buffer;
use crate::http::h1::head::PREFACE_HEAD;

/// A request's head, as spans of its text.
#[derive(Debug)]
pub struct RequestHead {
    head: HeadText,
    /// Which method.
    pub method: Method,
    /// The method as sent.
    pub method_text: Span,
    /// The target as sent, with bytes above 0x7f escaped (`%C3`).
    pub target: Span,
    /// The protocol's version.
    pub version: Version,
    /// Value of `Host`.
    pub host: Option<Span>,
    /// How long the body is.
    pub framing: Framing,
    /// Whether the client keeps the connection (keep-alive).
    pub keep_alive: bool,
    /// Whether the client waits for `100 Continue` before its body.
    pub expects_continue: bool,
    /// Whether the client accepts trailers.
    pub takes_trailers: bool,
    /// Whether the client asks for another protocol on this connection (RFC 9110 section 7.8).
    pub asks_upgrade: bool,
    /// Whether the client asks for an explanation (`X-Trylist-Explain`), allowed or not.
    pub asks_why: bool,
}

impl Default for RequestHead {
    fn default() -> Self {
        let head = HeadText::default();
        Self { head, ..Self::empty() }
    }
}

impl RequestHead {
    /// One without memory.
    const fn empty() -> Self {
        Self {
            head: HeadText::empty(),
            method: Method::Other,
            method_text: Span::EMPTY,
            target: Span::EMPTY,
            version: Version::Http11,
            host: None,
            framing: Framing::None,
            keep_alive: false,
            expects_continue: false,
            takes_trailers: false,
            asks_upgrade: false,
            asks_why: false,
        }
    }

    /// Takes a head out of `buffer` once it is complete, and returns whether it was. `scan` begins as its default for each
    /// head.
    ///
    /// # Errors
    /// The head is refused. The connection cannot be used further, because the next head's begin is unknown.
    pub fn read(
        &mut self,
        buffer: &mut Buffer,
        scan: &mut Scan,
        limits: &HeadLimits,
    ) -> Result<bool, Refusal> {
        let Some(len) = scan.head_len(buffer.bytes(), limits, true)? else {
            return if buffer.room() == 0 { Err(Refusal::HeadTooLarge) } else { Ok(false) };
        };
        let mut text = self.head.lend_with(&buffer.bytes()[..len]);
        buffer.consume(len);
        let result = self.parse_any(&mut text, limits);
        self.head.text = text;
        result.map(|()| true)
    }

    /// Bytes of its first line, as it is in HTTP/1.1.
    pub(crate) fn first_line_len(&self) -> usize {
        self.text(self.method_text).len() + self.text(self.target).len() + "  HTTP/1.1".len()
    }

    /// Its text in HTTP/1.1.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn to_text(&self) -> Vec<u8> {
        let mut text = [self.text(self.method_text), b" ", self.text(self.target), b" HTTP/1.1\r\n"].concat();
        self.write_fields(&mut text, |kind| kind == Name::Nominated);
        text.extend_from_slice(b"\r\n");
        text
    }

    /// Whether this is the preface of HTTP/2.
    pub fn is_h2_preface(&self) -> bool {
        self.head.text == PREFACE_HEAD
    }

    /// Parses a head, with a target or version that the parser refuses rewritten first.
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

    /// Clears everything, so that a refused head is not taken for the last good one.
    pub fn clear(&mut self) {
        let Self { head, .. } = self;
        head.clear();
        let head = std::mem::replace(head, HeadText::empty());
        *self = Self { head, ..Self::empty() };
    }

    fn check_fields(&mut self, text: &[u8], headers: &[httparse::Header<'_>]) -> Result<(), Refusal> {
        self.head.fields.clear();
        self.host = None;
        self.expects_continue = false;
        self.takes_trailers = false;
        self.asks_upgrade = false;
        self.asks_why = false;
        let mut message = MessageFields::default();
        for header in headers {
            let field = Field::new(text, header);
            match field.kind {
                Name::Host => self.take_host(field.value, header.value)?,
                Name::Expect if !header.value.eq_ignore_ascii_case(b"100-continue") => {
                    return Err(Refusal::Expectation);
                }
                Name::Expect => self.expects_continue = self.version == Version::Http11,
                Name::Te => {
                    self.takes_trailers |= tokens(header.value).any(|t| t.eq_ignore_ascii_case(b"trailers"));
                }
                Name::XTrylistExplain => self.asks_why |= header.value == b"1",
                name => message.take(name, header.value)?,
            }
            self.head.fields.push(field);
        }
        if message.persistence.nominates {
            nominate(&mut self.head.fields, text)?;
            self.asks_upgrade = message.persistence.upgrade
                && self.version == Version::Http11
                && self.head.fields.iter().any(|field| field.kind == Name::Upgrade);
        }
        if self.version == Version::Http11 && self.host.is_none() {
            return Err(Refusal::Malformed("no Host"));
        }
        self.framing = framing(&message, self.version)?;
        self.keep_alive = message.persistence.keeps(self.version);
        Ok(())
    }

    fn take_host(&mut self, span: Span, value: &[u8]) -> Result<(), Refusal> {
        if self.host.replace(span).is_some() {
            return Err(Refusal::Malformed("more than one Host"));
        }
        // RFC 9112 section 3.2: empty where the target has no host.
        if !value.is_empty() && !is_authority(value) {
            return Err(Refusal::Malformed("Host is not a host and port"));
        }
        Ok(())
    }
}

impl Deref for RequestHead {
    type Target = HeadText;

    fn deref(&self) -> &HeadText {
        &self.head
    }
}

impl DerefMut for RequestHead {
    fn deref_mut(&mut self) -> &mut HeadText {
        &mut self.head
    }
}

/// How long the body of a request is (RFC 9112 section 6.3).
fn framing(message: &MessageFields, version: Version) -> Result<Framing, Refusal> {
    match (message.is_chunked, message.length) {
        (true, _) if version == Version::Http10 => {
            Err(Refusal::Malformed("Transfer-Encoding in an HTTP/1.0 request"))
        }
        (true, Some(_)) => Err(Refusal::Malformed("both Transfer-Encoding and Content-Length")),
        (true, None) => Ok(Framing::Chunked),
        (false, Some(0) | None) => Ok(Framing::None),
        (false, Some(n)) => Ok(Framing::Length(n)),
    }
}

/// Escapes bytes above 0x7f in the path and query of a target, as browsers do. They are invalid there (RFC 3986 section 2.1),
/// but some clients send them. Hosts, and lines that are no request line, stay unchanged.
#[cold]
fn escape_target(text: &mut Vec<u8>, line: Range<usize>) {
    let spaces = |line: &[u8]| Some((memchr::memchr(b' ', line)?, memchr::memrchr(b' ', line)?));
    let Some((first, last)) = spaces(&text[line.clone()]).filter(|(first, last)| first < last) else {
        return;
    };
    let target = line.start + first + 1..line.start + last;
    // In absolute form the path begins after the host.
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
