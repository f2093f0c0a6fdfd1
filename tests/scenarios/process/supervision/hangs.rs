//! Modules and threads that hang.

use super::*;

/// One thread hangs: another worker takes its place, and what the other threads have on their way ends.
#[track_caller]
fn hangs(misdeed: &str) {
    let gate = Gate::default();
    let slow = Origin::gated("done", &gate);
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
    let slow = Origin::gated("done", &gate);
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

/// A worker that is stopped is named, another takes over, and what it had under way ends when it goes on: in time for its
/// drain here.
#[test]
fn a_worker_that_is_stopped_is_replaced_and_ends_what_it_has_when_it_goes_on() {
    let gate = Gate::default();
    let (slow, origin) = (Origin::gated("done", &gate), Origin::named("a"));
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
    let run = || {
        let builder = Proxy::over([&origin]).named("app").threads(2);
        Site::run(&builder.top("supervision.module_time_limit = \"1h\""))
    };
    let site = run();
    let worker = site.worker();
    // Another proxy's worker, stopped later, is found stuck: by then this one would have been.
    let other = run();
    signal(other.worker(), Signal::STOP);
    other.running().logs("has stuck threads: ");
    eventually("the next generation", || (other.generation() == 2).then_some(()));
    assert_eq!((site.worker(), site.running().logged(&["stuck"])), (worker, Vec::new()));
}

/// A request of the same thread is at a server, and never ends: nobody waits for it.
#[test]
fn a_worker_does_not_drain_for_requests_of_the_thread_that_hangs() {
    let gate = Gate::default();
    let (slow, origin) = (Origin::gated("done", &gate), Origin::named("a"));
    let other = format!(
        "[[cluster]]\nname = \"other\"\nmodule = \"misbehaves\"\nservers = [{:?}]\n[[route]]\npath = \"/slow\"\ncluster = \"other\"",
        slow.url()
    );
    let builder = misbehaving([&origin]).route("path = \"/\"").tables(&other);
    let site = Site::run(&builder.top("supervision.module_time_limit = \"200ms\"\ntimeouts.drain = \"1h\""));
    let worker = site.worker();
    let mut under_way = site.connect();
    let thread = thread_of(&mut under_way, worker);
    let mut guilty = eventually("a connection on the same thread", || {
        let mut client = site.connect();
        (thread_of(&mut client, worker) == thread).then_some(client)
    });
    under_way.get("/slow");
    slow.wait_for_requests(1);
    guilty.send(asking_for("block"));
    site.wait_for_only(2);
    guilty.end();
    under_way.end();
    assert_eq!(site.names(1), "a");
    gate.open();
}
