//! Every choice that nginx made, made again.

use lb_api::testkit::{FakeCluster, FakeRequest};
use lb_api::{Next, State};
use mod_hash::Hash;

const RECORDED: &str = include_str!("data/nginx.txt");

/// The servers that nginx tried for each request, in order.
struct Case {
    name: String,
    weights: Vec<u32>,
    down: Vec<usize>,
    all_tries: bool,
    choices: Vec<Vec<usize>>,
}

fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    for line in RECORDED.lines().filter(|line| !line.starts_with('#')) {
        let mut words = line.split(' ');
        let mut numbers =
            || words.by_ref().skip(1).map(|n| n.parse::<u32>().expect("a number")).collect::<Vec<_>>();
        match (line.split(' ').next().unwrap_or(line), cases.last_mut()) {
            ("case", _) => cases.push(Case {
                name: line[5..].into(),
                weights: Vec::new(),
                down: Vec::new(),
                all_tries: false,
                choices: Vec::new(),
            }),
            ("weights", Some(case)) => case.weights = numbers(),
            ("down", Some(case)) => case.down = numbers().into_iter().map(|n| n as usize).collect(),
            ("first", Some(case)) => case.all_tries = false,
            ("order", Some(case)) => case.all_tries = true,
            (_, Some(case)) if case.all_tries => {
                case.choices.extend(words.map(|w| w.bytes().map(server).collect()));
            }
            (_, Some(case)) => case.choices.extend(line.bytes().map(|letter| vec![server(letter)])),
            (_, None) => panic!("{line}"),
        }
    }
    cases
}

fn server(letter: u8) -> usize {
    match letter {
        b'0'..=b'9' => usize::from(letter - b'0'),
        b'A'..=b'Z' => usize::from(letter - b'A') + 10,
        _ => usize::from(letter - b'a') + 36,
    }
}

fn key(i: u32) -> String {
    match i % 3 {
        0 => format!("k{i}"),
        1 => format!("/images/{i}.png"),
        _ => format!("{:08x}-session-of-a-user", i.wrapping_mul(2_654_435_761)),
    }
}

#[test]
fn chooses_what_nginx_chose() {
    let mut n_choices = 0;
    for case in cases() {
        let cluster = FakeCluster::weighted(&case.weights);
        let balancer = cluster.balancer::<Hash>().build().expect("it builds");
        case.down.iter().for_each(|server| cluster.set_state(*server, State::Down));
        for (i, recorded) in (0..).zip(&case.choices) {
            let mut trylist = balancer.load_balance(FakeRequest::get("/").key(key(i)));
            let chosen = match (case.all_tries, trylist.next()) {
                (true, Next::Endpoint(first)) => [vec![first], trylist.all()].concat(),
                (false, Next::Endpoint(first)) => vec![first],
                _ => vec![],
            };
            assert_eq!(chosen, *recorded, "case {}, key {i} ({})", case.name, key(i));
            n_choices += chosen.len();
        }
    }
    assert!(n_choices > 200_000, "{n_choices} choices recorded");
}
