//! Servers and how they are reached.

use super::*;

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
