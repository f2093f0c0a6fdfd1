//! The counts of one server, cluster or module, for the status. They are those of the text: all threads, and other generations.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::iter;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::cells::{Cell, ClusterCells, EndpointCounts, ListenerCells};
use super::labels::{
    ConnectionOrigin, FAILURES, ModuleCall, OUTCOMES, QueueEnd, STATUS_CLASSES, TRY_RESULTS,
};
use super::totals::{SeriesKey, Subject, Totals};
use super::{Metrics, Shard};
use crate::module::balancer::ModuleFault;

/// Counts by the value of a label. Those that are zero are left out.
pub type ByName = BTreeMap<Cow<'static, str>, u64>;

/// The counts of one server.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ServerNumbers {
    /// Tries that have ended.
    pub tries: u64,
    /// The same by result.
    pub results: ByName,
    /// Responses by status class, passed on or not.
    pub responses: ByName,
    /// Tries without an established connection, by reason.
    pub failures: ByName,
    /// Connections that tries got, by origin.
    pub connections: ByName,
    /// Active health checks by result.
    pub checks: ByName,
    /// Ejections because of its traffic.
    pub ejections: u64,
    /// Average time of a try, in milliseconds; none before the first.
    pub average_ms: Option<f64>,
}

/// The counts of one cluster.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ClusterNumbers {
    /// Requests that have ended.
    pub requests: u64,
    /// The same by the class of the status that the client got.
    pub responses: ByName,
    /// The same by the outcome of their tries.
    pub outcomes: ByName,
    /// Average time of a request, in milliseconds; none before the first.
    pub average_ms: Option<f64>,
    /// Bytes received from clients.
    pub received_bytes: u64,
    /// Bytes sent to clients.
    pub sent_bytes: u64,
    /// Requests refused at `max_requests`.
    pub overloaded: u64,
    /// Requests that left the queue, by reason.
    pub queue_left: ByName,
    /// Requests refused because the queue was full.
    pub queue_full: u64,
    /// Requests refused because their client had `queue_per_client` in the queue.
    pub queue_client_full: u64,
    /// Retries under the route's policy.
    pub retries: u64,
    /// Retries that the retry budget denied.
    pub retries_denied: u64,
}

/// The counts of one listener.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ListenerNumbers {
    /// Client connections that are open.
    pub connections: u64,
    /// Client connections accepted.
    pub accepted: u64,
    /// Those that could not be accepted.
    pub accept_failures: u64,
    /// How often it stopped accepting at its limit.
    pub full: u64,
    /// Connections closed because their client was at its limit.
    pub client_full: u64,
    /// Connections closed because of their PROXY header.
    pub bad_proxy_headers: u64,
    /// TLS handshakes that failed.
    pub handshake_failures: u64,
}

/// The counts of one module of a cluster.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ModuleNumbers {
    /// Calls into it, by name.
    pub calls: ByName,
    /// Average time of a request in its calls, in microseconds, by a sample; none before the first.
    pub average_us: Option<f64>,
    /// Part of the time of all threads that serve which passed in its calls, over the last 10 s, from 0 to 1.
    #[serde(default)]
    pub thread_share: f64,
    /// Faults by kind.
    pub faults: ByName,
    /// Endpoints that the host chose in its place.
    pub fallbacks: u64,
    /// Answers with an endpoint that took no request.
    pub declined: u64,
    /// Answers that all endpoints are full.
    pub busy: u64,
}

/// A server's label and counts.
#[derive(Debug)]
pub(crate) struct CountedServer {
    /// The value of its label `endpoint`.
    pub label: Arc<str>,
    /// Its counts.
    pub numbers: ServerNumbers,
}

/// Counts of other generations.
struct Before(Arc<Totals>);

impl Before {
    fn n<const N: usize>(&self, subject: Subject<'_>, family: &str, kinds: [&str; N]) -> u64 {
        let counts = self.0.counts(subject);
        counts.and_then(|counts| counts.counter(&SeriesKey::new(family, kinds))).unwrap_or(0)
    }

    /// Counts by the value of a label, of which each text has a number here.
    fn by_name(
        &self,
        subject: Subject<'_>,
        family: &str,
        here: impl IntoIterator<Item = (&'static str, u64)>,
    ) -> ByName {
        let sum = |(name, n): (&'static str, u64)| {
            let n = n.wrapping_add(self.n(subject, family, [name]));
            (n > 0).then_some((Cow::Borrowed(name), n))
        };
        here.into_iter().filter_map(sum).collect()
    }

    /// The time and the number of a histogram.
    fn times(&self, subject: Subject<'_>, key: &SeriesKey<'_>) -> (u64, u64) {
        let counts = self.0.counts(subject);
        let times = counts.and_then(|counts| counts.histogram(key));
        times.map_or((0, 0), |times| (times.sum_ns, times.count()))
    }
}

impl Metrics {
    /// The servers of a cluster at these places.
    pub(crate) fn counted_servers(
        &self,
        cluster: usize,
        is_wanted: impl Fn(usize) -> bool,
    ) -> BTreeMap<usize, CountedServer> {
        let names = &self.clusters[cluster];
        let before = Before(self.base.load_full());
        let rows = names.members.load().members_at(is_wanted, |place| self.counted_at(cluster, place));
        let member = |row: super::members::EndpointRow| {
            let place = row.life?.place();
            let numbers = server(&before, Subject::Endpoint(&names.name, &row.label), &row.counts);
            Some((place, CountedServer { label: row.label, numbers }))
        };
        rows.into_iter().filter_map(member).collect()
    }

    /// The counts of a listener.
    pub(crate) fn counted_listener(&self, listener: usize) -> ListenerNumbers {
        let before = Before(self.base.load_full());
        let subject = Subject::Listener(&self.listeners[listener]);
        let sum = |cell: fn(&ListenerCells) -> &Cell| self.sum_of(|shard| cell(&shard.listeners[listener]));
        let total = |family: &str, cell: fn(&ListenerCells) -> &Cell| {
            sum(cell).wrapping_add(before.n(subject, family, []))
        };
        // Closed is read before opened, so that the difference is never negative.
        let closed = sum(|cells| &cells.closed);
        ListenerNumbers {
            connections: sum(|cells| &cells.opened).saturating_sub(closed),
            accepted: total("trylist_connections", |cells| &cells.opened),
            accept_failures: total("trylist_accept_failures", |cells| &cells.accept_failures),
            full: total("trylist_listener_full", |cells| &cells.full),
            client_full: total("trylist_client_full", |cells| &cells.over_per_client),
            bad_proxy_headers: total("trylist_bad_proxy_headers", |cells| &cells.bad_proxy_headers),
            handshake_failures: total("trylist_tls_handshake_failures", |cells| &cells.failed_handshakes),
        }
    }

    /// The counts of a cluster.
    pub(crate) fn counted_cluster(&self, cluster: usize) -> ClusterNumbers {
        let before = Before(self.base.load_full());
        let subject = Subject::Cluster(&self.clusters[cluster].name);
        let sum = |cell: &dyn Fn(&ClusterCells) -> &Cell| self.sum_of(|shard| cell(&shard.clusters[cluster]));
        let total = |family: &str, cell: &dyn Fn(&ClusterCells) -> &Cell| {
            sum(cell).wrapping_add(before.n(subject, family, []))
        };
        let outcomes = OUTCOMES.iter().enumerate();
        let outcomes = outcomes.map(|(idx, name)| (*name, sum(&|cells| &cells.requests.outcomes[idx])));
        let ends = QueueEnd::TEXT.iter().enumerate();
        let ends = ends.map(|(idx, name)| (*name, sum(&|cells| &cells.queue_left[idx])));
        let mut responses = ByName::new();
        for (slot, code) in self.codes.iter().enumerate() {
            let n = sum(&|cells| &cells.requests.codes[slot]);
            let n = n.wrapping_add(before.n(subject, "trylist_requests", [code.as_str()]));
            if n > 0 {
                *responses.entry(class_of(code).into()).or_default() += n;
            }
        }
        let duration = (
            sum(&|cells| &cells.requests.duration.sum_ns),
            cells_sum(self, |shard| &shard.clusters[cluster].requests.duration.buckets),
        );
        let key = SeriesKey::new("trylist_request_duration", []);
        let average_ns = average_ns(duration, before.times(subject, &key));
        ClusterNumbers {
            requests: responses.values().sum(),
            responses,
            outcomes: before.by_name(subject, "trylist_outcomes", outcomes),
            average_ms: average_ns.map(thousandths_of_ms),
            received_bytes: total("trylist_received", &|cells| &cells.requests.received_bytes),
            sent_bytes: total("trylist_sent", &|cells| &cells.requests.sent_bytes),
            overloaded: total("trylist_overloaded", &|cells| &cells.overloaded),
            queue_left: before.by_name(subject, "trylist_queue_waits", ends),
            queue_full: total("trylist_queue_full", &|cells| &cells.queue_full),
            queue_client_full: total("trylist_queue_client_full", &|cells| &cells.queue_client_full),
            retries: total("trylist_retries", &|cells| &cells.retries),
            retries_denied: total("trylist_retries_denied", &|cells| &cells.retries_denied),
        }
    }

    /// The modules of a cluster: ID, counts, and whether it is in quarantine there.
    pub(crate) fn counted_modules(&self, cluster: usize) -> Vec<(Arc<str>, ModuleNumbers, bool)> {
        let before = Before(self.base.load_full());
        let names = &self.clusters[cluster];
        let subject = Subject::Cluster(&names.name);
        let module = |(idx, balancer): (usize, &super::BalancerLayout)| {
            let id = &*balancer.module;
            let of = |shard: &Shard, cell: &dyn Fn(&super::BalancerCells) -> u64| {
                cell(&shard.clusters[cluster].balancers[idx])
            };
            let sum = |cell: &dyn Fn(&super::BalancerCells) -> u64| {
                self.shards.iter().fold(0_u64, |sum, shard| sum.wrapping_add(of(shard, cell)))
            };
            let total = |family: &str, cell: &dyn Fn(&super::BalancerCells) -> u64| {
                sum(cell).wrapping_add(before.n(subject, family, [id]))
            };
            let named = |family: &'static str, here: &mut dyn Iterator<Item = (&'static str, u64)>| {
                let sum = |(name, n): (&'static str, u64)| {
                    let n = n.wrapping_add(before.n(subject, family, [id, name]));
                    (n > 0).then_some((Cow::Borrowed(name), n))
                };
                here.filter_map(sum).collect::<ByName>()
            };
            let calls = ModuleCall::TEXT.iter().enumerate();
            let mut calls = calls.map(|(idx, name)| (*name, sum(&|cells| cells.calls[idx].read())));
            let faults = ModuleFault::ALL.into_iter();
            let mut faults = faults.map(|fault| (fault.name(), (balancer.faults)(fault)));
            let time = (
                sum(&|cells| cells.time.sum_ns.read()),
                cells_sum(self, |shard| &shard.clusters[cluster].balancers[idx].time.buckets),
            );
            let key = SeriesKey::new("trylist_module_time", [id]);
            let numbers = ModuleNumbers {
                calls: named("trylist_module_calls", &mut calls),
                average_us: average_ns(time, before.times(subject, &key)).map(|ns| ns.round() / 1e3),
                thread_share: (self.module_share(cluster, idx) * 1e6).round() / 1e6,
                faults: named("trylist_module_faults", &mut faults),
                fallbacks: total("trylist_fallbacks", &|cells| cells.fallbacks.read()),
                declined: total("trylist_module_declined_answers", &|cells| cells.declined.read()),
                busy: total("trylist_module_busy_answers", &|cells| cells.busy.read()),
            };
            (Arc::clone(&balancer.module), numbers, (balancer.is_quarantined)())
        };
        names.balancers.iter().enumerate().map(module).collect()
    }

    fn sum_of(&self, cell: impl Fn(&Shard) -> &Cell) -> u64 {
        self.shards.iter().fold(0, |sum, shard| sum.wrapping_add(cell(shard).read()))
    }
}

fn server(before: &Before, subject: Subject<'_>, counts: &EndpointCounts) -> ServerNumbers {
    let named = |family: &str, texts: &[&'static str], counts: &[u64]| {
        before.by_name(subject, family, texts.iter().copied().zip(counts.iter().copied()))
    };
    let results = named("trylist_tries", &TRY_RESULTS, &counts.tries);
    let tries = results.values().sum();
    let time_ns = counts.time_ns.wrapping_add(before.n(subject, "trylist_try", []));
    ServerNumbers {
        tries,
        results,
        responses: named("trylist_try_responses", &STATUS_CLASSES, &counts.statuses),
        failures: named("trylist_try_failures", &FAILURES, &counts.failures),
        connections: named("trylist_upstream_connections", ConnectionOrigin::TEXT, &counts.connections),
        checks: named("trylist_health_checks", &["passed", "failed"], &counts.checks),
        ejections: counts.ejections.wrapping_add(before.n(subject, "trylist_endpoint_ejections", [])),
        average_ms: average_ns((time_ns, tries), (0, 0)).map(thousandths_of_ms),
    }
}

/// The class of a status, as the label `code` has it.
fn class_of(code: &str) -> &'static str {
    let class = code.bytes().next().filter(u8::is_ascii_digit).map(|digit| usize::from(digit - b'1'));
    match class.and_then(|class| STATUS_CLASSES.get(class)) {
        Some(class) => class,
        None if code == "none" => "none",
        None => "other",
    }
}

fn cells_sum<const N: usize>(metrics: &Metrics, cells: impl Fn(&Shard) -> &[Cell; N]) -> u64 {
    let of = |shard: &Arc<Shard>| cells(shard).iter().fold(0_u64, |sum, cell| sum.wrapping_add(cell.read()));
    metrics.shards.iter().map(of).fold(0, u64::wrapping_add)
}

/// Of sums of times with their numbers.
fn average_ns(here: (u64, u64), before: (u64, u64)) -> Option<f64> {
    let add = |a: fn((u64, u64)) -> u64| iter::once(a(here)).chain([a(before)]).fold(0, u64::wrapping_add);
    let (sum, n) = (add(|(sum, _)| sum), add(|(_, n)| n));
    (n > 0).then(|| sum as f64 / n as f64)
}

/// Milliseconds to three decimals.
fn thousandths_of_ms(ns: f64) -> f64 {
    (ns / 1e3).round() / 1e3
}
