//! Answers without a server: redirects, fixed responses, pages for the proxy's own errors; and which hosts and listeners they
//! are for.

use std::fs;
use std::net::SocketAddr;

use tests::client::Client;
use tests::h2::{self, Frames};
use tests::origin::Origin;
use tests::proxy::{Builder, Proxy};
use tests::stream::Message;
use tests::tls::{self, Authority};

/// A proxy whose first routes are these, before one for all that is left.
fn with_routes(origin: &Origin, routes: &str) -> Builder {
    Proxy::over([origin]).route("path = \"/origin\"").tables(routes)
}

#[track_caller]
fn ask(address: SocketAddr, request: &str) -> Message {
    Client::connect(address).send(request).reply()
}

/// Status and `Location` of the response to a GET of this target at this host.
#[track_caller]
fn location(proxy: &Proxy, host: &str, target: &str) -> (u16, Option<String>) {
    let reply = ask(proxy.address(), &format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
    (reply.status(), reply.header("location").map(str::to_owned))
}

fn to(status: u16, url: &str) -> (u16, Option<String>) {
    (status, Some(url.to_owned()))
}

#[test]
fn requests_by_http_are_redirected_to_https_and_others_reach_the_cluster() {
    let (origin, ca) = (Origin::named("a"), Authority::new("ca"));
    let files = ca.issue(&["site.test"]);
    let tls =
        format!("[[listener]]\naddress = \"127.0.0.1:0\"\n[listener.tls]\ncertificates = [{}]", files.toml());
    let proxy = Proxy::over([&origin])
        .route("path = \"/\"\nhosts = [\"site.test\", \"*.site.test\"]\nredirect = { https = true }")
        .tables(&tls)
        .start();
    assert_eq!(location(&proxy, "SITE.test:8080", "/a/../b?c=%20d"), to(308, "https://site.test/b?c=%20d"));
    assert_eq!(location(&proxy, "x.y.site.test.", "/"), to(308, "https://x.y.site.test/"));
    let reply = ask(proxy.address(), "OPTIONS * HTTP/1.1\r\nHost: site.test\r\n\r\n");
    assert_eq!((reply.status(), reply.header("location")), (308, Some("https://site.test/")));
    assert_eq!(reply.text(), "308 Permanent Redirect: https://site.test/\n");
    // A host that nobody configured is in no answer.
    assert_eq!(location(&proxy, "evil.test", "/"), (404, None));
    let mut secure = tls::Client::connect(proxy.addresses()[1], &ca, "site.test", &["http/1.1"]);
    secure.send("GET / HTTP/1.1\r\nHost: site.test\r\nConnection: close\r\n\r\n");
    let reply = secure.rest().unwrap();
    assert!(reply.starts_with("HTTP/1.1 200") && reply.ends_with('a'), "{reply}");
}

#[test]
fn a_trusted_proxys_https_is_not_redirected() {
    let origin = Origin::named("a");
    let proxy = Proxy::over([&origin])
        .route("path = \"/\"\nhosts = [\"*\"]\nredirect = { https = true, port = 8443 }")
        .tables("[forwarded]\ntrusted = [\"127.0.0.0/8\"]")
        .start();
    let by = |proto: &str| {
        ask(proxy.address(), &format!("GET / HTTP/1.1\r\nHost: any\r\nX-Forwarded-Proto: {proto}\r\n\r\n"))
    };
    assert_eq!(by("https").text(), "a");
    assert_eq!(by("http").header("location"), Some("https://any:8443/"));
    // Without a host, there is nowhere to send it.
    assert_eq!(ask(proxy.address(), "GET / HTTP/1.0\r\n\r\n").status(), 400);
}

#[test]
fn redirects_change_what_they_name_and_keep_the_rest() {
    let origin = Origin::named("a");
    let route = |lines: &str| format!("[[route]]\n{lines}\n");
    let routes = [
        route(
            "path = \"/all\"\nredirect = { scheme = \"https\", host = \"www.b.test\", port = 1, path = \"/x?y\", status = 301 }",
        ),
        route("path = \"/host\"\nredirect = { host = \"www.b.test\" }"),
        route("path = \"/path\"\nhosts = [\"*\"]\nredirect = { path = \"/new\", status = 303 }"),
        route(
            "path = \"/prefix\"\nhosts = [\"*\"]\nrewrite = \"/\"\nredirect = { scheme = \"http\", status = 307 }",
        ),
        route("path = \"/port\"\nhosts = [\"*\"]\nredirect = { port = 81 }"),
    ];
    let proxy = with_routes(&origin, &routes.concat()).start();
    let found = |target| location(&proxy, "a.test:8080", target);
    assert_eq!(found("/all/z?q"), to(301, "https://www.b.test:1/x?y"));
    assert_eq!(found("/host/z?q=1"), to(302, "http://www.b.test/host/z?q=1"));
    assert_eq!(found("/path/z?q"), to(303, "http://a.test:8080/new?q"));
    assert_eq!(found("/prefix/z%2F"), to(307, "http://a.test/z%2F"));
    assert_eq!(found("/port"), to(302, "http://a.test:81/port"));
    assert_eq!(found("/evil/%2e%2e/port"), to(302, "http://a.test:81/port"));
    // A path is no host: what a browser could take for one has the whole URL before it.
    assert_eq!(found("/prefix//evil.test"), to(307, "http://a.test//evil.test"));
    let head = ask(proxy.address(), "HEAD /host HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    assert_eq!((head.status(), head.header("location")), (302, Some("http://www.b.test/host")));
}

#[test]
fn connections_go_on_after_answers_and_a_body_ends_them() {
    let origin = Origin::named("a");
    let routes = "[[route]]\npath = \"/r\"\nrespond = { status = 200, body = \"fixed\\n\" }\n\
        response_headers = { set = { X-Path = \"${path} ${status}\", Cache-Control = \"no-store\" } }\n\
        [[route]]\npath = \"/none\"\nrespond = { status = 204 }\n";
    let proxy = with_routes(&origin, routes).start();
    let mut client = proxy.connect();
    let reply = client.get("/r/x").reply();
    assert_eq!((reply.status(), &*reply.text()), (200, "fixed\n"));
    assert_eq!(reply.header("content-type"), Some("text/plain; charset=utf-8"));
    assert_eq!((reply.header("x-path"), reply.header("cache-control")), (Some("/r/x 200"), Some("no-store")));
    let head = client.send("HEAD /r HTTP/1.1\r\nHost: a\r\n\r\n").reply_to("HEAD");
    assert_eq!((head.header("content-length"), &*head.text()), (Some("6"), ""));
    let none = client.get("/none").reply();
    assert_eq!((none.status(), none.header("content-length"), &*none.text()), (204, None, ""));
    assert_eq!(client.get("/origin").reply().text(), "a");
    let post = client.send("POST /r HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n").reply();
    assert_eq!((post.header("connection"), &*post.text()), (Some("close"), "fixed\n"));
}

#[test]
fn a_route_by_http_alone_answers_nothing_by_https() {
    let (origin, ca) = (Origin::named("a"), Authority::new("ca"));
    let files = ca.issue(&["site.test"]);
    let routes = "[[route]]\npath = \"/\"\nhosts = [\"site.test\"]\nredirect = { https = true }";
    let proxy = with_routes(&origin, routes)
        .listener(&format!("tls = {{ certificates = [{}] }}", files.toml()))
        .start();
    let mut secure = tls::Client::connect(proxy.address(), &ca, "site.test", &["http/1.1"]);
    secure.send("GET / HTTP/1.1\r\nHost: site.test\r\nConnection: close\r\n\r\n");
    assert!(secure.rest().unwrap().starts_with("HTTP/1.1 404"));
}

#[test]
fn http2_gets_the_same_answers() {
    let origin = Origin::named("a");
    let folder = tempfile::tempdir().unwrap();
    // More than is sent in one piece with its head, and more than a frame.
    let long = "x".repeat(100_000);
    fs::write(folder.path().join("long.html"), &long).unwrap();
    let file = folder.path().join("long.html");
    let routes = format!(
        "[[route]]\npath = \"/long\"\nrespond = {{ status = 200, file = {file:?} }}\n\
         [[route]]\npath = \"/to\"\nredirect = {{ host = \"b.test\" }}\n[errors]\n404 = {file:?}"
    );
    let proxy = with_routes(&origin, &routes).listener("h2 = true").start();
    let mut frames = Frames::connect_with(proxy.address(), &[(4, 1 << 20)]);
    frames.send(h2::window(0, 1 << 20));
    frames.get(1, "/long");
    assert_eq!(frames.body(1), long);
    frames.get(3, "/nowhere");
    assert_eq!(frames.body(3), long);
    frames.get(5, "/to");
    assert!(frames.body(5).starts_with("302 Found: http://b.test/to"));
    frames.get(7, "/origin");
    assert_eq!(frames.body(7), "a");
    // And over HTTP/1.1.
    let reply = proxy.get("/long");
    assert_eq!((reply.header("content-type"), &*reply.text()), (Some("text/html; charset=utf-8"), &*long));
}

#[test]
fn pages_stand_in_for_the_proxys_own_errors() {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in [("sorry.html", "<p>Sorry</p>"), ("own.json", "{}"), ("404.txt", "nothing")] {
        fs::write(folder.path().join(name), text).unwrap();
    }
    let page = |name: &str| format!("{:?}", folder.path().join(name));
    let origin = Origin::replying("HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy");
    let proxy = Proxy::over_urls(["http://127.0.0.1:1".to_owned()])
        .route("path = \"/\"")
        .route(&format!(
            "path = \"/own\"\nerrors = {{ 502 = {{ file = {}, type = \"application/problem+json\" }} }}",
            page("own.json")
        ))
        .tables(&format!(
            "[[cluster]]\nname = \"busy\"\nservers = [{:?}]\n[[route]]\npath = \"/busy\"\ncluster = \"busy\"\n\
             [errors]\n502 = {}\n404 = {}\n505 = {}",
            origin.url(), page("sorry.html"), page("404.txt"), page("sorry.html")
        ))
        .start();
    let kind = |reply: &Message| reply.header("content-type").unwrap().to_owned();
    let mut client = proxy.connect();
    let sorry = client.get("/").reply();
    assert_eq!((sorry.status(), &*sorry.text()), (502, "<p>Sorry</p>"));
    assert_eq!(kind(&sorry), "text/html; charset=utf-8");
    let own = client.get("/own").reply();
    assert_eq!((own.status(), &*own.text(), &*kind(&own)), (502, "{}", "application/problem+json"));
    let head = client.send("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n").reply_to("HEAD");
    assert_eq!((head.status(), head.header("content-length")), (502, Some("12")));
    // A server's answer is its own.
    assert_eq!(client.get("/busy").reply().text(), "busy");
    // Without a route, and without even a request.
    assert_eq!(ask(proxy.address(), "GET / HTTP/3.0\r\nHost: a\r\n\r\n").text(), "<p>Sorry</p>");
    let elsewhere = Proxy::over([&origin])
        .route("path = \"/only\"")
        .tables(&format!("[errors]\n404 = {}", page("404.txt")))
        .start();
    assert_eq!(elsewhere.get("/x").text(), "nothing");
}

#[test]
fn routes_are_for_their_listeners_and_hosts() {
    let origin = Origin::named("a");
    let fixed = |keys: &str, text: &str| {
        format!("[[route]]\n{keys}\nrespond = {{ status = 200, body = {text:?} }}\n")
    };
    // The address that a route names is the one that is written.
    let tables = [
        "[[listener]]\naddress = \"127.0.0.2:0\"\n".to_owned(),
        fixed("path = \"/\"\nlisteners = [\"127.0.0.2:0\"]", "second"),
        fixed("path = \"/\"\nhosts = [\"*.b.test\"]", "pattern"),
        fixed("path = \"/\"\nhosts = [\"a.b.test\"]\nlisteners = [\"127.0.0.1:0\"]", "exact"),
    ];
    let proxy = Proxy::over([&origin]).route("path = \"/\"").tables(&tables.concat()).start();
    let [first, second] = proxy.addresses()[..] else { panic!("two listeners") };
    let text = |address, host: &str| {
        ask(address, &format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).text().to_owned()
    };
    assert_eq!([text(first, "x"), text(second, "x")], ["a", "second"]);
    assert_eq!([text(first, "A.b.test:1"), text(second, "a.b.test")], ["exact", "pattern"]);
    assert_eq!([text(first, "c.b.test"), text(first, "b.test")], ["pattern", "a"]);
}
