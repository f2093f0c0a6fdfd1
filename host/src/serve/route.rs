//! Host and path → cluster.

use std::borrow::Cow;

use rustc_hash::FxHashMap;

use crate::config::{self, Config, RouteOrder};

/// The routes of a configuration, arranged for look-up. Nobody but the configuration puts anything into the tables, so a
/// quick hash is safe.
#[derive(Debug)]
pub(crate) enum Routes {
    /// The longest path wins, and a host's own routes before those of all hosts. A look-up costs one hash per
    /// different length of path that could match.
    Longest {
        /// By lower-case host.
        by_host: FxHashMap<Box<[u8]>, Prefixes>,
        /// For all hosts.
        any: Prefixes,
    },
    /// The first match wins; a look-up walks the list.
    First(Box<[config::Route]>),
}

/// Routes of one host, by path.
#[derive(Debug, Default)]
pub(crate) struct Prefixes {
    /// The different lengths of the paths, longest first.
    lengths: Vec<usize>,
    by_path: FxHashMap<Box<[u8]>, config::Route>,
}

impl Routes {
    /// Arranges the routes of a configuration.
    pub(crate) fn new(config: &Config) -> Self {
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
    pub(crate) fn find(&self, authority: Option<&[u8]>, path: &[u8]) -> Option<&config::Route> {
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

/// The path with a route's prefix replaced.
pub(crate) fn rewrite<'a>(route: &config::Route, path: &'a [u8]) -> Cow<'a, [u8]> {
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
