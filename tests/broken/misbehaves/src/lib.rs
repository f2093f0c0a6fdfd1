//! A module that does what it is told to, and else nothing wrong: it answers the servers in their order.
//!
//! It is told by each request, in a header `X-Misbehave`, what to do when it is asked for an endpoint; and by its settings,
//! what to do in the calls that are not of a request:
//!
//! - `segfault`, `abort`, `exit`: ends the process, in three ways
//! - `overflow`: uses up its stack
//! - `spin`: never returns, and uses a processor
//! - `block`: never returns, and waits
//! - `panic`
//! - `flood`: writes to the supervisor, which is told the same again and again, for as long as that listens
//! - `out of range`: answers an endpoint that there is not; only in a request
//!
//! `misbehaves-anew` is the same with another version of what it saves.

use std::hint::black_box;
use std::os::fd::{FromRawFd as _, IntoRawFd as _};
use std::os::unix::net::UnixDatagram;

use lb_api::serde::Deserialize;
use lb_api::{Balancer, BuildCx, BuildError, Needs, Next, NextCx, Request};

#[derive(Default, Deserialize)]
#[serde(crate = "lb_api::serde", default, deny_unknown_fields)]
struct Settings {
    /// Its fault in `build`; also `refuse what was saved` and `panic at what was saved`.
    build: String,
    /// Its fault in `save`; without one it saves the name of its cluster.
    save: String,
    /// Its fault when the balancer is dropped.
    drop: String,
}

struct Misbehaves {
    settings: Settings,
    cluster: String,
    n_endpoints: usize,
}

impl Balancer for Misbehaves {
    const ID: &'static str = "misbehaves";
    const SUMMARY: &'static str = "goes wrong in the way that each request asks for";
    const STATE_VERSION: u32 = match u32::from_str_radix(env!("CARGO_PKG_VERSION_MAJOR"), 10) {
        Ok(version) => version,
        Err(_) => panic!("no number"),
    };
    type Settings = Settings;
    type Trylist = ();

    fn build(cx: &BuildCx<'_, Self>, settings: Settings) -> Result<Self, BuildError> {
        match (settings.build.as_str(), cx.saved()) {
            ("refuse what was saved", Some(_)) => return Err(BuildError::new("this is of another form")),
            ("panic at what was saved", Some(saved)) => panic!("unknown byte {}", saved[0]),
            ("refuse what was saved" | "panic at what was saved", None) => {}
            (told, _) => act(told.as_bytes()),
        }
        if let Some(saved) = cx.saved() {
            cx.log().info(format_args!("begins with what was saved: {}", String::from_utf8_lossy(saved)));
        }
        let n_endpoints = cx.endpoints().len();
        Ok(Self { settings, cluster: cx.cluster_name().to_owned(), n_endpoints })
    }

    fn needs(&self) -> Needs {
        Needs::default().request_header("x-misbehave")
    }

    fn load_balance(&self, _: &Request<'_>) {}

    fn next(&self, (): &mut (), cx: &NextCx<'_>) -> Next {
        let told = cx.request().header(0).unwrap_or_default();
        if told == b"out of range" {
            return Next::Endpoint(self.n_endpoints);
        }
        act(told);
        (0..self.n_endpoints).find(|i| !cx.tried(*i)).map_or(Next::Exhausted, Next::Endpoint)
    }

    fn save(&self) -> Option<Vec<u8>> {
        act(self.settings.save.as_bytes());
        Some(self.cluster.clone().into())
    }
}

impl Drop for Misbehaves {
    fn drop(&mut self) {
        act(self.settings.drop.as_bytes());
    }
}

fn act(told: &[u8]) {
    match told {
        b"" => {}
        b"segfault" => {
            // SAFETY: none; that is the fault.
            black_box(unsafe { std::ptr::with_exposed_provenance::<usize>(8).read_volatile() });
        }
        b"abort" => std::process::abort(),
        b"exit" => std::process::exit(0),
        b"overflow" => assert_ne!(overflow(0), 1),
        b"spin" => loop {
            std::hint::spin_loop();
        },
        b"block" => loop {
            std::thread::park();
        },
        b"flood" => flood(),
        b"panic" => panic!("told to"),
        other => panic!("told to do {:?}, which it cannot", String::from_utf8_lossy(other)),
    }
}

/// Finds the worker's own socket, which is the only one that keeps packets apart, and sends `Ready` without end.
fn flood() {
    const READY: &[u8] = &[0, 2, 0];
    let sockets = std::fs::read_to_string("/proc/net/unix").unwrap();
    let is_of_packets = |inode: &str| {
        let mut fields = sockets.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        fields.any(|fields| fields.get(4) == Some(&"0005") && fields.get(6) == Some(&inode))
    };
    for fd in 3..1024 {
        let Ok(target) = std::fs::read_link(format!("/proc/self/fd/{fd}")) else { continue };
        let target = target.to_string_lossy();
        let inode = target.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']'));
        if !inode.is_some_and(is_of_packets) {
            continue;
        }
        // SAFETY: it is open, and given back as it was. That it is another's is the fault.
        let socket = unsafe { UnixDatagram::from_raw_fd(fd) };
        while socket.send(READY).is_ok() {}
        let _ = socket.into_raw_fd();
    }
}

#[expect(unconditional_recursion, reason = "that is the fault")]
fn overflow(depth: usize) -> usize {
    let frame = black_box([depth; 64]);
    overflow(black_box(depth + 1)) + frame[depth % 64]
}

lb_api::export_balancer!(Misbehaves);
