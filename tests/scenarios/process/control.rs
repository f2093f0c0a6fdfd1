//! Commands to a running proxy, and whoever else it is told by: what operators and service managers may say to it, and what
//! becomes of those who say nonsense.

use std::fs::{self, Permissions};
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::Signal;
use tests::client::Client;
use tests::command::Running;
use tests::origin::Origin;
use tests::proxy::{Builder, Proxy};
use tests::site::{Folder, Site, proc_status, process, signal, spoken, wait_for_end_of};
use tests::{DEADLINE, Gate, artifacts, eventually};
use trylist::process::control::Status;

fn over<'a>(origins: impl IntoIterator<Item = &'a Origin>) -> Builder {
    Proxy::over(origins).named("app").module("round_robin")
}

/// Its generations are not ready before their time is over.
fn blocking(origin: &Origin) -> Builder {
    let builder = Proxy::over([origin]).named("app").broken("misbehaves");
    builder.in_cluster("settings = { build = \"block\" }").top("supervision.start_timeout = \"3s\"")
}

fn gated(gate: &Gate) -> Origin {
    let gate = gate.clone();
    Origin::serving(move |conn| {
        while conn.request().is_some() {
            gate.wait();
            conn.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone");
        }
    })
}

// ---- commands --------------------------------------------------------------------------------------------------------

#[test]
fn commands_without_a_running_proxy_say_so() {
    let origin = Origin::named("a");
    let folder = Folder::with(&over([&origin]).text());
    let said = format!(
        "trylist: no proxy runs with this configuration (nothing listens on \"{}\")\n",
        folder.socket().display()
    );
    for (words, arguments) in [
        ("reload", &[][..]),
        ("status", &[]),
        ("status", &["--json"]),
        ("stop", &[]),
        ("server", &["app", "http://a", "drain"]),
        ("module release", &["round_robin"]),
    ] {
        let output = spoken(&folder.command(words, arguments));
        assert_eq!(output, (Some(1), String::new(), said.clone()), "{words}");
    }
}

#[test]
fn status_says_how_everything_is() {
    let origins = ["a", "b"].map(Origin::named);
    let site = Site::run(&over(&origins));
    let url = origins[1].url();
    site.folder().command("server", &["app", &url, "drain"]);
    let status = site.status();
    let (code, json, _) = spoken(&site.folder().command("status", &["--json"]));
    let parsed: Status = serde_json::from_str(&json).unwrap();
    assert_eq!(code, Some(0));
    assert_eq!((parsed.pid, &parsed.listeners), (site.running().pid(), &vec![site.address().to_string()]));
    assert_eq!((&parsed.acts[0].what, parsed.generations.len()), (&status.acts[0].what, 1));
    let by = &status.acts[0].by;
    assert_eq!(rustix::process::geteuid().is_root(), by == "root");
    assert_eq!(parsed.generations[0].modules, status.generations[0].modules);
    let file = artifacts::module("round_robin");
    let module = &parsed.generations[0].modules[0];
    assert_eq!((module.id.as_str(), Path::new(&module.file)), ("round_robin", file.as_path()));

    let (code, text, _) = spoken(&site.folder().command("status", &[]));
    assert_eq!(code, Some(0));
    let version = module.version.as_deref().unwrap();
    for part in [
        format!("trylist {}, pid {}, up ", parsed.version, parsed.pid),
        format!(
            "configuration {}, control socket {}",
            site.folder().config(),
            site.folder().socket().display()
        ),
        format!("listens on {}", site.address()),
        format!("metrics on {}", parsed.admin.as_deref().unwrap()),
        format!("generation 1: serving, pid {}, up ", site.worker()),
        format!("module round_robin {version} ({}…), 0 faults, {}", &module.sha256[..12], file.display()),
        format!("changed: cluster app, server {url}: drain, by {by}, "),
    ] {
        assert!(text.contains(&part), "{part}: {text}");
    }
}

#[test]
fn changes_of_servers_that_do_not_exist_are_refused() {
    let origin = Origin::named("a");
    let site = Site::run(&over([&origin]));
    let url = origin.url();
    for (cluster, server, said) in [
        ("ap", url.as_str(), "there is no cluster \"ap\" (there are: app)\n".to_owned()),
        ("app", "http://b", format!("cluster \"app\" has no server \"http://b\" (it has: {url})\n")),
    ] {
        for order in [&["drain"][..], &["maint"], &["ready"], &["weight", "2"], &["remove"]] {
            let output = spoken(&site.folder().command("server", &[&[cluster, server], order].concat()));
            assert_eq!(output, (Some(1), String::new(), said.clone()));
        }
    }
    for (server, said) in [
        (&*url, format!("cluster \"app\" has the server \"{url}\" already\n")),
        ("http://", "cluster \"app\": server \"http://\": ".to_owned()),
        ("https://a", "cluster \"app\": server \"https://a\": needs TLS".to_owned()),
    ] {
        let (code, out, complained) = spoken(&site.folder().command("server", &["app", server, "add"]));
        assert_eq!((code, out.as_str()), (Some(1), ""));
        assert!(complained.starts_with(&said), "{complained}");
    }
    assert_eq!((site.status().acts, site.generation()), (Vec::new(), 1));
}

#[test]
fn options_may_stand_behind_a_change_as_before_it() {
    let origins = ["a", "b"].map(Origin::named);
    let site = Site::run(&over(&origins));
    let (config, url) = (site.folder().config(), origins[0].url());
    for (words, said) in [
        (vec!["server", "app", &url, "drain", "-c", &config], "drains"),
        (vec!["server", "app", &url, "ready", "--config", &config], "takes requests"),
        (vec!["server", "-c", &config, "app", &url, "drain"], "drains"),
        (vec!["server", "app", &url, "weight", "3", "-c", &config], "has weight 3"),
    ] {
        let (code, out, complained) = spoken(&tests::command::trylist(&words));
        assert_eq!((code, complained.as_str()), (Some(0), ""), "{words:?}: {out}");
        assert!(out.contains(&format!("server \"{url}\" {said} from now on")), "{words:?}: {out}");
    }
    let weightless = tests::command::trylist(&["server", "app", &url, "drain", "3", "-c", &config]);
    assert_eq!(spoken(&weightless).0, Some(2));
}

#[test]
fn servers_come_and_go_by_command_in_one_generation() {
    let origins = ["a", "b", "c"].map(Origin::named);
    let site = Site::run(&over(&origins[..2]));
    let urls: Vec<String> = origins.iter().map(Origin::url).collect();
    let change = |server: usize, words: &[&str]| {
        let output = spoken(&site.folder().command("server", &[&["app", &urls[server]], words].concat()));
        assert_eq!((output.0, output.2.as_str()), (Some(0), ""), "{words:?}: {}", output.1);
    };
    let names = || {
        let mut names: Vec<String> = site.names(12).split(' ').map(str::to_owned).collect();
        names.sort();
        names.dedup();
        names.join(" ")
    };
    assert_eq!(names(), "a b");
    change(2, &["add"]);
    assert_eq!(names(), "a b c");
    change(0, &["remove"]);
    assert_eq!(names(), "b c");
    change(0, &["add"]);
    change(2, &["maint"]);
    assert_eq!(names(), "a b");
    change(2, &["ready"]);
    change(1, &["drain"]);
    assert_eq!(names(), "a c");
    change(2, &["remove"]);
    change(1, &["ready"]);
    assert_eq!(names(), "a b");
    let status = site.status();
    let left: Vec<&str> = status.acts.iter().map(|act| act.what.as_str()).collect();
    assert_eq!((left, status.generations.len(), site.generation()), (vec!["ready"], 1, 1));
}

#[test]
fn changes_outlive_a_worker_and_a_reload() {
    let origins = ["a", "b", "c"].map(Origin::named);
    let site = Site::run(&over(&origins[..2]));
    let (a, c) = (origins[0].url(), origins[2].url());
    for words in [["app", &c, "add"], ["app", &a, "remove"]] {
        assert_eq!(spoken(&site.folder().command("server", &words)).0, Some(0));
    }
    let is_so = || assert!(!site.names(8).contains('a') && site.names(8).contains('c'));
    is_so();
    site.reload_wholly();
    is_so();
    let before = site.worker();
    signal(before, Signal::KILL);
    eventually("another worker", || (site.worker() != before).then_some(()));
    is_so();
}

#[test]
fn a_drain_for_a_time_ends_in_maintenance_and_other_changes_end() {
    let origins = ["a", "b", "c"].map(Origin::named);
    let site = Site::run(&over(&origins[..2]));
    let urls = origins.each_ref().map(Origin::url);
    for (server, words) in [(0, &["drain"][..]), (1, &["weight", "3"]), (2, &["add"])] {
        let words = [&["app", &urls[server]], words, &["--for", "1s"]].concat();
        let output = spoken(&site.folder().command("server", &words));
        assert_eq!(output.0, Some(0), "{output:?}");
        assert!(output.1.ends_with(" for 1s from now on\n"), "{output:?}");
    }
    let left = eventually("their end", || {
        let acts = site.status().acts;
        (acts.len() == 1 && acts[0].what == "maint").then(|| acts.into_iter().next().unwrap())
    });
    assert_eq!((left.url, left.left_s), (urls[0].clone(), None));
    eventually("b alone", || (site.names(4) == "b b b b").then_some(()));
    assert_eq!(site.generation(), 1);
}

/// A worker that answers nothing: the change is kept, the operator hears so, and the next worker begins with it.
#[test]
fn a_change_that_no_worker_uses_is_kept() {
    let origins = ["a", "b"].map(Origin::named);
    let site = Site::run(&over(&origins));
    let before = site.worker();
    signal(before, Signal::STOP);
    let output = spoken(&site.folder().command("server", &["app", &origins[0].url(), "remove"]));
    assert_eq!((output.0, output.2.as_str()), (Some(0), ""));
    assert!(output.1.contains(" is removed: kept, but not in use yet after 5s\n"), "{}", output.1);
    signal(before, Signal::KILL);
    eventually("another worker", || (site.worker() != before).then_some(()));
    assert_eq!(site.names(4), "b b b b");
}

#[test]
fn stop_lets_requests_end() {
    let gate = Gate::default();
    let origin = gated(&gate);
    let site = Site::run(&over([&origin]));
    let mut client = site.connect();
    client.get("/");
    origin.wait_for_requests(1);
    let folder = site.folder().config();
    std::thread::scope(|scope| {
        let stop = scope.spawn(|| spoken(&tests::command::trylist(&["stop", "-c", &folder])));
        site.running().logs("trylist stop: draining; a second signal stops at once");
        eventually("nobody listens", || Client::try_connect(site.address()).err());
        assert!(!stop.is_finished(), "it is answered when all has ended");
        gate.open();
        assert_eq!(client.reply().text(), "done");
        assert_eq!(stop.join().unwrap(), (Some(0), "draining, then stopping\n".into(), String::new()));
    });
    eventually("neither the control socket nor its lock is left", || {
        let left = fs::read_dir(site.folder().path()).unwrap().map(|entry| entry.unwrap().file_name());
        (left.collect::<Vec<_>>() == ["site.toml"]).then_some(())
    });
    let (code, said) = site.end();
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn a_reload_while_another_runs_follows_it() {
    let origin = Origin::named("a");
    let site = Site::run(&over([&origin]));
    site.folder().write(&blocking(&origin).text());
    std::thread::scope(|scope| {
        let first = scope.spawn(|| site.folder().command("reload", &[]));
        site.running().logs("generation 2 started");
        // Two that wait get one generation, of the files as they are then.
        site.folder().write(&over([&origin]).text());
        let others = [(); 2].map(|()| scope.spawn(|| site.folder().command("reload", &[])));
        let queued = "trylist reload: another generation is starting; the reload follows";
        eventually("both wait", || (site.running().logged(&[queued]).len() == 2).then_some(()));
        let (code, _, said) = spoken(&first.join().unwrap());
        assert_eq!(code, Some(1));
        assert!(said.contains("generation 2 is not ready after 3s"), "{said}");
        for other in others {
            let (code, said, complained) = spoken(&other.join().unwrap());
            assert_eq!((code, complained.as_str()), (Some(0), ""), "{said}");
            assert!(said.starts_with("another generation is starting; the reload follows\n"), "{said}");
            assert!(said.contains("generation 3 serves"), "{said}");
        }
    });
    assert_eq!(site.generation(), 3);
}

// ---- the control socket ------------------------------------------------------------------------------------------------

#[test]
fn the_control_socket_is_its_users_alone() {
    let origin = Origin::named("a");
    let site = Site::run(&over([&origin]));
    assert_eq!(fs::metadata(site.folder().socket()).unwrap().mode() & 0o777, 0o600);
}

#[test]
fn a_folder_that_anybody_may_write_to_is_no_place_for_a_control_socket() {
    let origin = Origin::named("a");
    let folder = Folder::with(&over([&origin]).text());
    fs::set_permissions(folder.path(), Permissions::from_mode(0o777)).unwrap();
    let (code, _, said) = spoken(&folder.run().output().unwrap());
    let why = format!(
        "trylist: control socket \"{}\": folder {} is writable by others (mode 0777)\n",
        folder.socket().display(),
        folder.path().display()
    );
    assert_eq!((code, said), (Some(1), why));
}

#[test]
fn a_second_supervisor_on_one_socket_is_refused() {
    let origin = Origin::named("a");
    let site = Site::run(&over([&origin]));
    let (code, _, said) = spoken(&site.folder().run().output().unwrap());
    let why = format!(
        "trylist: control socket \"{}\": another supervisor of this configuration runs; stop it, or name another socket by \
         the key control\n",
        site.folder().socket().display()
    );
    assert_eq!((code, said), (Some(1), why));
    assert_eq!((site.generation(), site.names(1)), (1, "a".into()));
}

#[test]
fn the_socket_of_a_killed_supervisor_is_taken_over() {
    let origin = Origin::named("a");
    let site = Site::run(&over([&origin]));
    let worker = process(site.worker()).unwrap();
    site.running().signal(Signal::KILL);
    wait_for_end_of(&worker);
    assert!(site.folder().socket().exists(), "nobody was there to remove it");
    let (code, _, said) = spoken(&site.folder().command("status", &[]));
    assert!(code == Some(1) && said.contains("no proxy runs with this configuration"), "{said}");
    let next = Running::spawn(site.folder().run());
    assert_eq!(Client::connect(next.address()).get("/").reply().text(), "a");
    next.signal(Signal::TERM);
    assert_eq!(next.end().0, Some(0));
}

#[test]
fn rubbish_on_the_socket_is_told_so_or_cut_off() {
    let origin = Origin::named("a");
    let site = Site::run(&over([&origin]));
    let answer = |bytes: &[u8]| {
        let mut stream = UnixStream::connect(site.folder().socket()).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        // It may have had enough before the end.
        let _ = stream.write_all(bytes);
        let mut answer = Vec::new();
        // Cut off with something unread, it is a reset.
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8(answer).unwrap()
    };
    for rubbish in [&b"rubbish\n"[..], b"\n", b"\xff\xfe\x00\n", b"{\"reload\":1}\n", b"\"reload!\"\n"] {
        let answer = answer(rubbish);
        assert!(answer.starts_with("{\"line\":\"invalid command: "), "{answer}");
        assert!(answer.ends_with("\n{\"end\":\"Failed\"}\n"), "{answer}");
    }
    assert_eq!(answer(&[b'x'; 100_000]), "", "no command is that long");
    let said = answer(b"\"status\"\n\"stop\"\n");
    assert!(said.starts_with("{\"status\":") && said.ends_with("\n{\"end\":\"Done\"}\n"), "{said}");
    assert_eq!((site.generation(), site.reload().contains("generation 2 serves")), (1, true));
}

#[test]
fn clients_that_never_finish_are_cut_off_and_keep_nobody() {
    let origin = Origin::named("a");
    let site = Site::run(&over([&origin]));
    let mut unfinished: Vec<UnixStream> = ["", "\"rel", "{"]
        .into_iter()
        .map(|words| {
            let mut stream = UnixStream::connect(site.folder().socket()).unwrap();
            stream.set_read_timeout(Some(DEADLINE)).unwrap();
            stream.write_all(words.as_bytes()).unwrap();
            stream
        })
        .collect();
    site.reload();
    for stream in &mut unfinished {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "");
    }
    assert_eq!(site.generation(), 2);
}

#[test]
fn what_was_asked_for_is_done_though_whoever_asked_is_gone() {
    let origin = Origin::named("a");
    let site = Site::run(&over([&origin]));
    let ask = || {
        let mut stream = UnixStream::connect(site.folder().socket()).unwrap();
        stream.write_all(b"\"reload\"\n").unwrap();
        stream
    };
    drop(ask());
    site.wait_for_only(2);
    let mut half = ask();
    half.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    half.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("generation 3 serves") && answer.ends_with("{\"end\":\"Done\"}\n"), "{answer}");
}

// ---- files and users ---------------------------------------------------------------------------------------------------

#[test]
fn the_pid_file_is_there_as_long_as_the_proxy() {
    let origin = Origin::named("a");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("site.pid");
    let site = Site::run(&over([&origin]).top(&format!("pid_file = {file:?}")));
    let pid = format!("{}\n", site.running().pid());
    assert_eq!(fs::read_to_string(&file).unwrap(), pid);
    site.reload();
    assert_eq!(fs::read_to_string(&file).unwrap(), pid);
    site.folder().command("stop", &[]);
    assert_eq!(site.end().0, Some(0));
    assert!(!file.exists());
}

#[test]
fn a_pid_file_that_cannot_be_written_is_said() {
    let origin = Origin::named("a");
    let folder = Folder::with(&over([&origin]).top("pid_file = \"/no/such/folder/pid\"").text());
    let (code, _, said) = spoken(&folder.run().output().unwrap());
    assert_eq!((code, said.lines().count()), (Some(1), 1), "{said}");
    assert!(said.starts_with("trylist: pid_file \"/no/such/folder/pid\": "), "{said}");
    assert!(!folder.socket().exists());
}

/// A copy of the configuration has a control socket of its own, but the same pid file.
#[test]
fn a_second_start_that_fails_leaves_the_first_ones_pid_file() {
    let origin = Origin::named("a");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("site.pid");
    let key = format!("pid_file = {file:?}");
    let site = Site::run(&over([&origin]).top(&key));
    let pid = site.running().pid();
    let second = Folder::with(&over([&origin]).top(&key).text());
    let (code, _, said) = spoken(&second.run().output().unwrap());
    assert_eq!(code, Some(1));
    let why = format!("is in use by a running proxy (pid {pid}); name another file");
    assert_eq!(said, format!("trylist: pid_file {file:?}: {why}\n"));
    assert_eq!(fs::read_to_string(&file).unwrap(), format!("{pid}\n"));
}

/// True where this test can be done; else it says that it is skipped.
pub(crate) fn is_root(what: &str) -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        println!("skipped: only root can {what}");
    }
    is_root
}

/// A port below 1024 that nobody has.
fn low_port() -> u16 {
    let is_free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    (600..1024).rev().find(is_free).expect("one of 424 is free")
}

#[test]
fn workers_become_who_the_configuration_says_and_reloads_go_on() {
    const NOBODY: u64 = 65534;
    if !is_root("become somebody") {
        return;
    }
    let origin = Origin::named("a");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("round_robin.so");
    fs::copy(artifacts::module("round_robin"), &file).unwrap();
    fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    let log = folder.path().join("access.log");
    let port = low_port();
    let text = |more: &str| {
        let builder = over([&origin]).module_file("round_robin", &file);
        let builder = builder.top(&format!("user = \"{NOBODY}\"\ngroup = \"{NOBODY}\""));
        let builder = builder.tables(&format!("[access_log]\npath = {log:?}\n{more}"));
        builder.text().replacen("127.0.0.1:0", &format!("127.0.0.1:{port}"), 1)
    };
    let site = Site::of(&text(""));
    assert_eq!(site.address().port(), port);
    let is_dropped = || {
        let worker = site.worker();
        let ids = (proc_status(worker, "Uid"), proc_status(worker, "Gid"), proc_status(worker, "Groups"));
        assert_eq!((ids, proc_status(worker, "NoNewPrivs")), ((NOBODY, NOBODY, NOBODY), 1));
        assert_eq!(proc_status(site.running().pid(), "Uid"), 0);
        assert_eq!(site.get("/").text(), "a");
    };
    is_dropped();
    site.reload_wholly();
    is_dropped();
    // The supervisor binds the sockets of a reload.
    let more = low_port();
    site.folder().write(&text(&format!("[[listener]]\naddress = \"127.0.0.1:{more}\"")));
    site.reload_wholly();
    is_dropped();
    assert_eq!(Client::connect(([127, 0, 0, 1], more).into()).get("/").reply().text(), "a");
    site.running().signal(Signal::USR2);
    site.get("/logged");
    let written = || fs::read_to_string(&log).unwrap().contains("/logged").then_some(());
    eventually("the access log goes on", written);
}

#[test]
fn a_user_that_is_not_there_is_said() {
    if !is_root("become somebody") {
        return;
    }
    let origin = Origin::named("a");
    let site = Site::run(&over([&origin]));
    site.folder().write(&over([&origin]).top("user = \"no-such-user\"").text());
    let (code, said) = site.fails_to_reload();
    assert_eq!((code, said.len()), (Some(1), 2), "{said:?}");
    assert!(said[0].ends_with("site.toml:3: there is no user \"no-such-user\""), "{said:?}");
}

// ---- the admin listener ------------------------------------------------------------------------------------------------

#[test]
fn the_newest_generation_answers_the_admin_listener() {
    let gate = Gate::default();
    let origin = gated(&gate);
    let site = Site::run(&over([&origin]));
    let admin = site.status().admin;
    let mut client = site.connect();
    client.get("/");
    origin.wait_for_requests(1);
    site.reload();
    assert_eq!(site.status().admin, admin);
    // The one before drains, and would say so.
    for _ in 0..20 {
        let (alive, ready) = (site.admin("/healthz"), site.admin("/readyz"));
        assert_eq!((alive.status(), ready.status(), ready.text().as_str()), (200, 200, "ready\n"));
    }
    assert_eq!(site.status().generations.len(), 2);
    gate.open();
    assert_eq!(client.reply().text(), "done");
}

/// Large enough not to fit into the sockets' buffers.
#[test]
fn a_scrape_that_a_reload_meets_is_answered_whole() {
    let name = "n".repeat(1_000);
    // Nobody asks them for anything.
    let urls = (0..400).map(|n| format!("http://127.0.0.1:{}", 1_000 + n));
    let site = Site::run(&Proxy::over_urls(urls).named(&name).module("round_robin"));
    let admin = site.status().admin.unwrap().parse().unwrap();
    let before = site.worker();
    let mut client = Client::connect(admin);
    client.send("GET /metrics HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n");
    // It has begun to answer.
    client.socket().peek(&mut [0]).unwrap();
    let worker = process(before).unwrap();
    site.reload();
    assert_eq!(site.admin("/readyz").text(), "ready\n");
    let reply = client.reply();
    let length: usize = reply.header("content-length").unwrap().parse().unwrap();
    assert_eq!(reply.text().len(), length);
    assert!(length > 8 << 20, "{length} bytes fit into buffers");
    // Then there is nothing left to wait for.
    wait_for_end_of(&worker);
}

/// Nobody who says nothing keeps a worker that has drained.
#[test]
fn silent_connections_to_the_admin_listener_end_with_the_worker() {
    let origin = Origin::named("a");
    let site = Site::run(&over([&origin]));
    let admin = site.status().admin.unwrap().parse().unwrap();
    let mut silent = [(); 3].map(|()| Client::connect(admin));
    // Those before it have been accepted by then.
    assert_eq!(site.admin("/healthz").status(), 200);
    site.reload_wholly();
    for client in &mut silent {
        client.end();
    }
}

// ---- processes --------------------------------------------------------------------------------------------------------

#[test]
fn lists_of_processes_tell_the_supervisor_from_its_workers() {
    let origin = Origin::named("a");
    let site = Site::run(&over([&origin]));
    let comm = |pid: u32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
    let arguments = |pid: u32| fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
    assert_eq!(comm(site.worker()), "trylist-worker\n");
    assert!(arguments(site.worker()).starts_with("trylist\0worker\0"), "{}", arguments(site.worker()));
    assert_eq!(comm(site.running().pid()), "trylist\n");
}

// ---- service managers --------------------------------------------------------------------------------------------------

/// The end of systemd's notify protocol at which systemd is.
struct Manager {
    socket: UnixDatagram,
    folder: tempfile::TempDir,
}

impl Manager {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(folder.path().join("notify")).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        Self { socket, folder }
    }

    fn run(&self, folder: &Folder) -> Command {
        let mut command = folder.run();
        command.env("NOTIFY_SOCKET", self.folder.path().join("notify"));
        command
    }

    /// The next order.
    #[track_caller]
    fn hears(&self) -> String {
        let mut bytes = [0; 4096];
        let n = self.socket.recv(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..n]).into_owned()
    }

    #[track_caller]
    fn hears_of_a_reload(&self) {
        let said = self.hears();
        let mut lines = said.lines();
        assert_eq!(lines.next(), Some("RELOADING=1"), "{said}");
        let time = lines.next().and_then(|line| line.strip_prefix("MONOTONIC_USEC=")).expect("a time");
        assert!(time.parse::<u64>().unwrap() > 0, "{said}");
    }
}

#[test]
fn a_service_manager_hears_of_start_reload_and_stop() {
    let origin = Origin::named("a");
    let manager = Manager::new();
    let folder = Folder::with(&over([&origin]).text());
    let command = manager.run(&folder);
    let site = Site::start(folder, command);
    assert_eq!(manager.hears().trim_end(), "READY=1\nSTATUS=generation 1 serves");
    let environment = fs::read(format!("/proc/{}/environ", site.worker())).unwrap();
    assert!(
        !String::from_utf8_lossy(&environment).contains("NOTIFY_SOCKET"),
        "workers have nothing to tell it"
    );
    site.reload();
    manager.hears_of_a_reload();
    assert_eq!(manager.hears().trim_end(), "READY=1\nSTATUS=generation 2 serves");
    site.folder().write("rubbish");
    assert_eq!(site.fails_to_reload().0, Some(3));
    manager.hears_of_a_reload();
    assert_eq!(
        manager.hears().trim_end(),
        "READY=1\nSTATUS=the last new generation failed; unchanged: generation 2 keeps serving"
    );
    site.running().signal(Signal::TERM);
    assert_eq!(manager.hears().trim_end(), "STOPPING=1");
    assert_eq!(site.end().0, Some(0));
}

#[test]
fn a_service_manager_that_wants_signs_of_life_gets_them() {
    let origin = Origin::named("a");
    let manager = Manager::new();
    let folder = Folder::with(&over([&origin]).text());
    let mut command = manager.run(&folder);
    command.env("WATCHDOG_USEC", "100000").env_remove("WATCHDOG_PID");
    let _site = Site::start(folder, command);
    let mut n = 0;
    while n < 3 {
        n += usize::from(manager.hears().trim_end() == "WATCHDOG=1");
    }
}

#[test]
fn a_socket_of_the_service_manager_is_listened_on() {
    let origin = Origin::named("a");
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let text = over([&origin]).threads(2).text().replacen("127.0.0.1:0", &address.to_string(), 1);
    let folder = Folder::with(&text);
    let mut shell = Command::new("sh");
    shell.args(["-c", "export LISTEN_PID=$$ LISTEN_FDS=1; exec \"$@\" 3<&0 0</dev/null", "sh"]);
    shell.arg(folder.run().get_program()).args(folder.run().get_args());
    shell.stdin(Stdio::from(OwnedFd::from(socket.try_clone().unwrap())));
    // Clients that come before it runs wait.
    let mut early = Client::connect(address);
    early.get("/");
    let site = Site::start(folder, shell);
    assert_eq!(site.address(), address);
    site.running().logs(&format!("listener {address} uses a socket from the service manager"));
    assert_eq!(early.reply().text(), "a");
    drop(early);
    site.reload_wholly();
    assert_eq!(site.names(2), "a a");
    site.running().signal(Signal::TERM);
    assert_eq!(site.end().0, Some(0));
    Client::try_connect(address).expect("it is still the service manager's");
}
