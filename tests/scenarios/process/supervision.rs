//! Modules that bring their worker down or hang, and processes that are killed: what is lost with them, who is blamed, and
//! that the proxy goes on.

mod deaths;
mod saving;
mod hangs;
mod processes;

use std::fs;

use rustix::process::Signal;
use tests::client::Client;
use tests::command::Running;
use tests::hold::Hold;
use tests::origin::Origin;
use tests::proxy::{Builder, Proxy};
use tests::site::{
    Folder, Site, Thread, proc_status, process, signal, spoken, thread_states, threads, wait_for_end_of,
};
use tests::traffic::Traffic;
use tests::{Gate, artifacts, eventually};

/// A module that does what requests tell it to, in cluster `app` on two threads; and time for it, unless a test is about
/// that.
fn misbehaving<'a>(origins: impl IntoIterator<Item = &'a Origin>) -> Builder {
    Proxy::over(origins).named("app").threads(2).broken("misbehaves")
}

/// Has `misbehaves` do this.
fn asking_for(misdeed: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: test\r\nX-Misbehave: {misdeed}\r\n\r\n")
}

/// Has it do this, and waits until another worker serves. One that has just been replaced would still take the connection.
#[track_caller]
fn brings_down(site: &Site, misdeed: &str) {
    let before = site.wait_for_only(site.generation()).generation;
    let mut client = site.connect();
    client.send(asking_for(misdeed));
    client.end();
    eventually("the next generation", || (site.generation() > before).then_some(()));
}

/// Waits until the supervisor has looked at its workers more often than it takes for one that hangs to be found: ten times.
#[track_caller]
fn many_looks(site: &Site) {
    let waits = || proc_status(site.running().pid(), "voluntary_ctxt_switches");
    let enough = waits() + 30;
    eventually("many looks", || (waits() > enough).then_some(()));
}

/// A connection that another thread of the worker serves than this one.
#[track_caller]
fn on_another_thread(site: &Site, client: &mut Client, worker: u32) -> Client {
    let first = thread_of(client, worker);
    eventually("a connection on the other thread", || {
        let mut client = site.connect();
        (thread_of(&mut client, worker) != first).then_some(client)
    })
}

/// Which thread of the worker serves this connection: the one that gets most to do by many requests.
#[track_caller]
fn thread_of(client: &mut Client, worker: u32) -> String {
    let before = threads(worker);
    for _ in 0..100 {
        assert_eq!(client.get("/").reply().status(), 200);
    }
    let ran = |thread: &Thread| {
        let was = before.iter().find(|was| was.tid == thread.tid);
        thread.ran_ns - was.map_or(0, |was| was.ran_ns)
    };
    let serving = threads(worker).into_iter().filter(|thread| thread.name.starts_with("worker-"));
    serving.max_by_key(ran).unwrap().name
}
