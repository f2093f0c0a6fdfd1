//! HAProxy by its runtime API, and Envoy by EDS from a file, as operators would change their servers.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use tests::client::Client;
use tests::eventually;
use tests::site::proc_status;

use crate::servers::Servers;
use crate::site::{Change, Site};
use crate::threads;

/// A program that is no Trylist.
struct Peer {
    child: Child,
    folder: tempfile::TempDir,
    address: SocketAddr,
}

fn program(variable: &str, name: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| name.to_owned())
}

fn is_installed(program: &str, version: &str) -> bool {
    let mut command = Command::new(program);
    command
        .arg(version)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// A port that was free a moment ago.
fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

impl Peer {
    fn start(mut command: Command, folder: tempfile::TempDir, address: SocketAddr) -> Self {
        let mut child = command.stdin(Stdio::null()).spawn().unwrap();
        eventually("the peer's listener", || {
            assert_eq!(child.try_wait().unwrap(), None, "the peer has ended");
            TcpStream::connect(address).ok()
        });
        Self { child, folder, address }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// HAProxy with a stats socket.
pub(crate) struct Haproxy {
    peer: Peer,
    /// Servers that it has, be they in maintenance.
    known: HashSet<usize>,
}

impl Haproxy {
    pub(crate) fn is_installed() -> bool {
        is_installed(&program("HAPROXY", "haproxy"), "-v")
    }

    pub(crate) fn start(balance: &str, servers: &Servers, n: usize) -> Self {
        let (folder, address) = (tempfile::tempdir().unwrap(), free_address());
        let mut text = format!(
            "global\n stats socket {} level admin\n nbthread {}\n maxconn 4000\ndefaults\n mode http\n timeout connect 5s\n \
             timeout client 1h\n timeout server 1h\n option redispatch\nfrontend f\n bind {address}\n default_backend app\n\
             backend app\n balance {balance}\n",
            folder.path().join("stats").display(),
            threads(n)
        );
        for i in 0..n {
            let _ = writeln!(text, " server s{i} {} weight 1", servers.address(i));
        }
        let file = folder.path().join("haproxy.cfg");
        std::fs::write(&file, text).unwrap();
        let mut command = Command::new(program("HAPROXY", "haproxy"));
        command.arg("-db").arg("-f").arg(file);
        Self { peer: Peer::start(command, folder, address), known: (0..n).collect() }
    }

    fn ask(&self, command: &str) -> String {
        let mut socket = UnixStream::connect(self.peer.folder.path().join("stats")).unwrap();
        socket.write_all(format!("{command}\n").as_bytes()).unwrap();
        let mut said = String::new();
        socket.read_to_string(&mut said).unwrap();
        said
    }
}

impl Site for Haproxy {
    fn address(&self) -> SocketAddr {
        self.peer.address
    }

    fn change(&mut self, server: usize, servers: &Servers, change: Change) {
        let said = match change {
            Change::Add(weight) if self.known.insert(server) => {
                let added = self
                    .ask(&format!("add server app/s{server} {} weight {weight}", servers.address(server)));
                assert!(added.contains("New server registered"), "{added}");
                self.ask(&format!("enable server app/s{server}"))
            }
            Change::Add(weight) => {
                let said = self.ask(&format!("set server app/s{server} weight {weight}"));
                said.trim().to_owned() + &self.ask(&format!("enable server app/s{server}"))
            }
            Change::Remove => {
                let said = self.ask(&format!("disable server app/s{server}"));
                // It deletes none that still has connections, idle ones too.
                if self.ask(&format!("del server app/s{server}")).contains("Server deleted") {
                    self.known.remove(&server);
                }
                said
            }
            Change::Weight(weight) => self.ask(&format!("set server app/s{server} weight {weight}")),
        };
        assert_eq!(said.trim(), "");
    }

    fn process(&self) -> u32 {
        self.peer.child.id()
    }

    fn rss(&self) -> u64 {
        proc_status(self.peer.child.id(), "VmRSS") / 1024
    }
}

/// Envoy with its endpoints in a file.
pub(crate) struct Envoy {
    peer: Peer,
    members: BTreeMap<usize, u16>,
}

impl Envoy {
    pub(crate) fn is_installed() -> bool {
        is_installed(&program("ENVOY", "envoy"), "--version")
    }

    pub(crate) fn start(servers: &Servers, n: usize) -> Self {
        let (folder, address) = (tempfile::tempdir().unwrap(), free_address());
        let members: BTreeMap<usize, u16> = (0..n).map(|i| (i, 1)).collect();
        std::fs::create_dir(folder.path().join("eds")).unwrap();
        write(&folder.path().join("eds"), servers, &members);
        let eds = folder.path().join("eds");
        let text = format!(
            r#"{{"node": {{"id": "churn", "cluster": "churn"}}, "static_resources": {{"listeners": [{{"name": "l", "address": {{"socket_address": {{"address": "127.0.0.1", "port_value": {}}}}},
"filter_chains": [{{"filters": [{{"name": "hcm", "typed_config": {{
"@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager", "stat_prefix": "h",
"route_config": {{"virtual_hosts": [{{"name": "v", "domains": ["*"], "routes": [{{"match": {{"prefix": "/"}}, "route": {{"cluster": "app", "timeout": "0s"}}}}]}}]}},
"http_filters": [{{"name": "r", "typed_config": {{"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}}}]}}}}]}}]}}],
"clusters": [{{"name": "app", "type": "EDS", "connect_timeout": "5s", "lb_policy": "LEAST_REQUEST",
"circuit_breakers": {{"thresholds": [{{"max_connections": 100000, "max_pending_requests": 100000, "max_requests": 100000}}]}},
"eds_cluster_config": {{"eds_config": {{"resource_api_version": "V3", "path_config_source": {{"path": "{}", "watched_directory": {{"path": "{}"}}}}}}}}}}]}}}}"#,
            address.port(),
            eds.join("eds.json").display(),
            eds.display()
        );
        let file = folder.path().join("envoy.json");
        std::fs::write(&file, text).unwrap();
        let mut command = Command::new(program("ENVOY", "envoy"));
        command.arg("-c").arg(file).args([
            "--concurrency",
            &threads(n).to_string(),
            "--log-level",
            "error",
            "--use-dynamic-base-id",
        ]);
        let peer = Peer::start(command, folder, address);
        eventually("Envoy's endpoints", || {
            (Client::connect(address).get("/").reply().status() == 200).then_some(())
        });
        Self { peer, members }
    }
}

fn write(folder: &Path, servers: &Servers, members: &BTreeMap<usize, u16>) {
    let endpoint = |(i, weight): (&usize, &u16)| {
        let address = servers.address(*i);
        format!(
            r#"{{"load_balancing_weight": {weight}, "endpoint": {{"address": {{"socket_address": {{"address": "{}", "port_value": {}}}}}}}}}"#,
            address.ip(),
            address.port()
        )
    };
    let endpoints: Vec<String> = members.iter().map(endpoint).collect();
    let text = format!(
        r#"{{"resources": [{{"@type": "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment", "cluster_name": "app",
"endpoints": [{{"lb_endpoints": [{}]}}]}}]}}"#,
        endpoints.join(",")
    );
    std::fs::write(folder.join("next"), text).unwrap();
    std::fs::rename(folder.join("next"), folder.join("eds.json")).unwrap();
}

impl Site for Envoy {
    fn address(&self) -> SocketAddr {
        self.peer.address
    }

    /// Envoy says nothing back.
    fn change(&mut self, server: usize, servers: &Servers, change: Change) {
        match change {
            Change::Add(weight) | Change::Weight(weight) => _ = self.members.insert(server, weight),
            Change::Remove => _ = self.members.remove(&server),
        }
        write(&self.peer.folder.path().join("eds"), servers, &self.members);
    }

    fn process(&self) -> u32 {
        self.peer.child.id()
    }

    fn rss(&self) -> u64 {
        proc_status(self.peer.child.id(), "VmRSS") / 1024
    }
}
