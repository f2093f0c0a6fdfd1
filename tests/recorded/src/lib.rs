//! The choices that a real nginx made for keys and clients, as `tests/scenarios/nginx/record.rs` wrote them down: the head of
//! each file says how. For tests of modules, which make them again without an nginx.

use std::net::{IpAddr, SocketAddr};

use lb_api::testkit::{FakeCluster, FakeRequest};
use lb_api::{Balancer, Next, State};

/// One cluster, and the servers that nginx tried for each request, in order.
#[derive(Debug)]
struct Case {
    name: String,
    /// The servers as written, where they are not 10.0.0.1:8080 and so on.
    names: Vec<String>,
    weights: Vec<u32>,
    down: Vec<usize>,
    all_tries: bool,
    choices: Vec<Vec<usize>>,
}

/// Makes every choice again, the `i`-th by `request(i)`; how many there were.
///
/// # Panics
/// At the first that is another.
#[track_caller]
pub fn replay<B: Balancer>(recorded: &str, request: impl Fn(u32) -> FakeRequest) -> usize {
    let mut n_choices = 0;
    for case in cases(recorded) {
        let named = case.names.iter().enumerate();
        let cluster = named.fold(FakeCluster::weighted(&case.weights), |cluster, (server, name)| {
            cluster.metadata(server, "hash_key", name)
        });
        let balancer = cluster.balancer::<B>().build().expect("it builds");
        case.down.iter().for_each(|server| cluster.set_state(*server, State::Down));
        for (i, recorded) in (0..).zip(&case.choices) {
            let mut trylist = balancer.load_balance(request(i));
            let chosen = match (case.all_tries, trylist.next()) {
                (true, Next::Endpoint(first)) => [vec![first], trylist.all()].concat(),
                (false, Next::Endpoint(first)) => vec![first],
                _ => vec![],
            };
            assert_eq!(chosen, *recorded, "case {}, request {i}", case.name);
            n_choices += chosen.len();
        }
    }
    n_choices
}

/// The `i`-th key.
pub fn key(i: u32) -> String {
    match i % 3 {
        0 => format!("k{i}"),
        1 => format!("/images/{i}.png"),
        _ => format!("{:08x}-session-of-a-user", i.wrapping_mul(2_654_435_761)),
    }
}

/// The `i`-th client.
pub fn client(i: u32) -> SocketAddr {
    let x = i.wrapping_mul(2_654_435_761);
    let address = match i % 4 {
        3 => IpAddr::from([0x2001, 0xdb8, (x >> 16) as u16, x as u16, 0, 0, 0, i as u16]),
        _ => IpAddr::from(x.to_be_bytes()),
    };
    SocketAddr::new(address, 40_000)
}

fn cases(recorded: &str) -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    for line in recorded.lines().filter(|line| !line.starts_with('#')) {
        let mut words = line.split(' ');
        let mut numbers =
            || words.by_ref().skip(1).map(|n| n.parse::<u32>().expect("a number")).collect::<Vec<_>>();
        match (line.split(' ').next().unwrap_or(line), cases.last_mut()) {
            ("case", _) => cases.push(Case {
                name: line[5..].into(),
                names: Vec::new(),
                weights: Vec::new(),
                down: Vec::new(),
                all_tries: false,
                choices: Vec::new(),
            }),
            ("weights", Some(case)) => case.weights = numbers(),
            ("down", Some(case)) => case.down = numbers().into_iter().map(|n| n as usize).collect(),
            ("names", Some(case)) => case.names = words.skip(1).map(str::to_owned).collect(),
            ("first", Some(case)) => case.all_tries = false,
            ("order", Some(case)) => case.all_tries = true,
            (_, Some(case)) if case.all_tries => {
                case.choices.extend(words.map(|word| word.bytes().map(server).collect()));
            }
            (_, Some(case)) => case.choices.extend(line.bytes().map(|letter| vec![server(letter)])),
            (_, None) => panic!("{line}"),
        }
    }
    cases
}

/// The place of a server, by its letter.
fn server(letter: u8) -> usize {
    match letter {
        b'0'..=b'9' => usize::from(letter - b'0'),
        b'A'..=b'Z' => usize::from(letter - b'A') + 10,
        _ => usize::from(letter - b'a') + 36,
    }
}
