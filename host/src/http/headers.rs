//! The headers of a message that passes through: the proxy removes hop-by-hop headers, adds its own (RFC 9110 section 7.6),
//! and frames the message again.

pub mod forwarded;
pub mod rules;

use std::io::Write;
use std::net::IpAddr;
use std::time::Instant;

use crate::http::date::Date;
use crate::http::h1::body::Encoding;
use crate::http::h1::head::{Framing, Name, RequestHead, ResponseHead, Version};
use crate::http::headers::forwarded::{Forwarded, Source, is_whole};
use crate::http::headers::rules::{Applied, Rules};
use crate::net::address::{Peer, UNIX};

/// Name of the proxy in `Via`.
const PSEUDONYM: &str = "trylist";

/// Where a request comes from and goes to.
#[derive(Clone, Copy, Debug)]
pub struct Hop<'a> {
    /// The target for the server.
    pub target: &'a [u8],
    /// `Host` for the server.
    pub host: &'a [u8],
    /// `Host` of the client, if any.
    pub client_host: Option<&'a [u8]>,
    /// The peer of the client's connection.
    pub peer: Peer,
    /// `http` or `https`, of that connection.
    pub scheme: &'static [u8],
    /// The scheme of the client's own connection, as trusted proxies say.
    pub client_scheme: &'static [u8],
    /// Header lines about the client's certificate; empty without one.
    pub identity: &'a [u8],
    /// The peer is a trusted proxy: its scheme and host are passed on.
    pub is_trusted: bool,
    /// Which headers name the client.
    pub forwarded: &'a Forwarded,
    /// Remaining `Max-Forwards`, if the method counts it.
    pub max_forwards: Option<u32>,
    /// The client's `Upgrade` is passed on.
    pub upgrade: bool,
    /// The operator's rules for headers.
    pub rules: Option<Applied<'a>>,
}

/// Writes the head of a request to a server.
pub fn write_request(head: &RequestHead, hop: &Hop<'_>, out: &mut Vec<u8>) {
    let request = Outgoing::new(head, hop);
    request.write_first_lines(out);
    request.write_passed_on(out);
    request.write_hop_by_hop(out);
    request.write_x_forwarded_for(out);
    request.write_identity(out);
    request.write_x_forwarded_proto(out);
    request.write_x_forwarded_host(out);
    if hop.forwarded.write_standard && request.writes(Name::Forwarded) {
        write_forwarded(head, hop, out);
    }
    if request.writes(Name::Via) {
        write_via(head.version, out);
    }
    if let Some((rules, values)) = hop.rules {
        rules.write(values, out);
    }
    out.extend_from_slice(b"\r\n");
}

/// A request on its way to a server, and what is decided before its first line is written.
struct Outgoing<'a> {
    head: &'a RequestHead,
    hop: &'a Hop<'a>,
    /// The body goes in chunks.
    is_chunked: bool,
    /// `X-Forwarded-Host` and `X-Forwarded-Proto` of a trusted proxy are passed on.
    keeps_host: bool,
    keeps_proto: bool,
}

impl<'a> Outgoing<'a> {
    fn new(head: &'a RequestHead, hop: &'a Hop<'a>) -> Self {
        let is_chunked = matches!(head.framing, Framing::Chunked | Framing::UntilClose);
        let mut request = Self { head, hop, is_chunked, keeps_host: false, keeps_proto: false };
        if hop.forwarded.write_x && request.trusts(Source::XForwardedFor) {
            request.keeps_host = head.known(Name::XForwardedHost).is_some();
            request.keeps_proto = head.known(Name::XForwardedProto).is_some();
        }
        request
    }

    /// Whether the peer is a trusted proxy that writes this header itself. Other headers it passes on as its client sent them.
    fn trusts(&self, source: Source) -> bool {
        self.hop.is_trusted && self.hop.forwarded.read == source
    }

    /// Whether the operator leaves a line of this name to the proxy.
    fn writes(&self, name: Name) -> bool {
        self.hop.rules.is_none_or(|(rules, _)| !rules.replaces(name))
    }

    fn write_first_lines(&self, out: &mut Vec<u8>) {
        let Self { head, hop, .. } = self;
        out.extend_from_slice(head.text(head.method_text));
        out.push(b' ');
        out.extend_from_slice(hop.target);
        out.extend_from_slice(b" HTTP/1.1\r\nHost: ");
        out.extend_from_slice(hop.host);
        out.extend_from_slice(b"\r\n");
    }

    /// Writes the client's own lines. A client's word about itself is dropped, because the proxy knows better. The list of
    /// addresses before it is kept.
    fn write_passed_on(&self, out: &mut Vec<u8>) {
        let leave_out = |name| self.leaves_out(name);
        match self.hop.rules {
            None => self.head.write_fields(out, leave_out),
            Some((rules, _)) => {
                self.head.write_fields_by(out, |name, text| leave_out(name) || rules.removes(text));
            }
        }
    }

    #[inline]
    fn leaves_out(&self, name: Name) -> bool {
        let hop = self.hop;
        match name {
            Name::Host | Name::XForwardedFor => true,
            // No head may name two framings.
            Name::ContentLength => self.is_chunked,
            // Only a certificate says so.
            Name::XClientCertSubject | Name::XClientCertFingerprint => true,
            // Untrusted, and we append no element of our own: drop it. Where we do, it is written in front of that.
            Name::Forwarded => hop.forwarded.write_standard || !self.trusts(Source::Standard),
            Name::XForwardedHost => !self.keeps_host,
            Name::XForwardedProto => !self.keeps_proto,
            Name::Expect => !self.head.expects_continue,
            Name::MaxForwards => hop.max_forwards.is_some(),
            Name::Upgrade => !hop.upgrade,
            name => name.is_hop_by_hop(),
        }
    }

    /// Writes what holds between the proxy and the server: how many hops are left, how the body is framed, what is asked of
    /// the connection.
    fn write_hop_by_hop(&self, out: &mut Vec<u8>) {
        if let Some(left) = self.hop.max_forwards {
            // Writing to a vector cannot fail.
            let _ = write!(out, "Max-Forwards: {left}\r\n");
        }
        if self.is_chunked {
            out.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
        }
        match (self.hop.upgrade, self.head.takes_trailers) {
            (false, false) => {}
            (false, true) => out.extend_from_slice(b"TE: trailers\r\nConnection: TE\r\n"),
            (true, _) => out.extend_from_slice(b"Connection: upgrade\r\n"),
        }
    }

    fn write_x_forwarded_for(&self, out: &mut Vec<u8>) {
        if !self.hop.forwarded.write_x || !self.writes(Name::XForwardedFor) {
            return;
        }
        out.extend_from_slice(b"X-Forwarded-For: ");
        for value in self.head.fields.iter().filter(|f| f.kind == Name::XForwardedFor) {
            out.extend_from_slice(self.head.text(value.value));
            out.extend_from_slice(b", ");
        }
        match self.hop.peer.ip() {
            Some(ip) => write_ip(ip, out),
            // As nginx: without it, the last address that the client wrote would be taken for the proxy's.
            None => out.extend_from_slice(UNIX.as_bytes()),
        }
        out.extend_from_slice(b"\r\n");
    }

    /// Writes the lines about the client's certificate.
    fn write_identity(&self, out: &mut Vec<u8>) {
        match self.hop.rules {
            Some((rules, _)) if !self.hop.identity.is_empty() => {
                out.extend_from_slice(&rules.strip(self.hop.identity));
            }
            _ => out.extend_from_slice(self.hop.identity),
        }
    }

    fn write_x_forwarded_proto(&self, out: &mut Vec<u8>) {
        if self.hop.forwarded.write_x && !self.keeps_proto && self.writes(Name::XForwardedProto) {
            out.extend_from_slice(b"X-Forwarded-Proto: ");
            out.extend_from_slice(self.hop.client_scheme);
            out.extend_from_slice(b"\r\n");
        }
    }

    fn write_x_forwarded_host(&self, out: &mut Vec<u8>) {
        let Some(host) = self.hop.client_host else { return };
        if self.hop.forwarded.write_x && !self.keeps_host && self.writes(Name::XForwardedHost) {
            out.extend_from_slice(b"X-Forwarded-Host: ");
            out.extend_from_slice(host);
            out.extend_from_slice(b"\r\n");
        }
    }
}

/// Writes `Forwarded` (RFC 7239): the received lines, and our element as another line. A line with an unclosed quote is dropped,
/// because servers join the lines and our element would become part of the quoted text.
#[cold]
fn write_forwarded(head: &RequestHead, hop: &Hop<'_>, out: &mut Vec<u8>) {
    for field in head.fields.iter().filter(|field| field.kind == Name::Forwarded) {
        let line = head.text(field.value);
        if is_whole(line) {
            out.extend_from_slice(b"Forwarded: ");
            out.extend_from_slice(line);
            out.extend_from_slice(b"\r\n");
        }
    }
    out.extend_from_slice(b"Forwarded: for=");
    match hop.peer.ip().map(|ip| ip.to_canonical()) {
        Some(ip @ IpAddr::V4(_)) => write_ip(ip, out),
        // Writing to a vector cannot fail.
        Some(IpAddr::V6(v6)) => drop(write!(out, "\"[{v6}]\"")),
        // An obfuscated name (RFC 7239 section 6.3); "unknown" would mean that the proxy does not know its peer.
        None => out.extend_from_slice(b"_unix"),
    }
    if let Some(host) = hop.client_host {
        // Bytes of a host need no escape in quotes.
        out.extend_from_slice(b";host=\"");
        out.extend_from_slice(host);
        out.push(b'"');
    }
    out.extend_from_slice(b";proto=");
    out.extend_from_slice(hop.scheme);
    out.extend_from_slice(b"\r\n");
}

/// How a response is framed for the client, and whether its connection goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResponseFraming {
    /// How its body is sent.
    pub encoding: Encoding,
    /// Whether the connection goes on.
    pub keep: bool,
}

impl ResponseFraming {
    /// Whether only the end of an HTTP/1 connection ends the body of this response.
    pub fn ends_with_connection(&self, response: &ResponseHead) -> bool {
        let is_of_unknown_length = matches!(response.framing, Framing::Chunked | Framing::UntilClose);
        is_of_unknown_length && self.encoding == Encoding::Identity
    }
}

/// Chooses the framing of a response to a client of this version.
pub fn response_framing(response: &ResponseHead, client: Version, keep: bool) -> ResponseFraming {
    match response.framing {
        Framing::None | Framing::Length(_) => ResponseFraming { encoding: Encoding::Identity, keep },
        Framing::Chunked | Framing::UntilClose => match client {
            Version::Http11 => ResponseFraming { encoding: Encoding::Chunked, keep },
            Version::Http2 => ResponseFraming { encoding: Encoding::Identity, keep },
            // HTTP/1.0 has no chunks: the body ends with the connection.
            Version::Http10 => ResponseFraming { encoding: Encoding::Identity, keep: false },
        },
    }
}

/// How a response is sent to the client.
#[derive(Clone, Copy, Debug)]
pub struct Reply<'a> {
    /// How it is framed.
    pub framing: ResponseFraming,
    /// The client's version of HTTP.
    pub client: Version,
    /// Header lines of the proxy's own.
    pub more: &'a [u8],
    /// The operator's rules for headers.
    pub rules: Option<Applied<'a>>,
}

/// Writes the head of a response to the client.
pub fn write_response(
    date: &Date,
    response: &ResponseHead,
    reply: &Reply<'_>,
    now: Instant,
    out: &mut Vec<u8>,
) {
    let framing = reply.framing;
    write_status(response, out);
    let without_length = response.status == 204;
    // Which protocol the client is to switch to is what such a response is about (RFC 9110 section 15.5.22).
    let asks_upgrade = response.status == 426
        && reply.client == Version::Http11
        && response.fields.iter().any(|field| field.kind == Name::Upgrade);
    let leave_out = |name| match name {
        Name::ContentLength => without_length,
        Name::Upgrade => !asks_upgrade,
        Name::Trailer => framing.encoding != Encoding::Chunked && reply.client != Version::Http2,
        name => name.is_hop_by_hop(),
    };
    write_passed_on(response, reply.rules, leave_out, out);
    let writes = |name| reply.rules.is_none_or(|(rules, _)| !rules.replaces(name));
    if !response.has_date && writes(Name::Date) {
        out.extend_from_slice(b"Date: ");
        date.write(now, out);
        out.extend_from_slice(b"\r\n");
    }
    if writes(Name::Via) {
        write_via(response.version, out);
    }
    out.extend_from_slice(reply.more);
    if let Some((rules, values)) = reply.rules {
        rules.write(values, out);
    }
    if framing.encoding == Encoding::Chunked {
        out.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
    }
    match (asks_upgrade, framing.keep) {
        (false, keep) => write_connection(keep, reply.client, out),
        (true, true) => out.extend_from_slice(b"Connection: upgrade\r\n"),
        (true, false) => out.extend_from_slice(b"Connection: upgrade, close\r\n"),
    }
    out.extend_from_slice(b"\r\n");
}

/// Writes the head of a response that switches protocols (101); `more` is header lines of the proxy's own.
pub fn write_switch(response: &ResponseHead, more: &[u8], rules: Option<Applied<'_>>, out: &mut Vec<u8>) {
    write_status(response, out);
    let leave_out = |name| match name {
        Name::Upgrade => false,
        name => name == Name::ContentLength || name.is_hop_by_hop(),
    };
    write_passed_on(response, rules, leave_out, out);
    if rules.is_none_or(|(rules, _)| !rules.replaces(Name::Via)) {
        write_via(response.version, out);
    }
    out.extend_from_slice(more);
    if let Some((rules, values)) = rules {
        rules.write(values, out);
    }
    out.extend_from_slice(b"Connection: upgrade\r\n\r\n");
}

fn write_passed_on(
    response: &ResponseHead,
    rules: Option<Applied<'_>>,
    leave_out: impl Fn(Name) -> bool,
    out: &mut Vec<u8>,
) {
    match rules {
        None => response.write_fields(out, leave_out),
        Some((rules, _)) => {
            response.write_fields_by(out, |name, text| leave_out(name) || rules.removes(text));
        }
    }
}

/// Writes `Connection`, where it differs from the default of the client's version.
pub fn write_connection(keep: bool, client: Version, out: &mut Vec<u8>) {
    match (keep, client) {
        (_, Version::Http2) => {}
        (false, _) => out.extend_from_slice(b"Connection: close\r\n"),
        (true, Version::Http10) => out.extend_from_slice(b"Connection: keep-alive\r\n"),
        (true, Version::Http11) => {}
    }
}

/// Writes an interim response (100 Continue, 103 Early Hints) to the client, without what the operator's rules take out.
pub fn write_interim(response: &ResponseHead, rules: Option<&Rules>, out: &mut Vec<u8>) {
    write_status(response, out);
    let leave_out = |name: Name| name == Name::ContentLength || name.is_hop_by_hop();
    match rules {
        None => response.write_fields(out, leave_out),
        Some(rules) => response.write_fields_by(out, |name, text| leave_out(name) || rules.removes(text)),
    }
    out.extend_from_slice(b"\r\n");
}

fn write_status(response: &ResponseHead, out: &mut Vec<u8>) {
    let status = response.status;
    let digit = |n: u16| b'0' + (n % 10) as u8;
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(&[digit(status / 100), digit(status / 10), digit(status), b' ']);
    out.extend_from_slice(response.text(response.reason));
    out.extend_from_slice(b"\r\n");
}

fn write_via(received: Version, out: &mut Vec<u8>) {
    out.extend_from_slice(match received {
        Version::Http10 => b"Via: 1.0 ",
        Version::Http11 => b"Via: 1.1 ",
        Version::Http2 => b"Via: 2.0 ",
    });
    out.extend_from_slice(PSEUDONYM.as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// IPv4 is written by hand: it is most of all addresses, and the formatter costs more than the rest of the line.
fn write_ip(ip: IpAddr, out: &mut Vec<u8>) {
    let v4 = match ip {
        IpAddr::V4(v4) => v4,
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => v4,
            None => {
                // Writing to a vector cannot fail.
                let _ = write!(out, "{v6}");
                return;
            }
        },
    };
    for (i, octet) in v4.octets().into_iter().enumerate() {
        if i > 0 {
            out.push(b'.');
        }
        if octet >= 100 {
            out.push(b'0' + octet / 100);
        }
        if octet >= 10 {
            out.push(b'0' + octet / 10 % 10);
        }
        out.push(b'0' + octet % 10);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::h1::buffer::Buffer;
    use crate::http::h1::head::{HeadLimits, Scan};

    const LIMITS: HeadLimits = HeadLimits { line_bytes: 1000, headers: 50 };

    fn request(text: &str) -> RequestHead {
        let mut buffer = Buffer::for_head(4000);
        buffer.append(text.as_bytes());
        let mut head = RequestHead::default();
        assert!(head.read(&mut buffer, &mut Scan::default(), &LIMITS).expect("well-formed"));
        head
    }

    fn sent(text: &str) -> String {
        sent_for(text, false, &Forwarded::default())
    }

    fn sent_for(text: &str, is_trusted: bool, forwarded: &Forwarded) -> String {
        let head = request(text);
        let hop = Hop {
            target: b"/t",
            host: b"server",
            client_host: head.host.map(|h| head.text(h)),
            peer: Peer::Ip(([127, 0, 20, 103], 0).into()),
            scheme: b"http",
            client_scheme: b"http",
            identity: b"",
            is_trusted,
            forwarded,
            max_forwards: None,
            upgrade: false,
            rules: None,
        };
        let mut out = Vec::new();
        write_request(&head, &hop, &mut out);
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn passes_on_what_is_for_the_end_and_says_for_whom() {
        assert_eq!(
            sent(
                "GET /x HTTP/1.1\r\nHost: a\r\nAccept: b\r\nConnection: keep-alive, x-hop\r\nX-Hop: c\r\nX-End: d\r\n\r\n"
            ),
            "GET /t HTTP/1.1\r\nHost: server\r\nAccept: b\r\nX-End: d\r\nX-Forwarded-For: 127.0.20.103\r\n\
             X-Forwarded-Proto: http\r\nX-Forwarded-Host: a\r\nVia: 1.1 trylist\r\n\r\n"
        );
    }

    #[test]
    fn adds_to_the_list_of_clients_and_does_not_believe_the_rest() {
        let sent = sent(
            "GET /x HTTP/1.1\r\nX-Forwarded-For: 1.1.1.1\r\nHost: a\r\nX-Forwarded-Proto: https\r\nX-Forwarded-For: 2.2.2.2\r\n\r\n",
        );
        assert!(sent.contains("X-Forwarded-For: 1.1.1.1, 2.2.2.2, 127.0.20.103\r\n"), "{sent}");
        assert!(!sent.contains("https"), "{sent}");
    }

    #[test]
    fn passes_on_what_a_trusted_proxy_says_of_scheme_and_host() {
        let text =
            "GET /x HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 1.1.1.1\r\nX-Forwarded-Proto: https\r\n\r\n";
        assert_eq!(
            sent_for(text, true, &Forwarded::default()),
            "GET /t HTTP/1.1\r\nHost: server\r\nX-Forwarded-Proto: https\r\n\
             X-Forwarded-For: 1.1.1.1, 127.0.20.103\r\nX-Forwarded-Host: a\r\nVia: 1.1 trylist\r\n\r\n"
        );
    }

    #[test]
    fn writes_the_standard_header_instead() {
        let text = "GET /x HTTP/1.1\r\nHost: a:1\r\nX-Forwarded-For: 1.1.1.1\r\nForwarded: for=_x\r\n\r\n";
        let forwarded = Forwarded { write_x: false, write_standard: true, ..Forwarded::default() };
        assert_eq!(
            sent_for(text, false, &forwarded),
            "GET /t HTTP/1.1\r\nHost: server\r\nForwarded: for=_x\r\n\
             Forwarded: for=127.0.20.103;host=\"a:1\";proto=http\r\nVia: 1.1 trylist\r\n\r\n"
        );
    }

    #[test]
    fn an_open_quote_of_a_client_does_not_take_in_the_proxys_own_element() {
        let forwarded = Forwarded { write_x: false, write_standard: true, ..Forwarded::default() };
        for line in ["for=\"x", "for=x;by=\"\\\"", "for=a\"b, for=\"c"] {
            let text =
                format!("GET /x HTTP/1.1\r\nHost: a\r\nForwarded: {line}\r\nForwarded: for=_y\r\n\r\n");
            for is_trusted in [false, true] {
                let sent = sent_for(&text, is_trusted, &forwarded);
                let lines: Vec<_> = sent.lines().filter(|line| line.starts_with("Forwarded:")).collect();
                let own = "Forwarded: for=127.0.20.103;host=\"a\";proto=http";
                assert_eq!(lines, ["Forwarded: for=_y", own], "{line}");
            }
        }
    }

    #[test]
    fn asks_for_trailers_only_where_the_client_takes_them() {
        assert!(
            sent("GET / HTTP/1.1\r\nHost: a\r\nTE: gzip, trailers\r\n\r\n")
                .contains("TE: trailers\r\nConnection: TE\r\n")
        );
        assert!(!sent("GET / HTTP/1.1\r\nHost: a\r\nTE: gzip\r\n\r\n").contains("TE:"));
    }

    #[test]
    fn writes_addresses_as_the_formatter_does() {
        for ip in ["0.0.0.0", "9.10.99.100", "255.255.255.255", "::1", "2001:db8::7"] {
            let mut out = Vec::new();
            write_ip(ip.parse().expect("an address"), &mut out);
            assert_eq!(String::from_utf8_lossy(&out), ip);
        }
    }
}
