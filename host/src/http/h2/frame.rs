//! Frames (RFC 9113 sections 4 and 6) as bytes. Nothing here knows a connection's state.

use std::fmt;

/// Bytes in front of a frame's payload.
pub(crate) const HEAD_LEN: usize = 9;

/// The first bytes of a client.
pub(crate) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Window of a stream, and of a connection, before anybody has said otherwise.
pub(crate) const DEFAULT_WINDOW: u32 = 65_535;

/// Maximum of a window.
pub(crate) const MAX_WINDOW: u32 = (1 << 31) - 1;

/// Maximum payload of a frame before anybody has allowed more.
pub(crate) const DEFAULT_MAX_FRAME: u32 = 1 << 14;

/// The head of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FrameHead {
    /// Bytes of the payload, below 2^24.
    pub(crate) length: u32,
    /// One of [`kind`], or a type that we do not know and ignore.
    pub(crate) kind: u8,
    /// Bits of [`flag`].
    pub(crate) flags: u8,
    /// The stream, or 0 for the connection.
    pub(crate) stream: u32,
}

/// Types of frames.
pub(crate) mod kind {
    pub(crate) const DATA: u8 = 0;
    pub(crate) const HEADERS: u8 = 1;
    pub(crate) const PRIORITY: u8 = 2;
    pub(crate) const RST_STREAM: u8 = 3;
    pub(crate) const SETTINGS: u8 = 4;
    pub(crate) const PUSH_PROMISE: u8 = 5;
    pub(crate) const PING: u8 = 6;
    pub(crate) const GOAWAY: u8 = 7;
    pub(crate) const WINDOW_UPDATE: u8 = 8;
    pub(crate) const CONTINUATION: u8 = 9;
}

/// Flags of frames.
pub(crate) mod flag {
    /// DATA, HEADERS.
    pub(crate) const END_STREAM: u8 = 1;
    /// SETTINGS, PING.
    pub(crate) const ACK: u8 = 1;
    /// HEADERS, PUSH_PROMISE, CONTINUATION.
    pub(crate) const END_HEADERS: u8 = 4;
    /// DATA, HEADERS, PUSH_PROMISE.
    pub(crate) const PADDED: u8 = 8;
    /// HEADERS.
    pub(crate) const PRIORITY: u8 = 32;
}

impl FrameHead {
    /// The reserved bit is ignored.
    #[inline]
    pub(crate) fn parse(bytes: &[u8; HEAD_LEN]) -> Self {
        let [l0, l1, l2, kind, flags, s0, s1, s2, s3] = *bytes;
        Self {
            length: u32::from_be_bytes([0, l0, l1, l2]),
            kind,
            flags,
            stream: u32::from_be_bytes([s0, s1, s2, s3]) & MAX_WINDOW,
        }
    }

    /// Its nine bytes.
    #[inline]
    pub(crate) fn to_bytes(self) -> [u8; HEAD_LEN] {
        debug_assert!(self.length < 1 << 24);
        let [_, l0, l1, l2] = self.length.to_be_bytes();
        let [s0, s1, s2, s3] = self.stream.to_be_bytes();
        [l0, l1, l2, self.kind, self.flags, s0, s1, s2, s3]
    }

    pub(crate) fn write(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.to_bytes());
    }

    pub(crate) fn has(self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// Why a stream or a connection ends (RFC 9113 section 7).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct ErrorCode(pub(crate) u32);

impl ErrorCode {
    pub(crate) const NO_ERROR: Self = Self(0);
    pub(crate) const PROTOCOL_ERROR: Self = Self(1);
    pub(crate) const INTERNAL_ERROR: Self = Self(2);
    pub(crate) const FLOW_CONTROL_ERROR: Self = Self(3);
    pub(crate) const SETTINGS_TIMEOUT: Self = Self(4);
    pub(crate) const STREAM_CLOSED: Self = Self(5);
    pub(crate) const FRAME_SIZE_ERROR: Self = Self(6);
    pub(crate) const REFUSED_STREAM: Self = Self(7);
    pub(crate) const CANCEL: Self = Self(8);
    pub(crate) const COMPRESSION_ERROR: Self = Self(9);
    pub(crate) const ENHANCE_YOUR_CALM: Self = Self(11);
}

const ERROR_NAMES: [&str; 14] = [
    "NO_ERROR",
    "PROTOCOL_ERROR",
    "INTERNAL_ERROR",
    "FLOW_CONTROL_ERROR",
    "SETTINGS_TIMEOUT",
    "STREAM_CLOSED",
    "FRAME_SIZE_ERROR",
    "REFUSED_STREAM",
    "CANCEL",
    "COMPRESSION_ERROR",
    "CONNECT_ERROR",
    "ENHANCE_YOUR_CALM",
    "INADEQUATE_SECURITY",
    "HTTP_1_1_REQUIRED",
];

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match ERROR_NAMES.get(self.0 as usize) {
            Some(name) => f.write_str(name),
            None => write!(f, "error {:#x}", self.0),
        }
    }
}

impl fmt::Debug for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Identifiers of settings (RFC 9113 section 6.5.2, RFC 8441 section 3, RFC 9218 section 2.1).
pub(crate) mod setting {
    pub(crate) const HEADER_TABLE_SIZE: u16 = 1;
    pub(crate) const ENABLE_PUSH: u16 = 2;
    pub(crate) const MAX_CONCURRENT_STREAMS: u16 = 3;
    pub(crate) const INITIAL_WINDOW_SIZE: u16 = 4;
    pub(crate) const MAX_FRAME_SIZE: u16 = 5;
    pub(crate) const MAX_HEADER_LIST_SIZE: u16 = 6;
    pub(crate) const ENABLE_CONNECT_PROTOCOL: u16 = 8;
    pub(crate) const NO_RFC7540_PRIORITIES: u16 = 9;
}

/// The settings of a SETTINGS frame, in their order, each with its identifier and its checked value.
#[derive(Clone, Debug)]
pub(crate) struct Settings<'a> {
    rest: &'a [u8],
}

impl<'a> Settings<'a> {
    /// # Errors
    /// The payload is no list of settings.
    pub(crate) fn parse(payload: &'a [u8]) -> Result<Self, ErrorCode> {
        if payload.len().is_multiple_of(6) {
            Ok(Self { rest: payload })
        } else {
            Err(ErrorCode::FRAME_SIZE_ERROR)
        }
    }
}

impl Iterator for Settings<'_> {
    type Item = Result<(u16, u32), ErrorCode>;

    fn next(&mut self) -> Option<Self::Item> {
        let ([i0, i1, v0, v1, v2, v3], rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        let (id, value) = (u16::from_be_bytes([*i0, *i1]), u32::from_be_bytes([*v0, *v1, *v2, *v3]));
        let error = match id {
            setting::ENABLE_PUSH | setting::ENABLE_CONNECT_PROTOCOL | setting::NO_RFC7540_PRIORITIES
                if value > 1 =>
            {
                Some(ErrorCode::PROTOCOL_ERROR)
            }
            setting::INITIAL_WINDOW_SIZE if value > MAX_WINDOW => Some(ErrorCode::FLOW_CONTROL_ERROR),
            setting::MAX_FRAME_SIZE if !(DEFAULT_MAX_FRAME..1 << 24).contains(&value) => {
                Some(ErrorCode::PROTOCOL_ERROR)
            }
            _ => None,
        };
        Some(error.map_or(Ok((id, value)), Err))
    }
}

/// Writes a SETTINGS frame.
pub(crate) fn write_settings(settings: &[(u16, u32)], out: &mut Vec<u8>) {
    let length = 6 * settings.len() as u32;
    FrameHead { length, kind: kind::SETTINGS, flags: 0, stream: 0 }.write(out);
    for (id, value) in settings {
        out.extend_from_slice(&id.to_be_bytes());
        out.extend_from_slice(&value.to_be_bytes());
    }
}

/// Writes the acknowledgement of a SETTINGS frame.
pub(crate) fn write_settings_ack(out: &mut Vec<u8>) {
    FrameHead { length: 0, kind: kind::SETTINGS, flags: flag::ACK, stream: 0 }.write(out);
}

/// Writes a WINDOW_UPDATE frame; the increment is 1 to [`MAX_WINDOW`].
pub(crate) fn write_window_update(stream: u32, increment: u32, out: &mut Vec<u8>) {
    debug_assert!((1..=MAX_WINDOW).contains(&increment));
    FrameHead { length: 4, kind: kind::WINDOW_UPDATE, flags: 0, stream }.write(out);
    out.extend_from_slice(&increment.to_be_bytes());
}

/// Writes a RST_STREAM frame.
pub(crate) fn write_rst_stream(stream: u32, code: ErrorCode, out: &mut Vec<u8>) {
    FrameHead { length: 4, kind: kind::RST_STREAM, flags: 0, stream }.write(out);
    out.extend_from_slice(&code.0.to_be_bytes());
}

/// Writes a GOAWAY frame, with `debug` as its debug data.
pub(crate) fn write_goaway(last_stream: u32, code: ErrorCode, debug: &[u8], out: &mut Vec<u8>) {
    FrameHead { length: 8 + debug.len() as u32, kind: kind::GOAWAY, flags: 0, stream: 0 }.write(out);
    out.extend_from_slice(&last_stream.to_be_bytes());
    out.extend_from_slice(&code.0.to_be_bytes());
    out.extend_from_slice(debug);
}

/// Writes a PING frame, or the answer to one.
pub(crate) fn write_ping(payload: &[u8; 8], is_ack: bool, out: &mut Vec<u8>) {
    let flags = if is_ack { flag::ACK } else { 0 };
    FrameHead { length: 8, kind: kind::PING, flags, stream: 0 }.write(out);
    out.extend_from_slice(payload);
}

/// A payload without its padding, which may be of any content.
///
/// # Errors
/// The padding is as long as the payload or longer (PROTOCOL_ERROR), or its length is missing (FRAME_SIZE_ERROR).
pub(crate) fn unpad(payload: &[u8], flags: u8) -> Result<&[u8], ErrorCode> {
    if flags & flag::PADDED == 0 {
        return Ok(payload);
    }
    let (&n_padding, rest) = payload.split_first().ok_or(ErrorCode::FRAME_SIZE_ERROR)?;
    let len = rest.len().checked_sub(usize::from(n_padding)).ok_or(ErrorCode::PROTOCOL_ERROR)?;
    Ok(&rest[..len])
}

/// The stream that another depends on, in PRIORITY and in HEADERS. Ignored, except that no stream may depend on itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Dependency(pub(crate) u32);

/// The block of a HEADERS frame without padding and the fields of PRIORITY, if it has them.
///
/// # Errors
/// As [`unpad`]; or the fields of PRIORITY are cut off (FRAME_SIZE_ERROR).
pub(crate) fn headers_block(payload: &[u8], flags: u8) -> Result<(&[u8], Option<Dependency>), ErrorCode> {
    let payload = unpad(payload, flags)?;
    if flags & flag::PRIORITY == 0 {
        return Ok((payload, None));
    }
    let ([s0, s1, s2, s3, _weight], block) =
        payload.split_first_chunk().ok_or(ErrorCode::FRAME_SIZE_ERROR)?;
    let stream = u32::from_be_bytes([*s0, *s1, *s2, *s3]) & MAX_WINDOW;
    Ok((block, Some(Dependency(stream))))
}

/// Four bytes of a payload as a number without its reserved bit: an increment, a stream.
pub(crate) fn number(bytes: [u8; 4]) -> u32 {
    u32::from_be_bytes(bytes) & MAX_WINDOW
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 9113 section 4.1.
    #[test]
    fn a_frames_head_is_read_as_it_was_written_without_its_reserved_bit() {
        let head = FrameHead {
            length: 0x01_0203,
            kind: kind::CONTINUATION,
            flags: flag::END_HEADERS,
            stream: 0x7f01_0203,
        };
        let mut bytes = Vec::new();
        head.write(&mut bytes);
        assert_eq!(bytes, [1, 2, 3, 9, 4, 0x7f, 1, 2, 3]);
        bytes[5] |= 0x80;
        assert_eq!(FrameHead::parse(bytes[..].try_into().expect("nine bytes")), head);
        assert!(head.has(flag::END_HEADERS) && !head.has(flag::PADDED));
    }

    /// RFC 9113 section 6.1.
    #[test]
    fn padding_is_taken_off_and_never_longer_than_the_payload() {
        assert_eq!(unpad(b"abc", 0), Ok(&b"abc"[..]));
        assert_eq!(unpad(b"\x02abc", flag::PADDED), Ok(&b"a"[..]));
        assert_eq!(unpad(b"\x03abc", flag::PADDED), Ok(&b""[..]));
        assert_eq!(unpad(b"\x04abc", flag::PADDED), Err(ErrorCode::PROTOCOL_ERROR));
        assert_eq!(unpad(b"\x00", flag::PADDED), Ok(&b""[..]));
        assert_eq!(unpad(b"", flag::PADDED), Err(ErrorCode::FRAME_SIZE_ERROR));
    }

    /// RFC 9113 section 6.2.
    #[test]
    fn the_fields_of_priority_are_taken_off_behind_the_padding() {
        assert_eq!(headers_block(b"block", 0), Ok((&b"block"[..], None)));
        let both = flag::PADDED | flag::PRIORITY;
        let payload = b"\x02\x80\0\0\x05\xffblock\0\0";
        assert_eq!(headers_block(payload, both), Ok((&b"block"[..], Some(Dependency(5)))));
        assert_eq!(headers_block(&payload[1..5], flag::PRIORITY), Err(ErrorCode::FRAME_SIZE_ERROR));
        assert_eq!(headers_block(b"\x0aabcdefghi", both), Err(ErrorCode::PROTOCOL_ERROR));
    }

    fn setting(id: u16, value: u32) -> Result<(u16, u32), ErrorCode> {
        let mut frame = Vec::new();
        write_settings(&[(id, value)], &mut frame);
        Settings::parse(&frame[HEAD_LEN..]).expect("whole").next().expect("one")
    }

    /// RFC 9113 section 6.5.2, RFC 8441 section 3.
    #[test]
    fn values_of_settings_are_within_their_ranges() {
        for (id, value) in [
            (1, u32::MAX),
            (2, 0),
            (2, 1),
            (3, 0),
            (4, MAX_WINDOW),
            (5, 16_384),
            (5, 16_777_215),
            (6, 0),
            (8, 1),
            (9, 1),
            (77, u32::MAX),
        ] {
            assert_eq!(setting(id, value), Ok((id, value)));
        }
        for (id, value) in [(2, 2), (5, 16_383), (5, 16_777_216), (8, 2), (9, 2)] {
            assert_eq!(setting(id, value), Err(ErrorCode::PROTOCOL_ERROR), "{id}: {value}");
        }
        assert_eq!(setting(4, MAX_WINDOW + 1), Err(ErrorCode::FLOW_CONTROL_ERROR));
        assert_eq!(Settings::parse(&[0; 7]).map(|_| ()), Err(ErrorCode::FRAME_SIZE_ERROR));
        assert_eq!(Settings::parse(&[]).map(Iterator::count), Ok(0));
    }

    #[test]
    fn frames_are_written_byte_by_byte_as_they_should_be() {
        let mut out = Vec::new();
        write_settings(&[(setting::MAX_FRAME_SIZE, 0x01_0000), (setting::ENABLE_PUSH, 0)], &mut out);
        assert_eq!(out, [0, 0, 12, 4, 0, 0, 0, 0, 0, 0, 5, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0]);
        out.clear();
        write_settings_ack(&mut out);
        write_window_update(3, 0x0102, &mut out);
        assert_eq!(out, [0, 0, 0, 4, 1, 0, 0, 0, 0, 0, 0, 4, 8, 0, 0, 0, 0, 3, 0, 0, 1, 2]);
        out.clear();
        write_rst_stream(3, ErrorCode::CANCEL, &mut out);
        write_ping(b"12345678", true, &mut out);
        assert_eq!(out, b"\0\0\x04\x03\0\0\0\0\x03\0\0\0\x08\0\0\x08\x06\x01\0\0\0\x0012345678");
        out.clear();
        write_goaway(5, ErrorCode::ENHANCE_YOUR_CALM, b"why", &mut out);
        assert_eq!(out, b"\0\0\x0b\x07\0\0\0\0\0\0\0\0\x05\0\0\0\x0bwhy");
        assert_eq!(number([0x80, 0, 0, 7]), 7);
    }

    /// RFC 9113 section 7.
    #[test]
    fn error_codes_have_their_names() {
        assert_eq!(ErrorCode(13).to_string(), "HTTP_1_1_REQUIRED");
        assert_eq!(format!("{:?}", ErrorCode(14)), "error 0xe");
        assert_eq!(ErrorCode::ENHANCE_YOUR_CALM, ErrorCode(11));
    }
}
