//! Servers that fail: before anything was sent, the next one is tried; after that, the client is told the truth.

use tests::Gate;
use tests::log;
use tests::origin::{Full, Origin};
use tests::proxy::Proxy;
use tests::stream::End;

/// The only try ends in this, and the client is told with this status, and the log why.
#[track_caller]
fn fails(response: &str, status: u16, result: &str, why: &str) {
    let origin = Origin::closing_after(response);
    let proxy = Proxy::over([&origin]).start();
    let mut client = proxy.connect();
    assert_eq!(client.get("/").reply().status(), status, "{response:?}");
    let url = origin.url();
    let line = log::line(&[&format!("cluster=\"{}\"", proxy.cluster()), "request failed"]);
    assert!(line.contains(&format!("({url}: {why})")), "{response:?}: {line}");
    proxy.wait_for_metric(
        &format!("trylist_tries_total{{cluster=\"%\",endpoint=\"{url}\",result=\"{result}\"}}"),
        1.0,
    );
    assert_eq!(client.get("/").reply().status(), status, "the connection goes on");
}

// ---- before anything was sent ----------------------------------------------------------------------------------------

#[test]
fn a_refused_connection_moves_on_to_the_next_server() {
    let (dead, alive) = (Origin::dead(), Origin::named("alive"));
    let proxy = Proxy::over([&dead, &alive]).start();
    assert_eq!(proxy.names(4), "alive alive alive alive");
    let series =
        format!("trylist_try_failures_total{{cluster=\"%\",endpoint=\"{}\",kind=\"connect\"}}", dead.url());
    proxy.wait_for_metric(&series, 2.0);
}

#[test]
fn a_name_without_an_address_moves_on_to_the_next_server() {
    let alive = Origin::named("alive");
    let proxy = Proxy::over_urls(["http://no-such-name.invalid:80".into(), alive.url()]).start();
    assert_eq!(proxy.names(4), "alive alive alive alive");
    let series = "trylist_try_failures_total{cluster=\"%\",endpoint=\"http://no-such-name.invalid:80\",kind=\"resolve\"}";
    proxy.wait_for_metric(series, 2.0);
}

#[test]
fn a_name_is_looked_up() {
    let origin = Origin::named("a");
    let proxy = Proxy::over_urls([format!("http://localhost:{}", origin.address().port())]).start();
    assert_eq!(proxy.get("/").text(), "a");
}

#[test]
fn a_request_with_a_body_moves_on_too_since_nothing_of_it_was_sent() {
    let (dead, alive) = (Origin::dead(), Origin::named("alive"));
    let proxy = Proxy::over([&dead, &alive]).start();
    let mut client = proxy.connect();
    for _ in 0..2 {
        client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n");
        assert_eq!(client.reply().text(), "alive");
    }
    assert!(alive.requests().iter().all(|request| request.text() == "body"));
}

#[test]
fn all_refused_is_502_and_the_log_names_each() {
    let dead = [Origin::dead(), Origin::dead(), Origin::dead()];
    let proxy = Proxy::over(&dead).start();
    let mut client = proxy.connect();
    let reply = client.get("/where").reply();
    assert_eq!(
        (reply.status(), reply.text().contains("no server could be reached")),
        (502, true),
        "{reply:?}"
    );
    let line = log::line(&[&format!("cluster=\"{}\"", proxy.cluster()), "request failed"]);
    let each = dead.each_ref().map(|dead| format!("{}: connection refused", dead.url())).join(", ");
    assert!(line.contains(&format!("({each})")) && line.contains("/where"), "{line}");
    assert_eq!(client.get("/").reply().status(), 502, "the connection goes on");
    for dead in &dead {
        let series = format!(
            "trylist_tries_total{{cluster=\"%\",endpoint=\"{}\",result=\"not_established\"}}",
            dead.url()
        );
        proxy.wait_for_metric(&series, 2.0);
    }
}

#[test]
fn a_connection_that_does_not_stand_in_time_moves_on_to_the_next_server() {
    let (full, alive) = (Full::listening(), Origin::named("alive"));
    let proxy = Proxy::over_urls([full.url(), alive.url()]).in_cluster("connect_timeout = \"50ms\"").start();
    assert_eq!(proxy.names(2), "alive alive");
    let labels = format!("cluster=\"%\",endpoint=\"{}\",kind=\"connect_timeout\"", full.url());
    let series = format!("trylist_try_failures_total{{{labels}}}");
    proxy.wait_for_metric(&series, 1.0);
}

#[test]
fn no_connection_in_time_to_any_server_is_504() {
    let full = Full::listening();
    let proxy = Proxy::over_urls([full.url()]).in_cluster("connect_timeout = \"50ms\"").start();
    assert_eq!(proxy.get("/").status(), 504);
    log::line(&[&format!("cluster=\"{}\"", proxy.cluster()), "no connection within 50ms"]);
}

// ---- a status is an answer -------------------------------------------------------------------------------------------

#[test]
fn an_error_status_is_passed_on_and_never_reroutes() {
    for status in ["404 Not Found", "500 Oops", "502 Bad Gateway", "503 Later", "504 Slow"] {
        let reply = format!("HTTP/1.1 {status}\r\nContent-Length: 5\r\n\r\nerror");
        let (first, second) = (Origin::replying(reply), Origin::named("second"));
        let proxy = Proxy::over([&first, &second]).start();
        let reply = proxy.get("/");
        assert_eq!((reply.line(), reply.text().as_str()), (&*format!("HTTP/1.1 {status}"), "error"));
        assert_eq!(second.n_connections(), 0);
    }
}

// ---- bad responses ---------------------------------------------------------------------------------------------------

#[test]
fn what_is_not_http_is_502() {
    fails("rubbish\r\n\r\n", 502, "bad_response", "bad response: no HTTP version in the first line");
    fails(
        "HTTP/2.0 200 OK\r\n\r\n",
        502,
        "bad_response",
        "bad response: a version other than HTTP/1.0 and HTTP/1.1",
    );
    fails("HTTP/1.1 abc OK\r\n\r\n", 502, "bad_response", "bad response: malformed status");
    fails(
        "SSH-2.0-OpenSSH_9.2\r\n\r\n",
        502,
        "bad_response",
        "bad response: no HTTP version in the first line",
    );
}

#[test]
fn ambiguous_framing_of_a_response_is_502() {
    let both = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    fails(both, 502, "bad_response", "bad response: both Transfer-Encoding and Content-Length");
    let twice = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc";
    fails(twice, 502, "bad_response", "bad response: more than one Content-Length");
    let odd = "HTTP/1.1 200 OK\r\nContent-Length: 2,3\r\n\r\nabc";
    fails(odd, 502, "bad_response", "bad response: Content-Length is not a number");
}

#[test]
fn a_switch_of_protocols_that_nobody_asked_for_is_502() {
    let why = "bad response: 101 Switching Protocols without an Upgrade request";
    fails("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", 502, "bad_response", why);
}

#[test]
fn a_connection_closed_without_a_response_is_502() {
    fails("", 502, "closed_early", "closed without a response");
}

#[test]
fn a_connection_closed_within_the_head_is_502() {
    fails("HTTP/1.1 200 OK\r\nContent-Len", 502, "closed_early", "closed within the response's head");
}

#[test]
fn an_endless_head_is_502_and_takes_no_more_memory() {
    let endless = format!("HTTP/1.1 200 OK\r\n{}", "X-A: bbbbbbbb\r\n".repeat(100));
    let origin = Origin::serving(move |conn| {
        conn.request();
        conn.send(&endless);
        conn.wait_for_end();
    });
    let limit = "[limits]\nhead_bytes = 1024\nrequest_line_bytes = 512";
    let proxy = Proxy::over([&origin]).tables(limit).start();
    assert_eq!(proxy.get("/").status(), 502);
    log::line(&[&format!("cluster=\"{}\"", proxy.cluster()), "bad response"]);
}

#[test]
fn a_silent_server_is_504() {
    let origin = Origin::serving(|conn| {
        conn.request();
        conn.wait_for_end();
    });
    let proxy = Proxy::over([&origin, &origin]).in_cluster("response_timeout = \"50ms\"").start();
    let mut client = proxy.connect();
    assert_eq!(client.get("/").reply().status(), 504);
    log::line(&[&format!("cluster=\"{}\"", proxy.cluster()), "no response within 50ms"]);
    assert_eq!(origin.requests().len(), 1, "what was sent is not sent again");
}

#[test]
fn a_request_that_was_sent_is_not_sent_to_another_server() {
    let (first, second) = (Origin::closing_after(""), Origin::named("second"));
    let proxy = Proxy::over([&first, &second]).start();
    assert_eq!(proxy.get("/").status(), 502);
    assert_eq!((first.requests().len(), second.n_connections()), (1, 0));
}

// ---- bodies that break off: the client must never take a part for the whole -------------------------------------------

const NEW: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const OLD: &str = "GET / HTTP/1.0\r\n\r\n";

/// The server sends a head and "part" of a body and, once the client has got these, this, before it closes; the client
/// sees that the body is not whole. Returns all that came behind the part.
#[track_caller]
fn breaks_off(request: &str, head: &str, rest: &'static str) -> (String, End) {
    let got = Gate::default();
    let chunk = if head.contains("chunked") { "4\r\npart\r\n" } else { "part" };
    let begin = format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n{chunk}");
    let origin = Origin::serving({
        let got = got.clone();
        move |conn| {
            conn.request();
            conn.send(&begin);
            got.wait();
            conn.send(rest);
        }
    });
    let proxy = Proxy::over([&origin]).start();
    let mut client = proxy.connect();
    let reply = client.send(request).reply_head();
    let chunked = reply.header("transfer-encoding").is_some();
    client.bytes(if chunked { "4\r\npart\r\n".len() } else { "part".len() });
    got.open();
    let behind = client.rest();
    log::line(&[&format!("cluster=\"{}\"", proxy.cluster()), "response body"]);
    let series =
        format!("trylist_tries_total{{cluster=\"%\",endpoint=\"{}\",result=\"broken\"}}", origin.url());
    proxy.wait_for_metric(&series, 1.0);
    proxy.wait_for_metric("trylist_outcomes_total{cluster=\"%\",outcome=\"broken\"}", 1.0);
    behind
}

#[test]
fn a_body_of_known_length_that_breaks_off_is_seen_as_broken() {
    for request in [NEW, OLD] {
        let (behind, _) = breaks_off(request, "Content-Length: 9", "more");
        assert!(behind.len() < 5, "it would be whole: {behind:?}");
    }
}

#[test]
fn a_chunked_body_that_breaks_off_is_seen_as_broken() {
    for rest in ["", "4\r\n", "0\r\n", "x\r\n", "0\r\nX-A"] {
        let (behind, _) = breaks_off(NEW, "Transfer-Encoding: chunked", rest);
        assert_eq!(behind, "", "{rest:?}");
        // Only a reset can tell this client.
        let (behind, end) = breaks_off(OLD, "Transfer-Encoding: chunked", rest);
        assert_eq!((behind.as_str(), end), ("", End::Reset), "{rest:?}");
    }
}

#[test]
fn a_body_up_to_the_end_that_is_reset_is_seen_as_broken() {
    for request in [NEW, OLD] {
        let got = Gate::default();
        let origin = Origin::serving({
            let got = got.clone();
            move |conn| {
                conn.request();
                conn.send("HTTP/1.1 200 OK\r\n\r\npart");
                got.wait();
                conn.reset_on_close();
            }
        });
        let proxy = Proxy::over([&origin]).start();
        let mut client = proxy.connect();
        assert_eq!(client.send(request).reply_head().status(), 200);
        let n = if request == NEW { "4\r\npart\r\n".len() } else { "part".len() };
        client.bytes(n);
        got.open();
        assert_eq!(client.end(), if request == NEW { End::Eof } else { End::Reset }, "{request:?}");
    }
}

#[test]
fn a_body_that_stops_is_cut_off() {
    let origin = Origin::serving(|conn| {
        conn.request();
        conn.send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\npart");
        conn.wait_for_end();
    });
    let proxy = Proxy::over([&origin]).in_cluster("body_timeout = \"50ms\"").start();
    let reply = proxy.get("/");
    assert_eq!((reply.text().as_str(), reply.cut.is_some()), ("part", true));
    log::line(&[&format!("cluster=\"{}\"", proxy.cluster()), "response body stopped for 50ms"]);
}

#[test]
fn a_part_is_not_kept_for_the_next_request() {
    let origin = Origin::serving(|conn| {
        while conn.request().is_some() {
            // More than it said.
            conn.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nstolen");
        }
    });
    let proxy = Proxy::over([&origin]).start();
    assert_eq!(proxy.names(5), "ok ok ok ok ok");
    assert_eq!(origin.n_connections(), 5, "such a connection is not used again");
}

// ---- connections that were kept --------------------------------------------------------------------------------------

/// A server that answers one request of each connection, and closes it when the next one comes: what a client sees that
/// sends while the connection is being closed.
fn closing_when_asked_again() -> Origin {
    Origin::serving(|conn| {
        conn.request();
        conn.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        conn.request();
    })
}

#[test]
fn a_stale_connection_is_no_try() {
    let origin = closing_when_asked_again();
    let proxy = Proxy::over([&origin]).start();
    assert_eq!(proxy.names(3), "ok ok ok");
    let url = origin.url();
    let connection = |kind: &str| {
        format!(
            "trylist_upstream_connections_total{{cluster=\"%\",endpoint=\"{url}\",connection=\"{kind}\"}}"
        )
    };
    proxy.wait_for_metric(&connection("stale"), 2.0);
    proxy.wait_for_metric(&connection("new"), 3.0);
    let tries =
        |result: &str| format!("trylist_tries_total{{cluster=\"%\",endpoint=\"{url}\",result=\"{result}\"}}");
    proxy.wait_for_metric(&tries("served"), 3.0);
    assert_eq!(proxy.metric(&tries("closed_early")), 0.0);
}

#[test]
fn a_small_body_is_sent_again_on_a_fresh_connection() {
    let origin = closing_when_asked_again();
    let proxy = Proxy::over([&origin]).start();
    let mut client = proxy.connect();
    for _ in 0..2 {
        client.send("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody");
        assert_eq!(client.reply().text(), "ok");
    }
    assert!(origin.requests().iter().all(|request| request.text() == "body"));
}

#[test]
fn what_follows_a_request_that_is_sent_again_is_kept() {
    let origin = closing_when_asked_again();
    let proxy = Proxy::over([&origin]).start();
    let mut client = proxy.connect();
    assert_eq!(client.get("/").reply().text(), "ok");
    let put = |path: &str, body: &str| {
        format!("PUT {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    };
    client.send(put("/1", "first") + &put("/2", "second") + "GET /3 HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(
        ["ok"; 3],
        [client.reply().text(), client.reply().text(), client.reply().text()].each_ref().map(|t| &**t)
    );
    let bodies = |line: &str| {
        let requests = origin.requests().into_iter().filter(|request| request.line().starts_with(line));
        requests.map(|request| request.text()).collect::<Vec<_>>()
    };
    // Each came twice, the first time on a connection that was closed.
    assert_eq!(bodies("PUT /1"), ["first"; 2]);
    assert_eq!(bodies("PUT /2"), ["second"; 2]);
    assert_eq!(bodies("GET /3"), [""; 2]);
}

#[test]
fn what_must_not_happen_twice_is_not_sent_twice() {
    let origin = closing_when_asked_again();
    let proxy = Proxy::over([&origin]).start();
    let mut client = proxy.connect();
    let post = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody";
    assert_eq!(client.send(post).reply().status(), 200);
    assert_eq!(client.send(post).reply().status(), 502, "the server may have done it before it closed");
    assert_eq!(origin.requests().len(), 2);
}

#[test]
fn what_must_not_happen_twice_goes_on_no_connection_that_is_known_to_be_closed() {
    let closed = Gate::default();
    let origin = Origin::serving({
        let closed = closed.clone();
        move |conn| {
            conn.request();
            conn.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
            if conn.number == 0 {
                conn.close();
                closed.open();
            }
        }
    });
    let proxy = Proxy::over([&origin]).start();
    let mut client = proxy.connect();
    let post = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody";
    assert_eq!(client.send(post).reply().status(), 200);
    closed.wait();
    assert_eq!(client.send(post).reply().status(), 200);
}

#[test]
fn a_server_that_says_close_is_believed() {
    let origin = Origin::replying("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok");
    let proxy = Proxy::over([&origin]).start();
    assert_eq!(proxy.names(3), "ok ok ok");
    assert_eq!(origin.n_connections(), 3);
}

#[test]
fn an_old_server_is_spoken_to() {
    let origin = Origin::closing_after("HTTP/1.0 200 OK\r\n\r\nold");
    let proxy = Proxy::over([&origin]).start();
    assert_eq!(proxy.names(2), "old old");
}
