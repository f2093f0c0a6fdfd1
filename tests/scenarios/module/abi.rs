//! Modules of the first release of the ABI, with that release's side of the boundary kept beside them, in this host.

use tests::origin::Origin;
use tests::proxy::Proxy;
use tests::{artifacts, command, log};
use trylist::module::load;

fn origin(name: &'static str) -> Origin {
    Origin::serving(move |conn| {
        while conn.request().is_some() {
            conn.send(format!(
                "HTTP/1.1 200 OK\r\nX-Load: 7\r\nContent-Length: {}\r\n\r\n{name}",
                name.len()
            ));
        }
    })
}

/// A line of the module's in the host's log, from `what` on.
fn said(proxy: &Proxy, what: &str) -> String {
    let line = log::line(&[&format!("cluster=\"{}\"", proxy.cluster()), what]);
    let (text, _fields) = line[line.find(what).unwrap()..].split_once(" module=").unwrap();
    text.to_owned()
}

#[test]
fn modules_of_the_first_release_are_loaded_and_say_so() {
    for file in [artifacts::first_release(), artifacts::first_release_c()] {
        let module = load::inspect(&file).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(module.abi(), (1, 0));
    }
}

#[test]
fn modules_of_the_first_release_keep_the_contract() {
    for (file, settings) in
        [(artifacts::first_release(), &[][..]), (artifacts::first_release_c(), &["--setting", "first=0"][..])]
    {
        let arguments = ["module", "test", file.to_str().unwrap(), "--skips-unavailable"];
        let tested = command::trylist(&[&arguments, settings].concat());
        let report = String::from_utf8_lossy(&tested.stdout);
        let ok = report.lines().filter(|line| line.starts_with("ok ")).count();
        // That an instance goes on where the one before stands was not asked for then.
        let is_new = |line: &str| line.contains("keeps its shares over rebuilds");
        let failed: Vec<&str> =
            report.lines().filter(|line| line.starts_with("FAILED") && !is_new(line)).collect();
        assert!(ok > 12 && failed.is_empty(), "{report}");
    }
}

#[test]
fn a_rust_module_of_the_first_release_hears_what_it_heard_then() {
    let origins = ["a", "b"].map(origin);
    let proxy = Proxy::over(&origins).module_file("first_release", &artifacts::first_release()).start();
    assert_eq!(proxy.names(4), "a b a b");
    assert_eq!(
        said(&proxy, "outcome 1 from 1"),
        "outcome 1 from 1, status 200, tries 1; asked 1, failures 0"
    );
    origins[0].stop();
    assert_eq!(proxy.get("/").text(), "b");
    assert_eq!(
        said(&proxy, "outcome 1 from 1, status 200, tries 2"),
        "outcome 1 from 1, status 200, tries 2; asked 2, failures 1"
    );
}

#[test]
fn a_c_module_of_the_first_release_hears_what_it_heard_then() {
    let origins = ["a", "b", "c"].map(origin);
    let proxy = Proxy::over(&origins)
        .module_file("first_release_c", &artifacts::first_release_c())
        .each_server("weight = 2")
        .in_cluster("settings = { first = 1 }")
        .start();
    let built = format!("built {}: 3 endpoints, weights 6, saved 0", proxy.cluster());
    assert_eq!(said(&proxy, "built "), built);
    assert_eq!(proxy.names(3), "b c a");
    let told = "sent 1, received 1; asked 1, failures 0, connected 1, heads 1, ended 1, result 1, load \"7\"";
    for endpoint in 0..3 {
        let outcome = format!("outcome 1 from {endpoint}, status 200, tries 1, ");
        assert_eq!(said(&proxy, &outcome), outcome + told);
    }
    let asked = |start: u32| {
        let request = format!("GET / HTTP/1.1\r\nHost: x\r\nX-Start: {start}\r\n\r\n");
        proxy.connect().send(&request).reply().text()
    };
    assert_eq!((asked(2), asked(0)), ("c".into(), "a".into()));
    proxy.set_state(2, lb_api::wire::STATE_DOWN);
    assert_eq!(asked(2), "a");
    origins[1].stop();
    assert_eq!(asked(1), "a");
    let outcome = "outcome 1 from 0, status 200, tries 2, ";
    let told = "sent 1, received 1; asked 2, failures 1, connected 1, heads 1, ended 2, result 1, load \"7\"";
    assert_eq!(said(&proxy, outcome), outcome.to_owned() + told);
}

#[test]
fn a_c_module_of_the_first_release_is_heard_when_it_refuses_its_settings() {
    let origins = ["a"].map(origin);
    let proxy = Proxy::over(&origins)
        .module_file("first_release_c", &artifacts::first_release_c())
        .in_cluster("settings = { last = 1 }");
    let refused = proxy.try_start().expect_err("it must be refused").to_string();
    assert!(refused.contains("last: expected the setting \"first\" and an index"), "{refused}");
}
