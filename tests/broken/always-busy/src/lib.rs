//! A module that says that all endpoints are full, for ever.

use lb_api::{Balancer, BuildCx, BuildError, Next, NextCx, Request};

struct AlwaysBusy;

impl Balancer for AlwaysBusy {
    const ID: &'static str = "always_busy";
    const SUMMARY: &'static str = "says that all endpoints are full";
    type Settings = ();
    type Trylist = ();

    fn build(_: &BuildCx<'_, Self>, (): ()) -> Result<Self, BuildError> {
        Ok(Self)
    }

    fn load_balance(&self, _: &Request<'_>) {}

    fn next(&self, (): &mut (), _: &NextCx<'_>) -> Next {
        Next::Busy
    }
}

lb_api::export_balancer!(AlwaysBusy);
