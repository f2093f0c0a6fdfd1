//! Attacks of HTTP/2 clients on servers since 2019, written frame by frame: the connection is refused, memory
//! stays, and others are served.

use tests::h2::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, Frames, GOAWAY, HEADERS, INITIAL_WINDOW_SIZE, PING,
    RST_STREAM, SETTINGS, WINDOW_UPDATE, frame, request, settings, window,
};
use tests::origin::Origin;
use tests::proxy::Proxy;
use tests::site::{Site, proc_status};
use tests::stream::End;
use tests::{Gate, eventually};
use trylist::serve::drain::Idle;

/// RFC 9113 section 7.
const PROTOCOL_ERROR: u32 = 1;
const REFUSED_STREAM: u32 = 7;
const ENHANCE_YOUR_CALM: u32 = 11;

/// Maximum memory for a flood: far less than its bytes, and far more than the noise of an allocator.
const FLAT_KIB: u64 = 24 << 10;

/// The program, in front of this origin.
fn program(origin: &Origin) -> Site {
    Site::run(&Proxy::over([origin]).listener("h2 = true"))
}

/// Has a client flood the program with what `flood` makes for each round, and not stop when it is refused, while another
/// client is served; the code by which it was refused.
#[track_caller]
fn refused(origin: &Origin, rounds: u32, flood: impl FnMut(u32) -> Vec<u8>) -> u32 {
    let site = program(origin);
    let worker = site.worker();
    let mut other = Frames::connect(site.address());
    other.get(1, "/");
    assert_eq!(other.body(1), "a");
    let before = proc_status(worker, "VmRSS");
    let mut attacker = Frames::connect(site.address());
    let sent = attacker.flood(rounds, flood);
    let code = attacker.goaway();
    let grown = proc_status(worker, "VmRSS").saturating_sub(before);
    assert!(grown < FLAT_KIB, "{grown} KiB more after {sent} rounds");
    other.get(3, "/");
    assert_eq!(other.body(3), "a", "the other client");
    assert_eq!(site.get("/").text(), "a", "a new client");
    assert_eq!(site.worker(), worker);
    code
}

fn open(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | END_STREAM, stream, &request("GET", "/slow", &[]))
}

#[test]
fn rapid_reset() {
    let origin = Origin::named("a");
    let cancel = 8_u32.to_be_bytes();
    let code = refused(&origin, 20_000, |round| {
        let stream = 2 * round + 1;
        [open(stream), frame(RST_STREAM, 0, stream, &cancel)].concat()
    });
    assert_eq!(code, ENHANCE_YOUR_CALM);
    // Not each of them reached a server.
    assert!(origin.requests().len() < 500, "{}", origin.requests().len());
}

#[test]
fn resets_that_the_proxy_is_made_to_send() {
    let origin = Origin::named("a");
    // A window beyond what a window can be is an error of its stream (CVE-2025-8671).
    let code = refused(&origin, 20_000, |round| {
        let stream = 2 * round + 1;
        [open(stream), frame(WINDOW_UPDATE, 0, stream, &[0x7f, 0xff, 0xff, 0xff])].concat()
    });
    assert_eq!(code, ENHANCE_YOUR_CALM);
    assert!(origin.requests().len() < 500, "{}", origin.requests().len());
}

/// Streams at once, and how many more than that a connection may ask for in a row.
const STREAMS: u32 = 128;
const REFUSALS: u32 = 98;

#[test]
fn streams_beyond_the_most_are_refused_and_then_their_connection() {
    let go = Gate::default();
    let origin = Origin::gated("a", &go);
    let site = program(&origin);
    let mut client = Frames::connect(site.address());
    let mut streams = (0..).map(|n| 2 * n + 1);
    for stream in streams.by_ref().take(STREAMS as usize) {
        assert!(client.get(stream, "/"));
    }
    origin.wait_for_requests(STREAMS as usize);
    for stream in streams.by_ref().take(REFUSALS as usize) {
        client.get(stream, "/");
        let reset = client.wait_for(RST_STREAM);
        assert_eq!((reset.stream, reset.code()), (stream, REFUSED_STREAM));
    }
    // Each second that this takes allows one more.
    client.flood(REFUSALS, |_| open(streams.next().unwrap()));
    assert_eq!(client.goaway(), ENHANCE_YOUR_CALM);
    go.open();
    assert_eq!(site.get("/").text(), "a", "a new client");
    assert_eq!(origin.requests().len(), STREAMS as usize + 1, "nothing of what was refused");
}

#[test]
fn frames_that_are_none_are_an_error_of_their_connection() {
    let code = refused(&Origin::named("a"), 1, |_| frame(WINDOW_UPDATE, 0, 0, &[0; 4]));
    assert_eq!(code, PROTOCOL_ERROR);
}

#[test]
fn continuation_flood() {
    let origin = Origin::named("a");
    let code = refused(&origin, 20_000, |round| match round {
        0 => frame(HEADERS, END_STREAM, 1, &request("GET", "/", &[])),
        _ => frame(CONTINUATION, 0, 1, &[0, 1, b'x', 1, b'y']),
    });
    assert_eq!(code, ENHANCE_YOUR_CALM);
}

#[test]
fn empty_continuations() {
    let origin = Origin::named("a");
    let code = refused(&origin, 20_000, |round| match round {
        0 => frame(HEADERS, END_STREAM, 1, &request("GET", "/", &[])),
        _ => frame(CONTINUATION, 0, 1, &[]),
    });
    assert_eq!(code, ENHANCE_YOUR_CALM);
}

#[test]
fn settings_flood() {
    let code = refused(&Origin::named("a"), 200_000, |_| frame(SETTINGS, 0, 0, &[]));
    assert_eq!(code, ENHANCE_YOUR_CALM);
}

#[test]
fn ping_flood() {
    let code = refused(&Origin::named("a"), 200_000, |_| frame(PING, 0, 0, &[7; 8]));
    assert_eq!(code, ENHANCE_YOUR_CALM);
}

/// CVE-2019-9511: a large response in pieces of a byte each.
#[test]
fn data_dribble() {
    let body = "x".repeat(1 << 20);
    let origin = Origin::serving(move |conn| {
        while let Some(request) = conn.request() {
            let body = if request.line().contains("/slow") { &body[..] } else { "a" };
            conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
        }
    });
    let code = refused(&origin, 200_000, |round| match round {
        0 => [settings(&[(INITIAL_WINDOW_SIZE, 0)]), open(1)].concat(),
        _ => window(1, 1),
    });
    assert_eq!(code, ENHANCE_YOUR_CALM);
}

fn pings(n: usize) -> Vec<u8> {
    frame(PING, 0, 0, &[7; 8]).repeat(n)
}

/// How many connections of clients the proxy holds.
fn wait_for_connections(site: &Site, n: f64) {
    let open = format!("trylist_open_connections{{listener=\"{}\"}}", site.address());
    eventually(&format!("{n} connections"), || (site.metric(&open) == n).then_some(()));
}

/// It sends all that it has before it reads anything. To close without having read that would reset the connection, and take
/// with it whatever of the answers had no room with the client yet.
#[test]
fn a_client_that_is_refused_hears_why_and_is_not_waited_for_long() {
    let origin = Origin::named("a");
    let site = program(&origin);
    let mut client = Frames::connect_narrowly(site.address());
    assert!(client.send(pings(10_000)));
    assert_eq!(client.goaway(), ENHANCE_YOUR_CALM);
    assert_eq!(client.next(), Err(End::Eof));
    // It could go now, and does not.
    wait_for_connections(&site, 0.0);
    drop(client);
}

#[test]
fn a_client_that_goes_on_when_it_is_refused_is_cut_off() {
    const ROUNDS: u32 = 4_000;
    let origin = Origin::named("a");
    let site = program(&origin);
    let mut client = Frames::connect(site.address());
    // 64 MB, of which sockets hold a tenth.
    let sent = client.flood(ROUNDS, |_| pings(1_000));
    assert!(sent < ROUNDS);
    assert_eq!(client.goaway(), ENHANCE_YOUR_CALM);
    wait_for_connections(&site, 0.0);
}

#[test]
fn a_flood_while_the_worker_drains_is_one_too() {
    let gate = Gate::default();
    let origin = Origin::serving({
        let gate = gate.clone();
        move |conn| {
            conn.request();
            gate.wait();
        }
    });
    let proxy = Proxy::over([&origin]).listener("h2 = true").start();
    let mut client = Frames::connect(proxy.address());
    client.get(1, "/");
    origin.wait_for_requests(1);
    proxy.control().drain(Idle::Close);
    assert_eq!(client.wait_for(GOAWAY).code(), 0, "its request may end");
    client.flood(10_000, |_| pings(1));
    assert_eq!(client.goaway(), ENHANCE_YOUR_CALM);
    gate.open();
}

#[test]
fn empty_data_flood() {
    let code = refused(&Origin::named("a"), 200_000, |round| match round {
        0 => frame(HEADERS, END_HEADERS, 1, &request("POST", "/", &[])),
        _ => frame(DATA, 0, 1, &[]),
    });
    assert_eq!(code, ENHANCE_YOUR_CALM);
}

#[test]
fn a_header_list_over_its_limit_is_refused_by_its_stream() {
    let origin = Origin::named("a");
    let proxy = Proxy::over([&origin]).listener("h2 = true").start();
    let mut client = Frames::connect(proxy.address());
    let long = "x".repeat(100);
    let more: Vec<_> = (0..400).map(|_| ("x-long", long.as_str())).collect();
    let block = request("GET", "/", &more);
    let mut parts = block.chunks(16_000).peekable();
    client.send(frame(HEADERS, END_STREAM, 1, parts.next().unwrap()));
    while let Some(part) = parts.next() {
        client.send(frame(CONTINUATION, if parts.peek().is_none() { END_HEADERS } else { 0 }, 1, part));
    }
    let answer = loop {
        let frame = client.next().unwrap();
        if frame.stream == 1 {
            break frame;
        }
    };
    assert_eq!(answer.kind, HEADERS, "{answer:?}");
    // 431 by the static table has no entry of its own: the status is spelt out.
    assert!(answer.payload.windows(3).any(|text| text == b"431") || answer.payload.len() < 16, "{answer:?}");
    assert_eq!(origin.requests().len(), 0);
}

#[test]
fn a_client_that_does_not_take_its_responses_holds_no_more_than_a_buffer_each() {
    let body = "x".repeat(4 << 20);
    let origin = Origin::replying(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
    let site = program(&origin);
    let mut client = Frames::connect(site.address());
    let before = proc_status(site.worker(), "VmRSS");
    for n in 0..20 {
        client.get(2 * n + 1, "/");
    }
    origin.wait_for_requests(20);
    let grown = proc_status(site.worker(), "VmRSS").saturating_sub(before);
    assert!(grown < FLAT_KIB, "{grown} KiB more");
}
