//! The exact calls of a module, however a request ends, and the fate of requests whose module gives forbidden answers. The
//! module of these tests reports every call itself.

use tests::Gate;
use tests::artifacts;
use tests::journal::Journal;
use tests::log;
use tests::origin::Origin;
use tests::proxy::{Builder, Proxy};

const MODULE: &str = "records_calls";

/// Over these servers, with a module that gives these answers.
fn with<'a>(origins: impl IntoIterator<Item = &'a Origin>, answers: &[&str]) -> (Builder, Journal) {
    with_settings(origins, |journal| journal.settings(answers))
}

fn with_settings<'a>(
    origins: impl IntoIterator<Item = &'a Origin>,
    settings: impl FnOnce(&Journal) -> String,
) -> (Builder, Journal) {
    let journal = Journal::new();
    let settings = format!("settings = {}", settings(&journal));
    let builder = Proxy::over(origins).module_file(MODULE, &artifacts::broken("records-calls"));
    (builder.in_cluster(&settings), journal)
}

fn fault(kind: &str) -> String {
    format!("trylist_module_faults_total{{cluster=\"%\",module=\"{MODULE}\",fault=\"{kind}\"}}")
}

// ---- how requests end ------------------------------------------------------------------------------------------------

#[test]
fn a_request_that_is_served() {
    let origin = Origin::replying("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nX-Load: 0.5\r\n\r\na");
    let (builder, journal) = with([&origin], &["0"]);
    let proxy = builder.start();
    let mut client = proxy.connect();
    assert_eq!((client.get("/1").reply().text(), client.get("/2").reply().text()), ("a".into(), "a".into()));
    drop(proxy);
    let each = |path: &str| {
        [
            "load_balance",
            "next after []: 0",
            "observe 0 Connected",
            "observe 0 ResponseHeaders 200, load Some(\"0.5\")",
            "observe 0 TryEnded Served",
            "finish Served by Some(0), status Some(200), tries 1",
            "drop ",
        ]
        .map(|call| format!("{path} {call}").trim_end().to_owned())
    };
    assert_eq!(journal.all(), [each("/1"), each("/2")].concat());
}

#[test]
fn a_try_that_fails_and_one_that_serves() {
    let (dead, alive) = (Origin::dead(), Origin::named("alive"));
    let (builder, journal) = with([&alive, &dead], &["1", "0"]);
    let proxy = builder.start();
    assert_eq!(proxy.get("/").text(), "alive");
    drop(proxy);
    let calls = journal.all();
    assert_eq!(
        calls,
        [
            "/ load_balance",
            "/ next after []: 1",
            "/ report_failure 1 Connect, try 1",
            "/ observe 1 TryEnded NotEstablished",
            "/ next after [1]: 0",
            "/ observe 0 Connected",
            "/ observe 0 ResponseHeaders 200, load None",
            "/ observe 0 TryEnded Served",
            "/ finish Served by Some(0), status Some(200), tries 2",
            "/ drop",
        ]
    );
}

#[test]
fn a_name_that_does_not_resolve_is_reported_as_such() {
    let origin = Origin::named("a");
    let journal = Journal::new();
    let proxy = Proxy::over_urls(["http://no-such-name.invalid".into(), origin.url()])
        .module_file(MODULE, &artifacts::broken("records-calls"))
        .in_cluster(&format!("settings = {}", journal.settings(&["0", "1"])))
        .start();
    assert_eq!(proxy.get("/").text(), "a");
    drop(proxy);
    assert_eq!(journal.all()[2], "/ report_failure 0 Resolve, try 1");
}

#[test]
fn tries_that_all_fail() {
    let dead = [Origin::dead(), Origin::dead()];
    let (builder, journal) = with(&dead, &["0", "1"]);
    let proxy = builder.start();
    assert_eq!(proxy.get("/").status(), 502);
    drop(proxy);
    assert_eq!(
        journal.all(),
        [
            "/ load_balance",
            "/ next after []: 0",
            "/ report_failure 0 Connect, try 1",
            "/ observe 0 TryEnded NotEstablished",
            "/ next after [0]: 1",
            "/ report_failure 1 Connect, try 2",
            "/ observe 1 TryEnded NotEstablished",
            "/ next after [0, 1]: exhausted",
            "/ finish Failed by None, status Some(502), tries 2",
            "/ drop",
        ]
    );
}

/// The calls for one request to a server that does this, which is sent and got as the client likes.
fn calls(serve: impl Fn(&mut tests::origin::Conn) + Send + Sync + 'static, status: u16) -> Vec<String> {
    let origin = Origin::serving(serve);
    let (builder, journal) = with([&origin], &["0"]);
    let proxy = builder.in_cluster("response_timeout = \"50ms\"").start();
    assert_eq!(proxy.get("/").status(), status);
    drop(proxy);
    journal.all()
}

#[test]
fn a_server_that_closes_without_an_answer() {
    let calls = calls(|conn| drop(conn.request()), 502);
    assert_eq!(
        calls[2..],
        [
            "/ observe 0 Connected",
            "/ observe 0 TryEnded ClosedEarly",
            "/ finish Failed by Some(0), status Some(502), tries 1",
            "/ drop",
        ]
    );
}

#[test]
fn a_server_that_talks_rubbish() {
    let calls = calls(
        |conn| {
            conn.request();
            conn.send("rubbish\r\n\r\n");
        },
        502,
    );
    assert_eq!(calls[3], "/ observe 0 TryEnded BadResponse");
    assert_eq!(calls[4..], ["/ finish Failed by Some(0), status Some(502), tries 1", "/ drop"]);
}

#[test]
fn a_server_that_keeps_silent() {
    let calls = calls(
        |conn| {
            conn.request();
            conn.wait_for_end();
        },
        504,
    );
    assert_eq!(calls[3], "/ observe 0 TryEnded TimedOut");
    assert_eq!(calls[4..], ["/ finish TimedOut by Some(0), status Some(504), tries 1", "/ drop"]);
}

#[test]
fn a_server_that_breaks_off() {
    let calls = calls(
        |conn| {
            conn.request();
            conn.send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\npart");
        },
        200,
    );
    assert_eq!(calls[4], "/ observe 0 TryEnded Broken");
    assert_eq!(calls[5..], ["/ finish Broken by Some(0), status Some(200), tries 1", "/ drop"]);
}

/// After so many calls, the module hears that its client is gone, and nothing more.
#[track_caller]
fn is_told_of_an_abort(journal: Journal, proxy: Proxy, n_before: usize, status: &str) {
    let calls = journal.wait_for("/ drop");
    let finish = format!("/ finish Aborted by Some(0), status {status}, tries 1");
    assert_eq!(calls[n_before..], ["/ observe 0 TryEnded Aborted", &finish, "/ drop"]);
    drop(proxy);
    assert_eq!(journal.all().len(), calls.len(), "and nothing more");
}

#[test]
fn a_client_that_goes_within_its_request() {
    let origin = Origin::serving(|conn| {
        conn.head();
        conn.wait_for_end();
    });
    let (builder, journal) = with([&origin], &["0"]);
    let proxy = builder.start();
    let mut client = proxy.connect();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\npart");
    origin.wait_for_requests(1);
    client.reset();
    is_told_of_an_abort(journal, proxy, 3, "None");
}

#[test]
fn a_client_that_goes_while_it_waits() {
    let origin = Origin::serving(|conn| {
        conn.request();
        conn.wait_for_end();
    });
    let (builder, journal) = with([&origin], &["0"]);
    let proxy = builder.start();
    let mut client = proxy.connect();
    client.get("/");
    origin.wait_for_requests(1);
    client.reset();
    is_told_of_an_abort(journal, proxy, 3, "None");
}

#[test]
fn a_client_that_goes_within_its_response() {
    let origin = Origin::serving(|conn| {
        conn.request();
        conn.send("HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n");
        while conn.send([0; 10_000]) {}
    });
    let (builder, journal) = with([&origin], &["0"]);
    let proxy = builder.start();
    let mut client = proxy.connect();
    client.get("/").reply_head();
    client.bytes(10_000);
    client.reset();
    is_told_of_an_abort(journal, proxy, 4, "Some(200)");
}

#[test]
fn a_stale_connection_is_not_told_of_as_a_failure() {
    let origin = Origin::serving(|conn| {
        conn.request();
        conn.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        conn.request();
    });
    let (builder, journal) = with([&origin], &["0"]);
    let proxy = builder.start();
    let mut client = proxy.connect();
    client.get("/1").reply();
    assert_eq!(client.get("/2").reply().text(), "ok");
    drop(proxy);
    let calls: Vec<_> = journal.all().into_iter().filter(|call| call.starts_with("/2")).collect();
    assert_eq!(
        calls,
        [
            "/2 load_balance",
            "/2 next after []: 0",
            // One for the connection that turned out to be stale.
            "/2 observe 0 Connected",
            "/2 observe 0 Connected",
            "/2 observe 0 ResponseHeaders 200, load None",
            "/2 observe 0 TryEnded Served",
            "/2 finish Served by Some(0), status Some(200), tries 1",
            "/2 drop",
        ]
    );
}

#[test]
fn a_worker_that_is_stopped_tells_of_what_it_cuts_off() {
    let origin = Origin::serving(|conn| {
        conn.request();
        conn.wait_for_end();
    });
    let (builder, journal) = with([&origin], &["0"]);
    let proxy = builder.threads(2).start();
    let mut clients = ["/1", "/2", "/3"].map(|path| {
        let mut client = proxy.connect();
        client.get(path);
        client
    });
    origin.wait_for_requests(3);
    proxy.control().stop();
    proxy.wait();
    for client in &mut clients {
        client.end();
    }
    let calls = journal.all();
    for path in ["/1", "/2", "/3"] {
        let of_path: Vec<_> = calls.iter().filter_map(|call| call.strip_prefix(path)).collect();
        assert_eq!(
            of_path[3..],
            [" observe 0 TryEnded Aborted", " finish Aborted by Some(0), status None, tries 1", " drop"],
            "{path}"
        );
    }
}

#[test]
fn a_request_that_matches_no_route_asks_nobody() {
    let origin = Origin::named("a");
    let (builder, journal) = with([&origin], &["0"]);
    let proxy = builder.route("path = \"/known\"").start();
    assert_eq!(proxy.get("/unknown").status(), 404);
    drop(proxy);
    assert_eq!(journal.all(), [""; 0]);
}

/// Requests of many clients that end in every way at once: each trylist hears its calls in their order, `finish` at most
/// once, and `drop` exactly once and last.
#[test]
fn whatever_happens_at_once_each_trylist_hears_its_end_once() {
    const N_CLIENTS: usize = 6;
    const N_REQUESTS: usize = 20;
    let dead = Origin::dead();
    let odd = Origin::serving(|conn| {
        while let Some(request) = conn.request() {
            let way = request.line().split('/').nth(2).unwrap_or_default().to_owned();
            match way.as_str() {
                "closes" => return,
                "breaks" => {
                    conn.send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\npart");
                    return;
                }
                "hangs" | "leaves" => drop(conn.wait_for_end()),
                _ => drop(conn.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")),
            }
        }
    });
    let (builder, journal) = with([&dead, &odd], &["0", "1"]);
    // An ejected server is declined, and no try begins.
    let builder = builder.in_cluster("response_timeout = \"20ms\"\nejection = { failures = 0 }");
    let proxy = builder.threads(2).start();
    std::thread::scope(|scope| {
        for c in 0..N_CLIENTS {
            let proxy = &proxy;
            scope.spawn(move || {
                for r in 0..N_REQUESTS {
                    let way = ["served", "closes", "breaks", "hangs", "leaves", "stops"][(c + r) % 6];
                    let mut client = proxy.connect();
                    let path = format!("/{c}-{r}/{way}/");
                    match way {
                        "leaves" => client.get(&path).reset_now(),
                        "stops" => {
                            client.send(format!(
                                "POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\npart"
                            ));
                            client.end_sending().rest();
                        }
                        _ => drop(client.get(&path).reply()),
                    }
                }
            });
        }
    });
    drop(proxy);
    let calls = journal.all();
    let mut n_started = 0;
    for c in 0..N_CLIENTS {
        for r in 0..N_REQUESTS {
            let prefix = format!("/{c}-{r}/");
            let of_request: Vec<_> = calls.iter().filter(|call| call.starts_with(&prefix)).collect();
            // One that left at once may never have been read.
            let Some((last, before)) = of_request.split_last() else { continue };
            n_started += 1;
            let finishes = of_request.iter().filter(|call| call.contains(" finish ")).count();
            let drops = of_request.iter().filter(|call| call.ends_with(" drop")).count();
            assert!(last.ends_with(" drop") && before.last().is_some_and(|call| call.contains(" finish ")));
            assert!(before[0].ends_with(" load_balance"), "{of_request:?}");
            assert_eq!((finishes, drops), (1, 1), "{of_request:?}");
            let begun = of_request.iter().filter(|call| call.contains(" next ")).count();
            let ended = of_request.iter().filter(|call| call.contains(" TryEnded ")).count();
            assert_eq!(begun, ended, "each try that began ended: {of_request:?}");
        }
    }
    assert!(n_started >= N_CLIENTS * N_REQUESTS * 5 / 6, "{n_started}");
}

#[test]
fn a_module_hears_of_the_request_what_it_asked_for() {
    let origin = Origin::named("a");
    let (builder, journal) = with([&origin], &["0"]);
    let proxy = builder.in_cluster("key = \"cookie:sid\"").start();
    let mut client = proxy.connect();
    client.send("GET /1 HTTP/1.1\r\nHost: a\r\nCookie: x=1; sid=abc; y=2\r\nX-User: me\r\n\r\n").reply();
    client.send("GET /2 HTTP/1.1\r\nHost: a\r\nCookie: sidx=abc\r\nX-User:\r\n\r\n").reply();
    client.get("/3").reply();
    drop(proxy);
    let heard: Vec<_> = journal.all().into_iter().filter(|call| call.contains("load_balance")).collect();
    assert_eq!(
        heard,
        ["/1 load_balance, key \"abc\", x-user \"me\"", "/2 load_balance, x-user \"\"", "/3 load_balance"]
    );
}

#[test]
fn a_key_is_what_the_configuration_says() {
    let key = |key: &str| {
        let origin = Origin::named("a");
        let (builder, journal) = with([&origin], &["0"]);
        let proxy = builder.in_cluster(&format!("key = {key:?}")).start();
        proxy.connect().send("GET /p/q?a=1&user=u HTTP/1.1\r\nHost: a\r\nX-Id: 7\r\n\r\n").reply();
        drop(proxy);
        let call = journal.all().remove(0);
        call.strip_prefix("/p/q load_balance, key ").unwrap().to_owned()
    };
    assert_eq!(
        ["client", "header:x-id", "query:user", "path", "uri"].map(key),
        ["\"127.0.0.1\"", "\"7\"", "\"u\"", "\"/p/q\"", "\"/p/q?a=1&user=u\""]
    );
}

// ---- answers ---------------------------------------------------------------------------------------------------------

#[test]
fn exhausted_at_once_is_503() {
    let origin = Origin::named("never");
    let (builder, journal) = with([&origin], &[]);
    let proxy = builder.start();
    let reply = proxy.get("/");
    assert_eq!((reply.status(), reply.header("retry-after")), (503, Some("1")));
    assert_eq!(proxy.metric("trylist_fallbacks_total{cluster=\"%\",module=\"records_calls\"}"), 0.0);
    drop(proxy);
    assert_eq!(
        journal.all(),
        [
            "/ load_balance",
            "/ next after []: exhausted",
            "/ finish NoEndpoint by None, status Some(503), tries 0",
            "/ drop",
        ]
    );
    assert_eq!(origin.n_connections(), 0, "the module's word is kept");
}

#[test]
fn exhausted_early_is_502_with_servers_left() {
    let (dead, left) = (Origin::dead(), Origin::named("never"));
    let (builder, journal) = with([&dead, &left], &["0"]);
    let proxy = builder.start();
    assert_eq!(proxy.get("/").status(), 502);
    drop(proxy);
    assert_eq!(left.n_connections(), 0, "the module's word is kept");
    assert_eq!(journal.all()[5], "/ finish Failed by None, status Some(502), tries 1");
}

#[test]
fn busy_waits_until_one_comes_free() {
    let (arrived, go) = (Gate::default(), Gate::default());
    let origin = Origin::serving({
        let (arrived, go) = (arrived.clone(), go.clone());
        move |conn| {
            while conn.request().is_some() {
                arrived.open();
                go.wait();
                conn.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
            }
        }
    });
    let (builder, journal) = with([&origin], &["free 0"]);
    let proxy = builder.in_cluster("queue_timeout = \"20s\"").start();
    let (mut first, mut second) = (proxy.connect(), proxy.connect());
    first.get("/1");
    arrived.wait();
    second.get("/2");
    journal.wait_for("/2 next after []: busy");
    proxy.wait_for_queue(1);
    assert_eq!(origin.requests().len(), 1);
    go.open();
    assert_eq!((first.reply().text(), second.reply().text()), ("ok".into(), "ok".into()));
    proxy.wait_for_queue(0);
    assert_eq!(proxy.metric(&fault("already_tried")), 0.0, "busy is no fault");
}

#[test]
fn busy_for_too_long_is_503() {
    let origin = Origin::named("never");
    let answers = ["busy"; 1000];
    let (builder, journal) = with([&origin], &answers);
    let proxy = builder.in_cluster("queue_timeout = \"60ms\"").start();
    let reply = proxy.get("/");
    assert_eq!((reply.status(), reply.text().contains("busy")), (503, true), "{reply:?}");
    proxy.wait_for_queue(0);
    drop(proxy);
    let calls = journal.all();
    assert!(calls[1..calls.len() - 2].iter().all(|call| call == "/ next after []: busy"), "{calls:?}");
    assert_eq!(
        calls[calls.len() - 2..],
        ["/ finish NoEndpoint by None, status Some(503), tries 0", "/ drop"]
    );
}

#[test]
fn busy_with_a_full_queue_is_503_at_once() {
    let origin = Origin::named("never");
    let (builder, _journal) = with([&origin], &["busy"; 2]);
    let proxy = builder.in_cluster("queue = 0\nqueue_timeout = \"20s\"").start();
    assert_eq!(proxy.get("/").status(), 503);
    proxy.wait_for_metric("trylist_queue_full_total{cluster=\"%\"}", 1.0);
}

#[test]
fn a_client_that_goes_while_it_waits_in_the_queue() {
    let origin = Origin::named("never");
    let (builder, journal) = with([&origin], &["busy"; 10_000]);
    let proxy = builder.in_cluster("queue_timeout = \"20s\"").start();
    let mut client = proxy.connect();
    client.get("/");
    journal.wait_for("/ next after []: busy");
    client.reset();
    journal.wait_for("/ finish Aborted by None, status None, tries 0");
    journal.wait_for("/ drop");
    proxy.wait_for_queue(0);
}

// ---- faults ----------------------------------------------------------------------------------------------------------

/// The module does what it must not; the request is served all the same, and the fault counted and logged.
#[track_caller]
fn contained(answers: &[&str], kind: &str, rest: &[&str]) {
    let (dead, alive) = (Origin::dead(), Origin::named("alive"));
    let (builder, journal) = with([&dead, &alive], answers);
    let proxy = builder.start();
    assert_eq!(proxy.get("/").text(), "alive");
    assert_eq!(proxy.metric(&fault(kind)), 1.0, "{kind}");
    proxy.wait_for_metric("trylist_requests_total{cluster=\"%\",code=\"200\"}", 1.0);
    log::line(&[&format!("cluster=\"{}\"", proxy.cluster()), "ERROR"]);
    drop(proxy);
    let calls = journal.all();
    let last: Vec<_> = calls[calls.len() - rest.len()..].to_vec();
    assert_eq!(last, rest, "{calls:?}");
    assert_eq!(calls.iter().filter(|call| *call == "/ drop").count(), 1, "{calls:?}");
}

const SERVED: &str = "/ observe 1 TryEnded Served";

#[test]
fn an_endpoint_that_does_not_exist() {
    contained_by_fallback("2", "out_of_range");
    contained_by_fallback("4294967295", "out_of_range");
}

/// A first answer that is a fault: the host serves the request from then on, and the module still hears how it ended.
#[track_caller]
fn contained_by_fallback(answer: &str, kind: &str) {
    let alive = Origin::named("alive");
    let (builder, journal) = with([&alive, &alive], &[answer]);
    let proxy = builder.start();
    assert_eq!(proxy.get("/").text(), "alive");
    assert_eq!(proxy.metric(&fault(kind)), 1.0);
    assert_eq!(proxy.metric("trylist_fallbacks_total{cluster=\"%\",module=\"records_calls\"}"), 1.0);
    drop(proxy);
    let calls = journal.all();
    let endpoint = if calls.iter().any(|call| call == SERVED) { 1 } else { 0 };
    let expected = [
        "/ load_balance".to_owned(),
        format!("/ next after []: {answer}"),
        format!("/ observe {endpoint} Connected"),
        format!("/ observe {endpoint} ResponseHeaders 200, load None"),
        format!("/ observe {endpoint} TryEnded Served"),
        format!("/ finish Served by Some({endpoint}), status Some(200), tries 1"),
        "/ drop".to_owned(),
    ];
    assert_eq!(calls, expected);
}

#[test]
fn an_endpoint_that_was_tried_already() {
    contained(
        &["0", "0"],
        "already_tried",
        &[
            "/ next after [0]: 0",
            "/ observe 1 Connected",
            "/ observe 1 ResponseHeaders 200, load None",
            SERVED,
            "/ finish Served by Some(1), status Some(200), tries 2",
            "/ drop",
        ],
    );
}

#[test]
fn a_panic_in_next_is_the_last_that_the_trylist_hears() {
    contained(&["0", "panic"], "panic", &["/ next after [0]: panic", "/ drop"]);
}

#[test]
fn a_kind_of_answer_that_there_is_not() {
    let alive = Origin::named("alive");
    let proxy = Proxy::over([&alive]).broken("answers-unknown-kind").start();
    assert_eq!(proxy.get("/").text(), "alive");
    let series =
        "trylist_module_faults_total{cluster=\"%\",module=\"answers_unknown_kind\",fault=\"unknown_kind\"}";
    assert_eq!(proxy.metric(series), 1.0);
}

/// A panic in this call; the request is served all the same. Returns the calls.
#[track_caller]
fn panics_in(call: &str) -> Vec<String> {
    let (dead, alive) = (Origin::dead(), Origin::named("alive"));
    let (builder, journal) = with_settings([&dead, &alive], |journal| {
        let settings = journal.settings(&["0", "1"]);
        format!("{}, panics_in = {call:?} }}", settings.trim_end_matches(" }"))
    });
    let proxy = builder.start();
    assert_eq!(proxy.get("/").text(), "alive");
    proxy.wait_for_metric(&fault("panic"), 1.0);
    let line = log::line(&[&format!("cluster=\"{}\"", proxy.cluster()), "told to"]);
    assert!(line.contains("src/lib.rs:"), "it says where: {line}");
    drop(proxy);
    journal.all()
}

#[test]
fn after_a_panic_in_load_balance_there_is_nothing_to_tell_of() {
    assert_eq!(panics_in("load_balance"), ["/ load_balance: panic"]);
}

#[test]
fn after_a_panic_in_report_failure_comes_only_drop() {
    let calls = panics_in("report_failure");
    assert_eq!(
        calls,
        ["/ load_balance", "/ next after []: 0", "/ report_failure 0 Connect, try 1", "/ drop"]
    );
}

#[test]
fn after_a_panic_in_observe_comes_only_drop() {
    let calls = panics_in("observe");
    assert_eq!(calls[3..], ["/ observe 0 TryEnded NotEstablished", "/ drop"]);
}

#[test]
fn after_a_panic_in_finish_comes_only_drop() {
    let calls = panics_in("finish");
    assert_eq!(calls[8..], ["/ finish Served by Some(1), status Some(200), tries 2", "/ drop"]);
}

#[test]
fn a_panic_in_drop_harms_nobody() {
    assert_eq!(panics_in("drop").last().map(String::as_str), Some("/ drop"));
}

#[test]
fn a_faulty_module_serves_other_clusters_and_later_requests() {
    let alive = Origin::named("alive");
    let (builder, _journal) = with([&alive], &["panic"]);
    let proxy = builder.threads(2).top("supervision.module_faults = 0").start();
    assert_eq!(proxy.names(20), ["alive"; 20].join(" "));
    proxy.wait_for_metric("trylist_requests_total{cluster=\"%\",code=\"200\"}", 20.0);
}
