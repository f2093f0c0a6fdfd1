//! The part of a change of members that holds at once: duties, falling weights, leaving. It waits for no module: one
//! that builds for long, or never returns, keeps no server from being drained or removed.
//!
//! A build that began before a change knows nothing of it. So whoever writes to members has a turn, and asks in its turn who
//! they are to be by now.

use std::sync::PoisonError;

use rustc_hash::FxHashMap;

use super::build::Duties;
use super::{Cluster, Snapshot};
use crate::cluster::endpoint::{Endpoint, Which};
use crate::cluster::health::HealthSource;
use crate::cluster::membership::{Duty, Member};

/// The duty and weight of a member that stays.
#[derive(Clone, Copy, Debug)]
struct HoldsNow {
    duty: Duty,
    /// Its weight, where it is not more than it was.
    weight: Option<u16>,
}

impl Cluster {
    /// Has what needs no build hold at once for members in use, those that `concerns` is true of. `wanted` is asked in turn
    /// who these are to be: all servers with the URLs of such members. From any thread that serves no requests.
    pub(crate) fn apply_at_once(
        &self,
        concerns: impl Fn(&Endpoint) -> bool,
        wanted: impl FnOnce() -> Vec<Member>,
    ) {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.apply(&wanted(), concerns);
    }

    /// The same for all members of `before`, of which these are what a build is for; or of what is wanted by now, if that is
    /// something else.
    pub(super) fn apply_before_build(
        &self,
        before: &Snapshot,
        duties: &Duties,
        newer: &dyn Fn() -> Option<Vec<Member>>,
    ) {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        match newer() {
            Some(newer) => self.apply(&newer, |_| true),
            None => {
                let holds = |id: u64| duties.get(&id).map(|duty| HoldsNow { duty: *duty, weight: None });
                self.hold(before, |_| true, holds);
            }
        }
    }

    /// Changes since a build began hold for its members, too.
    pub(super) fn catch_up(&self, newer: &dyn Fn() -> Option<Vec<Member>>) {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(newer) = newer() {
            self.apply(&newer, |_| true);
        }
    }

    fn apply(&self, members: &[Member], concerns: impl Fn(&Endpoint) -> bool) {
        let ids = Endpoint::ids(&self.config.name, members.iter().map(|member| &member.server));
        let members: FxHashMap<u64, &Member> = ids.into_iter().zip(members).collect();
        let holds = |id: u64| {
            members.get(&id).map(|member| HoldsNow { duty: member.duty, weight: Some(member.server.weight) })
        };
        self.hold(&self.newest().clone(), concerns, holds);
    }

    /// `holds` is `None` for those that leave.
    fn hold(
        &self,
        members: &Snapshot,
        concerns: impl Fn(&Endpoint) -> bool,
        holds: impl Fn(u64) -> Option<HoldsNow>,
    ) {
        for tier in &members.tiers {
            let mut leaving = Vec::new();
            for endpoint in members.endpoints_of(tier).iter().filter(|endpoint| concerns(endpoint)) {
                let Some(HoldsNow { duty, weight }) = holds(endpoint.id) else {
                    leaving.push(endpoint);
                    continue;
                };
                // A change in which it left may have been refused.
                self.set_source(endpoint, HealthSource::Gone, false);
                self.set_duty(endpoint, duty);
                if let Some(weight) = weight.filter(|weight| *weight < endpoint.live.weight()) {
                    self.set_weight(endpoint, weight);
                }
            }
            let n_available = tier.n_available() as usize;
            let n_leaving = leaving.iter().filter(|endpoint| endpoint.is_usable(Which::Available)).count();
            if 2 * n_available.saturating_sub(n_leaving) < n_available {
                // Those that stay could not serve what all did. The others leave when the new ones serve.
                continue;
            }
            for endpoint in leaving {
                self.set_source(endpoint, HealthSource::Gone, true);
            }
        }
    }
}
