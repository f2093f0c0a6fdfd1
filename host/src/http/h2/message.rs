//! The rules for the fields of a message in HTTP/2 (RFC 9113 section 8), checked while they are decoded.
//!
//! A message whose fields are wrong is malformed: its stream ends with PROTOCOL_ERROR, and all others go on. Bytes of names,
//! values and targets are valid where they are in HTTP/1.1.

use std::io::Write as _;
use std::ops::Range;

use http::StatusCode;

use super::hpack::DecodedField;
use crate::http::h1::head::{Name, Refusal, is_authority, is_refused_as_trailer};

/// Size of a field beyond its bytes in a header list (RFC 9113 section 6.5.2).
const FIELD_OVERHEAD: usize = 32;

/// The fault of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Malformed (RFC 9113 section 8.1.1): its stream is reset with PROTOCOL_ERROR.
    Malformed(&'static str),
    /// A request that is answered by an error; of a server's response it is an error as well.
    Refused(Refusal),
}

/// Limits of a message's fields.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FieldLimits {
    /// Size of all fields, as SETTINGS_MAX_HEADER_LIST_SIZE counts it.
    pub(crate) list_bytes: usize,
    /// Number of fields.
    pub(crate) fields: usize,
}

/// The fields of a request, one after the other.
#[derive(Debug)]
pub(crate) struct RequestFields<'a> {
    lines: Lines<'a>,
    method: Option<Range<usize>>,
    path: Option<Range<usize>>,
    authority: Option<Range<usize>>,
    protocol: Option<Range<usize>>,
    has_scheme: bool,
    allows_protocol: bool,
    has_host: bool,
    is_head: bool,
    refused: Option<Refusal>,
    cookies: Cookies,
}

/// A request that is well-formed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CheckedRequest {
    /// Its method is HEAD.
    pub(crate) is_head: bool,
    /// Its Content-Length: what all its DATA together has to be.
    pub(crate) length: Option<u64>,
    /// It is an extended CONNECT (RFC 8441), and was written as a GET that asks to switch protocols.
    pub(crate) is_extended_connect: bool,
}

/// The fields of a response.
#[derive(Debug)]
pub(crate) struct ResponseFields<'a> {
    lines: Lines<'a>,
    status: Option<u16>,
}

/// A response that is well-formed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CheckedResponse {
    /// 100 to 999, but 101.
    pub(crate) status: u16,
    /// Its Content-Length. All its DATA together has to be as long, unless it has no body ([`has_no_body`](Self::has_no_body)).
    pub(crate) length: Option<u64>,
    /// No DATA may have content: the request was HEAD, or the status is 204 or 304.
    pub(crate) has_no_body: bool,
}

/// The fields of trailers.
#[derive(Debug)]
pub(crate) struct TrailerFields<'a> {
    lines: Lines<'a>,
}

/// The common part of all three: fields as lines, and their first fault.
#[derive(Debug)]
struct Lines<'a> {
    text: &'a mut Vec<u8>,
    limits: FieldLimits,
    list_bytes: usize,
    n_fields: usize,
    malformed: Option<&'static str>,
    /// Pseudo-headers may no longer come.
    has_regular: bool,
    length: Option<u64>,
}

/// Crumbs of cookies (RFC 9113 section 8.2.3), joined.
#[derive(Debug, Default)]
struct Cookies {
    /// The line with the first ones, while there is one.
    line: Option<Range<usize>>,
    /// Those that came with other fields between.
    apart: Vec<u8>,
}

impl<'a> RequestFields<'a> {
    /// Writes the head as text of HTTP/1.1 into `text`, which is cleared. `allows_protocol`: we have sent
    /// SETTINGS_ENABLE_CONNECT_PROTOCOL.
    pub(crate) fn new(text: &'a mut Vec<u8>, limits: FieldLimits, allows_protocol: bool) -> Self {
        Self {
            lines: Lines::new(text, limits),
            method: None,
            path: None,
            authority: None,
            protocol: None,
            has_scheme: false,
            allows_protocol,
            has_host: false,
            is_head: false,
            refused: None,
            cookies: Cookies::default(),
        }
    }

    /// Takes in the next field.
    pub(crate) fn take(&mut self, field: &DecodedField<'_>) {
        if !self.lines.counts(field) {
            return;
        }
        let taken = match field.name.first() {
            Some(b':') => self.take_pseudo(field),
            _ => self.take_regular(field),
        };
        self.lines.note(taken);
    }

    fn take_pseudo(&mut self, field: &DecodedField<'_>) -> Result<(), &'static str> {
        self.lines.check_pseudo(field)?;
        let value = field.value;
        let place = match field.name {
            b":method" if is_word(value) => &mut self.method,
            b":path" if is_path(value) => &mut self.path,
            // Whether it is one is for the answer 400, as over HTTP/1.1.
            b":authority" => &mut self.authority,
            b":protocol" if self.allows_protocol && is_word(value) => &mut self.protocol,
            b":scheme" if !self.has_scheme && is_scheme(value) => {
                self.has_scheme = true;
                return Ok(());
            }
            b":method" | b":path" | b":scheme" => return Err("invalid pseudo-header"),
            _ => return Err("unknown pseudo-header"),
        };
        let start = self.lines.text.len();
        if place.replace(start..start + value.len()).is_some() {
            return Err("a pseudo-header twice");
        }
        self.lines.text.extend_from_slice(value);
        Ok(())
    }

    fn take_regular(&mut self, field: &DecodedField<'_>) -> Result<(), &'static str> {
        self.begin_lines()?;
        match self.lines.check(field)? {
            Name::Te if !field.value.eq_ignore_ascii_case(b"trailers") => Err("te other than trailers"),
            Name::Host => {
                self.take_host(field.value);
                Ok(())
            }
            Name::Other if field.name == b"cookie" => {
                self.cookies.take(field.value, &mut self.lines);
                Ok(())
            }
            _ => {
                self.lines.push(field.name, field.value);
                Ok(())
            }
        }
    }

    fn take_host(&mut self, host: &[u8]) {
        let wrong = if self.has_host {
            "more than one Host"
        } else if self.authority.is_some() && !self.is_authority(host) {
            "Host is not :authority"
        } else if !host.is_empty() && !is_authority(host) {
            "Host is not a host and port"
        } else {
            if self.authority.is_none() {
                self.lines.push(b"host", host);
            }
            self.has_host = true;
            return;
        };
        self.refused = Some(Refusal::Malformed(wrong));
    }

    /// Writes the first line and Host, before the first line of a regular field.
    fn begin_lines(&mut self) -> Result<(), &'static str> {
        if std::mem::replace(&mut self.lines.has_regular, true) {
            return Ok(());
        }
        let text = &mut *self.lines.text;
        let n_raw = text.len();
        let method = self.method.clone().ok_or("no :method")?;
        let is_connect = text[method.clone()] == *b"CONNECT";
        let target = match (is_connect, &self.protocol) {
            (true, None) if self.has_scheme || self.path.is_some() => {
                return Err(":scheme or :path in a CONNECT");
            }
            (true, None) => self.authority.clone().ok_or("no :authority in a CONNECT")?,
            (false, Some(_)) => return Err(":protocol without CONNECT"),
            _ if !self.has_scheme => return Err("no :scheme"),
            _ => self.path.clone().ok_or("no :path")?,
        };
        if text[target.clone()] == *b"*" && text[method.clone()] != *b"OPTIONS" {
            return Err("a :path of * without OPTIONS");
        }
        self.is_head = text[method.clone()] == *b"HEAD";
        match self.protocol {
            Some(_) => text.extend_from_slice(b"GET"),
            None => text.extend_from_within(method),
        }
        text.push(b' ');
        text.extend_from_within(target);
        text.extend_from_slice(b" HTTP/1.1\r\n");
        if let Some(authority) = self.authority.clone() {
            text.extend_from_slice(b"host: ");
            let start = text.len();
            text.extend_from_within(authority);
            self.authority = Some(start - n_raw..text.len() - n_raw);
            text.extend_from_slice(b"\r\n");
        }
        if let Some(protocol) = self.protocol.clone() {
            text.extend_from_slice(b"connection: upgrade\r\nupgrade: ");
            text.extend_from_within(protocol);
            text.extend_from_slice(b"\r\n");
        }
        text.drain(..n_raw);
        Ok(())
    }

    /// Whether that is the :authority.
    fn is_authority(&self, host: &[u8]) -> bool {
        self.authority.clone().is_some_and(|at| self.lines.text[at].eq_ignore_ascii_case(host))
    }

    /// Whether the method is HEAD, as far as it has come.
    pub(crate) fn is_head(&self) -> bool {
        self.is_head
            || (!self.lines.has_regular
                && self.method.clone().is_some_and(|at| self.lines.text[at] == *b"HEAD"))
    }

    /// All fields are there. `ends`: the stream ended with them.
    ///
    /// # Errors
    /// The message is malformed or refused.
    pub(crate) fn finish(mut self, ends: bool) -> Result<CheckedRequest, Fault> {
        if self.lines.malformed.is_none() {
            let begun = self.begin_lines();
            self.lines.note(begun);
        }
        self.lines.verdict()?;
        if ends && self.lines.length.is_some_and(|length| length > 0) {
            return Err(Fault::Malformed("content-length without a body"));
        }
        match &self.authority {
            Some(at) if !is_authority(&self.lines.text[at.clone()]) => {
                self.refused = Some(Refusal::Malformed(":authority is not a host and port"));
            }
            None if !self.has_host => self.refused = Some(Refusal::Malformed("neither :authority nor Host")),
            _ => {}
        }
        if let Some(refusal) = self.refused {
            return Err(Fault::Refused(refusal));
        }
        self.cookies.finish(&mut self.lines);
        self.lines.text.extend_from_slice(b"\r\n");
        let is_extended_connect = self.protocol.is_some();
        Ok(CheckedRequest { is_head: self.is_head, length: self.lines.length, is_extended_connect })
    }
}

impl<'a> ResponseFields<'a> {
    /// Writes the head as text of HTTP/1.1 into `text`, which is cleared.
    pub(crate) fn new(text: &'a mut Vec<u8>, limits: FieldLimits) -> Self {
        Self { lines: Lines::new(text, limits), status: None }
    }

    /// Takes in the next field.
    pub(crate) fn take(&mut self, field: &DecodedField<'_>) {
        if self.lines.counts(field) {
            let taken = match field.name.first() {
                Some(b':') => self.take_status(field),
                _ => self.take_regular(field),
            };
            self.lines.note(taken);
        }
    }

    fn take_status(&mut self, field: &DecodedField<'_>) -> Result<(), &'static str> {
        self.lines.check_pseudo(field)?;
        let status = match (field.name, field.value) {
            (b":status", [a @ b'1'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9']) => {
                [a, b, c].iter().fold(0, |n, digit| 10 * n + u16::from(**digit - b'0'))
            }
            (b":status", _) => return Err("invalid :status"),
            _ => return Err("unknown pseudo-header"),
        };
        if self.status.replace(status).is_some() {
            return Err("a pseudo-header twice");
        }
        if status == 101 {
            return Err("status 101");
        }
        let reason = StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
        // Writing to a vector cannot fail.
        let _ = write!(self.lines.text, "HTTP/1.1 {status} {}\r\n", reason.unwrap_or(""));
        Ok(())
    }

    fn take_regular(&mut self, field: &DecodedField<'_>) -> Result<(), &'static str> {
        self.lines.has_regular = true;
        self.lines.check(field)?;
        self.lines.push(field.name, field.value);
        Ok(())
    }

    /// All fields are there. `to_head`: the request was HEAD; `ends`: the stream ended with them.
    ///
    /// # Errors
    /// The message is malformed or over its limits.
    pub(crate) fn finish(mut self, to_head: bool, ends: bool) -> Result<CheckedResponse, Fault> {
        self.lines.verdict()?;
        let status = self.status.ok_or(Fault::Malformed("no :status"))?;
        let (is_interim, length) = (status < 200, self.lines.length);
        let has_no_body = to_head || matches!(status, 204 | 304);
        if is_interim && ends {
            return Err(Fault::Malformed("an interim response that ends its stream"));
        }
        if ends && !has_no_body {
            match length {
                Some(0) => {}
                Some(_) => return Err(Fault::Malformed("content-length without a body")),
                None => self.lines.push(b"content-length", b"0"),
            }
        }
        self.lines.text.extend_from_slice(b"\r\n");
        Ok(CheckedResponse { status, length, has_no_body })
    }
}

impl<'a> TrailerFields<'a> {
    /// Writes trailers as lines into `text`, which is cleared. Those that are never passed on are left out.
    pub(crate) fn new(text: &'a mut Vec<u8>, limits: FieldLimits) -> Self {
        Self { lines: Lines::new(text, limits) }
    }

    /// Takes in the next field.
    pub(crate) fn take(&mut self, field: &DecodedField<'_>) {
        if self.lines.counts(field) {
            let taken = match field.name.first() {
                Some(b':') => Err("a pseudo-header in trailers"),
                _ => self.lines.check(field).map(|_| ()),
            };
            if taken.is_ok() && !is_refused_as_trailer(field.name) {
                self.lines.push(field.name, field.value);
            }
            self.lines.note(taken);
        }
    }

    /// All fields are there.
    ///
    /// # Errors
    /// The message is malformed or over its limits.
    pub(crate) fn finish(self) -> Result<(), Fault> {
        self.lines.verdict()
    }
}

impl<'a> Lines<'a> {
    fn new(text: &'a mut Vec<u8>, limits: FieldLimits) -> Self {
        text.clear();
        Self { text, limits, list_bytes: 0, n_fields: 0, malformed: None, has_regular: false, length: None }
    }

    /// Counts a field, and says whether it is looked at: not after one that was malformed, nor beyond the limits.
    fn counts(&mut self, field: &DecodedField<'_>) -> bool {
        self.n_fields += 1;
        self.list_bytes =
            self.list_bytes.saturating_add(field.name.len() + field.value.len() + FIELD_OVERHEAD);
        self.malformed.is_none() && !self.is_too_large()
    }

    fn is_too_large(&self) -> bool {
        self.list_bytes > self.limits.list_bytes || self.n_fields > self.limits.fields
    }

    fn note(&mut self, taken: Result<(), &'static str>) {
        if let Err(reason) = taken {
            self.malformed = Some(reason);
        }
    }

    fn verdict(&self) -> Result<(), Fault> {
        match self.malformed {
            Some(reason) => Err(Fault::Malformed(reason)),
            None if self.is_too_large() => Err(Fault::Refused(Refusal::HeadTooLarge)),
            None => Ok(()),
        }
    }

    fn check_pseudo(&self, field: &DecodedField<'_>) -> Result<(), &'static str> {
        match (self.has_regular, is_value(field.value)) {
            (false, true) => Ok(()),
            (true, _) => Err("a pseudo-header behind other fields"),
            (_, false) => Err("invalid field value"),
        }
    }

    /// Checks a field that is no pseudo-header (RFC 9113 sections 8.2.1 and 8.2.2).
    fn check(&mut self, field: &DecodedField<'_>) -> Result<Name, &'static str> {
        // Names of the static table are as they should be.
        if field.static_name.is_none() && !is_name(field.name) {
            return Err("invalid field name");
        }
        if !is_value(field.value) {
            return Err("invalid field value");
        }
        let kind = Name::of(field.name);
        match kind {
            Name::Connection
            | Name::KeepAlive
            | Name::ProxyConnection
            | Name::TransferEncoding
            | Name::Upgrade => return Err("a field about the connection"),
            Name::ContentLength if self.length.is_some() => return Err("more than one content-length"),
            Name::ContentLength => self.length = Some(content_length(field.value)?),
            _ => {}
        }
        Ok(kind)
    }

    fn push(&mut self, name: &[u8], value: &[u8]) {
        for part in [name, b": ", value, b"\r\n"] {
            self.text.extend_from_slice(part);
        }
    }
}

impl Cookies {
    fn take(&mut self, crumb: &[u8], lines: &mut Lines<'_>) {
        let text = &mut *lines.text;
        match &mut self.line {
            _ if crumb.is_empty() => {}
            None => {
                let start = text.len();
                lines.push(b"cookie", crumb);
                self.line = Some(start..lines.text.len());
            }
            Some(line) if line.end == text.len() => {
                text.truncate(line.end - 2);
                for part in [&b"; "[..], crumb, b"\r\n"] {
                    text.extend_from_slice(part);
                }
                line.end = text.len();
            }
            Some(_) => {
                self.apart.extend_from_slice(b"; ");
                self.apart.extend_from_slice(crumb);
            }
        }
    }

    /// Puts those that came apart behind the others.
    fn finish(self, lines: &mut Lines<'_>) {
        if let Some(line) = self.line.filter(|_| !self.apart.is_empty()) {
            lines.text.splice(line.end - 2..line.end - 2, self.apart);
        }
    }
}

/// Whether this is a field name in lower case: a token of RFC 9110 section 5.6.2 without upper case.
fn is_name(name: &[u8]) -> bool {
    !name.is_empty() && name.iter().all(|byte| is_token(*byte) && !byte.is_ascii_uppercase())
}

/// Whether this is a token (RFC 9110 section 5.6.2).
fn is_word(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(|byte| is_token(*byte))
}

const fn is_token(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'!' | b'#'..=b'\'' | b'*' | b'+' | b'-' | b'.' | b'^'..=b'`' | b'|' | b'~')
}

/// Whether this is a field value: no control byte but tabs, and no white space around it.
fn is_value(value: &[u8]) -> bool {
    let is_blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    // Without an early end, which allows many bytes at once.
    let has_control =
        value.iter().fold(false, |found, &byte| found | ((byte < b' ') & (byte != b'\t')) | (byte == 0x7f));
    !has_control && !is_blank(value.first()) && !is_blank(value.last())
}

/// Whether this is a path with or without a query, or `*`. Bytes above 0x7f are escaped later.
fn is_path(path: &[u8]) -> bool {
    // A fragment is no part of a target.
    let is_refused = |byte: u8| (byte <= b' ') | (byte == 0x7f) | (byte == b'#');
    let has_refused = || path.iter().fold(false, |found, &byte| found | is_refused(byte));
    (path.first() == Some(&b'/') || path == b"*") && !has_refused()
}

/// Whether this is a scheme (RFC 3986 section 3.1).
fn is_scheme(scheme: &[u8]) -> bool {
    let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.');
    scheme.first().is_some_and(u8::is_ascii_alphabetic) && scheme.iter().all(is_part)
}

fn content_length(value: &[u8]) -> Result<u64, &'static str> {
    // At most 18 digits, which cannot overflow.
    if value.is_empty() || value.len() > 18 || !value.iter().all(u8::is_ascii_digit) {
        return Err("content-length is not a number");
    }
    Ok(value.iter().fold(0, |n, &digit| n * 10 + u64::from(digit - b'0')))
}

#[cfg(test)]
mod tests;
