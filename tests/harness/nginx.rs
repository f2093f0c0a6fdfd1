//! The real nginx, to hold the proxy beside: as a child on a free port, over the same servers.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, getuid, kill_process};

use crate::client::Client;

/// A running nginx with one worker; ended when dropped.
#[derive(Debug)]
pub struct Nginx {
    child: Child,
    address: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Nginx {
    /// Where it is installed. Says so where it is not, so that nobody takes a test that did nothing for one that passed.
    pub fn program() -> Option<&'static str> {
        // Not everybody's search path has the second.
        let known = ["nginx", "/usr/sbin/nginx"];
        let runs = |program: &&str| Command::new(program).arg("-v").stderr(Stdio::null()).status().is_ok();
        let found = known.into_iter().find(runs);
        if found.is_none() {
            eprintln!("skipped: nginx is not installed here (apt-get install nginx-light)");
        }
        found
    }

    /// Starts it, with these lines as its upstream's. Responses say in `X-Tried` which servers were tried, and clients in
    /// `X-Real-IP` which address they come from.
    ///
    /// # Panics
    /// Where it does not start.
    #[track_caller]
    pub fn start(program: &str, upstream: &str) -> Self {
        Self::spawn(Command::new(program), upstream, "")
    }

    /// The same in a network of its own, where all servers are known by these lines of /etc/hosts and none can be reached:
    /// every try fails at once. `terms` are further lines for its location.
    ///
    /// # Panics
    /// Where it does not start, for example because this user may make no namespaces.
    #[track_caller]
    pub fn start_alone(program: &str, upstream: &str, terms: &str, hosts: &str) -> Self {
        let mut unshare = Command::new("unshare");
        // Its listening socket was made outside, and stays there.
        unshare.args(["--map-root-user", "--net", "--mount", "sh", "-c"]);
        unshare.arg("printf %s \"$HOSTS\" >hosts && mount --bind hosts /etc/hosts && exec \"$0\" \"$@\"");
        unshare.arg(program).env("HOSTS", hosts);
        Self::spawn(unshare, upstream, terms)
    }

    /// `command` takes nginx's arguments.
    #[track_caller]
    fn spawn(mut command: Command, upstream: &str, terms: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        // nginx cannot say which port it got, so it gets a socket that has one: by the way of its own binary upgrades.
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        let address = socket.local_addr().unwrap();
        let file = folder.path().join("nginx.conf");
        fs::write(&file, configuration(folder.path(), address, upstream, terms)).unwrap();
        let child = command
            .current_dir(folder.path())
            .arg("-p")
            .arg(folder.path())
            .arg("-c")
            .arg(&file)
            .env("NGINX", "0;")
            .stdin(OwnedFd::from(socket))
            .stdout(Stdio::null())
            .stderr(fs::File::create(folder.path().join("stderr")).unwrap())
            .spawn()
            .unwrap();
        Self { child, address, _folder: folder }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A new connection to it.
    #[track_caller]
    pub fn connect(&self) -> Client {
        Client::connect(self.address)
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // By its process ID, and not by force: it ends its worker first.
        if let Ok(pid) = i32::try_from(self.child.id()) {
            let _ = kill_process(Pid::from_raw(pid).expect("a child has an ID"), Signal::TERM);
        }
        let _ = self.child.wait();
    }
}

fn configuration(folder: &Path, address: SocketAddr, upstream: &str, terms: &str) -> String {
    let user = if getuid().is_root() { "user root;" } else { "" };
    let temp = |what: &str| format!("{what}_temp_path {}/{what};", folder.display());
    let temps = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(temp).join(" ");
    format!(
        "daemon off; worker_processes 1; {user}
pid {}/nginx.pid;
error_log stderr crit;
events {{ worker_connections 1024; }}
http {{
    access_log off; {temps}
    keepalive_requests 1000000;
    set_real_ip_from 127.0.0.1;
    real_ip_header X-Real-IP;
    upstream servers {{
        {upstream}
        keepalive 100;
    }}
    server {{
        listen {address};
        location / {{
            proxy_pass http://servers;
            proxy_http_version 1.1;
            proxy_set_header Connection \"\";
            add_header X-Tried $upstream_addr always;
            {terms}
        }}
    }}
}}
",
        folder.display()
    )
}
