//! Limits of servers, and the queue of requests that wait for room.

use super::*;

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
        proxy.wait_for_queue(0);
        let served: usize = origins.iter().map(|origin| origin.requests().len()).sum();
        assert_eq!(served, N_CLIENTS * N_REQUESTS, "{case}");
    }
}

#[test]
fn who_finds_all_servers_full_waits_for_the_first_that_comes_free() {
    for case in all_modules() {
        let (slow, quick) = (Gate::default(), Gate::default());
        let origins = [Origin::gated("ok", &slow), Origin::gated("ok", &quick)];
        let builder = case.over(&origins).each_server("max_requests = 1");
        let proxy = builder.in_cluster("queue_timeout = \"20s\"").start();
        let mut busy = [proxy.connect(), proxy.connect()];
        for client in &mut busy {
            client.get("/busy");
        }
        for origin in &origins {
            origin.wait_for_requests(1);
        }
        let mut waiting = waiting_client(&proxy, "/waiting", 1);
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
        let origins = [Origin::dead(), Origin::gated("ok", &gate)];
        let builder = case.over(&origins).each_server("max_requests = 1");
        let proxy = builder.in_cluster("queue_timeout = \"20s\"").start();
        let mut busy = busy_client(&proxy, &origins[1], "/busy");
        let mut waiting = waiting_client(&proxy, "/waiting", 1);
        gate.open();
        assert_eq!([busy.reply().text(), waiting.reply().text()], ["ok", "ok"], "{case}");
    }
}

/// More of them than a module may answer in vain, so that the host looks by itself.
#[test]
fn many_full_servers_are_waited_for_though_another_has_failed() {
    for case in all_modules() {
        let gate = Gate::default();
        let full = [(); 18].map(|()| Origin::gated("ok", &gate));
        let dead = Origin::dead();
        let builder = case.over([&dead].into_iter().chain(&full));
        let proxy = builder.each_server("max_requests = 1").in_cluster("queue_timeout = \"20s\"").start();
        let mut busy = [(); 18].map(|()| proxy.connect());
        for (i, client) in busy.iter_mut().enumerate() {
            client.get("/busy");
            let n_arrived = || full.iter().map(|origin| origin.requests().len()).sum::<usize>();
            eventually("its arrival", || (n_arrived() == i + 1).then_some(()));
        }
        let mut waiting = waiting_client(&proxy, "/waiting", 1);
        gate.open();
        for client in busy.iter_mut().chain([&mut waiting]) {
            assert_eq!(client.reply().text(), "ok", "{case}");
        }
    }
}

#[test]
fn who_waits_is_served_in_the_order_of_coming() {
    let gate = Gate::default();
    let origin = Origin::gated("ok", &gate);
    let builder = Proxy::over([&origin]).each_server("max_requests = 1");
    let proxy = builder.in_cluster("queue_timeout = \"20s\"").start();
    let mut clients = line_up(&proxy, &origin, ["/0", "/1", "/2", "/3", "/4", "/5"]);
    gate.open();
    for client in &mut clients {
        assert_eq!(client.reply().status(), 200);
    }
    assert_eq!(paths_of(&origin), ["/0", "/1", "/2", "/3", "/4", "/5"]);
}

#[test]
fn the_newest_is_served_first_where_that_is_asked_for_and_a_full_queue_loses_its_oldest() {
    let gate = Gate::default();
    let origin = Origin::gated("ok", &gate);
    let builder = Proxy::over([&origin]).each_server("max_requests = 1");
    let proxy = builder.in_cluster("queue = 4\nqueue_order = \"lifo\"\nqueue_timeout = \"20s\"").start();
    let [mut first, mut oldest, mut third, mut fourth, mut fifth] =
        line_up(&proxy, &origin, ["/0", "/1", "/2", "/3", "/4"]);
    let mut newest = proxy.connect();
    newest.get("/5");
    let refused = oldest.reply();
    assert_eq!((refused.status(), refused.header("retry-after")), (503, Some("1")), "the oldest that waits");
    proxy.wait_for_metric("trylist_queue_waits_total{cluster=\"%\",end=\"displaced\"}", 1.0);
    gate.open();
    for client in [&mut first, &mut third, &mut fourth, &mut fifth, &mut newest] {
        assert_eq!(client.reply().status(), 200);
    }
    assert_eq!(paths_of(&origin), ["/0", "/5", "/4", "/3", "/2"]);
}

#[test]
fn a_full_queue_refuses_at_once() {
    let gate = Gate::default();
    let origin = Origin::gated("ok", &gate);
    let builder = Proxy::over([&origin]).each_server("max_requests = 1");
    let proxy = builder.in_cluster("queue = 1\nqueue_timeout = \"20s\"").start();
    let mut busy = busy_client(&proxy, &origin, "/");
    let mut waiting = waiting_client(&proxy, "/", 1);
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
    let origin = Origin::gated("ok", &gate);
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
        let origin = Origin::gated("ok", &gate);
        let builder = case.over([&origin]).each_server("max_requests = 1");
        let proxy = builder.in_cluster("queue_timeout = \"30ms\"").start();
        let mut busy = busy_client(&proxy, &origin, "/");
        let refused = proxy.get("/");
        assert_eq!((refused.status(), refused.header("retry-after")), (503, Some("1")), "{case}");
        proxy.wait_for_queue(0);
        gate.open();
        assert_eq!(busy.reply().status(), 200);
        assert_eq!(proxy.get("/").status(), 200, "{case}: free again");
        assert_eq!(origin.requests().len(), 2, "{case}");
    }
}

#[test]
fn a_server_without_a_limit_takes_what_a_full_one_does_not() {
    let gate = Gate::default();
    let origins = [Origin::gated("ok", &gate), Origin::named("free")];
    let proxy = Proxy::over(&origins).server(0, "max_requests = 1").start();
    let mut busy = busy_client(&proxy, &origins[0], "/");
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
        let mut waiting = waiting_client(&proxy, "/", 1);
        assert_eq!(origin.requests().len(), 2, "{case}");
        cluster.set_in_flight_older(&cluster.member(0), 0);
        assert_eq!(waiting.reply().text(), "a", "{case}");
    }
}
