//! Workers that a module ends past the handler of signals, or from a thread of its own: who is blamed, and what is rolled back.

use rustix::process::Signal;
use tests::origin::Origin;
use tests::proxy::{Builder, Proxy};
use tests::site::{Site, signal};
use tests::traffic::Traffic;
use tests::{artifacts, eventually};

/// A module that does this in that call, for a request to `/boom`.
fn fault(origin: &Origin, at: &str, does: &str) -> Builder {
    let settings = format!("settings = {{ at = \"{at}\", does = \"{does}\" }}");
    Proxy::over([origin])
        .named("app")
        .threads(2)
        .module_file("fault", &artifacts::fault(&[]))
        .in_cluster(&settings)
}

/// The same without the sandbox, which tells who exits.
fn unconfined(origin: &Origin, at: &str, does: &str) -> Builder {
    fault(origin, at, does).top("supervision.sandbox = \"off\"")
}

/// Has it do that, which ends the worker, and waits for the next one.
#[track_caller]
fn brings_down(site: &Site) {
    let before = site.wait_for_only(site.generation()).generation;
    site.connect().get("/boom").rest();
    eventually("the next generation", || (site.generation() > before).then_some(()));
}

/// Nothing tells who ended the worker. The only module that a thread was inside of is suspected, and twice is enough.
#[track_caller]
fn is_suspected(does: &str, death: &str) {
    let origin = Origin::named("a");
    let site = Site::run(&unconfined(&origin, "next", does));
    brings_down(&site);
    let said = format!(
        "generation 1: its worker (pid PID) {death}, probably by module \"fault\" 1.0.0, cluster \"app\", the only one that a \
         thread was inside of"
    );
    let (before, after) = said.split_once("PID").unwrap();
    assert_eq!(site.running().logged(&[before, after]).len(), 1);
    assert_eq!(site.status().quarantine, [], "once may be chance");
    brings_down(&site);
    assert_eq!(site.status().quarantine.len(), 1);
    assert_eq!(site.connect().get("/boom").reply().text(), "a", "nobody asks it");
}

#[test]
fn a_module_that_exits_at_once_is_suspected() {
    is_suspected("_exit_7", "exited unexpectedly with code 7");
}

#[test]
fn a_module_that_takes_the_handler_away_is_suspected() {
    is_suspected("default_segv", "died by SIGSEGV");
    is_suspected("ignore_segv", "died by SIGSEGV");
    is_suspected("block_segv", "died by SIGSEGV");
}

#[test]
fn a_module_that_takes_the_handlers_stack_away_is_suspected() {
    is_suspected("no_altstack", "died by SIGSEGV");
}

#[test]
fn a_limit_of_one_death_is_for_what_is_certain() {
    let origin = Origin::named("a");
    let top = "supervision.module_deaths = 1";
    let site = Site::run(&unconfined(&origin, "next", "_exit_0").top(top));
    brings_down(&site);
    assert_eq!(site.status().quarantine, []);
    let site = Site::run(&fault(&origin, "next", "segv").top(top));
    brings_down(&site);
    assert_eq!(site.status().quarantine.len(), 1);
}

/// The instruction says whose code it was, whatever thread it ran on.
#[test]
fn a_thread_of_a_modules_own_is_known_by_its_code() {
    let origin = Origin::named("a");
    let site = Site::run(&fault(&origin, "next", "thread_segv"));
    brings_down(&site);
    let lines = site.running().logged(&["died by SIGSEGV in code of module \"fault\" 1.0.0 (fault.so+0x"]);
    assert_eq!(lines.len(), 1, "{lines:?}");
    brings_down(&site);
    assert_eq!(site.status().quarantine.len(), 1);
}

#[test]
fn the_log_says_where_in_its_file_a_module_died() {
    let origin = Origin::named("a");
    let site = Site::run(&fault(&origin, "finish", "segv"));
    brings_down(&site);
    let lines = site.running().logged(&["while inside module \"fault\" 1.0.0, cluster \"app\" (fault.so+0x"]);
    assert_eq!(lines.len(), 1, "{lines:?}");
}

/// However often another one ends the worker: from its own call, or from a thread that nobody knows of.
#[track_caller]
fn is_not_suspected_beside(does: &str) {
    const DEATHS: usize = 4;
    let origin = Origin::named("a");
    let slow = artifacts::fault(&["ID=\"slow\""]);
    let builder = Proxy::over([&origin])
        .named("app")
        .threads(2)
        .module_file("slow", &slow)
        .in_cluster("settings = { at = \"always\", does = \"sleep_10ms\" }")
        .route("path = \"/\"")
        .top("supervision = { module_time_limit = \"100ms\", module_deaths = 100, sandbox = \"off\" }")
        .and_module_file("fault", &artifacts::fault(&[]))
        .tables(&format!(
            "[[cluster]]\nname = \"other\"\nmodule = \"fault\"\nservers = [{:?}]\n\
             settings = {{ at = \"next\", does = \"{does}\" }}\n[[route]]\npath = \"/boom\"\ncluster = \"other\"",
            origin.url()
        ));
    let site = Site::run(&builder);
    let traffic = Traffic::start(site.address(), 4, 4);
    for _ in 0..DEATHS {
        traffic.goes_on_for(200);
        let before = site.generation();
        site.connect().get("/boom").rest();
        eventually("the next generation", || (site.generation() > before).then_some(()));
    }
    traffic.end();
    let deaths = site.running().logged(&["its worker (pid ", ") exited unexpectedly"]);
    assert!(deaths.len() >= DEATHS, "{deaths:?} {:#?}", site.running().logged(&["generation "]));
    let suspected: Vec<_> =
        deaths.iter().filter(|line| line.contains("probably by module \"slow\"")).collect();
    assert!(suspected.is_empty(), "{suspected:#?}");
}

#[test]
fn a_slow_module_beside_one_that_exits_is_not_suspected() {
    is_not_suspected_beside("_exit_0");
}

#[test]
fn a_slow_module_beside_one_whose_thread_exits_is_not_suspected() {
    is_not_suspected_beside("thread_exit");
    is_not_suspected_beside("thread__exit");
}

/// It says why, and that the files of the generation before serve again.
#[track_caller]
fn is_rolled_back(site: &Site, why: &str) {
    let said = format!("is rolled back: {why}; the files of the generation before serve again");
    site.running().logs(&said);
}

#[test]
fn what_dies_of_its_own_thread_is_rolled_back_where_settings_are_new() {
    let origin = Origin::named("a");
    let site = Site::run(&fault(&origin, "never", "spin"));
    let old = site.serving().config_sha256;
    site.reload_with(&unconfined(&origin, "next", "thread__exit"));
    brings_down(&site);
    is_rolled_back(&site, "it died within its probation, and modules or their settings have changed");
    assert_eq!(site.serving().config_sha256, old);
    assert_eq!(site.connect().get("/boom").reply().text(), "a");
    assert_eq!(site.status().quarantine, []);
}

#[test]
fn what_dies_by_new_settings_of_a_known_file_is_rolled_back() {
    let origin = Origin::named("a");
    let site = Site::run(&fault(&origin, "never", "spin"));
    site.reload_with(&fault(&origin, "next", "segv"));
    brings_down(&site);
    is_rolled_back(&site, "a module killed it within its probation");
    assert_eq!(site.connect().get("/boom").reply().text(), "a");
    site.reload_with(&unconfined(&origin, "next", "_exit_0"));
    brings_down(&site);
    is_rolled_back(&site, "a module probably killed it within its probation");
}

#[test]
fn what_is_killed_is_rolled_back_where_files_are_new() {
    let origin = Origin::named("a");
    let site = Site::run(&Proxy::over([&origin]).named("app").threads(2).module("round_robin"));
    let killed = |site: &Site| {
        let before = site.wait_for_only(site.generation()).generation;
        signal(site.worker(), Signal::KILL);
        eventually("the next generation", || (site.generation() > before).then_some(()));
    };
    site.reload_with(&fault(&origin, "never", "spin"));
    killed(&site);
    is_rolled_back(&site, "it was killed within its probation, and module files have changed");
    assert_eq!(site.serving().modules[0].id, "round_robin");
    site.reload_with(&Proxy::over([&origin]).named("app").threads(1).module("round_robin"));
    killed(&site);
    assert_eq!(site.running().logged(&["is rolled back"]).len(), 1, "nothing of modules is new");
}
