//! The mail's lines, httpd's rules, and the exact line for every mistake.

use std::fs;
use std::path::Path;

use crate::config::{Config, HostHeader, RouteOrder, Syntax, load, parse};

const LOAD: &str = "Listen 127.0.0.1:0\nLoadModule proxy_lb_module modules/mod_proxy_lb.so\n";
const REST: &str = "LBServerCluster a http://a\nLBProxyPass / a\n";

/// The configuration and the warnings of a good file.
fn good(text: &str) -> (Config, Vec<String>) {
    let (config, warnings) = parse("t.conf", text, Syntax::Httpd).unwrap_or_else(|errors| panic!("{errors}"));
    (config, warnings.iter().map(ToString::to_string).collect())
}

fn errors(text: &str) -> Vec<String> {
    let errors = parse("t.conf", text, Syntax::Httpd).expect_err("the file has mistakes in it");
    errors.to_string().lines().map(str::to_owned).collect()
}

fn routes(config: &Config) -> Vec<(&str, &str, Option<&str>)> {
    let cluster = |index: usize| &*config.clusters[index].name;
    config
        .routes
        .iter()
        .map(|route| (&*route.path, cluster(route.cluster.unwrap()), route.rewrite.as_deref()))
        .collect()
}

#[test]
fn takes_the_lines_of_the_mail_as_they_stand() {
    let mail = "
LoadModule proxy_lb_module modules/mod_proxy_lb.so
<IfModule mod_proxy_lb.c>
    LBServerCluster cluster1 http://downstreamserver1:8001
    LBServerCluster cluster1 http://downstreamserver2:8002
    LBProxyPass        /file500.html        cluster1
    LBProxyPass        /snoop               cluster1
";
    let (config, warnings) = good(&["Listen 127.0.0.1:0", mail].concat());
    assert_eq!(warnings, ["t.conf:3: <IfModule mod_proxy_lb.c> is not closed; it ends with the file"]);
    assert_eq!(
        (&*config.modules[0].id, config.modules[0].file.as_path()),
        ("proxy_lb", Path::new("modules/mod_proxy_lb.so"))
    );
    assert_eq!(config.modules[0].place.to_string(), "t.conf:2");
    let cluster = &config.clusters[0];
    assert_eq!((config.clusters.len(), &*cluster.name, &*cluster.module), (1, "cluster1", "proxy_lb"));
    let servers: Vec<_> =
        cluster.servers.iter().map(|s| (&*s.host, s.port, s.weight, s.place.line)).collect();
    assert_eq!(servers, [("downstreamserver1", 8001, 1, 4), ("downstreamserver2", 8002, 1, 5)]);
    assert_eq!(cluster.host_header, HostHeader::Keep);
    assert_eq!(routes(&config), [("/file500.html", "cluster1", None), ("/snoop", "cluster1", None)]);
    assert_eq!(config.route_order, RouteOrder::First);

    // To the letter, port and all, it says what to put in.
    assert_eq!(
        errors(&mail.replace("8001", "port").replace("8002", "port")),
        [
            r#"t.conf:4: cluster "cluster1": server "http://downstreamserver1:port": port "port" is not a number from 1 to 65535"#,
            r#"t.conf:5: cluster "cluster1": server "http://downstreamserver2:port": port "port" is not a number from 1 to 65535"#,
            "t.conf: no Listen (write, for example, Listen 127.0.0.1:8080)",
        ]
    );
}

#[test]
fn says_what_an_empty_file_lacks() {
    assert_eq!(
        errors(""),
        [
            "t.conf: no Listen (write, for example, Listen 127.0.0.1:8080)",
            "t.conf: no module (write, for example, LoadModule proxy_lb_module modules/mod_proxy_lb.so)",
            "t.conf: no cluster (write, for example, LBServerCluster cluster1 http://127.0.0.1:9001)",
            "t.conf: no route (write, for example, LBProxyPass / cluster1)",
        ]
    );
}

#[test]
fn reports_every_bad_line_in_one_run() {
    let text = r#"
Listen 127.0.0.1:0
LBServerClustr a http://a
LBServerCluster a http://a weight=2
LBProxyPass /
ProxyPass / http://a
LBServerCluster "b http://b
lbservercluster c ftp://c
LBProxyPass c c
ServerName
"#;
    assert_eq!(
        errors(text),
        [
            r#"t.conf:3: unknown directive "LBServerClustr" (did you mean "LBServerCluster"?)"#,
            "t.conf:4: LBServerCluster takes two arguments, a cluster's name and a server's URL (found 3)",
            "t.conf:5: LBProxyPass takes two arguments, a path prefix and a cluster's name (found 1)",
            "t.conf:6: ProxyPass / http://a: is a directive of mod_proxy, which is not supported here (write LBProxyPass / CLUSTER)",
            r#"t.conf:7: quote " is not closed"#,
            r#"t.conf:8: cluster "c": server "ftp://c": scheme "ftp" is not supported (write http://host or http://host:port)"#,
            r#"t.conf:9: route "c": path "c" does not begin with "/" (write "/c")"#,
            "t.conf:10: ServerName takes one argument, the name of this server (found 0)",
        ]
    );
}

#[test]
fn takes_directives_in_any_case_with_quotes_comments_and_continuations() {
    let text = "# comment \\\nstill comment\nLISTEN \\\n  \"127.0.0.1:0\"\r\nloadmodule x_module 'a b.so'\n\
                lbServerCluster a \\\nhttp://a\nServerName example.com\nLBProxyPass \"/\" a\n";
    let (config, warnings) = good(text);
    assert_eq!(warnings, [""; 0]);
    assert_eq!(config.modules[0].file, Path::new("a b.so"));
    assert_eq!(config.clusters[0].place.to_string(), "t.conf:6");
    assert_eq!(config.routes[0].place.to_string(), "t.conf:9");
}

#[test]
fn listens_where_httpd_would() {
    let text = "Listen 8080\nListen *:8081\nListen [::1]:8082 http\nLoadModule x_module x.so\n";
    let (config, _) = good(&[text, REST].concat());
    let addresses: Vec<_> = config.listeners.iter().map(|listener| listener.address.to_string()).collect();
    assert_eq!(addresses, ["0.0.0.0:8080", "0.0.0.0:8081", "[::1]:8082"]);
    let bad = "Listen host:80\nListen 127.0.0.1:443 https\nLoadModule x_module x.so\n";
    assert_eq!(
        errors(&[bad, REST].concat()),
        [
            r#"t.conf:1: listener "host:80": is not an IP address with a port (write, for example, "127.0.0.1:8080" or "[::1]:8080")"#,
            r#"t.conf:2: Listen 127.0.0.1:443 https: protocol "https" is not supported, only http"#,
        ]
    );
}

#[test]
fn if_module_asks_what_was_loaded_above() {
    for (condition, counts) in [
        ("mod_proxy_lb.c", true),
        ("proxy_lb_module", true),
        ("!mod_proxy_lb.c", false),
        ("mod_ssl.c", false),
        ("!ssl_module", true),
        ("! mod_ssl.c ", true),
    ] {
        let text = format!("{LOAD}<ifmodule {condition}>\nLBProxyPass /x a\n</IFMODULE>\n{REST}");
        let (config, warnings) = good(&text);
        assert_eq!(config.routes.len() == 2, counts, "{condition}");
        assert_eq!(warnings, [""; 0]);
    }
}

#[test]
fn skips_the_lines_of_modules_that_are_not_loaded_unread() {
    let text = "<IfModule mod_ssl.c>\nSSLEngine \"on\n<IfModule proxy_lb_module>\n<Location /x>\n</Location>\nBad\n\
                </IfModule>\n</Files>\n<bad\nBad\n</IfModule>\n";
    let (config, warnings) = good(&[LOAD, text, REST].concat());
    assert_eq!((config.routes.len(), warnings), (1, vec![]));
    let nested = "<IfModule proxy_lb_module>\n<IfModule !x_module>\nLBProxyPass /x a\n</IfModule>\nLBProxyPass /y a\n</IfModule>\n";
    let (config, _) = good(&[LOAD, nested, REST].concat());
    assert_eq!(config.routes.len(), 3);
}

#[test]
fn warns_of_a_condition_that_is_nearly_a_loaded_module() {
    let (_, warnings) = good(&[LOAD, "<IfModule mod_proxy_1b.c>\n</IfModule>\n", REST].concat());
    assert_eq!(
        warnings,
        [r#"t.conf:3: <IfModule mod_proxy_1b.c>: no module "proxy_1b" is loaded (did you mean "proxy_lb"?)"#]
    );
}

#[test]
fn refuses_broken_sections() {
    for (lines, expected) in [
        ("</IfModule>", "t.conf:3: </IfModule> without <IfModule>"),
        ("<IfModule mod_x.c", "t.conf:3: <IfModule mod_x.c has no closing \">\""),
        (
            "<IfModule mod_proxy_lb.c>\n</Location>\n</IfModule>",
            "t.conf:4: expected </IfModule> for <IfModule mod_proxy_lb.c> of t.conf:3, found </Location>",
        ),
        (
            "<Location /a>\nSetHandler x\n</Location>",
            "t.conf:3: unknown section <Location> (only <IfModule> is known)",
        ),
        (
            "<IfModule>\n</IfModule>",
            "t.conf:3: <IfModule > names no module (write <IfModule X_module> or <IfModule mod_X.c>, with \"!\" before it where X is not loaded)",
        ),
        (
            "<IfModule proxy_lb>\n</IfModule>",
            "t.conf:3: <IfModule proxy_lb> names no module (write <IfModule X_module> or <IfModule mod_X.c>, with \"!\" before it where X is not loaded)",
        ),
    ] {
        assert_eq!(errors(&[LOAD, lines, "\n", REST].concat()), [expected]);
    }
}

#[test]
fn a_line_in_doubt_makes_nothing_else_missing() {
    // One cause, one line: what the bad LoadModule would have made of the section is not complained of.
    let text = "LoadModule proxy_lb proxy_lb.so\n<IfModule mod_proxy_lb.c>\nListen 127.0.0.1:0\nLBServerCluster a http://a\n\
                LBProxyPass / a\n</IfModule>\n";
    assert_eq!(
        errors(text),
        [
            "t.conf:1: LoadModule proxy_lb proxy_lb.so: a module's name ends in _module (write proxy_lb_module)"
        ]
    );
}

#[test]
fn a_cluster_uses_the_only_module_or_the_one_named() {
    let two = "Listen 127.0.0.1:0\nLoadModule x_module x.so\nLoadModule y_module y.so\n";
    assert_eq!(
        errors(&[two, REST].concat()),
        [
            r#"t.conf:4: cluster "a": several modules are loaded (x, y); name one of them (LBClusterModule CLUSTER ID)"#
        ]
    );
    for name in ["y", "y_module"] {
        // Before its cluster, too.
        let (config, warnings) = good(&format!("{two}LBClusterModule a {name}\n{REST}"));
        assert_eq!(&*config.clusters[0].module, "y");
        assert_eq!(warnings, [r#"t.conf:2: module "x": loaded, but no cluster uses it"#]);
    }
    let bad = "LBClusterModule a z\nLBClusterModule b x\nLBClusterModule a x\n";
    assert_eq!(
        errors(&[two, bad, REST].concat()),
        [
            r#"t.conf:4: cluster "a": no module "z" is loaded (loaded: x, y)"#,
            r#"t.conf:5: LBClusterModule b x: no cluster "b""#,
            "t.conf:6: LBClusterModule a x: t.conf:4 says z already",
        ]
    );
}

#[test]
fn refuses_two_modules_of_one_id() {
    let text = "LoadModule proxy_lb_module other.so\n";
    assert_eq!(
        errors(&[LOAD, text, REST].concat()),
        [r#"t.conf:3: module "proxy_lb": already loaded at t.conf:2"#]
    );
}

#[test]
fn maps_a_prefix_where_the_cluster_has_a_path() {
    let passes = "LBServerCluster b http://b\nLBProxyPass /a b\nLBProxyPass /b b/c\nLBProxyPass /c b/\nLBProxyPass /d/ b/e\n";
    let (config, _) = good(&[LOAD, passes, REST].concat());
    assert_eq!(
        routes(&config),
        [
            ("/a", "b", None),
            ("/b", "b", Some("/c")),
            ("/c", "b", Some("/")),
            ("/d/", "b", Some("/e")),
            ("/", "a", None)
        ]
    );
}

#[test]
fn refuses_targets_of_proxy_pass_that_are_none_of_ours() {
    let passes = "LBProxyPass /a http://a\nLBProxyPass /b !\nLBProxyPass /c /d\nLBProxyPass /d b\n";
    assert_eq!(
        errors(&[LOAD, passes, REST].concat()),
        [
            "t.conf:3: LBProxyPass /a http://a: takes a cluster's name where ProxyPass takes a URL",
            "t.conf:4: LBProxyPass /b !: \"!\" is not supported; route the other prefixes instead",
            "t.conf:5: LBProxyPass /c /d: names no cluster (write CLUSTER/PATH to map the prefix)",
            r#"t.conf:6: route "/d": no cluster "b" (there are: a)"#,
        ]
    );
}

#[test]
fn warns_of_a_prefix_that_is_never_reached() {
    let passes = "LBProxyPass /a a\nLBProxyPass /ab a\nLBProxyPass /a/b a\nLBProxyPass /ab a\n";
    let (config, warnings) = good(&[LOAD, "LBServerCluster a http://a\n", passes].concat());
    assert_eq!(config.routes.len(), 4);
    assert_eq!(
        warnings,
        [
            "t.conf:6: LBProxyPass /a/b: never reached, since /a at t.conf:4 matches first (put the longer one first)",
            "t.conf:7: LBProxyPass /ab: never reached, since /ab at t.conf:5 matches first (drop one of them)",
        ]
    );
}

/// A directory with these files in it.
fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    dir
}

#[test]
fn includes_files_from_beside_the_including_one_in_order() {
    let dir = tree(&[
        ("t.conf", &format!("{LOAD}Include conf.d/*.conf\nInclude more/one.conf\n{REST}")),
        ("conf.d/20.conf", "LBProxyPass /20 a\n"),
        ("conf.d/10.conf", "\nLBProxyPass /10 a"),
        ("conf.d/.hidden.conf", "Bad\n"),
        ("conf.d/ignored.txt", "Bad\n"),
        ("conf.d/dir.conf/x", ""),
        ("more/one.conf", "Include two.conf\n"),
        ("more/two.conf", "LBModulePath mods\nLBProxyPass /two a\n"),
    ]);
    let (config, _) = load(&dir.path().join("t.conf")).unwrap();
    let paths: Vec<_> = config.routes.iter().map(|route| &*route.path).collect();
    assert_eq!(paths, ["/10", "/20", "/two", "/"]);
    assert_eq!(config.routes[0].place.to_string(), format!("{}/conf.d/10.conf:2", dir.path().display()));
    assert_eq!(config.modules[0].search[..], [dir.path().join("mods")]);
}

#[test]
fn reports_mistakes_of_included_files_at_their_place() {
    let dir = tree(&[
        ("t.conf", &format!("{LOAD}Include bad.conf\nInclude none.conf\nInclude none*.conf\n{REST}")),
        ("bad.conf", "\nBad\n</IfModule>\n"),
    ]);
    let at = dir.path().display();
    let errors = load(&dir.path().join("t.conf")).unwrap_err().to_string();
    let expected = [
        format!("{at}/t.conf:4: Include none.conf: {at}/none.conf cannot be read: file not found"),
        format!("{at}/t.conf:5: Include none*.conf: matches no file"),
        format!("{at}/bad.conf:2: unknown directive \"Bad\""),
        format!("{at}/bad.conf:3: </IfModule> without <IfModule>"),
    ];
    assert_eq!(errors.lines().collect::<Vec<_>>(), expected);
}

#[test]
fn refuses_files_that_include_themselves() {
    let dir = tree(&[
        ("t.conf", &format!("{LOAD}Include a.conf\n{REST}")),
        ("a.conf", "Include b.conf\nInclude b.conf\n"),
        ("b.conf", "Include self/a.conf\n"),
    ]);
    std::os::unix::fs::symlink(dir.path(), dir.path().join("self")).unwrap();
    let at = dir.path().display();
    let errors = load(&dir.path().join("t.conf")).unwrap_err().to_string();
    let expected = format!("{at}/b.conf:1: Include self/a.conf: {at}/self/a.conf includes itself");
    assert_eq!(errors.lines().collect::<Vec<_>>(), [&*expected, &*expected]);
}

#[test]
fn refuses_includes_without_end() {
    let mut files = vec![("t.conf".to_owned(), format!("{LOAD}Include 0.conf\n{REST}"))];
    files.extend((0..20).map(|n| (format!("{n}.conf"), format!("Include {}.conf\n", n + 1))));
    let files: Vec<_> = files.iter().map(|(name, text)| (&**name, &**text)).collect();
    let dir = tree(&files);
    let at = dir.path().display();
    let errors = load(&dir.path().join("t.conf")).unwrap_err().to_string();
    assert_eq!(
        errors,
        format!("{at}/15.conf:1: Include 16.conf: {at}/16.conf is included more than 16 files deep")
    );
}
