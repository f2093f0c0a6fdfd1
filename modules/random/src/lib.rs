//! `proxy_lb`: plain round robin over the servers in the order of the file.
#![doc = ""]

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use lb_api::{Balancer, BuildCx, BuildError, Next, NextCx, Request, export_balancer};

/// The instance for one cluster.
#[derive(Debug)]
pub struct Other {
    n_endpoints: usize,
    turn: AtomicUsize,
}

impl Balancer for Other {
    const ID: &'static str = "proxy_lb";
    const SUMMARY: &'static str = "round robin in the order of the file";
    type Settings = ();
    /// The endpoint that the next try goes to.
    type Trylist = usize;

    fn build(cx: &BuildCx<'_, Self>, (): ()) -> Result<Self, BuildError> {
        Ok(Self { n_endpoints: cx.endpoints().len(), turn: AtomicUsize::new(0) })
    }

    fn load_balance(&self, _: &Request<'_>) -> usize {
        self.turn.fetch_add(1, Relaxed) % self.n_endpoints
    }

    fn next(&self, at: &mut usize, cx: &NextCx<'_>) -> Next {
        if cx.n_tried() == self.n_endpoints {
            return Next::Exhausted;
        }
        while cx.tried(*at) {
            *at = (*at + 1) % self.n_endpoints;
        }
        Next::Endpoint(*at)
    }
}

export_balancer!(Other);
