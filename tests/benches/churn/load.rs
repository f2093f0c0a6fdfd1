//! Clients: as fast as it goes, and at a rate of their own.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use lb_api::Rng;
use tests::client::Client;

/// Requests at once, at most.
const CLIENTS: usize = 64;

/// The requests of an open loop.
pub(crate) struct Loaded {
    /// From when each was to be sent to its answer; sorted.
    pub(crate) times: Vec<Duration>,
    pub(crate) failed: usize,
}

/// Requests that are answered in a second, as fast as they go.
pub(crate) fn capacity(address: SocketAddr, turn: Duration) -> f64 {
    let n = AtomicUsize::new(0);
    let until = Instant::now() + turn;
    let client = |seed: usize| {
        let (mut client, mut rng) = (Client::connect(address), Rng::new(seed as u64));
        while Instant::now() < until {
            assert_eq!(client.get(&path(&mut rng)).reply().status(), 200);
            n.fetch_add(1, Ordering::Relaxed);
        }
    };
    thread::scope(|scope| (0..CLIENTS / 4).for_each(|i| _ = scope.spawn(move || client(i))));
    n.into_inner() as f64 / turn.as_secs_f64()
}

/// Sends so many requests a second, whether or not those before were answered.
pub(crate) fn open_loop(address: SocketAddr, rate: f64, turn: Duration, seed: u64) -> Loaded {
    let mut rng = Rng::new(seed);
    let gaps =
        std::iter::repeat_with(|| -(1.0 - (rng.bits() >> 11) as f64 / (1_u64 << 53) as f64).ln() / rate);
    let times = gaps.scan(0.0, |at, gap| {
        *at += gap;
        Some(*at)
    });
    let arrivals: Vec<Duration> =
        times.take_while(|at| *at < turn.as_secs_f64()).map(Duration::from_secs_f64).collect();
    let (next, n_failed) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let begin = Instant::now() + Duration::from_millis(100);
    let client = |seed: usize| {
        let (mut client, mut times) = (Client::connect(address), Vec::new());
        let mut rng = Rng::new(seed as u64);
        loop {
            let Some(at) = arrivals.get(next.fetch_add(1, Ordering::Relaxed)) else { return times };
            let due = begin + *at;
            thread::sleep(due.saturating_duration_since(Instant::now()));
            if client.get(&path(&mut rng)).reply().status() != 200 {
                n_failed.fetch_add(1, Ordering::Relaxed);
            }
            times.push(due.elapsed());
        }
    };
    let client = &client;
    let mut times: Vec<Duration> = thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|i| scope.spawn(move || client(i))).collect();
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    });
    times.sort_unstable();
    Loaded { times, failed: n_failed.into_inner() }
}

fn path(rng: &mut Rng) -> String {
    format!("/{}", rng.below(100_000))
}

/// The time in milliseconds that so many of 100 do not exceed.
pub(crate) fn at(sorted: &[Duration], percent: usize) -> f64 {
    let idx = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(idx).map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
}

/// Median and 99th percentile, as a cell of the table.
pub(crate) fn spread(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    format!("{:.1}, {:.1} ms", at(&times, 50), at(&times, 99))
}

/// The median.
pub(crate) fn middle(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
