//! Changes that do as they say, in the middle of requests, reloads and crashes.

use rustix::process::Signal;
use tests::dns::NameServer;
use tests::journal::Journal;
use tests::site::signal;
use tests::stream::End;
use tests::traffic::Traffic;

use super::*;

// ---- requests ----------------------------------------------------------------------------------------------------------

#[test]
fn servers_come_and_go_while_requests_run_and_every_counter_adds_up() {
    let origins = ["a", "b", "c", "d"].map(Origin::named);
    let site = Site::run(&over(&origins[..2]));
    let worker = site.worker();
    let traffic = Traffic::start(site.address(), 3, 1);
    traffic.goes_on_for(50);
    change(&site, &origins[2].url(), "add");
    origins[2].wait_for_requests(20);
    change(&site, &origins[0].url(), "remove");
    // The request that was on its way to it.
    traffic.goes_on_for(50);
    let before = origins[0].requests().len();
    traffic.goes_on_for(50);
    assert_eq!(origins[0].requests().len(), before, "a server that has gone is asked no more");
    for _ in 0..10 {
        change(&site, &origins[3].url(), "add");
        change(&site, &origins[1].url(), "weight 5");
        change(&site, &origins[0].url(), "add");
        change(&site, &origins[1].url(), "weight 1");
        change(&site, &origins[3].url(), "remove");
        change(&site, &origins[0].url(), "remove");
    }
    traffic.goes_on_for(20);
    let n_sent = traffic.ends_whole();
    assert_eq!(
        origins.iter().map(|origin| origin.requests().len()).sum::<usize>(),
        n_sent,
        "each exactly once"
    );
    every_counter_adds_up(&site, n_sent);
    assert_eq!((site.generation(), site.worker()), (1, worker));
    assert_eq!(who_answers(&site, 8), ["b", "c"]);
}

/// Of a hash, keys; of turns, turns.
#[test]
fn a_weight_changes_shares_and_cuts_nothing() {
    for (module, more) in [("round_robin", ""), ("maglev", "key = \"path\"")] {
        let gate = Gate::default();
        let origins = ["a", "b"].map(|name| lasting(name, &gate));
        let other = lasting("other", &gate);
        let tables = format!(
            "[[cluster]]\nname = \"other\"\nmodule = {module:?}\nservers = [{:?}]\n{more}\n[[route]]\npath = \"/other\"\n\
             cluster = \"other\"",
            other.url()
        );
        let builder = over(&origins).module(module).in_cluster(more).route("path = \"/\"").tables(&tables);
        let site = Site::run(&builder);
        let mut tunnels = ["/tunnel/1", "/tunnel/2", "/other/tunnel"].map(|path| tunnel(&site, path));
        let mut downloads = ["/download", "/other/download"].map(|path| download(&site, path));
        let mut client = site.connect();
        let mut of_b = || (0..200).filter(|i| client.get(&format!("/{i}")).reply().text() == "b").count();
        // Keys are spread by chance: within five deviations.
        let equal = of_b();
        change(&site, &origins[1].url(), "weight 9");
        let after = of_b();
        assert!((65..=135).contains(&equal), "{module}: {equal} of 200");
        assert!((158..=200).contains(&after), "{module}: {after} of 200");
        change(&site, &origins[1].url(), "weight 1");
        assert_eq!(of_b(), equal, "{module}: as before");
        tunnels.iter_mut().for_each(lives);
        gate.open();
        downloads.iter_mut().for_each(has_the_rest);
        assert_eq!(site.generation(), 1, "{module}");
    }
}

#[test]
fn what_runs_on_a_server_that_leaves_runs_to_its_end() {
    let gate = Gate::default();
    let origins = ["a", "b"].map(|name| lasting(name, &gate));
    let site = Site::run(&over(&origins[..1]));
    let (mut tunnel, mut download) = (tunnel(&site, "/tunnel"), download(&site, "/download"));
    change(&site, &origins[1].url(), "add");
    change(&site, &origins[0].url(), "remove");
    assert_eq!(site.names(4), "b b b b");
    for n in 2..30 {
        change(&site, &origins[1].url(), &format!("weight {n}"));
    }
    lives(&mut tunnel);
    gate.open();
    has_the_rest(&mut download);
    assert_eq!(tunnel.end_sending().end(), End::Eof);
    assert_eq!(site.generation(), 1);
}

#[test]
fn all_servers_are_replaced_again_and_again_and_no_request_fails() {
    let origins = ["a", "b", "c", "d"].map(Origin::named);
    let (odd, even) = origins.split_at(2);
    let site = Site::run(&over(odd));
    let traffic = Traffic::start(site.address(), 3, 1);
    for (old, new) in [(odd, even), (even, odd), (odd, even), (even, odd)] {
        new.iter().for_each(|origin| change(&site, &origin.url(), "add"));
        old.iter().for_each(|origin| change(&site, &origin.url(), "remove"));
        traffic.goes_on_for(40);
    }
    let n_sent = traffic.ends_whole();
    assert_eq!(origins.iter().map(|origin| origin.requests().len()).sum::<usize>(), n_sent);
    every_counter_adds_up(&site, n_sent);
    assert_eq!(site.generation(), 1);
}

#[test]
fn a_full_queue_goes_to_a_server_that_is_added() {
    let gate = Gate::default();
    let origins = ["a", "b"].map(|name| Origin::gated(name, &gate));
    let new = ["c", "d"].map(Origin::named);
    let builder =
        over(&origins).each_server("max_requests = 1").in_cluster("queue = 6\nqueue_timeout = \"20s\"");
    let site = Site::run(&builder);
    let clients = |n| -> Vec<Client> {
        let mut clients: Vec<_> = (0..n).map(|_| site.connect()).collect();
        clients.iter_mut().for_each(|client| _ = client.get("/"));
        clients
    };
    let mut busy = clients(2);
    origins.iter().for_each(|origin| _ = origin.wait_for_requests(1));
    let mut waiting = clients(6);
    let length = "trylist_queue_length{cluster=\"app\"}";
    eventually("a full queue", || (site.metric(length) == 6.0).then_some(()));
    assert_eq!(site.get("/").status(), 503, "the queue is full");
    new.iter().for_each(|origin| change(&site, &origin.url(), "add"));
    origins.iter().for_each(|origin| change(&site, &origin.url(), "remove"));
    for client in &mut waiting {
        let reply = client.reply();
        assert_eq!(reply.status(), 200);
        assert!(["c", "d"].contains(&reply.text().as_str()), "{}", reply.text());
    }
    gate.open();
    let names: Vec<_> = busy.iter_mut().map(|client| client.reply().text()).collect();
    assert!(names.iter().all(|name| ["a", "b"].contains(&name.as_str())), "{names:?}");
    assert_eq!(site.generation(), 1);
}

/// All requests are with servers that answer 503, and those are no members any more when they do.
#[test]
fn requests_that_retry_go_to_the_servers_that_are_there_by_then() {
    let gate = Gate::default();
    let failing = [(); 2].map(|()| {
        let gate = gate.clone();
        Origin::serving(move |conn| {
            while conn.request().is_some() {
                gate.wait();
                conn.send("HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n");
            }
        })
    });
    let new = ["c", "d"].map(Origin::named);
    let builder = over(&failing).route(
        "path = \"/\"\nretry = { on = [\"503\"], backoff = \"20ms\", budget = { percent = 100, min = 100 } }",
    );
    let site = Site::run(&builder);
    let mut clients: Vec<_> = (0..8).map(|_| site.connect()).collect();
    clients.iter_mut().for_each(|client| _ = client.get("/"));
    let n_there = || failing.iter().map(|origin| origin.requests().len()).sum::<usize>();
    eventually("all requests", || (n_there() == clients.len()).then_some(()));
    new.iter().for_each(|origin| change(&site, &origin.url(), "add"));
    failing.iter().for_each(|origin| change(&site, &origin.url(), "remove"));
    gate.open();
    for client in &mut clients {
        let reply = client.reply();
        assert_eq!(reply.status(), 200);
    }
    assert_eq!(n_there(), clients.len(), "those that left are not tried again");
    assert_eq!(site.generation(), 1);
}

/// The first members are named, though none is there any more.
#[test]
fn an_explanation_names_servers_that_left_meanwhile() {
    let gate = Gate::default();
    let failing = Origin::serving({
        let gate = gate.clone();
        move |conn| {
            while conn.request().is_some() {
                gate.wait();
                conn.send("HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n");
            }
        }
    });
    let (idle, new) = (Origin::named("idle"), Origin::named("new"));
    let retry = "path = \"/\"\nretry = { on = [\"503\"], budget = { percent = 100, min = 100 } }";
    let explain = "[explain]\nallow = [\"127.0.0.0/8\"]";
    let site = Site::run(&over([&failing, &idle]).route(retry).tables(explain));
    let mut client = site.connect();
    client.send("GET / HTTP/1.1\r\nHost: test\r\nX-Trylist-Explain: 1\r\n\r\n");
    failing.wait_for_requests(1);
    change(&site, &new.url(), "add");
    for leaving in [&failing, &idle] {
        change(&site, &leaving.url(), "remove");
    }
    gate.open();
    let reply = client.reply();
    assert_eq!(reply.text(), "new");
    let lines = |name: &str, url: &str| {
        reply.head.lines().filter(|line| line.starts_with(name) && line.contains(url)).count()
    };
    assert_eq!(lines("X-Trylist-Candidate", &failing.url()), 1, "{}", reply.head);
    assert_eq!(lines("X-Trylist-Candidate", &idle.url()), 1, "{}", reply.head);
    assert_eq!(lines("X-Trylist-Try", &failing.url()), 1, "{}", reply.head);
    assert_eq!(lines("X-Trylist-Try", &new.url()), 1, "{}", reply.head);
}

#[test]
fn a_cluster_that_loses_all_servers_answers_503_and_serves_again_with_a_new_one() {
    let origins = ["a", "b", "c"].map(Origin::named);
    let site = Site::run(&over(&origins[..2]));
    assert_eq!(who_answers(&site, 4), ["a", "b"]);
    origins[..2].iter().for_each(|origin| change(&site, &origin.url(), "remove"));
    for _ in 0..4 {
        assert_eq!(site.get("/").status(), 503);
    }
    change(&site, &origins[2].url(), "add");
    assert_eq!(site.names(2), "c c");
    change(&site, &origins[0].url(), "add");
    assert_eq!(who_answers(&site, 4), ["a", "c"]);
    assert_eq!(site.generation(), 1);
}

// ---- states ------------------------------------------------------------------------------------------------------------

#[test]
fn drain_keeps_sessions_and_maint_takes_nothing_until_ready() {
    let origins = ["a", "b"].map(Origin::named);
    let site = Site::run(&over(&origins).in_cluster("sticky = { cookie = \"server\" }"));
    let session = eventually("a session with a", || {
        let reply = site.get("/");
        let cookie = reply.header("set-cookie").and_then(|cookie| cookie.split(';').next());
        (reply.text() == "a").then(|| cookie.unwrap().to_owned())
    });
    let in_session = || {
        let request = format!("GET / HTTP/1.1\r\nHost: test\r\nCookie: {session}\r\n\r\n");
        site.connect().send(request).reply().text()
    };
    let url = origins[0].url();
    change(&site, &url, "drain");
    assert_eq!([(); 4].map(|()| in_session()), ["a"; 4]);
    assert_eq!(who_answers(&site, 8), ["b"]);
    change(&site, &url, "maint");
    assert_eq!([(); 4].map(|()| in_session()), ["b"; 4]);
    assert_eq!(who_answers(&site, 8), ["b"]);
    change(&site, &url, "ready");
    assert_eq!([(); 4].map(|()| in_session()), ["a"; 4]);
    // The turns that its session took come off its share first.
    assert_eq!(who_answers(&site, 40), ["a", "b"]);
    assert_eq!(site.generation(), 1);
}

// ---- names -------------------------------------------------------------------------------------------------------------

const ADDRESSES: [[u8; 4]; 5] =
    [[127, 0, 0, 1], [127, 0, 0, 2], [127, 0, 0, 3], [127, 0, 0, 4], [127, 0, 0, 5]];

/// A server at each of these addresses, all at one port, and that. They answer with their names.
fn at_addresses() -> ([Origin; 5], u16) {
    let at = |ip: [u8; 4], port: u16, name: &'static str| {
        Origin::listening((ip, port).into(), move |conn| {
            let reply = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len());
            while conn.request().is_some() && conn.send(&reply) {}
        })
    };
    let first = at(ADDRESSES[0], 0, "1");
    let port = first.address().port();
    let further = |idx: usize, name| at(ADDRESSES[idx], port, name);
    ([first, further(1, "2"), further(2, "3"), further(3, "4"), further(4, "5")], port)
}

#[test]
fn all_addresses_of_a_name_may_change_at_once_and_nothing_is_lost() {
    let (origins, port) = at_addresses();
    let dns = NameServer::new();
    dns.addresses("moves.test", &ADDRESSES[..2]);
    let builder = Proxy::over_urls([format!("http://moves.test:{port}")]).named("app").threads(2);
    let builder =
        builder.each_server("resolve = \"all\"").in_cluster("settle = \"0s\"").tables(&dns.config());
    let site = Site::run(&builder);
    let traffic = Traffic::start(site.address(), 3, 1);
    for round in 1..=6 {
        let now = if round % 2 == 0 { &ADDRESSES[..2] } else { &ADDRESSES[2..4] };
        let newcomer = &origins[if round % 2 == 0 { 0 } else { 2 }];
        let before = newcomer.requests().len();
        dns.addresses("moves.test", now);
        eventually("the new servers", || (newcomer.requests().len() > before + 5).then_some(()));
    }
    let n_sent = traffic.ends_whole();
    assert_eq!(origins.iter().map(|origin| origin.requests().len()).sum::<usize>(), n_sent);
    every_counter_adds_up(&site, n_sent);
    assert_eq!(site.generation(), 1);
}

// ---- what is refused ---------------------------------------------------------------------------------------------------

#[test]
fn a_module_that_refuses_or_panics_leaves_the_servers_as_they_were_and_the_command_says_so() {
    for (with_others, why) in [("refuse", "these are not to its taste"), ("panic", "panic")] {
        let origins = ["a", "b", "c"].map(Origin::named);
        let settings = format!(
            "settings = {{ most_members = 2, most_weight = 5, least_weight = 2, with_others = {with_others:?} }}"
        );
        let builder = over(&origins[..2]).broken("refuses-members").each_server("weight = 4");
        let site = Site::run(&builder.in_cluster(&settings));
        let worker = site.worker();
        let traffic = Traffic::start(site.address(), 2, 1);
        traffic.goes_on_for(20);
        let url = origins[1].url();
        for (url, words) in [
            (origins[2].url(), &["add"][..]),
            (url.clone(), &["weight", "9"]),
            (url.clone(), &["weight", "1"]),
        ] {
            let said = refused(&site, &url, words);
            assert!(said.contains("refused, so it is taken back") && said.contains(why), "{said}");
            assert_eq!(site.status().acts, [], "{words:?}");
            let weight =
                format!("trylist_endpoint_weight{{cluster=\"app\",endpoint=\"{}\"}}", origins[1].url());
            eventually("its weight", || (site.metric(&weight) == 4.0).then_some(()));
            answer(&site, &["a", "b"]);
        }
        // The next change tries again.
        change(&site, &url, "weight 3");
        change(&site, &url, "remove");
        answer(&site, &["a"]);
        traffic.ends_whole();
        assert_eq!((site.generation(), site.worker()), (1, worker));
    }
}

/// A removal cannot be taken back by a module: the server gets nothing more, and is there again when it is added.
#[test]
fn a_server_whose_removal_a_module_refuses_gets_nothing_until_it_is_added() {
    let origins = ["a", "b"].map(Origin::named);
    let builder = over(&origins).broken("refuses-members").in_cluster("settings = { least_members = 2 }");
    let site = Site::run(&builder);
    let said = refused(&site, &origins[0].url(), &["remove"]);
    assert!(said.contains("these are not to its taste"), "{said}");
    assert_eq!(who_answers(&site, 8), ["b"]);
    change(&site, &origins[0].url(), "add");
    assert_eq!(who_answers(&site, 8), ["a", "b"]);
    assert_eq!(site.generation(), 1);
}

/// Nobody else could serve: none of those that the module has built for is left.
#[test]
fn the_host_chooses_among_servers_that_a_module_refuses_where_no_other_is_left() {
    let (_origins, port) = at_addresses();
    let dns = NameServer::new();
    dns.addresses("moves.test", &ADDRESSES[..2]);
    let builder = Proxy::over_urls([format!("http://moves.test:{port}")]).named("app").threads(2);
    let builder = builder.broken("refuses-members").each_server("resolve = \"all\"").tables(&dns.config());
    let site = Site::run(&builder.in_cluster("settle = \"0s\"\nsettings = { most_members = 2 }"));
    assert_eq!(who_answers(&site, 8), ["1", "2"]);
    let traffic = Traffic::start(site.address(), 2, 1);
    let refused = "trylist_cluster_servers_refused{cluster=\"app\"}";
    let fallbacks = "trylist_fallbacks_total{cluster=\"app\",module=\"refuses_members\"}";
    let quarantined = "trylist_balancer_quarantined{cluster=\"app\",module=\"refuses_members\"}";
    for (now, names) in [(&ADDRESSES[2..5], &["3", "4", "5"][..]), (&ADDRESSES[1..5], &["2", "3", "4", "5"])]
    {
        dns.addresses("moves.test", now);
        eventually("the new servers", || (who_answers(&site, 40) == names).then_some(()));
        assert_eq!([refused, quarantined].map(|metric| site.metric(metric)), [1.0, 0.0]);
        assert!(site.metric(fallbacks) > 0.0);
    }
    let status = eventually("its status", || site.serving().refused.pop());
    assert_eq!((&*status.cluster, status.host_chooses), ("app", true));
    assert!(status.why.contains("module \"refuses_members\": these are not to its taste"), "{}", status.why);
    dns.addresses("moves.test", &ADDRESSES[..2]);
    eventually("a change that it takes", || (site.metric(refused) == 0.0).then_some(()));
    let before = site.metric(fallbacks);
    assert_eq!(who_answers(&site, 8), ["1", "2"]);
    assert_eq!(site.metric(fallbacks), before, "the module chooses again");
    eventually("its status", || site.serving().refused.is_empty().then_some(()));
    traffic.ends_whole();
    assert_eq!(site.generation(), 1);
}

/// The act holds, and a worker in place of one that died serves with it, though no reload would.
#[test]
fn a_server_that_a_module_refuses_serves_where_there_is_no_other_and_after_a_crash_too() {
    let origins = ["a", "b"].map(Origin::named);
    let builder = over(&origins[..1]).broken("refuses-members").each_server("weight = 4");
    let site = Site::run(&builder.in_cluster("settings = { least_weight = 2 }"));
    let [a, b] = origins.each_ref().map(Origin::url);
    change(&site, &a, "remove");
    assert_eq!(site.get("/").status(), 503);
    let (code, said, complained) = act(&site, &b, &["add"]);
    assert_eq!((code, complained.as_str()), (Some(0), ""), "{said}");
    let what = format!(
        "cluster \"app\": server {b:?} is added from now on, but the host chooses among the servers: "
    );
    assert!(said.starts_with(&what) && said.contains("these are not to its taste"), "{said}");
    assert_eq!(site.names(4), "b b b b");
    let (code, _, complained) = spoken(&site.folder().command("reload", &[]));
    assert_eq!(code, Some(4), "{complained}");
    assert!(complained.contains("these are not to its taste"), "{complained}");
    let before = site.worker();
    signal(before, Signal::KILL);
    eventually("another worker", || (site.worker() != before).then_some(()));
    eventually("the same server", || (site.get("/").text() == "b").then_some(()));
    let refused = "trylist_cluster_servers_refused{cluster=\"app\"}";
    assert_eq!(site.metric(refused), 1.0);
    change(&site, &b, "weight 3");
    assert_eq!((site.metric(refused), site.names(2).as_str()), (0.0, "b b"));
}

#[test]
fn changes_that_make_no_sense_are_refused_with_one_line() {
    let origins = ["a", "b", "c"].map(Origin::named);
    let site = Site::run(&over(&origins[..2]));
    let [a, _, c] = origins.each_ref().map(Origin::url);
    let already = |url: &str| format!("cluster \"app\" has the server \"{url}\" already");
    assert_eq!(refused(&site, &a, &["add"]), already(&a));
    for change in [&["remove"][..], &["drain"], &["weight", "2"]] {
        assert!(refused(&site, &c, change).starts_with(&format!("cluster \"app\" has no server \"{c}\"")));
    }
    change(&site, &c, "add");
    for (words, lasts) in [(&["add", "--for", "10m"][..], "for 600s"), (&["add"], "without a time limit")] {
        let said =
            format!("cluster \"app\": server {c:?} was added already; it is there {lasts} from now on\n");
        assert_eq!(act(&site, &c, words), (Some(0), said, String::new()));
        let acts = site.status().acts;
        assert_eq!((acts.len(), acts[0].left_s.is_some()), (1, words.len() > 1), "it is there once");
    }
    change(&site, &c, "remove");
    assert!(refused(&site, &c, &["weight", "2"]).starts_with("cluster \"app\" has no server"), "it has gone");
    for url in
        ["rubbish", "http://", "http://a b", "ftp://a", "http://a#127.0.0.1", "http://a/path", "https://a"]
    {
        let said = refused(&site, url, &["add"]);
        assert!(said.contains(url), "{said}");
    }
    assert_eq!(site.status().acts, []);
    assert_eq!((who_answers(&site, 8), site.generation()), (vec!["a".to_owned(), "b".to_owned()], 1));
}

// ---- superseded snapshots ----------------------------------------------------------------------------------------------

/// Their modules hear an abort where a snapshot is superseded too often; the connections do not notice.
#[test]
fn tunnels_outlive_the_snapshots_that_they_began_with() {
    const KEPT: usize = 16;
    let n_tunnels = long_or("TRYLIST_TUNNELS", 40);
    let gate = Gate::default();
    let origin = lasting("a", &gate);
    let journal = Journal::of_all_balancers();
    let builder = over([&origin]).broken("records-calls");
    let site = Site::run(&builder.in_cluster(&format!("settings = {}", journal.settings(&["0"]))));
    let mut tunnels = Vec::new();
    for n in 0..n_tunnels {
        tunnels.push(tunnel(&site, &format!("/tunnel/{n}")));
        order(&site, &origin.url(), ServerOrder::Weight(n as u16 + 2));
    }
    let aborted = |n: usize| format!("/tunnel/{n} finish Aborted by Some(0), status None, tries 1");
    for n in 0..n_tunnels - KEPT {
        journal.wait_for(&aborted(n));
    }
    eventually("the end of balancers that nobody uses", || (journal.n_open() <= KEPT + 1).then_some(()));
    tunnels.iter_mut().for_each(lives);
    for n in n_tunnels - KEPT..n_tunnels {
        assert!(!journal.so_far().iter().any(|line| line.contains(&format!("/tunnel/{n} finish"))), "{n}");
    }
    for tunnel in &mut tunnels {
        assert_eq!(tunnel.end_sending().end(), End::Eof);
    }
    for n in 0..n_tunnels {
        journal.wait_for(&format!("/tunnel/{n} drop"));
    }
    eventually("one balancer", || (journal.n_open() == 1).then_some(()));
    let in_flight = format!("trylist_endpoint_in_flight{{cluster=\"app\",endpoint=\"{}\"}}", origin.url());
    assert_eq!((site.metric(&in_flight), site.generation()), (0.0, 1));
}

// ---- crashes and reloads -----------------------------------------------------------------------------------------------

/// Requests come first.
#[test]
fn threads_that_build_are_nicer_than_those_that_serve() {
    let site = Site::run(&over([&Origin::named("a")]));
    let nice_of = |name: &str| -> Vec<i32> {
        let threads = std::fs::read_dir(format!("/proc/{}/task", site.worker())).unwrap();
        let stats =
            threads.map(|thread| std::fs::read_to_string(thread.unwrap().path().join("stat")).unwrap());
        // Its name is in parentheses, and followed by field 3.
        let of_name = stats.filter_map(|stat| {
            let (before, after) = stat.rsplit_once(") ").unwrap();
            let is_it = before.rsplit_once('(').unwrap().1.starts_with(name);
            is_it.then(|| after.split(' ').nth(16).unwrap().parse().unwrap())
        });
        of_name.collect()
    };
    let serving = nice_of("worker-");
    assert_eq!(serving.len(), 2);
    assert!(nice_of("builder-").len() >= 2);
    let expected = (serving[0] + 5).min(19);
    eventually("nice builders", || nice_of("builder-").iter().all(|nice| *nice == expected).then_some(()));
}

#[test]
fn a_crash_in_the_middle_of_changes_keeps_all_of_them() {
    let origins = ["a", "b", "c", "d", "e"].map(Origin::named);
    let site = Site::run(&over(&origins[..1]));
    let before = site.worker();
    change(&site, &origins[1].url(), "add");
    std::thread::scope(|scope| {
        let acts = origins[2..].iter().map(|origin| scope.spawn(|| act(&site, &origin.url(), &["add"])));
        let acts: Vec<_> = acts.collect();
        // Some changes come before it, some after.
        eventually("the first of them", || (site.status().acts.len() > 1).then_some(()));
        signal(before, Signal::KILL);
        for act in acts {
            let (code, said, complained) = act.join().unwrap();
            assert_eq!((code, complained.as_str()), (Some(0), ""), "{said}");
        }
    });
    eventually("another worker", || (site.worker() != before).then_some(()));
    let mut added: Vec<_> = site.status().acts.into_iter().map(|act| (act.url, act.what)).collect();
    let mut expected: Vec<_> = origins[1..].iter().map(|origin| (origin.url(), "added".to_owned())).collect();
    added.sort();
    expected.sort();
    assert_eq!(added, expected);
    eventually("all servers", || (who_answers(&site, 20) == ["a", "b", "c", "d", "e"]).then_some(()));
}

#[test]
fn a_reload_that_races_with_a_change_loses_neither() {
    let origins = ["a", "b", "c"].map(Origin::named);
    let builder = |n: usize| over(&origins[..2]).server(0, &format!("weight = {n}"));
    let site = Site::run(&builder(1));
    let traffic = Traffic::start(site.address(), 2, 1);
    let weight = format!("trylist_endpoint_weight{{cluster=\"app\",endpoint=\"{}\"}}", origins[0].url());
    for round in 2..8 {
        let is_added = round % 2 == 0;
        std::thread::scope(|scope| {
            scope.spawn(|| site.reload_with(&builder(round)));
            let what = if is_added { "add" } else { "remove" };
            let (code, said, complained) = act(&site, &origins[2].url(), &[what]);
            assert_eq!((code, complained.as_str()), (Some(0), ""), "{said}");
        });
        site.wait_for_only(round as u64);
        eventually("the weight", || (site.metric(&weight) == round as f64).then_some(()));
        let expected: &[&str] = if is_added { &["a", "b", "c"] } else { &["a", "b"] };
        eventually("the members", || (who_answers(&site, 24) == expected).then_some(()));
    }
    traffic.ends_whole();
    assert_eq!(site.generation(), 7);
}
