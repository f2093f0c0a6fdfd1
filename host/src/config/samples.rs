//! Tests of the files in `conf/`: they load without a warning, and the reference has every key with its default.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::path::PathBuf;

use serde::Deserialize;
use toml::Spanned;
use toml::de::DeTable;

use super::de::{TreeFault, TreeNode, TreeTerms};
use super::*;

fn conf() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../conf")
}

fn reference() -> String {
    fs::read_to_string(conf().join("reference.toml")).unwrap()
}

/// The reference with the keys that have no default: those behind a `#` with no space after it.
fn uncommented(reference: &str) -> String {
    let is_key = |line: &str| line.starts_with(|c: char| c.is_ascii_lowercase() || c == '[');
    let lines =
        reference.lines().map(|line| line.strip_prefix('#').filter(|key| is_key(key)).unwrap_or(line));
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn every_sample_loads_without_warning() {
    let mut loaded = HashSet::new();
    for entry in fs::read_dir(conf()).unwrap() {
        let path = entry.unwrap().path();
        // The unit, descriptions for other programs, and the page about all of them are no configurations.
        if !path.extension().is_some_and(|extension| extension == "toml" || extension == "conf") {
            continue;
        }
        let (_, warnings) = load(&path).unwrap_or_else(|errors| panic!("{errors}"));
        assert_eq!(warnings, [], "{}", path.display());
        loaded.insert(path.file_name().unwrap().to_str().unwrap().to_owned());
    }
    for name in [
        "minimal.toml",
        "reference.toml",
        "proxy_lb.toml",
        "round_robin.toml",
        "random.toml",
        "bench.toml",
        "mail.conf",
    ] {
        assert!(loaded.contains(name), "{name}");
    }
}

#[test]
fn the_reference_writes_the_defaults() {
    let (mut written, _) = parse("t.toml", &reference(), Syntax::Toml).unwrap();
    let (mut default, _) = load(&conf().join("minimal.toml")).unwrap();
    // Required values and places differ; the rest of every struct is compared as it prints.
    let place = Place { file: "".into(), line: 0 };
    for config in [&mut written, &mut default] {
        config.source = PathBuf::new();
        config.listeners[0].place = place.clone();
        config.modules.clear();
        for cluster in &mut config.clusters {
            let server = cluster.servers.remove(1);
            assert_eq!((server.weight, server.max_requests, server.tier, server.drain), (1, 0, 0, false));
            assert_eq!(server.metadata, []);
            cluster.servers.clear();
            cluster.place = place.clone();
        }
        config.routes[0].place = place.clone();
    }
    assert_eq!(format!("{written:#?}"), format!("{default:#?}"));
}

#[test]
fn no_line_is_longer_than_110_columns() {
    for entry in fs::read_dir(conf()).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() || path.extension().is_some_and(|extension| extension == "md" || extension == "json")
        {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        for (n, line) in text.lines().enumerate() {
            assert!(line.chars().count() <= 110, "{}:{}: {line}", path.display(), n + 1);
        }
    }
}

#[test]
fn every_key_of_the_reference_has_its_comment() {
    let reference = reference();
    let lines: Vec<&str> = reference.lines().collect();
    // Header rules are three keys of one comment; the second cluster and the short servers are examples.
    let shared = ["remove", "set", "add", "settings", "name", "module", "url", "address", "route", "type"];
    for (n, line) in lines.iter().enumerate() {
        let Some((key, _)) = line.trim_start_matches('#').split_once(" = ") else { continue };
        if line.starts_with("# ") || shared.contains(&key) || lines[n - 1].starts_with("[load_module]") {
            continue;
        }
        assert!(lines[n - 1].starts_with("# "), "line {}: {key} has no comment of its own", n + 1);
    }
}

#[test]
fn the_reference_hides_only_keys_without_a_default() {
    // A key behind a "#" must be one whose absence no value stands for.
    let shown = tables(&reference());
    let hidden: BTreeSet<String> = tables(&uncommented(&reference()))
        .into_iter()
        .flat_map(|(table, keys)| {
            let shown = shown.get(&table).cloned();
            // Where the whole table is hidden, the table above says so.
            let keys =
                keys.into_iter().filter(|key| shown.as_ref().is_some_and(|shown| !shown.contains(key)));
            keys.map(|key| format!("{table}{key}")).collect::<Vec<_>>()
        })
        .collect();
    let without_default = [
        "access_log",
        "admin",
        "cluster.discover",
        "cluster.h2_ping",
        "cluster.health_check",
        "cluster.keepalive_requests",
        "cluster.keepalive_time",
        "cluster.key",
        "cluster.key_missing",
        "cluster.request_headers",
        "cluster.response_headers",
        "cluster.send_proxy_protocol",
        "cluster.servers.backup",
        "cluster.servers.route",
        "cluster.sticky",
        "cluster.tls",
        "cluster.when_full",
        "control",
        "errors",
        "group",
        "include",
        "limits.body_bytes",
        "limits.requests_per_connection",
        "listener.group",
        "listener.h2",
        "listener.max_connections_per_client",
        "listener.mode",
        "listener.owner",
        "listener.proxy_protocol",
        "listener.tls",
        "load_module.random",
        "log.file",
        "log.syslog",
        "module_path",
        "module_files",
        "pid_file",
        "request_id",
        "route.errors",
        "route.host",
        "route.host_header",
        "route.hosts",
        "route.listeners",
        "route.redirect",
        "route.request_headers",
        "route.respond",
        "route.response_headers",
        "route.retry",
        "route.rewrite",
        "route.timeout",
        "state",
        "threads",
        "timeouts.request",
        "user",
    ];
    assert_eq!(hidden, without_default.map(str::to_owned).into());
}

/// The reference as a whole, keys behind a `#` included.
fn whole_reference() -> Config {
    let text = uncommented(&reference());
    let folder = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["site.test".to_owned()]).unwrap();
    for name in ["site", "own", "issuers"] {
        fs::write(folder.path().join(name).with_extension("pem"), made.cert.pem()).unwrap();
        fs::write(folder.path().join(name).with_extension("key"), made.signing_key.serialize_pem()).unwrap();
    }
    fs::write(folder.path().join("sorry.html"), "<p>Sorry</p>").unwrap();
    let name = folder.path().join("t.toml").display().to_string();
    // `tls` of a cluster is for servers that are reached by it.
    let secure = text.replace("\"http://127.0.0.1:9001\"", "\"https://127.0.0.1:9001\"");
    // The log goes to one of both.
    let secure = secure.replace("syslog = \"/dev/log\"", "");
    let (config, _) = parse(&name, &secure, Syntax::Toml).unwrap_or_else(|errors| panic!("{errors}"));
    config
}

#[test]
fn the_reference_has_every_key() {
    let found = tables(&uncommented(&reference()));
    let known: [(&str, &[&str]); 32] = [
        ("", keys_of::<file::RootTable>()),
        ("access_log.", keys_of::<file::AccessLogTable>()),
        ("admin.", keys_of::<file::AdminTable>()),
        ("cluster.", keys_of::<file::ClusterTable>()),
        ("cluster.discover.", keys_of::<file::DiscoverTable>()),
        ("cluster.discover.server.", keys_of::<file::TemplateTable>()),
        ("cluster.ejection.", keys_of::<file::EjectionTable>()),
        ("cluster.health_check.", keys_of::<file::HealthCheckTable>()),
        ("cluster.key_missing.", keys_of::<file::KeyMissingTable>()),
        ("cluster.request_headers.", keys_of::<file::HeadersTable>()),
        ("cluster.response_headers.", keys_of::<file::HeadersTable>()),
        ("cluster.servers.", keys_of::<file::ServerTable>()),
        ("cluster.sticky.", keys_of::<file::StickyTable>()),
        ("cluster.tls.", keys_of::<file::ClusterTlsTable>()),
        ("forwarded.", keys_of::<file::ForwardedTable>()),
        ("limits.", keys_of::<file::LimitsTable>()),
        ("listener.", keys_of::<file::ListenerTable>()),
        ("listener.proxy_protocol.", keys_of::<file::ProxyProtocolTable>()),
        ("listener.tls.", keys_of::<file::ListenerTlsTable>()),
        ("listener.tls.certificates.", keys_of::<file::KeyPairTable>()),
        ("load_module.random.", keys_of::<file::ModuleTable>()),
        ("log.", keys_of::<file::LogTable>()),
        ("resolver.", keys_of::<file::ResolverTable>()),
        ("route.", keys_of::<file::RouteTable>()),
        ("route.errors.503.", keys_of::<file::PageTable>()),
        ("route.redirect.", keys_of::<file::RedirectTable>()),
        ("route.respond.", keys_of::<file::RespondTable>()),
        ("route.request_headers.", keys_of::<file::HeadersTable>()),
        ("route.response_headers.", keys_of::<file::HeadersTable>()),
        ("route.retry.", keys_of::<file::RetryTable>()),
        ("route.retry.budget.", keys_of::<file::BudgetTable>()),
        ("supervision.", keys_of::<file::SupervisionTable>()),
    ];
    for (table, keys) in known.into_iter().chain([("timeouts.", keys_of::<file::TimeoutsTable>())]) {
        for key in keys {
            let is_there = found.get(table).is_some_and(|found| found.contains(*key));
            assert!(is_there, "{table}{key} is not in the reference");
        }
    }
    assert!(found["explain."].contains("allow"));
}

#[test]
fn all_keys_of_the_reference_work_together() {
    let config = whole_reference();
    assert!(config.admin.is_some() && config.access_log == AccessLogTarget::Stdout);
}

#[test]
fn hidden_tables_of_the_reference_say_their_defaults() {
    let whole = whole_reference();
    let short = "[[listener]]\naddress = \"127.0.0.1:0\"\nproxy_protocol = { from = [] }\n\
        [load_module]\nx = \"x.so\"\n\
        [[cluster]]\nname = \"a\"\nservers = [\"http://a\"]\nhealth_check = {}\n\
        [[route]]\npath = \"/\"\ncluster = \"a\"\nretry = { on = [\"reset\"] }\n";
    let (short, _) = parse("t.toml", short, Syntax::Toml).unwrap();
    let check = |config: &Config| {
        let check = config.clusters[0].health_check.clone().unwrap();
        (check.interval, check.timeout, check.rise, check.fall)
    };
    assert_eq!(check(&whole), check(&short));
    let proxy = |config: &Config| config.listeners[0].proxy_protocol.clone().unwrap().timeout;
    assert_eq!(proxy(&whole), proxy(&short));
    let retry = |config: &Config| {
        let retry = (**config.routes[0].retry.as_ref().unwrap()).clone();
        // Values without a default are the same for both.
        retry::RetryPolicy { on: Default::default(), timeout: None, try_timeout: None, ..retry }
    };
    assert_eq!(retry(&whole), retry(&short));
}

/// The keys of every table of a file, by its path with a dot behind it; of arrays of tables, those of all elements.
fn tables(text: &str) -> BTreeMap<String, BTreeSet<String>> {
    fn walk(path: &str, value: &toml::Value, found: &mut BTreeMap<String, BTreeSet<String>>) {
        match value {
            toml::Value::Table(table) => {
                found.entry(path.to_owned()).or_default().extend(table.keys().cloned());
                for (key, value) in table {
                    walk(&format!("{path}{key}."), value, found);
                }
            }
            toml::Value::Array(elements) => elements.iter().for_each(|element| walk(path, element, found)),
            _ => {}
        }
    }
    let mut found = BTreeMap::new();
    walk("", &toml::Value::Table(toml::from_str(text).unwrap()), &mut found);
    found
}

/// The keys that a struct of the mirror knows, as its own error tells them.
fn keys_of<'de, T: Deserialize<'de> + std::fmt::Debug>() -> &'static [&'static str] {
    // Leaked, so that the tree lives as long as what is read from it may.
    let table = DeTable::parse("no_such_key = 0").unwrap();
    let root = Box::leak(Box::new(Spanned::new(table.span(), toml::de::DeValue::Table(table.into_inner()))));
    match T::deserialize(TreeNode::new(root, Box::leak(Box::<TreeTerms>::default()))).unwrap_err().fault {
        TreeFault::UnknownKey(known) => known,
        TreeFault::Wrong(text) => panic!("{text}"),
    }
}
