//! When a request that was sent is sent again: the retry policy of a route.
//!
//! Without a policy the rule is that of 2003: look-ups and connections that fail move on, and nothing else does. A policy
//! adds to that. It never sends a request again that cannot be repeated, or whose client has got a byte of the response.

use std::time::Duration;

/// The retry policy of a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// The failures that are tried again.
    pub on: RetryCauses,
    /// How often a request may be sent, the first time included.
    pub tries: u32,
    /// All tries together, up to the head of a response.
    pub timeout: Option<Duration>,
    /// One try, from its connection to the head of its response.
    pub try_timeout: Option<Duration>,
    /// Unit of the wait before a retry.
    pub backoff: Duration,
    /// Longest wait before a retry.
    pub max_backoff: Duration,
    /// How many retries a cluster may have under way.
    pub budget: RetryBudget,
    /// Methods that may be sent twice.
    pub methods: Box<[Box<str>]>,
    /// A body up to this size is kept, so that it can be sent again.
    pub buffer_bytes: usize,
}

/// The failures that are tried again, beside connections that could not be made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RetryCauses {
    /// The connection ended before a response.
    pub reset: bool,
    /// No response in time.
    pub timeout: bool,
    /// The response is not HTTP.
    pub bad_response: bool,
    /// A bit for each status from 0 to 639.
    statuses: [u64; 10],
}

/// Retries that may be under way at once, beside the requests of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryBudget {
    /// So many for a hundred requests.
    pub percent: u32,
    /// And always so many.
    pub min: u32,
}

impl RetryPolicy {
    /// Whether a request with this method may be sent twice.
    pub fn repeats(&self, method: &[u8]) -> bool {
        self.methods.iter().any(|m| m.as_bytes() == method)
    }

    /// The wait before the retry of this number, from 1: any time below the ceiling, so that those who failed together do
    /// not come back together. `random` is uniform bits. Envoy's rule, with its 25 ms and 250 ms as defaults.
    pub fn wait(&self, n: u32, random: u64) -> Duration {
        let doublings = 1_u32.checked_shl(n).map_or(u32::MAX, |power| power - 1);
        let ceiling = self.backoff.saturating_mul(doublings).min(self.max_backoff);
        let ns = u64::try_from(ceiling.as_nanos()).unwrap_or(u64::MAX);
        // The high bits of a product are as uniform as the bits themselves, and need no division.
        Duration::from_nanos(((u128::from(random) * u128::from(ns)) >> 64) as u64)
    }
}

impl RetryCauses {
    /// Adds a status.
    pub fn add_status(&mut self, status: u16) {
        if let Some(word) = self.statuses.get_mut(usize::from(status / 64)) {
            *word |= 1 << (status % 64);
        }
    }

    /// Whether a response with this status is one.
    pub fn has_status(&self, status: u16) -> bool {
        self.statuses.get(usize::from(status / 64)).is_some_and(|word| word & (1 << (status % 64)) != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(backoff: u64, max_backoff: u64) -> RetryPolicy {
        RetryPolicy {
            on: RetryCauses::default(),
            tries: 3,
            timeout: None,
            try_timeout: None,
            backoff: Duration::from_millis(backoff),
            max_backoff: Duration::from_millis(max_backoff),
            budget: RetryBudget { percent: 20, min: 3 },
            methods: ["GET".into()].into(),
            buffer_bytes: 0,
        }
    }

    #[test]
    fn waits_up_to_a_ceiling_that_doubles_and_ends() {
        let policy = policy(25, 250);
        let ceilings: Vec<u128> = [1, 2, 3, 4, 40].map(|n| policy.wait(n, u64::MAX).as_micros()).into();
        assert_eq!(ceilings, [24_999, 74_999, 174_999, 249_999, 249_999]);
        assert_eq!(policy.wait(1, 0), Duration::ZERO);
        assert_eq!(policy.wait(2, 1 << 63).as_micros(), 37_500);
    }

    #[test]
    fn no_back_off_is_no_wait() {
        assert_eq!(policy(0, 0).wait(5, u64::MAX), Duration::ZERO);
    }

    #[test]
    fn knows_statuses_one_by_one() {
        let mut causes = RetryCauses::default();
        [429, 503, 599].into_iter().for_each(|status| causes.add_status(status));
        let known: Vec<u16> = (0..=999).filter(|status| causes.has_status(*status)).collect();
        assert_eq!(known, [429, 503, 599]);
    }
}
