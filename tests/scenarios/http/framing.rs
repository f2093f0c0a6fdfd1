//! Requests that two parsers could read in two ways: refused, the connection closed, and nothing of them ever seen by a
//! server.

use tests::h2::{DATA, END_HEADERS, END_STREAM, Frames, HEADERS, block, frame, request};
use tests::origin::Origin;
use tests::proxy::Proxy;
use tests::stream::End;

/// The request is refused with this status, and what stands behind it is not served; the server sees nothing.
#[track_caller]
fn refused(status: u16, request: &str) {
    let origin = Origin::named("never");
    let proxy = Proxy::over([&origin]).start();
    let mut client = proxy.connect();
    let reply = client.send(request).send("GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n").reply();
    assert_eq!(reply.status(), status, "{request:?}: {}", reply.text());
    assert_eq!(reply.header("connection"), Some("close"), "{request:?}");
    assert_eq!((client.end(), origin.n_connections()), (End::Eof, 0), "{request:?}");
}

/// Header lines that make a request malformed.
#[track_caller]
fn refused_headers(headers: &str) {
    refused(400, &format!("POST / HTTP/1.1\r\nHost: a\r\n{headers}\r\n\r\n"));
}

#[test]
fn two_framings() {
    refused_headers("Transfer-Encoding: chunked\r\nContent-Length: 5");
    refused_headers("Content-Length: 5\r\nTransfer-Encoding: chunked");
    refused_headers("Content-Length: 0\r\nTransfer-Encoding: chunked");
}

#[test]
fn repeated_lengths() {
    refused_headers("Content-Length: 5\r\nContent-Length: 5");
    refused_headers("Content-Length: 5\r\nContent-Length: 6");
    refused_headers("Content-Length: 5, 5");
    refused_headers("Content-Length: 0\r\nContent-Length: 0");
}

#[test]
fn odd_lengths() {
    for length in
        ["", "+5", "-5", "0x5", "5 5", "5;", "5.0", "five", "99999999999999999999999", "18446744073709551616"]
    {
        refused_headers(&format!("Content-Length: {length}"));
    }
}

#[test]
fn odd_transfer_codings() {
    let with =
        |coding: &str| format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: {coding}\r\n\r\n0\r\n\r\n");
    refused(501, &with("gzip, chunked"));
    refused(400, &with("chunked, chunked"));
    for not_chunked_at_the_end in
        ["", "gzip", "identity", "chunked, gzip", "xchunked", "\"chunked\"", "chunked;q=1"]
    {
        refused(400, &with(not_chunked_at_the_end));
    }
    refused(400, &with("chunked\r\nTransfer-Encoding: chunked"));
}

#[test]
fn transfer_coding_of_an_old_client() {
    refused(400, "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n");
}

#[test]
fn folded_and_odd_header_lines() {
    refused_headers("X-A: b\r\n c");
    refused_headers("X-A: b\r\n\tc");
    refused_headers(" X-A: b");
    refused_headers("X-A : b");
    refused_headers("Content-Length : 5");
    refused_headers("X A: b");
    refused_headers("X-A");
    refused_headers(": b");
    refused_headers("X-\u{e9}: b");
}

#[test]
fn bare_line_ends_and_control_characters() {
    refused_headers("X-A: b\rX-C: d");
    refused_headers("X-A: b\nX-C: d");
    refused_headers("X-A: b\0c");
    refused_headers("X-A: b\x01c");
    refused(400, "GET / HTTP/1.1\nHost: a\n\n");
    refused(400, "GET / HTTP/1.1\r\nHost: a\r\n\n");
}

#[test]
fn hosts() {
    refused(400, "GET / HTTP/1.1\r\n\r\n");
    refused(400, "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n");
    for host in ["a b", "a/b", "a@b", "<a>", "a\\b", "a:b:c", "a:x", "[", "[::1", "a%2", ":80"] {
        refused(400, &format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"));
    }
}

#[test]
fn request_lines() {
    for line in [
        "GET  / HTTP/1.1",
        " GET / HTTP/1.1",
        "GET /",
        "GET",
        "GET / HTTP/1.1 x",
        "GET / HTTP/1.1 ",
        "GET /\t HTTP/1.1",
        "G@T / HTTP/1.1",
        "GET /\x7f HTTP/1.1",
        "G ET / HTTP/1.0",
        "GET / a HTTP/1.1",
        "GET / HTTP/01.01",
        "GET / HTTP/1.01",
        "GET / HTTP/1",
        "GET / HTTP/1.",
        "GET / HTTP/11",
        "GET / HTTP/1.x",
        "GET / http/1.1",
        "GET / XTTP/1.1",
        "GET / XTTP/2.0",
    ] {
        refused(400, &format!("{line}\r\nHost: a\r\n\r\n"));
    }
}

#[test]
fn other_versions() {
    for version in ["HTTP/2.0", "HTTP/0.9", "HTTP/3.1"] {
        refused(505, &format!("GET / {version}\r\nHost: a\r\n\r\n"));
    }
    refused(505, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
}

/// RFC 9110 section 2.5.
#[test]
fn a_later_minor_version_is_read_as_http_1_1() {
    let origin = Origin::replying("HTTP/1.7 200 OK\r\nContent-Length: 1\r\n\r\na");
    let proxy = Proxy::over([&origin]).start();
    let mut client = proxy.connect();
    for version in ["1.2", "1.9"] {
        let reply = client.send(format!("GET / HTTP/{version}\r\nHost: a\r\n\r\n")).reply();
        assert_eq!((reply.text().as_str(), reply.line()), ("a", "HTTP/1.1 200 OK"));
    }
    assert_eq!(origin.n_connections(), 1, "both connections go on");
    assert!(origin.requests().iter().all(|request| request.line() == "GET / HTTP/1.1"));
    // With all that HTTP/1.1 asks for.
    refused(400, "GET / HTTP/1.2\r\n\r\n");
}

#[test]
fn a_coding_that_is_named_twice_is_said_to_be() {
    let origin = Origin::named("never");
    let proxy = Proxy::over([&origin]).start();
    for (lines, what) in [
        ("Transfer-Encoding: chunked, chunked", "Transfer-Encoding names chunked more than once"),
        ("Transfer-Encoding: Chunked,gzip,\tchunked", "Transfer-Encoding names chunked more than once"),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", "more than one Transfer-Encoding"),
    ] {
        let mut client = proxy.connect();
        let reply = client.send(format!("POST / HTTP/1.1\r\nHost: a\r\n{lines}\r\n\r\n")).reply();
        assert_eq!((reply.status(), reply.text()), (400, format!("400 Bad Request: {what}\n")), "{lines}");
    }
}

/// They may not stand there, and what is not UTF-8 was refused while UTF-8 went on to the server.
#[test]
fn bytes_above_0x7f_in_a_target_go_on_as_their_escapes() {
    let origin = Origin::named("a");
    let proxy = Proxy::over([&origin]).route("path = \"/caf%C3%A9\"").start();
    let latin_1 = [&b"/caf%C3%A9/\xe9"[..], b"?\xff=\x80 "].concat();
    let mut client = proxy.connect();
    for (target, received) in [
        ("/caf\u{e9}/x?y=\u{e9} ".as_bytes(), "/caf%C3%A9/x?y=%C3%A9"),
        ("http://b/caf\u{e9} ".as_bytes(), "/caf%C3%A9"),
        (&latin_1, "/caf%C3%A9/%E9?%FF=%80"),
    ] {
        let request = [b"GET ", target, b"HTTP/1.1\r\nHost: a\r\n\r\n"].concat();
        assert_eq!(client.send(request).reply().text(), "a", "{received}");
        let line = origin.requests().last().unwrap().line().to_owned();
        assert_eq!(line, format!("GET {received} HTTP/1.1"));
    }
    for line in ["GET http://\u{e9}/ HTTP/1.1", "G\u{e9}T / HTTP/1.1", "GET / HTTP/1.\u{e9}", "\u{e9}"] {
        refused(400, &format!("{line}\r\nHost: a\r\n\r\n"));
    }
}

#[test]
fn targets() {
    for target in ["x", "x:80", "*", "ftp://a/", "http://", "http://u@a/", "/a#b", "//\x01"] {
        refused(400, &format!("GET {target} HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx"));
    }
}

/// A chunked body that goes wrong after its first chunk: the server has the request's head by then, but must never see it
/// complete, nor anything that stands behind it.
#[track_caller]
fn broken_chunks(rest: &str) {
    let origin = Origin::named("never");
    let proxy = Proxy::over([&origin]).start();
    let mut client = proxy.connect();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n");
    let reply = client.send(rest).send("GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n").reply();
    assert_eq!(reply.status(), 400, "{rest:?}: {}", reply.text());
    assert_eq!(client.end(), End::Eof, "{rest:?}");
    drop(proxy);
    let complete = origin.requests().iter().filter(|request| request.cut.is_none()).count();
    assert_eq!(complete, 0, "{rest:?}: {:?}", origin.requests());
}

#[test]
fn bad_chunk_sizes() {
    for size in [
        "",
        "x",
        "-1",
        "+1",
        "0x1",
        " 1",
        "1 ",
        "1\t",
        "1 1",
        "0000000000000001",
        "1_0",
        "ffffffffffffffff",
        "10000000000000000",
        "g",
    ] {
        broken_chunks(&format!("{size}\r\nd\r\n0\r\n\r\n"));
    }
}

#[test]
fn bad_ends_of_chunks() {
    broken_chunks("1\nd\r\n0\r\n\r\n");
    broken_chunks("1\r\nd\n0\r\n\r\n");
    broken_chunks("1\r\ndd\r\n0\r\n\r\n");
    broken_chunks("1\r\n\r\n0\r\n\r\n");
    broken_chunks("1\rd\r\n0\r\n\r\n");
    broken_chunks("1;a\nb\r\nd\r\n0\r\n\r\n");
}

#[test]
fn bad_trailers() {
    broken_chunks("0\r\nX-A: b\n\r\n");
    broken_chunks("0\r\nX A: b\r\n\r\n");
    broken_chunks(&format!("0\r\nX-A: {}\r\n\r\n", "b".repeat(9000)));
}

#[test]
fn trailers_that_speak_of_framing_or_route_are_taken_out() {
    let origin = Origin::named("a");
    let proxy = Proxy::over([&origin]).start();
    let mut client = proxy.connect();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nb\r\n0\r\n");
    client.send("Content-Length: 5\r\nX-A: b\r\nTransfer-Encoding: chunked\r\nHost: b\r\n\r\n");
    assert_eq!(client.reply().text(), "a");
    assert_eq!(origin.request().trailers, "X-A: b\n");
}

/// Headers that a client may not send, or that servers read before they act, are refused as trailers.
#[test]
fn trailers_that_would_be_taken_for_headers_of_the_proxys_are_taken_out() {
    let origin = Origin::named("a");
    let rules = "request_headers = { set = { X-Real-IP = \"${client_address}\" }, remove = [\"X-Secret\"] }";
    let proxy = Proxy::over([&origin])
        .listener("h2 = true")
        .top("request_id = \"X-Trace\"")
        .route(&format!("path = \"/\"\n{rules}"))
        .start();
    let forged = [
        ("x-client-cert-subject", "CN=root"),
        ("x_client_cert_subject", "CN=root"),
        ("x-forwarded-for", "10.0.0.1"),
        ("x_forwarded_for", "10.0.0.1"),
        ("x-forwarded-proto", "https"),
        ("forwarded", "for=10.0.0.1"),
        ("authorization", "Basic eDp5"),
        ("cookie", "a=b"),
        ("if-match", "x"),
        ("x-trace", "mine"),
        ("x-real-ip", "10.0.0.1"),
        ("x_real_ip", "10.0.0.1"),
        ("x-secret", "1"),
        ("x-a", "b"),
    ];
    let lines: String = forged.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let mut client = proxy.connect();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nb\r\n0\r\n");
    assert_eq!(client.send(format!("{lines}\r\n")).reply().text(), "a");
    let mut client = Frames::connect(proxy.address());
    client.send(frame(HEADERS, END_HEADERS, 1, &request("POST", "/", &[])));
    client.send(frame(DATA, 0, 1, b"b"));
    client.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(&forged)));
    assert_eq!(client.body(1), "a");
    let requests = origin.requests();
    assert_eq!(requests.len(), 2);
    for request in requests {
        assert_eq!(request.trailers, "x-a: b\n");
    }
}

/// RFC 9112 section 7.1.1 wants white space before extensions taken; for the rest see what is forgiven servers
/// (`bodies::sizes_of_chunks_are_taken_as_servers_pad_them`).
#[test]
fn a_chunk_extension_is_taken_off() {
    let origin = Origin::named("a");
    let proxy = Proxy::over([&origin]).start();
    let mut client = proxy.connect();
    client.send(
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;x=\"y\"\r\na\r\n2 \t;x\r\nbc\r\n0;z\r\n\r\n",
    );
    assert_eq!(client.reply().text(), "a");
    assert_eq!(origin.request().text(), "abc", "and the server's reader takes no extensions");
}
