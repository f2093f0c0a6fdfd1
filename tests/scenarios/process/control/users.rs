//! Files and users.

use super::*;

#[test]
fn the_pid_file_is_there_as_long_as_the_proxy() {
    let origin = Origin::named("a");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("site.pid");
    let site = Site::run(&over([&origin]).top(&format!("pid_file = {file:?}")));
    let pid = format!("{}\n", site.running().pid());
    assert_eq!(fs::read_to_string(&file).unwrap(), pid);
    site.reload();
    assert_eq!(fs::read_to_string(&file).unwrap(), pid);
    site.folder().command("stop", &[]);
    assert_eq!(site.end().0, Some(0));
    assert!(!file.exists());
}

#[test]
fn a_pid_file_that_cannot_be_written_is_said() {
    let origin = Origin::named("a");
    let folder = Folder::with(&over([&origin]).top("pid_file = \"/no/such/folder/pid\"").text());
    let (code, _, said) = spoken(&folder.run().output().unwrap());
    assert_eq!((code, said.lines().count()), (Some(1), 1), "{said}");
    assert!(said.starts_with("trylist: pid_file \"/no/such/folder/pid\": "), "{said}");
    assert!(!folder.socket().exists());
}

/// A copy of the configuration has a control socket of its own, but the same pid file.
#[test]
fn a_second_start_that_fails_leaves_the_first_ones_pid_file() {
    let origin = Origin::named("a");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("site.pid");
    let key = format!("pid_file = {file:?}");
    let site = Site::run(&over([&origin]).top(&key));
    let pid = site.running().pid();
    // As a second start of one service is: with the same listener.
    let text = over([&origin]).top(&key).text();
    let second = Folder::with(&text.replacen("127.0.0.1:0", &site.address().to_string(), 1));
    let (code, _, said) = spoken(&second.run().output().unwrap());
    assert_eq!(code, Some(1));
    let why = format!("is in use by a running proxy (pid {pid}); name another file");
    assert_eq!(said, format!("trylist: pid_file {file:?}: {why}\n"));
    assert_eq!(fs::read_to_string(&file).unwrap(), format!("{pid}\n"));
}

#[test]
fn workers_become_who_the_configuration_says_and_reloads_go_on() {
    const NOBODY: u64 = 65534;
    if !is_root("become somebody") {
        return;
    }
    let origin = Origin::named("a");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("round_robin.so");
    fs::copy(artifacts::module("round_robin"), &file).unwrap();
    fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    let log = folder.path().join("access.log");
    let port = low_port();
    let text = |more: &str| {
        let builder = over([&origin]).module_file("round_robin", &file);
        let builder = builder.top(&format!("user = \"{NOBODY}\"\ngroup = \"{NOBODY}\""));
        let builder = builder.tables(&format!("[access_log]\npath = {log:?}\n{more}"));
        builder.text().replacen("127.0.0.1:0", &format!("127.0.0.1:{port}"), 1)
    };
    let site = Site::of(&text(""));
    assert_eq!(site.address().port(), port);
    let is_dropped = || {
        let worker = site.worker();
        let ids = (proc_status(worker, "Uid"), proc_status(worker, "Gid"), proc_status(worker, "Groups"));
        assert_eq!((ids, proc_status(worker, "NoNewPrivs")), ((NOBODY, NOBODY, NOBODY), 1));
        assert_eq!(proc_status(site.running().pid(), "Uid"), 0);
        assert_eq!(site.get("/").text(), "a");
    };
    is_dropped();
    site.reload_wholly();
    is_dropped();
    // The supervisor binds the sockets of a reload.
    let more = low_port();
    site.folder().write(&text(&format!("[[listener]]\naddress = \"127.0.0.1:{more}\"")));
    site.reload_wholly();
    is_dropped();
    assert_eq!(Client::connect(([127, 0, 0, 1], more).into()).get("/").reply().text(), "a");
    site.running().signal(Signal::USR2);
    site.get("/logged");
    let written = || fs::read_to_string(&log).unwrap().contains("/logged").then_some(());
    eventually("the access log goes on", written);
}

#[test]
fn a_user_that_is_not_there_is_said() {
    if !is_root("become somebody") {
        return;
    }
    let origin = Origin::named("a");
    let site = Site::run(&over([&origin]));
    site.folder().write(&over([&origin]).top("user = \"no-such-user\"").text());
    let (code, said) = site.fails_to_reload();
    assert_eq!((code, said.len()), (Some(1), 2), "{said:?}");
    assert!(said[0].ends_with("site.toml:3: there is no user \"no-such-user\""), "{said:?}");
}

#[test]
fn lists_of_processes_tell_the_supervisor_from_its_workers() {
    let origin = Origin::named("a");
    let site = Site::run(&over([&origin]));
    let comm = |pid: u32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
    let arguments = |pid: u32| fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
    assert_eq!(comm(site.worker()), "trylist-worker\n");
    assert!(arguments(site.worker()).starts_with("trylist\0worker\0"), "{}", arguments(site.worker()));
    assert_eq!(comm(site.running().pid()), "trylist\n");
}
