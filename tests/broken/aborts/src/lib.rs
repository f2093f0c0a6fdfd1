//! A module that ends the process when it is asked for an endpoint.

use lb_api::{Balancer, BuildCx, BuildError, Next, NextCx, Request};

struct Aborts;

impl Balancer for Aborts {
    const ID: &'static str = "aborts";
    const SUMMARY: &'static str = "ends the process when it is asked for an endpoint";
    type Settings = ();
    type Trylist = ();

    fn build(_: &BuildCx<'_, Self>, (): ()) -> Result<Self, BuildError> {
        Ok(Self)
    }

    fn load_balance(&self, _: &Request<'_>) {}

    fn next(&self, (): &mut (), _: &NextCx<'_>) -> Next {
        std::process::abort()
    }
}

lb_api::export_balancer!(Aborts);
