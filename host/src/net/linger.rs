//! Lingering close: a connection that is closed with unread bytes is reset, and its client may lose the last response.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::{AsyncWrite, ReadBuf};

use crate::net::timer::Timer;

/// Maximum bytes that a client may still send.
const BYTES: usize = 256 * 1024;
/// Maximum time for them, after our half has ended.
pub const TIME: Duration = Duration::from_secs(2);
/// Size of the buffer for discarded bytes, on the stack.
const PIECE: usize = 8 * 1024;

/// A connection that can be closed with a linger.
pub trait Ending: AsyncWrite + Unpin {
    /// Reads bytes to discard.
    ///
    /// # Errors
    /// The connection's.
    fn poll_discard(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>>;

    /// Sets whether closing resets the connection.
    fn set_reset_on_close(&self, reset: bool);
}

/// The lingering close of a connection whose last response was written. Bytes that arrive are discarded.
#[derive(Debug)]
pub struct Linger {
    left: usize,
    /// Our half has ended.
    has_ended: bool,
    timer: Timer,
}

impl Linger {
    /// Begins now, for a connection whose sending half is closed.
    pub fn begin() -> Self {
        Self { left: BYTES, has_ended: true, timer: Timer::new(Instant::now(), TIME) }
    }

    /// Begins now, for a connection whose sending half is still open. Over TLS closing it needs room in the socket's buffer; a
    /// client that makes none within `patience` is reset.
    pub fn ending(patience: Duration) -> Self {
        Self { has_ended: false, timer: Timer::new(Instant::now(), patience), ..Self::begin() }
    }

    /// Closes our half and discards what arrives. Ready when the client has closed its half, or at a limit.
    pub fn poll(&mut self, cx: &mut Context<'_>, stream: &mut impl Ending) -> Poll<()> {
        if !self.has_ended && Pin::new(&mut *stream).poll_shutdown(cx).is_ready() {
            self.has_ended = true;
            self.timer.set(Instant::now() + TIME);
        }
        while self.left > 0 {
            let mut piece = [MaybeUninit::uninit(); PIECE];
            let mut piece = ReadBuf::uninit(&mut piece);
            match stream.poll_discard(cx, &mut piece) {
                Poll::Ready(Ok(())) if !piece.filled().is_empty() => {
                    self.left = self.left.saturating_sub(piece.filled().len());
                }
                Poll::Ready(_) => self.left = 0,
                Poll::Pending => break,
            }
        }
        if self.left == 0 && self.has_ended {
            return Poll::Ready(());
        }
        ready!(self.timer.poll_expired(cx));
        if !self.has_ended {
            // Without a reset, the kernel would keep the unread response for minutes.
            stream.set_reset_on_close(true);
        }
        Poll::Ready(())
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::poll_fn;

    use tokio::time::timeout;

    use super::*;

    /// A TLS connection whose client reads nothing: there is no room for `close_notify`.
    #[derive(Default)]
    struct WithoutRoom {
        resets: Cell<bool>,
    }

    impl AsyncWrite for WithoutRoom {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Pending
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    impl Ending for WithoutRoom {
        fn poll_discard(&mut self, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }

        fn set_reset_on_close(&self, reset: bool) {
            self.resets.set(reset);
        }
    }

    /// A client that pipelined requests and read nothing kept its connection for ever.
    #[tokio::test]
    async fn a_client_that_leaves_no_room_for_the_end_is_reset_when_its_time_is_over() {
        let (mut stream, mut linger) = (WithoutRoom::default(), Linger::ending(Duration::from_millis(1)));
        let end = poll_fn(|cx| linger.poll(cx, &mut stream));
        timeout(Duration::from_secs(20), end).await.expect("it is let go");
        assert!(stream.resets.get());
    }
}
