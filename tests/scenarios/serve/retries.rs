//! Requests that were sent and are sent again, because their route says so: to which servers, how often, what the module
//! hears of it, and what is never repeated.

use tests::Gate;
use tests::artifacts;
use tests::h2::{DATA, END_HEADERS, END_STREAM, Frames, HEADERS, frame, request};
use tests::journal::Journal;
use tests::log;
use tests::origin::{Conn, Origin};
use tests::proxy::{Builder, Proxy};

/// Over these servers, in this order, with a route that says this of retries.
fn with<'a>(origins: impl IntoIterator<Item = &'a Origin>, retry: &str) -> Builder {
    route(Proxy::over(origins), retry)
}

fn route(builder: Builder, retry: &str) -> Builder {
    builder.route(&format!("path = \"/\"\nretry = {{ backoff = \"0s\", {retry} }}"))
}

/// Answers every request with this status, and its name.
fn answering(status: u16, name: &str) -> Origin {
    Origin::replying(format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n{name}", name.len()))
}

/// Does this with the first request of each connection.
fn on_request(serve: impl Fn(&mut Conn) + Send + Sync + 'static) -> Origin {
    Origin::serving(move |conn| {
        if conn.request().is_some() {
            serve(conn);
        }
    })
}

fn closing() -> Origin {
    on_request(|_| {})
}

fn silent() -> Origin {
    on_request(|conn| {
        conn.wait_for_end();
    })
}

fn retries(proxy: &Proxy) -> f64 {
    proxy.metric("trylist_retries_total{cluster=\"%\"}")
}

/// Nobody said how long it would be.
#[test]
fn a_body_of_an_http2_stream_is_kept_and_sent_again() {
    let (busy, well) = (answering(503, "busy"), answering(200, "well"));
    let proxy = with([&busy, &well], "on = [\"503\"], methods = [\"POST\"]").listener("h2 = true").start();
    let mut client = Frames::connect(proxy.address());
    for stream in [1, 3] {
        client.send(frame(HEADERS, END_HEADERS, stream, &request("POST", "/", &[])));
        client.send(frame(DATA, 0, stream, b"bo"));
        client.send(frame(DATA, END_STREAM, stream, b"dy"));
        assert_eq!(client.body(stream), "well");
    }
    assert!(busy.requests().iter().chain(&well.requests()).all(|request| request.text() == "body"));
    assert_eq!(busy.requests().len(), 1, "the second began with the other server");
}

// ---- what is tried again ---------------------------------------------------------------------------------------------

#[test]
fn each_cause_moves_on_where_it_is_named_and_only_there() {
    let cut = || on_request(|conn| _ = conn.send("HTTP/1.1 200 OK\r\nContent-Len"));
    let rubbish = || on_request(|conn| _ = conn.send("rubbish\r\n\r\n"));
    let causes: [(&str, &dyn Fn() -> Origin, u16); 8] = [
        ("reset", &closing, 502),
        ("reset", &cut, 502),
        ("timeout", &silent, 504),
        ("bad_response", &rubbish, 502),
        ("503", &|| answering(503, "busy"), 503),
        ("gateway", &|| answering(502, "bad"), 502),
        ("5xx", &|| answering(599, "odd"), 599),
        ("429", &|| answering(429, "slowly"), 429),
    ];
    for (cause, origin, _) in &causes {
        let (first, second) = (origin(), Origin::named("second"));
        let on = format!("on = [{cause:?}]");
        let builder = with([&first, &second], &on).in_cluster("response_timeout = \"100ms\"");
        let proxy = builder.start();
        assert_eq!(proxy.get("/").text(), "second", "{cause}");
        assert_eq!(
            (first.requests().len(), second.requests().len(), retries(&proxy)),
            (1, 1, 1.0),
            "{cause}"
        );
        log::line(&[&format!("cluster=\"{}\"", proxy.cluster()), "another server served a request"]);
    }
    for (cause, origin, status) in &causes {
        let (first, second) = (origin(), Origin::named("second"));
        let others: Vec<_> = ["reset", "timeout", "bad_response", "500"]
            .into_iter()
            .filter(|other| other != cause)
            .map(|other| format!("{other:?}"))
            .collect();
        let on = format!("on = [{}]", others.join(", "));
        let builder = with([&first, &second], &on).in_cluster("response_timeout = \"100ms\"");
        assert_eq!(builder.start().get("/").status(), *status, "{cause}");
        assert_eq!(second.n_connections(), 0, "{cause}");
    }
}

#[test]
fn without_a_policy_only_connections_move_on() {
    let (dead, first, second) = (Origin::dead(), closing(), Origin::named("second"));
    let proxy = Proxy::over([&dead, &first, &second]).start();
    assert_eq!(proxy.get("/").status(), 502);
    assert_eq!((first.requests().len(), second.n_connections()), (1, 0));
}

#[test]
fn a_try_has_its_time_and_all_of_them_theirs() {
    let (a, b, last) = (silent(), silent(), Origin::named("last"));
    let tries = "on = [\"timeout\"], try_timeout = \"50ms\"";
    assert_eq!(with([&a, &b, &last], tries).start().get("/").text(), "last");
    let servers = [silent(), silent()];
    let all = "on = [\"timeout\"], timeout = \"50ms\"";
    let proxy = with(&servers, all).start();
    assert_eq!(proxy.get("/").status(), 504);
    log::line(&[&format!("cluster=\"{}\"", proxy.cluster()), "no response within 50ms"]);
    assert_eq!((servers[0].requests().len(), servers[1].n_connections()), (1, 0));
}

// ---- how often -------------------------------------------------------------------------------------------------------

#[test]
fn it_is_sent_as_often_as_is_allowed_and_never_twice_to_the_same_server() {
    let origins = [closing(), closing(), closing(), closing()];
    let proxy = with(&origins, "on = [\"reset\"], tries = 3").start();
    assert_eq!(proxy.get("/").status(), 502);
    assert_eq!(origins.each_ref().map(|origin| origin.requests().len()), [1, 1, 1, 0]);
    let line = log::line(&[&format!("cluster=\"{}\"", proxy.cluster()), "request failed"]);
    for origin in &origins[..3] {
        assert!(line.contains(&format!("{}: closed without a response", origin.url())), "{line}");
    }
    let two = [closing(), closing()];
    assert_eq!(with(&two, "on = [\"reset\"], tries = 9").start().get("/").status(), 502);
    assert_eq!(two.each_ref().map(|origin| origin.requests().len()), [1, 1]);
}

#[test]
fn connections_that_fail_do_not_count() {
    let (first, dead, last) = (closing(), [Origin::dead(), Origin::dead()], Origin::named("last"));
    let proxy = with([&first, &dead[0], &dead[1], &last], "on = [\"reset\"], tries = 2").start();
    assert_eq!(proxy.get("/").text(), "last");
}

#[test]
fn a_status_is_passed_on_where_nobody_answers_better() {
    // No server is left.
    let only = answering(503, "busy");
    let proxy = with([&only], "on = [\"503\"]").start();
    let mut client = proxy.connect();
    for _ in 0..2 {
        let reply = client.get("/").reply();
        assert_eq!((reply.status(), reply.text().as_str()), (503, "busy"));
    }
    log::line(&[
        &format!("cluster=\"{}\"", proxy.cluster()),
        "no other server served a request",
        "answered 503",
    ]);
    // The others cannot be reached.
    let (busy, dead) = (answering(503, "busy"), Origin::dead());
    let reply = with([&busy, &dead], "on = [\"503\"]").start().get("/");
    assert_eq!((reply.status(), reply.text().as_str()), (503, "busy"));
    // The others say the same: the last counts.
    let all = [answering(503, "a"), answering(503, "b"), answering(503, "c")];
    let reply = with(&all, "on = [\"503\"], tries = 2").start().get("/");
    assert_eq!((reply.status(), reply.text().as_str()), (503, "b"));
    assert_eq!(all.each_ref().map(|origin| origin.requests().len()), [1, 1, 0]);
}

#[test]
fn a_retry_counts_when_it_is_made_and_not_where_no_server_is_left() {
    let only = answering(503, "busy");
    let proxy = with([&only], "on = [\"503\"]").start();
    assert_eq!(proxy.get("/").status(), 503);
    assert_eq!(retries(&proxy), 0.0, "no other server");
    let (busy, dead) = (answering(503, "busy"), Origin::dead());
    let proxy = with([&busy, &dead], "on = [\"503\"]").start();
    assert_eq!(proxy.get("/").status(), 503);
    assert_eq!(retries(&proxy), 0.0, "none that can be reached");
    let all = [answering(503, "a"), answering(503, "b"), answering(503, "c")];
    let proxy = with(&all, "on = [\"503\"], tries = 9").start();
    assert_eq!(proxy.get("/").status(), 503);
    assert_eq!(retries(&proxy), 2.0);
}

#[test]
fn the_connection_of_a_response_that_was_bettered_is_used_again() {
    let (busy, good) = (answering(503, "busy"), Origin::named("good"));
    let proxy = with([&busy, &good], "on = [\"503\"]").start();
    let mut client = proxy.connect();
    for _ in 0..6 {
        assert_eq!(client.get("/").reply().text(), "good");
    }
    assert_eq!((busy.requests().len(), busy.n_connections(), good.n_connections()), (3, 1, 1));
}

#[test]
fn a_budget_that_is_spent_ends_retries() {
    let (bad, good) = (closing(), Origin::named("good"));
    let proxy = with([&bad, &good], "on = [\"reset\"], budget = { percent = 0, min = 0 }").start();
    assert_eq!(proxy.get("/").status(), 502);
    assert_eq!((good.n_connections(), retries(&proxy)), (0, 0.0));
    proxy.wait_for_metric("trylist_retries_denied_total{cluster=\"%\"}", 1.0);
}

#[test]
fn a_budget_counts_the_retries_that_are_under_way() {
    let (arrived, go) = (Gate::default(), Gate::default());
    let slow = on_request({
        let (arrived, go) = (arrived.clone(), go.clone());
        move |conn| {
            arrived.open();
            go.wait();
            conn.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nslow");
        }
    });
    let bad = closing();
    let retry = "on = [\"reset\"], budget = { percent = 0, min = 1 }";
    let (builder, _journal) = recorded([&bad, &slow], &["0", "1", "0", "1", "0", "1"]);
    let proxy = route(builder, retry).start();
    let mut first = proxy.connect();
    first.get("/1");
    arrived.wait();
    assert_eq!(proxy.get("/2").status(), 502, "the first is still a retry");
    go.open();
    assert_eq!(first.reply().text(), "slow");
    assert_eq!(proxy.get("/3").text(), "slow", "and now it is over");
}

#[test]
fn a_client_that_goes_while_a_retry_waits_is_let_go() {
    let (bad, never) = (closing(), Origin::named("never"));
    let builder = Proxy::over([&bad, &never]);
    let retry = "retry = { on = [\"reset\"], backoff = \"20s\", max_backoff = \"20s\" }";
    let proxy = builder.route(&format!("path = \"/\"\n{retry}")).start();
    let mut client = proxy.connect();
    client.get("/");
    bad.wait_for_requests(1);
    client.reset();
    proxy.wait_for_metric("trylist_outcomes_total{cluster=\"%\",outcome=\"aborted\"}", 1.0);
    assert_eq!(never.n_connections(), 0);
}

// ---- what the module hears -------------------------------------------------------------------------------------------

fn recorded<'a>(origins: impl IntoIterator<Item = &'a Origin>, answers: &[&str]) -> (Builder, Journal) {
    let journal = Journal::new();
    let settings = format!("settings = {}", journal.settings(answers));
    let builder = Proxy::over(origins).module_file("records_calls", &artifacts::broken("records-calls"));
    (builder.in_cluster(&settings), journal)
}

#[test]
fn a_module_hears_of_a_try_that_was_sent_and_retried() {
    let origins = [closing(), answering(503, "busy"), Origin::named("good")];
    let (builder, journal) = recorded(&origins, &["0", "1", "2"]);
    let proxy = route(builder, "on = [\"reset\", \"503\"]").start();
    assert_eq!(proxy.get("/").text(), "good");
    drop(proxy);
    assert_eq!(
        journal.all(),
        [
            "/ load_balance",
            "/ next after []: 0",
            "/ observe 0 Connected",
            "/ observe 0 TryEnded ClosedEarly",
            "/ next after [0]: 1",
            "/ observe 1 Connected",
            "/ observe 1 ResponseHeaders 503, load None",
            "/ observe 1 TryEnded Served",
            "/ next after [0, 1]: 2",
            "/ observe 2 Connected",
            "/ observe 2 ResponseHeaders 200, load None",
            "/ observe 2 TryEnded Served",
            "/ finish Served by Some(2), status Some(200), tries 3",
            "/ drop",
        ]
    );
}

#[test]
fn a_module_hears_once_of_a_response_that_was_kept_for_want_of_a_better() {
    let (busy, dead) = (answering(503, "busy"), Origin::dead());
    let (builder, journal) = recorded([&busy, &dead], &["0", "1"]);
    let proxy = route(builder, "on = [\"503\"]").start();
    assert_eq!(proxy.get("/").status(), 503);
    drop(proxy);
    assert_eq!(
        journal.all(),
        [
            "/ load_balance",
            "/ next after []: 0",
            "/ observe 0 Connected",
            "/ observe 0 ResponseHeaders 503, load None",
            "/ observe 0 TryEnded Served",
            "/ next after [0]: 1",
            "/ report_failure 1 Connect, try 2",
            "/ observe 1 TryEnded NotEstablished",
            "/ next after [0, 1]: exhausted",
            "/ finish Served by Some(0), status Some(503), tries 2",
            "/ drop",
        ]
    );
}

// ---- what is repeated, and what is not -------------------------------------------------------------------------------

#[test]
fn a_body_is_sent_again_whole() {
    let bodies = ["small".to_owned(), "x".repeat(60_000), "y".repeat(65_536)];
    for body in &bodies {
        let (bad, good) = (closing(), Origin::named("good"));
        let proxy = with([&bad, &good], "on = [\"reset\"]").start();
        let head = "PUT / HTTP/1.1\r\nHost: a\r\n";
        let mut client = proxy.connect();
        client.send(format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()));
        assert_eq!(client.reply().text(), "good");
        let (bad, good) = (answering(503, "busy"), Origin::named("good"));
        let proxy = with([&bad, &good], "on = [\"503\"]").start();
        let mut client = proxy.connect();
        let chunks =
            format!("1\r\n{}\r\n{:x}\r\n{}\r\n0\r\nX-Sum: 1\r\n\r\n", &body[..1], body.len() - 1, &body[1..]);
        client.send(format!("{head}Transfer-Encoding: chunked\r\n\r\n{chunks}"));
        assert_eq!(client.reply().text(), "good");
        let (first, second) = (bad.request(), good.request());
        assert_eq!((&first.body, &second.body), (&second.body, &body.clone().into_bytes()));
        assert_eq!((first.trailers.as_str(), second.trailers.as_str()), ("X-Sum: 1\n", "X-Sum: 1\n"));
        assert_eq!(client.get("/").reply().status(), 200, "what follows is not lost");
    }
}

#[test]
fn a_body_that_is_still_coming_goes_on_to_the_next_server() {
    let bad = Origin::serving(|conn| {
        conn.head();
        conn.bytes(5);
    });
    let good = Origin::named("good");
    let proxy = with([&bad, &good], "on = [\"reset\"]").start();
    let mut client = proxy.connect();
    client.send("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n01234");
    // The second server has what the first got, before the client sends more.
    tests::eventually("a second try", || (good.n_connections() == 1).then_some(()));
    client.send("56789");
    assert_eq!((client.reply().text(), good.request().text()), ("good".into(), "0123456789".into()));
}

#[test]
fn a_body_over_the_buffer_is_not_sent_again() {
    let put = |framing: &str| format!("PUT / HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n");
    let body = "x".repeat(2000);
    for request in [
        put("Content-Length: 2000") + &body,
        put("Transfer-Encoding: chunked") + &format!("7d0\r\n{body}\r\n0\r\n\r\n"),
    ] {
        let (bad, never) = (closing(), Origin::named("never"));
        let proxy = with([&bad, &never], "on = [\"reset\"], buffer = \"1KiB\"").start();
        assert_eq!(proxy.connect().send(request).reply().status(), 502);
        assert_eq!((bad.request().body.len(), never.n_connections()), (2000, 0));
    }
}

#[test]
fn what_must_not_happen_twice_does_not_unless_the_operator_says_so() {
    let post = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody";
    let (bad, second) = (closing(), Origin::named("second"));
    assert_eq!(with([&bad, &second], "on = [\"reset\"]").start().connect().send(post).reply().status(), 502);
    assert_eq!(second.n_connections(), 0);
    let said = "on = [\"reset\"], methods = [\"POST\"]";
    let (bad, second) = (closing(), Origin::named("second"));
    let proxy = with([&bad, &second], said).start();
    assert_eq!(proxy.connect().send(post).reply().text(), "second");
    assert_eq!(second.request().text(), "body");
    assert_eq!(proxy.get("/").status(), 200, "the turn of the second");
    assert_eq!(proxy.get("/").status(), 502, "GET is not among them now");
}

#[test]
fn nothing_is_repeated_once_the_client_has_got_a_byte() {
    for sent in ["HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\npart"] {
        let (bad, never) = (on_request(move |conn| _ = conn.send(sent)), Origin::named("never"));
        let proxy = with([&bad, &never], "on = [\"reset\", \"timeout\", \"5xx\"]").start();
        let (said, _) = {
            let mut client = proxy.connect();
            client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
            client.rest()
        };
        assert!(said.starts_with(&sent[..12]) && !said.contains("never"), "{said}");
        assert_eq!(never.n_connections(), 0);
    }
}

#[test]
fn a_stale_connection_is_still_no_try() {
    let stale = Origin::serving(|conn| {
        conn.request();
        conn.send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfirst");
        conn.request();
    });
    let proxy = with([&stale], "on = [\"reset\"], methods = [\"POST\"]").start();
    let mut client = proxy.connect();
    for _ in 0..3 {
        client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n");
        assert_eq!(client.reply().text(), "first");
    }
    assert_eq!(retries(&proxy), 0.0);
    assert!(stale.requests().iter().all(|request| request.text() == "body"));
}

// ---- the time of a request -------------------------------------------------------------------------------------------

#[test]
fn a_request_has_its_time_whatever_moves() {
    let dripping = on_request(|conn| {
        conn.send("HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n");
        while conn.send("x") {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    });
    let proxy = Proxy::over([&dripping]).tables("[timeouts]\nrequest = \"200ms\"").start();
    let mut client = proxy.connect();
    let reply = client.get("/").reply();
    assert!(reply.status() == 200 && reply.cut.is_some(), "{reply:?}");
    log::line(&[&format!("cluster=\"{}\"", proxy.cluster()), "not done within 200ms"]);
    let silent = silent();
    let proxy = Proxy::over([&silent]).route("path = \"/\"\ntimeout = \"50ms\"").start();
    assert_eq!(proxy.get("/").status(), 504);
    log::line(&[&format!("cluster=\"{}\"", proxy.cluster()), "no response within 50ms"]);
}

// ---- many at once ----------------------------------------------------------------------------------------------------

/// The body that goes with a path, of a length that differs from path to path.
fn body_of(path: &str) -> Vec<u8> {
    let seed = path.bytes().fold(7_usize, |seed, byte| (seed * 31 + usize::from(byte)) % 100_003);
    (0..seed % 40_000).map(|i| (i * 31 + seed) as u8).collect()
}

/// Answers well, but for every third request of all, with which it does this.
fn failing(fail: impl Fn(&mut Conn) -> bool + Send + Sync + 'static) -> Origin {
    let n = std::sync::atomic::AtomicUsize::new(0);
    Origin::serving(move |conn| {
        while let Some(request) = conn.request() {
            if n.fetch_add(1, std::sync::atomic::Ordering::Relaxed) % 3 == 2 {
                if fail(conn) {
                    continue;
                }
                return;
            }
            let body = body_of(request.line().split(' ').nth(1).unwrap());
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
            if !conn.send([head.as_bytes(), &body].concat()) {
                return;
            }
        }
    })
}

#[test]
fn whatever_servers_do_every_client_gets_its_own_whole_response() {
    const N_CLIENTS: usize = 4;
    const N_REQUESTS: usize = 250;
    let busy = "HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy";
    let origins = [
        failing(|_| false),
        failing(move |conn| conn.send(busy)),
        failing(|conn| {
            conn.send("HTTP/1.1 200 OK\r\nContent-Le");
            false
        }),
        // The one that is always right, so that four tries are enough.
        failing(|conn| {
            conn.send("HTTP/1.1 200 OK\r\nX-Last: resort\r\nContent-Length: 0\r\n\r\n");
            true
        }),
    ];
    let retry = "on = [\"reset\", \"503\"], tries = 4, budget = { percent = 100, min = 100 }";
    let proxy = with(&origins, retry).start();
    std::thread::scope(|scope| {
        for client in 0..N_CLIENTS {
            let proxy = &proxy;
            scope.spawn(move || {
                let mut connection = proxy.connect();
                for n in 0..N_REQUESTS {
                    let path = format!("/{client}/{n}");
                    if n % 5 == 0 {
                        let body = "x".repeat(n * 10);
                        let length = body.len();
                        connection.send(format!(
                            "PUT {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n{body}"
                        ));
                    } else {
                        connection.get(&path);
                    }
                    let reply = connection.reply();
                    let is_right = reply.body == body_of(&path) || reply.header("x-last").is_some();
                    assert!(
                        reply.status() == 200 && reply.cut.is_none() && is_right,
                        "{path}: {}",
                        reply.head
                    );
                }
            });
        }
    });
    let served = N_CLIENTS * N_REQUESTS;
    proxy.wait_for_metric("trylist_requests_total{cluster=\"%\",code=\"200\"}", served as f64);
    assert!(retries(&proxy) > served as f64 / 10.0, "{}", retries(&proxy));
    let bodies =
        origins.iter().flat_map(Origin::requests).filter(|request| request.line().starts_with("PUT"));
    for request in bodies {
        let n: usize = request.line().split(['/', ' ']).nth(3).unwrap().parse().unwrap();
        assert_eq!(request.body.len(), n * 10, "{}", request.line());
    }
}
