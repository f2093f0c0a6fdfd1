//! A reload loses no request.

use super::*;

#[test]
fn no_request_is_lost_while_strategies_and_module_files_change() {
    const RELOADS: usize = 10;
    let origins = ["a", "b", "c"].map(Origin::named);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("lb.so");
    let of = |n: usize| {
        let id = ["round_robin", "least_request"][n / 2 % 2];
        over(&origins).module_file(id, &build_of(id, &file, n))
    };
    let site = Site::run(&of(0));
    let traffic = Traffic::start(site.address(), 4, 2);
    for n in 1..=RELOADS {
        traffic.goes_on_for(30);
        site.reload_with(&of(n));
        assert_eq!(site.generation(), n as u64 + 1);
    }
    traffic.goes_on_for(30);
    let served = traffic.ends_whole();
    let last = site.wait_for_only(RELOADS as u64 + 1);
    assert_eq!(last.modules[0].id, "least_request", "10 / 2 is odd");
    // Those that were replaced have told what they counted.
    let total = "trylist_requests_total{cluster=\"app\",code=\"200\"}";
    eventually("the total of all generations", || (site.metric(total) == served as f64).then_some(()));
    assert_eq!(
        origins.iter().map(|origin| origin.requests().len()).sum::<usize>(),
        served,
        "and none is repeated"
    );
}

#[test]
fn a_new_build_in_place_of_the_old_is_what_the_next_generation_loads() {
    let origins = ["a", "b"].map(Origin::named);
    let folder = tempfile::tempdir().unwrap();
    let (file, fresh) = (folder.path().join("lb.so"), folder.path().join("fresh.so"));
    let site = Site::run(&over(&origins).module_file("round_robin", &build_of("round_robin", &file, 0)));
    let traffic = Traffic::start(site.address(), 2, 1);
    let renamed = |n| {
        build_of("round_robin", &fresh, n);
        fs::rename(&fresh, &file).unwrap();
    };
    let copied = |n| drop(build_of("round_robin", &file, n));
    for (n, put) in [(1, &copied as &dyn Fn(usize)), (2, &renamed)] {
        let (old, before) = (short_hash(&file), site.serving());
        put(n);
        traffic.goes_on_for(50);
        assert_eq!(site.serving().modules, before.modules, "who runs is not disturbed");
        let said = site.reload();
        let version = before.modules[0].version.clone().unwrap();
        let changed = format!("module round_robin {version} ({old}) → {version} ({})", short_hash(&file));
        assert!(said.lines().any(|line| line == changed), "{changed}: {said}");
        site.running().logs(&changed);
        assert!(
            said.starts_with(&format!("generation {} serves (pid {}), ", n + 1, site.worker())),
            "{said}"
        );
    }
    traffic.ends_whole();
    let unchanged = site.reload();
    assert!(!unchanged.contains("round_robin"), "{unchanged}");
}

#[test]
fn another_strategy_is_told() {
    let origin = Origin::named("a");
    let site = Site::run(&over([&origin]).module("round_robin"));
    let said = site.reload_with(&over([&origin]).module("least_request"));
    let version = site.serving().modules[0].version.clone().unwrap();
    let hash = short_hash(&artifacts::module("least_request"));
    for line in
        [&format!("module least_request {version} ({hash}) is new"), "module round_robin is no longer loaded"]
    {
        assert!(said.lines().any(|said| said == line), "{line}: {said}");
    }
}

#[test]
fn threads_may_become_more_and_fewer() {
    let origins = ["a", "b"].map(Origin::named);
    let site = Site::run(&over(&origins));
    let traffic = Traffic::start(site.address(), 2, 2);
    for n in [5, 1, 3] {
        site.reload_with(&over(&origins).threads(n));
        let worker = site.worker();
        let serving =
            || threads(worker).into_iter().filter(|thread| thread.name.starts_with("worker-")).count();
        // Each gets its name as it begins to run.
        eventually("so many threads", || (serving() == n).then_some(()));
        // Each of the listener's sockets gets some of these; one that nobody reads would keep them.
        traffic.goes_on_for(100);
    }
    traffic.ends_whole();
}

#[test]
fn a_download_under_way_ends_whole() {
    const HALF: usize = 4 << 20;
    let gate = Gate::default();
    let origin = Origin::in_halves(HALF, &gate);
    let site = Site::run(&over([&origin]));
    let mut client = site.connect();
    assert_eq!(client.get("/").reply_head().status(), 200);
    assert!(client.bytes(HALF) == vec![1; HALF]);
    for _ in 0..2 {
        site.reload();
    }
    let states: Vec<String> = site.status().generations.into_iter().map(|each| each.state).collect();
    assert!(states.first().is_some_and(|first| first == "draining"), "{states:?}");
    gate.open();
    assert!(client.bytes(HALF) == vec![2; HALF]);
    // It would get one more answer.
    drop(client);
    site.wait_for_only(3);
}

#[test]
fn an_idle_connection_gets_one_more_answer() {
    let origin = Origin::named("a");
    let site = Site::run(&over([&origin]));
    let (mut idle, mut silent) = (site.connect(), site.connect());
    assert_eq!(idle.get("/").reply().header("connection"), None);
    let open = format!("trylist_open_connections{{listener=\"{}\"}}", site.address());
    eventually("both connections", || (site.metric(&open) == 2.0).then_some(()));
    site.reload();
    for client in [&mut idle, &mut silent] {
        is_answered_and_closed(client);
    }
    site.wait_for_only(2);
    assert_eq!(site.get("/").header("connection"), None);
}

#[test]
fn signals_reload_as_well() {
    let origin = Origin::named("a");
    let site = Site::run(&over([&origin]));
    for (n, signal, name) in [(2, Signal::HUP, "SIGHUP"), (3, Signal::USR1, "SIGUSR1")] {
        site.running().signal(signal);
        site.running().logs(&format!("{name}: starting a new generation from the current files"));
        site.wait_for_only(n);
        assert_eq!(site.names(2), "a a");
    }
}

#[test]
fn the_access_log_follows_a_rotation_after_a_reload() {
    let origin = Origin::named("a");
    let folder = tempfile::tempdir().unwrap();
    let (log, old) = (folder.path().join("access.log"), folder.path().join("access.log.1"));
    let site = Site::run(&over([&origin]).tables(&format!("[access_log]\npath = {log:?}")));
    let lines_of = |file: &Path, path: &str| {
        let text = fs::read_to_string(file).unwrap_or_default();
        text.lines().filter(|line| line.contains(path)).count()
    };
    let written = |file: &Path, path: &str| {
        eventually(&format!("{path} in the log"), || (lines_of(file, path) > 0).then_some(()));
    };
    site.get("/first");
    site.reload();
    site.get("/second");
    written(&log, "/second");
    fs::rename(&log, &old).unwrap();
    site.running().signal(Signal::USR2);
    eventually("a new file", || {
        site.get("/third");
        (lines_of(&log, "/third") > 0).then_some(())
    });
    assert_eq!((lines_of(&old, "/first"), lines_of(&old, "/second")), (1, 1));
    assert_eq!((lines_of(&log, "/first"), lines_of(&log, "/second")), (0, 0));
    site.reload();
    site.get("/fourth");
    written(&log, "/fourth");
}

#[test]
fn fifty_reloads_leave_nothing_behind() {
    let origin = Origin::named("a");
    // Which of the threads keeps a connection to the server is the kernel's to choose.
    let site = Site::run(&over([&origin]).in_cluster("keepalive = 0"));
    let supervisor = site.running().pid();
    let look = |generation| {
        let worker = site.wait_for_only(generation).pid;
        assert_eq!(site.workers(), [worker], "no process is left");
        assert_eq!(site.names(20), ["a"; 20].join(" "));
        // A client that has just let go may not be gone yet: what is looked for is what stays.
        let mut same = 0;
        let mut now = (BTreeMap::new(), BTreeMap::new());
        eventually("descriptors that stay the same", || {
            let then = std::mem::replace(&mut now, (descriptors(supervisor), descriptors(worker)));
            same = if then == now { same + 1 } else { 0 };
            // The supervisor has done with one command before it looks at the next.
            site.status();
            (same >= 30).then_some(())
        });
        (now, [supervisor, worker].map(|pid| proc_status(pid, "RssAnon")))
    };
    for _ in 0..10 {
        site.reload();
    }
    let (early, early_kib) = look(11);
    for _ in 0..50 {
        site.reload();
    }
    let (late, late_kib) = look(61);
    assert_eq!(late, early, "of supervisor and worker");
    // A page or two more come and go with each; fifty of anything that is kept would show.
    const NOISE_KIB: u64 = 1024;
    for (early, late) in early_kib.into_iter().zip(late_kib) {
        assert!(late < early + NOISE_KIB, "KiB of supervisor and worker: {early_kib:?}, then {late_kib:?}");
    }
}

/// The checked files are the ones that run. The supervisor has read all by the time that it asks the generation before for what it
/// learned, which does not answer.
#[test]
fn files_that_go_between_check_and_load_are_missed_by_nobody_but_the_next_reload() {
    let origin = Origin::named("a");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("misbehaves.so");
    fs::copy(artifacts::broken("misbehaves"), &file).unwrap();
    let builder = over([&origin]).module_file("misbehaves", &file);
    let site = Site::run(&builder.in_cluster("settings = { save = \"block\" }"));
    let config = PathBuf::from(site.folder().config());
    site.running().signal(Signal::HUP);
    site.running().logs("SIGHUP: starting a new generation from the current files");
    assert_eq!(site.generation(), 1, "which is told after the files are read");
    for path in [&file, &config] {
        fs::remove_file(path).unwrap();
    }
    signal(site.worker(), Signal::KILL);
    let second = site.wait_for_only(2);
    signal(second.pid, Signal::KILL);
    let third = site.wait_for_only(3);
    assert_eq!((&third.config_sha256, &third.modules), (&second.config_sha256, &second.modules));
    assert_eq!(site.names(2), "a a");
    site.running().signal(Signal::HUP);
    site.running().logs(&format!("{}: cannot be read: file not found", config.display()));
    site.running().logs("unchanged: generation 3 keeps serving");
    site.folder().write(&over([&origin]).module_file("misbehaves", &file).text());
    let (code, said) = site.fails_to_reload();
    assert!(code == Some(4) && said[0].contains(file.to_str().unwrap()), "{code:?} {said:?}");
    assert_eq!((site.worker(), site.names(2)), (third.pid, "a a".into()));
}

/// Learned state stays in memory, so no disk can be too full for it: every folder for temporary files is full here.
#[test]
fn a_disk_that_is_full_is_noticed_by_nobody() {
    let full = tempfile::tempdir().unwrap();
    const MUCH: usize = 200_000;
    let much = format!("HTTP/1.1 200 OK\r\nContent-Length: {MUCH}\r\n\r\n{}", "a".repeat(MUCH));
    let origins = [Origin::replying(much), Origin::named("b")];
    let folder = Folder::with(&over(&origins).module("by_traffic").text());
    let Some(mut command) = folder.run_with_small_disk(full.path(), "! cat /dev/zero > filler") else {
        return;
    };
    for variable in
        ["TMPDIR", "HOME", "XDG_RUNTIME_DIR", "XDG_STATE_HOME", "XDG_CACHE_HOME", "RUNTIME_DIRECTORY"]
    {
        command.env(variable, full.path());
    }
    let site = Site::start(folder, command);
    let there = format!("/proc/{}/cwd/more", site.worker());
    let refused = fs::write(there, [0; 8192]).map_err(|error| error.kind());
    assert_eq!(refused, Err(ErrorKind::StorageFull));
    assert_eq!(site.get("/").body.len(), MUCH);
    for _ in 0..2 {
        // It knows who has sent much, and whoever knows nothing begins with the first.
        assert_eq!(site.names(20), ["b"; 20].join(" "));
        site.reload_wholly();
    }
    assert_eq!(site.names(20), ["b"; 20].join(" "));
}
