//! A module that gives up after its first endpoint, with others left.

use lb_api::{Balancer, BuildCx, BuildError, Next, NextCx, Request};

struct ExhaustsEarly;

impl Balancer for ExhaustsEarly {
    const ID: &'static str = "exhausts_early";
    const SUMMARY: &'static str = "gives up after one endpoint";
    type Settings = ();
    type Trylist = ();

    fn build(_: &BuildCx<'_, Self>, (): ()) -> Result<Self, BuildError> {
        Ok(Self)
    }

    fn load_balance(&self, _: &Request<'_>) {}

    fn next(&self, (): &mut (), cx: &NextCx<'_>) -> Next {
        if cx.is_first() { Next::Endpoint(0) } else { Next::Exhausted }
    }
}

lb_api::export_balancer!(ExhaustsEarly);
