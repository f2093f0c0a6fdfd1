//! The rules for the fields of a message in HTTP/2 (RFC 9113 section 8), checked while they are decoded.
//!
//! A message whose fields are wrong is malformed: its stream ends with PROTOCOL_ERROR, and all others go on. Bytes of names,
//! values and targets are valid where they are in HTTP/1.1. Heads are put together field by field, in the form in which
//! those of HTTP/1.1 are read: `request` and `response` (with trailers); this page has what they share.

mod request;
mod response;
#[cfg(test)]
mod tests;

use super::hpack::DecodedField;
use crate::http::h1::head::{Name, Refusal};

pub(crate) use self::request::{CheckedRequest, RequestFields};
pub(crate) use self::response::{CheckedResponse, ResponseFields, TrailerFields};

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
    /// Number of header lines: pseudo-headers are none, and all crumbs of cookies are one.
    pub(crate) fields: usize,
}

/// The first fault of a message's fields so far, and the facts that a verdict needs.
#[derive(Debug)]
struct FieldCheck {
    limits: FieldLimits,
    list_bytes: usize,
    n_fields: usize,
    malformed: Option<&'static str>,
    /// Pseudo-headers may no longer come.
    has_regular: bool,
    length: Option<u64>,
}

impl FieldCheck {
    fn new(limits: FieldLimits) -> Self {
        Self { limits, list_bytes: 0, n_fields: 0, malformed: None, has_regular: false, length: None }
    }

    /// Counts a field, and says whether it is looked at: not after one that was malformed, nor beyond the limits.
    fn counts(&mut self, field: &DecodedField<'_>) -> bool {
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
        self.n_fields += 1;
        // Names of the static table are as they should be.
        if field.static_name.is_none() && !is_name(field.name) {
            return Err("invalid field name");
        }
        if !is_value(field.value) {
            return Err("invalid field value");
        }
        let kind = field.static_name.map_or_else(|| Name::of(field.name), kind_of_static);
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
}

/// The header of this name of the static table (RFC 7541 appendix A).
fn kind_of_static(index: u8) -> Name {
    match index {
        28 => Name::ContentLength,
        33 => Name::Date,
        35 => Name::Expect,
        38 => Name::Host,
        47 => Name::MaxForwards,
        48 => Name::ProxyAuthenticate,
        49 => Name::ProxyAuthorization,
        51 => Name::Referer,
        57 => Name::TransferEncoding,
        58 => Name::UserAgent,
        60 => Name::Via,
        _ => Name::Other,
    }
}

/// Whether this is a field name in lower case: a token of RFC 9110 section 5.6.2 without upper case.
#[inline]
fn is_name(name: &[u8]) -> bool {
    !name.is_empty() && name.iter().all(|byte| NAME_BYTES[usize::from(*byte)])
}

/// Bytes of a field name in lower case.
static NAME_BYTES: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = is_token(byte as u8) && !(byte as u8).is_ascii_uppercase();
        byte += 1;
    }
    table
};

/// Whether this is a token (RFC 9110 section 5.6.2).
fn is_word(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(|byte| is_token(*byte))
}

const fn is_token(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'!' | b'#'..=b'\'' | b'*' | b'+' | b'-' | b'.' | b'^'..=b'`' | b'|' | b'~')
}

/// Whether this is a field value: no control byte but tabs, and no white space around it.
#[inline]
fn is_value(value: &[u8]) -> bool {
    let is_blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    let is_control = |byte: &u8| (*byte < b' ' && *byte != b'\t') || *byte == 0x7f;
    if is_blank(value.first()) || is_blank(value.last()) {
        return false;
    }
    // Tabs are rare.
    !may_have_control(value) || !value.iter().any(is_control)
}

/// Whether there is a control byte or a tab, found eight bytes at a time.
#[inline]
fn may_have_control(text: &[u8]) -> bool {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    const HIGH: u64 = 0x80 * ONES;
    // The highest bit of a byte is set where that is below a space, or DEL; none is where no byte is.
    let found = |word: u64| {
        let del = word ^ (0x7f * ONES);
        (word.wrapping_sub(0x20 * ONES) & !word | del.wrapping_sub(ONES) & !del) & HIGH
    };
    let (words, rest) = text.as_chunks::<8>();
    let mut all = words.iter().fold(0, |all, word| all | found(u64::from_le_bytes(*word)));
    if !rest.is_empty() {
        // The last eight bytes, or fewer with spaces in front.
        let mut last = [b' '; 8];
        match text.last_chunk::<8>() {
            Some(word) => last = *word,
            None => last[8 - rest.len()..].copy_from_slice(rest),
        }
        all |= found(u64::from_le_bytes(last));
    }
    all != 0
}

/// Whether this is a path with or without a query, or `*`. Bytes above 0x7f are escaped later.
fn is_path(path: &[u8]) -> bool {
    // A fragment is no part of a target. Whether there are control bytes is checked as of every value, but for tabs.
    let has_refused = || memchr::memchr3(b' ', b'#', b'\t', path).is_some();
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
