//! The trait across the table of calls: what a module's author is promised.
#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lb_api::serde::Deserialize;
use lb_api::testkit::{Contract, FakeCluster, FakeRequest};
use lb_api::{
    Balancer, BuildCx, BuildError, Event, EventKind, Failure, FailureKind, Log, Needs, Next, NextCx, Outcome,
    OutcomeKind, Request, State, TryResult,
};

/// Writes down every call, and panics in the one that its setting names.
struct Probe {
    calls: Arc<Mutex<Vec<String>>>,
    panics_in: String,
    n_endpoints: usize,
    log: Log,
    dropped: Arc<AtomicUsize>,
}

#[derive(Default, Deserialize)]
#[serde(crate = "lb_api::serde", default)]
struct Settings {
    panics_in: String,
    refuse: bool,
}

struct List {
    panics: bool,
    dropped: Arc<AtomicUsize>,
    _large: [u64; 40],
}

impl Drop for List {
    fn drop(&mut self) {
        self.dropped.fetch_add(1, SeqCst);
        assert!(!self.panics, "drop of the list");
    }
}

/// Their records, the number of dropped trylists, and the log of the last.
type Shared = (Arc<Mutex<Vec<String>>>, Arc<AtomicUsize>, Option<Log>);

/// State that instances share with the tests, since saved state is a module's only way out.
static CALLS: Mutex<Option<Shared>> = Mutex::new(None);
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

impl Probe {
    fn note(&self, call: &str, what: &str) {
        self.calls.lock().unwrap().push(format!("{call} {what}").trim_end().to_owned());
        assert!(self.panics_in != call, "in {call}");
    }
}

impl Balancer for Probe {
    const ID: &'static str = "probe";
    const SUMMARY: &'static str = "writes down every call";
    const STATE_VERSION: u32 = 7;
    type Settings = Settings;
    type Trylist = List;

    fn build(cx: &BuildCx<'_, Self>, settings: Settings) -> Result<Self, BuildError> {
        if settings.refuse {
            let settings = BuildError::setting("refuse", "expected false, found true");
            return Err(settings.and(BuildError::new("will not")));
        }
        assert!(settings.panics_in != "build", "in build");
        let (calls, dropped, kept) = {
            let mut shared = CALLS.lock().unwrap();
            let shared = shared.as_mut().unwrap();
            shared.2 = Some(cx.log().clone());
            shared.clone()
        };
        drop(kept);
        if let Some(previous) = cx.previous() {
            calls.lock().unwrap().push(format!("previous of {}", previous.n_endpoints));
        }
        if let Some(saved) = cx.saved() {
            calls.lock().unwrap().push(format!("saved {}", String::from_utf8_lossy(saved)));
        }
        let n_endpoints = cx.endpoints().len();
        Ok(Self { calls, panics_in: settings.panics_in, n_endpoints, log: cx.log().clone(), dropped })
    }

    fn needs(&self) -> Needs {
        let needs =
            Needs::default().key().request_header("X-One").request_header("x-two").response_header("x-load");
        needs.event(EventKind::TryEnded)
    }

    fn load_balance(&self, request: &Request<'_>) -> List {
        let text = |bytes: Option<&[u8]>| bytes.map(|b| String::from_utf8_lossy(b).into_owned());
        let headers = [text(request.header(0)), text(request.header(1)), text(request.header(2))];
        self.note("load_balance", &format!("{request:?} key {:?} headers {headers:?}", text(request.key())));
        List { panics: self.panics_in == "drop_trylist", dropped: Arc::clone(&self.dropped), _large: [0; 40] }
    }

    fn next(&self, _: &mut List, cx: &NextCx<'_>) -> Next {
        self.note("next", &format!("{cx:?}"));
        match self.panics_in.as_str() {
            "wrong" => Next::Endpoint(usize::MAX),
            "twice" => Next::Endpoint(0),
            _ => (0..self.n_endpoints).find(|idx| !cx.tried(*idx)).map_or(Next::Exhausted, Next::Endpoint),
        }
    }

    fn report_failure(&self, _: &mut List, failure: &Failure) {
        self.note(
            "report_failure",
            &format!("{:?} {} {:?}", failure.kind, failure.endpoint, failure.os_error),
        );
    }

    fn observe(&self, _: &mut List, event: &Event<'_>) {
        let load = event.header(0).map(|value| String::from_utf8_lossy(value).into_owned());
        self.note("observe", &format!("{:?} {:?} {:?} {load:?}", event.kind, event.status, event.result));
    }

    fn finish(&self, _: &mut List, outcome: &Outcome) {
        self.note("finish", &format!("{:?} {:?} {:?}", outcome.kind, outcome.endpoint, outcome.status));
    }

    fn save(&self) -> Option<Vec<u8>> {
        self.note("save", "");
        Some(b"state".to_vec())
    }

    fn explain(&self, _: &List) -> Option<String> {
        self.note("explain", "");
        self.log.warn("was asked");
        Some("because".into())
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.note("drop_balancer", "");
    }
}

/// Runs a test with a place of its own for what its probes write down.
fn probed(test: impl FnOnce(&dyn Fn() -> Vec<String>, &AtomicUsize)) {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let (calls, dropped) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicUsize::new(0)));
    *CALLS.lock().unwrap() = Some((Arc::clone(&calls), Arc::clone(&dropped), None));
    test(&|| std::mem::take(&mut *calls.lock().unwrap()), &dropped);
}

#[test]
fn every_call_reaches_the_trait_with_what_was_sent() {
    probed(|calls, dropped| {
        let cluster = FakeCluster::equal(2);
        let balancer = cluster.balancer::<Probe>().build().unwrap();
        let request =
            FakeRequest::get("/a?b").key("k").header("x-TWO", "").header("x-one", "1").header("x-one", "2");
        let mut trylist = balancer.load_balance(request);
        assert_eq!(trylist.next(), Next::Endpoint(0));
        trylist.fail();
        assert_eq!(trylist.next(), Next::Endpoint(1));
        let ms = Duration::from_millis(1);
        trylist.observe_headers(EventKind::ResponseHeaders, Some(200), None, ms, &[("X-Load", "0.5")]);
        trylist.observe(EventKind::Connected, None, None, ms);
        assert_eq!(trylist.explain(), "because");
        trylist.finish(OutcomeKind::Served, Some(200));
        drop(balancer);
        assert_eq!(
            calls(),
            [
                r#"load_balance GET /a key Some("k") headers [Some("1"), Some(""), None]"#,
                "next try 1 after []",
                "report_failure Connect 0 Some(111)",
                "observe TryEnded None Some(NotEstablished) None",
                "next try 2 after [0]",
                r#"observe ResponseHeaders Some(200) None Some("0.5")"#,
                "explain",
                "finish Served Some(1) Some(200)",
                "drop_balancer",
            ]
        );
        assert_eq!(dropped.load(SeqCst), 1);
    });
}

#[test]
fn a_trylist_is_dropped_once_however_its_request_ends() {
    probed(|_, dropped| {
        let cluster = FakeCluster::equal(2);
        let balancer = cluster.balancer::<Probe>().build().unwrap();
        drop(balancer.load_balance(FakeRequest::get("/")));
        assert_eq!(dropped.load(SeqCst), 1);
        balancer.load_balance(FakeRequest::get("/")).finish(OutcomeKind::NoEndpoint, None);
        assert_eq!(dropped.load(SeqCst), 2);
        let mut trylist = balancer.load_balance(FakeRequest::get("/"));
        trylist.all();
        trylist.finish(OutcomeKind::Failed, Some(502));
        assert_eq!(dropped.load(SeqCst), 3);
    });
}

#[test]
fn a_panic_is_caught_in_every_call_and_told_with_its_place() {
    let place = |text: &str, call: &str| {
        assert!(text.contains("tests/sdk.rs:") && text.ends_with(&format!("in {call}")), "{text}");
    };
    let message = |payload: Box<dyn std::any::Any + Send>| payload.downcast_ref::<String>().unwrap().clone();
    probed(|_, dropped| {
        let cluster = FakeCluster::equal(2);
        let refused = cluster.balancer::<Probe>().setting("panics_in", "build").build().err().unwrap();
        place(&refused.to_string(), "build");
        for call in ["load_balance", "next", "report_failure", "observe", "finish", "explain", "save"] {
            let balancer = cluster.balancer::<Probe>().setting("panics_in", call).build().unwrap();
            let before = dropped.load(SeqCst);
            let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                let mut trylist = balancer.load_balance(FakeRequest::get("/"));
                trylist.next();
                trylist.fail();
                trylist.explain();
                trylist.finish(OutcomeKind::Failed, None);
                balancer.save();
            }));
            place(&message(panicked.unwrap_err()), call);
            let made = usize::from(call != "load_balance");
            assert_eq!(
                dropped.load(SeqCst),
                before + made,
                "a trylist gets its drop after a panic in {call}"
            );
        }
    });
}

#[test]
fn a_panic_in_a_drop_is_caught() {
    probed(|_, dropped| {
        let cluster = FakeCluster::equal(2);
        let balancer = cluster.balancer::<Probe>().setting("panics_in", "drop_trylist").build().unwrap();
        let trylist = balancer.load_balance(FakeRequest::get("/"));
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(trylist)));
        let text = panicked.unwrap_err().downcast_ref::<String>().unwrap().clone();
        assert!(
            text.starts_with("drop of the trylist: panicked at") && text.ends_with("drop of the list"),
            "{text}"
        );
        assert_eq!(dropped.load(SeqCst), 1);
        let balancer = cluster.balancer::<Probe>().setting("panics_in", "drop_balancer").build().unwrap();
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(balancer)));
        let text = panicked.unwrap_err().downcast_ref::<String>().unwrap().clone();
        assert!(text.contains("in drop_balancer"), "{text}");
    });
}

#[test]
fn a_refusal_names_every_problem() {
    probed(|_, _| {
        let cluster = FakeCluster::equal(2);
        let refused = cluster.balancer::<Probe>().setting("refuse", true).build().err().unwrap();
        assert_eq!(refused.to_string(), "refuse: expected false, found true; will not");
        let refused = cluster.balancer::<Probe>().setting("refusal", true).setting("panics_in", 1).build();
        assert_eq!(
            refused.err().unwrap().to_string(),
            "panics_in: expected a string, found 1; refusal: unknown setting (did you mean \"refuse\"?)"
        );
    });
}

#[test]
fn an_answer_that_is_no_endpoint_is_seen_by_the_host() {
    probed(|_, _| {
        let cluster = FakeCluster::equal(2);
        let wrong = cluster.balancer::<Probe>().setting("panics_in", "wrong").build().unwrap();
        let error = wrong.load_balance(FakeRequest::get("/")).try_next().unwrap_err();
        assert_eq!(error, "answered endpoint 4294967295 of 2");
        let twice = cluster.balancer::<Probe>().setting("panics_in", "twice").build().unwrap();
        let mut trylist = twice.load_balance(FakeRequest::get("/"));
        assert_eq!(trylist.try_next(), Ok(Next::Endpoint(0)));
        assert_eq!(trylist.try_next().unwrap_err(), "answered endpoint 0 twice (tried: [0])");
    });
}

#[test]
fn saved_state_comes_back_unless_it_is_damaged_or_of_another() {
    probed(|calls, _| {
        let cluster = FakeCluster::equal(2);
        let balancer = cluster.balancer::<Probe>().build().unwrap();
        let saved = balancer.save();
        calls();
        let next = cluster.balancer::<Probe>().previous(&balancer).saved(saved.clone()).build().unwrap();
        assert_eq!(calls(), ["previous of 2", "saved state"]);
        assert!(next.logged().is_empty());
        let mut damaged = saved;
        *damaged.last_mut().unwrap() ^= 1;
        let next = cluster.balancer::<Probe>().saved(damaged).build().unwrap();
        assert!(calls().is_empty());
        assert_eq!(next.logged(), ["info: saved state is damaged: starting without it"]);
    });
}

#[test]
fn a_log_that_is_kept_beyond_its_balancer_writes_nothing() {
    probed(|_, _| {
        let balancer = FakeCluster::equal(1).balancer::<Probe>().build().unwrap();
        balancer.load_balance(FakeRequest::get("/")).explain();
        assert_eq!(balancer.logged(), ["warn: was asked"]);
        let kept = CALLS.lock().unwrap().as_ref().unwrap().2.clone().unwrap();
        kept.error("still here");
        assert_eq!(balancer.logged(), ["warn: was asked", "error: still here"]);
        drop(balancer);
        kept.error("nobody listens");
    });
}

/// Endpoint data and live numbers, as a balancer sees them.
struct Views(Mutex<Vec<String>>, Box<[lb_api::Live]>, lb_api::Cluster);

impl Balancer for Views {
    const ID: &'static str = "views";
    const SUMMARY: &'static str = "looks at everything";
    type Settings = ();
    type Trylist = ();

    fn build(cx: &BuildCx<'_, Self>, (): ()) -> Result<Self, BuildError> {
        let seen = cx.endpoints().iter().map(|e| {
            let pairs: Vec<_> = e.metadata().collect();
            format!("{} {} {} {:?} {} {pairs:?}", e.url(), e.name(), e.port(), e.address(), e.weight())
        });
        Ok(Self(Mutex::new(seen.collect()), cx.endpoints().live(), cx.cluster()))
    }

    fn load_balance(&self, request: &Request<'_>) {
        let mut seen = self.0.lock().unwrap();
        seen.push(format!(
            "{:?} {:?} {:?} {:?} {:?}",
            str::from_utf8(request.method()),
            request.query().map(str::from_utf8),
            request.authority().map(str::from_utf8),
            request.client(),
            request.preferred()
        ));
    }

    fn next(&self, (): &mut (), cx: &NextCx<'_>) -> Next {
        assert_eq!(cx.request().path(), b"/p");
        Next::Busy
    }

    fn explain(&self, (): &()) -> Option<String> {
        let live = self.1[0];
        let seen = self.0.lock().unwrap().join("\n");
        let (epoch, n) = (self.2.epoch(), self.2.n_available());
        Some(format!(
            "{seen}\n{:?} {} {} full {} {:?} epoch {epoch} of {n}",
            live.state(),
            live.effective_weight(),
            live.in_flight(),
            live.is_full(),
            live.latency()
        ))
    }
}

#[test]
fn endpoints_and_requests_are_shown_as_they_are() {
    let cluster = FakeCluster::weighted(&[3, 1]).metadata(1, "zone", "a");
    let balancer = cluster.balancer::<Views>().build().unwrap();
    cluster.set_state(0, State::Ejected);
    cluster.set_in_flight(0, 4);
    cluster.set_max_in_flight(0, 4);
    cluster.set_latency(0, Duration::from_millis(2));
    let request = FakeRequest::get("/p?q=1").method("PUT").authority(None).preferred(1);
    let mut trylist = balancer.load_balance(request);
    assert_eq!(trylist.next(), Next::Busy);
    assert_eq!(
        trylist.explain(),
        "http://10.0.0.1:8080 10.0.0.1 8080 Some(10.0.0.1:8080) 3 []\n\
         http://10.0.0.2:8080 10.0.0.2 8080 Some(10.0.0.2:8080) 1 [(\"zone\", \"a\")]\n\
         Ok(\"PUT\") Some(Ok(\"q=1\")) None Some(192.0.2.1:40000) Some(1)\n\
         Ejected 196608 4 full true Some(2ms) epoch 1 of 1"
    );
}

/// Breaks the contract in the way that its setting names.
struct Breaker {
    n_endpoints: usize,
    how: String,
    turns: Arc<AtomicUsize>,
}

#[derive(Default, Deserialize)]
#[serde(crate = "lb_api::serde", default)]
struct How {
    how: String,
}

impl Balancer for Breaker {
    const ID: &'static str = "breaker";
    const SUMMARY: &'static str = "breaks the contract";
    type Settings = How;
    /// Its turn, and whether the request has a key.
    type Trylist = (usize, bool);

    fn build(cx: &BuildCx<'_, Self>, settings: How) -> Result<Self, BuildError> {
        let turns = cx.previous().map(|previous| Arc::clone(&previous.turns)).unwrap_or_default();
        Ok(Self { n_endpoints: cx.endpoints().len(), how: settings.how, turns })
    }

    fn needs(&self) -> Needs {
        Needs::default().key()
    }

    fn load_balance(&self, request: &Request<'_>) -> (usize, bool) {
        (self.turns.fetch_add(1, SeqCst), request.key().is_some())
    }

    fn next(&self, (at, has_key): &mut (usize, bool), cx: &NextCx<'_>) -> Next {
        let n = self.n_endpoints;
        let untried = (0..n).map(|step| (*at + step) % n).find(|idx| !cx.tried(*idx));
        match (self.how.as_str(), untried) {
            ("answers what is not there", None) => Next::Endpoint(n),
            ("starts again", None) => Next::Endpoint(0),
            ("is always full", _) => Next::Busy,
            ("stops early", Some(_)) if cx.n_tried() == 1 => Next::Exhausted,
            ("stops early where there is a key", _) if *has_key && cx.n_tried() == 1 => Next::Exhausted,
            ("starts again where there is a key", None) if *has_key => Next::Endpoint(0),
            ("ignores what was tried", _) if cx.n_tries() == 0 => Next::Endpoint(*at % n),
            ("wears out", _) if *at > 100 => Next::Exhausted,
            (_, Some(idx)) => Next::Endpoint(idx),
            (_, None) => Next::Exhausted,
        }
    }
}

fn broken(contract: &Contract<Breaker>) -> String {
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| contract.check()));
    panicked.expect_err("the contract should be broken").downcast_ref::<String>().unwrap().clone()
}

#[test]
fn the_contract_finds_each_way_of_breaking_it() {
    Contract::<Breaker>::new().check();
    for (how, found) in [
        ("answers what is not there", "answered endpoint 1 of 1"),
        ("starts again", "answered endpoint 0 twice"),
        (
            "stops early",
            "contract: offered [0], expected [0, 1]; without a key, after every endpoint available",
        ),
        (
            "stops early where there is a key",
            "expected [0, 1]; with the key \"key 0\", after every endpoint available",
        ),
        ("starts again where there is a key", "answered endpoint 0 twice"),
        ("is always full", "contract: answered Busy, but no endpoint is full"),
        ("ignores what was tried", "answered endpoint 0, which the host had tried before"),
        ("wears out", "contract: offered none, expected [0]; without a key, after 100 requests dropped"),
    ] {
        let message = broken(&Contract::new().setting("how", how));
        assert!(message.contains(found), "{how}: {message}");
    }
    let message = broken(&Contract::new().skips_unavailable());
    assert!(message.contains("which is not available"), "{message}");
    let message = broken(&Contract::new().weighted(0.1));
    assert!(
        message.contains("endpoint 3 was chosen 4000 times of 20000, without a key, its weight's share is 0"),
        "{message}"
    );
}

#[test]
fn reports_of_kinds_are_told_apart() {
    probed(|calls, _| {
        let cluster = FakeCluster::equal(1);
        let balancer = cluster.balancer::<Probe>().build().unwrap();
        let mut trylist = balancer.load_balance(FakeRequest::get("/"));
        for kind in [FailureKind::Resolve, FailureKind::ConnectTimeout, FailureKind::Tls, FailureKind::Local]
        {
            trylist.fail_with(kind);
        }
        trylist.observe(EventKind::TryEnded, Some(200), Some(TryResult::Broken), Duration::ZERO);
        drop(trylist);
        let kinds: Vec<_> = calls().iter().filter_map(|c| c.split(' ').nth(1).map(str::to_owned)).collect();
        let ended = "TryEnded";
        assert_eq!(
            kinds,
            ["GET", "Resolve", ended, "ConnectTimeout", ended, "Tls", ended, "Local", ended, ended]
        );
    });
}

#[test]
#[allow(unsafe_code, reason = "plays a host that is broken")]
fn nothing_is_read_of_structs_that_are_too_short() {
    use lb_api::wire;
    let module = lb_api::export::in_process::<Views>();
    let mut info: wire::Info =
        // SAFETY: all zeroes are an `Info`.
        unsafe { std::mem::zeroed() };
    info.size = 24;
    // SAFETY: `info` is ours, and even longer than it says.
    assert_eq!(unsafe { module.info.unwrap()(&raw mut info) }, wire::STATUS_REFUSED);
    assert_eq!(info.abi_major, 0, "nothing was written");
    info.size = size_of::<wire::Info>() as u32;
    // SAFETY: as above.
    assert_eq!(unsafe { module.info.unwrap()(&raw mut info) }, wire::STATUS_OK);
    assert_eq!((info.abi_major, info.abi_minor), (1, 0));
    let short = 8_u32;
    let mut balancer = std::ptr::null_mut();
    // SAFETY: of a struct that says 8 bytes no more than its size is read.
    let status = unsafe { module.build.unwrap()((&raw const short).cast(), &raw mut balancer) };
    assert_eq!((status, balancer.is_null()), (wire::STATUS_REFUSED, true));
}

#[test]
fn settings_say_how_many_elements_their_tables_have() {
    // As a module that was loaded gets them, through the same calls.
    let cluster = FakeCluster::equal(1);
    let nested = cluster.balancer::<Nested>();
    let nested =
        nested.setting("tiers[0].name", "a").setting("tiers[0].weight", 3).setting("tiers[1].name", "b");
    let balancer = nested.setting("labels.\"x.y\"", "z").build().unwrap();
    assert_eq!(balancer.logged(), ["info: [(\"a\", 3), (\"b\", 1)] {\"x.y\": \"z\"}"]);
}

struct Nested;

#[derive(Deserialize)]
#[serde(crate = "lb_api::serde")]
struct NestedSettings {
    tiers: Vec<Tier>,
    labels: std::collections::BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(crate = "lb_api::serde")]
struct Tier {
    name: String,
    weight: Option<u32>,
}

impl Balancer for Nested {
    const ID: &'static str = "nested";
    const SUMMARY: &'static str = "has settings in tables and arrays";
    type Settings = NestedSettings;
    type Trylist = ();

    fn build(cx: &BuildCx<'_, Self>, settings: NestedSettings) -> Result<Self, BuildError> {
        let tiers: Vec<_> =
            settings.tiers.into_iter().map(|tier| (tier.name, tier.weight.unwrap_or(1))).collect();
        cx.log().info(format_args!("{tiers:?} {:?}", settings.labels));
        Ok(Self)
    }

    fn load_balance(&self, _: &Request<'_>) {}

    fn next(&self, (): &mut (), _: &NextCx<'_>) -> Next {
        Next::Exhausted
    }
}
