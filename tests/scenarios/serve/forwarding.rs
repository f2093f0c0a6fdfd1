//! The heads that pass through a proxy, and the server that a request goes to.

use tests::origin::Origin;
use tests::proxy::Proxy;
use tests::stream::End;

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// The head that the server gets for this head, whose lines are ended here.
fn forwarded(head: &str) -> String {
    let origin = Origin::replying(OK);
    let proxy = Proxy::over([&origin]).start();
    let head = format!("{}\r\n\r\n", head.replace('\n', "\r\n"));
    assert_eq!(proxy.connect().send(head).reply().status(), 200);
    origin.request().head.replace("\r\n", "\n")
}

/// The head that the client gets for this response.
fn returned(response: &str) -> String {
    let origin = Origin::closing_after(response.replace('\n', "\r\n"));
    Proxy::over([&origin]).start().get("/").head.replace("\r\n", "\n")
}

// ---- heads ---------------------------------------------------------------------------------------------------------

#[test]
fn says_who_asked_for_what_and_by_whom_it_was_passed_on() {
    assert_eq!(
        forwarded("GET /a?b=c HTTP/1.1\nHost: www.example.com\nAccept: */*\nCookie: x=1"),
        "GET /a?b=c HTTP/1.1\nHost: www.example.com\nAccept: */*\nCookie: x=1\nX-Forwarded-For: 127.0.0.1\n\
         X-Forwarded-Proto: http\nX-Forwarded-Host: www.example.com\nVia: 1.1 trylist\n\n"
    );
}

#[test]
fn keeps_what_is_for_one_hop_from_the_server() {
    let head = forwarded(
        "GET / HTTP/1.1\nHost: a\nConnection: X-Once, close\nX-Once: 1\nX-Always: 2\nKeep-Alive: timeout=5\n\
         Proxy-Connection: keep-alive\nProxy-Authorization: Basic eA==\nTE: gzip\nUpgrade: h2c",
    );
    assert_eq!(
        head,
        "GET / HTTP/1.1\nHost: a\nX-Always: 2\nX-Forwarded-For: 127.0.0.1\nX-Forwarded-Proto: http\n\
         X-Forwarded-Host: a\nVia: 1.1 trylist\n\n"
    );
}

#[test]
fn keeps_what_is_for_one_hop_from_the_client() {
    let head = returned(
        "HTTP/1.1 200 Fine\nContent-Length: 0\nDate: Thu, 01 Jan 1970 00:00:00 GMT\nConnection: close, x-once\nX-Once: 1\n\
         X-Always: 2\nKeep-Alive: timeout=5\nProxy-Authenticate: Basic\nUpgrade: h2c\n\n",
    );
    assert_eq!(
        head,
        "HTTP/1.1 200 Fine\nContent-Length: 0\nDate: Thu, 01 Jan 1970 00:00:00 GMT\nX-Always: 2\nVia: 1.1 trylist\n\n"
    );
}

#[test]
fn what_frames_and_routes_a_message_cannot_be_nominated_away() {
    let origin = Origin::named("a");
    let proxy = Proxy::over([&origin]).start();
    let mut client = proxy.connect();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nConnection: host, content-length, x-forwarded-for, via\r\n");
    client.send("Content-Length: 4\r\n\r\nbody");
    assert_eq!(client.reply().text(), "a");
    let request = origin.request();
    assert_eq!((request.header("host"), request.text().as_str()), (Some("a"), "body"));
    assert_eq!(request.header("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(request.header("via"), Some("1.1 trylist"));
}

#[test]
fn adds_to_the_list_of_clients_and_replaces_what_else_it_knows_better() {
    let head = forwarded(
        "GET / HTTP/1.1\nHost: a\nX-Forwarded-For: 10.0.0.1, 10.0.0.2\nX-Forwarded-Host: forged\n\
         X-Forwarded-Proto: https\nVia: 1.0 first",
    );
    assert!(head.contains("\nX-Forwarded-For: 10.0.0.1, 10.0.0.2, 127.0.0.1\n"), "{head}");
    assert!(head.contains("\nX-Forwarded-Host: a\n") && !head.contains("forged"), "{head}");
    assert!(head.contains("\nX-Forwarded-Proto: http\n") && !head.contains("https"), "{head}");
    assert!(head.contains("\nVia: 1.0 first\n") && head.contains("\nVia: 1.1 trylist\n"), "{head}");
}

#[test]
fn a_response_that_has_no_date_gets_one() {
    let head = returned("HTTP/1.1 200 OK\nContent-Length: 0\n\n");
    let date = head.lines().find_map(|line| line.strip_prefix("Date: ")).expect("a date");
    assert!(date.ends_with(" GMT"), "{head}");
}

#[test]
fn a_servers_bare_line_feeds_do_not_reach_the_client() {
    let origin = Origin::closing_after("HTTP/1.1 200 OK\nX-A: b\nContent-Length: 2\n\nok");
    let reply = Proxy::over([&origin]).start().get("/");
    assert_eq!((reply.text().as_str(), reply.header("x-a")), ("ok", Some("b")));
    assert_eq!(reply.head.matches('\n').count(), reply.head.matches("\r\n").count(), "{:?}", reply.head);
}

// ---- targets -------------------------------------------------------------------------------------------------------

#[test]
fn a_target_in_absolute_form_counts_more_than_host() {
    let head = forwarded("GET http://real.example/x?y HTTP/1.1\nHost: other");
    assert!(head.starts_with("GET /x?y HTTP/1.1\nHost: real.example\n"), "{head}");
    assert!(!head.contains("other"), "{head}");
}

#[test]
fn options_of_everything_go_where_the_root_goes() {
    assert!(forwarded("OPTIONS * HTTP/1.1\nHost: a").starts_with("OPTIONS * HTTP/1.1\nHost: a\n"));
}

#[test]
fn options_are_passed_on_as_often_as_they_allow() {
    assert!(forwarded("OPTIONS /x HTTP/1.1\nHost: a\nMax-Forwards: 2").contains("\nMax-Forwards: 1\n"));
    let origin = Origin::named("never");
    let proxy = Proxy::over([&origin]).start();
    let mut client = proxy.connect();
    let reply = client.send("OPTIONS /x HTTP/1.1\r\nHost: a\r\nMax-Forwards: 0\r\n\r\n").reply();
    assert_eq!(reply.status(), 204);
    assert!(reply.header("allow").expect("methods").contains("GET"), "{reply:?}");
    assert_eq!(origin.n_connections(), 0);
    assert_eq!(client.get("/").reply().text(), "never", "the connection goes on");
}

#[test]
fn max_forwards_means_nothing_to_other_methods() {
    assert!(forwarded("GET /x HTTP/1.1\nHost: a\nMax-Forwards: 0").contains("\nMax-Forwards: 0\n"));
}

#[test]
fn tunnels_and_echoes_are_not_served() {
    let origin = Origin::named("never");
    let proxy = Proxy::over([&origin]).start();
    for request in ["CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", "TRACE / HTTP/1.1\r\nHost: a\r\n\r\n"] {
        let reply = proxy.connect().send(request).reply();
        assert_eq!(reply.status(), 405, "{request}");
        assert!(reply.header("allow").is_some());
    }
    assert_eq!(origin.n_connections(), 0);
}

// ---- routes --------------------------------------------------------------------------------------------------------

#[test]
fn the_longest_path_wins_by_whole_segments_and_own_hosts_come_first() {
    let names = ["root", "a", "ab", "host"];
    let origins = names.map(Origin::named);
    let cluster =
        |i: usize| format!("[[cluster]]\nname = \"{}\"\nservers = [\"{}\"]\n", names[i], origins[i].url());
    let route = |i: usize, lines: &str| format!("[[route]]\ncluster = \"{}\"\n{lines}\n", names[i]);
    let proxy = Proxy::over([&origins[0]])
        .route("path = \"/never\"")
        .tables(&(0..4).map(cluster).collect::<String>())
        .tables(&route(0, "path = \"/\""))
        .tables(&route(1, "path = \"/a\""))
        .tables(&route(2, "path = \"/a/b\""))
        .tables(&route(3, "host = \"Own.example\"\npath = \"/\""))
        .start();
    let ask = |host: &str, path: &str| {
        proxy.connect().send(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n")).reply().text()
    };
    for (path, name) in
        [("/", "root"), ("/a", "a"), ("/a?x", "a"), ("/ab", "root"), ("/a/bc", "a"), ("/a/b/c", "ab")]
    {
        assert_eq!(ask("any", path), name, "{path}");
    }
    assert_eq!(ask("own.EXAMPLE:8080", "/a/b"), "host");
    assert_eq!(ask("own.example.", "/"), "host");
}

#[test]
fn what_no_route_covers_is_404_and_the_connection_goes_on() {
    let origin = Origin::named("a");
    let proxy = Proxy::over([&origin]).route("path = \"/known\"").start();
    let mut client = proxy.connect();
    assert_eq!(client.get("/unknown").reply().status(), 404);
    assert_eq!(client.get("/known").reply().text(), "a");
    proxy.wait_for_metric("trylist_requests_total{cluster=\"\",code=\"404\"}", 1.0);
}

/// The request line that the server gets for a path under this route.
fn mapped(route: &str, path: &str) -> String {
    let origin = Origin::named("a");
    Proxy::over([&origin]).route(route).start().get(path);
    origin.request().line().to_owned()
}

#[test]
fn a_rewrite_takes_the_place_of_the_prefix() {
    let route = "path = \"/a\"\nrewrite = \"/b\"";
    assert_eq!(mapped(route, "/a"), "GET /b HTTP/1.1");
    assert_eq!(mapped(route, "/a/x?y=1"), "GET /b/x?y=1 HTTP/1.1");
    assert_eq!(mapped("path = \"/a\"\nrewrite = \"/\"", "/a/x"), "GET /x HTTP/1.1");
    assert_eq!(mapped("path = \"/\"\nrewrite = \"/b\"", "/x"), "GET /b/x HTTP/1.1");
}

#[test]
fn nobody_gets_past_a_route_by_dots_or_escapes() {
    for path in ["/open/../closed/x", "/open/%2e%2e/closed/x", "/open/.%2E/./closed/x", "/%63losed/x"] {
        assert_eq!(mapped("path = \"/closed\"", path), "GET /closed/x HTTP/1.1", "{path}");
    }
}

#[test]
fn servers_get_the_host_that_the_configuration_says() {
    let host = |cluster: &str, route: &str| {
        let origin = Origin::named("a");
        let route = format!("path = \"/\"\n{route}");
        Proxy::over([&origin]).in_cluster(cluster).route(&route).start().get("/");
        let own = origin.address().to_string();
        origin.request().header("host").expect("a host").replace(&own, "own")
    };
    assert_eq!(host("", ""), "test");
    assert_eq!(host("host_header = \"server\"", ""), "own");
    assert_eq!(host("host_header = \"fixed.example\"", ""), "fixed.example");
    assert_eq!(host("host_header = \"fixed.example\"", "host_header = \"keep\""), "test");
}

// ---- connections ---------------------------------------------------------------------------------------------------

#[test]
fn requests_of_one_connection_share_one_to_the_server() {
    let origin = Origin::named("a");
    let proxy = Proxy::over([&origin]).start();
    assert_eq!(proxy.names(3), "a a a");
    assert_eq!(origin.n_connections(), 1);
    let series = format!(
        "trylist_upstream_connections_total{{cluster=\"%\",endpoint=\"{}\",connection=",
        origin.url()
    );
    proxy.wait_for_metric(&format!("{series}\"new\"}}"), 1.0);
    proxy.wait_for_metric(&format!("{series}\"reused\"}}"), 2.0);
}

#[test]
fn a_connection_to_a_server_ends_after_its_requests() {
    let origin = Origin::named("a");
    let proxy = Proxy::over([&origin]).in_cluster("keepalive_requests = 2\nkeepalive_time = \"1h\"").start();
    assert_eq!(proxy.names(5), "a a a a a");
    assert_eq!(origin.n_connections(), 3);
}

#[test]
fn pipelined_requests_are_answered_in_their_order() {
    let origin = Origin::serving(|conn| {
        while let Some(request) = conn.request() {
            let path = request.line().split(' ').nth(1).unwrap().to_owned();
            conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{path}", path.len()));
        }
    });
    let proxy = Proxy::over([&origin]).start();
    let mut client = proxy.connect();
    let request = |path: &str, body: &str| {
        format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    };
    client.send(request("/1", "one") + &request("/2", "") + &request("/3", "three") + &request("/4", "4"));
    for path in ["/1", "/2", "/3", "/4"] {
        assert_eq!(client.reply().text(), path);
    }
    let bodies: Vec<_> = origin.requests().iter().map(tests::stream::Message::text).collect();
    assert_eq!(bodies, ["one", "", "three", "4"]);
}

#[test]
fn a_deep_pipeline_is_answered_in_its_order() {
    let origin = Origin::serving(|conn| {
        while let Some(request) = conn.request() {
            let path = request.line().split(' ').nth(1).unwrap().to_owned();
            conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{path}", path.len()));
        }
    });
    let proxy = Proxy::over([&origin]).start();
    let mut client = proxy.connect();
    let requests: String = (0..1000).map(|n| format!("GET /{n} HTTP/1.1\r\nHost: a\r\n\r\n")).collect();
    client.send(requests).end_sending();
    for n in 0..1000 {
        assert_eq!(client.reply().text(), format!("/{n}"));
    }
    assert_eq!(client.end(), End::Eof);
}

#[test]
fn an_old_client_gets_its_response_and_the_end() {
    let origin =
        Origin::replying("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n");
    let proxy = Proxy::over([&origin]).start();
    let mut client = proxy.connect();
    let reply = client.send("GET / HTTP/1.0\r\n\r\n").reply();
    assert_eq!((reply.text().as_str(), reply.cut), ("ok", None));
    assert_eq!(reply.header("transfer-encoding"), None, "it does not know chunks");
    assert_eq!(reply.header("connection"), Some("close"));
    let request = origin.request();
    assert_eq!(request.line(), "GET / HTTP/1.1");
    assert_eq!(request.header("via"), Some("1.0 trylist"));
    assert_eq!(request.header("host"), Some(&*origin.address().to_string()), "it sent none");
}

#[test]
fn an_old_client_that_asks_for_it_keeps_its_connection() {
    let origin = Origin::named("a");
    let proxy = Proxy::over([&origin]).start();
    let mut client = proxy.connect();
    for _ in 0..2 {
        let reply = client.send("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").reply();
        assert_eq!((reply.text().as_str(), reply.header("connection")), ("a", Some("keep-alive")));
    }
    let reply = client.send("GET / HTTP/1.0\r\n\r\n").reply();
    assert_eq!((reply.text().as_str(), client.end()), ("a", End::Eof));
}

#[test]
fn a_client_that_asks_for_it_gets_the_end() {
    let origin = Origin::named("a");
    let proxy = Proxy::over([&origin]).start();
    let mut client = proxy.connect();
    let reply = client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").reply();
    assert_eq!((reply.header("connection"), client.end()), (Some("close"), End::Eof));
    assert_eq!(proxy.names(1), "a");
    assert_eq!(
        origin.n_connections(),
        1,
        "what the client wants for its connection is not the server's affair"
    );
}

#[test]
fn a_client_that_has_ended_its_half_gets_its_answer() {
    let origin = Origin::named("a");
    let proxy = Proxy::over([&origin]).start();
    let mut client = proxy.connect();
    assert_eq!(client.get("/").end_sending().reply().text(), "a");
    assert_eq!(client.end(), End::Eof);
}

#[test]
fn a_head_may_come_byte_by_byte() {
    let origin = Origin::named("a");
    let proxy = Proxy::over([&origin]).threads(2).start();
    let mut client = proxy.connect();
    for byte in b"\r\nGET /slow HTTP/1.1\r\nHost: a\r\nX-Y: z\r\n\r\n" {
        client.send([*byte]);
    }
    assert_eq!(client.reply().text(), "a");
    let request = origin.request();
    assert_eq!((request.line(), request.header("x-y")), ("GET /slow HTTP/1.1", Some("z")));
}
