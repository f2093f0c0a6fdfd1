//! `check --connect` asks each source once.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;

use tests::command::trylist;
use tests::site::{Folder, spoken};

use super::*;

fn connected(config: &Folder, more: &[&str]) -> (Option<i32>, String, String) {
    spoken(&trylist(&[&["check", "--connect", "-c", &config.config()], more].concat()))
}

#[test]
fn a_check_asks_sources_and_says_what_would_be_built() {
    let said = Said::new();
    // Without root's rights sources are asked as nobody.
    fs::set_permissions(said.path(), Permissions::from_mode(0o755)).unwrap();
    said.say(
        r#"["http://127.0.0.1:1", { "url": "http://127.0.0.1:2", "weight": 5, "tier": 1, "state": "down" }]"#,
    );
    let echo = r#"type = "exec", command = ["/bin/echo", "[]"]"#;
    let keys = format!("discover = [{{ type = \"file\", path = {:?} }}, {{ {echo} }}]", said.file());
    let config =
        Folder::with(&Proxy::over_urls([""; 0]).named("app").module("round_robin").in_cluster(&keys).text());
    let (code, text, complained) = connected(&config, &[]);
    let told = "cluster \"app\": source \"file\": 2 servers: http://127.0.0.1:1, http://127.0.0.1:2 weight 5 tier 1 maint\n\
                cluster \"app\": source \"exec-2\": 0 servers\n";
    assert!(code == Some(0) && text.ends_with(told), "{text}{complained}");
    let (_, text, _) = connected(&config, &["--json"]);
    let object: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(object["sources"][0]["servers"][1]["weight"], 5, "{object:#}");
    fs::remove_file(said.file()).unwrap();
    let (code, text, complained) = connected(&config, &[]);
    assert_eq!((code, text.as_str()), (Some(1), ""));
    let why = format!("cluster \"app\": source \"file\": {}: cannot be opened: ", said.file().display());
    assert!(complained.starts_with(&why), "{complained}");
    // Without being told to, a check asks nobody.
    assert_eq!(spoken(&trylist(&["check", "-c", &config.config()])).0, Some(0));
}
