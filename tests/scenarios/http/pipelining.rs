//! Clients that send their next requests before the answer to the last: none is lost, whatever stands in between, and
//! none loses its answer because the connection ends.

use tests::Gate;
use tests::client::Client;
use tests::origin::Origin;
use tests::proxy::Proxy;
use tests::stream::End;
use trylist::serve::drain::Idle;

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// Answers its first request when the gate is open, and the others at once.
fn held_back_by(go: &Gate) -> Origin {
    let go = go.clone();
    Origin::serving(move |conn| {
        while conn.request().is_some() {
            go.wait();
            if !conn.send(OK) {
                return;
            }
        }
    })
}

fn gets(n: usize) -> String {
    let pad = "p".repeat(60);
    (0..n).map(|i| format!("GET /{i} HTTP/1.1\r\nHost: x\r\nX-Pad: {pad}\r\n\r\n")).collect()
}

/// The requests behind a body were read into the buffer that the body had grown, and did not fit into the next one.
#[test]
fn requests_behind_a_body_are_all_answered() {
    let go = Gate::default();
    let origin = held_back_by(&go);
    let proxy = Proxy::over([&origin]).start();
    for length in [5, 20_000, 40_000] {
        let mut client = proxy.connect();
        let body = "b".repeat(length);
        client.send(format!(
            "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{body}{}",
            gets(400)
        ));
        go.open();
        for i in 0..=400 {
            assert_eq!(client.reply().text(), "ok", "{length} {i}");
        }
    }
}

/// Closing with requests unread reset the connection, and what was not yet sent of the last response was lost.
#[test]
fn the_last_response_of_a_connection_arrives_whole_whatever_else_was_sent() {
    const BODY: usize = 3_000_000;
    let origin =
        Origin::replying(format!("HTTP/1.1 200 OK\r\nContent-Length: {BODY}\r\n\r\n{}", "x".repeat(BODY)));
    let proxy = Proxy::over([&origin]).tables("[limits]\nrequests_per_connection = 1").start();
    let mut client = proxy.connect();
    client.send(gets(300));
    let reply = client.reply();
    assert_eq!((reply.body.len(), reply.header("connection")), (BODY, Some("close")));
    assert_eq!(client.end(), End::Eof);
}

/// The client has said that this is its last request, and sends another all the same: to close the connection with bytes
/// unread would reset it, and the response with it.
#[test]
fn what_comes_behind_the_last_request_does_not_reset_the_connection() {
    let go = Gate::default();
    let origin = held_back_by(&go);
    let proxy = Proxy::over([&origin]).start();
    let mut client = proxy.connect();
    client.send("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    origin.wait_for_requests(1);
    client.send("GET /more HTTP/1.1\r\nHost: x\r\n\r\n");
    go.open();
    let reply = client.reply();
    assert_eq!((reply.text().as_str(), reply.header("connection")), ("ok", Some("close")));
    assert_eq!(client.end(), End::Eof);
}

#[test]
fn refused_requests_count_as_requests_of_the_connection() {
    let origin = Origin::replying(OK);
    let proxy = Proxy::over([&origin])
        .route("path = \"/there\"")
        .tables("[limits]\nrequests_per_connection = 2")
        .start();
    let mut client = proxy.connect();
    client.send(gets(5));
    let replies = [client.reply(), client.reply()];
    assert_eq!(
        replies.map(|reply| reply.header("connection").map(str::to_owned)),
        [None, Some("close".into())]
    );
    assert_eq!(client.end(), End::Eof);
}

#[test]
fn an_empty_line_after_a_body_is_no_request_begun() {
    let origin = Origin::replying(OK);
    let proxy =
        Proxy::over([&origin]).tables("[timeouts]\nrequest_head = \"50ms\"\nkeepalive = \"1100ms\"").start();
    let mut client = proxy.connect();
    client.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nb\r\n");
    assert_eq!(client.reply().text(), "ok");
    // And not a 408.
    assert_eq!(client.end(), End::Eof);
}

#[test]
fn an_http_1_0_client_is_told_that_its_connection_goes_on() {
    let origin = Origin::replying(OK);
    let proxy = Proxy::over([&origin]).route("path = \"/there\"").start();
    let mut client = proxy.connect();
    for path in ["/", "/there", "/"] {
        client.send(format!("GET {path} HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"));
        assert_eq!(client.reply().header("connection"), Some("keep-alive"), "{path}");
    }
}

/// The end of the connection is all that ends such a body; a worker's end must not pass for it.
#[test]
fn a_body_that_ends_with_its_connection_is_reset_when_it_is_cut_off() {
    let origin = Origin::serving(|conn| {
        if conn.request().is_some() {
            conn.send("HTTP/1.1 200 OK\r\n\r\npart one");
            // Until the proxy gives it up.
            conn.request();
        }
    });
    let proxy = Proxy::over([&origin]).tables("[timeouts]\ndrain = \"50ms\"").start();
    let mut client = proxy.connect();
    client.send("GET / HTTP/1.0\r\n\r\n");
    assert_eq!(client.bytes(4), b"HTTP");
    origin.wait_for_requests(1);
    proxy.control().drain(Idle::Close);
    assert_eq!(client.rest().1, End::Reset);
}

/// They stood in the backlog, which the worker's end reset.
#[test]
fn connections_that_nobody_has_accepted_yet_are_served_when_a_worker_ends() {
    let origin = Origin::replying(OK);
    let proxy = Proxy::over([&origin]).start();
    let mut clients: Vec<_> = (0..20).map(|_| Client::connect(proxy.address())).collect();
    for client in &mut clients {
        client.get("/");
    }
    proxy.control().drain(Idle::Close);
    for client in &mut clients {
        assert_eq!(client.reply().text(), "ok");
    }
    proxy.wait();
}
