//! Everything at once, for as long as `TRYLIST_SOAK` says: `TRYLIST_SOAK=60s cargo test -p tests --test scenarios -- soak::`.
//!
//! A reload each second, a server that comes and goes, clients that keep connections, make new ones, upload and download;
//! nobody reads the log; and a third of the way through, the worker that serves is stopped for twelve seconds. Only requests
//! that the stopped worker had may fail.

use std::io::Write as _;
use std::net::SocketAddr;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::Signal;
use tests::eventually;
use tests::origin::{Conn, Origin};
use tests::proxy::Proxy;
use tests::site::{Folder, signal, spoken};
use tests::stream::Stream;
use trylist::process::control::{self, Command, ControlReply, GenerationStatus};

/// How long the worker is stopped.
const STOPPED: Duration = Duration::from_secs(12);

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// 64 KiB for `/large`, and else a word; takes any body.
fn origin() -> impl Fn(&mut Conn) + Send + Sync + 'static {
    |conn: &mut Conn| {
        while let Some(request) = conn.request() {
            let n = if request.line().contains("/large") { 64 * 1024 } else { 4 };
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {n}\r\n\r\n");
            conn.send([head.as_bytes(), &vec![b'x'; n]].concat());
        }
    }
}

fn serving(folder: &Folder) -> Option<GenerationStatus> {
    let mut found = None;
    let take = |reply| {
        if let ControlReply::Status(status) = reply {
            found = Some(*status);
        }
    };
    control::ask(&folder.socket(), &Command::Status, take).ok()?;
    found?.generations.into_iter().rfind(|generation| generation.state == "serving")
}

/// The results that clients have seen.
#[derive(Default)]
struct Seen {
    is_over: AtomicBool,
    /// Requests that end while the worker is stopped, or shortly afterwards, count as its.
    is_stopped: AtomicBool,
    served: AtomicUsize,
    failed: std::sync::Mutex<Vec<String>>,
    failed_while_stopped: AtomicUsize,
}

fn client(seen: &Seen, address: SocketAddr, number: usize) {
    let requests = [
        "GET / HTTP/1.1\r\nHost: soak\r\n\r\n".to_owned(),
        "GET /large HTTP/1.1\r\nHost: soak\r\n\r\n".to_owned(),
        format!("PUT /up HTTP/1.1\r\nHost: soak\r\nContent-Length: 20000\r\n\r\n{}", "y".repeat(20_000)),
    ];
    let mut kept: Option<Stream> = None;
    for n in 0.. {
        if seen.is_over.load(Ordering::SeqCst) {
            return;
        }
        let was_stopped = seen.is_stopped.load(Ordering::SeqCst);
        let request = &requests[(n + number) % requests.len()];
        let what = match ask(kept.take(), address, request) {
            Ok(stream) => {
                seen.served.fetch_add(1, Ordering::SeqCst);
                // Half of the clients make a connection for each request.
                kept = stream.filter(|_| number.is_multiple_of(2));
                continue;
            }
            Err(what) => what,
        };
        if was_stopped || seen.is_stopped.load(Ordering::SeqCst) {
            seen.failed_while_stopped.fetch_add(1, Ordering::SeqCst);
        } else {
            seen.failed.lock().unwrap().push(what);
        }
    }
}

/// The connection, if it stays open.
fn ask(kept: Option<Stream>, address: SocketAddr, request: &str) -> Result<Option<Stream>, String> {
    let connect = || std::net::TcpStream::connect(address).map(Stream::new);
    let mut stream = kept.map_or_else(connect, Ok).map_err(|error| format!("no connection: {error}"))?;
    if !stream.send(request) {
        return Err("a connection takes no request".into());
    }
    let method = request.split(' ').next().unwrap();
    let reply = stream.read_response(method).map_err(|end| format!("{end:?}: {}", &request[..10]))?;
    match (reply.status(), reply.cut) {
        (200, None) => Ok(Some(stream).filter(|_| reply.header("connection") != Some("close"))),
        (status, cut) => Err(format!("{status} {}, {cut:?}", reply.text())),
    }
}

/// A server that is there half of the time: nobody listens at its address otherwise.
fn flap(seen: &Seen, at: SocketAddr) {
    while !seen.is_over.load(Ordering::SeqCst) {
        let there = Origin::listening(at, origin());
        std::thread::sleep(Duration::from_millis(700));
        drop(there);
        std::thread::sleep(Duration::from_millis(700));
    }
}

#[test]
fn nothing_is_lost_whatever_goes_on() {
    let Some(time) =
        std::env::var("TRYLIST_SOAK").ok().and_then(|text| text.trim_end_matches('s').parse().ok())
    else {
        return println!("skipped: TRYLIST_SOAK is not set (60s takes a minute)");
    };
    let time = Duration::from_secs(time);
    let steady = [(); 3].map(|()| Origin::serving(origin()));
    let flapping = { Origin::serving(origin()).address() };
    let urls = steady.iter().map(Origin::url).chain([format!("http://{flapping}")]);
    let text = Proxy::over_urls(urls)
        .named("app")
        .module("round_robin")
        .threads(2)
        .top("[supervision]\nmax_draining = 64")
        .route("path = \"/\"\nretry = { on = [\"reset\"], tries = 4, methods = [\"GET\", \"PUT\"], buffer = \"64KiB\" }")
        .text();
    let folder = Folder::with(&text);
    let (_reader, mut writer) = std::io::pipe().unwrap();
    let flags = fcntl_getfl(&writer).unwrap();
    fcntl_setfl(&writer, flags | OFlags::NONBLOCK).unwrap();
    while writer.write(&[b'\n'; 4096]).is_ok() {}
    fcntl_setfl(&writer, flags).unwrap();
    let _child = Killed(folder.run().stdout(Stdio::null()).stderr(writer).spawn().unwrap());
    eventually("a generation that serves", || serving(&folder));
    let mut address = None;
    control::ask(&folder.socket(), &Command::Status, |reply| {
        if let ControlReply::Status(status) = reply {
            address = status.listeners[0].parse().ok();
        }
    })
    .unwrap();
    let address: SocketAddr = address.unwrap();
    let seen = Arc::<Seen>::default();
    let mut reloads = 0;
    std::thread::scope(|scope| {
        for number in 0..8 {
            let seen = &seen;
            scope.spawn(move || client(seen, address, number));
        }
        scope.spawn(|| flap(&seen, flapping));
        let begun = Instant::now();
        let mut stopped: Option<(u32, Instant)> = None;
        let mut has_stopped = false;
        while begun.elapsed() < time || stopped.is_some() {
            std::thread::sleep(Duration::from_secs(1));
            if !has_stopped && begun.elapsed() > time / 3 {
                has_stopped = true;
                let worker = serving(&folder).unwrap().pid;
                seen.is_stopped.store(true, Ordering::SeqCst);
                signal(worker, Signal::STOP);
                stopped = Some((worker, Instant::now()));
            }
            if let Some((worker, _)) = stopped.filter(|(_, at)| at.elapsed() > STOPPED) {
                // It may have been given up.
                let _ = std::panic::catch_unwind(|| signal(worker, Signal::CONT));
                std::thread::sleep(Duration::from_secs(2));
                seen.is_stopped.store(false, Ordering::SeqCst);
                stopped = None;
            }
            let (code, said, complained) = spoken(&folder.command("reload", &[]));
            if code == Some(0) {
                reloads += 1;
            } else if stopped.is_none() {
                panic!("reload: {said}{complained}");
            }
        }
        seen.is_over.store(true, Ordering::SeqCst);
    });
    let failed = seen.failed.lock().unwrap();
    println!(
        "{} requests served, {reloads} reloads, {} failed while a worker was stopped",
        seen.served.load(Ordering::SeqCst),
        seen.failed_while_stopped.load(Ordering::SeqCst)
    );
    assert!(failed.is_empty(), "{} failed: {:?}", failed.len(), &failed[..failed.len().min(20)]);
}
