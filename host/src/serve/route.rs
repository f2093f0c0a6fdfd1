//! Listener, host and path → route.

use std::borrow::Cow;

use rustc_hash::FxHashMap;

use crate::config::{self, Config, HostPattern, RouteOrder};

/// The routes of a configuration, arranged for look-up: one table for all listeners, unless routes name theirs.
#[derive(Debug)]
pub(crate) struct Routes {
    tables: Box<[ListenerRoutes]>,
    /// The table of each listener; empty where there is one for all.
    of_listener: Box<[usize]>,
}

/// Routes arranged for look-up. Nobody but the configuration puts anything into the tables, so a quick hash is safe.
#[derive(Debug)]
enum ListenerRoutes {
    /// The longest path wins, and a host's own routes before those of patterns and of all hosts. A look-up costs one hash per
    /// different length of path, and of pattern, that could match.
    Longest {
        /// By lower-case host.
        by_host: FxHashMap<Box<[u8]>, Prefixes>,
        /// By what hosts end with.
        below: Suffixes,
        /// For all hosts.
        any: Prefixes,
    },
    /// The first match wins; a look-up walks the list.
    First(Box<[config::Route]>),
}

/// Routes of all hosts below others, by the ends of their names, which begin with a dot.
#[derive(Debug, Default)]
struct Suffixes {
    /// The different lengths, longest first.
    lengths: Vec<usize>,
    by_suffix: FxHashMap<Box<[u8]>, Prefixes>,
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
        Self::of(&config.routes, config.route_order, config.listeners.len())
    }

    fn of(routes: &[config::Route], order: RouteOrder, n_listeners: usize) -> Self {
        if routes.iter().all(|route| route.listeners.is_none()) {
            return Self {
                tables: [ListenerRoutes::new(routes.iter(), order)].into(),
                of_listener: [].into(),
            };
        }
        // Listeners with the same routes share a table.
        let mut sets: Vec<Vec<bool>> = Vec::new();
        let of_listener = (0..n_listeners).map(|listener| {
            let is_of = |route: &config::Route| {
                route.listeners.as_ref().is_none_or(|listeners| listeners.contains(&listener))
            };
            let set: Vec<bool> = routes.iter().map(is_of).collect();
            sets.iter().position(|known| *known == set).unwrap_or_else(|| {
                sets.push(set);
                sets.len() - 1
            })
        });
        let of_listener = of_listener.collect();
        let table = |set: &Vec<bool>| {
            let own = || routes.iter().zip(set).filter_map(|(route, is_in)| is_in.then_some(route));
            // A route that names its listeners wins over one of the same host and path that names none.
            let (bound, free) = (|route: &&config::Route| route.listeners.is_some(), own());
            match order {
                RouteOrder::First => ListenerRoutes::new(own(), order),
                RouteOrder::Longest => {
                    ListenerRoutes::new(own().filter(bound).chain(free.filter(|route| !bound(route))), order)
                }
            }
        };
        Self { tables: sets.iter().map(table).collect(), of_listener }
    }

    /// The route for a request. `authority` is its host and maybe port; `path` is in normal form.
    pub(crate) fn find(
        &self,
        listener: u16,
        authority: Option<&[u8]>,
        path: &[u8],
    ) -> Option<&config::Route> {
        match &*self.tables {
            [table] => table.find(authority, path),
            tables => tables[*self.of_listener.get(usize::from(listener))?].find(authority, path),
        }
    }
}

impl ListenerRoutes {
    /// Of routes with the same host and path, the first wins.
    fn new<'a>(routes: impl Iterator<Item = &'a config::Route>, order: RouteOrder) -> Self {
        if order == RouteOrder::First {
            return Self::First(routes.cloned().collect());
        }
        let mut by_host: FxHashMap<Box<[u8]>, Prefixes> = FxHashMap::default();
        let (mut below, mut any) = (Suffixes::default(), Prefixes::default());
        for route in routes {
            if route.hosts.is_empty() {
                any.insert(route);
            }
            for host in &*route.hosts {
                match host {
                    HostPattern::Exact(host) => {
                        by_host.entry(host.as_bytes().into()).or_default().insert(route);
                    }
                    HostPattern::Below(suffix) => below.of(suffix.as_bytes()).insert(route),
                    HostPattern::Any => any.insert(route),
                }
            }
        }
        Self::Longest { by_host, below, any }
    }

    fn find(&self, authority: Option<&[u8]>, path: &[u8]) -> Option<&config::Route> {
        match self {
            Self::Longest { by_host, below, any } => {
                let own = match authority {
                    Some(authority) if !(by_host.is_empty() && below.lengths.is_empty()) => {
                        let host = host_of(authority);
                        let exact = by_host.get(&*host).and_then(|routes| routes.find(path));
                        exact.or_else(|| below.find(&host, path))
                    }
                    _ => None,
                };
                own.or_else(|| any.find(path))
            }
            Self::First(routes) => routes
                .iter()
                .find(|route| covers(route.path.as_bytes(), path) && is_of_host(route, authority)),
        }
    }
}

impl Suffixes {
    fn of(&mut self, suffix: &[u8]) -> &mut Prefixes {
        insert_length(&mut self.lengths, suffix.len());
        self.by_suffix.entry(suffix.into()).or_default()
    }

    fn find(&self, host: &[u8], path: &[u8]) -> Option<&config::Route> {
        let ends = self.lengths.iter().filter(|&&length| length < host.len());
        ends.map(|length| &host[host.len() - length..])
            .filter(|end| end[0] == b'.')
            .find_map(|end| self.by_suffix.get(end)?.find(path))
    }
}

impl Prefixes {
    fn insert(&mut self, route: &config::Route) {
        let path = route.path.as_bytes();
        insert_length(&mut self.lengths, path.len());
        self.by_path.entry(path.into()).or_insert_with(|| route.clone());
    }

    fn find(&self, path: &[u8]) -> Option<&config::Route> {
        self.lengths
            .iter()
            .filter(|&&length| length <= path.len() && covers(&path[..length], path))
            .find_map(|&length| self.by_path.get(&path[..length]))
    }
}

/// Into a list of the longest first, each once.
fn insert_length(lengths: &mut Vec<usize>, length: usize) {
    if let Err(at) = lengths.binary_search_by(|known| length.cmp(known)) {
        lengths.insert(at, length);
    }
}

/// Whether a route's hosts match. No syntax that takes the first route has patterns.
fn is_of_host(route: &config::Route, authority: Option<&[u8]>) -> bool {
    let is_it = |pattern: &HostPattern| match pattern {
        HostPattern::Exact(host) => authority.is_some_and(|own| *host_of(own) == *host.as_bytes()),
        HostPattern::Below(suffix) => authority.is_some_and(|own| {
            let host = host_of(own);
            host.len() > suffix.len() && host.ends_with(suffix.as_bytes())
        }),
        HostPattern::Any => true,
    };
    route.hosts.is_empty() || route.hosts.iter().any(is_it)
}

/// Whether a prefix covers a path, by whole segments.
fn covers(prefix: &[u8], path: &[u8]) -> bool {
    path.strip_prefix(prefix)
        .is_some_and(|rest| rest.is_empty() || rest[0] == b'/' || prefix.last() == Some(&b'/'))
}

/// The host of an authority, lower case, without port and without the dot that may end it.
pub(crate) fn host_of(authority: &[u8]) -> Cow<'_, [u8]> {
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

    /// A route whose cluster has this number.
    fn route(hosts: &[&str], path: &str, cluster: usize) -> config::Route {
        let pattern = |host: &&str| match host.strip_prefix('*') {
            Some("") => HostPattern::Any,
            Some(suffix) => HostPattern::Below(suffix.into()),
            None => HostPattern::Exact((*host).into()),
        };
        config::Route {
            idx: 0,
            hosts: hosts.iter().map(pattern).collect(),
            listeners: None,
            path: path.into(),
            rewrite: None,
            cluster: Some(cluster),
            answer: None,
            errors: None,
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
        Routes::of(routes, RouteOrder::Longest, 2)
    }

    fn cluster(routes: &Routes, authority: &str, path: &str) -> Option<usize> {
        routes.find(0, Some(authority.as_bytes()), path.as_bytes()).and_then(|r| r.cluster)
    }

    #[test]
    fn matches_whole_segments_longest_first() {
        let routes =
            longest(&[route(&[], "/", 0), route(&[], "/a", 1), route(&[], "/a/b", 2), route(&[], "/d/", 3)]);
        let found: Vec<_> = ["/", "/ab", "/a", "/a/", "/a/bc", "/a/b/c", "/d", "/d/e"]
            .map(|path| cluster(&routes, "x", path).expect("the root takes all"))
            .into();
        assert_eq!(found, [0, 0, 1, 1, 1, 2, 0, 3]);
    }

    #[test]
    fn prefers_the_own_host_and_falls_back_to_all() {
        let routes = longest(&[route(&[], "/a/b", 0), route(&["x.org"], "/a", 1)]);
        assert_eq!(cluster(&routes, "X.org.:80", "/a/b"), Some(1));
        assert_eq!(cluster(&routes, "y.org", "/a/b"), Some(0));
        assert_eq!(cluster(&routes, "y.org", "/a"), None);
    }

    #[test]
    fn prefers_the_exact_host_then_the_longest_pattern_then_all() {
        let routes = longest(&[
            route(&["*"], "/", 0),
            route(&["*.org"], "/", 1),
            route(&["*.b.org", "b.org"], "/", 2),
            route(&["a.b.org"], "/own", 3),
        ]);
        for (host, path, found) in [
            ("a.b.org", "/own/x", 3),
            // Nothing of its own for this path.
            ("a.b.org", "/", 2),
            ("A.B.ORG.:8080", "/own", 3),
            ("x.y.b.org", "/", 2),
            ("b.org", "/", 2),
            ("cb.org", "/", 1),
            ("c.org", "/", 1),
            ("org", "/", 0),
            (".org", "/", 0),
            ("[::1]:80", "/", 0),
        ] {
            assert_eq!(cluster(&routes, host, path), Some(found), "{host}{path}");
        }
        assert_eq!(routes.find(0, None, b"/").and_then(|route| route.cluster), Some(0));
    }

    #[test]
    fn a_route_that_names_its_listeners_is_for_them_alone_and_comes_first() {
        let of = |listeners: &[usize], route: config::Route| config::Route {
            listeners: Some(listeners.into()),
            ..route
        };
        let routes = longest(&[
            route(&[], "/", 0),
            of(&[1], route(&[], "/", 1)),
            of(&[1], route(&[], "/a", 2)),
            of(&[0, 2], route(&["x.org"], "/", 3)),
        ]);
        let found = |listener, host: &str, path: &str| {
            routes.find(listener, Some(host.as_bytes()), path.as_bytes()).and_then(|route| route.cluster)
        };
        assert_eq!(
            [found(0, "y", "/a"), found(1, "y", "/"), found(1, "y", "/a")],
            [Some(0), Some(1), Some(2)]
        );
        assert_eq!([found(0, "x.org", "/"), found(1, "x.org", "/")], [Some(3), Some(1)]);
    }

    #[test]
    fn takes_the_first_where_the_file_says_so() {
        let routes = [route(&[], "/a", 0), route(&[], "/a/b", 1)];
        let routes = Routes::of(&routes, RouteOrder::First, 1);
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
            let route = config::Route { rewrite: Some(new.into()), ..route(&[], path, 0) };
            assert_eq!(
                String::from_utf8_lossy(&rewrite(&route, request.as_bytes())),
                result,
                "{path} {new} {request}"
            );
        }
    }
}
