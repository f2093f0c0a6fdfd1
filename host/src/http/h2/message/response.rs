//! Heads of responses, and trailers.

use http::StatusCode;

use super::{Fault, FieldCheck, FieldLimits};
use crate::http::h1::head::{Framing, Name, ResponseHead, Version, is_refused_as_trailer};
use crate::http::h2::hpack::DecodedField;

/// The fields of a response.
#[derive(Debug)]
pub(crate) struct ResponseFields<'a> {
    head: &'a mut ResponseHead,
    check: FieldCheck,
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
    lines: &'a mut Vec<u8>,
    check: FieldCheck,
}

impl<'a> ResponseFields<'a> {
    /// Puts a response together in `head`, which is cleared.
    pub(crate) fn new(head: &'a mut ResponseHead, limits: FieldLimits) -> Self {
        head.clear();
        (head.has_date, head.keep_alive) = (false, false);
        Self { head, check: FieldCheck::new(limits), status: None }
    }

    /// Takes in the next field.
    #[inline]
    pub(crate) fn take(&mut self, field: &DecodedField<'_>) {
        if self.check.counts(field) {
            let taken = match field.name.first() {
                Some(b':') => self.take_status(field),
                _ => self.take_regular(field),
            };
            self.check.note(taken);
        }
    }

    fn take_status(&mut self, field: &DecodedField<'_>) -> Result<(), &'static str> {
        self.check.check_pseudo(field)?;
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
        self.head.reason = self.head.push_text(reason.unwrap_or_default().as_bytes());
        Ok(())
    }

    #[inline]
    fn take_regular(&mut self, field: &DecodedField<'_>) -> Result<(), &'static str> {
        self.check.has_regular = true;
        let kind = self.check.check(field)?;
        self.head.has_date |= kind == Name::Date;
        self.head.push_line(kind, field.name, field.value, field.never_indexed);
        Ok(())
    }

    /// All fields are there. `to_head`: the request was HEAD; `ends`: the stream ended with them.
    ///
    /// # Errors
    /// The message is malformed or over its limits.
    pub(crate) fn finish(self, to_head: bool, ends: bool) -> Result<CheckedResponse, Fault> {
        self.check.verdict()?;
        let status = self.status.ok_or(Fault::Malformed("no :status"))?;
        let (is_interim, length) = (status < 200, self.check.length);
        let has_no_body = to_head || matches!(status, 204 | 304);
        if is_interim && ends {
            return Err(Fault::Malformed("an interim response that ends its stream"));
        }
        let head = self.head;
        if ends && !has_no_body {
            match length {
                Some(0) => {}
                Some(_) => return Err(Fault::Malformed("content-length without a body")),
                None => head.push_line(Name::ContentLength, b"content-length", b"0", false),
            }
        }
        head.end_lines();
        head.status = status;
        head.version = Version::Http2;
        head.framing = match length {
            _ if has_no_body || is_interim || ends => Framing::None,
            Some(0) => Framing::None,
            Some(n) => Framing::Length(n),
            None => Framing::UntilClose,
        };
        Ok(CheckedResponse { status, length, has_no_body })
    }
}

impl<'a> TrailerFields<'a> {
    /// Writes trailers as lines into `lines`, which is cleared. Those that are never passed on are left out.
    pub(crate) fn new(lines: &'a mut Vec<u8>, limits: FieldLimits) -> Self {
        lines.clear();
        Self { lines, check: FieldCheck::new(limits) }
    }

    /// Takes in the next field.
    pub(crate) fn take(&mut self, field: &DecodedField<'_>) {
        if self.check.counts(field) {
            let taken = match field.name.first() {
                Some(b':') => Err("a pseudo-header in trailers"),
                _ => self.check.check(field).map(|_| ()),
            };
            if taken.is_ok() && !is_refused_as_trailer(field.name) {
                for part in [field.name, b": ", field.value, b"\r\n"] {
                    self.lines.extend_from_slice(part);
                }
            }
            self.check.note(taken);
        }
    }

    /// All fields are there.
    ///
    /// # Errors
    /// The message is malformed or over its limits.
    pub(crate) fn finish(self) -> Result<(), Fault> {
        self.check.verdict()
    }
}
