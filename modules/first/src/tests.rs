use lb_api::State;
use lb_api::testkit::{Contract, FakeCluster, FakeRequest, TestBalancer};

use super::*;

fn cluster(room: &[u32]) -> FakeCluster {
    let cluster = FakeCluster::equal(room.len());
    room.iter().enumerate().for_each(|(endpoint, room)| cluster.set_max_in_flight(endpoint, *room));
    cluster
}

fn answer(balancer: &TestBalancer<First>) -> Next {
    balancer.load_balance(FakeRequest::get("/")).next()
}

#[test]
fn keeps_the_contract() {
    Contract::<First>::new().skips_unavailable().check();
}

#[test]
fn the_example_of_the_docs_comes_out() {
    let cluster = cluster(&[2, 2, 2]);
    let balancer = cluster.balancer::<First>().build().unwrap();
    let mut in_flight = [0; 3];
    let mut request = || {
        let answer = answer(&balancer);
        if let Next::Endpoint(endpoint) = answer {
            in_flight[endpoint] += 1;
            // The first request ends after the third came.
            if in_flight == [2, 1, 0] && endpoint == 1 {
                in_flight[0] -= 1;
            }
            (0..3).for_each(|endpoint| cluster.set_in_flight(endpoint, in_flight[endpoint]));
        }
        answer
    };
    let answers: Vec<_> = (1..=8).map(|_| request()).collect();
    let expected = [0, 0, 1, 0, 1, 2, 2].map(Next::Endpoint);
    assert_eq!(answers[..7], expected);
    assert_eq!(answers[7], Next::Busy);
    cluster.set_state(1, State::Down);
    assert_eq!(request(), Next::Busy);
}

#[test]
fn fills_up_in_the_order_of_the_file_whatever_the_weights() {
    let cluster = FakeCluster::weighted(&[1, 100, 7]);
    [3, 1, 5].iter().enumerate().for_each(|(endpoint, room)| cluster.set_max_in_flight(endpoint, *room));
    let balancer = cluster.balancer::<First>().build().unwrap();
    let mut in_flight = [0; 3];
    // A simulation of nothing but arrivals: every place is taken, the lower ones first.
    while let Next::Endpoint(endpoint) = answer(&balancer) {
        in_flight[endpoint] += 1;
        cluster.set_in_flight(endpoint, in_flight[endpoint]);
        let full_before = [3, 1, 5].iter().zip(in_flight).take(endpoint).all(|(room, n)| n == *room);
        assert!(full_before, "{in_flight:?}");
    }
    assert_eq!(in_flight, [3, 1, 5]);
}

#[test]
fn all_full_is_busy_and_none_left_is_exhausted() {
    let cluster = cluster(&[1, 1]);
    let balancer = cluster.balancer::<First>().build().unwrap();
    cluster.set_in_flight(0, 1);
    let mut trylist = balancer.load_balance(FakeRequest::get("/"));
    assert_eq!(trylist.next(), Next::Endpoint(1));
    trylist.fail();
    // The full one may still serve this request, once it has room.
    assert_eq!([trylist.next(), trylist.next()], [Next::Busy, Next::Busy]);
    cluster.set_in_flight(0, 0);
    assert_eq!(trylist.next(), Next::Endpoint(0));
    trylist.fail();
    assert_eq!(trylist.next(), Next::Exhausted);
    cluster.set_in_flight(1, 1);
    cluster.set_state(0, State::Ejected);
    assert_eq!(answer(&balancer), Next::Busy);
    cluster.set_state(1, State::Draining);
    assert_eq!(answer(&balancer), Next::Exhausted);
}

#[test]
fn one_of_weight_0_comes_last_but_before_waiting() {
    let cluster = cluster(&[1, 1, 1]);
    cluster.set_effective_weight(0, 0);
    let balancer = cluster.balancer::<First>().build().unwrap();
    assert_eq!(balancer.load_balance(FakeRequest::get("/")).all(), [1, 2, 0]);
    cluster.set_in_flight(1, 1);
    cluster.set_in_flight(2, 1);
    assert_eq!(answer(&balancer), Next::Endpoint(0));
    cluster.set_in_flight(0, 1);
    assert_eq!(answer(&balancer), Next::Busy);
}

#[test]
fn warns_of_a_server_without_a_limit_that_hides_others() {
    let logged = |room: &[u32]| cluster(room).balancer::<First>().build().unwrap().logged();
    assert_eq!(
        logged(&[5, 0, 0]),
        [
            "warn: server http://10.0.0.2:8080 has no max_requests: those behind it get requests only while it is \
          unavailable"
        ]
    );
    // The last one may be open-ended: there is nobody behind it.
    assert_eq!(logged(&[5, 5, 0]), [""; 0]);
    assert_eq!(logged(&[0]), [""; 0]);
}

#[test]
fn says_why() {
    let cluster = cluster(&[2, 0]);
    cluster.set_in_flight(0, 1);
    let balancer = cluster.balancer::<First>().build().unwrap();
    let mut trylist = balancer.load_balance(FakeRequest::get("/"));
    assert_eq!(trylist.next(), Next::Endpoint(0));
    assert_eq!(trylist.explain(), "the first with room is endpoint 0, with 1 in flight of 2");
    assert_eq!(trylist.next(), Next::Endpoint(1));
    assert_eq!(trylist.explain(), "the first with room is endpoint 1, with 0 in flight without a limit");
    assert_eq!(trylist.next(), Next::Exhausted);
    assert_eq!(trylist.explain(), "");
}

#[test]
fn takes_no_settings() {
    let refused = FakeCluster::equal(1).balancer::<First>().setting("room", 5).build().err().unwrap();
    assert_eq!(refused.to_string(), "room: unknown setting, this module has none");
}
