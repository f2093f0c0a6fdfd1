//! The files in `conf/` are what people copy, so they are held to what they say.

use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;

use serde::Deserialize;
use toml::Spanned;
use toml::de::DeTable;

use super::de::{TreeFault, TreeNode};
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
        // The unit and the page about all of them are no configurations.
        if path.extension().is_some_and(|extension| extension == "service" || extension == "md") {
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
    // What must be given differs, and so do places; the rest of every struct is compared as it prints.
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
fn the_reference_says_the_default_of_every_key_that_has_one() {
    // A key behind a "#" must be one whose absence no value stands for.
    let reference = reference();
    let hidden = reference.lines().filter_map(|line| line.strip_prefix('#')?.split_once(" = "));
    let hidden: HashSet<&str> = hidden.map(|(key, _)| key).filter(|key| !key.starts_with(' ')).collect();
    let without_default = [
        "threads",
        "module_path",
        "user",
        "group",
        "control",
        "pid_file",
        "random",
        "key",
        "key_missing",
        "sticky",
        "health_check",
        "host",
        "rewrite",
        "host_header",
        "timeout",
        "retry",
        "request",
        "request_id",
        "max_connections_per_client",
        "proxy_protocol",
        "send_proxy_protocol",
        "request_headers",
        "response_headers",
        "body_bytes",
        "requests_per_connection",
        "path",
        "address",
        "tls",
        "h2",
        "mode",
        "owner",
        "when_full",
    ];
    assert_eq!(hidden, HashSet::from(without_default));
}

#[test]
fn the_reference_has_every_key_and_they_work_together() {
    let text = uncommented(&reference());
    let folder = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["site.test".to_owned()]).unwrap();
    for name in ["site", "own", "issuers"] {
        fs::write(folder.path().join(name).with_extension("pem"), made.cert.pem()).unwrap();
        fs::write(folder.path().join(name).with_extension("key"), made.signing_key.serialize_pem()).unwrap();
    }
    let name = folder.path().join("t.toml").display().to_string();
    // `tls` of a cluster is for servers that are reached by it.
    let secure = text.replace("\"http://127.0.0.1:9001\"", "\"https://127.0.0.1:9001\"");
    let (config, _) = parse(&name, &secure, Syntax::Toml).unwrap_or_else(|errors| panic!("{errors}"));
    assert!(config.admin.is_some() && config.access_log == AccessLogTarget::Stdout);
    let known = [
        keys_of::<file::RootTable>(),
        keys_of::<file::ListenerTable>(),
        keys_of::<file::ListenerTlsTable>(),
        keys_of::<file::KeyPairTable>(),
        keys_of::<file::ModuleTable>(),
        keys_of::<file::ClusterTable>(),
        keys_of::<file::KeyMissingTable>(),
        keys_of::<file::ServerTable>(),
        keys_of::<file::ClusterTlsTable>(),
        keys_of::<file::StickyTable>(),
        keys_of::<file::EjectionTable>(),
        keys_of::<file::HealthCheckTable>(),
        keys_of::<file::RouteTable>(),
        keys_of::<file::RetryTable>(),
        keys_of::<file::HeadersTable>(),
        keys_of::<file::ProxyProtocolTable>(),
        keys_of::<file::ForwardedTable>(),
        keys_of::<file::BudgetTable>(),
        keys_of::<file::LimitsTable>(),
        keys_of::<file::TimeoutsTable>(),
        keys_of::<file::SupervisionTable>(),
        keys_of::<file::ResolverTable>(),
        keys_of::<file::AccessLogTable>(),
        keys_of::<file::AdminTable>(),
    ];
    for key in known.concat() {
        let forms =
            [format!("\n{key} = "), format!("[{key}]"), format!("{{ {key} = "), format!(", {key} = ")];
        assert!(forms.iter().any(|form| text.contains(form)), "{key} is not in the reference");
    }
}

/// The keys that a struct of the mirror knows, as its own error tells them.
fn keys_of<'de, T: Deserialize<'de> + std::fmt::Debug>() -> &'static [&'static str] {
    // Leaked, so that the tree lives as long as what is read from it may.
    let table = DeTable::parse("no_such_key = 0").unwrap();
    let root = Box::leak(Box::new(Spanned::new(table.span(), toml::de::DeValue::Table(table.into_inner()))));
    match T::deserialize(TreeNode::new(root, Box::leak(Box::default()))).unwrap_err().fault {
        TreeFault::UnknownKey(known) => known,
        TreeFault::Wrong(text) => panic!("{text}"),
    }
}
