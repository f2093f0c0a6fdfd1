//! The error log as `[log]` wants it: files, JSON, syslog, levels and journald, of all processes.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tests::client::Client;
use tests::eventually;
use tests::origin::Origin;
use tests::proxy::Proxy;
use tests::site::{Folder, spoken};

use super::surroundings::{Killed, serves};

/// A proxy whose only server is gone: each request is a line of the worker's.
struct Failing {
    folder: Folder,
    child: Killed,
    address: SocketAddr,
}

impl Failing {
    /// With this table `[log]`; the command may be changed before it runs.
    fn run(log: &str, change: impl FnOnce(&Folder, &mut Command)) -> Self {
        let text = Proxy::over([&Origin::named("a")]).tables(&format!("[log]\n{log}\n")).text();
        let folder = Folder::with(&text);
        let mut command = folder.run();
        command.stdout(Stdio::null()).stderr(File::create(folder.file("stderr")).unwrap());
        change(&folder, &mut command);
        let child = Killed(command.spawn().unwrap());
        let address = serves(&folder, 1).listeners[0].parse().unwrap();
        Self { folder, child, address }
    }

    fn fail(&self) {
        assert_eq!(Client::connect(self.address).get("/").reply().status(), 502);
    }

    /// A file in its folder, once it has this; only whole lines.
    #[track_caller]
    fn has(&self, file: &str, text: &str) -> String {
        eventually(&format!("{text:?} in {file}"), || {
            let found = fs::read_to_string(self.folder.file(file)).unwrap_or_default();
            let whole = found[..found.rfind('\n').map_or(0, |end| end + 1)].to_owned();
            whole.contains(text).then_some(whole)
        })
    }

    fn end(mut self) -> (Option<i32>, String) {
        kill_process(Pid::from_child(&self.child.0), Signal::TERM).unwrap();
        let end = eventually("its end", || self.child.0.try_wait().unwrap());
        (end.code(), fs::read_to_string(self.folder.file("stderr")).unwrap())
    }
}

fn objects(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

fn pids(objects: &[Value]) -> BTreeSet<u64> {
    objects.iter().map(|object| object["pid"].as_u64().unwrap()).collect()
}

/// The same lines as another program reads them: levels in their order.
fn levels_by_jq(text: &str) -> Option<Vec<String>> {
    let mut jq = Command::new("jq");
    let jq = jq.args(["-r", "select(.message != null and .time != null) | .level"]);
    let Ok(mut child) = jq.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn() else {
        eprintln!("SKIPPED: jq is not installed");
        return None;
    };
    let mut stdin = child.stdin.take().unwrap();
    let text = text.to_owned();
    let writing = std::thread::spawn(move || stdin.write_all(text.as_bytes()));
    let output = child.wait_with_output().unwrap();
    writing.join().unwrap().unwrap();
    assert!(output.status.success());
    Some(String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect())
}

#[test]
fn a_json_log_has_lines_of_all_processes_and_follows_a_rotation() {
    let site = Failing::run("format = \"json\"\nfile = \"error.log\"", |_, _| ());
    site.fail();
    let text = site.has("error.log", "request failed");
    let lines = objects(&text);
    let pids = pids(&lines);
    assert!(pids.len() == 2 && pids.contains(&site.child.0.id().into()), "{text}");
    if let Some(levels) = levels_by_jq(&text) {
        let own: Vec<_> = lines.iter().map(|line| line["level"].as_str().unwrap().to_owned()).collect();
        assert_eq!(levels, own);
    }
    fs::rename(site.folder.file("error.log"), site.folder.file("error.log.1")).unwrap();
    let (code, said, _) = spoken(&site.folder.command("reopen", &[]));
    assert_eq!((code, &*said), (Some(0), "log reopened\n"));
    // The worker hears of the new file a moment later.
    let line = eventually("a line of the worker in the new file", || {
        site.fail();
        let text = fs::read_to_string(site.folder.file("error.log")).ok()?;
        text.lines().find(|line| line.contains("request failed")).map(str::to_owned)
    });
    let before = objects(&fs::read_to_string(site.folder.file("error.log.1")).unwrap());
    assert!(pids.contains(&objects(&line)[0]["pid"].as_u64().unwrap()) && !before.is_empty());
    assert!(site.has("error.log", "reopening the log files").contains("trylist reopen"));
    let (code, stderr) = site.end();
    assert_eq!((code, &*stderr), (Some(0), ""));
}

#[test]
fn a_level_of_the_command_line_wins_over_the_one_of_the_configuration() {
    let log = "format = \"json\"\nlevel = \"error\"\nfile = \"error.log\"";
    let levels = |site: Failing| {
        site.fail();
        let text = site.has("error.log", "request failed");
        assert_eq!(site.end().0, Some(0));
        objects(&text).iter().map(|line| line["level"].as_str().unwrap().to_owned()).collect::<BTreeSet<_>>()
    };
    assert_eq!(levels(Failing::run(log, |_, _| ())), ["error".to_owned()].into());
    let given = levels(Failing::run(log, |_, command| _ = command.env("TRYLIST_LOG", "info")));
    assert!(given.contains("info"), "{given:?}");
}

#[test]
fn a_reload_has_the_log_go_elsewhere_in_another_form() {
    let site = Failing::run("file = \"first.log\"", |_, _| ());
    assert!(site.has("first.log", "listening on ").contains(" INFO "));
    let text = fs::read_to_string(site.folder.config()).unwrap();
    let text = text.replace("first.log\"", "second.log\"\nformat = \"json\"");
    fs::write(site.folder.config(), text).unwrap();
    let (code, said, complained) = spoken(&site.folder.command("reload", &[]));
    assert_eq!((code, &*complained), (Some(0), ""), "{said}");
    serves(&site.folder, 2);
    site.fail();
    let lines = objects(&site.has("second.log", "request failed"));
    assert!(pids(&lines).len() >= 2, "the supervisor and the new worker");
    assert_eq!(site.end().0, Some(0));
}

/// The next line that has this, as a daemon reads it: priority, process ID, text.
#[track_caller]
fn datagram(daemon: &UnixDatagram, text: &str) -> (u8, u32, String) {
    daemon.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut bytes = [0; 8192];
    loop {
        let n = daemon.recv(&mut bytes).unwrap_or_else(|error| panic!("{text:?}: {error}"));
        let line = std::str::from_utf8(&bytes[..n]).unwrap();
        let (priority, rest) = line.strip_prefix('<').unwrap().split_once('>').unwrap();
        let (time, rest) = rest.split_at("Dec  1 04:12:15".len());
        assert_eq!(time.matches(':').count(), 2, "{line:?}");
        let (pid, said) = rest.strip_prefix(" trylist[").unwrap().split_once("]: ").unwrap();
        assert!(!said.contains('\n'));
        if said.contains(text) {
            return (priority.parse().unwrap(), pid.parse().unwrap(), said.to_owned());
        }
    }
}

#[test]
fn a_syslog_daemon_goes_away_and_comes_back_and_hears_how_much_it_missed() {
    let bind = |path: &Path| UnixDatagram::bind(path).unwrap();
    let socket = tempfile::tempdir().unwrap();
    let path = socket.path().join("log");
    let daemon = bind(&path);
    let site = Failing::run(&format!("syslog = {path:?}"), |_, _| ());
    let (priority, supervisor, _) = datagram(&daemon, "listening on ");
    assert_eq!((priority, supervisor), (3 << 3 | 6, site.child.0.id()));
    site.fail();
    let (priority, worker, _) = datagram(&daemon, "request failed");
    assert!(priority == (3 << 3 | 3) && worker != supervisor);
    drop(daemon);
    fs::remove_file(&path).unwrap();
    site.fail();
    // Said on stderr when it begins.
    site.has("stderr", "lines are lost: ");
    let daemon = bind(&path);
    let (_, from, said) = datagram(&daemon, "log: dropped ");
    assert!(from == worker && said.contains("took none"), "{said}");
    site.fail();
    datagram(&daemon, "request failed");
    assert_eq!(site.end().0, Some(0));
}

#[test]
fn a_full_disk_loses_lines_and_nothing_else() {
    let site = Failing::run("file = \"/dev/full\"", |_, _| ());
    site.fail();
    site.has("stderr", "log \"/dev/full\": lines are lost: ");
    site.fail();
    let (code, said, _) = spoken(&site.folder.command("reload", &[]));
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(site.end().0, Some(0));
}

#[test]
fn lines_for_journald_begin_with_their_priority() {
    let site = Failing::run("level = \"info\"", |folder, command| {
        let stderr = fs::metadata(folder.file("stderr")).unwrap();
        command.env("JOURNAL_STREAM", format!("{}:{}", stderr.dev(), stderr.ino()));
    });
    site.fail();
    let text = site.has("stderr", "request failed");
    let (code, _) = site.end();
    assert_eq!(code, Some(0));
    for line in text.lines() {
        let level = if line.contains(" INFO ") { "<6>" } else { "<" };
        assert!(line.starts_with(level), "{line}");
    }
    assert!(text.lines().any(|line| line.starts_with("<3>") && line.contains("request failed")), "{text}");
    // A stream of somebody else's.
    let other = Failing::run("", |_, command| _ = command.env("JOURNAL_STREAM", "1:2"));
    assert!(!other.has("stderr", "listening on ").starts_with('<'));
}
