//! Those around the proxy: who reads its log, who may write to the folders that its files are in, who started it. None of
//! them stops it, has it change another file, or gives its workers more than they need.

use std::fs::{self, File, Permissions};
use std::io::{self, PipeReader, PipeWriter, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, chown, lchown, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::{Pid, Signal, kill_process};
use tests::client::Client;
use tests::command::Running;
use tests::eventually;
use tests::origin::Origin;
use tests::proxy::{Builder, Proxy};
use tests::site::{Folder, Site, spoken};
use tests::tls::Authority;
use trylist::process::control::{self, ControlReply, Status};

use crate::process::control::is_root;

const NOBODY: u32 = 65534;

fn over<'a>(origins: impl IntoIterator<Item = &'a Origin>) -> Builder {
    Proxy::over(origins).named("app").module("round_robin")
}

// ---- who reads ---------------------------------------------------------------------------------------------------------

/// A pipe that takes nothing more, as long as nobody reads it.
fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, mut writer) = io::pipe().unwrap();
    let flags = fcntl_getfl(&writer).unwrap();
    fcntl_setfl(&writer, flags | OFlags::NONBLOCK).unwrap();
    while writer.write(&[b'\n'; 4096]).is_ok() {}
    while writer.write(b"\n").is_ok() {}
    fcntl_setfl(&writer, flags).unwrap();
    (reader, writer)
}

pub(super) struct Killed(pub(super) Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The exit code of a program that ends at once, and its complaint.
fn does_not_start(folder: &Folder) -> (Option<i32>, String) {
    let child = folder.run().stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut child = Killed(child);
    let code = eventually("its end", || child.0.try_wait().unwrap()).code();
    (code, io::read_to_string(child.0.stderr.take().unwrap()).unwrap())
}

fn status(folder: &Folder) -> Option<Status> {
    let mut found = None;
    let take = |reply| {
        if let ControlReply::Status(status) = reply {
            found = Some(*status);
        }
    };
    control::ask(&folder.socket(), &control::Command::Status, take).ok()?;
    found
}

/// A generation of this number or a later one serves.
pub(super) fn serves(folder: &Folder, generation: u64) -> Status {
    eventually("a generation that serves", || {
        status(folder).filter(|status| {
            let mut generations = status.generations.iter();
            generations.any(|of| of.state == "serving" && of.generation >= generation)
        })
    })
}

#[test]
fn a_reader_of_the_log_that_stops_stops_nobody() {
    let origin = Origin::named("a");
    let folder = Folder::with(&over([&origin]).text());
    let (_reader, writer) = full_pipe();
    let child = folder.run().stdout(Stdio::null()).stderr(writer).spawn().unwrap();
    let mut child = Killed(child);
    let address = serves(&folder, 1).listeners[0].parse().unwrap();
    let get = || Client::connect(address).get("/").reply();
    assert_eq!(get().text(), "a");
    // Each of these is a line of the worker's.
    drop(origin);
    for _ in 0..3 {
        assert_eq!(get().status(), 502);
    }
    let (code, said, complained) = spoken(&folder.command("reload", &[]));
    assert_eq!((code, complained.as_str()), (Some(0), ""), "{said}");
    serves(&folder, 2);
    assert_eq!(get().status(), 502);
    kill_process(Pid::from_child(&child.0), Signal::TERM).unwrap();
    let end = eventually("its end", || child.0.try_wait().unwrap());
    assert_eq!(end.code(), Some(0));
}

#[test]
fn a_configuration_that_is_refused_is_said_whole_and_ends_the_program_though_nobody_reads() {
    // Much more than a pipe takes at once, and than may wait for it. Its end could be lost by chance alone.
    const PROBLEMS: usize = 4_000;
    let text: String = (0..PROBLEMS).map(|n| format!("nonsense-{n} = 1\n")).collect();
    let folder = Folder::with(&text);
    for _ in 0..4 {
        let (code, _, said) = spoken(&folder.run().output().unwrap());
        let n_said = said.lines().filter(|line| line.contains("unknown key \"nonsense-")).count();
        assert_eq!((code, n_said), (Some(3), PROBLEMS), "{} bytes", said.len());
    }
    let (_reader, writer) = full_pipe();
    let mut child = Killed(folder.run().stdout(Stdio::null()).stderr(writer).spawn().unwrap());
    assert_eq!(eventually("its end", || child.0.try_wait().unwrap()).code(), Some(3));
}

#[test]
fn whoever_stops_reading_the_access_log_does_not_hold_up_the_end() {
    let origin = Origin::named("a");
    let text = over([&origin]).tables("[access_log]\npath = \"stdout\"\n").text();
    let folder = Folder::with(&text);
    let (_reader, writer) = full_pipe();
    let mut child = Killed(folder.run().stdout(writer).stderr(Stdio::null()).spawn().unwrap());
    let status = serves(&folder, 1);
    assert_eq!(Client::connect(status.listeners[0].parse().unwrap()).get("/").reply().text(), "a");
    kill_process(Pid::from_child(&child.0), Signal::TERM).unwrap();
    assert_eq!(eventually("its end", || child.0.try_wait().unwrap()).code(), Some(0));
}

// ---- who may write to its folders ----------------------------------------------------------------------------------------

/// A folder that belongs to somebody else, and a file of root's beside it.
struct Theirs {
    folder: tempfile::TempDir,
}

impl Theirs {
    const SECRET: &str = "root's own\n";

    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(folder.path().join("theirs")).unwrap();
        chown(folder.path().join("theirs"), Some(NOBODY), Some(NOBODY)).unwrap();
        fs::write(folder.path().join("victim"), Self::SECRET).unwrap();
        fs::set_permissions(folder.path().join("victim"), Permissions::from_mode(0o600)).unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join("theirs").join(name)
    }

    /// As the folder's owner can do it.
    fn link_to_the_victim(&self, name: &str) {
        if self.path(name).exists() {
            fs::rename(self.path(name), self.path("old")).unwrap();
        }
        symlink("../victim", self.path(name)).unwrap();
        lchown(self.path(name), Some(NOBODY), Some(NOBODY)).unwrap();
    }

    #[track_caller]
    fn is_left_alone(&self) {
        let victim = self.folder.path().join("victim");
        let metadata = fs::metadata(&victim).unwrap();
        assert_eq!((metadata.uid(), metadata.mode() & 0o7777), (0, 0o600));
        assert_eq!(fs::read_to_string(victim).unwrap(), Self::SECRET);
    }
}

#[test]
fn a_link_in_the_place_of_a_listener_s_socket_is_not_followed_by_a_reload() {
    if !is_root("have files that others cannot change") {
        return;
    }
    let (origin, theirs) = (Origin::named("a"), Theirs::new());
    let path = theirs.path("front.sock");
    let listener = |mode: &str| {
        let lines = format!(
            "[[listener]]\naddress = \"unix:{}\"\nowner = \"{NOBODY}\"\nmode = \"{mode}\"\n",
            path.display()
        );
        over([&origin]).tables(&lines)
    };
    let site = Site::run(&listener("0600"));
    let id = |metadata: fs::Metadata| (metadata.uid(), metadata.mode() & 0o777);
    assert_eq!(id(fs::metadata(&path).unwrap()), (NOBODY, 0o600));
    assert_eq!(Client::connect_unix(&path).get("/").reply().text(), "a");
    theirs.link_to_the_victim("front.sock");
    site.reload_with(&listener("0666"));
    theirs.is_left_alone();
    // The socket itself was changed, wherever it is now.
    assert_eq!(id(fs::metadata(theirs.path("old")).unwrap()), (NOBODY, 0o666));
    assert_eq!(Client::connect_unix(&theirs.path("old")).get("/").reply().text(), "a");
    // It goes with its listener, and what has its name does not.
    site.reload_with(&over([&origin]));
    assert!(fs::symlink_metadata(&path).is_ok());
    theirs.is_left_alone();
    // Nor is anything bound through a link.
    fs::remove_file(&path).unwrap();
    symlink("..", theirs.path("sub")).unwrap();
    let lines = format!("[[listener]]\naddress = \"unix:{}/front.sock\"\n", theirs.path("sub").display());
    site.folder().write(&over([&origin]).tables(&lines).text());
    let (code, said) = site.fails_to_reload();
    assert_eq!(code, Some(1), "{said:?}");
    let why = format!(
        "the symbolic link {0}/sub is not followed: folder {0} belongs to user {NOBODY}",
        theirs.folder.path().join("theirs").display()
    );
    assert!(said[0].ends_with(&why), "{said:?}");
}

#[test]
fn a_link_in_the_place_of_the_access_log_is_not_followed() {
    if !is_root("have files that others cannot change") {
        return;
    }
    let (origin, theirs) = (Origin::named("a"), Theirs::new());
    let builder = over([&origin]).tables(&format!("[access_log]\npath = {:?}\n", theirs.path("access.log")));
    let site = Site::run(&builder);
    theirs.link_to_the_victim("access.log");
    site.running().signal(Signal::USR2);
    site.running().logs("cannot be reopened; the old file stays in use: the symbolic link ");
    site.get("/root::0:0:root:/root:/bin/sh");
    let is_written = || fs::read_to_string(theirs.path("old")).unwrap().contains("/root::0").then_some(());
    eventually("the old file goes on", is_written);
    theirs.is_left_alone();
    let (code, said) = site.fails_to_reload();
    assert!(code == Some(1) && said[0].contains("is not followed: folder "), "{said:?}");
    theirs.is_left_alone();
}

#[test]
fn a_link_in_the_place_of_the_pid_file_is_not_followed() {
    if !is_root("have files that others cannot change") {
        return;
    }
    let (origin, theirs) = (Origin::named("a"), Theirs::new());
    theirs.link_to_the_victim("site.pid");
    let folder =
        Folder::with(&over([&origin]).top(&format!("pid_file = {:?}", theirs.path("site.pid"))).text());
    let (code, said) = does_not_start(&folder);
    assert!(code == Some(1) && said.contains("pid_file \"") && said.contains("is not followed"), "{said}");
    theirs.is_left_alone();
}

#[test]
fn a_control_socket_is_not_put_where_others_could_lead_it_elsewhere() {
    let origin = Origin::named("a");
    let folder = Folder::with(&over([&origin]).text());
    fs::create_dir_all(folder.file("open/run")).unwrap();
    fs::set_permissions(folder.file("open"), Permissions::from_mode(0o777)).unwrap();
    let text = fs::read_to_string(folder.config()).unwrap();
    let socket = folder.file("open/run/site.sock");
    fs::write(folder.config(), text.replace("site.sock", "open/run/site.sock")).unwrap();
    let (code, said) = does_not_start(&folder);
    let why = format!(
        "trylist: control socket \"{}\": folder {} is writable by others (mode 0777)\n",
        socket.display(),
        folder.file("open").display()
    );
    assert_eq!((code, said), (Some(1), why));
}

/// In a folder for all, whoever comes first has the name.
#[test]
fn without_a_runtime_folder_the_control_socket_is_in_the_home_and_not_in_tmp() {
    const THEM: u32 = 1;
    if !is_root("run it as others") {
        return;
    }
    let origin = Origin::named("a");
    let text = over([&origin]).text();
    let folder = Folder::with(&text);
    fs::write(folder.config(), text).unwrap();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    let (home, tmp) = (folder.file("home"), folder.file("tmp"));
    let taken = tmp.join(format!("trylist-{THEM}"));
    fs::create_dir(&home).unwrap();
    fs::create_dir_all(&taken).unwrap();
    fs::set_permissions(&tmp, Permissions::from_mode(0o1777)).unwrap();
    chown(&home, Some(THEM), None).unwrap();
    chown(&taken, Some(NOBODY), None).unwrap();
    let as_them = |mut command: Command| {
        for name in ["RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR", "XDG_STATE_HOME"] {
            command.env_remove(name);
        }
        command.uid(THEM).env("HOME", &home).env("TMPDIR", &tmp);
        command
    };
    let running = Running::spawn(as_them(folder.run()));
    assert_eq!(Client::connect(running.address()).get("/").reply().text(), "a");
    let sockets = fs::read_dir(home.join(".local/state/trylist")).unwrap();
    assert!(sockets.count() > 0);
    let stop = tests::command::command(&["stop", "-c", &folder.config()]);
    assert_eq!(spoken(&as_them(stop).output().unwrap()).0, Some(0));
    assert_eq!(running.end().0, Some(0));
}

#[test]
fn commands_do_not_speak_to_the_control_socket_of_another_user() {
    const THEM: u32 = 1;
    if !is_root("run it as others") {
        return;
    }
    let origin = Origin::named("a");
    let folder = Folder::with(&over([&origin]).text());
    chown(folder.path(), Some(THEM), None).unwrap();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    let mut command = folder.run();
    command.uid(THEM).env_remove("XDG_RUNTIME_DIR");
    let site = Site::start(folder, command);
    // A service that wants clients lets everybody connect.
    fs::set_permissions(site.folder().socket(), Permissions::from_mode(0o666)).unwrap();
    let status = |user: u32| {
        let mut command = tests::command::command(&["status", "-c", &site.folder().config()]);
        spoken(&command.uid(user).output().unwrap())
    };
    let (code, _, said) = status(NOBODY);
    let why = format!("belongs to user {THEM}; set the key control to a socket of yours\n");
    assert!(code == Some(1) && said.ends_with(&why), "{said}");
    for user in [THEM, 0] {
        assert_eq!(status(user).0, Some(0), "{user}");
    }
}

#[test]
fn a_group_gives_commands_where_the_configuration_names_it() {
    const SERVICE: u32 = 1;
    const OPERATORS: u32 = 4;
    if !is_root("run it as others") {
        return;
    }
    let origin = Origin::named("a");
    let folder = Folder::with("");
    let socket = folder.socket();
    let text =
        format!("control = {{ path = {socket:?}, group = \"{OPERATORS}\" }}\n{}", over([&origin]).text());
    fs::write(folder.config(), text).unwrap();
    chown(folder.path(), Some(SERVICE), None).unwrap();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    let mut command = folder.run();
    // To be a member of the group is what gives a file to it.
    command.uid(SERVICE).gid(OPERATORS).env_remove("XDG_RUNTIME_DIR");
    let site = Site::start(folder, command);
    let metadata = fs::metadata(&socket).unwrap();
    assert_eq!((metadata.mode() & 0o777, metadata.gid()), (0o660, OPERATORS));
    let reload = |group: u32| {
        let mut command = tests::command::command(&["reload", "-c", &site.folder().config()]);
        spoken(&command.uid(NOBODY).gid(group).output().unwrap())
    };
    let (code, _, said) = reload(OPERATORS);
    assert_eq!(code, Some(0), "{said}");
    let (code, _, said) = reload(NOBODY);
    assert!(code == Some(1) && said.contains("Permission denied"), "{said}");
    assert_eq!(site.generation(), 2);
}

/// As `/var/run` is one to `/run`.
#[test]
fn links_that_nobody_else_could_change_lead_on() {
    let origin = Origin::named("a");
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("run")).unwrap();
    fs::create_dir_all(folder.path().join("var")).unwrap();
    symlink("../run", folder.path().join("var/run")).unwrap();
    let file = |name: &str| folder.path().join("var/run").join(name);
    let builder = over([&origin])
        .top(&format!("pid_file = {:?}", file("site.pid")))
        .tables(&format!("[[listener]]\naddress = \"unix:{}\"\n", file("front.sock").display()))
        .tables(&format!("[access_log]\npath = {:?}\n", file("access.log")));
    let text = builder.text();
    let site = Folder::with(&text);
    fs::write(site.config(), format!("control = {:?}\n{text}", file("site.sock"))).unwrap();
    let running = Running::spawn(site.run());
    assert_eq!(Client::connect(running.address()).get("/").reply().text(), "a");
    assert_eq!(Client::connect_unix(&file("front.sock")).get("/x").reply().text(), "a");
    for command in ["reload", "status", "stop"] {
        let (code, said, complained) = spoken(&site.command(command, &[]));
        assert_eq!((code, complained.as_str()), (Some(0), ""), "{command}: {said}");
    }
    assert_eq!(running.end().0, Some(0));
    assert_eq!(fs::read_to_string(file("access.log")).unwrap().lines().count(), 2);
    let left = |name: &str| file(name).exists();
    assert_eq!(["site.pid", "front.sock", "site.sock"].map(left), [false; 3]);
}

// ---- who started it ------------------------------------------------------------------------------------------------------

fn environment(process: u32) -> Vec<String> {
    let text = fs::read(format!("/proc/{process}/environ")).unwrap();
    text.split(|byte| *byte == 0).map(|line| String::from_utf8_lossy(line).into_owned()).collect()
}

fn has_open(process: u32, file: &Path) -> bool {
    let open = fs::read_dir(format!("/proc/{process}/fd")).unwrap();
    open.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok()).any(|target| target == file)
}

#[test]
fn workers_inherit_neither_what_was_open_nor_the_environment() {
    let origin = Origin::named("a");
    let folder = Folder::with(&over([&origin]).top("pass_environment = [\"OF_THE_MODULE\"]").text());
    let left_open = folder.file("left-open");
    File::create(&left_open).unwrap();
    let run = folder.run();
    let mut command = Command::new("sh");
    command
        .args(["-c", "exec 7<\"$0\" && exec \"$@\""])
        .arg(&left_open)
        .arg(run.get_program())
        .args(run.get_args());
    command
        .env("SECRET_TOKEN", "secret")
        .env("OF_THE_MODULE", "setting")
        .env("TZ", "UTC")
        .stdin(Stdio::null());
    let site = Site::start(folder, command);
    let supervisor = site.running().pid();
    assert!(has_open(supervisor, &left_open), "what it inherited is its own business");
    assert!(environment(supervisor).contains(&"SECRET_TOKEN=secret".to_owned()));
    site.reload_wholly();
    let worker = site.worker();
    assert!(!has_open(worker, &left_open));
    let environment = environment(worker);
    assert!(!environment.iter().any(|line| line.contains("secret")), "{environment:?}");
    for line in ["OF_THE_MODULE=setting", "TZ=UTC"] {
        assert!(environment.iter().any(|known| known == line), "{line}: {environment:?}");
    }
}

#[test]
fn workers_leave_no_core_dump_unless_told() {
    let origin = Origin::named("a");
    let limit = |site: &Site| {
        let limits = fs::read_to_string(format!("/proc/{}/limits", site.worker())).unwrap();
        let line = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap().to_owned();
        let words: Vec<String> = line.split_whitespace().skip(4).take(2).map(str::to_owned).collect();
        (words[0].clone(), words[1].clone())
    };
    let site = Site::run(&over([&origin]));
    assert_eq!(limit(&site), ("0".into(), "0".into()));
    site.reload_with(&over([&origin]).top("core_dumps = true"));
    let (soft, hard) = limit(&site);
    assert_eq!(soft, hard, "as large as the system allows");
    let supervisor = fs::read_to_string(format!("/proc/{}/limits", site.running().pid())).unwrap();
    assert!(supervisor.contains(&hard));
}

/// Whether this is in the memory of a process that it can write to.
fn is_in_memory(process: u32, text: &[u8]) -> bool {
    const PAGE: u64 = 4096;
    let file = |name: &str| File::open(format!("/proc/{process}/{name}")).unwrap();
    let (memory, pages) = (file("mem"), file("pagemap"));
    let maps = fs::read_to_string(format!("/proc/{process}/maps")).unwrap();
    let mut writable =
        maps.lines().filter(|line| line.split(' ').nth(1).is_some_and(|mode| mode.starts_with("rw")));
    writable.any(|line| {
        let (from, to) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let address = |text| u64::from_str_radix(text, 16).unwrap();
        let (from, to) = (address(from), address(to));
        let mut entries = vec![0; ((to - from) / PAGE * 8) as usize];
        // Given back since the list was made.
        if pages.read_exact_at(&mut entries, from / PAGE * 8).is_err() {
            return false;
        }
        let mut present = Vec::new();
        for (idx, entry) in entries.chunks_exact(8).enumerate() {
            let mut page = [0; PAGE as usize];
            // The highest bit: it is there. Pages that are unreadable even so are the kernel's.
            if entry[7] & 0x80 != 0 && memory.read_exact_at(&mut page, from + idx as u64 * PAGE).is_ok() {
                present.extend(page);
            }
        }
        present.windows(text.len()).any(|window| window[0] == text[0] && window == text)
    })
}

#[test]
fn a_worker_keeps_no_copy_of_the_text_of_a_key() {
    let authority = Authority::new("issuer");
    // Freed memory may be used again by chance: of so many copies one would be left.
    let files: Vec<_> = (0..32).map(|n| authority.issue(&[&format!("site-{n}.test")])).collect();
    let origin = Origin::named("a");
    let all = files.iter().map(tests::tls::Files::toml).collect::<Vec<_>>().join(", ");
    let site = Site::run(&over([&origin]).listener(&format!("tls = {{ certificates = [{all}] }}")));
    let worker = site.worker();
    assert!(is_in_memory(worker, b"round_robin"), "it is searched at all");
    // In the text of each key the same bytes stand before its number. An allocator writes to the first of what is freed.
    let first_line = |files: &tests::tls::Files| {
        fs::read_to_string(&files.key).unwrap().lines().nth(1).unwrap().to_owned()
    };
    let lines: Vec<String> = files.iter().map(first_line).collect();
    let shared = &lines[0][16..44];
    assert!(lines.iter().all(|line| &line[16..44] == shared) && lines[0] != lines[1], "{lines:?}");
    assert!(!is_in_memory(worker, shared.as_bytes()));
}
