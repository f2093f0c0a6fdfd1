//! Four servers, one of them slow, under load: how long requests take by every module, and by nginx and HAProxy in the
//! same run.
//!
//! `cargo bench -p tests --bench slow_server`. A server works on [`WORKERS`] requests at once, each for its service time,
//! and others wait: three take 5 ms, one 50 ms. Requests come as a Poisson process, the same for all, whether or not those
//! before were answered, and a request's time counts from the moment at which it was to be sent: waiting for a slow
//! server hides no request behind it. The times are so long that what a proxy itself costs hardly shows, and timers wait
//! rather than work, so that a busy machine changes little.
#![allow(clippy::unwrap_used, reason = "a benchmark that unwraps fails, as it should")]

use std::fmt::Write as _;
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use lb_api::Rng;
use tests::artifacts::release_modules;
use tests::client::Client;
use tests::nginx::Nginx;
use tests::origin::Origin;
use tests::proxy::Proxy;

const SERVICE: [Duration; 4] =
    [Duration::from_millis(5), Duration::from_millis(5), Duration::from_millis(5), Duration::from_millis(50)];
/// Requests that a server works on at once: the slow one can do 80 in a second, the others 800.
const WORKERS: usize = 4;
/// Requests in a second: few, so that a busy machine serves them in time too. A quarter of them keeps the slow server busy
/// to 63 %.
const RATE: f64 = 200.0;
/// The first do not count: connections are made, and modules that learn know nothing yet.
const WARM_UP: usize = 400;
const REQUESTS: usize = 2400;
/// Requests at once, at most: more than ever wait, or the load would not be what it says.
const CLIENTS: usize = 96;

/// Module, its settings, and what to call it.
type Way = (String, &'static str, String);

fn main() {
    // `cargo test --all-targets` runs this too, but it takes minutes and has no opinion.
    if !std::env::args().any(|arg| arg == "--bench") {
        println!("a benchmark: run it by `cargo bench -p tests --bench slow_server`");
        return;
    }
    let origins = SERVICE.map(server);
    let arrivals = arrivals();
    println!("| by | p50 | p90 | p99 | to the slow server |\n|---|---|---|---|---|");
    for (module, file) in release_modules() {
        for (module, settings, name) in ways(&module) {
            let builder = Proxy::over(&origins).module_file(&module, &file).threads(2);
            let proxy = builder.in_cluster("key = \"query:k\"").in_cluster(settings).start();
            report(&name, proxy.address(), &arrivals);
        }
    }
    for (name, how) in [
        ("nginx round robin", ""),
        ("nginx least_conn", "least_conn;"),
        ("nginx random two", "random two least_conn;"),
    ] {
        let Some(program) = Nginx::program() else { break };
        let servers = origins.iter().map(|origin| format!("server {} max_fails=0;\n", origin.address()));
        let nginx = Nginx::start(program, &format!("{how}\n{}", servers.collect::<String>()));
        report(name, nginx.address(), &arrivals);
    }
    for (name, how) in [
        ("HAProxy roundrobin", "roundrobin"),
        ("HAProxy leastconn", "leastconn"),
        ("HAProxy random(2)", "random(2)"),
    ] {
        let Some(haproxy) = Haproxy::start(how, &origins) else {
            println!("haproxy is not installed here");
            break;
        };
        report(name, haproxy.address, &arrivals);
    }
}

/// A module with each of its settings that changes whom it chooses.
fn ways(module: &str) -> Vec<Way> {
    let own = (module.to_owned(), "", format!("`{module}`"));
    let more = match module {
        "least_request" => Some(("settings = { choices = \"all\" }", "`least_request`, `choices = \"all\"`")),
        "ring_hash" => Some(("settings = { balance_factor = 125 }", "`ring_hash`, `balance_factor = 125`")),
        "least_time" => Some(("settings = { inflight = true }", "`least_time`, `inflight = true`")),
        // Ten seconds without reports would be half of the run.
        "backend_load" => {
            return vec![(
                module.to_owned(),
                "settings = { blackout = \"500ms\", update = \"200ms\" }",
                "`backend_load`, `blackout = \"500ms\"`".to_owned(),
            )];
        }
        _ => None,
    };
    [own]
        .into_iter()
        .chain(more.map(|(settings, name)| (module.to_owned(), settings, name.to_owned())))
        .collect()
}

/// When requests are to be sent, from the beginning.
fn arrivals() -> Vec<Duration> {
    let (mut rng, mut at) = (Rng::new(7), 0.0);
    let gap = |rng: &mut Rng| -(1.0 - (rng.bits() >> 11) as f64 / (1_u64 << 53) as f64).ln() / RATE;
    let mut next = || {
        at += gap(&mut rng);
        Duration::from_secs_f64(at)
    };
    (0..WARM_UP + REQUESTS).map(|_| next()).collect()
}

/// A server that works on so many requests at once. It says how busy it is, for who listens.
fn server(service: Duration) -> Origin {
    let work = Arc::new((Mutex::new(0_usize), Condvar::new()));
    let is_slow = service > SERVICE[0];
    Origin::serving(move |conn| {
        while conn.request().is_some() {
            let (busy, freed) = &*work;
            let guard = busy.lock().unwrap_or_else(PoisonError::into_inner);
            let mut guard =
                freed.wait_while(guard, |busy| *busy >= WORKERS).unwrap_or_else(PoisonError::into_inner);
            *guard += 1;
            let n_busy = *guard;
            drop(guard);
            thread::sleep(service);
            *busy.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
            freed.notify_one();
            let utilization = n_busy as f64 / WORKERS as f64;
            let rate = n_busy as f64 / service.as_secs_f64();
            let reply = format!(
                "HTTP/1.1 200 OK\r\nendpoint-load-metrics: TEXT application_utilization={utilization},rps_fractional={rate}\r\n\
                 Content-Length: 1\r\n\r\n{}",
                if is_slow { 's' } else { 'q' }
            );
            if !conn.send(reply) {
                break;
            }
        }
    })
}

fn report(name: &str, address: SocketAddr, arrivals: &[Duration]) {
    // It may still be starting.
    Client::connect(address).get("/").reply();
    let (mut times, n_slow) = load(address, arrivals);
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)].as_secs_f64() * 1e3;
    let share = n_slow as f64 * 100.0 / times.len() as f64;
    println!("| {name} | {:.1} ms | {:.1} | {:.1} | {share:.1} % |", at(50), at(90), at(99));
}

/// How long each request took that counts, and how many the slow server got of them.
fn load(address: SocketAddr, arrivals: &[Duration]) -> (Vec<Duration>, usize) {
    let next = AtomicUsize::new(0);
    let begin = Instant::now() + Duration::from_millis(100);
    let client = || {
        let (mut client, mut times, mut n_slow) = (Client::connect(address), Vec::new(), 0);
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let Some(at) = arrivals.get(i) else { return (times, n_slow) };
            let due = begin + *at;
            thread::sleep(due.saturating_duration_since(Instant::now()));
            let reply = client.get(&format!("/?k={i}")).reply();
            if i >= WARM_UP {
                times.push(due.elapsed());
                n_slow += usize::from(reply.body == b"s");
            }
        }
    };
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(client)).collect();
        clients.into_iter().map(|client| client.join().unwrap()).fold(
            (Vec::new(), 0),
            |(mut all, n), (times, n_slow)| {
                all.extend(times);
                (all, n + n_slow)
            },
        )
    })
}

/// A running HAProxy with one thread; ended when dropped.
struct Haproxy {
    child: Child,
    address: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Haproxy {
    fn start(balance: &str, origins: &[Origin]) -> Option<Self> {
        let program = ["haproxy", "/usr/sbin/haproxy"]
            .into_iter()
            .find(|program| Command::new(program).arg("-v").stdout(Stdio::null()).status().is_ok())?;
        let folder = tempfile::tempdir().unwrap();
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let mut text = format!(
            "global\n nbthread 1\ndefaults\n mode http\n timeout client 30s\n timeout server 30s\n timeout connect 5s\n \
             http-reuse always\nfrontend f\n bind fd@0\n default_backend b\nbackend b\n balance {balance}\n"
        );
        for (i, origin) in origins.iter().enumerate() {
            let _ = writeln!(text, " server s{i} {}", origin.address());
        }
        let file = folder.path().join("haproxy.cfg");
        fs::write(&file, text).unwrap();
        let child = Command::new(program)
            .args(["-db", "-f"])
            .arg(&file)
            .stdin(OwnedFd::from(socket))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Some(Self { child, address, _folder: folder })
    }
}

impl Drop for Haproxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
