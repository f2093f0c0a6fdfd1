//! The PROXY protocol, versions 1 and 2 (HAProxy's `doc/proxy-protocol.txt`). A load balancer in front sends a header with the
//! client's address before the first byte of the connection.
//!
//! Only the header is read, so that the request or TLS handshake behind it stays in the socket.

use std::fmt;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use rustix::net::RecvFlags;
use tokio::io::{AsyncReadExt, Interest};
use tokio::net::TcpStream;

/// ProxyVersion 2 begins with this.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Longest line of version 1, its end included.
const MAX_LINE: usize = 107;
/// Limit of the addresses and what follows them in version 2. The longest, a client's certificate, takes some hundred bytes.
const MAX_REST: usize = 4096;

/// Version of the header that servers get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyVersion {
    /// A line of text.
    V1,
    /// Binary.
    V2,
}

/// Why a header could not be read.
#[derive(Debug)]
pub enum BadHeader {
    /// The connection closed before its first byte, as TCP health checks do.
    Nothing,
    /// The bytes are not a valid header.
    Not(&'static str),
    /// The connection failed or closed within the header.
    Cut(io::Error),
}

/// Reads the header of a connection and returns the client's address. `None` is a header without an address, as that of the
/// balancer's own health checks.
///
/// # Errors
/// The header is missing or invalid; the connection cannot be used.
pub async fn read(stream: &mut TcpStream) -> Result<Option<SocketAddr>, BadHeader> {
    let mut start = [0; SIGNATURE.len()];
    let n = stream.read(&mut start).await?;
    if n == 0 {
        return Err(BadHeader::Nothing);
    }
    stream.read_exact(&mut start[n..]).await?;
    if &start == SIGNATURE {
        read_v2(stream).await
    } else if start.starts_with(b"PROXY ") {
        read_v1(stream, &start).await
    } else {
        Err(BadHeader::Not("no PROXY signature of version 1 or 2"))
    }
}

async fn read_v1(stream: &mut TcpStream, start: &[u8]) -> Result<Option<SocketAddr>, BadHeader> {
    let mut line = start.to_vec();
    while !line.ends_with(b"\n") {
        let mut ahead = [0; MAX_LINE];
        let room = MAX_LINE - line.len();
        if room == 0 {
            return Err(BadHeader::Not("header line too long"));
        }
        let n = stream
            .async_io(Interest::READABLE, || {
                Ok(rustix::net::recv(&*stream, &mut ahead[..room], RecvFlags::PEEK | RecvFlags::DONTWAIT)?.1)
            })
            .await?;
        let end = ahead[..n].iter().position(|&b| b == b'\n').map_or(n, |at| at + 1);
        let len = line.len();
        // At the end of the stream nothing was peeked, and `read_exact` reports it.
        line.resize(len + end.max(1), 0);
        stream.read_exact(&mut line[len..]).await?;
    }
    parse_line(&line).map_err(BadHeader::Not)
}

async fn read_v2(stream: &mut TcpStream) -> Result<Option<SocketAddr>, BadHeader> {
    let mut fixed = [0; 4];
    stream.read_exact(&mut fixed).await?;
    let [command, family, ..] = fixed;
    let len = usize::from(u16::from_be_bytes([fixed[2], fixed[3]]));
    if command >> 4 != 2 {
        return Err(BadHeader::Not("unknown version of the PROXY protocol"));
    }
    if len > MAX_REST {
        return Err(BadHeader::Not("header too long"));
    }
    let mut rest = vec![0; len];
    stream.read_exact(&mut rest).await?;
    parse_binary(command & 15, family, &rest).map_err(BadHeader::Not)
}

fn parse_line(line: &[u8]) -> Result<Option<SocketAddr>, &'static str> {
    let line = line.strip_suffix(b"\r\n").ok_or("header line does not end in CRLF")?;
    let line = std::str::from_utf8(line).map_err(|_| "header line is not UTF-8")?;
    let mut words = line.split(' ').skip(1);
    let is_v4 = match words.next() {
        // The rest of the line is ignored.
        Some("UNKNOWN") => return Ok(None),
        Some("TCP4") => true,
        Some("TCP6") => false,
        _ => return Err("protocol is not TCP4, TCP6 or UNKNOWN"),
    };
    let words: Vec<&str> = words.collect();
    let [source, destination, source_port, destination_port] = words[..] else {
        return Err("header line does not have two addresses and two ports");
    };
    let wrong = "invalid address";
    let address = |text: &str| text.parse::<IpAddr>().ok().filter(|ip| ip.is_ipv4() == is_v4).ok_or(wrong);
    let port = |text: &str| match text.as_bytes() {
        [b'0', _, ..] | [b'+', ..] => Err("invalid port"),
        _ => text.parse::<u16>().map_err(|_| "invalid port"),
    };
    let (source, _) = (address(source)?, address(destination)?);
    let (source_port, _) = (port(source_port)?, port(destination_port)?);
    Ok(Some(SocketAddr::new(source, source_port)))
}

fn parse_binary(command: u8, family: u8, rest: &[u8]) -> Result<Option<SocketAddr>, &'static str> {
    const SHORT: &str = "addresses are truncated";
    match command {
        // The balancer's own connection: its addresses are ignored.
        0 => return Ok(None),
        1 => {}
        _ => return Err("command is neither LOCAL nor PROXY"),
    }
    let port = |at: usize| u16::from_be_bytes([rest[at], rest[at + 1]]);
    match family {
        0x11 => {
            let octets: [u8; 4] = rest.get(..12).ok_or(SHORT)?[..4].try_into().expect("four of twelve");
            Ok(Some(SocketAddr::new(Ipv4Addr::from(octets).into(), port(8))))
        }
        0x21 => {
            let octets: [u8; 16] = rest.get(..36).ok_or(SHORT)?[..16].try_into().expect("sixteen of 36");
            Ok(Some(SocketAddr::new(Ipv6Addr::from(octets).into(), port(32))))
        }
        // Unspecified, or a Unix socket: no IP address.
        0x00 | 0x31 | 0x32 => Ok(None),
        _ => Err("protocol is neither TCP nor a Unix socket"),
    }
}

impl ProxyVersion {
    /// The header of a connection for `client`, which connected to `local`. If one of them is a Unix socket, the header has no
    /// addresses.
    pub fn header(self, client: Option<SocketAddr>, local: Option<SocketAddr>) -> Vec<u8> {
        let (Some(client), Some(local)) = (client, local) else {
            return match self {
                Self::V1 => b"PROXY UNKNOWN\r\n".to_vec(),
                Self::V2 => {
                    let mut out = Vec::new();
                    start_v2(&mut out, 1, 0, 0);
                    out
                }
            };
        };
        let (source, destination) = (client.ip().to_canonical(), local.ip().to_canonical());
        let mut out = Vec::with_capacity(64);
        match (self, source, destination) {
            (Self::V1, IpAddr::V4(_), IpAddr::V4(_)) | (Self::V1, IpAddr::V6(_), IpAddr::V6(_)) => {
                let family = if source.is_ipv4() { 4 } else { 6 };
                let (from, to) = (client.port(), local.port());
                // Writing to a vector cannot fail.
                let _ = write!(out, "PROXY TCP{family} {source} {destination} {from} {to}\r\n");
            }
            (Self::V1, ..) => out.extend_from_slice(b"PROXY UNKNOWN\r\n"),
            (Self::V2, IpAddr::V4(source), IpAddr::V4(destination)) => {
                start_v2(&mut out, 1, 0x11, 12);
                out.extend_from_slice(&source.octets());
                out.extend_from_slice(&destination.octets());
                put_ports(&mut out, client, local);
            }
            (Self::V2, source, destination) => {
                start_v2(&mut out, 1, 0x21, 36);
                for address in [source, destination] {
                    let v6 = match address {
                        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
                        IpAddr::V6(v6) => v6,
                    };
                    out.extend_from_slice(&v6.octets());
                }
                put_ports(&mut out, client, local);
            }
        }
        out
    }

    /// The header of the proxy's own connections, such as health checks.
    pub fn own_header(self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::V1 => out.extend_from_slice(b"PROXY UNKNOWN\r\n"),
            Self::V2 => start_v2(&mut out, 0, 0, 0),
        }
        out
    }
}

fn start_v2(out: &mut Vec<u8>, command: u8, family: u8, len: u8) {
    out.extend_from_slice(SIGNATURE);
    out.extend_from_slice(&[2 << 4 | command, family, 0, len]);
}

fn put_ports(out: &mut Vec<u8>, client: SocketAddr, local: SocketAddr) {
    out.extend_from_slice(&client.port().to_be_bytes());
    out.extend_from_slice(&local.port().to_be_bytes());
}

impl From<io::Error> for BadHeader {
    fn from(e: io::Error) -> Self {
        Self::Cut(e)
    }
}

impl fmt::Display for BadHeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("connection closed without a header"),
            Self::Not(text) => f.write_str(text),
            Self::Cut(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                f.write_str("connection closed within the header")
            }
            Self::Cut(e) => e.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    /// The result for a connection that sends `bytes`, in pieces of `step`, and ends; and the bytes that are left.
    async fn read_of(bytes: &[u8], step: usize) -> (Result<Option<SocketAddr>, String>, Vec<u8>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let send = async {
            let mut client = TcpStream::connect(address).await.expect("connected");
            client.set_nodelay(true).expect("a socket");
            for piece in bytes.chunks(step) {
                client.write_all(piece).await.expect("sent");
                tokio::task::yield_now().await;
            }
        };
        let receive = async {
            let (mut stream, _) = listener.accept().await.expect("accepted");
            let result = read(&mut stream).await.map_err(|e| e.to_string());
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
            (result, rest)
        };
        tokio::join!(send, receive).1
    }

    fn address(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    #[tokio::test]
    async fn reads_what_it_writes_and_not_a_byte_more() {
        let (v4, v6) = (address("192.0.2.1:65535"), address("[2001:db8::1]:1"));
        let (to_v4, to_v6) = (address("10.0.0.1:80"), address("[::1]:443"));
        for version in [ProxyVersion::V1, ProxyVersion::V2] {
            for (client, local) in [(v4, to_v4), (v6, to_v6)] {
                let mut bytes = version.header(Some(client), Some(local));
                bytes.extend_from_slice(b"GET / HTTP/1.1\r\n");
                for step in [1, 7, 1000] {
                    let (read, rest) = read_of(&bytes, step).await;
                    assert_eq!((read, &rest[..]), (Ok(Some(client)), &b"GET / HTTP/1.1\r\n"[..]), "{step}");
                }
            }
            let (read, rest) = read_of(&version.own_header(), 1000).await;
            assert_eq!((read, rest), (Ok(None), Vec::new()));
        }
        assert_eq!(ProxyVersion::V1.header(Some(v4), Some(to_v6)), b"PROXY UNKNOWN\r\n");
        assert_eq!(
            parse_binary(1, 0x21, &ProxyVersion::V2.header(Some(v4), Some(to_v6))[16..]),
            Ok(Some(address("[::ffff:192.0.2.1]:65535")))
        );
    }

    #[test]
    fn writes_the_examples_of_the_specification() {
        let header =
            ProxyVersion::V1.header(Some(address("192.168.0.1:56324")), Some(address("192.168.0.11:443")));
        assert_eq!(header, b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n");
        let header = ProxyVersion::V2.header(Some(address("1.2.3.4:258")), Some(address("5.6.7.8:772")));
        assert_eq!(
            header,
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x01\x02\x03\x04\x05\x06\x07\x08\x01\x02\x03\x04"
        );
    }

    #[test]
    fn reads_lines_as_the_specification_has_them() {
        let read = |line: &str| parse_line(format!("PROXY {line}\r\n").as_bytes());
        assert_eq!(read("UNKNOWN"), Ok(None));
        assert_eq!(read("UNKNOWN ffff::1 ffff::2 65535 65535"), Ok(None));
        assert_eq!(read("TCP6 ::1 ::2 0 1"), Ok(Some(address("[::1]:0"))));
        for refused in [
            "",
            "UDP4 1.1.1.1 2.2.2.2 1 2",
            "TCP4 1.1.1.1 2.2.2.2 1",
            "TCP4 1.1.1.1 2.2.2.2 1 2 3",
            "TCP4 ::1 ::2 1 2",
            "TCP6 1.1.1.1 2.2.2.2 1 2",
            "TCP4 1.1.1.256 2.2.2.2 1 2",
            "TCP4 1.1.1.1 2.2.2.2 65536 2",
            "TCP4 1.1.1.1 2.2.2.2 01 2",
            "TCP4 1.1.1.1 2.2.2.2 +1 2",
            "TCP4  1.1.1.1 2.2.2.2 1 2",
        ] {
            assert!(read(refused).is_err(), "{refused}");
        }
        assert!(parse_line(b"PROXY UNKNOWN\n").is_err());
    }

    #[test]
    fn reads_binary_headers_with_more_behind_the_addresses() {
        let mut rest = vec![1, 2, 3, 4, 5, 6, 7, 8, 0, 80, 0, 81];
        rest.extend_from_slice(b"\x04\0\x01x");
        assert_eq!(parse_binary(1, 0x11, &rest), Ok(Some(address("1.2.3.4:80"))));
        assert_eq!(parse_binary(0, 0x11, &rest), Ok(None), "LOCAL");
        assert_eq!(parse_binary(1, 0x00, &[]), Ok(None));
        assert_eq!(parse_binary(1, 0x31, &[0; 216]), Ok(None), "a Unix socket");
        assert!(parse_binary(2, 0x11, &rest).is_err());
        assert!(parse_binary(1, 0x12, &rest).is_err(), "UDP");
        assert!(parse_binary(1, 0x11, &rest[..11]).is_err());
        assert!(parse_binary(1, 0x21, &rest).is_err());
    }

    #[tokio::test]
    async fn refuses_rubbish() {
        let long = [b"PROXY UNKNOWN ".to_vec(), vec![b'x'; 200]].concat();
        let mut huge = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x10\x01".to_vec();
        huge.resize(5000, 0);
        for (bytes, why) in [
            (&b"GET / HTTP/1.1\r\n\r\n"[..], "no PROXY signature"),
            (&long, "too long"),
            (&huge, "too long"),
            (b"\r\n\r\n\0\r\nQUIT\n\x31\x11\0\x0c", "unknown version"),
            (b"", "connection closed without a header"),
            (b"PROXY", "connection closed within the header"),
            (b"PROXY TCP4 1.1.1.1", "connection closed within the header"),
            (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0cabc", "connection closed within the header"),
        ] {
            let (read, _) = read_of(bytes, 1000).await;
            let said = read.expect_err(why);
            assert!(said.contains(why), "{said}");
        }
    }
}
