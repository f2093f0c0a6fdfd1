//! The queue passes over requests that no free server suits.

use super::*;

/// Answers `/flaky` with 503 at once, all else with 200.
fn flaky(name: &'static str) -> Origin {
    Origin::serving(move |conn| {
        while let Some(request) = conn.request() {
            let status = if request.line().contains("/flaky") { "503 No" } else { "200 OK" };
            let length = name.len();
            conn.send(format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{name}"));
        }
    })
}

#[test]
fn nobody_waits_behind_a_retry_that_waits_for_another_server() {
    for case in all_modules() {
        let gate = Gate::default();
        let origins = [Origin::gated("ok", &gate), flaky("idle")];
        let proxy = case
            .over(&origins)
            .server(0, "max_requests = 1")
            .server(1, "max_requests = 100")
            .in_cluster("queue_timeout = \"20s\"")
            .route("path = \"/\"\nretry = { on = [\"503\"], backoff = \"0s\" }")
            .start();
        proxy.set_state(1, STATE_DOWN);
        let (mut busy, mut retried) = (proxy.connect(), proxy.connect());
        busy.get("/busy");
        origins[0].wait_for_requests(1);
        proxy.set_state(1, STATE_AVAILABLE);
        retried.get("/flaky");
        proxy.wait_for_queue(1);
        // The queue is asked again every 250 ms; by events alone it is not.
        for _ in 0..4 {
            assert_eq!(proxy.get("/").text(), "idle", "{case}");
        }
        let waits = proxy.metric("trylist_queue_waits_total{cluster=\"%\",end=\"admitted\"}");
        assert_eq!(waits, 0.0, "{case}: none of them has waited");
        gate.open();
        assert_eq!([busy.reply().text(), retried.reply().text()], ["ok", "ok"], "{case}");
    }
}

/// A module may answer one server only, and different ones for different requests.
#[test]
fn nobody_waits_behind_a_request_whose_module_answers_another_server() {
    let gate = Gate::default();
    let origins = [Origin::gated("ok", &gate), flaky("idle")];
    let proxy = Proxy::over(&origins)
        .module_file("exhausts_early", &artifacts::broken("exhausts-early"))
        .each_server("max_requests = 1")
        .in_cluster("queue_timeout = \"20s\"")
        .start();
    let mut clients = line_up(&proxy, &origins[0], ["/0/0", "/0/1", "/0/2", "/0/3"]);
    for _ in 0..4 {
        assert_eq!(proxy.get("/1").text(), "idle");
    }
    let waits = proxy.metric("trylist_queue_waits_total{cluster=\"%\",end=\"admitted\"}");
    assert_eq!(waits, 0.0, "none of them has waited");
    gate.open();
    for client in &mut clients {
        assert_eq!(client.reply().text(), "ok");
    }
    assert_eq!(paths_of(&origins[0]), ["/0/0", "/0/1", "/0/2", "/0/3"], "in the order of coming");
}

/// A free server goes to a request that can use it.
#[test]
fn a_server_that_comes_free_is_not_offered_to_a_retry_that_has_tried_it() {
    let (first, second) = (Gate::default(), Gate::default());
    let failing = Origin::serving({
        let second = second.clone();
        move |conn| {
            while let Some(request) = conn.request() {
                if request.line().contains("/busy") {
                    second.wait();
                }
                let status = if request.line().contains("/flaky") { "503 No" } else { "200 OK" };
                conn.send(format!("HTTP/1.1 {status}\r\nContent-Length: 6\r\n\r\nsecond"));
            }
        }
    });
    let origins = [Origin::gated("ok", &first), failing];
    let proxy = Proxy::over(&origins)
        .each_server("max_requests = 1")
        .in_cluster("queue_timeout = \"20s\"")
        .route("path = \"/\"\nretry = { on = [\"503\"], backoff = \"0s\" }")
        .start();
    proxy.set_state(1, STATE_DOWN);
    let mut clients = [(); 4].map(|()| proxy.connect());
    let [busy, retried, other, waiting] = &mut clients;
    busy.get("/");
    origins[0].wait_for_requests(1);
    proxy.set_state(1, STATE_AVAILABLE);
    retried.get("/flaky");
    proxy.wait_for_queue(1);
    other.get("/busy");
    origins[1].wait_for_requests(2);
    waiting.get("/waiting");
    proxy.wait_for_queue(2);
    second.open();
    assert_eq!(waiting.reply().text(), "second");
    first.open();
    assert_eq!([busy.reply().text(), retried.reply().text()], ["ok", "ok"]);
    assert_eq!(other.reply().status(), 200);
}
