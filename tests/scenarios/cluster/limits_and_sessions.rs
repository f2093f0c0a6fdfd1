//! The host's own work for every module: limits of servers and the queue before them,
//! tiers, states, slow start, sessions.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use lb_api::wire::{STATE_AVAILABLE, STATE_DOWN, STATE_DRAINING, STATE_EJECTED};
use tests::artifacts;
use tests::journal::Journal;
use tests::origin::Origin;
use tests::proxy::{Builder, Proxy};
use tests::{Gate, eventually};
use trylist::cluster::health::HealthSource;

/// A module of ours, and the further settings of its clusters. The host does the same with each of them, whether it reads
/// limits, states, weights, times, keys or nothing.
struct Case {
    module: String,
    keys: &'static str,
}

/// All modules; those that hash keys of the request once with a key, which is the path, and once with none that is there.
fn all_modules() -> impl Iterator<Item = Case> {
    artifacts::module_ids().into_iter().flat_map(|module| {
        let keys: &[&str] = match module.as_str() {
            "hash" | "maglev" | "rendezvous" | "ring_hash" => &["key = \"path\"", "key = \"header:x-none\""],
            // With another that asks for keys, no proxy starts.
            _ => &[""],
        };
        keys.iter().map(move |keys| Case { module: module.clone(), keys })
    })
}

impl Case {
    fn over<'a>(&self, origins: impl IntoIterator<Item = &'a Origin>) -> Builder {
        Proxy::over(origins).module(&self.module).in_cluster(self.keys)
    }

    /// Whether requests of one client for one path, one after the other, come to all servers of a tier.
    fn spreads(&self) -> bool {
        let stays = matches!(self.module.as_str(), "first" | "ip_hash" | "least_time" | "peak_ewma");
        !stays && self.keys != "key = \"path\""
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.module, self.keys)
    }
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// A server that answers once the gate is open.
fn gated(gate: &Gate) -> Origin {
    let gate = gate.clone();
    Origin::serving(move |conn| {
        while conn.request().is_some() {
            gate.wait();
            conn.send(OK);
        }
    })
}

// ---- limits of servers -----------------------------------------------------------------------------------------------

/// A server that fails the test where it has more requests at once than this.
fn limited(max: usize, most: &Arc<AtomicUsize>) -> Origin {
    let (inside, most) = (AtomicUsize::new(0), Arc::clone(most));
    Origin::serving(move |conn| {
        while conn.request().is_some() {
            let n = inside.fetch_add(1, Ordering::SeqCst) + 1;
            most.fetch_max(n, Ordering::SeqCst);
            // Lets others in, if the proxy does.
            std::thread::yield_now();
            inside.fetch_sub(1, Ordering::SeqCst);
            if n > max || !conn.send(OK) {
                break;
            }
        }
    })
}

#[test]
fn a_server_never_has_more_requests_than_its_limit_and_all_are_served() {
    const N_CLIENTS: usize = 24;
    const N_REQUESTS: usize = 40;
    for case in all_modules() {
        let most = Arc::new(AtomicUsize::new(0));
        let origins = [(); 3].map(|()| limited(2, &most));
        let builder = case.over(&origins).threads(3).each_server("max_requests = 2");
        let proxy = builder.in_cluster("queue_timeout = \"20s\"").start();
        std::thread::scope(|scope| {
            for _ in 0..N_CLIENTS {
                scope.spawn(|| {
                    let mut client = proxy.connect();
                    for _ in 0..N_REQUESTS {
                        assert_eq!(client.get("/").reply().text(), "ok");
                    }
                });
            }
        });
        assert!((1..=2).contains(&most.load(Ordering::SeqCst)), "{case}: {most:?} at once");
        proxy.wait_for_metric("trylist_queue_length{cluster=\"%\"}", 0.0);
        let served: usize = origins.iter().map(|origin| origin.requests().len()).sum();
        assert_eq!(served, N_CLIENTS * N_REQUESTS, "{case}");
    }
}

#[test]
fn who_finds_all_servers_full_waits_for_the_first_that_comes_free() {
    for case in all_modules() {
        let (slow, quick) = (Gate::default(), Gate::default());
        let origins = [gated(&slow), gated(&quick)];
        let builder = case.over(&origins).each_server("max_requests = 1");
        let proxy = builder.in_cluster("queue_timeout = \"20s\"").start();
        let mut busy = [proxy.connect(), proxy.connect()];
        for client in &mut busy {
            client.get("/busy");
        }
        for origin in &origins {
            origin.wait_for_requests(1);
        }
        let mut waiting = proxy.connect();
        waiting.get("/waiting");
        proxy.wait_for_metric("trylist_queue_length{cluster=\"%\"}", 1.0);
        quick.open();
        assert_eq!(waiting.reply().text(), "ok", "{case}");
        assert_eq!(origins[1].requests()[1].line(), "GET /waiting HTTP/1.1", "{case}");
        assert_eq!(origins[0].requests().len(), 1, "{case}");
        slow.open();
        for client in &mut busy {
            assert_eq!(client.reply().status(), 200);
        }
        proxy.wait_for_metric("trylist_queue_waits_total{cluster=\"%\",end=\"admitted\"}", 1.0);
    }
}

#[test]
fn a_full_server_is_waited_for_though_another_has_failed() {
    for case in all_modules() {
        let gate = Gate::default();
        let origins = [Origin::dead(), gated(&gate)];
        let builder = case.over(&origins).each_server("max_requests = 1");
        let proxy = builder.in_cluster("queue_timeout = \"20s\"").start();
        let (mut busy, mut waiting) = (proxy.connect(), proxy.connect());
        busy.get("/busy");
        origins[1].wait_for_requests(1);
        waiting.get("/waiting");
        proxy.wait_for_metric("trylist_queue_length{cluster=\"%\"}", 1.0);
        gate.open();
        assert_eq!([busy.reply().text(), waiting.reply().text()], ["ok", "ok"], "{case}");
    }
}

/// More of them than a module may answer in vain, so that the host looks by itself.
#[test]
fn many_full_servers_are_waited_for_though_another_has_failed() {
    for case in all_modules() {
        let gate = Gate::default();
        let full = [(); 18].map(|()| gated(&gate));
        let dead = Origin::dead();
        let builder = case.over([&dead].into_iter().chain(&full));
        let proxy = builder.each_server("max_requests = 1").in_cluster("queue_timeout = \"20s\"").start();
        let mut busy = [(); 18].map(|()| proxy.connect());
        for (i, client) in busy.iter_mut().enumerate() {
            client.get("/busy");
            let n_arrived = || full.iter().map(|origin| origin.requests().len()).sum::<usize>();
            eventually("its arrival", || (n_arrived() == i + 1).then_some(()));
        }
        let mut waiting = proxy.connect();
        waiting.get("/waiting");
        proxy.wait_for_metric("trylist_queue_length{cluster=\"%\"}", 1.0);
        gate.open();
        for client in busy.iter_mut().chain([&mut waiting]) {
            assert_eq!(client.reply().text(), "ok", "{case}");
        }
    }
}

#[test]
fn who_waits_is_served_in_the_order_of_coming() {
    let gate = Gate::default();
    let origin = gated(&gate);
    let builder = Proxy::over([&origin]).each_server("max_requests = 1");
    let proxy = builder.in_cluster("queue_timeout = \"20s\"").start();
    let mut clients: Vec<_> = (0..6).map(|_| proxy.connect()).collect();
    for (i, client) in clients.iter_mut().enumerate() {
        client.get(&format!("/{i}"));
        if i == 0 {
            origin.wait_for_requests(1);
        }
        proxy.wait_for_metric("trylist_queue_length{cluster=\"%\"}", i as f64);
    }
    gate.open();
    for client in &mut clients {
        assert_eq!(client.reply().status(), 200);
    }
    let order: Vec<_> = origin.requests().iter().map(|request| request.line().to_owned()).collect();
    assert_eq!(order, (0..6).map(|i| format!("GET /{i} HTTP/1.1")).collect::<Vec<_>>());
}

#[test]
fn the_newest_is_served_first_where_that_is_asked_for_and_a_full_queue_loses_its_oldest() {
    let gate = Gate::default();
    let origin = gated(&gate);
    let builder = Proxy::over([&origin]).each_server("max_requests = 1");
    let proxy = builder.in_cluster("queue = 4\nqueue_order = \"lifo\"\nqueue_timeout = \"20s\"").start();
    let mut clients: Vec<_> = (0..6).map(|_| proxy.connect()).collect();
    for (i, client) in clients.iter_mut().enumerate() {
        client.get(&format!("/{i}"));
        if i == 0 {
            origin.wait_for_requests(1);
        }
        if i < 5 {
            proxy.wait_for_metric("trylist_queue_length{cluster=\"%\"}", i as f64);
        }
    }
    let refused = clients[1].reply();
    assert_eq!((refused.status(), refused.header("retry-after")), (503, Some("1")), "the oldest that waits");
    proxy.wait_for_metric("trylist_queue_waits_total{cluster=\"%\",end=\"displaced\"}", 1.0);
    gate.open();
    for (i, client) in clients.iter_mut().enumerate() {
        if i != 1 {
            assert_eq!(client.reply().status(), 200);
        }
    }
    let order: Vec<_> = origin.requests().iter().map(|request| request.line().to_owned()).collect();
    assert_eq!(order, [0, 5, 4, 3, 2].map(|i| format!("GET /{i} HTTP/1.1")));
}

/// Answers `/flaky` with 503 at once, all else with 200.
fn flaky(name: &'static str) -> Origin {
    Origin::serving(move |conn| {
        while let Some(request) = conn.request() {
            let status = if request.line().contains("/flaky") { "503 No" } else { "200 OK" };
            let length = name.len();
            conn.send(format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{name}"));
        }
    })
}

#[test]
fn nobody_waits_behind_a_retry_that_waits_for_another_server() {
    for case in all_modules() {
        let gate = Gate::default();
        let origins = [gated(&gate), flaky("idle")];
        let proxy = case
            .over(&origins)
            .server(0, "max_requests = 1")
            .server(1, "max_requests = 100")
            .in_cluster("queue_timeout = \"20s\"")
            .route("path = \"/\"\nretry = { on = [\"503\"], backoff = \"0s\" }")
            .start();
        proxy.set_state(1, STATE_DOWN);
        let (mut busy, mut retried) = (proxy.connect(), proxy.connect());
        busy.get("/busy");
        origins[0].wait_for_requests(1);
        proxy.set_state(1, STATE_AVAILABLE);
        retried.get("/flaky");
        proxy.wait_for_metric("trylist_queue_length{cluster=\"%\"}", 1.0);
        // The queue is asked again every 250 ms; by events alone it is not.
        for _ in 0..4 {
            assert_eq!(proxy.get("/").text(), "idle", "{case}");
        }
        let waits = proxy.metric("trylist_queue_waits_total{cluster=\"%\",end=\"admitted\"}");
        assert_eq!(waits, 0.0, "{case}: none of them has waited");
        gate.open();
        assert_eq!([busy.reply().text(), retried.reply().text()], ["ok", "ok"], "{case}");
    }
}

/// A module may answer one server only, and different ones for different requests.
#[test]
fn nobody_waits_behind_a_request_whose_module_answers_another_server() {
    let gate = Gate::default();
    let origins = [gated(&gate), flaky("idle")];
    let proxy = Proxy::over(&origins)
        .module_file("exhausts_early", &artifacts::broken("exhausts-early"))
        .each_server("max_requests = 1")
        .in_cluster("queue_timeout = \"20s\"")
        .start();
    let mut clients = [(); 4].map(|()| proxy.connect());
    for (i, client) in clients.iter_mut().enumerate() {
        client.get(&format!("/0/{i}"));
        if i == 0 {
            origins[0].wait_for_requests(1);
        }
        proxy.wait_for_metric("trylist_queue_length{cluster=\"%\"}", i as f64);
    }
    for _ in 0..4 {
        assert_eq!(proxy.get("/1").text(), "idle");
    }
    let waits = proxy.metric("trylist_queue_waits_total{cluster=\"%\",end=\"admitted\"}");
    assert_eq!(waits, 0.0, "none of them has waited");
    gate.open();
    for client in &mut clients {
        assert_eq!(client.reply().text(), "ok");
    }
    let order: Vec<_> = origins[0].requests().iter().map(|request| request.line().to_owned()).collect();
    assert_eq!(order, [0, 1, 2, 3].map(|i| format!("GET /0/{i} HTTP/1.1")), "in the order of coming");
}

/// A free server goes to a request that can use it.
#[test]
fn a_server_that_comes_free_is_not_offered_to_a_retry_that_has_tried_it() {
    let (first, second) = (Gate::default(), Gate::default());
    let failing = Origin::serving({
        let second = second.clone();
        move |conn| {
            while let Some(request) = conn.request() {
                if request.line().contains("/busy") {
                    second.wait();
                }
                let status = if request.line().contains("/flaky") { "503 No" } else { "200 OK" };
                conn.send(format!("HTTP/1.1 {status}\r\nContent-Length: 6\r\n\r\nsecond"));
            }
        }
    });
    let origins = [gated(&first), failing];
    let proxy = Proxy::over(&origins)
        .each_server("max_requests = 1")
        .in_cluster("queue_timeout = \"20s\"")
        .route("path = \"/\"\nretry = { on = [\"503\"], backoff = \"0s\" }")
        .start();
    proxy.set_state(1, STATE_DOWN);
    let mut clients = [(); 4].map(|()| proxy.connect());
    let [busy, retried, other, waiting] = &mut clients;
    busy.get("/");
    origins[0].wait_for_requests(1);
    proxy.set_state(1, STATE_AVAILABLE);
    retried.get("/flaky");
    proxy.wait_for_metric("trylist_queue_length{cluster=\"%\"}", 1.0);
    other.get("/busy");
    origins[1].wait_for_requests(2);
    waiting.get("/waiting");
    proxy.wait_for_metric("trylist_queue_length{cluster=\"%\"}", 2.0);
    second.open();
    assert_eq!(waiting.reply().text(), "second");
    first.open();
    assert_eq!([busy.reply().text(), retried.reply().text()], ["ok", "ok"]);
    assert_eq!(other.reply().status(), 200);
}

#[test]
fn a_full_queue_refuses_at_once() {
    let gate = Gate::default();
    let origin = gated(&gate);
    let builder = Proxy::over([&origin]).each_server("max_requests = 1");
    let proxy = builder.in_cluster("queue = 1\nqueue_timeout = \"20s\"").start();
    let (mut busy, mut waiting) = (proxy.connect(), proxy.connect());
    busy.get("/");
    origin.wait_for_requests(1);
    waiting.get("/");
    proxy.wait_for_metric("trylist_queue_length{cluster=\"%\"}", 1.0);
    let refused = proxy.get("/");
    assert_eq!((refused.status(), refused.header("retry-after")), (503, Some("1")));
    proxy.wait_for_metric("trylist_queue_full_total{cluster=\"%\"}", 1.0);
    gate.open();
    assert_eq!((busy.reply().status(), waiting.reply().status()), (200, 200));
}

/// One client filled the queue, and all others were refused.
#[test]
fn a_client_has_its_share_of_the_queue_and_no_more() {
    let gate = Gate::default();
    let origin = gated(&gate);
    let builder = Proxy::over([&origin]).each_server("max_requests = 1");
    let builder = builder.in_cluster("queue = 8\nqueue_per_client = 2\nqueue_timeout = \"20s\"");
    let proxy = builder.tables("[forwarded]\ntrusted = [\"127.0.0.0/8\"]").start();
    let ask = |client: &str| {
        let mut connection = proxy.connect();
        connection.send(format!("GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: {client}\r\n\r\n"));
        connection
    };
    let wait_for = |metric: &str, n: f64| proxy.wait_for_metric(&format!("{metric}{{cluster=\"%\"}}"), n);
    let mut all = vec![ask("192.0.2.1")];
    origin.wait_for_requests(1);
    // The one that is served does not count. A network of IPv6 is one client.
    all.extend(["192.0.2.1", "192.0.2.1", "2001:db8::1", "2001:db8::2"].map(ask));
    wait_for("trylist_queue_length", 4.0);
    for client in ["192.0.2.1", "2001:db8::3"] {
        let refused = ask(client).reply();
        assert_eq!((refused.status(), refused.header("retry-after")), (503, Some("1")), "{client}");
        assert!(refused.text().contains("too many requests of this client wait"), "{}", refused.text());
    }
    wait_for("trylist_queue_client_full_total", 2.0);
    all.push(ask("192.0.2.2"));
    wait_for("trylist_queue_length", 5.0);
    gate.open();
    assert!(all.iter_mut().all(|connection| connection.reply().status() == 200));
    // Requests that left the queue no longer count.
    assert_eq!(ask("192.0.2.1").reply().status(), 200);
}

#[test]
fn who_waits_too_long_is_refused() {
    for case in all_modules() {
        let gate = Gate::default();
        let origin = gated(&gate);
        let builder = case.over([&origin]).each_server("max_requests = 1");
        let proxy = builder.in_cluster("queue_timeout = \"30ms\"").start();
        let mut busy = proxy.connect();
        busy.get("/");
        origin.wait_for_requests(1);
        let refused = proxy.get("/");
        assert_eq!((refused.status(), refused.header("retry-after")), (503, Some("1")), "{case}");
        proxy.wait_for_metric("trylist_queue_length{cluster=\"%\"}", 0.0);
        gate.open();
        assert_eq!(busy.reply().status(), 200);
        assert_eq!(proxy.get("/").status(), 200, "{case}: free again");
        assert_eq!(origin.requests().len(), 2, "{case}");
    }
}

#[test]
fn a_server_without_a_limit_takes_what_a_full_one_does_not() {
    let gate = Gate::default();
    let origins = [gated(&gate), Origin::named("free")];
    let proxy = Proxy::over(&origins).server(0, "max_requests = 1").start();
    let mut busy = proxy.connect();
    busy.get("/");
    origins[0].wait_for_requests(1);
    assert_eq!(proxy.names(5), ["free"; 5].join(" "));
    gate.open();
    assert_eq!(busy.reply().status(), 200);
}

#[test]
fn requests_of_an_older_generation_take_up_room_until_they_end() {
    for case in all_modules() {
        let origin = Origin::named("a");
        let builder = case.over([&origin]).each_server("max_requests = 3");
        let proxy = builder.in_cluster("queue_timeout = \"20s\"").start();
        let cluster = &proxy.clusters()[0];
        cluster.set_in_flight_older(&cluster.member(0), 2);
        assert_eq!(proxy.names(2), "a a", "{case}: there is room for one");
        cluster.set_in_flight_older(&cluster.member(0), 3);
        let mut waiting = proxy.connect();
        waiting.get("/");
        proxy.wait_for_metric("trylist_queue_length{cluster=\"%\"}", 1.0);
        assert_eq!(origin.requests().len(), 2, "{case}");
        cluster.set_in_flight_older(&cluster.member(0), 0);
        assert_eq!(waiting.reply().text(), "a", "{case}");
    }
}

// ---- tiers -----------------------------------------------------------------------------------------------------------

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
    let origins = [gated(&gate), Origin::named("backup")];
    let builder = Proxy::over(&origins).server(0, "max_requests = 1").server(1, "backup = true");
    let proxy = builder.in_cluster("queue_timeout = \"20s\"").start();
    let (mut busy, mut waiting) = (proxy.connect(), proxy.connect());
    busy.get("/");
    origins[0].wait_for_requests(1);
    waiting.get("/");
    proxy.wait_for_metric("trylist_queue_length{cluster=\"%\"}", 1.0);
    gate.open();
    assert_eq!((busy.reply().text(), waiting.reply().text()), ("ok".into(), "ok".into()));
    assert_eq!(origins[1].n_connections(), 0);
}

#[test]
fn full_servers_spill_to_the_backup_where_that_is_asked_for_or_nobody_can_wait() {
    for keys in ["when_full = \"spill\"", "queue = 0", "queue_timeout = \"0s\""] {
        for case in all_modules() {
            let gate = Gate::default();
            let origins = [gated(&gate), Origin::named("backup")];
            let builder = case.over(&origins).server(0, "max_requests = 1").server(1, "backup = true");
            let proxy = builder.in_cluster(keys).start();
            let mut busy = proxy.connect();
            busy.get("/");
            origins[0].wait_for_requests(1);
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
    let origins = [gated(&gate), Origin::named("backup")];
    let builder = Proxy::over(&origins).server(0, "max_requests = 1").server(1, "backup = true");
    let proxy = builder.in_cluster("queue = 0\nwhen_full = \"wait\"").start();
    let mut busy = proxy.connect();
    busy.get("/");
    origins[0].wait_for_requests(1);
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
            let origins = gates.each_ref().map(gated);
            let builder = case.over(&origins).server(0, "max_requests = 1");
            let builder = builder.server(1, "max_requests = 1, backup = true");
            let proxy = builder.in_cluster("when_full = \"spill\"\nqueue_timeout = \"20s\"").start();
            let mut clients = [(); 3].map(|()| proxy.connect());
            for (i, origin) in origins.iter().enumerate() {
                clients[i].get("/busy");
                origin.wait_for_requests(1);
            }
            clients[2].get("/waiting");
            proxy.wait_for_metric("trylist_queue_length{cluster=\"%\"}", 1.0);
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
    let origins = [Origin::dead(), gated(&gate), Origin::dead()];
    let builder = Proxy::over(&origins).server(1, "max_requests = 1").server(2, "backup = true");
    let proxy = builder
        .in_cluster("when_full = \"spill\"\nqueue_timeout = \"20s\"\nejection = { failures = 0 }")
        .start();
    let (mut busy, mut waiting) = (proxy.connect(), proxy.connect());
    busy.get("/busy");
    origins[1].wait_for_requests(1);
    waiting.get("/waiting");
    proxy.wait_for_metric("trylist_queue_length{cluster=\"%\"}", 1.0);
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

// ---- states ----------------------------------------------------------------------------------------------------------

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
    let origins = [gated(&gate), Origin::named("back")];
    let builder = Proxy::over(&origins).each_server("max_requests = 1");
    let proxy = builder.in_cluster("queue_timeout = \"20s\"").start();
    proxy.set_state(1, STATE_DOWN);
    let (mut busy, mut waiting) = (proxy.connect(), proxy.connect());
    busy.get("/");
    origins[0].wait_for_requests(1);
    waiting.get("/");
    proxy.wait_for_metric("trylist_queue_length{cluster=\"%\"}", 1.0);
    proxy.set_state(1, STATE_AVAILABLE);
    assert_eq!(waiting.reply().text(), "back");
    gate.open();
    assert_eq!(busy.reply().status(), 200);
}

// ---- slow start ------------------------------------------------------------------------------------------------------

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

// ---- sessions --------------------------------------------------------------------------------------------------------

const SECRET: &str = "secret = \"0123456789abcdef\"";

fn get_with(proxy: &Proxy, header: &str) -> tests::stream::Message {
    proxy.connect().send(format!("GET / HTTP/1.1\r\nHost: test\r\n{header}\r\n\r\n")).reply()
}

#[test]
fn a_session_stays_with_the_server_that_its_cookie_names() {
    for case in all_modules() {
        let origins = ["a", "b", "c"].map(Origin::named);
        let sticky = format!("sticky = {{ cookie = \"server\", {SECRET} }}");
        let start = || case.over(&origins).named("sessions").in_cluster(&sticky).start();
        let proxy = start();
        let first = proxy.get("/");
        let cookie = first.header("set-cookie").expect("a cookie");
        let (pair, attributes) = cookie.split_once("; ").unwrap();
        assert_eq!(attributes, "Path=/; HttpOnly; SameSite=Lax");
        let mine = format!("Cookie: other=1; {pair}; more=2");
        for _ in 0..20 {
            let reply = get_with(&proxy, &mine);
            assert_eq!(reply.text(), first.text(), "{case}");
            assert_eq!(reply.header("set-cookie"), None, "{case}: it has one");
        }
        // The secret and the servers are the same, so the cookie is.
        drop(proxy);
        let proxy = start();
        assert_eq!(get_with(&proxy, &mine).text(), first.text(), "{case}: after a restart");

        let idx = ["a", "b", "c"].iter().position(|name| *name == first.text()).unwrap();
        origins[idx].stop();
        let moved = get_with(&proxy, &mine);
        assert_ne!(moved.text(), first.text(), "{case}");
        let (next, _) = moved.header("set-cookie").expect("a new cookie").split_once("; ").unwrap();
        assert_ne!(next, pair);
        assert_eq!(get_with(&proxy, &format!("Cookie: {next}")).text(), moved.text(), "{case}");
    }
}

#[test]
fn the_cookie_is_for_tls_alone_where_the_client_came_by_tls() {
    let origins = ["a", "b"].map(Origin::named);
    let cookie = |more: &str, request: &str| {
        let sticky = format!("sticky = {{ cookie = \"server\", {SECRET}{more} }}");
        let trust = "[forwarded]\ntrusted = [\"127.0.0.1\"]";
        let proxy = Proxy::over(&origins).in_cluster(&sticky).tables(trust).start();
        let reply = get_with(&proxy, request);
        let cookie = reply.header("set-cookie").expect("a cookie").to_owned();
        cookie.split_once("; ").unwrap().1.to_owned()
    };
    // As a proxy in front says, which speaks TLS itself; `tls` has the same without one.
    let (clear, tls) = ("X-Forwarded-Proto: http", "X-Forwarded-Proto: https");
    assert_eq!(cookie("", clear), "Path=/; HttpOnly; SameSite=Lax");
    assert_eq!(cookie("", tls), "Path=/; HttpOnly; SameSite=Lax; Secure");
    assert_eq!(cookie(", secure = false", tls), "Path=/; HttpOnly; SameSite=Lax");
    assert_eq!(cookie(", secure = true", clear), "Path=/; HttpOnly; SameSite=Lax; Secure");
    let all = ", same_site = \"none\", path = \"/app\", domain = \"Example.com\", max_age = \"1h\"";
    assert_eq!(
        cookie(all, tls),
        "Path=/app; HttpOnly; SameSite=None; Secure; Domain=example.com; Max-Age=3600"
    );
}

/// Of another path, or of another domain: a client sends them all, in an order of its own.
#[test]
fn a_session_is_found_among_several_cookies_of_one_name() {
    let origins = ["a", "b"].map(Origin::named);
    let sticky = format!("sticky = {{ cookie = \"server\", {SECRET} }}");
    let proxy = Proxy::over(&origins).in_cluster(&sticky).start();
    let first = proxy.get("/");
    let mine = first.header("set-cookie").unwrap().split_once(';').unwrap().0.to_owned();
    for cookies in [format!("server=other; {mine}"), format!("server=other\r\nCookie: server=; {mine}")] {
        for _ in 0..4 {
            let reply = get_with(&proxy, &format!("Cookie: {cookies}"));
            assert_eq!((reply.text(), reply.header("set-cookie")), (first.text(), None), "{cookies}");
        }
    }
}

/// As before and after a reload: each knows the sessions of the other, though the file has changed.
#[test]
fn two_workers_with_one_secret_know_each_others_sessions() {
    let origins = ["a", "b", "c", "new"].map(Origin::named);
    let [a, b, c, new] = &origins;
    let sticky = format!("sticky = {{ cookie = \"server\", {SECRET} }}");
    let start = |servers: &[&Origin], sticky: &str| {
        Proxy::over(servers.iter().copied()).named("reloaded").in_cluster(sticky).start()
    };
    let (old, fresh) = (start(&[a, b, c], &sticky), start(&[new, c, b, a], &sticky));
    let stranger = start(&[a, b, c], &sticky.replace("0123", "3210"));
    let session = |proxy: &Proxy| {
        let reply = proxy.get("/");
        (reply.text(), format!("Cookie: {}", reply.header("set-cookie").unwrap().split(';').next().unwrap()))
    };
    for (issued_by, known_to) in [(&old, &fresh), (&fresh, &old)] {
        for _ in 0..4 {
            let (server, cookie) = session(issued_by);
            let replies = [(); 5].map(|()| get_with(known_to, &cookie));
            let is_known = server != "new" || std::ptr::eq(known_to, &fresh);
            for reply in replies {
                assert_eq!(reply.header("set-cookie").is_none(), is_known, "{server}: {}", reply.head);
                assert!(!is_known || reply.text() == server, "{server}, and then {}", reply.text());
            }
            assert!(
                get_with(&stranger, &cookie).header("set-cookie").is_some(),
                "with another secret it is nobody's"
            );
        }
    }
}

#[test]
fn a_cookie_that_is_not_ours_names_nobody() {
    let origins = ["a", "b"].map(Origin::named);
    let sticky = format!("sticky = {{ cookie = \"server\", {SECRET} }}");
    let proxy = Proxy::over(&origins).in_cluster(&sticky).start();
    let issued = proxy.get("/").header("set-cookie").unwrap().split_once(';').unwrap().0.to_owned();
    let last = if issued.ends_with('0') { "1" } else { "0" };
    let forged = format!("{}{last}", &issued[..issued.len() - 1]);
    let other = ["server=", "server=a", &forged, &issued[..issued.len() - 1]];
    for cookie in other {
        let replies = [(); 2].map(|()| get_with(&proxy, &format!("Cookie: {cookie}")));
        assert_ne!(replies[0].text(), replies[1].text(), "{cookie}: the module's turn");
        assert!(replies.iter().all(|reply| reply.header("set-cookie").is_some()), "{cookie}");
    }
}

#[test]
fn applications_name_the_route_themselves() {
    let origins = ["a", "b", "c"].map(Origin::named);
    let sticky =
        "sticky = { app_cookie = \"JSESSIONID\", url_parameter = \"jsessionid\", header = \"X-Session\" }";
    let mut builder = Proxy::over(&origins).in_cluster(sticky);
    for (idx, route) in ["ra", "rb", "rc"].into_iter().enumerate() {
        builder = builder.server(idx, &format!("route = {route:?}"));
    }
    let proxy = builder.start();
    for _ in 0..4 {
        assert_eq!(get_with(&proxy, "Cookie: x=1; JSESSIONID=0123.rb").text(), "b");
        assert_eq!(get_with(&proxy, "X-Session: 1.rc").text(), "c");
        assert_eq!(proxy.get("/p?x=1&jsessionid=5.ra").text(), "a");
        assert_eq!(proxy.get("/p;jsessionid=5.rc/q?x=1").text(), "c");
    }
    let reply = proxy
        .connect()
        .send("GET /?jsessionid=1.rc HTTP/1.1\r\nHost: a\r\nCookie: JSESSIONID=1.ra\r\n\r\n")
        .reply();
    assert_eq!((reply.text().as_str(), reply.header("set-cookie")), ("c", None), "the URL comes first");
    for unknown in ["Cookie: JSESSIONID=0123", "Cookie: JSESSIONID=1.nobody", "X-Session: rb"] {
        assert_ne!(get_with(&proxy, unknown).text(), get_with(&proxy, unknown).text(), "{unknown}");
    }
}

#[test]
fn a_session_leaves_a_server_that_is_full_or_in_maintenance_and_no_other() {
    let gate = Gate::default();
    let origins = [gated(&gate), Origin::named("other")];
    let sticky = "sticky = { header = \"X-Session\", separator = \"\" }";
    let builder = Proxy::over(&origins).in_cluster(sticky).server(0, "route = \"a\", max_requests = 1");
    let proxy = builder.start();
    let mut busy = proxy.connect();
    busy.send("GET / HTTP/1.1\r\nHost: test\r\nX-Session: a\r\n\r\n");
    origins[0].wait_for_requests(1);
    assert_eq!(get_with(&proxy, "X-Session: a").text(), "other");
    gate.open();
    assert_eq!(busy.reply().text(), "ok");
    assert_eq!(get_with(&proxy, "X-Session: a").text(), "ok");
    proxy.set_state(0, STATE_DRAINING);
    assert_eq!(get_with(&proxy, "X-Session: a").text(), "ok", "a server that drains keeps its sessions");
    let cluster = proxy.first_cluster();
    cluster.set_source(&cluster.member(0), HealthSource::Maintenance, true);
    assert_eq!(get_with(&proxy, "X-Session: a").text(), "other");
}

/// The cookie would have its client stay with the other one for good.
#[test]
fn a_session_stays_with_its_server_though_that_is_full_for_a_moment() {
    for case in all_modules() {
        let origins = ["ok", "other"].map(Origin::named);
        let sticky = format!("sticky = {{ cookie = \"server\", {SECRET} }}");
        let builder = case.over(&origins).server(0, "max_requests = 1").in_cluster(&sticky);
        let proxy = builder.start();
        proxy.set_state(1, STATE_DOWN);
        let reply = proxy.get("/");
        proxy.set_state(1, STATE_AVAILABLE);
        let cookie = reply.header("set-cookie").expect("a cookie").split(';').next().unwrap().to_owned();
        let cookie = format!("Cookie: {cookie}");
        proxy.first_cluster().set_in_flight_older(&proxy.first_cluster().member(0), 1);
        let elsewhere = get_with(&proxy, &cookie);
        assert_eq!((elsewhere.text().as_str(), elsewhere.header("set-cookie")), ("other", None), "{case}");
        proxy.first_cluster().set_in_flight_older(&proxy.first_cluster().member(0), 0);
        assert_eq!(get_with(&proxy, &cookie).text(), "ok", "{case}");
        let cluster = proxy.first_cluster();
        cluster.set_source(&cluster.member(0), HealthSource::Maintenance, true);
        let moved = get_with(&proxy, &cookie);
        assert_eq!(moved.text(), "other", "{case}");
        assert!(moved.header("set-cookie").is_some(), "{case}: it is gone for longer");
    }
}

#[test]
fn the_module_is_told_whom_the_host_prefers_and_asked_only_where_that_fails() {
    let origins = [Origin::named("other"), Origin::named("own")];
    let journal = Journal::new();
    let proxy = Proxy::over(&origins)
        .server(1, "route = \"own\"")
        .module_file("records_calls", &artifacts::broken("records-calls"))
        .in_cluster("sticky = { url_parameter = \"s\" }")
        .in_cluster(&format!("settings = {}", journal.settings(&["0"])))
        .start();
    assert_eq!(proxy.get("/1?s=x.own").text(), "own");
    origins[1].stop();
    assert_eq!(proxy.get("/2?s=x.own").text(), "other");
    drop(proxy);
    let calls = journal.all();
    let of = |path: &str| calls.iter().filter(|call| call.starts_with(path)).cloned().collect::<Vec<_>>();
    assert_eq!(of("/1")[..2], ["/1 load_balance, preferred 1", "/1 observe 1 Connected"]);
    assert_eq!(
        of("/2")[..4],
        [
            "/2 load_balance, preferred 1",
            "/2 report_failure 1 Connect, try 1",
            "/2 observe 1 TryEnded NotEstablished",
            "/2 next after [1]: 0",
        ]
    );
}
