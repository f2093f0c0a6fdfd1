//! The end of a connection whose client may still be sending: to close with something unread would reset it, and the
//! client could lose the last answer, which says what was wrong.

use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, ReadBuf};

use crate::timer::Timer;

/// What a client may still send: as much as is on its way, most often.
const BYTES: usize = 256 * 1024;
/// For how long it may, and has to take what it was sent.
pub const TIME: Duration = Duration::from_secs(2);
/// Thrown away at once; it is on the stack.
const PIECE: usize = 8 * 1024;

/// What is left to a connection of which our half has ended. Keeps nothing of what comes.
#[derive(Debug)]
pub struct Linger {
    left: usize,
    timer: Timer,
}

impl Linger {
    /// From now on.
    pub fn begin() -> Self {
        Self { left: BYTES, timer: Timer::new(Instant::now(), TIME) }
    }

    /// Reads on. Ready when the client has ended its half too, or it is enough.
    pub fn poll(&mut self, cx: &mut Context<'_>, stream: &mut (impl AsyncRead + Unpin)) -> Poll<()> {
        while self.left > 0 {
            let mut piece = [MaybeUninit::uninit(); PIECE];
            let mut piece = ReadBuf::uninit(&mut piece);
            match Pin::new(&mut *stream).poll_read(cx, &mut piece) {
                Poll::Ready(Ok(())) if !piece.filled().is_empty() => {
                    self.left = self.left.saturating_sub(piece.filled().len());
                }
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => {
                    ready!(self.timer.poll_expired(cx));
                    return Poll::Ready(());
                }
            }
        }
        Poll::Ready(())
    }
}
