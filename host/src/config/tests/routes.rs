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
