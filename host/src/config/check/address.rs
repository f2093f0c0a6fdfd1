//! Addresses, hosts and server URLs as people write them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use super::super::HostPattern;
use crate::net::address::{Address, UNIX};

/// The length of `sun_path` of `sockaddr_un`, without the zero at its end.
pub(super) const LONGEST_SOCKET_PATH: usize = 107;

/// A server's host and port, and how it is reached.
#[derive(Debug, PartialEq)]
pub(super) struct Authority {
    /// Name or address, without brackets; the path of a Unix socket.
    pub(super) host: String,
    /// As written, or 80 (443 for https); 0 for a Unix socket.
    pub(super) port: u16,
    /// Its Unix socket.
    pub(super) unix: Option<Arc<Path>>,
    /// Whether it is reached by https.
    pub(super) is_secure: bool,
}

/// An address to listen on.
pub(super) fn parse_listen(text: &str) -> Result<Address, String> {
    if let Ok(address) = text.parse() {
        return Ok(Address::Ip(address));
    }
    if let Some(path) = text.strip_prefix(UNIX) {
        return parse_socket_path(path).map(Address::Unix);
    }
    let example = match text.rsplit_once(':') {
        Some(("" | "*" | "localhost", port)) if port.parse::<u16>().is_ok() => {
            let host = if text.starts_with('l') { "127.0.0.1" } else { "0.0.0.0" };
            format!("write \"{host}:{port}\"")
        }
        _ if text.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv6()) => format!("write \"[{text}]:8080\""),
        _ if text.parse::<IpAddr>().is_ok() => format!("write \"{text}:8080\""),
        _ if text.parse::<u16>().is_ok() => format!("write \"0.0.0.0:{text}\""),
        _ if text.starts_with('/') => format!("write \"{UNIX}{text}\""),
        _ => "write, for example, \"127.0.0.1:8080\" or \"[::1]:8080\"".to_owned(),
    };
    Err(format!("is not an IP address with a port ({example})"))
}

/// The path of a Unix socket.
fn parse_socket_path(path: &str) -> Result<Arc<Path>, String> {
    if !path.starts_with('/') {
        return Err(format!(
            "a socket's path begins at the root (write, for example, \"{UNIX}/run/trylist/app.sock\")"
        ));
    }
    // Where it ends with a slash, there is a folder.
    if path.ends_with('/') || path.contains('\0') {
        return Err("its path is not that of a file".to_owned());
    }
    let (bytes, most) = (path.len(), LONGEST_SOCKET_PATH);
    if bytes > most {
        return Err(format!("its path has {bytes} bytes, a socket's {most} at most"));
    }
    Ok(Path::new(path).into())
}

/// Where a name server is asked: an address, at port 53 unless it has one.
pub(super) fn parse_name_server(text: &str) -> Result<SocketAddr, &'static str> {
    let bare = text.parse().map(|ip: IpAddr| SocketAddr::new(ip, 53));
    bare.or_else(|_| text.parse()).map_err(|_| "is not an IP address (write, for example, \"127.0.0.1:53\")")
}

/// A server's URL: `http://host`, `http://host:port`, or the same with `https`; or `unix:/path`.
pub(super) fn parse_server(url: &str) -> Result<Authority, String> {
    const RIGHT: &str = "write http://host or http://host:port";
    if let Some(path) = url.strip_prefix(UNIX) {
        let unix = parse_socket_path(path)?;
        return Ok(Authority { host: path.to_owned(), port: 0, unix: Some(unix), is_secure: false });
    }
    let Some((scheme, rest)) = url.split_once("://") else {
        return Err(format!("is not a URL ({RIGHT})"));
    };
    let is_secure = scheme.eq_ignore_ascii_case("https");
    if !is_secure && !scheme.eq_ignore_ascii_case("http") {
        return Err(format!("scheme {scheme:?} is not supported ({RIGHT})"));
    }
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if authority.len() != rest.len() {
        let what = match rest.as_bytes()[authority.len()] {
            b'/' => "path",
            b'?' => "query",
            _ => "fragment",
        };
        return Err(format!("a server has no {what} ({RIGHT})"));
    }
    if authority.contains('@') {
        return Err(format!("user and password are not supported ({RIGHT})"));
    }
    let (host, port) = split_port(authority)?;
    if host.is_empty() {
        return Err(format!("has no host ({RIGHT})"));
    }
    check_name(host)?;
    let default = if is_secure { 443 } else { 80 };
    let port = port.map_or(Ok(default), parse_port)?;
    Ok(Authority { host: host.to_owned(), port, unix: None, is_secure })
}

/// The host that a route is for, in lower case.
pub(super) fn parse_route_host(text: &str) -> Result<String, String> {
    if text.is_empty() || text == "*" {
        return Err("leave the key out for all hosts".to_owned());
    }
    let lower = text.to_ascii_lowercase();
    if lower.contains("://") || lower.contains('/') {
        return Err("is not a host (write, for example, \"example.com\")".to_owned());
    }
    let (host, port) = split_port(&lower)?;
    let written = &lower[..lower.len() - port.map_or(0, |port| port.len() + 1)];
    if port.is_some() {
        return Err(format!("a route's host has no port (write \"{written}\")"));
    }
    if host.contains('*') {
        return Err(
            "is a pattern (write hosts = [\"*.example.com\"], or leave the key out for all hosts)".to_owned()
        );
    }
    let host = host.strip_suffix('.').unwrap_or(host);
    check_name(host)?;
    Ok(if host.contains(':') { format!("[{host}]") } else { host.to_owned() })
}

/// A host of a route, or a pattern of hosts: `*.` before a host is everything below it, `*` alone is all.
pub(super) fn parse_host_pattern(text: &str) -> Result<HostPattern, String> {
    if text == "*" {
        return Ok(HostPattern::Any);
    }
    let Some(parent) = text.strip_prefix("*.") else {
        return match text.contains('*') {
            true => {
                Err("\"*\" stands for whole labels at the beginning (write \"*.example.com\")".to_owned())
            }
            false => parse_route_host(text).map(|host| HostPattern::Exact(host.into())),
        };
    };
    let parent = parse_route_host(parent)?;
    if parent.starts_with('[') || parent.parse::<Ipv4Addr>().is_ok() {
        return Err("an address has no names below it".to_owned());
    }
    Ok(HostPattern::Below(format!(".{parent}").into()))
}

/// A text that is fit to be sent as `Host`: host, and port if any.
pub(super) fn check_host_header(text: &str) -> Result<(), String> {
    let (host, port) = split_port(text)?;
    check_name(host)?;
    port.map_or(Ok(80), parse_port).map(|_| ())
}

/// Host without brackets, and what follows the colon after it.
fn split_port(authority: &str) -> Result<(&str, Option<&str>), String> {
    if let Some(bracketed) = authority.strip_prefix('[') {
        let (host, rest) = bracketed.split_once(']').ok_or("bracket \"[\" is not closed")?;
        if host.parse::<Ipv6Addr>().is_err() {
            return Err(format!("{host:?} in brackets is not an IPv6 address"));
        }
        return match rest.strip_prefix(':') {
            Some(port) => Ok((host, Some(port))),
            None if rest.is_empty() => Ok((host, None)),
            None => Err(format!("{rest:?} after the brackets is not a port")),
        };
    }
    if authority.parse::<Ipv6Addr>().is_ok() || authority.matches(':').count() > 1 {
        return Err("an IPv6 address is written in brackets, as in [2001:db8::1]".to_owned());
    }
    Ok(match authority.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (authority, None),
    })
}

fn parse_port(text: &str) -> Result<u16, String> {
    let port = text.parse().ok().filter(|&port| port != 0 && text.bytes().all(|byte| byte.is_ascii_digit()));
    port.ok_or_else(|| format!("port {text:?} is not a number from 1 to 65535"))
}

/// An IP address, or a name that DNS or a hosts file can hold.
fn check_name(host: &str) -> Result<(), String> {
    if host.parse::<Ipv4Addr>().is_ok() || host.parse::<Ipv6Addr>().is_ok() {
        return Ok(());
    }
    let is_label = |label: &str| {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        (1..=63).contains(&label.len()) && label.bytes().all(fits) && !label.starts_with('-')
    };
    let name = host.strip_suffix('.').unwrap_or(host);
    // Names of digits and dots alone are addresses gone wrong, as 10.0.0.256, and no resolver knows them.
    let is_number = name.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    if name.len() <= 253 && name.split('.').all(is_label) && !is_number {
        return Ok(());
    }
    Err(format!("{host:?} is neither a host name nor an IP address"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_server_urls() {
        let server = |url| parse_server(url).map(|server| (server.host, server.port));
        let is = |host: &str, port| Ok((host.to_owned(), port));
        assert_eq!(server("http://127.0.0.1:9001"), is("127.0.0.1", 9001));
        assert_eq!(server("http://app-1.internal"), is("app-1.internal", 80));
        assert_eq!(server("HTTP://App_2.:8080"), is("App_2.", 8080));
        assert_eq!(server("http://[::1]:9001"), is("::1", 9001));
        assert_eq!(server("http://[2001:db8::1]"), is("2001:db8::1", 80));
        assert_eq!(server("unix:/run/app.sock"), is("/run/app.sock", 0));
    }

    #[test]
    fn refuses_what_is_no_server() {
        const RIGHT: &str = "(write http://host or http://host:port)";
        const SOCKET: &str =
            "a socket's path begins at the root (write, for example, \"unix:/run/trylist/app.sock\")";
        for (url, error) in [
            ("127.0.0.1:9001", format!("is not a URL {RIGHT}")),
            ("https://a/", format!("a server has no path {RIGHT}")),
            ("ftp://a", format!("scheme \"ftp\" is not supported {RIGHT}")),
            ("http://a/", format!("a server has no path {RIGHT}")),
            ("http://a:80/b?c", format!("a server has no path {RIGHT}")),
            ("http://a?c", format!("a server has no query {RIGHT}")),
            ("http://a#c", format!("a server has no fragment {RIGHT}")),
            ("http://u:p@a", format!("user and password are not supported {RIGHT}")),
            ("http://", format!("has no host {RIGHT}")),
            ("http://:80", format!("has no host {RIGHT}")),
            ("http://a:port", "port \"port\" is not a number from 1 to 65535".to_owned()),
            ("http://a:", "port \"\" is not a number from 1 to 65535".to_owned()),
            ("http://a:0", "port \"0\" is not a number from 1 to 65535".to_owned()),
            ("http://a:+80", "port \"+80\" is not a number from 1 to 65535".to_owned()),
            ("http://a:65536", "port \"65536\" is not a number from 1 to 65535".to_owned()),
            ("http://::1:80", "an IPv6 address is written in brackets, as in [2001:db8::1]".to_owned()),
            ("http://[::1", "bracket \"[\" is not closed".to_owned()),
            ("http://[a]:80", "\"a\" in brackets is not an IPv6 address".to_owned()),
            ("http://[::1]80", "\"80\" after the brackets is not a port".to_owned()),
            ("unix:", SOCKET.to_owned()),
            ("unix:app.sock", SOCKET.to_owned()),
            ("unix:/run/", "its path is not that of a file".to_owned()),
            ("http://a b", "\"a b\" is neither a host name nor an IP address".to_owned()),
            ("http://a..b", "\"a..b\" is neither a host name nor an IP address".to_owned()),
            ("http://10.0.0.256", "\"10.0.0.256\" is neither a host name nor an IP address".to_owned()),
        ] {
            assert_eq!(parse_server(url), Err(error), "{url}");
        }
    }

    #[test]
    fn normalises_the_host_of_a_route() {
        assert_eq!(parse_route_host("WWW.Example.COM").as_deref(), Ok("www.example.com"));
        assert_eq!(parse_route_host("example.com.").as_deref(), Ok("example.com"));
        assert_eq!(parse_route_host("[::1]").as_deref(), Ok("[::1]"));
    }

    #[test]
    fn refuses_what_is_no_host_of_a_route() {
        for (text, error) in [
            ("", "leave the key out for all hosts"),
            ("*", "leave the key out for all hosts"),
            ("http://a", "is not a host (write, for example, \"example.com\")"),
            ("A.com:80", "a route's host has no port (write \"a.com\")"),
            ("[::1]:80", "a route's host has no port (write \"[::1]\")"),
            (
                "*.a.com",
                "is a pattern (write hosts = [\"*.example.com\"], or leave the key out for all hosts)",
            ),
            ("a b", "\"a b\" is neither a host name nor an IP address"),
        ] {
            assert_eq!(parse_route_host(text).unwrap_err(), error, "{text}");
        }
    }

    #[test]
    fn says_what_a_listen_address_should_be() {
        assert!(parse_listen("[::1]:0").is_ok());
        let unix = Path::new("/run/front.sock");
        assert_eq!(parse_listen("unix:/run/front.sock"), Ok(Address::Unix(unix.into())));
        let long = format!("unix:/{}", "x".repeat(107));
        assert_eq!(parse_listen(&long).unwrap_err(), "its path has 108 bytes, a socket's 107 at most");
        for (text, right) in [
            ("8080", "write \"0.0.0.0:8080\""),
            (":8080", "write \"0.0.0.0:8080\""),
            ("*:8080", "write \"0.0.0.0:8080\""),
            ("localhost:8080", "write \"127.0.0.1:8080\""),
            ("10.0.0.1", "write \"10.0.0.1:8080\""),
            ("::1", "write \"[::1]:8080\""),
            ("/run/front.sock", "write \"unix:/run/front.sock\""),
            ("host:http", "write, for example, \"127.0.0.1:8080\" or \"[::1]:8080\""),
        ] {
            let error = parse_listen(text).unwrap_err();
            assert_eq!(error, format!("is not an IP address with a port ({right})"), "{text}");
        }
    }
}
