//! The lasting part of a member while memberships come and go: its place, its numbers, its health, its addresses.
//!
//! Each membership has an [`Endpoint`](super::endpoint::Endpoint) for the member, with what its source says of it now (weight,
//! tier, limits). All of them share this.

use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{Relaxed, Release, SeqCst};
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwapOption;
use lb_api::wire;

use crate::cluster::arena::{Arena, Lent};
use crate::cluster::health::{Health, HealthSource, is_available, state_of};
use crate::cluster::listing::{AvailableCount, ReasonChange, SLOTS, tag_of};
use crate::cluster::names::Addresses;
use crate::cluster::places::{MemberPlace, Places};
use crate::cluster::session::SessionWords;

/// In `max_in_flight` of an endpoint: it is on trial, and the ejection of its cluster lets requests in. A try looks at this
/// number anyway; and to modules it is a limit that is never reached.
pub(super) const ON_TRIAL: u32 = 1 << 31;

/// The state of a member that its memberships share.
#[derive(Debug)]
pub(crate) struct Live {
    /// Its place.
    pub place: MemberPlace,
    /// The numbers that modules see.
    pub counters: Lent<wire::Counters>,
    /// Its health.
    pub health: Arc<Health>,
    /// Where it is.
    pub addresses: Arc<Addresses>,
    /// Its name in sessions, where the proxy names them.
    pub session: OnceLock<Arc<SessionWords>>,
    /// Its configured weight, once its slow start is over: no instance that may choose was built with less.
    weight: AtomicU32,
    /// The instances that count it.
    lists: [ArcSwapOption<InstanceState>; SLOTS],
}

/// The counts over all members that one instance sees.
#[derive(Debug)]
pub(crate) struct InstanceState {
    /// The number of the instance, by which members know it.
    tag: u32,
    state: Lent<wire::ClusterState>,
}

impl Live {
    /// A member that is new.
    pub(crate) fn new(
        place: MemberPlace,
        counters: &Arc<Arena<wire::Counters>>,
        addresses: Addresses,
        reasons: u8,
    ) -> Arc<Self> {
        let counters = counters.lend();
        counters.state.store(state_of(reasons), SeqCst);
        Arc::new(Self {
            place,
            counters,
            health: Arc::new(Health::new(reasons)),
            addresses: Arc::new(addresses),
            session: OnceLock::new(),
            weight: AtomicU32::new(0),
            lists: [const { ArcSwapOption::const_empty() }; SLOTS],
        })
    }

    /// Whether it takes requests, as its reasons say now.
    pub(crate) fn is_available(&self) -> bool {
        is_available(self.health.listing.reasons())
    }

    /// Its configured weight.
    pub(crate) fn weight(&self) -> u16 {
        u16::try_from(self.weight.load(Relaxed)).unwrap_or(u16::MAX)
    }

    /// Gives it another weight. One whose weight still rises after it became available gets it with the next step.
    pub(crate) fn set_weight(&self, weight: u16) {
        if self.weight.load(Relaxed) != u32::from(weight) {
            self.set_rising_weight(weight, u32::from(weight) << 16);
        }
    }

    /// The same for one whose weight still rises to it: `effective` is its part of it, in 16.16 fixed point.
    pub(crate) fn set_rising_weight(&self, weight: u16, effective: u32) {
        self.weight.store(u32::from(weight), Relaxed);
        if self.counters.effective_weight.swap(effective, Relaxed) != effective {
            self.changed();
        }
    }

    /// Limits its concurrent requests; 0 is no limit.
    pub(crate) fn set_limit(&self, limit: u32) {
        // The bit of a trial stays.
        let next = |bits: u32| Some(bits & ON_TRIAL | limit);
        let _ = self.counters.max_in_flight.fetch_update(SeqCst, SeqCst, next);
    }

    /// Sets how many requests of other generations are on their way to it. Returns how many places came free, if it has a limit.
    pub(crate) fn set_in_flight_older(&self, n: u32) -> u32 {
        let before = self.counters.in_flight_older.swap(n, SeqCst);
        if self.counters.max_in_flight.load(Relaxed) & !ON_TRIAL == 0 { 0 } else { before.saturating_sub(n) }
    }

    /// Requests of this generation on their way to it.
    pub(crate) fn in_flight(&self) -> u32 {
        self.counters.in_flight.load(Relaxed)
    }

    /// Has a source say, or no longer say, that it takes no requests. `None` where that is what it said before. The state that
    /// modules see follows with [`Live::show`].
    pub(crate) fn set_source(&self, source: HealthSource, holds: bool) -> Option<ReasonChange> {
        self.set_reason(source.bit(), holds)
    }

    pub(crate) fn set_reason(&self, bit: u8, holds: bool) -> Option<ReasonChange> {
        let change = |reasons: u8| if holds { reasons | bit } else { reasons & !bit };
        let count_of = |slot: usize, tag: u32| self.lists[slot].load_full().filter(|list| list.tag == tag);
        self.health.listing.change(change, is_available, count_of)
    }

    /// Has the state that modules see follow from the reasons. To be called after each change of them, from any thread: of
    /// several at once, the last to look shows what holds.
    pub(crate) fn show(&self) {
        loop {
            let state = state_of(self.health.listing.reasons());
            self.counters.state.store(state, SeqCst);
            if state_of(self.health.listing.reasons()) == state {
                break;
            }
        }
        self.changed();
    }

    /// Tells the instances that count it that its state or its weight has changed.
    pub(crate) fn changed(&self) {
        for list in &self.lists {
            if let Some(list) = &*list.load() {
                list.state.epoch.fetch_add(1, Release);
            }
        }
    }

    /// Has an instance that is being built count it. Only one thread at a time builds for a cluster.
    pub(crate) fn list(&self, instance: &Arc<InstanceState>) {
        let free = (0..SLOTS).find(|slot| self.health.listing.tag(*slot).is_none());
        let slot = free.expect("of two instances, one ends before a third is built");
        self.lists[slot].store(Some(Arc::clone(instance)));
        self.health.listing.list(slot, instance.tag, is_available, instance);
    }

    /// No thread chooses in this instance any more.
    pub(crate) fn unlist(&self, instance: &Arc<InstanceState>) {
        let slot = (0..SLOTS).find(|slot| self.health.listing.tag(*slot) == Some(instance.tag));
        let Some(slot) = slot else { return };
        self.health.listing.unlist(slot, is_available, instance);
        self.lists[slot].store(None);
    }
}

impl InstanceState {
    /// Of an instance with this number, without members yet.
    pub(crate) fn new(number: u64, states: &Arc<Arena<wire::ClusterState>>) -> Arc<Self> {
        Arc::new(Self { tag: tag_of(number), state: states.lend() })
    }

    /// The counts that its balancers see.
    pub(crate) fn get(&self) -> &'static wire::ClusterState {
        self.state.get()
    }

    /// Its members that are available.
    #[inline]
    pub(crate) fn n_available(&self) -> u32 {
        self.state.n_available.load(Relaxed)
    }
}

impl AvailableCount for Arc<InstanceState> {
    fn raise(&self) {
        self.state.n_available.fetch_add(1, SeqCst);
    }

    fn lower(&self) {
        self.state.n_available.fetch_sub(1, SeqCst);
    }
}

/// Where the members of a cluster get what they live in.
#[derive(Debug)]
pub(crate) struct Arenas {
    /// Their places.
    pub places: Arc<Places>,
    /// Their numbers.
    pub counters: Arc<Arena<wire::Counters>>,
    /// Those of instances.
    pub states: Arc<Arena<wire::ClusterState>>,
}

impl Default for Arenas {
    fn default() -> Self {
        Self { places: Arc::default(), counters: Arena::new(), states: Arena::new() }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use super::*;

    /// A member of weight 1 that is counted by an instance of its own.
    pub(in crate::cluster) fn listed() -> (Arc<Live>, Arc<InstanceState>) {
        let arenas = Arenas::default();
        let place = arenas.places.take().expect("there is room");
        let addresses = Addresses::fixed(SocketAddr::from((Ipv4Addr::LOCALHOST, 1)));
        let live = Live::new(place, &arenas.counters, addresses, 0);
        live.set_weight(1);
        let instance = InstanceState::new(1, &arenas.states);
        live.list(&instance);
        (live, instance)
    }

    /// Sets or clears a source as a cluster does.
    pub(in crate::cluster) fn set(live: &Live, source: HealthSource, holds: bool) -> bool {
        let change = live.set_source(source, holds);
        if change.is_some_and(|change| state_of(change.before) != state_of(change.after)) {
            live.show();
        }
        change.is_some_and(|change| !is_available(change.before) && is_available(change.after))
    }

    #[test]
    fn a_change_of_state_counts_once() {
        let (live, instance) = listed();
        let begun = instance.get().epoch.load(Relaxed);
        let now = || (instance.n_available(), instance.get().epoch.load(Relaxed) - begun);
        assert_eq!(now(), (1, 0));
        assert!(!set(&live, HealthSource::Check, true));
        assert_eq!(now(), (0, 1));
        assert!(!set(&live, HealthSource::Ejection, true));
        assert_eq!(now(), (0, 1), "the same to all who look");
        assert!(!set(&live, HealthSource::Drain, true));
        assert_eq!(now(), (0, 2));
        assert!(!set(&live, HealthSource::Check, false) && !set(&live, HealthSource::Drain, false));
        assert_eq!(now(), (0, 3));
        assert!(set(&live, HealthSource::Ejection, false));
        assert_eq!(now(), (1, 4));
    }

    #[test]
    fn sources_that_change_at_once_leave_the_state_that_follows_from_them() {
        let (live, instance) = listed();
        for round in 0..2_000 {
            std::thread::scope(|scope| {
                for source in [HealthSource::Drain, HealthSource::Check, HealthSource::Ejection] {
                    let live = &live;
                    scope.spawn(move || {
                        set(live, source, true);
                        set(live, source, source == HealthSource::Check && round % 2 == 0);
                    });
                }
            });
            let (state, n) = if round % 2 == 0 { (wire::STATE_DOWN, 0) } else { (wire::STATE_AVAILABLE, 1) };
            assert_eq!(live.counters.state.load(Relaxed), state, "round {round}");
            assert_eq!(instance.n_available(), n, "round {round}");
        }
    }

    #[test]
    fn changes_while_instances_follow_each_other_count_in_each_that_may_choose() {
        let (live, first) = listed();
        let arenas = Arenas::default();
        let mut newest = first;
        for number in 2..2_000 {
            let next = InstanceState::new(number, &arenas.states);
            std::thread::scope(|scope| {
                scope.spawn(|| set(&live, HealthSource::Ejection, number % 3 == 0));
                live.list(&next);
                live.unlist(&newest);
            });
            assert_eq!(newest.n_available(), 0, "nothing is counted where it is not listed");
            assert_eq!(next.n_available(), u32::from(number % 3 != 0), "publication {number}");
            newest = next;
        }
    }
}
