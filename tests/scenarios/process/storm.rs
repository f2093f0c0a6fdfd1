//! Servers that die and return at random under many clients: every response is whole and right, or plainly broken, and
//! every failure is explained by a line of the access log.
//!
//! `TRYLIST_STORM=100000` makes it that many requests.

use std::collections::BTreeMap;
use std::fs;

use tests::origin::{Conn, Origin};
use tests::proxy::{Builder, Proxy};
use tests::tls::Authority;
use trylist::serve::drain::Idle;

use crate::cluster::ejection::{MOODS, Mood, Switch};
use crate::http::rubbish::Dice;

const CLIENTS: usize = 8;
const SERVERS: usize = 5;

fn n_requests() -> usize {
    let told = std::env::var("TRYLIST_STORM").ok().and_then(|text| text.parse().ok());
    told.unwrap_or(4_000) / CLIENTS
}

/// The body that a server sends for this path: up to 48 KiB, so that some is copied and some is spliced.
fn body_of(path: &str) -> Vec<u8> {
    let mut dice = Dice(path.bytes().fold(7, |seed, byte| seed * 31 + u64::from(byte)));
    let step = dice.below(250) + 1;
    (0..dice.below(48 * 1024)).map(|i| ((i * step) >> 3) as u8).collect()
}

fn server(switch: &Switch) -> Origin {
    let switch = switch.clone();
    Origin::serving(move |conn: &mut Conn| {
        while let Some(request) = conn.request() {
            let body = body_of(request.line().split(' ').nth(1).unwrap());
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
            match switch.get() {
                Mood::Well => {
                    conn.send([head.as_bytes(), &body].concat());
                }
                Mood::Answers503 => {
                    conn.send("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nbusy");
                }
                Mood::Hangs => {
                    conn.wait_for_end();
                    return;
                }
                Mood::Closes => return,
                Mood::ResetsInHead => {
                    conn.send(&head[..9]);
                    return conn.reset_on_close();
                }
                Mood::ResetsInBody => {
                    conn.send([head.as_bytes(), &body[..body.len() / 2]].concat());
                    return conn.reset_on_close();
                }
            }
        }
    })
}

/// The results of clients and those in the log, by one word for each.
type Seen = BTreeMap<String, usize>;

#[test]
fn every_response_is_right_or_explained() {
    let (seen, logged) = storm(|builder, log| (vec![], builder.tables(log).start()));
    assert_eq!(seen, logged);
}

/// Clients use a proxy of their own here, which speaks HTTP/2 over TLS with the one under the storm.
#[test]
fn so_is_every_one_by_http2_over_tls() {
    let (mut seen, mut logged) = storm(|builder, log| {
        let ca = Authority::new("ca");
        let tls = format!("tls = {{ certificates = [{}] }}", ca.issue(&["127.0.0.1"]).toml());
        let inner = builder.tables(log).listener(&tls).start();
        let front = Proxy::over_urls([format!("https://{}", inner.address())])
            .in_cluster("protocol = \"h2\"")
            .in_cluster(&format!("tls = {{ ca = {:?} }}", ca.path()))
            .threads(2)
            .start();
        (vec![inner], front)
    });
    // A stream's reset may overtake what was sent before it.
    let failed = |counts: &mut Seen| {
        let [broken, none] = ["broken", "bad gateway"].map(|word| counts.remove(word).unwrap_or_default());
        broken + none
    };
    assert_eq!(failed(&mut seen), failed(&mut logged));
    assert_eq!(seen, logged);
}

/// The results of clients and those in the log. `start` starts the proxy of the clients over this proxy, with this table for
/// its log. The proxies behind it come first.
fn storm(start: impl FnOnce(Builder, &str) -> (Vec<Proxy>, Proxy)) -> (Seen, Seen) {
    let switches = [(); SERVERS].map(|()| Switch::to(Mood::Well));
    let origins = switches.each_ref().map(server);
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("access.log");
    let builder = Proxy::over(&origins)
        .module("round_robin")
        .threads(2)
        .in_cluster("response_timeout = \"50ms\"")
        .in_cluster("ejection = { failures = 3, time = \"10ms\", statuses = \"gateway\" }")
        .in_cluster("health_check = { type = \"tcp\", interval = \"10ms\" }");
    let (behind, proxy) = start(builder, &format!("[access_log]\npath = {log:?}"));
    let mut seen = Seen::new();
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|i| {
                scope.spawn({
                    let (proxy, switches) = (&proxy, &switches);
                    move || client(proxy, switches, i)
                })
            })
            .collect();
        for client in clients {
            for (word, n) in client.join().unwrap() {
                *seen.entry(word).or_default() += n;
            }
        }
    });
    for proxy in [proxy].into_iter().chain(behind) {
        proxy.control().drain(Idle::Close);
        proxy.wait();
    }
    let text = fs::read_to_string(&log).unwrap();
    let mut logged = Seen::new();
    for line in text.lines() {
        *logged.entry(explained(line)).or_default() += 1;
    }
    assert!(seen["served"] > n_requests() * CLIENTS / 2 && seen.len() > 3, "{seen:?}");
    (seen, logged)
}

/// One client's requests, and what became of them.
fn client(proxy: &Proxy, switches: &[Switch], number: usize) -> Seen {
    let mut dice = Dice(number as u64);
    let mut seen = Seen::new();
    let mut client = proxy.connect();
    for i in 0..n_requests() {
        if dice.below(10) == 0 {
            // Twice as often well as anything else, or nobody would be.
            let mood = if dice.below(2) == 0 { Mood::Well } else { MOODS[dice.below(MOODS.len())] };
            switches[dice.below(switches.len())].set(mood);
        }
        let path = format!("/{number}/{i}");
        let reply = client.get(&path).reply();
        let word = match (reply.status(), reply.cut) {
            (200, None) => {
                assert!(reply.body == body_of(&path), "{path}: {} bytes", reply.body.len());
                "served"
            }
            (200, Some(_)) => {
                assert!(body_of(&path).starts_with(&reply.body), "{path}: {} bytes", reply.body.len());
                client = proxy.connect();
                "broken"
            }
            (503, None) if reply.text() == "busy" => "busy",
            (502, None) => "bad gateway",
            (503, None) => "no server",
            (504, None) => "timed out",
            (status, cut) => panic!("{path}: {status}, {cut:?}"),
        };
        *seen.entry(word.to_owned()).or_default() += 1;
        if reply.header("connection") == Some("close") {
            client = proxy.connect();
        }
    }
    seen
}

/// The result of a request in a line of the log, which must have a reason.
fn explained(line: &str) -> String {
    let after = |text: &str| line.split_once(text).unwrap_or_else(|| panic!("{text:?} in {line}")).1;
    let status = after(" HTTP/").split_once("\" ").unwrap().1.split(' ').next().unwrap();
    let tries = after("tries=\"").split('"').next().unwrap();
    let last = tries.rsplit(", ").next().unwrap().split(' ').nth(1);
    let word = match (status, last) {
        ("200", Some("served")) => "served",
        ("503", Some("served")) => "busy",
        ("200", Some("broken" | "timed_out")) => "broken",
        ("502", Some("closed_early" | "bad_response" | "broken")) => "bad gateway",
        ("504", Some("timed_out")) => "timed out",
        ("503", None) => "no server",
        _ => panic!("not explained: {line}"),
    };
    word.to_owned()
}
