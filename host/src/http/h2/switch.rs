//! Requests for another protocol to servers of HTTP/2: an upgrade of HTTP/1.1 becomes an extended CONNECT (RFC 8441), and its
//! success becomes 101.

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64ct::{Base64, Encoding as _};
use memchr::memchr;

use super::lines::HeadLines;
use crate::http::h1::head::Name;

/// The key that a client of HTTP/1.1 sends, and that its server has to answer (RFC 6455 section 1.3).
const KEY: &[u8] = b"sec-websocket-key";
/// Goes with that key into the answer.
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// SHA-1 in base64.
type AcceptText = [u8; 28];

/// A request for another protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Switch {
    protocol: Box<[u8]>,
    /// The answer to the client's key, if it has sent one.
    accept: Option<AcceptText>,
}

impl Switch {
    /// The switch that a head of ours asks for. A stream becomes one protocol: the first one of the list.
    pub(crate) fn asked_by(head: &HeadLines<'_>) -> Option<Self> {
        let (_, protocols) = head.each().find(|(name, _)| Name::of(name) == Name::Upgrade)?;
        let protocol = protocols.split(|byte| *byte == b',').next()?.trim_ascii().into();
        let key = head.each().find(|(name, _)| name.eq_ignore_ascii_case(KEY));
        Some(Self { protocol, accept: key.map(|(_, key)| accept(key)) })
    }

    /// The value of `:protocol`.
    pub(crate) fn protocol(&self) -> &[u8] {
        &self.protocol
    }

    /// The head of a successful response, as text of HTTP/1.1, by which a server of HTTP/1.1 would have said the same.
    pub(crate) fn head(&self, success: &[u8]) -> Vec<u8> {
        let fields = memchr(b'\n', success).map_or(&b"\r\n"[..], |end| &success[end + 1..]);
        let mut text = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: ".to_vec();
        text.extend_from_slice(&self.protocol);
        if let Some(accept) = &self.accept {
            text.extend_from_slice(b"\r\nSec-WebSocket-Accept: ");
            text.extend_from_slice(accept);
        }
        text.extend_from_slice(b"\r\n");
        text.extend_from_slice(fields);
        text
    }
}

/// Whether an extended CONNECT has no use for this header (RFC 8441 section 5).
pub(crate) fn is_left_out(name: &[u8]) -> bool {
    name.eq_ignore_ascii_case(KEY)
}

fn accept(key: &[u8]) -> AcceptText {
    let answer = digest(&SHA1_FOR_LEGACY_USE_ONLY, &[key, GUID].concat());
    let mut text: AcceptText = [0; 28];
    // It has room for exactly that.
    let _ = Base64::encode(answer.as_ref(), &mut text);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(fields: &str) -> Option<Switch> {
        let text = format!("GET /chat HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
        Switch::asked_by(&HeadLines::of(text.as_bytes()).expect("complete"))
    }

    /// With the key and the answer of RFC 6455 section 1.3.
    #[test]
    fn success_is_told_as_a_server_of_http1_would() {
        let switch =
            asked("Upgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n").expect("one");
        assert_eq!(switch.protocol(), b"websocket");
        let head = switch.head(b"HTTP/1.1 200 OK\r\nsec-websocket-protocol: chat\r\n\r\n");
        let told = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
                    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nsec-websocket-protocol: chat\r\n\r\n";
        assert_eq!(String::from_utf8_lossy(&head), told);
    }

    #[test]
    fn other_protocols_have_no_key_and_other_requests_no_switch() {
        let switch = asked("upgrade: echo, other\r\n").expect("one");
        assert_eq!((switch.protocol(), switch.accept), (&b"echo"[..], None));
        assert_eq!(asked("Connection: close\r\n"), None);
        assert!(is_left_out(b"Sec-WebSocket-Key") && !is_left_out(b"Sec-WebSocket-Version"));
    }
}
