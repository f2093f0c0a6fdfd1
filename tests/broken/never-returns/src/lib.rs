//! A module that never answers.

use lb_api::{Balancer, BuildCx, BuildError, Next, NextCx, Request};

struct NeverReturns;

impl Balancer for NeverReturns {
    const ID: &'static str = "never_returns";
    const SUMMARY: &'static str = "never answers";
    type Settings = ();
    type Trylist = ();

    fn build(_: &BuildCx<'_, Self>, (): ()) -> Result<Self, BuildError> {
        Ok(Self)
    }

    fn load_balance(&self, _: &Request<'_>) {}

    fn next(&self, (): &mut (), _: &NextCx<'_>) -> Next {
        loop {
            std::hint::spin_loop();
        }
    }
}

lb_api::export_balancer!(NeverReturns);
