//! The end of a connection whose client may still be sending: to close with something unread would reset it, and the
//! client could lose the last answer, which says what was wrong.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::{AsyncWrite, ReadBuf};

use crate::net::timer::Timer;

/// What a client may still send: as much as is on its way, most often.
const BYTES: usize = 256 * 1024;
/// For how long it may, once our half has ended.
pub const TIME: Duration = Duration::from_secs(2);
/// Thrown away at once; it is on the stack.
const PIECE: usize = 8 * 1024;

/// A connection as its end needs it.
pub trait Ending: AsyncWrite + Unpin {
    /// Reads what is only thrown away.
    ///
    /// # Errors
    /// The connection's.
    fn poll_discard(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>>;

    /// Whether the connection is reset when it is closed.
    fn set_reset_on_close(&self, reset: bool);
}

/// What is left to a connection whose last response was written. Keeps nothing of what comes.
#[derive(Debug)]
pub struct Linger {
    left: usize,
    /// Our half has ended.
    has_ended: bool,
    timer: Timer,
}

impl Linger {
    /// From now on, for a connection of which our half has ended.
    pub fn begin() -> Self {
        Self { left: BYTES, has_ended: true, timer: Timer::new(Instant::now(), TIME) }
    }

    /// From now on, for a connection of which our half is still to be ended. That takes room in the socket's buffer where
    /// it is one of TLS; a client that does not make any for `patience` is reset.
    pub fn ending(patience: Duration) -> Self {
        Self { has_ended: false, timer: Timer::new(Instant::now(), patience), ..Self::begin() }
    }

    /// Ends our half and reads on. Ready when the client has ended its half too, or it is enough.
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
            // Closed without that, the kernel would keep what the client does not take, for minutes.
            stream.set_reset_on_close(true);
        }
        Poll::Ready(())
    }
}
