//! A module that panics in the hook.

use lb_api::{Balancer, BuildCx, BuildError, Next, NextCx, Request};

struct PanicsInLoadBalance;

impl Balancer for PanicsInLoadBalance {
    const ID: &'static str = "panics_in_load_balance";
    const SUMMARY: &'static str = "panics in the hook";
    type Settings = ();
    type Trylist = ();

    fn build(_: &BuildCx<'_, Self>, (): ()) -> Result<Self, BuildError> {
        Ok(Self)
    }

    fn load_balance(&self, _: &Request<'_>) {
        panic!("cannot balance")
    }

    fn next(&self, (): &mut (), _: &NextCx<'_>) -> Next {
        Next::Exhausted
    }
}

lb_api::export_balancer!(PanicsInLoadBalance);
