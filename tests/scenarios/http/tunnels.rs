//! Connections that switch to another protocol: bytes both ways, counted, timed and drained like requests.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};

use tests::client::Client;
use tests::h2::{
    DATA, END_HEADERS, END_STREAM, Frames, HEADERS, RST_STREAM, SETTINGS, block, frame, next_request,
    next_request_with, ok,
};
use tests::origin::{Conn, Origin};
use tests::proxy::Proxy;
use tests::stream::End;
use tests::{DEADLINE, Gate};
use trylist::serve::drain::Idle;
use tungstenite::{Message, WebSocket, accept};

/// RFC 8441 section 3.
const ENABLE_CONNECT_PROTOCOL: u16 = 8;

/// A server of WebSockets that echoes, on a port of its own; ends with its last client.
fn echo(n_clients: usize) -> (String, std::thread::JoinHandle<()>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let serve = move || {
        let clients = (0..n_clients).map(|_| listener.accept().unwrap().0);
        let each = clients.map(|socket| std::thread::spawn(move || echo_all(socket)));
        each.collect::<Vec<_>>().into_iter().for_each(|client| client.join().unwrap());
    };
    (url, std::thread::spawn(serve))
}

fn echo_all(socket: TcpStream) {
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut socket = accept(socket).unwrap();
    while let Ok(message) = socket.read() {
        if message.is_text() || message.is_binary() {
            socket.send(message).unwrap();
        }
    }
}

fn websocket(proxy: &Proxy) -> WebSocket<TcpStream> {
    let socket = TcpStream::connect(proxy.address()).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    let (socket, response) = tungstenite::client("ws://app.example/chat?x=1", socket).unwrap();
    assert_eq!(response.status(), 101);
    assert_eq!(response.headers()["via"], "1.1 trylist");
    socket
}

fn in_flight(url: &str) -> String {
    format!("trylist_endpoint_in_flight{{cluster=\"%\",endpoint=\"{url}\"}}")
}

/// Switches to `echo` and says what it gets again, until the client ends.
fn switching(conn: &mut Conn) {
    let Some(request) = conn.request() else { return };
    assert_eq!((request.header("upgrade"), request.header("connection")), (Some("echo"), Some("upgrade")));
    conn.send(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\nX-A: b\r\n\r\nhello ",
    );
    loop {
        let byte = conn.bytes(1);
        if byte.is_empty() || !conn.send(byte) {
            return;
        }
    }
}

const UPGRADE: &str = "GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: echo\r\n";

/// A client that has switched.
fn switched(proxy: &Proxy) -> Client {
    let mut client = proxy.connect();
    let reply = client.send(format!("{UPGRADE}\r\n")).reply_head();
    assert_eq!(
        (reply.status(), reply.header("upgrade"), reply.header("x-a")),
        (101, Some("echo"), Some("b"))
    );
    assert_eq!(reply.header("connection"), Some("upgrade"));
    assert_eq!(client.bytes(6), b"hello ");
    client
}

#[test]
fn a_websocket_goes_through() {
    let (url, server) = echo(2);
    let proxy = Proxy::over_urls([&url]).start();
    let mut socket = websocket(&proxy);
    for n in [0, 1, 125, 126, 65_535, 65_536, 3_000_000] {
        let bytes: Vec<u8> = (0..n).map(|i: u32| (i / 3) as u8).collect();
        socket.send(Message::binary(bytes.clone())).unwrap();
        assert!(socket.read().unwrap().into_data() == bytes, "{n} bytes");
    }
    socket.send(Message::Ping("ping".into())).unwrap();
    assert_eq!(socket.read().unwrap(), Message::Pong("ping".into()));
    let mut second = websocket(&proxy);
    second.send(Message::text("beside it")).unwrap();
    assert_eq!(second.read().unwrap(), Message::text("beside it"));
    proxy.wait_for_metric("trylist_open_tunnels{cluster=\"%\"}", 2.0);
    assert_eq!(proxy.metric(&in_flight(&url)), 2.0, "tunnels are in flight");
    for mut socket in [socket, second] {
        socket.close(None).unwrap();
        while socket.read().is_ok() {}
    }
    server.join().unwrap();
    proxy.wait_for_metric("trylist_open_tunnels{cluster=\"%\"}", 0.0);
    proxy.wait_for_metric(&in_flight(&url), 0.0);
    proxy.wait_for_metric("trylist_outcomes_total{cluster=\"%\",outcome=\"served\"}", 2.0);
    proxy.wait_for_metric("trylist_requests_total{cluster=\"%\",code=\"101\"}", 2.0);
}

#[test]
fn any_protocol_goes_through_and_the_log_has_its_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("access.log");
    let origin = Origin::serving(switching);
    let proxy = Proxy::over([&origin]).tables(&format!("[access_log]\npath = {file:?}")).start();
    let mut client = proxy.connect();
    // It does not wait for the answer.
    client.send(format!("{UPGRADE}\r\n"));
    client.send("early");
    assert_eq!(client.reply_head().status(), 101);
    assert_eq!(client.bytes(11), b"hello early");
    client.send("more").end_sending();
    assert_eq!((client.bytes(4), client.end()), (b"more".to_vec(), End::Eof));
    drop(proxy);
    let log = std::fs::read_to_string(&file).unwrap();
    assert_eq!(log.lines().count(), 1, "{log}");
    assert!(log.contains("\"GET / HTTP/1.1\" 101 15 ") && log.contains(" served "), "{log}");
}

#[test]
fn a_server_that_does_not_switch_just_answers() {
    let origin = Origin::replying("HTTP/1.1 426 No\r\nUpgrade: other\r\nContent-Length: 2\r\n\r\nno");
    let proxy = Proxy::over([&origin]).start();
    let mut client = proxy.connect();
    // Such an answer names the protocols that a client has to switch to (RFC 9110 section 15.5.22).
    for _ in 0..2 {
        let reply = client.send(format!("{UPGRADE}\r\n")).reply();
        assert_eq!((reply.status(), reply.text().as_str()), (426, "no"));
        assert_eq!((reply.header("connection"), reply.header("upgrade")), (Some("upgrade"), Some("other")));
    }
    let reply = client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").reply();
    assert_eq!(
        (reply.header("connection"), reply.header("upgrade")),
        (Some("upgrade, close"), Some("other"))
    );
    assert_eq!(origin.n_connections(), 1, "the connection to the server goes on");
    let reply = proxy.connect().send("GET / HTTP/1.0\r\nHost: a\r\n\r\n").reply();
    assert_eq!((reply.status(), reply.header("upgrade")), (426, None), "HTTP/1.0 has no upgrade");
}

#[test]
fn what_is_not_asked_for_or_not_allowed_is_not_passed_on() {
    let origin = Origin::named("a");
    let ask = |route: &str, head: &str| {
        let proxy = Proxy::over([&origin]).route(&format!("path = \"/\"\n{route}")).start();
        assert_eq!(proxy.connect().send(head).reply().text(), "a", "{head}");
    };
    ask("upgrade = false", &format!("{UPGRADE}\r\n"));
    ask("", "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: echo\r\n\r\n");
    ask("", "GET / HTTP/1.0\r\nHost: a\r\nConnection: upgrade, keep-alive\r\nUpgrade: echo\r\n\r\n");
    for protocol in ["h2c", "H2C, echo", "TLS/1.2", "HTTP/2.0"] {
        let head =
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AA\r\n";
        ask("", &format!("{head}Upgrade: {protocol}\r\n\r\n"));
    }
    for request in origin.requests() {
        let passed = ["upgrade", "connection", "http2-settings"].map(|name| request.header(name));
        assert_eq!(passed, [None; 3], "{request:?}");
    }
}

#[test]
fn a_switch_to_what_nobody_asked_for_is_502() {
    for reply in ["Connection: Upgrade\r\nUpgrade: other", "Connection: Upgrade", "Upgrade: echo, other"] {
        let origin = Origin::closing_after(format!("HTTP/1.1 101 Switching Protocols\r\n{reply}\r\n\r\n"));
        let proxy = Proxy::over([&origin]).start();
        assert_eq!(proxy.connect().send(format!("{UPGRADE}\r\n")).reply().status(), 502, "{reply}");
    }
}

/// It has agreed before it had the whole request.
#[test]
fn a_hasty_switch_waits_for_the_end_of_the_request() {
    let origin = Origin::serving(|conn| {
        conn.head();
        conn.send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\n\r\n");
        let body = conn.bytes(9);
        conn.send(body);
        conn.wait_for_end();
    });
    let post = UPGRADE.replace("GET", "POST") + "Content-Length: 9\r\n\r\n";
    let proxy = Proxy::over([&origin]).start();
    let mut client = proxy.connect();
    client.send(format!("{post}some"));
    origin.wait_for_requests(1);
    client.send(" more");
    assert_eq!((client.reply_head().status(), client.bytes(9)), (101, b"some more".to_vec()));
    // One that never sends the rest does its server no harm.
    let proxy = Proxy::over([&origin]).tables("[timeouts]\nbody = \"100ms\"").start();
    for _ in 0..6 {
        assert_eq!(proxy.connect().send(&post).reply().status(), 408);
    }
    let tries = |result: &str| {
        format!("trylist_tries_total{{cluster=\"%\",endpoint=\"{}\",result=\"{result}\"}}", origin.url())
    };
    proxy.wait_for_metric(&tries("aborted"), 6.0);
    assert_eq!(proxy.metric(&tries("timed_out")), 0.0);
}

#[test]
fn an_upgrade_with_a_body_switches_behind_it() {
    let origin = Origin::serving(switching);
    let proxy = Proxy::over([&origin]).start();
    let mut client = proxy.connect();
    client.send(UPGRADE.replace("GET", "POST") + "Content-Length: 4\r\n\r\nbody");
    assert_eq!((client.reply_head().status(), client.bytes(6)), (101, b"hello ".to_vec()));
    assert_eq!(origin.request().text(), "body");
    client.send("x");
    assert_eq!(client.bytes(1), b"x");
}

#[test]
fn a_tunnel_where_nothing_moves_is_closed() {
    let origin = Origin::serving(switching);
    let proxy = Proxy::over([&origin]).tables("[timeouts]\ntunnel = \"100ms\"").start();
    let mut client = switched(&proxy);
    for _ in 0..20 {
        client.send("x");
        assert_eq!(client.bytes(1), b"x");
    }
    assert_ne!(client.end(), End::Silent);
    proxy.wait_for_metric("trylist_outcomes_total{cluster=\"%\",outcome=\"served\"}", 1.0);
}

/// It ends so that the kernel keeps nothing of what its client does not take.
#[test]
fn a_tunnel_whose_client_takes_nothing_is_reset() {
    let ended = Gate::default();
    let at_origin = ended.clone();
    let origin = Origin::serving(move |conn| {
        conn.head();
        conn.send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\n\r\n");
        while conn.send([0; 100_000]) {}
        at_origin.open();
    });
    let proxy = Proxy::over([&origin]).tables("[timeouts]\ntunnel = \"100ms\"").start();
    let mut client = proxy.connect();
    assert_eq!(client.send(format!("{UPGRADE}\r\n")).reply_head().status(), 101);
    // No metric is waited for: it is 0 before the tunnel begins, too, and a client that reads then is one that takes.
    ended.wait();
    assert_eq!(client.rest().1, End::Reset);
}

#[test]
fn a_tunnel_belongs_to_its_session() {
    let (a, b) = (Origin::serving(switching), Origin::serving(switching));
    let proxy = Proxy::over([&a, &b]).in_cluster("sticky = { cookie = \"lb\" }").start();
    let mut client = proxy.connect();
    let reply = client.send(format!("{UPGRADE}\r\n")).reply_head();
    let cookie = reply.header("set-cookie").unwrap().split(';').next().unwrap().to_owned();
    for _ in 0..3 {
        let mut client = proxy.connect();
        let reply = client.send(format!("{UPGRADE}Cookie: {cookie}\r\n\r\n")).reply_head();
        assert_eq!((reply.status(), reply.header("set-cookie")), (101, None));
    }
    assert_eq!([&a, &b].map(Origin::n_connections), [4, 0]);
}

#[test]
fn a_side_that_resets_ends_the_tunnel() {
    let origin = Origin::serving(switching);
    let proxy = Proxy::over([&origin]).start();
    switched(&proxy).reset();
    proxy.wait_for_metric("trylist_open_tunnels{cluster=\"%\"}", 0.0);
    let mut client = switched(&proxy);
    origin.stop();
    assert_ne!(client.end(), End::Silent);
    drop(client);
    proxy.wait_for_metric("trylist_open_tunnels{cluster=\"%\"}", 0.0);
}

#[test]
fn a_side_that_has_ended_is_not_waited_for_as_long() {
    let origin = Origin::serving(switching);
    let proxy = Proxy::over([&origin]).tables("[timeouts]\nbody = \"100ms\"").start();
    let mut client = switched(&proxy);
    origin.stop();
    assert_ne!(client.end(), End::Silent);
    proxy.wait_for_metric("trylist_open_tunnels{cluster=\"%\"}", 0.0);
}

#[test]
fn half_a_tunnel_goes_on() {
    let origin = Origin::serving(|conn| {
        conn.request();
        conn.send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\n\r\n");
        conn.wait_for_end();
        conn.send("all of it");
    });
    let proxy = Proxy::over([&origin]).start();
    let mut client = proxy.connect();
    client.send(format!("{UPGRADE}\r\n")).reply_head();
    let mut socket = client.socket().try_clone().unwrap();
    socket.write_all(b"data").unwrap();
    socket.shutdown(Shutdown::Write).unwrap();
    let mut rest = String::new();
    socket.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "all of it");
}

#[test]
fn a_drain_lets_tunnels_go_on_and_closes_them_at_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("access.log");
    let origin = Origin::serving(switching);
    let tables = format!("[timeouts]\ndrain = \"1s\"\n[access_log]\npath = {file:?}");
    let proxy = Proxy::over([&origin]).tables(&tables).start();
    let mut client = switched(&proxy);
    proxy.control().drain(Idle::Close);
    tests::eventually("a proxy that accepts nothing", || Client::try_connect(proxy.address()).err());
    client.send("still here");
    assert_eq!(client.bytes(10), b"still here");
    assert_ne!(client.end(), End::Silent);
    proxy.wait();
    let log = std::fs::read_to_string(&file).unwrap();
    assert!(log.contains("\" 101 16 ") && log.contains(" aborted "), "{log}");
}

/// An extended CONNECT for a WebSocket (RFC 8441).
fn extended_connect() -> Vec<u8> {
    let pseudo = [(":method", "CONNECT"), (":protocol", "websocket"), (":scheme", "http")];
    let more = [(":authority", "test"), (":path", "/chat"), ("sec-websocket-version", "13")];
    frame(HEADERS, END_HEADERS, 1, &block(&[&pseudo[..], &more].concat()))
}

#[test]
fn a_websocket_over_http2_reaches_a_server_of_http1() {
    let (url, server) = echo(1);
    let proxy = Proxy::over_urls([url]).listener("h2 = true").start();
    let mut client = Frames::connect(proxy.address());
    let settings = client.wait_for(SETTINGS).payload;
    assert!(settings.chunks(6).any(|setting| setting == [0, 8, 0, 0, 0, 1]), "{settings:?}");
    client.send(extended_connect());
    let head = client.wait_for(HEADERS);
    // RFC 7541 appendix A, entry 8: status 200.
    assert_eq!((head.payload[0], head.flags & END_STREAM), (0x88, 0));
    let accept = b"sec-websocket-accept";
    assert!(!head.payload.windows(accept.len()).any(|name| name == accept));
    // Masked by zeros, as a client's frames have to be.
    client.send(frame(DATA, 0, 1, b"\x81\x82\0\0\0\0hi"));
    assert_eq!(client.wait_for(DATA).payload, b"\x81\x02hi");
    client.send(frame(DATA, END_STREAM, 1, b"\x88\x80\0\0\0\0"));
    while client.wait_for(DATA).flags & END_STREAM == 0 {}
    server.join().unwrap();
}

/// Through two proxies with HTTP/2 between them, and from clients of both versions.
#[test]
fn a_websocket_reaches_a_server_of_http2() {
    let (url, server) = echo(2);
    let second = Proxy::over_urls([url]).listener("h2 = true").start();
    let first = Proxy::over_urls([format!("http://{}", second.address())])
        .in_cluster("protocol = \"h2\"")
        .listener("h2 = true")
        .start();
    let socket = TcpStream::connect(first.address()).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    // It checks the answer to its key.
    let (mut client, _) = tungstenite::client("ws://app.example/chat", socket).unwrap();
    for text in ["hello", &"x".repeat(300_000)] {
        client.send(Message::text(text)).unwrap();
        assert_eq!(client.read().unwrap(), Message::text(text));
    }
    client.close(None).unwrap();
    while client.read().is_ok() {}
    drop(client);
    let mut client = Frames::connect(first.address());
    client.wait_for(SETTINGS);
    client.send(extended_connect());
    assert_eq!(client.wait_for(HEADERS).payload[0], 0x88);
    client.send(frame(DATA, 0, 1, b"\x81\x82\0\0\0\0hi"));
    assert_eq!(client.wait_for(DATA).payload, b"\x81\x02hi");
    client.send(frame(DATA, END_STREAM, 1, b"\x88\x80\0\0\0\0"));
    while client.wait_for(DATA).flags & END_STREAM == 0 {}
    server.join().unwrap();
    first.wait_for_metric("trylist_open_tunnels{cluster=\"%\"}", 0.0);
}

/// Its answer is no success, and is the client's answer.
#[test]
fn a_server_of_http2_may_refuse_a_tunnel() {
    let origin = Origin::serving(|conn| {
        let Some(stream) = next_request_with(conn, &[(ENABLE_CONNECT_PROTOCOL, 1)]) else { return };
        conn.send(frame(HEADERS, END_HEADERS | END_STREAM, stream, &block(&[(":status", "403")])));
        conn.wait_for_end();
    });
    let proxy = Proxy::over([&origin]).in_cluster("protocol = \"h2\"").start();
    let reply = proxy.connect().send(format!("{UPGRADE}\r\n")).reply();
    assert_eq!(reply.status(), 403);
}

/// It is not asked then, as a server of HTTP/1.1 that does not know the protocol acts as if it were not.
#[test]
fn a_server_of_http2_without_tunnels_gets_a_plain_request() {
    let origin = Origin::serving(|conn| {
        while let Some(stream) = next_request(conn) {
            conn.send(ok(stream));
        }
    });
    let proxy = Proxy::over([&origin]).in_cluster("protocol = \"h2\"").start();
    let reply = proxy.connect().send(format!("{UPGRADE}\r\n")).reply();
    assert_eq!(reply.status(), 200);
}

/// To the client success would mean that there is a tunnel.
#[test]
fn a_stream_whose_server_does_not_switch_is_no_tunnel() {
    let origin = Origin::named("a");
    let proxy = Proxy::over([&origin]).route("path = \"/\"\nupgrade = false").listener("h2 = true").start();
    let mut client = Frames::connect(proxy.address());
    client.send(extended_connect());
    assert_eq!(client.wait_for(RST_STREAM).stream, 1);
    assert_eq!(origin.requests()[0].header("upgrade"), None);
}
