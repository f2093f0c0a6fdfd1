//! Clients that send too much, too slowly, or nothing.

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

#[test]
fn a_client_that_says_nothing_is_told_so() {
    refused("[timeouts]\nrequest_head = \"50ms\"", "", 408);
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
