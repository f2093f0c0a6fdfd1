//! A new generation takes over from the one that serves: with nothing lost, or not at all; and with what was learned.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::Signal;
use sha2::{Digest as _, Sha256};
use tests::client::Client;
use tests::origin::Origin;
use tests::proxy::{Builder, Proxy};
use tests::site::{Folder, Site, descriptors, proc_status, signal, spoken, threads};
use tests::stream::End;
use tests::traffic::Traffic;
use tests::{Gate, artifacts, eventually};

/// In front of these servers, with a cluster named `app`.
fn over<'a>(origins: impl IntoIterator<Item = &'a Origin>) -> Builder {
    Proxy::over(origins).named("app").threads(2)
}

/// A file like a module's, but not the same: what stands behind the end of an ELF file is read by nobody.
fn build_of(id: &str, to: &Path, n: usize) -> PathBuf {
    let mut bytes = fs::read(artifacts::module(id)).unwrap();
    bytes.extend(format!("build {n}").bytes());
    fs::write(to, bytes).unwrap();
    to.to_owned()
}

/// As the log names a file's hash.
fn short_hash(file: &Path) -> String {
    let hash = Sha256::digest(fs::read(file).unwrap());
    format!("{:02x}{:02x}…", hash[0], hash[1])
}

/// Answers with its name, once the gate is open.
fn gated(name: &'static str, gate: &Gate) -> Origin {
    let gate = gate.clone();
    Origin::serving(move |conn| {
        while conn.request().is_some() {
            gate.wait();
            conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len()));
        }
    })
}

/// A connection to a generation that has been replaced: every request is answered, and one says that it is the last, at the
/// latest once the worker has heard of its own end.
#[track_caller]
fn is_answered_and_closed(client: &mut Client) {
    eventually("the last answer", || {
        let reply = client.get("/").reply();
        assert_eq!((reply.status(), reply.text().as_str()), (200, "a"));
        reply.header("connection").map(|said| assert_eq!(said, "close"))
    });
    assert_eq!(client.end(), End::Eof);
}

// ---- nothing is lost -------------------------------------------------------------------------------------------------

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
    let origin = Origin::serving({
        let gate = gate.clone();
        move |conn| {
            conn.request();
            conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", 2 * HALF));
            conn.send(vec![1; HALF]);
            gate.wait();
            conn.send(vec![2; HALF]);
        }
    });
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
fn a_listener_comes_and_goes_with_the_configuration() {
    let origin = Origin::named("a");
    let site = Site::run(&over([&origin]));
    let more = over([&origin]).tables("[[listener]]\naddress = \"127.0.0.1:0\"");
    site.reload_with(&more);
    let listeners: Vec<SocketAddr> =
        site.status().listeners.iter().map(|address| address.parse().unwrap()).collect();
    assert_eq!((listeners.len(), listeners[0]), (2, site.address()));
    let traffic = Traffic::start(site.address(), 1, 1);
    let mut kept = Client::connect(listeners[1]);
    assert_eq!(kept.get("/").reply().text(), "a");
    site.reload_with(&more);
    is_answered_and_closed(&mut kept);
    // Clients that have connected by now are served, accepted or not.
    let mut late: Vec<Client> = (0..20).map(|_| Client::connect(listeners[1])).collect();
    site.reload_with(&over([&origin]));
    for client in &mut late {
        is_answered_and_closed(client);
    }
    eventually("the listener is closed", || Client::try_connect(listeners[1]).err());
    assert_eq!(site.status().listeners, [site.address().to_string()]);
    traffic.ends_whole();
}

/// A port of this site's own, and its configuration with these further listeners.
fn with_port(site: &Site, origin: &Origin) -> (u16, impl Fn(&[String]) -> Builder) {
    let listener = |address: &str| format!("[[listener]]\naddress = \"{address}\"");
    site.reload_with(&over([origin]).tables(&listener("127.0.0.1:0")));
    let port = site.status().listeners[1].parse::<SocketAddr>().unwrap().port();
    let origin = origin.url();
    let with = move |addresses: &[String]| {
        let builder = Proxy::over_urls([&origin]).named("app").threads(2);
        addresses.iter().fold(builder, |builder, address| builder.tables(&listener(address)))
    };
    (port, with)
}

#[test]
fn a_listener_that_is_removed_can_come_back_at_once() {
    let origin = Origin::named("a");
    let site = Site::run(&over([&origin]));
    let (port, with) = with_port(&site, &origin);
    let address = format!("127.0.0.1:{port}");
    for _ in 0..3 {
        site.reload_with(&with(std::slice::from_ref(&address)));
        assert_eq!(Client::connect(address.parse().unwrap()).get("/").reply().text(), "a");
        site.reload_with(&with(&[]));
        assert_eq!(site.status().listeners, [site.address().to_string()]);
    }
    site.reload_with(&with(std::slice::from_ref(&address)));
    // The generations that read it before end, and the port stays.
    site.wait_for_only(9);
    assert_eq!(Client::connect(address.parse().unwrap()).get("/").reply().text(), "a");
}

#[test]
fn a_listener_can_move_between_one_address_and_all_of_a_port() {
    let origin = Origin::named("a");
    let site = Site::run(&over([&origin]));
    let (port, with) = with_port(&site, &origin);
    let [one, all] = ["127.0.0.1", "0.0.0.0"].map(|ip| format!("{ip}:{port}"));
    let traffic = Traffic::start(site.address(), 1, 1);
    for address in [&one, &all, &one, &one, &all] {
        site.reload_with(&with(std::slice::from_ref(address)));
        assert_eq!(Client::connect(one.parse().unwrap()).get("/").reply().text(), "a", "at {address}");
    }
    // The more exact one is asked first.
    site.reload_with(&with(&[all.clone(), one.clone()]));
    site.wait_for_only(8);
    for ip in [[127, 0, 0, 1], [127, 0, 0, 2]] {
        assert_eq!(Client::connect((ip, port).into()).get("/").reply().text(), "a");
    }
    traffic.ends_whole();
}

#[test]
fn the_admin_listener_can_move_between_one_address_and_all_of_a_port() {
    let origin = Origin::named("a");
    let site = Site::run(&over([&origin]));
    let port = site.status().admin.unwrap().parse::<SocketAddr>().unwrap().port();
    for ip in ["127.0.0.1", "0.0.0.0", "127.0.0.1", "0.0.0.0"] {
        let admin = |ip: &str, port: u16| format!("[admin]\naddress = \"{ip}:{port}\"");
        let text = over([&origin]).text();
        site.folder().write(&text.replace(&admin("127.0.0.1", 0), &admin(ip, port)));
        site.reload();
        assert_eq!(site.status().admin, Some(format!("{ip}:{port}")));
        assert_eq!(site.admin("/healthz").status(), 200);
    }
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

/// Saved state is a gift: a balancer that cannot use it starts without.
#[test]
fn a_module_that_cannot_use_what_was_saved_starts_without() {
    let origin = Origin::named("a");
    let builder = |build: &str| {
        let builder = Proxy::over([&origin]).named("app").threads(2).broken("misbehaves");
        builder.in_cluster(&format!("settings = {{ build = \"{build}\" }}"))
    };
    let site = Site::run(&builder(""));
    let traffic = Traffic::start(site.address(), 2, 1);
    for (misdeed, why) in
        [("refuse what was saved", "this is of another form"), ("panic at what was saved", "unknown byte 97")]
    {
        site.reload_with(&builder(misdeed));
        let cannot =
            "cluster \"app\": module \"misbehaves\" cannot use its saved state and starts without it: ";
        eventually("a line", || (site.running().logged(&[cannot, why]).len() == 1).then_some(()));
        assert_eq!(site.names(2), "a a");
    }
    traffic.ends_whole();
}

/// A module does not get saved state that it cannot read. One line says so, and no request notices.
#[track_caller]
fn is_not_handed_over(before: &Path, after: &Path, why: &str) {
    let origin = Origin::named("a");
    let of = |file: &Path| over([&origin]).module_file("misbehaves", file);
    let site = Site::run(&of(before));
    let traffic = Traffic::start(site.address(), 2, 1);
    traffic.goes_on_for(20);
    let said = site.reload_with(&of(after));
    assert!(said.starts_with("generation 2 serves"), "{said}");
    traffic.goes_on_for(20);
    traffic.ends_whole();
    let cold = format!("saved state {why}: starting without it");
    site.running().logs(&cold);
    let begins_with = "begins with what was saved: app";
    assert_eq!(site.running().logged(&[begins_with]), [""; 0]);
    // The next one of its kind has its saved state.
    site.reload();
    site.running().logs(begins_with);
    assert_eq!(site.running().logged(&[&cold]).len(), 1);
}

#[test]
fn what_another_version_of_a_module_saved_is_not_handed_to_it() {
    let [one, two] = ["misbehaves", "misbehaves-anew"].map(artifacts::broken);
    is_not_handed_over(&one, &two, "is of version 1, not 2");
}

#[test]
fn what_was_saved_as_rubbish_is_not_handed_to_a_module() {
    let [rubbish, sealed] = ["saves-rubbish", "misbehaves"].map(artifacts::broken);
    is_not_handed_over(&rubbish, &sealed, "is damaged");
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
    let path = full.path().to_str().unwrap();
    let can_mount = Command::new("unshare").args(["--mount", "mount", "-t", "tmpfs", "none", path]).output();
    if !can_mount.is_ok_and(|output| output.status.success()) {
        println!("skipped: only root can mount a disk to fill");
        return;
    }
    const MUCH: usize = 200_000;
    let much = format!("HTTP/1.1 200 OK\r\nContent-Length: {MUCH}\r\n\r\n{}", "a".repeat(MUCH));
    let origins = [Origin::replying(much), Origin::named("b")];
    let folder = Folder::with(&over(&origins).module("by_traffic").text());
    let run = folder.run();
    let fill =
        "mount -t tmpfs -o size=64k none \"$0\" && cd \"$0\" && ! cat /dev/zero > filler && exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", fill, path]).arg(run.get_program()).args(run.get_args());
    for variable in
        ["TMPDIR", "HOME", "XDG_RUNTIME_DIR", "XDG_STATE_HOME", "XDG_CACHE_HOME", "RUNTIME_DIRECTORY"]
    {
        command.env(variable, path);
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

// ---- or nothing changes ----------------------------------------------------------------------------------------------

/// This configuration is refused, and the generation that serves does not notice.
#[track_caller]
fn changes_nothing(builder: &Builder, origin: &Origin, exit: i32, lines: &[&str]) {
    let site = Site::run(&over([origin]));
    let before = site.serving();
    let traffic = Traffic::start(site.address(), 2, 1);
    site.folder().write(&builder.text());
    let (code, said) = site.fails_to_reload();
    assert_eq!((code, said.len()), (Some(exit), lines.len() + 1), "{said:#?}");
    for (said, expected) in said.iter().zip(lines) {
        assert!(said.contains(expected), "{expected}: {said:#?}");
        site.running().logs(expected);
    }
    assert_eq!(said.last().unwrap(), "unchanged: generation 1 keeps serving");
    site.running().logs("new generation failed; unchanged: generation 1 keeps serving");
    traffic.goes_on_for(30);
    traffic.ends_whole();
    let after = site.wait_for_only(1);
    assert_eq!(
        (after.pid, after.config_sha256, after.modules),
        (before.pid, before.config_sha256, before.modules)
    );
    site.reload_with(&over([origin]));
}

#[test]
fn a_configuration_that_is_refused_changes_nothing() {
    let origin = Origin::named("a");
    let builder = over([&origin]).in_cluster("modul = 1\nqueue = -1");
    changes_nothing(&builder, &origin, 3, &["unknown key \"modul\"", "queue"]);
}

/// Not even where the control socket is can be read from it as a whole.
#[test]
fn a_configuration_that_is_no_toml_changes_nothing() {
    let origin = Origin::named("a");
    let site = Site::run(&over([&origin]));
    site.folder().write("[[listener]\naddress =");
    let (code, said) = site.fails_to_reload();
    assert_eq!((code, said.len()), (Some(3), 2), "{said:#?}");
    assert!(said[0].starts_with(&format!("{}:2: ", site.folder().config())), "{said:#?}");
    assert_eq!(site.generation(), 1);
}

#[test]
fn a_module_file_that_is_missing_changes_nothing() {
    let origin = Origin::named("a");
    let builder = over([&origin]).module_file("round_robin", Path::new("/no/such/module.so"));
    changes_nothing(&builder, &origin, 4, &["/no/such/module.so"]);
}

#[test]
fn a_module_that_refuses_its_settings_changes_nothing() {
    let origin = Origin::named("a");
    let builder = over([&origin]).broken("refuses-settings").in_cluster("settings = { a = 1 }");
    changes_nothing(&builder, &origin, 4, &["cluster \"app\""]);
}

#[test]
fn a_module_that_panics_when_it_is_built_changes_nothing() {
    let origin = Origin::named("a");
    changes_nothing(&over([&origin]).broken("panics-in-build"), &origin, 4, &["cannot be built"]);
}

#[test]
fn an_address_in_use_changes_nothing() {
    let origin = Origin::named("a");
    let listener = format!("[[listener]]\naddress = \"{}\"", origin.address());
    let said = format!("listener \"{}\": address in use", origin.address());
    changes_nothing(&over([&origin]).tables(&listener), &origin, 1, &[&said]);
}

#[test]
fn a_generation_that_is_not_ready_in_time_changes_nothing() {
    let origin = Origin::named("a");
    let builder = over([&origin]).broken("misbehaves").in_cluster("settings = { build = \"block\" }");
    let builder = builder.top("supervision.start_timeout = \"300ms\"");
    let said =
        "generation 2 is not ready after 300ms; a thread is inside module \"misbehaves\", cluster \"app\"";
    changes_nothing(&builder, &origin, 1, &[said]);
}

#[test]
fn an_access_log_that_cannot_be_opened_changes_nothing() {
    let origin = Origin::named("a");
    let builder = over([&origin]).tables("[access_log]\npath = \"/no/such/folder/access.log\"");
    changes_nothing(&builder, &origin, 1, &["access log \"/no/such/folder/access.log\": "]);
}

// ---- what was learned goes on ----------------------------------------------------------------------------------------

#[test]
fn changes_of_operators_stay_until_the_configuration_says_something_new() {
    let origins = ["a", "b"].map(Origin::named);
    let site = Site::run(&over(&origins).module("round_robin"));
    let mark = |origin: usize, words: &[&str]| {
        let url = origins[origin].url();
        let output = site.folder().command("server", &[&["app", &url], words].concat());
        assert_eq!(output.status.code(), Some(0), "{output:?}");
    };
    mark(0, &["drain"]);
    assert_eq!(site.names(4), "b b b b");
    site.reload_wholly();
    assert_eq!(site.names(4), "b b b b");
    mark(0, &["ready"]);
    mark(1, &["weight", "3"]);
    assert_eq!((site.generation(), site.status().generations.len()), (2, 1), "a weight starts none");
    let n_b = || site.names(80).matches('b').count();
    assert_eq!(n_b(), 60);
    site.reload_wholly();
    assert_eq!(n_b(), 60);
    assert_eq!(site.status().acts.len(), 2);
    // The file said 1 and says 2 now: that counts.
    site.reload_with(&over(&origins).module("round_robin").server(1, "weight = 2").server(0, "drain = true"));
    site.wait_for_only(site.generation());
    // The one before may still accept a connection until then.
    site.wait_for_only(site.generation());
    assert_eq!(site.names(4), "b b b b");
    site.running()
        .logs(&format!("server \"{}\": weight = 2 of the configuration counts again", origins[1].url()));
    assert_eq!(site.status().acts, []);
}

#[test]
fn a_weight_starts_no_generation_and_cuts_nothing() {
    const HALF: usize = 4 << 20;
    let gate = Gate::default();
    let slow = Origin::serving({
        let gate = gate.clone();
        move |conn| {
            conn.request();
            conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", 2 * HALF));
            conn.send(vec![1; HALF]);
            gate.wait();
            conn.send(vec![2; HALF]);
        }
    });
    let echo = Origin::serving(|conn| {
        conn.request();
        conn.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n");
        loop {
            let byte = conn.bytes(1);
            if byte.is_empty() || !conn.send(byte) {
                return;
            }
        }
    });
    let other = format!(
        "[[cluster]]\nname = \"other\"\nmodule = \"proxy_lb\"\nservers = [{:?}]\n[[route]]\npath = \"/echo\"\ncluster = \"other\"",
        echo.url()
    );
    // Whatever drained would be cut off before it ends.
    let drain = "[timeouts]\ndrain = \"10ms\"";
    let site = Site::run(&over([&slow]).named("app").route("path = \"/\"").tables(&other).tables(drain));
    let (mut download, mut tunnel) = (site.connect(), site.connect());
    assert_eq!(download.get("/").reply_head().status(), 200);
    assert!(download.bytes(HALF) == vec![1; HALF]);
    tunnel.send("GET /echo HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n");
    assert_eq!(tunnel.reply_head().status(), 101);
    for (cluster, server) in [("app", &slow), ("other", &echo)] {
        for weight in ["3", "2"] {
            let words = [cluster, &server.url(), "weight", weight];
            let (code, said, complained) = spoken(&site.folder().command("server", &words));
            assert_eq!((code, complained.as_str()), (Some(0), ""), "{said}");
        }
    }
    let status = site.status();
    assert_eq!((status.generations.len(), status.generations[0].generation, status.acts.len()), (1, 1, 2));
    tunnel.send("a");
    assert_eq!(tunnel.bytes(1), b"a");
    gate.open();
    assert!(download.bytes(HALF) == vec![2; HALF]);
}

/// `by_traffic` gives the next request to whoever has sent the fewest bytes. One that knows of none begins with the first.
#[test]
fn what_a_balancer_learned_is_not_learned_anew() {
    const MUCH: usize = 200_000;
    let much = format!("HTTP/1.1 200 OK\r\nContent-Length: {MUCH}\r\n\r\n{}", "a".repeat(MUCH));
    let origins = [Origin::replying(much), Origin::named("b")];
    let site = Site::run(&over(&origins).module("by_traffic"));
    assert_eq!(site.get("/").body.len(), MUCH);
    for _ in 0..3 {
        assert_eq!(site.names(20), ["b"; 20].join(" "));
        site.reload_wholly();
    }
}

#[test]
fn a_session_stays_with_its_server() {
    let origins = ["a", "b", "c"].map(Origin::named);
    let builder = over(&origins).in_cluster("sticky = { cookie = \"server\" }");
    let site = Site::run(&builder);
    let first = site.get("/");
    let cookie = first.header("set-cookie").unwrap().split_once(';').unwrap().0.to_owned();
    for _ in 0..2 {
        for _ in 0..4 {
            let request = format!("GET / HTTP/1.1\r\nHost: a\r\nCookie: {cookie}\r\n\r\n");
            let reply = site.connect().send(request).reply();
            assert_eq!((reply.text(), reply.header("set-cookie")), (first.text(), None));
        }
        site.reload_wholly();
    }
}

#[test]
fn requests_of_the_generation_before_count_towards_a_servers_limit() {
    let gate = Gate::default();
    let origin = gated("done", &gate);
    let site = Site::run(&over([&origin]).threads(1).server(0, "max_requests = 1").in_cluster("queue = 0"));
    let mut client = site.connect();
    client.get("/");
    origin.wait_for_requests(1);
    let mut last = site.connect();
    assert_eq!(last.get("/").reply().status(), 503);
    site.reload();
    // Once the old generation has heard of its end, who comes is the new one's.
    eventually("the last answer", || {
        last.get("/").reply().header("connection").map(|said| assert_eq!(said, "close"))
    });
    // The new generation hears of it just after it has begun. Requests that it forwards before are taken back.
    let refused = eventually("the new generation counts it", || {
        let n_forwarded = origin.requests().len();
        let mut client = site.connect();
        client.get("/");
        let is_forwarded = || origin.requests().len() > n_forwarded;
        eventually("either", || (is_forwarded() || client.is_answered()).then_some(()));
        match is_forwarded() {
            true => {
                client.reset();
                None
            }
            false => Some(client.reply()),
        }
    });
    assert_eq!((refused.status(), site.get("/").status()), (503, 503));
    gate.open();
    assert_eq!(client.reply().text(), "done");
    eventually("room again", || (site.get("/").status() == 200).then_some(()));
}

/// A request that waits in a generation which has been replaced itself is served as soon as the server is free.
#[test]
fn requests_of_every_other_generation_count_while_they_run_and_no_longer() {
    let gate = Gate::default();
    let origin = gated("done", &gate);
    let builder = routed(&origin).server(0, "max_requests = 1");
    let site = Site::run(&builder.in_cluster("queue_timeout = \"15s\""));
    let mut first = draining(&site, &origin, 1).remove(0);
    let mut waiting = site.connect();
    waiting.get("/a");
    let length = "trylist_queue_length{cluster=\"app\"}";
    eventually("a request in the queue", || (site.metric(length) == 1.0).then_some(()));
    site.reload();
    gate.open();
    assert_eq!(first.reply().text(), "done");
    let reply = waiting.reply();
    assert_eq!((reply.status(), reply.text().as_str()), (200, "done"));
}

#[test]
fn a_clusters_limit_holds_over_all_generations() {
    let gate = Gate::default();
    let origin = gated("done", &gate);
    let site = Site::run(&routed(&origin).in_cluster("max_requests = 2"));
    let mut clients = draining(&site, &origin, 2);
    // Both generations before have one each, so that the third has no room, from its first request on.
    for _ in 0..3 {
        assert_eq!(site.get("/a").status(), 503);
    }
    gate.open();
    for client in &mut clients {
        assert_eq!(client.reply().text(), "done");
    }
    eventually("room again", || (site.get("/a").status() == 200).then_some(()));
}

// ---- how many drain ----------------------------------------------------------------------------------------------------

/// One thread before this server, for paths below `/a`.
fn routed(origin: &Origin) -> Builder {
    over([origin]).threads(1).route("path = \"/a\"")
}

/// Clients with a request each, in generations of their own, all of which drain. New connections are the last one's.
fn draining(site: &Site, origin: &Origin, n: usize) -> Vec<Client> {
    let request = |n: usize| {
        let (mut client, mut idle) = (site.connect(), site.connect());
        client.get("/a");
        origin.wait_for_requests(n);
        idle.get("/nowhere").reply();
        site.reload();
        eventually("the generation before has heard of its end", || {
            idle.get("/nowhere").reply().header("connection").map(|said| assert_eq!(said, "close"))
        });
        client
    };
    (1..=n).map(request).collect()
}

#[test]
fn nothing_is_cut_off_before_its_drains_end_however_many_reloads_there_are() {
    let gate = Gate::default();
    let origin = gated("done", &gate);
    let site = Site::run(&routed(&origin));
    let mut clients = draining(&site, &origin, 7);
    gate.open();
    for client in &mut clients {
        assert_eq!(client.reply().text(), "done");
    }
    drop(clients);
    site.wait_for_only(8);
    assert_eq!(site.running().logged(&["closed by the drain timeout"]), [""; 0]);
}

#[test]
fn a_reload_that_would_have_too_many_drain_is_refused_or_cuts_the_oldest_off() {
    let gate = Gate::default();
    let origin = gated("done", &gate);
    let builder = routed(&origin).top("supervision.max_draining = 2");
    let site = Site::run(&builder.tables("[timeouts]\ndrain = \"1h\""));
    let mut clients = draining(&site, &origin, 2);
    for (words, arguments) in [("reload", &[][..]), ("module release", &["proxy_lb"])] {
        let (code, said, complained) = spoken(&site.folder().command(words, arguments));
        assert_eq!((code, said.as_str()), (Some(1), ""), "{words}");
        let lines: Vec<&str> = complained.lines().collect();
        assert_eq!((lines.len(), lines[0]), (4, "2 generations drain, and max_draining is 2"), "{lines:#?}");
        for (line, number) in lines[1..3].iter().zip([1, 2]) {
            assert!(line.starts_with(&format!("generation {number} drains for up to 3")), "{line}");
        }
        assert_eq!(lines[3], "wait, or close the oldest with `trylist reload --cut-oldest`");
    }
    assert_eq!(site.generation(), 3);
    let (_, status, _) = spoken(&site.folder().command("status", &[]));
    assert!(status.contains("generation 1: draining for up to 59m"), "{status}");

    let (code, said, _) = spoken(&site.folder().command("reload", &["--cut-oldest"]));
    assert_eq!(code, Some(0), "{said}");
    assert!(said.lines().any(|line| line.starts_with("generation 1 is cut off, ")), "{said}");
    clients.remove(0).end();
    gate.open();
    assert_eq!(clients[0].reply().text(), "done");
    drop(clients);
    site.wait_for_only(4);
}

#[test]
fn reloads_by_signal_wait_until_one_more_may_drain_and_are_one() {
    let gate = Gate::default();
    let origin = gated("done", &gate);
    let site = Site::run(&routed(&origin).top("supervision.max_draining = 1"));
    let mut clients = draining(&site, &origin, 1);
    for (signal, line) in [
        (
            Signal::HUP,
            "SIGHUP: the reload waits: 1 generation drains, and max_draining is 1; generation 1 ends within ",
        ),
        (Signal::USR1, "SIGUSR1: merged with the reload that waits"),
        (Signal::HUP, "SIGHUP: merged with the reload that waits"),
    ] {
        site.running().signal(signal);
        site.running().logs(line);
    }
    let waiting = site.status().waiting.unwrap();
    assert!(
        waiting.starts_with("a reload (SIGHUP): 1 generation drains, and max_draining is 1; "),
        "{waiting}"
    );
    let (_, status, _) = spoken(&site.folder().command("status", &[]));
    assert!(status.contains("waiting: a reload (SIGHUP)"), "{status}");
    assert_eq!(site.generation(), 2);
    gate.open();
    assert_eq!(clients[0].reply().text(), "done");
    drop(clients);
    site.wait_for_only(3);
    assert_eq!((site.status().waiting, site.generation()), (None, 3));
}

#[test]
fn a_server_that_is_left_alone_stays_so() {
    let is_ill = Arc::new(AtomicBool::new(true));
    let ill = Origin::serving({
        let is_ill = Arc::clone(&is_ill);
        move |conn| {
            while conn.request().is_some()
                && !is_ill.load(Ordering::SeqCst)
                && conn.send("HTTP/1.1 204 No Content\r\n\r\n")
            {}
        }
    });
    let well = Origin::named("well");
    let builder = over([&ill, &well]).in_cluster("ejection = { failures = 1, time = \"1h\" }");
    let site = Site::run(&builder);
    eventually("the ill one is asked", || {
        site.get("/");
        (ill.n_connections() > 0).then_some(())
    });
    let state =
        format!("trylist_endpoint_state{{cluster=\"app\",endpoint=\"{}\",state=\"ejected\"}}", ill.url());
    eventually("it is ejected", || (site.metric(&state) == 1.0).then_some(()));
    // Were it asked again, it would answer.
    is_ill.store(false, Ordering::SeqCst);
    let n_connections = ill.n_connections();
    for _ in 0..2 {
        site.reload_wholly();
        assert_eq!(site.names(20), ["well"; 20].join(" "));
        assert_eq!((site.metric(&state), ill.n_connections()), (1.0, n_connections));
    }
}
