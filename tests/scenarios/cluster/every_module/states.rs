//! States of servers, and slow start.

use super::*;

#[test]
fn a_server_marked_to_drain_gets_nothing() {
    for case in all_modules() {
        let origins = ["drains", "a", "b"].map(Origin::named);
        let proxy = case.over(&origins).server(0, "drain = true").start();
        assert!(!proxy.names(30).contains("drains"), "{case}");
        assert_eq!(origins[0].n_connections(), 0, "{case}");
        let state = format!(
            "trylist_endpoint_state{{cluster=\"%\",endpoint=\"{}\",state=\"draining\"}}",
            origins[0].url()
        );
        assert_eq!(proxy.metric(&state), 1.0, "{case}");
    }
}

#[test]
fn a_tier_with_nobody_available_is_passed_over() {
    for case in all_modules() {
        let origins = ["first", "backup"].map(Origin::named);
        let proxy = case.over(&origins).server(1, "backup = true").start();
        assert_eq!(proxy.names(2), "first first", "{case}");
        proxy.set_state(0, STATE_EJECTED);
        assert_eq!(proxy.names(2), "backup backup", "{case}");
        let calls = |call: &str| {
            let labels = format!("cluster=\"%\",module=\"{}\"", case.module);
            proxy.metric(&format!("trylist_module_{call}").replace("LABELS", &labels))
        };
        assert_eq!(calls("declined_answers_total{LABELS}"), 0.0, "{case}: not even asked");
        assert_eq!(calls("calls_total{LABELS,call=\"next\"}"), 4.0, "{case}");
        proxy.set_state(0, STATE_AVAILABLE);
        assert_eq!(proxy.names(2), "first first", "{case}");
    }
}

#[test]
fn with_all_down_requests_fail_unless_told_to_try_all() {
    for case in all_modules() {
        let origins = ["a", "b", "c"].map(Origin::named);
        let all_down = |policy: &str| {
            let policy = format!("all_down = {policy:?}");
            let proxy = case.over(&origins).server(2, "backup = true").in_cluster(&policy).start();
            (0..3).for_each(|i| proxy.set_state(i, STATE_DOWN));
            proxy
        };
        let fail = all_down("fail").get("/");
        assert_eq!((fail.status(), fail.header("retry-after")), (503, Some("1")), "{case}");

        let proxy = all_down("try_all");
        let names = proxy.names(40);
        assert!(names.contains('a') && names.contains('b') && !names.contains('c'), "{case}: {names}");
        proxy.set_state(0, STATE_DRAINING);
        assert_eq!(proxy.names(4), "b b b b", "{case}: who drains is left alone");
        proxy.set_state(1, STATE_DRAINING);
        assert_eq!(proxy.names(2), "c c", "{case}: tiers go on");
        proxy.set_state(2, STATE_DRAINING);
        assert_eq!(proxy.get("/").status(), 503, "{case}");
        proxy.set_state(0, STATE_AVAILABLE);
        assert_eq!(proxy.names(2), "a a", "{case}");
    }
}

#[test]
fn who_waits_goes_to_a_server_that_becomes_available() {
    let gate = Gate::default();
    let origins = [Origin::gated("ok", &gate), Origin::named("back")];
    let builder = Proxy::over(&origins).each_server("max_requests = 1");
    let proxy = builder.in_cluster("queue_timeout = \"20s\"").start();
    proxy.set_state(1, STATE_DOWN);
    let mut busy = busy_client(&proxy, &origins[0], "/");
    let mut waiting = waiting_client(&proxy, "/", 1);
    proxy.set_state(1, STATE_AVAILABLE);
    assert_eq!(waiting.reply().text(), "back");
    gate.open();
    assert_eq!(busy.reply().status(), 200);
}

/// A window so long that nothing rises while the test looks.
#[test]
fn a_server_that_comes_back_begins_with_a_tenth_of_its_weight() {
    let origins = ["a", "b"].map(Origin::named);
    let builder = Proxy::over(&origins).module("round_robin").each_server("weight = 10");
    let proxy = builder.in_cluster("slow_start = \"24h\"").start();
    let weight = format!("trylist_endpoint_weight{{cluster=\"%\",endpoint=\"{}\"}}", origins[1].url());
    assert_eq!(proxy.metric(&weight), 10.0, "never at the start of the process");
    assert_eq!(proxy.names(22).matches('b').count(), 11);
    proxy.set_state(1, STATE_DOWN);
    assert!(!proxy.names(5).contains('b'));
    proxy.set_state(1, STATE_AVAILABLE);
    assert_eq!(proxy.metric(&weight).round(), 1.0);
    assert_eq!(proxy.names(110).matches('b').count(), 10, "one of eleven");
}

/// Of two servers, one with a tenth of its weight.
#[test]
fn a_server_that_comes_back_gets_little_at_first_from_every_module_that_weighs() {
    const REQUESTS: usize = 400;
    let origins = ["a", "b"].map(Origin::named);
    // Times, bytes of the past and places in the file are what these choose by; one client has one server.
    let weighs =
        |case: &Case| !matches!(&*case.module, "proxy_lb" | "first" | "least_time" | "peak_ewma" | "ip_hash");
    for case in all_modules().filter(weighs) {
        let builder = case.over(&origins).each_server("weight = 10");
        let proxy = builder.in_cluster("slow_start = \"24h\"").start();
        let mut client = proxy.connect();
        let mut of_b = |round: usize| {
            let path = |i: usize| format!("/{round}/{i}");
            let names = (0..REQUESTS).map(|i| client.get(&path(i)).reply().text());
            names.filter(|name| name == "b").count() as f64 / REQUESTS as f64
        };
        // A half, within seven deviations of draws; of rings, whose shares differ more, the same.
        let before = of_b(0);
        assert!((0.32..0.68).contains(&before), "{case}: {before} before");
        proxy.set_state(1, STATE_DOWN);
        assert_eq!(of_b(1), 0.0, "{case}: while it is down");
        proxy.set_state(1, STATE_AVAILABLE);
        let first = of_b(2);
        // A hash gives it the tenth of its own keys, another a tenth of the turns: about 20 or 36 of 400.
        assert!(first > 0.0 && first < 0.2, "{case}: {first} at first");
    }
}

#[test]
fn a_servers_weight_rises_to_its_own() {
    let origins = ["a", "b"].map(Origin::named);
    let builder = Proxy::over(&origins).module("round_robin").each_server("weight = 10");
    let proxy = builder.in_cluster("slow_start = \"300ms\"").start();
    let weight = format!("trylist_endpoint_weight{{cluster=\"%\",endpoint=\"{}\"}}", origins[1].url());
    proxy.set_state(1, STATE_DOWN);
    proxy.set_state(1, STATE_AVAILABLE);
    proxy.wait_for_metric(&weight, 10.0);
    assert_eq!(proxy.names(22).matches('b').count(), 11);
}
