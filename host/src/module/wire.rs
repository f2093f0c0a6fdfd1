//! The host's values in their wire form.
#![allow(unsafe_code, reason = "text of a module is a pointer and a length")]

use std::net::SocketAddr;
use std::time::Duration;

use lb_api::wire;

/// Whole nanoseconds, for more than five hundred years.
#[inline]
pub fn ns(duration: Duration) -> u64 {
    duration.as_secs() * 1_000_000_000 + u64::from(duration.subsec_nanos())
}

/// An address as modules see it.
pub fn address(address: Option<SocketAddr>) -> wire::Address {
    let (family, port, bytes) = match address {
        None => (wire::ADDRESS_NONE, 0, [0; 16]),
        Some(SocketAddr::V6(v6)) => (wire::ADDRESS_V6, v6.port(), v6.ip().octets()),
        Some(SocketAddr::V4(v4)) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&v4.ip().octets());
            (wire::ADDRESS_V4, v4.port(), bytes)
        }
    };
    wire::Address { family, port, reserved: 0, bytes }
}

/// Bytes as a module sees them, valid for as long as they are borrowed.
pub(super) fn bytes(bytes: &[u8]) -> wire::Str {
    wire::Str { ptr: bytes.as_ptr(), len: bytes.len() }
}

/// The same of text.
pub(super) fn text(text: &str) -> wire::Str {
    bytes(text.as_bytes())
}

/// The bytes of a text; absent ones are empty.
///
/// # Safety
///
/// The text is valid for as long as the slice is used.
pub(super) unsafe fn slice(text: &wire::Str) -> &[u8] {
    if text.ptr.is_null() {
        return &[];
    }
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts(text.ptr, text.len) }
}
