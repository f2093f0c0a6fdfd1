//! Commands of operators.

use super::*;

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
fn stop_lets_requests_end() {
    let gate = Gate::default();
    let origin = Origin::gated("done", &gate);
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
