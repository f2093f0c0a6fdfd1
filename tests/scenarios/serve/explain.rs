//! Why a request went where it went: told to who asks and may, and to nobody else.

use lb_api::wire::{STATE_DOWN, STATE_EJECTED};
use tests::Gate;
use tests::artifacts;
use tests::journal::Journal;
use tests::log;
use tests::origin::Origin;
use tests::proxy::{Builder, Proxy};
use tests::stream::Message;

const ASK: &str = "GET /why HTTP/1.1\r\nHost: test\r\nX-Trylist-Explain: 1\r\n\r\n";

/// With everybody of this machine allowed to ask.
fn open(builder: Builder) -> Builder {
    builder.tables("[explain]\nallow = [\"127.0.0.0/8\", \"::1\"]")
}

#[track_caller]
fn ask(proxy: &Proxy) -> Message {
    proxy.connect().send(ASK).reply()
}

/// All that a response says of why, with the origins by their letter and times as `T`: they differ from run to run.
fn why(reply: &Message, origins: &[&Origin]) -> Vec<String> {
    let lines = reply.head.lines().filter_map(|line| line.strip_prefix("X-Trylist-"));
    lines.map(|line| plainly(line, origins)).collect()
}

fn plainly(line: &str, origins: &[&Origin]) -> String {
    let mut line = line.to_owned();
    for (origin, letter) in origins.iter().zip('a'..) {
        line = line.replace(&origin.url(), &letter.to_string());
    }
    let words = line.split(' ').scan("", |before, word| {
        let is_time = *before == "after" && word.contains('.');
        *before = word;
        Some(if is_time { "T" } else { word })
    });
    words.collect::<Vec<_>>().join(" ")
}

fn says_nothing(reply: &Message) -> bool {
    !reply.head.to_ascii_lowercase().contains("x-trylist")
}

// ---- who is told ---------------------------------------------------------------------------------------------------

#[test]
fn nobody_is_told_unless_the_configuration_says_so() {
    let origin = Origin::named("a");
    let proxy = Proxy::over([&origin]).start();
    let reply = ask(&proxy);
    assert_eq!(reply.text(), "a");
    assert!(says_nothing(&reply), "{}", reply.head);
    assert_eq!(origin.request().header("x-trylist-explain"), None, "no server sees the header");
}

#[test]
fn only_the_networks_of_the_configuration_are_told() {
    let origin = Origin::named("a");
    for (allow, is_told) in
        [("127.0.0.1", true), ("127.0.0.0/8", true), ("127.0.0.2/31", false), ("::/0", false)]
    {
        let proxy = Proxy::over([&origin]).tables(&format!("[explain]\nallow = [\"{allow}\"]")).start();
        let reply = proxy.connect().send(ASK.replace("Host", "X-Forwarded-For: 127.0.0.2\r\nHost")).reply();
        assert_eq!(!says_nothing(&reply), is_told, "{allow}: {}", reply.head);
    }
    for request in origin.requests() {
        assert_eq!(request.header("x-trylist-explain"), None, "honoured or not, no server sees it");
    }
}

#[test]
fn who_does_not_ask_is_told_nothing() {
    let origin = Origin::named("a");
    let proxy = open(Proxy::over([&origin])).start();
    for asked in ["", "X-Trylist-Explain: 0\r\n", "X-Trylist-Explain: yes\r\n", "X-Trylist-Explains: 1\r\n"] {
        let reply = proxy.connect().send(format!("GET / HTTP/1.1\r\nHost: test\r\n{asked}\r\n")).reply();
        assert!(says_nothing(&reply), "{asked:?}: {}", reply.head);
    }
    // One after the other on one connection, each request asks for itself.
    let mut client = proxy.connect();
    let told = [ASK, "GET / HTTP/1.1\r\nHost: test\r\n\r\n", ASK]
        .map(|request| !says_nothing(&client.send(request).reply()));
    assert_eq!(told, [true, false, true]);
    assert!(log::lines(&["explained", proxy.cluster()]).len() <= 2);
}

// ---- what is told --------------------------------------------------------------------------------------------------

#[test]
fn headers_and_log_say_what_was_chosen_from_and_each_try() {
    let (dead, alive, down) = (Origin::dead(), Origin::named("alive"), Origin::named("down"));
    let origins = [&dead, &alive, &down];
    let builder = Proxy::over(origins).module("round_robin").server(0, "weight = 3");
    let proxy = open(builder).start();
    proxy.set_state(2, STATE_DOWN);
    let reply = ask(&proxy);
    assert_eq!(reply.text(), "alive");
    let expected = [
        &*format!("Cluster: {}", proxy.cluster()),
        "Module: round_robin",
        "Candidate: 0 a: available, weight 3, 0 in flight",
        "Candidate: 1 b: available, weight 1, 0 in flight",
        "Candidate: 2 c: down, weight 1, 0 in flight",
        "Try: 0 a: not established (connect) after T ms; chosen by the module with 0 in flight: \
         turn 0 of the 4 after which the sequence repeats",
        "Try: 1 b: answered 200 after T ms; chosen by the module with 0 in flight: \
         chosen anew, by the same rule, among those not tried",
    ];
    assert_eq!(why(&reply, &origins), expected);
    let line = plainly(&log::line(&["explained", proxy.cluster()]), &origins);
    for part in [
        "target=/why",
        "status=200",
        "explained; module round_robin; candidate 0 a: available, weight 3, 0 in flight; candidate 1 b",
        "; try 0 a: not established (connect) after T ms; chosen by the module",
        "; try 1 b: served after T ms; chosen by the module",
    ] {
        assert!(line.contains(part), "{part:?} in {line}");
    }
}

#[test]
fn every_module_of_ours_says_something() {
    let origins = ["a", "b", "c"].map(Origin::named);
    for id in artifacts::module_ids() {
        let builder = Proxy::over(&origins).module(&id).in_cluster("key = \"client\"");
        let proxy = open(builder).start();
        let reply = ask(&proxy);
        let tries = reply.headers("x-trylist-try");
        let [only] = tries[..] else { panic!("{id}: {}", reply.head) };
        let (_, words) = only
            .split_once("chosen by the module with 0 in flight: ")
            .unwrap_or_else(|| panic!("{id}: {only}"));
        assert!(words.len() > 10, "{id}: {only}");
    }
    let proxy = open(Proxy::over(&origins).module_file("c_example", &artifacts::c_module())).start();
    let reply = ask(&proxy);
    assert!(reply.header("x-trylist-try").unwrap().ends_with(": at 0 after 0 failures"), "{}", reply.head);
}

#[test]
fn a_key_is_told_to_its_client_and_not_to_the_log() {
    let origin = Origin::named("a");
    let proxy = open(Proxy::over([&origin]).module("hash").in_cluster("key = \"cookie:sid\"")).start();
    let reply = proxy.connect().send(ASK.replace("Host", "Cookie: sid=secret-7\r\nHost")).reply();
    assert_eq!(reply.header("x-trylist-key"), Some("secret-7"));
    let line = log::line(&["explained", proxy.cluster()]);
    assert!(!line.contains("secret-7"), "{line}");
}

#[test]
fn a_session_s_server_and_a_module_overruled_are_told_apart() {
    let origins = ["a", "b"].map(Origin::named);
    let refs = [&origins[0], &origins[1]];
    let sticky = "sticky = { cookie = \"s\", secret = \"0123456789abcdef\" }";
    let proxy = open(Proxy::over(&origins).in_cluster(sticky)).start();
    let first = proxy.get("/");
    let session = first.header("set-cookie").unwrap().split(';').next().unwrap();
    let reply = proxy.connect().send(ASK.replace("Host", &format!("Cookie: {session}\r\nHost"))).reply();
    let told = why(&reply, &refs);
    assert_eq!(
        told.last().unwrap(),
        "Try: 0 a: answered 200 after T ms; chosen by its session with 0 in flight"
    );
    assert_eq!(first.text(), reply.text());

    let proxy = open(Proxy::over(&origins[..1]).broken("answers-out-of-range")).start();
    let told = why(&ask(&proxy), &refs);
    assert_eq!(
        told.last().unwrap(),
        "Try: 0 a: answered 200 after T ms; chosen by the host with 0 in flight"
    );
}

#[test]
fn tiers_are_told_as_they_are_entered() {
    let (dead, spare) = (Origin::dead(), Origin::named("spare"));
    let proxy = open(Proxy::over([&dead, &spare]).server(1, "backup = true")).start();
    let told = why(&ask(&proxy), &[&dead, &spare]);
    assert_eq!(told[2], "Candidate: tier 0 0 a: available, weight 1, 0 in flight");
    assert_eq!(told[3], "Candidate: tier 1 0 b: available, weight 1, 0 in flight");
    assert!(told[4].starts_with("Try: tier 0 0 a: not established (connect) after T ms"), "{told:?}");
    assert!(told[5].starts_with("Try: tier 1 0 b: answered 200 after T ms"), "{told:?}");
}

// ---- where there is no response ------------------------------------------------------------------------------------

#[test]
fn a_502_says_which_servers_were_tried() {
    let origins = [Origin::dead(), Origin::serving(|conn| drop(conn.request()))];
    let refs = [&origins[0], &origins[1]];
    let proxy = open(Proxy::over(&origins)).start();
    let reply = ask(&proxy);
    assert_eq!(reply.status(), 502);
    let told = why(&reply, &refs);
    assert!(told[4].starts_with("Try: 0 a: not established (connect) after T ms"), "{told:?}");
    assert!(told[5].starts_with("Try: 1 b: closed early after T ms"), "{told:?}");
    assert!(log::line(&["explained", proxy.cluster()]).contains("status=502"));
}

#[test]
fn a_503_says_that_none_was_left_and_why() {
    let origins = ["a", "b"].map(Origin::named);
    let proxy = open(Proxy::over(&origins)).start();
    proxy.set_state(0, STATE_DOWN);
    proxy.set_state(1, STATE_EJECTED);
    let reply = ask(&proxy);
    assert_eq!(reply.status(), 503);
    let told = why(&reply, &[&origins[0], &origins[1]]);
    assert_eq!(
        told[2..],
        [
            "Candidate: 0 a: down, weight 1, 0 in flight",
            "Candidate: 1 b: ejected, weight 1, 0 in flight",
            "Declined: 0 a: down; chosen by the module",
            "Declined: 1 b: ejected; chosen by the module",
            "End: none left; the module: in the order of the file; the next would be endpoint 0",
        ]
    );
}

#[test]
fn a_request_that_waited_says_what_for() {
    let gate = Gate::default();
    let origin = Origin::gated("ok", &gate);
    let builder =
        Proxy::over([&origin]).each_server("max_requests = 1").in_cluster("queue_timeout = \"20s\"");
    let proxy = open(builder).start();
    let (mut busy, mut waiting) = (proxy.connect(), proxy.connect());
    busy.get("/busy");
    origin.wait_for_requests(1);
    waiting.send(ASK);
    proxy.wait_for_queue(1);
    gate.open();
    assert_eq!(busy.reply().text(), "ok");
    let told = why(&waiting.reply(), &[&origin]);
    assert_eq!(
        told[2..5],
        [
            "Candidate: 0 a: available, weight 1, 1 in flight",
            "Declined: 0 a: full; chosen by the module",
            "Wait: for a server to come free",
        ]
    );
    assert!(told.last().unwrap().starts_with("Try: 0 a: answered 200 after T ms"), "{told:?}");
}

// ---- what must not get through -------------------------------------------------------------------------------------

/// A module that says these words, as TOML has them between quotes, or panics where it is to say them.
fn saying(words: &str, panics_in: &str, origins: &[Origin]) -> (Proxy, Journal) {
    let journal = Journal::new();
    let settings = journal.settings(&["0", "1"]);
    let settings = format!(
        "settings = {}, words = \"{words}\", panics_in = {panics_in:?} }}",
        settings.trim_end_matches(" }")
    );
    let builder = Proxy::over(origins).module_file("records_calls", &artifacts::broken("records-calls"));
    (open(builder.in_cluster(&settings)).start(), journal)
}

#[test]
fn no_words_of_a_module_become_a_header_of_their_own_or_fill_the_head() {
    let origins = ["a", "b"].map(Origin::named);
    let (proxy, _journal) = saying(r"one\r\nSet-Cookie: a=b\u0000\té", "", &origins);
    let reply = ask(&proxy);
    assert_eq!(reply.headers("set-cookie"), [""; 0], "{}", reply.head);
    assert!(reply.header("x-trylist-try").unwrap().ends_with(": one  Set-Cookie: a=b  ?"), "{}", reply.head);
    let (proxy, _journal) = saying(&"many words ".repeat(5000), "", &origins);
    let reply = ask(&proxy);
    assert_eq!(reply.text(), "a");
    assert!(reply.head.len() < 2000, "{} bytes", reply.head.len());
    assert!(reply.header("x-trylist-try").unwrap().ends_with("..."), "{}", reply.head);
}

#[test]
fn many_servers_are_counted_and_not_listed() {
    let (alive, dead) = (Origin::named("alive"), Origin::dead());
    let urls = std::iter::repeat_n(dead.url(), 60).chain([alive.url()]);
    let proxy = open(Proxy::over_urls(urls)).start();
    let reply = ask(&proxy);
    assert_eq!(reply.text(), "alive");
    assert!(reply.head.len() < 8192, "{} bytes", reply.head.len());
    let candidates = reply.headers("x-trylist-candidate");
    assert_eq!((candidates.len(), candidates[16]), (17, "and 45 more"));
}

#[test]
fn a_module_that_panics_when_it_is_asked_costs_the_request_nothing() {
    let origins = ["a", "b"].map(Origin::named);
    let (proxy, journal) = saying("unsaid", "explain", &origins);
    let reply = ask(&proxy);
    assert_eq!(reply.text(), "a");
    assert!(
        reply.header("x-trylist-try").unwrap().ends_with("chosen by the module with 0 in flight"),
        "{}",
        reply.head
    );
    assert_eq!(
        proxy.metric("trylist_module_faults_total{cluster=\"%\",module=\"records_calls\",fault=\"panic\"}"),
        1.0
    );
    drop(proxy);
    let calls = journal.all();
    assert_eq!(calls, ["/why load_balance", "/why next after []: 0", "/why explain", "/why drop"]);
}

#[test]
fn no_module_is_asked_for_who_may_not_ask() {
    let origins = ["a", "b"].map(Origin::named);
    let (proxy, journal) = saying("words", "", &origins);
    assert_eq!(proxy.get("/").text(), "a");
    drop(proxy);
    assert!(!journal.all().iter().any(|call| call.contains("explain")));
}
