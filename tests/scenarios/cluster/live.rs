//! Servers come, go and change weight while requests run: nothing is lost, nothing is cut, and no generation begins.

mod changes;
mod bad;
mod long;

use std::collections::BTreeSet;

use tests::client::Client;
use tests::origin::{Conn, Origin};
use tests::proxy::{Builder, Proxy};
use tests::site::{Site, spoken};
use tests::{Gate, eventually};
use trylist::process::control::ServerOrder;

/// In front of these servers, with a cluster named `app` whose changes do not wait for each other.
fn over<'a>(origins: impl IntoIterator<Item = &'a Origin>) -> Builder {
    Proxy::over(origins).named("app").module("round_robin").threads(2).in_cluster("settle = \"0s\"")
}

/// The answer of `trylist server` to this change: exit code, stdout and stderr.
fn act(site: &Site, url: &str, change: &[&str]) -> (Option<i32>, String, String) {
    spoken(&site.folder().command("server", &[&["app", url], change].concat()))
}

/// Changes this server; the change is in use when this returns.
#[track_caller]
fn change(site: &Site, url: &str, change: &str) {
    let (code, said, complained) = act(site, url, &change.split(' ').collect::<Vec<_>>());
    assert_eq!((code, complained.as_str()), (Some(0), ""), "{change}: {said}");
    assert!(said.ends_with(" from now on\n"), "{change}: {said}");
}

/// Gives this order; it is in use when this returns.
#[track_caller]
fn order(site: &Site, url: &str, order: ServerOrder) {
    order_in(site, "app", url, order);
}

#[track_caller]
fn order_in(site: &Site, cluster: &str, url: &str, order: ServerOrder) {
    let said = site.order(cluster, url, order);
    assert!(said.as_ref().is_ok_and(|said| said.ends_with(" from now on")), "{order:?}: {said:?}");
}

/// The one line of a refused change.
#[track_caller]
fn refused(site: &Site, url: &str, change: &[&str]) -> String {
    let (code, said, complained) = act(site, url, change);
    assert_eq!(
        (code, said.as_str(), complained.lines().count()),
        (Some(1), "", 1),
        "{change:?}: {complained}"
    );
    complained.trim_end().to_owned()
}

/// Names of the servers that answer so many requests, each once, in order.
fn who_answers(site: &Site, n: usize) -> Vec<String> {
    let mut names: Vec<_> = site.names(n).split(' ').map(str::to_owned).collect();
    names.sort();
    names.dedup();
    names
}

/// These servers answer, each of them, and no other. Beside other requests one round may leave out any of them.
#[track_caller]
fn answer(site: &Site, names: &[&str]) {
    let mut seen = BTreeSet::new();
    eventually(&format!("an answer of each of {names:?}"), || {
        seen.extend(who_answers(site, 9));
        assert!(seen.iter().all(|name| names.contains(&name.as_str())), "{names:?}, not {seen:?}");
        (seen.len() == names.len()).then_some(())
    });
}

/// Tries of all servers of the cluster, those that have left included.
fn tries(site: &Site) -> f64 {
    let metrics = site.admin("/metrics").text();
    let tries = metrics.lines().filter(|line| line.starts_with("trylist_tries_total{cluster=\"app\""));
    tries.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}

#[track_caller]
fn every_counter_adds_up(site: &Site, n_sent: usize) {
    let requests = "trylist_requests_total{cluster=\"app\",code=\"200\"}";
    let outcomes = "trylist_outcomes_total{cluster=\"app\",outcome=\"served\"}";
    for series in [requests, outcomes] {
        eventually(series, || (site.metric(series) == n_sent as f64).then_some(()));
    }
    eventually("all tries", || (tries(site) == n_sent as f64).then_some(()));
}

const HALF: usize = 1 << 20;

/// Answers with its name, but `/tunnel` by switching to an echo, and `/download` by one half, and the other when the gate opens.
fn lasting(name: &'static str, gate: &Gate) -> Origin {
    let gate = gate.clone();
    Origin::serving(move |conn| {
        while let Some(request) = conn.request() {
            if request.line().contains("/tunnel") {
                return echo(conn);
            }
            if request.line().contains("/download") {
                conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", 2 * HALF));
                conn.send(vec![b'1'; HALF]);
                gate.wait();
                conn.send(vec![b'2'; HALF]);
            } else {
                conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len()));
            }
        }
    })
}

/// Switches, and says what it gets again until the client ends.
fn echo(conn: &mut Conn) {
    conn.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
    loop {
        let byte = conn.bytes(1);
        if byte.is_empty() || !conn.send(byte) {
            return;
        }
    }
}

/// A client that has switched.
#[track_caller]
fn tunnel(site: &Site, path: &str) -> Client {
    let mut client = site.connect();
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
    let reply = client.send(format!("GET {path} HTTP/1.1\r\nHost: test\r\n{upgrade}\r\n")).reply_head();
    assert_eq!(reply.status(), 101);
    client
}

#[track_caller]
fn lives(tunnel: &mut Client) {
    assert_eq!(tunnel.send("alive?").bytes(6), b"alive?");
}

/// A client that has half of its download.
#[track_caller]
fn download(site: &Site, path: &str) -> Client {
    let mut client = site.connect();
    assert_eq!(client.get(path).reply_head().status(), 200);
    assert!(client.bytes(HALF).iter().all(|byte| *byte == b'1'));
    client
}

#[track_caller]
fn has_the_rest(download: &mut Client) {
    assert!(download.bytes(HALF).iter().all(|byte| *byte == b'2'));
}

/// How long a test is: what this variable says, or this.
fn long_or(variable: &str, short: usize) -> usize {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(short)
}
