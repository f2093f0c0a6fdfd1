//! Effects of modules on the rest of the machine: nothing where they are confined, and nothing that stays where they are not.

use rustix::process::{Signal, getuid};
use tests::origin::Origin;
use tests::proxy::{Builder, Proxy};
use tests::site::{Site, children, signal, spoken};
use tests::{artifacts, eventually};

/// A module that does this for a request to `/boom`, and logs what the system said to it.
fn fault(origin: &Origin, does: &str) -> Builder {
    let settings = format!("settings = {{ at = \"next\", does = \"{does}\" }}");
    let fault = artifacts::fault(&[]);
    Proxy::over([origin]).named("app").threads(2).module_file("fault", &fault).in_cluster(&settings)
}

/// The end of the line that the module logs when it is set off, which costs no request.
#[track_caller]
fn says(site: &Site, begins: &str) -> String {
    assert_eq!(site.get("/boom").text(), "a");
    let said = site.running().logs(&format!("{begins}: "));
    assert_eq!(site.get("/").text(), "a");
    said.split_ascii_whitespace().next().unwrap_or_default().to_owned()
}

#[test]
fn modules_start_no_processes_and_trace_none() {
    let origin = Origin::named("a");
    for (does, call) in [
        ("fork_pause", "fork"),
        ("exec_", "exec"),
        ("system_", "system"),
        ("trace_parent", "ptrace"),
        ("unshare_", "unshare"),
        ("no_files", "setrlimit"),
    ] {
        let site = Site::run(&fault(&origin, does));
        let said = says(&site, call);
        assert_eq!(said, "EPERM", "{does}");
        assert_eq!(children(site.running().pid()), [site.worker()]);
        assert!(children(site.worker()).is_empty());
    }
}

/// A kernel without Landlock says so in the status.
#[test]
fn modules_write_no_files_and_read_them() {
    let origin = Origin::named("a");
    let site = Site::run(&fault(&origin, "write_file"));
    let (_, status, _) = spoken(&site.folder().command("status", &[]));
    let sandbox = site.serving().sandbox.unwrap();
    assert!(status.contains(&format!("\n  sandbox: {sandbox}\n")), "{status}");
    if !sandbox.starts_with("files by Landlock") {
        eprintln!("skipped: {sandbox}");
        return;
    }
    assert_eq!(says(&site, "create"), "EACCES");
    let site = Site::run(&fault(&origin, "read_file"));
    assert_eq!(says(&site, "read"), "done");
    let version: u32 =
        sandbox.trim_start_matches(|c: char| !c.is_ascii_digit()).split(',').next().unwrap().parse().unwrap();
    if version >= 6 {
        let site = Site::run(&fault(&origin, "stop_parent"));
        assert_eq!(says(&site, "kill"), "EPERM");
    }
}

#[test]
fn a_sandbox_can_be_switched_off() {
    let origin = Origin::named("a");
    let site = Site::run(&fault(&origin, "write_file").top("supervision.sandbox = \"off\""));
    assert_eq!(site.serving().sandbox.as_deref(), Some("off"));
    assert_eq!(says(&site, "create"), "done");
}

#[test]
fn a_module_that_exits_is_named_whatever_way_it_exits() {
    let origin = Origin::named("a");
    for (does, named) in [
        ("_exit_7", "with code 7 while inside module \"fault\" 1.0.0, cluster \"app\" (fault.so+0x"),
        ("handled_segv", "with code 0 while inside module \"fault\" 1.0.0, cluster \"app\" (fault.so+0x"),
        ("thread__exit", "with code 0 in code of module \"fault\" 1.0.0 (fault.so+0x"),
    ] {
        let site = Site::run(&fault(&origin, does));
        site.connect().get("/boom").rest();
        site.running().logs(&format!("exited unexpectedly {named}"));
        eventually("the next generation", || (site.generation() > 1).then_some(()));
    }
}

/// A child has the listening sockets, and would take connections that it never answers.
#[track_caller]
fn leaves_nothing(does: &str, n_left: usize) {
    let origin = Origin::named("a");
    let site = Site::run(&fault(&origin, does).top("supervision.sandbox = \"off\""));
    let worker = site.worker();
    assert_eq!(site.get("/boom").text(), "a");
    let below = || {
        let own = children(site.running().pid()).into_iter().chain(children(worker));
        own.filter(|pid| *pid != worker).collect::<Vec<_>>()
    };
    eventually("the processes that it starts", || (below().len() >= n_left).then_some(()));
    signal(worker, Signal::KILL);
    site.wait_for_only(2);
    eventually("only the worker", || (children(site.running().pid()) == [site.worker()]).then_some(()));
    assert_eq!(site.get("/boom").text(), "a");
    let stopped = site.folder().command("stop", &[]);
    assert_eq!(spoken(&stopped).0, Some(0));
    let session = site.running().pid();
    let (code, said) = site.end();
    assert_eq!(code, Some(0), "{said}");
    assert!(children(session).is_empty());
    // Those in the worker's process group end before anybody could count them.
    let is_told = said.contains("a process was left behind by a module or by a command: \"worker-");
    assert!(is_told || does != "fork_twice", "{said}");
}

#[test]
fn children_of_modules_end_with_their_worker() {
    leaves_nothing("fork_pause", 1);
}

#[test]
fn children_that_left_the_workers_group_end_with_it_too() {
    leaves_nothing("fork_twice", 1);
    leaves_nothing("system_", 1);
}

/// As a worker that gave its rights up.
#[test]
fn a_worker_that_changed_its_user_is_confined_as_well() {
    if !getuid().is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    let origin = Origin::named("a");
    let site = Site::run(&fault(&origin, "write_file").top("user = \"nobody\""));
    if site.serving().sandbox.is_some_and(|sandbox| sandbox.starts_with("files by Landlock")) {
        assert_eq!(says(&site, "create"), "EACCES");
    }
}
