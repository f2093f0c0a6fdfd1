//! The admin listener over generations.

use super::*;
use trylist::process::control::ServerOrder;

#[test]
fn the_newest_generation_answers_the_admin_listener() {
    let gate = Gate::default();
    let origin = Origin::gated("done", &gate);
    let site = Site::run(&over([&origin]));
    let admin = site.status().admin;
    let mut client = site.connect();
    client.get("/");
    origin.wait_for_requests(1);
    site.reload();
    assert_eq!(site.status().admin, admin);
    // The one before drains, and would say so.
    for _ in 0..20 {
        let (alive, ready) = (site.admin("/healthz"), site.admin("/readyz"));
        assert_eq!((alive.status(), ready.status(), ready.text().as_str()), (200, 200, "ready\n"));
    }
    assert_eq!(site.status().generations.len(), 2);
    gate.open();
    assert_eq!(client.reply().text(), "done");
}

fn is_unready(site: &Site, why: &str) {
    eventually(why, || {
        let reply = site.admin("/readyz");
        (reply.status() == 503 && reply.text() == format!("{why}\n")).then_some(())
    });
}

/// A load balancer in front hears of the end before anybody is refused.
#[test]
fn a_stop_fails_readiness_and_serves_on_until_its_delay_is_over() {
    let origin = Origin::named("a");
    let site = Site::run(&over([&origin]).tables("[timeouts]\nstop_delay = \"1h\"\n"));
    site.running().signal(Signal::TERM);
    site.running().logs("SIGTERM: not ready from now on; draining after 3600s");
    is_unready(&site, "stopping");
    assert_eq!((site.get("/").text(), site.admin("/healthz").status()), ("a".to_owned(), 200));
    // A generation that starts now is not ready either.
    site.reload();
    is_unready(&site, "stopping");
    assert_eq!(site.get("/").text(), "a");
    site.running().signal(Signal::TERM);
    site.running().logs("SIGTERM: draining; a second signal stops at once");
    let (code, _) = site.end();
    assert_eq!(code, Some(0));
}

#[test]
fn the_drain_begins_by_itself_when_the_delay_of_a_stop_is_over() {
    let origin = Origin::named("a");
    let site = Site::run(&over([&origin]).tables("[timeouts]\nstop_delay = \"10ms\"\n"));
    let (code, said, complained) = spoken(&site.folder().command("stop", &[]));
    let text = "not ready from now on; draining after 10ms, then stopping\n";
    assert_eq!((code, &*said, &*complained), (Some(0), text, ""));
    site.running().logs("stop_delay is over: draining");
    assert_eq!(site.end().0, Some(0));
}

#[test]
fn readiness_depends_on_the_clusters_that_it_needs() {
    let (origin, other) = (Origin::named("a"), Origin::named("b"));
    let needs = "address = \"127.0.0.1:0\"\nready_needs = [\"app\"]";
    let text = over([&origin]).text();
    assert!(text.contains("address = \"127.0.0.1:0\""), "{text}");
    let (before, admin) = text.split_once("[admin]\n").expect("a table");
    let admin = admin.replacen("address = \"127.0.0.1:0\"", needs, 1);
    let unneeded =
        format!("[[cluster]]\nname = \"other\"\nmodule = \"round_robin\"\nservers = [\"{}\"]\n", other.url());
    let site = Site::of(&format!("{before}[admin]\n{admin}\n{unneeded}"));
    assert_eq!(site.admin("/readyz").text(), "ready\n");
    site.order("other", &other.url(), ServerOrder::Maintenance).unwrap();
    assert_eq!(site.admin("/readyz").text(), "ready\n");
    site.order("app", &origin.url(), ServerOrder::Maintenance).unwrap();
    is_unready(&site, "cluster \"app\" has no available server");
    site.order("app", &origin.url(), ServerOrder::Ready).unwrap();
    eventually("it is ready again", || (site.admin("/readyz").text() == "ready\n").then_some(()));
}

/// Large enough not to fit into the sockets' buffers.
#[test]
fn a_scrape_that_a_reload_meets_is_answered_whole() {
    let name = "n".repeat(1_000);
    // Nobody asks them for anything.
    let urls = (0..400).map(|n| format!("http://127.0.0.1:{}", 1_000 + n));
    let site = Site::run(&Proxy::over_urls(urls).named(&name).module("round_robin"));
    let admin = site.status().admin.unwrap().parse().unwrap();
    let before = site.worker();
    let mut client = Client::connect(admin);
    client.send("GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    // It has begun to answer.
    client.socket().peek(&mut [0]).unwrap();
    let worker = process(before).unwrap();
    site.reload();
    assert_eq!(site.admin("/readyz").text(), "ready\n");
    let reply = client.reply();
    let length: usize = reply.header("content-length").unwrap().parse().unwrap();
    assert_eq!(reply.text().len(), length);
    assert!(length > 8 << 20, "{length} bytes fit into buffers");
    // Then there is nothing left to wait for.
    wait_for_end_of(&worker);
}

/// Nobody who says nothing keeps a worker that has drained.
#[test]
fn silent_connections_to_the_admin_listener_end_with_the_worker() {
    let origin = Origin::named("a");
    let site = Site::run(&over([&origin]));
    let admin = site.status().admin.unwrap().parse().unwrap();
    let mut silent = [(); 3].map(|()| Client::connect(admin));
    // Those before it have been accepted by then.
    assert_eq!(site.admin("/healthz").status(), 200);
    site.reload_wholly();
    for client in &mut silent {
        client.end();
    }
}
