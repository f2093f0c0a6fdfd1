//! Whole files: defaults, every key, syntax, unknown keys.

use std::path::PathBuf;

use super::*;

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
fn reads_every_key() {
    let text = r#"
threads = 3
supervision.module_faults = 0
supervision.module_slow = "0s"
supervision.sandbox = "off"
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
    assert_eq!(warnings, [r#"conf/t.toml:20: module "x": loaded, but no cluster uses it"#]);
    assert_eq!(config.threads, 3);
    assert_eq!(config.supervision.module_faults, 0);
    assert_eq!(config.supervision.module_slow, Duration::ZERO);
    assert!(!config.supervision.sandbox);
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
        (&*route.hosts, &*route.path, route.rewrite.as_deref()),
        (&[HostPattern::Exact("a.example".into())][..], "/a", Some("/b/"))
    );
    assert_eq!((route.cluster, &route.host_header), (Some(0), &Some(HostHeader::Server)));
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
    let Timeouts { request_head, handshake: _, body, request, tunnel, keepalive, drain, stop_delay: _ } =
        config.timeouts;
    assert_eq!([request_head, body, keepalive, drain], [1, 2, 3, 0].map(Duration::from_secs));
    assert_eq!((request, tunnel), (Some(Duration::from_secs(4)), Duration::from_secs(8)));
    assert_eq!(config.access_log, AccessLogTarget::File("conf/access.log".into()));
    assert_eq!(config.admin.unwrap().address.to_string(), "127.0.0.1:9100");
    let explain_to: Vec<_> = config.explain_to.iter().map(ToString::to_string).collect();
    assert_eq!(explain_to, ["127.0.0.0/8", "::1/128"]);
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
            r#"t.toml:1: unknown key "worker_count" (known here: include, threads, module_path, module_files, user, group, control, pid_file, state, pass_environment, core_dumps, request_id, listener, load_module, cluster, route, forwarded, limits, timeouts, supervision, resolver, access_log, log, admin, explain, errors)"#,
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
            r#"t.toml:9: route "/a": unknown key "prefix" (known here: path, host, hosts, listeners, cluster, redirect, respond, errors, rewrite, host_header, timeout, retry, request_headers, response_headers, upgrade)"#,
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
        (include_str!("../../../../conf/reference.toml"), Syntax::Toml),
        (include_str!("../../../../conf/mail.conf"), Syntax::Httpd),
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
