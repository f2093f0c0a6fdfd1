//! Turns that endpoints owe for requests which came to them by session.

use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;

/// Turns that one endpoint owes, at most. Enough for sessions that come in bursts; few enough that an endpoint whose
/// sessions have ended is not without requests for long.
const MAX_OWED: u32 = 16;

/// Turns that each endpoint owes for its sessions. Without sessions it is never written.
#[derive(Debug)]
pub(crate) struct Debts {
    /// Of all endpoints.
    total: AtomicU32,
    owed: Box<[AtomicU32]>,
}

impl Debts {
    pub(crate) fn new(n_endpoints: usize) -> Self {
        Self { total: AtomicU32::new(0), owed: (0..n_endpoints).map(|_| AtomicU32::new(0)).collect() }
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
