//! Modules that bring their worker down or hang, and processes that are killed: what is lost with them, who is blamed, and
//! that the proxy goes on.

use std::fs;

use rustix::process::Signal;
use tests::client::Client;
use tests::command::Running;
use tests::hold::Hold;
use tests::origin::Origin;
use tests::proxy::{Builder, Proxy};
use tests::site::{
    Folder, Site, Thread, proc_status, process, signal, spoken, thread_states, threads, wait_for_end_of,
};
use tests::traffic::Traffic;
use tests::{Gate, artifacts, eventually};

/// A module that does what requests tell it to, in cluster `app` on two threads; and time for it, unless a test is about
/// that.
fn misbehaving<'a>(origins: impl IntoIterator<Item = &'a Origin>) -> Builder {
    Proxy::over(origins).named("app").threads(2).broken("misbehaves")
}

/// Has `misbehaves` do this.
fn asking_for(misdeed: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: test\r\nX-Misbehave: {misdeed}\r\n\r\n")
}

/// Has it do this, and waits until another worker serves. One that has just been replaced would still take the connection.
#[track_caller]
fn brings_down(site: &Site, misdeed: &str) {
    let before = site.wait_for_only(site.generation()).generation;
    let mut client = site.connect();
    client.send(asking_for(misdeed));
    client.end();
    eventually("the next generation", || (site.generation() > before).then_some(()));
}

/// Answers once the gate is open.
fn gated(gate: &Gate) -> Origin {
    let gate = gate.clone();
    Origin::serving(move |conn| {
        while conn.request().is_some() {
            gate.wait();
            conn.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone");
        }
    })
}

/// Waits until the supervisor has looked at its workers more often than it takes for one that hangs to be found: ten times.
#[track_caller]
fn many_looks(site: &Site) {
    let waits = || proc_status(site.running().pid(), "voluntary_ctxt_switches");
    let enough = waits() + 30;
    eventually("many looks", || (waits() > enough).then_some(()));
}

/// A connection that another thread of the worker serves than this one.
#[track_caller]
fn on_another_thread(site: &Site, client: &mut Client, worker: u32) -> Client {
    let first = thread_of(client, worker);
    eventually("a connection on the other thread", || {
        let mut client = site.connect();
        (thread_of(&mut client, worker) != first).then_some(client)
    })
}

/// Which thread of the worker serves this connection: the one that gets most to do by many requests.
#[track_caller]
fn thread_of(client: &mut Client, worker: u32) -> String {
    let before = threads(worker);
    for _ in 0..100 {
        assert_eq!(client.get("/").reply().status(), 200);
    }
    let ran = |thread: &Thread| {
        let was = before.iter().find(|was| was.tid == thread.tid);
        thread.ran_ns - was.map_or(0, |was| was.ran_ns)
    };
    let serving = threads(worker).into_iter().filter(|thread| thread.name.starts_with("worker-"));
    serving.max_by_key(ran).unwrap().name
}

// ---- deaths ----------------------------------------------------------------------------------------------------------

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

/// The reload does not wait for what a dead worker would have saved.
#[test]
fn a_module_that_dies_as_it_saves_does_not_keep_the_next_generation() {
    let origin = Origin::named("a");
    let site = Site::run(&misbehaving([&origin]).in_cluster("settings = { save = \"segfault\" }"));
    site.reload();
    site.running().logs("died by SIGSEGV while inside module \"misbehaves\" 1.0.0, cluster \"app\"");
    assert_eq!(site.running().logged(&["did not save within"]), [""; 0]);
    assert_eq!(site.names(2), "a a");
}

/// The supervisor does without an answer that is late: no request and no reload waits for longer than it is patient, and
/// the thread goes with its process.
#[track_caller]
fn does_not_end_its_save(misdeed: &str, line: &str) {
    let origin = Origin::named("a");
    let settings = format!("settings = {{ save = \"{misdeed}\" }}");
    let site = Site::run(&misbehaving([&origin]).in_cluster(&settings));
    let traffic = Traffic::start(site.address(), 1, 1);
    site.reload_with(&misbehaving([&origin]));
    site.running().logs(line);
    traffic.goes_on_for(10);
    site.wait_for_only(2);
    traffic.ends_whole();
    assert_eq!(site.running().logged(&["begins with what was saved"]), [""; 0]);
    assert_eq!(site.status().quarantine, []);
}

const UNSAVED: &str = "balancers did not save within 5s (a thread is inside module \"misbehaves\" 1.0.0, cluster \"app\"); the new generation starts without the latest state";

#[test]
fn a_module_that_blocks_as_it_saves_keeps_the_next_generation_for_a_moment() {
    does_not_end_its_save("block", UNSAVED);
}

#[test]
fn a_module_that_spins_as_it_saves_keeps_the_next_generation_for_a_moment() {
    does_not_end_its_save("spin", UNSAVED);
}

#[test]
fn a_module_that_panics_as_it_saves_does_not_keep_the_next_generation() {
    does_not_end_its_save("panic", "the balancer's state is not saved: the module failed in save");
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

// ---- faults that a worker survives -------------------------------------------------------------------------------------

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

// ---- hangs -----------------------------------------------------------------------------------------------------------

/// One thread hangs: another worker takes its place, and what the other threads have on their way ends.
#[track_caller]
fn hangs(misdeed: &str) {
    let gate = Gate::default();
    let slow = gated(&gate);
    let origin = Origin::named("a");
    let other = format!(
        "[[cluster]]\nname = \"other\"\nmodule = \"misbehaves\"\nservers = [{:?}]\n[[route]]\npath = \"/slow\"\ncluster = \"other\"",
        slow.url()
    );
    let builder = misbehaving([&origin]).threads(4).route("path = \"/\"").tables(&other);
    let builder = builder.tables("[timeouts]\ndrain = \"5s\"");
    let site = Site::run(&builder.top("supervision.module_time_limit = \"300ms\""));
    let worker = site.worker();
    // With twelve of them, there are some on each of the threads that does not hang.
    let mut under_way: Vec<Client> = (0..12).map(|_| site.connect()).collect();
    for client in &mut under_way {
        client.get("/slow");
    }
    slow.wait_for_requests(12);
    let mut guilty = site.connect();
    guilty.send(asking_for(misdeed));
    site.running().logs(&format!(
        "generation 1: a thread of its worker (pid {worker}) hangs inside module \"misbehaves\" 1.0.0, cluster \"app\" (for "
    ));
    eventually("the next generation", || (site.generation() == 2).then_some(()));
    let traffic = Traffic::start(site.address(), 2, 2);
    traffic.goes_on_for(20);
    gate.open();
    // A request on the thread of the guilty one waits in vain, and is cut off with it.
    let replies: Vec<bool> = under_way.iter_mut().map(|client| client.try_reply().is_ok()).collect();
    assert!(replies.iter().any(|served| *served), "{replies:?}");
    guilty.end();
    site.wait_for_only(2);
    traffic.ends_whole();
    assert_eq!(site.status().quarantine, [], "once is not twice");
}

#[test]
fn a_module_that_spins_is_replaced_with_its_worker() {
    hangs("spin");
}

#[test]
fn a_module_that_blocks_is_replaced_with_its_worker() {
    hangs("block");
}

/// The requests of other threads are the reason to let a worker go on of which one thread hangs.
#[test]
fn what_does_not_hang_is_not_cut_off_for_what_does() {
    let gate = Gate::default();
    let slow = gated(&gate);
    let origin = Origin::named("a");
    let other = format!(
        "[[cluster]]\nname = \"other\"\nmodule = \"misbehaves\"\nservers = [{:?}]\n[[route]]\npath = \"/slow\"\ncluster = \"other\"",
        slow.url()
    );
    let builder = misbehaving([&origin]).threads(2).route("path = \"/\"").tables(&other);
    let site = Site::run(&builder.top("supervision.module_time_limit = \"300ms\""));
    let worker = site.worker();
    let mut alone = site.connect();
    let mut guilty = on_another_thread(&site, &mut alone, worker);
    alone.get("/slow");
    slow.wait_for_requests(1);
    guilty.send(asking_for("block"));
    site.running().logs("hangs inside module \"misbehaves\"");
    eventually("the next generation", || (site.generation() == 2).then_some(()));
    many_looks(&site);
    gate.open();
    assert_eq!(alone.reply().text(), "done");
    guilty.end();
    site.wait_for_only(2);
}

/// Requests without a key have a module of their own; what that does is not the other's fault.
#[test]
fn of_two_modules_of_a_cluster_the_one_that_hangs_is_blamed() {
    let origin = Origin::named("a");
    let builder = Proxy::over([&origin]).named("app").threads(2).module("round_robin");
    let builder = builder.and_broken("misbehaves");
    let builder = builder.in_cluster("key = \"header:x-key\"\nkey_missing = \"misbehaves\"");
    let site = Site::run(&builder.top("supervision.module_time_limit = \"200ms\""));
    let mut guilty = site.connect();
    guilty.send(asking_for("block"));
    site.running().logs("hangs inside module \"misbehaves\" 1.0.0, cluster \"app\" (for ");
    site.running()
        .logs("cluster \"app\": module \"misbehaves\" 1.0.0 is in quarantine until the next reload");
    site.wait_for_only(2);
    guilty.end();
    assert_eq!(site.running().logged(&["module \"round_robin\"", "quarantine"]), Vec::<String>::new());
}

#[test]
fn the_module_that_never_returns_is_not_opened_for_long() {
    let origins = ["a", "b"].map(Origin::named);
    let builder = Proxy::over(&origins).named("app").threads(2).broken("never-returns");
    let site = Site::run(&builder.top("supervision.module_time_limit = \"200ms\""));
    let traffic = Traffic::start(site.address(), 1, 3);
    traffic.goes_on_for(50);
    assert_eq!(site.status().quarantine[0].module, "never_returns");
    site.running().logs("module \"never_returns\": ");
    site.wait_for_only(3);
    let counts = traffic.end();
    assert!(counts.failed.len() <= 2 * 4, "each client once a hang, at most: {:?}", counts.failed);
}

/// A worker that is not let run is not one that hangs.
#[test]
fn a_healthy_module_in_a_worker_that_is_stopped_is_not_condemned() {
    let origin = Origin::named("a");
    let hold = Hold::new();
    let builder = Proxy::over([&origin]).named("app").threads(2).broken("waits");
    let site = Site::run(&builder.top("supervision.module_time_limit = \"1s\""));
    let worker = site.worker();
    let mut client = site.connect();
    client.send(hold.request("/"));
    let held = hold.is_inside();
    signal(worker, Signal::STOP);
    eventually("all threads are stopped", || thread_states(worker).chars().all(|c| c == 'T').then_some(()));
    many_looks(&site);
    drop(held);
    signal(worker, Signal::CONT);
    assert_eq!(client.reply().text(), "a");
    assert_eq!((site.worker(), site.running().logged(&["hangs"])), (worker, Vec::new()));
}

// ---- threads that do not get on outside of modules --------------------------------------------------------------------

/// A worker that is stopped is named, another takes over, and what it had under way ends when it goes on: in time for its
/// drain here.
#[test]
fn a_worker_that_is_stopped_is_replaced_and_ends_what_it_has_when_it_goes_on() {
    let gate = Gate::default();
    let (slow, origin) = (gated(&gate), Origin::named("a"));
    let other = format!(
        "[[cluster]]\nname = \"other\"\nservers = [{:?}]\n[[route]]\npath = \"/slow\"\ncluster = \"other\"",
        slow.url()
    );
    let builder = Proxy::over([&origin]).named("app").threads(2).route("path = \"/\"").tables(&other);
    let site = Site::run(&builder);
    let worker = site.worker();
    let mut client = site.connect();
    client.get("/slow");
    slow.wait_for_requests(1);
    signal(worker, Signal::STOP);
    let said = site.running().logs(&format!("generation 1: its worker (pid {worker}) has stuck threads: "));
    assert!(said.contains("worker-0 (state T: stopped by a signal)"), "{said}");
    assert!(said.ends_with("; another worker takes over"), "{said}");
    eventually("the next generation", || (site.generation() == 2).then_some(()));
    let stuck = site.status().generations.remove(0);
    assert_eq!((stuck.generation, stuck.state.as_str()), (1, "draining"));
    assert!(stuck.trouble.is_some_and(|trouble| trouble.contains("state T")));
    let traffic = Traffic::start(site.address(), 1, 1);
    traffic.goes_on_for(20);
    signal(worker, Signal::CONT);
    gate.open();
    assert_eq!(client.reply().text(), "done");
    drop(client);
    site.wait_for_only(2);
    traffic.ends_whole();
    assert_eq!(site.status().quarantine, []);
}

#[test]
fn idle_threads_tick_and_are_not_taken_for_stuck() {
    let origin = Origin::named("a");
    let builder = Proxy::over([&origin]).named("app").threads(2);
    let site = Site::run(&builder.top("supervision.module_time_limit = \"1h\""));
    let worker = site.worker();
    // Each thread that serves wakes up once a second, and so does the background.
    let wakes = |thread: &Thread| {
        let status = fs::read_to_string(format!("/proc/{worker}/task/{}/status", thread.tid)).unwrap();
        let count = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
        count.trim().parse::<u64>().unwrap()
    };
    let serves = |thread: &Thread| thread.name.starts_with("worker-") || thread.name == "background";
    let threads: Vec<Thread> = threads(worker).into_iter().filter(serves).collect();
    assert_eq!(threads.len(), 3);
    let before: Vec<u64> = threads.iter().map(wakes).collect();
    let has_ticked = |(thread, before): (&Thread, &u64)| wakes(thread) >= before + 12;
    eventually("twelve ticks", || threads.iter().zip(&before).all(has_ticked).then_some(()));
    assert_eq!((site.worker(), site.running().logged(&["stuck"])), (worker, Vec::new()));
}

// ---- workers that say too much -----------------------------------------------------------------------------------------

/// Its supervisor stops listening to it and replaces it, and goes on itself; nothing is cut off for it.
#[test]
fn a_worker_that_floods_its_supervisor_is_replaced() {
    let gate = Gate::default();
    let (slow, origin) = (gated(&gate), Origin::named("a"));
    let other = format!(
        "[[cluster]]\nname = \"other\"\nmodule = \"misbehaves\"\nservers = [{:?}]\n[[route]]\npath = \"/slow\"\ncluster = \"other\"",
        slow.url()
    );
    let site = Site::run(&misbehaving([&origin]).route("path = \"/\"").tables(&other));
    let worker = site.worker();
    let mut under_way = site.connect();
    under_way.get("/slow");
    slow.wait_for_requests(1);
    let mut guilty = site.connect();
    guilty.send(asking_for("flood"));
    site.running().logs(&format!(
        "generation 1: its worker (pid {worker}) has sent more than 1000 messages of one kind within 10s; the supervisor ignores it from now on"
    ));
    assert_eq!(guilty.reply().text(), "a");
    eventually("the next generation", || (site.generation() == 2).then_some(()));
    gate.open();
    assert_eq!(under_way.reply().text(), "done");
    drop((guilty, under_way));
    site.wait_for_only(2);
    assert_eq!(site.names(2), "a a");
    assert_eq!(site.running().logged(&["its worker (pid", "died"]), Vec::<String>::new());
}

// ---- kills -----------------------------------------------------------------------------------------------------------

#[test]
fn a_worker_that_is_killed_blames_nobody() {
    const CLIENTS: usize = 3;
    let origin = Origin::named("a");
    let hold = Hold::new();
    let builder = Proxy::over([&origin]).named("app").threads(2).broken("waits");
    let site = Site::run(&builder.top("supervision.module_time_limit = \"1h\""));
    let traffic = Traffic::start(site.address(), 2, 1);
    for n in 1..=3 {
        let worker = site.worker();
        let mut client = site.connect();
        client.send(hold.request("/"));
        let _held = hold.is_inside();
        signal(worker, Signal::KILL);
        client.end();
        let line = site.running().logs(&format!("generation {n}: its worker (pid {worker}) died by SIGKILL"));
        assert_eq!(line, "");
        eventually("the next generation", || (site.generation() == n + 1).then_some(()));
        traffic.goes_on_for(20);
    }
    assert_eq!(site.status().quarantine, []);
    assert!(!site.serving().modules[0].quarantined);
    let counts = traffic.end();
    assert!(counts.failed.len() <= 3 * CLIENTS, "{:?}", counts.failed);
}

#[test]
fn the_worker_of_a_supervisor_that_is_killed_lets_requests_end_and_leaves() {
    let gate = Gate::default();
    let origin = gated(&gate);
    let site = Site::run(&Proxy::over([&origin]).named("app").threads(2));
    let (mut client, mut idle) = (site.connect(), site.connect());
    // The proxy does not know a silent client yet.
    idle.send("\r\n");
    client.get("/");
    origin.wait_for_requests(1);
    let worker = process(site.worker()).unwrap();
    site.running().signal(Signal::KILL);
    site.running().logs("the supervisor is gone; draining");
    eventually("nobody listens", || Client::try_connect(site.address()).err());
    idle.end();
    gate.open();
    assert_eq!(client.reply().text(), "done");
    wait_for_end_of(&worker);
}

#[test]
fn a_worker_that_hangs_leaves_all_the_same_when_its_supervisor_is_killed() {
    let origin = Origin::named("a");
    let hold = Hold::new();
    let builder = Proxy::over([&origin]).named("app").threads(2).broken("waits");
    let builder =
        builder.top("supervision.module_time_limit = \"1h\"").tables("[timeouts]\ndrain = \"100ms\"");
    let site = Site::run(&builder);
    let mut client = site.connect();
    client.send(hold.request("/"));
    let _held = hold.is_inside();
    let worker = process(site.worker()).unwrap();
    site.running().signal(Signal::KILL);
    wait_for_end_of(&worker);
    client.end();
}

/// It would never hear of the end of its supervisor: the module does not return.
#[test]
fn a_worker_that_is_not_ready_ends_with_its_supervisor() {
    let origin = Origin::named("a");
    let mut builder = misbehaving([&origin]).in_cluster("settings = { build = \"block\" }");
    if rustix::process::geteuid().is_root() {
        // As another user it has to be told anew.
        builder = builder.top("user = \"nobody\"");
    }
    let folder = Folder::with(&builder.text());
    let running = Running::spawn(folder.run());
    let pid = running.logs("generation 1 started (pid ").trim_end_matches(')').parse().unwrap();
    let worker = process(pid).unwrap();
    eventually("the module is open", || {
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).ok()?;
        maps.contains("misbehaves").then_some(())
    });
    running.signal(Signal::KILL);
    wait_for_end_of(&worker);
}

/// With the supervisor all ends; a worker is replaced.
#[test]
fn where_memory_runs_out_workers_come_before_their_supervisor() {
    let origin = Origin::named("a");
    let modules = ["round_robin", "least_request", "maglev", "ring_hash"];
    let builder = Proxy::over([&origin]).named("app").module("random");
    let site = Site::run(&modules.into_iter().fold(builder, Builder::and_module));
    let score = |pid: &str| {
        let text = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
        text.trim().parse::<i32>().unwrap()
    };
    let (service, supervisor) = (score("self"), site.running().pid());
    assert_eq!(score(&site.worker().to_string()), (service + 100).min(1000));
    assert!(score(&supervisor.to_string()) <= service);
    // It has read all modules, and keeps none of them in memory of its own.
    let n_bytes = |id: &&str| fs::metadata(artifacts::module(id)).unwrap().len();
    let of_modules = modules.iter().map(n_bytes).sum::<u64>();
    let own = proc_status(supervisor, "RssAnon") << 10;
    assert!(own < of_modules / 2, "{own} bytes, where its modules have {of_modules}");
}
