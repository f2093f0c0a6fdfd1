//! Sticky sessions.

use super::*;

#[test]
fn cookies_that_clients_take_for_one_are_refused() {
    let text = |stickies: [&str; 2], hosts: [&str; 2]| {
        let mut text = String::from("[[listener]]\naddress = \"127.0.0.1:0\"\n[load_module]\na = \"a.so\"\n");
        for ((name, sticky), host) in ["one", "two"].into_iter().zip(stickies).zip(hosts) {
            let host = if host.is_empty() { String::new() } else { format!("hosts = [\"{host}\"]\n") };
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
        ([plain; 2], ["*.example.com", "a.example.com"]),
        ([plain; 2], ["a.b.example.com", "*.example.com"]),
        ([plain; 2], ["*.example.com", "*.b.example.com"]),
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
        ([plain; 2], ["*.example.com", "example.com"]),
        ([plain; 2], ["*.example.com", "*.example.org"]),
        ([plain, "cookie = \"S\""], both),
        ([plain, "cookie = \"s\", path = \"/two\""], both),
        ([plain, of_domain], both),
    ];
    for (stickies, hosts) in passed {
        parse("t.toml", &text(stickies, hosts), Syntax::Toml).unwrap();
    }
    // No client at a.example.com gets to the cluster of the pattern.
    let whole =
        text([plain; 2], ["*.example.com", "a.example.com"]).replace("path = \"/two\"", "path = \"/\"");
    parse("t.toml", &whole, Syntax::Toml).unwrap();
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
