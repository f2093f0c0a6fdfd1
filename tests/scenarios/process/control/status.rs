//! `trylist status` of clusters and servers.

use trylist::observe::status::ServerStatus;
use trylist::process::control::ServerOrder;

use super::*;

/// The reasons of a server, as source and words.
fn reasons(server: &ServerStatus) -> Vec<(&str, Option<&str>)> {
    server.reasons.iter().map(|reason| (reason.source.as_str(), reason.why.as_deref())).collect()
}

/// Ejects a server that fails once, for an hour.
const EJECTS: &str = "ejection = { failures = 1, time = \"1h\", max_time = \"1h\", max_percent = 100 }";

#[test]
fn each_server_is_shown_with_its_state_its_counts_and_why() {
    let (alive, drained, dead) = (Origin::named("a"), Origin::named("b"), Origin::dead());
    let site = Site::run(&over([&alive, &drained, &dead]).in_cluster(EJECTS));
    site.order("app", &drained.url(), ServerOrder::Drain).unwrap();
    assert_eq!(site.names(6), "a a a a a a");

    let server = site.server(&alive.url());
    assert_eq!((server.state.as_str(), reasons(&server)), ("available", vec![]));
    assert_eq!((server.numbers.tries, server.numbers.responses["2xx"]), (6, 6));
    assert!(server.latency_ms.is_some() && server.numbers.average_ms.is_some());
    let series = |family: &str, labels: &str| {
        format!("trylist_{family}{{cluster=\"app\",endpoint=\"{}\",{labels}}}", alive.url())
    };
    assert_eq!(site.metric(&series("tries_total", "result=\"served\"")), 6.0);
    assert_eq!(site.metric(&series("try_responses_total", "class=\"2xx\"")), 6.0);

    let server = site.server(&drained.url());
    assert_eq!((server.state.as_str(), reasons(&server)), ("draining", vec![("drain", None)]));
    let server = site.server(&dead.url());
    assert_eq!(server.state, "ejected");
    assert_eq!(reasons(&server), [("ejection", Some("1 failure (connection refused)"))]);
    assert!(server.reasons[0].left_s > Some(3_000), "{server:?}");
    assert_eq!((server.numbers.tries, server.numbers.failures["connect"]), (1, 1));

    let cluster = site.state().unwrap().clusters.remove(0);
    let states = cluster.states;
    assert_eq!((states.servers, states.available, states.ejected, states.draining), (3, 1, 1, 1));
    assert_eq!((cluster.numbers.requests, cluster.numbers.responses["2xx"]), (6, 6));
    assert_eq!((&*cluster.module, cluster.modules[0].numbers.calls["load_balance"]), ("round_robin", 6));
}

#[test]
fn the_table_has_a_line_for_each_server() {
    let (alive, dead) = (Origin::named("a"), Origin::dead());
    let site = Site::run(&over([&alive, &dead]).in_cluster(EJECTS));
    site.names(2);
    let (code, text, _) = spoken(&site.folder().command("status", &[]));
    assert_eq!(code, Some(0));
    let line = |start: &str| {
        let found = text.lines().find(|line| line.trim_start().starts_with(start));
        found.unwrap_or_else(|| panic!("{start}: {text}")).split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(
        line("cluster app"),
        "cluster app: round_robin, 1 of 2 servers available, 0 in flight, 2 requests, 2xx 2"
    );
    let dead = line(&dead.url());
    assert!(dead.contains(" ejected ") && dead.contains(" 1 failure (connection refused), 1h "), "{dead}");
    assert!(line(&alive.url()).contains(" available "), "{text}");
    assert!(!text.contains('\x1b'), "only a terminal gets colours: {text:?}");

    let (code, json, _) = spoken(&site.folder().command("status", &["--json", "--cluster", "app"]));
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let servers = json["worker"]["clusters"][0]["servers"].as_array().unwrap();
    assert_eq!((code, servers.len(), &servers[0]["tries"]), (Some(0), 2, &2.into()));
    let (code, said, complained) = spoken(&site.folder().command("status", &["--cluster", "nope"]));
    let expected = "trylist: there is no cluster \"nope\"; without --cluster, all are shown\n";
    assert_eq!((code, said.as_str(), complained.as_str()), (Some(1), "", expected));
}

#[test]
fn what_is_told_of_servers_and_their_counts_outlive_a_reload_and_a_crash() {
    let (alive, dead) = (Origin::named("a"), Origin::dead());
    let site = Site::run(&over([&alive, &dead]).in_cluster(EJECTS));
    site.names(2);
    let before = site.server(&dead.url());
    site.reload_wholly();
    let after = site.server(&dead.url());
    assert_eq!((&after.reasons[0].why, &after.since), (&before.reasons[0].why, &before.since));
    assert_eq!((after.reasons[0].since.clone(), after.numbers.tries), (before.reasons[0].since.clone(), 1));
    assert_eq!(site.server(&alive.url()).numbers.tries, 2);

    signal(site.worker(), Signal::KILL);
    // Whatever moment it is asked at, the supervisor says what it knows.
    let after = eventually("another worker that answers", || {
        let text = spoken(&site.folder().command("status", &[]));
        assert_eq!(text.0, Some(0), "{text:?}");
        (site.state().is_ok() && site.generation() == 3).then(|| site.server(&dead.url()))
    });
    assert_eq!((&after.state, &after.since), (&before.state, &before.since));
}

#[test]
fn a_worker_that_does_not_answer_in_time_leaves_what_the_supervisor_knows() {
    let origin = Origin::named("a");
    let site = Site::run(&over([&origin]));
    let worker = site.worker();
    signal(worker, Signal::STOP);
    let output = spoken(&site.folder().command("status", &["--json"]));
    signal(worker, Signal::CONT);
    let said: serde_json::Value = serde_json::from_str(&output.1).unwrap();
    assert_eq!(
        (output.0, &said["worker"], &said["pid"]),
        (Some(0), &().into(), &site.running().pid().into())
    );
    let problem = "clusters and servers are unknown: its worker did not answer within 2s";
    assert_eq!(said["problem"], problem);
    assert_eq!(site.state().unwrap().clusters.len(), 1, "then it answers again");
}

#[test]
fn ten_thousand_servers_are_told_at_once_and_to_many_who_ask_together() {
    // Nobody asks them for anything.
    let urls = (0..10_000).map(|n| format!("http://127.1.{}.{}:9", n / 200, n % 200));
    let site = Site::run(&Proxy::over_urls(urls).named("app").module("round_robin"));
    std::thread::scope(|scope| {
        let askers: Vec<_> = (0..8).map(|_| scope.spawn(|| site.state())).collect();
        for asker in askers {
            let state = asker.join().unwrap().unwrap();
            assert_eq!((state.clusters[0].servers.len(), state.servers_left_out), (10_000, 0));
        }
    });
}
