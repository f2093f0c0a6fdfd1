//! Unix sockets, towards clients and towards servers.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rustix::process::Signal;
use tempfile::TempDir;
use tests::client::Client;
use tests::origin::{Conn, Origin};
use tests::proxy::{Builder, Proxy};
use tests::site::Site;
use tests::stream::End;
use tests::tls::Authority;
use tests::tool::{said, tool};
use tests::{Gate, eventually};

/// A folder, and the path of a socket in it.
fn place() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("front.sock");
    (folder, path)
}

/// A table of one more listener.
fn listener(path: &Path, lines: &str) -> String {
    format!("[[listener]]\naddress = \"unix:{}\"\n{lines}\n", path.display())
}

fn answering(name: &'static str) -> impl Fn(&mut Conn) + Send + Sync + 'static {
    move |conn| {
        let reply = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len());
        while conn.request().is_some() && conn.send(&reply) {}
    }
}

// ---- clients ---------------------------------------------------------------------------------------------------------

#[test]
fn a_client_comes_over_a_unix_socket_and_is_called_so() {
    let (folder, path) = place();
    let log = folder.path().join("access.log");
    let origin = Origin::named("a");
    let proxy = Proxy::over([&origin])
        .tables(&listener(&path, "mode = \"0600\""))
        .tables(&format!("[access_log]\npath = {log:?}\n[forwarded]\nwrite = [\"X-Forwarded-For\", \"Forwarded\"]"))
        .route("path = \"/\"\nrequest_headers = { set = { X-Client = \"${client_address} ${peer_address}${client_port}\" } }")
        .start();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let mut client = Client::connect_unix(&path);
    let request = "GET /x HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n";
    for _ in 0..2 {
        assert_eq!(client.send(request).reply().text(), "a");
    }
    let request = origin.wait_for_requests(2).remove(1);
    assert_eq!(request.header("x-forwarded-for"), Some("6.6.6.6, unix:"));
    assert_eq!(request.header("forwarded"), Some("for=_unix;host=\"a\";proto=http"));
    assert_eq!(request.header("x-client"), Some("unix: unix:"));
    let series = format!("trylist_connections_total{{listener=\"unix:{}\"}}", path.display());
    assert_eq!(proxy.metric(&series), 1.0, "{}", proxy.metrics());
    drop(proxy);
    assert!(fs::read_to_string(&log).unwrap().starts_with("unix: - - ["));
    assert!(!path.exists(), "the file goes with the proxy");
}

#[test]
fn curl_comes_over_a_unix_socket() {
    let (_folder, path) = place();
    let authority = Authority::new("issuer");
    let secure = path.with_extension("tls");
    let tls = format!("tls = {{ certificates = [{}] }}", authority.issue(&["site.test"]).toml());
    let tls = listener(&secure, &tls);
    let origin = Origin::named("a");
    let proxy = Proxy::over([&origin]).tables(&listener(&path, "h2 = true")).tables(&tls).start();
    let (path, secure, ca) = (path.to_str().unwrap(), secure.to_str().unwrap(), authority.path());
    let plain = ["-sS", "--unix-socket", path, "http://site.test/", "-w", " %{http_version}"];
    let secured =
        ["-sS", "--unix-socket", secure, "--cacert", &ca, "https://site.test/", "-w", " %{http_version}"];
    for (arguments, more, expected) in [
        (&plain[..], "--http1.1", "a 1.1"),
        (&plain, "--http2-prior-knowledge", "a 2"),
        (&secured, "--http1.1", "a 1.1"),
        (&secured, "--http2", "a 2"),
    ] {
        let Some(output) = tool("curl", &[arguments, &[more]].concat()) else { return };
        assert_eq!(said(&output), expected, "{more}");
    }
    drop(proxy);
}

#[test]
fn clients_of_a_unix_socket_can_be_trusted_named_and_allowed_to_ask_why() {
    let (_folder, path) = place();
    let origin = Origin::named("a");
    let show = "request_headers = { set = { X-Client = \"${client_address} ${scheme}\" } }";
    let proxy = Proxy::over([&origin])
        .module("ip_hash")
        .listener("max_connections_per_client = 1")
        .tables(&listener(&path, "proxy_protocol = { from = [\"unix:\"] }\nmax_connections_per_client = 1"))
        .tables(&listener(&path.with_extension("2"), "max_connections_per_client = 1"))
        .tables("[forwarded]\ntrusted = [\"unix:\"]\n[explain]\nallow = [\"unix:\"]")
        .route(&format!("path = \"/\"\n{show}"))
        .start();
    let mut named = Client::connect_unix(&path);
    named.send("PROXY TCP4 192.0.2.9 192.0.2.1 5555 80\r\n").get("/").reply();
    let mut balancers = Client::connect_unix(&path);
    let why = "X-Trylist-Explain: 1\r\n\r\n";
    let reply = balancers.send(format!("PROXY UNKNOWN\r\nGET / HTTP/1.1\r\nHost: a\r\n{why}")).reply();
    assert_eq!(reply.header("x-trylist-module"), Some("ip_hash"));
    let mut forwarded = Client::connect_unix(&path.with_extension("2"));
    let trusted = format!("X-Forwarded-For: 192.0.2.8\r\nX-Forwarded-Proto: https\r\n{why}");
    let reply = forwarded.send(format!("GET / HTTP/1.1\r\nHost: a\r\n{trusted}")).reply();
    assert_eq!(reply.header("x-trylist-module"), None, "it is for somebody else, who may not ask");
    let clients: Vec<_> = origin
        .wait_for_requests(3)
        .iter()
        .map(|request| request.header("x-client").unwrap().to_owned())
        .collect();
    assert_eq!(clients, ["192.0.2.9 http", "unix: http", "192.0.2.8 https"]);
    // They cannot be told apart, so none of them keeps another out.
    let mut second = Client::connect_unix(&path.with_extension("2"));
    assert_eq!(second.get("/").reply().text(), "a");
    // Only they are believed.
    let other = proxy.connect().send(format!("GET / HTTP/1.1\r\nHost: a\r\n{trusted}")).reply();
    assert_eq!((other.text().as_str(), other.header("x-trylist-module")), ("a", None));
    assert_eq!(origin.requests()[4].header("x-client"), Some("127.0.0.1 http"));
}

// ---- servers ---------------------------------------------------------------------------------------------------------

#[test]
fn a_server_with_a_unix_socket_gets_requests_on_kept_connections() {
    let (_folder, path) = place();
    let origin = Origin::on_unix(&path, answering("a"));
    let proxy = Proxy::over([&origin]).in_cluster("host_header = \"server\"").start();
    assert_eq!(proxy.names(3), "a a a");
    assert_eq!(origin.n_connections(), 1);
    let request = origin.requests().remove(0);
    assert_eq!(
        (request.header("host"), request.header("x-forwarded-for")),
        (Some("localhost"), Some("127.0.0.1"))
    );
    let reused = format!(
        "trylist_upstream_connections_total{{cluster=\"%\",endpoint=\"{}\",connection=\"reused\"}}",
        origin.url()
    );
    assert_eq!(proxy.metric(&reused), 2.0, "{}", proxy.metrics());
}

#[test]
fn a_server_with_a_unix_socket_can_speak_http2() {
    let (_folder, path) = place();
    let origin = Origin::named("a");
    let _server = Proxy::over([&origin]).tables(&listener(&path, "h2 = true")).start();
    let url = format!("unix:{}", path.display());
    let proxy = Proxy::over_urls([url]).in_cluster("protocol = \"h2\"").start();
    assert_eq!(proxy.names(2), "a a");
    assert_eq!(origin.requests()[1].headers("via"), ["1.1 trylist", "2.0 trylist"]);
}

#[test]
fn long_bodies_go_both_ways_between_unix_sockets_and_tcp() {
    let (folder, path) = place();
    let body: Vec<u8> = (0..3_000_000_u32).map(|i| (i / 7 % 251) as u8).collect();
    let echo = |conn: &mut Conn| {
        while let Some(request) = conn.request() {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", request.body.len());
            conn.send(head);
            conn.send(&request.body);
        }
    };
    let unix = Origin::on_unix(&folder.path().join("app.sock"), echo);
    let tcp = Origin::serving(echo);
    let proxy = Proxy::over([&unix, &tcp]).module("round_robin").tables(&listener(&path, "")).start();
    let mut request =
        format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
    request.extend(&body);
    for client in [Client::connect_unix(&path), proxy.connect()].iter_mut() {
        for _ in 0..2 {
            std::thread::scope(|scope| {
                let sent = client.socket().try_clone().unwrap();
                let request = &request;
                scope.spawn(move || std::io::Write::write_all(&mut &sent, request).unwrap());
                let reply = client.reply();
                assert!(reply.status() == 200 && reply.body == body, "{} bytes", reply.body.len());
            });
        }
    }
    assert_eq!((unix.requests().len(), tcp.requests().len()), (2, 2));
}

#[test]
fn a_missing_or_deserted_socket_is_a_failure_to_connect_and_the_next_server_answers() {
    let (folder, path) = place();
    let deserted = folder.path().join("deserted.sock");
    drop(UnixListener::bind(&deserted).unwrap());
    let urls = [
        format!("unix:{}", path.display()),
        format!("unix:{}", deserted.display()),
        Origin::named("b").url(),
    ];
    let alive = Origin::named("b");
    let proxy = Proxy::over_urls([&urls[0], &urls[1], &alive.url()]).start();
    assert_eq!(proxy.names(3), "b b b");
    for url in &urls[..2] {
        let failed =
            format!("trylist_try_failures_total{{cluster=\"%\",endpoint=\"{url}\",kind=\"connect\"}}");
        assert!(proxy.metric(&failed) >= 1.0, "{failed}: {}", proxy.metrics());
    }
    let alone = Proxy::over_urls([&urls[0]]).start();
    assert_eq!(alone.get("/").status(), 502);
    tests::log::line(&[alone.cluster(), "No such file or directory"]);
}

#[test]
fn a_server_whose_queue_is_full_is_waited_for() {
    let (_folder, path) = place();
    // Nobody accepts; the kernel takes one more than it is told to.
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
    socket.bind(&socket2::SockAddr::unix(&path).unwrap()).unwrap();
    socket.listen(0).unwrap();
    let _first = UnixStream::connect(&path).unwrap();
    let url = format!("unix:{}", path.display());
    let proxy = Proxy::over_urls([&url]).in_cluster("connect_timeout = \"100ms\"").start();
    assert_eq!(proxy.get("/").status(), 504);
    tests::log::line(&[proxy.cluster(), "no connection within 100ms"]);
    let patient = Proxy::over_urls([url]).start();
    let mut client = patient.connect();
    client.get("/");
    let listener = UnixListener::from(std::os::fd::OwnedFd::from(socket));
    let _first = listener.accept().unwrap();
    let mut conn = listener.accept().unwrap().0;
    std::io::Read::read(&mut conn, &mut [0; 4096]).unwrap();
    std::io::Write::write_all(&mut conn, b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na").unwrap();
    assert_eq!(client.reply().text(), "a");
}

#[test]
fn a_server_with_a_unix_socket_is_checked_and_told_of_its_client() {
    let (_folder, path) = place();
    let gate = Gate::default();
    let open = gate.clone();
    let origin = Origin::on_unix(&path, move |conn| {
        // The PROXY header's line, then requests.
        let line = conn.bytes("PROXY UNKNOWN\r\n".len());
        assert!(line.starts_with(b"PROXY "), "{line:?}");
        open.wait();
        answering("a")(conn);
    });
    let proxy = Proxy::over([&origin])
        .in_cluster("send_proxy_protocol = \"v1\"\nhealth_check = { path = \"/well\", interval = \"20ms\", timeout = \"100ms\", fall = 1 }")
        .tables(&listener(&path.with_extension("front"), ""))
        .start();
    let down = format!(
        "trylist_endpoint_unavailable{{cluster=\"%\",endpoint=\"{}\",source=\"check\"}}",
        origin.url()
    );
    proxy.wait_for_metric(&down, 1.0);
    gate.open();
    proxy.wait_for_metric(&down, 0.0);
    let mut client = Client::connect_unix(&path.with_extension("front"));
    assert_eq!(client.get("/").reply().text(), "a");
    let checks: Vec<_> = origin.requests().into_iter().filter(|r| r.line().contains("/well")).collect();
    assert_eq!(checks[0].header("host"), Some("localhost"));
}

#[test]
fn a_hash_of_keys_tells_unix_sockets_apart() {
    let folder = tempfile::tempdir().unwrap();
    let origins = ["a", "b"].map(|name| Origin::on_unix(&folder.path().join(name), answering(name)));
    for module in ["ring_hash", "maglev", "rendezvous"] {
        let proxy = Proxy::over(&origins).module(module).in_cluster("key = \"path\"").start();
        let mut client = proxy.connect();
        let mut names = || (0..40).map(|n| client.get(&format!("/{n}")).reply().text()).collect::<String>();
        let first = names();
        assert!(first.contains('a') && first.contains('b'), "{module}: {first}");
        assert_eq!(names(), first, "{module}");
    }
}

// ---- under the supervisor --------------------------------------------------------------------------------------------

fn over(origin: &Origin) -> Builder {
    Proxy::over([origin]).named("app").threads(2)
}

#[test]
fn a_unix_socket_stays_over_reloads_and_nobody_is_turned_away() {
    let (_folder, path) = place();
    let origin = Origin::named("a");
    let site = Site::run(&over(&origin).tables(&listener(&path, "mode = \"0600\"")));
    let (ends, n_answers) = (AtomicBool::new(false), AtomicUsize::new(0));
    let before = fs::metadata(&path).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !ends.load(Ordering::Relaxed) {
                    let mut client = Client::connect_unix(&path);
                    for _ in 0..5 {
                        let reply = client.get("/").reply();
                        assert_eq!(reply.text(), "a");
                        n_answers.fetch_add(1, Ordering::Relaxed);
                        if reply.header("connection") == Some("close") {
                            break;
                        }
                    }
                }
            });
        }
        for n in 0..6 {
            let then = n_answers.load(Ordering::Relaxed);
            eventually("more answers", || (n_answers.load(Ordering::Relaxed) > then + 50).then_some(()));
            // With more threads than sockets, and fewer; and others who may connect.
            let builder = over(&origin).threads(1 + n % 3).tables(&listener(&path, "mode = \"0666\""));
            site.reload_with(&builder);
        }
        ends.store(true, Ordering::Relaxed);
    });
    let after = fs::metadata(&path).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::ino(&before), std::os::unix::fs::MetadataExt::ino(&after));
    assert_eq!(after.permissions().mode() & 0o777, 0o666);
    assert_eq!(site.status().listeners[1], format!("unix:{}", path.display()));
    site.running().signal(Signal::TERM);
    let (code, _) = site.end();
    assert_eq!((code, path.exists()), (Some(0), false));
}

#[test]
fn a_listener_comes_and_goes_by_reload_with_its_file() {
    let (_folder, path) = place();
    let gate = Gate::default();
    let open = gate.clone();
    let origin = Origin::serving(move |conn| {
        while let Some(request) = conn.request() {
            if request.line().contains("/slow") {
                open.wait();
            }
            conn.send("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na");
        }
    });
    let site = Site::run(&over(&origin));
    assert!(!path.exists());
    site.reload_with(&over(&origin).tables(&listener(&path, "")));
    let mut client = Client::connect_unix(&path);
    client.get("/slow");
    origin.wait_for_requests(1);
    site.reload_with(&over(&origin));
    assert!(!path.exists(), "nobody new finds it");
    assert!(Client::try_connect_unix(&path).is_err());
    gate.open();
    let mut reply = client.reply();
    assert_eq!(reply.text(), "a", "what runs is finished");
    // Where the worker had not heard of its end by then, the connection is good for one more.
    while reply.header("connection").is_none() {
        reply = client.get("/").reply();
    }
    assert_eq!(client.end(), End::Eof);
}

#[test]
fn a_socket_left_by_a_killed_proxy_is_replaced_and_one_in_use_is_refused() {
    let (_folder, path) = place();
    let origin = Origin::named("a");
    let builder = over(&origin).tables(&listener(&path, ""));
    let site = Site::run(&builder);
    let other = Site::run(&over(&origin));
    other.folder().write(&builder.text());
    let (code, lines) = other.fails_to_reload();
    let right = "another process listens there; stop it, or choose another path";
    assert_eq!(code, Some(1));
    assert!(lines[0].ends_with(&format!("listener \"unix:{}\": {right}", path.display())), "{lines:?}");
    assert_eq!(other.get("/").text(), "a", "who was refused serves as before");
    assert_eq!(Client::connect_unix(&path).get("/").reply().text(), "a", "and so does who listens");
    // The supervisor cannot remove it now; its worker leaves by itself.
    site.running().signal(Signal::KILL);
    eventually("nobody listens", || Client::try_connect_unix(&path).is_err().then_some(()));
    assert!(path.exists());
    other.reload();
    assert_eq!(Client::connect_unix(&path).get("/").reply().text(), "a");
    drop(other);
}

#[test]
fn metrics_come_over_a_unix_socket() {
    let (_folder, path) = place();
    let origin = Origin::named("a");
    let text = over(&origin).text().replace(
        "[admin]\naddress = \"127.0.0.1:0\"",
        &format!("[admin]\naddress = \"unix:{}\"", path.display()),
    );
    let site = Site::of(&text);
    for _ in 0..2 {
        let mut client = Client::connect_unix(&path);
        let reply =
            client.send("GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").reply();
        assert_eq!(reply.text(), "ready\n");
        site.reload();
    }
    site.running().signal(Signal::TERM);
    let (code, _) = site.end();
    assert_eq!((code, path.exists()), (Some(0), false));
}
