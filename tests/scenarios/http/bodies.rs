//! Bodies, both ways: whole, in their order, and with a true end in whatever framing each side speaks.

use sha2::{Digest, Sha256};
use tests::Gate;
use tests::origin::Origin;
use tests::proxy::Proxy;
use tests::stream::End;

/// Bytes without a pattern that a mistake could hide in.
fn noise(n: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    (0..n)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}

fn chunked(pieces: &[&[u8]], trailers: &str) -> Vec<u8> {
    let mut out = Vec::new();
    for piece in pieces {
        out.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
        out.extend_from_slice(piece);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(format!("0\r\n{trailers}\r\n").as_bytes());
    out
}

/// Answers with the hash of the body.
fn hashing() -> Origin {
    Origin::serving(|conn| {
        while let Some(request) = conn.request() {
            let hash = format!("{:x?}", Sha256::digest(&request.body).as_slice());
            conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{hash}", hash.len()));
        }
    })
}

fn hash(bytes: &[u8]) -> String {
    format!("{:x?}", Sha256::digest(bytes).as_slice())
}

#[test]
fn large_bodies_of_known_length_arrive_byte_for_byte() {
    let (up, down) = (noise(5_000_003), noise(7_000_001));
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", down.len());
    let origin = Origin::replying([head.as_bytes(), &down].concat());
    let proxy = Proxy::over([&origin]).start();
    let head = format!("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", up.len());
    let mut client = proxy.connect();
    for _ in 0..2 {
        let reply = client.send([head.as_bytes(), &up].concat()).reply();
        assert_eq!((hash(&reply.body), reply.cut), (hash(&down), None));
    }
    let requests = origin.wait_for_requests(2);
    assert!(requests.iter().all(|request| hash(&request.body) == hash(&up)));
}

#[test]
fn large_chunked_bodies_arrive_byte_for_byte() {
    let (up, down) = (noise(3_000_017), noise(4_000_037));
    // Chunks of every size from one byte to more than any buffer.
    let mut pieces = Vec::new();
    let (mut rest, mut n) = (&down[..], 1);
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(n.min(rest.len()));
        pieces.push(piece);
        (rest, n) = (after, n * 3 % 300_007 + 1);
    }
    let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let origin = Origin::replying([&head[..], &chunked(&pieces, "")].concat());
    let proxy = Proxy::over([&origin]).start();
    let pieces: Vec<_> = up.chunks(1000).collect();
    let head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let mut client = proxy.connect();
    let reply = client.send([&head[..], &chunked(&pieces, "")].concat()).reply();
    assert_eq!((hash(&reply.body), reply.cut), (hash(&down), None));
    assert_eq!(reply.header("transfer-encoding"), Some("chunked"));
    assert_eq!(hash(&origin.request().body), hash(&up));
    assert_eq!(client.get("/").reply().body.len(), down.len(), "the connection goes on");
}

/// nginx and HAProxy take these, and some servers send them.
#[test]
fn sizes_of_chunks_are_taken_as_servers_pad_them() {
    for size in ["4 ;x=y", "4 ", "4\t \t", "0000000000000004", "00000004  ;x"] {
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        let origin = Origin::replying(format!("{head}{size}\r\nbody\r\n{}\r\n\r\n", size.replace('4', "0")));
        let proxy = Proxy::over([&origin]).start();
        let mut client = proxy.connect();
        for _ in 0..2 {
            let reply = client.get("/").reply();
            assert_eq!((reply.text().as_str(), reply.cut), ("body", None), "{size:?}");
        }
        assert_eq!(origin.n_connections(), 1, "{size:?}");
    }
}

#[test]
fn trailers_pass_both_ways_for_those_who_take_them() {
    let origin = Origin::replying(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 7\r\n\r\n",
    );
    let proxy = Proxy::over([&origin]).start();
    let reply = proxy
        .connect()
        .send("POST / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\nTrailer: X-Up\r\n\r\n")
        .send(chunked(&[b"body"], "X-Up: 1\r\n"))
        .reply();
    assert_eq!((reply.text().as_str(), reply.trailers.as_str()), ("ok", "X-Sum: 7\n"));
    assert_eq!(reply.header("trailer"), Some("X-Sum"));
    let request = origin.request();
    assert_eq!((request.text().as_str(), request.trailers.as_str()), ("body", "X-Up: 1\n"));
    assert_eq!((request.header("te"), request.header("trailer")), (Some("trailers"), Some("X-Up")));
}

#[test]
fn a_response_up_to_the_end_of_its_connection_is_chunked_for_the_client() {
    let origin = Origin::closing_after("HTTP/1.1 200 OK\r\n\r\nall there is");
    let proxy = Proxy::over([&origin]).start();
    let mut client = proxy.connect();
    for _ in 0..2 {
        let reply = client.get("/").reply();
        assert_eq!((reply.text().as_str(), reply.cut), ("all there is", None));
        assert_eq!(reply.header("transfer-encoding"), Some("chunked"));
    }
}

#[test]
fn a_response_without_a_body_leaves_nothing_behind() {
    let origin = Origin::serving(|conn| {
        while let Some(request) = conn.request() {
            conn.send(match request.line().split(' ').nth(1).unwrap() {
                "/204" => "HTTP/1.1 204 No Content\r\n\r\n",
                "/304" => "HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\nETag: \"x\"\r\n\r\n",
                "/head" => "HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n",
                "/head-chunked" => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
                _ => "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            });
        }
    });
    let proxy = Proxy::over([&origin]).start();
    let mut client = proxy.connect();
    assert_eq!(client.get("/204").reply().header("content-length"), None);
    assert_eq!(client.get("/304").reply().header("content-length"), Some("99"));
    let head = |path: &str| format!("HEAD {path} HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.send(head("/head")).reply_to("HEAD").header("content-length"), Some("1234"));
    assert_eq!(client.send(head("/head-chunked")).reply_to("HEAD").status(), 200);
    assert_eq!(client.get("/").reply().body, b"");
    assert_eq!(origin.n_connections(), 1, "each response ended where the next began");
}

#[test]
fn an_error_of_the_proxys_own_has_no_body_for_head() {
    let dead = Origin::dead();
    let proxy = Proxy::over([&dead]).start();
    let mut client = proxy.connect();
    let head = "HEAD / HTTP/1.1\r\nHost: a\r\n\r\n";
    let reply = client.send(head).reply_to("HEAD");
    assert_eq!((reply.status(), client.send(head).reply_to("HEAD").status()), (502, 502));
}

// ---- interim responses and early ones --------------------------------------------------------------------------------

#[test]
fn the_server_decides_whether_a_body_is_to_come() {
    let origin = Origin::serving(|conn| {
        let head = conn.head().unwrap();
        assert_eq!(head.header("expect"), Some("100-continue"));
        conn.send("HTTP/1.1 100 Continue\r\n\r\n");
        let body = conn.bytes(4);
        conn.send([&b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n"[..], &body].concat());
    });
    let proxy = Proxy::over([&origin]).start();
    let mut client = proxy.connect();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n");
    assert_eq!(client.reply().line(), "HTTP/1.1 100 Continue");
    assert_eq!(client.send("body").reply().text(), "body");
}

#[test]
fn a_client_that_was_told_not_to_send_its_body_has_not_sent_it() {
    let origin = Origin::serving(|conn| {
        conn.head();
        conn.send("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno");
    });
    let proxy = Proxy::over([&origin]).start();
    let mut client = proxy.connect();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4000000\r\n\r\n");
    assert_eq!((client.reply().status(), client.end()), (403, End::Eof));
}

#[test]
fn another_expectation_cannot_be_met() {
    let origin = Origin::named("never");
    let proxy = Proxy::over([&origin]).start();
    let mut client = proxy.connect();
    assert_eq!(client.send("GET / HTTP/1.1\r\nHost: a\r\nExpect: wonders\r\n\r\n").reply().status(), 417);
    assert_eq!((client.end(), origin.n_connections()), (End::Eof, 0));
}

#[test]
fn hints_are_passed_on_before_the_response() {
    let origin = Origin::replying(
        "HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\nConnection: x\r\nX: y\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n\
         HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    );
    let proxy = Proxy::over([&origin]).start();
    let mut client = proxy.connect();
    let hint = client.get("/").reply();
    assert_eq!(hint.head, "HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n");
    assert_eq!((client.reply().status(), client.reply().text().as_str()), (103, "ok"));
    let reply = client.send("GET / HTTP/1.0\r\n\r\n").reply();
    assert_eq!(reply.status(), 200, "an old client would take a hint for the response");
}

#[test]
fn an_early_response_is_passed_on_while_the_request_goes_on() {
    let (answered, seen) = (Gate::default(), Gate::default());
    let origin = Origin::serving({
        let (answered, seen) = (answered.clone(), seen.clone());
        move |conn| {
            conn.head();
            conn.send("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nea");
            answered.open();
            seen.wait();
            let rest = conn.bytes(4);
            conn.send(rest);
            conn.wait_for_end();
        }
    });
    let proxy = Proxy::over([&origin]).start();
    let mut client = proxy.connect();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n");
    answered.wait();
    assert_eq!(client.reply_head().status(), 200);
    assert_eq!(client.bytes(2), b"ea");
    seen.open();
    assert_eq!(client.send("rly!").bytes(4), b"rly!");
}

#[test]
fn a_server_that_answers_and_closes_without_reading_is_heard() {
    let origin = Origin::serving(|conn| {
        conn.head();
        conn.send("HTTP/1.1 413 Too Large\r\nContent-Length: 4\r\nConnection: close\r\n\r\nstop");
    });
    let proxy = Proxy::over([&origin]).start();
    let mut client = proxy.connect();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 300000\r\n\r\n");
    let reply = client.send(noise(1000)).reply();
    assert_eq!((reply.status(), reply.text().as_str()), (413, "stop"));
}

#[test]
fn what_is_left_of_a_small_body_is_skipped_and_the_connection_goes_on() {
    let origin = Origin::serving(|conn| {
        conn.head();
        conn.send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nearly");
        conn.wait_for_end();
    });
    let proxy = Proxy::over([&origin]).start();
    let mut client = proxy.connect();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 8\r\n\r\n");
    assert_eq!(client.reply().text(), "early");
    assert_eq!(client.send("leftover").get("/").reply().text(), "early");
    assert_eq!(origin.requests().len(), 2);
}

#[test]
fn bodies_stream_a_byte_at_a_time_as_they_come() {
    let origin = Origin::serving(|conn| {
        conn.head();
        conn.send("HTTP/1.1 200 OK\r\nContent-Length: 26\r\n\r\n");
        for _ in 0..26 {
            let byte = conn.bytes(1);
            conn.send(byte);
        }
        conn.wait_for_end();
    });
    let proxy = Proxy::over([&origin]).start();
    let mut client = proxy.connect();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 26\r\n\r\n");
    assert_eq!(client.reply_head().status(), 200);
    for byte in b'a'..=b'z' {
        assert_eq!(client.send([byte]).bytes(1), [byte], "each is passed on without waiting for the next");
    }
}

#[test]
fn a_body_is_hashed_alike_by_many_clients_at_once() {
    let origin = hashing();
    let proxy = Proxy::over([&origin]).threads(2).start();
    std::thread::scope(|scope| {
        for n in 1..=8 {
            let proxy = &proxy;
            scope.spawn(move || {
                let mut client = proxy.connect();
                let body = noise(n * 40_007);
                let head = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len());
                for _ in 0..4 {
                    assert_eq!(client.send(&head).send(&body).reply().text(), hash(&body));
                }
            });
        }
    });
}

#[test]
fn a_request_that_breaks_off_is_never_whole_for_the_server() {
    for request in ["Content-Length: 9\r\n\r\npart", "Transfer-Encoding: chunked\r\n\r\n4\r\npart\r\n"] {
        let origin = Origin::named("never");
        let proxy = Proxy::over([&origin]).start();
        let mut client = proxy.connect();
        client.send(format!("POST / HTTP/1.1\r\nHost: a\r\n{request}")).end_sending();
        client.rest();
        let seen = origin.wait_for_requests(1);
        assert!(seen[0].cut.is_some(), "{seen:?}");
    }
}

#[test]
fn a_client_that_does_not_wait_for_permission_is_served() {
    let origin = Origin::named("a");
    let proxy = Proxy::over([&origin]).start();
    let mut client = proxy.connect();
    let head = "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n";
    for _ in 0..2 {
        assert_eq!(client.send(format!("{head}body")).reply().text(), "a");
    }
    assert!(origin.requests().iter().all(|request| request.text() == "body"));
}

#[test]
fn a_body_that_is_held_back_is_held_against_its_client() {
    let origin = Origin::serving(|conn| {
        while let Some(head) = conn.head() {
            if head.line() == "POST /told HTTP/1.1" {
                conn.send("HTTP/1.1 100 Continue\r\n\r\n");
            }
        }
    });
    let proxy = Proxy::over([&origin]).tables("[timeouts]\nbody = \"50ms\"").start();
    let held_back = "Expect: 100-continue\r\nContent-Length: 4\r\n";
    for (path, more, replies) in [
        ("/told", "", &[100, 408][..]),
        ("/untold", "", &[408]),
        ("/told", "Connection: expect\r\n", &[100, 408]),
        ("/untold", "Connection: expect\r\n", &[408]),
    ] {
        for _ in 0..6 {
            let mut client = proxy.connect();
            client.send(format!("POST {path} HTTP/1.1\r\nHost: a\r\n{more}{held_back}\r\n"));
            for status in replies {
                assert_eq!(client.reply().status(), *status, "{path} {more}");
            }
        }
    }
    proxy.wait_for_metric(&tries(&origin, "aborted"), 24.0);
    assert_eq!(proxy.metric(&tries(&origin, "timed_out")), 0.0);
}

/// Tries of the only cluster that ended like this.
fn tries(origin: &Origin, result: &str) -> String {
    format!("trylist_tries_total{{cluster=\"%\",endpoint=\"{}\",result=\"{result}\"}}", origin.url())
}

#[test]
fn a_client_that_takes_too_long_over_its_response_is_not_its_servers_fault() {
    let origin = Origin::serving(|conn| {
        conn.request();
        conn.send("HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n");
        while conn.send([0; 100_000]) {}
    });
    let proxy = Proxy::over([&origin]).tables("[timeouts]\nrequest = \"100ms\"").start();
    let clients: Vec<_> = (0..6)
        .map(|_| {
            let mut client = proxy.connect();
            assert_eq!(client.get("/").reply_head().status(), 200);
            client
        })
        .collect();
    proxy.wait_for_metric(&tries(&origin, "aborted"), 6.0);
    drop(clients);
}

#[test]
fn a_client_that_takes_nothing_is_given_up() {
    let origin = Origin::serving(|conn| {
        conn.request();
        conn.send("HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n");
        while conn.send([0; 100_000]) {}
    });
    let proxy = Proxy::over([&origin]).tables("[timeouts]\nbody = \"100ms\"").start();
    let mut client = proxy.connect();
    assert_eq!(client.get("/").reply_head().status(), 200);
    proxy.wait_for_metric("trylist_outcomes_total{cluster=\"%\",outcome=\"aborted\"}", 1.0);
    let (rest, _) = client.rest();
    assert!(rest.len() < 100_000_000, "{} bytes were held for it", rest.len());
}

#[test]
fn a_body_that_nobody_may_send_is_not_taken_for_the_next_response() {
    let origin = Origin::serving(|conn| {
        while let Some(request) = conn.request() {
            let head = match request.line() {
                "HEAD / HTTP/1.1" => "HTTP/1.1 200 OK\r\nContent-Length: 43\r\n\r\n",
                "GET /204 HTTP/1.1" => "HTTP/1.1 204 No Content\r\n\r\n",
                "GET /304 HTTP/1.1" => "HTTP/1.1 304 Not Modified\r\n\r\n",
                _ => "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
            };
            let body =
                if head.ends_with("ok") { "" } else { "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil" };
            conn.send(format!("{head}{body}"));
        }
    });
    let proxy = Proxy::over([&origin]).start();
    let mut client = proxy.connect();
    client.send("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n").reply_to("HEAD");
    assert_eq!(client.get("/").reply().text(), "ok");
    for path in ["/204", "/304"] {
        client.get(path).reply();
        assert_eq!(client.get("/").reply().text(), "ok", "{path}");
    }
}

#[test]
fn what_a_server_says_unasked_is_not_taken_for_a_response() {
    let said = Gate::default();
    let origin = Origin::serving({
        let said = said.clone();
        move |conn| {
            conn.request();
            conn.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
            if conn.number == 0 {
                conn.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil");
                said.open();
            }
            conn.wait_for_end();
        }
    });
    let proxy = Proxy::over([&origin]).start();
    let mut client = proxy.connect();
    let post = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(client.send(post).reply().text(), "ok");
    said.wait();
    assert_eq!(client.send(post).reply().text(), "ok");
    assert_eq!(origin.n_connections(), 2);
}
