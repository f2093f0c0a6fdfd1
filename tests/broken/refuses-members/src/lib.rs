//! A module that is not pleased with every membership. Its settings say how many members it takes, of which weight, and what it does
//! with others: `refuse`, `panic`, or `abort`, which ends the process. With `panics_when_asked` it panics at each request, too.
//!
//! It answers the servers in turn.

use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use lb_api::serde::Deserialize;
use lb_api::{Balancer, BuildCx, BuildError, Next, NextCx, Request};

#[derive(Deserialize)]
#[serde(crate = "lb_api::serde", default, deny_unknown_fields)]
struct Settings {
    least_members: usize,
    most_members: usize,
    least_weight: u32,
    most_weight: u32,
    with_others: String,
    panics_when_asked: bool,
}

impl Default for Settings {
    fn default() -> Self {
        let most = u32::MAX;
        Self {
            least_members: 0,
            most_members: usize::MAX,
            least_weight: 0,
            most_weight: most,
            with_others: "refuse".into(),
            panics_when_asked: false,
        }
    }
}

struct RefusesMembers {
    n_endpoints: usize,
    turn: AtomicUsize,
    panics_when_asked: bool,
}

impl Balancer for RefusesMembers {
    const ID: &'static str = "refuses_members";
    const SUMMARY: &'static str = "takes only some memberships";
    type Settings = Settings;
    type Trylist = usize;

    fn build(cx: &BuildCx<'_, Self>, settings: Settings) -> Result<Self, BuildError> {
        let endpoints = cx.endpoints();
        let (members, weights) =
            (settings.least_members..=settings.most_members, settings.least_weight..=settings.most_weight);
        if !members.contains(&endpoints.len()) || endpoints.iter().any(|e| !weights.contains(&e.weight())) {
            match &*settings.with_others {
                "panic" => panic!("these are not to its taste"),
                "abort" => std::process::abort(),
                _ => return Err(BuildError::new("these are not to its taste")),
            }
        }
        let panics_when_asked = settings.panics_when_asked;
        Ok(Self { n_endpoints: endpoints.len(), turn: AtomicUsize::new(0), panics_when_asked })
    }

    fn load_balance(&self, _: &Request<'_>) -> usize {
        assert!(!self.panics_when_asked, "it was asked");
        self.turn.fetch_add(1, Relaxed)
    }

    fn next(&self, turn: &mut usize, cx: &NextCx<'_>) -> Next {
        let mut order = (0..self.n_endpoints).map(|i| (*turn + i) % self.n_endpoints);
        order.find(|i| !cx.tried(*i)).map_or(Next::Exhausted, Next::Endpoint)
    }
}

lb_api::export_balancer!(RefusesMembers);
