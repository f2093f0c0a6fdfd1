//! PING to a peer from which nothing comes while streams wait for it.

use std::time::{Duration, Instant};

/// Opaque data of these PINGs.
pub(super) const LIVENESS_PING: [u8; 8] = *b"alive?\0\0";

/// When a peer is asked whether it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PingTerms {
    /// After so long without a byte of it, while a stream is open.
    pub every: Duration,
    /// The connection ends when nothing comes for so long after that.
    pub timeout: Duration,
}

/// The next step towards a silent peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LivenessStep {
    /// It is not time yet, or the peer is there.
    None,
    /// Ask it.
    Ping,
    /// It did not answer.
    GiveUp,
}

/// The state of that. Bytes that come cost nothing: whether there were some is seen when the time is over.
#[derive(Clone, Copy, Debug)]
pub(super) struct Liveness {
    terms: PingTerms,
    due: Instant,
    /// How often something had come at the last look.
    n_reads: u64,
    /// Once it was asked: when it is given up.
    until: Option<Instant>,
}

impl Liveness {
    pub(super) fn new(terms: PingTerms, now: Instant) -> Self {
        Self { terms, due: now + terms.every, n_reads: 0, until: None }
    }

    /// When to look again.
    pub(super) fn due(&self) -> Instant {
        self.due
    }

    /// Looks, if it is time to.
    pub(super) fn look(&mut self, n_reads: u64, has_streams: bool, now: Instant) -> LivenessStep {
        if now < self.due {
            return LivenessStep::None;
        }
        if std::mem::replace(&mut self.n_reads, n_reads) != n_reads || !has_streams {
            (self.until, self.due) = (None, now + self.terms.every);
            return LivenessStep::None;
        }
        let step = match self.until {
            None => LivenessStep::Ping,
            Some(until) if now < until => LivenessStep::None,
            Some(_) => return LivenessStep::GiveUp,
        };
        // An answer is seen no later than the next PING is due.
        let until = *self.until.get_or_insert(now + self.terms.timeout);
        self.due = until.min(now + self.terms.every);
        step
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_peer_is_asked_once_and_given_up_and_one_that_speaks_is_not() {
        let second = Duration::from_secs(1);
        let start = Instant::now();
        let begun = Liveness::new(PingTerms { every: 10 * second, timeout: 3 * second }, start);
        let mut silent = begun;
        assert_eq!(silent.look(0, true, start + 9 * second), LivenessStep::None);
        assert_eq!(silent.look(0, true, start + 10 * second), LivenessStep::Ping);
        assert_eq!(silent.look(0, true, start + 12 * second), LivenessStep::None);
        assert_eq!(silent.look(0, true, start + 13 * second), LivenessStep::GiveUp);
        let patient = PingTerms { every: second, timeout: 9 * second };
        let mut soon = Liveness::new(patient, start);
        assert_eq!(soon.look(0, true, start + second), LivenessStep::Ping);
        assert_eq!(soon.look(0, true, start + 2 * second), LivenessStep::None);
        assert_eq!(
            (soon.look(1, true, start + 3 * second), soon.due()),
            (LivenessStep::None, start + 4 * second)
        );
        assert_eq!(soon.look(1, true, start + 4 * second), LivenessStep::Ping, "the next one");
        let mut answers = begun;
        assert_eq!(answers.look(0, true, start + 10 * second), LivenessStep::Ping);
        assert_eq!(answers.look(1, true, start + 13 * second), LivenessStep::None);
        assert_eq!(answers.due(), start + 23 * second);
        assert_eq!(answers.look(1, true, start + 23 * second), LivenessStep::Ping);
        let mut idle = begun;
        assert_eq!(idle.look(0, false, start + 10 * second), LivenessStep::None);
        assert_eq!(idle.look(0, true, start + 20 * second), LivenessStep::Ping);
    }
}
