//! Connections to addresses that answer, refuse, or swallow what is sent to them.

use std::net::{IpAddr, Ipv4Addr};

use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::TcpListener;

use super::race::order;
use super::*;
use crate::cluster::names::HostName;

const LONG: Duration = Duration::from_secs(3600);

fn ip(last: u8) -> IpAddr {
    Ipv4Addr::new(127, 0, 6, last).into()
}

/// Servers at one port of these addresses.
async fn servers<const N: usize>(last: [u8; N]) -> ([TcpListener; N], u16) {
    let mut port = 0;
    let mut servers = Vec::new();
    for last in last {
        let server = TcpListener::bind((ip(last), port)).await.expect("an address");
        port = server.local_addr().expect("bound").port();
        servers.push(server);
    }
    (servers.try_into().expect("as many"), port)
}

/// An address that swallows what asks for a connection: a listener whose queue is full.
fn black_hole(address: SocketAddr) -> Vec<Socket> {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    let address = SockAddr::from(address);
    listener.bind(&address).expect("an address");
    listener.listen(0).expect("listens");
    let mut held = vec![listener];
    for _ in 0..4 {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.set_nonblocking(true).expect("set");
        // It is under way.
        let _ = socket.connect(&address);
        held.push(socket);
    }
    held
}

fn name(port: u16, last: &[u8]) -> Addresses {
    let known: Vec<IpAddr> = last.iter().copied().map(ip).collect();
    Addresses::Named(HostName::with("name.invalid", port, &known))
}

fn dial(addresses: &Addresses) -> Dial<'_> {
    Dial { addresses, port: None, tls: None, preface: &[], patience: LONG, fair: LONG }
}

async fn peer(dial: Dial<'_>) -> IpAddr {
    match dial.connect().await.expect("a connection") {
        Dialled::Plain(stream) => stream.peer_addr().expect("connected").ip(),
        Dialled::Secured(_) => panic!("nobody asked for TLS"),
    }
}

async fn first_in_order(addresses: &Addresses, now: Instant) -> usize {
    let answer = addresses.name().expect("a name").addresses().await;
    order(answer.as_ref().as_ref().expect("addresses"), now, true)[0]
}

/// With patience for an hour, it ends only because another address is tried beside the first.
#[tokio::test]
async fn an_address_that_swallows_packets_gets_company_and_then_stands_behind() {
    let (_servers, port) = servers([2]).await;
    let _hole = black_hole((ip(1), port).into());
    let addresses = name(port, &[1, 2]);
    assert_eq!(peer(dial(&addresses)).await, ip(2));
    let now = Instant::now();
    assert_eq!(first_in_order(&addresses, now).await, 1, "it is known now");
    let later = now + Duration::from_secs(6);
    assert_eq!(first_in_order(&addresses, later).await, 0, "it is tried again");
    assert_eq!(first_in_order(&addresses, later).await, 1, "once");
}

#[tokio::test]
async fn an_address_that_refuses_is_passed_over_and_one_that_works_again_is_forgiven() {
    let (_two, port) = servers([2]).await;
    let addresses = name(port, &[1, 2]);
    assert_eq!(peer(dial(&addresses)).await, ip(2));
    assert_eq!(first_in_order(&addresses, Instant::now()).await, 1);
    let _one = TcpListener::bind((ip(1), port)).await.expect("it was free");
    let answer = addresses.name().expect("a name").addresses().await;
    let places = answer.as_ref().as_ref().expect("addresses");
    // The other one fails, and this one has a connection.
    places[1].reach.failed(Instant::now(), Instant::now());
    assert_eq!(peer(dial(&addresses)).await, ip(1));
    assert_eq!(order(places, Instant::now(), true), [0, 1]);
}

#[tokio::test]
async fn a_check_on_another_port_learns_nothing_of_the_server_s() {
    let (_servers, port) = servers([2]).await;
    let addresses = name(1, &[1, 2]);
    assert_eq!(peer(Dial { port: Some(port), ..dial(&addresses) }).await, ip(2));
    assert_eq!(first_in_order(&addresses, Instant::now()).await, 0);
}

#[tokio::test]
async fn a_check_on_another_port_does_not_use_up_the_trial_of_an_address() {
    let (_servers, port) = servers([2]).await;
    let addresses = name(1, &[1, 2]);
    let answer = addresses.name().expect("a name").addresses().await;
    let long_ago = Instant::now() - Duration::from_secs(6);
    answer.as_ref().as_ref().expect("addresses")[0].reach.failed(long_ago, long_ago);
    assert_eq!(peer(Dial { port: Some(port), ..dial(&addresses) }).await, ip(2));
    assert_eq!(first_in_order(&addresses, Instant::now()).await, 0, "it is still to be tried");
}

#[tokio::test]
async fn where_all_fail_it_says_why_and_all_are_tried_the_next_time() {
    let (servers, port) = servers([1, 2]).await;
    drop(servers);
    let addresses = name(port, &[1, 2]);
    let error = dial(&addresses).connect().await.expect_err("nobody listens");
    assert_eq!((error.kind, error.text.as_str()), (wire::FAILURE_CONNECT, "connection refused"));
    let _two = TcpListener::bind((ip(2), port)).await.expect("it was free");
    assert_eq!(peer(dial(&addresses)).await, ip(2));
}

#[tokio::test]
async fn the_time_for_a_connection_is_that_of_all_addresses() {
    let (servers, port) = servers([1, 2]).await;
    drop(servers);
    let _holes = [1, 2].map(|last| black_hole((ip(last), port).into()));
    let addresses = name(port, &[1, 2]);
    let patience = Duration::from_millis(20);
    let timed_out = async |fair: Duration| {
        let dial = Dial { patience, fair, ..dial(&addresses) };
        let error = dial.connect().await.expect_err("nobody answers");
        assert_eq!(error.kind, wire::FAILURE_CONNECT_TIMEOUT);
        assert_eq!(error.text, "no connection within 20ms");
        let answer = addresses.name().expect("a name").addresses().await;
        answer.as_ref().as_ref().expect("addresses").iter().all(|place| place.reach.is_well())
    };
    assert!(timed_out(LONG).await, "a dial in a hurry says nothing of them");
    assert!(!timed_out(patience).await, "the first had all of the time");
}

/// A head start of a millisecond was enough to stand behind the other address from then on.
#[tokio::test]
async fn an_address_that_is_outpaced_within_a_short_head_start_is_not_blamed() {
    let (_servers, port) = servers([2]).await;
    let _hole = black_hole((ip(1), port).into());
    let addresses = name(port, &[1, 2]);
    let patience = Duration::from_millis(80);
    // Where the machine is so slow that the time is over first, it is not blamed either.
    let _ = Dial { patience, ..dial(&addresses) }.connect().await;
    assert_eq!(first_in_order(&addresses, Instant::now()).await, 0);
}
