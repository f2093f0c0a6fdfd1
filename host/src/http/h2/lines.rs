//! Heads and trailers that the proxy has written itself, as text, taken apart again: their lines are well-formed.

use std::io;

use memchr::{memchr, memmem};

use crate::http::h1::head::Name;

/// A head of ours.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeadLines<'a> {
    /// Without its end.
    pub(crate) first: &'a [u8],
    /// The header lines, each ended by CRLF.
    pub(crate) fields: &'a [u8],
    /// Length of all, empty line included.
    pub(crate) taken: usize,
}

impl<'a> HeadLines<'a> {
    /// The head at the front of this text; `None` while it is incomplete.
    pub(crate) fn of(text: &'a [u8]) -> Option<Self> {
        let end = memmem::find(text, b"\r\n\r\n")?;
        let lines = &text[..end + 2];
        let first = memchr(b'\r', lines)?;
        Some(Self { first: &lines[..first], fields: &lines[first + 2..], taken: end + 4 })
    }

    /// Name and value of each header.
    pub(crate) fn each(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + use<'a> {
        fields(self.fields)
    }

    /// The status in its first line.
    pub(crate) fn status(&self) -> Option<u16> {
        let digits = self.first.get(b"HTTP/1.1 ".len()..)?.first_chunk::<3>()?;
        std::str::from_utf8(digits).ok()?.parse().ok().filter(|status| *status >= 100)
    }

    /// Its `Content-Length`, if any.
    pub(crate) fn length(&self) -> Option<u64> {
        let (_, value) = self.each().find(|(name, _)| Name::of(name) == Name::ContentLength)?;
        std::str::from_utf8(value).ok()?.parse().ok()
    }
}

/// The rest of a body of ours, where its head had a `Content-Length`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct BodyLeft(Option<u64>);

impl BodyLeft {
    /// The whole body of a head with this `Content-Length`.
    pub(crate) fn of(length: Option<u64>) -> Self {
        Self(length)
    }

    /// Whether the body ends with this data.
    ///
    /// # Errors
    /// There is more data than its length.
    pub(crate) fn ends_with(self, data: &[u8]) -> io::Result<bool> {
        match self.0 {
            Some(left) if data.len() as u64 > left => Err(io::Error::other("more body than its length")),
            left => Ok(left == Some(data.len() as u64)),
        }
    }

    /// So much was sent; whether that was the end.
    pub(crate) fn sent(&mut self, n: usize) -> bool {
        self.0 = self.0.map(|left| left.saturating_sub(n as u64));
        self.0 == Some(0)
    }
}

/// Name and value of each header in these lines.
pub(crate) fn fields(mut lines: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    std::iter::from_fn(move || {
        loop {
            let end = memchr(b'\n', lines)?;
            let line = lines[..end].strip_suffix(b"\r").unwrap_or(&lines[..end]);
            lines = &lines[end + 1..];
            if let Some(colon) = memchr(b':', line) {
                return Some((&line[..colon], line[colon + 1..].trim_ascii()));
            }
        }
    })
}

/// Whether frames say what this header says, so that HTTP/2 forbids it (RFC 9113 section 8.2.2), or has no use for it (RFC 8441
/// section 5).
pub(crate) fn is_said_by_frames(name: &[u8]) -> bool {
    const ACCEPT: &[u8] = b"sec-websocket-accept";
    let is_accept = name.len() == ACCEPT.len() && name.eq_ignore_ascii_case(ACCEPT);
    is_accept
        || matches!(
            Name::of(name),
            Name::Connection
                | Name::KeepAlive
                | Name::Lookalike
                | Name::ProxyConnection
                | Name::TransferEncoding
                | Name::Upgrade
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_ends_with_its_last_byte_and_has_no_more() {
        let mut left = BodyLeft::of(Some(4));
        assert!(!left.ends_with(b"abc").expect("within it") && left.ends_with(b"abcd").expect("all of it"));
        assert!(left.ends_with(b"abcde").is_err());
        assert!(!left.sent(3) && left.sent(1));
        let mut unknown = BodyLeft::of(None);
        assert!(!unknown.ends_with(b"abc").expect("no length") && !unknown.sent(3));
    }

    #[test]
    fn a_head_is_taken_apart_once_it_is_whole() {
        let text = b"HTTP/1.1 503 \r\nConnection: close\r\nA: b: c \r\nContent-Length: 4\r\n\r\nbody";
        let head = HeadLines::of(text).expect("complete");
        assert_eq!((head.first, head.status(), head.length()), (&b"HTTP/1.1 503 "[..], Some(503), Some(4)));
        let fields: Vec<_> = head.each().filter(|(name, _)| !is_said_by_frames(name)).collect();
        assert_eq!(fields, [(&b"A"[..], &b"b: c"[..]), (b"Content-Length", b"4")]);
        assert_eq!(head.taken, text.len() - "body".len());
        for cut in 0..head.taken {
            assert!(HeadLines::of(&text[..cut]).is_none(), "{cut}");
        }
        let interim = HeadLines::of(b"HTTP/1.1 100 Continue\r\n\r\n").expect("complete");
        assert_eq!((interim.first, interim.fields), (&b"HTTP/1.1 100 Continue"[..], &b""[..]));
    }
}
