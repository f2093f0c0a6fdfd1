//! Heads and bodies over HTTP/2 on both sides.

use super::*;

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
