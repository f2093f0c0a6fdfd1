//! HTTP/2 on both sides, as curl and h2load see it and frame by frame.

mod clients;
mod servers;
mod messages;

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

/// Begins to stream small messages, all that a window holds, as soon as the request is there.
fn stream_messages(conn: &mut Conn, stream: u32) {
    conn.send(frame(HEADERS, END_HEADERS, stream, &[0x88]));
    conn.send(messages(stream, 3_000));
}
