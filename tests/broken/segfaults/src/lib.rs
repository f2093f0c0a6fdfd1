//! A module that reads memory that is not there when it is asked for an endpoint.

use lb_api::{Balancer, BuildCx, BuildError, Next, NextCx, Request};

struct Segfaults;

impl Balancer for Segfaults {
    const ID: &'static str = "segfaults";
    const SUMMARY: &'static str = "reads memory that is not there";
    type Settings = ();
    type Trylist = ();

    fn build(_: &BuildCx<'_, Self>, (): ()) -> Result<Self, BuildError> {
        Ok(Self)
    }

    fn load_balance(&self, _: &Request<'_>) {}

    fn next(&self, (): &mut (), _: &NextCx<'_>) -> Next {
        // SAFETY: none; that is the fault.
        let nothing = unsafe { std::ptr::with_exposed_provenance::<usize>(8).read_volatile() };
        Next::Endpoint(nothing)
    }
}

lb_api::export_balancer!(Segfaults);
