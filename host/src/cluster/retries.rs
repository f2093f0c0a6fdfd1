//! The retry budget of a cluster, so that retries do not overload its servers.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::config::retry::RetryBudget;

/// The retries of a cluster that are under way, over all threads.
#[derive(Debug, Default)]
pub(crate) struct Retries(AtomicU32);

/// A retry, counted until this is dropped.
#[derive(Debug)]
pub(crate) struct Retrying<'a>(&'a Retries);

impl Retries {
    /// How many are under way.
    pub(crate) fn n_under_way(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }

    /// Begins a retry, unless the budget is spent. `n_requests` counts the cluster's requests in flight; it is called only when
    /// the budget's minimum is used up.
    pub(crate) fn begin(
        &self,
        budget: RetryBudget,
        n_requests: impl FnOnce() -> u64,
    ) -> Option<Retrying<'_>> {
        let mut allowed = budget.min;
        if self.0.load(Ordering::Relaxed) >= budget.min {
            let share = n_requests().saturating_mul(budget.percent.into()) / 100;
            allowed = allowed.max(u32::try_from(share).unwrap_or(u32::MAX));
        }
        let next = |n: u32| (n < allowed).then(|| n + 1);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).ok().map(|_| Retrying(self))
    }
}

impl Drop for Retrying<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_lets_its_minimum_through_and_then_its_share() {
        let retries = Retries::default();
        let budget = RetryBudget { percent: 20, min: 2 };
        let begin = |n| retries.begin(budget, || n);
        let minimum = [begin(0), begin(0)].map(|retry| retry.expect("the minimum"));
        assert!(begin(14).is_none(), "20 % of 14 are two");
        let third = begin(15).expect("20 % of 15 are three");
        assert!(begin(15).is_none());
        drop((minimum, third));
        assert!(begin(0).is_some(), "those that have ended count no more");
    }
}
