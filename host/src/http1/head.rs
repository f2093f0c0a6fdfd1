//! Heads of requests and responses: found in the read buffer, parsed in place, and checked for everything that two
//! parsers could read in two ways.

use std::fmt;
use std::mem::MaybeUninit;

use memchr::memchr;

use super::buffer::Buffer;

/// Header lines that the parser has room for; the configured limit is at most this.
pub const MAX_HEADERS: usize = 256;

/// A piece of a head's text; it means something only together with that head.
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
    XForwardedFor,
    XForwardedHost,
    XForwardedProto,
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
}

/// How long a body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// There is none.
    None,
    /// So many bytes.
    Length(u64),
    /// Chunks, and maybe trailers.
    Chunked,
    /// All up to the end of the connection; only in responses.
    UntilClose,
}

/// How a message may end its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    Http11,
}

/// The methods that the proxy treats in their own way.
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

/// What `Connection` and the version say together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Persistence {
    close: bool,
    keep_alive: bool,
    nominates: bool,
}

/// A request's head, as spans of its text. Reused from request to request. The text is copied out of the read buffer
/// (some hundred bytes), so that it stays while the buffer takes the body.
#[derive(Debug)]
pub struct RequestHead {
    text: Vec<u8>,
    /// Which method.
    pub method: Method,
    /// The method as sent.
    pub method_text: Span,
    /// The target as sent.
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
}

/// A response's head, as spans of its text. Reused from response to response.
#[derive(Debug)]
pub struct ResponseHead {
    text: Vec<u8>,
    /// Status code, 100 to 999.
    pub status: u16,
    /// Reason phrase as sent, maybe empty.
    pub reason: Span,
    /// All header lines in their order.
    pub fields: Vec<Field>,
    /// How long the body is.
    pub framing: Framing,
    /// Whether the server keeps the connection.
    pub keep_alive: bool,
    /// Whether there is a `Date`.
    pub has_date: bool,
    bare_line_feeds: bool,
}

/// Why a head was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The request line is over its limit.
    LineTooLong,
    /// The head is over its limit, in bytes or lines.
    HeadTooLarge,
    /// A protocol version that is not HTTP/1.0 or HTTP/1.1.
    Version,
    /// A transfer coding other than chunked.
    TransferCoding,
    /// An expectation other than 100-continue.
    Expectation,
    /// Anything else, in words.
    Malformed(&'static str),
}

/// How far the search for a head's end has come, so that a head that drips in is looked at once.
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
    /// Looks for the end of a head in what is waiting, from where the last call stopped, and returns its length.
    /// Bare line feeds end a line only where `strict` is off.
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
            if strict && !carriage_return {
                return Err(Refusal::Malformed("line ended by a bare line feed"));
            }
            self.bare_line_feeds |= !carriage_return;
            let line_len = line_feed - self.line_start - usize::from(carriage_return);
            self.line_start = self.at;
            match (line_len, self.first_line) {
                (0, Some(_)) => return Ok(Some(self.at)),
                // Empty lines before the first are skipped, as RFC 9112 section 2.2 advises.
                (0, None) => {}
                (n, None) if n > limits.line_bytes => return Err(Refusal::LineTooLong),
                (n, None) => self.first_line = Some(n),
                (_, Some(_)) => {}
            }
        }
        self.at = bytes.len();
        if self.first_line.is_none() && bytes.len() - self.line_start > limits.line_bytes {
            return Err(Refusal::LineTooLong);
        }
        Ok(None)
    }
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
        let result = self.parse(&text, limits);
        self.text = text;
        result.map(|()| true)
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
        self.fields.iter().find(|f| self.text(f.name).eq_ignore_ascii_case(name)).map(|f| self.text(f.value))
    }

    /// Value of the first header of this kind.
    pub fn known(&self, kind: Name) -> Option<&[u8]> {
        self.fields.iter().find(|f| f.kind == kind).map(|f| self.text(f.value))
    }

    /// Appends all header lines but those that `leave_out` names, each ended by CRLF.
    pub fn write_fields(&self, out: &mut Vec<u8>, leave_out: impl Fn(Name) -> bool) {
        write_fields(&self.text, &self.fields, false, out, leave_out);
    }

    fn check_fields(&mut self, text: &[u8], headers: &[httparse::Header<'_>]) -> Result<(), Refusal> {
        self.fields.clear();
        self.host = None;
        self.expects_continue = false;
        self.takes_trailers = false;
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
                    if !header.value.iter().all(|&b| is_authority_byte(b)) {
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
                _ => {}
            }
            self.fields.push(field);
        }
        if persistence.nominates {
            nominate(&mut self.fields, text);
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

impl Default for ResponseHead {
    fn default() -> Self {
        Self {
            text: Vec::new(),
            status: 0,
            reason: Span::default(),
            fields: Vec::with_capacity(32),
            framing: Framing::None,
            keep_alive: false,
            has_date: false,
            bare_line_feeds: false,
        }
    }
}

impl ResponseHead {
    /// Takes the head that is waiting in `buffer`, and says whether it is complete. `method` is the request's, since the
    /// answer to HEAD has no body.
    ///
    /// # Errors
    /// What is wrong with it; the connection cannot be used further.
    pub fn read(
        &mut self,
        buffer: &mut Buffer,
        scan: &mut Scan,
        limits: &HeadLimits,
        method: Method,
    ) -> Result<bool, Refusal> {
        // Servers that end lines by bare line feeds exist; the head is written anew, so nobody behind us sees them.
        let Some(len) = scan.head_len(buffer.bytes(), limits, false)? else {
            // The buffer has room for a body, too.
            let full = buffer.len() >= limits.line_bytes || buffer.room() == 0;
            return if full { Err(Refusal::HeadTooLarge) } else { Ok(false) };
        };
        if len > limits.line_bytes {
            return Err(Refusal::HeadTooLarge);
        }
        let mut text = std::mem::take(&mut self.text);
        text.clear();
        text.extend_from_slice(&buffer.bytes()[..len]);
        buffer.consume(len);
        let result = self.parse(&text, limits, method);
        self.text = text;
        self.bare_line_feeds = scan.bare_line_feeds;
        result.map(|()| true)
    }

    fn parse(&mut self, text: &[u8], limits: &HeadLimits, method: Method) -> Result<(), Refusal> {
        let mut headers = [const { MaybeUninit::uninit() }; MAX_HEADERS];
        let mut parsed = httparse::Response::new(&mut []);
        match httparse::ParserConfig::default().parse_response_with_uninit_headers(
            &mut parsed,
            text,
            &mut headers[..limits.headers.min(MAX_HEADERS)],
        ) {
            Ok(httparse::Status::Complete(_)) => {}
            Ok(httparse::Status::Partial) => return Err(Refusal::Malformed("response head ends too early")),
            Err(e) => return Err(refusal(e)),
        }
        let (Some(status), Some(version)) = (parsed.code, parsed.version) else {
            return Err(Refusal::Malformed("status line has no status or version"));
        };
        if status < 100 {
            return Err(Refusal::Malformed("status below 100"));
        }
        self.status = status;
        self.reason = parsed.reason.map_or(Span::default(), |reason| Span::within(text, reason.as_bytes()));
        let version = if version == 0 { Version::Http10 } else { Version::Http11 };
        self.check_fields(text, parsed.headers, version, method)
    }

    /// The text of a span of this head.
    pub fn text(&self, span: Span) -> &[u8] {
        span.of(&self.text)
    }

    /// Appends all header lines but those that `leave_out` names, each ended by CRLF.
    pub fn write_fields(&self, out: &mut Vec<u8>, leave_out: impl Fn(Name) -> bool) {
        write_fields(&self.text, &self.fields, self.bare_line_feeds, out, leave_out);
    }

    /// Whether this is an interim response, after which another one comes.
    pub fn is_interim(&self) -> bool {
        self.status < 200
    }

    /// Value of the first header of this name.
    pub fn field(&self, name: &[u8]) -> Option<&[u8]> {
        self.fields.iter().find(|f| self.text(f.name).eq_ignore_ascii_case(name)).map(|f| self.text(f.value))
    }

    fn check_fields(
        &mut self,
        text: &[u8],
        headers: &[httparse::Header<'_>],
        version: Version,
        method: Method,
    ) -> Result<(), Refusal> {
        self.fields.clear();
        self.has_date = false;
        let mut length = None;
        let mut chunked = false;
        let mut persistence = Persistence::default();
        for header in headers {
            let field = Field::new(text, header);
            match field.kind {
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
                Name::Date => self.has_date = true,
                _ => {}
            }
            self.fields.push(field);
        }
        if persistence.nominates {
            nominate(&mut self.fields, text);
        }
        let bodiless = method == Method::Head || matches!(self.status, 100..=199 | 204 | 304);
        self.framing = match (chunked, length) {
            (true, Some(_)) => {
                return Err(Refusal::Malformed("both Transfer-Encoding and Content-Length"));
            }
            _ if bodiless => Framing::None,
            (true, None) => Framing::Chunked,
            (false, Some(0)) => Framing::None,
            (false, Some(n)) => Framing::Length(n),
            (false, None) => Framing::UntilClose,
        };
        self.keep_alive = persistence.keeps(version) && self.framing != Framing::UntilClose;
        Ok(())
    }
}

impl Field {
    fn new(text: &[u8], header: &httparse::Header<'_>) -> Self {
        Self {
            kind: Name::of(header.name.as_bytes()),
            name: Span::within(text, header.name.as_bytes()),
            value: Span::within(text, header.value),
        }
    }
}

impl Name {
    /// Which header this name names. Length and first letter leave one candidate, so that most names are compared with none.
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
            (17, b'x') => (b"x-forwarded-proto", Self::XForwardedProto),
            (18, b'p') => (b"proxy-authenticate", Self::ProxyAuthenticate),
            (19, b'p') => (b"proxy-authorization", Self::ProxyAuthorization),
            _ => return Self::Other,
        };
        // Setting the bit of lower case turns nothing that may stand in a name into a letter or a hyphen but upper case.
        let equal = name.iter().zip(known).all(|(byte, known)| byte | 0x20 == *known);
        if equal { kind } else { Self::Other }
    }

    /// Whether the header speaks of one hop and is never passed on (RFC 9110 section 7.6.1).
    pub fn is_hop_by_hop(self) -> bool {
        match self {
            Self::Connection
            | Self::KeepAlive
            | Self::Nominated
            | Self::ProxyAuthenticate
            | Self::ProxyAuthorization
            | Self::ProxyConnection
            | Self::Te
            | Self::TransferEncoding
            | Self::Upgrade => true,
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
            | Self::XForwardedFor
            | Self::XForwardedHost
            | Self::XForwardedProto => false,
        }
    }

    /// Whether a trailer of this name would change how the message before it was read (RFC 9110 section 6.5.1).
    pub fn is_refused_as_trailer(self) -> bool {
        self.is_hop_by_hop()
            || matches!(
                self,
                Self::ContentLength
                    | Self::Host
                    | Self::Expect
                    | Self::MaxForwards
                    | Self::Trailer
                    | Self::Via
            )
    }
}

impl Method {
    fn of(method: &[u8]) -> Self {
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

    /// Whether sending a request twice does what sending it once does (RFC 9110 section 9.2.2).
    pub fn is_idempotent(self) -> bool {
        match self {
            Self::Get | Self::Head | Self::Options | Self::Trace | Self::Put | Self::Delete => true,
            Self::Connect | Self::Other => false,
        }
    }
}

impl Persistence {
    fn read(&mut self, value: &[u8]) {
        // As nearly all write it.
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
                self.nominates = true;
            }
        }
    }

    fn keeps(self, version: Version) -> bool {
        !self.close && (version == Version::Http11 || self.keep_alive)
    }
}

/// Marks the headers that `Connection` names as meant for this hop. Those that frame or route the message cannot be
/// taken out of it that way.
fn nominate(fields: &mut [Field], text: &[u8]) {
    for i in 0..fields.len() {
        if fields[i].kind != Name::Connection {
            continue;
        }
        let value = fields[i].value;
        for token in tokens(value.of(text)) {
            for field in fields.iter_mut() {
                let essential = matches!(
                    field.kind,
                    Name::Host | Name::ContentLength | Name::TransferEncoding | Name::Connection | Name::Te
                );
                if !essential && field.name.of(text).eq_ignore_ascii_case(token) {
                    field.kind = Name::Nominated;
                }
            }
        }
    }
}

/// Lines that follow each other are copied as one piece, as they were written, unless some ended in a bare line feed.
fn write_fields(
    text: &[u8],
    fields: &[Field],
    one_by_one: bool,
    out: &mut Vec<u8>,
    leave_out: impl Fn(Name) -> bool,
) {
    if one_by_one {
        for field in fields.iter().filter(|f| !leave_out(f.kind)) {
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
        if leave_out(field.kind) {
            out.extend_from_slice(&text[run..line_start(i)]);
            run = line_start(i + 1);
        }
    }
    out.extend_from_slice(&text[run..end]);
}

/// The elements of a comma-separated list.
pub fn tokens(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&b| b == b',').map(<[u8]>::trim_ascii).filter(|t| !t.is_empty())
}

fn content_length(value: &[u8]) -> Result<u64, Refusal> {
    // At most 18 digits, so that it cannot overflow; nobody sends an exabyte.
    if value.is_empty() || value.len() > 18 || !value.iter().all(u8::is_ascii_digit) {
        return Err(Refusal::Malformed("Content-Length is not a number"));
    }
    Ok(value.iter().fold(0, |n, &digit| n * 10 + u64::from(digit - b'0')))
}

fn is_chunked(value: &[u8]) -> Result<(), Refusal> {
    if value.eq_ignore_ascii_case(b"chunked") {
        return Ok(());
    }
    match tokens(value).last() {
        Some(last) if last.eq_ignore_ascii_case(b"chunked") => Err(Refusal::TransferCoding),
        _ => Err(Refusal::Malformed("Transfer-Encoding does not end in chunked")),
    }
}

/// Whether a byte may stand in a host and port (RFC 3986 section 3.2, without user information).
pub fn is_authority_byte(b: u8) -> bool {
    AUTHORITY_BYTES[usize::from(b)]
}

static AUTHORITY_BYTES: [bool; 256] = {
    let mut table = [false; 256];
    let marks = b"-._~%!$&'()*+,;=:[]";
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
            Self::Version => "neither HTTP/1.0 nor HTTP/1.1",
            Self::TransferCoding => "a transfer coding other than chunked",
            Self::Expectation => "an expectation other than 100-continue",
            Self::Malformed(text) => text,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: HeadLimits = HeadLimits { line_bytes: 100, headers: 10 };

    fn request(text: &str) -> Result<RequestHead, Refusal> {
        let mut buffer = Buffer::for_head(1000);
        buffer.append(text.as_bytes());
        let mut head = RequestHead::default();
        assert!(head.read(&mut buffer, &mut Scan::default(), &LIMITS)?, "incomplete: {text:?}");
        Ok(head)
    }

    fn refused(text: &str) -> Refusal {
        request(text).expect_err(text)
    }

    fn response(text: &str, method: Method) -> Result<ResponseHead, Refusal> {
        let mut buffer = Buffer::for_head(1000);
        buffer.append(text.as_bytes());
        let mut head = ResponseHead::default();
        assert!(head.read(&mut buffer, &mut Scan::default(), &LIMITS, method)?, "incomplete: {text:?}");
        Ok(head)
    }

    #[test]
    fn reads_a_plain_request() {
        let head = request("GET /a?b HTTP/1.1\r\nHost: x:80\r\nX: y\r\n\r\n").expect("accepted");
        assert_eq!(head.text(head.target), b"/a?b");
        assert_eq!(head.host.map(|h| head.text(h)), Some(&b"x:80"[..]));
        assert_eq!((head.method, head.framing, head.keep_alive), (Method::Get, Framing::None, true));
    }

    #[test]
    fn skips_empty_lines_before_the_request() {
        assert!(request("\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n").is_ok());
    }

    #[test]
    fn goes_on_where_a_dripping_head_stopped() {
        let text = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";
        let mut buffer = Buffer::for_head(1000);
        let (mut head, mut scan) = (RequestHead::default(), Scan::default());
        for (i, byte) in text.iter().enumerate() {
            buffer.append(&[*byte]);
            let complete = head.read(&mut buffer, &mut scan, &LIMITS).expect("well-formed");
            assert_eq!(complete, i + 1 == text.len());
        }
    }

    #[test]
    fn refuses_what_can_be_framed_in_two_ways() {
        for fields in [
            "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
            "Content-Length: 5\r\nContent-Length: 5\r\n",
            "Content-Length: 5, 5\r\n",
            "Content-Length: +5\r\n",
            "Content-Length: 0x5\r\n",
            "Content-Length: \r\n",
            "Content-Length: 9999999999999999999\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: chunked, identity\r\n",
            "Transfer-Encoding: xchunked\r\n",
            "Transfer-Encoding : chunked\r\n",
            "X: a\r\n folded\r\n",
            "X: a\rb\r\n",
            "X: a\nY: b\r\n",
            "X: a\0b\r\n",
            "Host: y\r\n",
        ] {
            let text = format!("POST / HTTP/1.1\r\nHost: x\r\n{fields}\r\n");
            assert!(matches!(refused(&text), Refusal::Malformed(_)), "{fields:?}");
        }
    }

    #[test]
    fn refuses_codings_and_expectations_that_it_does_not_know() {
        let head = |fields: &str| format!("POST / HTTP/1.1\r\nHost: x\r\n{fields}\r\n\r\n");
        assert_eq!(refused(&head("Transfer-Encoding: gzip, chunked")), Refusal::TransferCoding);
        assert_eq!(refused(&head("Expect: tea")), Refusal::Expectation);
    }

    #[test]
    fn refuses_a_body_framing_that_its_version_does_not_have() {
        assert!(matches!(
            refused("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"),
            Refusal::Malformed(_)
        ));
        assert_eq!(refused("GET / HTTP/2.0\r\nHost: x\r\n\r\n"), Refusal::Version);
        assert_eq!(refused("GET / HTTP/1.1\r\n\r\n"), Refusal::Malformed("no Host"));
    }

    #[test]
    fn tells_a_long_line_from_a_large_head() {
        assert_eq!(refused(&format!("GET /{} HTTP/1.1\r\n", "a".repeat(200))), Refusal::LineTooLong);
        assert_eq!(refused(&format!("GET /{}", "a".repeat(200))), Refusal::LineTooLong);
        let lines: String = (0..11).map(|i| format!("X{i}: y\r\n")).collect();
        assert_eq!(refused(&format!("GET / HTTP/1.1\r\n{lines}\r\n")), Refusal::HeadTooLarge);
        let long = format!("GET / HTTP/1.1\r\nX: {}", "y".repeat(2000));
        assert_eq!(refused(&long), Refusal::HeadTooLarge);
    }

    #[test]
    fn takes_nominated_headers_for_this_hop_but_not_those_that_frame() {
        let head = request(
            "POST / HTTP/1.1\r\nHost: x\r\nX-Hop: 1\r\nConnection: x-hop, Host, Content-Length\r\nContent-Length: 1\r\n\r\n",
        )
        .expect("accepted");
        let kinds: Vec<_> = head.fields.iter().map(|f| f.kind).collect();
        assert_eq!(kinds, [Name::Host, Name::Nominated, Name::Connection, Name::ContentLength]);
    }

    #[test]
    fn writes_the_lines_that_are_passed_on() {
        let head =
            request("GET / HTTP/1.1\r\nTE: x\r\nA: 1\r\nb:2 \r\nHost: x\r\nC: 3\r\n\r\n").expect("accepted");
        let mut out = Vec::new();
        head.write_fields(&mut out, |kind| kind != Name::Other);
        assert_eq!(String::from_utf8_lossy(&out), "A: 1\r\nb:2 \r\nC: 3\r\n");
        let head = response("HTTP/1.1 200 OK\nA: 1\nTE: x\r\nB: 2\n\n", Method::Get).expect("accepted");
        let mut out = Vec::new();
        head.write_fields(&mut out, |kind| kind != Name::Other);
        assert_eq!(String::from_utf8_lossy(&out), "A: 1\r\nB: 2\r\n");
    }

    #[test]
    fn frames_responses_by_rfc_9112_section_6_3() {
        let framing = |text: &str, method| response(text, method).map(|h| (h.framing, h.keep_alive));
        assert_eq!(
            framing("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", Method::Get),
            Ok((Framing::Length(3), true))
        );
        assert_eq!(
            framing("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", Method::Head),
            Ok((Framing::None, true))
        );
        assert_eq!(
            framing("HTTP/1.1 304 X\r\nContent-Length: 3\r\n\r\n", Method::Get),
            Ok((Framing::None, true))
        );
        assert_eq!(framing("HTTP/1.1 200 OK\r\n\r\n", Method::Get), Ok((Framing::UntilClose, false)));
        assert_eq!(
            framing("HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\n", Method::Get),
            Ok((Framing::Length(3), false))
        );
        assert_eq!(
            framing("HTTP/1.1 200\nTransfer-Encoding: chunked\n\n", Method::Get),
            Ok((Framing::Chunked, true))
        );
        assert!(
            framing(
                "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
                Method::Get
            )
            .is_err()
        );
        assert!(framing("ICY 200 OK\r\n\r\n", Method::Get).is_err());
    }
}
