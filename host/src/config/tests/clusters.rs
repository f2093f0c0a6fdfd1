//! Clusters, modules and keys.

use super::*;

#[test]
fn modules_without_a_cluster_are_one_warning() {
    let head = HEAD.to_owned() + "a = \"a.so\"\nb = \"b.so\"\n";
    let cluster = CLUSTER.to_owned() + "module = \"round_robin\"\n";
    let (_, warnings) = parse("t.toml", &[&head, &cluster, ROUTE].concat(), Syntax::Toml).unwrap();
    let warnings: Vec<_> = warnings.iter().map(ToString::to_string).collect();
    assert_eq!(warnings, ["t.toml:5: modules a, b: loaded, but no cluster uses them"]);
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
