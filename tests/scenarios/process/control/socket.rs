//! The control socket.

use super::*;

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

#[test]
fn without_a_control_socket_commands_say_what_to_do_instead_and_signals_work() {
    let origin = Origin::named("a");
    let folder = Folder::with("");
    let text = format!("control = false\n{}", over([&origin]).text());
    fs::write(folder.config(), &text).unwrap();
    let site = {
        let command = folder.run();
        Site::start(folder, command)
    };
    assert_eq!(fs::read_dir(site.folder().path()).unwrap().count(), 1, "the configuration alone");
    let why = format!(
        "trylist: control = false in \"{}\": its proxy takes no commands; send its supervisor SIGHUP to reload, SIGTERM to \
         stop, or SIGUSR2 to open the logs again\n",
        site.folder().config()
    );
    for command in ["reload", "status", "stop", "reopen", "discovery status"] {
        let (code, _, said) = spoken(&site.folder().command(command, &[]));
        assert_eq!((code, &said), (Some(1), &why), "{command}");
    }
    // A file with a mistake in it says so all the same.
    fs::write(site.folder().config(), format!("{text}\n[[cluster]\n")).unwrap();
    assert_eq!(spoken(&site.folder().command("reload", &[])).2, why);
    fs::write(site.folder().config(), &text).unwrap();
    site.running().signal(Signal::HUP);
    site.running().logs("generation 2 serves");
    assert_eq!(site.names(1), "a");
    site.running().signal(Signal::TERM);
    assert_eq!(site.end().0, Some(0));
}
