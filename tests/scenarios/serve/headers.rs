//! Headers as an operator wants them, IDs of requests, and whom proxies in front are believed to ask for.

use std::net::TcpStream;
use std::time::Duration;

use tests::Gate;
use tests::client::Client;
use tests::h2::Frames;
use tests::log;
use tests::origin::{Conn, Origin};
use tests::proxy::{Builder, Proxy};
use tests::stream::{End, Message};

fn route(lines: &str) -> String {
    format!("path = \"/\"\n{lines}")
}

/// The request as a server gets it, sent through a proxy with this route and these tables.
#[track_caller]
fn received(route_lines: &str, top: &str, request: &str) -> Message {
    let origin = Origin::named("a");
    let proxy = Proxy::over([&origin]).route(&route(route_lines)).tables(top).start();
    assert_eq!(proxy.connect().send(request).reply().text(), "a");
    origin.request()
}

const GET: &str = "GET /p/../q?x=1 HTTP/1.1\r\nHost: h.example:8\r\nX-Old: 1\r\nX-Set: 1\r\nX-Set: 2\r\n";

// ---- rules -----------------------------------------------------------------------------------------------------------

#[test]
fn request_headers_are_removed_set_and_added() {
    let rules =
        "request_headers = { remove = [\"x-old\"], set = { X-Set = \"3\" }, add = { X-Add = \"4\" } }";
    let request = received(rules, "", &format!("{GET}X-Add: 0\r\n\r\n"));
    assert_eq!((request.header("x-old"), request.headers("x-set")), (None, vec!["3"]));
    assert_eq!(request.headers("x-add"), ["0", "4"]);
}

#[test]
fn variables_have_their_values() {
    let origin = Origin::replying("HTTP/1.1 404 No\r\nContent-Length: 0\r\nX-Old: 1\r\n\r\n");
    let value = "${client_address} ${peer_address} ${scheme} ${host} ${method} ${path} ${query} ${cluster} ${endpoint}";
    let rules = format!(
        "request_headers = {{ set = {{ X-All = \"{value} ${{client_port}}\" }} }}\n\
         response_headers = {{ remove = [\"X-Old\"], set = {{ X-All = \"{value} ${{status}}\" }} }}"
    );
    let proxy = Proxy::over([&origin]).named("c").route(&route(&rules)).start();
    let mut client = proxy.connect();
    let reply = client.send(format!("{GET}\r\n")).reply();
    let url = origin.url();
    let values = format!("127.0.0.1 127.0.0.1 http h.example:8 GET /q x=1 c {url}");
    assert_eq!(reply.header("x-all"), Some(&*format!("{values} 404")));
    assert_eq!(reply.header("x-old"), None);
    assert_eq!(origin.request().header("x-all"), Some(&*format!("{values} {}", client.address().port())));
}

#[test]
fn lines_of_the_proxys_own_can_be_replaced_and_left_out() {
    let rules = "request_headers = { remove = [\"Via\", \"X-Forwarded-Host\", \"X-Forwarded-Proto\"], \
                 set = { X-Forwarded-For = \"unknown\" } }\n\
                 response_headers = { remove = [\"Via\"], set = { Date = \"today\" } }";
    let origin = Origin::named("a");
    let proxy = Proxy::over([&origin]).route(&route(rules)).start();
    let reply = proxy.connect().send(format!("{GET}X-Forwarded-For: 1.1.1.1\r\n\r\n")).reply();
    assert_eq!((reply.header("via"), reply.header("date")), (None, Some("today")));
    let request = origin.request();
    assert_eq!(request.header("x-forwarded-for"), Some("unknown"));
    for absent in ["via", "x-forwarded-host", "x-forwarded-proto"] {
        assert_eq!(request.header(absent), None, "{absent}");
    }
}

#[test]
fn a_clusters_rules_come_before_its_routes() {
    let origin = Origin::named("a");
    let proxy = Proxy::over([&origin])
        .in_cluster("request_headers = { set = { A = \"cluster\", B = \"cluster\" } }")
        .route("path = \"/\"\nrequest_headers = { set = { a = \"route\" } }")
        .route("path = \"/other\"")
        .start();
    let mut client = proxy.connect();
    client.get("/").reply();
    client.get("/other").reply();
    let requests = origin.wait_for_requests(2);
    let both = |i: usize| (requests[i].header("a"), requests[i].header("b"));
    assert_eq!(both(0), (Some("route"), Some("cluster")));
    assert_eq!(both(1), (Some("cluster"), Some("cluster")));
}

// ---- IDs -------------------------------------------------------------------------------------------------------------

#[test]
fn requests_get_an_id_that_nobody_else_chooses() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("access.log");
    let origin = Origin::named("a");
    let builder = Proxy::over([&origin]).tables(&format!("[access_log]\npath = {file:?}"));
    let builder = builder.route(&route("response_headers = { set = { X-Id = \"${request_id}\" } }"));
    let text = format!("request_id = \"X-Request-Id\"\n{}", builder.text());
    let proxy = Proxy::of("test.toml", &text).unwrap();
    let mut client = proxy.connect();
    let said = client.send(format!("{GET}X-Request-Id: mine\r\ntraceparent: 00-a-b-01\r\n\r\n")).reply();
    client.get("/").reply();
    let requests = origin.wait_for_requests(2);
    let ids: Vec<&str> = requests.iter().filter_map(|request| request.header("x-request-id")).collect();
    assert!(ids.len() == 2 && ids[0] != ids[1], "{ids:?}");
    assert!(
        ids.iter().all(|id| id.len() == 32 && id.bytes().all(|digit| digit.is_ascii_hexdigit())),
        "{ids:?}"
    );
    assert_eq!(said.header("x-id"), Some(ids[0]));
    assert_eq!(requests[0].header("traceparent"), Some("00-a-b-01"));
    drop(proxy);
    let log = std::fs::read_to_string(&file).unwrap();
    let ends: Vec<_> = log.lines().filter_map(|line| line.split(" request_id=").nth(1)).collect();
    assert_eq!(ends, ids);
}

#[test]
fn a_trusted_proxys_id_is_passed_on() {
    let id = |trusted: &str, sent: &str| {
        let origin = Origin::named("a");
        let builder = Proxy::over([&origin]).tables(&format!("[forwarded]\ntrusted = [{trusted}]"));
        let text = format!("request_id = \"X-Request-Id\"\n{}", builder.text());
        let proxy = Proxy::of("test.toml", &text).unwrap();
        proxy.connect().send(format!("{GET}X-Request-Id: {sent}\r\n\r\n")).reply();
        origin.request().header("x-request-id").unwrap().to_owned()
    };
    assert_eq!(id("\"127.0.0.0/8\"", "of-the-edge"), "of-the-edge");
    assert_ne!(id("\"10.0.0.0/8\"", "of-the-edge"), "of-the-edge");
    assert_eq!(id("\"127.0.0.0/8\"", "not one").len(), 32);
}

// ---- proxies in front ------------------------------------------------------------------------------------------------

#[test]
fn the_client_is_whom_trusted_proxies_name() {
    let ask = |trusted: &str, lines: &str| {
        let tables = format!("[forwarded]\ntrusted = [{trusted}]");
        received(
            "request_headers = { set = { X-Client = \"${client_address} ${scheme}\" } }",
            &tables,
            &format!("{GET}{lines}\r\n"),
        )
    };
    let lines = "X-Forwarded-For: 6.6.6.6, 1.2.3.4, 10.0.0.7\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: outer\r\n";
    let believed = ask("\"127.0.0.1\", \"10.0.0.0/8\"", lines);
    assert_eq!(believed.header("x-client"), Some("1.2.3.4 https"));
    assert_eq!(believed.header("x-forwarded-for"), Some("6.6.6.6, 1.2.3.4, 10.0.0.7, 127.0.0.1"));
    assert_eq!(believed.header("x-forwarded-proto"), Some("https"));
    assert_eq!(believed.header("x-forwarded-host"), Some("outer"));
    let not = ask("\"10.0.0.0/8\"", lines);
    assert_eq!(not.header("x-client"), Some("127.0.0.1 http"));
    assert_eq!(not.header("x-forwarded-proto"), Some("http"));
    assert_eq!(not.header("x-forwarded-host"), Some("h.example:8"));
}

#[test]
fn servers_get_the_headers_that_are_asked_for() {
    let both =
        received("", "[forwarded]\nwrite = [\"Forwarded\", \"X-Forwarded-For\"]", &format!("{GET}\r\n"));
    assert_eq!(both.header("forwarded"), Some("for=127.0.0.1;host=\"h.example:8\";proto=http"));
    assert_eq!(both.header("x-forwarded-for"), Some("127.0.0.1"));
    let none = received("", "[forwarded]\nwrite = []", &format!("{GET}X-Forwarded-For: 6.6.6.6\r\n\r\n"));
    assert_eq!((none.header("forwarded"), none.header("x-forwarded-for")), (None, None));
}

#[test]
fn balancing_and_the_log_see_the_same_client() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("access.log");
    let origins = ["a", "b", "c", "d"].map(Origin::named);
    let proxy = Proxy::over(&origins)
        .module("ip_hash")
        .tables(&format!("[forwarded]\ntrusted = [\"127.0.0.1\"]\n[access_log]\npath = {file:?}"))
        .start();
    let mut client = proxy.connect();
    let mut ask = |client_address: String| {
        client
            .send(format!("GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: {client_address}\r\n\r\n"))
            .reply()
            .text()
    };
    // ip_hash takes networks of 24 bits for one client.
    let names: std::collections::HashSet<_> = (0..40).map(|i| ask(format!("10.0.{i}.1"))).collect();
    assert!(names.len() > 1, "one address, one server: {names:?}");
    drop(proxy);
    let log = std::fs::read_to_string(&file).unwrap();
    assert!(log.starts_with("10.0.0.1 - - ["), "{log}");
    assert_eq!(log.lines().filter(|line| line.starts_with("10.0.")).count(), 40);
}

// ---- PROXY -----------------------------------------------------------------------------------------------------------

fn behind_proxy(from: &str) -> (Origin, Proxy) {
    let origin = Origin::named("a");
    let builder = Proxy::over([&origin])
        .route(&route("request_headers = { set = { X-Client = \"${client_address} ${client_port}\" } }"));
    let proxy =
        builder.listener(&format!("proxy_protocol = {{ from = [{from}], timeout = \"200ms\" }}")).start();
    (origin, proxy)
}

#[test]
fn a_proxy_header_names_the_client() {
    let v1 = b"PROXY TCP4 192.0.2.9 192.0.2.1 5555 80\r\n".to_vec();
    let v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0f\xc0\0\x02\x09\xc0\0\x02\x01\x15\xb3\0\x50\x04\0\0".to_vec();
    for header in [v1, v2] {
        let (origin, proxy) = behind_proxy("\"127.0.0.0/8\"");
        let mut client = proxy.connect();
        // The request comes with it, and another one after it.
        client.send([&header[..], b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"].concat());
        assert_eq!(client.reply().text(), "a");
        client.get("/").reply();
        for request in origin.wait_for_requests(2) {
            assert_eq!(request.header("x-client"), Some("192.0.2.9 5555"));
            assert_eq!(request.header("x-forwarded-for"), Some("192.0.2.9"));
        }
    }
}

#[test]
fn curl_names_its_client() {
    if std::process::Command::new("curl").arg("--version").output().is_err() {
        println!("skipped: curl is not installed");
        return;
    }
    let (origin, proxy) = behind_proxy("\"127.0.0.0/8\"");
    let url = format!("http://{}/x", proxy.address());
    let output =
        std::process::Command::new("curl").args(["-sS", "--haproxy-protocol", &url]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "a", "{}", String::from_utf8_lossy(&output.stderr));
    let client = origin.request().header("x-client").unwrap().to_owned();
    assert!(client.starts_with("127.0.0.1 ") && client.len() > "127.0.0.1 ".len(), "{client}");
}

#[test]
fn a_connection_of_the_balancers_own_is_its_own() {
    let (origin, proxy) = behind_proxy("\"127.0.0.0/8\"");
    let mut client = proxy.connect();
    client.send("PROXY UNKNOWN\r\n").get("/").reply();
    assert_eq!(origin.request().header("x-client"), Some(&*format!("127.0.0.1 {}", client.address().port())));
}

#[test]
fn rubbish_in_place_of_a_proxy_header_ends_the_connection_with_one_line() {
    for (sent, why) in [
        ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", "no PROXY signature"),
        ("PROXY TCP4 a b 1 2\r\nGET / HTTP/1.1\r\n\r\n", "invalid address"),
        ("PROXY TCP4 1.1", "it did not come within 200ms"),
    ] {
        let (origin, proxy) = behind_proxy("\"127.0.0.0/8\"");
        let mut client = proxy.connect();
        client.send(sent);
        let (said, _) = client.rest();
        assert_eq!(said, "", "{sent:?}");
        let listener = proxy.address().to_string();
        let line = log::line(&["invalid PROXY header", &format!("listener={listener}")]);
        assert!(line.contains(why), "{line}");
        assert_eq!(origin.n_connections(), 0);
        proxy.wait_for_metric(&format!("trylist_bad_proxy_headers_total{{listener=\"{listener}\"}}"), 1.0);
        assert_eq!(proxy.metric(&format!("trylist_open_connections{{listener=\"{listener}\"}}")), 0.0);
    }
}

#[test]
fn who_only_asks_whether_somebody_listens_is_no_fault() {
    let (_origin, proxy) = behind_proxy("\"127.0.0.0/8\"");
    let listener = proxy.address().to_string();
    drop(proxy.connect());
    proxy.wait_for_metric(&format!("trylist_connections_total{{listener=\"{listener}\"}}"), 1.0);
    proxy.wait_for_metric(&format!("trylist_open_connections{{listener=\"{listener}\"}}"), 0.0);
    assert_eq!(proxy.metric(&format!("trylist_bad_proxy_headers_total{{listener=\"{listener}\"}}")), 0.0);
}

#[test]
fn from_elsewhere_a_proxy_header_is_no_request() {
    let (origin, proxy) = behind_proxy("\"10.0.0.0/8\"");
    assert_eq!(proxy.get("/").text(), "a");
    let mut client = proxy.connect();
    client.send("PROXY TCP4 192.0.2.9 192.0.2.1 5555 80\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.reply().status(), 400);
    assert_eq!(origin.requests().len(), 1);
}

/// The bytes of a connection up to its first request, and that request.
fn with_preface(conn: &mut Conn, n: usize) -> Vec<u8> {
    let preface = conn.bytes(n);
    while conn.request().is_some() && conn.send("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na") {}
    preface
}

/// A PROXY header of version 1.
fn line_of(conn: &mut Conn) -> String {
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        line.extend(conn.bytes(1));
    }
    String::from_utf8(line).unwrap()
}

#[test]
fn servers_get_a_proxy_header_on_each_connection() {
    let line = |client: &Client, proxy: &Proxy| {
        let (from, to) = (client.address(), proxy.address());
        format!("PROXY TCP4 {} {} {} {}\r\n", from.ip(), to.ip(), from.port(), to.port())
    };
    let prefaces = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let origin = Origin::serving({
        let prefaces = std::sync::Arc::clone(&prefaces);
        move |conn| {
            prefaces.lock().unwrap().push(line_of(conn));
            with_preface(conn, 0);
        }
    });
    let proxy = Proxy::over([&origin]).in_cluster("send_proxy_protocol = \"v1\"").start();
    let (mut first, mut second) = (proxy.connect(), proxy.connect());
    first.get("/").reply();
    second.get("/").reply();
    second.get("/").reply();
    let expected = [line(&first, &proxy), line(&second, &proxy), line(&second, &proxy)];
    assert_eq!(*prefaces.lock().unwrap(), expected, "no connection is shared by clients");
}

#[test]
fn servers_get_the_header_for_streams_of_http2_too() {
    let origin = Origin::serving(|conn| {
        let line = line_of(conn);
        if conn.request().is_some() {
            conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{line}", line.len()));
        }
    });
    let proxy =
        Proxy::over([&origin]).listener("h2 = true").in_cluster("send_proxy_protocol = \"v1\"").start();
    let mut client = Frames::connect(proxy.address());
    client.get(1, "/");
    let line = client.body(1);
    let port = proxy.address().port();
    assert!(line.starts_with("PROXY TCP4 127.0.0.1 127.0.0.1 "), "{line}");
    assert!(line.ends_with(&format!(" {port}\r\n")), "{line}");
}

#[test]
fn servers_get_a_binary_header_that_names_the_real_client() {
    let (send, receive) = std::sync::mpsc::channel();
    let send = std::sync::Mutex::new(send);
    let origin = Origin::serving(move |conn| {
        let preface = with_preface(conn, 28);
        let _ = send.lock().unwrap().send(preface);
    });
    let proxy = Proxy::over([&origin])
        .in_cluster("send_proxy_protocol = \"v2\"")
        .tables("[forwarded]\ntrusted = [\"127.0.0.1\"]")
        .start();
    proxy.connect().send("GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 192.0.2.9\r\n\r\n").reply();
    drop(proxy);
    let preface = receive.recv_timeout(Duration::from_secs(20)).unwrap();
    assert_eq!(preface[..16], *b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c");
    assert_eq!(preface[16..20], [192, 0, 2, 9]);
}

// ---- limits ----------------------------------------------------------------------------------------------------------

fn held() -> (Origin, Gate, Gate) {
    let (arrived, go) = (Gate::default(), Gate::default());
    let origin = Origin::serving({
        let (arrived, go) = (arrived.clone(), go.clone());
        move |conn| {
            while conn.request().is_some() {
                arrived.open();
                go.wait();
                conn.send("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na");
            }
        }
    });
    (origin, arrived, go)
}

#[test]
fn a_cluster_that_has_as_many_requests_as_it_may_refuses_at_once() {
    let (origin, arrived, go) = held();
    let proxy = Proxy::over([&origin]).in_cluster("max_requests = 1").start();
    let mut first = proxy.connect();
    first.get("/");
    arrived.wait();
    let mut second = proxy.connect();
    let reply = second.get("/").reply();
    assert_eq!((reply.status(), reply.header("retry-after")), (503, Some("1")));
    assert!(reply.text().contains("too many concurrent requests"), "{reply:?}");
    proxy.wait_for_metric("trylist_overloaded_total{cluster=\"%\"}", 1.0);
    go.open();
    assert_eq!(first.reply().text(), "a");
    assert_eq!(second.get("/").reply().text(), "a", "its place is free again, and the connection goes on");
    assert_eq!(origin.requests().len(), 2);
}

fn limited(builder: Builder) -> Proxy {
    builder.listener("max_connections_per_client = 2").start()
}

/// Whether a connection is let in: one that is not is closed without a word.
fn is_let_in(mut client: Client, header: &str) -> Option<Client> {
    client.send(format!("{header}GET / HTTP/1.1\r\nHost: a\r\n\r\n"));
    match client.try_reply() {
        Ok(reply) => {
            assert_eq!(reply.text(), "a");
            Some(client)
        }
        Err(end) => {
            assert_ne!(end, End::Silent);
            None
        }
    }
}

#[test]
fn a_client_has_no_more_connections_than_it_may() {
    let origin = Origin::named("a");
    let proxy = limited(Proxy::over([&origin]));
    let from = |host: u8| {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&std::net::SocketAddr::from(([127, 0, 0, host], 0)).into()).unwrap();
        socket.connect(&proxy.address().into()).unwrap();
        Client::of(TcpStream::from(socket))
    };
    let (first, _second) = (is_let_in(from(1), "").unwrap(), is_let_in(from(1), "").unwrap());
    assert!(is_let_in(from(1), "").is_none());
    assert!(is_let_in(from(2), "").is_some(), "another client");
    let series = format!("trylist_client_full_total{{listener=\"{}\"}}", proxy.address());
    proxy.wait_for_metric(&series, 1.0);
    drop(first);
    tests::eventually("a place that is free again", || is_let_in(from(1), ""));
}

#[test]
fn behind_a_balancer_clients_are_counted_by_what_it_says() {
    let origin = Origin::named("a");
    let proxy = limited(Proxy::over([&origin]).listener("proxy_protocol = { from = [\"127.0.0.1\"] }"));
    let header = |host: u8| format!("PROXY TCP4 192.0.2.{host} 192.0.2.1 5555 80\r\n");
    let held: Vec<_> = (1..=6).map(|i| is_let_in(proxy.connect(), &header(i / 2)).unwrap()).collect();
    assert!(is_let_in(proxy.connect(), &header(1)).is_none());
    drop(held);
}

#[test]
fn checks_of_such_servers_are_the_proxys_own() {
    let origin = Origin::serving(|conn| {
        let preface = conn.bytes(15);
        let mut has_named = false;
        while let Some(request) = conn.request() {
            has_named |= preface == b"PROXY UNKNOWN\r\n" && request.line().contains("/health");
            let status = if has_named { 200 } else { 500 };
            if !conn.send(format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n")) {
                return;
            }
        }
    });
    let check = "health_check = { path = \"/health\", fall = 1, interval = \"2ms\" }";
    let proxy = Proxy::over([&origin]).in_cluster(check).in_cluster("send_proxy_protocol = \"v1\"").start();
    origin.wait_for_requests(5);
    let url = origin.url();
    let available = format!("trylist_endpoint_state{{cluster=\"%\",endpoint=\"{url}\",state=\"available\"}}");
    assert_eq!(proxy.metric(&available), 1.0);
}

// ---- what clients invent ---------------------------------------------------------------------------------------------

#[test]
fn names_that_a_server_cannot_tell_from_ours_are_left_out() {
    let forged = "X_Forwarded_For: 10.0.0.1\r\nx-forwarded_proto: https\r\nX_Forwarded_Host: evil\r\n\
                  X_Real_IP: 10.0.0.1\r\nX-Kept_One: 1\r\n";
    let rules = "request_headers = { set = { X-Real-IP = \"${client_address}\" } }";
    for trusted in ["", "[forwarded]\ntrusted = [\"127.0.0.0/8\"]"] {
        let request = received(rules, trusted, &format!("{GET}{forged}\r\n"));
        let underlined: Vec<_> = request.head.lines().filter(|line| line.contains('_')).collect();
        assert_eq!(underlined, ["X-Kept_One: 1"], "{}", request.head);
        assert_eq!(request.headers("x-real-ip"), ["127.0.0.1"]);
        assert_eq!(request.headers("x-forwarded-for"), ["127.0.0.1"]);
    }
}

/// One function says whether two names are the same, wherever that is asked.
#[test]
fn a_name_with_an_underscore_is_the_same_name_everywhere() {
    // Headers of framing, of routing or of one hop, in another spelling: some servers would take them for the real ones.
    let forged = "Content_Length: 5\r\nTransfer_Encoding: chunked\r\nKeep_Alive: 1\r\nproxy-connection: 1\r\n\
                  Max_Forwards: 1\r\nX_Trylist_Explain: 1\r\nX_Hop: 1\r\nConnection: x-hop\r\nX_End: 1\r\n";
    let head = received("", "", &format!("{GET}{forged}\r\n")).head;
    let underlined: Vec<_> = head.lines().filter(|line| line.contains('_')).collect();
    assert_eq!(underlined, ["X_End: 1"], "{head}");
    // Rules, of which the last one counts.
    let rules =
        "request_headers = { set = { X-A-B = \"1\", X_A_B = \"2\" }, remove = [\"X_Forwarded_For\"] }";
    let request = received(rules, "", &format!("{GET}x-a_b: 0\r\n\r\n"));
    let named: Vec<_> = request.head.lines().filter(|line| line.to_lowercase().contains("a_b")).collect();
    assert_eq!((named, request.header("x-a-b")), (vec!["X_A_B: 2"], None), "{}", request.head);
    assert_eq!(request.header("x-forwarded-for"), None);
    // Keys.
    let origins = ["a", "b", "c", "d"].map(Origin::named);
    let proxy = Proxy::over(&origins).module("hash").in_cluster("key = \"header:X-Key-A\"").start();
    let by = |line: &str| proxy.connect().send(format!("{GET}{line}\r\n\r\n")).reply().text();
    for key in 0..8 {
        assert_eq!(by(&format!("X_Key_A: {key}")), by(&format!("x-key-a: {key}")), "{key}");
    }
    // Trailers.
    let origin = Origin::named("a");
    let proxy = Proxy::over([&origin]).start();
    let mut client = proxy.connect();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nb\r\n0\r\n");
    client.send("If_Match: x\r\nContent_Length: 5\r\nSet_Cookie: a\r\nX_A: b\r\n\r\n");
    assert_eq!(client.reply().text(), "a");
    assert_eq!(origin.request().trailers, "X_A: b\n");
}

#[test]
fn a_quote_that_a_client_leaves_open_takes_in_nothing_of_ours() {
    let passed = |line: &str, tables: &str| {
        let request = received("", tables, &format!("{GET}Forwarded: {line}\r\n\r\n"));
        request.headers("forwarded").join(", ")
    };
    for line in ["for=\"x", "for=6.6.6.6;by=\"", "for=a\"b, for=\"c", "for=\"a\\\""] {
        let sent = passed(line, "[forwarded]\nwrite = [\"Forwarded\"]");
        assert!(sent.starts_with("for=127.0.0.1;"), "{line}: {sent}");
    }
    // Nor of a proxy in front of us that put its element behind it.
    let trusted = "[forwarded]\ntrusted = [\"127.0.0.1\"]\nread = \"Forwarded\"";
    let rules = "request_headers = { set = { X-Client = \"${client_address}\" } }";
    let request =
        received(rules, trusted, &format!("{GET}Forwarded: for=6.6.6.6;by=\", for=1.1.1.1\r\n\r\n"));
    assert_eq!(request.header("x-client"), Some("127.0.0.1"));
}

#[test]
fn forwarded_is_passed_on_only_with_an_element_of_ours_or_from_whom_is_trusted() {
    let forged = format!("{GET}Forwarded: for=6.6.6.6;proto=https\r\n\r\n");
    let passed = |tables: &str| received("", tables, &forged).headers("forwarded").join(", ");
    assert_eq!(passed(""), "");
    let trusted = "[forwarded]\ntrusted = [\"127.0.0.1\"]";
    assert_eq!(passed(trusted), "", "its word is X-Forwarded-For, and this is what its client sent");
    assert_eq!(passed(&format!("{trusted}\nread = \"Forwarded\"")), "for=6.6.6.6;proto=https");
    let both = passed("[forwarded]\nwrite = [\"Forwarded\"]");
    assert!(both.starts_with("for=6.6.6.6;proto=https, for=127.0.0.1;"), "{both}");
}

#[test]
fn who_is_believed_by_forwarded_is_not_believed_by_x_forwarded() {
    let read = "[forwarded]\ntrusted = [\"127.0.0.1\"]\nread = \"Forwarded\"";
    let lines =
        "X-Forwarded-Proto: http\r\nX-Forwarded-Host: evil\r\nForwarded: for=192.0.2.1;proto=https\r\n";
    let rules = "request_headers = { set = { X-Scheme = \"${scheme}\" } }";
    let request = received(rules, read, &format!("{GET}{lines}\r\n"));
    assert_eq!(request.headers("x-forwarded-proto"), ["https"]);
    assert_eq!(request.headers("x-forwarded-host"), ["h.example:8"]);
    assert_eq!(request.header("x-scheme"), Some("https"));
}

#[test]
fn what_is_removed_of_responses_is_removed_of_hints_and_trailers() {
    let origin = Origin::replying(
        "HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\nX-Server: 7\r\n\r\n\
         HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-Server: 7\r\n\r\n1\r\na\r\n0\r\nX-Server: 7\r\nX-Sum: 1\r\n\r\n",
    );
    let rules = "response_headers = { remove = [\"X-Server\"] }";
    let proxy = Proxy::over([&origin]).route(&route(rules)).start();
    let mut client = proxy.connect();
    let hint = client.send("GET / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\n\r\n").reply();
    assert_eq!((hint.status(), hint.header("link"), hint.header("x-server")), (103, Some("</a.css>"), None));
    let reply = client.reply();
    assert_eq!((reply.header("x-server"), reply.trailers.as_str()), (None, "X-Sum: 1\n"));
}

#[test]
fn answers_of_the_proxys_own_have_their_routes_headers() {
    let rules = "response_headers = { remove = [\"Date\"], set = { Content-Type = \"text/html\", X-Is = \"${status} ${endpoint}.\" } }";
    let proxy = Proxy::over([&Origin::dead()]).route(&route(rules)).listener("h2 = true").start();
    let reply = proxy.get("/");
    assert_eq!((reply.status(), reply.header("date"), reply.header("x-is")), (502, None, Some("502 .")));
    assert_eq!(reply.headers("content-type"), ["text/html"]);
    assert!(reply.text().starts_with("502 Bad Gateway: "), "{}", reply.text());
    let mut client = Frames::connect(proxy.address());
    client.get(1, "/");
    assert!(client.body(1).starts_with("502 Bad Gateway: "));
}
