//! Looks at the frames of a client as they come in, and tells when it sends more that are not part of a request than any
//! honest client does: pings and settings that have to be answered, requests that are taken back as soon as they are made.
//!
//! `h2` keeps memory flat under all of these by itself; this bounds the time that they cost, and ends the connection.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::linger::Linger;
use crate::stream::Stream;

/// What a connection may spend at once: 1,000 frames that cost one, or 100 requests taken back.
const BUDGET: u32 = 1_000;
/// What it gets back: so much in a second,
const PER_SECOND: u32 = 10;
/// for each request that was answered to its end,
const PER_RESPONSE: u32 = 10;
/// and for so many bytes that it was sent, for which a client with a small window has to say that it took them.
const BYTES_PER_POINT: u32 = 256;
/// What taking a request back costs: it may have reached a server.
const RESET_COST: u32 = 10;

const FRAME_HEAD: usize = 9;
/// The client's first bytes, which are no frame (RFC 9113 section 3.4).
const PREFACE: usize = 24;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;

/// What is left to a client of what it may spend, shared by its connection and the tasks of its streams.
#[derive(Debug)]
pub struct Budget {
    left: Cell<u32>,
    sent: Cell<u32>,
    refilled: Cell<Instant>,
    is_spent: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

/// A client's connection, watched.
#[derive(Debug)]
pub struct Watched {
    stream: Stream,
    /// What was read of it before it was known to be one of HTTP/2.
    before: Box<[u8]>,
    before_at: usize,
    frames: Frames,
    budget: Rc<Budget>,
    /// Once our half has ended.
    linger: Option<Box<Linger>>,
}

/// Finds the heads of frames in bytes that come in pieces.
#[derive(Debug)]
struct Frames {
    head: [u8; FRAME_HEAD],
    head_len: usize,
    /// Bytes to pass over before the next head.
    skip: usize,
}

impl Budget {
    /// A full one.
    pub fn new(now: Instant) -> Self {
        Self {
            left: Cell::new(BUDGET),
            sent: Cell::new(0),
            refilled: Cell::new(now),
            is_spent: Cell::new(false),
            waker: RefCell::default(),
        }
    }

    /// A request was answered to its end.
    pub fn answered(&self) {
        self.add(PER_RESPONSE);
    }

    /// Ready when more was spent than there was.
    pub fn poll_spent(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_spent.get() {
            return Poll::Ready(());
        }
        let mut waker = self.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    fn add(&self, points: u32) {
        self.left.set((self.left.get() + points).min(BUDGET));
    }

    fn sent(&self, n: usize) {
        let sent = self.sent.get().saturating_add(u32::try_from(n).unwrap_or(u32::MAX));
        self.sent.set(sent % BYTES_PER_POINT);
        self.add((sent / BYTES_PER_POINT).min(BUDGET));
    }

    fn spend(&self, cost: u32) {
        if self.left.get() < cost {
            let now = Instant::now();
            let seconds = now.saturating_duration_since(self.refilled.get()).as_secs();
            self.refilled.set(now);
            self.add(u32::try_from(seconds).unwrap_or(u32::MAX).saturating_mul(PER_SECOND).min(BUDGET));
        }
        match self.left.get().checked_sub(cost) {
            Some(left) => self.left.set(left),
            None => {
                self.is_spent.set(true);
                if let Some(waker) = self.waker.borrow_mut().take() {
                    waker.wake();
                }
            }
        }
    }
}

impl Watched {
    /// `before` is what was read of the stream already.
    pub fn new(stream: Stream, before: Box<[u8]>, budget: Rc<Budget>) -> Self {
        let frames = Frames { head: [0; FRAME_HEAD], head_len: 0, skip: PREFACE };
        Self { stream, before, before_at: 0, frames, budget, linger: None }
    }
}

impl Frames {
    /// Calls `found` with type, flags and length of each frame whose head ends in these bytes.
    fn look(&mut self, mut bytes: &[u8], mut found: impl FnMut(u8, u8, usize)) {
        while !bytes.is_empty() {
            if self.skip > 0 {
                let n = self.skip.min(bytes.len());
                self.skip -= n;
                bytes = &bytes[n..];
                continue;
            }
            let n = (FRAME_HEAD - self.head_len).min(bytes.len());
            self.head[self.head_len..self.head_len + n].copy_from_slice(&bytes[..n]);
            self.head_len += n;
            bytes = &bytes[n..];
            if self.head_len == FRAME_HEAD {
                let [a, b, c, kind, flags, ..] = self.head;
                self.skip = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
                self.head_len = 0;
                found(kind, flags, self.skip);
            }
        }
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.budget.is_spent.get() {
            // The connection was woken for that, and reads no further: a flood is not answered to its end first.
            return Poll::Pending;
        }
        let filled = buf.filled().len();
        if this.before_at < this.before.len() {
            let rest = &this.before[this.before_at..];
            let n = rest.len().min(buf.remaining());
            buf.put_slice(&rest[..n]);
            this.before_at += n;
        } else {
            ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
        }
        let budget = &this.budget;
        this.frames.look(&buf.filled()[filled..], |kind, _, length| match kind {
            HEADERS => {}
            DATA if length > 0 => {}
            RST_STREAM => budget.spend(RESET_COST),
            _ => budget.spend(1),
        });
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let n = ready!(Pin::new(&mut self.stream).poll_write(cx, buf))?;
        self.budget.sent(n);
        Poll::Ready(Ok(n))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let n = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, bufs))?;
        self.budget.sent(n);
        Poll::Ready(Ok(n))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    /// Ends our half, behind a GOAWAY as a rule, and then reads on for a while: whoever floods has sent more than was read.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let linger = match &mut this.linger {
            Some(linger) => linger,
            None => {
                ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
                this.linger.insert(Box::new(Linger::begin()))
            }
        };
        linger.poll(cx, &mut this.stream).map(Ok)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_found_however_they_are_cut() {
        let mut bytes = vec![b'P'; PREFACE];
        bytes.extend([0, 0, 3, DATA, 1, 0, 0, 0, 1, 7, 7, 7]);
        bytes.extend([0, 0, 0, 4, 0, 0, 0, 0, 0]);
        bytes.extend([0, 1, 0, HEADERS, 4, 0, 0, 0, 3]);
        bytes.extend([9; 256]);
        bytes.extend([0, 0, 4, RST_STREAM, 0, 0, 0, 0, 3, 0, 0, 0, 8]);
        for piece in [1, 2, 7, 40, bytes.len()] {
            let mut frames = Frames { head: [0; FRAME_HEAD], head_len: 0, skip: PREFACE };
            let mut found = Vec::new();
            for part in bytes.chunks(piece) {
                frames.look(part, |kind, flags, length| found.push((kind, flags, length)));
            }
            assert_eq!(found, [(DATA, 1, 3), (4, 0, 0), (HEADERS, 4, 256), (RST_STREAM, 0, 4)], "by {piece}");
        }
    }

    #[test]
    fn a_budget_is_spent_by_floods_and_refilled_by_answers() {
        let budget = Budget::new(Instant::now());
        for _ in 0..2_000 {
            budget.spend(RESET_COST);
            budget.answered();
        }
        assert!(!budget.is_spent.get(), "every other request is taken back");
        for _ in 0..BUDGET {
            budget.spend(1);
        }
        assert!(!budget.is_spent.get());
        budget.spend(1);
        assert!(budget.is_spent.get());
    }
}
