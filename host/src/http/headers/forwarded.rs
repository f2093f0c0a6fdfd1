//! The client behind other proxies, as far as those are trusted.

use std::net::{IpAddr, SocketAddr};

use crate::http::h1::head::{Name, RequestHead, tokens};
use crate::net::address::Peer;
use crate::net::network::Networks;

/// Settings for proxies in front.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forwarded {
    /// Trusted proxies.
    pub trusted: Networks,
    /// The header that is read.
    pub read: Source,
    /// Whether servers get `X-Forwarded-For`, `-Proto` and `-Host`.
    pub write_x: bool,
    /// Whether servers get `Forwarded` (RFC 7239).
    pub write_standard: bool,
}

/// Which header names the client. Only one, because a proxy that writes one passes the other on as its client sent it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// `X-Forwarded-For`, and `X-Forwarded-Proto` and `X-Forwarded-Host` with it.
    XForwardedFor,
    /// `Forwarded` (RFC 7239).
    Standard,
    /// `X-Real-IP`: one address, and nothing else.
    RealIp,
}

/// The client of a request, as far as known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    /// Its address; port 0 if a proxy did not name the port.
    pub address: Peer,
    /// The peer is trusted, so its scheme and host are passed on.
    pub is_trusted: bool,
    /// The client's connection to the outermost trusted proxy is encrypted.
    pub is_https: bool,
    /// A trusted proxy said so.
    pub is_scheme_told: bool,
}

impl Default for Forwarded {
    fn default() -> Self {
        Self {
            trusted: Networks::default(),
            read: Source::XForwardedFor,
            write_x: true,
            write_standard: false,
        }
    }
}

impl Forwarded {
    /// The client of a request from this peer. The list is read from its end, where each proxy appends its peer, up to the first
    /// address that is not trusted. Elements in front of that may be forged.
    #[inline]
    pub fn client(&self, head: &RequestHead, peer: Peer) -> Client {
        if self.trusted.is_empty() || !self.trusted.contains(peer) {
            return Client { address: peer, is_trusted: false, is_https: false, is_scheme_told: false };
        }
        match self.read {
            Source::XForwardedFor => self.x_forwarded(head, peer),
            Source::Standard => self.standard(head, peer),
            Source::RealIp => real_ip(head, peer),
        }
    }

    fn x_forwarded(&self, head: &RequestHead, peer: Peer) -> Client {
        let lines = head.fields.iter().rev().filter(|field| field.kind == Name::XForwardedFor);
        let hops = lines.flat_map(|field| head.text(field.value).rsplit(|&b| b == b','));
        let address = self.walk(peer, hops.map(|hop| node(hop.trim_ascii())));
        let proto = head.known(Name::XForwardedProto).and_then(|proto| tokens(proto).next());
        let is_https = proto.is_some_and(|proto| proto.eq_ignore_ascii_case(b"https"));
        Client { address, is_trusted: true, is_https, is_scheme_told: proto.is_some() }
    }

    fn standard(&self, head: &RequestHead, peer: Peer) -> Client {
        let mut hops = Vec::new();
        for field in head.fields.iter().filter(|field| field.kind == Name::Forwarded) {
            let line = head.text(field.value);
            if is_whole(line) {
                hops.extend(split_quoted(line, b','));
            } else {
                // An unclosed quote of the client includes what a proxy wrote behind it: untrusted.
                hops.push(b"");
            }
        }
        let nodes = hops.iter().rev().map(|hop| parameter(hop, b"for").and_then(|value| node(&value)));
        let address = self.walk(peer, nodes);
        let proto = hops.last().and_then(|hop| parameter(hop, b"proto"));
        let is_https = proto.as_deref().is_some_and(|proto| proto.eq_ignore_ascii_case(b"https"));
        Client { address, is_trusted: true, is_https, is_scheme_told: proto.is_some() }
    }

    fn walk(&self, peer: Peer, hops: impl Iterator<Item = Option<SocketAddr>>) -> Peer {
        let mut client = peer;
        for hop in hops {
            match hop {
                Some(hop) if self.trusted.contains(client) => client = hop.into(),
                _ => break,
            }
        }
        client
    }
}

/// The client that a trusted proxy names. With several lines nobody knows which of them is the proxy's.
fn real_ip(head: &RequestHead, peer: Peer) -> Client {
    let mut lines =
        head.fields.iter().filter(|field| head.text(field.name).eq_ignore_ascii_case(b"x-real-ip"));
    let named = match (lines.next(), lines.next()) {
        (Some(field), None) => node(head.text(field.value).trim_ascii()),
        _ => None,
    };
    let address = named.map_or(peer, Peer::Ip);
    Client { address, is_trusted: true, is_https: false, is_scheme_told: false }
}

/// An address with an optional port, in any form that proxies write.
fn node(text: &[u8]) -> Option<SocketAddr> {
    let text = std::str::from_utf8(text).ok()?;
    if let Ok(address) = text.parse() {
        return Some(address);
    }
    let address: IpAddr = match text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(v6) => IpAddr::V6(v6.parse().ok()?),
        None => text.parse().ok()?,
    };
    Some(SocketAddr::new(address, 0))
}

/// Whether each quoted text of a `Forwarded` line is a whole value, so that all parsers agree on its elements. Otherwise an
/// element appended to the line could become part of a quoted text.
pub fn is_whole(line: &[u8]) -> bool {
    let mut rest = line;
    while let Some(at) = memchr::memchr(b'"', rest) {
        if !rest[..at].ends_with(b"=") {
            return false;
        }
        let quoted = &rest[at + 1..];
        let Some(end) = end_of_quoted(quoted) else { return false };
        rest = quoted[end + 1..].trim_ascii_start();
        if !matches!(rest, [] | [b';' | b',', ..]) {
            return false;
        }
    }
    true
}

/// Offset of the quote that ends a quoted text.
fn end_of_quoted(text: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        match text.get(at)? {
            b'"' => return Some(at),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

/// Splits a list whose values may be quoted.
fn split_quoted(text: &[u8], separator: u8) -> Vec<&[u8]> {
    let mut pieces = Vec::new();
    let (mut start, mut is_quoted, mut is_escaped) = (0, false, false);
    for (at, &byte) in text.iter().enumerate() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_quoted => is_escaped = true,
            b'"' => is_quoted = !is_quoted,
            _ if byte == separator && !is_quoted => {
                pieces.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    pieces.push(&text[start..]);
    pieces
}

/// Value of a parameter of an element, without quotes.
fn parameter(element: &[u8], name: &[u8]) -> Option<Vec<u8>> {
    split_quoted(element, b';').into_iter().find_map(|pair| {
        let at = pair.iter().position(|&b| b == b'=')?;
        let (key, value) = (pair[..at].trim_ascii(), pair[at + 1..].trim_ascii());
        if !key.eq_ignore_ascii_case(name) {
            return None;
        }
        let quoted = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\""));
        Some(quoted.unwrap_or(value).iter().copied().filter(|&b| b != b'\\').collect())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::h1::buffer::Buffer;
    use crate::http::h1::head::{HeadLimits, Scan};

    fn networks(texts: &[&str]) -> Networks {
        texts.iter().map(|text| text.parse().expect("a network")).collect()
    }

    fn client(read: Source, lines: &str) -> Client {
        client_of("10.9.9.9:99".parse::<SocketAddr>().expect("an address").into(), read, lines)
    }

    fn client_of(peer: Peer, read: Source, lines: &str) -> Client {
        let text = format!("GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\n");
        let mut buffer = Buffer::for_head(4000);
        buffer.append(text.as_bytes());
        let mut head = RequestHead::default();
        let limits = HeadLimits { line_bytes: 1000, headers: 50 };
        assert!(head.read(&mut buffer, &mut Scan::default(), &limits).expect("well-formed"));
        let trusted = networks(&["10.0.0.0/8", "2001:db8::/32", "unix:"]);
        let forwarded = Forwarded { trusted, read, ..Forwarded::default() };
        forwarded.client(&head, peer)
    }

    fn address(read: Source, lines: &str) -> String {
        client(read, lines).address.to_string()
    }

    #[test]
    fn walks_from_the_right_through_those_that_are_trusted() {
        let x = Source::XForwardedFor;
        for (lines, expected) in [
            ("", "10.9.9.9:99"),
            ("X-Forwarded-For: 1.1.1.1\r\n", "1.1.1.1:0"),
            ("X-Forwarded-For: 6.6.6.6, 1.1.1.1, 10.0.0.5\r\n", "1.1.1.1:0"),
            ("X-Forwarded-For: 6.6.6.6, 1.1.1.1\r\nX-Forwarded-For: 2001:db8::7\r\n", "1.1.1.1:0"),
            ("X-Forwarded-For: 10.0.0.1, 10.0.0.2\r\n", "10.0.0.1:0"),
            ("X-Forwarded-For: 1.1.1.1, rubbish, 10.0.0.2\r\n", "10.0.0.2:0"),
            ("X-Forwarded-For: 1.1.1.1,\r\n", "10.9.9.9:99"),
            ("X-Forwarded-For: 1.1.1.1:80, [2001:db8::1]:81\r\n", "1.1.1.1:80"),
            ("X-Forwarded-For: [1::2]\r\n", "[1::2]:0"),
            ("Forwarded: for=6.6.6.6\r\n", "10.9.9.9:99"),
        ] {
            assert_eq!(address(x, lines), expected, "{lines}");
        }
    }

    #[test]
    fn takes_the_one_address_of_x_real_ip() {
        for (lines, expected) in [
            ("X-Real-IP: 1.1.1.1\r\nX-Forwarded-For: 6.6.6.6\r\n", "1.1.1.1:0"),
            ("x-real-ip: 2001:db8::1\r\n", "[2001:db8::1]:0"),
            ("", "10.9.9.9:99"),
            ("X-Real-IP: 1.1.1.1, 2.2.2.2\r\n", "10.9.9.9:99"),
            ("X-Real-IP: 6.6.6.6\r\nX-Real-IP: 1.1.1.1\r\n", "10.9.9.9:99"),
        ] {
            assert_eq!(address(Source::RealIp, lines), expected, "{lines}");
        }
        let stranger: SocketAddr = "9.9.9.9:9".parse().expect("an address");
        let named = client_of(stranger.into(), Source::RealIp, "X-Real-IP: 1.1.1.1\r\n");
        assert_eq!((named.address, named.is_trusted), (stranger.into(), false));
    }

    #[test]
    fn a_proxy_behind_a_unix_socket_may_be_trusted() {
        let x = Source::XForwardedFor;
        let named =
            client_of(Peer::Unix, x, "X-Forwarded-For: 6.6.6.6, 1.1.1.1\r\nX-Forwarded-Proto: https\r\n");
        assert_eq!((named.address.to_string(), named.is_https), ("1.1.1.1:0".into(), true));
        let unnamed = client_of(Peer::Unix, x, "");
        assert_eq!((unnamed.address, unnamed.is_trusted), (Peer::Unix, true));
    }

    #[test]
    fn reads_the_standard_header_with_its_quotes() {
        for (lines, expected) in [
            ("Forwarded: for=192.0.2.60;proto=http;by=203.0.113.43\r\n", "192.0.2.60:0"),
            ("Forwarded: For=\"[2001:DB8:cafe::17]:4711\", for=10.0.0.1\r\n", "[2001:db8:cafe::17]:4711"),
            ("Forwarded: for=1.1.1.1;host=\"a,b;c\\\"d\", for=10.0.0.1\r\n", "1.1.1.1:0"),
            ("Forwarded: for=1.1.1.1\r\nForwarded: for=unknown, for=10.0.0.1\r\n", "10.0.0.1:0"),
            // The client's open quote, and what a trusted proxy put behind it.
            ("Forwarded: for=6.6.6.6;by=\", for=1.1.1.1\r\n", "10.9.9.9:99"),
            ("Forwarded: for=6.6.6.6;by=\"\r\nForwarded: for=1.1.1.1\r\n", "1.1.1.1:0"),
            ("Forwarded: for=6.6.6.6;by=a\"b, for=\"1.1.1.1\"\r\n", "10.9.9.9:99"),
            ("Forwarded: for=_hidden\r\n", "10.9.9.9:99"),
            ("Forwarded: proto=https\r\n", "10.9.9.9:99"),
            ("X-Forwarded-For: 6.6.6.6\r\n", "10.9.9.9:99"),
        ] {
            assert_eq!(address(Source::Standard, lines), expected, "{lines}");
        }
        assert!(client(Source::Standard, "Forwarded: for=1.1.1.1;proto=https\r\n").is_https);
    }

    #[test]
    fn a_line_is_whole_where_its_quotes_are_those_of_values() {
        for whole in ["", "for=a", "for=\"a\"", "for=\"a, b\\\"c\" ;proto=http, for=\"[::1]\"", "for=a;;,"] {
            assert!(is_whole(whole.as_bytes()), "{whole}");
        }
        for open in [
            "\"",
            "for=\"",
            "for=\"a\\\"",
            "for=\"a\\",
            "for=\"a\"b",
            "for=a\"b\"",
            "for=a\"b, for=\"c",
            "\"a\"",
        ] {
            assert!(!is_whole(open.as_bytes()), "{open}");
        }
    }

    #[test]
    fn takes_the_scheme_from_whom_it_trusts() {
        assert!(client(Source::XForwardedFor, "X-Forwarded-Proto: HTTPS\r\n").is_https);
        assert!(!client(Source::XForwardedFor, "X-Forwarded-Proto: http\r\n").is_https);
    }
}
