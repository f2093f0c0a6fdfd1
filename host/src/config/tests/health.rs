//! Health checks and ejection.

use super::*;

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
