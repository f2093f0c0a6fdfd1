//! The routes that requests reach, where several could take them. `serve/route.rs` looks them up; this asks before there are
//! requests, and about the order of TOML only.

use super::super::{HostPattern, Route};
use super::route::covers;

/// Hosts of a route that names none.
const ALL: &[HostPattern] = &[HostPattern::Any];

/// The hosts that a route is for.
pub(super) fn hosts(route: &Route) -> &[HostPattern] {
    if route.hosts.is_empty() { ALL } else { &route.hosts }
}

/// Whether a route is for this host, whatever others are.
pub(super) fn is_for(route: &Route, host: &str) -> bool {
    hosts(route).iter().any(|pattern| pattern.covers(host))
}

/// Whether requests at this host for this path, and all below it, can reach a route: there is none of higher rank for all of
/// these listeners. `None` is all listeners.
pub(super) fn is_reached(
    route: &Route,
    routes: &[Route],
    (host, path): (&str, &str),
    listeners: Option<&[usize]>,
) -> bool {
    let Some(own) = rank(route, (host, path)) else { return false };
    let is_at = |other: &Route| {
        let all_of = |of: &[usize]| listeners.is_some_and(|asked| asked.iter().all(|at| of.contains(at)));
        other.listeners.as_deref().is_none_or(all_of)
    };
    !routes.iter().any(|other| is_at(other) && rank(other, (host, path)).is_some_and(|rank| rank > own))
}

/// What decides between routes, the highest first: how narrow the pattern of hosts is, the length of the path, and whether it
/// names its listeners. `None` where the route is not for these requests.
fn rank(route: &Route, (host, path): (&str, &str)) -> Option<(usize, usize, bool)> {
    let narrow = |pattern: &HostPattern| match pattern {
        HostPattern::Exact(_) => usize::MAX,
        HostPattern::Below(suffix) => suffix.len(),
        HostPattern::Any => 0,
    };
    let of_host = hosts(route).iter().filter(|pattern| pattern.covers(host)).map(narrow).max()?;
    covers(&route.path, path).then_some((of_host, route.path.len(), route.listeners.is_some()))
}
