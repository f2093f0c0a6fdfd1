//! Members by their IDs: what lives of each, and how many requests of other generations are on their way to each.
//!
//! Generations tell each other of members by ID, and need not have the same ones. So one may be told of members that are still
//! to come, and tells of those that have left as long as requests run there.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use rustc_hash::FxHashMap;

use crate::cluster::live::Live;

/// Numbers of requests by the ID of their endpoint.
pub(crate) type InFlightById = FxHashMap<u64, u32>;

/// All members of a cluster of which anything lives.
#[derive(Debug, Default)]
pub(super) struct Lives(Mutex<ById>);

#[derive(Debug, Default)]
struct ById {
    lives: FxHashMap<u64, Weak<Live>>,
    /// Requests of other generations, as last told.
    elsewhere: Arc<InFlightById>,
}

impl Lives {
    /// The life of the member of this ID, or the new life that `new` makes.
    pub(super) fn get_or(&self, id: u64, new: impl FnOnce() -> Option<Arc<Live>>) -> Option<Arc<Live>> {
        let mut known = self.known();
        if let Some(live) = known.lives.get(&id).and_then(Weak::upgrade) {
            return Some(live);
        }
        let live = new()?;
        live.set_in_flight_older(known.elsewhere.get(&id).copied().unwrap_or(0));
        known.lives.insert(id, Arc::downgrade(&live));
        Some(live)
    }

    /// Sets how many requests of other generations are on their way. Returns places of members that have room for more now, with
    /// how many.
    pub(super) fn set_elsewhere(&self, elsewhere: &Arc<InFlightById>) -> Vec<(usize, u32)> {
        let mut known = self.known();
        known.elsewhere = Arc::clone(elsewhere);
        let set = |(id, live): (&u64, &Weak<Live>)| {
            let live = live.upgrade()?;
            let n_freed = live.set_in_flight_older(elsewhere.get(id).copied().unwrap_or(0));
            (n_freed > 0).then(|| (live.place.number(), n_freed))
        };
        known.lives.iter().filter_map(set).collect()
    }

    /// Requests of this generation that are on their way, also to members that have left. Those without any are left out.
    pub(super) fn in_flight(&self) -> Vec<(u64, u32)> {
        let known = self.known();
        let all = known.lives.iter().filter_map(|(id, live)| Some((*id, live.upgrade()?.in_flight())));
        all.filter(|(_, n)| *n > 0).collect()
    }

    /// Forgets members of which nothing is left.
    pub(super) fn forget_gone(&self) {
        self.known().lives.retain(|_, live| live.strong_count() > 0);
    }

    fn known(&self) -> MutexGuard<'_, ById> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
