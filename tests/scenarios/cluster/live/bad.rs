//! Something is wrong: changes that make no sense, modules that take long, hang or kill, all servers that go,
//! and changes that race with each other, with crashes and with reloads. Requests do not notice.

use std::thread::{self, ScopedJoinHandle};

use rustix::process::Signal;
use tests::dns::NameServer;
use tests::hold::Hold;
use tests::origin::Origin;
use tests::proxy::{Builder, Proxy};
use tests::site::{Site, signal};
use tests::traffic::Traffic;
use tests::{Gate, eventually};
use trylist::process::control::ServerOrder::{Add, Drain, Maintenance, Ready, Remove, Weight};

use super::{act, answer, order, order_in, over, who_answers};

/// Waits until only these servers answer.
#[track_caller]
fn answers_by(site: &Site, names: &[&str]) {
    eventually(&format!("answers of {names:?} alone"), || (who_answers(site, 12) == names).then_some(()));
}

/// In front of these servers, with a module that is held in this call where it has so many members.
fn held<'a>(
    origins: impl IntoIterator<Item = &'a Origin>,
    hold: &Hold,
    call: &str,
    members: usize,
) -> Builder {
    over(origins).broken("waits").in_cluster(&hold.settings(call, members))
}

/// An order that was given on another thread is in use.
#[track_caller]
fn is_done(order: ScopedJoinHandle<'_, Result<String, String>>) {
    let said = order.join().unwrap();
    assert!(said.as_ref().is_ok_and(|said| said.ends_with(" from now on")), "{said:?}");
}

// ---- changes that make no sense ------------------------------------------------------------------------------------------

/// As in a file without live changes: each line is a server of its own, and the configuration warns of it. An order names both.
#[test]
fn a_server_that_is_written_twice_is_changed_as_one() {
    let origins = ["a", "b", "c"].map(Origin::named);
    let site = Site::run(&over([&origins[0], &origins[0], &origins[1]]));
    let [a, b, c] = origins.each_ref().map(Origin::url);
    site.running().logs(&format!("server \"{a}\": already listed at "));
    let mut names: Vec<_> = site.names(6).split(' ').map(str::to_owned).collect();
    names.sort();
    assert_eq!(names.join(" "), "a a a a b b");
    order(&site, &a, Drain);
    assert_eq!(who_answers(&site, 6), ["b"]);
    order(&site, &a, Ready);
    order(&site, &a, Remove);
    order(&site, &c, Add);
    assert_eq!(who_answers(&site, 6), ["b", "c"]);
    order(&site, &b, Remove);
    assert_eq!(who_answers(&site, 6), ["c"]);
    order(&site, &a, Add);
    assert_eq!(who_answers(&site, 6), ["a", "c"]);
    assert_eq!(site.generation(), 1);
}

#[test]
fn a_name_server_that_says_an_address_twice_names_one_server() {
    let origin = Origin::named("a");
    let port = origin.address().port();
    let dns = NameServer::new();
    dns.addresses("twice.test", &[[127, 0, 0, 1], [127, 0, 0, 1]]);
    let builder = Proxy::over_urls([format!("http://twice.test:{port}")]).named("app").threads(2);
    let builder =
        builder.each_server("resolve = \"all\"").in_cluster("settle = \"0s\"").tables(&dns.config());
    let site = Site::run(&builder);
    assert_eq!(who_answers(&site, 4), ["a"]);
    let weights = site.admin("/metrics").text();
    let weights: Vec<_> =
        weights.lines().filter(|line| line.starts_with("trylist_endpoint_weight{cluster=\"app\"")).collect();
    assert_eq!(weights.len(), 1, "{weights:?}");
}

#[test]
fn weight_0_is_refused_wherever_it_comes_from() {
    let origin = Origin::named("a");
    let site = Site::run(&over([&origin]));
    let right = "a weight is a number from 1 to 65535; to give a server nothing, drain it";
    assert_eq!(site.order("app", &origin.url(), Weight(0)).unwrap_err(), right);
    for wrong in ["0", "-1", "65536", "two", ""] {
        let (code, said, complained) = act(&site, &origin.url(), &["weight", wrong]);
        assert!(code != Some(0) && said.is_empty() && !complained.is_empty(), "{wrong}: {complained}");
    }
    assert_eq!(site.status().acts, []);
    assert_eq!(who_answers(&site, 3), ["a"]);
}

#[test]
fn a_server_that_has_just_gone_can_be_told_nothing_and_its_address_what_it_is_when_it_returns() {
    let at = |ip: [u8; 4], port: u16, name: &'static str| {
        Origin::listening((ip, port).into(), move |conn| {
            let reply = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len());
            while conn.request().is_some() && conn.send(&reply) {}
        })
    };
    const BOTH: [[u8; 4]; 2] = [[127, 0, 0, 1], [127, 0, 0, 2]];
    let first = at(BOTH[0], 0, "1");
    let port = first.address().port();
    let _second = at(BOTH[1], port, "2");
    let added = Origin::named("3");
    let dns = NameServer::new();
    dns.addresses("moves.test", &BOTH);
    let name = format!("http://moves.test:{port}");
    let builder = Proxy::over_urls([name.clone()]).named("app").threads(2).module("round_robin");
    let builder =
        builder.each_server("resolve = \"all\"").in_cluster("settle = \"0s\"").tables(&dns.config());
    let site = Site::run(&builder);
    order(&site, &added.url(), Add);
    answers_by(&site, &["1", "2", "3"]);
    order(&site, &added.url(), Remove);
    for change in [Drain, Maintenance, Ready, Weight(2), Remove] {
        let said = site.order("app", &added.url(), change).unwrap_err();
        assert!(said.starts_with("cluster \"app\" has no server"), "{change:?}: {said}");
    }
    dns.addresses("moves.test", &BOTH[..1]);
    answers_by(&site, &["1"]);
    order(&site, &format!("{name}#127.0.0.2"), Drain);
    assert_eq!(who_answers(&site, 4), ["1"]);
    dns.addresses("moves.test", &BOTH);
    let weight = format!("trylist_endpoint_weight{{cluster=\"app\",endpoint=\"{name}#127.0.0.2\"}}");
    eventually("its return", || (site.metric(&weight) == 1.0).then_some(()));
    assert_eq!(who_answers(&site, 8), ["1"]);
    order(&site, &format!("{name}#127.0.0.2"), Ready);
    answers_by(&site, &["1", "2"]);
    assert_eq!(site.generation(), 1);
}

// ---- modules that take long ------------------------------------------------------------------------------------------------

/// The host does not wait for a module with its own part.
#[test]
fn while_a_module_builds_servers_drain_and_leave_at_once_and_what_it_built_late_is_used() {
    let (hold, origins) = (Hold::new(), ["a", "b", "c", "d"].map(Origin::named));
    let site = Site::run(&held(&origins[..3], &hold, "build", 4));
    let [a, b, c, d] = origins.each_ref().map(Origin::url);
    let traffic = Traffic::start(site.address(), 2, 1);
    thread::scope(|scope| {
        let add = scope.spawn(|| site.order("app", &d, Add));
        let inside = hold.is_inside();
        answer(&site, &["a", "b", "c"]);
        order(&site, &a, Drain);
        answer(&site, &["b", "c"]);
        order(&site, &a, Ready);
        order(&site, &b, Maintenance);
        answer(&site, &["a", "c"]);
        let remove = scope.spawn(|| site.order("app", &c, Remove));
        answers_by(&site, &["a"]);
        traffic.goes_on_for(20);
        answer(&site, &["a"]);
        drop(inside);
        is_done(add);
        is_done(remove);
        order(&site, &b, Ready);
    });
    answer(&site, &["a", "b", "d"]);
    traffic.ends_whole();
    assert_eq!(site.generation(), 1);
}

/// The server is a member of what is being built, and of nothing that requests see.
#[test]
fn a_server_that_is_drained_while_it_is_added_never_gets_a_request() {
    let (hold, origins) = (Hold::new(), ["a", "b", "c"].map(Origin::named));
    let site = Site::run(&held(&origins[..2], &hold, "build", 3));
    let url = origins[2].url();
    thread::scope(|scope| {
        let add = scope.spawn(|| site.order("app", &url, Add));
        let inside = hold.is_inside();
        order(&site, &url, Drain);
        drop(inside);
        is_done(add);
    });
    assert_eq!(who_answers(&site, 9), ["a", "b"]);
    assert_eq!(origins[2].requests().len(), 0);
    order(&site, &url, Ready);
    assert_eq!(who_answers(&site, 9), ["a", "b", "c"]);
}

#[test]
fn a_module_that_builds_keeps_no_other_cluster_from_its_changes() {
    let (hold, origins) = (Hold::new(), ["a", "b", "c"].map(Origin::named));
    let other = format!(
        "[[cluster]]\nname = \"other\"\nmodule = \"waits\"\nservers = [{:?}]\nsettle = \"0s\"\n[[route]]\npath = \"/other\"\n\
         cluster = \"other\"",
        origins[0].url()
    );
    let builder = held(&origins[..2], &hold, "build", 3).route("path = \"/\"").tables(&other);
    let site = Site::run(&builder);
    thread::scope(|scope| {
        let add = scope.spawn(|| site.order("app", &origins[2].url(), Add));
        let inside = hold.is_inside();
        for _ in 0..5 {
            order_in(&site, "other", &origins[1].url(), Add);
            order_in(&site, "other", &origins[0].url(), Maintenance);
            assert_eq!(site.get("/other").text(), "b");
            order_in(&site, "other", &origins[0].url(), Ready);
            order_in(&site, "other", &origins[1].url(), Remove);
            assert_eq!(site.get("/other").text(), "a");
        }
        drop(inside);
        is_done(add);
    });
    assert_eq!(who_answers(&site, 9), ["a", "b", "c"]);
}

/// Changes that come while a module builds are one more build, and not one each.
#[test]
fn changes_that_come_while_a_module_builds_are_in_use_when_it_has_built() {
    let (hold, origins) = (Hold::new(), ["a", "b", "c", "d", "e"].map(Origin::named));
    let site = Site::run(&held(&origins[..2], &hold, "build", 3));
    thread::scope(|scope| {
        let mut orders = vec![scope.spawn(|| site.order("app", &origins[2].url(), Add))];
        let inside = hold.is_inside();
        orders
            .extend(origins[3..].iter().map(|origin| scope.spawn(|| site.order("app", &origin.url(), Add))));
        eventually("all of them", || (site.status().acts.len() == 3).then_some(()));
        assert_eq!(who_answers(&site, 9), ["a", "b"]);
        drop(inside);
        orders.into_iter().for_each(is_done);
    });
    assert_eq!(who_answers(&site, 15), ["a", "b", "c", "d", "e"]);
    assert!(hold.now_inside().is_none(), "nothing of three members is built again");
    assert_eq!(site.generation(), 1);
}

#[test]
fn a_module_whose_drop_takes_long_delays_no_change() {
    let (hold, origins) = (Hold::new(), ["a", "b", "c"].map(Origin::named));
    let site = Site::run(&held(&origins[..2], &hold, "drop", 2));
    let traffic = Traffic::start(site.address(), 2, 1);
    order(&site, &origins[2].url(), Add);
    order(&site, &origins[0].url(), Weight(2));
    let inside = hold.is_inside();
    for n in 3..20 {
        order(&site, &origins[0].url(), Weight(n));
        order(&site, &origins[1].url(), Remove);
        answer(&site, &["a", "c"]);
        order(&site, &origins[1].url(), Add);
    }
    answer(&site, &["a", "b", "c"]);
    drop(inside);
    drop(hold);
    traffic.ends_whole();
    assert_eq!(site.generation(), 1);
}

#[test]
fn a_module_in_quarantine_is_not_built_and_cannot_refuse_servers() {
    let origins = ["a", "b", "c"].map(Origin::named);
    let settings = "settings = { most_members = 2, panics_when_asked = true }";
    let builder = over(&origins[..2]).broken("refuses-members").in_cluster(settings);
    let site = Site::run(&builder.top("supervision.module_faults = 1"));
    answer(&site, &["a", "b"]);
    let quarantined = "trylist_balancer_quarantined{cluster=\"app\",module=\"refuses_members\"}";
    assert_eq!(site.metric(quarantined), 1.0);
    order(&site, &origins[2].url(), Add);
    answer(&site, &["a", "b", "c"]);
    assert_eq!(site.metric(quarantined), 1.0, "it stays so");
    let faults = "trylist_module_faults_total{cluster=\"app\",module=\"refuses_members\",fault=\"panic\"}";
    assert_eq!(site.metric(faults), 1.0, "its count goes on");
}

// ---- modules that hang or kill ---------------------------------------------------------------------------------------------

/// The watchdog's limit for a build is 10 s at least: this takes that long.
#[test]
fn a_module_that_never_returns_from_build_is_found_and_its_requests_go_on() {
    let (hold, origins) = (Hold::new(), ["a", "b", "c"].map(Origin::named));
    let site = Site::run(&held(&origins[..2], &hold, "build", 3).top("supervision.module_deaths = 1"));
    let traffic = Traffic::start(site.address(), 2, 1);
    thread::scope(|scope| {
        let add = scope.spawn(|| site.order("app", &origins[2].url(), Add));
        let _inside = hold.is_inside();
        let said = add.join().unwrap().unwrap();
        assert!(said.ends_with("kept, but not in use yet after 5s"), "{said}");
        order(&site, &origins[0].url(), Drain);
        answer(&site, &["b"]);
        site.running().logs("hangs inside module \"waits\"");
        // The host chooses from now on, among all three.
        eventually("another worker", || (site.generation() == 2).then_some(()));
        answers_by(&site, &["b", "c"]);
    });
    order(&site, &origins[0].url(), Ready);
    answers_by(&site, &["a", "b", "c"]);
    assert_eq!(site.status().quarantine[0].module, "waits");
    traffic.ends_whole();
}

/// The act that kills is in force for the next worker too: its module goes, and the servers are those that were wanted.
#[test]
fn a_module_that_kills_in_build_is_in_quarantine_soon_and_all_servers_serve() {
    let origins = ["a", "b", "c"].map(Origin::named);
    let settings = "settings = { most_members = 2, with_others = \"abort\" }";
    let site = Site::run(&over(&origins[..2]).broken("refuses-members").in_cluster(settings));
    assert_eq!(who_answers(&site, 4), ["a", "b"]);
    order(&site, &origins[2].url(), Add);
    answers_by(&site, &["a", "b", "c"]);
    assert_eq!(site.status().quarantine[0].module, "refuses_members");
    order(&site, &origins[2].url(), Remove);
    assert_eq!(who_answers(&site, 12), ["a", "b"]);
    order(&site, &origins[0].url(), Drain);
    assert_eq!(who_answers(&site, 12), ["b"]);
}

// ---- no servers ------------------------------------------------------------------------------------------------------------

#[test]
fn requests_that_wait_are_answered_when_the_last_server_leaves() {
    let gate = Gate::default();
    let origin = Origin::gated("a", &gate);
    let builder = over([&origin]).each_server("max_requests = 1");
    let site = Site::run(&builder.in_cluster("queue = 6\nqueue_timeout = \"20s\""));
    let mut clients: Vec<_> = (0..4).map(|_| site.connect()).collect();
    clients[0].get("/");
    origin.wait_for_requests(1);
    clients[1..].iter_mut().for_each(|client| _ = client.get("/"));
    let length = "trylist_queue_length{cluster=\"app\"}";
    eventually("those that wait", || (site.metric(length) == 3.0).then_some(()));
    order(&site, &origin.url(), Remove);
    for client in &mut clients[1..] {
        assert_eq!(client.reply().status(), 503);
    }
    assert_eq!(site.get("/").status(), 503);
    gate.open();
    assert_eq!(clients[0].reply().text(), "a");
    assert_eq!(site.metric(length), 0.0);
}

#[test]
fn a_cluster_that_is_born_empty_serves_with_its_first_server() {
    for module in ["round_robin", "least_request", "maglev"] {
        let origins = ["a", "b"].map(Origin::named);
        let site = Site::run(&over(&origins[..1]).module(module).in_cluster("key = \"path\""));
        order(&site, &origins[0].url(), Remove);
        site.reload_wholly();
        assert_eq!([(); 3].map(|()| site.get("/").status()), [503; 3], "{module}");
        let before = site.worker();
        signal(before, Signal::KILL);
        eventually("another worker", || (site.worker() != before).then_some(()));
        eventually("a listener", || (site.get("/").status() == 503).then_some(()));
        order(&site, &origins[1].url(), Add);
        assert_eq!(site.names(3), "b b b", "{module}");
        order(&site, &origins[1].url(), Remove);
        assert_eq!(site.get("/").status(), 503, "{module}");
        order(&site, &origins[0].url(), Add);
        assert_eq!(site.names(3), "a a a", "{module}");
    }
}

#[test]
fn a_configuration_without_servers_is_refused() {
    let origin = Origin::named("a");
    let site = Site::run(&over([&origin]));
    site.folder().write(&over([]).text());
    let (code, said) = site.fails_to_reload();
    assert_eq!((code, said.len()), (Some(3), 2), "{said:?}");
    assert!(said[0].contains("cluster \"app\": no server"), "{said:?}");
    assert_eq!(site.names(2), "a a");
}

// ---- races -----------------------------------------------------------------------------------------------------------------

/// The worker dies inside of the very build.
#[test]
fn a_worker_that_is_killed_while_it_builds_is_replaced_by_one_with_the_change() {
    let (hold, origins) = (Hold::new(), ["a", "b", "c"].map(Origin::named));
    // Nothing is to be the module's fault.
    let site = Site::run(&held(&origins[..2], &hold, "build", 3).top("supervision.module_deaths = 0"));
    let before = site.worker();
    thread::scope(|scope| {
        let add = scope.spawn(|| site.order("app", &origins[2].url(), Add));
        let inside = hold.is_inside();
        signal(before, Signal::KILL);
        // The next one builds the same before it serves.
        drop(hold.is_inside());
        is_done(add);
        drop(inside);
    });
    eventually("another worker", || (site.worker() != before).then_some(()));
    assert_eq!(who_answers(&site, 9), ["a", "b", "c"]);
    assert_eq!(site.status().acts.len(), 1);
}

#[test]
fn a_reload_while_a_module_builds_loses_neither() {
    let (hold, origins) = (Hold::new(), ["a", "b", "c", "d"].map(Origin::named));
    let builder = |weight: usize| {
        held(&origins[..2], &hold, "build", 3)
            .server(0, &format!("weight = {weight}"))
            .tables("[timeouts]\ndrain = \"5s\"")
    };
    let site = Site::run(&builder(1));
    let traffic = Traffic::start(site.address(), 2, 1);
    thread::scope(|scope| {
        let add = scope.spawn(|| site.order("app", &origins[2].url(), Add));
        let inside = hold.is_inside();
        let reload = scope.spawn(|| site.reload_with(&builder(2)));
        let inside_too = hold.is_inside();
        // This changes both, while both build.
        order(&site, &origins[0].url(), Drain);
        answer(&site, &["b"]);
        drop(inside_too);
        reload.join().unwrap();
        drop(inside);
        is_done(add);
    });
    site.wait_for_only(2);
    answer(&site, &["b", "c"]);
    order(&site, &origins[0].url(), Ready);
    let weight = format!("trylist_endpoint_weight{{cluster=\"app\",endpoint=\"{}\"}}", origins[0].url());
    assert_eq!(site.metric(&weight), 2.0);
    answer(&site, &["a", "b", "c"]);
    traffic.ends_whole();
}

/// Each on a thread of its own: some come into use by the same build, some by one of their own.
#[test]
fn fifty_clusters_change_at_once_and_each_has_its_own_servers() {
    const CLUSTERS: usize = 50;
    let origins = ["a", "b", "c", "d"].map(Origin::named);
    let mut builder = over(&origins[..1]).route("path = \"/\"");
    for n in 0..CLUSTERS {
        builder = builder.tables(&format!(
            "[[cluster]]\nname = \"c{n}\"\nmodule = \"round_robin\"\nservers = [{:?}]\nsettle = \"0s\"\n[[route]]\n\
             path = \"/{n}/\"\ncluster = \"c{n}\"",
            origins[0].url()
        ));
    }
    let site = Site::run(&builder);
    let traffic = Traffic::start(site.address(), 2, 0);
    // The servers of each cluster, in the end: all sets of the three others are there.
    let is_in = |cluster: usize, origin: usize| (cluster % 7 + 1) >> (origin - 1) & 1 == 1;
    thread::scope(|scope| {
        for n in 0..CLUSTERS {
            let (site, origins) = (&site, &origins);
            scope.spawn(move || {
                let cluster = format!("c{n}");
                for (idx, origin) in origins.iter().enumerate().skip(1) {
                    order_in(site, &cluster, &origin.url(), Add);
                    order_in(site, &cluster, &origin.url(), Weight(2));
                    if !is_in(n, idx) {
                        order_in(site, &cluster, &origin.url(), Remove);
                    }
                }
                order_in(site, &cluster, &origins[0].url(), Remove);
                let mut client = site.connect();
                let names: Vec<_> = (0..6).map(|_| client.get(&format!("/{n}/")).reply().text()).collect();
                for (idx, origin) in ["a", "b", "c", "d"].into_iter().enumerate() {
                    let is_there = idx > 0 && is_in(n, idx);
                    assert_eq!(names.iter().any(|name| name == origin), is_there, "{n}: {names:?}");
                }
            });
        }
    });
    assert_eq!(who_answers(&site, 4), ["a"], "the cluster that nobody changed");
    traffic.ends_whole();
    assert_eq!(site.generation(), 1);
}

/// Without a pause, which is more than one in 10 ms.
#[test]
fn changes_without_end_fail_no_request_and_each_is_seen() {
    const ROUNDS: u16 = 20;
    let origins = ["a", "b", "c", "d"].map(Origin::named);
    for module in ["round_robin", "least_request", "ring_hash"] {
        let site = Site::run(&over(&origins[..2]).module(module).in_cluster("key = \"path\""));
        let worker = site.worker();
        let traffic = Traffic::start(site.address(), 3, 1);
        let weight = format!("trylist_endpoint_weight{{cluster=\"app\",endpoint=\"{}\"}}", origins[1].url());
        for n in 0..ROUNDS {
            order(&site, &origins[2].url(), Add);
            order(&site, &origins[0].url(), Remove);
            order(&site, &origins[1].url(), Weight(n % 100 + 2));
            if n % 5 == 0 {
                assert_eq!(site.metric(&weight), f64::from(n % 100 + 2), "{module}");
            }
            order(&site, &origins[0].url(), Add);
            order(&site, &origins[2].url(), Remove);
        }
        traffic.ends_whole();
        assert_eq!((site.generation(), site.worker()), (1, worker), "{module}");
    }
}
