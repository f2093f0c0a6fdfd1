//! Servers that are reached by Unix sockets.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use tempfile::TempDir;
use tests::eventually;
use tests::origin::Origin;
use tests::proxy::{Builder, Proxy};
use tests::site::Site;

/// A server behind a socket: it answers with the Host that it was asked for and the length of the body that it got, then a
/// filling of `fill` bytes.
struct Server {
    folder: TempDir,
    n_connections: Arc<AtomicUsize>,
}

impl Server {
    fn start(fill: usize) -> Self {
        let server = Self { folder: tempfile::tempdir().unwrap(), n_connections: Arc::default() };
        server.listen(fill);
        server
    }

    /// Until the process ends, or the socket is replaced.
    fn listen(&self, fill: usize) {
        let _ = std::fs::remove_file(self.path());
        let listener = UnixListener::bind(self.path()).unwrap();
        let n_connections = Arc::clone(&self.n_connections);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                n_connections.fetch_add(1, Ordering::SeqCst);
                thread::spawn(move || serve(&stream, fill));
            }
        });
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("app.sock")
    }
}

/// Serves a connection until its client ends it.
fn serve(stream: &UnixStream, fill: usize) -> Option<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let (mut length, mut host) = (0, String::new());
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok().filter(|&n| n > 0)?;
            match line.trim_end().split_once(": ") {
                Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                    length = value.parse().unwrap();
                }
                Some((name, value)) if name.eq_ignore_ascii_case("host") => value.clone_into(&mut host),
                None if line == "\r\n" => break,
                _ => {}
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        let text = format!("{host} {length} {}", "x".repeat(fill));
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", text.len());
        let mut writer = stream;
        writer.write_all((head + &text).as_bytes()).ok()?;
    }
}

fn over(path: &Path, others: &[Origin]) -> Builder {
    let socket = format!("unix:{}", path.display());
    Proxy::over_urls([socket].into_iter().chain(others.iter().map(Origin::url)))
}

#[test]
fn a_server_behind_a_socket_is_one_like_others() {
    let server = Server::start(0);
    let proxy = over(&server.path(), &[]).start();
    let mut client = proxy.connect();
    for _ in 0..5 {
        assert_eq!(client.get("/").reply().text(), "test 0 ");
    }
    client.send("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 3\r\n\r\nabc");
    assert_eq!(client.reply().text(), "a.test 3 ");
    assert_eq!(server.n_connections.load(Ordering::SeqCst), 1, "its connection is kept");
}

#[test]
fn long_bodies_go_both_ways() {
    const LENGTH: usize = 3 << 20;
    let server = Server::start(LENGTH);
    let proxy = over(&server.path(), &[]).start();
    let mut client = proxy.connect();
    for _ in 0..2 {
        client.send(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {LENGTH}\r\n\r\n"));
        client.send("y".repeat(LENGTH));
        let text = client.reply().text();
        assert_eq!(text.len(), format!("a {LENGTH} ").len() + LENGTH);
        assert!(text.starts_with(&format!("a {LENGTH} xxx")));
    }
}

#[test]
fn where_nobody_listens_the_next_server_is_tried() {
    let folder = tempfile::tempdir().unwrap();
    let origin = Origin::named("b");
    let proxy = over(&folder.path().join("none.sock"), std::slice::from_ref(&origin)).start();
    assert_eq!(proxy.names(3), "b b b");
}

#[test]
fn a_server_that_makes_its_socket_anew_is_found_again() {
    let server = Server::start(0);
    let builder = over(&server.path(), &[]).in_cluster(
        "health_check = { path = \"/\", interval = \"20ms\", rise = 1, fall = 1 }\nejection = { failures = 0 }",
    );
    let site = Site::run(&builder);
    assert_eq!(site.get("/").text(), "test 0 ");
    std::fs::remove_file(server.path()).unwrap();
    site.running().logs("No such file");
    server.listen(0);
    eventually("an answer", || (site.get("/").status() == 200).then_some(()));
    site.reload();
    assert_eq!(site.get("/").text(), "test 0 ");
}
