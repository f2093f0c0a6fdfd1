//! A file that somebody else writes.

use std::os::unix::fs::symlink;

use rustix::process::Signal;
use tests::site::{proc_status, process, signal, spoken, wait_for_end_of};
use tests::traffic::Traffic;
use trylist::process::control::ServerOrder;

use super::*;

#[test]
fn servers_of_a_file_come_go_and_change_weight_while_requests_run() {
    let origins = ["a", "b", "c"].map(Origin::named);
    let said = Said::new();
    said.name(&origins[..1]);
    let site = Site::run(&said.proxy(""));
    let worker = site.worker();
    let traffic = Traffic::start(site.address(), 2, 1);
    traffic.goes_on_for(20);
    said.name(&origins[..2]);
    origins[1].wait_for_requests(10);
    said.say(&format!(
        "{{ \"servers\": [{:?}, {{ \"url\": {:?}, \"weight\": 3 }}] }}",
        origins[0].url(),
        origins[1].url()
    ));
    source_is(&site, "the third answer", |source| source.answer == Some(3));
    said.name(&origins[1..]);
    origins[2].wait_for_requests(10);
    traffic.goes_on_for(20);
    let before = origins[0].requests().len();
    traffic.goes_on_for(20);
    assert_eq!(origins[0].requests().len(), before, "a server that has gone is asked no more");
    let n_sent = traffic.ends_whole();
    assert_eq!(
        origins.iter().map(|origin| origin.requests().len()).sum::<usize>(),
        n_sent,
        "each exactly once"
    );
    assert_eq!((site.generation(), site.worker()), (1, worker));
    let status = source(&site);
    assert_eq!((status.members, status.answers, status.errors, status.error), (Some(2), 4, 0, None));
    site.running().logs("source \"file\": 1 came (http://127.0.0.1:");
    let series =
        |name: &str, more: &str| format!("trylist_discovery_{name}{{cluster=\"app\",source=\"file\"{more}}}");
    for (name, more, value) in [
        ("answers_total", ",result=\"new\"", 4.0),
        ("answers_total", ",result=\"error\"", 0.0),
        ("members", "", 2.0),
        ("held", "", 0.0),
        ("failing", "", 0.0),
    ] {
        eventually(name, || (site.metric(&series(name, more)) == value).then_some(()));
    }
    assert!(site.admin("/metrics").text().contains(&series("age_seconds", "")));
    // Weights count.
    said.say(&format!("[{:?}, {{ \"url\": {:?}, \"weight\": 3 }}]", origins[0].url(), origins[1].url()));
    answered_by(&site, "a b b b a b b b");
}

#[test]
fn configured_servers_come_first_and_any_source_can_drain_them() {
    let origins = ["a", "b"].map(Origin::named);
    let said = Said::new();
    said.name(&origins);
    let source = format!("discover = [{{ type = \"file\", path = {:?} }}]", said.file());
    let site = Site::run(
        &Proxy::over(&origins[..1])
            .named("app")
            .module("round_robin")
            .in_cluster(&source)
            .in_cluster("settle = \"0s\""),
    );
    answered_by(&site, "a b a b");
    // Its weight is the configuration's.
    said.say(&format!("[{{ \"url\": {:?}, \"weight\": 9 }}, {:?}]", origins[0].url(), origins[1].url()));
    source_is(&site, "the second answer", |source| source.answer == Some(2));
    assert_eq!(site.names(4).matches('a').count(), 2);
    for state in ["\"state\": \"draining\"", "\"state\": \"down\"", "\"weight\": 0"] {
        said.say(&format!("[{{ \"url\": {:?}, {state} }}, {:?}]", origins[0].url(), origins[1].url()));
        if state.starts_with("\"state") {
            answered_by(&site, "b b b b");
            said.name(&origins);
            answered_by(&site, "a b a b");
        } else {
            answered_by(&site, "b b b b");
        }
    }
}

#[test]
fn operators_change_servers_of_a_source_as_any_other() {
    let origins = ["a", "b"].map(Origin::named);
    let said = Said::new();
    said.name(&origins);
    let site = Site::run(&said.proxy(""));
    answered_by(&site, "a b a b");
    let order = |order| site.order("app", &origins[0].url(), order);
    order(ServerOrder::Maintenance).unwrap();
    answered_by(&site, "b b b b");
    // It holds over the server's absence, and over a reload.
    said.name(&origins[1..]);
    source_is(&site, "one server", |source| source.members == Some(1));
    said.name(&origins);
    source_is(&site, "two servers", |source| source.members == Some(2));
    site.reload_wholly();
    answered_by(&site, "b b b b");
    order(ServerOrder::Ready).unwrap();
    answered_by(&site, "a b a b");
    order(ServerOrder::Weight(3)).unwrap();
    answered_by(&site, "a a a b");
    order(ServerOrder::Remove).unwrap();
    answered_by(&site, "b b b b");
    order(ServerOrder::Add).unwrap();
    let refused = site.order("app", "ftp://x", ServerOrder::Drain).unwrap_err();
    assert!(refused.contains("scheme \"ftp\" is not supported"), "{refused}");
}

#[test]
fn a_scout_that_is_killed_in_a_loop_changes_nothing_and_is_replaced() {
    let origins = ["a", "b"].map(Origin::named);
    let said = Said::new();
    said.name(&origins);
    let site = Site::run(&said.proxy(""));
    let (worker, traffic) = (site.worker(), Traffic::start(site.address(), 2, 1));
    for _ in 0..4 {
        let (pid, n) = (scout(&site), source(&site).answer);
        assert_eq!(proc_status(pid, "NoNewPrivs"), 1);
        let end = process(pid).unwrap();
        signal(pid, Signal::KILL);
        wait_for_end_of(&end);
        eventually("another scout", || (scout(&site) != pid).then_some(()));
        assert_eq!(source(&site).answer, n);
    }
    said.name(&origins[..1]);
    source_is(&site, "an answer through the new scout", |source| source.members == Some(1));
    traffic.ends_whole();
    answered_by(&site, "a a");
    assert_eq!((site.generation(), site.worker()), (1, worker));
    site.running().logs("servers stay as they are; next attempt in ");
}

#[test]
fn a_reload_and_a_crash_of_the_worker_keep_the_scout_and_the_last_answer() {
    let origins = ["a", "b"].map(Origin::named);
    let said = Said::new();
    said.name(&origins);
    let site = Site::run(&said.proxy(""));
    let pid = scout(&site);
    fs::remove_file(said.file()).unwrap();
    let status = source_is(&site, "an error", |source| source.error.is_some());
    assert!(status.error.unwrap().contains("cannot be opened: No such file or directory"));
    site.reload_wholly();
    answered_by(&site, "a b a b");
    signal(site.worker(), Signal::KILL);
    eventually("another worker", || (site.serving().generation > 2).then_some(()));
    answered_by(&site, "a b a b");
    // A source that asks elsewhere, and fails there, begins with what the one of its name has said.
    let elsewhere = said.path().join("elsewhere.json");
    let config = said.proxy("").text().replace(&format!("{:?}", said.file()), &format!("{elsewhere:?}"));
    site.folder().write(&config);
    site.reload();
    answered_by(&site, "a b a b");
    fs::write(&elsewhere, format!("[{:?}]", origins[0].url())).unwrap();
    answered_by(&site, "a a");
    assert_eq!(scout(&site), pid);
    // Without a source there is no scout.
    site.reload_with(&Proxy::over(&origins[1..]).named("app").module("round_robin"));
    eventually("the scout's end", || (!site.workers().contains(&pid)).then_some(()));
    answered_by(&site, "b b");
    assert_eq!(site.status().discovery, []);
}

#[test]
fn a_start_waits_for_the_first_answer_and_not_for_a_file_that_is_not_there() {
    let origin = Origin::named("a");
    let said = Said::new();
    let site = Site::run(&said.proxy(""));
    assert_eq!(site.get("/").status(), 503);
    let status = source(&site);
    assert_eq!((status.members, status.answer), (None, None));
    assert!(status.error.unwrap().ends_with("No such file or directory (os error 2)"));
    site.running().logs("cannot be opened: No such file or directory (os error 2) (it has not answered yet)");
    let (code, told, _) = spoken(&site.folder().command("discovery status", &[]));
    assert!(
        code == Some(0) && told.starts_with("cluster app, source file (file): no answer yet; fails ("),
        "{told}"
    );
    said.name([&origin]);
    answered_by(&site, "a a");
}

/// As a volume of Kubernetes is changed: a link to a folder is replaced.
#[test]
fn a_file_behind_links_that_are_replaced_is_seen() {
    let origins = ["a", "b"].map(Origin::named);
    let said = Said::new();
    for (folder, origin) in ["..1", "..2"].iter().zip(&origins) {
        fs::create_dir(said.path().join(folder)).unwrap();
        fs::write(said.path().join(folder).join("servers.json"), format!("[{:?}]", origin.url())).unwrap();
    }
    symlink("..1", said.path().join("..data")).unwrap();
    symlink("..data/servers.json", said.file()).unwrap();
    let site = Site::run(&said.proxy(""));
    answered_by(&site, "a a");
    symlink("..2", said.path().join("..data_tmp")).unwrap();
    fs::rename(said.path().join("..data_tmp"), said.path().join("..data")).unwrap();
    answered_by(&site, "b b");
}

#[test]
fn a_template_says_what_the_source_leaves_out() {
    let origins = ["a", "b"].map(Origin::named);
    let said = Said::new();
    said.say(&format!("[{:?}, {{ \"url\": {:?}, \"tier\": 0 }}]", origins[0].url(), origins[1].url()));
    let site = Site::run(&said.proxy(", server = { tier = 2 }"));
    answered_by(&site, "b b b");
    said.name(&origins[..1]);
    answered_by(&site, "a a a");
}
