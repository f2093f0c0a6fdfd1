//! The host's own work for every module: limits of servers and the queue before them,
//! tiers, states, slow start, sessions.

mod limits;
mod turns;
mod tiers;
mod states;
mod sessions;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use lb_api::wire::{STATE_AVAILABLE, STATE_DOWN, STATE_DRAINING, STATE_EJECTED};
use tests::artifacts;
use tests::client::Client;
use tests::journal::Journal;
use tests::origin::Origin;
use tests::proxy::{Builder, Proxy};
use tests::{Gate, eventually};
use trylist::cluster::health::HealthSource;

/// A module of ours, and the further settings of its clusters. The host does the same with each of them, whether it reads
/// limits, states, weights, times, keys or nothing.
struct Case {
    module: String,
    keys: &'static str,
}

/// All modules; those that hash keys of the request once with a key, which is the path, and once with none that is there.
fn all_modules() -> impl Iterator<Item = Case> {
    artifacts::module_ids().into_iter().flat_map(|module| {
        let keys: &[&str] = match module.as_str() {
            "hash" | "maglev" | "rendezvous" | "ring_hash" => &["key = \"path\"", "key = \"header:x-none\""],
            // With another that asks for keys, no proxy starts.
            _ => &[""],
        };
        keys.iter().map(move |keys| Case { module: module.clone(), keys })
    })
}

impl Case {
    fn over<'a>(&self, origins: impl IntoIterator<Item = &'a Origin>) -> Builder {
        Proxy::over(origins).module(&self.module).in_cluster(self.keys)
    }

    /// Whether requests of one client for one path, one after the other, come to all servers of a tier.
    fn spreads(&self) -> bool {
        let stays = matches!(self.module.as_str(), "first" | "ip_hash" | "least_time" | "peak_ewma");
        !stays && self.keys != "key = \"path\""
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.module, self.keys)
    }
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// A client whose request has reached this server, which holds it.
#[track_caller]
fn busy_client(proxy: &Proxy, origin: &Origin, path: &str) -> Client {
    let n_before = origin.requests().len();
    let mut client = proxy.connect();
    client.get(path);
    origin.wait_for_requests(n_before + 1);
    client
}

/// A client whose request waits in the queue, in which so many wait now.
#[track_caller]
fn waiting_client(proxy: &Proxy, path: &str, n_waiting: usize) -> Client {
    let mut client = proxy.connect();
    client.get(path);
    proxy.wait_for_queue(n_waiting);
    client
}

/// Clients whose requests come one after the other. The first one is held by this server, the others wait.
#[track_caller]
fn line_up<const N: usize>(proxy: &Proxy, origin: &Origin, paths: [&str; N]) -> [Client; N] {
    let mut n = 0;
    paths.map(|path| {
        n += 1;
        if n == 1 { busy_client(proxy, origin, path) } else { waiting_client(proxy, path, n - 1) }
    })
}

/// The paths of a server's requests, in their order.
fn paths_of(origin: &Origin) -> Vec<String> {
    let path = |line: &str| line.split(' ').nth(1).unwrap_or_default().to_owned();
    origin.requests().iter().map(|request| path(request.line())).collect()
}
