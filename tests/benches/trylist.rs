//! The cost of one trylist: `load_balance`, one `next`, `finish` and `drop`, through a real `.so` as the host calls it.
//!
//! ```text
//! cargo bench -p tests --bench trylist                      # every module
//! cargo bench -p tests --bench trylist -- hash least_time   # modules with one of these in their name
//! cargo bench -p tests --bench trylist -- target/x/liba.so  # a module's file, anybody's
//! cargo bench -p tests --bench trylist -- --watched         # with crumbs, as in a worker that a supervisor watches
//! ```
//!
//! Every request has a key and a client of its own, so that no table is looked at in the same place twice in a row. Nothing
//! is in flight where the line says `equal` or `1 to 5`, which are weights: all endpoints are tied then, and that is the
//! most work there is for those who look at all. `busy` has weights of 1 to 5, and 0 to 15 requests in flight on each.
//!
//! A figure is the best of many rounds of a millisecond, half of them on one thread and half on two, in turns: on a busy
//! machine some are undisturbed. "Calls of two" is how often two threads on one balancer call it in the time of one
//! thread's call: 2 if they share nothing, and no more than the last line says of two threads with a balancer each, since
//! they share a machine. `build` is processor time, of the best of ten. Figures of one run are comparable; those of two
//! machines, or of two days, are not.
#![allow(unsafe_code, reason = "the calls of a request take raw pointers, as in the host's own guard")]

use std::ffi::c_void;
use std::hint::{black_box, spin_loop};
use std::mem::MaybeUninit;
use std::path::Path;
use std::ptr;
use std::sync::atomic::Ordering::{AcqRel, Acquire};
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use lb_api::{Rng, wire};
use rustix::time::{ClockId, clock_gettime};
use tests::artifacts::{c_module, release_modules};
use trylist::config::{Place, Setting, SettingValue};
use trylist::module::Module;
use trylist::module::balancer::{Balancer, BuildInput, EndpointInput, ModuleScope};
use trylist::module::board::{Board, take_place};
use trylist::module::load::inspect;
use trylist::module::wire::address;

const SIZES: [u16; 3] = [3, 100, 10_000];
/// Less than a scheduler's slice, so that most rounds are not interrupted.
const ROUND: Duration = Duration::from_millis(1);
/// So many rounds without a better one end a measurement, and so many in all.
const ROUNDS_IN_VAIN: usize = 60;
const MOST_ROUNDS: usize = 600;
const BUILDS: usize = 10;

fn main() {
    // `cargo test --all-targets` runs this too, but timing in a debug build says nothing.
    if !std::env::args().any(|arg| arg == "--bench") {
        println!("a benchmark: run it by `cargo bench -p tests --bench trylist`");
        return;
    }
    let is_watched = std::env::args().any(|arg| arg == "--watched");
    let board = is_watched.then(|| &*Box::leak(Box::new(Board::create(2).expect("memory"))));
    board.inspect(|board| take_place(board, 0));
    let asked: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    println!(
        "{:19}{:7}{:^24}   {:^24}   {:^18}{:>10}",
        "", "", "ns on one thread", "ns on two threads", "calls of two", "build, ms"
    );
    let sizes = "       3     100  10,000";
    println!("{:19}{:7}{sizes}   {sizes}   {:>18}{:>10}", "module", "load", "3   100  10,000", "10,000");
    let subjects = subjects(&asked);
    for subject in &subjects {
        for load in LOADS {
            let cells = SIZES.map(|n| {
                let balancer = subject.build(&Servers::new(n, load));
                measure([&balancer, &balancer], n, board)
            });
            line(&subject.name, load.name, &cells, subject.build_ms(load));
        }
    }
    // The most that this machine can give: nothing is shared, and nothing written.
    if let Some(random) = subjects.iter().find(|subject| subject.name == "random") {
        let cells = SIZES.map(|n| {
            let servers = Servers::new(n, LOADS[0]);
            measure([&random.build(&servers), &random.build(&servers)], n, board)
        });
        line("random, one each", LOADS[0].name, &cells, random.build_ms(LOADS[0]));
    }
}

fn line(name: &str, load: &str, cells: &[Cell; 3], build_ms: f64) {
    print!("{name:19}{load:7}");
    cells.iter().for_each(|cell| print!("{:>8.1}", cell.one));
    print!("   ");
    cells.iter().for_each(|cell| print!("{:>8.1}", cell.two));
    print!("   ");
    cells.iter().for_each(|cell| print!("{:>6.2}", 2.0 * cell.one / cell.two));
    println!("{build_ms:>10.2}");
}

/// A measured line: a module with some settings.
struct Subject {
    name: String,
    module: Arc<Module>,
    settings: Vec<Setting>,
}

/// Settings that make another algorithm, or another size, of a module.
fn variant(id: &str) -> Option<(&'static str, &'static str, SettingValue)> {
    match id {
        "least_request" => Some(("all", "choices", SettingValue::String("all".into()))),
        "least_time" => Some(("inflight", "inflight", SettingValue::Boolean(true))),
        "ring_hash" => Some(("bounded", "balance_factor", SettingValue::Integer(125))),
        // A hundred slots for each of 10,000 endpoints.
        "maglev" => Some(("large", "table_size", SettingValue::Integer(1_000_003))),
        _ => None,
    }
}

fn subjects(asked: &[String]) -> Vec<Subject> {
    let (files, words): (Vec<_>, Vec<_>) = asked.iter().partition(|asked| asked.ends_with(".so"));
    let mut subjects: Vec<_> =
        files.into_iter().flat_map(|file| Subject::all(file, Path::new(file))).collect();
    if !words.is_empty() || subjects.is_empty() {
        let ours = release_modules().into_iter().chain([("c_example".to_owned(), c_module())]);
        let ours = ours.flat_map(|(id, file)| Subject::all(&id, &file));
        subjects.extend(
            ours.filter(|it| words.is_empty() || words.iter().any(|word| it.name.contains(word.as_str()))),
        );
    }
    subjects
}

impl Subject {
    /// The module in this file, plain and in its variant.
    fn all(name: &str, file: &Path) -> Vec<Self> {
        let module = inspect(file).unwrap_or_else(|error| panic!("{error}"));
        let setting = |path: &str, value| Setting {
            path: path.into(),
            value,
            place: Place { file: "bench".into(), line: 1 },
        };
        let mut all = vec![Self { name: name.to_owned(), module: Arc::clone(&module), settings: Vec::new() }];
        if let Some((suffix, path, value)) = variant(module.id()) {
            let settings = vec![setting(path, value)];
            all.push(Self { name: format!("{name} {suffix}"), module, settings });
        }
        all
    }

    fn build(&self, servers: &Servers) -> Balancer {
        let endpoints: Vec<_> = (0..servers.names.len()).map(|idx| servers.endpoint(idx)).collect();
        let input = BuildInput {
            endpoints: &endpoints,
            state: servers.state,
            settings: &self.settings,
            previous: None,
            saved: None,
        };
        Balancer::build(&ModuleScope::new(&self.module, "bench", Some(0), 0), input)
            .unwrap_or_else(|error| panic!("{error}"))
    }

    /// Milliseconds of the best of some builds of 10,000 endpoints.
    fn build_ms(&self, load: Load) -> f64 {
        let servers = Servers::new(10_000, load);
        let build = |_| {
            // Of the processor: a build is longer than a scheduler's slice, and others may want one too.
            let start = clock_gettime(ClockId::ThreadCPUTime);
            let balancer = self.build(&servers);
            let end = clock_gettime(ClockId::ThreadCPUTime);
            drop(balancer);
            (end.tv_sec - start.tv_sec) as f64 * 1e3 + (end.tv_nsec - start.tv_nsec) as f64 / 1e6
        };
        (0..BUILDS).map(build).fold(f64::INFINITY, f64::min)
    }
}

/// The load of a line's endpoints.
#[derive(Clone, Copy)]
struct Load {
    name: &'static str,
    weight: fn(usize) -> u16,
    most_in_flight: u64,
}

const LOADS: [Load; 3] = [
    Load { name: "equal", weight: |_| 1, most_in_flight: 0 },
    Load { name: "1 to 5", weight: |idx| 1 + (idx % 5) as u16, most_in_flight: 0 },
    Load { name: "busy", weight: |idx| 1 + (idx % 5) as u16, most_in_flight: 15 },
];

/// A cluster of so many servers.
struct Servers {
    names: Vec<String>,
    urls: Vec<String>,
    load: Load,
    counters: &'static [Slot],
    state: &'static wire::ClusterState,
}

impl Servers {
    fn new(n: u16, load: Load) -> Self {
        let names: Vec<_> = (0..n).map(|idx| format!("10.1.{}.{}", idx / 250, idx % 250)).collect();
        let mut rng = Rng::new(1);
        let weights = (0..names.len()).map(load.weight);
        Self {
            urls: names.iter().map(|name| format!("http://{name}:8080")).collect(),
            counters: counters(weights, || rng.below(load.most_in_flight + 1) as u32),
            names,
            load,
            state: Box::leak(Box::new(wire::ClusterState {
                size: size_of::<wire::ClusterState>() as u32,
                n_available: AtomicU32::new(n.into()),
                epoch: AtomicU64::new(1),
            })),
        }
    }

    fn endpoint(&self, idx: usize) -> EndpointInput<'_> {
        EndpointInput {
            id: idx as u64,
            url: &self.urls[idx],
            name: &self.names[idx],
            port: 8080,
            address: self.names[idx].parse().ok(),
            weight: (self.load.weight)(idx),
            metadata: &[],
            counters: &self.counters[idx].0,
        }
    }
}

/// A cache line for each endpoint, one after the other, as the host and its allocator have them.
fn counters(weights: impl Iterator<Item = u16>, mut in_flight: impl FnMut() -> u32) -> &'static [Slot] {
    let slot = |weight: u16| {
        Slot(wire::Counters {
            size: size_of::<wire::Counters>() as u32,
            state: AtomicU32::new(wire::STATE_AVAILABLE),
            effective_weight: AtomicU32::new(u32::from(weight) << 16),
            in_flight: AtomicU32::new(in_flight()),
            in_flight_older: AtomicU32::new(0),
            max_in_flight: AtomicU32::new(0),
            latency_ns: AtomicU64::new(0),
        })
    };
    weights.map(slot).collect::<Vec<_>>().leak()
}

#[repr(align(64))]
struct Slot(wire::Counters);

/// Nanoseconds of a trylist: on one thread, and on each of two that make them at the same time.
struct Cell {
    one: f64,
    two: f64,
}

/// Each thread calls its own of these balancers, which may be the same.
fn measure([first, second]: [&Balancer; 2], n_endpoints: u16, board: Option<&'static Board>) -> Cell {
    let mut caller = Caller::new(first, n_endpoints, 1);
    let count = caller.fill(ROUND);
    let starting = AtomicUsize::new(0);
    // Both begin at the same moment: threads that run one after the other must not look as if they ran at once.
    let meet = |round: usize| {
        starting.fetch_add(1, AcqRel);
        while starting.load(Acquire) < 2 * round {
            spin_loop();
        }
    };
    let (go, rounds) = mpsc::channel();
    let (done, spans) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(move || {
            board.inspect(|board| take_place(board, 1));
            let mut caller = Caller::new(second, n_endpoints, 2);
            for round in rounds {
                meet(round);
                done.send(caller.trylists(count)).expect("the other thread waits for it");
            }
        });
        let (mut one, mut two) = (Duration::MAX, Duration::MAX);
        let mut in_vain = 0;
        for round in 1..=MOST_ROUNDS {
            let alone = caller.trylists(count);
            go.send(round).expect("the other thread waits for it");
            meet(round);
            let spans = [caller.trylists(count), spans.recv().expect("the other thread goes on")];
            let together = spans[0].end.max(spans[1].end) - spans[0].start.min(spans[1].start);
            in_vain = if alone.end - alone.start < one || together < two { 0 } else { in_vain + 1 };
            (one, two) = (one.min(alone.end - alone.start), two.min(together));
            if in_vain == ROUNDS_IN_VAIN {
                break;
            }
        }
        // Ends the other thread.
        drop(go);
        let [one, two] = [one, two].map(|best| best.as_nanos() as f64 / count as f64);
        Cell { one, two }
    })
}

/// When a thread made its trylists.
struct Span {
    start: Instant,
    end: Instant,
}

/// A request's own storage for its trylist.
#[repr(C, align(16))]
struct Storage(MaybeUninit<[u8; wire::TRYLIST_IN_PLACE]>);

/// A thread that makes trylists.
struct Caller<'a> {
    balancer: &'a Balancer,
    n_endpoints: u16,
    keys: Vec<[u8; 20]>,
    /// Trylists made so far.
    made: u64,
    random: u64,
}

impl<'a> Caller<'a> {
    fn new(balancer: &'a Balancer, n_endpoints: u16, seed: u64) -> Self {
        assert!(balancer.module().trylist().size <= wire::TRYLIST_IN_PLACE, "larger ones are not measured");
        let mut rng = Rng::new(seed);
        // More places than a near cache holds.
        let keys = (0..1 << 14).map(|_| {
            let key = format!("session-{:012x}", rng.bits() >> 16);
            key.as_bytes().try_into().expect("of 20 bytes")
        });
        Self { balancer, n_endpoints, keys: keys.collect(), made: 0, random: seed }
    }

    /// How many trylists take about so long.
    fn fill(&mut self, time: Duration) -> u64 {
        let mut count = 16;
        loop {
            let spans = [(); 3].map(|()| self.trylists(count));
            let best = spans.into_iter().map(|span| span.end - span.start).min();
            if best.is_none_or(|best| 2 * best > time) {
                return count;
            }
            count *= 2;
        }
    }

    fn trylists(&mut self, count: u64) -> Span {
        let text = |text: &'static str| wire::Str { ptr: text.as_ptr(), len: text.len() };
        let mut request = wire::Request {
            size: size_of::<wire::Request>() as u32,
            preferred: wire::NO_ENDPOINT,
            method: text("GET"),
            scheme: text("http"),
            authority: text("example.org"),
            path: text("/snoop"),
            query: wire::Str { ptr: ptr::null(), len: 0 },
            client: address(Some(([127, 0, 0, 1], 40_000).into())),
            key: text(""),
            headers: ptr::null(),
            n_headers: 0,
        };
        let mut cx = wire::NextCx {
            size: size_of::<wire::NextCx>() as u32,
            n_tries: 0,
            now_ns: 0,
            random: 0,
            tried: ptr::null(),
            n_tried_words: 0,
            request: ptr::null(),
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
        let mut sum = 0;
        let start = Instant::now();
        for _ in 0..count {
            self.made += 1;
            // Knuth's multiplier; the modules mix the bits themselves.
            self.random = self.random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            let key = &self.keys[self.made as usize % self.keys.len()];
            request.key = wire::Str { ptr: key.as_ptr(), len: key.len() };
            request.client.bytes[..4].copy_from_slice(&((self.random >> 32) as u32).to_ne_bytes());
            cx.now_ns = 1_000 * self.made;
            cx.random = self.random;
            cx.request = &raw const request;
            answer.kind = 0;
            // SAFETY: the storage is large and aligned enough (asserted in `new`), stays where it is, and holds nothing yet;
            // the calls are those of one trylist in their order, and `request` and the key live until its drop.
            let done = unsafe {
                self.balancer
                    .load_balance(&raw const request, trylist)
                    .and_then(|()| self.balancer.next(trylist, &cx, &mut answer))
                    .and_then(|()| self.balancer.finish(trylist, &outcome))
                    .and_then(|()| self.balancer.drop_trylist(trylist))
            };
            let is_endpoint = answer.kind == wire::NEXT_ENDPOINT && answer.endpoint < self.n_endpoints.into();
            assert!(done.is_ok() && is_endpoint);
            sum += u64::from(answer.endpoint);
        }
        let end = Instant::now();
        black_box(sum);
        Span { start, end }
    }
}
