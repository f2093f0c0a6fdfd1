//! Flow control (RFC 9113 section 5.2): windows of both directions.
//!
//! The connection's credit returns when bytes arrive, and a stream's when they are taken. So a stream that nobody reads keeps
//! its own window closed and nobody else's.

use crate::http::h2::frame::{DEFAULT_WINDOW, MAX_WINDOW};

/// Window of a connection: more than all of its streams' windows together.
pub(super) const CONNECTION_WINDOW: u32 = 16 << 20;
/// Bytes beyond their initial windows that all streams of a connection share.
const POOL: u32 = 1_600 << 10;
/// The largest window of one stream whose reader keeps up.
const LARGEST: u32 = 1 << 20;

/// Bytes that the peer may still send, and credit that is owed to it.
#[derive(Debug)]
pub(super) struct ReceiveWindow {
    /// Bytes that the peer may send.
    left: i64,
    /// Bytes that it may have under way or unread.
    size: u32,
    /// Bytes that were taken and not returned yet.
    taken: u32,
}

/// Window bytes that streams of one connection share.
#[derive(Debug)]
pub(super) struct SharedWindow {
    left: u32,
}

impl Default for SharedWindow {
    fn default() -> Self {
        Self { left: POOL }
    }
}

impl ReceiveWindow {
    pub(super) fn new(size: u32) -> Self {
        Self { left: i64::from(size), size, taken: 0 }
    }

    /// Takes in so many bytes; false where the peer was not allowed to send them.
    #[must_use]
    pub(super) fn receive(&mut self, n: usize) -> bool {
        self.left -= n as i64;
        self.left >= 0
    }

    /// Bytes were taken. The credit to send, if it is worth a frame.
    pub(super) fn take(&mut self, n: usize) -> Option<u32> {
        self.taken += n as u32;
        if self.taken < self.size / 2 {
            return None;
        }
        let credit = std::mem::take(&mut self.taken);
        self.left += i64::from(credit);
        Some(credit)
    }

    /// The same for a stream with so many unread bytes: its window grows while its reader keeps up, and shrinks when it falls
    /// behind.
    pub(super) fn take_shared(&mut self, n: usize, unread: usize, pool: &mut SharedWindow) -> Option<u32> {
        let left = self.left;
        let mut credit = self.take(n)?;
        if unread == 0 && left < i64::from(self.size / 2) {
            let more = self.size.min(LARGEST - self.size).min(pool.left);
            pool.left -= more;
            self.size += more;
            credit += more;
            self.left += i64::from(more);
        } else if unread > DEFAULT_WINDOW as usize {
            let less = credit.min(self.size - DEFAULT_WINDOW);
            pool.left += less;
            self.size -= less;
            credit -= less;
            self.left -= i64::from(less);
        }
        Some(credit).filter(|credit| *credit > 0)
    }

    /// Gives back what a stream had of the pool.
    pub(super) fn leave(&mut self, pool: &mut SharedWindow) {
        pool.left += self.size - DEFAULT_WINDOW;
        self.size = DEFAULT_WINDOW;
    }
}

/// Adds to a window to send; `None` where it becomes larger than windows are.
#[must_use]
pub(super) fn widened(window: i64, more: i64) -> Option<i64> {
    Some(window + more).filter(|window| *window <= i64::from(MAX_WINDOW))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_grows_while_its_reader_keeps_up_and_gives_back_what_it_had() {
        let (mut pool, mut window) = (SharedWindow::default(), ReceiveWindow::new(DEFAULT_WINDOW));
        for _ in 0..100 {
            let n = usize::try_from(window.left).unwrap();
            assert!(window.receive(n));
            let credit = window.take_shared(n, 0, &mut pool).unwrap();
            assert_eq!(window.left, i64::from(credit));
        }
        assert_eq!((window.size, pool.left), (LARGEST, POOL - (LARGEST - DEFAULT_WINDOW)));
        let mut second = ReceiveWindow::new(DEFAULT_WINDOW);
        for _ in 0..100 {
            let n = usize::try_from(second.left).unwrap();
            assert!(second.receive(n));
            second.take_shared(n, 0, &mut pool);
        }
        assert_eq!((second.size, pool.left), (POOL - LARGEST + 2 * DEFAULT_WINDOW, 0));
        window.leave(&mut pool);
        second.leave(&mut pool);
        assert_eq!(pool.left, POOL);
    }

    #[test]
    fn a_window_shrinks_when_its_reader_falls_behind() {
        let (mut pool, mut window) = (SharedWindow::default(), ReceiveWindow::new(DEFAULT_WINDOW));
        let n = DEFAULT_WINDOW as usize;
        assert!(window.receive(n));
        assert_eq!(window.take_shared(n, 0, &mut pool), Some(2 * DEFAULT_WINDOW));
        assert!(window.receive(2 * n));
        assert_eq!(window.take_shared(n, n + 1, &mut pool), None);
        assert_eq!((window.size, window.left, pool.left), (DEFAULT_WINDOW, 0, POOL));
    }

    #[test]
    fn more_than_the_window_is_refused() {
        let mut window = ReceiveWindow::new(10);
        assert!(window.receive(10));
        assert!(!window.receive(1));
        assert_eq!(widened(i64::from(MAX_WINDOW) - 1, 1), Some(i64::from(MAX_WINDOW)));
        assert_eq!(widened(i64::from(MAX_WINDOW), 1), None);
        assert_eq!(widened(-10, 5), Some(-5));
    }
}
