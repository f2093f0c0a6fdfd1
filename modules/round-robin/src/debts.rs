//! Turns that endpoints owe for requests which came to them by session.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;

/// Turns that one endpoint owes, at most. Enough for sessions that come in bursts; few enough that an endpoint whose
/// sessions have ended is not without requests for long.
const MAX_OWED: u32 = 16;

/// Turns that each endpoint owes for its sessions. Without sessions it is never written. Instances that follow one another share
/// them by endpoint.
#[derive(Debug)]
pub(crate) struct Debts {
    /// Of all endpoints.
    total: Arc<AtomicU32>,
    owed: Box<[Arc<AtomicU32>]>,
}

impl Debts {
    pub(crate) fn new(n_endpoints: usize) -> Self {
        Self::going_on(
            &Self { total: Arc::default(), owed: Box::default() },
            vec![None; n_endpoints].into_iter(),
        )
    }

    /// Those of another instance for endpoints that were there in these places. The others' debts are forgotten.
    pub(crate) fn going_on(before: &Self, places: impl Iterator<Item = Option<usize>>) -> Self {
        let mut stays = vec![false; before.owed.len()];
        let owed = places.map(|place| {
            let owed = place.and_then(|place| Some((stays.get_mut(place)?, before.owed.get(place)?)));
            owed.map_or_else(Arc::default, |(stays, owed)| {
                *stays = true;
                Arc::clone(owed)
            })
        });
        let owed = owed.collect();
        for (owed, _) in before.owed.iter().zip(stays).filter(|(_, stays)| !stays) {
            before.total.fetch_sub(owed.swap(0, Relaxed), Relaxed);
        }
        Self { total: Arc::clone(&before.total), owed }
    }

    /// Whether nobody owes anything.
    #[inline]
    pub(crate) fn are_none(&self) -> bool {
        self.total.load(Relaxed) == 0
    }

    /// Has an endpoint owe one turn more, and returns it; none where it owes as many as it may.
    #[cold]
    pub(crate) fn charge(&self, endpoint: usize) -> Option<u32> {
        let more = |owed: u32| (owed < MAX_OWED).then_some(owed + 1);
        self.owed.get(endpoint)?.fetch_update(Relaxed, Relaxed, more).ok()?;
        self.total.fetch_add(1, Relaxed);
        u32::try_from(endpoint).ok()
    }

    /// Has an endpoint owe one turn less; false where it owes none.
    #[cold]
    pub(crate) fn pay(&self, endpoint: u32) -> bool {
        let Some(owed) = self.owed.get(endpoint as usize) else { return false };
        let paid = owed.fetch_update(Relaxed, Relaxed, |owed| owed.checked_sub(1)).is_ok();
        if paid {
            self.total.fetch_sub(1, Relaxed);
        }
        paid
    }
}
