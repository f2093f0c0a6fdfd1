//! What it costs requests that servers come, go and change weight: failures, the slowest hundredth, and how soon a change shows.
//!
//! ```text
//! cargo bench -p tests --bench churn                       # 100 and 1,000 members, each module
//! cargo bench -p tests --bench churn -- 10000 maglev       # so many, this module
//! ```
//!
//! This one program is supervisor and worker, too. Servers have addresses of their own in 127.0.0.0/8. First the proxy is measured as
//! fast as it goes. Then requests come as a Poisson process at half of that, whether or not those before were answered, in turns
//! without and with changes. A change is 30 % an added server, 30 % a removed one, 40 % another weight, always of a server for which
//! it is one; the next follows [`GAP`] after the one before was answered, or at once where that took longer.
#![allow(clippy::unwrap_used, reason = "a benchmark that unwraps fails, as it should")]

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use lb_api::Rng;
use tests::artifacts::release_modules;
use tests::client::Client;
use tests::proxy::Proxy;
use tests::site::proc_status;
use tests::{eventually, proxy::Builder};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use trylist::process::control::{self, Command as Order, ControlReply, Exit, ServerOrder, Status};
use trylist::supervisor::{self, Options};
use trylist::worker::process;

const MEMBERS: [usize; 2] = [100, 1_000];
const MODULES: [&str; 4] = ["round_robin", "least_request", "ring_hash", "maglev"];
const ROUNDS: usize = 5;
const TURN: Duration = Duration::from_secs(4);
const GAP: Duration = Duration::from_millis(100);
/// Requests at once, at most.
const CLIENTS: usize = 64;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["worker", ..] => return process::run().map_err(drop).unwrap(),
        ["run", file] => {
            let options = Options { config: file.into(), log_level: "warn".to_owned() };
            return supervisor::run(options).map_err(drop).unwrap();
        }
        _ => {}
    }
    // `cargo test --all-targets` runs this too, but timing in a debug build says nothing.
    if !arguments.iter().any(|argument| argument == "--bench") {
        println!("a benchmark: run it by `cargo bench -p tests --bench churn`");
        return;
    }
    let counts: Vec<usize> = arguments.iter().filter_map(|argument| argument.parse().ok()).collect();
    let counts = if counts.is_empty() { MEMBERS.to_vec() } else { counts };
    let modules = release_modules();
    let named: Vec<&str> =
        MODULES.into_iter().filter(|id| arguments.iter().any(|argument| argument == id)).collect();
    println!(
        "| module | members | requests/s | failed | changes/s | p99 without | p99 with | median ratio | added: first request, \
         median and p99 | removed: last request after the answer | RSS before | after |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|---|");
    for id in if named.is_empty() { MODULES.to_vec() } else { named } {
        let file = &modules.iter().find(|(known, _)| known == id).unwrap().1;
        for n in &counts {
            churn(id, file, *n);
        }
    }
}

/// Servers at addresses of their own, and when each had its first and its last request since it was looked at.
struct Servers {
    port: u16,
    epoch: Instant,
    /// Microseconds since `epoch`; `u64::MAX` for none.
    first: Vec<AtomicU64>,
    last: Vec<AtomicU64>,
}

/// A proxy in processes of its own.
struct Site {
    supervisor: Child,
    folder: tempfile::TempDir,
    address: SocketAddr,
}

/// What changes showed.
#[derive(Default)]
struct Seen {
    n: usize,
    took: Duration,
    /// From the command to the first request.
    added: Vec<Duration>,
    /// From the answer to the last request; zero where that was before.
    removed: Vec<Duration>,
}

fn churn(id: &str, module: &Path, n: usize) {
    // Half of them are members at any time.
    let servers = Servers::start(2 * n);
    let builder = Proxy::over_urls((0..n).map(|i| servers.url(i))).named("app").module_file(id, module);
    let keyed = if id.contains("hash") || id == "maglev" { "key = \"path\"" } else { "" };
    let site = Site::start(&builder.threads(2).in_cluster(keyed));
    let capacity = capacity(site.address);
    let rate = capacity / 2.0;
    let (mut changes, mut seen) = (Changes::new(n), Seen::default());
    let rss = || proc_status(site.worker(), "VmRSS") / 1024;
    let before = rss();
    let (mut failed, mut quiet, mut busy) = (0, Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let still = load(site.address, rate, round as u64);
        let is_over = AtomicBool::new(false);
        let with = thread::scope(|scope| {
            let churn = scope.spawn(|| {
                let begun = Instant::now();
                while !is_over.load(Ordering::Relaxed) {
                    let at = Instant::now();
                    changes.make(&site, &servers, &mut seen);
                    thread::sleep(GAP.saturating_sub(at.elapsed()));
                }
                seen.took += begun.elapsed();
            });
            let with = load(site.address, rate, round as u64);
            is_over.store(true, Ordering::Relaxed);
            churn.join().unwrap();
            with
        });
        failed += still.1 + with.1;
        quiet.push(at(&still.0, 99));
        busy.push(at(&with.0, 99));
    }
    changes.settle(&servers, &mut seen);
    let mut ratios: Vec<f64> = quiet.iter().zip(&busy).map(|(a, b)| b / a).collect();
    ratios.sort_by(f64::total_cmp);
    seen.added.sort_unstable();
    seen.removed.sort_unstable();
    println!(
        "| `{id}` | {n} | {rate:.0} | {failed} | {:.1} | {:.2} ms | {:.2} | {:.2} | {:.1}, {:.1} ms | {:.1} ms at most | {before} MiB | {} |",
        seen.n as f64 / seen.took.as_secs_f64(),
        middle(&quiet),
        middle(&busy),
        ratios[ratios.len() / 2],
        at(&seen.added, 50),
        at(&seen.added, 99),
        at(&seen.removed, 100),
        rss()
    );
}

/// Who is a member, and what changes next.
struct Changes {
    rng: Rng,
    members: Vec<usize>,
    others: Vec<usize>,
    weights: Vec<u16>,
    /// Added, and without a request when last looked at: index, and when it was commanded.
    awaited: Vec<(usize, u64)>,
    /// Removed, and when that was answered.
    gone: Vec<(usize, u64)>,
}

impl Changes {
    fn new(n: usize) -> Self {
        Self {
            rng: Rng::new(16),
            members: (0..n).collect(),
            others: (n..2 * n).collect(),
            weights: vec![1; 2 * n],
            awaited: Vec::new(),
            gone: Vec::new(),
        }
    }

    fn make(&mut self, site: &Site, servers: &Servers, seen: &mut Seen) {
        self.look(servers, seen);
        let mut pick = |n: usize| self.rng.below(n as u64) as usize;
        let kind = pick(10);
        let (server, order) = match kind {
            0..3 => (self.others.swap_remove(pick(self.others.len())), ServerOrder::Add),
            3..6 => (self.members.swap_remove(pick(self.members.len())), ServerOrder::Remove),
            _ => {
                let server = self.members[pick(self.members.len())];
                self.weights[server] = self.weights[server] % 8 + 1;
                (server, ServerOrder::Weight(self.weights[server]))
            }
        };
        if order == ServerOrder::Add {
            self.gone.retain(|(gone, _)| *gone != server);
            servers.first[server].store(u64::MAX, Ordering::Relaxed);
            self.awaited.push((server, servers.now()));
            self.members.push(server);
        }
        let url = servers.url(server);
        let order = Order::Server { cluster: "app".into(), url, order, for_s: None };
        let mut said = String::new();
        let exit = control::ask(&site.socket(), &order, |reply| said += &format!("{reply:?} ")).unwrap();
        assert_eq!(exit, Exit::Done, "{said}");
        seen.n += 1;
        if (3..6).contains(&kind) {
            self.awaited.retain(|(awaited, _)| *awaited != server);
            self.gone.push((server, servers.now()));
            self.others.push(server);
            // One that comes back has the configuration's weight or that of its last change; both are in use again.
        }
    }

    fn look(&mut self, servers: &Servers, seen: &mut Seen) {
        self.awaited.retain(|(server, since)| {
            let first = servers.first[*server].load(Ordering::Relaxed);
            if first != u64::MAX {
                seen.added.push(Duration::from_micros(first.saturating_sub(*since)));
            }
            first == u64::MAX
        });
        // A second is more than the last try could be late.
        let now = servers.now();
        let is_due = |gone: &mut (usize, u64)| now > gone.1 + 1_000_000;
        for (server, since) in self.gone.extract_if(.., is_due) {
            let last = servers.last[server].load(Ordering::Relaxed);
            seen.removed.push(Duration::from_micros(last.saturating_sub(since)));
        }
    }

    fn settle(&mut self, servers: &Servers, seen: &mut Seen) {
        thread::sleep(Duration::from_millis(1_100));
        self.look(servers, seen);
    }
}

impl Servers {
    fn start(n: usize) -> Arc<Self> {
        let std_listener = std::net::TcpListener::bind((Self::ip(0), 0)).unwrap();
        let port = std_listener.local_addr().unwrap().port();
        drop(std_listener);
        let none = || (0..n).map(|_| AtomicU64::new(u64::MAX)).collect();
        let last = (0..n).map(|_| AtomicU64::new(0)).collect();
        let servers = Arc::new(Self { port, epoch: Instant::now(), first: none(), last });
        let all = Arc::clone(&servers);
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                for i in 0..all.first.len() {
                    let listener = TcpListener::bind((Self::ip(i), port)).await.unwrap();
                    tokio::spawn(Arc::clone(&all).serve(i, listener));
                }
                std::future::pending::<()>().await;
            });
        });
        let is_up = || std::net::TcpStream::connect((Self::ip(n - 1), port)).ok();
        eventually("the servers", is_up);
        servers
    }

    async fn serve(self: Arc<Self>, i: usize, listener: TcpListener) {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(Arc::clone(&self).answer(i, stream));
        }
    }

    async fn answer(self: Arc<Self>, i: usize, mut stream: TcpStream) {
        let mut head = [0; 4096];
        // The proxy sends a head without a body in one piece.
        while let Ok(1..) = stream.read(&mut head).await {
            let now = self.now();
            self.first[i].fetch_min(now, Ordering::Relaxed);
            self.last[i].fetch_max(now, Ordering::Relaxed);
            if stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na").await.is_err() {
                return;
            }
        }
    }

    fn ip(i: usize) -> Ipv4Addr {
        let [_, _, high, low] = u32::try_from(i % 65_536).unwrap().to_be_bytes();
        Ipv4Addr::new(127, 1, high, low)
    }

    fn url(&self, i: usize) -> String {
        format!("http://{}:{}", Self::ip(i), self.port)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_micros()).unwrap()
    }
}

impl Site {
    fn start(builder: &Builder) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("site.toml");
        let socket = folder.path().join("site.sock");
        std::fs::write(&file, format!("control = {socket:?}\n{}", builder.text())).unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        let supervisor = command.arg("run").arg(&file).stdin(Stdio::null()).spawn().unwrap();
        let mut site = Self { supervisor, folder, address: SocketAddr::from(([127, 0, 0, 1], 0)) };
        site.address = eventually("a worker that serves", || {
            let status = site.status()?;
            let serves = status.generations.iter().any(|generation| generation.state == "serving");
            status.listeners.first().filter(|_| serves)?.parse().ok()
        });
        site
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("site.sock")
    }

    fn status(&self) -> Option<Status> {
        let mut found = None;
        let take = |reply| {
            if let ControlReply::Status(status) = reply {
                found = Some(*status);
            }
        };
        control::ask(&self.socket(), &Order::Status, take).ok()?;
        found
    }

    fn worker(&self) -> u32 {
        self.status().unwrap().generations.last().unwrap().pid
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = control::ask(&self.socket(), &Order::Stop, |_| ());
        let _ = self.supervisor.wait();
    }
}

/// Requests that are answered in a second, as fast as they go.
fn capacity(address: SocketAddr) -> f64 {
    let n = AtomicUsize::new(0);
    let until = Instant::now() + TURN;
    let client = |seed: usize| {
        let (mut client, mut rng) = (Client::connect(address), Rng::new(seed as u64));
        while Instant::now() < until {
            assert_eq!(client.get(&path(&mut rng)).reply().status(), 200);
            n.fetch_add(1, Ordering::Relaxed);
        }
    };
    thread::scope(|scope| (0..CLIENTS / 4).for_each(|i| _ = scope.spawn(move || client(i))));
    n.into_inner() as f64 / TURN.as_secs_f64()
}

fn path(rng: &mut Rng) -> String {
    format!("/{}", rng.below(100_000))
}

/// How long each request took, from when it was to be sent, and how many failed.
fn load(address: SocketAddr, rate: f64, seed: u64) -> (Vec<Duration>, usize) {
    let mut rng = Rng::new(seed);
    let gaps =
        std::iter::repeat_with(|| -(1.0 - (rng.bits() >> 11) as f64 / (1_u64 << 53) as f64).ln() / rate);
    let times = gaps.scan(0.0, |at, gap| {
        *at += gap;
        Some(*at)
    });
    let arrivals: Vec<Duration> =
        times.take_while(|at| *at < TURN.as_secs_f64()).map(Duration::from_secs_f64).collect();
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
    (times, n_failed.into_inner())
}

/// The time in milliseconds that so many of 100 do not exceed.
fn at(sorted: &[Duration], percent: usize) -> f64 {
    let idx = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(idx).map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
}

fn middle(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}
