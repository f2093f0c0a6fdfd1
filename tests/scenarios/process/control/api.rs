//! Reading over HTTP.

use std::collections::BTreeSet;

use serde_json::Value;
use tests::schema::OpenApi;
use tests::tls::Authority;
use tests::tool::{said, tool};
use trylist::process::control::ServerOrder;

use super::*;

/// The answer of the API, and its status.
#[track_caller]
fn read(site: &Site, path: &str) -> (u16, Value) {
    let reply = site.admin(path);
    assert_eq!(reply.header("content-type"), Some("application/json"), "{path}: {}", reply.text());
    (reply.status(), serde_json::from_str(&reply.text()).unwrap())
}

#[track_caller]
fn items(site: &Site, path: &str) -> Vec<Value> {
    read(site, path).1["items"].as_array().unwrap().clone()
}

/// One server serves, one is drained, one is ejected; over TLS.
fn busy_site(authority: &Authority) -> (Site, [Origin; 2], Origin) {
    let (origins, dead) = (["a", "b"].map(Origin::named), Origin::dead());
    let files = authority.issue(&["localhost", "a.test"]);
    let (cert, key) = (files.cert.display(), files.key.display());
    let tls = format!("tls = {{ certificates = [{{ cert = \"{cert}\", key = \"{key}\" }}] }}");
    let ejects = "ejection = { failures = 1, time = \"1h\", max_time = \"1h\", max_percent = 100 }";
    let builder = over([&origins[0], &origins[1], &dead]).in_cluster(ejects);
    let secured = format!("[[listener]]\naddress = \"127.0.0.1:0\"\n{tls}\n");
    let site = Site::run(&builder.tables(&secured));
    site.order("app", &origins[1].url(), ServerOrder::Drain).unwrap();
    assert_eq!(site.names(4), "a a a a");
    (site, origins, dead)
}

#[test]
fn the_description_holds_for_every_answer() {
    let (authority, api) = (Authority::new("test"), OpenApi::of_the_project());
    let (site, _origins, dead) = busy_site(&authority);
    eventually("the ejection is an event", || {
        let events = items(&site, "/api/v1/events?cluster=app");
        let is_it = |event: &Value| event["server"] == dead.url() && event["kind"] == "server";
        events.iter().any(is_it).then_some(())
    });
    for path in api.paths() {
        let asked = path.replace("{name}", "app");
        let (status, answer) = read(&site, &asked);
        assert_eq!((status, api.problems(path, 200, &answer)), (200, vec![]), "{asked}: {answer:#}");
        let (status, answer) = read(&site, &format!("{asked}?nonsense=1"));
        assert_eq!((status, api.problems(path, 400, &answer)), (400, vec![]), "{asked}");
    }
    for path in ["/api/v1/servers?cluster=x", "/api/v1/clusters/x"] {
        let (status, answer) = read(&site, path);
        let described = path.split('?').next().unwrap().replace("/x", "/{name}");
        assert_eq!((status, api.problems(&described, 404, &answer)), (404, vec![]), "{path}");
    }
    let certificate = &items(&site, "/api/v1/listeners")[1]["certificates"][0];
    assert_eq!(certificate["names"], serde_json::json!(["localhost", "a.test"]));
    let generation = &items(&site, "/api/v1/generations")[0];
    assert_eq!((&generation["state"], &generation["pid"]), (&"serving".into(), &site.worker().into()));
    assert_eq!(read(&site, "/api/v1/status").1["supervisor"]["pid"], site.running().pid());
}

/// Requests by the description, right ones and wrong ones, and answers held to it.
#[test]
fn a_program_of_others_finds_the_description_right() {
    let authority = Authority::new("test");
    let (site, _origins, _dead) = busy_site(&authority);
    let url = format!("http://{}", site.status().admin.unwrap());
    let description = concat!(env!("CARGO_MANIFEST_DIR"), "/../conf/openapi.json");
    if tool("schemathesis", &["--version"]).is_none() {
        return;
    }
    // It leaves files where it runs.
    let folder = site.folder().path().to_str().unwrap();
    let run = ["-C", folder, "schemathesis", "run", description, "--url", &url];
    let arguments = [&run[..], &["--max-examples", "50", "--seed", "1"]].concat();
    said(&tool("env", &arguments).unwrap());
}

#[test]
fn the_command_the_api_and_the_metrics_have_the_same_numbers() {
    let authority = Authority::new("test");
    let (site, origins, dead) = busy_site(&authority);
    // Counts of the generation before are among them.
    site.reload_wholly();
    site.names(3);
    // A request is counted when it has ended, which its client may see before.
    let state = eventually("all are counted", || {
        site.state().ok().filter(|state| state.clusters[0].numbers.requests == 7)
    });
    let numbers = &state.clusters[0].numbers;
    let cluster = read(&site, "/api/v1/clusters/app").1;
    assert_eq!(
        (numbers.requests, &cluster["requests"], &cluster["responses"]["2xx"]),
        (7, &7.into(), &7.into())
    );
    assert_eq!(site.metric("trylist_requests_total{cluster=\"app\",code=\"200\"}"), 7.0);
    let servers = items(&site, "/api/v1/servers?cluster=app");
    for (server, url) in servers.iter().zip([origins[0].url(), origins[1].url(), dead.url()]) {
        let told = site.server(&url);
        let results: f64 = ["served", "not_established"]
            .map(|result| {
                let labels = format!("cluster=\"app\",endpoint=\"{url}\",result=\"{result}\"");
                site.metric(&format!("trylist_tries_total{{{labels}}}"))
            })
            .iter()
            .sum();
        assert_eq!((&server["server"], &server["tries"]), (&url.into(), &told.numbers.tries.into()));
        assert_eq!(told.numbers.tries as f64, results);
    }
    let module = &items(&site, "/api/v1/modules")[0];
    assert_eq!(
        (&module["module"], &module["calls"]),
        (&"round_robin".into(), &state.modules[0].calls.into())
    );
    let calls = &module["clusters"][0]["calls"]["load_balance"];
    let series = "trylist_module_calls_total{cluster=\"app\",module=\"round_robin\",call=\"load_balance\"}";
    assert_eq!(calls.as_f64(), Some(site.metric(series)));
}

#[test]
fn ten_thousand_servers_are_read_page_by_page() {
    // Nobody asks them for anything.
    let urls = (0..10_000).map(|n| format!("http://127.1.{}.{}:9", n / 200, n % 200));
    let site = Site::run(&Proxy::over_urls(urls).named("app").module("round_robin"));
    let (mut next, mut found, mut n_pages) =
        (Some("/api/v1/servers?limit=1000".to_owned()), BTreeSet::new(), 0);
    while let Some(path) = next {
        let (_, page) = read(&site, &path);
        assert_eq!(page["total"], 10_000);
        found.extend(page["items"].as_array().unwrap().iter().map(|item| item["server"].to_string()));
        next = page["next"].as_str().map(str::to_owned);
        n_pages += 1;
    }
    assert_eq!((found.len(), n_pages), (10_000, 10));
    let (_, page) = read(&site, "/api/v1/clusters/app?offset=9999");
    let servers = page["servers"].as_array().unwrap();
    assert_eq!((servers.len(), &servers[0]["server"]), (1, &"http://127.1.49.199:9".into()));
    assert!(items(&site, "/api/v1/servers?state=down").is_empty());
}

#[test]
fn events_outlive_the_workers_that_they_are_of() {
    let authority = Authority::new("test");
    let (site, origins, dead) = busy_site(&authority);
    eventually("the worker has told of the ejection", || {
        let events = items(&site, "/api/v1/events");
        events.iter().any(|event| event["server"] == dead.url()).then_some(())
    });
    site.reload_wholly();
    site.folder().write("nonsense = 1\n");
    site.fails_to_reload();
    signal(site.worker(), Signal::KILL);
    eventually("another worker", || (site.serving().generation == 3).then_some(()));
    let all = eventually("all that happened", || {
        let events = items(&site, "/api/v1/events");
        let has = |kind: &str, text: &str| {
            let is_it =
                |event: &&Value| event["kind"] == kind && event["text"].as_str().unwrap().contains(text);
            events.iter().find(is_it).cloned()
        };
        let found = [
            has("act", "drain"),
            has("server", "is drained"),
            has("server", "is ejected: 1 failure (connection refused)"),
            has("refused", "a new generation failed"),
            has("death", "died by SIGKILL"),
        ];
        let reloads = events.iter().filter(|event| event["kind"] == "reload").count();
        let found: Option<Vec<Value>> = found.into_iter().collect();
        found.filter(|_| reloads == 3).map(|found| (events.clone(), found))
    });
    let (events, found) = all;
    assert_eq!((&found[1]["server"], &found[1]["generation"]), (&origins[1].url().into(), &1.into()));
    assert_eq!(found[2]["server"], dead.url());
    assert_eq!(found[4]["generation"], 2);
    let ids: Vec<u64> = events.iter().map(|event| event["id"].as_u64().unwrap()).collect();
    assert!(ids.is_sorted() && ids.iter().collect::<BTreeSet<_>>().len() == ids.len(), "{ids:?}");
    assert!(site.state().unwrap().events.iter().any(|event| event.kind == "death"));
}

/// A scraper that stalls holds its connection and nothing else.
#[test]
fn scrapers_that_take_nothing_keep_no_probe_out() {
    let name = "n".repeat(1_000);
    let urls = (0..400).map(|n| format!("http://127.0.0.1:{}", 1_000 + n));
    let site = Site::run(&Proxy::over_urls(urls).named(&name).module("round_robin"));
    let admin = site.status().admin.unwrap().parse().unwrap();
    let stalled: Vec<_> = (0..40)
        .map(|_| {
            let mut client = Client::connect(admin);
            client.send("GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
            client
        })
        .collect();
    assert_eq!(site.admin("/healthz").text(), "ok\n");
    assert_eq!(read(&site, "/api/v1/status").0, 200);
    drop(stalled);
}
