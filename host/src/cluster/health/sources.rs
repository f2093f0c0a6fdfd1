//! Reasons why an endpoint takes no requests. Several may hold at once, and none of them undoes another: the state that
//! modules see follows from all of them.

use lb_api::wire;
use serde::{Deserialize, Serialize};

/// A source that may say that an endpoint takes no requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HealthSource {
    /// The operator drains it: it takes no new sessions, and keeps those that it has.
    Drain,
    /// Its active checks.
    Check,
    /// The results of its traffic.
    Ejection,
    /// The operator has taken it out of service: it takes nothing.
    Maintenance,
    /// It has left the cluster.
    Gone,
}

impl HealthSource {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Drain, Self::Check, Self::Ejection, Self::Maintenance, Self::Gone];

    /// Its name in labels.
    pub fn name(self) -> &'static str {
        match self {
            Self::Drain => "drain",
            Self::Check => "check",
            Self::Ejection => "ejection",
            Self::Maintenance => "maint",
            Self::Gone => "gone",
        }
    }

    /// Its bit among the reasons of an endpoint.
    pub(crate) fn bit(self) -> u8 {
        match self {
            Self::Drain => 1,
            Self::Check => 1 << 1,
            Self::Ejection => 1 << 2,
            Self::Maintenance => 1 << 4,
            Self::Gone => 1 << 5,
        }
    }
}

/// The cluster is in panic: checks and ejections do not count.
pub(in crate::cluster) const PANIC: u8 = 1 << 3;

/// The state that follows from these reasons, one of [`wire`]'s `STATE_*`.
pub(crate) fn state_of(reasons: u8) -> u32 {
    let has = |source: HealthSource| reasons & source.bit() != 0;
    if has(HealthSource::Drain) || has(HealthSource::Maintenance) || has(HealthSource::Gone) {
        wire::STATE_DRAINING
    } else if reasons & PANIC != 0 {
        wire::STATE_AVAILABLE
    } else if has(HealthSource::Check) {
        wire::STATE_DOWN
    } else if has(HealthSource::Ejection) {
        wire::STATE_EJECTED
    } else {
        wire::STATE_AVAILABLE
    }
}

/// Whether an endpoint with these reasons is available.
pub(crate) fn is_available(reasons: u8) -> bool {
    state_of(reasons) == wire::STATE_AVAILABLE
}

/// Whether an endpoint with these reasons keeps its sessions: it takes requests, or only drains.
pub(crate) fn keeps_sessions(reasons: u8) -> bool {
    is_available(reasons & !HealthSource::Drain.bit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(sources: &[HealthSource], panics: bool) -> u32 {
        let reasons = sources.iter().fold(if panics { PANIC } else { 0 }, |bits, source| bits | source.bit());
        state_of(reasons)
    }

    #[test]
    fn the_strongest_source_makes_the_state() {
        use HealthSource::{Check, Drain, Ejection, Gone, Maintenance};
        for (sources, expected) in [
            (&[][..], wire::STATE_AVAILABLE),
            (&[Ejection], wire::STATE_EJECTED),
            (&[Check, Ejection], wire::STATE_DOWN),
            (&[Drain, Check, Ejection], wire::STATE_DRAINING),
            (&[Maintenance], wire::STATE_DRAINING),
            (&[Gone, Check], wire::STATE_DRAINING),
        ] {
            assert_eq!(state(sources, false), expected, "{sources:?}");
        }
    }

    #[test]
    fn panic_passes_over_all_but_what_operators_say() {
        use HealthSource::{Check, Drain, Ejection, Gone, Maintenance};
        assert_eq!(state(&[Check, Ejection], true), wire::STATE_AVAILABLE);
        for source in [Drain, Maintenance, Gone] {
            assert_eq!(state(&[Check, source], true), wire::STATE_DRAINING, "{source:?}");
        }
    }

    #[test]
    fn an_endpoint_that_only_drains_keeps_its_sessions() {
        use HealthSource::{Check, Drain, Gone, Maintenance};
        let keeps = |sources: &[HealthSource]| {
            keeps_sessions(sources.iter().fold(0, |bits, source| bits | source.bit()))
        };
        assert!(keeps(&[]) && keeps(&[Drain]));
        assert!(!keeps(&[Drain, Check]) && !keeps(&[Maintenance]) && !keeps(&[Drain, Gone]));
    }
}
