//! slowhttptest, which opens many connections and keeps each busy with next to nothing: the proxy's time-outs get rid of them
//! while others are served.

use tests::client::Client;
use tests::eventually;
use tests::origin::Origin;
use tests::proxy::Proxy;
use tests::tool::RunningTool;

/// Connections of the attack.
const N: usize = 50;

/// Has slowhttptest attack the proxy in this way until all of its connections are gone, while another client is served.
#[track_caller]
fn is_got_rid_of(timeouts: &str, way: &[&str]) {
    let big = "x".repeat(8 << 20);
    let origin = Origin::replying(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{big}", big.len()));
    let proxy = Proxy::over([&origin]).in_cluster("response_timeout = \"1h\"").tables(timeouts).start();
    let url = format!("http://{}/", proxy.address());
    let n = N.to_string();
    let arguments = [way, &["-c", &n, "-r", &n, "-l", "100", "-p", "10", "-u", &url]].concat();
    let Some(mut attack) = RunningTool::start("slowhttptest", &arguments) else { return };
    let listener = proxy.address();
    let count = |name: &str| proxy.metric(&format!("{name}{{listener=\"{listener}\"}}")) as usize;
    eventually("the attack", || (count("trylist_connections_total") >= N).then_some(()));
    let mut other = Client::connect(listener);
    assert_eq!(other.get("/").reply().body.len(), big.len(), "another client");
    // It looks by itself whether the proxy still answers, with a connection more.
    eventually("the end of the attack's connections", || {
        (count("trylist_open_connections") <= 2).then_some(())
    });
    assert_eq!(other.get("/").reply().body.len(), big.len(), "another client");
    assert!(count("trylist_connections_total") > N, "there was no attack");
    // It ends when its last connection is gone, as far as it sees that; else it would have gone on.
    let said = attack.ended().unwrap_or("No open connections left".to_owned());
    assert!(said.contains("No open connections left"), "{said}");
}

#[test]
fn heads_that_come_in_drops() {
    is_got_rid_of("[timeouts]\nrequest_head = \"2s\"", &["-H", "-i", "1", "-x", "10"]);
}

#[test]
fn bodies_that_stop_coming() {
    is_got_rid_of("[timeouts]\nbody = \"1s\"", &["-B", "-i", "30", "-s", "8192", "-x", "10"]);
}

#[test]
fn bodies_that_come_in_drops() {
    is_got_rid_of("[timeouts]\nrequest = \"3s\"", &["-B", "-i", "1", "-s", "8192", "-x", "10"]);
}

#[test]
fn responses_that_nobody_reads() {
    is_got_rid_of("[timeouts]\nbody = \"1s\"", &["-X", "-w", "512", "-y", "1024", "-n", "30", "-z", "32"]);
}
