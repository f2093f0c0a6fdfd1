//! Moves the bytes of a connection between its socket and its [`Session`].

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::session::Session;

/// Bytes read at once. A thread's connections share the memory, since none reads while another does.
const READ_BYTES: usize = 64 << 10;
/// Frames that are taken in until all streams had a turn.
const PORTION: usize = 1_000;
/// Bytes of the same.
const PORTION_BYTES: usize = 256 << 10;
/// Nothing is read while this much is to be sent: the peer does not take what it asks for.
const MAX_OUTPUT: usize = 256 << 10;

thread_local! {
    static MEMORY: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ConnectionEnd {
    /// All that was to be said was sent.
    Said,
    /// The socket failed, or the peer has closed it.
    Lost,
}

/// One end of a connection: its socket, and what of its bytes is no whole frame yet.
#[derive(Debug)]
pub(crate) struct SessionSocket<S> {
    stream: S,
    /// Bytes that came and were not used.
    rest: Vec<u8>,
    /// There may be more to read.
    has_yielded: bool,
    /// Since when the socket takes nothing of what is to be sent.
    stuck: Option<Instant>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> SessionSocket<S> {
    /// `before` is what was read of the stream already.
    pub(crate) fn new(stream: S, before: Vec<u8>) -> Self {
        Self { stream, rest: before, has_yielded: false, stuck: None }
    }

    /// The socket.
    pub(crate) fn get_mut(&mut self) -> &mut S {
        &mut self.stream
    }

    /// Since when the peer takes nothing of what is to be sent to it, if that is so.
    pub(crate) fn stuck_since(&self) -> Option<Instant> {
        self.stuck
    }

    /// Moves bytes both ways; ready at the end of the connection.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, session: &RefCell<Session>) -> Poll<ConnectionEnd> {
        let mut session = session.borrow_mut();
        session.drive(cx);
        loop {
            let may_read = session.failure().is_none() && session.output().len() < MAX_OUTPUT;
            if may_read && self.poll_read(cx, &mut session).is_ready() {
                session.lost("connection closed by the peer");
                return Poll::Ready(ConnectionEnd::Lost);
            }
            session.give_turns();
            if session.take_woken() && !self.has_yielded && session.failure().is_none() {
                // Their bytes leave together with those that wait.
                self.has_yielded = true;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            self.has_yielded = false;
            match self.poll_write(cx, &mut session) {
                Poll::Ready(Ok(())) if session.is_finished() => return Poll::Ready(ConnectionEnd::Said),
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => {
                    session.lost("connection lost");
                    return Poll::Ready(ConnectionEnd::Lost);
                }
                Poll::Pending => {}
            }
            let reads_again = !may_read && session.failure().is_none() && session.output().len() < MAX_OUTPUT;
            session.give_turns();
            if session.take_woken() {
                cx.waker().wake_by_ref();
            }
            if !reads_again {
                break;
            }
        }
        if session.n_streams() == 0 {
            session.rest();
        }
        Poll::Pending
    }

    /// Takes in what has come; ready when the peer sends nothing more.
    fn poll_read(&mut self, cx: &mut Context<'_>, session: &mut Session) -> Poll<()> {
        MEMORY.with_borrow_mut(|memory| {
            if memory.is_empty() {
                memory.resize(READ_BYTES, 0);
            }
            // More than that is never left of a frame that is not refused by its head, but may have been read before.
            let mut before = std::mem::take(&mut self.rest);
            let (mut filled, mut n_bytes) = (0, 0);
            let ended = loop {
                let n = before.len().min(READ_BYTES - filled);
                memory[filled..filled + n].copy_from_slice(&before[..n]);
                filled += n;
                before.drain(..n);
                let (used, has_more) = session.receive(&memory[..filled], PORTION);
                memory.copy_within(used..filled, 0);
                filled -= used;
                if session.failure().is_some() {
                    break false;
                }
                if used > 0 && !before.is_empty() {
                    continue;
                }
                n_bytes += used;
                if n_bytes > PORTION_BYTES || has_more {
                    cx.waker().wake_by_ref();
                    break false;
                }
                let mut buf = ReadBuf::new(&mut memory[filled..]);
                match Pin::new(&mut self.stream).poll_read(cx, &mut buf) {
                    Poll::Pending => break false,
                    Poll::Ready(Ok(())) if buf.filled().is_empty() => break true,
                    Poll::Ready(Err(_)) => break true,
                    Poll::Ready(Ok(())) => {
                        filled += buf.filled().len();
                        session.heard();
                    }
                }
            };
            self.rest = memory[..filled].to_vec();
            if ended { Poll::Ready(()) } else { Poll::Pending }
        })
    }

    /// Sends what there is; ready when all of it is sent.
    fn poll_write(&mut self, cx: &mut Context<'_>, session: &mut Session) -> Poll<io::Result<()>> {
        while !session.output().is_empty() {
            match Pin::new(&mut self.stream).poll_write(cx, session.output()) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(n)) => {
                    session.sent(n);
                    self.stuck = None;
                }
                Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
                Poll::Pending => {
                    self.stuck.get_or_insert_with(Instant::now);
                    return Poll::Pending;
                }
            }
        }
        Pin::new(&mut self.stream).poll_flush(cx)
    }
}
