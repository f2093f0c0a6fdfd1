//! Counts the frames of a client that are not part of a request (floods of PING, SETTINGS, or streams that are reset at once)
//! against a budget, and ends the connection when the budget is spent. Frames that the proxy sends refund the frames that they
//! provoke. Streams that the proxy resets because of the client's errors cost like any other frame.
//!
//! `h2` bounds the memory of such floods; this bounds their CPU time.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Instant;

use h2::Reason;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::net::linger::{Ending, Linger};

/// Initial budget: 1,000 frames of cost one, or 100 resets of requests.
const BUDGET: u32 = 1_000;
/// Refund each second,
const PER_SECOND: u32 = 10;
/// for each answered request,
const PER_RESPONSE: u32 = 10;
/// for each piece of a response that its window let through whole (it may answer by WINDOW_UPDATE of the stream, of the
/// connection, and PING, as gRPC's libraries do to estimate the bandwidth),
const PER_PIECE: u32 = 3;
/// and for so many bytes that it was sent, for which a client with a small window has to say that it took them.
const BYTES_PER_POINT: u32 = 256;
/// Cost of a reset request, which may have reached a server.
pub const RESET_COST: u32 = 10;
/// Frames that are read until all streams had a turn: to take in what came for them, to send the resets that are due.
pub const PORTION: u32 = 1_000;

const FRAME_HEAD: usize = 9;
/// Bytes of an error code, which is all that RST_STREAM carries.
const CODE: usize = 4;
/// Of a DATA frame: its first byte says how much of it is padding (RFC 9113 section 6.1).
const PADDED: u8 = 8;
/// The client's first bytes, which are no frame (RFC 9113 section 3.4).
const PREFACE: usize = 24;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;

/// The remaining budget of a client, shared by its connection and the tasks of its streams.
#[derive(Debug)]
pub struct Budget {
    left: Cell<u32>,
    sent: Cell<u32>,
    refilled: Cell<Instant>,
    is_spent: Cell<bool>,
    /// Since when its socket takes nothing of what is to be sent.
    stuck: Cell<Option<Instant>>,
    /// It is to be reset when it is closed.
    resets: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

/// A client's connection, watched.
#[derive(Debug)]
pub struct Watched<S: Ending> {
    stream: S,
    /// What was read of it before it was known to be one of HTTP/2.
    before: Box<[u8]>,
    before_at: usize,
    frames: Frames,
    /// How many there were since the last pause.
    n_frames: u32,
    sent: Frames,
    budget: Rc<Budget>,
    /// Once our half has ended.
    linger: Option<Box<Linger>>,
}

/// Finds frames in bytes that come in pieces.
#[derive(Debug)]
struct Frames {
    /// Its head, and the error code of a RST_STREAM or the length of padding.
    head: [u8; FRAME_HEAD + CODE],
    head_len: usize,
    /// Bytes to pass over before the next head.
    skip: usize,
}

/// What is looked at of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Frame {
    kind: u8,
    /// Bytes behind its head, without padding.
    length: usize,
    /// Of a RST_STREAM.
    code: Option<Reason>,
}

impl Budget {
    /// A full one.
    pub fn new(now: Instant) -> Self {
        Self {
            left: Cell::new(BUDGET),
            sent: Cell::new(0),
            refilled: Cell::new(now),
            is_spent: Cell::new(false),
            stuck: Cell::new(None),
            resets: Cell::new(false),
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

    /// Since when the client takes nothing of what is to be sent to it, if that is so.
    pub fn stuck_since(&self) -> Option<Instant> {
        self.stuck.get()
    }

    /// Has the connection be reset when it is dropped: the kernel keeps nothing of what its client does not take.
    pub fn reset_on_close(&self) {
        self.resets.set(true);
    }

    fn written<T>(&self, polled: &Poll<T>) {
        match polled {
            Poll::Ready(_) => self.stuck.set(None),
            Poll::Pending if self.stuck.get().is_none() => self.stuck.set(Some(Instant::now())),
            Poll::Pending => {}
        }
    }

    /// A piece of a response was sent, and its window was no reason for its end.
    pub fn sent_whole(&self) {
        self.add(PER_PIECE);
    }

    fn add(&self, points: u32) {
        self.left.set((self.left.get() + points).min(BUDGET));
    }

    /// Takes what a frame of the client costs.
    fn received(&self, frame: Frame) {
        match frame.kind {
            HEADERS => {}
            DATA if frame.length > 0 => {}
            RST_STREAM => self.spend(RESET_COST),
            _ => self.spend(1),
        }
    }

    /// Takes what a frame to the client costs: one that resets a stream for what the client did on it. Those that were
    /// served until then cost more; see [`super::server`].
    fn answered_by(&self, frame: Frame) {
        match frame.code {
            // A response that broke off, or one that was complete before its request.
            None | Some(Reason::NO_ERROR | Reason::INTERNAL_ERROR | Reason::CANCEL) => {}
            // It was told how many streams it may have.
            Some(Reason::REFUSED_STREAM) => self.spend(RESET_COST),
            Some(_) => self.spend(1),
        }
    }

    fn sent(&self, n: usize) {
        let sent = self.sent.get().saturating_add(u32::try_from(n).unwrap_or(u32::MAX));
        self.sent.set(sent % BYTES_PER_POINT);
        self.add((sent / BYTES_PER_POINT).min(BUDGET));
    }

    /// Takes this much, and ends the connection where it is not there.
    pub fn spend(&self, cost: u32) {
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

impl<S: Ending> Watched<S> {
    /// `before` is what was read of the stream already.
    pub fn new(stream: S, before: Box<[u8]>, budget: Rc<Budget>) -> Self {
        let (frames, sent) = (Frames::behind(PREFACE), Frames::behind(0));
        Self { stream, before, before_at: 0, frames, n_frames: 0, sent, budget, linger: None }
    }

    fn look_at_sent(&mut self, bytes: &[u8]) {
        let budget = &self.budget;
        self.sent.look(bytes, |frame| budget.answered_by(frame));
    }
}

impl Frames {
    /// In bytes of which these come first.
    fn behind(n_bytes: usize) -> Self {
        Self { head: [0; FRAME_HEAD + CODE], head_len: 0, skip: n_bytes }
    }

    /// Calls `found` with each frame whose head (or error code) ends in these bytes.
    fn look(&mut self, mut bytes: &[u8], mut found: impl FnMut(Frame)) {
        while !bytes.is_empty() {
            if self.skip > 0 {
                let n = self.skip.min(bytes.len());
                self.skip -= n;
                bytes = &bytes[n..];
                continue;
            }
            let wanted = if self.head_len < FRAME_HEAD { FRAME_HEAD } else { FRAME_HEAD + self.more() };
            let n = (wanted - self.head_len).min(bytes.len());
            self.head[self.head_len..self.head_len + n].copy_from_slice(&bytes[..n]);
            self.head_len += n;
            bytes = &bytes[n..];
            if self.head_len < wanted {
                continue;
            }
            let more = self.more();
            if more > 0 && wanted == FRAME_HEAD {
                continue;
            }
            let [_, _, _, kind, _, _, _, _, _, code @ ..] = self.head;
            let length = self.length();
            self.skip = length - more;
            self.head_len = 0;
            let (length, code) = match (kind, more) {
                (DATA, 1) => (length.saturating_sub(1 + usize::from(code[0])), None),
                (_, CODE) => (length, Some(u32::from_be_bytes(code).into())),
                _ => (length, None),
            };
            found(Frame { kind, length, code });
        }
    }

    /// Bytes behind the head that is there.
    fn length(&self) -> usize {
        let [a, b, c, ..] = self.head;
        usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c)
    }

    /// How many of them are looked at.
    fn more(&self) -> usize {
        let [_, _, _, kind, flags, ..] = self.head;
        match kind {
            RST_STREAM if self.length() >= CODE => CODE,
            DATA if flags & PADDED != 0 && self.length() > 0 => 1,
            _ => 0,
        }
    }
}

impl<S: Ending + AsyncRead> AsyncRead for Watched<S> {
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
        if this.n_frames >= PORTION {
            this.n_frames = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let filled = buf.filled().len();
        if this.before_at < this.before.len() {
            let rest = &this.before[this.before_at..];
            let n = rest.len().min(buf.remaining());
            buf.put_slice(&rest[..n]);
            this.before_at += n;
        } else {
            let polled = Pin::new(&mut this.stream).poll_read(cx, buf);
            if polled.is_pending() {
                this.n_frames = 0;
            }
            ready!(polled)?;
        }
        let (budget, n_frames) = (&this.budget, &mut this.n_frames);
        this.frames.look(&buf.filled()[filled..], |frame| {
            *n_frames += 1;
            budget.received(frame);
        });
        Poll::Ready(Ok(()))
    }
}

impl<S: Ending> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.budget.written(&polled);
        let n = ready!(polled)?;
        self.budget.sent(n);
        self.look_at_sent(&buf[..n]);
        Poll::Ready(Ok(n))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.budget.written(&polled);
        let n = ready!(polled)?;
        self.budget.sent(n);
        let mut left = n;
        for buf in bufs {
            let taken = left.min(buf.len());
            self.look_at_sent(&buf[..taken]);
            left -= taken;
        }
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

impl<S: Ending> Drop for Watched<S> {
    fn drop(&mut self) {
        if self.budget.resets.get() {
            self.stream.set_reset_on_close(true);
        }
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
        // Nothing but padding, and two bytes with some.
        bytes.extend([0, 0, 3, DATA, PADDED, 0, 0, 0, 1, 2, 0, 0]);
        bytes.extend([0, 0, 4, DATA, PADDED | 1, 0, 0, 0, 1, 1, 7, 7, 0]);
        // One that is too short to be one.
        bytes.extend([0, 0, 2, RST_STREAM, 0, 0, 0, 0, 3, 0, 0]);
        bytes.extend([0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
        let frame = |kind, length| Frame { kind, length, code: None };
        let reset = Frame { code: Some(Reason::CANCEL), ..frame(RST_STREAM, 4) };
        for piece in [1, 2, 7, 40, bytes.len()] {
            let mut frames = Frames::behind(PREFACE);
            let mut found = Vec::new();
            for part in bytes.chunks(piece) {
                frames.look(part, |frame| found.push(frame));
            }
            let expected = [
                frame(DATA, 3),
                frame(4, 0),
                frame(HEADERS, 256),
                reset,
                frame(DATA, 0),
                frame(DATA, 2),
                frame(RST_STREAM, 2),
                frame(6, 8),
            ];
            assert_eq!(found, expected, "by {piece}");
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
