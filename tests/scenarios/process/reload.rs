//! A new generation takes over from the one that serves: with nothing lost, or not at all; and with what was learned.

mod lossless;
mod listeners;
mod refused;
mod learned;
mod draining;

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::Signal;
use sha2::{Digest as _, Sha256};
use tests::client::Client;
use tests::origin::Origin;
use tests::proxy::{Builder, Proxy};
use tests::site::{Folder, Site, descriptors, proc_status, signal, spoken, threads};
use tests::stream::End;
use tests::traffic::Traffic;
use tests::{Gate, artifacts, eventually};

/// In front of these servers, with a cluster named `app`.
fn over<'a>(origins: impl IntoIterator<Item = &'a Origin>) -> Builder {
    Proxy::over(origins).named("app").threads(2)
}

/// A file like a module's, but not the same: what stands behind the end of an ELF file is read by nobody.
fn build_of(id: &str, to: &Path, n: usize) -> PathBuf {
    let mut bytes = fs::read(artifacts::module(id)).unwrap();
    bytes.extend(format!("build {n}").bytes());
    fs::write(to, bytes).unwrap();
    to.to_owned()
}

/// As the log names a file's hash.
fn short_hash(file: &Path) -> String {
    let hash = Sha256::digest(fs::read(file).unwrap());
    format!("{:02x}{:02x}…", hash[0], hash[1])
}

/// A connection to a generation that has been replaced: every request is answered, and one says that it is the last, at the
/// latest once the worker has heard of its own end.
#[track_caller]
fn is_answered_and_closed(client: &mut Client) {
    eventually("the last answer", || {
        let reply = client.get("/").reply();
        assert_eq!((reply.status(), reply.text().as_str()), (200, "a"));
        reply.header("connection").map(|said| assert_eq!(said, "close"))
    });
    assert_eq!(client.end(), End::Eof);
}

/// One thread before this server, for paths below `/a`.
fn routed(origin: &Origin) -> Builder {
    over([origin]).threads(1).route("path = \"/a\"")
}

/// Clients with a request each, in generations of their own, all of which drain. New connections are the last one's.
fn draining(site: &Site, origin: &Origin, n: usize) -> Vec<Client> {
    let request = |n: usize| {
        let (mut client, mut idle) = (site.connect(), site.connect());
        client.get("/a");
        origin.wait_for_requests(n);
        idle.get("/nowhere").reply();
        site.reload();
        eventually("the generation before has heard of its end", || {
            idle.get("/nowhere").reply().header("connection").map(|said| assert_eq!(said, "close"))
        });
        client
    };
    (1..=n).map(request).collect()
}
