//! The last answers, and operators' changes of servers, over restarts of the proxy.

use std::io::{ErrorKind, Write as _};
use std::iter;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use rustix::process::Signal;
use tests::command::Running;
use tests::dns::{Answer, NameServer};
use tests::site::{Folder, signal, spoken};
use trylist::process::control::{ActStatus, ServerOrder};

use super::dns::{ONE, at};
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

/// Two servers of the configuration, and this folder.
fn plain<'a>(origins: impl IntoIterator<Item = &'a Origin>, state: &Path) -> Builder {
    let over = Proxy::over(origins).named("app").module("round_robin").in_cluster("settle = \"0s\"");
    over.top(&format!("state = {state:?}"))
}

/// All changes of servers in force, without their ages.
fn acts(site: &Site) -> Vec<(String, String, String, bool)> {
    let shown = |act: ActStatus| (act.url, act.what, act.by, act.left_s.is_some());
    site.status().acts.into_iter().map(shown).collect()
}

#[test]
fn changes_of_operators_hold_over_restarts() {
    let origins = ["a", "b", "c"].map(Origin::named);
    let state = Said::new();
    let config = plain(&origins[..2], state.path());
    let site = Site::run(&config);
    let act = |site: &Site, words: &[&str]| {
        let (code, said, complained) = spoken(&site.folder().command("server", &[&["app"], words].concat()));
        assert!(code == Some(0) && said.ends_with(" from now on\n"), "{said}{complained}");
    };
    let urls = [0, 1, 2].map(|idx: usize| origins[idx].url());
    act(&site, &[&urls[0], "drain", "--for", "1h"]);
    act(&site, &[&urls[1], "weight", "2"]);
    act(&site, &[&urls[2], "add"]);
    let before = acts(&site);
    assert_eq!(before.len(), 3, "{before:?}");
    answered_by(&site, "b b c");
    stop(site);
    let site = Site::run(&config);
    site.running().logs("3 changes of servers of before the start hold again");
    // From the first request on: b has weight 2, and a none.
    let names = site.names(3);
    assert_eq!(["a", "b", "c"].map(|name| names.matches(name).count()), [0, 2, 1], "{names}");
    assert_eq!(acts(&site), before);
    let (_, shown, _) = spoken(&site.folder().command("status", &[]));
    assert!(shown.contains(&format!("server {}: drain, by {}, ", urls[0], before[0].2)), "{shown}");
    // And by a crash of all, after one is taken back.
    act(&site, &[&urls[2], "remove"]);
    drop(site);
    let site = Site::run(&config);
    assert_eq!(acts(&site), before[..2]);
    assert_eq!(site.names(3), "b b b");
    // The configuration has another weight by then, and the other server is gone.
    stop(site);
    let other = Proxy::over(&origins[2..]).named("app").module("round_robin");
    let site = Site::run(&other.top(&format!("state = {:?}", state.path())));
    assert_eq!(site.names(2), "c c");
    assert_eq!(acts(&site), before[..2]);
}

/// Of the two files of acts, the one that was written last.
fn newest_acts(state: &Said) -> PathBuf {
    let number = |path: &PathBuf| -> u64 {
        let text = fs::read_to_string(path).unwrap();
        let head: serde_json::Value = serde_json::from_str(text.lines().next().unwrap_or("{}")).unwrap();
        head["number"].as_u64().unwrap_or(0)
    };
    let paths = ["acts-0.json", "acts-1.json"].map(|name| state.path().join(name));
    paths.into_iter().max_by_key(number).unwrap()
}

#[test]
fn torn_and_foreign_files_of_changes_hold_up_no_start() {
    let origins = ["a", "b"].map(Origin::named);
    let state = Said::new();
    let config = plain(&origins, state.path());
    let site = Site::run(&config);
    let drained = site.order("app", &origins[0].url(), ServerOrder::Drain).unwrap();
    assert!(drained.ends_with(" from now on"), "{drained}");
    stop(site);
    // A write that was cut short: the older one counts, and a start without any is one, too.
    let torn = newest_acts(&state);
    let text = fs::read_to_string(&torn).unwrap();
    fs::write(&torn, &text[..text.len() - 2]).unwrap();
    let other = state.path().join(if torn.ends_with("acts-0.json") { "acts-1.json" } else { "acts-0.json" });
    fs::write(&other, "").unwrap();
    let site = Site::run(&config);
    site.running().logs(&format!("{} is not whole, so it is not used", torn.file_name().unwrap().display()));
    assert_eq!(acts(&site), []);
    answered_by(&site, "a b");
    stop(site);
    // One of somebody else stays as it is; nothing is saved, which is said.
    fs::write(&other, "{\"format\":2}\n").unwrap();
    let site = Site::run(&config);
    let drained = site.order("app", &origins[0].url(), ServerOrder::Drain).unwrap();
    assert!(drained.contains(" from now on, but it is not saved: "), "{drained}");
    answered_by(&site, "b b");
    stop(site);
    assert_eq!(fs::read_to_string(&other).unwrap(), "{\"format\":2}\n");
    // Acts that no operator could have given.
    for name in [&torn, &other] {
        fs::write(name, "").unwrap();
    }
    let site = Site::run(&config);
    site.order("app", &origins[0].url(), ServerOrder::Weight(2)).unwrap();
    stop(site);
    let text = fs::read_to_string(newest_acts(&state)).unwrap();
    assert!(text.contains("\"weight\":{\"value\":2,"), "{text}");
}

#[test]
fn a_full_disk_is_said_and_keeps_no_change_from_coming_into_use() {
    let disk = tempfile::tempdir().unwrap();
    let origins = ["a", "b"].map(Origin::named);
    let folder = Folder::with(&plain(&origins, &disk.path().join("state")).text());
    let Some(command) = folder.run_with_small_disk(disk.path(), "mkdir -m 700 state") else { return };
    let site = Site::start(folder, command);
    let weight = |n: u16| site.order("app", &origins[0].url(), ServerOrder::Weight(n)).unwrap();
    let filler = format!("/proc/{}/cwd/filler", site.running().pid());
    let mut file = fs::File::create(&filler).unwrap();
    let full = iter::repeat_with(|| file.write_all(&[0; 512])).find_map(Result::err).unwrap();
    assert_eq!(full.kind(), ErrorKind::StorageFull);
    let said = weight(3);
    assert!(
        said.contains("has weight 3 from now on, but it is not saved: ") && said.contains("No space left"),
        "{said}"
    );
    assert_eq!(site.names(4).matches('a').count(), 3);
    site.running().logs("acts cannot be written: ");
    drop(file);
    fs::remove_file(&filler).unwrap();
    assert!(weight(4).ends_with("has weight 4 from now on"), "what comes next is saved again");
}

#[test]
fn a_reload_that_adds_state_saves_what_was_changed_before() {
    let origins = ["a", "b"].map(Origin::named);
    let state = Said::new();
    let with = plain(&origins, state.path());
    let site = Site::run(&Proxy::over(&origins).named("app").module("round_robin"));
    site.order("app", &origins[0].url(), ServerOrder::Drain).unwrap();
    site.reload_with(&with);
    eventually("the change on the disk", || {
        let text = fs::read_to_string(newest_acts(&state)).unwrap_or_default();
        text.contains("\"duty\":{\"value\":\"drain\"").then_some(())
    });
    drop(site);
    let site = Site::run(&with);
    assert_eq!((site.names(2).as_str(), acts(&site).len()), ("b b", 1));
    // Without it there is no scout.
    let pid = scout(&site);
    site.reload_with(&Proxy::over(&origins).named("app").module("round_robin"));
    eventually("the scout's end", || (!site.workers().contains(&pid)).then_some(()));
    assert_eq!(site.names(2), "b b");
}

/// Neither a name of the configuration nor one that an SRV record leads to.
#[test]
fn no_start_waits_for_a_name_server_that_has_answered_before() {
    let one = at(ONE, 0, "one");
    let port = one.address().port();
    let dns = NameServer::new();
    let service = "_http._tcp.app.test";
    dns.addresses("one.test", &[ONE]);
    dns.set(service, Answer::Services(vec![(0, 1, port, "one.test")], 0));
    // A request that waited for the name server would outlast this test.
    let resolver = dns.config_with("timeout = \"10m\"");
    for over in [
        Proxy::over_urls([format!("http://one.test:{port}")]).named("app").module("round_robin"),
        from(&format!("type = \"dns\", url = \"http://{service}\", record = \"srv\"")),
    ] {
        let state = Said::new();
        let config = over.in_cluster("connect_timeout = \"10m\"").tables(&resolver);
        let config = config.top(&format!("state = {:?}", state.path()));
        let site = Site::run(&config);
        answered_by(&site, "one one");
        let is_saved =
            |name: &str| fs::read_to_string(state.path().join(name)).unwrap().contains("\"one.test\":[");
        eventually("the address on the disk", || {
            ["acts-0.json", "acts-1.json"].into_iter().any(is_saved).then_some(())
        });
        drop(site);
        for name in ["one.test", service] {
            dns.set(name, Answer::Silence);
        }
        let site = Site::run(&config);
        assert_eq!(site.names(2), "one one");
        dns.addresses("one.test", &[ONE]);
        dns.set(service, Answer::Services(vec![(0, 1, port, "one.test")], 0));
    }
}
