//! Modules that nobody asks any more: a balancer that did wrong too often, or one whose file was not to be opened. The
//! host chooses in their place, and everything that is the host's goes on as ever.

use std::collections::BTreeMap;

use tests::Gate;
use tests::artifacts;
use tests::journal::Journal;
use tests::log;
use tests::origin::Origin;
use tests::proxy::{Builder, Proxy};
use trylist::module::balancer::ModuleFault;

const QUARANTINED: &str = "trylist_balancer_quarantined{cluster=\"%\",module=\"MODULE\"}";
const CALLS: &str = "trylist_module_calls_total{cluster=\"%\",module=\"MODULE\",call=\"next\"}";
const FALLBACKS: &str = "trylist_fallbacks_total{cluster=\"%\",module=\"MODULE\"}";

fn metric(proxy: &Proxy, series: &str, module: &str) -> f64 {
    proxy.metric(&series.replace("MODULE", module))
}

// ---- a balancer that did wrong ---------------------------------------------------------------------------------------

/// This module does wrong at every request. Each is answered all the same, and after some of them it is not asked.
#[track_caller]
fn is_put_in_quarantine(broken: &str, kind: &str, last: &str) {
    const N_CLIENTS: usize = 4;
    let module = broken.replace('-', "_");
    let origins = ["a", "b"].map(Origin::named);
    let proxy = Proxy::over(&origins).broken(broken).threads(2).top("supervision.module_faults = 5").start();
    assert_eq!(metric(&proxy, QUARANTINED, &module), 0.0);
    std::thread::scope(|scope| {
        for _ in 0..N_CLIENTS {
            scope.spawn(|| {
                let mut client = proxy.connect();
                for _ in 0..50 {
                    assert_eq!(client.get("/").reply().status(), 200);
                }
            });
        }
    });
    assert_eq!(metric(&proxy, QUARANTINED, &module), 1.0);
    let asked = metric(&proxy, CALLS, &module);
    // Each client may have been inside the module when the others brought it to its limit.
    assert!((5.0..=5.0 + N_CLIENTS as f64).contains(&asked), "{asked}");
    let faults = format!("trylist_module_faults_total{{cluster=\"%\",module=\"{module}\",fault=\"{kind}\"}}");
    assert_eq!(proxy.metric(&faults), asked);
    assert_eq!(proxy.faults(), BTreeMap::from([(module.as_str().into(), asked as u64)]));
    let said = format!(
        "cluster \"{}\": module \"{module}\" 1.0.0 is in quarantine until the next reload: 5 faults within 60 s (last: ",
        proxy.cluster()
    );
    let lines = log::lines(&["ERROR", &said, last, "; the host chooses servers for its requests"]);
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(origins.iter().all(|origin| origin.requests().len() > 50), "both get their share");
}

#[test]
fn a_balancer_that_panics_whenever_asked_is_not_asked_for_long() {
    is_put_in_quarantine(
        "panics-in-next",
        "panic",
        "next panicked at panics-in-next/src/lib.rs:20: cannot choose",
    );
}

#[test]
fn a_balancer_that_answers_rubbish_whenever_asked_is_not_asked_for_long() {
    is_put_in_quarantine("answers-out-of-range", "out_of_range", "answered endpoint 1000000 of 2");
}

#[test]
fn a_limit_of_zero_bears_with_everything() {
    let origin = Origin::named("a");
    let proxy = Proxy::over([&origin]).broken("panics-in-next").top("supervision.module_faults = 0").start();
    assert_eq!(proxy.names(30), ["a"; 30].join(" "));
    assert_eq!(metric(&proxy, CALLS, "panics_in_next"), 30.0);
    assert_eq!(metric(&proxy, QUARANTINED, "panics_in_next"), 0.0);
}

#[test]
fn calls_that_take_too_long_count_as_well() {
    let origin = Origin::named("a");
    let proxy = Proxy::over([&origin]).top("supervision.module_faults = 2").start();
    let members = proxy.first_cluster().newest();
    let balancer = members.tiers[0].instance.balancer.as_ref().unwrap();
    for expected in ["0", "1"] {
        balancer.fault(ModuleFault::Overrun, &"next took 1.5 s");
        assert_eq!(balancer.is_quarantined(), expected == "1");
    }
    assert_eq!(metric(&proxy, QUARANTINED, "proxy_lb"), 1.0);
    let faults = "trylist_module_faults_total{cluster=\"%\",module=\"proxy_lb\",fault=\"overrun\"}";
    assert_eq!(proxy.metric(faults), 2.0);
    assert_eq!(proxy.names(3), "a a a");
    assert_eq!(metric(&proxy, CALLS, "proxy_lb"), 0.0);
}

/// The trylist of a request that began before goes on to its end.
#[test]
fn what_was_begun_is_ended() {
    let gate = Gate::default();
    let origins = [Origin::gated("gated", &gate), Origin::named("free")];
    let journal = Journal::new();
    let proxy = Proxy::over(&origins)
        .module_file("records_calls", &artifacts::broken("records-calls"))
        .in_cluster(&format!("settings = {}", journal.settings(&["0", "panic"])))
        .server(0, "max_requests = 1")
        .top("supervision.module_faults = 1")
        .start();
    let mut early = proxy.connect();
    early.get("/early");
    origins[0].wait_for_requests(1);
    // Its first answer is declined, and instead of a second the module panics.
    assert_eq!(proxy.get("/faulty").text(), "free");
    assert_eq!(metric(&proxy, QUARANTINED, "records_calls"), 1.0);
    assert_eq!(proxy.get("/late").text(), "free");
    gate.open();
    assert_eq!(early.reply().text(), "gated");
    drop(proxy);
    let calls = journal.all();
    let of = |path: &str| calls.iter().filter(|call| call.starts_with(path)).cloned().collect::<Vec<_>>();
    assert_eq!(
        of("/early")[1..],
        [
            "/early next after []: 0",
            "/early observe 0 Connected",
            "/early observe 0 ResponseHeaders 200, load None",
            "/early observe 0 TryEnded Served",
            "/early finish Served by Some(0), status Some(200), tries 1",
            "/early drop",
        ]
    );
    assert_eq!(of("/faulty").last().map(String::as_str), Some("/faulty drop"));
    assert_eq!(of("/late"), [""; 0]);
}

// ---- a module that was not opened ------------------------------------------------------------------------------------

const UNOPENED: &str = "not_opened";

/// Over these servers with a module whose file does not even exist, but asks for much where it does.
fn unopened<'a>(origins: impl IntoIterator<Item = &'a Origin>) -> Builder {
    Proxy::over(origins).module_file(UNOPENED, "/no/such/module.so".as_ref()).in_cluster("key = \"client\"")
}

#[test]
fn a_cluster_without_its_module_serves() {
    let origins = ["a", "b"].map(Origin::named);
    let proxy = unopened(&origins).start_without_module();
    let names = proxy.names(60);
    for name in ["a", "b"] {
        assert!(names.matches(name).count() > 9, "{names}");
    }
    assert_eq!(metric(&proxy, QUARANTINED, UNOPENED), 1.0);
    assert_eq!(metric(&proxy, FALLBACKS, UNOPENED), 60.0);
    assert_eq!(proxy.faults(), BTreeMap::from([(UNOPENED.into(), 0)]));
    for call in ["load_balance", "next", "finish", "drop"] {
        let calls =
            format!("trylist_module_calls_total{{cluster=\"%\",module=\"{UNOPENED}\",call=\"{call}\"}}");
        assert_eq!(proxy.metric(&calls), 0.0);
    }
    let time = format!("trylist_module_time_seconds_count{{cluster=\"%\",module=\"{UNOPENED}\"}}");
    assert_eq!(proxy.metric(&time), 0.0, "what is not called takes no time");
    log::line(&["WARN", &format!("module=\"{UNOPENED}\""), "module is in quarantine and not opened"]);
}

#[test]
fn one_module_in_quarantine_leaves_the_others_alone() {
    let origins = ["a", "b"].map(Origin::named);
    let other = format!(
        "[[cluster]]\nname = \"other\"\nmodule = \"first\"\nservers = [{:?}]\n[[route]]\npath = \"/other\"\ncluster = \"other\"\n",
        origins[1].url()
    );
    let builder = unopened(&origins[..1]).route("path = \"/\"").tables(&other);
    let proxy = builder.and_module("first").start_without_module();
    assert_eq!((proxy.get("/").text(), proxy.get("/other").text()), ("a".into(), "b".into()));
    assert_eq!(proxy.metric("trylist_balancer_quarantined{cluster=\"other\",module=\"first\"}"), 0.0);
    assert_eq!(
        proxy.metric("trylist_module_calls_total{cluster=\"other\",module=\"first\",call=\"next\"}"),
        1.0
    );
}

#[test]
fn tiers_follow_each_other_without_a_module() {
    let origins = [Origin::dead(), Origin::dead(), Origin::named("backup")];
    let proxy = unopened(&origins).server(2, "backup = true").start_without_module();
    assert_eq!(proxy.names(4), ["backup"; 4].join(" "));
    proxy.set_state(2, lb_api::wire::STATE_DOWN);
    assert_eq!(proxy.get("/").status(), 502);
}

#[test]
fn limits_and_the_queue_hold_without_a_module() {
    let gate = Gate::default();
    let origin = Origin::gated("gated", &gate);
    let builder = unopened([&origin]).each_server("max_requests = 1");
    let proxy = builder.in_cluster("queue = 1\nqueue_timeout = \"20s\"").start_without_module();
    let (mut busy, mut waiting) = (proxy.connect(), proxy.connect());
    busy.get("/");
    origin.wait_for_requests(1);
    waiting.get("/");
    proxy.wait_for_queue(1);
    assert_eq!(proxy.get("/").status(), 503);
    gate.open();
    assert_eq!([busy.reply().text(), waiting.reply().text()], ["gated", "gated"]);
}

#[test]
fn sessions_stay_without_a_module() {
    let origins = ["a", "b", "c"].map(Origin::named);
    let proxy = unopened(&origins).in_cluster("sticky = { cookie = \"server\" }").start_without_module();
    let first = proxy.get("/");
    let cookie = first.header("set-cookie").unwrap().split_once(';').unwrap().0.to_owned();
    for _ in 0..10 {
        let request = format!("GET / HTTP/1.1\r\nHost: a\r\nCookie: {cookie}\r\n\r\n");
        assert_eq!(proxy.connect().send(request).reply().text(), first.text());
    }
}
