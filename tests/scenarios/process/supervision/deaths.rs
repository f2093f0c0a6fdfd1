//! Modules that kill their worker.

use super::*;

/// The requests of the killed thread fail, and no others. The log names the module, though another thread is inside an innocent one.
#[track_caller]
fn is_named(misdeed: &str, death: &str) {
    const CLIENTS: usize = 4;
    let origin = Origin::named("a");
    let hold = Hold::new();
    let other = format!(
        "[[cluster]]\nname = \"other\"\nmodule = \"waits\"\nservers = [{:?}]\n[[route]]\npath = \"/other\"\ncluster = \"other\"",
        origin.url()
    );
    let builder = misbehaving([&origin]).and_broken("waits").route("path = \"/\"").tables(&other);
    let site = Site::run(&builder.top("supervision.module_time_limit = \"1h\""));
    let worker = site.worker();
    let mut innocent = site.connect();
    let mut guilty = on_another_thread(&site, &mut innocent, worker);
    let traffic = Traffic::start(site.address(), CLIENTS / 2, CLIENTS / 2);
    traffic.goes_on_for(20);
    innocent.send(hold.request("/other"));
    let _held = hold.is_inside();
    guilty.send(asking_for(misdeed));
    site.running().logs(&format!(
        "generation 1: its worker (pid {worker}) {death} while inside module \"misbehaves\" 1.0.0, cluster \"app\""
    ));
    innocent.end();
    guilty.end();
    site.wait_for_only(2);
    traffic.goes_on_for(20);
    let counts = traffic.end();
    assert!(counts.failed.len() <= CLIENTS, "one each, at most: {:?}", counts.failed);
    let is_cut = |what: &String| what.starts_with("Eof on ") || what.starts_with("Reset on ");
    assert!(counts.failed.iter().all(is_cut), "{:?}", counts.failed);
    assert_eq!(counts.served + counts.failed.len(), counts.sent);
    assert!(site.running().logged(&["inside module \"waits\""]).is_empty());
    assert_eq!((site.status().quarantine.len(), site.generation()), (0, 2), "once is not twice");
}

#[test]
fn a_module_that_reads_nowhere_is_named() {
    is_named("segfault", "died by SIGSEGV");
}

#[test]
fn a_module_that_aborts_is_named() {
    is_named("abort", "died by SIGABRT");
}

#[test]
fn a_module_that_exits_is_named() {
    is_named("exit", "exited unexpectedly with code 0");
}

#[test]
fn a_module_that_uses_up_its_stack_is_named() {
    is_named("overflow", "died by SIGSEGV");
}

/// This module kills every worker that asks it, and so it is not asked for long.
#[track_caller]
fn is_not_opened_for_long(fault: &str, death: &str) {
    let origins = ["a", "b"].map(Origin::named);
    let site = Site::run(&Proxy::over(&origins).named("app").threads(2).broken(fault));
    let traffic = Traffic::start(site.address(), 1, 2);
    traffic.goes_on_for(50);
    let counts = traffic.end();
    assert!(counts.failed.len() <= 2 * 3, "each client once a death, at most: {:?}", counts.failed);
    let module = fault.replace('-', "_");
    let inside = format!("{death} while inside module \"{module}\" 1.0.0, cluster \"app\"");
    let deaths = site.running().logged(&["its worker (pid ", &inside]);
    assert_eq!(deaths.len(), 2, "{deaths:#?}");
    assert_eq!(site.generation(), 3);
    assert!(origins.iter().all(|origin| !origin.requests().is_empty()), "the host spreads them");
}

#[test]
fn the_module_that_segfaults_is_not_opened_for_long() {
    is_not_opened_for_long("segfaults", "died by SIGSEGV");
}

#[test]
fn the_module_that_aborts_is_not_opened_for_long() {
    is_not_opened_for_long("aborts", "died by SIGABRT");
}

#[test]
fn a_file_that_killed_two_workers_is_in_quarantine_until_it_is_released() {
    let origins = ["a", "b"].map(Origin::named);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("misbehaves.so");
    fs::copy(artifacts::broken("misbehaves"), &file).unwrap();
    let site = Site::run(&misbehaving(&origins).module_file("misbehaves", &file));
    brings_down(&site, "segfault");
    brings_down(&site, "abort");
    let said = format!("module \"misbehaves\": {} (", file.display());
    assert!(site.running().logs(&said).contains("is in quarantine: 2 workers died of it within 60 s"));
    let is_held = |site: &Site| {
        let (serving, status) = (site.serving(), site.status());
        let held = status.quarantine.iter().any(|held| held.module == "misbehaves");
        assert_eq!(serving.modules[0].quarantined, held);
        assert_eq!(serving.modules[0].version.is_none(), held, "it is opened, or not");
        held
    };
    let survives = |misdeed: &str| site.connect().send(asking_for(misdeed)).reply().status() == 200;
    assert!(is_held(&site) && survives("segfault"), "nobody asks the module");
    site.reload();
    assert!(is_held(&site) && survives("exit"));
    let (_, status, _) = spoken(&site.folder().command("status", &[]));
    assert!(status.contains("quarantine: module misbehaves ("), "{status}");

    let (code, _, said) = spoken(&site.folder().command("module release", &["misbehave"]));
    assert_eq!(code, Some(1));
    assert_eq!(said, "module \"misbehave\" is not in quarantine (those are: misbehaves)\n");
    let (code, said, _) = spoken(&site.folder().command("module release", &["misbehaves"]));
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("module misbehaves is released from quarantine"), "{said}");
    assert!(said.contains("is out of quarantine"), "{said}");
    assert!(!is_held(&site));
    let (code, _, said) = spoken(&site.folder().command("module release", &["misbehaves"]));
    assert_eq!((code, said.as_str()), (Some(1), "module \"misbehaves\" is not in quarantine (none is)\n"));

    // Its deaths are forgiven, so that it takes two again.
    brings_down(&site, "segfault");
    assert!(!is_held(&site));
    brings_down(&site, "segfault");
    assert!(is_held(&site));
    let mut mended = fs::read(&file).unwrap();
    mended.extend(b"mended");
    fs::write(&file, mended).unwrap();
    let said = site.reload();
    assert!(said.contains(" → 1.0.0 ("), "{said}");
    assert!(!site.serving().modules[0].quarantined, "another file is another matter");
    brings_down(&site, "segfault");
}

#[test]
fn a_generation_that_a_new_module_kills_is_rolled_back() {
    let origins = ["a", "b"].map(Origin::named);
    let before = Proxy::over(&origins).named("app").threads(2).module("round_robin");
    let site = Site::run(&before);
    let old = site.serving();
    site.reload_with(&misbehaving(&origins));
    brings_down(&site, "segfault");
    site.running().logs("generation 2 is rolled back: a module killed it within its probation");
    let now = site.serving();
    assert_eq!((&now.config_sha256, &now.modules[0].id), (&old.config_sha256, &old.modules[0].id));
    assert_eq!(site.connect().send(asking_for("segfault")).reply().status(), 200);
    assert_eq!(site.generation(), 3);
    assert_eq!(site.status().quarantine, [], "once is not twice");
    // An operator who insists gets it again. But then twice is twice, and the generation with it is rolled back too.
    site.reload();
    assert_eq!(site.serving().modules[0].id, "misbehaves");
    brings_down(&site, "segfault");
    assert_eq!(site.serving().config_sha256, old.config_sha256);
    assert_eq!(site.status().quarantine.len(), 1);
}

#[test]
fn without_a_probation_nothing_is_rolled_back() {
    let origin = Origin::named("a");
    let site = Site::run(&Proxy::over([&origin]).named("app").module("round_robin"));
    site.reload_with(&misbehaving([&origin]).top("supervision.probation = \"0s\""));
    brings_down(&site, "segfault");
    assert_eq!(site.serving().modules[0].id, "misbehaves");
}

/// However often: a file that has only failed to start may be the very one that serves.
#[test]
fn a_module_that_dies_as_it_is_built_leaves_the_generation_before() {
    let origin = Origin::named("a");
    let site = Site::run(&Proxy::over([&origin]).named("app").module("round_robin"));
    let traffic = Traffic::start(site.address(), 1, 1);
    for (n, misdeed, death) in [
        (2, "segfault", "died by SIGSEGV"),
        (3, "exit", "exited unexpectedly with code 0"),
        (4, "abort", "died by SIGABRT"),
    ] {
        let settings = format!("settings = {{ build = \"{misdeed}\" }}");
        site.folder().write(&misbehaving([&origin]).in_cluster(&settings).text());
        let (code, said) = site.fails_to_reload();
        let why = format!(
            "generation {n} never served: its worker {death} while inside module \"misbehaves\", cluster \"app\""
        );
        assert_eq!((code, said[0].as_str(), said.len()), (Some(1), why.as_str(), 2), "{said:#?}");
        assert_eq!((site.generation(), site.status().quarantine), (1, Vec::new()));
    }
    traffic.ends_whole();
}

#[test]
fn a_first_generation_that_dies_is_the_end() {
    let origin = Origin::named("a");
    let folder = Folder::with(&misbehaving([&origin]).in_cluster("settings = { build = \"abort\" }").text());
    let (code, _, said) = spoken(&folder.run().output().unwrap());
    assert_eq!(code, Some(1), "{said}");
    let why = "generation 1 never served: its worker died by SIGABRT while inside module \"misbehaves\", cluster \"app\"";
    assert_eq!(said.lines().last().unwrap(), format!("trylist: {why}"));
    assert!(!folder.socket().exists());
}

#[test]
fn a_module_that_dies_as_it_is_dropped_takes_no_request_with_it() {
    let origin = Origin::named("a");
    let site = Site::run(&misbehaving([&origin]).in_cluster("settings = { drop = \"segfault\" }"));
    let traffic = Traffic::start(site.address(), 2, 1);
    traffic.goes_on_for(10);
    site.reload_with(&Proxy::over([&origin]).named("app").module("round_robin"));
    traffic.goes_on_for(10);
    site.wait_for_only(2);
    traffic.ends_whole();
}

#[test]
fn faults_cost_no_request_and_no_worker_and_show_in_the_status() {
    let origin = Origin::named("a");
    let site = Site::run(&misbehaving([&origin]).top("supervision.module_faults = 3"));
    let mut client = site.connect();
    for misdeed in ["panic", "out of range", "panic", "segfault"] {
        assert_eq!(client.send(asking_for(misdeed)).reply().status(), 200, "{misdeed}");
    }
    // The last one was not asked for any more.
    let serving = eventually("the faults in the status", || {
        Some(site.serving()).filter(|serving| serving.modules[0].faults == 3)
    });
    assert_eq!((serving.generation, serving.modules[0].quarantined), (1, false));
    drop(client);
    site.reload();
    brings_down(&site, "segfault");
}
