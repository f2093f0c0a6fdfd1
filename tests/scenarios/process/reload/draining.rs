//! Generations that drain.

use super::*;

#[test]
fn nothing_is_cut_off_before_its_drains_end_however_many_reloads_there_are() {
    let gate = Gate::default();
    let origin = Origin::gated("done", &gate);
    let site = Site::run(&routed(&origin));
    let mut clients = draining(&site, &origin, 7);
    gate.open();
    for client in &mut clients {
        assert_eq!(client.reply().text(), "done");
    }
    drop(clients);
    site.wait_for_only(8);
    assert_eq!(site.running().logged(&["closed by the drain timeout"]), [""; 0]);
}

#[test]
fn a_reload_that_would_have_too_many_drain_is_refused_or_cuts_the_oldest_off() {
    let gate = Gate::default();
    let origin = Origin::gated("done", &gate);
    let builder = routed(&origin).top("supervision.max_draining = 2");
    let site = Site::run(&builder.tables("[timeouts]\ndrain = \"1h\""));
    let mut clients = draining(&site, &origin, 2);
    for (words, arguments) in [("reload", &[][..]), ("module release", &["proxy_lb"])] {
        let (code, said, complained) = spoken(&site.folder().command(words, arguments));
        assert_eq!((code, said.as_str()), (Some(1), ""), "{words}");
        let lines: Vec<&str> = complained.lines().collect();
        assert_eq!((lines.len(), lines[0]), (4, "2 generations drain, and max_draining is 2"), "{lines:#?}");
        for (line, number) in lines[1..3].iter().zip([1, 2]) {
            assert!(line.starts_with(&format!("generation {number} drains for up to 3")), "{line}");
        }
        assert_eq!(lines[3], "wait, or close the oldest with `trylist reload --cut-oldest`");
    }
    assert_eq!(site.generation(), 3);
    let (_, status, _) = spoken(&site.folder().command("status", &[]));
    assert!(status.contains("generation 1: draining for up to 59m"), "{status}");

    let (code, said, _) = spoken(&site.folder().command("reload", &["--cut-oldest"]));
    assert_eq!(code, Some(0), "{said}");
    assert!(said.lines().any(|line| line.starts_with("generation 1 is cut off, ")), "{said}");
    clients.remove(0).end();
    gate.open();
    assert_eq!(clients[0].reply().text(), "done");
    drop(clients);
    site.wait_for_only(4);
}

#[test]
fn reloads_by_signal_wait_until_one_more_may_drain_and_are_one() {
    let gate = Gate::default();
    let origin = Origin::gated("done", &gate);
    let site = Site::run(&routed(&origin).top("supervision.max_draining = 1"));
    let mut clients = draining(&site, &origin, 1);
    for (signal, line) in [
        (
            Signal::HUP,
            "SIGHUP: the reload waits: 1 generation drains, and max_draining is 1; generation 1 ends within ",
        ),
        (Signal::USR1, "SIGUSR1: merged with the reload that waits"),
        (Signal::HUP, "SIGHUP: merged with the reload that waits"),
    ] {
        site.running().signal(signal);
        site.running().logs(line);
    }
    let waiting = site.status().waiting.unwrap();
    assert!(
        waiting.starts_with("a reload (SIGHUP): 1 generation drains, and max_draining is 1; "),
        "{waiting}"
    );
    let (_, status, _) = spoken(&site.folder().command("status", &[]));
    assert!(status.contains("waiting: a reload (SIGHUP)"), "{status}");
    assert_eq!(site.generation(), 2);
    gate.open();
    assert_eq!(clients[0].reply().text(), "done");
    drop(clients);
    site.wait_for_only(3);
    assert_eq!((site.status().waiting, site.generation()), (None, 3));
}

#[test]
fn a_server_that_is_left_alone_stays_so() {
    let is_ill = Arc::new(AtomicBool::new(true));
    let ill = Origin::serving({
        let is_ill = Arc::clone(&is_ill);
        move |conn| {
            while conn.request().is_some()
                && !is_ill.load(Ordering::SeqCst)
                && conn.send("HTTP/1.1 204 No Content\r\n\r\n")
            {}
        }
    });
    let well = Origin::named("well");
    let builder = over([&ill, &well]).in_cluster("ejection = { failures = 1, time = \"1h\" }");
    let site = Site::run(&builder);
    eventually("the ill one is asked", || {
        site.get("/");
        (ill.n_connections() > 0).then_some(())
    });
    let state =
        format!("trylist_endpoint_state{{cluster=\"app\",endpoint=\"{}\",state=\"ejected\"}}", ill.url());
    eventually("it is ejected", || (site.metric(&state) == 1.0).then_some(()));
    // Were it asked again, it would answer.
    is_ill.store(false, Ordering::SeqCst);
    let n_connections = ill.n_connections();
    for _ in 0..2 {
        site.reload_wholly();
        assert_eq!(site.names(20), ["well"; 20].join(" "));
        assert_eq!((site.metric(&state), ill.n_connections()), (1.0, n_connections));
    }
}
