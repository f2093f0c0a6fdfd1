//! One timer for a whole connection. Deadlines move with every byte, but the runtime's timer is reset only if a deadline moves
//! nearer or the old one has passed. So timeouts of a busy connection cost a comparison.

use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::task::coop;
use tokio::time::Sleep;

/// A deadline that moves.
#[derive(Debug)]
pub struct Timer {
    deadline: Instant,
    armed: Instant,
    /// Whether the task will be woken at `armed`.
    registered: bool,
    sleep: Pin<Box<Sleep>>,
}

impl Timer {
    /// Expires `after` this long.
    pub fn new(now: Instant, after: Duration) -> Self {
        let deadline = now + after;
        Self {
            deadline,
            armed: deadline,
            registered: false,
            sleep: Box::pin(tokio::time::sleep_until(deadline.into())),
        }
    }

    /// Moves the deadline.
    #[inline]
    pub fn set(&mut self, deadline: Instant) {
        self.deadline = deadline;
        if deadline < self.armed {
            self.arm();
        }
    }

    /// Moves the deadline to this, if that is earlier.
    pub fn bring_forward(&mut self, deadline: Instant) {
        if deadline < self.deadline {
            self.set(deadline);
        }
    }

    /// Ready once the deadline has passed. Always polled by the task that owns the connection.
    #[inline]
    pub fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.registered && !self.sleep.is_elapsed() {
                return Poll::Pending;
            }
            self.registered = true;
            // Outside of the task's budget: a poll that the budget rejects registers nothing.
            ready!(pin!(coop::unconstrained(self.sleep.as_mut())).poll(cx));
            if Instant::now() >= self.deadline {
                return Poll::Ready(());
            }
            self.arm();
        }
    }

    fn arm(&mut self) {
        self.armed = self.deadline;
        self.registered = false;
        self.sleep.as_mut().reset(self.deadline.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A client that spent its task's budget on requests in one packet, and then said nothing, was never timed out.
    #[tokio::test]
    async fn is_registered_though_the_task_has_no_budget_left() {
        let mut timer = Timer::new(Instant::now(), Duration::from_millis(1));
        let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
        for n in 0..10_000 {
            sender.send(n).expect("the receiver is here");
        }
        let mut spent = false;
        let expired = std::future::poll_fn(|cx| {
            while !spent && receiver.poll_recv(cx).is_ready() {}
            spent = true;
            timer.poll_expired(cx)
        });
        let in_time = tokio::time::timeout(Duration::from_secs(20), expired).await;
        // Being polled once more for the budget's sake registers nothing either.
        assert!(in_time.is_ok(), "never woken");
    }

    #[tokio::test(start_paused = true)]
    async fn expires_at_the_deadline_that_was_set_last() {
        // The paused clock moves tokio's time alone, so the timer's own reading of the clock stands still: what can be
        // seen here is when it wakes and that it then arms itself for the later deadline.
        let now = Instant::now();
        let mut timer = Timer::new(now, Duration::from_millis(5));
        timer.set(now + Duration::from_secs(3600));
        let woken =
            tokio::time::timeout(Duration::from_secs(60), std::future::poll_fn(|cx| timer.poll_expired(cx)));
        assert!(woken.await.is_err(), "expired before its deadline");
        assert_eq!(timer.armed, now + Duration::from_secs(3600));
        timer.set(now + Duration::from_secs(1));
        assert_eq!(timer.armed, now + Duration::from_secs(1), "a nearer deadline arms at once");
    }
}
