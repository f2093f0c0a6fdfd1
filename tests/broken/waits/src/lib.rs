//! A module with nothing wrong but that a test can hold it inside a call: it connects to a Unix socket, and goes on when the other
//! end closes. A request whose header `X-Wait` names the socket is held when an endpoint is asked for; the settings name the
//! socket for balancers of so many members, when they are built or dropped.
//!
//! It answers the servers in turn.

use std::ffi::OsStr;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::UnixStream;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use lb_api::serde::Deserialize;
use lb_api::{Balancer, BuildCx, BuildError, Needs, Next, NextCx, Request};

#[derive(Default, Deserialize)]
#[serde(crate = "lb_api::serde", default, deny_unknown_fields)]
struct Settings {
    /// Where those of so many members wait when they are built.
    build: Option<String>,
    /// Where those of so many members wait when they are dropped.
    drop: Option<String>,
    members: usize,
}

struct Waits {
    n_endpoints: usize,
    turn: AtomicUsize,
    drop: Option<String>,
}

impl Balancer for Waits {
    const ID: &'static str = "waits";
    const SUMMARY: &'static str = "waits inside a call until it is let go";
    type Settings = Settings;
    type Trylist = usize;

    fn build(cx: &BuildCx<'_, Self>, settings: Settings) -> Result<Self, BuildError> {
        let n_endpoints = cx.endpoints().len();
        let is_held = n_endpoints == settings.members;
        if let Some(path) = settings.build.filter(|_| is_held) {
            wait_at(path.as_bytes());
        }
        Ok(Self { n_endpoints, turn: AtomicUsize::new(0), drop: settings.drop.filter(|_| is_held) })
    }

    fn needs(&self) -> Needs {
        Needs::default().request_header("x-wait")
    }

    fn load_balance(&self, _: &Request<'_>) -> usize {
        self.turn.fetch_add(1, Relaxed)
    }

    fn next(&self, turn: &mut usize, cx: &NextCx<'_>) -> Next {
        if let Some(path) = cx.request().header(0) {
            wait_at(path);
        }
        let mut order = (0..self.n_endpoints).map(|i| (*turn + i) % self.n_endpoints);
        order.find(|i| !cx.tried(*i)).map_or(Next::Exhausted, Next::Endpoint)
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        if let Some(path) = &self.drop {
            wait_at(path.as_bytes());
        }
    }
}

fn wait_at(path: &[u8]) {
    let mut test = UnixStream::connect(OsStr::from_bytes(path)).expect("the test listens");
    // However it ends, it has ended.
    let _ = test.read(&mut [0]);
}

lb_api::export_balancer!(Waits);
