//! An operator's rules for headers: lines removed, set and added, with variables in their values. Compiled once for each
//! configuration; a request whose route has no rules pays nothing for them.

use std::io::Write;

use crate::http::h1::head::{Name, same_name};
use crate::http::template::{self, TemplatePiece, Unclosed};
use crate::net::address::Peer;

/// Rules for one direction of a route, its cluster's among them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Names of received lines that are removed.
    removed: Vec<Box<[u8]>>,
    lines: Vec<Line>,
    /// Names of the proxy's own lines that it leaves out.
    own_lines_off: Vec<Name>,
}

/// A line to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Line {
    name: Box<str>,
    value: Box<[Part]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(Box<str>),
    Variable(Variable),
}

/// A variable of a value, written `${…}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "their names and meanings are in conf/reference.toml")]
pub enum Variable {
    ClientAddress,
    ClientPort,
    PeerAddress,
    RequestId,
    Scheme,
    Host,
    Method,
    Path,
    Query,
    Cluster,
    Endpoint,
    Status,
}

/// The values of a request's variables.
#[derive(Clone, Copy, Debug)]
pub struct Values<'a> {
    /// The client, as trusted proxies name it.
    pub client: Peer,
    /// The other end of the connection.
    pub peer: Peer,
    /// Empty if no rule needs it.
    pub request_id: &'a [u8],
    /// `http` or `https`.
    pub scheme: &'a [u8],
    /// Host and port of the request.
    pub host: &'a [u8],
    /// As sent.
    pub method: &'a [u8],
    /// In normal form.
    pub path: &'a [u8],
    /// Without the question mark.
    pub query: &'a [u8],
    /// Name of the cluster.
    pub cluster: &'a str,
    /// URL of the endpoint.
    pub endpoint: &'a str,
    /// Status of the response; 0 before there is one.
    pub status: u16,
}

/// Rules and the values for their variables.
pub type Applied<'a> = (&'a Rules, &'a Values<'a>);

/// Why a value cannot be compiled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BadValue {
    /// A `${` without its end.
    Unclosed,
    /// An unknown variable, by its name.
    Unknown(String),
}

impl Variable {
    /// All, by name.
    pub const ALL: [(&'static str, Self); 12] = [
        ("client_address", Self::ClientAddress),
        ("client_port", Self::ClientPort),
        ("peer_address", Self::PeerAddress),
        ("request_id", Self::RequestId),
        ("scheme", Self::Scheme),
        ("host", Self::Host),
        ("method", Self::Method),
        ("path", Self::Path),
        ("query", Self::Query),
        ("cluster", Self::Cluster),
        ("endpoint", Self::Endpoint),
        ("status", Self::Status),
    ];
}

impl Rules {
    /// Removes every line of this name.
    pub fn remove(&mut self, name: &str) {
        let name = name.as_bytes();
        self.lines.retain(|line| !same_name(line.name.as_bytes(), name));
        if !self.removes(name) {
            self.own_lines_off.push(Name::meant_by(name));
            self.removed.push(name.into());
        }
    }

    /// Makes this the only line of its name.
    ///
    /// # Errors
    /// The value cannot be compiled.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), BadValue> {
        self.remove(name);
        self.add(name, value)
    }

    /// Adds a line.
    ///
    /// # Errors
    /// The value cannot be compiled.
    pub fn add(&mut self, name: &str, value: &str) -> Result<(), BadValue> {
        self.lines.push(Line { name: name.into(), value: compile(value)? });
        Ok(())
    }

    /// Whether they change nothing.
    pub fn is_empty(&self) -> bool {
        self.removed.is_empty() && self.lines.is_empty()
    }

    /// These rules, and then those.
    #[must_use]
    pub fn then(&self, next: &Self) -> Self {
        let mut both = self.clone();
        next.removed.iter().for_each(|name| both.remove(&String::from_utf8_lossy(name)));
        both.lines.extend(next.lines.iter().cloned());
        both
    }

    /// Whether a value needs the request's ID.
    pub fn use_request_id(&self) -> bool {
        let parts = || self.lines.iter().flat_map(|line| &line.value);
        parts().any(|part| *part == Part::Variable(Variable::RequestId))
    }

    /// Whether a received line of this name is removed.
    pub fn removes(&self, name: &[u8]) -> bool {
        self.removed.iter().any(|removed| same_name(removed, name))
    }

    /// Whole lines, each ended by CRLF, without those that are removed: for trailers, and for lines of the proxy's own.
    #[cold]
    pub fn strip(&self, lines: &[u8]) -> Vec<u8> {
        lines
            .split_inclusive(|byte| *byte == b'\n')
            .filter(|line| self.keeps(line))
            .flatten()
            .copied()
            .collect()
    }

    /// Whether a whole line is not removed.
    pub fn keeps(&self, line: &[u8]) -> bool {
        let name = line.iter().position(|byte| *byte == b':').unwrap_or(line.len());
        !self.removes(&line[..name])
    }

    /// Whether the proxy leaves out its own line of this name.
    pub fn replaces(&self, name: Name) -> bool {
        self.own_lines_off.contains(&name)
    }

    /// Appends the lines, each ended by CRLF. One whose value comes out empty is left out.
    pub fn write(&self, values: &Values<'_>, out: &mut Vec<u8>) {
        for line in &self.lines {
            let start = out.len();
            out.extend_from_slice(line.name.as_bytes());
            out.extend_from_slice(b": ");
            let empty = out.len();
            line.value.iter().for_each(|part| values.write(part, out));
            if out.len() == empty {
                out.truncate(start);
            } else {
                out.extend_from_slice(b"\r\n");
            }
        }
    }
}

impl Values<'_> {
    fn write(&self, part: &Part, out: &mut Vec<u8>) {
        let text = match part {
            Part::Text(text) => text.as_bytes(),
            // Writing to a vector cannot fail.
            Part::Variable(variable) => match variable {
                Variable::ClientAddress => return write_address(self.client, out),
                Variable::PeerAddress => return write_address(self.peer, out),
                Variable::ClientPort => match self.client.socket().map_or(0, |client| client.port()) {
                    0 => b"",
                    port => return drop(write!(out, "{port}")),
                },
                Variable::Status if self.status == 0 => b"",
                Variable::Status => return drop(write!(out, "{}", self.status)),
                Variable::RequestId => self.request_id,
                Variable::Scheme => self.scheme,
                Variable::Host => self.host,
                Variable::Method => self.method,
                Variable::Path => self.path,
                Variable::Query => self.query,
                Variable::Cluster => self.cluster.as_bytes(),
                Variable::Endpoint => self.endpoint.as_bytes(),
            },
        };
        out.extend_from_slice(text);
    }
}

fn write_address(peer: Peer, out: &mut Vec<u8>) {
    // Writing to a vector cannot fail.
    let _ = match peer.ip() {
        Some(ip) => write!(out, "{}", ip.to_canonical()),
        None => write!(out, "{peer}"),
    };
}

/// A literal `$` is written `$$` before a brace, and `$` elsewhere.
fn compile(value: &str) -> Result<Box<[Part]>, BadValue> {
    let pieces = template::pieces(value).map_err(|Unclosed| BadValue::Unclosed)?;
    let part = |piece| match piece {
        TemplatePiece::Text(text) => Ok(Part::Text(text.into())),
        TemplatePiece::Name(name) => {
            let known = Variable::ALL.into_iter().find(|(known, _)| *known == name);
            known
                .map(|(_, variable)| Part::Variable(variable))
                .ok_or_else(|| BadValue::Unknown(name.to_owned()))
        }
    };
    pieces.into_iter().map(part).collect()
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, SocketAddr};

    use super::*;

    const VALUES: Values<'_> = Values {
        client: Peer::Ip(SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)), 0)),
        peer: Peer::Ip(SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2)), 7)),
        request_id: b"id",
        scheme: b"http",
        host: b"h:1",
        method: b"GET",
        path: b"/p",
        query: b"",
        cluster: "c",
        endpoint: "http://e",
        status: 404,
    };

    fn written(value: &str) -> String {
        let mut rules = Rules::default();
        rules.add("X", value).expect("a good value");
        let mut out = Vec::new();
        rules.write(&VALUES, &mut out);
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn every_variable_has_its_value() {
        let all: Vec<_> = Variable::ALL.iter().map(|(name, _)| format!("${{{name}}}")).collect();
        assert_eq!(written(&all.join(" ")), "X: 10.0.0.1  10.0.0.2 id http h:1 GET /p  c http://e 404\r\n");
    }

    #[test]
    fn a_dollar_is_a_dollar() {
        assert_eq!(written("$5 a$ $$x $${host} $${"), "X: $5 a$ $x ${host} ${\r\n");
        assert_eq!(written("$$${host}"), "X: $h:1\r\n");
    }

    #[test]
    fn an_empty_value_is_no_line() {
        assert_eq!(written("${query}"), "");
    }

    #[test]
    fn refuses_what_is_no_variable() {
        assert_eq!(compile("a ${hots} b"), Err(BadValue::Unknown("hots".into())));
        assert_eq!(compile("a ${host"), Err(BadValue::Unclosed));
    }

    #[test]
    fn later_rules_win() {
        let mut cluster = Rules::default();
        cluster.set("A", "1").expect("good");
        cluster.add("B", "1").expect("good");
        let mut route = Rules::default();
        route.set("a", "2").expect("good");
        route.add("B", "2").expect("good");
        let both = cluster.then(&route);
        let mut out = Vec::new();
        both.write(&VALUES, &mut out);
        assert_eq!(String::from_utf8_lossy(&out), "B: 1\r\na: 2\r\nB: 2\r\n");
        assert_eq!((both.removes(b"A"), both.removes(b"b")), (true, false));
        route.remove("b");
        assert!(!cluster.then(&route).use_request_id());
    }

    #[test]
    fn knows_which_of_the_proxys_own_lines_it_replaces() {
        let mut rules = Rules::default();
        rules.remove("VIA");
        assert_eq!((rules.replaces(Name::Via), rules.replaces(Name::XForwardedFor)), (true, false));
    }

    /// Servers that cannot tell "_" from "-" saw two lines of one name, or the proxy's own beside the operator's.
    #[test]
    fn a_name_with_an_underscore_is_the_one_with_a_hyphen() {
        let mut rules = Rules::default();
        rules.set("X-A-B", "1").expect("good");
        rules.set("x_a-b", "2").expect("good");
        rules.remove("X_Forwarded_For");
        let mut out = Vec::new();
        rules.write(&VALUES, &mut out);
        assert_eq!(String::from_utf8_lossy(&out), "x_a-b: 2\r\n");
        assert!(rules.removes(b"X-A_B") && rules.replaces(Name::XForwardedFor));
    }
}
