//! The admin listener over generations.

use super::*;

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
