//! HTTP/2 on both sides, as curl and h2load see it and frame by frame.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicUsize};

use tests::grpc::Echo;
use tests::h2::{
    ACK, DATA, END_HEADERS, END_STREAM, Frames, GOAWAY, HEADERS, INITIAL_WINDOW_SIZE, MAX_CONCURRENT_STREAMS,
    PING, RST_STREAM, SETTINGS, WINDOW_UPDATE, block, frame, next_request, ok, request, settings, window,
};
use tests::origin::{Conn, Origin};
use tests::proxy::{Builder, Proxy};
use tests::stream::End;
use tests::tls::Authority;
use tests::tool::{said, tool};
use tests::{DEADLINE, Gate, eventually, log};
use trylist::serve::drain::Idle;

fn clear_text(origin: &Origin) -> Proxy {
    Proxy::over([origin]).listener("h2 = true").start()
}

// ---- clients -------------------------------------------------------------------------------------------------------

#[test]
fn curl_is_served_over_tls_and_in_clear_text() {
    let (ca, origin) = (Authority::new("ca"), Origin::named("a"));
    let tls = format!("tls = {{ certificates = [{}] }}", ca.issue(&["site.test"]).toml());
    let secure = Proxy::over([&origin]).listener(&tls).start();
    let port = secure.address().port();
    let (resolve, url) = (format!("site.test:{port}:127.0.0.1"), format!("https://site.test:{port}/x?y"));
    let format = ["-sS", "--max-time", "20", "--noproxy", "*", "-w", " %{http_version}"];
    let ca = ca.path();
    let more = ["--resolve", &resolve, "--cacert", &ca, &url];
    let Some(output) = tool("curl", &[&format[..], &more].concat()) else { return };
    assert_eq!(said(&output), "a 2");
    let plain = clear_text(&origin);
    let url = format!("http://{}/x?y", plain.address());
    let output = tool("curl", &[&format[..], &["--http2-prior-knowledge", &url]].concat()).unwrap();
    assert_eq!(said(&output), "a 2");
    for (request, proto) in origin.requests().iter().zip(["https", "http"]) {
        assert_eq!(request.line(), "GET /x?y HTTP/1.1");
        assert_eq!(request.header("x-forwarded-proto"), Some(proto));
        assert_eq!(request.header("via"), Some("2.0 trylist"));
    }
    // HTTP/1.1 goes on beside it.
    assert_eq!(plain.get("/").text(), "a");
}

#[test]
fn is_not_spoken_in_clear_text_unless_told() {
    let origin = Origin::named("a");
    let proxy = Proxy::over([&origin]).start();
    let mut client = proxy.connect();
    client.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    assert_eq!(client.reply().status(), 505);
}

#[test]
fn many_streams_are_under_way_at_once() {
    let go = Gate::default();
    let origin = Origin::serving({
        let go = go.clone();
        move |conn| {
            while let Some(request) = conn.request() {
                go.wait();
                let path = request.line().split(' ').nth(1).unwrap().to_owned();
                conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{path}", path.len()));
            }
        }
    });
    let proxy = clear_text(&origin);
    let mut client = Frames::connect(proxy.address());
    for n in 0..20 {
        client.get(2 * n + 1, &format!("/{n}"));
    }
    origin.wait_for_requests(20);
    go.open();
    let mut bodies = Vec::new();
    while bodies.len() < 20 {
        let frame = client.wait_for(DATA);
        if !frame.payload.is_empty() {
            bodies.push((frame.stream, String::from_utf8(frame.payload).unwrap()));
        }
    }
    bodies.sort_unstable();
    let expected: Vec<_> = (0..20).map(|n| (2 * n + 1, format!("/{n}"))).collect();
    assert_eq!(bodies, expected);
}

#[test]
fn h2load_sees_no_failure() {
    let origin = Origin::named("a");
    let ca = Authority::new("ca");
    let plain = Proxy::over([&origin]).listener("h2 = true").threads(2).start();
    let tls = format!("tls = {{ certificates = [{}] }}", ca.issue(&["site.test"]).toml());
    let secure = Proxy::over([&origin]).listener(&tls).threads(2).start();
    for (proxy, scheme) in [(&plain, "http"), (&secure, "https")] {
        let url = format!("{scheme}://{}/", proxy.address());
        let Some(output) = tool("h2load", &["-n2000", "-c4", "-m32", &url]) else { return };
        assert!(said(&output).contains("2000 succeeded, 0 failed, 0 errored"), "{output:?}");
    }
}

#[test]
fn bodies_of_any_length_go_to_the_server_in_its_framing() {
    let origin = Origin::named("a");
    let proxy = clear_text(&origin);
    let mut client = Frames::connect(proxy.address());
    client.send(frame(HEADERS, END_HEADERS, 1, &request("POST", "/", &[("content-length", "4")])));
    client.send(frame(DATA, END_STREAM, 1, b"body"));
    assert_eq!(client.body(1), "a");
    client.send(frame(HEADERS, END_HEADERS, 3, &request("POST", "/", &[])));
    client.send(frame(DATA, 0, 3, b"bo"));
    client.send(frame(DATA, END_STREAM, 3, b"dy"));
    assert_eq!(client.body(3), "a");
    let requests = origin.requests();
    for (request, header) in requests.iter().zip(["content-length", "transfer-encoding"]) {
        assert!(request.text() == "body" && request.header(header).is_some(), "{}", request.head);
    }
}

#[test]
fn a_body_of_no_bytes_that_ends_apart_has_one_framing() {
    let origin = Origin::named("a");
    let proxy = clear_text(&origin);
    let mut client = Frames::connect(proxy.address());
    client.send(frame(HEADERS, END_HEADERS, 1, &request("POST", "/", &[("content-length", "0")])));
    client.send(frame(DATA, END_STREAM, 1, b""));
    assert_eq!(client.body(1), "a");
    // A reader that misreads the first one's framing takes this for something else.
    client.get(3, "/next");
    assert_eq!(client.body(3), "a");
    let requests = origin.requests();
    assert_eq!(requests[1].line(), "GET /next HTTP/1.1");
    let framings = ["content-length", "transfer-encoding"].map(|name| requests[0].header(name));
    assert_eq!(framings, [Some("0"), None], "{}", requests[0].head);
}

/// A message of 20 bytes in a DATA frame of its own, this often.
fn messages(stream: u32, n: usize) -> Vec<u8> {
    frame(DATA, 0, stream, &[b'm'; 20]).repeat(n)
}

/// Answers each request with the length of its body.
fn counting() -> Origin {
    Origin::serving(|conn| {
        while let Some(request) = conn.request() {
            let n = request.body.len().to_string();
            conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{n}", n.len()));
        }
    })
}

/// As gRPC's libraries send messages.
#[test]
fn a_body_of_many_small_frames_reaches_the_server() {
    let origin = counting();
    let proxy = clear_text(&origin);
    let mut client = Frames::connect(proxy.address());
    for stream in [1, 3, 5] {
        client.send(frame(HEADERS, END_HEADERS, stream, &request("POST", "/", &[])));
        client.send([messages(stream, 3_000), frame(DATA, END_STREAM, stream, b"")].concat());
        assert_eq!(client.body(stream), "60000");
    }
}

/// Nobody reads what waits in the queue, and what it has sent already is no reason to end its connection: more than a
/// connection's window was once, and many times the frames that `h2` keeps.
#[test]
fn small_frames_of_requests_that_wait_are_kept() {
    const WAITING: u32 = 20;
    let (go, n_seen) = (Gate::default(), AtomicUsize::new(0));
    let origin = Origin::serving({
        let go = go.clone();
        move |conn| {
            while let Some(request) = conn.request() {
                if n_seen.fetch_add(1, Relaxed) == 0 {
                    go.wait();
                }
                let n = request.body.len().to_string();
                conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{n}", n.len()));
            }
        }
    });
    let proxy = Proxy::over([&origin])
        .listener("h2 = true")
        .server(0, "max_requests = 1")
        .in_cluster("queue = 100\nqueue_timeout = \"60s\"")
        .start();
    let mut client = Frames::connect(proxy.address());
    while client.wait_for(WINDOW_UPDATE).stream != 0 {}
    client.get(1, "/");
    origin.wait_for_requests(1);
    let streams = (1..=WAITING).map(|n| 2 * n + 1);
    for stream in streams.clone() {
        client.send(frame(HEADERS, END_HEADERS, stream, &request("POST", "/", &[])));
        client.send([messages(stream, 3_000), frame(DATA, END_STREAM, stream, b"")].concat());
    }
    // It is answered behind all of that.
    client.send(frame(PING, 0, 0, b"all sent"));
    while client.wait_for(PING).payload != b"all sent" {}
    go.open();
    let mut answered = 0;
    while answered <= WAITING {
        let answer = client.next().unwrap();
        assert!(!matches!(answer.kind, RST_STREAM | GOAWAY), "{answer:?}");
        if answer.kind == DATA && !answer.payload.is_empty() {
            assert_eq!(answer.payload, if answer.stream == 1 { &b"0"[..] } else { b"60000" });
            answered += 1;
        }
    }
}

/// One message at a time, each answered as grpc-go answers it to estimate the bandwidth: the connection is no flood.
#[test]
fn a_client_may_answer_each_message_by_window_updates_and_a_ping() {
    let echo = Echo::start();
    let proxy = by_h2(echo.url()).listener("h2 = true").start();
    let mut client = Frames::connect(proxy.address());
    client.send(frame(HEADERS, END_HEADERS, 1, &request("POST", "/", &[("te", "trailers")])));
    for n in 0..3_000 {
        client.send(messages(1, 1));
        let message = client.next_but(&[SETTINGS, WINDOW_UPDATE, PING, HEADERS]);
        assert_eq!((message.kind, message.payload.len()), (DATA, 20), "message {n}: {message:?}");
        client.send([window(0, 20), window(1, 20), frame(PING, 0, 0, b"bdp ping")].concat());
    }
}

/// Each is an error of its stream alone.
#[test]
fn requests_that_are_reset_do_not_end_their_connection() {
    let origin = Origin::named("a");
    let proxy = clear_text(&origin);
    let mut client = Frames::connect(proxy.address());
    for n in 0..200 {
        client.get(2 * n + 1, "/#fragment");
        assert_eq!(client.wait_for(RST_STREAM).stream, 2 * n + 1);
    }
    client.get(401, "/");
    assert_eq!(client.body(401), "a");
}

#[test]
fn errors_are_answered_and_the_connection_goes_on() {
    let (dead, origin) = (Origin::dead(), Origin::named("a"));
    let proxy = Proxy::over([&dead]).listener("h2 = true").start();
    let mut client = Frames::connect(proxy.address());
    client.get(1, "/");
    assert!(client.body(1).starts_with("502 Bad Gateway: trylist: "));
    client.send(frame(HEADERS, END_HEADERS | END_STREAM, 3, &request("TRACE", "/", &[])));
    assert!(client.body(3).starts_with("405 "));
    drop(origin);
}

#[test]
fn a_stream_that_fails_over_is_served_by_the_next_server() {
    let (dead, origin) = (Origin::dead(), Origin::named("a"));
    let proxy = Proxy::over([&dead, &origin]).listener("h2 = true").start();
    let mut client = Frames::connect(proxy.address());
    client.get(1, "/");
    assert_eq!(client.body(1), "a");
    log::line(&[proxy.cluster(), "another server served"]);
}

#[test]
fn a_response_that_breaks_off_is_a_reset_and_no_end() {
    let origin = Origin::closing_after("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf");
    let proxy = clear_text(&origin);
    let mut client = Frames::connect(proxy.address());
    client.get(1, "/");
    assert_eq!(client.wait_for(RST_STREAM).stream, 1);
}

#[test]
fn a_client_that_resets_its_stream_ends_the_request() {
    let origin = Origin::serving(|conn| {
        conn.request();
        conn.wait_for_end();
    });
    let proxy = clear_text(&origin);
    let mut client = Frames::connect(proxy.address());
    client.get(1, "/");
    origin.wait_for_requests(1);
    client.send(frame(RST_STREAM, 0, 1, &8_u32.to_be_bytes()));
    proxy.wait_for_metric("trylist_outcomes_total{cluster=\"%\",outcome=\"aborted\"}", 1.0);
}

#[test]
fn the_end_of_a_worker_is_announced() {
    let go = Gate::default();
    let origin = Origin::serving({
        let go = go.clone();
        move |conn| {
            while conn.request().is_some() {
                go.wait();
                conn.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone");
            }
        }
    });
    let proxy = clear_text(&origin);
    let mut client = Frames::connect(proxy.address());
    client.get(1, "/");
    origin.wait_for_requests(1);
    proxy.control().drain(Idle::Close);
    let goaway = client.wait_for(GOAWAY);
    assert_eq!(goaway.code(), 0);
    go.open();
    assert_eq!(client.body(1), "done");
    proxy.wait();
}

#[test]
fn an_idle_connection_is_told_to_go() {
    let origin = Origin::named("a");
    let proxy = clear_text(&origin);
    let mut client = Frames::connect(proxy.address());
    client.get(1, "/");
    assert_eq!(client.body(1), "a");
    proxy.control().drain(Idle::Close);
    assert_eq!(client.wait_for(GOAWAY).code(), 0);
    proxy.wait();
    while let Ok(frame) = client.next() {
        assert!(frame.kind != HEADERS, "{frame:?}");
    }
    assert!(matches!(client.next(), Err(End::Eof | End::Reset)));
}

// ---- servers -------------------------------------------------------------------------------------------------------

#[test]
fn servers_are_spoken_to_by_prior_knowledge_over_one_connection() {
    let origin = Origin::named("a");
    let inner = clear_text(&origin);
    let proxy =
        Proxy::over_urls([format!("http://{}", inner.address())]).in_cluster("protocol = \"h2\"").start();
    assert_eq!(proxy.names(5), "a a a a a");
    let open = format!("trylist_open_connections{{listener=\"{}\"}}", inner.address());
    inner.wait_for_metric(&open, 1.0);
    for request in origin.requests() {
        // The outer proxy heard HTTP/1.1 from the client, the inner one HTTP/2 from the outer.
        assert_eq!(request.headers("via"), ["1.1 trylist", "2.0 trylist"], "{}", request.head);
    }
}

#[test]
fn streams_share_connections_up_to_their_limit() {
    let go = Gate::default();
    let origin = Origin::serving({
        let go = go.clone();
        move |conn| {
            while conn.request().is_some() {
                go.wait();
                conn.send("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na");
            }
        }
    });
    let inner = clear_text(&origin);
    let proxy = Proxy::over_urls([format!("http://{}", inner.address())])
        .in_cluster("protocol = \"h2\"\nh2_streams = 4")
        .start();
    let mut clients: Vec<_> = (0..12).map(|_| proxy.connect()).collect();
    for client in &mut clients {
        client.get("/");
    }
    origin.wait_for_requests(12);
    let open = format!("trylist_open_connections{{listener=\"{}\"}}", inner.address());
    assert_eq!(inner.metric(&open), 3.0);
    go.open();
    for client in &mut clients {
        assert_eq!(client.reply().text(), "a");
    }
}

#[test]
fn what_is_spoken_over_tls_is_chosen_by_the_server() {
    let (ca, origin) = (Authority::new("ca"), Origin::named("a"));
    let tls = format!("tls = {{ certificates = [{}] }}", ca.issue(&["localhost"]).toml());
    let with_h2 = Proxy::over([&origin]).listener(&tls).start();
    let without = Proxy::over([&origin]).listener(&tls).listener("h2 = false").start();
    let over = |proxy: &Proxy, protocol: &str| {
        let url = format!("https://localhost:{}", proxy.address().port());
        let keys = format!("protocol = \"{protocol}\"\ntls = {{ ca = {:?} }}", ca.path());
        Proxy::over_urls([url]).in_cluster(&keys).start()
    };
    for (inner, protocol, via) in [
        (&with_h2, "auto", "2.0 trylist"),
        (&without, "auto", "1.1 trylist"),
        (&with_h2, "h2", "2.0 trylist"),
    ] {
        let n = origin.requests().len();
        assert_eq!(over(inner, protocol).names(2), "a a");
        let requests = origin.requests();
        let vias = requests[n].headers("via");
        assert_eq!(vias, ["1.1 trylist", via], "{protocol}");
    }
    assert_eq!(over(&without, "h2").get("/").status(), 502);
}

/// A stream of HTTP/2 cannot become a connection of another protocol, and the server would answer as if nothing had been
/// asked for.
#[test]
fn an_upgrade_goes_over_http1_where_the_server_has_a_choice() {
    let (ca, origin) = (
        Authority::new("ca"),
        Origin::serving(|conn| {
            while let Some(request) = conn.request() {
                if request.header("upgrade") == Some("echo") {
                    conn.send(
                        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n",
                    );
                    let said = conn.bytes(5);
                    conn.send(said);
                    return;
                }
                conn.send("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na");
            }
        }),
    );
    let tls = format!("tls = {{ certificates = [{}] }}", ca.issue(&["localhost"]).toml());
    let inner = Proxy::over([&origin]).listener(&tls).start();
    let url = format!("https://localhost:{}", inner.address().port());
    let keys = format!("protocol = \"auto\"\ntls = {{ ca = {:?} }}", ca.path());
    let proxy = Proxy::over_urls([url]).in_cluster(&keys).start();
    // There is a connection that it could take.
    assert_eq!(proxy.names(2), "a a");
    assert_eq!(origin.requests()[1].headers("via"), ["1.1 trylist", "2.0 trylist"]);
    let mut client = proxy.connect();
    client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n");
    let reply = client.reply_head();
    assert_eq!((reply.status(), reply.header("upgrade")), (101, Some("echo")));
    client.send("hello");
    assert_eq!(client.bytes(5), b"hello");
}

#[test]
fn long_bodies_pass_both_ways() {
    let body = "0123456789".repeat(100_000);
    let origin = Origin::serving({
        let body = body.clone();
        move |conn| {
            while let Some(request) = conn.request() {
                let answer = if request.text() == body { body.clone() } else { "another body".into() };
                let length = answer.len();
                if !conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{answer}")) {
                    return;
                }
            }
        }
    });
    let inner = clear_text(&origin);
    let proxy =
        Proxy::over_urls([format!("http://{}", inner.address())]).in_cluster("protocol = \"h2\"").start();
    for _ in 0..2 {
        let mut client = proxy.connect();
        client.send(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
        let reply = client.reply();
        assert!(reply.status() == 200 && reply.text() == body && reply.cut.is_none(), "{}", reply.head);
    }
}

#[test]
fn a_connection_that_the_server_gave_up_is_replaced() {
    let origin = Origin::named("a");
    let inner =
        Proxy::over([&origin]).listener("h2 = true").tables("[limits]\nrequests_per_connection = 1").start();
    let proxy =
        Proxy::over_urls([format!("http://{}", inner.address())]).in_cluster("protocol = \"h2\"").start();
    assert_eq!(proxy.names(4), "a a a a");
}

/// A server of HTTP/2, of which each connection is served by this with its number, from 0 on.
fn frames_server(serve: impl Fn(usize, &mut Conn) + Send + Sync + 'static) -> Origin {
    let n_connections = AtomicUsize::new(0);
    Origin::serving(move |conn| serve(n_connections.fetch_add(1, Relaxed), conn))
}

fn by_h2(url: impl Into<String>) -> Builder {
    Proxy::over_urls([url]).in_cluster("protocol = \"h2\"")
}

/// A request whose body came with it, and one whose body nobody knows the length of.
const CALLS: [&str; 2] = [
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n",
];

fn tries(proxy: &Proxy, result: &str) -> f64 {
    let text = proxy.metrics();
    let of_cluster = |line: &&str| {
        line.starts_with("trylist_tries_total{") && line.contains(proxy.cluster()) && line.contains(result)
    };
    text.lines().filter(of_cluster).map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}

#[test]
fn a_call_is_made_again_where_its_server_had_said_goodbye() {
    let origin = Origin::named("a");
    let inner =
        Proxy::over([&origin]).listener("h2 = true").tables("[limits]\nrequests_per_connection = 1").start();
    let proxy = by_h2(format!("http://{}", inner.address())).start();
    let mut client = proxy.connect();
    for call in CALLS.iter().cycle().take(20) {
        assert_eq!(client.send(call).reply().text(), "a");
    }
    let requests = origin.requests();
    assert!(requests.len() == 20 && requests.iter().all(|request| request.text() == "body"));
    eventually("all tries", || (tries(&proxy, "") == 20.0).then_some(()));
    assert_eq!(tries(&proxy, "served"), 20.0, "goodbyes are no tries");
}

#[test]
fn a_call_is_made_again_where_its_server_has_refused_the_stream() {
    let refuses = AtomicBool::new(false);
    let server = frames_server(move |_, conn| {
        while let Some(stream) = next_request(conn) {
            let answer = match refuses.fetch_not(Relaxed) {
                true => frame(RST_STREAM, 0, stream, &7_u32.to_be_bytes()),
                false => ok(stream),
            };
            conn.send(answer);
        }
    });
    let proxy = by_h2(server.url()).start();
    let mut client = proxy.connect();
    for _ in 0..6 {
        assert_eq!(client.send(CALLS[0]).reply().status(), 200);
    }
    eventually("all tries", || (tries(&proxy, "") == 6.0).then_some(()));
    assert_eq!(tries(&proxy, "served"), 6.0);
}

/// Headers that the proxy adds have room beside it.
#[test]
fn as_many_header_lines_as_a_client_may_send_reach_a_server() {
    let origin = Origin::serving(|conn| {
        while let Some(stream) = next_request(conn) {
            conn.send(ok(stream));
        }
    });
    let most = "[limits]\nheaders = 256\nhead_bytes = \"64KiB\"";
    let proxy = Proxy::over([&origin]).in_cluster("protocol = \"h2\"").tables(most).start();
    let lines = |n: usize| (0..n).map(|n| format!("X-{n}: {n}\r\n")).collect::<String>();
    let mut client = proxy.connect();
    client.send(format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", lines(255)));
    assert_eq!(client.reply().status(), 200);
    client.send(format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", lines(256)));
    assert_eq!(client.reply().status(), 431);
}

/// Begins to stream small messages, all that a window holds, as soon as the request is there.
fn stream_messages(conn: &mut Conn, stream: u32) {
    conn.send(frame(HEADERS, END_HEADERS, stream, &[0x88]));
    conn.send(messages(stream, 3_000));
}

/// As grpc-go sends messages.
#[test]
fn a_response_of_many_small_frames_reaches_the_client() {
    let server = frames_server(|_, conn| {
        while let Some(stream) = next_request(conn) {
            stream_messages(conn, stream);
            conn.send(frame(DATA, END_STREAM, stream, b""));
        }
    });
    let proxy = by_h2(server.url()).start();
    let mut client = proxy.connect();
    for _ in 0..3 {
        let reply = client.get("/").reply();
        assert_eq!((reply.body.len(), reply.cut), (60_000, None));
    }
    assert_eq!(server.n_connections(), 1);
}

/// To send a head by itself costs the proxy a system call more, and the client a packet to wake up for.
#[test]
fn a_short_response_goes_to_its_client_in_one_piece() {
    let server = frames_server(|_, conn| {
        while let Some(stream) = next_request(conn) {
            let head = block(&[(":status", "200"), ("content-length", "4")]);
            let head = frame(HEADERS, END_HEADERS, stream, &head);
            conn.send([head, frame(DATA, END_STREAM, stream, b"fine")].concat());
        }
    });
    let proxy = by_h2(server.url()).start();
    let mut socket = TcpStream::connect(proxy.address()).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    for _ in 0..20 {
        socket.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        let mut response = [0; 4096];
        let n = socket.read(&mut response).unwrap();
        let response = String::from_utf8_lossy(&response[..n]);
        assert!(response.ends_with("\r\n\r\nfine"), "{response}");
    }
}

#[test]
fn a_client_that_does_not_read_small_messages_is_nobody_elses_trouble() {
    const OTHERS: usize = 5;
    let server = frames_server(|_, conn| {
        let others: Vec<u32> = (0..OTHERS).map(|_| next_request(conn).unwrap()).collect();
        let slow = next_request(conn).unwrap();
        stream_messages(conn, slow);
        for stream in others {
            conn.send(
                [frame(HEADERS, END_HEADERS, stream, &[0x88]), frame(DATA, END_STREAM, stream, b"fine")]
                    .concat(),
            );
        }
        while let Some(stream) = next_request(conn) {
            conn.send(ok(stream));
        }
    });
    let proxy = by_h2(server.url()).listener("h2 = true").start();
    let mut others: Vec<_> = (0..OTHERS).map(|_| proxy.connect()).collect();
    for other in &mut others {
        other.get("/");
    }
    proxy.wait_for_metric(
        &format!("trylist_endpoint_in_flight{{cluster=\"%\",endpoint=\"{}\"}}", server.url()),
        5.0,
    );
    let mut slow = Frames::connect_with(proxy.address(), &[(INITIAL_WINDOW_SIZE, 0)]);
    slow.get(1, "/slow");
    for other in &mut others {
        assert_eq!(other.reply().text(), "fine");
    }
    assert_eq!(proxy.get("/").status(), 200);
    assert_eq!(server.n_connections(), 1);
    // And the slow one gets all of it once it reads.
    slow.send(window(1, 60_000));
    let mut n_bytes = 0;
    while n_bytes < 60_000 {
        n_bytes += slow.wait_for(DATA).payload.len();
    }
    eventually("all tries but the slow one", || (tries(&proxy, "") == 6.0).then_some(()));
    assert_eq!(tries(&proxy, "served"), 6.0);
}

/// They hold what their streams' windows let through. That leaves every other stream its own.
#[test]
fn slow_readers_do_not_take_the_connections_window() {
    const SLOW: u32 = 20;
    let body = "x".repeat(1 << 20);
    let origin = Origin::serving(move |conn| {
        while let Some(request) = conn.request() {
            let body = if request.line().contains("/slow") { &body[..] } else { "a" };
            conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
        }
    });
    let inner = clear_text(&origin);
    let proxy = by_h2(format!("http://{}", inner.address())).listener("h2 = true").start();
    let mut slow = Frames::connect_with(proxy.address(), &[(INITIAL_WINDOW_SIZE, 0)]);
    for n in 0..SLOW {
        slow.get(2 * n + 1, "/slow");
    }
    for _ in 0..SLOW {
        slow.wait_for(HEADERS);
    }
    for _ in 0..10 {
        assert_eq!(proxy.get("/").text(), "a");
    }
}

/// It is not known before the first stream is begun: the server says it in its SETTINGS.
#[test]
fn a_server_gets_no_more_streams_at_once_than_it_says() {
    const STREAMS: usize = 10;
    const CLIENTS: usize = 3 * STREAMS;
    let (go, n_waiting) = (Gate::default(), AtomicUsize::new(0));
    let server = frames_server({
        let go = go.clone();
        move |_, conn| {
            // The first request is there before the settings are.
            conn.bytes(24);
            let mut streams = Vec::new();
            while streams.is_empty() {
                let head: [u8; 9] = conn.bytes(9).try_into().unwrap();
                conn.bytes(u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize);
                if head[3] == HEADERS {
                    streams.push(u32::from_be_bytes(head[5..].try_into().unwrap()));
                }
            }
            conn.send(
                [settings(&[(MAX_CONCURRENT_STREAMS, STREAMS as u32)]), frame(SETTINGS, ACK, 0, &[])]
                    .concat(),
            );
            n_waiting.fetch_add(1, Relaxed);
            while streams.len() < STREAMS {
                streams.push(next_request(conn).unwrap());
                n_waiting.fetch_add(1, Relaxed);
            }
            if n_waiting.load(Relaxed) == CLIENTS {
                go.open();
            }
            go.wait();
            for stream in streams {
                conn.send(ok(stream));
            }
            while let Some(stream) = next_request(conn) {
                conn.send(ok(stream));
            }
        }
    });
    let proxy = by_h2(server.url()).start();
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| proxy.connect()).collect();
    for client in &mut clients {
        client.get("/");
    }
    for client in &mut clients {
        assert_eq!(client.reply().status(), 200);
    }
    assert_eq!(server.n_connections(), 3);
    eventually("all tries", || (tries(&proxy, "") == CLIENTS as f64).then_some(()));
    assert_eq!(tries(&proxy, "served"), CLIENTS as f64);
}

#[test]
fn a_server_that_refuses_every_stream_is_passed_over() {
    let refusing = frames_server(|_, conn| {
        while let Some(stream) = next_request(conn) {
            conn.send(frame(RST_STREAM, 0, stream, &7_u32.to_be_bytes()));
        }
    });
    let good = frames_server(|_, conn| {
        while let Some(stream) = next_request(conn) {
            conn.send(ok(stream));
        }
    });
    let proxy = Proxy::over([&refusing, &good]).in_cluster("protocol = \"h2\"").start();
    let mut client = proxy.connect();
    for _ in 0..4 {
        assert_eq!(client.send(CALLS[0]).reply().status(), 200);
    }
    log::line(&[proxy.cluster(), "another server served", "not processed: stream refused"]);
}

#[test]
fn a_server_that_has_fallen_silent_is_asked_over_another_connection() {
    let server = frames_server(|n, conn| {
        while let Some(stream) = next_request(conn) {
            if n > 0 || stream == 1 {
                conn.send(ok(stream));
            }
        }
    });
    let proxy = by_h2(server.url()).in_cluster("response_timeout = \"100ms\"").start();
    let statuses = [(); 4].map(|()| proxy.get("/").status());
    assert_eq!((statuses, server.n_connections()), ([200, 504, 200, 200], 2));
}

#[test]
fn who_waits_for_a_connection_that_another_makes_waits_only_as_long_as_it_may() {
    let go = Gate::default();
    let server = Origin::serving({
        let go = go.clone();
        // It takes connections and says nothing of TLS.
        move |_| go.wait()
    });
    let route = |path: &str, time: &str| {
        format!("path = \"{path}\"\nretry = {{ on = [\"reset\"], try_timeout = \"{time}\" }}")
    };
    let secure = server.url().replace("http:", "https:");
    let proxy = by_h2(secure).route(&route("/patient", "60s")).route(&route("/hurried", "100ms")).start();
    let (mut patient, mut hurried) = (proxy.connect(), proxy.connect());
    patient.get("/patient");
    eventually("a connection", || (server.n_connections() == 1).then_some(()));
    assert_eq!(hurried.get("/hurried").reply().status(), 504);
    assert!(!patient.is_answered());
    go.open();
    assert_eq!(patient.reply().status(), 502);
}

#[test]
fn what_http2_cannot_say_is_its_clients_fault() {
    let good = frames_server(|_, conn| {
        while let Some(stream) = next_request(conn) {
            conn.send(ok(stream));
        }
    });
    let proxy = by_h2(good.url()).in_cluster("host_header = \"keep\"").start();
    for _ in 0..6 {
        let reply = proxy.connect().send("GET / HTTP/1.1\r\nHost: a%20b\r\n\r\n").reply();
        assert_eq!(reply.status(), 400, "{}", reply.text());
    }
    assert_eq!(proxy.get("/").status(), 200);
    eventually("all tries", || (tries(&proxy, "") == 7.0).then_some(()));
    assert_eq!(tries(&proxy, "aborted"), 6.0);
}
