//! A module that panics when it is built.

use lb_api::{Balancer, BuildCx, BuildError, Next, NextCx, Request};

struct PanicsInBuild;

impl Balancer for PanicsInBuild {
    const ID: &'static str = "panics_in_build";
    const SUMMARY: &'static str = "panics when it is built";
    type Settings = ();
    type Trylist = ();

    fn build(_: &BuildCx<'_, Self>, (): ()) -> Result<Self, BuildError> {
        panic!("cannot be built")
    }

    fn load_balance(&self, _: &Request<'_>) {}

    fn next(&self, (): &mut (), _: &NextCx<'_>) -> Next {
        Next::Exhausted
    }
}

lb_api::export_balancer!(PanicsInBuild);
