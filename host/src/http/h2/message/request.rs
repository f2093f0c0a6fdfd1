//! Heads of requests.

use std::io::Write as _;

use super::{Fault, FieldCheck, FieldLimits, is_path, is_scheme, is_word};
use crate::http::h1::head::{Framing, Method, Name, Refusal, RequestHead, Span, Version, is_authority};
use crate::http::h2::hpack::DecodedField;

/// The fields of a request, one after the other.
#[derive(Debug)]
pub(crate) struct RequestFields<'a> {
    head: &'a mut RequestHead,
    check: FieldCheck,
    method: Option<Span>,
    path: Option<Span>,
    authority: Option<Span>,
    protocol: Option<Span>,
    has_scheme: bool,
    allows_protocol: bool,
    refused: Option<Refusal>,
    cookies: Cookies,
}

/// A request that is well-formed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CheckedRequest {
    /// Its Content-Length: what all its DATA together has to be.
    pub(crate) length: Option<u64>,
    /// It is an extended CONNECT (RFC 8441), and its head that of a GET that asks to switch protocols.
    pub(crate) is_extended_connect: bool,
}

/// Crumbs of cookies (RFC 9113 section 8.2.3), joined.
#[derive(Debug, Default)]
struct Cookies {
    /// Place of the field with the first ones, while there is one.
    field: Option<usize>,
    /// Those that came with other fields between.
    apart: Vec<u8>,
}

impl<'a> RequestFields<'a> {
    /// Puts a request together in `head`, which is cleared. `allows_protocol`: we have sent
    /// SETTINGS_ENABLE_CONNECT_PROTOCOL.
    pub(crate) fn new(head: &'a mut RequestHead, limits: FieldLimits, allows_protocol: bool) -> Self {
        head.clear();
        head.version = Version::Http2;
        head.keep_alive = true;
        Self {
            head,
            check: FieldCheck::new(limits),
            method: None,
            path: None,
            authority: None,
            protocol: None,
            has_scheme: false,
            allows_protocol,
            refused: None,
            cookies: Cookies::default(),
        }
    }

    /// Takes in the next field.
    #[inline]
    pub(crate) fn take(&mut self, field: &DecodedField<'_>) {
        if !self.check.counts(field) {
            return;
        }
        let taken = match field.name.first() {
            Some(b':') => self.take_pseudo(field),
            _ => self.take_regular(field),
        };
        self.check.note(taken);
    }

    fn take_pseudo(&mut self, field: &DecodedField<'_>) -> Result<(), &'static str> {
        self.check.check_pseudo(field)?;
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
        let text = match value.is_ascii() || field.name != b":path" {
            true => self.head.push_text(value),
            false => self.head.push_text(&escaped(value)),
        };
        match place.replace(text) {
            Some(_) => Err("a pseudo-header twice"),
            None => Ok(()),
        }
    }

    #[inline]
    fn take_regular(&mut self, field: &DecodedField<'_>) -> Result<(), &'static str> {
        if !self.check.has_regular {
            self.begin_lines()?;
        }
        let DecodedField { name, value, never_indexed, .. } = *field;
        let kind = self.check.check(field)?;
        match kind {
            Name::Other if name == b"cookie" => {
                // All of them are one line.
                self.check.n_fields -= usize::from(self.cookies.field.is_some());
                self.cookies.take(field, self.head);
                return Ok(());
            }
            Name::Other | Name::UserAgent | Name::Referer | Name::ContentLength => {}
            Name::Host => {
                self.take_host(value);
                return Ok(());
            }
            Name::Te if !value.eq_ignore_ascii_case(b"trailers") => return Err("te other than trailers"),
            Name::Te => self.head.takes_trailers = true,
            Name::Expect if value.eq_ignore_ascii_case(b"100-continue") => self.head.expects_continue = true,
            Name::Expect => self.refused = Some(Refusal::Expectation),
            Name::XTrylistExplain => self.head.asks_why |= value == b"1",
            _ => {}
        }
        self.head.push_line(kind, name, value, never_indexed);
        Ok(())
    }

    fn take_host(&mut self, host: &[u8]) {
        let known = self.head.host.map(|known| self.head.text(known));
        let wrong = match (known, self.authority) {
            (Some(known), Some(_)) if known.eq_ignore_ascii_case(host) => {
                // No second one may come.
                self.authority = None;
                return;
            }
            (Some(_), Some(_)) => "Host is not :authority",
            (Some(_), None) => "more than one Host",
            (None, _) if !host.is_empty() && !is_authority(host) => "Host is not a host and port",
            (None, _) => {
                self.head.push_line(Name::Host, b"host", host, false);
                self.head.host = self.head.fields.last().map(|field| field.value);
                return;
            }
        };
        self.refused = Some(Refusal::Malformed(wrong));
    }

    /// Checks the pseudo-headers, which are all there, and writes Host.
    fn begin_lines(&mut self) -> Result<(), &'static str> {
        self.check.has_regular = true;
        let method_text = self.method.ok_or("no :method")?;
        let method = Method::of(self.head.text(method_text));
        let target = match (method, self.protocol) {
            (Method::Connect, None) if self.has_scheme || self.path.is_some() => {
                return Err(":scheme or :path in a CONNECT");
            }
            (Method::Connect, None) => self.authority.ok_or("no :authority in a CONNECT")?,
            (Method::Connect, Some(_)) | (_, None) if !self.has_scheme => return Err("no :scheme"),
            (Method::Connect, Some(_)) | (_, None) => self.path.ok_or("no :path")?,
            (_, Some(_)) => return Err(":protocol without CONNECT"),
        };
        if self.head.text(target) == b"*" && method != Method::Options {
            return Err("a :path of * without OPTIONS");
        }
        (self.head.method, self.head.method_text, self.head.target) = (method, method_text, target);
        if self.protocol.is_some() {
            (self.head.method, self.head.method_text) = (Method::Get, self.head.push_text(b"GET"));
            self.head.asks_upgrade = true;
        }
        if let Some(authority) = self.authority {
            if !is_authority(self.head.text(authority)) {
                self.refused = Some(Refusal::Malformed(":authority is not a host and port"));
            }
            self.head.push_line_of(Name::Host, b"host", authority);
            self.head.host = self.head.fields.last().map(|field| field.value);
        }
        if let Some(protocol) = self.protocol {
            self.head.push_line_of(Name::Upgrade, b"upgrade", protocol);
        }
        Ok(())
    }

    /// Whether the method is HEAD, as far as it has come.
    pub(crate) fn is_head(&self) -> bool {
        self.method.is_some_and(|method| self.head.text(method) == b"HEAD")
    }

    /// All fields are there. `ends`: the stream ended with them.
    ///
    /// # Errors
    /// The message is malformed or refused.
    pub(crate) fn finish(mut self, ends: bool) -> Result<CheckedRequest, Fault> {
        if self.check.malformed.is_none() && !self.check.has_regular {
            let begun = self.begin_lines();
            self.check.note(begun);
        }
        self.check.verdict()?;
        let length = self.check.length;
        if ends && length.is_some_and(|length| length > 0) {
            return Err(Fault::Malformed("content-length without a body"));
        }
        self.cookies.finish(self.head);
        let head = self.head;
        head.end_lines();
        head.framing = match length {
            // The bytes that follow belong to the other protocol.
            _ if self.protocol.is_some() => Framing::None,
            // No body; the stream ends by itself.
            Some(0) => Framing::None,
            Some(n) => Framing::Length(n),
            None if ends => Framing::None,
            None => Framing::UntilClose,
        };
        if head.host.is_none() {
            self.refused = Some(Refusal::Malformed("neither :authority nor Host"));
        }
        if let Some(refusal) = self.refused {
            return Err(Fault::Refused(refusal));
        }
        let is_extended_connect = self.protocol.is_some();
        Ok(CheckedRequest { length, is_extended_connect })
    }
}

impl Cookies {
    fn take(&mut self, crumb: &DecodedField<'_>, head: &mut RequestHead) {
        match self.field {
            _ if crumb.value.is_empty() => {}
            None => {
                self.field = Some(head.fields.len());
                head.push_line(Name::Other, crumb.name, crumb.value, crumb.never_indexed);
            }
            Some(i) => {
                let is_last = i + 1 == head.fields.len();
                head.fields[i].never_indexed |= crumb.never_indexed;
                for part in [&b"; "[..], crumb.value] {
                    if is_last { head.extend_last(part) } else { self.apart.extend_from_slice(part) }
                }
            }
        }
    }

    /// Puts those that came apart into one line with the others. That is a new one, and nobody sees the first any more.
    fn finish(&self, head: &mut RequestHead) {
        if self.apart.is_empty() {
            return;
        }
        let Some(i) = self.field else { return };
        let first = head.fields[i];
        let cookies = [head.text(first.value), &self.apart].concat();
        head.hide(i);
        head.push_line(Name::Other, b"cookie", &cookies, first.never_indexed);
    }
}

/// A path with its bytes above 0x7f escaped, as those of HTTP/1.1 are.
#[cold]
fn escaped(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(3 * path.len());
    for &byte in path {
        if byte.is_ascii() {
            out.push(byte);
        } else {
            // Writing to a vector cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}
