//! The metrics as Prometheus reads them: one function for each group of families, each a sum over the shards.
//!
//! Series whose first increase an alert watches (outcomes, faults, results of tries) begin as zeros. Status codes and kinds
//! of failure appear with their first count, in this generation or an earlier one.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::iter;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::cells::{
    BalancerCells, Cell, ClusterCells, EndpointCounts, Histogram, ListenerCells, RequestCells,
};
use super::families::{HistogramValue, MetricSink, SeriesLabels, seconds};
use super::format::{Format, Text, Unit, label};
use super::labels::{
    CLIENT_CLASSES, ConnectionOrigin, FAILURES, ModuleCall, OUTCOMES, QueueEnd, STATES, STATUS_CLASSES,
    TRY_RESULTS,
};
use super::layout::{BalancerLayout, ClusterNames};
use super::members::{EndpointRow, MemberLife};
use super::totals::{GONE, Subject, Times, Totals};
use super::{Metrics, MetricsLayout, Shard};
use crate::cluster::endpoint::shown_weight;
use crate::cluster::health::HealthSource;
use crate::module::balancer::ModuleFault;
use crate::observe::sources::SourceStatus;
use crate::os::memory;

fn of_source(source: &SourceStatus) -> SeriesLabels<'_, 1> {
    Subject::Cluster(&source.cluster).with([label("source", &source.source)])
}

fn of_result<'a>(source: &'a SourceStatus, result: &'static str) -> SeriesLabels<'a, 2> {
    Subject::Cluster(&source.cluster).with([label("source", &source.source), label("result", result)])
}

/// Where a shard counts one module of a cluster.
#[derive(Clone, Copy)]
struct BalancerPlace {
    cluster: usize,
    idx: usize,
}

/// The endpoints of one cluster.
struct ClusterEndpoints<'a> {
    cluster: &'a str,
    rows: Vec<EndpointRow>,
}

impl BalancerPlace {
    fn of(self, shard: &Shard) -> &BalancerCells {
        &shard.clusters[self.cluster].balancers[self.idx]
    }
}

impl Metrics {
    /// All metrics as text, the base included. Both formats have the same series and values. Walks over all series of all
    /// threads.
    pub fn text(&self, format: Format) -> String {
        self.text_at(format, None, Instant::now())
    }

    /// The same with the series of this cluster alone; `None` where there is no cluster of this name.
    pub fn text_of(&self, cluster: &str, format: Format) -> Option<String> {
        let is_known = self.clusters.iter().any(|known| *known.name == *cluster);
        is_known.then(|| self.text_at(format, Some(cluster), Instant::now()))
    }

    pub(super) fn text_at(&self, format: Format, cluster: Option<&str>, now: Instant) -> String {
        let mut text = Text::new(format);
        let mut endpoints = self.endpoint_rows(cluster, now);
        let base = with_gone_of(self.base.load_full(), &mut endpoints);
        let mut out = MetricSink::Text(&mut text, base, cluster);
        self.walk(&mut out, &endpoints)
            .and_then(|()| if cluster.is_none() { process(&mut out) } else { Ok(()) })
            .expect("writing to a string cannot fail");
        text.finish()
    }

    /// Counters and histograms of this worker, without the base.
    pub fn totals(&self) -> Totals {
        self.totals_at(Instant::now())
    }

    pub(super) fn totals_at(&self, now: Instant) -> Totals {
        let mut totals = Totals::default();
        let endpoints = self.endpoint_rows(None, now);
        self.walk(&mut MetricSink::Totals(&mut totals), &endpoints)
            .expect("nothing is written that could fail");
        totals
    }

    /// The names of all families of counters and histograms, which are what totals are made of.
    pub fn counted_families() -> BTreeSet<Box<str>> {
        let layout = MetricsLayout { access_log: Some(Arc::default()), ..MetricsLayout::default() };
        let mut names = BTreeSet::new();
        let metrics = Self::new(&layout, 0);
        metrics.walk(&mut MetricSink::Names(&mut names), &[]).expect("nothing is written that could fail");
        names
    }

    fn walk(&self, out: &mut MetricSink<'_>, endpoints: &[ClusterEndpoints<'_>]) -> fmt::Result {
        self.worker(out)?;
        self.listeners(out)?;
        self.certificates(out)?;
        self.routes(out)?;
        self.requests(out)?;
        self.tries(out, endpoints)?;
        self.endpoints(out, endpoints)?;
        self.health(out, endpoints)?;
        self.modules(out)?;
        self.module_answers(out)?;
        self.queues(out)?;
        self.retries(out)?;
        self.sources(out)
    }

    /// Sources of servers. They are the supervisor's, and so in no total.
    fn sources(&self, out: &mut MetricSink<'_>) -> fmt::Result {
        let told = self.sources.load();
        let (MetricSink::Text(..), Some((sources, told_at))) = (&out, told.as_deref()) else { return Ok(()) };
        out.counter(
            "trylist_discovery_answers",
            None,
            "Answers of sources of servers: new ones, errors, and those without servers that were held back.",
            sources.iter().flat_map(|source| {
                let results = [("new", source.answers), ("error", source.errors), ("held", source.holds)];
                results.map(|(result, n)| (of_result(source, result), n))
            }),
        )?;
        let since = told_at.elapsed().as_secs();
        out.gauge(
            "trylist_discovery_age",
            Some(&Unit::Seconds),
            "Age of a source's last answer that was news.",
            sources.iter().filter_map(|source| Some((of_source(source), source.age_s? + since))),
        )?;
        out.gauge(
            "trylist_discovery_members",
            None,
            "Servers that a source's last answer names.",
            sources.iter().filter_map(|source| Some((of_source(source), source.members?))),
        )?;
        out.gauge(
            "trylist_discovery_held",
            None,
            "1 while an answer without servers is held back.",
            sources.iter().map(|source| (of_source(source), u32::from(source.held))),
        )?;
        out.gauge(
            "trylist_discovery_failing",
            None,
            "1 while a source cannot be asked, or says something that is refused.",
            sources.iter().map(|source| (of_source(source), u32::from(source.error.is_some()))),
        )
    }

    fn worker(&self, out: &mut MetricSink<'_>) -> fmt::Result {
        let abi = format!("{}.{}", lb_api::version::ABI_MAJOR, lb_api::version::ABI_MINOR);
        out.info(
            "trylist_build",
            "The running program and the module ABI that it provides.",
            [label("version", env!("CARGO_PKG_VERSION")), label("abi", abi.as_str())],
        )?;
        out.gauge(
            "trylist_start_time",
            Some(&Unit::Seconds),
            "Start time of this worker, in seconds since 1970.",
            [(Subject::Process.with([]), unix_seconds(self.started_at))],
        )?;
        out.gauge(
            "trylist_uptime",
            Some(&Unit::Seconds),
            "Time since this worker started.",
            [(Subject::Process.with([]), self.started.elapsed().as_secs_f64())],
        )?;
        out.gauge(
            "trylist_threads",
            None,
            "Threads that serve requests.",
            [(Subject::Process.with([]), self.shards.len() as u64)],
        )?;
        let growth = if out.is_text() { self.memory_growth() } else { None };
        if let Some(bytes) = growth {
            out.gauge(
                "trylist_memory_growth",
                Some(&Unit::Bytes),
                "Anonymous memory of this worker beyond that at the end of loading its modules: of the proxy and all modules.",
                [(Subject::Process.with([]), bytes)],
            )?;
        }
        let Some(lines) = &self.access_log else { return Ok(()) };
        out.counter(
            "trylist_access_log_lines",
            None,
            "Access log lines written.",
            [(Subject::Process.with([]), lines.written())],
        )?;
        out.counter(
            "trylist_access_log_dropped_lines",
            None,
            "Access log lines lost because writing was too slow or failed.",
            [(Subject::Process.with([]), lines.dropped())],
        )
    }

    fn listeners(&self, out: &mut MetricSink<'_>) -> fmt::Result {
        let each = |cell: fn(&ListenerCells) -> &Cell| {
            self.listeners.iter().enumerate().map(move |(idx, address)| {
                (Subject::Listener(address.as_str()).with([]), self.sum(|shard| cell(&shard.listeners[idx])))
            })
        };
        out.counter(
            "trylist_connections",
            None,
            "Client connections accepted.",
            each(|cells| &cells.opened),
        )?;
        // Closed is read before opened, so that the difference is never negative.
        let closed: Vec<u64> = each(|cells| &cells.closed).map(|(_, n)| n).collect();
        let open = each(|cells| &cells.opened)
            .zip(closed)
            .map(|((labels, opened), closed)| (labels, opened.saturating_sub(closed)));
        out.gauge("trylist_open_connections", None, "Open client connections.", open)?;
        out.counter(
            "trylist_accept_failures",
            None,
            "Client connections that could not be accepted, most likely for lack of file descriptors.",
            each(|cells| &cells.accept_failures),
        )?;
        out.counter(
            "trylist_listener_full",
            None,
            "Times that a listener stopped accepting at its connection limit.",
            each(|cells| &cells.full),
        )?;
        out.counter(
            "trylist_client_full",
            None,
            "Connections closed because their client was at its connection limit.",
            each(|cells| &cells.over_per_client),
        )?;
        out.counter(
            "trylist_bad_proxy_headers",
            None,
            "Connections closed because of a missing, invalid or late PROXY header.",
            each(|cells| &cells.bad_proxy_headers),
        )?;
        out.counter(
            "trylist_tls_handshake_failures",
            None,
            "TLS handshakes with clients that failed or timed out, including plain HTTP on a TLS port.",
            each(|cells| &cells.failed_handshakes),
        )
    }

    fn certificates(&self, out: &mut MetricSink<'_>) -> fmt::Result {
        out.gauge(
            "trylist_certificate_not_after",
            Some(&Unit::Seconds),
            "End of the validity of a listener's certificate, in seconds since 1970. The name is the first that it is for.",
            self.certificates.iter().map(|certificate| {
                let number = label("certificate", certificate.number.as_str());
                let listener = Subject::Listener(&self.listeners[certificate.listener]);
                (listener.with([number, label("name", &certificate.name)]), certificate.not_after_s)
            }),
        )
    }

    /// Requests by what they came over and where they went.
    fn routes(&self, out: &mut MetricSink<'_>) -> fmt::Result {
        let classes = || CLIENT_CLASSES.iter().enumerate();
        let listeners = self.listeners.iter().enumerate().flat_map(|(idx, address)| {
            classes().map(move |(class, text)| {
                let n = self.sum(|shard| &shard.listeners[idx].requests[class]);
                (Subject::Listener(address).with([label("class", text)]), n)
            })
        });
        out.rare_counter(
            "trylist_listener_requests",
            "Requests by listener and class of the status that the client got.",
            listeners,
        )?;
        let routes = self.routes.iter().enumerate().flat_map(|(idx, route)| {
            classes().map(move |(class, text)| {
                let n = self.sum(|shard| &shard.routes[idx].requests[class]);
                (Subject::Process.with([label("route", route.as_str()), label("class", text)]), n)
            })
        });
        out.rare_counter(
            "trylist_route_requests",
            "Requests by route and class of the status that the client got.",
            routes,
        )?;
        out.counter(
            "trylist_route_time",
            Some(&Unit::Seconds),
            "Total time of a route's requests; divide by trylist_route_requests_total for the average.",
            self.routes.iter().enumerate().map(|(idx, route)| {
                let labels = Subject::Process.with([label("route", route.as_str())]);
                (labels, self.sum(|shard| &shard.routes[idx].time_ns))
            }),
        )
    }

    fn requests(&self, out: &mut MetricSink<'_>) -> fmt::Result {
        let codes = self.routed().flat_map(|(name, cluster)| {
            self.codes.iter().enumerate().map(move |(slot, code)| {
                let n = self.sum(|shard| &shard.requests(cluster).codes[slot]);
                (Subject::Cluster(name).with([label("code", code.as_str())]), n)
            })
        });
        out.rare_counter(
            "trylist_requests",
            "Requests by the status that the client got. The cluster is empty where no route matched or the request was refused before.",
            codes,
        )?;
        let outcomes = self.clusters().flat_map(|(idx, cluster)| {
            OUTCOMES.iter().enumerate().map(move |(kind, outcome)| {
                let n = self.sum(|shard| &shard.clusters[idx].requests.outcomes[kind]);
                (Subject::Cluster(&cluster.name).with([label("outcome", outcome)]), n)
            })
        });
        out.counter("trylist_outcomes", None, "Requests by the outcome of their tries.", outcomes)?;
        out.histogram(
            "trylist_request_duration",
            "Request duration, from the end of the request's head to the end of the response.",
            self.routed().map(|(name, cluster)| {
                (Subject::Cluster(name).with([]), self.times(|shard| &shard.requests(cluster).duration))
            }),
        )?;
        out.histogram(
            "trylist_first_byte",
            "Time from the end of the request's head to the head of a server's response.",
            self.clusters().map(|(idx, cluster)| {
                (
                    Subject::Cluster(&cluster.name).with([]),
                    self.times(|shard| &shard.clusters[idx].requests.first_byte),
                )
            }),
        )?;
        let bytes = |cell: fn(&RequestCells) -> &Cell| {
            self.routed().map(move |(name, cluster)| {
                (Subject::Cluster(name).with([]), self.sum(|shard| cell(shard.requests(cluster))))
            })
        };
        let unit = Some(&Unit::Bytes);
        out.counter(
            "trylist_received",
            unit,
            "Bytes received from clients, heads included.",
            bytes(|cells| &cells.received_bytes),
        )?;
        out.counter(
            "trylist_sent",
            unit,
            "Bytes sent to clients, heads included.",
            bytes(|cells| &cells.sent_bytes),
        )
    }

    fn tries(&self, out: &mut MetricSink<'_>, endpoints: &[ClusterEndpoints<'_>]) -> fmt::Result {
        out.counter(
            "trylist_tries",
            None,
            "Tries by endpoint and result. Endpoint \"gone\" is the sum of servers that left the cluster.",
            by_kind(endpoints, "result", &TRY_RESULTS, |counts| &counts.tries),
        )?;
        out.rare_counter(
            "trylist_try_failures",
            "Tries without an established connection, by reason. Endpoint \"gone\" is the sum of servers that left.",
            by_kind(endpoints, "kind", &FAILURES, |counts| &counts.failures),
        )?;
        out.rare_counter(
            "trylist_try_responses",
            "Responses of an endpoint by status class, including those that were not passed on. Endpoint \"gone\" is the sum of servers that left.",
            by_kind(endpoints, "class", &STATUS_CLASSES, |counts| &counts.statuses),
        )?;
        out.counter(
            "trylist_try",
            Some(&Unit::Seconds),
            "Total time of tries; divide by trylist_tries_total for the average.",
            endpoint_series(endpoints).map(|(endpoint, row)| (endpoint.with([]), row.counts.time_ns)),
        )?;
        out.counter(
            "trylist_upstream_connections",
            None,
            "Connections that tries got: new, reused (keep-alive), or stale (reused, but closed by the server). Endpoint \"gone\" is the sum of servers that left.",
            by_kind(endpoints, "connection", ConnectionOrigin::TEXT, |counts| &counts.connections),
        )
    }

    fn endpoints(&self, out: &mut MetricSink<'_>, endpoints: &[ClusterEndpoints<'_>]) -> fmt::Result {
        let live = || member_series(endpoints).map(|(endpoint, life)| (endpoint, life.counters));
        out.gauge(
            "trylist_endpoint_in_flight",
            None,
            "Requests in flight to an endpoint.",
            live().map(|(endpoint, counters)| (endpoint.with([]), counters.in_flight.load(Relaxed))),
        )?;
        let states = live().flat_map(|(endpoint, counters)| {
            let now = counters.state.load(Relaxed) as usize;
            let each = STATES.iter().enumerate();
            each.map(move |(state, text)| (endpoint.with([label("state", text)]), u32::from(now == state)))
        });
        out.gauge(
            "trylist_endpoint_state",
            None,
            "State of an endpoint: 1 for the current state, 0 for the others.",
            states,
        )?;
        out.gauge(
            "trylist_endpoint_weight",
            None,
            "Current weight of an endpoint.",
            live().map(|(endpoint, counters)| {
                (endpoint.with([]), shown_weight(counters.effective_weight.load(Relaxed)))
            }),
        )?;
        out.gauge(
            "trylist_endpoint_latency",
            Some(&Unit::Seconds),
            "Smoothed time to the response headers of an endpoint; 0 while unknown.",
            live()
                .map(|(endpoint, counters)| (endpoint.with([]), seconds(counters.latency_ns.load(Relaxed)))),
        )
    }

    fn health(&self, out: &mut MetricSink<'_>, endpoints: &[ClusterEndpoints<'_>]) -> fmt::Result {
        out.gauge(
            "trylist_endpoint_unavailable",
            None,
            "1 while this source marks an endpoint as unavailable, independently of the other sources.",
            member_series(endpoints).flat_map(|(endpoint, life)| {
                HealthSource::ALL.into_iter().map(move |source| {
                    let labels = endpoint.with([label("source", source.name())]);
                    (labels, u32::from(life.health.holds(source)))
                })
            }),
        )?;
        out.counter(
            "trylist_endpoint_ejections",
            None,
            "Ejections of an endpoint because of its traffic (outlier detection). Endpoint \"gone\" is the sum of servers that left.",
            endpoint_series(endpoints).map(|(endpoint, row)| (endpoint.with([]), row.counts.ejections)),
        )?;
        out.counter(
            "trylist_health_checks",
            None,
            "Active health checks of an endpoint by result. Endpoint \"gone\" is the sum of servers that left.",
            endpoint_series(endpoints).flat_map(|(endpoint, row)| {
                let [passed, failed] = row.counts.checks;
                let labels = move |result| endpoint.with([label("result", result)]);
                let results = [(labels("passed"), passed), (labels("failed"), failed)];
                results.into_iter().filter(move |_| passed + failed > 0)
            }),
        )?;
        out.gauge(
            "trylist_cluster_panic",
            None,
            "1 while a cluster is in panic: too few endpoints are available, so all but drained ones get requests.",
            self.clusters()
                .map(|(_, cluster)| (Subject::Cluster(&cluster.name).with([]), u32::from((cluster.panics)()))),
        )?;
        out.gauge(
            "trylist_cluster_servers_refused",
            None,
            "1 while a change of a cluster's servers is refused: those of before serve, or the host chooses among the new ones.",
            self.clusters()
                .map(|(_, cluster)| (Subject::Cluster(&cluster.name).with([]), u32::from((cluster.is_refused)()))),
        )
    }

    fn modules(&self, out: &mut MetricSink<'_>) -> fmt::Result {
        out.counter(
            "trylist_module_calls",
            None,
            "Calls into a cluster's modules.",
            self.balancers().flat_map(|(name, balancer, place)| {
                ModuleCall::TEXT.iter().enumerate().map(move |(call, text)| {
                    let n = self.sum(|shard| &place.of(shard).calls[call]);
                    (Subject::Cluster(name).with([label("module", &balancer.module), label("call", text)]), n)
                })
            }),
        )?;
        out.counter(
            "trylist_module_faults",
            None,
            "Faults of a module by kind.",
            self.balancers().flat_map(|(name, balancer, _)| {
                ModuleFault::ALL.into_iter().map(move |fault| {
                    let labels = Subject::Cluster(name)
                        .with([label("module", &balancer.module), label("fault", fault.name())]);
                    (labels, (balancer.faults)(fault))
                })
            }),
        )?;
        out.gauge(
            "trylist_balancer_quarantined",
            None,
            "1 while a module is in quarantine after too many faults: the host chooses endpoints until the next reload.",
            self.balancers().map(|(name, balancer, _)| {
                let labels = Subject::Cluster(name).with([label("module", &balancer.module)]);
                (labels, u32::from((balancer.is_quarantined)()))
            }),
        )
    }

    /// Answers of modules and their time.
    fn module_answers(&self, out: &mut MetricSink<'_>) -> fmt::Result {
        let single = |cell: fn(&BalancerCells) -> &Cell| {
            self.balancers().map(move |(name, balancer, place)| {
                let labels = Subject::Cluster(name).with([label("module", &balancer.module)]);
                (labels, self.sum(|shard| cell(place.of(shard))))
            })
        };
        out.histogram(
            "trylist_module_time",
            "Time of a request in its calls into the module, for a sample of the requests.",
            self.balancers().map(|(name, balancer, place)| {
                let labels = Subject::Cluster(name).with([label("module", &balancer.module)]);
                (labels, self.times(|shard| &place.of(shard).time))
            }),
        )?;
        out.gauge(
            "trylist_module_thread_share",
            None,
            "Part of the time of all threads that serve which passed in calls into the module, over the last 10 s, 0 to 1.",
            self.balancers().map(|(name, balancer, place)| {
                let labels = Subject::Cluster(name).with([label("module", &balancer.module)]);
                (labels, self.module_share(place.cluster, place.idx))
            }),
        )?;
        out.counter(
            "trylist_module_declined_answers",
            None,
            "Answers of a module with an endpoint that was unavailable or full; not a fault.",
            single(|cells| &cells.declined),
        )?;
        out.counter(
            "trylist_module_busy_answers",
            None,
            "Answers of a module that all endpoints are full.",
            single(|cells| &cells.busy),
        )?;
        out.counter(
            "trylist_fallbacks",
            None,
            "Endpoints that the host chose instead of the module, because of a fault or a quarantine.",
            single(|cells| &cells.fallbacks),
        )
    }

    fn queues(&self, out: &mut MetricSink<'_>) -> fmt::Result {
        let left = |idx: usize| {
            (0..QueueEnd::N).map(|end| self.sum(|shard| &shard.clusters[idx].queue_left[end])).sum::<u64>()
        };
        out.gauge(
            "trylist_queue_length",
            None,
            "Requests that wait in the queue.",
            self.clusters().map(|(idx, cluster)| {
                let left = left(idx);
                let entered = self.sum(|shard| &shard.clusters[idx].queue_entered);
                (Subject::Cluster(&cluster.name).with([]), entered.saturating_sub(left))
            }),
        )?;
        out.counter(
            "trylist_queue_waits",
            None,
            "Requests that left the queue, by reason.",
            self.clusters().flat_map(|(idx, cluster)| {
                QueueEnd::TEXT.iter().enumerate().map(move |(end, text)| {
                    let n = self.sum(|shard| &shard.clusters[idx].queue_left[end]);
                    (Subject::Cluster(&cluster.name).with([label("end", text)]), n)
                })
            }),
        )?;
        out.counter(
            "trylist_queue_wait",
            Some(&Unit::Seconds),
            "Total time of requests in the queue.",
            self.clusters().map(|(idx, cluster)| {
                (
                    Subject::Cluster(&cluster.name).with([]),
                    self.sum(|shard| &shard.clusters[idx].queue_time_ns),
                )
            }),
        )?;
        out.counter(
            "trylist_queue_full",
            None,
            "Requests refused because the cluster's queue was full.",
            self.by_cluster(|cells| &cells.queue_full),
        )?;
        out.counter(
            "trylist_queue_client_full",
            None,
            "Requests refused because queue_per_client requests of their client waited.",
            self.by_cluster(|cells| &cells.queue_client_full),
        )
    }

    fn retries(&self, out: &mut MetricSink<'_>) -> fmt::Result {
        out.counter(
            "trylist_retries",
            None,
            "Retries under the route's retry policy.",
            self.by_cluster(|cells| &cells.retries),
        )?;
        out.counter(
            "trylist_retries_denied",
            None,
            "Retries that were not made because the retry budget was exhausted.",
            self.by_cluster(|cells| &cells.retries_denied),
        )?;
        out.counter(
            "trylist_overloaded",
            None,
            "Requests refused because the cluster was at its max_requests.",
            self.by_cluster(|cells| &cells.overloaded),
        )?;
        out.counter(
            "trylist_tunnels",
            None,
            "Connections that switched protocols (Upgrade).",
            self.by_cluster(|cells| &cells.tunnels_opened),
        )?;
        let closed: Vec<u64> = self.by_cluster(|cells| &cells.tunnels_closed).map(|(_, n)| n).collect();
        let open = self.by_cluster(|cells| &cells.tunnels_opened);
        let open = open.zip(closed).map(|((labels, n), closed)| (labels, n.saturating_sub(closed)));
        out.gauge("trylist_open_tunnels", None, "Connections that switched protocols and are open.", open)
    }

    /// One counter of each cluster.
    fn by_cluster(
        &self,
        cell: fn(&ClusterCells) -> &Cell,
    ) -> impl Iterator<Item = (SeriesLabels<'_, 0>, u64)> {
        self.clusters().map(move |(idx, cluster)| {
            (Subject::Cluster(&cluster.name).with([]), self.sum(|shard| cell(&shard.clusters[idx])))
        })
    }

    fn clusters(&self) -> impl Iterator<Item = (usize, &ClusterNames)> {
        self.clusters.iter().enumerate()
    }

    /// Modules of all clusters: cluster's name, module, place in a shard.
    fn balancers(&self) -> impl Iterator<Item = (&str, &BalancerLayout, BalancerPlace)> {
        self.clusters().flat_map(|(cluster_idx, cluster)| {
            cluster.balancers.iter().enumerate().map(move |(idx, balancer)| {
                (&*cluster.name, balancer, BalancerPlace { cluster: cluster_idx, idx })
            })
        })
    }

    /// All clusters, after an unnamed one for requests that were not routed.
    fn routed(&self) -> impl Iterator<Item = (&str, Option<usize>)> {
        iter::once(("", None)).chain(self.clusters().map(|(idx, cluster)| (&*cluster.name, Some(idx))))
    }

    /// The endpoints of each cluster, as they are now.
    fn endpoint_rows(&self, only: Option<&str>, now: Instant) -> Vec<ClusterEndpoints<'_>> {
        let rows = |(idx, names): (usize, &ClusterNames)| {
            names.members.load().rows(now, |place| self.counted_at(idx, place))
        };
        self.clusters()
            .filter(|(_, names)| only.is_none_or(|only| *names.name == *only))
            .map(|cluster| ClusterEndpoints { cluster: &cluster.1.name, rows: rows(cluster) })
            .collect()
    }

    /// Anonymous memory of this process beyond that at the end of loading.
    pub(crate) fn memory_growth(&self) -> Option<u64> {
        Some(memory::anonymous_bytes()?.saturating_sub(self.loaded_bytes?))
    }

    /// Client connections that are open now.
    pub fn open_connections(&self) -> u64 {
        let all = |cell: fn(&ListenerCells) -> &Cell| -> u64 {
            (0..self.listeners.len()).map(|idx| self.sum(|shard| cell(&shard.listeners[idx]))).sum()
        };
        let closed = all(|cells| &cells.closed);
        all(|cells| &cells.opened).saturating_sub(closed)
    }

    fn sum(&self, cell: impl Fn(&Shard) -> &Cell) -> u64 {
        // Cells wrap, too.
        self.shards.iter().fold(0, |sum, shard| sum.wrapping_add(cell(shard).read()))
    }

    fn times<const FIRST_NS: u64, const N: usize>(
        &self,
        histogram: impl Fn(&Shard) -> &Histogram<FIRST_NS, N>,
    ) -> HistogramValue {
        HistogramValue {
            times: Times {
                sum_ns: self.sum(|shard| &histogram(shard).sum_ns),
                buckets: (0..N).map(|idx| self.sum(|shard| &histogram(shard).buckets[idx])).collect(),
            },
            bound: |idx| if idx >= N - 1 { f64::INFINITY } else { seconds(FIRST_NS << idx) },
        }
    }
}

impl Shard {
    fn requests(&self, cluster: Option<usize>) -> &RequestCells {
        cluster.map_or(&self.unrouted, |idx| &self.clusters[idx].requests)
    }
}

/// The numbers of each endpoint.
fn endpoint_series<'a>(
    endpoints: &'a [ClusterEndpoints<'_>],
) -> impl Iterator<Item = (Subject<'a>, &'a EndpointRow)> {
    endpoints.iter().flat_map(|ClusterEndpoints { cluster, rows }| {
        rows.iter().map(move |row| (Subject::Endpoint(cluster, &row.label), row))
    })
}

/// The same of those that are members.
fn member_series<'a>(
    endpoints: &'a [ClusterEndpoints<'_>],
) -> impl Iterator<Item = (Subject<'a>, &'a MemberLife)> {
    endpoint_series(endpoints).filter_map(|(endpoint, row)| Some((endpoint, row.life.as_deref()?)))
}

/// The counts of other generations, as they are shown with these endpoints. Other endpoints count as gone, and get a row for that.
fn with_gone_of(mut base: Arc<Totals>, endpoints: &mut [ClusterEndpoints<'_>]) -> Arc<Totals> {
    let names = |of: &ClusterEndpoints<'_>| of.rows.iter().map(|row| Arc::clone(&row.label)).collect();
    let there: HashMap<&str, HashSet<Arc<str>>> =
        endpoints.iter().map(|of| (of.cluster, names(of))).collect();
    let is_gone = |cluster: &str, endpoint: &str| {
        endpoint != GONE && there.get(cluster).is_some_and(|there| !there.contains(endpoint))
    };
    if base.endpoints().any(|(cluster, endpoint)| is_gone(cluster, endpoint)) {
        Arc::make_mut(&mut base).move_where(is_gone);
    }
    for ClusterEndpoints { cluster, rows } in endpoints {
        let counts = base.counts(Subject::Endpoint(cluster, GONE));
        if counts.is_some() && !rows.iter().any(EndpointRow::is_gone) {
            rows.push(EndpointRow::gone(EndpointCounts::default()));
        }
    }
    base
}

fn by_kind<'a, const N: usize>(
    endpoints: &'a [ClusterEndpoints<'_>],
    name: &'static str,
    texts: &'static [&'static str],
    counts: fn(&EndpointCounts) -> &[u64; N],
) -> impl Iterator<Item = (SeriesLabels<'a, 1>, u64)> {
    endpoint_series(endpoints).flat_map(move |(endpoint, row)| {
        let each = texts.iter().zip(counts(&row.counts));
        each.map(move |(text, n)| (endpoint.with([label(name, text)]), *n))
    })
}

/// Metrics of the process under their standard names, which common dashboards use.
fn process(out: &mut MetricSink<'_>) -> fmt::Result {
    let cpu = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let cpu = cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9;
    out.process_seconds("process_cpu", "CPU time of this process.", cpu)?;
    if let Some(bytes) = resident_bytes() {
        out.gauge(
            "process_resident_memory",
            Some(&Unit::Bytes),
            "Resident memory of this process.",
            [(Subject::Process.with([]), bytes)],
        )?;
    }
    if let Ok(descriptors) = std::fs::read_dir("/proc/self/fd") {
        out.gauge(
            "process_open_fds",
            None,
            "Open file descriptors.",
            [(Subject::Process.with([]), descriptors.count() as u64)],
        )?;
    }
    if let Some(limit) = rustix::process::getrlimit(rustix::process::Resource::Nofile).current {
        out.gauge(
            "process_max_fds",
            None,
            "Maximum number of open file descriptors.",
            [(Subject::Process.with([]), limit)],
        )?;
    }
    Ok(())
}

fn resident_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

fn unix_seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs_f64()
}
