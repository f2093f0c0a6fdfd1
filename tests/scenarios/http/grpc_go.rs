//! gRPC as grpc-go speaks it (Debian's packages, where Go and they are installed): many small messages, each a DATA frame of
//! its own, acknowledged by WINDOW_UPDATE and PING, and large ones. Its program is `tests/grpc-go`.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use tests::proxy::Proxy;
use tests::tls::{Authority, Files};
use tests::tool::said;

/// Where Debian has the sources of its packages for Go.
const PACKAGES: &str = "/usr/share/gocode";

/// The program, built once; `None`, said aloud, where it cannot be.
fn program() -> Option<&'static Path> {
    static PROGRAM: OnceLock<Option<PathBuf>> = OnceLock::new();
    PROGRAM.get_or_init(build).as_deref()
}

fn build() -> Option<PathBuf> {
    let has_go = Command::new("go").arg("version").stdout(Stdio::null()).status().is_ok();
    if !has_go || !Path::new(PACKAGES).join("src/google.golang.org/grpc").exists() {
        eprintln!(
            "SKIPPED: there is no Go with grpc-go here (apt-get install golang-go golang-google-grpc-dev)"
        );
        return None;
    }
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("grpc-go");
    let built = Command::new("go")
        .args(["build", "-o"])
        .arg(&program)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/grpc-go/main.go"))
        .envs([("GO111MODULE", "off"), ("GOPATH", PACKAGES), ("GOFLAGS", ""), ("CGO_ENABLED", "0")])
        .output()
        .unwrap();
    said(&built);
    Some(program)
}

/// Its server; ended when dropped.
struct Server {
    child: Child,
    port: u16,
}

impl Server {
    fn start(program: &Path, secure: Option<&Files>) -> Self {
        let mut command = Command::new(program);
        command.arg("serve").stdin(Stdio::piped()).stdout(Stdio::piped());
        if let Some(Files { cert, key, .. }) = secure {
            command.args([cert, key]);
        }
        let mut child = command.spawn().unwrap();
        let mut port = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut port).unwrap();
        Self { child, port: port.trim().parse().expect("a port") }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It ends with its standard input; by force where it does not.
        drop(self.child.stdin.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[track_caller]
fn call(program: &Path, port: u16, call: &str, secure: &[&str]) {
    let address = format!("localhost:{port}");
    let output = Command::new(program).args(["call", &address, call]).args(secure).output().unwrap();
    assert_eq!(said(&output), "ok\n");
}

/// Has a client make a call through the proxy, in clear text and then over TLS.
#[track_caller]
fn through_the_proxy(name: &str) {
    let Some(program) = program() else { return };
    let server = Server::start(program, None);
    // The request can be served.
    call(program, server.port, name, &[]);
    let proxy = Proxy::over_urls([format!("http://localhost:{}", server.port)])
        .listener("h2 = true")
        .in_cluster("protocol = \"h2\"")
        .start();
    call(program, proxy.address().port(), name, &[]);
    assert_eq!(proxy.tries_but("served"), 0.0);

    let ca = Authority::new("ca");
    let files = ca.issue(&["localhost"]);
    let server = Server::start(program, Some(&files));
    let proxy = Proxy::over_urls([format!("https://localhost:{}", server.port)])
        .listener(&format!("tls = {{ certificates = [{}] }}", files.toml()))
        .in_cluster(&format!("protocol = \"h2\"\ntls = {{ ca = {:?} }}", ca.path()))
        .start();
    call(program, proxy.address().port(), name, &[&ca.path(), "localhost"]);
    assert_eq!(proxy.tries_but("served"), 0.0);
}

#[test]
fn single_messages_are_answered() {
    through_the_proxy("unary");
}

#[test]
fn a_client_streams_20_000_messages_and_large_ones() {
    through_the_proxy("upload");
}

#[test]
fn a_server_streams_20_000_messages_and_large_ones() {
    through_the_proxy("download");
}

#[test]
fn both_stream_20_000_messages_and_large_ones() {
    through_the_proxy("talk");
}

#[test]
fn a_slow_reader_holds_up_none_of_nine_fast_ones() {
    through_the_proxy("slow");
}
