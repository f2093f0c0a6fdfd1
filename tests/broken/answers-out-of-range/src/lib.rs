//! A module that answers an endpoint that does not exist.

use lb_api::{Balancer, BuildCx, BuildError, Next, NextCx, Request};

struct AnswersOutOfRange;

impl Balancer for AnswersOutOfRange {
    const ID: &'static str = "answers_out_of_range";
    const SUMMARY: &'static str = "answers an endpoint that does not exist";
    type Settings = ();
    type Trylist = ();

    fn build(_: &BuildCx<'_, Self>, (): ()) -> Result<Self, BuildError> {
        Ok(Self)
    }

    fn load_balance(&self, _: &Request<'_>) {}

    fn next(&self, (): &mut (), _: &NextCx<'_>) -> Next {
        Next::Endpoint(1_000_000)
    }
}

lb_api::export_balancer!(AnswersOutOfRange);
