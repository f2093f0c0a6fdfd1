//! What one trylist costs: `load_balance`, one `next`, `finish` and `drop`, through a real `.so` as the host calls it.
//!
//! `cargo bench -p tests --bench trylist`. Each figure is the best of many runs. On two threads it is what each of them
//! waits for one trylist while the other does the same: it would stay what it is on one if they shared nothing. Figures
//! of one run are comparable; those of two machines, or of two days, are not. With `-- --watched` the threads leave
//! crumbs, as they do in a worker that a supervisor watches.
#![allow(unsafe_code, reason = "the calls of a request take raw pointers, as in the host's own guard")]

use std::ffi::c_void;
use std::hint::black_box;
use std::mem::MaybeUninit;
use std::path::Path;
use std::ptr;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::time::Instant;

use lb_api::wire;
use tests::artifacts::release_modules;
use trylist::breadcrumb::{Board, take_place};
use trylist::module::balancer::{Balancer, BuildInput, Endpoint, address};
use trylist::module::load::inspect;

const ENDPOINTS: [u16; 3] = [3, 100, 10_000];
const THREADS: [usize; 2] = [1, 2];
/// Many short runs, of which the best counts: on a busy machine some are undisturbed.
const RUNS: usize = 60;
const TRYLISTS: u64 = 50_000;

fn main() {
    // `cargo test --all-targets` runs this too, but timing in a debug build says nothing.
    if !std::env::args().any(|arg| arg == "--bench") {
        println!("a benchmark: run it by `cargo bench -p tests --bench trylist`");
        return;
    }
    let is_watched = std::env::args().any(|arg| arg == "--watched");
    let board = is_watched.then(|| Board::create(THREADS.into_iter().max().unwrap_or(1)).expect("memory"));
    let board: Option<&'static Board> = board.map(|board| &*Box::leak(Box::new(board)));
    let watched = if is_watched { ", with crumbs" } else { "" };
    println!("ns per trylist: load_balance + next + finish + drop{watched}\n");
    println!("{:<16} {:<8} {:>9} {:>10} {:>10}", "module", "weights", "endpoints", "1 thread", "2 threads");
    for (id, file) in release_modules() {
        for (weights, weight_of) in WEIGHTS {
            for n in ENDPOINTS {
                let balancer = balancer(&file, n, weight_of);
                let [one, two] = THREADS.map(|threads| measure(&balancer, u32::from(n), threads, board));
                println!("{id:<16} {weights:<8} {n:>9} {one:>10.1} {two:>10.1}");
            }
        }
    }
}

/// The name of a set of weights, and the weight of each index.
type Weights = (&'static str, fn(u16) -> u16);

const WEIGHTS: [Weights; 2] = [("equal", |_| 1), ("1 to 5", |idx| 1 + idx % 5)];

fn balancer(file: &Path, n: u16, weight_of: fn(u16) -> u16) -> Balancer {
    let module = inspect(file).unwrap_or_else(|error| panic!("{error}"));
    let endpoints: Vec<_> = (0..n)
        .map(|idx| Endpoint {
            id: u64::from(idx),
            url: "http://127.0.0.1:9001",
            name: "127.0.0.1",
            port: 9001,
            address: Some([127, 0, 0, 1].into()),
            weight: weight_of(idx),
            metadata: &[],
            counters: counters(weight_of(idx)),
        })
        .collect();
    let state = Box::leak(Box::new(wire::ClusterState {
        size: size_of::<wire::ClusterState>() as u32,
        n_available: AtomicU32::new(n.into()),
        epoch: AtomicU64::new(1),
    }));
    let input = BuildInput {
        cluster: "bench",
        cluster_idx: Some(0),
        endpoints: &endpoints,
        state,
        settings: &[],
        previous: None,
        saved: None,
        fault_limit: 0,
    };
    Balancer::build(&module, input).unwrap_or_else(|error| panic!("{error}"))
}

fn counters(weight: u16) -> &'static wire::Counters {
    Box::leak(Box::new(wire::Counters {
        size: size_of::<wire::Counters>() as u32,
        state: AtomicU32::new(wire::STATE_AVAILABLE),
        effective_weight: AtomicU32::new(u32::from(weight) << 16),
        in_flight: AtomicU32::new(0),
        in_flight_older: AtomicU32::new(0),
        max_in_flight: AtomicU32::new(0),
        latency_ns: AtomicU64::new(0),
    }))
}

/// Nanoseconds of each thread for one trylist, in the best run.
fn measure(balancer: &Balancer, n_endpoints: u32, threads: usize, board: Option<&'static Board>) -> f64 {
    (0..RUNS).map(|_| run(balancer, n_endpoints, threads, board)).fold(f64::INFINITY, f64::min)
}

fn run(balancer: &Balancer, n_endpoints: u32, threads: usize, board: Option<&'static Board>) -> f64 {
    let start = Barrier::new(threads);
    let spans: Vec<(Instant, Instant)> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|i| {
                let start = &start;
                scope.spawn(move || {
                    if let Some(board) = board {
                        take_place(board, i);
                    }
                    let seed = i as u64;
                    // Not timed: fills caches, and makes a table where the module makes one at first use.
                    trylists(balancer, n_endpoints, seed, TRYLISTS / 20);
                    start.wait();
                    trylists(balancer, n_endpoints, seed, TRYLISTS)
                })
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().expect("no panic")).collect()
    });
    // From the first start to the last end: threads that ran one after the other must not look as if they ran at once.
    let first = spans.iter().map(|span| span.0).min();
    let last = spans.iter().map(|span| span.1).max();
    let elapsed = last.zip(first).map(|(last, first)| last - first);
    elapsed.unwrap_or_default().as_nanos() as f64 / TRYLISTS as f64
}

/// A request's own storage for its trylist.
#[repr(C, align(16))]
struct Storage(MaybeUninit<[u8; wire::TRYLIST_IN_PLACE]>);

fn trylists(balancer: &Balancer, n_endpoints: u32, seed: u64, count: u64) -> (Instant, Instant) {
    assert!(balancer.module().trylist().size <= wire::TRYLIST_IN_PLACE, "larger ones are not measured here");
    let text = |text: &'static str| wire::Str { ptr: text.as_ptr(), len: text.len() };
    let request = wire::Request {
        size: size_of::<wire::Request>() as u32,
        preferred: wire::NO_ENDPOINT,
        method: text("GET"),
        scheme: text("http"),
        authority: text("example.org"),
        path: text("/snoop"),
        query: wire::Str { ptr: ptr::null(), len: 0 },
        client: address(Some(([127, 0, 0, 1], 40_000).into())),
        key: text("127.0.0.1"),
        headers: ptr::null(),
        n_headers: 0,
    };
    // Filled in once: what the host puts into them for each request is the host's cost.
    let mut cx = wire::NextCx {
        size: size_of::<wire::NextCx>() as u32,
        n_tries: 0,
        now_ns: 0,
        random: seed,
        tried: ptr::null(),
        n_tried_words: 0,
        request: &raw const request,
    };
    let mut answer =
        wire::Answer { size: size_of::<wire::Answer>() as u32, kind: 0, endpoint: 0, reserved: 0 };
    let outcome = wire::Outcome {
        size: size_of::<wire::Outcome>() as u32,
        kind: wire::OUTCOME_SERVED,
        endpoint: 0,
        status: 200,
        n_tries: 1,
        reserved: 0,
        now_ns: 0,
        connect_ns: 0,
        first_byte_ns: 1_000,
        total_ns: 2_000,
        bytes_sent: 100,
        bytes_received: 1_000,
    };
    let mut storage = Storage(MaybeUninit::uninit());
    let trylist: *mut c_void = (&raw mut storage).cast();
    let mut sum = 0_u64;
    let start = Instant::now();
    for now_ns in 0..count {
        cx.now_ns = now_ns;
        // Knuth's multiplier; the modules mix the bits themselves.
        cx.random = cx.random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        answer.kind = 0;
        // SAFETY: the storage is large and aligned enough (asserted above), stays where it is, and holds nothing yet; the
        // calls are those of one trylist in their order, and `request` lives until its drop.
        let done = unsafe {
            balancer
                .load_balance(&raw const request, trylist)
                .and_then(|()| balancer.next(trylist, &cx, &mut answer))
                .and_then(|()| balancer.finish(trylist, &outcome))
                .and_then(|()| balancer.drop_trylist(trylist))
        };
        assert!(done.is_ok() && answer.kind == wire::NEXT_ENDPOINT && answer.endpoint < n_endpoints);
        sum += u64::from(answer.endpoint);
    }
    let end = Instant::now();
    black_box(sum);
    (start, end)
}
