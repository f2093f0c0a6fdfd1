//! Workers and supervisors that are killed, and workers that flood their supervisor.

use super::*;

/// Its supervisor stops listening to it and replaces it, and goes on itself; nothing is cut off for it.
#[test]
fn a_worker_that_floods_its_supervisor_is_replaced() {
    let gate = Gate::default();
    let (slow, origin) = (Origin::gated("done", &gate), Origin::named("a"));
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
        assert_eq!(line, " (for want of memory, or by somebody's hand)");
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
    let origin = Origin::gated("done", &gate);
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

/// Without CAP_SYS_RESOURCE a value may be lowered again as far as it was raised.
#[test]
fn the_supervisor_lowers_its_score_where_it_may() {
    const RAISED: &str = "echo 600 > /proc/self/oom_score_adj";
    let may_lower = format!("{RAISED} && echo 100 > /proc/self/oom_score_adj");
    let tried = std::process::Command::new("sh").args(["-c", &may_lower]).output().unwrap();
    if !tried.status.success() {
        println!("skipped: the system lets no value be lowered");
        return;
    }
    let origin = Origin::named("a");
    let folder = Folder::with(&Proxy::over([&origin]).named("app").module("random").text());
    let run = folder.run();
    let mut command = std::process::Command::new("sh");
    command.args(["-c", &format!("{RAISED} && exec \"$0\" \"$@\"")]);
    command.arg(run.get_program()).args(run.get_args());
    let site = Site::start(folder, command);
    let score = |pid: u32| {
        let text = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
        text.trim().parse::<i32>().unwrap()
    };
    assert_eq!((score(site.running().pid()), score(site.worker())), (100, 700));
}
