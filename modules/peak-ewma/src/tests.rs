use lb_api::testkit::{Contract, FakeCluster, FakeRequest, SettingValue, TestBalancer};
use lb_api::{OutcomeKind, State, WEIGHT_ONE};

use super::*;

const MS: Duration = Duration::from_millis(1);

fn build(cluster: &FakeCluster) -> TestBalancer<PeakEwma> {
    cluster.balancer().build().unwrap()
}

/// The endpoint that is answered, and what is said of it.
fn ask(balancer: &TestBalancer<PeakEwma>) -> (usize, String) {
    let mut trylist = balancer.load_balance(FakeRequest::get("/"));
    match trylist.next() {
        Next::Endpoint(endpoint) => (endpoint, trylist.explain()),
        other => panic!("{other:?}"),
    }
}

/// A request to this endpoint, whose response headers take so long.
fn answers_after(balancer: &TestBalancer<PeakEwma>, cluster: &FakeCluster, endpoint: usize, time: Duration) {
    let mut trylist = to(balancer, cluster, endpoint);
    trylist.observe(EventKind::ResponseHeaders, Some(200), None, time);
    trylist.observe(EventKind::TryEnded, Some(200), Some(TryResult::Served), 9 * time);
    trylist.finish(OutcomeKind::Served, Some(200));
}

/// A trylist whose first answer is this endpoint.
fn to<'a>(
    balancer: &'a TestBalancer<PeakEwma>,
    cluster: &FakeCluster,
    endpoint: usize,
) -> lb_api::testkit::TestTrylist<'a, PeakEwma> {
    let mut trylist = balancer.load_balance(FakeRequest::get("/"));
    (0..cluster.len()).filter(|other| *other != endpoint).for_each(|other| trylist.mark_tried(other));
    assert_eq!(trylist.next(), Next::Endpoint(endpoint));
    trylist
}

#[test]
fn keeps_the_contract() {
    Contract::<PeakEwma>::new().skips_unavailable().check();
    Contract::<PeakEwma>::new().setting("decay", "5ms").setting("default_rtt", "30ms").check();
}

#[test]
fn the_example_of_the_docs_comes_out() {
    let cluster = FakeCluster::equal(1);
    let balancer = cluster.balancer::<PeakEwma>().setting("default_rtt", "20ms").build().unwrap();
    let said = || ask(&balancer).1;
    assert_eq!(said(), "endpoint 0 costs least of two: 20.000 ms times 1 and 0 on their way");
    answers_after(&balancer, &cluster, 0, 100 * MS);
    assert_eq!(said(), "endpoint 0 costs least of two: 100.000 ms times 1 and 0 on their way");
    for expected in ["92.38", "85.49"] {
        cluster.advance(1000 * MS);
        answers_after(&balancer, &cluster, 0, 20 * MS);
        assert!(said().contains(&format!(" {expected}")), "{} for {expected}", said());
    }
    cluster.advance(10_000 * MS);
    cluster.set_in_flight(0, 2);
    assert!(said().ends_with(" ms times 1 and 2 on their way") && said().contains(" 31.4"), "{}", said());
}

#[test]
fn of_two_the_one_that_costs_less() {
    let cluster = FakeCluster::equal(2);
    let balancer = cluster.balancer::<PeakEwma>().setting("default_rtt", "1ms").build().unwrap();
    answers_after(&balancer, &cluster, 0, 30 * MS);
    answers_after(&balancer, &cluster, 1, 10 * MS);
    // Both are drawn in each request, but for the few that draw the same one ten times.
    let chosen = |balancer: &TestBalancer<PeakEwma>| {
        let counts = (0..1000).fold([0, 0], |mut counts, _| {
            counts[ask(balancer).0] += 1;
            counts
        });
        usize::from(counts[1] > counts[0])
    };
    assert_eq!(chosen(&balancer), 1);
    cluster.set_in_flight(1, 1);
    assert_eq!(chosen(&balancer), 1, "10 ms times 2 is less than 30 ms");
    cluster.set_in_flight(1, 3);
    assert_eq!(chosen(&balancer), 0, "10 ms times 4 is more");
    cluster.set_in_flight(0, 1);
    assert_eq!(chosen(&balancer), 1, "30 ms times 2 is more again");
}

/// Closed-loop clients before servers of these latencies: how many requests each server got.
fn simulate(balancer: &TestBalancer<PeakEwma>, cluster: &FakeCluster, latencies: &[u64]) -> Vec<usize> {
    const CLIENTS: usize = 8;
    let (mut counts, mut in_flight) = (vec![0; latencies.len()], vec![0; latencies.len()]);
    let (mut open, mut now) = (Vec::new(), 0);
    for _ in 0..20_000 {
        let mut trylist = balancer.load_balance(FakeRequest::get("/"));
        let Next::Endpoint(endpoint) = trylist.next() else { panic!("all are available") };
        counts[endpoint] += 1;
        in_flight[endpoint] += 1;
        cluster.set_in_flight(endpoint, in_flight[endpoint]);
        open.push((now + latencies[endpoint], endpoint, trylist));
        if open.len() < CLIENTS {
            continue;
        }
        let ended = (0..open.len()).min_by_key(|idx| open[*idx].0).unwrap();
        let (end, endpoint, mut trylist) = open.remove(ended);
        cluster.advance(Duration::from_millis(end - now));
        now = end;
        in_flight[endpoint] -= 1;
        cluster.set_in_flight(endpoint, in_flight[endpoint]);
        trylist.observe(EventKind::ResponseHeaders, Some(200), None, MS * latencies[endpoint] as u32);
        trylist.finish(OutcomeKind::Served, Some(200));
    }
    (0..cluster.len()).for_each(|endpoint| cluster.set_in_flight(endpoint, 0));
    counts
}

#[test]
fn a_slow_server_among_four_gets_next_to_nothing() {
    let cluster = FakeCluster::equal(4);
    let balancer = cluster.balancer::<PeakEwma>().setting("default_rtt", "10ms").build().unwrap();
    let counts = simulate(&balancer, &cluster, &[10, 10, 300, 10]);
    // A quarter would be 5,000. It is tried again and again, as its estimate decays.
    assert!((2..50).contains(&counts[2]), "{counts:?}");
    let others = [counts[0], counts[1], counts[3]];
    // Alike, and alike is their share: within a tenth.
    assert!(others.iter().all(|count| count.abs_diff(6_667) < 667), "{counts:?}");
    // When it is fast again, it is taken back, in some decay times.
    let _ = simulate(&balancer, &cluster, &[10, 10, 10, 10]);
    let counts = simulate(&balancer, &cluster, &[10, 10, 10, 10]);
    assert!(counts[2] > 3_000, "{counts:?}");
}

#[test]
fn equal_servers_get_equal_shares() {
    let cluster = FakeCluster::equal(5);
    cluster.seed(3);
    let counts = simulate(&build(&cluster), &cluster, &[20; 5]);
    assert!(counts.iter().all(|count| count.abs_diff(4_000) < 400), "within a tenth: {counts:?}");
}

#[test]
fn one_in_slow_start_is_looked_at_rarely() {
    let cluster = FakeCluster::equal(2);
    cluster.set_effective_weight(1, WEIGHT_ONE / 1000);
    // The other one costs more, so that whenever it is looked at beside it, the new one is chosen.
    cluster.set_in_flight(0, 50);
    let count = build(&cluster).distribution(10_000)[1];
    // Of the ten draws of a request one at least hits it in 1 %; the standard deviation of 100 is 10.
    assert!((60..140).contains(&count), "{count}");
}

#[test]
fn failures_may_raise_the_estimate_and_never_lower_it() {
    let cluster = FakeCluster::equal(1);
    let balancer = cluster.balancer::<PeakEwma>().setting("default_rtt", "20ms").build().unwrap();
    let ms = || ask(&balancer).1.split(' ').nth(6).unwrap().to_owned();
    // The kit's failures take 1 ms.
    for kind in [FailureKind::Connect, FailureKind::Local, FailureKind::Tls] {
        to(&balancer, &cluster, 0).fail_with(kind);
        assert_eq!(ms(), "20.000", "{kind:?}");
    }
    for result in [TryResult::ClosedEarly, TryResult::Aborted, TryResult::BadResponse] {
        to(&balancer, &cluster, 0).observe(EventKind::TryEnded, None, Some(result), MS);
        assert_eq!(ms(), "20.000", "{result:?}");
    }
    to(&balancer, &cluster, 0).observe(EventKind::TryEnded, None, Some(TryResult::TimedOut), 700 * MS);
    assert_eq!(ms(), "700.000");
    // A body that breaks off says nothing of the time to the headers.
    to(&balancer, &cluster, 0).observe(EventKind::TryEnded, Some(200), Some(TryResult::Broken), 900 * MS);
    assert_eq!(ms(), "700.000");

    let quick = FakeCluster::equal(1);
    let builder = quick.balancer::<PeakEwma>().setting("default_rtt", "1ms");
    let balancer = builder.build().unwrap();
    let ms = || ask(&balancer).1.split(' ').nth(6).unwrap().to_owned();
    let _ = ms();
    quick.advance(10_000 * MS);
    assert_eq!(ms(), "0.368");
    to(&balancer, &quick, 0).fail_with(FailureKind::Local);
    assert_eq!(ms(), "0.368");
    to(&balancer, &quick, 0).fail_with(FailureKind::Connect);
    assert_eq!(ms(), "1.000");
}

#[test]
fn remembers_over_reloads_and_restarts_by_id() {
    let cluster = FakeCluster::equal(3);
    let first = build(&cluster);
    for (endpoint, ms) in [(0, 2_000), (1, 3_000), (2, 4_000)] {
        answers_after(&first, &cluster, endpoint, ms * MS);
    }
    let reordered = cluster.reordered(&[2, 0]);
    let estimates = |balancer: &TestBalancer<PeakEwma>, cluster: &FakeCluster| -> Vec<String> {
        let said = (0..cluster.len()).map(|endpoint| to(balancer, cluster, endpoint).explain());
        said.map(|said| said.split(' ').nth(6).unwrap().to_owned()).collect()
    };
    let restarted = reordered.balancer::<PeakEwma>().saved(first.save()).build().unwrap();
    assert_eq!(estimates(&restarted, &reordered), ["4000.000", "2000.000"]);
    let second = reordered.balancer::<PeakEwma>().previous(&first).saved(first.save()).build().unwrap();
    // This instance sees later samples of the previous one.
    answers_after(&first, &cluster, 2, 7_000 * MS);
    assert_eq!(estimates(&second, &reordered), ["7000.000", "2000.000"]);
    // With another decay time estimates are copied; and a new endpoint has the default.
    let builder = cluster.balancer::<PeakEwma>().previous(&second).setting("decay", "1s");
    let third = builder.setting("default_rtt", "500ms").build().unwrap();
    assert_eq!(estimates(&third, &cluster), ["2000.000", "500.000", "7000.000"]);
}

#[test]
fn a_full_endpoint_is_passed_over_and_all_full_is_busy() {
    let cluster = FakeCluster::equal(3);
    let balancer = build(&cluster);
    (0..3).for_each(|endpoint| cluster.set_max_in_flight(endpoint, 2));
    cluster.set_in_flight(0, 2);
    cluster.set_in_flight(1, 2);
    assert_eq!(balancer.distribution(20), [0, 0, 20]);
    cluster.set_in_flight(2, 2);
    assert_eq!(balancer.load_balance(FakeRequest::get("/")).next(), Next::Busy);
    (0..3).for_each(|endpoint| cluster.set_state(endpoint, State::Down));
    assert_eq!(balancer.load_balance(FakeRequest::get("/")).next(), Next::Exhausted);
}

#[test]
fn an_endpoint_of_weight_0_is_the_last_resort() {
    let cluster = FakeCluster::equal(3);
    cluster.set_effective_weight(0, 0);
    let balancer = build(&cluster);
    assert_eq!(balancer.distribution(100)[0], 0);
    assert_eq!(balancer.load_balance(FakeRequest::get("/")).all().last(), Some(&0));
}

#[test]
fn refuses_settings_that_make_no_sense() {
    let refused = |settings: &[(&str, SettingValue)]| {
        let cluster = FakeCluster::equal(2);
        let builder = settings.iter().fold(cluster.balancer::<PeakEwma>(), |builder, (path, value)| {
            builder.setting(path, value.clone())
        });
        builder.build().err().unwrap().to_string()
    };
    assert_eq!(
        refused(&[("decay", "0s".into()), ("default_rtt", "25h".into())]),
        "decay: expected from \"1ms\" to \"24h\", found \"0s\"; \
         default_rtt: expected from \"1ms\" to \"24h\", found \"25h\""
    );
    assert_eq!(
        refused(&[("decay", "10 parsecs".into())]),
        "decay: expected a duration such as \"250ms\", \"10s\", \"5m\" or \"1h\", found \"10 parsecs\""
    );
    assert_eq!(
        refused(&[("decay", 10.into())]),
        "decay: expected a duration such as \"250ms\", \"10s\", \"5m\" or \"1h\", found 10"
    );
    assert_eq!(
        refused(&[("default_rrt", "1s".into())]),
        "default_rrt: unknown setting (did you mean \"default_rtt\"?)"
    );
}
