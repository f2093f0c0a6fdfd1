//! Routes, headers and retries.

use super::*;

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
fn refuses_bad_hosts_and_listeners() {
    let route = |keys: &str| with_route(&format!("{ROUTE}{keys}\n"));
    let two = |own: &str, other: &str| with_route(&format!("{ROUTE}{own}\n{ROUTE}{other}\n"));
    assert_lines(&[
        (route("hosts = [\"a\"]\nhost = \"b\""), r#"t.toml:11: route "b/": host and hosts (leave host out)"#),
        (route("hosts = []"), r#"t.toml:11: route "/": hosts is empty (leave the key out for all hosts)"#),
        (
            route("hosts = [\"a*.org\"]"),
            r#"t.toml:11: route "a*.org/": hosts: "a*.org": "*" stands for whole labels at the beginning (write "*.example.com")"#,
        ),
        (
            route("hosts = [\"*.10.0.0.1\"]"),
            r#"t.toml:11: route "*.10.0.0.1/": hosts: "*.10.0.0.1": an address has no names below it"#,
        ),
        (
            route("hosts = [\"x\", \"a:80\"]"),
            r#"t.toml:11: route "x/": hosts: "a:80": a route's host has no port (write "a")"#,
        ),
        (
            route("host = \"*.a\""),
            r#"t.toml:11: route "*.a/": host "*.a": is a pattern (write hosts = ["*.example.com"], or leave the key out for all hosts)"#,
        ),
        (
            two("hosts = [\"a\", \"*.b\"]", "hosts = [\"*.B.\"]"),
            r#"t.toml:12: route "*.b/": already defined at t.toml:8"#,
        ),
        (two("", "hosts = [\"*\"]"), r#"t.toml:12: route "/": already defined at t.toml:8"#),
        (
            route("listeners = [\"127.0.0.1:1\"]"),
            r#"t.toml:11: route "/": listeners: no listener has the address "127.0.0.1:1" (there are: "127.0.0.1:0")"#,
        ),
        (
            route("listeners = []"),
            r#"t.toml:11: route "/": listeners is empty (leave the key out for all listeners)"#,
        ),
        (
            two("listeners = [\"127.0.0.1:0\"]", "listeners = [\"127.0.0.1:0\"]"),
            r#"t.toml:12: route "/": already defined at t.toml:8"#,
        ),
    ]);
    // One of them names its listener, and so comes first there.
    parse("t.toml", &two("", "listeners = [\"127.0.0.1:0\"]"), Syntax::Toml).unwrap();
}

#[test]
fn warns_of_a_listener_without_routes() {
    let text = with_head(&format!("[[listener]]\naddress = \"127.0.0.1:1\"\n{HEAD}"));
    let text = format!("{text}listeners = [\"127.0.0.1:0\"]\n");
    let (_, warnings) = parse("t.toml", &text, Syntax::Toml).unwrap();
    let line = r#"t.toml:2: listener "127.0.0.1:1": no route is for it, so every request is answered 404"#;
    assert_eq!(warnings.iter().map(ToString::to_string).collect::<Vec<_>>(), [line]);
}

#[test]
fn refuses_bad_answers() {
    let route = |keys: &str| with_route(&format!("[[route]]\npath = \"/\"\n{keys}\n"));
    assert_lines(&[
        (
            route("redirect = {}"),
            r#"t.toml:10: route "/": redirect: leads to the same URL again (write https = true, or a host, scheme, port or path)"#,
        ),
        (
            route("redirect = { https = true }"),
            r#"t.toml:10: route "/": redirect: would repeat whatever host a client names (write hosts = ["www.example.com"] in the route, hosts = ["*"] to allow every host, or a host here)"#,
        ),
        (
            route("hosts = [\"A.org\"]\nredirect = { host = \"a.org\" }"),
            r#"t.toml:11: route "A.org/": redirect: leads to the same URL again (write https = true, or a host, scheme, port or path)"#,
        ),
        (
            route("redirect = { host = \"a:8\" }"),
            r#"t.toml:10: route "/": redirect: host "a:8": a route's host has no port (write "a"); a port has a key of its own"#,
        ),
        (
            route("redirect = { host = \"a\", scheme = \"ftp\" }"),
            r#"t.toml:10: route "/": redirect: scheme: "ftp" is not one of "http" and "https""#,
        ),
        (
            route("redirect = { host = \"a\", https = true, scheme = \"https\" }"),
            r#"t.toml:10: route "/": redirect: scheme with https = true (leave scheme out)"#,
        ),
        (
            route("redirect = { host = \"a\", status = 300 }"),
            r#"t.toml:10: route "/": redirect: status 300 is not 301, 302, 303, 307 or 308"#,
        ),
        (
            route("redirect = { host = \"a\", path = \"x\" }"),
            r#"t.toml:10: route "/": redirect: path "x" does not begin with "/" (write "/x")"#,
        ),
        (
            route("rewrite = \"/b\"\nredirect = { host = \"a\", path = \"/x\" }"),
            r#"t.toml:11: route "/": redirect: path with rewrite (leave one of them out)"#,
        ),
        (
            route("redirect = { host = \"a\" }\ncluster = \"app\""),
            r#"t.toml:11: route "/": a route with a cluster answers by itself only redirect = { https = true } (leave cluster out, or move the answer to a route of its own)"#,
        ),
        (
            route("respond = { status = 200 }\ntimeout = \"1s\""),
            r#"t.toml:11: route "/": timeout is for requests that go to a server, and this route answers all by itself (leave it out)"#,
        ),
        (
            route("respond = {}"),
            r#"t.toml:10: route "/": respond: no status (write, for example, status = 503)"#,
        ),
        (
            route("respond = { status = 100 }"),
            r#"t.toml:10: route "/": respond: status: 100 is not a number from 200 to 599"#,
        ),
        (
            route("respond = { status = 204, body = \"x\" }"),
            r#"t.toml:10: route "/": respond: status 204 has no body (leave it out)"#,
        ),
        (
            route("respond = { status = 200, file = \"/nowhere/x.html\" }"),
            r#"t.toml:10: route "/": respond: file "/nowhere/x.html" cannot be read: file not found"#,
        ),
        (
            route("respond = { status = 200, body = \"x\", type = \"text\" }"),
            r#"t.toml:10: route "/": respond: type "text" is not a media type (write, for example, "text/html; charset=utf-8")"#,
        ),
        (
            route("respond = { status = 200 }\nredirect = { host = \"a\" }"),
            r#"t.toml:10: route "/": redirect and respond (leave one of them out)"#,
        ),
    ]);
}

#[test]
fn refuses_redirects_to_their_own_route() {
    let parsed = |routes: &str| {
        let text = with_route(routes);
        parse("t.toml", &text, Syntax::Toml).map_err(|errors| errors.to_string())
    };
    for keys in [
        "path = \"/\"\nhosts = [\"a\", \"b\"]\nredirect = { host = \"b\", status = 301 }",
        "path = \"/\"\nhosts = [\"a\"]\nredirect = { path = \"/new?x\" }",
        "path = \"/a\"\nhosts = [\"a\"]\nrewrite = \"/a/b\"\nredirect = {}",
        "path = \"/\"\nhosts = [\"*\"]\nredirect = { scheme = \"http\" }",
    ] {
        let error = parsed(&format!("[[route]]\n{keys}\n")).expect_err(keys);
        assert!(
            error.contains("redirect: leads to its own route again") && error.lines().count() == 1,
            "{error}"
        );
    }
    let www = "[[route]]\npath = \"/\"\nhosts = [\"www.a\"]\ncluster = \"app\"\n";
    for keys in [
        "path = \"/\"\nhosts = [\"*.a\"]\nredirect = { host = \"www.a\" }",
        "path = \"/\"\nhosts = [\"*.a\"]\nredirect = { host = \"elsewhere.test\" }",
        "path = \"/\"\nhosts = [\"a\"]\nredirect = { scheme = \"https\" }",
        "path = \"/old\"\nhosts = [\"www.a\"]\nrewrite = \"/new\"\nredirect = {}",
        "path = \"/\"\nhosts = [\"a\"]\nredirect = { port = 81 }",
        "path = \"/\"\nhosts = [\"b\"]\nredirect = { path = \"/new\" }\n\
         [[route]]\npath = \"/new\"\nhosts = [\"b\"]\ncluster = \"app\"",
    ] {
        parsed(&format!("{www}[[route]]\n{keys}\n")).unwrap_or_else(|error| panic!("{keys}: {error}"));
    }
    let to_http = "[[route]]\npath = \"/\"\nhosts = [\"a\"]\nredirect = { scheme = \"http\" }\n";
    let with_port = |port| format!("{to_http}[[listener]]\naddress = \"127.0.0.1:{port}\"\n");
    assert!(parsed(&with_port(81)).is_err());
    // The other listener is where it leads, and has a route of its own.
    let bound = with_port(80).replace("redirect", "listeners = [\"127.0.0.1:0\"]\nredirect");
    parsed(&bound).unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn refuses_bad_pages() {
    let folder = tempfile::tempdir().unwrap();
    let long = folder.path().join("long.html");
    std::fs::write(&long, vec![b' '; (1 << 20) + 1]).unwrap();
    let page = |keys: &str| with_route(&format!("{ROUTE}[errors]\n{keys}\n"));
    assert_lines(&[
        (
            page("500 = \"/x\""),
            "t.toml:12: errors.500: the proxy itself answers no such status; errors of servers are passed on (known: 400, 404, 405, 408, 413, 414, 417, 431, 501, 502, 503, 504, 505)",
        ),
        (
            page("503 = \"/nowhere/x\""),
            r#"t.toml:12: errors.503: file "/nowhere/x" cannot be read: file not found"#,
        ),
        (
            page("503 = { type = \"text/html\" }"),
            r#"t.toml:12: errors.503: no file (write, for example, file = "sorry.html")"#,
        ),
        (
            page(&format!("503 = {long:?}")),
            &format!("t.toml:12: errors.503: file {long:?} is larger than 1 MiB; let a server send it"),
        ),
    ]);
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
