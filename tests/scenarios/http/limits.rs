//! Clients that send too much, too slowly, or nothing.

use tests::h2::{Frames, INITIAL_WINDOW_SIZE, settings, window};
use tests::log;
use tests::origin::Origin;
use tests::proxy::Proxy;
use tests::stream::End;

/// A proxy with these tables, the request that it refuses with this status, and what is said of it.
#[track_caller]
fn refused(tables: &str, request: &str, status: u16) {
    let origin = Origin::named("never");
    let proxy = Proxy::over([&origin]).tables(tables).start();
    let mut client = proxy.connect();
    let reply = client.send(request).reply();
    assert_eq!(reply.status(), status, "{tables}: {}", reply.text());
    assert_eq!((client.end(), origin.n_connections()), (End::Eof, 0), "{tables}");
    proxy.wait_for_metric(&format!("trylist_requests_total{{cluster=\"\",code=\"{status}\"}}"), 1.0);
}

/// The request passes with these tables.
#[track_caller]
fn passes(tables: &str, request: &str) {
    let origin = Origin::named("a");
    assert_eq!(
        Proxy::over([&origin]).tables(tables).start().connect().send(request).reply().text(),
        "a",
        "{tables}"
    );
}

#[test]
fn a_request_line_over_its_limit_is_414() {
    let limit = "[limits]\nrequest_line_bytes = 64";
    let line =
        |n: usize| format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(n - "GET / HTTP/1.1".len()));
    passes(limit, &line(64));
    refused(limit, &line(65), 414);
    refused(limit, &"x".repeat(1000), 414);
}

#[test]
fn a_head_over_its_limit_is_431() {
    let limit = "[limits]\nhead_bytes = 1024\nrequest_line_bytes = 512";
    let head = |n: usize| {
        let rest = "GET / HTTP/1.1\r\nHost: a\r\nX: \r\n\r\n".len();
        format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(n - rest))
    };
    passes(limit, &head(1024));
    refused(limit, &head(1025), 431);
    refused(limit, &head(100_000), 431);
}

#[test]
fn too_many_header_lines_are_431() {
    let limit = "[limits]\nheaders = 10";
    let head = |n: usize| format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(n - 1));
    passes(limit, &head(10));
    refused(limit, &head(11), 431);
}

#[test]
fn a_body_over_its_limit_is_413_before_any_of_it_is_sent() {
    let limit = "[limits]\nbody_bytes = 1000";
    passes(limit, &format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n{}", "x".repeat(1000)));
    refused(limit, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1001\r\n\r\n", 413);
}

#[test]
fn a_chunked_body_over_its_limit_is_413_and_never_whole_for_the_server() {
    let origin = Origin::named("never");
    let proxy = Proxy::over([&origin]).tables("[limits]\nbody_bytes = 1000").start();
    let mut client = proxy.connect();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
    client.send(format!("3e8\r\n{}\r\n1\r\nx\r\n0\r\n\r\n", "x".repeat(1000)));
    assert_eq!((client.reply().status(), client.end()), (413, End::Eof));
    drop(proxy);
    assert!(origin.requests().iter().all(|request| request.cut.is_some()));
}

/// As the reference says; a buffer for bodies takes no more than 64 KiB.
#[test]
fn the_limit_of_heads_is_that_of_responses_too() {
    let (line, end) = ("HTTP/1.1 200 OK\r\nX: ", "\r\nContent-Length: 2\r\n\r\n");
    let rest = line.len() + end.len();
    let head = |n: usize| format!("{line}{}{end}", "x".repeat(n - rest));
    for (limit, most) in [("16KiB", 16 << 10), ("64KiB", 64 << 10), ("200KiB", 200 << 10)] {
        let tables = format!("[limits]\nhead_bytes = \"{limit}\"");
        let hint = "HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n";
        for (n, status) in [(most, 200), (most + 1, 502)] {
            for before in ["", hint] {
                let origin = Origin::replying(format!("{before}{}ok", head(n)));
                let proxy = Proxy::over([&origin]).tables(&tables).start();
                let mut client = proxy.connect();
                let mut reply = client.get("/").reply();
                if reply.status() == 103 {
                    reply = client.reply();
                }
                assert_eq!(reply.status(), status, "{n} of {limit}");
                if status == 200 {
                    assert_eq!(
                        (reply.text().as_str(), reply.header("x").map(str::len)),
                        ("ok", Some(n - rest))
                    );
                }
            }
        }
    }
}

/// A client without a request would take an error for the answer to its next request.
#[test]
fn a_client_that_says_nothing_is_let_go_without_a_word() {
    let origin = Origin::named("never");
    let proxy = Proxy::over([&origin]).tables("[timeouts]\nrequest_head = \"50ms\"").start();
    for nothing in ["", "\r\n\r\n"] {
        assert_eq!(proxy.connect().send(nothing).end(), End::Eof);
    }
    assert_eq!(proxy.metric("trylist_requests_total{cluster=\"\",code=\"408\"}"), 0.0);
}

#[test]
fn a_head_that_does_not_end_in_time_is_408() {
    refused("[timeouts]\nrequest_head = \"50ms\"", "GET / HTTP/1.1\r\nHost:", 408);
}

#[test]
fn dripping_buys_no_time() {
    let origin = Origin::named("never");
    let proxy = Proxy::over([&origin]).tables("[timeouts]\nrequest_head = \"200ms\"").start();
    let mut client = proxy.connect();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n");
    // Each line would be in time if the clock started anew with it.
    let refused = || proxy.metric("trylist_requests_total{cluster=\"\",code=\"408\"}") > 0.0;
    tests::eventually("the client is refused", || {
        client.send("X: y\r\n");
        refused().then_some(())
    });
    assert_eq!(origin.n_connections(), 0);
}

/// Closed in any other way the connection would stay in the kernel, with all that its client does not take.
#[test]
fn a_client_that_does_not_take_its_response_is_reset() {
    let body = "x".repeat(16 << 20);
    let origin = Origin::replying(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
    let proxy = Proxy::over([&origin]).tables("[timeouts]\nbody = \"100ms\"").start();
    let mut client = proxy.connect();
    client.get("/");
    let open = format!("trylist_open_connections{{listener=\"{}\"}}", proxy.address());
    origin.wait_for_requests(1);
    proxy.wait_for_metric(&open, 0.0);
    let reply = client.reply();
    assert_eq!((reply.status(), reply.cut), (200, Some(End::Reset)));
    assert!(reply.body.len() < body.len());
}

#[test]
fn a_body_that_stops_coming_is_408() {
    let origin = Origin::named("never");
    let proxy = Proxy::over([&origin]).tables("[timeouts]\nbody = \"50ms\"").start();
    let mut client = proxy.connect();
    let reply = client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\npart").reply();
    assert_eq!((reply.status(), client.end()), (408, End::Eof));
    assert!(log::lines(&["request failed", proxy.cluster()]).is_empty(), "it is no server's fault");
}

/// A request whose client has reset its connection was sent when its turn came, if it had a body.
#[test]
fn what_its_client_has_given_up_is_not_sent_from_the_queue() {
    let long = "x".repeat(100_000);
    for rest in [
        "\r\n".into(),
        "Content-Length: 3\r\n\r\nabc".into(),
        "Content-Length: 9\r\n\r\npart".into(),
        "Transfer-Encoding: chunked\r\n\r\n4\r\npart\r\n".into(),
        // More than is read while it waits.
        format!("Content-Length: {}\r\n\r\n{long}", long.len()),
    ] {
        let go = tests::Gate::default();
        let origin = Origin::serving({
            let go = go.clone();
            move |conn| {
                while conn.request().is_some() {
                    go.wait();
                    conn.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
                }
            }
        });
        let proxy = Proxy::over([&origin])
            .each_server("max_requests = 1")
            .in_cluster("queue_timeout = \"20s\"")
            .start();
        let mut first = proxy.connect();
        first.get("/first");
        origin.wait_for_requests(1);
        let mut client = proxy.connect();
        client.send(format!("POST /given-up HTTP/1.1\r\nHost: a\r\n{rest}"));
        proxy.wait_for_queue(1);
        client.reset();
        proxy.wait_for_metric("trylist_outcomes_total{cluster=\"%\",outcome=\"aborted\"}", 1.0);
        go.open();
        assert_eq!(first.reply().text(), "ok");
        assert_eq!(first.get("/last").reply().text(), "ok");
        assert_eq!(origin.requests().len(), 2, "{:?}", origin.requests());
    }
}

/// The server gets the bytes of a body that come while its request waits.
/// Its responses are with the library for HTTP/2, whole, and no stream waits for anything.
#[test]
fn an_http2_client_that_takes_nothing_is_reset() {
    let body = "x".repeat(60_000);
    let origin = Origin::replying(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
    let proxy = Proxy::over([&origin]).listener("h2 = true").tables("[timeouts]\nbody = \"100ms\"").start();
    let mut client = Frames::connect_narrowly(proxy.address());
    client.send(settings(&[(INITIAL_WINDOW_SIZE, 1 << 30)]));
    client.send(window(0, 1 << 30));
    for n in 0..100 {
        client.get(2 * n + 1, "/");
    }
    origin.wait_for_requests(100);
    proxy.wait_for_metric("trylist_open_connections", 0.0);
}

/// A server for one request at a time, and its proxy. Once the gate is open, it answers each body with this text.
fn one_at_a_time(
    go: &tests::Gate,
    answer: impl Fn(Vec<u8>) -> String + Send + Sync + 'static,
) -> (Origin, Proxy) {
    let go = go.clone();
    let origin = Origin::serving(move |conn| {
        while let Some(request) = conn.request() {
            go.wait();
            let text = answer(request.body);
            conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len()));
        }
    });
    let builder = Proxy::over([&origin]).each_server("max_requests = 1");
    let proxy = builder.in_cluster("queue_timeout = \"20s\"").start();
    (origin, proxy)
}

/// Its pieces are framed anew where they lie, and a size may take more digits than that of the client's first chunk had.
#[test]
fn a_chunked_body_that_comes_while_its_request_waits_arrives_whole() {
    let go = tests::Gate::default();
    let (origin, proxy) = one_at_a_time(&go, |body| String::from_utf8(body).unwrap());
    let mut first = proxy.connect();
    first.get("/first");
    origin.wait_for_requests(1);
    let mut client = proxy.connect();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
    proxy.wait_for_queue(1);
    client.send("1\r\na\r\n13\r\nbcdefghijklmnopqrst\r\n0\r\n\r\nGET /next HTTP/1.1\r\nHost: a\r\n\r\n");
    go.open();
    assert_eq!(client.reply().text(), "abcdefghijklmnopqrst");
    assert_eq!(client.reply().status(), 200);
}

#[test]
fn a_body_that_comes_while_its_request_waits_arrives_whole() {
    let go = tests::Gate::default();
    let (origin, proxy) = one_at_a_time(&go, |body| body.len().to_string());
    let mut first = proxy.connect();
    first.get("/first");
    origin.wait_for_requests(1);
    let waiting: Vec<_> = [3, 20_000, 300_000]
        .into_iter()
        .map(|n| {
            let mut client = proxy.connect();
            let body = "x".repeat(n);
            let next = "GET /next HTTP/1.1\r\nHost: a\r\n\r\n";
            client.send(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {n}\r\n\r\n"));
            (client, format!("{body}{next}"), n)
        })
        .collect();
    proxy.wait_for_queue(3);
    std::thread::scope(|scope| {
        for (mut client, rest, n) in waiting {
            scope.spawn(move || {
                client.send(rest);
                assert_eq!(client.reply().text(), n.to_string());
                assert_eq!(client.reply().text(), "0");
            });
        }
        go.open();
    });
}

#[test]
fn a_client_that_begins_with_half_of_http2_is_let_go() {
    let origin = Origin::named("never");
    let tables = "[timeouts]\nrequest_head = \"50ms\"";
    let proxy = Proxy::over([&origin]).listener("h2 = true").tables(tables).start();
    let (_, end) = proxy.connect().send("PRI * HTTP/2.0\r\n\r\n").rest();
    assert_eq!((end, origin.n_connections()), (End::Eof, 0));
}

/// The server answered before it had the body, and nobody wants the rest.
#[test]
fn the_rest_of_a_body_that_nobody_wants_is_not_waited_for() {
    let origin = Origin::serving(|conn| {
        conn.head();
        conn.send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nearly");
        conn.wait_for_end();
    });
    let proxy = Proxy::over([&origin]).tables("[timeouts]\nbody = \"100ms\"").start();
    let mut client = proxy.connect();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 8\r\n\r\npart");
    assert_eq!((client.reply().text(), client.end()), ("early".into(), End::Eof));
}

/// It is told so, and our half of the connection ends; the other half is not waited for.
#[test]
fn a_client_that_stays_after_it_was_refused_is_let_go() {
    let origin = Origin::named("never");
    let proxy = Proxy::over([&origin]).start();
    let mut client = proxy.connect();
    assert_eq!(client.send("rubbish\r\n\r\n").reply().status(), 400);
    assert_eq!(client.end(), End::Eof);
    proxy.wait_for_metric(&format!("trylist_open_connections{{listener=\"{}\"}}", proxy.address()), 0.0);
}

/// It is no fault of the client's, and not said to be one of the response's.
#[test]
fn a_server_that_does_not_take_a_request_is_504() {
    let go = tests::Gate::default();
    let origin = Origin::serving({
        let go = go.clone();
        move |conn| {
            conn.head();
            go.wait();
        }
    });
    let proxy = Proxy::over([&origin]).tables("[timeouts]\nbody = \"100ms\"").start();
    let mut client = proxy.connect();
    let body = "x".repeat(30 << 20);
    let mut sender = client.socket().try_clone().unwrap();
    let head = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len());
    std::thread::scope(|scope| {
        // The proxy takes no more of it than the server does.
        scope.spawn(move || std::io::Write::write_all(&mut sender, format!("{head}{body}").as_bytes()));
        assert_eq!(client.reply().status(), 504);
        go.open();
        client.reset_now();
    });
    let line = log::line(&["request failed", proxy.cluster()]);
    assert!(line.contains("no response within 100ms"), "{line}");
}

#[test]
fn an_idle_connection_is_closed_without_a_word() {
    let origin = Origin::named("a");
    let proxy = Proxy::over([&origin]).tables("[timeouts]\nkeepalive = \"50ms\"").start();
    let mut client = proxy.connect();
    assert_eq!(client.get("/").reply().text(), "a");
    assert_eq!(client.end(), End::Eof);
}

#[test]
fn above_its_connections_a_listener_waits_until_one_ends() {
    let origin = Origin::named("a");
    let proxy = Proxy::over([&origin]).listener("max_connections = 2").start();
    let mut open = [proxy.connect(), proxy.connect()];
    for client in &mut open {
        assert_eq!(client.get("/").reply().text(), "a");
    }
    let mut waiting = proxy.connect();
    waiting.get("/");
    let listener = proxy.address();
    proxy.wait_for_metric(&format!("trylist_listener_full_total{{listener=\"{listener}\"}}"), 1.0);
    proxy.wait_for_metric(&format!("trylist_open_connections{{listener=\"{listener}\"}}"), 2.0);
    drop(open);
    assert_eq!(waiting.reply().text(), "a");
}

#[test]
fn a_connection_ends_with_its_last_request() {
    let origin = Origin::named("a");
    let proxy = Proxy::over([&origin]).tables("[limits]\nrequests_per_connection = 2").start();
    let mut client = proxy.connect();
    assert_eq!(client.get("/").reply().header("connection"), None);
    assert_eq!(client.get("/").reply().header("connection"), Some("close"));
    assert_eq!(client.end(), End::Eof);
}

#[test]
fn a_client_that_goes_away_takes_nothing_with_it() {
    let origin = Origin::serving(|conn| {
        conn.request();
        conn.wait_for_end();
    });
    let proxy = Proxy::over([&origin]).start();
    let mut client = proxy.connect();
    client.get("/");
    origin.wait_for_requests(1);
    client.reset();
    proxy.wait_for_metric("trylist_outcomes_total{cluster=\"%\",outcome=\"aborted\"}", 1.0);
    let in_flight = format!("trylist_endpoint_in_flight{{cluster=\"%\",endpoint=\"{}\"}}", origin.url());
    proxy.wait_for_metric(&in_flight, 0.0);
}
