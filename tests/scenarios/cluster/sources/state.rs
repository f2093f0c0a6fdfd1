//! The last answers over restarts of the proxy.

use std::os::unix::fs::{PermissionsExt as _, symlink};

use rustix::process::Signal;
use tests::command::Running;
use tests::site::{Folder, signal};

use super::*;

/// With the file's servers, kept in this folder.
fn kept(said: &Said, state: &Path) -> Builder {
    said.proxy("").top(&format!("state = {state:?}"))
}

#[track_caller]
fn stop(site: Site) {
    site.running().signal(Signal::TERM);
    assert_eq!(site.end().0, Some(0));
}

#[test]
fn a_start_with_every_source_down_serves_the_last_servers() {
    let origins = ["a", "b"].map(Origin::named);
    let (said, state) = (Said::new(), Said::new());
    said.name(&origins[..1]);
    let config = kept(&said, state.path());
    let site = Site::run(&config);
    answered_by(&site, "a a");
    said.name(&origins);
    source_is(&site, "two servers", |source| source.members == Some(2));
    stop(site);
    for name in ["answers-0.json", "answers-1.json"] {
        let metadata = fs::metadata(state.path().join(name)).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600, "{name}");
    }
    fs::remove_file(said.file()).unwrap();
    let site = Site::run(&config);
    assert_eq!(site.names(4).matches('b').count(), 2);
    let status = source_fails(&site, "cannot be opened");
    assert_eq!(status.members, Some(2));
    site.running().logs("its last 2 servers are those of before the start, until it answers");
    // And once more, by a crash of all: what the source says now counts.
    said.name(&origins[1..]);
    answered_by(&site, "b b");
    let written = || {
        let files =
            ["answers-0.json", "answers-1.json"].map(|name| fs::read_to_string(state.path().join(name)));
        files
            .into_iter()
            .flatten()
            .any(|text| text.contains("\"number\"") && !text.contains(&origins[0].url()))
    };
    eventually("the answer on the disk", || written().then_some(()));
    drop(site);
    fs::remove_file(said.file()).unwrap();
    let site = Site::run(&config);
    answered_by(&site, "b b");
}

#[test]
fn a_folder_of_state_belongs_to_one_proxy_and_links_are_not_followed() {
    let origin = Origin::named("a");
    let (said, state) = (Said::new(), Said::new());
    said.name([&origin]);
    let config = kept(&said, state.path());
    let site = Site::run(&config);
    let refused = |config: &Builder, why: &str| {
        let folder = Folder::with(&config.text());
        let (code, log) = Running::spawn(folder.run()).end();
        assert!(code == Some(1) && log.contains(why), "{code:?}: {log}");
    };
    refused(&config, "is in use by another running proxy; name another folder");
    refused(&kept(&said, &state.path().join("none")), "No such file or directory");
    let linked = Said::new();
    symlink(state.path().join("answers-0.json"), linked.path().join("answers-0.json")).unwrap();
    refused(&kept(&said, linked.path()), "state \"");
    // A reload with such a folder changes nothing.
    site.folder().write(&kept(&said, &state.path().join("none")).text());
    assert_eq!(site.fails_to_reload().0, Some(1));
    answered_by(&site, "a a");
}

/// Waits until a file of this folder names the server.
#[track_caller]
fn keeps(state: &Said, origin: &Origin) {
    let names = |name: &str| {
        let text = fs::read_to_string(state.path().join(name)).unwrap_or_default();
        text.contains(&format!("{:?}", origin.url()))
    };
    eventually("the answer on the disk", || {
        ["answers-0.json", "answers-1.json"].into_iter().any(names).then_some(())
    });
}

#[test]
fn an_answer_from_before_is_written_where_a_reload_adds_or_moves_state() {
    let origin = Origin::named("a");
    let said = Said::new();
    said.name([&origin]);
    let site = Site::run(&said.proxy(""));
    answered_by(&site, "a a");
    for _ in 0..2 {
        let state = Said::new();
        site.reload_with(&kept(&said, state.path()));
        keeps(&state, &origin);
    }
}

#[test]
fn a_reload_that_fails_leaves_the_state_where_it_was() {
    let origins = ["a", "b"].map(Origin::named);
    let (said, state, other) = (Said::new(), Said::new(), Said::new());
    said.name(&origins[..1]);
    let site = Site::run(&kept(&said, state.path()));
    answered_by(&site, "a a");
    let refused =
        kept(&said, other.path()).broken("refuses-settings").in_cluster("settings = { choices = 3 }");
    site.folder().write(&refused.text());
    // It holds the files for a moment longer.
    signal(scout(&site), Signal::STOP);
    assert_ne!(site.fails_to_reload().0, Some(0));
    said.name(&origins);
    keeps(&state, &origins[1]);
    // The other folder is free again.
    let another = Site::run(&kept(&said, other.path()));
    answered_by(&another, "a b");
}
