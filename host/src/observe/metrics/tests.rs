//! Sums over shards, and the buckets that times fall into.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::time::Duration;

use super::cells::Latency;
use super::members::{MOST_LEFT, STAY};
use super::totals::{SeriesKey, Subject};
use super::*;
use crate::cluster::health::HealthSource;
use crate::module::balancer::ModuleFault;

#[test]
fn sums_the_shards_of_all_threads() {
    let metrics = Metrics::new(&layout(), 3);
    for thread in 0..3 {
        let shard = metrics.shard(thread);
        std::thread::spawn(move || {
            for _ in 0..=thread {
                shard.try_ended(0, 1, &ended(wire::TRY_SERVED, None, 500_000_000));
                shard.module_call(0, 0, ModuleCall::Next);
            }
        })
        .join()
        .expect("the thread counts");
    }
    let text = metrics.text(Format::OpenMetrics);
    let endpoint = r#"cluster="api",endpoint="http://b""#;
    assert_eq!(value(&text, &format!("trylist_tries_total{{{endpoint},result=\"served\"}}")), "6");
    assert_eq!(value(&text, &format!("trylist_try_seconds_total{{{endpoint}}}")), "3.0");
    let call = r#"trylist_module_calls_total{cluster="api",module="round_robin",call="next"}"#;
    assert_eq!(value(&text, call), "6");
}

#[test]
fn a_module_for_requests_without_a_key_has_series_of_its_own() {
    let (metrics, shard) = one_thread();
    for (module, n) in [(0, 2), (1, 1)] {
        for _ in 0..n {
            shard.module_call(0, module, ModuleCall::Next);
            shard.module_time(0, module, 1_000, 4);
            shard.declined(0, module);
            shard.busy(0, module);
            shard.fallback(0, module);
        }
    }
    let text = metrics.text(Format::OpenMetrics);
    for (module, n) in [("round_robin", "2"), ("random", "1")] {
        let labels = format!("cluster=\"api\",module=\"{module}\"");
        let calls = format!("trylist_module_calls_total{{{labels},call=\"next\"}}");
        assert_eq!(value(&text, &calls), n);
        for family in [
            "trylist_module_time_seconds_count",
            "trylist_module_declined_answers_total",
            "trylist_module_busy_answers_total",
            "trylist_fallbacks_total",
        ] {
            assert_eq!(value(&text, &format!("{family}{{{labels}}}")), n, "{family}");
        }
    }
}

#[test]
fn counts_a_request_in_every_family_that_speaks_of_it() {
    let (metrics, shard) = one_thread();
    shard.request(&EndedRequest {
        listener: 0,
        route: None,
        cluster: Some(0),
        outcome: wire::OUTCOME_SERVED,
        status: 200,
        duration_ns: 150_000,
        first_byte_ns: Some(100_000),
        received_bytes: 80,
        sent_bytes: 1_000,
    });
    let text = metrics.text(Format::OpenMetrics);
    assert_eq!(value(&text, r#"trylist_requests_total{cluster="api",code="200"}"#), "1");
    assert_eq!(value(&text, r#"trylist_outcomes_total{cluster="api",outcome="served"}"#), "1");
    assert_eq!(value(&text, r#"trylist_request_duration_seconds_count{cluster="api"}"#), "1");
    assert_eq!(value(&text, r#"trylist_request_duration_seconds_sum{cluster="api"}"#), "0.00015");
    assert_eq!(value(&text, r#"trylist_request_duration_seconds_bucket{le="0.0001",cluster="api"}"#), "0");
    assert_eq!(value(&text, r#"trylist_request_duration_seconds_bucket{le="0.0002",cluster="api"}"#), "1");
    assert_eq!(value(&text, r#"trylist_first_byte_seconds_bucket{le="0.0001",cluster="api"}"#), "1");
    assert_eq!(value(&text, r#"trylist_received_bytes_total{cluster="api"}"#), "80");
    assert_eq!(value(&text, r#"trylist_sent_bytes_total{cluster="api"}"#), "1000");
}

#[test]
fn requests_without_a_cluster_and_odd_statuses_have_a_series() {
    let (metrics, shard) = one_thread();
    for (status, code) in [(404, "404"), (0, "none"), (218, "2xx"), (999, "other"), (20, "other")] {
        let label = format!(r#"trylist_requests_total{{cluster="",code="{code}"}}"#);
        let before = metrics
            .text(Format::OpenMetrics)
            .lines()
            .find_map(|line| line.strip_prefix(&label)?.trim().parse().ok());
        shard.request(&EndedRequest { status, ..EndedRequest::default() });
        assert_eq!(
            value(&metrics.text(Format::OpenMetrics), &label),
            (before.unwrap_or(0) + 1).to_string(),
            "{status}"
        );
    }
}

#[test]
fn puts_times_into_the_bucket_whose_bound_they_do_not_exceed() {
    let cases = [(0, 0), (50_000, 0), (50_001, 1), (100_000, 1), (100_001, 2), (52_428_800_000, 20)];
    for (ns, bucket) in cases.into_iter().chain([(52_428_800_001, 21), (u64::MAX, 21)]) {
        let histogram = Latency::default();
        histogram.add(ns);
        let at = histogram.buckets.iter().position(|cell| cell.read() == 1);
        assert_eq!(at, Some(bucket), "{ns}");
    }
}

#[test]
fn unknown_kinds_are_read_as_the_wire_says() {
    assert_eq!(try_result(wire::TRY_ABORTED), "aborted");
    assert_eq!(try_result(99), "bad_response");
    assert_eq!(failure(wire::FAILURE_LOCAL), "local");
    assert_eq!(failure(0), "connect");
    assert_eq!(outcome(wire::OUTCOME_NO_ENDPOINT), "no_endpoint");
    assert_eq!(outcome(7), "failed");
}

#[test]
fn responses_of_tries_are_counted_by_the_class_of_their_status() {
    let (metrics, shard) = one_thread();
    for status in [101, 200, 204, 302, 404, 500, 503, 599, 600, 999, 0, 99] {
        shard.try_ended(0, 0, &EndedTry { result: wire::TRY_SERVED, status, ..EndedTry::default() });
    }
    let text = metrics.text(Format::OpenMetrics);
    let labels = r#"cluster="api",endpoint="http://a""#;
    for (class, n) in [("1xx", "1"), ("2xx", "2"), ("3xx", "1"), ("4xx", "1"), ("5xx", "3"), ("other", "3")] {
        assert_eq!(value(&text, &format!("trylist_try_responses_total{{{labels},class=\"{class}\"}}")), n);
    }
    assert_eq!(value(&text, &format!("trylist_tries_total{{{labels},result=\"served\"}}")), "12");
}

#[test]
fn two_servers_of_one_url_are_two_series() {
    let mut layout = layout();
    layout.clusters[0].endpoints[1].url = "http://a".into();
    let metrics = Metrics::new(&layout, 1);
    metrics.shard(0).try_ended(0, 1, &ended(wire::TRY_NOT_ESTABLISHED, Some(wire::FAILURE_RESOLVE), 1));
    let text = metrics.text(Format::OpenMetrics);
    let labels = r#"cluster="api",endpoint="http://a #2""#;
    assert_eq!(value(&text, &format!("trylist_tries_total{{{labels},result=\"not_established\"}}")), "1");
    assert_eq!(value(&text, &format!("trylist_try_failures_total{{{labels},kind=\"resolve\"}}")), "1");
}

#[test]
fn says_of_each_source_what_it_says() {
    let layout = layout();
    let metrics = Metrics::new(&layout, 1);
    let health = &layout.clusters[0].endpoints[0].health;
    health.set(HealthSource::Drain);
    health.set(HealthSource::Check);
    let text = metrics.text(Format::OpenMetrics);
    for (source, holds) in [("drain", "1"), ("check", "1"), ("ejection", "0")] {
        let labels = format!(r#"cluster="api",endpoint="http://a",source="{source}""#);
        assert_eq!(value(&text, &format!("trylist_endpoint_unavailable{{{labels}}}")), holds);
    }
    let labels = r#"cluster="api",endpoint="http://a""#;
    assert_eq!(value(&text, &format!("trylist_endpoint_ejections_total{{{labels}}}")), "0");
    assert_eq!(value(&text, r#"trylist_cluster_panic{cluster="api"}"#), "1");
    assert!(!text.contains("trylist_health_checks_total{"), "there were none");
}

#[test]
fn reads_the_live_numbers_of_endpoints_at_each_scrape() {
    let layout = layout();
    let metrics = Metrics::new(&layout, 1);
    let counters = layout.clusters[0].endpoints[0].counters;
    counters.in_flight.store(7, Relaxed);
    counters.state.store(wire::STATE_DRAINING, Relaxed);
    let text = metrics.text(Format::OpenMetrics);
    let labels = r#"cluster="api",endpoint="http://a""#;
    assert_eq!(value(&text, &format!("trylist_endpoint_in_flight{{{labels}}}")), "7");
    assert_eq!(value(&text, &format!("trylist_endpoint_state{{{labels},state=\"available\"}}")), "0");
    assert_eq!(value(&text, &format!("trylist_endpoint_state{{{labels},state=\"draining\"}}")), "1");
    assert_eq!(value(&text, &format!("trylist_endpoint_weight{{{labels}}}")), "1.5");
}

#[test]
fn faults_are_those_that_the_balancer_counted() {
    let text = one_thread().0.text(Format::OpenMetrics);
    let labels = r#"cluster="api",module="round_robin""#;
    assert_eq!(value(&text, &format!("trylist_module_faults_total{{{labels},fault=\"out_of_range\"}}")), "3");
    assert_eq!(value(&text, &format!("trylist_module_faults_total{{{labels},fault=\"panic\"}}")), "0");
}

#[test]
fn a_balancer_in_quarantine_is_shown() {
    let mut layout = layout();
    let labels = r#"cluster="api",module="round_robin""#;
    for (is_in, expected) in [(false, "0"), (true, "1")] {
        layout.clusters[0].balancers[0].is_quarantined = Arc::new(move || is_in);
        let text = Metrics::new(&layout, 1).text(Format::OpenMetrics);
        assert_eq!(value(&text, &format!("trylist_balancer_quarantined{{{labels}}}")), expected);
    }
}

#[test]
fn gauges_are_what_came_less_what_went() {
    let (metrics, shard) = one_thread();
    shard.connection_opened(0);
    shard.connection_opened(0);
    shard.connection_closed(0);
    shard.queue_entered(0);
    shard.queue_entered(0);
    shard.queue_left(0, QueueEnd::TimedOut, 2_000_000_000);
    let text = metrics.text(Format::OpenMetrics);
    assert_eq!(value(&text, r#"trylist_connections_total{listener="127.0.0.1:80"}"#), "2");
    assert_eq!(value(&text, r#"trylist_open_connections{listener="127.0.0.1:80"}"#), "1");
    assert_eq!(value(&text, r#"trylist_queue_length{cluster="api"}"#), "1");
    assert_eq!(value(&text, r#"trylist_queue_waits_total{cluster="api",end="timed_out"}"#), "1");
    assert_eq!(value(&text, r#"trylist_queue_wait_seconds_total{cluster="api"}"#), "2.0");
}

#[test]
fn what_earlier_generations_counted_is_part_of_every_sum() {
    let (older, shard) = one_thread();
    let request = EndedRequest {
        listener: 0,
        route: Some(0),
        cluster: Some(0),
        outcome: wire::OUTCOME_SERVED,
        status: 200,
        duration_ns: 150_000,
        first_byte_ns: Some(100_000),
        received_bytes: 80,
        sent_bytes: 1_000,
    };
    shard.connection_opened(0);
    shard.request(&request);
    shard.request(&EndedRequest { status: 404, ..EndedRequest::default() });
    shard.try_ended(0, 1, &ended(wire::TRY_NOT_ESTABLISHED, Some(wire::FAILURE_TLS), 250_000_000));
    let (newer, shard) = one_thread();
    newer.set_base(older.totals());
    shard.connection_opened(0);
    shard.request(&request);
    shard.try_ended(0, 1, &ended(wire::TRY_SERVED, None, 250_000_000));
    let text = newer.text(Format::OpenMetrics);
    for (series, expected) in [
        (r#"trylist_connections_total{listener="127.0.0.1:80"}"#, "2"),
        (r#"trylist_requests_total{cluster="api",code="200"}"#, "2"),
        (r#"trylist_route_requests_total{route="/",class="2xx"}"#, "2"),
        (r#"trylist_listener_requests_total{listener="127.0.0.1:80",class="2xx"}"#, "2"),
        (r#"trylist_listener_requests_total{listener="127.0.0.1:80",class="4xx"}"#, "1"),
        (
            r#"trylist_certificate_not_after_seconds{listener="127.0.0.1:80",certificate="0",name="a.test"}"#,
            "1500000000.0",
        ),
        (r#"trylist_requests_total{cluster="",code="404"}"#, "1"),
        (r#"trylist_outcomes_total{cluster="api",outcome="served"}"#, "2"),
        (r#"trylist_request_duration_seconds_count{cluster="api"}"#, "2"),
        (r#"trylist_request_duration_seconds_sum{cluster="api"}"#, "0.0003"),
        (r#"trylist_request_duration_seconds_bucket{le="0.0001",cluster="api"}"#, "0"),
        (r#"trylist_request_duration_seconds_bucket{le="0.0002",cluster="api"}"#, "2"),
        (r#"trylist_request_duration_seconds_bucket{le="+Inf",cluster="api"}"#, "2"),
        (r#"trylist_received_bytes_total{cluster="api"}"#, "160"),
        (r#"trylist_try_seconds_total{cluster="api",endpoint="http://b"}"#, "0.5"),
        (r#"trylist_try_failures_total{cluster="api",endpoint="http://b",kind="tls"}"#, "1"),
        (r#"trylist_module_faults_total{cluster="api",module="round_robin",fault="out_of_range"}"#, "6"),
    ] {
        assert_eq!(value(&text, series), expected, "{series}");
    }
    // Gauges are this worker's alone.
    assert_eq!(value(&text, r#"trylist_open_connections{listener="127.0.0.1:80"}"#), "1");
    let own = newer.totals();
    assert_eq!(counters(&own, "trylist_connections"), [(Subject::Listener("127.0.0.1:80"), "", 1)]);
}

#[test]
fn a_new_base_takes_the_place_of_the_last() {
    let (older, shard) = one_thread();
    let (newer, _) = one_thread();
    for expected in ["1", "2"] {
        shard.connection_opened(0);
        newer.set_base(older.totals());
        let series = r#"trylist_connections_total{listener="127.0.0.1:80"}"#;
        assert_eq!(value(&newer.text(Format::OpenMetrics), series), expected);
    }
}

#[test]
fn what_is_no_longer_configured_vanishes_and_comes_back() {
    let (older, shard) = one_thread();
    shard.request(&EndedRequest { cluster: Some(0), status: 200, ..EndedRequest::default() });
    shard.try_ended(0, 0, &ended(wire::TRY_SERVED, None, 1));
    shard.try_ended(0, 1, &ended(wire::TRY_SERVED, None, 1));
    let mut renamed = layout();
    renamed.clusters[0].name = "web".into();
    let mut smaller = layout();
    smaller.clusters[0].endpoints.pop();
    let base = Arc::new(older.totals());
    for (layout, has_cluster, has_endpoint) in
        [(renamed, false, false), (smaller, true, false), (layout(), true, true)]
    {
        let metrics = Metrics::new(&layout, 1);
        metrics.set_base(Arc::clone(&base));
        let text = metrics.text(Format::OpenMetrics);
        assert_eq!(text.contains(r#"cluster="api",code="200""#), has_cluster);
        assert_eq!(text.contains(r#"cluster="api",endpoint="http://b""#), has_endpoint);
        // The sum of a cluster that is there has it all the same.
        let gone = r#"trylist_tries_total{cluster="api",endpoint="gone",result="served"} 1"#;
        assert_eq!(text.contains(gone), has_cluster && !has_endpoint, "{text}");
    }
}

/// As a float, the counts here would be rounded to an even number.
#[test]
fn totals_are_exact_through_serde_and_sums() {
    const MANY: u64 = (1 << 53) + 1;
    let mut layout = layout();
    layout.clusters[0].name = "a\"b\\\n".into();
    let metrics = Metrics::new(&layout, 1);
    let shard = metrics.shard(0);
    shard.request(&EndedRequest {
        cluster: Some(0),
        duration_ns: MANY,
        received_bytes: MANY,
        ..EndedRequest::default()
    });
    shard.try_ended(0, 0, &ended(wire::TRY_SERVED, None, MANY));
    let own = metrics.totals();
    let bytes = postcard::to_stdvec(&own).expect("plain data");
    let mut sum: Totals = postcard::from_bytes(&bytes).expect("the totals that were written");
    assert_eq!(sum, own);
    sum.add(&own);
    metrics.set_base(sum);
    let text = metrics.text(Format::OpenMetrics);
    let cluster = r#"cluster="a\"b\\\n""#;
    let total = (3 * MANY).to_string();
    assert_eq!(value(&text, &format!("trylist_received_bytes_total{{{cluster}}}")), total);
    assert_eq!(value(&text, &format!("trylist_request_duration_seconds_count{{{cluster}}}")), "3");
    let durations = own.counts(Subject::Cluster("a\"b\\\n")).expect("it has counts");
    let durations = durations.histogram(&SeriesKey::new("trylist_request_duration", []));
    assert_eq!(durations.map(|times| times.sum_ns), Some(MANY));
}

#[test]
fn totals_hold_what_happened_and_which_endpoints_there_are_but_no_gauges() {
    let mut layout = layout();
    layout.clusters[0].balancers[0].faults = Arc::new(|_| 0);
    let metrics = Metrics::new(&layout, 1);
    let names = metrics.totals();
    let endpoints = [Subject::Endpoint("api", "http://a"), Subject::Endpoint("api", "http://b")];
    let named = names.subjects().map(|(subject, _)| subject);
    assert!(named.eq([Subject::Process, Subject::Cluster("api")].into_iter().chain(endpoints)));
    assert_eq!(names.n_series(), 3, "a cluster and two endpoints: {names:?}");
    metrics.shard(0).connection_opened(0);
    metrics.shard(0).queue_entered(0);
    let mut sum = Totals::default();
    sum.add(&metrics.totals());
    assert_eq!(sum, metrics.totals());
    assert_eq!(counters(&sum, "trylist_connections").len(), 1);
    assert_eq!(counters(&sum, "trylist_queue_length"), []);
}

#[test]
fn names_cannot_break_out_of_their_label() {
    let mut layout = layout();
    layout.clusters[0].name = "a\"} 1\nx\\".into();
    let metrics = Metrics::new(&layout, 1);
    assert_eq!(
        value(&metrics.text(Format::OpenMetrics), r#"trylist_queue_length{cluster="a\"} 1\nx\\"}"#),
        "0"
    );
}

/// Every line is a comment or a sample of the family before it, no series comes twice, and it ends as it must.
#[test]
fn the_text_is_well_formed() {
    let metrics = one_thread().0;
    let texts = [metrics.text(Format::OpenMetrics), metrics.text(Format::Prometheus)];
    let without_end = texts[0].strip_suffix("# EOF\n").expect("the end is marked");
    for text in [without_end, &texts[1]] {
        let (mut families, mut series) = (std::collections::HashSet::new(), std::collections::HashSet::new());
        let mut family = "";
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                family = rest.split(' ').next().expect("a name");
                assert!(families.insert(family), "{family} comes twice");
            } else if !line.starts_with("# ") {
                let (name_and_labels, value) = line.rsplit_once(' ').expect("a value");
                assert!(series.insert(name_and_labels), "{name_and_labels} comes twice");
                assert!(name_and_labels.starts_with(family), "{line} is not of {family}");
                assert!(value.parse::<f64>().is_ok(), "{line}");
            }
        }
        assert!(families.contains("process_resident_memory_bytes"), "{families:?}");
    }
    assert!(!texts[1].contains("# EOF") && !texts[1].contains("# UNIT"), "they are OpenMetrics' alone");
}

#[test]
fn both_formats_have_the_same_series_with_the_same_values() {
    let (metrics, shard) = one_thread();
    shard.request(&EndedRequest {
        cluster: Some(0),
        status: 200,
        duration_ns: 150_000,
        ..EndedRequest::default()
    });
    let samples = |format| -> Vec<String> {
        let text = metrics.text(format);
        // The process's own numbers change from scrape to scrape.
        let is_still = |line: &&str| !line.starts_with(['#', 'p']) && !line.starts_with("trylist_uptime");
        text.lines().filter(is_still).map(str::to_owned).collect()
    };
    let prometheus = samples(Format::Prometheus);
    assert!(prometheus.len() > 50, "{prometheus:?}");
    assert_eq!(samples(Format::OpenMetrics), prometheus);
}

#[test]
#[cfg(debug_assertions)]
#[should_panic = "two writers"]
fn a_second_writer_is_noticed() {
    let (_metrics, shard) = one_thread();
    shard.connection_opened(0);
    let there = Arc::clone(&shard);
    let result = std::thread::spawn(move || there.connection_opened(0)).join();
    std::panic::resume_unwind(result.expect_err("it panics"));
}

#[test]
fn cells_grow_with_the_members_while_threads_count() {
    let (metrics, shard) = one_thread();
    shard.try_ended(0, 1, &ended(wire::TRY_SERVED, None, 1));
    let members: Vec<_> = (0..300).map(|place| endpoint(place, &format!("http://{place}"))).collect();
    let now = Instant::now();
    metrics.set_members(0, &members, now);
    shard.try_ended(0, 299, &ended(wire::TRY_SERVED, None, 1));
    assert_eq!(served(&metrics, now), [("gone", 0), ("http://299", 1), ("http://b", 1)].map(owned));
    assert!(metrics.text_at(Format::Prometheus, None, now).contains("http://150"), "it has series at once");
}

#[test]
fn a_member_that_has_left_keeps_its_counters_for_a_while() {
    let (metrics, shard, mut members) = of_members(&["http://a", "http://b"]);
    let now = Instant::now();
    shard.try_ended(0, 1, &ended(wire::TRY_SERVED, None, 1));
    let b = members.pop();
    metrics.set_members(0, &members, now);
    // Its last request ends.
    shard.try_ended(0, 1, &ended(wire::TRY_SERVED, None, 1));
    let just_before = now + STAY - Duration::from_nanos(1);
    assert_eq!(served(&metrics, just_before), [("gone", 0), ("http://b", 2)].map(owned));
    let text = metrics.text_at(Format::Prometheus, None, just_before);
    let of_b = text.lines().filter(|line| line.contains(r#"endpoint="http://b""#));
    let gauges: Vec<_> = of_b.filter(|line| !line.contains("_total{")).collect();
    assert_eq!(gauges, [""; 0]);
    assert_eq!(served(&metrics, now + STAY), [("gone", 2)].map(owned));
    assert!(!metrics.text_at(Format::Prometheus, None, now + STAY).contains("http://b"));
    // So it is after the next publication, with what still refers to it and without.
    shard.try_ended(0, 1, &ended(wire::TRY_SERVED, None, 1));
    metrics.set_members(0, &members, now + STAY);
    assert_eq!(served(&metrics, now + STAY), [("gone", 3)].map(owned));
    drop(b);
    metrics.set_members(0, &members, now + STAY);
    assert_eq!(served(&metrics, now + STAY), [("gone", 3)].map(owned));
    assert_eq!(metrics.clusters[0].members.load().n_series(), 1, "nothing is left of it");
}

#[test]
fn a_member_that_comes_back_goes_on() {
    let (metrics, shard, both) = of_members(&["http://a", "http://b"]);
    let now = Instant::now();
    let mut expected = 0;
    // At the same place; and, once nothing refers to it any more, at another one.
    for back in [both[1].clone(), EndpointLayout { id: both[1].id, ..endpoint(2, "http://b") }] {
        shard.try_ended(0, 1, &ended(wire::TRY_SERVED, None, 1));
        metrics.set_members(0, &both[..1], now);
        metrics.set_members(0, &[both[0].clone(), back.clone()], now + STAY / 2);
        shard.try_ended(0, back.place, &ended(wire::TRY_SERVED, None, 1));
        expected += 2;
        assert_eq!(served(&metrics, now + 2 * STAY), [("gone", 0), ("http://b", expected)].map(owned));
    }
}

#[test]
fn a_member_that_comes_back_too_late_begins_anew() {
    let (metrics, shard, both) = of_members(&["http://a", "http://b"]);
    let now = Instant::now();
    shard.try_ended(0, 1, &ended(wire::TRY_SERVED, None, 1));
    metrics.set_members(0, &both[..1], now);
    metrics.set_members(0, &both, now + STAY);
    shard.try_ended(0, 1, &ended(wire::TRY_SERVED, None, 1));
    assert_eq!(served(&metrics, now + STAY), [("gone", 1), ("http://b", 1)].map(owned));
}

#[test]
fn a_member_at_a_place_that_another_had_begins_at_zero() {
    let (metrics, shard, mut members) = of_members(&["http://a", "http://b"]);
    let now = Instant::now();
    shard.try_ended(0, 1, &ended(wire::TRY_SERVED, None, 1));
    members[1] = endpoint(1, "http://n");
    metrics.set_members(0, &members, now);
    assert_eq!(served(&metrics, now), [("gone", 0), ("http://b", 1)].map(owned));
    shard.try_ended(0, 1, &ended(wire::TRY_SERVED, None, 1));
    assert_eq!(served(&metrics, now), [("gone", 0), ("http://b", 1), ("http://n", 1)].map(owned));
    assert_eq!(served(&metrics, now + STAY), [("gone", 1), ("http://n", 1)].map(owned));
    // It comes back at a third place.
    members.push(endpoint(2, "http://b"));
    members[2].id = endpoint(1, "http://b").id;
    metrics.set_members(0, &members, now);
    assert_eq!(served(&metrics, now + STAY), [("gone", 0), ("http://b", 1), ("http://n", 1)].map(owned));
}

#[test]
fn series_of_members_that_have_left_are_bounded() {
    let (metrics, shard, first) = of_members(&["http://a"]);
    let now = Instant::now();
    let n = MOST_LEFT + 50;
    for i in 0..n {
        // Each takes the place of the one before it.
        metrics.set_members(0, &[first[0].clone(), endpoint(1, &format!("http://{i}"))], now);
        shard.try_ended(0, 1, &ended(wire::TRY_SERVED, None, 1));
    }
    metrics.set_members(0, &first, now);
    let shown = served(&metrics, now);
    assert_eq!((shown.len(), &shown[0]), (MOST_LEFT + 1, &owned(("gone", 50))));
    assert!(
        !shown.iter().any(|(url, _)| url == "http://49") && shown.iter().any(|(url, _)| url == "http://50")
    );
    assert!(metrics.clusters[0].members.load().n_series() <= MOST_LEFT + 1);
    assert_eq!(served(&metrics, now + STAY), [("gone", n as u64)].map(owned));
}

#[test]
fn a_label_is_used_again_once_it_is_free() {
    let (metrics, _, both) = of_members(&["http://a", "http://a"]);
    let now = Instant::now();
    let labels = |now| {
        let totals = metrics.totals_at(now);
        totals.endpoints().map(|(_, endpoint)| endpoint.to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(labels(now), ["http://a", "http://a #2"]);
    let third = endpoint(2, "http://a");
    metrics.set_members(0, &[both[1].clone(), third.clone()], now);
    assert_eq!(labels(now), ["http://a", "http://a #2", "http://a #3"], "the first has just left");
    drop(both);
    metrics.set_members(0, std::slice::from_ref(&third), now + STAY);
    metrics.set_members(0, std::slice::from_ref(&third), now + 2 * STAY);
    metrics.set_members(0, &[third, endpoint(3, "http://a")], now + 2 * STAY);
    assert_eq!(labels(now + 2 * STAY), ["http://a", "http://a #3"]);
}

/// Servers come, go and come back at other places, requests end late, and time passes: nothing counted is lost or doubled.
#[test]
fn the_sum_over_a_cluster_is_what_was_counted_whatever_comes_and_goes() {
    let (metrics, shard, _) = of_members(&[]);
    let (mut now, mut seed) = (Instant::now(), 7_u64);
    let mut random = |below: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % below
    };
    let (mut members, mut lingering): (Vec<EndpointLayout>, Vec<EndpointLayout>) = Default::default();
    let mut n = 0;
    for _ in 0..3_000 {
        match random(4) {
            0 if !members.is_empty() => lingering.push(members.swap_remove(random(members.len()))),
            1 if !lingering.is_empty() => drop(lingering.swap_remove(random(lingering.len()))),
            2 => now += STAY / 8,
            _ => {
                let url = format!("http://{}", random(40));
                let id = endpoint(0, &url).id;
                if let Some(known) = lingering.iter().position(|member| member.id == id) {
                    members.push(lingering.swap_remove(known));
                } else if members.iter().all(|member| member.id != id) {
                    let is_taken =
                        |place: &usize| members.iter().chain(&lingering).any(|member| member.place == *place);
                    let place = (0..).find(|place| !is_taken(place)).expect("there are many");
                    members.push(EndpointLayout { id, ..endpoint(place, &url) });
                }
            }
        }
        metrics.set_members(0, &members, now);
        let all: Vec<_> = members.iter().chain(&lingering).map(|member| member.place).collect();
        if let Some(place) = all.get(random(all.len().max(1))) {
            shard.try_ended(0, *place, &ended(wire::TRY_SERVED, None, 1));
            n += 1;
        }
        let sum: u64 = served(&metrics, now).iter().map(|(_, n)| n).sum();
        assert_eq!(sum, n, "{members:?} {lingering:?}");
    }
}

/// A worker with these members in its cluster.
fn of_members(urls: &[&str]) -> (Arc<Metrics>, Arc<Shard>, Vec<EndpointLayout>) {
    let mut layout = layout();
    layout.clusters[0].endpoints = urls.iter().enumerate().map(|(place, url)| endpoint(place, url)).collect();
    let metrics = Metrics::new(&layout, 1);
    let shard = metrics.shard(0);
    (metrics, shard, std::mem::take(&mut layout.clusters[0].endpoints))
}

/// Tries that were served, by endpoint: first of those that are gone, then of those that have any.
fn served(metrics: &Metrics, now: Instant) -> Vec<(String, u64)> {
    let totals = metrics.totals_at(now);
    let tries = counters(&totals, "trylist_tries").into_iter();
    let all = tries.map(|(subject, _, n)| match subject {
        Subject::Endpoint(_, endpoint) => (endpoint.to_owned(), n),
        _ => panic!("tries of {subject:?}"),
    });
    let (gone, mut others): (Vec<_>, Vec<_>) = all.partition(|(endpoint, _)| endpoint == "gone");
    others.insert(0, owned(("gone", gone.first().map_or(0, |gone| gone.1))));
    others
}

/// The counters of a family: their subject, and the value of their first further label.
fn counters<'a>(totals: &'a Totals, family: &str) -> Vec<(Subject<'a>, &'a str, u64)> {
    let all = totals.family(family).into_iter();
    all.map(|(subject, kinds, n)| (subject, &*kinds[0], n)).collect()
}

fn owned((endpoint, n): (&str, u64)) -> (String, u64) {
    (endpoint.to_owned(), n)
}

fn ended(result: u32, failure: Option<u32>, duration_ns: u64) -> EndedTry {
    EndedTry { result, failure, status: 0, duration_ns }
}

fn one_thread() -> (Arc<Metrics>, Arc<Shard>) {
    let metrics = Metrics::new(&layout(), 1);
    let shard = metrics.shard(0);
    (metrics, shard)
}

fn layout() -> MetricsLayout {
    let balancer = |module: &str, out_of_range| BalancerLayout {
        module: module.into(),
        faults: Arc::new(move |fault| if fault == ModuleFault::OutOfRange { out_of_range } else { 0 }),
        is_quarantined: Arc::new(|| false),
    };
    MetricsLayout {
        listeners: vec!["127.0.0.1:80".into()],
        certificates: vec![CertificateLayout {
            listener: 0,
            number: "0".into(),
            name: "a.test".into(),
            not_after_s: 1.5e9,
        }],
        routes: vec!["/".into(), "/".into()],
        clusters: vec![ClusterLayout {
            name: "api".into(),
            endpoints: vec![endpoint(0, "http://a"), endpoint(1, "http://b")],
            balancers: vec![balancer("round_robin", 3), balancer("random", 0)],
            panics: Arc::new(|| true),
            is_refused: Arc::new(|| false),
        }],
        access_log: None,
        loaded_bytes: Some(0),
    }
}

/// A member at this place, with an ID of its own.
fn endpoint(place: usize, url: &str) -> EndpointLayout {
    EndpointLayout {
        id: url.bytes().chain([place as u8]).fold(7, |id: u64, byte| id.wrapping_mul(257) + u64::from(byte)),
        place,
        url: url.into(),
        counters: Box::leak(Box::new(live_counters())),
        health: Arc::default(),
    }
}

fn live_counters() -> wire::Counters {
    wire::Counters {
        size: size_of::<wire::Counters>() as u32,
        state: AtomicU32::new(wire::STATE_AVAILABLE),
        effective_weight: AtomicU32::new(3 << 15),
        in_flight: AtomicU32::new(0),
        in_flight_older: AtomicU32::new(0),
        max_in_flight: AtomicU32::new(0),
        latency_ns: AtomicU64::new(0),
    }
}

fn value<'t>(text: &'t str, series: &str) -> &'t str {
    let found = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    found.unwrap_or_else(|| panic!("no {series} in\n{text}"))
}
