//! A module that gives up after its first endpoint, with others left. The path's first digit says which that is: `/1/a`.

use lb_api::{Balancer, BuildCx, BuildError, Next, NextCx, Request};

struct ExhaustsEarly;

impl Balancer for ExhaustsEarly {
    const ID: &'static str = "exhausts_early";
    const SUMMARY: &'static str = "gives up after one endpoint";
    type Settings = ();
    type Trylist = usize;

    fn build(_: &BuildCx<'_, Self>, (): ()) -> Result<Self, BuildError> {
        Ok(Self)
    }

    fn load_balance(&self, request: &Request<'_>) -> usize {
        let digit = request.path().get(1).filter(|byte| byte.is_ascii_digit());
        digit.map_or(0, |digit| usize::from(digit - b'0'))
    }

    fn next(&self, first: &mut usize, cx: &NextCx<'_>) -> Next {
        if cx.is_first() { Next::Endpoint(*first) } else { Next::Exhausted }
    }
}

lb_api::export_balancer!(ExhaustsEarly);
