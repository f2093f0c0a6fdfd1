//! Heads of requests and responses: found in the read buffer, parsed, and refused where two parsers could disagree.

mod request;
mod response;
#[cfg(test)]
mod tests;

use std::fmt;
use std::net::Ipv6Addr;

use memchr::memchr;

pub use self::request::RequestHead;
pub use self::response::ResponseHead;

/// First bytes of the HTTP/2 connection preface, which look like a head of HTTP/1.1.
pub const PREFACE_HEAD: &[u8] = b"PRI * HTTP/2.0\r\n\r\n";

/// Maximum header lines of a head; the configured limit is at most this.
pub const MAX_HEADERS: usize = 256;

/// Maximum headers named by `Connection`. Each is compared with all others: without a limit, a head of 16 KiB could cost a
/// millisecond.
const MAX_NOMINATED: usize = 32;

/// A part of a head's text, valid for that head only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    start: u32,
    end: u32,
}

/// Headers that the proxy itself looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the header of its name")]
pub enum Name {
    /// Any other; passed on.
    Other,
    Connection,
    ContentLength,
    Date,
    Expect,
    Forwarded,
    Host,
    KeepAlive,
    /// One of these names with "_" for "-" (`Content_Length`), which many servers treat as the same name ([`same_name`]).
    /// Never passed on.
    Lookalike,
    MaxForwards,
    /// Named by `Connection`: for this hop only.
    Nominated,
    ProxyAuthenticate,
    ProxyAuthorization,
    ProxyConnection,
    Referer,
    Te,
    Trailer,
    TransferEncoding,
    Upgrade,
    UserAgent,
    Via,
    XClientCertFingerprint,
    XClientCertSubject,
    XForwardedFor,
    XForwardedHost,
    XForwardedProto,
    /// Asks this proxy to explain how it handles the request.
    XTrylistExplain,
}

/// One header line.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// Which it is.
    pub kind: Name,
    /// Its name, as written.
    pub name: Span,
    /// Its value, without the white space around it.
    pub value: Span,
    /// Passed on over HTTP/2, it is marked to enter no table (RFC 7541 section 7.1.3).
    pub never_indexed: bool,
}

/// How the end of a body is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// No body.
    None,
    /// By its length in bytes.
    Length(u64),
    /// By chunks, with trailers if any.
    Chunked,
    /// By the end of the connection (HTTP/2: of the stream). In HTTP/1.1 only for responses.
    UntilClose,
}

/// Version of HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    Http11,
    /// HTTP/2: the end of a message ends its stream, never its connection.
    Http2,
}

/// Methods that the proxy treats specially.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the method of its name")]
pub enum Method {
    Get,
    Head,
    Options,
    Trace,
    Put,
    Delete,
    Connect,
    Other,
}

/// A head's text and its header lines, as requests and responses have them. Reused from head to head. The text is copied out
/// of the read buffer (some hundred bytes), so that it stays while the buffer takes the body.
#[derive(Debug)]
pub struct HeadText {
    text: Vec<u8>,
    /// All header lines in their order.
    pub fields: Vec<Field>,
    /// Some of its lines end in a bare line feed.
    bare_line_feeds: bool,
}

/// The meaning of a message's header lines for its body and its connection.
#[derive(Clone, Copy, Debug, Default)]
struct MessageFields {
    length: Option<u64>,
    is_chunked: bool,
    persistence: Persistence,
}

/// Whether the connection goes on, by `Connection` and the version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Persistence {
    close: bool,
    keep_alive: bool,
    nominates: bool,
    upgrade: bool,
}

/// Why a head was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The request line exceeds its limit.
    LineTooLong,
    /// The head exceeds its limit, in bytes or lines.
    HeadTooLarge,
    /// A version of HTTP whose major number is not 1.
    Version,
    /// A transfer coding other than chunked.
    TransferCoding,
    /// An expectation other than 100-continue.
    Expectation,
    /// Anything else, in words.
    Malformed(&'static str),
}

/// Progress of the search for a head's end, so that a slow head is scanned only once.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scan {
    at: usize,
    line_start: usize,
    first_line: Option<usize>,
    bare_line_feeds: bool,
}

/// Limits of a head.
#[derive(Clone, Copy, Debug)]
pub struct HeadLimits {
    /// Bytes of a request's first line; of a response's whole head.
    pub line_bytes: usize,
    /// Header lines, at most [`MAX_HEADERS`].
    pub headers: usize,
}

impl Span {
    const EMPTY: Self = Self { start: 0, end: 0 };

    /// Whether it is empty.
    pub fn is_empty(self) -> bool {
        self.start == self.end
    }

    fn of(self, text: &[u8]) -> &[u8] {
        &text[self.start as usize..self.end as usize]
    }

    /// Span of `part`, which is a piece of `text`.
    fn within(text: &[u8], part: &[u8]) -> Self {
        if part.is_empty() {
            // The parser answers an absent part with an empty text of its own.
            return Self::default();
        }
        let start = part.as_ptr() as usize - text.as_ptr() as usize;
        debug_assert!(start + part.len() <= text.len());
        // A head is at most 1 MiB.
        Self { start: start as u32, end: (start + part.len()) as u32 }
    }
}

impl Scan {
    /// Searches for the end of a head from where the last call stopped, and returns the head's length. Bare line feeds end a
    /// line unless `strict`.
    fn head_len(
        &mut self,
        bytes: &[u8],
        limits: &HeadLimits,
        strict: bool,
    ) -> Result<Option<usize>, Refusal> {
        while let Some(offset) = memchr(b'\n', &bytes[self.at..]) {
            let line_feed = self.at + offset;
            self.at = line_feed + 1;
            let carriage_return = line_feed > self.line_start && bytes[line_feed - 1] == b'\r';
            let line_len = line_feed - self.line_start - usize::from(carriage_return);
            if self.first_line.is_none() && line_len > limits.line_bytes {
                return Err(Refusal::LineTooLong);
            }
            if strict && !carriage_return {
                return Err(Refusal::Malformed("line ended by a bare line feed"));
            }
            self.bare_line_feeds |= !carriage_return;
            self.line_start = self.at;
            match (line_len, self.first_line) {
                (0, Some(_)) => return Ok(Some(self.at)),
                // Empty lines before the first are skipped, as RFC 9112 section 2.2 advises.
                (0, None) => {}
                (n, None) => self.first_line = Some(n),
                (_, Some(_)) => {}
            }
        }
        self.at = bytes.len();
        // Its end may be on the way already.
        let line = &bytes[self.line_start..];
        if self.first_line.is_none() && line.strip_suffix(b"\r").unwrap_or(line).len() > limits.line_bytes {
            return Err(Refusal::LineTooLong);
        }
        Ok(None)
    }
}

impl Field {
    fn new(text: &[u8], header: &httparse::Header<'_>) -> Self {
        Self {
            kind: Name::of(header.name.as_bytes()),
            name: Span::within(text, header.name.as_bytes()),
            value: Span::within(text, header.value),
            never_indexed: false,
        }
    }
}

impl Name {
    /// The header of this name. Length and first letter leave one candidate, so most names need no comparison.
    pub fn of(name: &[u8]) -> Self {
        let Some(first) = name.first() else { return Self::Other };
        let (known, kind): (&[u8], Self) = match (name.len(), first.to_ascii_lowercase()) {
            (2, b't') => (b"te", Self::Te),
            (3, b'v') => (b"via", Self::Via),
            (4, b'h') => (b"host", Self::Host),
            (4, b'd') => (b"date", Self::Date),
            (6, b'e') => (b"expect", Self::Expect),
            (7, b't') => (b"trailer", Self::Trailer),
            (7, b'u') => (b"upgrade", Self::Upgrade),
            (7, b'r') => (b"referer", Self::Referer),
            (9, b'f') => (b"forwarded", Self::Forwarded),
            (10, b'c') => (b"connection", Self::Connection),
            (10, b'u') => (b"user-agent", Self::UserAgent),
            (10, b'k') => (b"keep-alive", Self::KeepAlive),
            (12, b'm') => (b"max-forwards", Self::MaxForwards),
            (14, b'c') => (b"content-length", Self::ContentLength),
            (15, b'x') => (b"x-forwarded-for", Self::XForwardedFor),
            (16, b'x') => (b"x-forwarded-host", Self::XForwardedHost),
            (16, b'p') => (b"proxy-connection", Self::ProxyConnection),
            (17, b't') => (b"transfer-encoding", Self::TransferEncoding),
            (17, b'x') if name[2] | 0x20 == b't' => (b"x-trylist-explain", Self::XTrylistExplain),
            (17, b'x') => (b"x-forwarded-proto", Self::XForwardedProto),
            (18, b'p') => (b"proxy-authenticate", Self::ProxyAuthenticate),
            (21, b'x') => (b"x-client-cert-subject", Self::XClientCertSubject),
            (25, b'x') => (b"x-client-cert-fingerprint", Self::XClientCertFingerprint),
            (19, b'p') => (b"proxy-authorization", Self::ProxyAuthorization),
            _ => return Self::Other,
        };
        // In a name, setting the lower-case bit changes only letters.
        if name.iter().zip(known).all(|(byte, known)| byte | 0x20 == *known) {
            kind
        } else if same_name(name, known) {
            Self::Lookalike
        } else {
            Self::Other
        }
    }

    /// The header of this name in a configuration, where "_" is "-".
    pub fn meant_by(name: &[u8]) -> Self {
        Self::of(&name.iter().map(|byte| if *byte == b'_' { b'-' } else { *byte }).collect::<Vec<_>>())
    }

    /// Whether the header is for one hop and never passed on (RFC 9110 section 7.6.1).
    pub fn is_hop_by_hop(self) -> bool {
        match self {
            Self::Connection
            | Self::KeepAlive
            | Self::Lookalike
            | Self::Nominated
            | Self::ProxyAuthenticate
            | Self::ProxyAuthorization
            | Self::ProxyConnection
            | Self::Te
            | Self::TransferEncoding
            | Self::Upgrade
            | Self::XTrylistExplain => true,
            Self::Other
            | Self::ContentLength
            | Self::Date
            | Self::Expect
            | Self::Forwarded
            | Self::Host
            | Self::MaxForwards
            | Self::Referer
            | Self::Trailer
            | Self::UserAgent
            | Self::Via
            | Self::XClientCertFingerprint
            | Self::XClientCertSubject
            | Self::XForwardedFor
            | Self::XForwardedHost
            | Self::XForwardedProto => false,
        }
    }
}

/// Trailers that would change how the message is framed, routed, authorized or read (RFC 9110 section 6.5.1). They are dropped,
/// because a receiver may merge trailers into headers, after others have checked those headers.
const REFUSED_TRAILERS: [&[u8]; 16] = [
    b"age",
    b"authorization",
    b"cache-control",
    b"content-encoding",
    b"content-range",
    b"content-type",
    b"cookie",
    b"expires",
    b"location",
    b"pragma",
    b"proxy-authentication-info",
    b"range",
    b"retry-after",
    b"set-cookie",
    b"vary",
    b"www-authenticate",
];

/// Whether a trailer of this name is never passed on.
#[cold]
pub fn is_refused_as_trailer(name: &[u8]) -> bool {
    match Name::of(name) {
        Name::Other | Name::UserAgent | Name::Referer => {
            let is_conditional = name.get(..3).is_some_and(|start| same_name(start, b"if-"));
            is_conditional || REFUSED_TRAILERS.iter().any(|refused| same_name(name, refused))
        }
        // Headers that the proxy itself reads or writes.
        _ => true,
    }
}

/// Whether two names are the same header. Case does not matter, and "_" is "-", because servers that turn headers into
/// variables (CGI, WSGI and others) cannot tell them apart. All comparisons of names use this function.
#[inline]
pub fn same_name(name: &[u8], other: &[u8]) -> bool {
    let plain = |byte: &u8| if *byte == b'_' { b'-' } else { byte.to_ascii_lowercase() };
    name.len() == other.len() && name.iter().map(plain).eq(other.iter().map(plain))
}

impl Method {
    /// The method of this name.
    pub(crate) fn of(method: &[u8]) -> Self {
        match method {
            b"GET" => Self::Get,
            b"HEAD" => Self::Head,
            b"OPTIONS" => Self::Options,
            b"TRACE" => Self::Trace,
            b"PUT" => Self::Put,
            b"DELETE" => Self::Delete,
            b"CONNECT" => Self::Connect,
            _ => Self::Other,
        }
    }

    /// Whether the method is idempotent (RFC 9110 section 9.2.2).
    pub fn is_idempotent(self) -> bool {
        match self {
            Self::Get | Self::Head | Self::Options | Self::Trace | Self::Put | Self::Delete => true,
            Self::Connect | Self::Other => false,
        }
    }
}

impl Default for HeadText {
    fn default() -> Self {
        Self { text: Vec::new(), fields: Vec::with_capacity(32), bare_line_feeds: false }
    }
}

impl HeadText {
    /// One without memory.
    const fn empty() -> Self {
        Self { text: Vec::new(), fields: Vec::new(), bare_line_feeds: false }
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
        self.write_each(out, |field| leave_out(field.kind));
    }

    /// The same, by name too.
    pub fn write_fields_by(&self, out: &mut Vec<u8>, leave_out: impl Fn(Name, &[u8]) -> bool) {
        self.write_each(out, |field| leave_out(field.kind, self.text(field.name)));
    }

    /// Lines that follow each other are copied as one piece, as they were written, unless some ended in a bare line feed.
    fn write_each(&self, out: &mut Vec<u8>, leave_out: impl Fn(&Field) -> bool) {
        let Self { text, fields, .. } = self;
        if self.bare_line_feeds {
            for field in fields.iter().filter(|f| !leave_out(f)) {
                for part in [field.name.of(text), b": ", field.value.of(text), b"\r\n"] {
                    out.extend_from_slice(part);
                }
            }
            return;
        }
        // The empty line that ends the head stands behind the last field.
        let end = text.len() - 2;
        let line_start = |i: usize| fields.get(i).map_or(end, |f| f.name.start as usize);
        let mut run = line_start(0);
        for (i, field) in fields.iter().enumerate() {
            if leave_out(field) {
                out.extend_from_slice(&text[run..line_start(i)]);
                run = line_start(i + 1);
            }
        }
        out.extend_from_slice(&text[run..end]);
    }

    /// Appends text in front of all lines, for heads that come field by field.
    pub(crate) fn push_text(&mut self, part: &[u8]) -> Span {
        debug_assert!(self.fields.is_empty());
        let start = self.text.len() as u32;
        self.text.extend_from_slice(part);
        Span { start, end: self.text.len() as u32 }
    }

    /// Appends a line, for heads that come field by field. Name and value are well-formed.
    pub(crate) fn push_line(&mut self, kind: Name, name: &[u8], value: &[u8], never_indexed: bool) {
        let start = self.text.len() as u32;
        let name_end = start + name.len() as u32;
        let value_start = name_end + 2;
        self.text.reserve(name.len() + value.len() + 4);
        self.text.extend_from_slice(name);
        self.text.extend_from_slice(b": ");
        self.text.extend_from_slice(value);
        self.text.extend_from_slice(b"\r\n");
        self.fields.push(Field {
            kind,
            name: Span { start, end: name_end },
            value: Span { start: value_start, end: value_start + value.len() as u32 },
            never_indexed,
        });
    }

    /// The same with a value that stands in this text already.
    pub(crate) fn push_line_of(&mut self, kind: Name, name: &[u8], value: Span) {
        self.push_line(kind, name, b"", false);
        let Some(last) = self.fields.last_mut() else { return };
        self.text.truncate(last.value.end as usize);
        self.text.extend_from_within(value.start as usize..value.end as usize);
        last.value.end = self.text.len() as u32;
        self.text.extend_from_slice(b"\r\n");
    }

    /// Has nobody see this line any more.
    pub(crate) fn hide(&mut self, i: usize) {
        let field = &mut self.fields[i];
        field.kind = Name::Nominated;
        field.name.end = field.name.start;
    }

    /// Appends to the value of the last line.
    pub(crate) fn extend_last(&mut self, part: &[u8]) {
        let Some(last) = self.fields.last_mut() else { return };
        self.text.truncate(last.value.end as usize);
        self.text.extend_from_slice(part);
        last.value.end = self.text.len() as u32;
        self.text.extend_from_slice(b"\r\n");
    }

    /// Appends the empty line, behind the last line.
    pub(crate) fn end_lines(&mut self) {
        self.text.extend_from_slice(b"\r\n");
    }

    /// Adds a line to a head that is complete.
    pub(crate) fn add_line(&mut self, kind: Name, name: &[u8], value: &[u8]) {
        self.text.truncate(self.text.len().saturating_sub(2));
        self.push_line(kind, name, value, false);
        self.end_lines();
    }

    /// The memory of its text, with this text in it; to be put back when that was parsed.
    fn lend_with(&mut self, head: &[u8]) -> Vec<u8> {
        let mut text = std::mem::take(&mut self.text);
        text.clear();
        text.extend_from_slice(head);
        text
    }

    /// Forgets the head, and keeps the memory.
    pub(crate) fn clear(&mut self) {
        self.text.clear();
        self.fields.clear();
        self.bare_line_feeds = false;
    }
}

impl MessageFields {
    /// Takes in a header that means the same in requests and responses.
    #[inline]
    fn take(&mut self, name: Name, value: &[u8]) -> Result<(), Refusal> {
        match name {
            Name::ContentLength if self.length.is_some() => {
                return Err(Refusal::Malformed("more than one Content-Length"));
            }
            Name::ContentLength => self.length = Some(content_length(value)?),
            Name::TransferEncoding if self.is_chunked => {
                return Err(Refusal::Malformed("more than one Transfer-Encoding"));
            }
            Name::TransferEncoding => {
                is_chunked(value)?;
                self.is_chunked = true;
            }
            Name::Connection => self.persistence.read(value),
            _ => {}
        }
        Ok(())
    }
}

impl Persistence {
    fn read(&mut self, value: &[u8]) {
        // The usual forms.
        match value {
            b"keep-alive" => return self.keep_alive = true,
            b"close" => return self.close = true,
            _ => {}
        }
        for token in tokens(value) {
            if token.eq_ignore_ascii_case(b"close") {
                self.close = true;
            } else if token.eq_ignore_ascii_case(b"keep-alive") {
                self.keep_alive = true;
            } else {
                self.upgrade |= token.eq_ignore_ascii_case(b"upgrade");
                self.nominates = true;
            }
        }
    }

    fn keeps(self, version: Version) -> bool {
        !self.close && (version != Version::Http10 || self.keep_alive)
    }
}

/// Marks the headers named by `Connection` as hop-by-hop, except those that frame or route the message.
fn nominate(fields: &mut [Field], text: &[u8]) -> Result<(), Refusal> {
    let mut n_named = 0;
    for i in 0..fields.len() {
        if fields[i].kind != Name::Connection {
            continue;
        }
        let value = fields[i].value;
        for token in tokens(value.of(text)) {
            n_named += 1;
            if n_named > MAX_NOMINATED {
                return Err(Refusal::Malformed("Connection names too many headers"));
            }
            for field in fields.iter_mut() {
                let essential = matches!(
                    field.kind,
                    Name::Host
                        | Name::ContentLength
                        | Name::TransferEncoding
                        | Name::Connection
                        | Name::Te
                        | Name::Upgrade
                );
                if !essential && same_name(field.name.of(text), token) {
                    field.kind = Name::Nominated;
                }
            }
        }
    }
    Ok(())
}

/// The elements of a comma-separated list.
pub fn tokens(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&b| b == b',').map(<[u8]>::trim_ascii).filter(|t| !t.is_empty())
}

fn content_length(value: &[u8]) -> Result<u64, Refusal> {
    // At most 18 digits, which cannot overflow.
    if value.is_empty() || value.len() > 18 || !value.iter().all(u8::is_ascii_digit) {
        return Err(Refusal::Malformed("Content-Length is not a number"));
    }
    Ok(value.iter().fold(0, |n, &digit| n * 10 + u64::from(digit - b'0')))
}

fn is_chunked(value: &[u8]) -> Result<(), Refusal> {
    if value.eq_ignore_ascii_case(b"chunked") {
        return Ok(());
    }
    let is_it = |coding: &[u8]| coding.eq_ignore_ascii_case(b"chunked");
    // RFC 9112 section 6.1 forbids the first two. The third is valid, but not supported.
    match tokens(value).filter(|coding| is_it(coding)).count() {
        2.. => Err(Refusal::Malformed("Transfer-Encoding names chunked more than once")),
        _ if !tokens(value).last().is_some_and(is_it) => {
            Err(Refusal::Malformed("Transfer-Encoding does not end in chunked"))
        }
        _ => Err(Refusal::TransferCoding),
    }
}

/// Offset of the minor version in a first line whose version the parser refused. HTTP/1.2 and later are read as HTTP/1.1 (RFC
/// 9110 section 2.5). `at` is the offset of the version.
///
/// # Errors
/// The version has another major number, or is no version.
fn later_minor(text: &[u8], at: usize) -> Result<usize, Refusal> {
    match text.get(at..at + 8) {
        Some([b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'2'..=b'9']) => Ok(at + 7),
        Some([b'H', b'T', b'T', b'P', b'/', major, b'.', minor])
            if major.is_ascii_digit() && minor.is_ascii_digit() && *major != b'1' =>
        {
            Err(Refusal::Version)
        }
        _ => Err(Refusal::Malformed("no HTTP version in the first line")),
    }
}

/// Range of a head's first line, after empty lines.
fn first_line(text: &[u8]) -> std::ops::Range<usize> {
    let start = text.iter().position(|byte| !matches!(byte, b'\r' | b'\n')).unwrap_or(text.len());
    let end = memchr::memchr2(b'\r', b'\n', &text[start..]).map_or(text.len(), |len| start + len);
    start..end
}

/// Whether this is a host with an optional port (RFC 3986 section 3.2, without user information). Servers disagree about the
/// host in anything else.
pub fn is_authority(text: &[u8]) -> bool {
    let (is_host, port) = match text {
        [b'[', rest @ ..] => {
            let Some(end) = memchr(b']', rest) else { return false };
            (is_ipv6(&rest[..end]), &rest[end + 1..])
        }
        _ => {
            let end = text.iter().position(|&b| !HOST_BYTES[usize::from(b)]).unwrap_or(text.len());
            let (host, port) = text.split_at(end);
            (!host.is_empty() && is_escaped_well(host), port)
        }
    };
    let is_port = match port {
        [] => true,
        [b':', digits @ ..] => digits.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    is_host && is_port
}

fn is_ipv6(text: &[u8]) -> bool {
    std::str::from_utf8(text).is_ok_and(|text| text.parse::<Ipv6Addr>().is_ok())
}

/// Whether each per cent sign is followed by two hexadecimal digits.
fn is_escaped_well(host: &[u8]) -> bool {
    memchr::memchr_iter(b'%', host)
        .all(|at| host.get(at + 1..at + 3).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit)))
}

/// Bytes of a host that is a name or an IPv4 address.
static HOST_BYTES: [bool; 256] = {
    let mut table = [false; 256];
    let marks = b"-._~%!$&'()*+,;=";
    let mut i = 0;
    while i < 256 {
        table[i] = (i as u8).is_ascii_alphanumeric();
        i += 1;
    }
    i = 0;
    while i < marks.len() {
        table[marks[i] as usize] = true;
        i += 1;
    }
    table
};

fn refusal(e: httparse::Error) -> Refusal {
    match e {
        httparse::Error::TooManyHeaders => Refusal::HeadTooLarge,
        httparse::Error::Version => Refusal::Version,
        httparse::Error::HeaderName => Refusal::Malformed("malformed header name"),
        httparse::Error::HeaderValue => Refusal::Malformed("malformed header value"),
        httparse::Error::NewLine => Refusal::Malformed("malformed line end"),
        httparse::Error::Status => Refusal::Malformed("malformed status"),
        httparse::Error::Token => Refusal::Malformed("malformed first line"),
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::LineTooLong => "first line over its limit",
            Self::HeadTooLarge => "head over its limit",
            Self::Version => "a version other than HTTP/1.0 and HTTP/1.1",
            Self::TransferCoding => "a transfer coding other than chunked",
            Self::Expectation => "an expectation other than 100-continue",
            Self::Malformed(text) => text,
        })
    }
}
