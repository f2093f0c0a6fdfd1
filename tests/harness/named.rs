//! Name servers of others: BIND and dnsmasq, each a child on a free port of loopback with a folder of its own.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, getuid, kill_process};

use crate::eventually;
use crate::tool::{said, tool_fed};

/// Between the look for a free port and the start of a server, others may take it.
const ATTEMPTS: usize = 20;

/// BIND with one zone, `app.test`, that nsupdate changes; ended when dropped.
#[derive(Debug)]
pub struct Bind(Server);

/// dnsmasq with names of `test` from a file like /etc/hosts; ended when dropped.
#[derive(Debug)]
pub struct Dnsmasq(Server);

#[derive(Debug)]
struct Server {
    child: Child,
    port: u16,
    folder: tempfile::TempDir,
}

impl Bind {
    /// Starts it. `None`, said aloud, where `named` or `nsupdate` is not installed.
    ///
    /// # Panics
    /// Where they are and it does not start.
    #[track_caller]
    pub fn start() -> Option<Self> {
        let program = installed("named", "bind9")?;
        installed("nsupdate", "bind9-dnsutils")?;
        let server = Server::start("all zones loaded", |folder, port| {
            // Debian's AppArmor profile goes by the path of the program, and forbids folders like this one.
            let own = folder.join("named");
            fs::copy(&program, &own).unwrap();
            fs::write(folder.join("app.zone"), ZONE).unwrap();
            fs::write(folder.join("named.conf"), configuration(folder, port, true)).unwrap();
            let mut command = Command::new(own);
            command.args(["-g", "-n", "1", "-c"]).arg(folder.join("named.conf"));
            command
        });
        Some(Self(server))
    }

    /// The table of a configuration in which names are looked up here, and again as soon as their answers say.
    pub fn config(&self) -> String {
        self.0.config()
    }

    /// Changes the zone at once: lines of nsupdate, as `add www.app.test 0 A 127.0.0.1`.
    ///
    /// # Panics
    /// Where it does not take them.
    #[track_caller]
    pub fn update(&self, lines: &[&str]) {
        let updates: String = lines.iter().map(|line| format!("update {line}\n")).collect();
        let script = format!("server 127.0.0.1 {}\nzone app.test\n{updates}send\n", self.0.port);
        said(&tool_fed("nsupdate", &[], &script).expect("it is installed"));
    }

    /// Has it answer SERVFAIL to every question, or answer again.
    ///
    /// # Panics
    /// Where it takes no other configuration.
    #[track_caller]
    pub fn fails(&self, fails: bool) {
        let done = self.0.n_logged("reloading configuration succeeded");
        fs::write(
            self.0.folder.path().join("named.conf"),
            configuration(self.0.folder.path(), self.0.port, !fails),
        )
        .unwrap();
        self.0.signal(Signal::HUP);
        eventually("its other configuration", || {
            (self.0.n_logged("reloading configuration succeeded") > done).then_some(())
        });
    }
}

impl Dnsmasq {
    /// Starts it with these addresses of names, and a service (SRV) of `_http._tcp.app.test` for each target and port. `None`, said
    /// aloud, where it is not installed.
    ///
    /// # Panics
    /// Where it is and does not start.
    #[track_caller]
    pub fn start(hosts: &[(&str, [u8; 4])], services: &[(&str, u16)]) -> Option<Self> {
        let program = installed("dnsmasq", "dnsmasq-base")?;
        let server = Server::start("read ", |folder, port| {
            write_hosts(folder, hosts);
            let mut command = Command::new(&program);
            command.args([
                "--keep-in-foreground",
                "--conf-file=/dev/null",
                "--log-facility=-",
                "--pid-file=",
            ]);
            command.args(["--listen-address=127.0.0.1", "--bind-interfaces", &format!("--port={port}")]);
            command.args(["--no-resolv", "--no-hosts", "--local=/test/"]);
            command.arg(format!("--addn-hosts={}", folder.join("hosts").display()));
            for (target, port) in services {
                command.arg(format!("--srv-host=_http._tcp.app.test,{target},{port},1,1"));
            }
            if getuid().is_root() {
                // Otherwise it becomes somebody who cannot read the folder.
                command.arg("--user=root");
            }
            command
        });
        Some(Self(server))
    }

    /// The table of a configuration in which names are looked up here, and again as soon as their answers say.
    pub fn config(&self) -> String {
        self.0.config()
    }

    /// Has it know these addresses of names and no others.
    #[track_caller]
    pub fn hosts(&self, hosts: &[(&str, [u8; 4])]) {
        write_hosts(self.0.folder.path(), hosts);
        self.0.signal(Signal::HUP);
    }
}

impl Server {
    /// `command` says how it is started with this folder and port; it serves once its log has `ready`.
    #[track_caller]
    fn start(ready: &str, command: impl Fn(&Path, u16) -> Command) -> Self {
        let mut last = String::new();
        for _ in 0..ATTEMPTS {
            let folder = tempfile::tempdir().unwrap();
            let port = free_port();
            let log = File::create(folder.path().join("log")).unwrap();
            let mut command = command(folder.path(), port);
            command.current_dir(folder.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
            let mut server = Self { child: command.spawn().unwrap(), port, folder };
            let is_ready = eventually("a name server", || {
                if server.child.try_wait().unwrap().is_some() || server.n_logged("address in use") > 0 {
                    return Some(false);
                }
                (server.n_logged(ready) > 0).then_some(true)
            });
            if is_ready && server.n_logged("address in use") == 0 {
                return server;
            }
            last = server.log();
        }
        panic!("no name server: {last}");
    }

    fn config(&self) -> String {
        format!("[resolver]\nservers = [\"127.0.0.1:{}\"]\nmin_ttl = \"5ms\"\ntimeout = \"2s\"", self.port)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    fn n_logged(&self, text: &str) -> usize {
        self.log().matches(text).count()
    }

    #[track_caller]
    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port of 127.0.0.1 that is free for both protocols.
fn free_port() -> u16 {
    eventually("a free port", || {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = socket.local_addr().unwrap().port();
        TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).is_ok().then_some(port)
    })
}

/// Where a program is; `None`, said aloud, where it is not. Not everybody's search path has the second folder.
fn installed(program: &str, package: &str) -> Option<String> {
    let known = [format!("/usr/bin/{program}"), format!("/usr/sbin/{program}")];
    let found = known.into_iter().find(|path| Path::new(path).is_file());
    if found.is_none() {
        eprintln!("SKIPPED: there is no {program} here (apt-get install {package})");
    }
    found
}

/// Addresses come by nsupdate.
const ZONE: &str = "$TTL 0\n@ SOA ns x 1 3600 600 86400 0\n  NS ns\nns A 127.0.0.1\n";

/// A zone whose file is not there is answered with SERVFAIL.
fn configuration(folder: &Path, port: u16, has_zone: bool) -> String {
    let zone = if has_zone { "app.zone" } else { "none.zone" };
    format!(
        "options {{
    directory {folder:?}; managed-keys-directory {folder:?};
    listen-on port {port} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }};
    pid-file none; session-keyfile none; lock-file none;
    recursion no; dnssec-validation no; notify no; allow-query {{ 127.0.0.1; }};
}};
controls {{ }};
zone \"app.test\" {{ type primary; file \"{zone}\"; allow-update {{ 127.0.0.1; }}; }};
"
    )
}

fn write_hosts(folder: &Path, hosts: &[(&str, [u8; 4])]) {
    let line = |(name, address): &(&str, [u8; 4])| format!("{} {name}\n", Ipv4Addr::from(*address));
    // It reads the file at any time: a whole one takes the place of the last.
    fs::write(folder.join("new"), hosts.iter().map(line).collect::<String>()).unwrap();
    fs::rename(folder.join("new"), folder.join("hosts")).unwrap();
}
