//! Every choice of nginx's `least_conn`, made again while the same requests are in flight.

use lb_api::Next;
use lb_api::testkit::{FakeCluster, FakeRequest};
use mod_least_request::LeastRequest;

const RECORDED: &str = include_str!("data/nginx.txt");

/// Which of those under way ends, by its letter.
const NTH: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!@$%&*+-";

#[test]
fn chooses_what_nginx_chose() {
    let mut n_choices = 0;
    for case in RECORDED.split("case ").skip(1) {
        let mut lines = case.lines();
        let name = lines.next().expect("a name");
        let weights = lines.next().expect("weights").split(' ').skip(1);
        let weights: Vec<u32> = weights.map(|n| n.parse().expect("a number")).collect();
        let cluster =
            FakeCluster::weighted(&weights.iter().map(|weight| (*weight).max(1)).collect::<Vec<_>>());
        let balancer =
            cluster.balancer::<LeastRequest>().setting("choices", "all").build().expect("it builds");
        let (mut open, mut in_flight) = (Vec::new(), vec![0; weights.len()]);
        for (at, event) in lines.flat_map(str::bytes).enumerate() {
            let changed = if event.is_ascii_digit() {
                let mut trylist = balancer.load_balance(FakeRequest::get("/"));
                let chosen = loop {
                    match trylist.next() {
                        // It refuses connections, and the request goes on.
                        Next::Endpoint(server) if weights[server] == 0 => trylist.fail(),
                        Next::Endpoint(server) => break server,
                        other => panic!("case {name}, event {at}: {other:?}"),
                    }
                };
                assert_eq!(chosen, usize::from(event - b'0'), "case {name}, event {at}");
                n_choices += 1;
                open.push(chosen);
                in_flight[chosen] += 1;
                chosen
            } else {
                let nth = NTH.iter().position(|nth| *nth == event).expect("a letter of the recorder's");
                let ended = open.remove(nth);
                in_flight[ended] -= 1;
                ended
            };
            cluster.set_in_flight(changed, in_flight[changed]);
        }
    }
    assert_eq!(n_choices, 40_000, "choices recorded");
}
