//! The view from outside: access log, metrics and readiness.

use std::fs;

use tests::client::Client;
use tests::origin::Origin;
use tests::proxy::Proxy;
use tests::tool::{said, tool, tool_fed};

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
        let request = format!(
            "GET /metrics HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\nConnection: close\r\n\r\n"
        );
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
        "trylist_module_thread_share",
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
        client
            .send(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"))
            .reply()
            .status()
    };
    assert_eq!([ask("/healthz"), ask("/readyz"), ask("/other")], [200, 200, 404]);
    let mut busy = proxy.connect();
    busy.send("GET / HTTP/1.1\r\n");
    proxy.wait_for_metric(&format!("trylist_open_connections{{listener=\"{}\"}}", proxy.address()), 1.0);
    proxy.control().drain(trylist::serve::drain::Idle::Close);
    tests::eventually("it says that it drains", || (ask("/readyz") == 503).then_some(()));
    assert_eq!(ask("/healthz"), 200);
}

/// The names of all series in a text.
fn series_names(text: &str) -> std::collections::BTreeSet<&str> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.split(['{', ' ']).next().unwrap()).collect()
}

/// The text in OpenMetrics, or what Prometheus reads.
fn scrape(proxy: &Proxy, target: &str, accept: &str) -> tests::stream::Message {
    let mut client = Client::connect(proxy.admin_address());
    let lines = format!("Host: localhost\r\nAccept: {accept}\r\nConnection: close\r\n\r\n");
    client.send(format!("GET {target} HTTP/1.1\r\n{lines}")).reply()
}

const OPEN_METRICS: &str = "application/openmetrics-text;version=1.0.0";

/// A proxy with traffic of most kinds, over two listeners, of which one has a certificate.
fn with_traffic() -> (Proxy, [Origin; 2]) {
    let (origin, dead) = (Origin::named("alive"), Origin::dead());
    let authority = tests::tls::Authority::new("test");
    let files = authority.issue(&["a.test", "b.test"]);
    let secured = format!(
        "[[listener]]\naddress = \"127.0.0.1:0\"\ntls = {{ certificates = [{{ cert = {:?}, key = {:?} }}] }}\n",
        files.cert, files.key
    );
    let gone = "[[route]]\npath = \"/gone\"\nrespond = { status = 410 }\n";
    let builder = Proxy::over([&origin, &dead]).named("app").tables(&secured).tables(gone);
    let hosts = "path = \"/b\"\nhosts = [\"b.test\", \"*.b.test\"]";
    let proxy = builder.route("path = \"/\"").route(hosts).start();
    for path in ["/", "/", "/gone"] {
        proxy.get(path);
    }
    let of_host = "GET /b HTTP/1.1\r\nHost: b.test\r\nConnection: close\r\n\r\n";
    assert_eq!(proxy.connect().send(of_host).reply().status(), 200);
    assert_eq!(proxy.connect().send("GET / HTTP/1.1\r\n\r\n").reply().status(), 400);
    (proxy, [origin, dead])
}

#[test]
fn requests_are_counted_by_listener_and_route_and_certificates_have_their_end() {
    let (proxy, _origins) = with_traffic();
    for (series, n) in [
        ("trylist_route_requests_total{route=\"/\",class=\"2xx\"}", 2.0),
        ("trylist_route_requests_total{route=\"b.test+1/b\",class=\"2xx\"}", 1.0),
        ("trylist_route_requests_total{route=\"/gone\",class=\"4xx\"}", 1.0),
    ] {
        proxy.wait_for_metric(series, n);
    }
    let listener = proxy.addresses()[0];
    proxy.wait_for_metric(
        &format!("trylist_listener_requests_total{{listener=\"{listener}\",class=\"2xx\"}}"),
        3.0,
    );
    proxy.wait_for_metric(
        &format!("trylist_listener_requests_total{{listener=\"{listener}\",class=\"4xx\"}}"),
        2.0,
    );
    let secured = proxy.addresses()[1];
    let labels = format!("{{listener=\"{secured}\",certificate=\"0\",name=\"a.test\"}}");
    let end = proxy.metric(&format!("trylist_certificate_not_after_seconds{labels}"));
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
    assert!(end > now, "{end}");
    assert!(proxy.metric("trylist_route_time_seconds_total{route=\"/\"}") > 0.0);
}

#[test]
fn a_scrape_of_one_cluster_has_its_series_alone() {
    let (proxy, _origins) = with_traffic();
    let all = scrape(&proxy, "/metrics", "text/plain").text();
    let one = scrape(&proxy, "/metrics?cluster=app", "text/plain").text();
    let of_it = |text: &str| {
        let lines = text.lines().filter(|line| line.contains("cluster=\"app\""));
        lines.map(|line| line.split(' ').next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(of_it(&one), of_it(&all));
    let other = |line: &&str| !line.starts_with('#') && !line.contains("cluster=\"app\"");
    let others: Vec<_> = one.lines().filter(other).collect();
    assert_eq!(others.len(), 1, "the build alone: {others:?}");
    let unknown = scrape(&proxy, "/metrics?cluster=nope", "text/plain");
    assert_eq!((unknown.status(), unknown.text().as_str()), (404, "there is no cluster \"nope\"\n"));
    let unknown = scrape(&proxy, "/metrics?clusters=app", "text/plain");
    let line = "unknown parameter \"clusters\"; /metrics takes cluster\n";
    assert_eq!((unknown.status(), unknown.text().as_str()), (400, line));
}

#[test]
fn programs_of_others_read_both_formats_and_find_the_same() {
    let (proxy, _origins) = with_traffic();
    let (text, open) = (scrape(&proxy, "/metrics", "text/plain"), scrape(&proxy, "/metrics", OPEN_METRICS));
    assert!(open.header("content-type").unwrap().starts_with("application/openmetrics-text"));
    if let Some(output) = tool_fed("promtool", &["check", "metrics"], &text.text()) {
        said(&output);
    }
    // The official parser of each format, and the samples of both but for those that change by themselves.
    let script = "\
import sys
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as prometheus
both = sys.stdin.read().split('\\0')
own = ('process_', 'trylist_uptime', 'trylist_memory_growth')
def samples(families):
    return sorted((s.name, sorted(s.labels.items()), s.value)
        for f in families for s in f.samples if not s.name.startswith(own))
a, b = samples(prometheus(both[0])), samples(openmetrics(both[1]))
assert a == b, set(map(str, a)) ^ set(map(str, b))
assert len(a) > 200, len(a)
";
    let has_parser =
        tool("python3", &["-c", "import prometheus_client"]).is_some_and(|it| it.status.success());
    if has_parser {
        let both = format!("{}\0{}", text.text(), open.text());
        said(&tool_fed("python3", &["-c", script], &both).unwrap());
    } else {
        eprintln!("SKIPPED: there is no prometheus-client for python3 here");
    }
}

#[test]
fn the_rules_and_the_dashboard_name_metrics_that_there_are() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../conf");
    let read = |file: &str| fs::read_to_string(format!("{folder}/{file}")).unwrap();
    let (rules, dashboard) = (read("prometheus/alerts.yml"), read("grafana/trylist.json"));
    serde_json::from_str::<serde_json::Value>(&dashboard).expect("Grafana reads JSON");
    let (proxy, _origins) = with_traffic();
    let text = proxy.metrics();
    let mut there = series_names(&text);
    // They appear with their first count, or with an access log.
    there.extend(["trylist_access_log_dropped_lines_total", "trylist_health_checks_total"]);
    let is_of_a_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    for text in [&rules, &dashboard] {
        let names = text.split(|c: char| !is_of_a_name(c));
        let named: Vec<_> =
            names.filter(|n| n.starts_with("trylist_") || n.starts_with("process_")).collect();
        assert!(named.len() > 15, "{named:?}");
        for name in named {
            assert!(there.contains(name), "{name} is no metric");
        }
    }
    let (rules, cases) =
        (format!("{folder}/prometheus/alerts.yml"), format!("{folder}/prometheus/alerts.test.yml"));
    for arguments in [["check", "rules", &rules], ["test", "rules", &cases]] {
        if let Some(output) = tool("promtool", &arguments) {
            said(&output);
        }
    }
}
