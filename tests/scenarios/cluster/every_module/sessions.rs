//! Sticky sessions.

use super::*;

const SECRET: &str = "secret = \"0123456789abcdef\"";

fn get_with(proxy: &Proxy, header: &str) -> tests::stream::Message {
    proxy.connect().send(format!("GET / HTTP/1.1\r\nHost: test\r\n{header}\r\n\r\n")).reply()
}

#[test]
fn a_session_stays_with_the_server_that_its_cookie_names() {
    for case in all_modules() {
        let origins = ["a", "b", "c"].map(Origin::named);
        let sticky = format!("sticky = {{ cookie = \"server\", {SECRET} }}");
        let start = || case.over(&origins).named("sessions").in_cluster(&sticky).start();
        let proxy = start();
        let first = proxy.get("/");
        let cookie = first.header("set-cookie").expect("a cookie");
        let (pair, attributes) = cookie.split_once("; ").unwrap();
        assert_eq!(attributes, "Path=/; HttpOnly; SameSite=Lax");
        let mine = format!("Cookie: other=1; {pair}; more=2");
        for _ in 0..20 {
            let reply = get_with(&proxy, &mine);
            assert_eq!(reply.text(), first.text(), "{case}");
            assert_eq!(reply.header("set-cookie"), None, "{case}: it has one");
        }
        // The secret and the servers are the same, so the cookie is.
        drop(proxy);
        let proxy = start();
        assert_eq!(get_with(&proxy, &mine).text(), first.text(), "{case}: after a restart");

        let idx = ["a", "b", "c"].iter().position(|name| *name == first.text()).unwrap();
        origins[idx].stop();
        let moved = get_with(&proxy, &mine);
        assert_ne!(moved.text(), first.text(), "{case}");
        let (next, _) = moved.header("set-cookie").expect("a new cookie").split_once("; ").unwrap();
        assert_ne!(next, pair);
        assert_eq!(get_with(&proxy, &format!("Cookie: {next}")).text(), moved.text(), "{case}");
    }
}

#[test]
fn the_cookie_is_for_tls_alone_where_the_client_came_by_tls() {
    let origins = ["a", "b"].map(Origin::named);
    let cookie = |more: &str, request: &str| {
        let sticky = format!("sticky = {{ cookie = \"server\", {SECRET}{more} }}");
        let trust = "[forwarded]\ntrusted = [\"127.0.0.1\"]";
        let proxy = Proxy::over(&origins).in_cluster(&sticky).tables(trust).start();
        let reply = get_with(&proxy, request);
        let cookie = reply.header("set-cookie").expect("a cookie").to_owned();
        cookie.split_once("; ").unwrap().1.to_owned()
    };
    // As a proxy in front says, which speaks TLS itself; `tls` has the same without one.
    let (clear, tls) = ("X-Forwarded-Proto: http", "X-Forwarded-Proto: https");
    assert_eq!(cookie("", clear), "Path=/; HttpOnly; SameSite=Lax");
    assert_eq!(cookie("", tls), "Path=/; HttpOnly; SameSite=Lax; Secure");
    assert_eq!(cookie(", secure = false", tls), "Path=/; HttpOnly; SameSite=Lax");
    assert_eq!(cookie(", secure = true", clear), "Path=/; HttpOnly; SameSite=Lax; Secure");
    let all = ", same_site = \"none\", path = \"/app\", domain = \"Example.com\", max_age = \"1h\"";
    assert_eq!(
        cookie(all, tls),
        "Path=/app; HttpOnly; SameSite=None; Secure; Domain=example.com; Max-Age=3600"
    );
}

/// Of another path, or of another domain: a client sends them all, in an order of its own.
#[test]
fn a_session_is_found_among_several_cookies_of_one_name() {
    let origins = ["a", "b"].map(Origin::named);
    let sticky = format!("sticky = {{ cookie = \"server\", {SECRET} }}");
    let proxy = Proxy::over(&origins).in_cluster(&sticky).start();
    let first = proxy.get("/");
    let mine = first.header("set-cookie").unwrap().split_once(';').unwrap().0.to_owned();
    for cookies in [format!("server=other; {mine}"), format!("server=other\r\nCookie: server=; {mine}")] {
        for _ in 0..4 {
            let reply = get_with(&proxy, &format!("Cookie: {cookies}"));
            assert_eq!((reply.text(), reply.header("set-cookie")), (first.text(), None), "{cookies}");
        }
    }
}

/// As before and after a reload: each knows the sessions of the other, though the file has changed.
#[test]
fn two_workers_with_one_secret_know_each_others_sessions() {
    let origins = ["a", "b", "c", "new"].map(Origin::named);
    let [a, b, c, new] = &origins;
    let sticky = format!("sticky = {{ cookie = \"server\", {SECRET} }}");
    let start = |servers: &[&Origin], sticky: &str| {
        Proxy::over(servers.iter().copied()).named("reloaded").in_cluster(sticky).start()
    };
    let (old, fresh) = (start(&[a, b, c], &sticky), start(&[new, c, b, a], &sticky));
    let stranger = start(&[a, b, c], &sticky.replace("0123", "3210"));
    let session = |proxy: &Proxy| {
        let reply = proxy.get("/");
        (reply.text(), format!("Cookie: {}", reply.header("set-cookie").unwrap().split(';').next().unwrap()))
    };
    for (issued_by, known_to) in [(&old, &fresh), (&fresh, &old)] {
        for _ in 0..4 {
            let (server, cookie) = session(issued_by);
            let replies = [(); 5].map(|()| get_with(known_to, &cookie));
            let is_known = server != "new" || std::ptr::eq(known_to, &fresh);
            for reply in replies {
                assert_eq!(reply.header("set-cookie").is_none(), is_known, "{server}: {}", reply.head);
                assert!(!is_known || reply.text() == server, "{server}, and then {}", reply.text());
            }
            assert!(
                get_with(&stranger, &cookie).header("set-cookie").is_some(),
                "with another secret it is nobody's"
            );
        }
    }
}

#[test]
fn a_cookie_that_is_not_ours_names_nobody() {
    let origins = ["a", "b"].map(Origin::named);
    let sticky = format!("sticky = {{ cookie = \"server\", {SECRET} }}");
    let proxy = Proxy::over(&origins).in_cluster(&sticky).start();
    let issued = proxy.get("/").header("set-cookie").unwrap().split_once(';').unwrap().0.to_owned();
    let last = if issued.ends_with('0') { "1" } else { "0" };
    let forged = format!("{}{last}", &issued[..issued.len() - 1]);
    let other = ["server=", "server=a", &forged, &issued[..issued.len() - 1]];
    for cookie in other {
        let replies = [(); 2].map(|()| get_with(&proxy, &format!("Cookie: {cookie}")));
        assert_ne!(replies[0].text(), replies[1].text(), "{cookie}: the module's turn");
        assert!(replies.iter().all(|reply| reply.header("set-cookie").is_some()), "{cookie}");
    }
}

#[test]
fn applications_name_the_route_themselves() {
    let origins = ["a", "b", "c"].map(Origin::named);
    let sticky =
        "sticky = { app_cookie = \"JSESSIONID\", url_parameter = \"jsessionid\", header = \"X-Session\" }";
    let mut builder = Proxy::over(&origins).in_cluster(sticky);
    for (idx, route) in ["ra", "rb", "rc"].into_iter().enumerate() {
        builder = builder.server(idx, &format!("route = {route:?}"));
    }
    let proxy = builder.start();
    for _ in 0..4 {
        assert_eq!(get_with(&proxy, "Cookie: x=1; JSESSIONID=0123.rb").text(), "b");
        assert_eq!(get_with(&proxy, "X-Session: 1.rc").text(), "c");
        assert_eq!(proxy.get("/p?x=1&jsessionid=5.ra").text(), "a");
        assert_eq!(proxy.get("/p;jsessionid=5.rc/q?x=1").text(), "c");
    }
    let reply = proxy
        .connect()
        .send("GET /?jsessionid=1.rc HTTP/1.1\r\nHost: a\r\nCookie: JSESSIONID=1.ra\r\n\r\n")
        .reply();
    assert_eq!((reply.text().as_str(), reply.header("set-cookie")), ("c", None), "the URL comes first");
    for unknown in ["Cookie: JSESSIONID=0123", "Cookie: JSESSIONID=1.nobody", "X-Session: rb"] {
        assert_ne!(get_with(&proxy, unknown).text(), get_with(&proxy, unknown).text(), "{unknown}");
    }
}

#[test]
fn a_session_leaves_a_server_that_is_full_or_in_maintenance_and_no_other() {
    let gate = Gate::default();
    let origins = [Origin::gated("ok", &gate), Origin::named("other")];
    let sticky = "sticky = { header = \"X-Session\", separator = \"\" }";
    let builder = Proxy::over(&origins).in_cluster(sticky).server(0, "route = \"a\", max_requests = 1");
    let proxy = builder.start();
    let mut busy = proxy.connect();
    busy.send("GET / HTTP/1.1\r\nHost: test\r\nX-Session: a\r\n\r\n");
    origins[0].wait_for_requests(1);
    assert_eq!(get_with(&proxy, "X-Session: a").text(), "other");
    gate.open();
    assert_eq!(busy.reply().text(), "ok");
    assert_eq!(get_with(&proxy, "X-Session: a").text(), "ok");
    proxy.set_state(0, STATE_DRAINING);
    assert_eq!(get_with(&proxy, "X-Session: a").text(), "ok", "a server that drains keeps its sessions");
    let cluster = proxy.first_cluster();
    cluster.set_source(&cluster.member(0), HealthSource::Maintenance, true);
    assert_eq!(get_with(&proxy, "X-Session: a").text(), "other");
}

/// The cookie would have its client stay with the other one for good.
#[test]
fn a_session_stays_with_its_server_though_that_is_full_for_a_moment() {
    for case in all_modules() {
        let origins = ["ok", "other"].map(Origin::named);
        let sticky = format!("sticky = {{ cookie = \"server\", {SECRET} }}");
        let builder = case.over(&origins).server(0, "max_requests = 1").in_cluster(&sticky);
        let proxy = builder.start();
        proxy.set_state(1, STATE_DOWN);
        let reply = proxy.get("/");
        proxy.set_state(1, STATE_AVAILABLE);
        let cookie = reply.header("set-cookie").expect("a cookie").split(';').next().unwrap().to_owned();
        let cookie = format!("Cookie: {cookie}");
        proxy.first_cluster().set_in_flight_older(&proxy.first_cluster().member(0), 1);
        let elsewhere = get_with(&proxy, &cookie);
        assert_eq!((elsewhere.text().as_str(), elsewhere.header("set-cookie")), ("other", None), "{case}");
        proxy.first_cluster().set_in_flight_older(&proxy.first_cluster().member(0), 0);
        assert_eq!(get_with(&proxy, &cookie).text(), "ok", "{case}");
        let cluster = proxy.first_cluster();
        cluster.set_source(&cluster.member(0), HealthSource::Maintenance, true);
        let moved = get_with(&proxy, &cookie);
        assert_eq!(moved.text(), "other", "{case}");
        assert!(moved.header("set-cookie").is_some(), "{case}: it is gone for longer");
    }
}

#[test]
fn the_module_is_told_whom_the_host_prefers_and_asked_only_where_that_fails() {
    let origins = [Origin::named("other"), Origin::named("own")];
    let journal = Journal::new();
    let proxy = Proxy::over(&origins)
        .server(1, "route = \"own\"")
        .module_file("records_calls", &artifacts::broken("records-calls"))
        .in_cluster("sticky = { url_parameter = \"s\" }")
        .in_cluster(&format!("settings = {}", journal.settings(&["0"])))
        .start();
    assert_eq!(proxy.get("/1?s=x.own").text(), "own");
    origins[1].stop();
    assert_eq!(proxy.get("/2?s=x.own").text(), "other");
    drop(proxy);
    let calls = journal.all();
    let of = |path: &str| calls.iter().filter(|call| call.starts_with(path)).cloned().collect::<Vec<_>>();
    assert_eq!(of("/1")[..2], ["/1 load_balance, preferred 1", "/1 observe 1 Connected"]);
    assert_eq!(
        of("/2")[..4],
        [
            "/2 load_balance, preferred 1",
            "/2 report_failure 1 Connect, try 1",
            "/2 observe 1 TryEnded NotEstablished",
            "/2 next after [1]: 0",
        ]
    );
}
