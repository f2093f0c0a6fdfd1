//! How a worker ends: what runs is finished, within its time, and nothing new is taken.

use tests::Gate;
use tests::client::Client;
use tests::log;
use tests::origin::Origin;
use tests::proxy::Proxy;
use tests::stream::End;
use trylist::serve::drain::Idle;

/// Answers once the gate is open.
fn waiting_for(go: &Gate) -> Origin {
    let go = go.clone();
    Origin::serving(move |conn| {
        while conn.request().is_some() {
            go.wait();
            conn.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone");
        }
    })
}

#[test]
fn what_runs_is_finished_and_then_the_worker_ends() {
    let go = Gate::default();
    let origin = waiting_for(&go);
    let proxy = Proxy::over([&origin]).threads(2).start();
    let mut clients = [proxy.connect(), proxy.connect(), proxy.connect()];
    for client in &mut clients {
        client.get("/");
    }
    origin.wait_for_requests(3);
    proxy.control().drain(Idle::Close);
    go.open();
    for client in &mut clients {
        let reply = client.reply();
        assert_eq!((reply.text().as_str(), reply.header("connection")), ("done", Some("close")));
        assert_eq!(client.end(), End::Eof);
    }
    proxy.wait();
}

#[test]
fn nothing_new_is_taken() {
    let go = Gate::default();
    let origin = waiting_for(&go);
    let proxy = Proxy::over([&origin]).start();
    let mut running = proxy.connect();
    running.get("/");
    origin.wait_for_requests(1);
    proxy.control().drain(Idle::Close);
    let address = proxy.address();
    tests::eventually("the listener is closed", || Client::try_connect(address).err());
    go.open();
    assert_eq!(running.reply().text(), "done");
    proxy.wait();
}

#[test]
fn idle_connections_are_closed() {
    let origin = Origin::named("a");
    let proxy = Proxy::over([&origin]).start();
    let mut idle = proxy.connect();
    assert_eq!(idle.get("/").reply().text(), "a");
    let mut silent = proxy.connect();
    proxy.wait_for_metric(&format!("trylist_open_connections{{listener=\"{}\"}}", proxy.address()), 2.0);
    proxy.control().drain(Idle::Close);
    assert_eq!((idle.end(), silent.end()), (End::Eof, End::Eof));
    proxy.wait();
}

#[test]
fn idle_connections_answer_once_more_where_another_worker_takes_over() {
    let origin = Origin::named("a");
    let proxy = Proxy::over([&origin]).start();
    let mut idle = proxy.connect();
    assert_eq!(idle.get("/").reply().header("connection"), None);
    proxy.control().drain(Idle::AnswerOneMore);
    let address = proxy.address();
    tests::eventually("the drain has begun", || Client::try_connect(address).err());
    let reply = idle.get("/").reply();
    assert_eq!((reply.text().as_str(), reply.header("connection")), ("a", Some("close")));
    assert_eq!(idle.end(), End::Eof);
    proxy.wait();
}

#[test]
fn what_does_not_end_in_time_is_cut_off() {
    let origin = waiting_for(&Gate::default());
    let proxy = Proxy::over([&origin]).tables("[timeouts]\ndrain = \"50ms\"").start();
    let mut client = proxy.connect();
    client.get("/cut");
    origin.wait_for_requests(1);
    proxy.control().drain(Idle::Close);
    client.end();
    proxy.wait();
    log::line(&["drain timeout: closing the remaining connections"]);
}

#[test]
fn a_body_under_way_is_finished() {
    let half = Gate::default();
    let origin = Origin::serving({
        let half = half.clone();
        move |conn| {
            conn.request();
            conn.send("HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf");
            half.wait();
            conn.send("half");
        }
    });
    let proxy = Proxy::over([&origin]).start();
    let mut client = proxy.connect();
    client.get("/").reply_head();
    client.bytes(4);
    proxy.control().drain(Idle::Close);
    half.open();
    assert_eq!(client.bytes(4), b"half");
    proxy.wait();
}

#[test]
fn a_worker_that_is_dropped_leaves_nothing_behind() {
    let origin = Origin::named("a");
    let proxy = Proxy::over([&origin]).threads(2).start();
    let mut client = proxy.connect();
    assert_eq!(client.get("/").reply().text(), "a");
    let address = proxy.address();
    drop(proxy);
    client.end();
    Client::try_connect(address).expect_err("nobody listens");
}
