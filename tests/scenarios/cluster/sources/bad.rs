//! Input that is wrong: the outcomes that conf/README.md promises.

use std::fs::File;
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, prlimit};
use tests::command::trylist;
use tests::site::{process, signal, spoken, wait_for_end_of};
use tests::traffic::Traffic;
use trylist::process::control::ServerOrder;

use super::*;

#[test]
fn no_mistake_in_a_file_takes_a_server_out() {
    let origins = ["a", "b"].map(Origin::named);
    let said = Said::new();
    said.name(&origins);
    let site = Site::run(&said.proxy(""));
    let traffic = Traffic::start(site.address(), 1, 0);
    let url = origins[0].url();
    let many = format!("[{}{url:?}]", format!("{url:?},").repeat(65_535));
    for (text, error) in [
        ("", "line 1, column 0: EOF while parsing a value"),
        ("[\"http://127.0.0.1:1\"", "line 1, column 21: EOF while parsing a list"),
        ("nonsense", "line 1, column 2: expected ident"),
        ("[{ \"url\": \"http://a\",\n\"wieght\": 1 }]", "line 2, column 8: unknown key \"wieght\""),
        ("[\"ftp://a\"]", "server 1 of the list, \"ftp://a\": scheme \"ftp\" is not supported"),
        ("[\"https://a\"]", "may not name servers of scheme https"),
        ("[\"unix:/run/x\"]", "a Unix socket that this source may not name"),
        (&many, "has more than 65535 servers"),
    ] {
        said.say(text);
        let is_told = |source: &SourceStatus| source.error.as_ref().is_some_and(|told| told.contains(error));
        source_is(&site, error, is_told);
        assert_eq!(source(&site).members, Some(2), "{error}");
    }
    fs::remove_file(said.file()).unwrap();
    let errs = |site: &Site, error: &str| {
        source_is(site, error, |source| source.error.as_ref().is_some_and(|told| told.contains(error)));
    };
    errs(&site, "cannot be opened: No such file");
    fs::create_dir(said.file()).unwrap();
    errs(&site, "is a folder");
    fs::remove_dir(said.file()).unwrap();
    // It would be waited for.
    mknodat(CWD, said.file(), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    errs(&site, "is not a regular file");
    let huge = said.path().join("huge");
    File::create(&huge).unwrap().set_len(33 << 20).unwrap();
    fs::rename(huge, said.file()).unwrap();
    errs(&site, "is longer than 32 MiB");
    // The file alone is gone in all of that; now its folder is another one.
    fs::rename(said.path(), said.path().with_extension("old")).unwrap();
    fs::create_dir(said.path()).unwrap();
    said.name(&origins[..1]);
    source_is(&site, "an answer from the new folder", |source| {
        source.members == Some(1) && source.error.is_none()
    });
    fs::remove_dir_all(said.path().with_extension("old")).unwrap();
    traffic.ends_whole();
    answered_by(&site, "a a");
}

#[test]
fn a_source_that_names_no_server_any_more_is_not_believed_until_it_is_accepted() {
    let origins = ["a", "b"].map(Origin::named);
    let said = Said::new();
    said.name(&origins);
    let site = Site::run(&said.proxy(""));
    let accept = |words: &[&str]| spoken(&site.folder().command("discovery accept", words));
    assert_eq!(
        accept(&["app", "file"]),
        (Some(1), String::new(), "cluster \"app\": source \"file\": holds no answer back\n".to_owned())
    );
    assert_eq!(
        accept(&["app", "files"]),
        (
            Some(1),
            String::new(),
            "cluster \"app\" has no source \"files\" (there are: app file)\n".to_owned()
        )
    );
    said.say("[]");
    assert_eq!(source_is(&site, "held", |source| source.held).members, Some(2));
    site.reload_wholly();
    answered_by(&site, "a b a b");
    assert_eq!(
        accept(&["app", "file"]),
        (
            Some(0),
            "cluster \"app\": source \"file\": accepted; it names 0 servers from now on\n".to_owned(),
            String::new()
        )
    );
    eventually("503", || (site.get("/").status() == 503).then_some(()));
    said.name(&origins[..1]);
    answered_by(&site, "a a");
    // Fewer is no mistake, and where the configuration says so, none is neither.
    let config = said.proxy(", empty = \"obey\"");
    site.reload_with(&config);
    said.say("[]");
    eventually("503", || (site.get("/").status() == 503).then_some(()));
}

/// 100 times a second, between two lists that have one server in common.
#[test]
fn a_source_that_flaps_costs_no_request() {
    let origins = ["a", "b", "c"].map(Origin::named);
    let said = Said::new();
    said.name(&origins[..2]);
    let site = Site::run(&said.proxy("").threads(2));
    let traffic = Traffic::start(site.address(), 2, 1);
    for i in 0..200 {
        said.name(if i % 2 == 0 { &origins[..2] } else { &origins[1..] });
        std::thread::sleep(Duration::from_millis(5));
    }
    said.name(&origins[..1]);
    source_is(&site, "the last list", |source| source.members == Some(1));
    answered_by(&site, "a a a");
    traffic.ends_whole();
    assert_eq!(site.generation(), 1);
}

#[test]
fn check_says_what_is_wrong_with_a_file_of_servers() {
    let said = Said::new();
    let check = || spoken(&trylist(&["check", "--members", said.file().to_str().unwrap()]));
    let name = said.file().display().to_string();
    said.say("[\"http://a\", \"https://b\", \"unix:/run/c\", \"http://A:80\"]");
    assert_eq!(
        check(),
        (Some(0), format!("{name}: ok: 3 servers, 1 named again and left out\n"), String::new())
    );
    said.say("[\n{ \"url\": \"http://a\", \"wait\": 1 }]");
    let why = "line 2, column 27: unknown key \"wait\" (known here: url, weight, tier, zone, route, max_requests, state, metadata)";
    assert_eq!(check(), (Some(3), String::new(), format!("{name}: {why}\n")));
    fs::remove_file(said.file()).unwrap();
    let (code, _, complained) = check();
    assert!(code == Some(3) && complained.contains("cannot be opened: No such file"), "{complained}");
}

/// The scout itself does not answer any more, either.
#[test]
fn who_asks_to_accept_is_answered_when_the_source_leaves_and_a_scout_that_hangs_is_ended() {
    let origin = Origin::named("a");
    let said = Said::new();
    said.name([&origin]);
    let site = Site::run(&said.proxy(""));
    answered_by(&site, "a a");
    let hanging = process(scout(&site)).unwrap();
    signal(scout(&site), Signal::STOP);
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| spoken(&site.folder().command("discovery accept", &["app", "file"])));
        // The order of the two is the system's.
        site.reload_with(&Proxy::over([&origin]).named("app").module("round_robin"));
        let (code, _, why) = asked.join().unwrap();
        assert_eq!(code, Some(1));
        assert!(why.contains("is asked no more") || why.contains("has no source"), "{why}");
    });
    wait_for_end_of(&hanging);
    answered_by(&site, "a a");
}

#[test]
fn an_answer_that_a_worker_has_no_descriptor_for_comes_once_it_has() {
    let origins = ["a", "b"].map(Origin::named);
    let said = Said::new();
    said.name(&origins[..1]);
    let site = Site::run(&said.proxy(""));
    answered_by(&site, "a a");
    let worker = Pid::from_raw(site.worker().try_into().unwrap());
    // Those of standard input and outputs are taken.
    let few = Rlimit { current: Some(3), maximum: getrlimit(Resource::Nofile).maximum };
    let before = prlimit(worker, Resource::Nofile, few).unwrap();
    said.name(&origins[1..]);
    site.running().logs("a message of another process is lost");
    prlimit(worker, Resource::Nofile, before).unwrap();
    answered_by(&site, "b b");
}

/// A message of more than 16 KiB comes in memory, whose descriptor it could not open.
#[test]
fn a_long_list_of_changes_that_a_worker_has_no_descriptor_for_comes_once_it_has() {
    let origins = ["a", "b"].map(Origin::named);
    let said = Said::new();
    said.name(&origins);
    let site = Site::run(&said.proxy(""));
    answered_by(&site, "a b a b");
    let name = "x".repeat(60);
    let changed = |url: &str| site.order("app", url, ServerOrder::Maintenance).unwrap();
    for i in 0..70 {
        // Servers that the source could name.
        changed(&format!("http://{name}.{name}.{name}.{name}{i}"));
    }
    let worker = Pid::from_raw(site.worker().try_into().unwrap());
    let few = Rlimit { current: Some(3), maximum: getrlimit(Resource::Nofile).maximum };
    std::thread::scope(|scope| {
        let before = prlimit(worker, Resource::Nofile, few).unwrap();
        let asked = scope.spawn(|| changed(&origins[0].url()));
        site.running().logs("a message of another process is lost");
        prlimit(worker, Resource::Nofile, before).unwrap();
        let told = asked.join().unwrap();
        assert!(told.ends_with(" from now on"), "{told}");
    });
    answered_by(&site, "b b b b");
}
