//! The program as a service: `trylist run` with its supervisor and workers, the commands that operators have for it, and
//! what the system says of its processes.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};
use trylist::observe::status::{ServerStatus, WorkerStatus};
use trylist::process::control::{self, ControlReply, Exit, GenerationStatus, ServerOrder, Status};

use crate::client::Client;
use crate::command::{Running, command, trylist};
use crate::eventually;
use crate::proxy::Builder;
use crate::stream::Message;

/// A folder with a configuration and the proxy that runs it. All of its processes are killed when it is dropped.
#[derive(Debug)]
pub struct Site {
    folder: Folder,
    running: Option<Running>,
    address: SocketAddr,
}

/// The parts of a site before it runs, and those that stay after it.
#[derive(Debug)]
pub struct Folder(tempfile::TempDir);

impl Folder {
    /// With this configuration, to which it adds its control socket.
    pub fn with(text: &str) -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        folder.write(text);
        folder
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The configuration.
    pub fn config(&self) -> String {
        self.file("site.toml").to_str().unwrap().to_owned()
    }

    /// The control socket.
    pub fn socket(&self) -> PathBuf {
        self.file("site.sock")
    }

    /// Replaces the configuration. Commands that run meanwhile read it as it was before or as it is then.
    pub fn write(&self, text: &str) {
        let new = self.file("site.toml.new");
        fs::write(&new, format!("control = {:?}\n{text}", self.socket())).unwrap();
        fs::rename(new, self.file("site.toml")).unwrap();
    }

    /// Runs a command on it, such as `module release` with `greedy`.
    #[track_caller]
    pub fn command(&self, words: &str, arguments: &[&str]) -> Output {
        let config = self.config();
        let words = words.split(' ').chain(["-c", &config]).chain(arguments.iter().copied());
        trylist(&words.collect::<Vec<_>>())
    }

    /// `trylist run` on it, not yet started.
    pub fn run(&self) -> Command {
        command(&["run", "-c", &self.config()])
    }

    /// The same with a disk of 64 KiB at `path`, which is also its working folder and which no other process sees. The shell runs
    /// `first` there before. `None`, and a line that says so, where only root could.
    ///
    /// # Panics
    /// If the path is not UTF-8.
    pub fn run_with_small_disk(&self, path: &Path, first: &str) -> Option<Command> {
        let path = path.to_str().expect("a path of UTF-8");
        let mount = ["--mount", "mount", "-t", "tmpfs", "none", path];
        if !Command::new("unshare").args(mount).output().is_ok_and(|output| output.status.success()) {
            println!("skipped: only root can mount a disk to fill");
            return None;
        }
        let script =
            format!("mount -t tmpfs -o size=64k,mode=755 none \"$0\" && cd \"$0\" && {first} && exec \"$@\"");
        let (run, mut command) = (self.run(), Command::new("unshare"));
        command.args(["--mount", "sh", "-c", &script, path]).arg(run.get_program()).args(run.get_args());
        Some(command)
    }
}

impl Site {
    /// Runs this.
    ///
    /// # Panics
    /// Where it does not come to listen.
    #[track_caller]
    pub fn run(builder: &Builder) -> Self {
        Self::of(&builder.text())
    }

    /// Runs a whole configuration.
    ///
    /// # Panics
    /// As [`Site::run`].
    #[track_caller]
    pub fn of(text: &str) -> Self {
        let folder = Folder::with(text);
        let command = folder.run();
        Self::start(folder, command)
    }

    /// Runs it by this command.
    ///
    /// # Panics
    /// As [`Site::run`].
    #[track_caller]
    pub fn start(folder: Folder, command: Command) -> Self {
        let running = Running::spawn(command);
        let address = running.address();
        Self { folder, running: Some(running), address }
    }

    /// Its files.
    pub fn folder(&self) -> &Folder {
        &self.folder
    }

    /// Its supervisor.
    pub fn running(&self) -> &Running {
        self.running.as_ref().expect("it runs until it is ended")
    }

    /// Where its first listener is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A new connection to it.
    #[track_caller]
    pub fn connect(&self) -> Client {
        Client::connect(self.address)
    }

    /// One request on a connection of its own.
    #[track_caller]
    pub fn get(&self, path: &str) -> Message {
        self.connect().get(path).reply()
    }

    /// The bodies of so many requests, one after the other, on one connection for as long as it is left.
    #[track_caller]
    pub fn names(&self, n: usize) -> String {
        let mut client = self.connect();
        let mut names = Vec::new();
        for _ in 0..n {
            let reply = client.get("/").reply();
            names.push(reply.text());
            if reply.header("connection") == Some("close") {
                client = self.connect();
            }
        }
        names.join(" ")
    }

    /// Has it run another configuration, and says what the command said.
    ///
    /// # Panics
    /// Where that fails.
    #[track_caller]
    pub fn reload_with(&self, builder: &Builder) -> String {
        self.folder.write(&builder.text());
        self.reload()
    }

    /// Has it reload, and says what the command said.
    ///
    /// # Panics
    /// Where that fails.
    #[track_caller]
    pub fn reload(&self) -> String {
        let (code, said, complained) = spoken(&self.folder.command("reload", &[]));
        assert_eq!((code, complained.as_str()), (Some(0), ""), "{said}");
        said
    }

    /// Has it reload, which is to fail: exit code, and lines on stderr.
    ///
    /// # Panics
    /// Where it says anything on stdout.
    #[track_caller]
    pub fn fails_to_reload(&self) -> (Option<i32>, Vec<String>) {
        let (code, said, complained) = spoken(&self.folder.command("reload", &[]));
        assert_eq!(said, "", "what fails is told on stderr");
        (code, complained.lines().map(str::to_owned).collect())
    }

    /// Changes a server of a cluster as `trylist server` does, without the program: what it says.
    ///
    /// # Errors
    /// What it says of a change that is refused.
    ///
    /// # Panics
    /// Where it does not answer.
    #[track_caller]
    pub fn order(&self, cluster: &str, url: &str, order: ServerOrder) -> Result<String, String> {
        let mut said = String::new();
        let mut hear = |reply| {
            if let ControlReply::Line(line) | ControlReply::Problem(line) = reply {
                said += &line;
            }
        };
        let (cluster, url) = (cluster.to_owned(), url.to_owned());
        let command = control::Command::Server { cluster, url, order, for_s: None };
        match control::ask(&self.folder.socket(), &command, &mut hear).unwrap() {
            Exit::Done => Ok(said),
            _ => Err(said),
        }
    }

    /// How it is.
    ///
    /// # Panics
    /// Where it does not say.
    #[track_caller]
    pub fn status(&self) -> Status {
        let mut found = None;
        let mut take = |reply| {
            if let ControlReply::Status(status) = reply {
                found = Some(*status);
            }
        };
        control::ask(&self.folder.socket(), &control::Command::Status, &mut take).unwrap();
        found.expect("a status")
    }

    /// How the generation that serves is.
    ///
    /// # Errors
    /// Its error message.
    ///
    /// # Panics
    /// Where neither is said.
    #[track_caller]
    pub fn state(&self) -> Result<WorkerStatus, String> {
        let mut found = Err("nothing was said".to_owned());
        let mut take = |reply| match reply {
            ControlReply::Worker(worker) => found = Ok(*worker),
            ControlReply::Problem(line) => found = Err(line),
            ControlReply::Status(_) | ControlReply::Line(_) | ControlReply::End(_) => {}
        };
        let command = control::Command::State { cluster: None };
        control::ask(&self.folder.socket(), &command, &mut take).unwrap();
        found
    }

    /// A server of its first cluster, as it says.
    ///
    /// # Panics
    /// Where it has none of this URL.
    #[track_caller]
    pub fn server(&self, url: &str) -> ServerStatus {
        let state = self.state().unwrap();
        let servers = state.clusters.into_iter().next().unwrap().servers;
        servers.into_iter().find(|server| server.server == url).expect("a server of this URL")
    }

    /// The generation that serves, once one does.
    ///
    /// # Panics
    /// At the deadline.
    #[track_caller]
    pub fn serving(&self) -> GenerationStatus {
        eventually("a generation that serves", || {
            self.status().generations.into_iter().rfind(|generation| generation.state == "serving")
        })
    }

    /// Number of the generation that serves.
    #[track_caller]
    pub fn generation(&self) -> u64 {
        self.serving().generation
    }

    /// Process ID of the worker that serves.
    #[track_caller]
    pub fn worker(&self) -> u32 {
        self.serving().pid
    }

    /// Has it reload, and waits until the generations before have ended: then a new connection is the new one's.
    ///
    /// # Panics
    /// Where it fails.
    #[track_caller]
    pub fn reload_wholly(&self) {
        let before = self.generation();
        self.reload();
        self.wait_for_only(before + 1);
    }

    /// Waits until this generation, or a later one, is the only one.
    ///
    /// # Panics
    /// At the deadline.
    #[track_caller]
    pub fn wait_for_only(&self, generation: u64) -> GenerationStatus {
        eventually(&format!("generation {generation} alone"), || {
            let mut generations = self.status().generations;
            let only = generations.pop().filter(|_| generations.is_empty())?;
            (only.state == "serving" && only.generation >= generation).then_some(only)
        })
    }

    /// One number of its metrics, by the name and labels of its line; 0 where there is none.
    ///
    /// # Panics
    /// Where the admin listener does not answer, or what it answers is no number.
    #[track_caller]
    pub fn metric(&self, series: &str) -> f64 {
        let metrics = self.admin("/metrics").text();
        let mut values = metrics.lines().filter_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        values.next().map_or(0.0, |value| value.trim().parse().expect("a number"))
    }

    /// The answer of its admin listener.
    ///
    /// # Panics
    /// Where it has none.
    #[track_caller]
    pub fn admin(&self, path: &str) -> Message {
        let address = self.status().admin.expect("the configuration has an admin listener");
        let mut client = Client::connect(address.parse().unwrap());
        client.send(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")).reply()
    }

    /// Process IDs of its workers, whatever they are about.
    pub fn workers(&self) -> Vec<u32> {
        children(self.running().pid())
    }

    /// Waits for the supervisor's end: its exit code, and what all its processes wrote to stderr.
    #[track_caller]
    pub fn end(mut self) -> (Option<i32>, String) {
        self.running.take().expect("it runs until it is ended").end()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let Some(running) = self.running.take() else { return };
        let workers: Vec<OwnedFd> = children(running.pid()).into_iter().filter_map(process).collect();
        drop(running);
        for worker in workers {
            // It may have ended already.
            let _ = pidfd_send_signal(&worker, Signal::KILL);
        }
    }
}

/// Exit code, stdout and stderr of a command.
pub fn spoken(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// Sends a signal to a process of the test's own.
#[track_caller]
pub fn signal(process: u32, signal: Signal) {
    kill_process(pid(process), signal).unwrap();
}

/// Waits until a process that is no child of this one has ended.
///
/// # Panics
/// At the deadline.
#[track_caller]
pub fn wait_for_end_of(process: &OwnedFd) {
    eventually("the end of a process", || {
        let mut fds = [rustix::event::PollFd::new(process, rustix::event::PollFlags::IN)];
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        (rustix::event::poll(&mut fds, Some(&now)).unwrap() == 1).then_some(())
    });
}

/// A process, whoever gets its number after it; none where it has ended.
pub fn process(process: u32) -> Option<OwnedFd> {
    pidfd_open(pid(process), PidfdFlags::empty()).ok()
}

/// The open descriptors of a process, counted by kind: `socket`, `anon_inode:[eventpoll]`, a file's path.
pub fn descriptors(process: u32) -> BTreeMap<String, usize> {
    let mut kinds = BTreeMap::new();
    for descriptor in fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten().flatten() {
        // One that was closed meanwhile is none.
        let Ok(target) = fs::read_link(descriptor.path()) else { continue };
        let target = target.to_string_lossy();
        let kind = target.split_once(":[").filter(|(kind, _)| *kind != "anon_inode");
        *kinds.entry(kind.map_or(&*target, |(kind, _)| kind).to_owned()).or_default() += 1;
    }
    kinds
}

/// The first number in a line of `/proc/PID/status`: `VmRSS` (KiB), `Uid`, `NoNewPrivs`.
///
/// # Panics
/// Where the process is gone, or has no such line.
#[track_caller]
pub fn proc_status(process: u32, key: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).unwrap();
    value.split_whitespace().next().unwrap().parse().unwrap()
}

/// The state of each thread of a process: `R`, `S`, `T` and so on.
pub fn thread_states(process: u32) -> String {
    let mut states = String::new();
    for task in fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten() {
        let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        // The name before it may contain anything, also parentheses.
        let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
        let _ = write!(states, "{}", state.unwrap_or('-'));
    }
    states
}

/// A thread of a process, for as long as a test looks at it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thread {
    /// Its number.
    pub tid: u32,
    /// Its name.
    pub name: String,
    /// Processor time that it has had, nanoseconds.
    pub ran_ns: u64,
}

/// The threads of a process.
pub fn threads(process: u32) -> Vec<Thread> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let thread = |task: fs::DirEntry| {
        let read = |file| fs::read_to_string(task.path().join(file)).ok();
        Some(Thread {
            tid: task.file_name().to_str()?.parse().ok()?,
            name: read("comm")?.trim().to_owned(),
            ran_ns: read("schedstat")?.split(' ').next()?.parse().ok()?,
        })
    };
    tasks.filter_map(thread).collect()
}

/// Process IDs of the children of a process, whichever of its threads started them.
pub fn children(process: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let lists = tasks.map(|task| fs::read_to_string(task.path().join("children")).unwrap_or_default());
    lists
        .flat_map(|list| list.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<_>>())
        .collect()
}

fn pid(process: u32) -> Pid {
    Pid::from_raw(process as i32).expect("no process has number 0")
}
