//! The choices of nginx, recorded for machines without it: the data of the modules' own tests.
//!
//! `cargo test -p tests --test scenarios record -- --ignored` writes all of it to the modules' `tests/data`. The files
//! stay the same, unless nginx or this file has changed.

use std::fs;
use std::path::Path;
use std::process::Command;

use tests::client::Client;
use tests::nginx::Nginx;

use super::{Event, LOADS, REQUESTS, Servers, TURNS, ask, get, held, play, schedule, turns};

/// The beginning of each file.
fn choices_of(program: &str) -> String {
    let output = Command::new(program).arg("-v").output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    let version = said.trim().rsplit('/').next().unwrap_or_default();
    format!("# Choices of nginx {version}, one worker")
}

#[test]
#[ignore = "writes a file of the repository"]
fn record_turns() {
    let program = Nginx::program().expect("it is to be recorded");
    let mut text = format!(
        "{}, recorded from the real program by tests/scenarios/nginx/record.rs:\n",
        choices_of(program)
    );
    text += "# upstream { server 127.0.0.1:… weight=… max_fails=0 [down]; … }, 10,000 requests one after the other.\n";
    text += "# A digit for each request: the server's place, from 0. Down are servers (places) that were marked so.\n";
    text += "# A weight of 0 is a server of weight 1 that refuses connections: each request that came to it went on.\n";
    for (name, weights, down) in TURNS {
        let servers = Servers::new(weights);
        let nginx = Nginx::start(program, &servers.upstream("", down));
        text += &format!("case {name}\nweights{}\ndown{}\n", numbers(weights), numbers(down));
        text += &lines(&ask(nginx.connect(), turns()));
    }
    write("round-robin", &text);
}

#[test]
#[ignore = "writes a file of the repository"]
fn record_requests_in_flight() {
    let program = Nginx::program().expect("it is to be recorded");
    let mut text = format!(
        "{}, recorded from the real program by tests/scenarios/nginx/record.rs:\n",
        choices_of(program)
    );
    text += "# upstream { least_conn; server 127.0.0.1:… weight=… max_fails=0; … }, 10,000 requests in each case.\n";
    text += "# What happened, in its order: a digit is a request that began and the server (its place) that it came to, a letter\n";
    text += "# is the end of one that was under way, of the oldest for A, the next for B, …, Z, a, …, z, then !@$%&*+-.\n";
    text += "# A weight of 0 is a server of weight 1 that refuses connections: each request that came to it went on.\n";
    for (seed, (name, weights)) in LOADS.into_iter().enumerate() {
        let events = schedule(seed as u64, REQUESTS);
        let (servers, arrived) = held(weights);
        let nginx = Nginx::start(program, &servers.upstream("least_conn;", &[]));
        let chosen = play(&events, nginx.address(), &arrived);
        let mut chosen = chosen.chars();
        let event = |event: &Event| match event {
            Event::Begin => chosen.next().expect("one for each request"),
            Event::End(nth) => {
                char::from(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!@$%&*+-"[*nth])
            }
        };
        let events: String = events.iter().map(event).collect();
        text += &format!("case {name}\nweights{}\n{}", numbers(weights), lines(&events));
    }
    write("least-request", &text);
}

// ---- hashes --------------------------------------------------------------------------------------------------------

/// Servers that nginx tries in vain.
struct Case {
    name: &'static str,
    weights: Vec<u32>,
    down: Vec<usize>,
    /// The servers as written, where they are not 10.0.0.1:8080 and so on; those of one name side by side.
    names: &'static [&'static str],
    /// All tries of a request, and not only the first.
    all_tries: bool,
}

fn cases() -> Vec<Case> {
    let repeated = |weights: &[u32], n| weights.iter().copied().cycle().take(n).collect();
    let case = |name, weights, down| Case { name, weights, down, names: &[], all_tries: false };
    let failing = |name, weights, down| Case { all_tries: true, ..case(name, weights, down) };
    vec![
        case("three", vec![1; 3], vec![]),
        case("weighted", vec![5, 1, 1, 13, 20], vec![]),
        case("many", vec![1; 60], vec![]),
        case("many_weighted", repeated(&[1, 2, 5, 1, 8, 8, 1, 5, 2], 60), vec![]),
        case("half_down", repeated(&[1, 3, 5, 2, 4], 10), vec![0, 2, 3, 7, 9]),
        case("one_up", vec![1; 30], (0..30).filter(|server| *server != 17).collect()),
        failing("all_fail", repeated(&[1, 3, 5, 2, 4], 10), vec![]),
        failing("all_fail_few", vec![3, 1], vec![]),
        failing("all_fail_skew", vec![100, 1, 1, 1], vec![1]),
    ]
}

/// Servers that share a name, one without a port, and one of IPv6.
const NAMED: [&str; 7] = [
    "multi.example:8080",
    "multi.example:8080",
    "multi.example:8080",
    "10.0.0.9:8080",
    "bare.example",
    "bare.example",
    "[fd00::1]:8080",
];

impl Case {
    /// Where its servers are: names have an address for each server that shares them.
    fn addresses(&self) -> Vec<String> {
        let numbered = |place: usize| match self.names.get(place) {
            None => format!("10.0.0.{}:8080", place + 1),
            Some(name) if name.contains("example") => {
                format!("10.0.1.{}:{}", place + 1, if name.contains(':') { 8080 } else { 80 })
            }
            Some(address) => (*address).to_owned(),
        };
        (0..self.weights.len()).map(numbered).collect()
    }

    fn hosts(&self) -> String {
        let named = self.names.iter().zip(self.addresses()).filter(|(name, _)| name.contains("example"));
        let host = |text: &str| text.split(':').next().unwrap_or_default().to_owned();
        named.map(|(name, address)| format!("{} {}\n", host(&address), host(name))).collect()
    }

    fn upstream(&self, how: &str) -> String {
        let mut text = format!("{how}\n");
        let mut written = Vec::new();
        for (place, address) in self.addresses().into_iter().enumerate() {
            let name = self.names.get(place).map_or(address, |name| (*name).to_owned());
            if !written.contains(&name) {
                let down = if self.down.contains(&place) { " down" } else { "" };
                text += &format!("server {name} weight={} max_fails=0{down};\n", self.weights[place]);
                written.push(name);
            }
        }
        text
    }

    /// The case as the modules' tests read it, with what nginx does for these requests.
    fn record(&self, program: &str, how: &str, request: impl Fn(u32) -> String) -> String {
        let terms = if self.all_tries { "" } else { "proxy_next_upstream off;" };
        let nginx = Nginx::start_alone(program, &self.upstream(how), terms, &self.hosts());
        let tried = tried(nginx.connect(), (0..REQUESTS as u32).map(request));
        let addresses = self.addresses();
        let letter = |address: &str| {
            let place = addresses.iter().position(|known| known == address);
            place.and_then(letter).unwrap_or_else(|| panic!("{address} is not one of {addresses:?}"))
        };
        let words: Vec<String> =
            tried.iter().map(|tried| tried.split(", ").map(letter).collect::<String>()).collect();
        let mut text =
            format!("case {}\nweights{}\ndown{}\n", self.name, numbers(&self.weights), numbers(&self.down));
        if !self.names.is_empty() {
            text += &format!("names {}\n", self.names.join(" "));
        }
        if self.all_tries {
            let lines = words.chunks(8).map(|words| words.join(" ") + "\n");
            text + &format!("order {REQUESTS}\n") + &lines.collect::<String>()
        } else {
            text + &format!("first {REQUESTS}\n") + &lines(&words.concat())
        }
    }
}

/// Which servers were tried for each of these requests, as nginx tells it.
fn tried(mut client: Client, requests: impl Iterator<Item = String>) -> Vec<String> {
    let requests: Vec<String> = requests.collect();
    let batches = requests.chunks(super::BATCH).flat_map(|batch| {
        client.send(batch.concat());
        let tried = |_| client.reply().header("x-tried").expect("a try").to_owned();
        batch.iter().map(tried).collect::<Vec<_>>()
    });
    batches.collect()
}

/// Of a place, as the modules' tests read it.
fn letter(place: usize) -> Option<char> {
    (b'0'..=b'9').chain(b'A'..=b'Z').chain(b'a'..=b'z').map(char::from).nth(place)
}

/// `upstream` is how nginx is configured, `of` what is known of a request's number.
fn hash_header(program: &str, upstream: &str, of: &[&str]) -> String {
    let mut text =
        format!("{}, requests one after the other, recorded from the real program\n", choices_of(program));
    text += "# by tests/scenarios/nginx/record.rs:\n";
    text += &format!(
        "# upstream {{ {upstream}; server 10.0.0.1:8080 weight=… max_fails=0 [down]; server 10.0.0.2:8080 …; }}\n"
    );
    text += "# Nobody listens on these addresses; $upstream_addr says which servers nginx tried, and in which order.\n";
    text += "# \"first\": one try a request (proxy_next_upstream off), a letter for each request. \"order\": all tries of a request (error).\n";
    text += "# A server's letter is its place in 0-9A-Za-z; weights and down (places) are of the servers in this order.\n";
    of.iter().fold(text, |text, line| text + &format!("# {line}\n"))
}

const KEYS: [&str; 2] = [
    "Key number i, from 0, is by the remainder of i divided by 3: \"k{i}\", \"/images/{i}.png\", or",
    "\"{x}-session-of-a-user\" with x = i * 2654435761 mod 2^32 in 8 hexadecimal digits.",
];

fn keyed(i: u32) -> String {
    get(&format!("/?k={}", recorded::key(i)), "")
}

#[test]
#[ignore = "writes a file of the repository"]
fn record_hash() {
    let program = Nginx::program().expect("it is to be recorded");
    let text = hash_header(program, "hash $arg_k", &KEYS);
    let text = cases().iter().fold(text, |text, case| text + &case.record(program, "hash $arg_k;", keyed));
    write("hash", &text);
}

#[test]
#[ignore = "writes a file of the repository"]
fn record_ring_hash() {
    let program = Nginx::program().expect("it is to be recorded");
    let how = "hash $arg_k consistent";
    let names = "Where there are names, they are the servers as written; names of .example have the addresses of the servers that share it.";
    let named = Case {
        name: "named",
        weights: vec![2, 2, 2, 1, 1, 1, 3],
        down: vec![],
        names: &NAMED,
        all_tries: true,
    };
    let text = hash_header(program, how, &[&KEYS[..], &[names]].concat());
    let cases = cases().into_iter().chain([named]);
    let text = cases.fold(text, |text, case| text + &case.record(program, &format!("{how};"), keyed));
    write("ring-hash", &text);
}

#[test]
#[ignore = "writes a file of the repository"]
fn record_ip_hash() {
    let program = Nginx::program().expect("it is to be recorded");
    let request = |i: u32| get("/", &format!("X-Real-IP: {}\r\n", recorded::client(i).ip()));
    let clients = [
        "Client number i, from 0, has the address x = i * 2654435761 mod 2^32 in dotted decimal; where i mod 4 is 3, the address",
        "2001:db8:{high half of x}:{low half of x}::{i} (all hexadecimal). nginx took it from X-Real-IP (set_real_ip_from).",
    ];
    let text = hash_header(program, "ip_hash", &clients);
    let text = cases().iter().fold(text, |text, case| text + &case.record(program, "ip_hash;", request));
    write("ip-hash", &text);
}

// ---- the form of the files -----------------------------------------------------------------------------------------

fn lines(chosen: &str) -> String {
    let lines = chosen.as_bytes().chunks(100).map(|line| String::from_utf8_lossy(line).into_owned() + "\n");
    lines.collect()
}

/// Each behind a space.
fn numbers<T: ToString>(numbers: &[T]) -> String {
    numbers.iter().map(|number| format!(" {}", number.to_string())).collect()
}

fn write(module: &str, text: &str) {
    let modules = Path::new(env!("CARGO_MANIFEST_DIR")).join("../modules");
    let folder = modules.join(module).join("tests/data");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("nginx.txt"), text).unwrap();
}
