//! TLS, as curl and openssl see it, and what becomes of certificates that are not right.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};

use socket2::{Domain, Socket, Type};
use tests::command::trylist;
use tests::origin::Origin;
use tests::proxy::{Builder, Proxy};
use tests::tls::{self, Authority, Client, Files};
use tests::tool::{said, tool, tool_fed};

/// A proxy over this origin that shows these certificates, with more keys in its `tls`.
fn serving(origin: &Origin, certificates: &[&Files], more: &str) -> Builder {
    let certificates: Vec<_> = certificates.iter().map(|files| files.toml()).collect();
    let certificates = certificates.join(", ");
    Proxy::over([origin]).listener(&format!("tls = {{ certificates = [{certificates}]{more} }}"))
}

/// curl's arguments for this host at the proxy, trusting this issuer.
fn curl(proxy: &Proxy, ca: &Authority, host: &str, more: &[&str]) -> Option<std::process::Output> {
    let port = proxy.address().port();
    let (resolve, url) = (format!("{host}:{port}:127.0.0.1"), format!("https://{host}:{port}/"));
    let ca = ca.path();
    let mut arguments =
        vec!["-sS", "--max-time", "20", "--noproxy", "*", "--resolve", &resolve, "--cacert", &ca];
    arguments.extend(more);
    arguments.push(&url);
    tool("curl", &arguments)
}

#[test]
fn curl_is_served_by_both_versions() {
    let (ca, origin) = (Authority::new("ca"), Origin::named("a"));
    let proxy = serving(&origin, &[&ca.issue(&["site.test"])], "").start();
    for version in ["1.2", "1.3"] {
        let flags = ["--http1.1", &format!("--tlsv{version}"), "--tls-max", version];
        let Some(output) = curl(&proxy, &ca, "site.test", &flags) else { return };
        assert_eq!(said(&output), "a", "TLS {version}");
    }
    for request in origin.requests() {
        assert_eq!(request.header("x-forwarded-proto"), Some("https"));
    }
}

#[test]
fn the_cookie_of_a_session_is_for_tls_alone() {
    let (ca, origin) = (Authority::new("ca"), Origin::named("a"));
    let sticky = "sticky = { cookie = \"server\", secret = \"0123456789abcdef\" }";
    let proxy = serving(&origin, &[&ca.issue(&["site.test"])], "").in_cluster(sticky).start();
    for version in ["--http1.1", "--http2"] {
        let Some(output) = curl(&proxy, &ca, "site.test", &[version, "-D", "-", "-o", "/dev/null"]) else {
            return;
        };
        let head = said(&output).to_ascii_lowercase();
        assert!(head.contains("; path=/; httponly; samesite=lax; secure\r\n"), "{head}");
    }
}

#[test]
fn the_oldest_version_can_be_raised() {
    let (ca, origin) = (Authority::new("ca"), Origin::named("a"));
    let proxy = serving(&origin, &[&ca.issue(&["site.test"])], ", min_version = \"1.3\"").start();
    let Some(output) = curl(&proxy, &ca, "site.test", &["--tls-max", "1.2"]) else { return };
    assert!(!output.status.success(), "{output:?}");
    assert_eq!(said(&curl(&proxy, &ca, "site.test", &["--tlsv1.3"]).unwrap()), "a");
}

#[test]
fn the_certificate_is_chosen_by_the_name_asked_for() {
    let (ca, origin) = (Authority::new("ca"), Origin::named("a"));
    let files = [ca.issue(&["one.test"]), ca.issue(&["two.test", "*.many.test"])];
    let proxy = serving(&origin, &[&files[0], &files[1]], "").start();
    for host in ["one.test", "two.test", "x.many.test"] {
        let Some(output) = curl(&proxy, &ca, host, &[]) else { return };
        assert_eq!(said(&output), "a", "{host}");
    }
    // A name of none of them gets the first, which curl then refuses.
    let output = curl(&proxy, &ca, "other.test", &[]).unwrap();
    assert_eq!(output.status.code(), Some(60), "{output:?}");
}

#[test]
fn long_bodies_pass_both_ways() {
    let ca = Authority::new("ca");
    let body = "0123456789".repeat(100_000);
    let origin = Origin::serving({
        let body = body.clone();
        move |conn| {
            while let Some(request) = conn.request() {
                let answer = if request.text() == body { body.clone() } else { "another body".into() };
                let length = answer.len();
                if !conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{answer}")) {
                    return;
                }
            }
        }
    });
    let proxy = serving(&origin, &[&ca.issue(&["site.test"])], "").start();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("body");
    std::fs::write(&file, &body).unwrap();
    let data = format!("@{}", file.display());
    for version in ["--http1.1", "--http2"] {
        let Some(output) = curl(&proxy, &ca, "site.test", &[version, "--data-binary", &data]) else { return };
        assert!(said(&output) == body, "{version}: {} bytes", output.stdout.len());
    }
}

/// What `openssl s_client` says of a connection to the proxy on which it sends one request.
fn s_client(proxy: &Proxy, more: &[&str]) -> Option<String> {
    let address = proxy.address().to_string();
    let mut arguments = vec!["s_client", "-connect", &address, "-servername", "site.test", "-ign_eof"];
    arguments.extend(more);
    let request = "GET / HTTP/1.1\r\nHost: site.test\r\nConnection: close\r\n\r\n";
    let output = tool_fed("openssl", &arguments, request)?;
    Some(String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr))
}

#[test]
fn sessions_are_resumed_by_any_thread() {
    let (ca, origin) = (Authority::new("ca"), Origin::named("a"));
    let proxy = serving(&origin, &[&ca.issue(&["site.test"])], "").threads(2).start();
    let folder = tempfile::tempdir().unwrap();
    let session = folder.path().join("session").display().to_string();
    for version in ["-tls1_2", "-tls1_3"] {
        let Some(first) = s_client(&proxy, &[version, "-sess_out", &session]) else { return };
        assert!(first.contains("\nNew, ") && !first.contains("Reused"), "{first}");
        // The kernel chooses a thread by the client's port.
        for _ in 0..8 {
            let again = s_client(&proxy, &[version, "-sess_in", &session]).unwrap();
            assert!(again.contains("\nReused, ") && again.contains("200 OK"), "{version}: {again}");
        }
    }
}

#[test]
fn clients_show_certificates_where_they_have_to() {
    let (ca, other, origin) = (Authority::new("ca"), Authority::new("other"), Origin::named("a"));
    let client = ca.issue(&["client.test"]);
    let stranger = other.issue(&["client.test"]);
    let demand = format!(", client_auth = \"required\", client_ca = {:?}", ca.path());
    let proxy = serving(&origin, &[&ca.issue(&["site.test"])], &demand).start();
    let show = |files: &Files| {
        let (cert, key) = (files.cert.display().to_string(), files.key.display().to_string());
        curl(&proxy, &ca, "site.test", &["--http1.1", "--cert", &cert, "--key", &key])
    };
    let Some(output) = show(&client) else { return };
    assert_eq!(said(&output), "a");
    let request = origin.request();
    assert_eq!(request.header("x-client-cert-subject"), Some("CN=client.test"));
    assert_eq!(request.header("x-client-cert-fingerprint").map(str::len), Some(64));
    for output in [curl(&proxy, &ca, "site.test", &["--http1.1"]), show(&stranger)] {
        assert!(!output.as_ref().unwrap().status.success(), "{output:?}");
    }
    assert_eq!(origin.requests().len(), 1, "nothing of the refused ones");
}

#[test]
fn a_certificate_may_be_optional_and_cannot_be_pretended() {
    let (ca, origin) = (Authority::new("ca"), Origin::named("a"));
    let demand = format!(", client_auth = \"optional\", client_ca = {:?}", ca.path());
    let proxy = serving(&origin, &[&ca.issue(&["site.test"])], &demand).start();
    let forged = ["-H", "X-Client-Cert-Subject: CN=root", "-H", "X_Client_Cert_Subject: CN=root"];
    let forged = [&forged[..], &["-H", "x-client-cert-fingerprint: 00"]].concat();
    for version in ["--http1.1", "--http2"] {
        let Some(output) = curl(&proxy, &ca, "site.test", &[&[version], &forged[..]].concat()) else {
            return;
        };
        assert_eq!(said(&output), "a");
    }
    for request in origin.requests() {
        assert!(!request.head.to_ascii_lowercase().contains("client"), "{}", request.head);
    }
}

#[test]
fn rules_reach_what_is_said_of_certificates() {
    let (ca, origin) = (Authority::new("ca"), Origin::named("a"));
    let client = ca.issue(&["client.test"]);
    let demand = format!(", client_auth = \"required\", client_ca = {:?}", ca.path());
    let rules = "request_headers = { remove = [\"X-Client-Cert-Subject\"], set = { X-Client-Cert-Fingerprint = \"-\" } }";
    let proxy = serving(&origin, &[&ca.issue(&["site.test"])], &demand);
    let proxy = proxy.route(&format!("path = \"/\"\n{rules}")).start();
    let (cert, key) = (client.cert.display().to_string(), client.key.display().to_string());
    let shown = curl(&proxy, &ca, "site.test", &["--http1.1", "--cert", &cert, "--key", &key]);
    let Some(output) = shown else { return };
    assert_eq!(said(&output), "a");
    let request = origin.request();
    assert_eq!(request.header("x-client-cert-subject"), None);
    assert_eq!(request.headers("x-client-cert-fingerprint"), ["-"]);
}

#[test]
fn a_ticket_does_not_stand_for_a_certificate() {
    let (ca, origin) = (Authority::new("ca"), Origin::named("a"));
    let site = ca.issue(&["site.test"]);
    let open = serving(&origin, &[&site], "");
    let address = "[[listener]]\naddress = \"127.0.0.1:0\"\n";
    let strict = format!(
        "{address}tls = {{ certificates = [{}], client_auth = \"required\", client_ca = {:?} }}",
        site.toml(),
        ca.path()
    );
    let proxy = open.tables(&strict).start();
    let folder = tempfile::tempdir().unwrap();
    let session = folder.path().join("session").display().to_string();
    let Some(first) = s_client(&proxy, &["-tls1_2", "-sess_out", &session]) else { return };
    assert!(first.contains("200 OK"), "{first}");
    let to = proxy.addresses()[1].to_string();
    let arguments =
        ["s_client", "-connect", &to, "-servername", "site.test", "-tls1_2", "-sess_in", &session];
    let output = tool_fed("openssl", &arguments, "").unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(!text.contains("\nReused, ") && !output.status.success(), "{text}");
}

#[test]
fn plain_http_is_told_where_it_is() {
    let (ca, origin) = (Authority::new("ca"), Origin::named("a"));
    let proxy = serving(&origin, &[&ca.issue(&["site.test"])], "").start();
    let reply = proxy.get("/");
    assert_eq!(reply.status(), 400);
    assert_eq!(reply.text(), "400 Bad Request: plain HTTP request sent to an HTTPS port\n");
    let listener = proxy.address();
    assert_eq!(
        proxy.metric(&format!("trylist_tls_handshake_failures_total{{listener=\"{listener}\"}}")),
        1.0
    );
}

#[test]
fn a_handshake_that_fails_or_stalls_costs_its_own_connection() {
    let (ca, origin) = (Authority::new("ca"), Origin::named("a"));
    let builder = serving(&origin, &[&ca.issue(&["site.test"])], "");
    let proxy = builder.tables("[timeouts]\nhandshake = \"50ms\"").start();
    let mut rubbish = proxy.connect();
    rubbish.send(b"\x16\x03\x01\x00\x05rubbish and more of it");
    rubbish.rest();
    let mut stalled = proxy.connect();
    stalled.send(b"\x16\x03\x01");
    stalled.rest();
    let mut silent = proxy.connect();
    silent.end();
    if let Some(output) = curl(&proxy, &ca, "site.test", &[]) {
        assert_eq!(said(&output), "a");
    }
}

fn open_connections(proxy: &Proxy) -> String {
    format!("trylist_open_connections{{listener=\"{}\"}}", proxy.address())
}

/// The proxy waited without a timer for room to say the end of the connection.
#[test]
fn a_client_that_asks_and_never_reads_is_let_go() {
    let (ca, origin) = (Authority::new("ca"), Origin::named("a"));
    let proxy =
        serving(&origin, &[&ca.issue(&["site.test"])], "").tables("[timeouts]\nbody = \"100ms\"").start();
    // Answered by the proxy itself, refused by it, and answered by a server.
    for request in [
        "OPTIONS / HTTP/1.1\r\nHost: a\r\nMax-Forwards: 0\r\n\r\n",
        "TRACE / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    ] {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        socket.connect(&proxy.address().into()).unwrap();
        let mut client = Client::over(socket.into(), &ca, "site.test", &[]);
        let many = request.repeat(500);
        while client.send(&many) {}
        proxy.wait_for_metric(&open_connections(&proxy), 0.0);
    }
}

/// Without `close_notify` the end of a body that ends with its connection passes for an attack (RFC 8446 section 6.1).
#[test]
fn every_ordinary_end_is_said() {
    let ca = Authority::new("ca");
    let origin = Origin::closing_after("HTTP/1.1 200 OK\r\n\r\nall there is");
    let timeouts = "[timeouts]\nkeepalive = \"100ms\"\nrequest_head = \"100ms\"";
    let proxy = serving(&origin, &[&ca.issue(&["site.test"])], "").tables(timeouts).start();
    let rest = |request: &str, ends: bool| {
        let mut client = Client::connect(proxy.address(), &ca, "site.test", &[]);
        client.send(request);
        if ends {
            client.end_sending();
        }
        client.rest().unwrap_or_else(|e| panic!("{request:?}: {e}"))
    };
    let get = |line: &str, more: &str| format!("GET / {line}\r\nHost: a\r\n{more}\r\n");
    assert!(rest(&get("HTTP/1.0", ""), false).ends_with("\r\n\r\nall there is"), "a body up to the end");
    assert!(rest(&get("HTTP/1.1", "Connection: close\r\n"), false).ends_with("0\r\n\r\n"), "asked for");
    assert!(rest(&get("HTTP/1.1", ""), false).ends_with("0\r\n\r\n"), "idle for too long");
    assert!(rest(&get("HTTP/1.1", ""), true).ends_with("0\r\n\r\n"), "the client has ended its half");
    assert!(rest("GET / HTTP/1.1\r\n", false).contains(" 408 "), "a head that does not come");
    assert!(rest("rubbish\r\n\r\n", false).contains(" 400 "), "a head that is none");
    assert_eq!(rest("", false), "", "nothing was ever sent");
}

/// It would pass for a whole one.
#[test]
fn a_body_that_breaks_off_is_not_ended_as_if_it_were_whole() {
    let ca = Authority::new("ca");
    let origin = Origin::closing_after("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\npart");
    let proxy = serving(&origin, &[&ca.issue(&["site.test"])], "").start();
    let mut client = Client::connect(proxy.address(), &ca, "site.test", &[]);
    client.send("GET / HTTP/1.0\r\nHost: a\r\n\r\n");
    assert!(client.rest().is_err());
}

#[test]
fn a_connection_to_a_server_is_ended_in_words_too() {
    let folder = tempfile::tempdir().unwrap();
    let [files, _] = tls::of_version_1(&folder);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let server = std::thread::spawn(move || {
        let mut stream = answer(listener.accept().unwrap().0, &files, false);
        // The end comes next.
        stream.read(&mut [0; 100])
    });
    let proxy =
        Proxy::over_urls([url]).in_cluster("tls = { verify = false }\nkeepalive_timeout = \"100ms\"").start();
    assert_eq!(proxy.get("/").text(), "ok");
    assert_eq!(server.join().unwrap().expect("close_notify"), 0);
}

#[test]
fn a_health_check_is_ended_in_words_too() {
    let folder = tempfile::tempdir().unwrap();
    let [files, _] = tls::of_version_1(&folder);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let check = "health_check = { path = \"/\", interval = \"24h\" }";
    let _proxy = Proxy::over_urls([url]).in_cluster(&format!("tls = {{ verify = false }}\n{check}")).start();
    let mut stream = answer(listener.accept().unwrap().0, &files, false);
    assert_eq!(stream.read(&mut [0; 100]).expect("close_notify"), 0);
}

#[test]
fn a_client_of_http_1_0_is_served() {
    let (ca, origin) = (Authority::new("ca"), Origin::named("a"));
    let proxy = serving(&origin, &[&ca.issue(&["site.test"])], "").start();
    for (offered, chosen) in [
        (&["http/1.0"][..], "http/1.0"),
        (&["http/1.0", "http/1.1"], "http/1.1"),
        (&["http/1.1", "h2"], "h2"),
    ] {
        let client = Client::connect(proxy.address(), &ca, "site.test", offered);
        assert_eq!(client.protocol().as_deref(), Some(chosen));
    }
    let mut client = Client::connect(proxy.address(), &ca, "site.test", &["http/1.0"]);
    client.send("GET / HTTP/1.0\r\n\r\n");
    assert!(client.rest().unwrap().ends_with("\r\n\r\na"));
    if let Some(output) = curl(&proxy, &ca, "site.test", &["--http1.0"]) {
        assert_eq!(said(&output), "a");
    }
}

/// Certificates as appliances and older tools make them, and as nginx takes them.
#[test]
fn a_certificate_of_version_1_is_shown_and_taken_unverified() {
    let (folder, origin) = (tempfile::tempdir().unwrap(), Origin::named("a"));
    for files in tls::of_version_1(&folder) {
        let inner = serving(&origin, &[&files], "").start();
        let url = format!("https://{}", inner.address());
        let outer = Proxy::over_urls([url]).in_cluster("tls = { verify = false }").start();
        assert_eq!(outer.get("/").text(), "a", "{files:?}");
        for is_12 in [true, false] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let url = format!("https://{}", listener.local_addr().unwrap());
            let shown = files.clone();
            let server =
                std::thread::spawn(move || drop(answer(listener.accept().unwrap().0, &shown, is_12)));
            let proxy = Proxy::over_urls([url]).in_cluster("tls = { verify = false }").start();
            assert_eq!(proxy.get("/").text(), "ok", "{files:?} {is_12}");
            server.join().unwrap();
        }
    }
    // The owner of the key is checked all the same.
    let [a, b] = tls::of_version_1(&folder);
    assert!(refused(&a.cert, &b.key).contains("does not belong to the certificate"));
}

/// Answers one request over a connection of TLS.
fn answer(
    socket: TcpStream,
    files: &Files,
    is_12: bool,
) -> rustls::StreamOwned<rustls::ServerConnection, TcpStream> {
    socket.set_read_timeout(Some(tests::DEADLINE)).unwrap();
    let mut stream = tls::accept(socket, files, is_12).expect("a handshake");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").unwrap();
    stream.flush().unwrap();
    stream
}

// ---- to servers ----------------------------------------------------------------------------------------------------

/// As one that does not take the connection.
#[test]
fn a_server_that_does_not_shake_hands_in_time_is_504() {
    let silent = Origin::serving(|conn| _ = conn.wait_for_end());
    let url = silent.url().replace("http:", "https:");
    let proxy =
        Proxy::over_urls([&url]).in_cluster("tls = { verify = false }\nconnect_timeout = \"100ms\"").start();
    assert_eq!(proxy.get("/").status(), 504);
    let line = tests::log::line(&[proxy.cluster(), "request failed", &url]);
    assert!(line.contains("TLS handshake not complete within 100ms"), "{line}");
}

/// A proxy by TLS over this origin, whose certificate is for `localhost`, and a URL for it.
fn secure_origin(origin: &Origin, ca: &Authority, more: &str) -> (Proxy, String) {
    let proxy = serving(origin, &[&ca.issue(&["localhost"])], more).start();
    let url = format!("https://localhost:{}", proxy.address().port());
    (proxy, url)
}

#[test]
fn servers_are_reached_by_tls_and_verified() {
    let (ca, origin) = (Authority::new("ca"), Origin::named("a"));
    let (inner, url) = secure_origin(&origin, &ca, "");
    let tls = format!("tls = {{ ca = {:?} }}", ca.path());
    let proxy = Proxy::over_urls([url]).in_cluster(&tls).start();
    assert_eq!(proxy.names(3), "a a a");
    assert_eq!(origin.n_connections(), 1, "kept alive");
    assert_eq!(inner.metric(&format!("trylist_open_connections{{listener=\"{}\"}}", inner.address())), 1.0);
}

#[test]
fn a_server_that_cannot_be_verified_is_a_failure_to_connect() {
    let (ca, other) = (Authority::new("ca"), Authority::new("other"));
    let (a, b) = (Origin::named("a"), Origin::named("b"));
    let (_inner_a, url_a) = secure_origin(&a, &other, "");
    let (_inner_b, url_b) = secure_origin(&b, &ca, "");
    let tls = format!("tls = {{ ca = {:?} }}", ca.path());
    let proxy = Proxy::over_urls([url_a.clone(), url_b]).in_cluster(&tls).start();
    assert_eq!(proxy.names(2), "b b");
    assert_eq!(a.n_connections(), 0);
    let line = tests::log::line(&[proxy.cluster(), "another server served", &url_a]);
    assert!(line.contains("TLS handshake failed: the certificate's issuer is not trusted"), "{line}");
    let series = format!("trylist_tries_total{{cluster=\"%\",endpoint=\"{url_a}\",result=\"tls\"}}");
    assert!(proxy.metrics().contains("tls"), "{series}");
}

/// OpenSSL's way to a certificate in one command makes it an issuer's, which a server's must not be (RFC 5280).
#[test]
fn a_self_signed_certificate_of_a_server_can_be_trusted_and_one_of_an_issuer_is_named() {
    let (ca, origin) = (Authority::new("ca"), Origin::named("a"));
    let over = |files: &Files| {
        let inner = serving(&origin, &[files], "").start();
        let url = format!("https://localhost:{}", inner.address().port());
        let tls = format!("tls = {{ ca = {:?} }}", files.cert);
        (Proxy::over_urls([url]).in_cluster(&tls).start(), inner)
    };
    let (proxy, _inner) = over(&ca.self_signed("localhost", false));
    assert_eq!(proxy.get("/").text(), "a");
    let (proxy, _inner) = over(&ca.self_signed("localhost", true));
    assert_eq!(proxy.get("/").status(), 502);
    let line = tests::log::line(&[proxy.cluster(), "request failed"]);
    assert!(
        line.contains("the certificate is a CA certificate (CA:TRUE), which a peer may not use as its own"),
        "{line}"
    );
    assert!(line.contains("-addext basicConstraints=critical,CA:FALSE"), "{line}");
}

#[test]
fn the_name_of_a_server_can_be_another_than_its_address() {
    let (ca, origin) = (Authority::new("ca"), Origin::named("a"));
    let (inner, _) = secure_origin(&origin, &ca, "");
    let url = format!("https://127.0.0.1:{}", inner.address().port());
    let with = |more: &str| {
        let tls = format!("tls = {{ ca = {:?}{more} }}", ca.path());
        Proxy::over_urls([url.clone()]).in_cluster(&tls).start()
    };
    assert_eq!(with("").get("/").status(), 502, "the certificate is not for the address");
    assert_eq!(with(", server_name = \"localhost\"").get("/").text(), "a");
    let unverified = Proxy::over_urls([url.clone()]).in_cluster("tls = { verify = false }").start();
    assert_eq!(unverified.get("/").text(), "a");
}

#[test]
fn a_server_may_want_a_certificate() {
    let (ca, origin) = (Authority::new("ca"), Origin::named("a"));
    let demand = format!(", client_auth = \"required\", client_ca = {:?}", ca.path());
    let (_inner, url) = secure_origin(&origin, &ca, &demand);
    let with = |more: &str| {
        let tls = format!("tls = {{ ca = {:?}{more} }}", ca.path());
        Proxy::over_urls([url.clone()]).in_cluster(&tls).start()
    };
    let own = ca.issue(&["proxy.test"]);
    let more = format!(", cert = {:?}, key = {:?}", own.cert, own.key);
    assert_eq!(with(&more).get("/").text(), "a");
    assert_eq!(origin.request().header("x-client-cert-subject"), Some("CN=proxy.test"));
    assert_eq!(with("").get("/").status(), 502);
}

// ---- what `check` says ---------------------------------------------------------------------------------------------

/// Exit code of `check`, and what it says of a file with this `tls` for its listener.
fn check(tls: &str) -> (Option<i32>, String) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("site.toml");
    let origin = Origin::named("a");
    std::fs::write(&file, Proxy::over([&origin]).listener(&format!("tls = {{ {tls} }}")).text()).unwrap();
    let output = trylist(&["check", "-c", file.to_str().unwrap()]);
    let said = String::from_utf8_lossy(&output.stderr).replace(&*folder.path().to_string_lossy(), "");
    (output.status.code(), said)
}

/// The one line of `check` about this certificate and this key.
#[track_caller]
fn refused(cert: &std::path::Path, key: &std::path::Path) -> String {
    let (code, said) = check(&format!("certificates = [{{ cert = {cert:?}, key = {key:?} }}]"));
    assert_eq!((code, said.lines().count()), (Some(3), 1), "{said}");
    assert!(said.starts_with("/site.toml:4: listener \"127.0.0.1:0\": tls: "), "{said}");
    said
}

#[test]
fn what_is_wrong_with_certificates_is_said_in_one_line() {
    let ca = Authority::new("ca");
    let (a, b) = (ca.issue(&["a.test"]), ca.issue(&["b.test"]));
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let file = folder.path().join(name);
        std::fs::write(&file, text).unwrap();
        file
    };
    let encrypted = write(
        "encrypted",
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIB\n-----END ENCRYPTED PRIVATE KEY-----\n",
    );
    let empty = write("empty", "");
    let rubbish = write("rubbish", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    let nowhere = folder.path().join("nowhere");
    for (cert, key, what) in [
        (&nowhere, &a.key, "cannot be read: file not found"),
        (&a.cert, &nowhere, "cannot be read: file not found"),
        (&empty, &a.key, "holds no certificate"),
        (&a.key, &a.cert, "holds a key and no certificate"),
        (&rubbish, &a.key, "holds a certificate that cannot be read"),
        (&a.cert, &empty, "holds no private key"),
        (&a.cert, &encrypted, "holds an encrypted key"),
        (&a.cert, &b.key, "does not belong to the certificate"),
    ] {
        let said = refused(cert, key);
        assert!(said.contains(what), "{what}: {said}");
    }
}

#[test]
fn a_certificate_out_of_its_time_is_a_warning() {
    let ca = Authority::new("ca");
    for (files, what) in [
        (ca.issue_expired("old.test"), "has expired, on Fri, 01 Jan 2021 00:00:00 GMT"),
        (ca.issue_for_later("new.test"), "is not valid before Sun, 01 Jan 2090 00:00:00 GMT"),
    ] {
        let (code, said) = check(&format!("certificates = [{}]", files.toml()));
        let warnings: Vec<_> = said.lines().filter(|line| line.ends_with("(warning)")).collect();
        assert_eq!((code, warnings.len()), (Some(0), 1), "{said}");
        assert!(warnings[0].starts_with("/site.toml:4: ") && warnings[0].contains(what), "{said}");
    }
}

/// It is what clients would complain of, each in its own words.
#[test]
fn every_certificate_of_a_file_is_looked_at() {
    let (ca, other) = (Authority::new("ca"), Authority::new("other"));
    let (site, old, folder) =
        (ca.issue(&["a.test"]), ca.issue_expired("old.test"), tempfile::tempdir().unwrap());
    let read = |path: &dyn AsRef<std::path::Path>| std::fs::read_to_string(path).unwrap();
    let joined = |name: &str, parts: &[String]| {
        let path = folder.path().join(name);
        std::fs::write(&path, parts.concat()).unwrap();
        path
    };
    let chain = |name: &str, next: &[String]| {
        let path = joined(name, &[&[read(&site.cert)], next].concat());
        format!("certificates = [{{ cert = {path:?}, key = {:?} }}]", site.key)
    };
    let rubbish = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_owned();
    let good = format!("certificates = [{}]", site.toml());
    let issuers = |name: &str, parts: &[String]| {
        format!("{good}, client_auth = \"required\", client_ca = {:?}", joined(name, parts))
    };
    for (tls, what) in [
        (chain("right.pem", &[read(&ca.path())]), &[][..]),
        (
            chain("wrong.pem", &[read(&other.path())]),
            &[
                "did not issue the one before it, of which the issuer is CN=ca (each is followed by its issuer's)",
            ],
        ),
        (
            chain("old.pem", &[read(&ca.path()), read(&old.cert)]),
            &[
                "certificate 3 (CN=old.test) has expired, on Fri, 01 Jan 2021",
                "certificate 3 (CN=old.test) did not issue",
            ],
        ),
        (
            issuers("both.pem", &[read(&ca.path()), read(&old.cert)]),
            &["certificate 2 (CN=old.test) has expired"],
        ),
    ] {
        let (code, said) = check(&tls);
        let warnings: Vec<_> = said.lines().filter(|line| line.ends_with("(warning)")).collect();
        assert_eq!((code, warnings.len()), (Some(0), what.len()), "{tls}: {said}");
        for (warning, what) in warnings.iter().zip(what) {
            assert!(warning.starts_with("/site.toml:4: ") && warning.contains(what), "{what}: {said}");
        }
    }
    let some = joined("some.pem", &[read(&ca.path()), rubbish]);
    let cluster = Proxy::over_urls(["https://127.0.0.1:1"]).in_cluster(&format!("tls = {{ ca = {some:?} }}"));
    let file = folder.path().join("cluster.toml");
    std::fs::write(&file, cluster.text()).unwrap();
    let output = trylist(&["check", "-c", file.to_str().unwrap()]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && said.contains("certificate 2 cannot be read, and is left out: "),
        "{said}"
    );
}

#[test]
fn keys_of_tls_that_do_not_fit_are_named() {
    let ca = Authority::new("ca");
    let good = format!("certificates = [{}]", ca.issue(&["a.test"]).toml());
    for (tls, what) in [
        (String::new(), "no certificates (write "),
        ("certificates = []".into(), "no certificates (write "),
        ("certificates = [{ cert = \"a\" }]".into(), "cert without key (write "),
        (format!("{good}, client_auth = \"maybe\""), "client_auth: \"maybe\" is not one of "),
        (format!("{good}, client_auth = \"required\""), "client_auth without client_ca (write "),
        (format!("{good}, client_ca = {:?}", ca.path()), "client_ca without client_auth (write "),
        (format!("{good}, min_version = \"1.1\""), "min_version: \"1.1\" is not one of \"1.2\" and \"1.3\""),
        (format!("{good}, cert = \"a\""), "unknown key \"cert\""),
    ] {
        let (code, said) = check(&tls);
        assert_eq!((code, said.lines().count()), (Some(3), 1), "{tls}: {said}");
        assert!(said.contains(what), "{tls}: {said}");
    }
}
