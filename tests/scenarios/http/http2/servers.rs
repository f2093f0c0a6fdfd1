//! HTTP/2 with servers: connections, limits, and calls that are made again.

use super::*;

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
    let origin = Origin::gated("a", &go);
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
    assert_eq!(origin.requests()[2].headers("via"), ["1.1 trylist", "1.1 trylist"]);
    client.send("hello");
    assert_eq!(client.bytes(5), b"hello");
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
fn a_malformed_response_is_an_error_of_its_stream_alone() {
    const MALFORMED: [(&str, &str); 5] =
        [("X", "y"), ("x", "a\u{7f}"), ("", "y"), (":path", "/"), ("x", " y")];
    let server = frames_server(|_, conn| {
        let first = next_request(conn).unwrap();
        for field in MALFORMED {
            let stream = next_request(conn).unwrap();
            let fields = block(&[(":status", "200"), field]);
            conn.send(frame(HEADERS, END_HEADERS | END_STREAM, stream, &fields));
        }
        conn.send(ok(first));
        while let Some(stream) = next_request(conn) {
            conn.send(ok(stream));
        }
    });
    let proxy = by_h2(server.url()).in_cluster("ejection = { failures = 0 }").start();
    let mut first = proxy.connect();
    first.get("/");
    let in_flight = format!("trylist_endpoint_in_flight{{cluster=\"%\",endpoint=\"{}\"}}", server.url());
    proxy.wait_for_metric(&in_flight, 1.0);
    for field in MALFORMED {
        assert_eq!(proxy.get("/").status(), 502, "{field:?}");
    }
    assert_eq!(first.reply().status(), 200);
    assert_eq!((proxy.get("/").status(), server.n_connections()), (200, 1));
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
fn a_silent_server_is_asked_by_ping_and_one_that_answers_is_waited_for() {
    let origin = frames_server(|_, conn| {
        let stream = next_request(conn).unwrap();
        for _ in 0..3 {
            let data = wait_for_ping(conn).unwrap();
            conn.send(frame(PING, ACK, 0, &data));
        }
        conn.send(ok(stream));
        conn.wait_for_end();
    });
    let proxy = by_h2(origin.url()).in_cluster("h2_ping = \"50ms\"\nh2_ping_timeout = \"20s\"").start();
    assert_eq!(proxy.get("/").status(), 200);
}

#[test]
fn a_connection_whose_server_does_not_answer_a_ping_ends() {
    let origin = frames_server(|_, conn| {
        next_request(conn);
        assert!(wait_for_ping(conn).is_some());
        conn.wait_for_end();
    });
    let keys = "h2_ping = \"10ms\"\nh2_ping_timeout = \"10ms\"\nresponse_timeout = \"60s\"";
    let proxy = by_h2(origin.url()).in_cluster(keys).start();
    assert_eq!(proxy.get("/").status(), 502);
    assert_eq!(tries(&proxy, "result=\"closed_early\""), 1.0);
}

/// The data of the next PING; `None` at the end.
fn wait_for_ping(conn: &mut Conn) -> Option<Vec<u8>> {
    loop {
        let head: [u8; 9] = conn.bytes(9).try_into().ok()?;
        let [a, b, c, kind, flags, ..] = head;
        let payload = conn.bytes(u32::from_be_bytes([0, a, b, c]) as usize);
        if (kind, flags) == (PING, 0) {
            return Some(payload.to_vec());
        }
    }
}
