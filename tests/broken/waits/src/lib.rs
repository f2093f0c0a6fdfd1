//! A module with nothing wrong but that a test can hold it inside a call: a request whose header `X-Wait` names a Unix
//! socket connects to it when an endpoint is asked for, and goes on when the other end closes.

use std::ffi::OsStr;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::UnixStream;

use lb_api::{Balancer, BuildCx, BuildError, Needs, Next, NextCx, Request};

struct Waits {
    n_endpoints: usize,
}

impl Balancer for Waits {
    const ID: &'static str = "waits";
    const SUMMARY: &'static str = "waits inside a call until it is let go";
    type Settings = ();
    type Trylist = ();

    fn build(cx: &BuildCx<'_, Self>, (): ()) -> Result<Self, BuildError> {
        Ok(Self { n_endpoints: cx.endpoints().len() })
    }

    fn needs(&self) -> Needs {
        Needs::default().request_header("x-wait")
    }

    fn load_balance(&self, _: &Request<'_>) {}

    fn next(&self, (): &mut (), cx: &NextCx<'_>) -> Next {
        if let Some(path) = cx.request().header(0) {
            let mut test = UnixStream::connect(OsStr::from_bytes(path)).expect("the test listens");
            // However it ends, it has ended.
            let _ = test.read(&mut [0]);
        }
        (0..self.n_endpoints).find(|i| !cx.tried(*i)).map_or(Next::Exhausted, Next::Endpoint)
    }
}

lb_api::export_balancer!(Waits);
