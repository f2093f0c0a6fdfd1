//! `server`: changes of servers by operators.

use super::*;

#[test]
fn changes_of_servers_that_do_not_exist_are_refused() {
    let origin = Origin::named("a");
    let site = Site::run(&over([&origin]));
    let url = origin.url();
    for (cluster, server, said) in [
        ("ap", url.as_str(), "there is no cluster \"ap\" (there are: app)\n".to_owned()),
        ("app", "http://b", format!("cluster \"app\" has no server \"http://b\" (it has: {url})\n")),
    ] {
        for order in [&["drain"][..], &["maint"], &["ready"], &["weight", "2"], &["remove"]] {
            let output = spoken(&site.folder().command("server", &[&[cluster, server], order].concat()));
            assert_eq!(output, (Some(1), String::new(), said.clone()));
        }
    }
    for (server, said) in [
        (&*url, format!("cluster \"app\" has the server \"{url}\" already\n")),
        ("http://", "cluster \"app\": server \"http://\": ".to_owned()),
        ("https://a", "cluster \"app\": server \"https://a\": needs TLS".to_owned()),
    ] {
        let (code, out, complained) = spoken(&site.folder().command("server", &["app", server, "add"]));
        assert_eq!((code, out.as_str()), (Some(1), ""));
        assert!(complained.starts_with(&said), "{complained}");
    }
    assert_eq!((site.status().acts, site.generation()), (Vec::new(), 1));
}

#[test]
fn options_may_stand_behind_a_change_as_before_it() {
    let origins = ["a", "b"].map(Origin::named);
    let site = Site::run(&over(&origins));
    let (config, url) = (site.folder().config(), origins[0].url());
    for (words, said) in [
        (vec!["server", "app", &url, "drain", "-c", &config], "drains"),
        (vec!["server", "app", &url, "ready", "--config", &config], "takes requests"),
        (vec!["server", "-c", &config, "app", &url, "drain"], "drains"),
        (vec!["server", "app", &url, "weight", "3", "-c", &config], "has weight 3"),
    ] {
        let (code, out, complained) = spoken(&tests::command::trylist(&words));
        assert_eq!((code, complained.as_str()), (Some(0), ""), "{words:?}: {out}");
        assert!(out.contains(&format!("server \"{url}\" {said} from now on")), "{words:?}: {out}");
    }
    let weightless = tests::command::trylist(&["server", "app", &url, "drain", "3", "-c", &config]);
    assert_eq!(spoken(&weightless).0, Some(2));
}

#[test]
fn servers_come_and_go_by_command_in_one_generation() {
    let origins = ["a", "b", "c"].map(Origin::named);
    let site = Site::run(&over(&origins[..2]));
    let urls: Vec<String> = origins.iter().map(Origin::url).collect();
    let change = |server: usize, words: &[&str]| {
        let output = spoken(&site.folder().command("server", &[&["app", &urls[server]], words].concat()));
        assert_eq!((output.0, output.2.as_str()), (Some(0), ""), "{words:?}: {}", output.1);
    };
    let names = || {
        let mut names: Vec<String> = site.names(12).split(' ').map(str::to_owned).collect();
        names.sort();
        names.dedup();
        names.join(" ")
    };
    assert_eq!(names(), "a b");
    change(2, &["add"]);
    assert_eq!(names(), "a b c");
    change(0, &["remove"]);
    assert_eq!(names(), "b c");
    change(0, &["add"]);
    change(2, &["maint"]);
    assert_eq!(names(), "a b");
    change(2, &["ready"]);
    change(1, &["drain"]);
    assert_eq!(names(), "a c");
    change(2, &["remove"]);
    change(1, &["ready"]);
    assert_eq!(names(), "a b");
    let status = site.status();
    let left: Vec<&str> = status.acts.iter().map(|act| act.what.as_str()).collect();
    assert_eq!((left, status.generations.len(), site.generation()), (vec!["ready"], 1, 1));
}

#[test]
fn changes_outlive_a_worker_and_a_reload() {
    let origins = ["a", "b", "c"].map(Origin::named);
    let site = Site::run(&over(&origins[..2]));
    let (a, c) = (origins[0].url(), origins[2].url());
    for words in [["app", &c, "add"], ["app", &a, "remove"]] {
        assert_eq!(spoken(&site.folder().command("server", &words)).0, Some(0));
    }
    let is_so = || assert!(!site.names(8).contains('a') && site.names(8).contains('c'));
    is_so();
    site.reload_wholly();
    is_so();
    let before = site.worker();
    signal(before, Signal::KILL);
    eventually("another worker", || (site.worker() != before).then_some(()));
    is_so();
}

#[test]
fn a_drain_for_a_time_ends_in_maintenance_and_other_changes_end() {
    let origins = ["a", "b", "c"].map(Origin::named);
    let site = Site::run(&over(&origins[..2]));
    let urls = origins.each_ref().map(Origin::url);
    for (server, words) in [(0, &["drain"][..]), (1, &["weight", "3"]), (2, &["add"])] {
        let words = [&["app", &urls[server]], words, &["--for", "1s"]].concat();
        let output = spoken(&site.folder().command("server", &words));
        assert_eq!(output.0, Some(0), "{output:?}");
        assert!(output.1.ends_with(" for 1s from now on\n"), "{output:?}");
    }
    let left = eventually("their end", || {
        let acts = site.status().acts;
        (acts.len() == 1 && acts[0].what == "maint").then(|| acts.into_iter().next().unwrap())
    });
    assert_eq!((left.url, left.left_s), (urls[0].clone(), None));
    eventually("b alone", || (site.names(4) == "b b b b").then_some(()));
    assert_eq!(site.generation(), 1);
}

/// A worker that answers nothing: the change is kept, the operator hears so, and the next worker begins with it.
#[test]
fn a_change_that_no_worker_uses_is_kept() {
    let origins = ["a", "b"].map(Origin::named);
    let site = Site::run(&over(&origins));
    let before = site.worker();
    signal(before, Signal::STOP);
    let output = spoken(&site.folder().command("server", &["app", &origins[0].url(), "remove"]));
    assert_eq!((output.0, output.2.as_str()), (Some(0), ""));
    assert!(output.1.contains(" is removed: kept, but not in use yet after 5s\n"), "{}", output.1);
    signal(before, Signal::KILL);
    eventually("another worker", || (site.worker() != before).then_some(()));
    assert_eq!(site.names(4), "b b b b");
}
