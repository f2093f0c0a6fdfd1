//! Every turn that nginx took, taken again.

use lb_api::testkit::{FakeCluster, FakeRequest};
use lb_api::{Next, State};
use mod_round_robin::RoundRobin;

const RECORDED: &str = include_str!("data/nginx.txt");

#[test]
fn takes_the_turns_that_nginx_took() {
    let mut n_turns = 0;
    for case in RECORDED.split("case ").skip(1) {
        let mut lines = case.lines();
        let name = lines.next().expect("a name");
        let numbers = |line: Option<&str>| -> Vec<u32> {
            line.expect("a line").split(' ').skip(1).map(|n| n.parse().expect("a number")).collect()
        };
        let (weights, down) = (numbers(lines.next()), numbers(lines.next()));
        let recorded: Vec<_> = lines.flat_map(str::bytes).map(|digit| usize::from(digit - b'0')).collect();
        let cluster =
            FakeCluster::weighted(&weights.iter().map(|weight| (*weight).max(1)).collect::<Vec<_>>());
        let balancer = cluster.balancer::<RoundRobin>().build().expect("it builds");
        down.iter().for_each(|server| cluster.set_state(*server as usize, State::Down));
        for (turn, recorded) in recorded.iter().enumerate() {
            let mut trylist = balancer.load_balance(FakeRequest::get("/"));
            let chosen = loop {
                match trylist.next() {
                    // It refuses connections, and the request goes on.
                    Next::Endpoint(server) if weights[server] == 0 => trylist.fail(),
                    Next::Endpoint(server) => break server,
                    other => panic!("case {name}, turn {turn}: {other:?}"),
                }
            };
            assert_eq!(chosen, *recorded, "case {name}, turn {turn}");
        }
        n_turns += recorded.len();
    }
    assert_eq!(n_turns, 70_000, "turns recorded");
}
