//! A proxy in processes of its own whose servers can be changed, and Trylist as one.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tests::eventually;
use tests::proxy::{Builder, Proxy};
use tests::site::proc_status;
use trylist::process::control::{self, Command as Order, ControlReply, Exit, ServerOrder, Status};

use crate::servers::Servers;

/// A change of one server.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Change {
    /// It becomes a member with this weight, which it had when it was one before.
    Add(u16),
    Remove,
    Weight(u16),
}

/// A proxy that serves while its servers change.
pub(crate) trait Site: Send {
    fn address(&self) -> SocketAddr;
    /// Makes a change, and returns once the proxy has answered that it is in use (or says nothing more).
    fn change(&mut self, server: usize, servers: &Servers, change: Change);
    /// The process whose descendants, with itself, are the proxy.
    fn process(&self) -> u32;
    /// Resident memory of what serves, in MiB.
    fn rss(&self) -> u64;
}

/// The configuration over the first `n` servers.
pub(crate) fn builder(id: &str, module: &Path, servers: &Servers, n: usize) -> Builder {
    Proxy::over_urls((0..n).map(|i| servers.url(i))).named("app").module_file(id, module)
}

/// Processor time of a process and its descendants, in seconds.
pub(crate) fn cpu(process: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit_once(") ").map_or("", |(_, rest)| rest).split(' ').collect();
    let ticks: u64 = [11, 12].iter().filter_map(|i| fields.get(*i)?.parse::<u64>().ok()).sum();
    let tasks = std::fs::read_dir(format!("/proc/{process}/task"));
    let children: f64 = tasks
        .into_iter()
        .flatten()
        .flatten()
        .map(|task| std::fs::read_to_string(task.path().join("children")).unwrap_or_default())
        .flat_map(|children| children.split(' ').filter_map(|child| child.parse().ok()).collect::<Vec<u32>>())
        .map(cpu)
        .sum();
    ticks as f64 / rustix::param::clock_ticks_per_second() as f64 + children
}

/// This program as `trylist run`.
pub(crate) struct Trylist {
    supervisor: Child,
    folder: tempfile::TempDir,
    pub(crate) address: SocketAddr,
}

impl Trylist {
    pub(crate) fn start(builder: &Builder) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("site.toml");
        let socket = folder.path().join("site.sock");
        std::fs::write(&file, format!("control = {socket:?}\n{}", builder.text())).unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        let supervisor = command.arg("run").arg(&file).stdin(Stdio::null()).spawn().unwrap();
        let mut site = Self { supervisor, folder, address: SocketAddr::from(([127, 0, 0, 1], 0)) };
        site.address = eventually("a worker that serves", || {
            let status = site.status()?;
            let serves = status.generations.iter().any(|generation| generation.state == "serving");
            status.listeners.first().filter(|_| serves)?.parse().ok()
        });
        site
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("site.sock")
    }

    /// The status as `trylist status` shows it; `None` before the control socket is there.
    pub(crate) fn status(&self) -> Option<Status> {
        let mut found = None;
        let take = |reply| {
            if let ControlReply::Status(status) = reply {
                found = Some(*status);
            }
        };
        control::ask(&self.socket(), &Order::Status, take).ok()?;
        found
    }

    pub(crate) fn worker(&self) -> u32 {
        self.status().unwrap().generations.last().unwrap().pid
    }
}

impl Site for Trylist {
    fn address(&self) -> SocketAddr {
        self.address
    }

    fn change(&mut self, server: usize, servers: &Servers, change: Change) {
        let order = match change {
            // It has the weight of its last change again: acts outlive their member.
            Change::Add(_) => ServerOrder::Add,
            Change::Remove => ServerOrder::Remove,
            Change::Weight(weight) => ServerOrder::Weight(weight),
        };
        let order = Order::Server { cluster: "app".into(), url: servers.url(server), order, for_s: None };
        let mut said = String::new();
        let exit = control::ask(&self.socket(), &order, |reply| said += &format!("{reply:?} ")).unwrap();
        assert_eq!(exit, Exit::Done, "{said}");
    }

    fn process(&self) -> u32 {
        self.supervisor.id()
    }

    fn rss(&self) -> u64 {
        proc_status(self.worker(), "VmRSS") / 1024
    }
}

impl Drop for Trylist {
    fn drop(&mut self) {
        let _ = control::ask(&self.socket(), &Order::Stop, |_| ());
        let _ = self.supervisor.wait();
    }
}
