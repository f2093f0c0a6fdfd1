//! Commands to a running proxy, and whoever else it is told by: what operators and service managers may say to it, and what
//! becomes of those who say nonsense.

mod commands;
mod servers;
mod socket;
mod status;
mod users;
mod admin;
mod api;
mod service_manager;

use std::fs::{self, Permissions};
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::Signal;
use tests::client::Client;
use tests::command::Running;
use tests::origin::Origin;
use tests::proxy::{Builder, Proxy};
use tests::site::{Folder, Site, proc_status, process, signal, spoken, wait_for_end_of};
use tests::{DEADLINE, Gate, artifacts, eventually};
use trylist::process::control::Status;

fn over<'a>(origins: impl IntoIterator<Item = &'a Origin>) -> Builder {
    Proxy::over(origins).named("app").module("round_robin")
}

/// Its generations are not ready before their time is over.
fn blocking(origin: &Origin) -> Builder {
    let builder = Proxy::over([origin]).named("app").broken("misbehaves");
    builder.in_cluster("settings = { build = \"block\" }").top("supervision.start_timeout = \"3s\"")
}

/// True where this test can be done; else it says that it is skipped.
pub(crate) fn is_root(what: &str) -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        println!("skipped: only root can {what}");
    }
    is_root
}

/// A port below 1024 that nobody has.
fn low_port() -> u16 {
    let is_free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    (600..1024).rev().find(is_free).expect("one of 424 is free")
}
