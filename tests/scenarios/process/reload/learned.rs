//! The next generation goes on with the learned state and the load of the one before.

use super::*;

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
    let slow = Origin::in_halves(HALF, &gate);
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
    let origin = Origin::gated("done", &gate);
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
    let origin = Origin::gated("done", &gate);
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
    let origin = Origin::gated("done", &gate);
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
