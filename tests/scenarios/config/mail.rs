//! The configuration lines of the mail of July 2003 as they stood, run by the program from the build tree.

use std::fs;

use tests::client::Client;
use tests::command::Running;
use tests::origin::Origin;

/// The mail's lines with these servers, and a `Listen`.
fn start(first: &str, second: &str) -> (tempfile::TempDir, Running, Client) {
    let lines = "LoadModule proxy_lb_module modules/mod_proxy_lb.so
<IfModule mod_proxy_lb.c>
    LBServerCluster cluster1 http://downstreamserver1:port
    LBServerCluster cluster1 http://downstreamserver2:port
    LBProxyPass        /file500.html        cluster1
    LBProxyPass        /snoop               cluster1
</IfModule>
";
    let lines = lines
        .replace("http://downstreamserver1:port", first)
        .replace("http://downstreamserver2:port", second);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("httpd.conf");
    fs::write(&file, format!("Listen 127.0.0.1:0\n{lines}")).unwrap();
    let running = Running::start(&["run", "-c", file.to_str().unwrap()]);
    let client = Client::connect(running.address());
    (folder, running, client)
}

fn snoop(client: &mut Client, n: usize) -> String {
    (0..n).map(|_| client.get("/snoop").reply().text()).collect::<Vec<_>>().join(" ")
}

#[test]
fn snoop_asks_the_servers_in_turn_in_the_order_of_the_file() {
    let (first, second) = (Origin::named("first"), Origin::named("second"));
    let (_folder, _running, mut client) = start(&first.url(), &second.url());
    assert_eq!(snoop(&mut client, 5), "first second first second first");
    assert_eq!(first.requests()[0].line(), "GET /snoop HTTP/1.1", "the path stays");
    assert_eq!(client.get("/other").reply().status(), 404);
}

#[test]
fn with_the_first_stopped_the_second_answers_everything() {
    let (first, second) = (Origin::named("first"), Origin::named("second"));
    let (_folder, _running, mut client) = start(&first.url(), &second.url());
    assert_eq!(snoop(&mut client, 3), "first second first");
    first.stop();
    assert_eq!(snoop(&mut client, 6), ["second"; 6].join(" "));
}

#[test]
fn with_the_firsts_name_unknown_the_second_answers_everything() {
    let second = Origin::named("second");
    let (_folder, _running, mut client) = start("http://downstreamserver1.invalid:80", &second.url());
    assert_eq!(snoop(&mut client, 6), ["second"; 6].join(" "));
}

#[test]
fn the_servers_errors_are_passed_on() {
    let not_found = Origin::replying("HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\n\r\n404");
    let broken = Origin::replying("HTTP/1.1 500 Oops\r\nContent-Length: 3\r\n\r\n500");
    let (_folder, _running, mut client) = start(&not_found.url(), &broken.url());
    for status in [404, 500, 404, 500] {
        let reply = client.get("/file500.html").reply();
        assert_eq!((reply.status(), reply.text()), (status, status.to_string()));
    }
    assert_eq!((not_found.requests().len(), broken.requests().len()), (2, 2));
}
