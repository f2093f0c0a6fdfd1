//! Why an endpoint takes no requests. Several sources may say so at once, and none undoes what another says. The state that
//! modules see follows from all of them.

use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::SeqCst;

use lb_api::wire;

/// A source that can say that an endpoint takes no requests, the strongest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HealthSource {
    /// The operator, in the configuration or at run time.
    Drain,
    /// Its active checks.
    Check,
    /// Its traffic.
    Ejection,
}

impl HealthSource {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Drain, Self::Check, Self::Ejection];

    /// The word for it, as in labels.
    pub fn name(self) -> &'static str {
        match self {
            Self::Drain => "drain",
            Self::Check => "check",
            Self::Ejection => "ejection",
        }
    }

    fn bit(self) -> u32 {
        match self {
            Self::Drain => 1,
            Self::Check => 1 << 1,
            Self::Ejection => 1 << 2,
        }
    }
}

/// The cluster is in panic: checks and traffic are ignored.
const PANIC: u32 = 1 << 3;

/// The sources that say so of one endpoint now.
#[derive(Debug, Default)]
pub(super) struct Sources(AtomicU32);

impl Sources {
    /// Of an endpoint that drains by configuration, or not.
    pub(super) fn new(drains: bool) -> Self {
        Self(AtomicU32::new(if drains { HealthSource::Drain.bit() } else { 0 }))
    }

    /// Whether this source says so.
    pub(super) fn holds(&self, source: HealthSource) -> bool {
        self.0.load(SeqCst) & source.bit() != 0
    }

    /// Whether its cluster is in panic.
    pub(super) fn is_in_panic(&self) -> bool {
        self.0.load(SeqCst) & PANIC != 0
    }

    /// Sets what a source says. False if nothing changed.
    pub(super) fn set(&self, source: HealthSource, holds: bool) -> bool {
        self.set_bit(source.bit(), holds)
    }

    /// Starts or ends panic. False if nothing changed.
    pub(super) fn set_panic(&self, panics: bool) -> bool {
        self.set_bit(PANIC, panics)
    }

    /// The state that follows, one of [`wire`]'s `STATE_*`.
    pub(super) fn state(&self) -> u32 {
        let bits = self.0.load(SeqCst);
        let has = |bit: u32| bits & bit != 0;
        if has(HealthSource::Drain.bit()) {
            wire::STATE_DRAINING
        } else if has(PANIC) {
            wire::STATE_AVAILABLE
        } else if has(HealthSource::Check.bit()) {
            wire::STATE_DOWN
        } else if has(HealthSource::Ejection.bit()) {
            wire::STATE_EJECTED
        } else {
            wire::STATE_AVAILABLE
        }
    }

    fn set_bit(&self, bit: u32, holds: bool) -> bool {
        let before = if holds { self.0.fetch_or(bit, SeqCst) } else { self.0.fetch_and(!bit, SeqCst) };
        (before & bit != 0) != holds
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_strongest_source_makes_the_state_and_none_undoes_another() {
        let sources = Sources::new(false);
        assert_eq!(sources.state(), wire::STATE_AVAILABLE);
        assert!(sources.set(HealthSource::Ejection, true) && !sources.set(HealthSource::Ejection, true));
        assert_eq!(sources.state(), wire::STATE_EJECTED);
        assert!(sources.set(HealthSource::Check, true));
        assert_eq!(sources.state(), wire::STATE_DOWN);
        assert!(sources.set(HealthSource::Drain, true));
        assert_eq!(sources.state(), wire::STATE_DRAINING);
        assert!(sources.set(HealthSource::Check, false) && sources.set(HealthSource::Drain, false));
        assert_eq!(sources.state(), wire::STATE_EJECTED);
        assert!(sources.set(HealthSource::Ejection, false) && !sources.set(HealthSource::Ejection, false));
        assert_eq!(sources.state(), wire::STATE_AVAILABLE);
    }

    #[test]
    fn panic_passes_over_all_but_the_drain_mark() {
        let sources = Sources::new(false);
        sources.set(HealthSource::Check, true);
        sources.set(HealthSource::Ejection, true);
        assert!(sources.set_panic(true));
        assert_eq!(sources.state(), wire::STATE_AVAILABLE);
        sources.set(HealthSource::Drain, true);
        assert_eq!(sources.state(), wire::STATE_DRAINING);
        sources.set(HealthSource::Drain, false);
        assert!(sources.set_panic(false));
        assert_eq!(sources.state(), wire::STATE_DOWN);
    }
}
