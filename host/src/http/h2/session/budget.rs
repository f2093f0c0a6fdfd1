//! The budget of a client's frames: floods of frames that belong to no request, and streams that are reset at once.
//!
//! Every connection begins with a budget. Frames of no use take from it, answered requests and sent bytes refill it, and so
//! does time. Answers to the proxy's own frames are free: acknowledgements, and window updates for what it has sent.

use std::time::Instant;

/// Initial budget: 1,000 frames of cost one, or 100 resets of requests.
const BUDGET: u32 = 1_000;
/// Refund each second,
const PER_SECOND: u32 = 10;
/// for each answered request,
const PER_RESPONSE: u32 = 10;
/// for each piece of a response that its window let through whole (the client may answer by WINDOW_UPDATE of the stream, of the
/// connection, and PING, as gRPC's libraries do to estimate the bandwidth),
const PER_PIECE: u32 = 3;
/// and for so many bytes that it was sent, for which a client with a small window has to say that it took them.
const BYTES_PER_POINT: u32 = 256;
/// Cost of a reset request, which may have reached a server.
const RESET_COST: u32 = 10;

/// The remaining budget of a client's connection. That of a server has no end.
#[derive(Debug)]
pub(super) struct FrameBudget {
    left: u32,
    sent: u32,
    refilled: Instant,
    is_spent: bool,
    is_limited: bool,
}

impl FrameBudget {
    /// A full one.
    pub(super) fn new(is_limited: bool, now: Instant) -> Self {
        Self { left: BUDGET, sent: 0, refilled: now, is_spent: false, is_limited }
    }

    /// More was spent than there was.
    pub(super) fn is_spent(&self) -> bool {
        self.is_spent
    }

    /// A frame of no use has come.
    pub(super) fn frame(&mut self) {
        self.spend(1);
    }

    /// A stream was reset, which may have cost a server work.
    pub(super) fn reset(&mut self) {
        self.spend(RESET_COST);
    }

    /// A request was answered to its end.
    pub(super) fn answered(&mut self) {
        self.add(PER_RESPONSE);
    }

    /// A piece of a response was sent, and its window was no reason for its end.
    pub(super) fn sent_whole(&mut self) {
        self.add(PER_PIECE);
    }

    /// So many bytes of a body were sent.
    pub(super) fn sent(&mut self, n: usize) {
        let sent = self.sent.saturating_add(u32::try_from(n).unwrap_or(u32::MAX));
        self.sent = sent % BYTES_PER_POINT;
        self.add((sent / BYTES_PER_POINT).min(BUDGET));
    }

    fn add(&mut self, points: u32) {
        self.left = (self.left + points).min(BUDGET);
    }

    fn spend(&mut self, cost: u32) {
        if !self.is_limited {
            return;
        }
        if self.left < cost {
            let now = Instant::now();
            let seconds = now.saturating_duration_since(self.refilled).as_secs();
            self.refilled = now;
            self.add(u32::try_from(seconds).unwrap_or(u32::MAX).saturating_mul(PER_SECOND).min(BUDGET));
        }
        match self.left.checked_sub(cost) {
            Some(left) => self.left = left,
            None => self.is_spent = true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_spent_by_floods_and_refilled_by_answers() {
        let mut budget = FrameBudget::new(true, Instant::now());
        for _ in 0..2_000 {
            budget.reset();
            budget.answered();
        }
        assert!(!budget.is_spent(), "every other request is taken back");
        for _ in 0..BUDGET {
            budget.frame();
        }
        assert!(!budget.is_spent());
        budget.frame();
        assert!(budget.is_spent());
    }

    #[test]
    fn bytes_that_are_sent_pay_for_their_window_updates() {
        let mut budget = FrameBudget::new(true, Instant::now());
        for _ in 0..10 * BUDGET {
            budget.frame();
            budget.sent(BYTES_PER_POINT as usize);
        }
        assert!(!budget.is_spent());
    }

    #[test]
    fn a_server_has_no_limit() {
        let mut budget = FrameBudget::new(false, Instant::now());
        (0..10 * BUDGET).for_each(|_| budget.reset());
        assert!(!budget.is_spent());
    }
}
