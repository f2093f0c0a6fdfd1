//! The program on the command line: what it says, how it ends, and what signals do.

use std::fs;

use rustix::process::Signal;
use tests::client::Client;
use tests::command::{Running, trylist};
use tests::origin::Origin;
use tests::proxy::Proxy;
use tests::{Gate, artifacts, eventually};

/// Runs a configuration of one cluster of these servers.
fn run<'a>(origins: impl IntoIterator<Item = &'a Origin>, tables: &str) -> (tempfile::TempDir, Running) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("site.toml");
    fs::write(&file, Proxy::over(origins).tables(tables).text()).unwrap();
    let running = Running::start(&["run", "-c", file.to_str().unwrap()]);
    (folder, running)
}

/// Answers once the gate is open.
fn waiting_for(go: &Gate) -> Origin {
    let go = go.clone();
    Origin::serving(move |conn| {
        conn.request();
        go.wait();
        conn.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone");
    })
}

#[test]
fn check_says_what_is_there() {
    let (a, b) = (Origin::named("a"), Origin::named("b"));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("site.toml");
    fs::write(&file, Proxy::over([&a, &b]).text()).unwrap();
    let output = trylist(&["check", "-c", file.to_str().unwrap()]);
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        format!("{}: ok: 1 listener, 1 module, 1 cluster of 2 servers, 1 route\n", file.display())
    );
    assert_eq!((output.status.code(), a.n_connections() + b.n_connections()), (Some(0), 0));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "what is well is said in one line");
}

#[test]
fn inspect_says_what_a_module_is() {
    let file = artifacts::module("round_robin");
    let output = trylist(&["module", "inspect", file.to_str().unwrap()]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    for part in ["round_robin", "1.0", "sha256"] {
        assert!(said.contains(part), "{part}: {said}");
    }
}

#[test]
fn inspect_says_why_a_module_would_be_refused() {
    let file = artifacts::broken("no-root");
    let output = trylist(&["module", "inspect", file.to_str().unwrap()]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), said.lines().count()), (Some(4), 1), "{said}");
    assert!(said.starts_with(&format!("{}: not a balancer module", file.display())), "{said}");
}

#[test]
fn a_command_line_that_is_wrong_is_2() {
    assert_eq!(trylist(&["run", "--nonsense"]).status.code(), Some(2));
    assert_eq!(trylist(&["chekc", "-c", "x"]).status.code(), Some(2));
}

#[test]
fn an_address_in_use_is_1() {
    let taken = Origin::named("a");
    let text = Proxy::over([&taken]).text().replacen("127.0.0.1:0", &taken.address().to_string(), 1);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("site.toml");
    fs::write(&file, text).unwrap();
    let (code, said) = Running::start(&["run", "-c", file.to_str().unwrap()]).end();
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains(&taken.address().to_string()) && said.contains("in use"), "{said}");
}

#[test]
fn a_signal_lets_requests_end() {
    for signal in [Signal::TERM, Signal::INT] {
        let go = Gate::default();
        let origin = waiting_for(&go);
        let (_folder, running) = run([&origin], "");
        let address = running.address();
        let (mut client, mut idle) = (Client::connect(address), Client::connect(address));
        // The proxy does not know a silent client yet.
        idle.send("\r\n");
        client.get("/");
        origin.wait_for_requests(1);
        running.signal(signal);
        running.logs("draining; a second signal");
        eventually("the listener is closed", || Client::try_connect(address).err());
        idle.end();
        go.open();
        assert_eq!(client.reply().text(), "done");
        let (code, said) = running.end();
        assert_eq!(code, Some(0), "{said}");
    }
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let origin = waiting_for(&Gate::default());
    let (_folder, running) = run([&origin], "");
    let mut client = Client::connect(running.address());
    client.get("/");
    origin.wait_for_requests(1);
    running.signal(Signal::TERM);
    running.logs("draining; a second signal");
    running.signal(Signal::TERM);
    let (code, said) = running.end();
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("stopped by a second signal"), "{said}");
    client.end();
}

#[test]
fn requests_cut_off_at_the_drains_end_show_in_the_exit_code() {
    let origin = waiting_for(&Gate::default());
    let (_folder, running) = run([&origin], "[timeouts]\ndrain = \"50ms\"");
    let mut client = Client::connect(running.address());
    client.get("/");
    origin.wait_for_requests(1);
    running.signal(Signal::TERM);
    let (code, said) = running.end();
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("1 connections closed by the drain timeout"), "{said}");
    client.end();
}

#[test]
fn with_few_descriptors_it_serves_fewer_at_once_and_all_in_the_end() {
    let origin = Origin::named("a");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("site.toml");
    fs::write(&file, Proxy::over([&origin]).text()).unwrap();
    let running = Running::start_with_descriptors(60, &["run", "-c", file.to_str().unwrap()]);
    let allowed = running.logs("60 open descriptors are allowed (RLIMIT_NOFILE), so at most ");
    let allowed: usize = allowed.split(' ').next().unwrap().parse().unwrap();
    let address = running.address();
    let mut crowd: Vec<_> = (0..3 * allowed).map(|_| Client::connect(address)).collect();
    for client in &mut crowd {
        client.get("/");
    }
    // Those that stay connected hold the places of the next, which may be any: a listener has several queues.
    std::thread::scope(|scope| {
        for mut client in crowd {
            scope.spawn(move || assert_eq!(client.reply().text(), "a"));
        }
    });
    // Once is enough, as long as it stays so.
    running.signal(Signal::HUP);
    running.logs("generation 2 serves");
    assert_eq!(running.logged(&["open descriptors are allowed"]).len(), 1);
    running.signal(Signal::TERM);
    assert_eq!(running.end().0, Some(0));
}

#[test]
fn the_access_log_follows_a_rotation() {
    let origin = Origin::named("a");
    let folder = tempfile::tempdir().unwrap();
    let (log, old) = (folder.path().join("access.log"), folder.path().join("access.log.1"));
    let (_folder, running) = run([&origin], &format!("[access_log]\npath = {log:?}"));
    let mut client = Client::connect(running.address());
    let written = |path: &str| {
        eventually("a line of the access log", || {
            let text = fs::read_to_string(&log).unwrap_or_default();
            text.contains(&format!("GET {path} ")).then_some(text)
        })
    };
    client.get("/before").reply();
    written("/before");
    fs::rename(&log, &old).unwrap();
    running.signal(Signal::USR2);
    running.logs("SIGUSR2");
    client.get("/after").reply();
    assert!(!written("/after").contains("/before"));
    assert!(!fs::read_to_string(&old).unwrap().contains("/after"));
    running.signal(Signal::TERM);
    assert_eq!(running.end().0, Some(0));
}

#[test]
fn the_demo_does_with_the_descriptors_that_a_login_has() {
    let running = Running::start_with_descriptors(1024, &["demo"]);
    assert_eq!(Client::connect(running.address()).get("/").reply().status(), 200);
    running.signal(Signal::TERM);
    let (code, said) = running.end();
    assert_eq!((code, said.contains("WARN")), (Some(0), false), "{said}");
}

#[test]
fn the_demo_answers_in_turn_and_survives_a_server() {
    let running = Running::start(&["demo"]);
    let address = running.address();
    let mut client = Client::connect(address);
    let names: Vec<_> = (0..6).map(|_| client.get("/").reply().text()).collect();
    assert_eq!(names[..3], names[3..]);
    assert!(names[0] != names[1] && names[1] != names[2] && names[0] != names[2], "{names:?}");
    let why = client.send("GET / HTTP/1.1\r\nHost: demo\r\nX-Trylist-Explain: 1\r\n\r\n").reply();
    assert!(why.header("x-trylist-try").unwrap().contains("turn 0 of the 3"), "{}", why.head);
    let stop = running.says("curl -X POST http://");
    let control = stop.split('/').next().unwrap().parse().unwrap();
    let mut operator = Client::connect(control);
    operator.send("POST /stop/2 HTTP/1.1\r\nHost: demo\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(operator.reply().text(), "origin 2 is stopped\n");
    for _ in 0..6 {
        let reply = client.get("/").reply();
        assert_eq!(reply.status(), 200);
        assert_ne!(reply.text(), names[1]);
    }
    running.signal(Signal::TERM);
    assert_eq!(running.end().0, Some(0));
}
