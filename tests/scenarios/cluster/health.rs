//! Servers that are asked whether they are well, how that goes together with what else is said of them, and what a reload
//! hands over.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lb_api::wire::{STATE_AVAILABLE, STATE_DOWN, STATE_DRAINING, STATE_EJECTED, TRY_TIMED_OUT};
use tests::dns::NameServer;
use tests::log;
use tests::origin::{Full, Origin};
use tests::proxy::{Builder, Proxy};
use tests::site::Site;
use tests::tls::Authority;
use tests::{Gate, eventually};
use trylist::cluster::HealthFacts;
use trylist::cluster::ejection::TryEnd;
use trylist::cluster::health::HealthSource;

/// Answers requests with its name, and checks by whether it is well.
fn checked(name: &'static str, well: &Arc<AtomicBool>) -> Origin {
    let well = Arc::clone(well);
    Origin::serving(move |conn| {
        while let Some(request) = conn.request() {
            let is_check = request.line().contains("/health");
            let reply = match (is_check, well.load(Ordering::SeqCst)) {
                (false, _) => format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len()),
                (true, true) => "HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nall well".into(),
                (true, false) => "HTTP/1.1 500 Oh\r\nContent-Length: 3\r\n\r\nill".into(),
            };
            if !conn.send(&reply) {
                return;
            }
        }
    })
}

fn switch(well: bool) -> Arc<AtomicBool> {
    Arc::new(AtomicBool::new(well))
}

/// So quick that tests wait for events and not for time.
const QUICK: &str = "interval = \"2ms\", timeout = \"5s\"";

fn state(proxy: &Proxy, endpoint: usize) -> u32 {
    proxy.first_cluster().member(endpoint).counters.state.load(Ordering::SeqCst)
}

fn wait_for_state(proxy: &Proxy, endpoint: usize, wanted: u32) {
    eventually(&format!("endpoint {endpoint} in state {wanted}"), || {
        (state(proxy, endpoint) == wanted).then_some(())
    });
}

fn n_checks(origin: &Origin) -> usize {
    origin.requests().iter().filter(|request| request.line().contains("/health")).count()
}

#[test]
fn a_server_is_down_after_its_failed_checks_and_up_after_its_passed_ones() {
    let (ill, well) = (switch(true), switch(true));
    let origins = [checked("a", &ill), checked("b", &well)];
    let check = format!("health_check = {{ path = \"/health\", fall = 4, rise = 3, {QUICK} }}");
    let proxy = Proxy::over(&origins).in_cluster(&check).start();
    origins[0].wait_for_requests(1);
    assert_eq!(proxy.names(4), "a b a b");
    ill.store(false, Ordering::SeqCst);
    let url = origins[0].url();
    let line = log::line(&[&url, "is down"]);
    let said = format!(
        "cluster \"{}\": server \"{url}\" is down: 4 consecutive checks failed (GET /health: status 500)",
        proxy.cluster()
    );
    assert!(line.contains(&said) && line.contains("WARN"), "{line}");
    wait_for_state(&proxy, 0, STATE_DOWN);
    assert_eq!(proxy.names(4), "b b b b");
    ill.store(true, Ordering::SeqCst);
    let line = log::line(&[&url, "is up"]);
    assert!(line.contains("is up: 3 consecutive checks passed (GET /health)"), "{line}");
    wait_for_state(&proxy, 0, STATE_AVAILABLE);
    let names = proxy.names(4);
    assert!(names.contains('a'), "{names}");
    let checks = |result: &str| {
        proxy.metric(&format!(
            "trylist_health_checks_total{{cluster=\"%\",endpoint=\"{url}\",result=\"{result}\"}}"
        ))
    };
    assert!(checks("failed") >= 4.0 && checks("passed") >= 4.0);
}

#[test]
fn a_server_is_up_until_its_first_check_which_decides_at_once() {
    let gate = Gate::default();
    let slow = {
        let gate = gate.clone();
        Origin::serving(move |conn| {
            while let Some(request) = conn.request() {
                if request.line().contains("/health") {
                    gate.wait();
                    conn.send("HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n");
                } else {
                    conn.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nslow");
                }
            }
        })
    };
    let check = "health_check = { path = \"/health\", fall = 5, interval = \"24h\", timeout = \"20s\" }";
    let other = Origin::named("b");
    let proxy = Proxy::over([&slow, &other]).in_cluster(check).start();
    eventually("the first check", || (n_checks(&slow) == 1).then_some(()));
    assert_eq!(proxy.names(2), "slow b");
    gate.open();
    wait_for_state(&proxy, 0, STATE_DOWN);
    log::line(&[&slow.url(), "is down: 1 check failed (GET /health: status 503)"]);
    assert_eq!(n_checks(&slow), 1);
}

#[test]
fn checks_ask_as_they_are_told() {
    let origin = checked("a", &switch(true));
    let keys =
        "method = \"HEAD\", path = \"/health?full=1\", host = \"health.example\", statuses = [200, \"3xx\"]";
    let check = format!("health_check = {{ {keys}, {QUICK} }}");
    let _proxy = Proxy::over([&origin]).in_cluster(&check).start();
    let request = &origin.wait_for_requests(1)[0];
    assert_eq!(request.line(), "HEAD /health?full=1 HTTP/1.1");
    assert_eq!(request.header("host"), Some("health.example"));
    assert!(request.header("user-agent").is_some_and(|agent| agent.starts_with("trylist/")));
}

#[test]
fn a_body_without_its_text_is_a_failed_check() {
    let origins = [checked("a", &switch(true)), Origin::named("b")];
    let check = format!("health_check = {{ path = \"/health\", body = \"all well\", {QUICK} }}");
    let proxy = Proxy::over(&origins).in_cluster(&check).start();
    wait_for_state(&proxy, 1, STATE_DOWN);
    log::line(&[&origins[1].url(), "is down", "\"all well\" is not in the body"]);
    assert_eq!(proxy.names(3), "a a a");
}

#[test]
fn a_server_that_hangs_in_its_checks_is_down() {
    let hangs = Origin::serving(|conn| {
        conn.wait_for_end();
    });
    let check = "health_check = { interval = \"2ms\", timeout = \"20ms\" }";
    let other = Origin::named("b");
    let proxy = Proxy::over([&hangs, &other]).in_cluster(check).start();
    wait_for_state(&proxy, 0, STATE_DOWN);
    log::line(&[&hangs.url(), "is down: 1 check failed (GET /: no answer within 20ms)"]);
    assert_eq!(proxy.names(3), "b b b");
}

/// Else one address that swallows packets would use up the time of every check, and the server be down whose other
/// address serves.
#[test]
fn every_address_of_a_name_has_its_share_of_a_checks_time() {
    let full = Full::listening();
    let live = SocketAddr::from(([127, 0, 0, 2], full.address().port()));
    let _live = Origin::listening(live, |conn| {
        while conn.request().is_some() && conn.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") {}
    });
    let dns = NameServer::new();
    dns.addresses("app.test", &[[127, 0, 0, 1], [127, 0, 0, 2]]);
    let url = format!("http://app.test:{}", live.port());
    let check = "health_check = { interval = \"2ms\", timeout = \"10s\" }";
    let proxy = Proxy::over_urls([url.clone()]).tables(&dns.config()).in_cluster(check).start();
    let result = |result| {
        format!("trylist_health_checks_total{{cluster=\"%\",endpoint=\"{url}\",result=\"{result}\"}}")
    };
    eventually("a check", || (proxy.metric(&result("passed")) > 0.0).then_some(()));
    assert_eq!((state(&proxy, 0), proxy.metric(&result("failed"))), (STATE_AVAILABLE, 0.0));
}

#[test]
fn checks_by_connection_alone_find_who_is_gone() {
    let origins = ["a", "b"].map(Origin::named);
    let check = format!("health_check = {{ type = \"tcp\", {QUICK} }}");
    let proxy = Proxy::over(&origins).in_cluster(&check).start();
    eventually("a check", || (origins[0].n_connections() > 0).then_some(()));
    assert_eq!(proxy.names(4), "a b a b");
    origins[0].stop();
    wait_for_state(&proxy, 0, STATE_DOWN);
    log::line(&[&origins[0].url(), "is down: 3 consecutive checks failed (connect: connection refused)"]);
    assert_eq!(origins[0].requests().len(), 2, "checks ask for nothing");
}

#[test]
fn checks_go_to_a_port_of_their_own() {
    let (well, origin) = (switch(true), Origin::named("a"));
    let agent = checked("agent", &well);
    let port = agent.address().port();
    let check = format!("health_check = {{ path = \"/health\", port = {port}, {QUICK} }}");
    let proxy = Proxy::over([&origin]).in_cluster(&check).start();
    agent.wait_for_requests(1);
    assert_eq!(proxy.get("/").text(), "a");
    well.store(false, Ordering::SeqCst);
    wait_for_state(&proxy, 0, STATE_DOWN);
    assert_eq!(proxy.get("/").status(), 503);
    assert_eq!(n_checks(&origin), 0);
}

#[test]
fn checks_send_the_proxy_protocol_where_requests_do() {
    let origin = Origin::serving(|conn| {
        // The header of version 1 is the first line of what comes.
        if let Some(request) = conn.request() {
            let is_ours = request.line() == "PROXY UNKNOWN" && request.head.contains("\r\nGET /health ");
            let status = if is_ours { 200 } else { 400 };
            conn.send(format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"));
        }
    });
    let proxy = Proxy::over([&origin])
        .in_cluster("send_proxy_protocol = \"v1\"\nkeepalive = 0")
        .in_cluster(&format!("health_check = {{ path = \"/health\", {QUICK} }}"))
        .start();
    origin.wait_for_requests(3);
    assert_eq!(state(&proxy, 0), STATE_AVAILABLE);
}

#[test]
fn a_grpc_check_of_a_server_without_http_2_fails() {
    let origin = Origin::named("a");
    let check = format!("health_check = {{ type = \"grpc\", service = \"shop\", {QUICK} }}");
    let proxy = Proxy::over([&origin]).in_cluster(&check).start();
    wait_for_state(&proxy, 0, STATE_DOWN);
    log::line(&[&origin.url(), "is down: 1 check failed (gRPC health of \"shop\""]);
}

// ---- several sources ---------------------------------------------------------------------------------------------------

#[test]
fn no_source_undoes_what_another_says() {
    let origins = ["a", "b"].map(Origin::named);
    let proxy = Proxy::over(&origins).start();
    let cluster = proxy.first_cluster();
    let say = |source, holds| {
        cluster.set_source(&cluster.member(0), source, holds);
        state(&proxy, 0)
    };
    assert_eq!(say(HealthSource::Ejection, true), STATE_EJECTED);
    assert_eq!(say(HealthSource::Check, true), STATE_DOWN);
    assert_eq!(say(HealthSource::Drain, true), STATE_DRAINING);
    assert_eq!(say(HealthSource::Check, false), STATE_DRAINING);
    assert_eq!(say(HealthSource::Drain, false), STATE_EJECTED);
    assert_eq!(proxy.names(3), "b b b");
    assert_eq!(say(HealthSource::Ejection, false), STATE_AVAILABLE);
    assert!(proxy.names(2).contains('a'));
}

#[test]
fn a_server_that_its_checks_bring_up_is_no_longer_ejected() {
    let (ill, well) = (switch(true), switch(true));
    let origins = [checked("a", &ill), checked("b", &well)];
    let proxy = Proxy::over(&origins)
        .in_cluster(&format!("health_check = {{ path = \"/health\", {QUICK} }}"))
        .in_cluster("ejection = { failures = 2, time = \"24h\" }")
        .start();
    origins[0].wait_for_requests(1);
    let ejected: Vec<_> = proxy.first_cluster().newest().endpoints[..1]
        .iter()
        .map(|e| HealthFacts {
            id: e.id,
            checks: 5,
            ejected_ms: Some(60_000),
            ejections: 1,
            ..HealthFacts::default()
        })
        .collect();
    proxy.first_cluster().take_over_health(&ejected);
    assert_eq!(state(&proxy, 0), STATE_EJECTED);
    ill.store(false, Ordering::SeqCst);
    wait_for_state(&proxy, 0, STATE_DOWN);
    ill.store(true, Ordering::SeqCst);
    wait_for_state(&proxy, 0, STATE_AVAILABLE);
    log::line(&[&origins[0].url(), "readmitted"]);
}

/// Its trial costs no request where a check can tell that it is not well yet.
#[test]
fn an_ejected_server_comes_back_after_a_check_that_passes() {
    let (ill, well) = (switch(true), switch(true));
    let origins = [checked("a", &ill), checked("b", &well)];
    let proxy = Proxy::over(&origins)
        .in_cluster(
            "health_check = { path = \"/health\", fall = 1000, interval = \"10ms\", timeout = \"60s\" }",
        )
        .in_cluster("ejection = { failures = 1, time = \"5ms\" }")
        .start();
    eventually("a check", || (n_checks(&origins[0]) > 0).then_some(()));
    ill.store(false, Ordering::SeqCst);
    let cluster = proxy.first_cluster();
    let end = TryEnd { result: TRY_TIMED_OUT, ..TryEnd::default() };
    let ejected = Instant::now();
    cluster.outlier.as_ref().unwrap().try_ended(cluster, &cluster.member(0), &end, ejected, || 0);
    eventually("its time's end", || (ejected.elapsed() > Duration::from_millis(10)).then_some(()));
    let n = n_checks(&origins[0]);
    eventually("checks that fail", || (n_checks(&origins[0]) > n + 3).then_some(()));
    assert_eq!(state(&proxy, 0), STATE_EJECTED);
    assert_eq!(proxy.names(4), "b b b b");
    ill.store(true, Ordering::SeqCst);
    wait_for_state(&proxy, 0, STATE_AVAILABLE);
    log::line(&[&origins[0].url(), "readmitted on trial"]);
    assert!(proxy.names(2).contains('a'));
}

/// Else who waits for the next check in its turn would wait for no reason.
#[test]
fn a_check_is_made_at_once_when_an_ejection_is_over() {
    let well = switch(true);
    let origins = [checked("a", &well), checked("b", &well)];
    let proxy = Proxy::over(&origins)
        .in_cluster("health_check = { path = \"/health\", interval = \"24h\" }")
        .in_cluster("ejection = { failures = 1, time = \"5ms\" }")
        .start();
    eventually("a check", || (proxy.first_cluster().health_facts().len() == 2).then_some(()));
    let cluster = proxy.first_cluster();
    let end = TryEnd { result: TRY_TIMED_OUT, ..TryEnd::default() };
    cluster.outlier.as_ref().unwrap().try_ended(cluster, &cluster.member(0), &end, Instant::now(), || 0);
    wait_for_state(&proxy, 0, STATE_AVAILABLE);
    assert_eq!(n_checks(&origins[0]), 2);
}

#[test]
fn with_too_few_left_all_get_requests_but_those_that_drain() {
    let origins = ["a", "b", "c", "d", "e"].map(Origin::named);
    let proxy = Proxy::over(&origins).in_cluster("panic_threshold = 50").start();
    let names = |n| proxy.names(n).split(' ').map(str::to_owned).collect::<BTreeSet<_>>();
    let cluster = proxy.first_cluster();
    let set = |endpoint, source, holds| cluster.set_source(&cluster.member(endpoint), source, holds);
    set(4, HealthSource::Drain, true);
    set(0, HealthSource::Check, true);
    set(1, HealthSource::Ejection, true);
    assert_eq!(names(12), BTreeSet::from(["c", "d"].map(String::from)), "two of four are enough");
    assert_eq!(proxy.metric("trylist_cluster_panic{cluster=\"%\"}"), 0.0);
    set(2, HealthSource::Check, true);
    let cluster = format!("cluster \"{}\"", proxy.cluster());
    log::line(&[&cluster, "WARN", "1 of 4 servers are available, less than 50%: panic, all get requests"]);
    proxy.wait_for_metric("trylist_cluster_panic{cluster=\"%\"}", 1.0);
    eventually("all at work", || (0..4).all(|idx| state(&proxy, idx) == STATE_AVAILABLE).then_some(()));
    assert_eq!(names(12), BTreeSet::from(["a", "b", "c", "d"].map(String::from)));
    assert_eq!(state(&proxy, 4), STATE_DRAINING);
    set(0, HealthSource::Check, false);
    proxy.wait_for_metric("trylist_cluster_panic{cluster=\"%\"}", 0.0);
    wait_for_state(&proxy, 2, STATE_DOWN);
    wait_for_state(&proxy, 1, STATE_EJECTED);
    assert_eq!(names(12), BTreeSet::from(["a", "d"].map(String::from)));
}

/// Through slow start the server that was well would keep most of the load that it cannot carry.
#[test]
fn panic_gives_all_servers_their_whole_weight_at_once() {
    let origins = ["a", "b", "c", "d"].map(Origin::named);
    let proxy = Proxy::over(&origins)
        .module("round_robin")
        .each_server("weight = 10")
        .in_cluster("panic_threshold = 60\nslow_start = \"24h\"")
        .start();
    // One is on its way up when panic begins.
    proxy.set_state(3, STATE_DOWN);
    proxy.set_state(3, STATE_AVAILABLE);
    for endpoint in [1, 2] {
        proxy.set_state(endpoint, STATE_DOWN);
    }
    proxy.wait_for_metric("trylist_cluster_panic{cluster=\"%\"}", 1.0);
    eventually("all at work", || (0..4).all(|idx| state(&proxy, idx) == STATE_AVAILABLE).then_some(()));
    for name in ["a", "b", "c", "d"] {
        assert_eq!(proxy.names(40).matches(name).count(), 10, "{name}");
    }
    // A server that is healthy again begins with little, as always.
    proxy.set_state(1, STATE_AVAILABLE);
    proxy.wait_for_metric("trylist_cluster_panic{cluster=\"%\"}", 0.0);
    wait_for_state(&proxy, 2, STATE_DOWN);
    proxy.set_state(2, STATE_AVAILABLE);
    let weight = format!("trylist_endpoint_weight{{cluster=\"%\",endpoint=\"{}\"}}", origins[2].url());
    assert_eq!(proxy.metric(&weight).round(), 1.0);
}

#[test]
fn no_panic_while_a_backup_tier_has_enough() {
    let origins = ["a", "b", "c", "backup"].map(Origin::named);
    let proxy = Proxy::over(&origins).server(3, "backup = true").in_cluster("panic_threshold = 50").start();
    for endpoint in 0..3 {
        proxy.set_state(endpoint, STATE_DOWN);
    }
    assert_eq!(proxy.names(4), ["backup"; 4].join(" "));
    assert_eq!(proxy.metric("trylist_cluster_panic{cluster=\"%\"}"), 0.0);
    proxy.set_state(3, STATE_DOWN);
    proxy.wait_for_metric("trylist_cluster_panic{cluster=\"%\"}", 1.0);
    eventually("all at work", || (0..4).all(|idx| state(&proxy, idx) == STATE_AVAILABLE).then_some(()));
    assert_eq!(proxy.names(3), "a b c");
}

// ---- shares of tiers ----------------------------------------------------------------------------------------------------

/// Of two servers one is available: 70 % of the requests are its tier's.
fn shared(origins: &[Origin; 4], keys: &str) -> Builder {
    let builder = Proxy::over(origins).server(1, "drain = true").server(2, "backup = true");
    builder.server(3, "backup = true").in_cluster(&format!("spill = \"health\"\n{keys}"))
}

#[test]
fn a_tier_short_of_servers_gives_a_share_to_the_next() {
    let origins = ["a", "b", "c", "d"].map(Origin::named);
    let proxy = shared(&origins, "").start();
    let names = proxy.names(1000);
    // Seven standard deviations of 14.5.
    let n_first = names.matches('a').count();
    assert!((600..=800).contains(&n_first), "{n_first}");
    assert_eq!(names.matches('b').count(), 0);
    assert!(names.matches('c').count().abs_diff(names.matches('d').count()) <= 1);
    // It takes all while 72 % are there, and none where it has none.
    proxy.set_state(1, STATE_AVAILABLE);
    assert_eq!(proxy.names(100).matches(['c', 'd']).count(), 0);
    proxy.set_state(0, STATE_DOWN);
    proxy.set_state(1, STATE_DOWN);
    assert_eq!(proxy.names(100).matches(['c', 'd']).count(), 100);
}

/// A request whose own tier fails goes to the one before it, and to the one behind it.
#[test]
fn a_request_of_a_share_goes_on_to_every_other_tier() {
    for dead in [[0, 1], [2, 3]] {
        let mut n = 0;
        let origins = ["a", "b", "c", "d"].map(|name| {
            n += 1;
            if dead.contains(&(n - 1)) { Origin::dead() } else { Origin::named(name) }
        });
        let proxy = shared(&origins, "ejection = { failures = 0 }").start();
        let served = if dead == [0, 1] { ['c', 'd'] } else { ['a', 'a'] };
        assert_eq!(proxy.names(100).matches(served).count(), 100);
    }
}

#[test]
fn requests_of_one_key_stay_in_one_tier() {
    let origins = ["a", "b", "c", "d"].map(Origin::named);
    let proxy = shared(&origins, "key = \"header:X-Id\"").module("ring_hash").start();
    let of_key = |key: usize| {
        let get =
            || proxy.connect().send(format!("GET / HTTP/1.1\r\nHost: a\r\nX-Id: {key}\r\n\r\n")).reply();
        let names: BTreeSet<String> = (0..5).map(|_| get().text()).collect();
        assert_eq!(names.len(), 1, "{names:?}");
        names
    };
    let all: BTreeSet<String> = (0..50).flat_map(of_key).collect();
    assert!(all.contains("a") && all.len() > 1, "{all:?}");
}

// ---- hand-over ---------------------------------------------------------------------------------------------------------

#[test]
fn a_new_worker_knows_what_the_last_one_knew() {
    let well = switch(true);
    let origins: Vec<Origin> = ["a", "b", "c", "d"].map(|name| checked(name, &well)).into();
    let builder = || {
        Proxy::over(&origins)
            .named("handed-over")
            .in_cluster("health_check = { path = \"/health\", interval = \"24h\" }")
            .in_cluster("ejection = { failures = 2, time = \"1h\" }")
    };
    let old = builder().start();
    // Their first checks are over, or they would still change what is set here.
    eventually("the first checks", || {
        let facts = old.first_cluster().health_facts();
        (facts.iter().filter(|facts| facts.checks == 1).count() == 4).then_some(())
    });
    let ids: Vec<u64> = old.first_cluster().newest().endpoints.iter().map(|endpoint| endpoint.id).collect();
    old.first_cluster().take_over_health(&[
        HealthFacts { id: ids[0], checks: -3, down: true, ..HealthFacts::default() },
        HealthFacts {
            id: ids[1],
            checks: 9,
            ejected_ms: Some(600_000),
            ejections: 2,
            ..HealthFacts::default()
        },
        // One that is no more is passed over.
        HealthFacts { id: 1, down: true, ..HealthFacts::default() },
    ]);
    // A mark is none of its business: the supervisor remembers those. Without the fourth server the second one would come
    // back for it.
    old.first_cluster().set_source(&old.first_cluster().member(2), HealthSource::Drain, true);
    let new = builder().start_after(&old);
    let states: Vec<u32> = (0..4).map(|idx| state(&new, idx)).collect();
    assert_eq!(states, [STATE_DOWN, STATE_EJECTED, STATE_AVAILABLE, STATE_AVAILABLE]);
    let taken = new.first_cluster().health_facts();
    assert_eq!(taken.iter().map(|facts| facts.id).collect::<Vec<_>>(), ids);
    assert_eq!((taken[0].down, taken[1].ejections), (true, 2));
    let left = taken[1].ejected_ms.unwrap();
    assert!((560_000..=600_000).contains(&left), "{left} ms");
    log::line(&[&origins[1].url(), "ejected for", "as it was before the reload"]);
    assert_eq!(new.names(2), "c c");
    // One check that passes is not its first, so it is not enough.
    eventually("a check by the new one", || (n_checks(&origins[0]) == 2).then_some(()));
    eventually("its result", || (new.first_cluster().health_facts()[0].checks == 1).then_some(()));
    assert_eq!(state(&new, 0), STATE_DOWN);
}

/// Shares come back slowly, and a reload on the way does not make a server whole.
#[test]
fn slow_start_goes_on_in_a_new_worker() {
    let origins = ["a", "b"].map(Origin::named);
    let builder = || Proxy::over(&origins).named("rising").in_cluster("slow_start = \"24h\"");
    let old = builder().start();
    old.first_cluster().set_source(&old.first_cluster().member(1), HealthSource::Drain, true);
    old.first_cluster().set_source(&old.first_cluster().member(1), HealthSource::Drain, false);
    let weights = |proxy: &Proxy| -> Vec<f64> {
        let of = |weight: u32| f64::from(weight) / 65536.0;
        proxy
            .first_cluster()
            .newest()
            .endpoints
            .iter()
            .map(|endpoint| of(endpoint.effective_weight()))
            .collect()
    };
    assert!((0.09..0.11).contains(&weights(&old)[1]), "{:?}", weights(&old));
    let new = builder().start_after(&old);
    assert_eq!(weights(&new)[0], 1.0);
    assert!((0.09..0.11).contains(&weights(&new)[1]), "{:?}", weights(&new));
    let last = builder().start_after(&new);
    assert!((0.09..0.11).contains(&weights(&last)[1]), "{:?}", weights(&last));
}

#[test]
fn a_generation_that_drains_checks_no_servers() {
    let gate = Gate::default();
    let held = gate.clone();
    let origin = Origin::serving(move |conn| {
        while let Some(request) = conn.request() {
            if request.line().contains("/held") {
                held.wait();
            }
            conn.send("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na");
        }
    });
    let builder = |path: &str| {
        let check = format!("health_check = {{ path = {path:?}, interval = \"5ms\", timeout = \"10s\" }}");
        Proxy::over([&origin]).named("app").in_cluster(&check)
    };
    let site = Site::run(&builder("/first"));
    let n = |path: &str| origin.requests().iter().filter(|request| request.line().contains(path)).count();
    eventually("checks of the first", || (n("/first") > 3).then_some(()));
    let mut client = site.connect();
    client.get("/held");
    eventually("a request that holds it", || (n("/held") == 1).then_some(()));
    site.reload_with(&builder("/second"));
    eventually("checks of the second", || (n("/second") > 0).then_some(()));
    // One may be under way, or be begun before the order to drain has come.
    let before = n("/first");
    eventually("more checks of the second", || (n("/second") > 40).then_some(()));
    assert!(n("/first") <= before + 5, "{} after {before}", n("/first"));
    assert_eq!(site.status().generations.len(), 2, "the first one drains still");
    gate.open();
    assert_eq!(client.reply().status(), 200);
}

#[test]
fn a_server_that_is_reached_by_http_can_be_checked_by_https() {
    let (ca, well) = (Authority::new("ca"), switch(true));
    let (origin, checked) = (Origin::named("a"), checked("checked", &well));
    // Its name there is not its address.
    let tls = format!("tls = {{ certificates = [{}] }}", ca.issue(&["check.example"]).toml());
    let secure = Proxy::over([&checked]).listener(&tls).start();
    let port = secure.address().port();
    let check =
        format!("health_check = {{ path = \"/health\", port = {port}, tls = true, fall = 1, {QUICK} }}");
    let with = |tls: &str| Proxy::over([&origin]).in_cluster(&check).in_cluster(tls).start();
    let proxy = with(&format!("tls = {{ ca = {:?}, server_name = \"check.example\" }}", ca.path()));
    checked.wait_for_requests(2);
    assert_eq!(proxy.get("/").text(), "a");
    well.store(false, Ordering::SeqCst);
    wait_for_state(&proxy, 0, STATE_DOWN);
    // By its address alone it is not believed.
    let proxy = with(&format!("tls = {{ ca = {:?} }}", ca.path()));
    wait_for_state(&proxy, 0, STATE_DOWN);
    log::line(&[&origin.url(), "is down", "TLS handshake failed", "check.example"]);
}

#[test]
fn a_server_that_is_reached_by_https_can_be_checked_in_clear_text() {
    let (ca, well) = (Authority::new("ca"), switch(true));
    let (origin, plain) = (Origin::named("a"), checked("plain", &well));
    let tls = format!("tls = {{ certificates = [{}] }}", ca.issue(&["127.0.0.1"]).toml());
    let secure = Proxy::over([&origin]).listener(&tls).start();
    let port = plain.address().port();
    let check =
        format!("health_check = {{ path = \"/health\", port = {port}, tls = false, fall = 1, {QUICK} }}");
    let proxy = Proxy::over_urls([format!("https://{}", secure.address())])
        .in_cluster(&format!("tls = {{ ca = {:?} }}", ca.path()))
        .in_cluster(&check)
        .start();
    plain.wait_for_requests(2);
    assert_eq!(proxy.get("/").text(), "a");
    well.store(false, Ordering::SeqCst);
    wait_for_state(&proxy, 0, STATE_DOWN);
}
