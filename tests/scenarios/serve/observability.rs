//! The view from outside: access log, metrics and readiness.

use std::fs;

use tests::client::Client;
use tests::origin::Origin;
use tests::proxy::Proxy;

/// The access log's lines for this traffic, after the proxy has ended.
fn access_log<'a>(
    origins: impl IntoIterator<Item = &'a Origin>,
    traffic: impl FnOnce(&Proxy),
) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("access.log");
    let proxy = Proxy::over(origins).tables(&format!("[access_log]\npath = {file:?}")).start();
    traffic(&proxy);
    drop(proxy);
    fs::read_to_string(file).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn the_access_log_tells_of_every_try() {
    let (dead, alive) = (Origin::dead(), Origin::named("alive"));
    let mut cluster = String::new();
    let lines = access_log([&dead, &alive], |proxy| {
        cluster = proxy.cluster().to_owned();
        let request = "GET /a?b HTTP/1.1\r\nHost: a\r\nUser-Agent: \"me\"\r\nReferer: http://x/\r\n\r\n";
        assert_eq!(proxy.connect().send(request).reply().text(), "alive");
    });
    assert_eq!(lines.len(), 1, "{lines:?}");
    let line = &lines[0];
    assert!(line.starts_with("127.0.0.1 - - ["), "{line}");
    assert!(line.contains("] \"GET /a?b HTTP/1.1\" 200 5 \"http://x/\" \"\\x22me\\x22\" "), "{line}");
    assert!(
        line.contains(&format!(" cluster={cluster} module=proxy_lb endpoint={} ", alive.url())),
        "{line}"
    );
    let tries = line.split_once("tries=\"").unwrap().1.split_once('"').unwrap().0;
    let tries: Vec<_> = tries.split(", ").map(|tried| tried.rsplit_once(' ').unwrap().0).collect();
    assert_eq!(tries, [format!("{} connect", dead.url()), format!("{} served 200", alive.url())], "{line}");
    assert!(line.contains(" time=0.") && line.contains(" first_byte=0."), "{line}");
}

#[test]
fn the_access_log_tells_of_what_was_refused_and_what_failed() {
    let dead = Origin::dead();
    let lines = access_log([&dead], |proxy| {
        assert_eq!(proxy.get("/").status(), 502);
        assert_eq!(proxy.connect().send("GET / HTTP/1.1\r\n\r\n").reply().status(), 400);
        assert_eq!(proxy.connect().send("CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n").reply().status(), 405);
    });
    assert_eq!(lines.len(), 3, "{lines:?}");
    let body = "502 Bad Gateway: trylist: no server could be reached\n";
    assert!(lines[0].contains(&format!("\" 502 {} ", body.len())), "{lines:?}");
    assert!(lines[0].contains(&format!("tries=\"{} connect ", dead.url())));
    assert!(lines[1].contains("\" 400 ") && lines[2].contains("\"CONNECT a:1 HTTP/1.1\" 405 "), "{lines:?}");
}

/// An answer that was not passed on and one that was are both "served"; what the server answered is beside it.
#[test]
fn what_each_try_was_answered_is_told() {
    let answering = |status: u16| {
        Origin::serving(move |conn| {
            while conn.request().is_some() {
                conn.send(format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n"));
            }
        })
    };
    let (busy, broken) = (answering(503), answering(500));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("access.log");
    let proxy = Proxy::over([&busy, &broken])
        .route("path = \"/\"\nretry = { on = [\"503\"] }")
        .tables(&format!("[access_log]\npath = {file:?}"))
        .start();
    assert_eq!(proxy.get("/").status(), 500);
    let responses = |origin: &Origin, class: &str| {
        let labels = format!("cluster=\"%\",endpoint=\"{}\",class=\"{class}\"", origin.url());
        format!("trylist_try_responses_total{{{labels}}}")
    };
    for origin in [&busy, &broken] {
        proxy.wait_for_metric(&responses(origin, "5xx"), 1.0);
        assert_eq!(proxy.metric(&responses(origin, "2xx")), 0.0);
    }
    drop(proxy);
    let log = fs::read_to_string(file).unwrap();
    let tries = log.split_once("tries=\"").unwrap().1.split_once('"').unwrap().0;
    let tries: Vec<_> = tries.split(", ").map(|tried| tried.rsplit_once(' ').unwrap().0).collect();
    assert_eq!(
        tries,
        [format!("{} served 503", busy.url()), format!("{} served 500", broken.url())],
        "{log}"
    );
}

#[test]
fn metrics_come_in_the_format_that_is_asked_for() {
    let origin = Origin::named("a");
    let proxy = Proxy::over([&origin]).start();
    assert_eq!(proxy.names(2), "a a");
    proxy.wait_for_metric("trylist_requests_total{cluster=\"%\",code=\"200\"}", 2.0);
    let ask = |accept: &str| {
        let mut client = Client::connect(proxy.admin_address());
        let request =
            format!("GET /metrics HTTP/1.1\r\nHost: a\r\nAccept: {accept}\r\nConnection: close\r\n\r\n");
        client.send(request).reply()
    };
    let (open, plain) =
        (ask("application/openmetrics-text; version=1.0.0"), ask("text/plain; version=0.0.4"));
    assert_eq!(
        open.header("content-type"),
        Some("application/openmetrics-text; version=1.0.0; charset=utf-8")
    );
    assert_eq!(plain.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    assert!(open.text().contains("# TYPE trylist_requests counter\n") && open.text().ends_with("# EOF\n"));
    assert!(
        plain.text().contains("# TYPE trylist_requests_total counter\n") && !plain.text().contains("# EOF")
    );
    let samples = |text: String| -> Vec<String> {
        let is_of_traffic = |line: &&str| line.starts_with("trylist_") && !line.starts_with("trylist_uptime");
        text.lines().filter(is_of_traffic).map(str::to_owned).collect()
    };
    assert_eq!(samples(open.text()), samples(plain.text()));
}

#[test]
fn nobody_writes_lines_of_his_own_into_the_access_log() {
    let origin = Origin::named("a");
    let lines = access_log([&origin], |proxy| {
        let odd = b"GET /\"x HTTP/1.1\r\nHost: a\r\nUser-Agent: a\xff\"\\ 1.1.1.1 - -\r\n\r\n";
        proxy.connect().send(odd).reply();
    });
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains(r#""GET /\x22x HTTP/1.1""#) && lines[0].contains(r"a\xFF\x22"), "{lines:?}");
}

#[test]
fn the_metrics_have_the_documented_names() {
    let origin = Origin::named("a");
    let proxy = Proxy::over([&origin]).start();
    assert_eq!(proxy.names(2), "a a");
    proxy.wait_for_metric("trylist_requests_total{cluster=\"%\",code=\"200\"}", 2.0);
    let metrics = proxy.metrics();
    for name in [
        "trylist_requests_total",
        "trylist_outcomes_total",
        "trylist_request_duration_seconds_bucket",
        "trylist_first_byte_seconds_bucket",
        "trylist_received_bytes_total",
        "trylist_sent_bytes_total",
        "trylist_tries_total",
        "trylist_try_seconds_total",
        "trylist_upstream_connections_total",
        "trylist_connections_total",
        "trylist_open_connections",
        "trylist_endpoint_in_flight",
        "trylist_endpoint_state",
        "trylist_module_calls_total",
        "trylist_module_faults_total",
        "trylist_module_time_seconds_bucket",
        "trylist_fallbacks_total",
        "trylist_queue_length",
    ] {
        assert!(metrics.contains(&format!("\n{name}{{")), "{name} in\n{metrics}");
        let family = name.trim_end_matches("_bucket");
        assert!(metrics.contains(&format!("# HELP {family} ")), "help for {name} in\n{metrics}");
    }
}

#[test]
fn requests_and_calls_of_the_module_are_counted() {
    let (dead, alive) = (Origin::dead(), Origin::named("alive"));
    let proxy = Proxy::over([&dead, &alive]).threads(2).start();
    for _ in 0..4 {
        assert_eq!(proxy.get("/").text(), "alive");
    }
    proxy.wait_for_metric("trylist_outcomes_total{cluster=\"%\",outcome=\"served\"}", 4.0);
    let calls = |call: &str| {
        proxy.metric(&format!(
            "trylist_module_calls_total{{cluster=\"%\",module=\"proxy_lb\",call=\"{call}\"}}"
        ))
    };
    // Two of four requests met the dead one first.
    assert_eq!(["load_balance", "next", "report_failure", "finish"].map(calls), [4.0, 6.0, 2.0, 4.0]);
    proxy.wait_for_metric("trylist_module_calls_total{cluster=\"%\",module=\"proxy_lb\",call=\"drop\"}", 4.0);
}

#[test]
fn what_is_in_flight_is_counted_while_it_is() {
    let go = tests::Gate::default();
    let origin = Origin::serving({
        let go = go.clone();
        move |conn| {
            conn.request();
            go.wait();
            conn.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        }
    });
    let proxy = Proxy::over([&origin]).start();
    let in_flight = format!("trylist_endpoint_in_flight{{cluster=\"%\",endpoint=\"{}\"}}", origin.url());
    let mut client = proxy.connect();
    client.get("/");
    origin.wait_for_requests(1);
    assert_eq!(proxy.metric(&in_flight), 1.0);
    go.open();
    client.reply();
    proxy.wait_for_metric(&in_flight, 0.0);
}

#[test]
fn a_worker_says_whether_it_is_ready() {
    let origin = Origin::named("a");
    let proxy = Proxy::over([&origin]).start();
    let ask = |path: &str| {
        let mut client = Client::connect(proxy.admin_address());
        client.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")).reply().status()
    };
    assert_eq!([ask("/healthz"), ask("/readyz"), ask("/other")], [200, 200, 404]);
    let mut busy = proxy.connect();
    busy.send("GET / HTTP/1.1\r\n");
    proxy.wait_for_metric(&format!("trylist_open_connections{{listener=\"{}\"}}", proxy.address()), 1.0);
    proxy.control().drain(trylist::serve::drain::Idle::Close);
    tests::eventually("it says that it drains", || (ask("/readyz") == 503).then_some(()));
    assert_eq!(ask("/healthz"), 200);
}
