//! One server with a limit, at three times what it can do: how many requests are served, and how quickly, by each order of the
//! queue.
//!
//! `cargo bench -p tests --bench overload`. The server takes [`SERVICE`] for a request and has one at a time. Requests come as
//! a Poisson process, whether or not those before were answered, and a request's time counts from the moment at which it was to
//! be sent. Times are so long that a busy machine, or a build without optimization, changes little.
#![allow(clippy::unwrap_used, reason = "a benchmark that unwraps fails, as it should")]

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use lb_api::Rng;
use tests::client::Client;
use tests::origin::Origin;
use tests::proxy::Proxy;

const SERVICE: Duration = Duration::from_millis(10);
/// Three times what the server can do in a second.
const RATE: f64 = 300.0;
const SECONDS: f64 = 10.0;
/// The first do not count: the queue is filling.
const WARM_UP: Duration = Duration::from_secs(2);
/// Requests at once, at most: more than ever wait in a second.
const CLIENTS: usize = 512;

fn main() {
    // `cargo test --all-targets` runs this too, but it has no opinion.
    if !std::env::args().any(|arg| arg == "--bench") {
        println!("a benchmark: run it by `cargo bench -p tests --bench overload`");
        return;
    }
    println!("| queue | served in a second | p50 | p90 | p99 of those served | refused after (p50) |");
    println!("|---|---|---|---|---|---|");
    for (name, keys) in [
        ("`fifo`", "queue_order = \"fifo\""),
        ("`lifo`", "queue_order = \"lifo\""),
        ("`fifo`, `queue = 20`", "queue_order = \"fifo\"\nqueue = 20"),
        ("`lifo`, `queue = 20`", "queue_order = \"lifo\"\nqueue = 20"),
    ] {
        let origin = Origin::serving(|conn| {
            while conn.request().is_some() {
                thread::sleep(SERVICE);
                if !conn.send("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na") {
                    break;
                }
            }
        });
        let builder = Proxy::over([&origin]).server(0, "max_requests = 1").threads(2);
        let proxy = builder.in_cluster(keys).start();
        report(name, &load(proxy.address()));
    }
}

/// When requests are to be sent, from the beginning.
fn arrivals() -> Vec<Duration> {
    let mut rng = Rng::new(7);
    let gaps =
        std::iter::repeat_with(move || -(1.0 - (rng.bits() >> 11) as f64 / (1_u64 << 53) as f64).ln() / RATE);
    let times = gaps.scan(0.0, |at, gap| {
        *at += gap;
        Some(*at)
    });
    times.take_while(|at| *at < SECONDS).map(Duration::from_secs_f64).collect()
}

/// How long each request took that counts, and whether it was served.
fn load(address: SocketAddr) -> Vec<(Duration, bool)> {
    let (arrivals, next) = (arrivals(), AtomicUsize::new(0));
    let begin = Instant::now() + Duration::from_millis(200);
    let client = || {
        let (mut client, mut times) = (Client::connect(address), Vec::new());
        loop {
            let Some(at) = arrivals.get(next.fetch_add(1, Ordering::Relaxed)) else { return times };
            let due = begin + *at;
            thread::sleep(due.saturating_duration_since(Instant::now()));
            let is_served = client.get("/").reply().status() == 200;
            if *at > WARM_UP {
                times.push((due.elapsed(), is_served));
            }
        }
    };
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(client)).collect();
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    })
}

fn report(name: &str, times: &[(Duration, bool)]) {
    let sorted = |served| {
        let mut times: Vec<_> = times.iter().filter(|(_, is)| *is == served).map(|(time, _)| *time).collect();
        times.sort_unstable();
        times
    };
    let at = |times: &[Duration], percent: usize| {
        times.get(times.len() * percent / 100).map_or(0.0, |time| time.as_secs_f64() * 1e3)
    };
    let (served, refused) = (sorted(true), sorted(false));
    let rate = served.len() as f64 / (SECONDS - WARM_UP.as_secs_f64());
    println!(
        "| {name} | {rate:.0} | {:.0} ms | {:.0} | {:.0} | {:.0} ms |",
        at(&served, 50),
        at(&served, 90),
        at(&served, 99),
        at(&refused, 50)
    );
}
