//! Listeners, other proxies, limits, users and the control socket.

use super::*;

#[test]
fn a_name_of_the_admin_listener_may_end_with_a_dot() {
    let text =
        |name: &str| with_top(&format!("admin = {{ address = \"127.0.0.1:9\", hosts = [\"{name}\"] }}\n"));
    let config = parse("t.toml", &text("Proxy.Example.com."), Syntax::Toml).unwrap();
    assert_eq!(config.0.admin.unwrap().hosts, ["proxy.example.com".into()]);
    assert!(errors(&text("."))[0].contains("admin: hosts: \".\" is not a host name"));
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
            with_top("forwarded.read = \"X-Real\"\n"),
            r#"t.toml:1: forwarded.read: "X-Real" is not one of "X-Forwarded-For", "Forwarded" and "X-Real-IP""#,
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
            with_top("control = true\n"),
            "t.toml:1: control: invalid value: boolean `true`, expected false, a path, or a table such as { path = \"/run/site/trylist.sock\", group = \"ops\" }",
        ),
        (
            with_top("control = { group = \"ops\" }\n"),
            "t.toml:1: control: no path (write where the socket is, or control = false for none)",
        ),
        (
            with_top("control = { path = \"a.sock\", mode = \"0666\" }\n"),
            "t.toml:1: control: mode \"0666\" lets every user of this machine stop the proxy (write \"0660\", and the group of those who may)",
        ),
        (
            with_top("control = { path = \"a.sock\", mode = \"rw\" }\n"),
            "t.toml:1: control: mode \"rw\" is not a file mode (write, for example, mode = \"0660\")",
        ),
        (
            with_top("[supervision]\nmodule_time_limit = \"0s\"\n"),
            "t.toml:2: supervision.module_time_limit: must be longer than 0s (the default is 1s)",
        ),
        (
            with_top("[supervision]\nsandbox = \"maybe\"\n"),
            "t.toml:2: supervision.sandbox: \"maybe\" is not one of \"on\" and \"off\"",
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
