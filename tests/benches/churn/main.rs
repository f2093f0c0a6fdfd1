//! The cost to requests of servers that come, go and change weight: failures, the slowest hundredth, CPU, and how soon a change
//! shows.
//!
//! ```text
//! cargo bench -p tests --bench churn                       # each module at 1,000 and 10,000 members: 12 minutes
//! cargo bench -p tests --bench churn -- 1000 maglev        # this module at so many members
//! cargo bench -p tests --bench churn -- 1000 peers         # HAProxy's runtime API and Envoy's EDS by file, where installed
//! cargo bench -p tests --bench churn -- long               # 100,000 changes without a rest: memory, descriptors, series
//! ```
//!
//! HAPROXY and ENVOY in the environment name other programs than those on the search path.
//!
//! This one program is supervisor and worker, too. Servers have addresses of their own in 127.0.0.0/8. First the proxy is
//! measured as fast as it goes, which warms it. Then requests come as a Poisson process at half of that, whether or not those
//! before were answered, in turns without and with changes. A change is 30 % an added server, 30 % a removed one, 40 % another
//! weight, always of a server for which it is one; the next follows [`GAP`] after the one before was answered, or at once where
//! that took longer. Then single changes follow each other at rest. The clients, the servers and the proxy share the cores.
#![allow(clippy::unwrap_used, reason = "a benchmark that unwraps fails, as it should")]

mod changes;
mod load;
mod long;
mod peers;
mod servers;
mod site;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tests::artifacts::release_modules;
use trylist::supervisor::{self, Options};
use trylist::worker::process;

use crate::changes::{Changes, Seen};
use crate::peers::{Envoy, Haproxy};
use crate::servers::Servers;
use crate::site::{Site, Trylist, builder, cpu};

const MEMBERS: [usize; 2] = [1_000, 10_000];
const MODULES: [&str; 4] = ["round_robin", "least_request", "ring_hash", "maglev"];
const ROUNDS: usize = 5;
const TURN: Duration = Duration::from_secs(4);
const GAP: Duration = Duration::from_millis(100);
/// Single changes at rest, and how long nothing changes before each.
const SINGLE: usize = 20;
const REST: Duration = Duration::from_millis(400);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["worker", ..] => return process::run().map_err(drop).unwrap(),
        ["run", file] => {
            let options = Options { config: file.into(), log_level: Some("warn".to_owned()) };
            return supervisor::run(options).map_err(drop).unwrap();
        }
        _ => {}
    }
    // `cargo test --all-targets` runs this too, but timing in a debug build says nothing.
    if !arguments.iter().any(|argument| argument == "--bench") {
        println!("a benchmark: run it by `cargo bench -p tests --bench churn`");
        return;
    }
    let named = |id: &str| arguments.iter().any(|argument| argument == id);
    let modules = release_modules();
    let file =
        |id: &str| modules.iter().find(|(known, _)| known == id).map(|(_, file)| file.clone()).unwrap();
    if named("long") {
        return long::run(&file("round_robin"));
    }
    let counts: Vec<usize> = arguments.iter().filter_map(|argument| argument.parse().ok()).collect();
    let counts = if counts.is_empty() { MEMBERS.to_vec() } else { counts };
    let chosen: Vec<&str> = MODULES.into_iter().filter(|id| named(id)).collect();
    let with_peers = named("peers");
    println!("{HEAD}");
    for n in counts {
        for id in if chosen.is_empty() && !with_peers { MODULES.to_vec() } else { chosen.clone() } {
            churn(&format!("`{id}`"), n, |servers| trylist(id, &file(id), servers, n));
        }
        if with_peers {
            for balance in ["leastconn", "random"] {
                if Haproxy::is_installed() {
                    churn(&format!("HAProxy {balance}"), n, |servers| Haproxy::start(balance, servers, n));
                } else {
                    println!("skipped: no haproxy here");
                }
            }
            if Envoy::is_installed() {
                churn("Envoy LEAST_REQUEST", n, |servers| Envoy::start(servers, n));
            } else {
                println!("skipped: no envoy here");
            }
        }
    }
}

const HEAD: &str = "\
| balancer | members | requests/s | failed | changes/s | p99 without | p99 with | median ratio | CPU a change | answered under load: p50, p99 \
| single change answered: p50, p99 | added: first request, p50, p99 | removed: last request after the command | RSS before | after |
|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|";

/// Threads of a proxy: a worker may hold an idle connection to each member on each of them, and descriptors are bounded.
fn threads(n: usize) -> usize {
    if n > 4_000 { 1 } else { 2 }
}

fn trylist(id: &str, module: &Path, servers: &Servers, n: usize) -> Trylist {
    let keyed = if id.contains("hash") || id == "maglev" { "key = \"path\"" } else { "" };
    Trylist::start(&builder(id, module, servers, n).threads(threads(n)).in_cluster(keyed))
}

/// Measures one proxy, and prints its row.
fn churn<S: Site>(name: &str, n: usize, start: impl FnOnce(&Servers) -> S) {
    let servers = Servers::start(2 * n);
    let mut site = start(&servers);
    let rate = load::capacity(site.address(), TURN) / 2.0;
    let (mut changes, mut seen) = (Changes::new(n), Seen::default());
    let before = site.rss();
    let (mut failed, mut quiet, mut busy) = (0, Vec::new(), Vec::new());
    let mut spent = 0.0;
    for round in 0..ROUNDS {
        let at = cpu(site.process());
        let still = load::open_loop(site.address(), rate, TURN, round as u64);
        let without = cpu(site.process()) - at;
        let is_over = AtomicBool::new(false);
        let (address, process) = (site.address(), site.process());
        let at = cpu(process);
        let with = thread::scope(|scope| {
            let churn = scope.spawn(|| {
                let begun = Instant::now();
                while !is_over.load(Ordering::Relaxed) {
                    let at = Instant::now();
                    changes.make(&mut site, &servers, &mut seen);
                    thread::sleep(GAP.saturating_sub(at.elapsed()));
                }
                seen.took += begun.elapsed();
            });
            let with = load::open_loop(address, rate, TURN, round as u64);
            is_over.store(true, Ordering::Relaxed);
            churn.join().unwrap();
            with
        });
        spent += cpu(process) - at - without;
        failed += still.failed + with.failed;
        quiet.push(load::at(&still.times, 99));
        busy.push(load::at(&with.times, 99));
    }
    let (n_changes, after) = (seen.answered.len(), site.rss());
    let under_load = std::mem::take(&mut seen.answered);
    for _ in 0..SINGLE {
        thread::sleep(REST);
        changes.make(&mut site, &servers, &mut seen);
    }
    changes.settle(&servers, &mut seen);
    let mut ratios: Vec<f64> = quiet.iter().zip(&busy).map(|(a, b)| b / a).collect();
    println!(
        "| {name} | {n} | {rate:.0} | {failed} | {:.1} | {:.2} ms | {:.2} | {:.2} | {:.1} ms | {} | {} | {} | {:.1} ms at most | {before} MiB | {after} |",
        n_changes as f64 / seen.took.as_secs_f64(),
        load::middle(&mut quiet),
        load::middle(&mut busy),
        load::middle(&mut ratios),
        spent * 1e3 / n_changes as f64,
        load::spread(under_load),
        load::spread(seen.answered),
        load::spread(seen.added),
        seen.removed.iter().max().map_or(f64::NAN, |time| time.as_secs_f64() * 1e3),
    );
}
