//! The same requests, servers, weights and failures through a running nginx and through the proxy: the same server for
//! every one of them. Skipped where nginx is not installed; what it chose once is in `tests/data` of the modules, for
//! machines without it.
//!
//! nginx has `max_fails=0` throughout: a module's part is the order of candidates, and who is left out after failures is
//! the host's business here.

mod record;

use std::iter;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::mpsc;

use lb_api::Rng;
use tests::DEADLINE;
use tests::client::Client;
use tests::nginx::Nginx;
use tests::origin::Origin;
use tests::proxy::{Builder, Proxy};

const REQUESTS: usize = 10_000;
/// Sent at once, answered in their order: one connection's requests go one after the other.
const BATCH: usize = 100;

/// Servers of these weights; one of weight 0 refuses connections, and has a weight of 1.
struct Servers {
    origins: Vec<Origin>,
    weights: Vec<u32>,
}

impl Servers {
    fn new(weights: &[u32]) -> Self {
        let origin = |(i, weight): (usize, &u32)| match weight {
            0 => Origin::dead(),
            _ => Origin::named(&letter(i).to_string()),
        };
        Self::of(weights, weights.iter().enumerate().map(origin).collect())
    }

    fn of(weights: &[u32], origins: Vec<Origin>) -> Self {
        Self { origins, weights: weights.iter().map(|weight| (*weight).max(1)).collect() }
    }

    /// As nginx's upstream, with what says how to choose.
    fn upstream(&self, how: &str, down: &[usize]) -> String {
        let servers = self.origins.iter().zip(&self.weights).enumerate().map(|(i, (origin, weight))| {
            let down = if down.contains(&i) { " down" } else { "" };
            format!("server {} weight={weight} max_fails=0{down};\n", origin.address())
        });
        iter::once(format!("{how}\n")).chain(servers).collect()
    }

    /// The proxy before them.
    fn proxy(&self, module: &str, down: &[usize]) -> Builder {
        // As nginx is told: a server that fails is asked again.
        let builder = Proxy::over(&self.origins).module(module).in_cluster("ejection = { failures = 0 }");
        self.weights.iter().enumerate().fold(builder, |builder, (i, weight)| {
            builder.server(i, &format!("weight = {weight}, drain = {}", down.contains(&i)))
        })
    }
}

fn letter(i: usize) -> char {
    char::from(b'0' + u8::try_from(i).expect("few servers"))
}

/// The servers that answered these requests, sent over one connection.
fn ask(mut client: Client, requests: impl Iterator<Item = String>) -> String {
    let requests: Vec<String> = requests.collect();
    let batches = requests.chunks(BATCH).flat_map(|batch| {
        client.send(batch.concat());
        batch.iter().map(|_| client.reply().text()).collect::<Vec<_>>()
    });
    batches.collect()
}

fn get(target: &str, header: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: test\r\n{header}\r\n")
}

#[track_caller]
fn assert_same(what: &str, nginx: &str, ours: &str) {
    assert_eq!(nginx.len(), ours.len(), "{what}: a server's name is one letter");
    if let Some(at) = nginx.bytes().zip(ours.bytes()).position(|(nginx, ours)| nginx != ours) {
        let (from, to) = (at.saturating_sub(20), (at + 20).min(ours.len()));
        panic!("{what}: request {at}: nginx …{}…, the proxy …{}…", &nginx[from..to], &ours[from..to]);
    }
}

// ---- keys ----------------------------------------------------------------------------------------------------------

fn keyed() -> impl Iterator<Item = String> {
    (0..REQUESTS as u32).map(|i| get(&format!("/?k={:x}-{i}", i.wrapping_mul(2_654_435_761)), ""))
}

#[test]
fn hash_chooses_as_nginx_does() {
    let Some(program) = Nginx::program() else { return };
    for weights in [&[1, 1, 1][..], &[5, 1, 3, 2, 4], &[2, 0, 1, 0, 3]] {
        let servers = Servers::new(weights);
        let nginx = Nginx::start(program, &servers.upstream("hash $arg_k;", &[]));
        let proxy = servers.proxy("hash", &[]).in_cluster("key = \"query:k\"").start();
        assert_same(&format!("{weights:?}"), &ask(nginx.connect(), keyed()), &ask(proxy.connect(), keyed()));
    }
}

#[test]
fn ring_hash_chooses_as_nginx_s_consistent_hash_does() {
    let Some(program) = Nginx::program() else { return };
    for weights in [&[1, 1, 1][..], &[5, 1, 3, 2, 4], &[2, 0, 1, 0, 3]] {
        let servers = Servers::new(weights);
        let nginx = Nginx::start(program, &servers.upstream("hash $arg_k consistent;", &[]));
        let proxy = servers.proxy("ring_hash", &[]).in_cluster("key = \"query:k\"").start();
        assert_same(&format!("{weights:?}"), &ask(nginx.connect(), keyed()), &ask(proxy.connect(), keyed()));
    }
}

/// With 63 of 64 points of the ring a server's that is down, requests pass 20 points in vain and take turns.
#[test]
fn ring_hash_takes_turns_where_nginx_does() {
    let Some(program) = Nginx::program() else { return };
    let (weights, down) = ([63, 1, 2, 1], [0]);
    let servers = Servers::new(&weights);
    let nginx = Nginx::start(program, &servers.upstream("hash $arg_k consistent;", &down));
    let proxy = servers.proxy("ring_hash", &down).in_cluster("key = \"query:k\"").start();
    assert_same("turns", &ask(nginx.connect(), keyed()), &ask(proxy.connect(), keyed()));
}

#[test]
fn ip_hash_chooses_as_nginx_does() {
    let Some(program) = Nginx::program() else { return };
    let client = |i: usize| Ipv4Addr::new(127, (i / 200) as u8, (i % 200) as u8, 1 + (i % 250) as u8);
    let servers = Servers::new(&[3, 1, 0, 2]);
    let nginx = Nginx::start(program, &servers.upstream("ip_hash;", &[]));
    let by_nginx =
        ask(nginx.connect(), (0..REQUESTS).map(|i| get("/", &format!("X-Real-IP: {}\r\n", client(i)))));
    let proxy = servers.proxy("ip_hash", &[]).start();
    let request = get("/", "Connection: close\r\n");
    let from = |i| Client::connect_from(IpAddr::V4(client(i)), proxy.address()).send(&request).reply().text();
    assert_same("clients", &by_nginx, &(0..REQUESTS).map(from).collect::<String>());
}

/// Any address can be had where a proxy in front is believed: nginx by X-Real-IP, the proxy by X-Forwarded-For.
#[test]
fn ip_hash_chooses_as_nginx_does_for_clients_of_both_families() {
    let Some(program) = Nginx::program() else { return };
    let v4 = |i: u32| IpAddr::from(i.wrapping_mul(2_654_435_761).to_be_bytes());
    let v6 = |i: u32| {
        let x = u128::from(i).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
        IpAddr::from(((0x2001_0db8 << 96) | (x >> 32)).to_be_bytes())
    };
    for (weights, down) in [
        (&[1, 1, 1][..], &[][..]),
        (&[5, 1, 3, 2, 4], &[]),
        (&[5, 1, 3, 2, 4], &[0, 3]),
        (&[2, 0, 1, 0, 3], &[]),
    ] {
        let servers = Servers::new(weights);
        let nginx = Nginx::start(program, &servers.upstream("ip_hash;", down));
        let proxy = servers.proxy("ip_hash", down).tables("[forwarded]\ntrusted = [\"127.0.0.1\"]").start();
        for (family, of) in [("IPv4", &v4 as &dyn Fn(u32) -> IpAddr), ("IPv6", &v6)] {
            let requests = |header: &str| {
                (0..REQUESTS as u32)
                    .map(|i| get("/", &format!("{header}: {}\r\n", of(i))))
                    .collect::<Vec<_>>()
            };
            let by_nginx = ask(nginx.connect(), requests("X-Real-IP").into_iter());
            let by_proxy = ask(proxy.connect(), requests("X-Forwarded-For").into_iter());
            assert_same(&format!("{family}, {weights:?}"), &by_nginx, &by_proxy);
            assert!(
                by_nginx.chars().any(|server| !by_nginx.starts_with(server)),
                "{family}: addresses differ"
            );
        }
    }
}

// ---- turns ---------------------------------------------------------------------------------------------------------

/// Weights, and which servers are down; a weight of 0 is a server that refuses connections.
const TURNS: [(&str, &[u32], &[usize]); 7] = [
    ("three", &[1, 1, 1], &[]),
    ("weighted", &[5, 1, 1], &[]),
    ("many_weighted", &[7, 3, 12, 1, 5, 2, 9, 31], &[]),
    ("large_weights", &[65535, 300, 1, 40000], &[]),
    ("some_down", &[4, 2, 3, 5, 1], &[1, 3]),
    ("one_fails", &[1, 0, 1], &[]),
    ("some_fail", &[4, 0, 2, 7, 0, 1, 3], &[3]),
];

fn turns() -> impl Iterator<Item = String> {
    iter::repeat_n(get("/", ""), REQUESTS)
}

#[test]
fn round_robin_takes_nginx_s_turns() {
    let Some(program) = Nginx::program() else { return };
    for (name, weights, down) in TURNS {
        let servers = Servers::new(weights);
        let nginx = Nginx::start(program, &servers.upstream("", down));
        let proxy = servers.proxy("round_robin", down).start();
        assert_same(name, &ask(nginx.connect(), turns()), &ask(proxy.connect(), turns()));
    }
}

// ---- requests in flight --------------------------------------------------------------------------------------------

/// Requests that begin and end in an order of their own.
#[derive(Clone, Copy)]
enum Event {
    Begin,
    /// Of those under way, counted from the oldest.
    End(usize),
}

/// Load that goes up and down, and to nothing now and then.
fn schedule(seed: u64, n_requests: usize) -> Vec<Event> {
    let (mut rng, mut events, mut n_open) = (Rng::new(seed), Vec::new(), 0);
    for request in 0..n_requests {
        events.push(Event::Begin);
        n_open += 1;
        let rising = [9, 12][request / 100 % 2];
        while n_open > 0 && (n_open >= 60 || rng.below(20) < rising) {
            events.push(Event::End(rng.below(n_open) as usize));
            n_open -= 1;
        }
    }
    events
}

/// A request that has come to a server and waits for its response.
struct Arrival {
    server: usize,
    respond: mpsc::Sender<()>,
}

/// Servers that answer when they are told to.
fn held(weights: &[u32]) -> (Servers, mpsc::Receiver<Arrival>) {
    let (arrivals, arrived) = mpsc::channel();
    let origin = |(server, weight): (usize, &u32)| {
        let arrivals = arrivals.clone();
        match weight {
            0 => Origin::dead(),
            _ => Origin::serving(move |conn| {
                while conn.request().is_some() {
                    let (respond, told) = mpsc::channel();
                    let _ = arrivals.send(Arrival { server, respond });
                    if told.recv().is_err() || !conn.send("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n.") {
                        break;
                    }
                }
            }),
        }
    };
    let origins = weights.iter().enumerate().map(origin).collect();
    (Servers::of(weights, origins), arrived)
}

/// The server of each request.
fn play(events: &[Event], address: SocketAddr, arrived: &mpsc::Receiver<Arrival>) -> String {
    let (mut open, mut idle, mut chosen) = (Vec::new(), Vec::new(), String::new());
    for event in events {
        match event {
            Event::Begin => {
                let mut client = idle.pop().unwrap_or_else(|| Client::connect(address));
                client.get("/");
                let arrival = arrived.recv_timeout(DEADLINE).expect("every request comes to a server");
                chosen.push(letter(arrival.server));
                open.push((client, arrival.respond));
            }
            Event::End(nth) => {
                let (mut client, respond) = open.remove(*nth);
                respond.send(()).expect("the server waits for this");
                assert_eq!(client.reply().text(), ".");
                idle.push(client);
            }
        }
    }
    chosen
}

/// Weights; 0 is a server that refuses connections.
const LOADS: [(&str, &[u32]); 4] = [
    ("equal", &[1, 1, 1, 1]),
    ("weighted", &[5, 1, 1]),
    ("many_weighted", &[1, 2, 3, 4, 5, 6, 7]),
    ("one_fails", &[3, 0, 1, 2]),
];

#[test]
fn least_request_of_all_chooses_as_nginx_s_least_conn_does() {
    let Some(program) = Nginx::program() else { return };
    for (seed, (name, weights)) in LOADS.into_iter().enumerate() {
        let events = schedule(seed as u64, REQUESTS);
        let (servers, arrived) = held(weights);
        let nginx = Nginx::start(program, &servers.upstream("least_conn;", &[]));
        let builder = servers.proxy("least_request", &[]).in_cluster("settings = { choices = \"all\" }");
        let by_nginx = play(&events, nginx.address(), &arrived);
        drop(nginx);
        assert_same(name, &by_nginx, &play(&events, builder.start().address(), &arrived));
    }
}
