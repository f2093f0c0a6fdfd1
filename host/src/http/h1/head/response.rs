//! Heads of responses.

use std::mem::MaybeUninit;

use super::{
    Field, Framing, HeadLimits, MAX_HEADERS, Method, Name, Persistence, Refusal, Scan, Span, Version,
    content_length, first_line, is_chunked, later_minor, nominate, refusal, same_name, write_fields,
};
use crate::http::h1::buffer::Buffer;

/// A response's head, as spans of its text. Reused from response to response.
#[derive(Debug)]
pub struct ResponseHead {
    text: Vec<u8>,
    /// Status code, 100 to 999.
    pub status: u16,
    /// The protocol's version.
    pub version: Version,
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

impl Default for ResponseHead {
    fn default() -> Self {
        Self {
            text: Vec::new(),
            status: 0,
            version: Version::Http11,
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
    /// Takes the head that is waiting in `buffer`, and says whether it is complete; where it is not, the buffer has room
    /// for more of it. `method` is the request's, since the
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
            if buffer.len() >= limits.line_bytes {
                return Err(Refusal::HeadTooLarge);
            }
            // It is one for bodies, which may have less room than a head may take.
            if buffer.room() == 0 {
                buffer.make_room(limits.line_bytes);
            }
            return Ok(false);
        };
        if len > limits.line_bytes {
            return Err(Refusal::HeadTooLarge);
        }
        let mut text = std::mem::take(&mut self.text);
        text.clear();
        text.extend_from_slice(&buffer.bytes()[..len]);
        buffer.consume(len);
        let result = match self.parse(&text, limits, method) {
            Err(Refusal::Version) => later_minor(&text, first_line(&text).start).and_then(|minor| {
                text[minor] = b'1';
                self.parse(&text, limits, method)
            }),
            result => result,
        };
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
        self.version = if version == 0 { Version::Http10 } else { Version::Http11 };
        self.check_fields(text, parsed.headers, method)
    }

    /// The text of a span of this head.
    pub fn text(&self, span: Span) -> &[u8] {
        span.of(&self.text)
    }

    /// Appends all header lines but those that `leave_out` names, each ended by CRLF.
    pub fn write_fields(&self, out: &mut Vec<u8>, leave_out: impl Fn(Name) -> bool) {
        write_fields(&self.text, &self.fields, self.bare_line_feeds, out, |field| leave_out(field.kind));
    }

    /// The same, by name too.
    pub fn write_fields_by(&self, out: &mut Vec<u8>, leave_out: impl Fn(Name, &[u8]) -> bool) {
        write_fields(&self.text, &self.fields, self.bare_line_feeds, out, |field| {
            leave_out(field.kind, self.text(field.name))
        });
    }

    /// Whether this is an interim response, after which another one comes.
    pub fn is_interim(&self) -> bool {
        self.status < 200
    }

    /// Value of the first header of this name.
    pub fn field(&self, name: &[u8]) -> Option<&[u8]> {
        self.fields.iter().find(|f| same_name(self.text(f.name), name)).map(|f| self.text(f.value))
    }

    fn check_fields(
        &mut self,
        text: &[u8],
        headers: &[httparse::Header<'_>],
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
            nominate(&mut self.fields, text)?;
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
        // RFC 9112 section 6.1: HTTP/1.0 has no chunks, so whoever sends them in it is not to be relied on further.
        let is_sound = !(chunked && self.version == Version::Http10) && self.framing != Framing::UntilClose;
        self.keep_alive = is_sound && persistence.keeps(self.version);
        Ok(())
    }
}
