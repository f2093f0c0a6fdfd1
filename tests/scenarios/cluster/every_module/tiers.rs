//! Tiers: backups, and requests that spill to the next tier.

use super::*;

#[test]
fn a_backup_is_left_alone_while_others_serve() {
    for case in all_modules() {
        let origins = ["backup", "a", "b"].map(Origin::named);
        let proxy = case.over(&origins).server(0, "backup = true").start();
        let names = proxy.names(40);
        let both = names.contains('a') && names.contains('b');
        assert!((both || !case.spreads()) && !names.contains("backup"), "{case}: {names}");
        assert_eq!(origins[0].n_connections(), 0, "{case}");
    }
}

#[test]
fn tiers_are_used_in_their_order() {
    for case in all_modules() {
        let origins = ["third", "second", "second", "first", "first"].map(Origin::named);
        let builder = case.over(&origins).server(0, "tier = 7").server(1, "tier = 2");
        let proxy = builder.server(2, "tier = 2").start();
        assert_eq!(proxy.names(4), ["first"; 4].join(" "), "{case}");
        origins[3].stop();
        assert_eq!(proxy.names(4), ["first"; 4].join(" "), "{case}");
        origins[4].stop();
        assert_eq!(proxy.names(4), ["second"; 4].join(" "), "{case}");
        origins[1].stop();
        origins[2].stop();
        assert_eq!(proxy.names(4), ["third"; 4].join(" "), "{case}");
        origins[0].stop();
        assert_eq!(proxy.get("/").status(), 502, "{case}");
        let third = format!(
            "trylist_tries_total{{cluster=\"%\",endpoint=\"{}\",result=\"served\"}}",
            origins[0].url()
        );
        proxy.wait_for_metric(&third, 4.0);
    }
}

/// Both tiers have the same module and settings, so "0" is the first endpoint of each.
#[test]
fn each_tiers_balancer_hears_the_end_of_what_it_was_asked() {
    let origins = [Origin::dead(), Origin::named("backup")];
    let journal = Journal::new();
    let proxy = Proxy::over(&origins)
        .server(1, "backup = true")
        .module_file("records_calls", &artifacts::broken("records-calls"))
        .in_cluster(&format!("settings = {}", journal.settings(&["0"])))
        .start();
    assert_eq!(proxy.get("/").text(), "backup");
    let calls = |call: &str| {
        proxy.metric(&format!(
            "trylist_module_calls_total{{cluster=\"%\",module=\"records_calls\",call=\"{call}\"}}"
        ))
    };
    for call in ["load_balance", "finish", "drop"] {
        assert_eq!(calls(call), 2.0, "{call}");
    }
    drop(proxy);
    assert_eq!(
        journal.all(),
        [
            "/ load_balance",
            "/ next after []: 0",
            "/ report_failure 0 Connect, try 1",
            "/ observe 0 TryEnded NotEstablished",
            "/ next after [0]: exhausted",
            "/ finish Failed by None, status None, tries 1",
            "/ drop",
        ]
    );
}

#[test]
fn full_servers_are_waited_for_and_the_backup_left_alone() {
    let gate = Gate::default();
    let origins = [Origin::gated("ok", &gate), Origin::named("backup")];
    let builder = Proxy::over(&origins).server(0, "max_requests = 1").server(1, "backup = true");
    let proxy = builder.in_cluster("queue_timeout = \"20s\"").start();
    let mut busy = busy_client(&proxy, &origins[0], "/");
    let mut waiting = waiting_client(&proxy, "/", 1);
    gate.open();
    assert_eq!((busy.reply().text(), waiting.reply().text()), ("ok".into(), "ok".into()));
    assert_eq!(origins[1].n_connections(), 0);
}

#[test]
fn full_servers_spill_to_the_backup_where_that_is_asked_for_or_nobody_can_wait() {
    for keys in ["when_full = \"spill\"", "queue = 0", "queue_timeout = \"0s\""] {
        for case in all_modules() {
            let gate = Gate::default();
            let origins = [Origin::gated("ok", &gate), Origin::named("backup")];
            let builder = case.over(&origins).server(0, "max_requests = 1").server(1, "backup = true");
            let proxy = builder.in_cluster(keys).start();
            let mut busy = busy_client(&proxy, &origins[0], "/");
            assert_eq!(proxy.names(3), "backup backup backup", "{case}, {keys}");
            gate.open();
            assert_eq!(busy.reply().text(), "ok");
            assert_eq!(proxy.get("/").text(), "ok", "{case}, {keys}: free again");
        }
    }
}

#[test]
fn where_nobody_can_wait_and_none_may_spill_requests_are_refused() {
    let gate = Gate::default();
    let origins = [Origin::gated("ok", &gate), Origin::named("backup")];
    let builder = Proxy::over(&origins).server(0, "max_requests = 1").server(1, "backup = true");
    let proxy = builder.in_cluster("queue = 0\nwhen_full = \"wait\"").start();
    let mut busy = busy_client(&proxy, &origins[0], "/");
    assert_eq!(proxy.get("/").status(), 503);
    assert_eq!(origins[1].n_connections(), 0);
    gate.open();
    assert_eq!(busy.reply().status(), 200);
}

#[test]
fn who_spills_and_finds_all_full_waits_for_the_first_of_any_tier() {
    for case in all_modules() {
        for first_free in [0, 1] {
            let gates = [Gate::default(), Gate::default()];
            let origins = gates.each_ref().map(|gate| Origin::gated("ok", gate));
            let builder = case.over(&origins).server(0, "max_requests = 1");
            let builder = builder.server(1, "max_requests = 1, backup = true");
            let proxy = builder.in_cluster("when_full = \"spill\"\nqueue_timeout = \"20s\"").start();
            let mut clients = [(); 3].map(|()| proxy.connect());
            for (i, origin) in origins.iter().enumerate() {
                clients[i].get("/busy");
                origin.wait_for_requests(1);
            }
            clients[2].get("/waiting");
            proxy.wait_for_queue(1);
            gates[first_free].open();
            assert_eq!(clients[2].reply().text(), "ok", "{case}");
            assert_eq!(origins[first_free].requests()[1].line(), "GET /waiting HTTP/1.1", "{case}");
            gates[1 - first_free].open();
            assert_eq!([clients[0].reply().status(), clients[1].reply().status()], [200, 200]);
        }
    }
}

/// Else it would be tried twice, or its first try be forgotten.
#[test]
fn a_server_that_was_tried_before_a_spill_is_not_tried_again() {
    let gate = Gate::default();
    let origins = [Origin::dead(), Origin::gated("ok", &gate), Origin::dead()];
    let builder = Proxy::over(&origins).server(1, "max_requests = 1").server(2, "backup = true");
    let proxy = builder
        .in_cluster("when_full = \"spill\"\nqueue_timeout = \"20s\"\nejection = { failures = 0 }")
        .start();
    let mut busy = busy_client(&proxy, &origins[1], "/busy");
    let mut waiting = waiting_client(&proxy, "/waiting", 1);
    gate.open();
    assert_eq!([busy.reply().text(), waiting.reply().text()], ["ok", "ok"]);
    let failed = |origin: &Origin| {
        proxy.metric(&format!(
            "trylist_tries_total{{cluster=\"%\",endpoint=\"{}\",result=\"not_established\"}}",
            origin.url()
        ))
    };
    assert_eq!([failed(&origins[0]), failed(&origins[2])], [2.0, 1.0], "once for each of two, once for one");
}
