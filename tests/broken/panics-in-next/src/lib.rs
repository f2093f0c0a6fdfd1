//! A module that panics when it is asked for an endpoint.

use lb_api::{Balancer, BuildCx, BuildError, Next, NextCx, Request};

struct PanicsInNext;

impl Balancer for PanicsInNext {
    const ID: &'static str = "panics_in_next";
    const SUMMARY: &'static str = "panics when it is asked for an endpoint";
    type Settings = ();
    type Trylist = ();

    fn build(_: &BuildCx<'_, Self>, (): ()) -> Result<Self, BuildError> {
        Ok(Self)
    }

    fn load_balance(&self, _: &Request<'_>) {}

    fn next(&self, (): &mut (), _: &NextCx<'_>) -> Next {
        panic!("cannot choose")
    }
}

lb_api::export_balancer!(PanicsInNext);
