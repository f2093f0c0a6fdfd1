//! A module that answers the first endpoint every time, also after it failed.

use lb_api::{Balancer, BuildCx, BuildError, Next, NextCx, Request};

struct AnswersTriedAgain;

impl Balancer for AnswersTriedAgain {
    const ID: &'static str = "answers_tried_again";
    const SUMMARY: &'static str = "answers the first endpoint, whatever happened to it";
    type Settings = ();
    type Trylist = ();

    fn build(_: &BuildCx<'_, Self>, (): ()) -> Result<Self, BuildError> {
        Ok(Self)
    }

    fn load_balance(&self, _: &Request<'_>) {}

    fn next(&self, (): &mut (), _: &NextCx<'_>) -> Next {
        Next::Endpoint(0)
    }
}

lb_api::export_balancer!(AnswersTriedAgain);
