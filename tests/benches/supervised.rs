//! The cost of supervision for a request: a worker under its supervisor, with its crumbs, its reports and its watchdog, beside the
//! same worker in a process of its own that nobody watches.
//!
//! ```text
//! cargo bench -p tests --bench supervised            # 20 rounds
//! cargo bench -p tests --bench supervised -- 60      # more of them
//! ```
//!
//! All are this one program, so that they differ in nothing else. They take turns of a second under the same load, each with
//! one thread on the first processor, the clients and the server on another. A figure is the processor time, of all threads
//! and of the supervisor too, over the requests answered in the turn. A second worker that nobody watches says what the
//! figures of two equal ones differ by: what is not more than that is not measurable here.
//!
//! Whatever else the machine does, instructions can be counted, which no processor time is fine enough to show. By hand, with a
//! configuration of one listener and one thread, `module_time_limit = "1h"`, and two counts of requests on one kept connection,
//! whose difference is that of requests alone:
//!
//! ```text
//! WORKER_UNDER='valgrind --tool=callgrind --callgrind-out-file=watched.%p' target/release/deps/supervised-HASH run site.toml
//! valgrind --tool=callgrind --callgrind-out-file=alone.%p target/release/deps/supervised-HASH alone site.toml
//! ```
//! Valgrind knows too little of the supervisor's system calls (pidfd_open) to run that too.
#![allow(clippy::unwrap_used, reason = "a benchmark that unwraps fails, as it should")]

use std::fs;
use std::io::Read as _;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use tests::artifacts::release_modules;
use tests::client::Client;
use tests::eventually;
use tests::origin::Origin;
use tests::proxy::Proxy;
use tests::stream::Stream;
use trylist::config::{self, Syntax};
use trylist::supervisor::{self, Options};
use trylist::worker::{Worker, process};

/// Connections of clients, each with a request under way at any time.
const CLIENTS: usize = 16;
const TURN: Duration = Duration::from_secs(1);
const ROUNDS: usize = 20;

/// A proxy in processes of its own.
struct Contender {
    name: &'static str,
    process: Child,
    address: SocketAddr,
    /// Nanoseconds of each turn's requests.
    costs: Vec<f64>,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["worker", ..] => return watched(),
        ["run", file] => {
            stay_on(0);
            let options = Options { config: file.into(), log_level: Some("warn".to_owned()) };
            return supervisor::run(options).map_err(drop).unwrap();
        }
        ["alone", file] => return alone(Path::new(file)),
        _ => {}
    }
    // `cargo test --all-targets` runs this too, but timing in a debug build says nothing.
    if !arguments.iter().any(|argument| argument == "--bench") {
        println!("a benchmark: run it by `cargo bench -p tests --bench supervised`");
        return;
    }
    let n_rounds = arguments.iter().find_map(|argument| argument.parse().ok()).unwrap_or(ROUNDS);
    stay_on(1);
    let origin = Origin::named("a");
    let module = release_modules().into_iter().find(|(id, _)| id == "round_robin").unwrap().1;
    let folder = tempfile::tempdir().unwrap();
    let mut contenders =
        [("alone", "alone"), ("supervised", "run"), ("alone again", "alone")].map(|(name, how)| {
            let builder = Proxy::over([&origin]).module_file("round_robin", &module).threads(1);
            Contender::start(name, how, &builder.text(), folder.path())
        });
    for _ in 0..n_rounds {
        for contender in &mut contenders {
            contender.turn();
        }
    }
    let [alone, supervised, again] = &contenders;
    println!("{:12} {:>16} {:>24}", "", "us of a request", "to that of \"alone\"");
    for contender in [alone, supervised, again] {
        let mut ratios: Vec<f64> = contender.costs.iter().zip(&alone.costs).map(|(a, b)| a / b).collect();
        let (low, middle, high) = (rank(&mut ratios, 10), rank(&mut ratios, 50), rank(&mut ratios, 90));
        let cost = rank(&mut contender.costs.clone(), 50) / 1000.0;
        println!("{:12} {cost:16.2} {middle:10.3} ({low:.3} to {high:.3})", contender.name);
    }
    println!("medians of {n_rounds} turns; in brackets where four of five lie");
}

/// The supervisor's worker, by this program or by what is to watch it closer.
fn watched() {
    let Ok(under) = std::env::var("WORKER_UNDER") else { return process::run().map_err(drop).unwrap() };
    let mut words = under.split_whitespace();
    let mut command = Command::new(words.next().unwrap());
    command.args(words).arg(std::env::current_exe().unwrap()).args(std::env::args_os().skip(1));
    panic!("{under}: {}", command.env_remove("WORKER_UNDER").exec());
}

/// A worker that nobody watches, until its standard input ends.
fn alone(file: &Path) {
    stay_on(0);
    let text = fs::read_to_string(file).unwrap();
    let config =
        config::parse(file.to_str().unwrap(), &text, Syntax::Toml).map_err(|e| println!("{e}")).unwrap().0;
    let worker = Worker::start(Arc::new(config)).map_err(|e| println!("{e}")).unwrap();
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    drop(worker);
}

/// Has this thread, and all that come of it, run on one processor; where there is only one, on that.
fn stay_on(nth: usize) {
    let allowed = sched_getaffinity(None).unwrap();
    let mut all = (0..CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu));
    if let Some(cpu) = all.nth(nth) {
        let mut one = CpuSet::new();
        one.set(cpu);
        sched_setaffinity(None, &one).unwrap();
    }
}

impl Contender {
    fn start(name: &'static str, how: &str, text: &str, folder: &Path) -> Self {
        let port = free_port();
        let stem = name.replace(' ', "-");
        let file = folder.join(format!("{stem}.toml"));
        let text = text.replacen("127.0.0.1:0", &format!("127.0.0.1:{port}"), 1);
        let control = format!("control = {:?}\n", folder.join(format!("{stem}.sock")));
        fs::write(&file, control + &text).unwrap();
        let process = Command::new(std::env::current_exe().unwrap())
            .args([how, file.to_str().unwrap()])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        eventually("a proxy that listens", || Client::try_connect(address).ok());
        Self { name, process, address, costs: Vec::new() }
    }

    fn turn(&mut self) {
        let pid = self.process.id();
        let (is_over, n_requests) = (AtomicBool::new(false), AtomicU64::new(0));
        let before = processor_ns(pid);
        thread::scope(|scope| {
            for _ in 0..CLIENTS {
                scope.spawn(|| {
                    let mut client = Stream::new(TcpStream::connect(self.address).unwrap());
                    while !is_over.load(Ordering::Relaxed) {
                        client.send("GET / HTTP/1.1\r\nHost: bench\r\n\r\n");
                        assert_eq!(client.read_response("GET").unwrap().status(), 200);
                        n_requests.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            thread::sleep(TURN);
            is_over.store(true, Ordering::Relaxed);
        });
        let ns = processor_ns(pid) - before;
        self.costs.push(ns as f64 / n_requests.into_inner() as f64);
    }
}

impl Drop for Contender {
    fn drop(&mut self) {
        // A supervisor takes its workers along.
        let pid = rustix::process::Pid::from_child(&self.process);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.process.wait();
    }
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Processor time of a process and its children, dead threads not counted.
fn processor_ns(pid: u32) -> u64 {
    let mut sum = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let read = |name: &str| fs::read_to_string(task.path().join(name)).unwrap_or_default();
        sum += read("schedstat").split(' ').next().and_then(|ns| ns.parse::<u64>().ok()).unwrap_or_default();
        sum += read("children")
            .split_whitespace()
            .map(|child| processor_ns(child.parse().unwrap()))
            .sum::<u64>();
    }
    sum
}

/// The value below which so many in a hundred lie.
fn rank(values: &mut [f64], percent: usize) -> f64 {
    values.sort_by(f64::total_cmp);
    values[(values.len() - 1) * percent / 100]
}
