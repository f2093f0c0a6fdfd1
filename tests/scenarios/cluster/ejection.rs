//! Servers whose tries fail are left alone for a while, counted exactly: which tries there were, what the client and the
//! module heard, when a server is ejected and when it is back.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use lb_api::wire;
use lb_api::wire::{STATE_AVAILABLE, STATE_DOWN, STATE_EJECTED};
use tests::journal::Journal;
use tests::log;
use tests::origin::{Conn, Origin};
use tests::proxy::{Builder, Proxy};
use tests::{Gate, artifacts, eventually};
use trylist::cluster::ejection::{Trial, TryEnd};

/// How a server behaves, for a test to change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    Well,
    Hangs,
    Closes,
    ResetsInHead,
    ResetsInBody,
    Answers503,
}

pub(crate) const MOODS: [Mood; 6] =
    [Mood::Well, Mood::Hangs, Mood::Closes, Mood::ResetsInHead, Mood::ResetsInBody, Mood::Answers503];

/// The mood of a server.
#[derive(Clone, Debug, Default)]
pub(crate) struct Switch(Arc<AtomicUsize>);

impl Switch {
    pub(crate) fn to(mood: Mood) -> Self {
        let switch = Self::default();
        switch.set(mood);
        switch
    }

    pub(crate) fn set(&self, mood: Mood) {
        let idx = MOODS.iter().position(|other| *other == mood).unwrap();
        self.0.store(idx, Ordering::SeqCst);
    }

    pub(crate) fn get(&self) -> Mood {
        MOODS[self.0.load(Ordering::SeqCst)]
    }
}

/// A server that answers `a` while it is well.
fn moody(switch: &Switch) -> Origin {
    let switch = switch.clone();
    Origin::serving(move |conn: &mut Conn| {
        while conn.request().is_some() {
            match switch.get() {
                Mood::Well => {
                    conn.send("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na");
                }
                Mood::Answers503 => {
                    conn.send("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nbusy");
                }
                Mood::Hangs => {
                    conn.wait_for_end();
                    return;
                }
                Mood::Closes => return,
                Mood::ResetsInHead => {
                    conn.send("HTTP/1.1 200 OK\r\nContent-Le");
                    return conn.reset_on_close();
                }
                Mood::ResetsInBody => {
                    conn.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf");
                    return conn.reset_on_close();
                }
            }
        }
    })
}

/// In front of the server of this mood and one that answers `b`, by a module that always answers the first before the second.
fn first_before_second(origins: [&Origin; 2], journal: &Journal) -> Builder {
    Proxy::over(origins)
        .module_file("records_calls", &artifacts::broken("records-calls"))
        .in_cluster("response_timeout = \"500ms\"")
        .in_cluster(&format!("settings = {}", journal.settings(&["0", "1"])))
}

fn ejections(proxy: &Proxy, origin: &Origin) -> f64 {
    proxy.metric(&format!("trylist_endpoint_ejections_total{{cluster=\"%\",endpoint=\"{}\"}}", origin.url()))
}

fn is_ejected(proxy: &Proxy, origin: &Origin) -> bool {
    let labels = format!("cluster=\"%\",endpoint=\"{}\",source=\"ejection\"", origin.url());
    proxy.metric(&format!("trylist_endpoint_unavailable{{{labels}}}")) == 1.0
}

fn tries(proxy: &Proxy, origin: &Origin, result: &str) -> f64 {
    let labels = format!("cluster=\"%\",endpoint=\"{}\",result=\"{result}\"", origin.url());
    proxy.metric(&format!("trylist_tries_total{{{labels}}}"))
}

/// Two requests fail on the first server in their own way, and the third does not come to it.
#[track_caller]
fn ejects_after_two(mood: Mood, more: &str, statuses: [u16; 2], result: &str, heard: [&str; 2], last: &str) {
    let origins = [moody(&Switch::to(mood)), Origin::named("b")];
    let journal = Journal::new();
    let ejection = format!("ejection = {{ failures = 2, time = \"24h\"{more} }}");
    let proxy = first_before_second([&origins[0], &origins[1]], &journal).in_cluster(&ejection).start();
    for status in statuses {
        // A response that breaks off in its body has sent its status before.
        assert_eq!(proxy.connect().get("/failing").reply_head().status(), status, "{mood:?}");
    }
    eventually("the ejection", || is_ejected(&proxy, &origins[0]).then_some(()));
    for _ in 0..5 {
        assert_eq!(proxy.get("/later").text(), "b", "{mood:?}");
    }
    assert_eq!(tries(&proxy, &origins[0], result), 2.0, "{mood:?}");
    assert_eq!(ejections(&proxy, &origins[0]), 1.0, "{mood:?}");
    assert_eq!(origins[0].requests().len(), 2, "{mood:?}");
    let line = log::line(&[&origins[0].url(), "ejected for 86400s"]);
    let (cluster, url) = (proxy.cluster(), origins[0].url());
    let said = format!(
        "cluster \"{cluster}\": server \"{url}\" ejected for 86400s: 2 consecutive failures ({last})"
    );
    assert!(line.contains(&said) && line.contains("WARN"), "{mood:?}: {line}");
    drop(proxy);
    let calls = journal.all();
    let ends = |what: &str| calls.iter().filter(|call| call.as_str() == what).count();
    for heard in heard {
        assert_eq!(ends(&format!("/failing {heard}")), 2, "{mood:?}: {heard:?} in {calls:?}");
    }
    let later: Vec<_> = calls.iter().filter(|call| call.starts_with("/later next")).collect();
    assert_eq!(later[..2], ["/later next after []: 0", "/later next after [0]: 1"], "{mood:?}: declined");
}

#[test]
fn a_server_that_hangs_is_ejected() {
    let heard = ["observe 0 TryEnded TimedOut", "finish TimedOut by Some(0), status Some(504), tries 1"];
    ejects_after_two(Mood::Hangs, "", [504, 504], "timed_out", heard, "no response in time");
}

#[test]
fn a_server_that_closes_without_a_response_is_ejected() {
    let heard = ["observe 0 TryEnded ClosedEarly", "finish Failed by Some(0), status Some(502), tries 1"];
    let last = "connection closed before a response";
    ejects_after_two(Mood::Closes, "", [502, 502], "closed_early", heard, last);
}

#[test]
fn a_server_that_resets_within_the_head_is_ejected() {
    let heard = ["observe 0 TryEnded ClosedEarly", "finish Failed by Some(0), status Some(502), tries 1"];
    let last = "connection closed before a response";
    ejects_after_two(Mood::ResetsInHead, "", [502, 502], "closed_early", heard, last);
}

#[test]
fn a_server_that_resets_within_the_body_is_ejected() {
    let heard = ["observe 0 TryEnded Broken", "finish Broken by Some(0), status Some(200), tries 1"];
    ejects_after_two(Mood::ResetsInBody, "", [200, 200], "broken", heard, "response broke off");
}

#[test]
fn statuses_eject_where_that_is_asked_for() {
    let heard = ["observe 0 TryEnded Served", "finish Served by Some(0), status Some(503), tries 1"];
    let more = ", statuses = \"gateway\"";
    ejects_after_two(Mood::Answers503, more, [503, 503], "served", heard, "status 503");
}

#[test]
fn statuses_do_not_eject_unless_that_is_asked_for() {
    let origins = [moody(&Switch::to(Mood::Answers503)), Origin::named("b")];
    let proxy = Proxy::over(&origins).in_cluster("ejection = { failures = 2 }").start();
    assert_eq!(proxy.names(20), ["busy b"; 10].join(" "));
    assert_eq!(ejections(&proxy, &origins[0]), 0.0);
}

#[test]
fn a_server_that_stops_costs_its_failures_and_then_nothing_by_default() {
    let origins = ["a", "b"].map(Origin::named);
    let proxy = Proxy::over(&origins).start();
    assert_eq!(proxy.names(4), "a b a b");
    origins[0].stop();
    assert_eq!(proxy.names(20), ["b"; 20].join(" "));
    // Of the 20, every second went to the dead one first, until there were five.
    assert_eq!(tries(&proxy, &origins[0], "not_established"), 5.0);
    let url = origins[0].url();
    log::line(&[&url, "ejected for 10s: 5 consecutive failures (connection refused)"]);
}

#[test]
fn a_success_in_between_begins_the_count_anew() {
    let switch = Switch::to(Mood::Closes);
    let origins = [moody(&switch), Origin::named("b")];
    let journal = Journal::new();
    let ejection = "ejection = { failures = 3, time = \"24h\" }";
    let proxy = first_before_second([&origins[0], &origins[1]], &journal).in_cluster(ejection).start();
    for _ in 0..3 {
        switch.set(Mood::Closes);
        assert_eq!([proxy.get("/").status(), proxy.get("/").status()], [502, 502]);
        switch.set(Mood::Well);
        assert_eq!(proxy.get("/").text(), "a");
    }
    assert_eq!(ejections(&proxy, &origins[0]), 0.0);
    // A request that its client gives up says nothing about the server, and does not end a row.
    switch.set(Mood::Closes);
    assert_eq!([proxy.get("/").status(), proxy.get("/").status()], [502, 502]);
    switch.set(Mood::Hangs);
    let mut client = proxy.connect();
    client.get("/given-up");
    origins[0].wait_for_requests(12);
    client.reset();
    eventually("the client's end", || (tries(&proxy, &origins[0], "aborted") == 1.0).then_some(()));
    assert_eq!(ejections(&proxy, &origins[0]), 0.0);
    switch.set(Mood::Closes);
    assert_eq!(proxy.get("/").status(), 502);
    assert_eq!(ejections(&proxy, &origins[0]), 1.0);
}

#[test]
fn who_is_readmitted_is_on_trial_and_stays_once_it_serves() {
    let switch = Switch::to(Mood::Closes);
    let origins = [moody(&switch), Origin::named("b")];
    let journal = Journal::new();
    let ejection = "ejection = { failures = 3, time = \"5ms\", max_time = \"5ms\" }";
    let proxy = first_before_second([&origins[0], &origins[1]], &journal).in_cluster(ejection).start();
    let n = eventually("three ejections", || {
        proxy.get("/");
        Some(ejections(&proxy, &origins[0])).filter(|n| *n == 3.0)
    });
    // Three in a row for the first ejection, and then one for each.
    assert_eq!((n, tries(&proxy, &origins[0], "closed_early")), (3.0, 5.0));
    log::line(&[&origins[0].url(), "INFO", "readmitted on trial"]);
    switch.set(Mood::Well);
    eventually("its return", || (proxy.get("/").text() == "a").then_some(()));
    for _ in 0..10 {
        assert_eq!(proxy.get("/").text(), "a");
    }
    assert_eq!(ejections(&proxy, &origins[0]), 3.0);
}

#[test]
fn no_more_than_a_share_is_ejected() {
    let origins = [(); 4].map(|()| Origin::dead());
    let proxy = Proxy::over(&origins).in_cluster("ejection = { failures = 2, max_percent = 50 }").start();
    for _ in 0..20 {
        assert_eq!(proxy.get("/").status(), 502);
    }
    let ejected: Vec<_> = origins.iter().filter(|origin| is_ejected(&proxy, origin)).collect();
    assert_eq!(ejected.len(), 2, "half of them");
    let cluster = format!("cluster \"{}\"", proxy.cluster());
    log::line(&[
        &cluster,
        "is not ejected: 2 consecutive failures (connection refused), but 2 of 4 servers are already ejected",
    ]);
    let tried: f64 = origins.iter().map(|origin| tries(&proxy, origin, "not_established")).sum();
    assert!(tried >= 40.0, "those that are left are tried: {tried}");
}

#[test]
fn the_only_server_is_never_ejected() {
    let origin = moody(&Switch::to(Mood::Closes));
    let proxy = Proxy::over([&origin]).in_cluster("ejection = { failures = 1 }").start();
    for _ in 0..10 {
        assert_eq!(proxy.get("/").status(), 502, "and not 503");
    }
    assert_eq!(ejections(&proxy, &origin), 0.0);
}

/// The interval is ended by the test, so that all that happens within one is known.
#[test]
fn a_rate_of_failures_ejects_though_none_follow_each_other() {
    let n = AtomicUsize::new(0);
    let half = Origin::serving(move |conn| {
        if conn.request().is_some() && !n.fetch_add(1, Ordering::SeqCst).is_multiple_of(2) {
            conn.send("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: close\r\n\r\na");
        }
    });
    let well = Origin::named("b");
    let rules = "failures = 0, failure_percent = 50, min_requests = 10, interval = \"24h\", time = \"24h\"";
    let builder = Proxy::over([&half, &well]).in_cluster(&format!("ejection = {{ {rules} }}"));
    let proxy = builder.route("path = \"/app\"").start();
    let mut client = proxy.connect();
    let mut after = |n_tries: usize| {
        for _ in 0..2 * n_tries {
            client.get("/app").reply();
        }
        // Of no server: once this is answered, what came before it on its connection is counted.
        assert_eq!(client.get("/none").reply().status(), 404);
        let cluster = proxy.first_cluster();
        cluster.outlier.as_ref().unwrap().look_at_rates(cluster, Instant::now(), || 0);
        [&half, &well].map(|origin| is_ejected(&proxy, origin))
    };
    assert_eq!(after(9), [false, false], "5 of 9 failed, which are too few");
    assert_eq!(after(9), [false, false], "4 of 9, and what came before is forgotten");
    assert_eq!(after(1), [false, false], "1 of 1");
    assert_eq!(after(11), [false, false], "5 of 11 are less than half");
    assert_eq!(after(10), [true, false], "5 of 10 are half");
    log::line(&[&half.url(), "ejected for 86400s: 5 of 10 tries failed"]);
    assert_eq!(after(5), [true, false]);
    assert_eq!(half.n_connections(), 40, "it gets nothing");
}

/// By the clock, with whom it does not matter what an interval holds.
#[test]
fn rates_are_looked_at_after_each_interval() {
    let origins = [Origin::dead(), Origin::named("b")];
    let rules = "failures = 0, failure_percent = 100, min_requests = 1, interval = \"20ms\", time = \"24h\"";
    let proxy = Proxy::over(&origins).in_cluster(&format!("ejection = {{ {rules} }}")).start();
    eventually("the ejection", || {
        assert_eq!(proxy.get("/").text(), "b");
        is_ejected(&proxy, &origins[0]).then_some(())
    });
    log::line(&[&origins[0].url(), "ejected for 86400s", " tries failed"]);
}

#[test]
fn a_backup_serves_while_all_before_it_are_ejected() {
    let origins = [Origin::dead(), Origin::dead(), Origin::named("backup")];
    let builder = Proxy::over(&origins).server(2, "backup = true");
    let proxy = builder.in_cluster("ejection = { failures = 2, max_percent = 100, time = \"24h\" }").start();
    assert_eq!(proxy.names(10), ["backup"; 10].join(" "));
    let tried = [0, 1].map(|i| tries(&proxy, &origins[i], "not_established"));
    assert_eq!(tried, [2.0, 2.0], "the tier is passed over from then on");
}

/// `max_percent` is of each tier; and where another tier can serve, a tier may be ejected whole.
#[test]
fn a_backup_serves_while_all_before_it_hang_by_default() {
    let origins = [moody(&Switch::to(Mood::Hangs)), moody(&Switch::to(Mood::Hangs)), Origin::named("backup")];
    let builder = Proxy::over(&origins).server(2, "backup = true");
    let proxy = builder
        .in_cluster("response_timeout = \"200ms\"")
        .in_cluster("ejection = { time = \"24h\" }")
        .start();
    for _ in 0..10 {
        assert_eq!(proxy.get("/").status(), 504);
    }
    assert_eq!(proxy.names(5), ["backup"; 5].join(" "));
    assert!(is_ejected(&proxy, &origins[0]) && is_ejected(&proxy, &origins[1]));
}

#[test]
fn the_last_server_that_is_available_is_never_ejected() {
    let origins = [Origin::dead(), moody(&Switch::to(Mood::Closes))];
    let builder = Proxy::over(&origins).server(1, "backup = true");
    let proxy = builder.in_cluster("ejection = { failures = 1, time = \"24h\", max_percent = 100 }").start();
    for _ in 0..5 {
        assert_eq!(proxy.get("/").status(), 502, "and not 503");
    }
    assert!(is_ejected(&proxy, &origins[0]) && !is_ejected(&proxy, &origins[1]));
    log::line(&[&origins[1].url(), "is not ejected: 1 failure", "but no other server is available"]);
}

#[test]
fn servers_ejected_because_of_a_backup_are_back_when_that_is_gone() {
    let origins = ["a", "b", "backup"].map(Origin::named);
    let builder = Proxy::over(&origins).server(2, "backup = true");
    let proxy = builder.in_cluster("ejection = { failures = 1, time = \"24h\" }").start();
    let cluster = proxy.first_cluster();
    let refused = TryEnd { result: wire::TRY_NOT_ESTABLISHED, ..TryEnd::default() };
    for endpoint in 0..2 {
        let outlier = cluster.outlier.as_ref().unwrap();
        outlier.try_ended(cluster, &cluster.member(endpoint), &refused, Instant::now(), || 0);
    }
    assert_eq!(proxy.names(2), "backup backup");
    proxy.set_state(2, STATE_DOWN);
    eventually("one of two", || (proxy.get("/").status() == 200).then_some(()));
    assert!(!is_ejected(&proxy, &origins[0]), "whose time would have been over first");
    assert!(is_ejected(&proxy, &origins[1]), "half of the tier");
}

#[test]
fn a_server_is_not_ejected_while_no_other_is_up_and_is_back_when_the_others_go() {
    let switch = Switch::to(Mood::Closes);
    let origins = [moody(&switch), Origin::named("b")];
    let proxy = Proxy::over(&origins).in_cluster("ejection = { failures = 1, time = \"24h\" }").start();
    proxy.set_state(1, STATE_DOWN);
    for _ in 0..3 {
        assert_eq!(proxy.get("/").status(), 502, "and not 503");
    }
    log::line(&[&origins[0].url(), "is not ejected: 1 failure", "but no other server is available"]);
    proxy.set_state(1, STATE_AVAILABLE);
    eventually("its ejection", || {
        proxy.get("/");
        is_ejected(&proxy, &origins[0]).then_some(())
    });
    switch.set(Mood::Well);
    proxy.set_state(1, STATE_DOWN);
    eventually("its return", || (proxy.get("/").status() == 200).then_some(()));
}

/// A server that tells of each request that comes, and answers it when told to.
fn asked() -> (Origin, Gate, Gate) {
    let (hangs, well) = (Gate::default(), Gate::default());
    let origin = Origin::serving({
        let (hangs, well) = (hangs.clone(), well.clone());
        move |conn: &mut Conn| {
            while conn.request().is_some() {
                hangs.open();
                well.wait();
                conn.send("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na");
            }
        }
    });
    (origin, hangs, well)
}

fn state(proxy: &Proxy, endpoint: usize) -> u32 {
    proxy.first_cluster().member(endpoint).counters.state.load(Ordering::SeqCst)
}

/// Has the first endpoint be ejected and readmitted.
fn put_on_trial(proxy: &Proxy) {
    let cluster = proxy.first_cluster();
    let outlier = cluster.outlier.as_ref().unwrap();
    let refused = TryEnd { result: wire::TRY_NOT_ESTABLISHED, ..TryEnd::default() };
    // One failure ejects it. Its few milliseconds may be over before anybody looks, so that nobody waits for that state.
    outlier.try_ended(cluster, &cluster.member(0), &refused, Instant::now(), || 0);
    eventually("its trial", || (state(proxy, 0) == STATE_AVAILABLE).then_some(()));
}

#[test]
fn a_server_on_trial_has_one_request_at_a_time_until_one_is_served() {
    let (slow, arrived, go) = asked();
    let other = Origin::named("b");
    let builder = Proxy::over([&slow, &other]).module("first");
    let proxy = builder.in_cluster("ejection = { failures = 1, time = \"5ms\" }").start();
    put_on_trial(&proxy);
    let mut trial = proxy.connect();
    trial.get("/trial");
    arrived.wait();
    assert_eq!(state(&proxy, 0), STATE_EJECTED, "to all others");
    assert_eq!(proxy.names(20), ["b"; 20].join(" "));
    assert_eq!(slow.requests().len(), 1);
    go.open();
    assert_eq!(trial.reply().text(), "a");
    eventually("its return", || (state(&proxy, 0) == STATE_AVAILABLE).then_some(()));
    log::line(&[&slow.url(), "passed its trial"]);
    assert_eq!(proxy.names(3), "a a a");
}

#[test]
fn a_request_that_its_client_gives_up_leaves_the_trial_to_the_next() {
    let (slow, arrived, go) = asked();
    let other = Origin::named("b");
    let proxy = Proxy::over([&slow, &other])
        .module("first")
        .in_cluster("ejection = { failures = 1, time = \"5ms\" }")
        .start();
    put_on_trial(&proxy);
    let mut client = proxy.connect();
    client.get("/given-up");
    arrived.wait();
    assert_eq!(state(&proxy, 0), STATE_EJECTED);
    client.reset();
    eventually("the next trial", || (state(&proxy, 0) == STATE_AVAILABLE).then_some(()));
    go.open();
    assert_eq!(proxy.names(3), "a a a");
}

#[test]
fn a_server_on_trial_takes_all_where_no_other_is_available() {
    let (slow, _, go) = asked();
    let other = Origin::named("b");
    let proxy =
        Proxy::over([&slow, &other]).in_cluster("ejection = { failures = 1, time = \"5ms\" }").start();
    put_on_trial(&proxy);
    proxy.set_state(1, STATE_DOWN);
    let mut clients = [(); 4].map(|()| proxy.connect());
    for client in &mut clients {
        client.get("/");
    }
    slow.wait_for_requests(4);
    go.open();
    for client in &mut clients {
        assert_eq!(client.reply().text(), "a");
    }
}

#[test]
fn a_trial_under_way_is_shared_when_all_others_go() {
    let (slow, arrived, go) = asked();
    let other = Origin::named("b");
    let proxy = Proxy::over([&slow, &other])
        .module("first")
        .in_cluster("ejection = { failures = 1, time = \"5ms\" }")
        .start();
    put_on_trial(&proxy);
    let mut clients = [proxy.connect(), proxy.connect()];
    clients[0].get("/trial");
    arrived.wait();
    assert_eq!(state(&proxy, 0), STATE_EJECTED);
    proxy.set_state(1, STATE_DOWN);
    assert_eq!(state(&proxy, 0), STATE_AVAILABLE);
    clients[1].get("/beside");
    slow.wait_for_requests(2);
    proxy.set_state(1, STATE_AVAILABLE);
    assert_eq!(state(&proxy, 0), STATE_EJECTED, "modules see it no more once there is another");
    assert_eq!(proxy.names(20), ["b"; 20].join(" "));
    go.open();
    for client in &mut clients {
        assert_eq!(client.reply().text(), "a");
    }
    eventually("its return", || (state(&proxy, 0) == STATE_AVAILABLE).then_some(()));
}

/// A tier on trial is no reason to wait, or to fail: others go on to the next.
#[test]
fn beside_a_trial_a_backup_serves() {
    let (slow, arrived, go) = asked();
    let other = Origin::named("backup");
    let builder = Proxy::over([&slow, &other]).server(1, "backup = true");
    let proxy = builder.in_cluster("ejection = { failures = 1, time = \"5ms\" }").start();
    put_on_trial(&proxy);
    let mut trial = proxy.connect();
    trial.get("/trial");
    arrived.wait();
    assert_eq!(proxy.names(5), ["backup"; 5].join(" "));
    go.open();
    assert_eq!(trial.reply().text(), "a");
}

#[test]
fn a_response_that_goes_on_passes_a_trial() {
    let (done, other) = (Gate::default(), Origin::named("b"));
    let streams = Origin::serving({
        let done = done.clone();
        move |conn: &mut Conn| {
            conn.request();
            conn.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlo");
            done.wait();
            conn.send("ng");
        }
    });
    let proxy = Proxy::over([&streams, &other])
        .module("first")
        .in_cluster("ejection = { failures = 1, time = \"5ms\" }")
        .start();
    put_on_trial(&proxy);
    let mut client = proxy.connect();
    assert_eq!(client.get("/").reply_head().status(), 200);
    log::line(&[&streams.url(), "passed its trial"]);
    assert_eq!(state(&proxy, 0), STATE_AVAILABLE);
    done.open();
}

#[test]
fn failures_of_tries_from_before_a_trial_say_nothing_of_it() {
    let origins = ["a", "b"].map(Origin::named);
    let proxy = Proxy::over(&origins).in_cluster("ejection = { failures = 1, time = \"5ms\" }").start();
    put_on_trial(&proxy);
    let cluster = proxy.first_cluster();
    let end = TryEnd { result: wire::TRY_TIMED_OUT, total: Duration::from_secs(60), ..TryEnd::default() };
    cluster.outlier.as_ref().unwrap().try_ended(cluster, &cluster.member(0), &end, Instant::now(), || 0);
    assert_eq!((state(&proxy, 0), ejections(&proxy, &origins[0])), (STATE_AVAILABLE, 1.0));
    // Nor does a success.
    let end = TryEnd { result: wire::TRY_SERVED, ..end };
    cluster.outlier.as_ref().unwrap().try_ended(cluster, &cluster.member(0), &end, Instant::now(), || 0);
    assert!(proxy.names(2).contains('a'), "its trial");
    log::line(&[&origins[0].url(), "passed its trial"]);
}

/// The second of two tries has a tenth of the time that the first has had. `max_percent` does not spare its server.
#[test]
fn time_that_earlier_tries_used_up_is_not_blamed_on_the_last_server() {
    let origins = [(); 3].map(|()| moody(&Switch::to(Mood::Hangs)));
    let retry = "retry = { on = [\"timeout\"], timeout = \"1s\", try_timeout = \"900ms\", backoff = \"0s\" }";
    let proxy = Proxy::over(&origins)
        .in_cluster("ejection = { failures = 1, time = \"24h\", max_percent = 100 }")
        .route(&format!("path = \"/\"\n{retry}"))
        .start();
    assert_eq!(proxy.get("/").status(), 504);
    assert_eq!(tries(&proxy, &origins[1], "timed_out"), 1.0);
    assert!(is_ejected(&proxy, &origins[0]) && !is_ejected(&proxy, &origins[1]));
}

#[test]
fn time_in_the_queue_is_not_blamed_on_the_server() {
    let (go, hangs) = (Gate::default(), AtomicUsize::new(0));
    let first = Origin::serving({
        let go = go.clone();
        move |conn: &mut Conn| {
            while conn.request().is_some() {
                if hangs.fetch_add(1, Ordering::SeqCst) > 0 {
                    conn.wait_for_end();
                    return;
                }
                go.wait();
                conn.send("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na");
            }
        }
    });
    let (second, arrived, end) = asked();
    let proxy = Proxy::over([&first, &second])
        .each_server("max_requests = 1")
        .in_cluster("queue_timeout = \"20s\"\nejection = { failures = 1, time = \"24h\" }")
        .route("path = \"/\"")
        .route("path = \"/timed\"\ntimeout = \"1s\"")
        .start();
    let [mut busy, mut waiting, mut other] = [(); 3].map(|()| proxy.connect());
    busy.get("/");
    first.wait_for_requests(1);
    other.get("/");
    arrived.wait();
    let sent = Instant::now();
    waiting.get("/timed");
    proxy.wait_for_queue(1);
    eventually("most of its time", || (sent.elapsed() > Duration::from_millis(700)).then_some(()));
    go.open();
    assert_eq!(busy.reply().status(), 200);
    assert_eq!(waiting.reply().status(), 504);
    assert_eq!(tries(&proxy, &first, "timed_out"), 1.0);
    assert!(!is_ejected(&proxy, &first));
    end.open();
    assert_eq!(other.reply().status(), 200);
}

/// With the time given, so that seconds need not pass.
#[test]
fn time_out_grows_while_it_fails_and_shrinks_with_successes() {
    let origins = ["a", "b"].map(Origin::named);
    let proxy = Proxy::over(&origins)
        .in_cluster("ejection = { failures = 3, time = \"10s\", max_time = \"25s\" }")
        .start();
    let cluster = proxy.first_cluster();
    let outlier = cluster.outlier.as_ref().unwrap();
    let state = || state(&proxy, 0);
    let refused = TryEnd {
        result: wire::TRY_NOT_ESTABLISHED,
        failure: Some((wire::FAILURE_CONNECT, None)),
        trial: Trial::Beside,
        ..TryEnd::default()
    };
    let fail = |now| outlier.try_ended(cluster, &cluster.member(0), &refused, now, || 0);
    let served = TryEnd { result: wire::TRY_SERVED, trial: Trial::Beside, ..TryEnd::default() };
    let serve = |now| outlier.try_ended(cluster, &cluster.member(0), &served, now, || 0);
    let seconds = Duration::from_secs;
    let mut now = Instant::now();
    fail(now);
    fail(now);
    assert_eq!(state(), STATE_AVAILABLE);
    fail(now);
    assert_eq!(state(), STATE_EJECTED);
    for out in [10, 20, 25, 25] {
        let until = now + seconds(out);
        assert_eq!(outlier.readmit(cluster, until - Duration::from_millis(1)), Some(until), "{out} s");
        assert_eq!(state(), STATE_EJECTED);
        assert_eq!(outlier.readmit(cluster, until), None);
        assert_eq!(state(), STATE_AVAILABLE);
        now = until;
        fail(now);
        assert_eq!(state(), STATE_EJECTED, "the first failure is enough");
    }
    // Five ejections so far. An hour without a request forgives none.
    now += seconds(25);
    outlier.readmit(cluster, now);
    now += seconds(3600);
    assert_eq!(outlier.readmit(cluster, now), None);
    fail(now);
    assert_eq!(outlier.readmit(cluster, now), Some(now + seconds(25)), "the sixth");
    now += seconds(25);
    outlier.readmit(cluster, now);
    // Well for 50 s, five of six are forgiven.
    serve(now);
    for _ in 0..5 {
        assert_eq!(outlier.readmit(cluster, now), Some(now + seconds(10)));
        now += seconds(10);
        assert_eq!(outlier.readmit(cluster, now), None);
        serve(now);
    }
    for _ in 0..3 {
        fail(now);
    }
    assert_eq!(outlier.readmit(cluster, now), Some(now + seconds(20)), "as if it were the second");
}
