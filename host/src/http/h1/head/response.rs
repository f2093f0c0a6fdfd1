//! Heads of responses.

use std::io::Write as _;
use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut};

use super::{
    Field, Framing, HeadLimits, HeadText, MAX_HEADERS, MessageFields, Method, Name, Refusal, Scan, Span,
    Version, first_line, later_minor, nominate, refusal,
};
use crate::http::h1::buffer::Buffer;

/// A response's head, as spans of its text.
#[derive(Debug)]
pub struct ResponseHead {
    head: HeadText,
    /// Status code, 100 to 999.
    pub status: u16,
    /// The protocol's version.
    pub version: Version,
    /// Reason phrase as sent; may be empty.
    pub reason: Span,
    /// How long the body is.
    pub framing: Framing,
    /// Whether the server keeps the connection.
    pub keep_alive: bool,
    /// Whether it has a `Date`.
    pub has_date: bool,
}

impl Default for ResponseHead {
    fn default() -> Self {
        Self {
            head: HeadText::default(),
            status: 0,
            version: Version::Http11,
            reason: Span::default(),
            framing: Framing::None,
            keep_alive: false,
            has_date: false,
        }
    }
}

impl ResponseHead {
    /// Takes a head out of `buffer` once it is complete, and returns whether it was. If not, the buffer has room for more.
    /// `method` is the request's, because the response to HEAD has no body.
    ///
    /// # Errors
    /// The head is refused; the connection cannot be used further.
    pub fn read(
        &mut self,
        buffer: &mut Buffer,
        scan: &mut Scan,
        limits: &HeadLimits,
        method: Method,
    ) -> Result<bool, Refusal> {
        // Some servers end lines by bare line feeds. The head is written again, so clients do not see them.
        // The limit is that of the whole head, of which the first line is a part.
        let len = scan.head_len(buffer.bytes(), limits, false).map_err(|_| Refusal::HeadTooLarge)?;
        let Some(len) = len else {
            if buffer.len() >= limits.line_bytes {
                return Err(Refusal::HeadTooLarge);
            }
            // A buffer for bodies may be smaller than a head.
            if buffer.room() == 0 {
                buffer.make_room(limits.line_bytes);
            }
            return Ok(false);
        };
        if len > limits.line_bytes {
            return Err(Refusal::HeadTooLarge);
        }
        let mut text = self.head.lend_with(&buffer.bytes()[..len]);
        buffer.consume(len);
        let result = match self.parse(&text, limits, method) {
            Err(Refusal::Version) => later_minor(&text, first_line(&text).start).and_then(|minor| {
                text[minor] = b'1';
                self.parse(&text, limits, method)
            }),
            result => result,
        };
        self.head.text = text;
        self.head.bare_line_feeds = scan.bare_line_feeds;
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

    /// Appends its text in HTTP/1.1.
    pub(crate) fn write_text(&self, out: &mut Vec<u8>) {
        // Writing to a vector cannot fail.
        let _ = write!(out, "HTTP/1.1 {} ", self.status);
        out.extend_from_slice(self.text(self.reason));
        out.extend_from_slice(b"\r\n");
        self.write_fields(out, |_| false);
        out.extend_from_slice(b"\r\n");
    }

    /// Whether this is an interim response, after which another one comes.
    pub fn is_interim(&self) -> bool {
        self.status < 200
    }

    fn check_fields(
        &mut self,
        text: &[u8],
        headers: &[httparse::Header<'_>],
        method: Method,
    ) -> Result<(), Refusal> {
        self.head.fields.clear();
        self.has_date = false;
        let mut message = MessageFields::default();
        for header in headers {
            let field = Field::new(text, header);
            match field.kind {
                Name::Date => self.has_date = true,
                name => message.take(name, header.value)?,
            }
            self.head.fields.push(field);
        }
        if message.persistence.nominates {
            nominate(&mut self.head.fields, text)?;
        }
        let bodiless = method == Method::Head || matches!(self.status, 100..=199 | 204 | 304);
        self.framing = framing(&message, bodiless)?;
        // RFC 9112 section 6.1: HTTP/1.0 has no chunks, so a server that sends them is not trusted with a reused connection.
        let is_sound =
            !(message.is_chunked && self.version == Version::Http10) && self.framing != Framing::UntilClose;
        self.keep_alive = is_sound && message.persistence.keeps(self.version);
        Ok(())
    }
}

impl Deref for ResponseHead {
    type Target = HeadText;

    fn deref(&self) -> &HeadText {
        &self.head
    }
}

impl DerefMut for ResponseHead {
    fn deref_mut(&mut self) -> &mut HeadText {
        &mut self.head
    }
}

/// How long the body of a response is (RFC 9112 section 6.3).
fn framing(message: &MessageFields, bodiless: bool) -> Result<Framing, Refusal> {
    match (message.is_chunked, message.length) {
        (true, Some(_)) => Err(Refusal::Malformed("both Transfer-Encoding and Content-Length")),
        _ if bodiless => Ok(Framing::None),
        (true, None) => Ok(Framing::Chunked),
        (false, Some(0)) => Ok(Framing::None),
        (false, Some(n)) => Ok(Framing::Length(n)),
        (false, None) => Ok(Framing::UntilClose),
    }
}
