//! Keys that requests are alike by: where they come from, and who balances those that have none.

use std::collections::BTreeSet;
use std::fs;

use tests::client::Client;
use tests::command::trylist;
use tests::origin::Origin;
use tests::proxy::{Builder, Proxy};

/// Three servers, and those without a key in turn.
fn hashing(origins: &[Origin; 3], key: &str) -> Builder {
    Proxy::over(origins)
        .module("hash")
        .and_module("round_robin")
        .in_cluster(&format!("key = {key:?}"))
        .in_cluster("key_missing = \"round_robin\"")
}

fn origins() -> [Origin; 3] {
    ["a", "b", "c"].map(Origin::named)
}

/// The servers that answer this request, again and again.
fn answers(client: &mut Client, request: &str) -> String {
    let head = format!("{request}\r\n\r\n");
    let names: Vec<String> = (0..6).map(|_| client.send(&head).reply().text()).collect();
    names.join("")
}

#[test]
fn requests_of_one_key_have_one_server_and_those_of_none_are_anothers_from_every_source() {
    let origins = origins();
    let get = |line: &str| format!("GET / HTTP/1.1\r\nHost: a{line}");
    let query = |query: &str| format!("GET /{query} HTTP/1.1\r\nHost: a");
    for (key, keyed, without) in [
        ("header:X-Id", get("\r\nX-Id: 7"), vec![get(""), get("\r\nX-Id:"), get("\r\nX-Ids: 7")]),
        ("cookie:sid", get("\r\nCookie: a=b; sid=7"), vec![get(""), get("\r\nCookie: sid=; a=b")]),
        ("query:user", query("?a=b&user=7"), vec![query(""), query("?user="), query("?users=7")]),
    ] {
        let proxy = hashing(&origins, key).start();
        let mut client = proxy.connect();
        for request in &without {
            assert_eq!(answers(&mut client, request), "abcabc", "{key}: {request}");
        }
        let names: BTreeSet<char> = answers(&mut client, &keyed).chars().collect();
        assert_eq!(names.len(), 1, "{key}: {names:?}");
        assert_eq!(answers(&mut client, &without[0]), "abcabc", "{key}: keyed requests take no turns");
        let calls = |module: &str| {
            let labels = format!("cluster=\"%\",module=\"{module}\",call=\"next\"");
            proxy.metric(&format!("trylist_module_calls_total{{{labels}}}"))
        };
        let n_without = 6.0 * (without.len() + 1) as f64;
        assert_eq!((calls("hash"), calls("round_robin")), (6.0, n_without), "{key}");
    }
    for key in ["path", "uri"] {
        let proxy = hashing(&origins, key).start();
        let mut client = proxy.connect();
        let names = (0..20).map(|i| answers(&mut client, &query(&format!("{i}?{i}")))).collect::<Vec<_>>();
        assert!(names.iter().all(|names| names.bytes().all(|name| name == names.as_bytes()[0])), "{names:?}");
        assert!(names.iter().collect::<BTreeSet<_>>().len() > 1, "{key}: {names:?}");
    }
}

#[test]
fn a_client_over_a_unix_socket_has_no_address_to_be_known_by() {
    let (origins, folder) = (origins(), tempfile::tempdir().unwrap());
    let path = folder.path().join("front.sock");
    let listener = format!("[[listener]]\naddress = \"unix:{}\"\n", path.display());
    let proxy = hashing(&origins, "client").tables(&listener).start();
    let get = "GET / HTTP/1.1\r\nHost: a";
    assert_eq!(answers(&mut Client::connect_unix(&path), get), "abcabc");
    let names: BTreeSet<char> = answers(&mut proxy.connect(), get).chars().collect();
    assert_eq!(names.len(), 1);
}

#[test]
fn whose_choice_it_was_is_told() {
    let (origins, folder) = (origins(), tempfile::tempdir().unwrap());
    let file = folder.path().join("access.log");
    let proxy = hashing(&origins, "header:X-Id")
        .tables(&format!("[access_log]\npath = {file:?}\n[explain]\nallow = [\"127.0.0.1\"]"))
        .start();
    let mut client = proxy.connect();
    for (line, module) in [("", "round_robin"), ("X-Id: 7\r\n", "hash")] {
        client.send(format!("GET / HTTP/1.1\r\nHost: a\r\nX-Trylist-Explain: 1\r\n{line}\r\n"));
        assert_eq!(client.reply().header("x-trylist-module"), Some(module));
    }
    let faults = |module: &str| {
        format!("trylist_module_faults_total{{cluster=\"{}\",module=\"{module}\"", proxy.cluster())
    };
    let metrics = proxy.metrics();
    assert!(["hash", "round_robin"].into_iter().all(|module| metrics.contains(&faults(module))), "{metrics}");
    drop(client);
    drop(proxy);
    let log = fs::read_to_string(&file).unwrap();
    let modules: Vec<_> = log.lines().map(|line| line.contains("module=hash ")).collect();
    assert_eq!(modules, [false, true], "{log}");
}

#[test]
fn without_it_requests_without_a_key_are_the_modules_own() {
    let origins = origins();
    let proxy = Proxy::over(&origins).module("hash").in_cluster("key = \"header:X-Id\"").start();
    let mut client = proxy.connect();
    let names: BTreeSet<String> =
        (0..100).map(|_| client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").reply().text()).collect();
    assert_eq!(names.len(), 3, "each draws one");
}

// ---- what is refused, and what is said -------------------------------------------------------------------------------

/// What `check` says of this, and its exit code.
fn check(builder: &Builder) -> (String, Option<i32>) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("site.toml");
    fs::write(&file, builder.text()).unwrap();
    let output = trylist(&["check", "-c", file.to_str().unwrap()]);
    (String::from_utf8_lossy(&output.stderr).into_owned(), output.status.code())
}

#[test]
fn a_key_and_who_asks_for_it_have_to_be_there_both() {
    let origin = Origin::named("never");
    let over = |module: &str| Proxy::over([&origin]).module(module).and_module("round_robin").named("app");
    let keyed = || over("hash").in_cluster("key = \"client\"");
    for (builder, code, said) in [
        (
            over("hash"),
            0,
            "cluster \"app\": module \"hash\" needs a key, but none is set (for example, key = \"client\"): all requests count as requests without a key (warning)",
        ),
        (
            over("random").in_cluster("key = \"client\""),
            0,
            "cluster \"app\": key: ignored, because module \"random\" does not use one (warning)",
        ),
        (
            keyed().and_module("maglev").in_cluster("key_missing = \"maglev\""),
            4,
            "module \"maglev\": needs a key, but is to balance requests without one (name another module in key_missing)",
        ),
        (
            over("hash").in_cluster("key_missing = \"round_robin\""),
            3,
            "cluster \"app\": key_missing without key (write, for example, key = \"header:X-Id\", or leave key_missing out)",
        ),
        (
            keyed().in_cluster("key_missing = \"hash\""),
            3,
            "key_missing: \"hash\" is the module of the cluster itself (name another one, or leave key_missing out)",
        ),
        (
            keyed().in_cluster("key_missing = \"round_robbin\""),
            3,
            "key_missing: no module \"round_robbin\" is loaded (did you mean \"round_robin\"?)",
        ),
        (
            keyed().in_cluster("key_missing = { settings = {} }"),
            3,
            "key_missing: no module (write, for example, module = \"round_robin\")",
        ),
        (
            keyed()
                .and_module("least_request")
                .in_cluster("key_missing = { module = \"least_request\", settings = { choices = 0 } }"),
            4,
            "module \"least_request\": settings.choices: ",
        ),
    ] {
        let (lines, exit) = check(&builder);
        assert!(exit == Some(code) && lines.contains(said), "{exit:?}: {lines}");
        let logged = |line: &&str| line.contains(" INFO ") || line.is_empty();
        let places: Vec<_> = lines.lines().filter(|line| !logged(line)).collect();
        assert!(places.iter().all(|line| line.contains("site.toml:")), "without a place: {lines}");
    }
    let (lines, exit) = check(&Proxy::over([&origin]).named("app").in_cluster("key = \"client\""));
    let said = "cluster \"app\": key: ignored, because module \"proxy_lb\" does not use one (warning)";
    assert!(exit == Some(0) && lines.contains(said), "{exit:?}: {lines}");
}
