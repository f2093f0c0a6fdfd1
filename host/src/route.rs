//! Host and path → cluster.

use std::borrow::Cow;

use rustc_hash::FxHashMap;

use crate::config::{self, Config, RouteOrder};

/// The routes of a configuration, arranged for look-up. Nobody but the configuration puts anything into the tables, so a
/// quick hash is safe.
#[derive(Debug)]
pub enum Routes {
    /// The longest path wins, and a host's own routes before those of all hosts. A look-up costs one hash per
    /// different length of path that could match.
    Longest {
        /// By lower-case host.
        by_host: FxHashMap<Box<[u8]>, Prefixes>,
        /// For all hosts.
        any: Prefixes,
    },
    /// The first wins; a look-up walks the list.
    First(Box<[config::Route]>),
}

/// Routes of one host, by path.
#[derive(Debug, Default)]
pub struct Prefixes {
    /// Lengths of the paths that there are, longest first.
    lengths: Vec<usize>,
    by_path: FxHashMap<Box<[u8]>, config::Route>,
}

impl Routes {
    /// Arranges the routes of a configuration.
    pub fn new(config: &Config) -> Self {
        match config.route_order {
            RouteOrder::First => Self::First(config.routes.clone().into()),
            RouteOrder::Longest => {
                let mut by_host: FxHashMap<Box<[u8]>, Prefixes> = FxHashMap::default();
                let mut any = Prefixes::default();
                for route in &config.routes {
                    match &route.host {
                        Some(host) => by_host.entry(host.as_bytes().into()).or_default().insert(route),
                        None => any.insert(route),
                    }
                }
                Self::Longest { by_host, any }
            }
        }
    }

    /// The route for a request. `authority` is its host and maybe port; `path` is in normal form.
    pub fn find(&self, authority: Option<&[u8]>, path: &[u8]) -> Option<&config::Route> {
        match self {
            Self::Longest { by_host, any } => {
                let own = match authority {
                    Some(authority) if !by_host.is_empty() => by_host.get(&*host_of(authority)),
                    _ => None,
                };
                own.and_then(|routes| routes.find(path)).or_else(|| any.find(path))
            }
            Self::First(routes) => routes.iter().find(|route| {
                covers(route.path.as_bytes(), path)
                    && route
                        .host
                        .as_ref()
                        .is_none_or(|host| authority.is_some_and(|a| *host_of(a) == *host.as_bytes()))
            }),
        }
    }
}

impl Prefixes {
    fn insert(&mut self, route: &config::Route) {
        let path = route.path.as_bytes();
        if let Err(at) = self.lengths.binary_search_by(|length| path.len().cmp(length)) {
            self.lengths.insert(at, path.len());
        }
        self.by_path.entry(path.into()).or_insert_with(|| route.clone());
    }

    fn find(&self, path: &[u8]) -> Option<&config::Route> {
        self.lengths
            .iter()
            .filter(|&&length| length <= path.len() && covers(&path[..length], path))
            .find_map(|&length| self.by_path.get(&path[..length]))
    }
}

/// Whether a prefix covers a path, by whole segments.
fn covers(prefix: &[u8], path: &[u8]) -> bool {
    path.strip_prefix(prefix)
        .is_some_and(|rest| rest.is_empty() || rest[0] == b'/' || prefix.last() == Some(&b'/'))
}

/// The host of an authority, lower case, without port and without the dot that may end it.
fn host_of(authority: &[u8]) -> Cow<'_, [u8]> {
    let host = match authority {
        [b'[', ..] => authority.iter().position(|&b| b == b']').map_or(authority, |end| &authority[..=end]),
        _ => authority.split(|&b| b == b':').next().unwrap_or(authority),
    };
    let host = host.strip_suffix(b".").unwrap_or(host);
    if host.iter().any(u8::is_ascii_uppercase) {
        Cow::Owned(host.to_ascii_lowercase())
    } else {
        Cow::Borrowed(host)
    }
}

/// The path in normal form (RFC 3986 sections 6.2.2.2 and 6.2.2.3): escapes of unreserved characters undone, segments
/// `.` and `..` resolved. What is routed is what is sent, so that a server does not see another path than the one that
/// was looked at. Allocates only where there is something to change.
pub fn normal_path(path: &[u8]) -> Cow<'_, [u8]> {
    if memchr::memchr2(b'%', b'.', path).is_none() {
        return Cow::Borrowed(path);
    }
    let decoded = undo_escapes(path);
    if has_dot_segment(&decoded) { Cow::Owned(resolve_dots(&decoded)) } else { decoded }
}

/// The path with a route's prefix replaced.
pub fn rewrite<'a>(route: &config::Route, path: &'a [u8]) -> Cow<'a, [u8]> {
    let Some(new) = &route.rewrite else { return Cow::Borrowed(path) };
    let rest = path.get(route.path.len()..).unwrap_or_default();
    let mut out = new.as_bytes().to_vec();
    match (out.ends_with(b"/"), rest.starts_with(b"/")) {
        (true, true) => out.extend_from_slice(&rest[1..]),
        // The route's path took the slash in front of the rest.
        (false, false) if !rest.is_empty() => {
            out.push(b'/');
            out.extend_from_slice(rest);
        }
        _ => out.extend_from_slice(rest),
    }
    Cow::Owned(out)
}

fn has_dot_segment(path: &[u8]) -> bool {
    memchr::memchr_iter(b'.', path).any(|at| {
        if at == 0 || path[at - 1] != b'/' {
            return false;
        }
        let rest = &path[at + 1..];
        let rest = rest.strip_prefix(b".").unwrap_or(rest);
        rest.is_empty() || rest[0] == b'/'
    })
}

fn undo_escapes(path: &[u8]) -> Cow<'_, [u8]> {
    let mut out = Vec::new();
    let mut done = 0;
    for at in memchr::memchr_iter(b'%', path) {
        let digit = |i: usize| path.get(at + i).and_then(|&b| (b as char).to_digit(16));
        let (Some(high), Some(low)) = (digit(1), digit(2)) else { continue };
        let byte = (high * 16 + low) as u8;
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.extend_from_slice(&path[done..at]);
            out.push(byte);
            done = at + 3;
        }
    }
    if done == 0 {
        return Cow::Borrowed(path);
    }
    out.extend_from_slice(&path[done..]);
    Cow::Owned(out)
}

/// RFC 3986 section 5.2.4, for a path that begins with a slash.
fn resolve_dots(path: &[u8]) -> Vec<u8> {
    let mut segments: Vec<&[u8]> = Vec::new();
    let mut ends_open = false;
    for segment in path[1..].split(|&b| b == b'/') {
        ends_open = matches!(segment, b"." | b"..");
        match segment {
            b"." => {}
            b".." => drop(segments.pop()),
            _ => segments.push(segment),
        }
    }
    let mut out = Vec::with_capacity(path.len());
    for segment in &segments {
        out.push(b'/');
        out.extend_from_slice(segment);
    }
    if ends_open || out.is_empty() {
        out.push(b'/');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Place;

    fn route(host: Option<&str>, path: &str, cluster: usize) -> config::Route {
        config::Route {
            host: host.map(Into::into),
            path: path.into(),
            rewrite: None,
            cluster,
            host_header: None,
            timeout: None,
            retry: None,
            request_headers: None,
            response_headers: None,
            has_request_id: false,
            upgrade: true,
            place: Place { file: "test".into(), line: 1 },
        }
    }

    fn longest(routes: &[config::Route]) -> Routes {
        let mut by_host: FxHashMap<Box<[u8]>, Prefixes> = FxHashMap::default();
        let mut any = Prefixes::default();
        for route in routes {
            match &route.host {
                Some(host) => by_host.entry(host.as_bytes().into()).or_default().insert(route),
                None => any.insert(route),
            }
        }
        Routes::Longest { by_host, any }
    }

    fn cluster(routes: &Routes, authority: &str, path: &str) -> Option<usize> {
        routes.find(Some(authority.as_bytes()), path.as_bytes()).map(|r| r.cluster)
    }

    #[test]
    fn matches_whole_segments_longest_first() {
        let routes = longest(&[
            route(None, "/", 0),
            route(None, "/a", 1),
            route(None, "/a/b", 2),
            route(None, "/d/", 3),
        ]);
        let found: Vec<_> = ["/", "/ab", "/a", "/a/", "/a/bc", "/a/b/c", "/d", "/d/e"]
            .map(|path| cluster(&routes, "x", path).expect("the root takes all"))
            .into();
        assert_eq!(found, [0, 0, 1, 1, 1, 2, 0, 3]);
    }

    #[test]
    fn prefers_the_own_host_and_falls_back_to_all() {
        let routes = longest(&[route(None, "/a/b", 0), route(Some("x.org"), "/a", 1)]);
        assert_eq!(cluster(&routes, "X.org.:80", "/a/b"), Some(1));
        assert_eq!(cluster(&routes, "y.org", "/a/b"), Some(0));
        assert_eq!(cluster(&routes, "y.org", "/a"), None);
    }

    #[test]
    fn takes_the_first_where_the_file_says_so() {
        let routes = Routes::First([route(None, "/a", 0), route(None, "/a/b", 1)].into());
        assert_eq!(cluster(&routes, "x", "/a/b"), Some(0));
    }

    #[test]
    fn normalises_what_servers_would() {
        for (path, normal) in [
            ("/a/b", "/a/b"),
            ("/a/../b", "/b"),
            ("/a/./b/.", "/a/b/"),
            ("/../../b", "/b"),
            ("/a/..", "/"),
            ("/a/%2e%2E/b", "/b"),
            ("/%61%2Fb", "/a%2Fb"),
            ("/a%zz%4", "/a%zz%4"),
            ("/.a/..b/c.", "/.a/..b/c."),
            ("/a//b", "/a//b"),
        ] {
            assert_eq!(String::from_utf8_lossy(&normal_path(path.as_bytes())), normal, "{path}");
        }
    }

    #[test]
    fn replaces_the_prefix_without_doubling_slashes() {
        for (path, new, request, result) in [
            ("/a", "/b", "/a/c", "/b/c"),
            ("/a", "/b", "/a", "/b"),
            ("/a", "/", "/a/c", "/c"),
            ("/a", "/", "/a", "/"),
            ("/a/", "/b", "/a/c", "/b/c"),
            ("/a/", "/b/", "/a/c", "/b/c"),
            ("/", "/b", "/c", "/b/c"),
        ] {
            let route = config::Route { rewrite: Some(new.into()), ..route(None, path, 0) };
            assert_eq!(
                String::from_utf8_lossy(&rewrite(&route, request.as_bytes())),
                result,
                "{path} {new} {request}"
            );
        }
    }
}
