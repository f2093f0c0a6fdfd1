use std::time::Duration;

use lb_api::testkit::{Contract, FakeCluster, FakeRequest, TestBalancer};
use lb_api::{State, TryResult, WEIGHT_ONE};

use super::*;

fn built(cluster: &FakeCluster) -> TestBalancer<BackendLoad> {
    cluster.balancer().build().unwrap()
}

/// Each of these servers sends its header once, whoever's turn it is.
fn report(balancer: &TestBalancer<BackendLoad>, n: usize, headers: &[(usize, &str)]) {
    for (server, header) in headers {
        let mut trylist = balancer.load_balance(FakeRequest::get("/"));
        (0..n).filter(|other| other != server).for_each(|other| trylist.mark_tried(other));
        assert_eq!(trylist.next(), Next::Endpoint(*server));
        let total = Duration::from_millis(1);
        let headers = [("endpoint-load-metrics", *header), ("server", "x")];
        trylist.observe_headers(EventKind::ResponseHeaders, Some(200), None, total, &headers);
        trylist.observe(EventKind::TryEnded, Some(200), Some(TryResult::Served), total);
    }
}

/// The three of the docs, and the time until their reports count.
fn three_that_reported(cluster: &FakeCluster) -> TestBalancer<BackendLoad> {
    let balancer = built(cluster);
    let headers = [
        (0, "TEXT cpu_utilization=0.5,rps_fractional=100"),
        (1, r#"JSON {"cpu_utilization":0.25,"rps_fractional":100}"#),
        (2, "TEXT cpu_utilization=0.25,rps_fractional=100,eps=25"),
    ];
    report(&balancer, 3, &headers);
    cluster.advance(Duration::from_secs(10));
    balancer
}

fn expect_shares(balancer: &TestBalancer<BackendLoad>, weights: &[u64]) {
    const REQUESTS: u64 = 8000;
    let counts = balancer.distribution(REQUESTS as usize);
    let total: u64 = weights.iter().sum();
    for (count, weight) in counts.iter().zip(weights) {
        assert!(
            count.abs_diff((REQUESTS * weight / total) as usize) <= 5,
            "{counts:?} for weights {weights:?}"
        );
    }
}

#[test]
fn keeps_the_contract() {
    Contract::<BackendLoad>::new().skips_unavailable().weighted(0.02).check();
}

#[test]
fn the_example_of_the_docs_comes_out() {
    let balancer = three_that_reported(&FakeCluster::equal(3));
    expect_shares(&balancer, &[200, 400, 200]);
    assert_eq!(balancer.logged(), [""; 0]);
}

#[test]
fn reports_count_after_the_blackout_and_until_they_expire() {
    let cluster = FakeCluster::equal(3);
    let balancer = built(&cluster);
    report(&balancer, 3, &[(0, "TEXT cpu_utilization=0.5,rps_fractional=100")]);
    report(&balancer, 3, &[(1, "TEXT cpu_utilization=0.25,rps_fractional=100")]);
    cluster.advance(Duration::from_millis(9999));
    expect_shares(&balancer, &[1, 1, 1]);
    // Computed once a second: not yet.
    cluster.advance(Duration::from_millis(500));
    expect_shares(&balancer, &[1, 1, 1]);
    cluster.advance(Duration::from_millis(500));
    // The third has not reported: the median of 200 and 400.
    expect_shares(&balancer, &[2, 4, 3]);
    cluster.advance(Duration::from_secs(180));
    expect_shares(&balancer, &[1, 1, 1]);
}

#[test]
fn until_any_report_counts_the_configured_weights_hold() {
    let cluster = FakeCluster::weighted(&[1, 2, 5]);
    expect_shares(&built(&cluster), &[1, 2, 5]);
    expect_shares(&three_that_reported(&cluster), &[200, 400, 200]);
}

#[test]
fn what_the_host_says_of_a_server_scales_its_report() {
    let cluster = FakeCluster::weighted(&[1, 2, 1]);
    let balancer = three_that_reported(&cluster);
    cluster.set_effective_weight(1, WEIGHT_ONE);
    expect_shares(&balancer, &[200, 200, 200]);
    cluster.set_effective_weight(1, 0);
    expect_shares(&balancer, &[200, 0, 200]);
    assert_eq!(balancer.load_balance(FakeRequest::get("/")).all().last(), Some(&1));
    cluster.set_effective_weight(1, 2 * WEIGHT_ONE);
    cluster.set_state(0, State::Ejected);
    expect_shares(&balancer, &[0, 400, 200]);
}

#[test]
fn rubbish_changes_nothing_and_is_said_once_a_minute() {
    let cluster = FakeCluster::equal(3);
    let balancer = three_that_reported(&cluster);
    for _ in 0..5 {
        report(&balancer, 3, &[(1, "TEXT cpu_utilization=\u{1}lots"), (2, "BIN AAAA"), (0, "")]);
    }
    expect_shares(&balancer, &[200, 400, 200]);
    let first = r#"warn: server "http://10.0.0.2:8080": endpoint-load-metrics "TEXT cpu_utilization=\x01lots" is ignored: a value is no number (1 ignored since this was last said)"#;
    assert_eq!(balancer.logged(), [first]);
    cluster.advance(Duration::from_secs(60));
    report(&balancer, 3, &[(0, &format!("JSON {}", "x".repeat(1000)))]);
    let logged = balancer.logged();
    assert_eq!(logged.len(), 2);
    let second = format!(
        "warn: server \"http://10.0.0.1:8080\": endpoint-load-metrics \"JSON {}\" is ignored: it is not JSON (15 \
         ignored since this was last said)",
        "x".repeat(75)
    );
    assert_eq!(logged[1], second);
}

#[test]
fn a_report_without_requests_or_use_is_rubbish() {
    let balancer = built(&FakeCluster::equal(1));
    report(&balancer, 1, &[(0, "TEXT cpu_utilization=0.5")]);
    assert!(balancer.logged()[0].contains("it has no rps_fractional above 0"), "{:?}", balancer.logged());
}

#[test]
fn responses_without_the_header_are_no_reports() {
    let cluster = FakeCluster::equal(2);
    let balancer = built(&cluster);
    assert_eq!(balancer.sequence(4), [0, 1, 0, 1]);
    assert_eq!(balancer.logged(), [""; 0]);
}

#[test]
fn what_is_learned_outlives_a_reload() {
    let cluster = FakeCluster::equal(3);
    let old = three_that_reported(&cluster);
    let reordered = cluster.reordered(&[1, 2, 0]);
    let new = reordered.balancer::<BackendLoad>().saved(old.save()).build().unwrap();
    drop(old);
    expect_shares(&new, &[400, 200, 200]);
}

#[test]
fn named_metrics_say_how_busy_a_server_is_where_the_operator_says_so() {
    let cluster = FakeCluster::equal(2);
    // As Envoy's configuration has it; without what is before the name it is the same.
    let balancer = cluster.balancer::<BackendLoad>().setting("metrics[0]", "named_metrics.queue");
    let balancer = balancer.setting("blackout", "0s").build().unwrap();
    report(&balancer, 2, &[(0, "TEXT cpu_utilization=0.1,rps_fractional=100,named_metrics.queue=0.5")]);
    report(&balancer, 2, &[(1, "TEXT cpu_utilization=0.1,rps_fractional=100")]);
    cluster.advance(Duration::from_secs(1));
    expect_shares(&balancer, &[200, 1000]);
}

#[test]
fn a_failed_try_is_followed_by_each_other_server_once() {
    let balancer = three_that_reported(&FakeCluster::equal(3));
    for _ in 0..100 {
        let mut offered = balancer.load_balance(FakeRequest::get("/")).all();
        offered.sort_unstable();
        assert_eq!(offered, [0, 1, 2]);
    }
}

#[test]
fn refuses_settings_out_of_range() {
    let refused = |path: &str, value: &str| {
        let cluster = FakeCluster::equal(2);
        cluster.balancer::<BackendLoad>().setting(path, value).build().err().unwrap().to_string()
    };
    let duration = "expected a duration such as \"250ms\", \"10s\", \"5m\" or \"1h\", found";
    assert_eq!(refused("blackout", "10"), format!("blackout: {duration} \"10\""));
    assert_eq!(refused("expiry", "25h"), "expiry: expected \"24h\" or less, found \"25h\"");
    assert_eq!(refused("expiry", "soon"), format!("expiry: {duration} \"soon\""));
    assert_eq!(
        refused("expiry", "0s"),
        "expiry: 0ns is less than update (1s), so that reports would never count"
    );
    assert_eq!(
        refused("metrics[0]", "cpu_utilization"),
        "metrics: expected the name of a named metric, which \"cpu_utilization\" is not"
    );
    assert_eq!(refused("metrics[0]", "named_metrics."), "metrics: expected the name of a metric, found \"\"");
    assert_eq!(refused("update", "99ms"), "update: expected \"100ms\" or more, found 99ms");
    assert_eq!(
        refused("blackout_period", "10s"),
        "blackout_period: unknown setting, expected one of \"blackout\", \"expiry\", \"update\", \"error_penalty\", \"metrics\""
    );
    let cluster = FakeCluster::equal(2);
    let penalty = cluster.balancer::<BackendLoad>().setting("error_penalty", -0.5).build().err().unwrap();
    assert_eq!(penalty.to_string(), "error_penalty: expected 0 or more, found -0.5");
}

#[test]
fn a_reload_goes_on_with_the_next_turn() {
    let cluster = FakeCluster::equal(3);
    let build = |saved: Vec<u8>| {
        let balancer = cluster.balancer::<BackendLoad>();
        if saved.is_empty() { balancer } else { balancer.saved(saved) }.build().unwrap()
    };
    let (mut saved, mut chosen) = (Vec::new(), Vec::new());
    for _ in 0..6 {
        let balancer = build(saved);
        chosen.extend(balancer.sequence(1));
        saved = balancer.save();
    }
    assert_eq!(chosen, [0, 1, 2, 0, 1, 2]);
}

#[test]
fn an_instance_that_takes_over_has_the_reports_and_is_told_of_those_that_still_come() {
    let cluster = FakeCluster::equal(3);
    let before = three_that_reported(&cluster);
    let reordered = cluster.reordered(&[1, 0]);
    let after = reordered.balancer::<BackendLoad>().previous(&before).build().unwrap();
    expect_shares(&after, &[400, 200]);
    // A request that began before reports to the instance that it began in.
    report(&before, 3, &[(0, "TEXT cpu_utilization=0.5,rps_fractional=400")]);
    cluster.advance(Duration::from_secs(1));
    expect_shares(&after, &[400, 800]);
}

#[test]
fn a_blackout_goes_on_in_the_instance_that_takes_over() {
    let cluster = FakeCluster::equal(2);
    let before = built(&cluster);
    report(&before, 2, &[(0, "TEXT cpu_utilization=0.5,rps_fractional=100")]);
    report(&before, 2, &[(1, "TEXT cpu_utilization=0.5,rps_fractional=300")]);
    cluster.advance(Duration::from_secs(6));
    let after = cluster.balancer::<BackendLoad>().previous(&before).build().unwrap();
    expect_shares(&after, &[1, 1]);
    cluster.advance(Duration::from_secs(4));
    expect_shares(&after, &[100, 300]);
}

#[test]
fn turns_among_equals_go_on_with_the_next_server() {
    let all = FakeCluster::equal(5);
    let before = all.reordered(&[0, 1, 2, 3]).balancer::<BackendLoad>().build().unwrap();
    assert_eq!(before.sequence(6), [0, 1, 2, 3, 0, 1]);
    let after = all.reordered(&[4, 0, 1, 2, 3]).balancer::<BackendLoad>().previous(&before).build().unwrap();
    assert_eq!(after.sequence(3), [3, 4, 0]);
}
