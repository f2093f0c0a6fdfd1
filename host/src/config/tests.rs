//! The values of good files, and the exact line for every fault.

use std::time::Duration;

use super::*;
use crate::http::headers::forwarded::{Forwarded, Source};
use crate::net::address::Peer;
use crate::net::proxy_protocol;

/// The lines printed for a TOML file.
fn errors(text: &str) -> Vec<String> {
    let errors = parse("t.toml", text, Syntax::Toml).expect_err("the file has mistakes in it");
    errors.to_string().lines().map(str::to_owned).collect()
}

/// A good file in three pieces.
const HEAD: &str = "[[listener]]\naddress = \"127.0.0.1:0\"\n[load_module]\nround_robin = \"a.so\"\n";
const CLUSTER: &str = "[[cluster]]\nname = \"app\"\nservers = [\"http://127.0.0.1:9001\"]\n";
const ROUTE: &str = "[[route]]\npath = \"/\"\ncluster = \"app\"\n";

/// A good file with something in place of its listener and module (lines 1 to 4), its cluster (5 to 7) or its route
/// (8 to 10).
fn with_head(head: &str) -> String {
    [head, CLUSTER, ROUTE].concat()
}

fn with_cluster(cluster: &str) -> String {
    [HEAD, cluster, ROUTE].concat()
}

fn with_route(route: &str) -> String {
    [HEAD, CLUSTER, route].concat()
}

/// A good file with more at its beginning, from line 1.
fn with_top(top: &str) -> String {
    [top, HEAD, CLUSTER, ROUTE].concat()
}

/// Asserts the line printed for each mistake.
fn assert_lines(cases: &[(String, &str)]) {
    for (text, line) in cases {
        assert_eq!(errors(text), [*line], "of\n{text}");
    }
}

#[test]
fn the_shortest_file_gets_all_defaults() {
    let (config, warnings) = parse("t.toml", &[HEAD, CLUSTER, ROUTE].concat(), Syntax::Toml).unwrap();
    assert_eq!(warnings, []);
    assert_eq!(config.listeners[0].address.to_string(), "127.0.0.1:0");
    assert_eq!(config.clusters[0].place.to_string(), "t.toml:5");
    assert_eq!(&*config.clusters[0].module, "round_robin");
}

#[test]
fn reports_everything_in_one_run() {
    let text = r#"
threads = "two"
lisener = 5
[[listener]]
adress = "127.0.0.1:80"
[load_module]
Round-Robin = 5
least_request = { path = "a.so", sha = "a" }
[[cluster]]
name = "api"
module = "least_requst"
servers = ["https://a/b", { url = "http://b", weight = "3" }, { url = "http://b:x", wait = 3 }]
connect_timeout = 10
settings = { a = 1 }
[[route]]
path = "a"
cluster = "apo"
[limits]
head_bytes = "4k"
"#;
    let expected = r#"
t.toml:2: threads: expected an integer, found the string "two"
t.toml:3: unknown key "lisener" (did you mean "listener"?)
t.toml:5: listener: unknown key "adress" (did you mean "address"?)
t.toml:7: load_module.Round-Robin: expected a module's file, or a table such as { path = "libmod_x.so", sha256 = "…" }, found the integer 5
t.toml:8: load_module.least_request: unknown key "sha" (known here: path, sha256)
t.toml:11: cluster "api": no module "least_requst" is loaded (did you mean "least_request"?)
t.toml:12: cluster "api": server "https://a/b": a server has no path (write http://host or http://host:port)
t.toml:12: cluster "api": servers.weight: expected an integer, found the string "3"
t.toml:12: cluster "api": server "http://b:x": port "x" is not a number from 1 to 65535
t.toml:12: cluster "api": servers: unknown key "wait" (known here: url, resolve, weight, max_requests, tier, backup, drain, route, metadata)
t.toml:13: cluster "api": connect_timeout: expected a duration such as "250ms", "10s", "5m" or "1h", found the integer 10
t.toml:16: route "a": path "a" does not begin with "/" (write "/a")
t.toml:17: route "a": no cluster "apo" (did you mean "api"?)
t.toml:19: limits.head_bytes: expected a size such as 4096, "64KiB" or "1MiB", found the string "4k""#;
    assert_eq!(errors(text).join("\n"), expected.trim());
}

#[test]
fn reads_unix_sockets() {
    let text = r#"
[[listener]]
address = "unix:/run/front.sock"
mode = "0600"
group = "www-data"
proxy_protocol = { from = ["unix:"] }
[admin]
address = "unix:/run/admin.sock"
[load_module]
a = "a.so"
[[cluster]]
name = "app"
servers = ["unix:/run/App.sock", { url = "unix:/run/app.sock", weight = 2 }]
[[route]]
path = "/"
cluster = "app"
"#;
    let (config, warnings) = parse("t.toml", text, Syntax::Toml).unwrap();
    assert_eq!(warnings, []);
    let front = &config.listeners[0];
    assert_eq!((front.address.to_string().as_str(), front.access.mode), ("unix:/run/front.sock", 0o600));
    assert_eq!(front.access.owner.group.as_ref().map(|(group, _)| &**group), Some("www-data"));
    assert!(front.proxy_protocol.as_ref().unwrap().from.contains(Peer::Unix));
    let admin = config.admin.as_ref().unwrap();
    assert_eq!(
        (admin.address.to_string().as_str(), &admin.access),
        ("unix:/run/admin.sock", &Access::default())
    );
    let servers: Vec<_> =
        config.clusters[0].servers.iter().map(|s| (s.unix.as_deref(), &*s.host, s.port)).collect();
    let server = |path| (Some(Path::new(path)), path, 0);
    assert_eq!(servers, [server("/run/App.sock"), server("/run/app.sock")]);
}

#[test]
fn says_what_is_wrong_with_unix_sockets() {
    let text = r#"
[[listener]]
address = "unix:front.sock"
[[listener]]
address = "127.0.0.1:8080"
mode = "0660"
[[listener]]
address = "unix:/run/front.sock"
mode = "0888"
owner = ""
[[listener]]
address = "unix:/run/front.sock"
[load_module]
a = "a.so"
[[cluster]]
name = "app"
servers = ["unix:app.sock", "unix:/run/app.sock", "unix:/run/app.sock"]
[[route]]
path = "/"
cluster = "app"
"#;
    let expected = r#"
t.toml:3: listener "unix:front.sock": a socket's path begins at the root (write, for example, "unix:/run/trylist/app.sock")
t.toml:6: listener "127.0.0.1:8080": mode: not for an IP address (only a Unix socket is a file: leave it out)
t.toml:9: listener "unix:/run/front.sock": mode "0888" is not a file mode (write, for example, mode = "0660")
t.toml:10: owner: is empty; write a name, or leave it out
t.toml:12: listener "unix:/run/front.sock": the address is already used at t.toml:8
t.toml:17: cluster "app": server "unix:app.sock": a socket's path begins at the root (write, for example, "unix:/run/trylist/app.sock")"#;
    assert_eq!(
        errors(text).join(
            "
"
        ),
        expected.trim()
    );
}

#[test]
fn reads_every_key() {
    let text = r#"
threads = 3
supervision.module_faults = 0
module_path = ["m", "/abs"]
request_id = "X-Id"
forwarded = { trusted = ["10.0.0.0/8", "::1"], read = "forwarded", write = ["Forwarded"] }
limits = { request_line_bytes = 100, head_bytes = "1MiB", headers = 7, body_bytes = "2GiB", requests_per_connection = 9 }
timeouts = { request_head = "1s", body = "2s", request = "4s", tunnel = "8s", keepalive = "3s", drain = "0s" }
access_log.path = "access.log"
admin.address = "127.0.0.1:9100"
explain.allow = ["127.0.0.0/8", "::1"]
[[listener]]
address = "[::1]:8080"
max_connections = 5
max_connections_per_client = 4
proxy_protocol = { from = ["127.0.0.0/8"], timeout = "9s" }
[load_module]
x = { path = "x.so", sha256 = "00000000000000000000000000000000000000000000000000000000000000Ff" }
y = "y.so"
[[cluster]]
name = "a"
module = "y"
servers = ["http://[::1]", { url = "http://b:81", weight = 65535, metadata = { z = "1", a = "2" } }]
settings = { k = "v" }
key = "header:X-Id"
host_header = "a.example:80"
connect_timeout = "1ms"
response_timeout = "2ms"
body_timeout = "3ms"
keepalive = 0
keepalive_timeout = "4ms"
queue = 0
queue_per_client = 7
queue_timeout = "0s"
queue_order = "lifo"
when_full = "wait"
max_requests = 6
send_proxy_protocol = "v2"
request_headers = { set = { A = "1" } }
[[route]]
path = "/a"
host = "A.example"
cluster = "a"
rewrite = "/b/"
host_header = "server"
timeout = "5s"
upgrade = false
request_headers = { remove = ["b"], set = { C = "${host}" }, add = { D = "x" } }
response_headers = { add = { Date = "now" } }
retry = { on = ["connect", "reset", "timeout", "bad_response", "gateway", "429"], tries = 4, timeout = "6s", try_timeout = "7s", backoff = "1ms", max_backoff = "2ms", budget = { percent = 5, min = 6 }, methods = ["GET", "POST"], buffer = "1KiB" }
"#;
    let (config, warnings) = parse("conf/t.toml", text, Syntax::Toml).unwrap();
    let warnings: Vec<_> = warnings.iter().map(ToString::to_string).collect();
    assert_eq!(warnings, [r#"conf/t.toml:18: module "x": loaded, but no cluster uses it"#]);
    assert_eq!(config.threads, 3);
    assert_eq!(config.supervision.module_faults, 0);
    assert_eq!(
        (config.listeners[0].address.to_string(), config.listeners[0].max_connections),
        ("[::1]:8080".into(), 5)
    );
    assert_eq!(config.listeners[0].max_connections_per_client, Some(4));
    let proxy_protocol = config.listeners[0].proxy_protocol.as_ref().unwrap();
    let peer = |octets: [u8; 4]| Peer::Ip((octets, 0).into());
    assert!(proxy_protocol.from.contains(peer([127, 1, 2, 3])));
    assert_eq!(proxy_protocol.timeout, Duration::from_secs(9));
    assert_eq!(config.request_id.as_deref(), Some("X-Id"));
    let Forwarded { trusted, read, write_x, write_standard } = &config.forwarded;
    assert!(trusted.contains(peer([10, 1, 2, 3])) && !trusted.contains(peer([11, 1, 2, 3])));
    assert_eq!((*read, *write_x, *write_standard), (Source::Standard, false, true));
    assert_eq!(config.modules[0].search[..], [PathBuf::from("conf/m"), "/abs".into()]);
    assert_eq!(config.modules[0].sha256.map(|hash| (hash[0], hash[31])), Some((0, 255)));
    assert_eq!((&config.modules[1].file, config.modules[1].sha256), (&PathBuf::from("y.so"), None));
    let cluster = &config.clusters[0];
    assert_eq!((&*cluster.name, &*cluster.module), ("a", "y"));
    let servers: Vec<_> = cluster.servers.iter().map(|s| (&*s.url, &*s.host, s.port, s.weight)).collect();
    assert_eq!(servers, [("http://[::1]", "::1", 80, 1), ("http://b:81", "b", 81, 65_535)]);
    let metadata: Vec<_> =
        cluster.servers[1].metadata.iter().map(|(name, value)| (&**name, &**value)).collect();
    assert_eq!(metadata, [("z", "1"), ("a", "2")]);
    assert_eq!(cluster.settings.len(), 1);
    assert_eq!(cluster.key, Some(KeySource::Header("x-id".into())));
    assert_eq!(cluster.host_header, HostHeader::Fixed("a.example:80".into()));
    let times =
        [cluster.connect_timeout, cluster.response_timeout, cluster.body_timeout, cluster.keepalive_timeout];
    assert_eq!(times, [1, 2, 3, 4].map(Duration::from_millis));
    assert_eq!(
        (cluster.max_requests, cluster.send_proxy_protocol),
        (6, Some(proxy_protocol::ProxyVersion::V2))
    );
    assert_eq!((cluster.keepalive, cluster.queue, cluster.queue_timeout), (0, 0, Duration::ZERO));
    assert_eq!(cluster.queue_per_client, 7);
    assert_eq!((cluster.queue_order, cluster.when_full), (QueueOrder::Lifo, WhenFull::Wait));
    let route = &config.routes[0];
    assert_eq!(
        (route.host.as_deref(), &*route.path, route.rewrite.as_deref()),
        (Some("a.example"), "/a", Some("/b/"))
    );
    assert_eq!((route.cluster, &route.host_header), (0, &Some(HostHeader::Server)));
    assert_eq!(route.timeout, Some(Duration::from_secs(5)));
    let to_server = route.request_headers.as_deref().unwrap();
    let removed = ["a", "B", "c", "d", "X-ID"].map(|name| to_server.removes(name.as_bytes()));
    assert_eq!(removed, [true, true, true, false, true], "the cluster's rules and the ID's are among them");
    assert!(route.has_request_id && !route.upgrade && route.response_headers.is_some());
    let retry = route.retry.as_deref().unwrap();
    assert_eq!((retry.on.reset, retry.on.timeout, retry.on.bad_response), (true, true, true));
    assert_eq!(
        [429, 500, 502, 503, 504, 505].map(|status| retry.on.has_status(status)),
        [true, false, true, true, true, false]
    );
    assert_eq!((retry.tries, retry.budget.percent, retry.budget.min), (4, 5, 6));
    assert_eq!([retry.timeout, retry.try_timeout], [6, 7].map(|seconds| Some(Duration::from_secs(seconds))));
    assert_eq!([retry.backoff, retry.max_backoff], [1, 2].map(Duration::from_millis));
    assert_eq!((retry.repeats(b"POST"), retry.repeats(b"PUT"), retry.buffer_bytes), (true, false, 1024));
    assert_eq!(config.route_order, RouteOrder::Longest);
    let Limits { request_line_bytes, head_bytes, headers, body_bytes, requests_per_connection } =
        config.limits;
    assert_eq!((request_line_bytes, head_bytes, headers), (100, 1 << 20, 7));
    assert_eq!((body_bytes, requests_per_connection), (Some(2 << 30), Some(9)));
    let Timeouts { request_head, handshake: _, body, request, tunnel, keepalive, drain } = config.timeouts;
    assert_eq!([request_head, body, keepalive, drain], [1, 2, 3, 0].map(Duration::from_secs));
    assert_eq!((request, tunnel), (Some(Duration::from_secs(4)), Duration::from_secs(8)));
    assert_eq!(config.access_log, AccessLogTarget::File("conf/access.log".into()));
    assert_eq!(config.admin.unwrap().address.to_string(), "127.0.0.1:9100");
    let explain_to: Vec<_> = config.explain_to.iter().map(ToString::to_string).collect();
    assert_eq!(explain_to, ["127.0.0.0/8", "::1/128"]);
}

#[test]
fn warns_of_a_server_that_is_there_twice() {
    let servers = "[\"http://A.example\", \"http://b\",\n  { url = \"http://a.example:80\", weight = 2 }, \"http://b:81\"]";
    let text = with_cluster(&format!("[[cluster]]\nname = \"app\"\nservers = {servers}\n"));
    let (config, warnings) = parse("t.toml", &text, Syntax::Toml).unwrap();
    let warnings: Vec<_> = warnings.iter().map(ToString::to_string).collect();
    let expected = "t.toml:8: cluster \"app\": server \"http://a.example:80\": already listed at t.toml:7 \
                    (to send it more requests, set its weight)";
    assert_eq!((warnings, config.clusters[0].servers.len()), (vec![expected.to_owned()], 4));
}

#[test]
fn modules_without_a_cluster_are_one_warning() {
    let head = HEAD.to_owned() + "a = \"a.so\"\nb = \"b.so\"\n";
    let cluster = CLUSTER.to_owned() + "module = \"round_robin\"\n";
    let (_, warnings) = parse("t.toml", &[&head, &cluster, ROUTE].concat(), Syntax::Toml).unwrap();
    let warnings: Vec<_> = warnings.iter().map(ToString::to_string).collect();
    assert_eq!(warnings, ["t.toml:5: modules a, b: loaded, but no cluster uses them"]);
}

#[test]
fn says_which_networks_are_none() {
    let text = with_top("explain.allow = [\"10.0.0.1/8\", \"localhost\", 5, \"::1\"]\nexplain.deny = []\n");
    let expected = r#"
t.toml:1: explain.allow: "10.0.0.1/8": has bits behind its prefix (write "10.0.0.0/8")
t.toml:1: explain.allow: "localhost": is not an address or a network (write, for example, "10.0.0.0/8" or "::1")
t.toml:1: explain.allow: expected a string, found the integer 5
t.toml:2: explain: unknown key "deny" (known here: allow)"#;
    assert_eq!(errors(&text).join("\n"), expected.trim());
}

#[test]
fn reads_every_source_of_keys() {
    for (text, source) in [
        ("client", KeySource::Client),
        ("path", KeySource::Path),
        ("uri", KeySource::Uri),
        ("cookie:sid", KeySource::Cookie("sid".into())),
        ("query:user id", KeySource::Query("user id".into())),
    ] {
        let (config, _) =
            parse("t.toml", &with_cluster(&format!("{CLUSTER}key = \"{text}\"\n")), Syntax::Toml).unwrap();
        assert_eq!(config.clusters[0].key, Some(source));
    }
}

#[test]
fn says_what_an_empty_file_lacks() {
    assert_eq!(
        errors("# nothing\n"),
        [
            r#"t.toml: no [[listener]] (write, for example, address = "127.0.0.1:8080" below one)"#,
            r#"t.toml: no module (write, for example, round_robin = "libmod_round_robin.so" below [load_module])"#,
            r#"t.toml: no [[cluster]] (write name = "…" and servers = ["http://…"] below one)"#,
            r#"t.toml: no [[route]] (write path = "/" and cluster = "…" below one)"#,
        ]
    );
}

#[test]
fn refuses_what_is_not_toml() {
    assert_eq!(
        errors("[[listener]]\naddress = \nqueue = 1\nqueue = 2\n[[cluster]\n"),
        [
            "t.toml:2: not valid TOML: string values must be quoted, expected literal string",
            "t.toml:4: not valid TOML: duplicate key \"queue\"",
            "t.toml:5: not valid TOML: unclosed array table, expected `]`",
        ]
    );
    assert_lines(&[
        (with_top("threads 3\n"), "t.toml:1: not valid TOML: key with no value, expected `=`"),
        ("a = \"b\n".to_owned(), "t.toml:1: not valid TOML: invalid basic string, expected `\"`"),
        ("a = [1,\n".to_owned(), "t.toml:1: not valid TOML: unclosed array, expected `]`"),
    ]);
}

#[test]
fn a_file_that_cannot_be_read_is_a_problem() {
    let dir = tempfile::tempdir().unwrap();
    let line = |path: &Path| load(path).unwrap_err().to_string();
    let path = dir.path().join("none.toml");
    assert_eq!(line(&path), format!("{}: cannot be read: file not found", path.display()));
    assert_eq!(line(dir.path()), format!("{}: cannot be read: it is a directory", dir.path().display()));
    let path = dir.path().join("latin.toml");
    std::fs::write(&path, b"# a\n# \xe9\n").unwrap();
    assert_eq!(line(&path), format!("{}: cannot be read: line 2 is not UTF-8", path.display()));
}

#[test]
fn refuses_wrong_types_with_what_would_be_right() {
    assert_lines(&[
        (with_top("threads = 1.5\n"), "t.toml:1: threads: expected an integer, found the float 1.5"),
        (
            with_top("threads = 99999999999999999999\n"),
            "t.toml:1: threads: 99999999999999999999 is too large for an integer",
        ),
        (with_top("limits = 3\n"), "t.toml:1: limits: expected a table, found the integer 3"),
        (with_top("[[limits]]\n"), "t.toml:1: limits: expected a table, found an array"),
        (
            with_top("module_path = \"m\"\n"),
            "t.toml:1: module_path: expected an array, found the string \"m\"",
        ),
        (
            with_top("module_path = [true]\n"),
            "t.toml:1: module_path: expected a string, found the boolean true",
        ),
        (
            with_top("[timeouts]\nbody = \"10 sec\"\n"),
            r#"t.toml:2: timeouts.body: expected a duration such as "250ms", "10s", "5m" or "1h", found the string "10 sec""#,
        ),
        (
            with_top("limits.head_bytes = -1\n"),
            r#"t.toml:1: limits.head_bytes: expected a size such as 4096, "64KiB" or "1MiB", found the integer -1"#,
        ),
        (
            with_head("[listener]\naddress = \"127.0.0.1:0\"\n[load_module]\nx = \"x.so\"\n"),
            "t.toml:1: listener: expected a table in double brackets, one for each, found a table",
        ),
        (
            with_cluster("[[cluster]]\nname = \"app\"\nservers = [1]\n"),
            r#"t.toml:7: cluster "app": servers: expected a URL such as "http://127.0.0.1:9001", or a table such as { url = "…", weight = 2 }, found the integer 1"#,
        ),
        (
            with_cluster("[[cluster]]\nname = 2003-07-01\nservers = [\"http://a\"]\n"),
            "t.toml:6: cluster: name: expected a string, found a date",
        ),
        (
            with_cluster(
                &format!("{CLUSTER}[[cluster.servers]]\nurl = 3\n")
                    .replace("servers = [\"http://127.0.0.1:9001\"]\n", ""),
            ),
            r#"t.toml:8: cluster "app": servers.url: expected a string, found the integer 3"#,
        ),
        (
            with_route("[[route]]\npath = \"/a\"\nhost = \"b\"\ncluster = []\n"),
            r#"t.toml:11: route "b/a": cluster: expected a string, found an array"#,
        ),
    ]);
}

#[test]
fn refuses_unknown_keys_at_every_level() {
    assert_lines(&[
        (with_top("thread = 3\n"), r#"t.toml:1: unknown key "thread" (did you mean "threads"?)"#),
        (
            with_top("worker_count = 3\n"),
            r#"t.toml:1: unknown key "worker_count" (known here: threads, module_path, user, group, control, pid_file, pass_environment, core_dumps, request_id, listener, load_module, cluster, route, forwarded, limits, timeouts, supervision, resolver, access_log, admin, explain)"#,
        ),
        (
            with_top("[limits]\nheader = 3\n"),
            r#"t.toml:2: limits: unknown key "header" (did you mean "headers"?)"#,
        ),
        (
            with_cluster(&format!("{CLUSTER}keep_alive = 3\n")),
            r#"t.toml:8: cluster "app": unknown key "keep_alive" (did you mean "keepalive"?)"#,
        ),
        (
            with_cluster("[[cluster]]\nname = \"app\"\nservers = [{ url = \"http://a\", wieght = 3 }]\n"),
            r#"t.toml:7: cluster "app": servers: unknown key "wieght" (did you mean "weight"?)"#,
        ),
        (
            with_route("[[route]]\nprefix = \"/\"\npath = \"/a\"\ncluster = \"app\"\n"),
            r#"t.toml:9: route "/a": unknown key "prefix" (known here: path, host, cluster, rewrite, host_header, timeout, retry, request_headers, response_headers, upgrade)"#,
        ),
    ]);
}

#[test]
fn reads_how_health_is_told() {
    let cluster = |keys: &str| {
        let text = with_cluster(&format!("{CLUSTER}{keys}\n"));
        let (config, _) = parse("t.toml", &text, Syntax::Toml).unwrap_or_else(|errors| panic!("{errors}"));
        config.clusters.into_iter().next().unwrap()
    };
    let default = cluster("");
    assert_eq!((default.ejection, default.health_check), (Ejection::default(), None));
    assert_eq!(default.panic_threshold, 0);
    let all = "failures = 1, statuses = \"5xx\", failure_percent = 100, interval = \"1s\", min_requests = 2, \
               time = \"3s\", max_time = \"4s\", max_percent = 5";
    let seconds = Duration::from_secs;
    assert_eq!(
        cluster(&format!("ejection = {{ {all} }}")).ejection,
        Ejection {
            failures: 1,
            statuses: CountedStatuses::All5xx,
            failure_percent: 100,
            interval: seconds(1),
            min_requests: 2,
            time: seconds(3),
            max_time: seconds(4),
            max_percent: 5,
        }
    );
    let check = |keys: &str| cluster(&format!("health_check = {{ {keys} }}")).health_check.unwrap();
    let http = HttpProbe {
        method: ProbeMethod::Get,
        path: "/".into(),
        host: None,
        statuses: vec![200..=399],
        body: None,
    };
    let plain = HealthCheck {
        probe: Probe::Http(http.clone()),
        interval: seconds(5),
        timeout: seconds(2),
        rise: 2,
        fall: 3,
        port: None,
    };
    assert_eq!(check(""), plain);
    let keys = "path = \"/h?a=b\", host = \"h:81\", statuses = [204, \"3xx\", \"400-403\"], body = \"ok\"";
    let http = HttpProbe {
        path: "/h?a=b".into(),
        host: Some("h:81".into()),
        statuses: vec![204..=204, 300..=399, 400..=403],
        body: Some("ok".into()),
        ..http
    };
    assert_eq!(check(keys), HealthCheck { probe: Probe::Http(http), ..plain.clone() });
    let keys = "type = \"tcp\", port = 81, interval = \"1s\", timeout = \"3s\", rise = 4, fall = 5";
    let (port, rise, fall) = (Some(81), 4, 5);
    let (interval, timeout) = (seconds(1), seconds(3));
    let tcp = HealthCheck { probe: Probe::Tcp, interval, timeout, rise, fall, port };
    assert_eq!(check(keys), tcp);
    let grpc = |service: &str| Probe::Grpc { service: service.into() };
    assert_eq!(check("type = \"grpc\"").probe, grpc(""));
    assert_eq!(check("type = \"grpc\", service = \"a.B\"").probe, grpc("a.B"));
}

#[test]
fn refuses_what_tells_no_health() {
    let cases: [(&str, &str); 17] = [
        ("ejection = { failures = -1 }", "ejection.failures: -1 is not a number from 0 to 1000"),
        (
            "ejection = { statuses = \"500\" }",
            r#"ejection.statuses: "500" is not one of "none", "gateway" (502, 503 and 504) and "5xx""#,
        ),
        (
            "ejection = { failure_percent = 101 }",
            "ejection.failure_percent: 101 is not a number from 0 to 100",
        ),
        ("ejection = { time = \"0s\" }", "ejection.time: must be longer than 0s (the default is 10s)"),
        (
            "ejection = { time = \"10m\", max_time = \"5m\" }",
            "ejection.max_time: 5m is less than the 10m of ejection.time",
        ),
        ("ejection = { max_percent = 0 }", "ejection.max_percent: 0 is not a number from 1 to 100"),
        ("ejection = { failure = 1 }", r#"ejection: unknown key "failure" (did you mean "failures"?)"#),
        ("panic_threshold = 101", "panic_threshold: 101 is not a number from 0 to 100"),
        (
            "health_check = { type = \"icmp\" }",
            r#"health_check.type: "icmp" is not one of "http", "tcp" and "grpc""#,
        ),
        (
            "health_check = { type = \"tcp\", path = \"/\" }",
            "health_check.path is not for checks of type \"tcp\"",
        ),
        ("health_check = { service = \"a\" }", "health_check.service is not for checks of type \"http\""),
        (
            "health_check = { path = \"health\" }",
            r#"health_check.path: "health" is not a valid path (it begins with "/" and has no space; write, for example, "/healthz")"#,
        ),
        (
            "health_check = { method = \"POST\" }",
            r#"health_check.method: "POST" is not one of "GET" and "HEAD""#,
        ),
        (
            "health_check = { method = \"HEAD\", body = \"ok\" }",
            r#"health_check.body: needs a body (a response to HEAD has none; write method = "GET")"#,
        ),
        (
            "health_check = { statuses = [] }",
            r#"health_check.statuses: is empty (write, for example, [200, "3xx"])"#,
        ),
        (
            "health_check = { statuses = [\"ok\"] }",
            r#"health_check.statuses: expected a status such as 200, "2xx" or "200-399", found the string "ok""#,
        ),
        ("health_check = { port = 0 }", "health_check.port: 0 is not a number from 1 to 65535"),
    ];
    for (keys, line) in cases {
        let text = with_cluster(&format!("{CLUSTER}{keys}\n"));
        assert_eq!(errors(&text), [format!("t.toml:8: cluster \"app\": {line}")], "{keys}");
    }
    assert_lines(&[
        (
            with_top("resolver.servers = [\"127.0.0.1\", \"::1\", \"[::1]:54\", \"localhost\"]\n"),
            r#"t.toml:1: resolver.servers: "localhost" is not an IP address (write, for example, "127.0.0.1:53")"#,
        ),
        (
            with_top("resolver.family = \"ipv5\"\n"),
            r#"t.toml:1: resolver.family: "ipv5" is not one of "any", "ipv4" and "ipv6""#,
        ),
        (
            with_top("[resolver]\nmin_ttl = \"2h\"\n"),
            "t.toml:2: resolver.max_ttl: 1h is less than the 2h of resolver.min_ttl",
        ),
    ]);
    let top = with_top("resolver.servers = [\"127.0.0.1\", \"::1\", \"[::1]:54\"]\n");
    let (config, _) = parse("t.toml", &top, Syntax::Toml).unwrap();
    let servers: Vec<_> = config.resolver.servers.iter().map(ToString::to_string).collect();
    assert_eq!(servers, ["127.0.0.1:53", "[::1]:53", "[::1]:54"]);
}

#[test]
fn refuses_bad_listeners() {
    let module = "[load_module]\nx = \"x.so\"\n";
    let listener = |keys: &str| with_head(&format!("[[listener]]\n{keys}{module}"));
    let twice = "address = \"127.0.0.1:80\"\n[[listener]]\naddress = \"127.0.0.1:80\"\n";
    assert_lines(&[
        (listener(""), r#"t.toml:1: listener: no address (write, for example, address = "127.0.0.1:8080")"#),
        (
            listener("address = \"localhost:80\"\n"),
            r#"t.toml:2: listener "localhost:80": is not an IP address with a port (write "127.0.0.1:80")"#,
        ),
        (listener(twice), r#"t.toml:4: listener "127.0.0.1:80": the address is already used at t.toml:2"#),
        (
            listener("address = \"127.0.0.1:80\"\nmax_connections = 0\n"),
            r#"t.toml:3: listener "127.0.0.1:80": max_connections: 0 is not a number from 1 to 10000000"#,
        ),
        (
            listener("address = \"127.0.0.1:80\"\n[admin]\naddress = \"127.0.0.1:80\"\n"),
            r#"t.toml:3: admin "127.0.0.1:80": the address is already used at t.toml:2"#,
        ),
        (
            with_top("[admin]\n"),
            r#"t.toml:1: admin: no address (write, for example, address = "127.0.0.1:9100")"#,
        ),
    ]);
    // Port 0 is another port each time.
    let (config, _) = parse("t.toml", &with_top(HEAD.split("[load").next().unwrap()), Syntax::Toml).unwrap();
    assert_eq!(config.listeners.len(), 2);
}

#[test]
fn refuses_bad_modules() {
    let listener = "[[listener]]\naddress = \"127.0.0.1:0\"\n[load_module]\n";
    let module = |line: &str| with_head(&format!("{listener}{line}\n"));
    assert_lines(&[
        (
            module("Round-Robin = \"a.so\""),
            r#"t.toml:4: module "Round-Robin": a module ID is written in snake_case, as "round_robin""#,
        ),
        (module("\"2 x!\" = \"a.so\""), r#"t.toml:4: module "2 x!": a module ID is written in snake_case"#),
        (module("x = \"\""), r#"t.toml:4: module "x": the file's name is empty"#),
        (module("x = {}"), r#"t.toml:4: module "x": no path (write, for example, path = "libmod_x.so")"#),
        (
            module("x = { path = \"x.so\", sha256 = \"12\" }"),
            r#"t.toml:4: module "x": sha256 "12" is not 64 hexadecimal digits (sha256sum FILE prints them)"#,
        ),
        (module("x = \"x.so\"\nx = \"y.so\""), r#"t.toml:5: not valid TOML: duplicate key "x""#),
        (
            module("x = \"x.so\"\ny = \"y.so\""),
            r#"t.toml:6: cluster "app": several modules are loaded (x, y); name one of them (module = "ID")"#,
        ),
        (
            with_top("module_path = [\"\"]\n"),
            "t.toml:1: module_path: a directory is empty (write \".\" for that of this file)",
        ),
        (
            with_cluster(&format!("{CLUSTER}module = \"maglev\"\n")),
            r#"t.toml:8: cluster "app": no module "maglev" is loaded (loaded: round_robin)"#,
        ),
    ]);
}

#[test]
fn refuses_what_does_not_fit_how_servers_are_reached() {
    let cluster = |url: &str, line: &str| {
        with_cluster(&format!("[[cluster]]\nname = \"app\"\nservers = [\"{url}\"]\n{line}\n"))
    };
    assert_lines(&[
        (
            cluster("http://a", "tls = { verify = false }"),
            r#"t.toml:8: cluster "app": tls: no server is reached by https (write https://host, or leave tls out)"#,
        ),
        (
            cluster("unix:/a", "tls = { verify = false }\nhealth_check = { tls = true }"),
            r#"t.toml:9: cluster "app": health_check.tls: no certificate can be valid for the host of "unix:/a" (name it by the cluster's tls = { server_name = "…" })"#,
        ),
        (
            cluster("https://a", "tls = { verify = false, ca = \"ca.pem\" }"),
            r#"t.toml:8: cluster "app": tls: verify = false with ca "ca.pem" (leave one of them out)"#,
        ),
        (
            cluster("https://a", "tls = { verify = false, server_name = \"a b\" }"),
            r#"t.toml:8: cluster "app": tls: server_name "a b" is not a name or an address"#,
        ),
        (
            cluster("https://a", "tls = { ca = \"nowhere/ca.pem\" }"),
            r#"t.toml:8: cluster "app": tls: ca "nowhere/ca.pem" cannot be read: file not found"#,
        ),
        (
            cluster("http://a", "protocol = \"h3\""),
            r#"t.toml:8: cluster "app": protocol: "h3" is not one of "http1", "h2" and "auto""#,
        ),
        (
            cluster("http://a", "protocol = \"auto\""),
            r#"t.toml:8: cluster "app": protocol "auto" is for servers that are all reached by https (write "http1" or "h2")"#,
        ),
    ]);
}

#[test]
fn warns_of_servers_that_are_not_verified() {
    let text = "[[cluster]]\nname = \"app\"\nservers = [\"https://a\"]\ntls = { verify = false }\n";
    let (config, warnings) = parse("t.toml", &with_cluster(text), Syntax::Toml).unwrap();
    assert_eq!(config.clusters[0].servers[0].port, 443);
    let [warning] = &warnings[..] else { panic!("{warnings:?}") };
    assert_eq!(
        warning.to_string(),
        "t.toml:8: cluster \"app\": tls: verify = false: servers are not verified, so anybody at their addresses is \
         trusted; set their issuer by ca = \"…\" instead"
    );
}

#[test]
fn refuses_bad_clusters() {
    let cluster = |line: &str| with_cluster(&format!("{CLUSTER}{line}\n"));
    let servers =
        |servers: &str| with_cluster(&format!("[[cluster]]\nname = \"app\"\nservers = [{servers}]\n"));
    assert_lines(&[
        (
            with_cluster("[[cluster]]\nservers = [\"http://a\"]\n"),
            r#"t.toml:5: cluster: no name (write, for example, name = "app")"#,
        ),
        (
            with_cluster(&format!("{CLUSTER}[[cluster]]\nname = \"a/b\"\nservers = [\"http://a\"]\n")),
            r#"t.toml:9: cluster "a/b": a name is made of letters, digits, "_", "-" and ".""#,
        ),
        (
            with_cluster(&[CLUSTER, CLUSTER].concat()),
            r#"t.toml:9: cluster "app": the name is already used at t.toml:5"#,
        ),
        (
            servers(""),
            r#"t.toml:5: cluster "app": no server (write, for example, servers = ["http://127.0.0.1:9001"])"#,
        ),
        (
            servers("{}"),
            r#"t.toml:7: cluster "app": server: no url (write, for example, url = "http://127.0.0.1:9001")"#,
        ),
        (
            servers("\"http://a/b\""),
            r#"t.toml:7: cluster "app": server "http://a/b": a server has no path (write http://host or http://host:port)"#,
        ),
        (
            servers("{ url = \"http://a\", resolve = \"every\" }"),
            r#"t.toml:7: cluster "app": server "http://a": resolve: "every" is not one of "one" and "all""#,
        ),
        (
            servers("{ url = \"http://127.0.0.1\", resolve = \"all\" }"),
            r#"t.toml:7: cluster "app": server "http://127.0.0.1": resolve "all" without a name (only a name can have several addresses)"#,
        ),
        (
            servers("{ url = \"http://a\", resolve = \"all\", route = \"r\" }"),
            r#"t.toml:7: cluster "app": server "http://a": route with resolve = "all" (a session's route names one server: write a server for each address, or sticky with a cookie)"#,
        ),
        (
            servers("{ url = \"http://a\", weight = 0 }"),
            r#"t.toml:7: cluster "app": server "http://a": weight: 0 is not a number from 1 to 65535"#,
        ),
        (
            servers("{ url = \"http://a\", weight = 65536 }"),
            r#"t.toml:7: cluster "app": server "http://a": weight: 65536 is not a number from 1 to 65535"#,
        ),
        (
            cluster("key = \"ip\""),
            r#"t.toml:8: cluster "app": key: "ip" is not one of "client", "header:X-Id", "cookie:sid", "query:user", "path" and "uri""#,
        ),
        (
            cluster("key = \"header:X Id\""),
            r#"t.toml:8: cluster "app": key: "header:X Id" is not one of "client", "header:X-Id", "cookie:sid", "query:user", "path" and "uri""#,
        ),
        (
            cluster("host_header = \"a b\""),
            r#"t.toml:8: cluster "app": host_header: "a b" is neither a host name nor an IP address (write "keep", "server" or a host such as "app.example.com")"#,
        ),
        (
            cluster("connect_timeout = \"0s\""),
            r#"t.toml:8: cluster "app": connect_timeout: must be longer than 0s (the default is 5s)"#,
        ),
        (
            cluster("keepalive_timeout = \"0ms\""),
            r#"t.toml:8: cluster "app": keepalive_timeout: must be longer than 0s (write keepalive = 0 to keep no connections)"#,
        ),
        (
            cluster("keepalive = 65536"),
            r#"t.toml:8: cluster "app": keepalive: 65536 is not a number from 0 to 65535"#,
        ),
        (
            servers("{ url = \"http://a\", max_requests = -1 }"),
            r#"t.toml:7: cluster "app": server "http://a": max_requests: -1 is not a number from 0 to 1000000"#,
        ),
        (
            servers("{ url = \"http://a\", tier = 16 }"),
            r#"t.toml:7: cluster "app": server "http://a": tier: 16 is not a number from 0 to 15"#,
        ),
        (
            servers("{ url = \"http://a\", tier = 2, backup = true }"),
            r#"t.toml:7: cluster "app": server "http://a": tier and backup ("backup = true" is tier 1: write one of them)"#,
        ),
        (
            cluster("slow_start_aggression = 0"),
            r#"t.toml:8: cluster "app": slow_start_aggression: 0 is not a number from 0.1 to 100"#,
        ),
        (
            cluster("all_down = \"serve\""),
            r#"t.toml:8: cluster "app": all_down: "serve" is not one of "fail" and "try_all""#,
        ),
        (
            cluster("sticky = { secret = \"0123456789abcdef\" }"),
            r#"t.toml:8: cluster "app": sticky: sessions need exactly one kind of key (write either cookie, or app_cookie, url_parameter or header)"#,
        ),
        (
            cluster("sticky = { cookie = \"a\", secret = \"short\" }"),
            r#"t.toml:8: cluster "app": sticky: secret has fewer than 16 bytes"#,
        ),
        (
            cluster("sticky = { cookie = \"a b\" }"),
            r#"t.toml:8: cluster "app": sticky: cookie: "a b" is not a valid name of a header or a cookie"#,
        ),
        (
            cluster("sticky = { cookie = \"a\", secret = \"0123456789abcdef\", same_site = \"Lax\" }"),
            r#"t.toml:8: cluster "app": sticky: same_site "Lax" is unknown (write "lax", "strict" or "none")"#,
        ),
        (
            cluster(
                "sticky = { cookie = \"a\", secret = \"0123456789abcdef\", same_site = \"none\", secure = false }",
            ),
            r#"t.toml:8: cluster "app": sticky: browsers refuse a cookie with same_site = "none" that is not Secure (leave secure out)"#,
        ),
        (
            cluster("sticky = { cookie = \"__Secure-a\", secret = \"0123456789abcdef\", secure = false }"),
            r#"t.toml:8: cluster "app": sticky: browsers refuse a cookie called "__Secure-a" that is not Secure (leave secure out)"#,
        ),
        (
            cluster("sticky = { cookie = \"__Host-a\", secret = \"0123456789abcdef\", path = \"/a\" }"),
            r#"t.toml:8: cluster "app": sticky: browsers refuse a cookie called "__Host-a" with a domain, or a path but "/" (leave domain and path out, or choose another name)"#,
        ),
        (
            cluster("sticky = { cookie = \"a\", secret = \"0123456789abcdef\", path = \"a;b\" }"),
            r#"t.toml:8: cluster "app": sticky: path "a;b" is not a cookie path (write "/", or a path as clients send it)"#,
        ),
        (
            cluster("sticky = { cookie = \"a\", secret = \"0123456789abcdef\", domain = \".example.com\" }"),
            r#"t.toml:8: cluster "app": sticky: domain ".example.com" is not a domain name (write, for example, "example.com")"#,
        ),
        (
            cluster("sticky = { cookie = \"a\", secret = \"0123456789abcdef\", max_age = \"500ms\" }"),
            r#"t.toml:8: cluster "app": sticky: max_age: must be 1s or longer (leave the key out for a cookie that goes when the browser is closed)"#,
        ),
        (
            cluster("sticky = { app_cookie = \"sid\" }"),
            r#"t.toml:8: cluster "app": sticky: no server has a route (write, for example, { url = "…", route = "a" })"#,
        ),
        (
            cluster("queue_order = \"random\""),
            r#"t.toml:8: cluster "app": queue_order: "random" is not one of "fifo" and "lifo""#,
        ),
        (
            cluster("when_full = \"fail\""),
            r#"t.toml:8: cluster "app": when_full: "fail" is not one of "wait" and "spill""#,
        ),
        (cluster("queue = -1"), r#"t.toml:8: cluster "app": queue: -1 is not a number from 0 to 1000000"#),
    ]);
}

#[test]
fn cookies_that_clients_take_for_one_are_refused() {
    let text = |stickies: [&str; 2], hosts: [&str; 2]| {
        let mut text = String::from("[[listener]]\naddress = \"127.0.0.1:0\"\n[load_module]\na = \"a.so\"\n");
        for ((name, sticky), host) in ["one", "two"].into_iter().zip(stickies).zip(hosts) {
            let host = if host.is_empty() { String::new() } else { format!("host = \"{host}\"\n") };
            text += &format!(
                "[[cluster]]\nname = \"{name}\"\nservers = [\"http://a\"]\n\
                 sticky = {{ secret = \"0123456789abcdef\", {sticky} }}\n\
                 [[route]]\npath = \"/{name}\"\ncluster = \"{name}\"\n{host}"
            );
        }
        text
    };
    let (plain, both) = ("cookie = \"s\"", ["", ""]);
    let of_domain = "cookie = \"s\", domain = \"example.com\"";
    let refused = [
        ([plain; 2], both),
        ([plain; 2], ["a.example.com", ""]),
        ([plain; 2], ["", "a.example.com"]),
        ([plain; 2], ["a.example.com", "a.example.com"]),
        ([of_domain; 2], ["a.example.com", "b.example.com"]),
    ];
    for (stickies, hosts) in refused {
        let errors = parse("t.toml", &text(stickies, hosts), Syntax::Toml).unwrap_err();
        let lines: Vec<_> = errors.problems.iter().map(ToString::to_string).collect();
        let line = if hosts[0].is_empty() { 15 } else { 16 };
        assert_eq!(
            lines,
            [format!(
                "t.toml:{line}: cluster \"two\": sticky: cookie \"s\" is also that of cluster \"one\", which has the same host, \
                 so that each breaks the other's sessions (give them different names or paths)"
            )],
            "{stickies:?} {hosts:?}"
        );
    }
    let passed = [
        ([plain; 2], ["a.example.com", "b.example.com"]),
        ([plain, "cookie = \"S\""], both),
        ([plain, "cookie = \"s\", path = \"/two\""], both),
        ([plain, of_domain], both),
    ];
    for (stickies, hosts) in passed {
        parse("t.toml", &text(stickies, hosts), Syntax::Toml).unwrap();
    }
}

#[test]
fn says_what_sessions_lack() {
    let cluster = |sticky: &str, second: &str| {
        with_cluster(&format!(
            "[[cluster]]\nname = \"app\"\nservers = [{{ url = \"http://a\", route = \"r\" }}, {second}]\nsticky = {sticky}\n"
        ))
    };
    let text = cluster("{ cookie = \"s\" }", "\"http://b\"");
    let (config, warnings) = parse("t.toml", &text, Syntax::Toml).unwrap();
    assert_eq!(
        config.clusters[0].sticky,
        Some(StickyConfig::Issued { cookie: "s".into(), secret: None, terms: CookieTerms::default() })
    );
    let warnings: Vec<_> = warnings.iter().map(ToString::to_string).collect();
    assert_eq!(
        warnings,
        [
            r#"t.toml:8: cluster "app": sticky: no secret, so sessions are lost at every start (write secret = "…")"#
        ]
    );
    let twice = cluster("{ app_cookie = \"s\" }", "{ url = \"http://b\", route = \"r\" }");
    assert_lines(&[(
        twice,
        r#"t.toml:8: cluster "app": sticky: route "r" is also that of server "http://a""#,
    )]);
    let secret = cluster("{ cookie = \"s\", secret = \"0123456789abcdef\" }", "\"http://b\"");
    let (config, _) = parse("t.toml", &secret, Syntax::Toml).unwrap();
    assert!(!format!("{config:?}").contains("0123456789abcdef"), "the secret is not to be logged");
}

#[test]
fn refuses_bad_routes() {
    let route = |keys: &str| with_route(&format!("[[route]]\n{keys}\n"));
    assert_lines(&[
        (route("cluster = \"app\""), r#"t.toml:8: route: no path (write path = "/" for all of them)"#),
        (route("path = \"/\""), r#"t.toml:8: route "/": no cluster (write the name of one)"#),
        (
            route("path = \"/\"\ncluster = \"ap\""),
            r#"t.toml:10: route "/": no cluster "ap" (did you mean "app"?)"#,
        ),
        (
            route("path = \"/\"\ncluster = \"other\""),
            r#"t.toml:10: route "/": no cluster "other" (there are: app)"#,
        ),
        (
            route("path = \"a\"\ncluster = \"app\""),
            r#"t.toml:9: route "a": path "a" does not begin with "/" (write "/a")"#,
        ),
        (
            route("path = \"/a?b\"\ncluster = \"app\""),
            r#"t.toml:9: route "/a?b": path "/a?b" has a '?' in it, but only paths are matched"#,
        ),
        (
            route("path = \"/é\"\ncluster = \"app\""),
            r#"t.toml:9: route "/é": path "/é" has 'é' in it (write it percent-encoded, as clients send it)"#,
        ),
        (
            route("path = \"/a/../%62\"\ncluster = \"app\""),
            r#"t.toml:9: route "/a/../%62": path "/a/../%62" is not normalized (write "/b")"#,
        ),
        (
            route("path = \"/\"\ncluster = \"app\"\nrewrite = \"b\""),
            r#"t.toml:11: route "/": rewrite "b" does not begin with "/" (write "/b")"#,
        ),
        (
            route("path = \"/\"\ncluster = \"app\"\nhost = \"A:80\""),
            r#"t.toml:11: route "A:80/": host "A:80": a route's host has no port (write "a")"#,
        ),
        (
            route(
                "path = \"/\"\nhost = \"a\"\ncluster = \"app\"\n[[route]]\npath = \"/\"\nhost = \"A.\"\ncluster = \"app\"",
            ),
            r#"t.toml:12: route "a/": already defined at t.toml:8"#,
        ),
    ]);
    // The same path of another host is another route.
    parse("t.toml", &with_route(&format!("{ROUTE}{ROUTE}host = \"a\"\n")), Syntax::Toml).unwrap();
}

#[test]
fn refuses_bad_headers() {
    let route = |keys: &str| with_route(&format!("{ROUTE}{keys}\n"));
    assert_lines(&[
        (
            route("request_headers = { set = { Content-Length = \"5\" } }"),
            r#"t.toml:11: route "/": request_headers.set: "Content-Length" frames messages; only the proxy sets it"#,
        ),
        (
            route("response_headers = { remove = [\"connection\"] }"),
            r#"t.toml:11: route "/": response_headers.remove: "connection" is hop-by-hop; only the proxy sets it"#,
        ),
        (
            route("request_headers = { add = { Upgrade = \"x\" } }"),
            r#"t.toml:11: route "/": request_headers.add: "Upgrade" is hop-by-hop; only the proxy sets it"#,
        ),
        (
            route("request_headers = { set = { host = \"x\" } }"),
            r#"t.toml:11: route "/": request_headers.set: "host" selects the route (set host_header for what servers get)"#,
        ),
        (
            route("request_headers = { set = { X-A = \"${client_adress}\" } }"),
            r#"t.toml:11: route "/": request_headers.set: value "${client_adress}" of "X-A" uses the unknown variable "client_adress" (did you mean "${client_address}"?)"#,
        ),
        (
            route("response_headers = { set = { X-A = \"${client\" } }"),
            r#"t.toml:11: route "/": response_headers.set: value "${client" of "X-A" has a "${" without its "}" (write "$${" for the text)"#,
        ),
        (
            route("request_headers = { set = { X-A = \"${status}\" } }"),
            r#"t.toml:11: route "/": request_headers.set: value "${status}" of "X-A" names "status", which only responses have"#,
        ),
        (
            route("response_headers = { set = { X-A = \"a\\nb\" } }"),
            r#"t.toml:11: route "/": response_headers.set: value "a\nb" of "X-A" contains a character that is not valid in headers"#,
        ),
        (
            route("response_headers = { set = { \"X A\" = \"b\" } }"),
            r#"t.toml:11: route "/": response_headers.set: "X A" is not a header name"#,
        ),
        (
            with_top("request_id = \"Host\"\n"),
            r#"t.toml:1: request_id: "Host" selects the route (set host_header for what servers get)"#,
        ),
    ]);
}

#[test]
fn refuses_bad_words_on_other_proxies() {
    let listener = |keys: &str| {
        with_head(&format!(
            "[[listener]]\naddress = \"127.0.0.1:80\"\n{keys}\n[load_module]\nround_robin = \"a.so\"\n"
        ))
    };
    assert_lines(&[
        (
            with_top("forwarded.trusted = [\"10.0.0.1/8\"]\n"),
            r#"t.toml:1: forwarded.trusted: "10.0.0.1/8": has bits behind its prefix (write "10.0.0.0/8")"#,
        ),
        (
            with_top("forwarded.read = \"X-Real-IP\"\n"),
            r#"t.toml:1: forwarded.read: "X-Real-IP" is not one of "X-Forwarded-For" and "Forwarded""#,
        ),
        (
            listener("proxy_protocol = {}"),
            r#"t.toml:3: listener "127.0.0.1:80": proxy_protocol: no from (write, for example, from = ["10.0.0.0/8"])"#,
        ),
        (
            listener("proxy_protocol = { from = [\"all\"] }"),
            r#"t.toml:3: listener "127.0.0.1:80": proxy_protocol.from: "all": is not an address or a network (write, for example, "10.0.0.0/8" or "::1")"#,
        ),
        (
            listener("max_connections_per_client = 0"),
            r#"t.toml:3: listener "127.0.0.1:80": max_connections_per_client: 0 is not a number from 1 to 16000000"#,
        ),
        (
            with_cluster(&format!("{CLUSTER}send_proxy_protocol = \"v3\"\n")),
            r#"t.toml:8: cluster "app": send_proxy_protocol: "v3" is not one of "v1" and "v2""#,
        ),
    ]);
}

#[test]
fn full_servers_are_waited_for_unless_nobody_can_wait() {
    let when_full = |keys: &str| {
        let text = with_cluster(&format!("{CLUSTER}{keys}\n"));
        parse("t.toml", &text, Syntax::Toml).unwrap().0.clusters[0].when_full
    };
    assert_eq!(when_full(""), WhenFull::Wait);
    assert_eq!(when_full("queue = 0"), WhenFull::Spill);
    assert_eq!(when_full("queue_timeout = \"0s\""), WhenFull::Spill);
    assert_eq!(when_full("when_full = \"spill\""), WhenFull::Spill);
    assert_eq!(when_full("queue = 0\nwhen_full = \"wait\""), WhenFull::Wait);
}

#[test]
fn refuses_bad_retries() {
    let retry = |keys: &str| with_route(&format!("{ROUTE}retry = {{ {keys} }}\n"));
    assert_lines(&[
        (retry(""), r#"t.toml:11: route "/": retry: no on (write, for example, on = ["reset", "503"])"#),
        (
            retry("on = [\"resett\"]"),
            r#"t.toml:11: route "/": retry.on: "resett" is not a cause (did you mean "reset"?)"#,
        ),
        (
            retry("on = [\"200\"]"),
            r#"t.toml:11: route "/": retry.on: "200" is not a cause (known are connect, reset, timeout, bad_response, gateway, 5xx, and statuses from 400 to 599)"#,
        ),
        (
            retry("on = [], tries = 0"),
            r#"t.toml:11: route "/": retry.tries: 0 is not a number from 1 to 100"#,
        ),
        (
            retry("on = [], timeout = \"0s\""),
            r#"t.toml:11: route "/": retry.timeout: must be longer than 0s (leave the key out for no limit)"#,
        ),
        (
            retry("on = [], backoff = \"2s\", max_backoff = \"1s\""),
            r#"t.toml:11: route "/": retry: max_backoff 1s is less than the backoff of 2s"#,
        ),
        (
            retry("on = [], budget = { percent = 101 }"),
            r#"t.toml:11: route "/": retry.budget.percent: 101 is not a number from 0 to 100"#,
        ),
        (
            retry("on = [], methods = [\"get\"]"),
            r#"t.toml:11: route "/": retry.methods: "get" is not a method (write it in capitals, such as "GET")"#,
        ),
        (
            retry("on = [], buffer = \"17MiB\""),
            r#"t.toml:11: route "/": retry.buffer: 17825792 bytes are not in the range from 0 to 16777216"#,
        ),
    ]);
}

#[test]
fn refuses_senseless_limits() {
    assert_lines(&[
        (with_top("threads = 0\n"), "t.toml:1: threads: 0 is not a number from 1 to 1024"),
        (
            with_top("supervision.module_faults = -1\n"),
            "t.toml:1: supervision.module_faults: -1 is not a number from 0 to 1000",
        ),
        (
            with_top("limits.request_line_bytes = \"32KiB\"\n"),
            "t.toml:1: limits.head_bytes: 16384 is less than the 32768 of limits.request_line_bytes, and the line is part of the head",
        ),
        (
            with_top("limits.head_bytes = \"2MiB\"\n"),
            "t.toml:1: limits.head_bytes: 2097152 bytes are not in the range from 64 to 1048576",
        ),
        (with_top("limits.headers = 257\n"), "t.toml:1: limits.headers: 257 is not a number from 1 to 256"),
        (
            with_top("limits.body_bytes = 0\n"),
            "t.toml:1: limits.body_bytes: 0 bytes is too small (leave the key out for no limit)",
        ),
        (
            with_top("limits.requests_per_connection = 0\n"),
            "t.toml:1: limits.requests_per_connection: 0 is not a number from 1",
        ),
        (
            with_top("timeouts.request_head = \"0s\"\n"),
            "t.toml:1: timeouts.request_head: must be longer than 0s (the default is 15s)",
        ),
        (
            with_top("timeouts.drain = \"48h\"\n"),
            "t.toml:1: timeouts.drain: \"48h\" is more than the longest time, 24h",
        ),
        (
            with_top("access_log.path = \"\"\n"),
            "t.toml:1: access_log.path: is empty; write \"stdout\" or a file's name, or leave [access_log] out",
        ),
        (
            with_top("[access_log]\n"),
            "t.toml:1: access_log: no path (write path = \"stdout\" or a file's name)",
        ),
    ]);
}

#[test]
fn a_value_that_cannot_be_read_is_not_called_missing_too() {
    let listener = "[[listener]]\naddress = \"127.0.0.1:0\"\n";
    let right = "expected a table in double brackets, one for each, found the integer 5";
    assert_lines(&[
        (
            ["listener = 5\n[load_module]\nx = \"x.so\"\n", CLUSTER, ROUTE].concat(),
            &format!("t.toml:1: listener: {right}"),
        ),
        (["cluster = 5\n", HEAD, ROUTE].concat(), &format!("t.toml:1: cluster: {right}")),
        (["route = 5\n", HEAD, CLUSTER].concat(), &format!("t.toml:1: route: {right}")),
        (
            ["load_module = 5\n", listener, CLUSTER, "module = \"x\"\n", ROUTE].concat(),
            "t.toml:1: load_module: expected a table, found the integer 5",
        ),
    ]);
}

#[test]
fn no_beginning_of_a_file_and_no_lost_line_makes_it_panic() {
    for (text, syntax) in [
        (include_str!("../../../conf/reference.toml"), Syntax::Toml),
        (include_str!("../../../conf/mail.conf"), Syntax::Httpd),
    ] {
        let text: String =
            text.lines().filter(|line| !line.starts_with("# ")).map(|line| format!("{line}\n")).collect();
        for end in text.char_indices().map(|(at, _)| at) {
            let _ = parse("t", &text[..end], syntax).map_err(|errors| assert!(!errors.problems.is_empty()));
        }
        for lost in 0..text.lines().count() {
            let rest = text.lines().enumerate().filter(|&(at, _)| at != lost).map(|(_, line)| line);
            let _ = parse("t", &rest.collect::<Vec<_>>().join("\n"), syntax);
        }
    }
}

#[test]
fn checks_who_runs_it_and_where_it_is_spoken_to() {
    let long = "x".repeat(200);
    assert_lines(&[
        (with_top("user = \"\"\n"), "t.toml:1: user: is empty; write a name, or leave it out"),
        (with_top("pid_file = \"\"\n"), "t.toml:1: pid_file: is empty; write a file's name, or leave it out"),
        (
            with_top("pass_environment = [\"A\", \"B=1\"]\n"),
            "t.toml:1: pass_environment: \"B=1\" is not the name of a variable (write the name alone, such as \"HTTPS_PROXY\")",
        ),
        (
            with_top(&format!("control = \"/{long}\"\n")),
            &format!("t.toml:1: control: \"/{long}\" has 201 bytes, a socket path has at most 107"),
        ),
        (
            with_top("[supervision]\nmodule_time_limit = \"0s\"\n"),
            "t.toml:2: supervision.module_time_limit: must be longer than 0s (the default is 1s)",
        ),
        (
            with_top("[supervision]\nmodule_deaths = -1\n"),
            "t.toml:2: supervision.module_deaths: -1 is not a number from 0 to 1000",
        ),
    ]);
}

#[test]
fn a_key_that_everybody_can_read_is_a_warning() {
    use std::os::unix::fs::PermissionsExt as _;

    let folder = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["site.test".to_owned()]).unwrap();
    let (cert, key) = (folder.path().join("site.pem"), folder.path().join("site.key"));
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let tls = format!("tls = {{ certificates = [{{ cert = {cert:?}, key = {key:?} }}] }}\n");
    let text = HEAD.replace("[load_module]", &format!("{tls}[load_module]")) + CLUSTER + ROUTE;
    let warnings = |mode| {
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(mode)).unwrap();
        let (_, warnings) = parse("t.toml", &text, Syntax::Toml).unwrap();
        warnings.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let said = "every user of this machine can read it (mode 0644; chmod o= FILE)";
    assert_eq!(warnings(0o644), [format!("t.toml:3: listener \"127.0.0.1:0\": tls: key {key:?}: {said}")]);
    assert_eq!([0o640, 0o600].map(warnings), [[""; 0]; 2]);
}

#[test]
fn a_cluster_has_no_more_servers_than_it_may() {
    let with = |n: usize| {
        let list: String = (0..n).map(|n| format!("\"http://h{n}\",")).collect();
        format!(
            "{HEAD}[[cluster]]\nname = \"app\"\nservers = [{list}]\n[[route]]\npath = \"/\"\ncluster = \"app\"\n"
        )
    };
    let refused = errors(&with(MAX_SERVERS + 1));
    assert_eq!(refused, ["t.toml:5: cluster \"app\": 65536 servers, expected at most 65535"]);
    assert!(parse("t.toml", &with(MAX_SERVERS), Syntax::Toml).is_ok());
}
