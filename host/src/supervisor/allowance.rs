//! How much a worker may say. A module can write to the channel of its worker, and the supervisor has other things to do
//! than to read it.

use std::time::{Duration, Instant};

use crate::process::channel::message::N_KINDS;

/// A worker says most things every few seconds, and nothing more often than every 50 ms. What has piled up while the
/// supervisor did not read is limited by the socket's buffer, to some 300 messages.
const WINDOW: Duration = Duration::from_secs(10);
const MOST_OF_A_KIND: u32 = 1000;
/// Two of the largest that there may be.
const MOST_BYTES: u64 = 512 << 20;

/// Of one worker.
#[derive(Debug)]
pub(super) struct Allowance {
    since: Instant,
    n_of_kinds: [u32; N_KINDS],
    n_parts: u32,
    n_bytes: u64,
}

impl Allowance {
    pub(super) fn new(now: Instant) -> Self {
        Self { since: now, n_of_kinds: [0; N_KINDS], n_parts: 0, n_bytes: 0 }
    }

    /// Counts a message.
    ///
    /// # Errors
    /// There are too many, or too long ones; in words that follow the worker's name.
    pub(super) fn take(&mut self, kind: usize, n_bytes: u64, now: Instant) -> Result<(), String> {
        self.begin(now);
        self.n_bytes = self.n_bytes.saturating_add(n_bytes);
        if self.n_bytes > MOST_BYTES {
            return Err(format!("has sent more than {} MiB within {WINDOW:?}", MOST_BYTES >> 20));
        }
        let n = self.n_of_kinds.get_mut(kind);
        n.map_or(Ok(()), count)
    }

    /// Counts a part of a message.
    ///
    /// # Errors
    /// As [`Allowance::take`].
    pub(super) fn take_part(&mut self, now: Instant) -> Result<(), String> {
        self.begin(now);
        count(&mut self.n_parts)
    }

    fn begin(&mut self, now: Instant) {
        if now.saturating_duration_since(self.since) >= WINDOW {
            *self = Self::new(now);
        }
    }
}

fn count(n: &mut u32) -> Result<(), String> {
    *n += 1;
    if *n <= MOST_OF_A_KIND {
        return Ok(());
    }
    Err(format!("has sent more than {MOST_OF_A_KIND} messages of one kind within {WINDOW:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_many_of_a_kind_are_refused_and_other_kinds_are_not() {
        let now = Instant::now();
        let mut allowance = Allowance::new(now);
        for _ in 0..MOST_OF_A_KIND {
            assert_eq!(allowance.take(3, 1, now), Ok(()));
            assert_eq!(allowance.take(7, 1, now), Ok(()));
            assert_eq!(allowance.take_part(now), Ok(()));
        }
        let refused = "has sent more than 1000 messages of one kind within 10s";
        assert_eq!(allowance.take(3, 1, now).unwrap_err(), refused);
        assert_eq!(allowance.take_part(now).unwrap_err(), refused);
        assert_eq!(allowance.take(5, 1, now), Ok(()));
        assert_eq!(allowance.take(3, 1, now + WINDOW), Ok(()), "a new window");
    }

    #[test]
    fn too_much_is_refused_however_few_they_are() {
        let now = Instant::now();
        let mut allowance = Allowance::new(now);
        assert_eq!(allowance.take(5, MOST_BYTES, now), Ok(()));
        assert_eq!(allowance.take(3, 1, now).unwrap_err(), "has sent more than 512 MiB within 10s");
        assert_eq!(allowance.take(3, 1, now + WINDOW), Ok(()));
    }
}
