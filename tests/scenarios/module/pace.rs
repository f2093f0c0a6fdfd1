//! Modules that take long or keep memory: what the log, the status, the API and the metrics say of them.

use serde_json::Value;
use tests::origin::Origin;
use tests::proxy::{Builder, Proxy};
use tests::site::{Site, spoken};
use tests::{artifacts, eventually};

const SHARE: &str = "trylist_module_thread_share{cluster=\"app\",module=\"fault\"}";
const GROWTH: &str = "trylist_memory_growth_bytes";
const UPTIME: &str = "trylist_uptime_seconds";

/// A proxy of one thread, whose module does this when it is asked for a server of "/boom".
fn site(origin: &Origin, does: &str, more: &str) -> Site {
    let over: Builder = Proxy::over([origin])
        .named("app")
        .threads(1)
        .module_file("fault", &artifacts::fault(&[]))
        .in_cluster(&format!("settings = {{ at = \"next\", does = \"{does}\" }}"))
        .top(more);
    Site::run(&over)
}

fn booms(site: &Site, n: usize) {
    let mut client = site.connect();
    for _ in 0..n {
        assert_eq!(client.get("/boom").reply().text(), "a");
    }
}

fn module(site: &Site) -> Value {
    let answer: Value = serde_json::from_str(&site.admin("/api/v1/modules").text()).unwrap();
    answer["items"][0].clone()
}

/// The calls of at least so many requests are judged.
fn after_two_looks(site: &Site) {
    let since = site.metric(UPTIME);
    eventually("two looks at the modules", || (site.metric(UPTIME) > since + 2.5).then_some(()));
}

#[test]
fn a_module_that_requests_wait_for_is_told_once_a_minute() {
    let origin = Origin::named("a");
    let site = site(&origin, "sleep_10ms", "");
    booms(&site, 16);
    site.running().logs("the module is slow: a request spends ");
    booms(&site, 16);
    after_two_looks(&site);
    let said = site.running().logged(&["WARN", "the module is slow", "module=\"fault\"", "cluster=\"app\""]);
    assert_eq!(said.len(), 1, "{said:#?}");
    assert!(said[0].contains("module_slow is 1ms"), "{said:#?}");

    let events = eventually("the event", || {
        let mut events = site.state().ok()?.events;
        events.retain(|event| event.kind == "slow");
        (!events.is_empty()).then_some(events)
    });
    assert_eq!(events.len(), 1, "{events:#?}");
    let at = (events[0].cluster.as_deref(), events[0].module.as_deref());
    assert_eq!(at, (Some("app"), Some("fault")));
    assert!(site.admin("/api/v1/events?kind=slow").text().contains("the module is slow"));
}

#[test]
fn the_time_that_a_module_takes_is_a_share_of_the_threads_time() {
    let origin = Origin::named("a");
    let site = site(&origin, "sleep_10ms", "supervision.module_slow = \"0s\"");
    assert_eq!(site.metric(SHARE), 0.0);
    booms(&site, 16);
    // 0.16 s of at most ten.
    let share = eventually("the share", || Some(site.metric(SHARE)).filter(|share| *share > 0.0));
    assert!((0.001..=1.0).contains(&share), "{share}");
    let told = module(&site);
    assert!(told["thread_share"].as_f64().unwrap() > 0.0, "{told}");
    assert_eq!(told["clusters"][0]["thread_share"], told["thread_share"], "{told}");
    let (_, text, _) = spoken(&site.folder().command("status", &[]));
    let line = text.lines().find(|line| line.trim_start().starts_with("time in fault: "));
    assert!(line.is_some_and(|line| line.ends_with(" % of the threads' time")), "{text}");
    after_two_looks(&site);
    assert_eq!(site.running().logged(&["the module is slow"]), Vec::<String>::new(), "it is not wanted");
}

#[test]
fn memory_that_the_worker_has_kept_since_its_load_is_told() {
    const LEAK: f64 = (64 << 20) as f64;
    let origin = Origin::named("a");
    let site = site(&origin, "leak_64m", "");
    let before = site.metric(GROWTH);
    assert!(before < LEAK, "{before}");
    booms(&site, 2);
    let after = site.metric(GROWTH);
    assert!(after >= before + 1.9 * LEAK, "{before} {after}");
    let told = module(&site)["worker_growth_bytes"].as_f64().unwrap();
    assert!(told >= before + 1.9 * LEAK, "{told}");
    let (_, text, _) = spoken(&site.folder().command("status", &[]));
    let line = text.lines().find(|line| line.contains("memory of the worker: ")).unwrap();
    let mib: f64 = line.split_ascii_whitespace().find_map(|word| word.parse().ok()).unwrap();
    assert!(mib > 121.0, "{line}");
    // The next generation begins anew.
    site.reload();
    assert!(site.metric(GROWTH) < LEAK);
}
