//! The streams of a connection: a slab, the ids in their order, and which ids have ended lately.

use std::collections::VecDeque;
use std::task::{Context, Waker};

use slab::Slab;

use super::StreamFailure;
use super::arrived::Arrived;
use super::flow::ReceiveWindow;
use crate::http::h1::head::{Refusal, RequestHead};
use crate::http::h2::frame::DEFAULT_WINDOW;
use crate::http::h2::switch::Switch;

/// Its task waits for bytes, its end, or a failure.
pub(super) const READS: u8 = 1;
/// Its task waits until it may send.
pub(super) const WRITES: u8 = 2;
/// Its task waits until the stream is of no more use.
pub(super) const WATCHES: u8 = 4;

/// Streams that we reset and remember, for frames that were already under way.
const REMEMBERED_RESETS: usize = 128;
/// Streams that ended by themselves and are remembered, for the right error to frames that follow.
const REMEMBERED_ENDS: usize = 16;

/// How far one direction of a stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Half {
    /// The final head has not passed.
    Head,
    /// The body passes.
    Body,
    /// END_STREAM has passed.
    Ended,
}

/// One stream.
#[derive(Debug)]
pub(super) struct StreamState {
    pub(super) id: u32,
    /// The peer's direction.
    pub(super) peer: Half,
    /// Our direction.
    pub(super) own: Half,
    /// Why it has ended before both halves did.
    pub(super) failure: Option<StreamFailure>,
    /// A request's head, until somebody looks at it.
    pub(super) head: Option<Box<RequestHead>>,
    pub(super) arrived: Arrived,
    /// Lines of the trailers.
    pub(super) trailers: Vec<u8>,
    /// Why the head of a request is answered by an error.
    pub(super) refusal: Option<Refusal>,
    /// The rest of a body by its Content-Length.
    pub(super) expected: Option<u64>,
    pub(super) is_head_method: bool,
    /// A client asks it to become a tunnel.
    pub(super) is_connect: bool,
    /// A server is asked for that.
    pub(super) switch: Option<Box<Switch>>,
    pub(super) receive: ReceiveWindow,
    /// Bytes that we may send; negative after a change of the peer's settings.
    pub(super) window: i64,
    /// The events that its task waits for.
    pub(super) interest: u8,
    pub(super) waker: Option<Waker>,
    /// Stands in the queue of those that want to send.
    pub(super) is_queued: bool,
    /// May send before those in the queue.
    pub(super) has_turn: bool,
    /// Counts for the most that may be open.
    pub(super) is_counted: bool,
}

impl StreamState {
    /// One that has just begun.
    pub(super) fn new(id: u32, window: u32) -> Self {
        Self {
            id,
            peer: Half::Head,
            own: Half::Head,
            failure: None,
            head: None,
            arrived: Arrived::default(),
            trailers: Vec::new(),
            refusal: None,
            expected: None,
            is_head_method: false,
            is_connect: false,
            switch: None,
            receive: ReceiveWindow::new(DEFAULT_WINDOW),
            window: i64::from(window),
            interest: 0,
            waker: None,
            is_queued: false,
            has_turn: false,
            is_counted: true,
        }
    }

    /// Nothing more passes in either direction.
    pub(super) fn is_over(&self) -> bool {
        self.failure.is_some() || (self.peer == Half::Ended && self.own == Half::Ended)
    }

    /// The peer has reset it, and is to send no more of it.
    pub(super) fn is_reset_by_peer(&self) -> bool {
        matches!(self.failure, Some(StreamFailure::Reset(_) | StreamFailure::NotAccepted))
    }

    /// Has its task woken for this.
    pub(super) fn wait_for(&mut self, what: u8, cx: &Context<'_>) {
        self.interest |= what;
        if !self.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            self.waker = Some(cx.waker().clone());
        }
    }

    /// Wakes its task if it waits for any of this; whether it did.
    pub(super) fn wake(&mut self, what: u8) -> bool {
        if self.interest & what == 0 {
            return false;
        }
        self.interest = 0;
        if let Some(waker) = &self.waker {
            waker.wake_by_ref();
        }
        true
    }
}

/// The memory of a stream that is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Past {
    /// It was reset by us: frames for it may have been under way.
    ResetHere,
    /// It has ended.
    Ended,
    /// It was passed over, or has ended long ago.
    Forgotten,
}

/// All streams of a connection.
#[derive(Debug, Default)]
pub(super) struct Streams {
    slots: Slab<StreamState>,
    /// Id and slot of each, in the order of ids.
    ids: Vec<(u32, u32)>,
    reset_here: VecDeque<u32>,
    ended: VecDeque<u32>,
}

impl Streams {
    /// Streams whose tasks, or the connection itself, still hold them.
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// The slot of this id.
    pub(super) fn find(&self, id: u32) -> Option<usize> {
        let found = self.ids.binary_search_by_key(&id, |(id, _)| *id).ok()?;
        Some(self.ids[found].1 as usize)
    }

    /// Adds a stream whose id is above all others.
    pub(super) fn insert(&mut self, stream: StreamState) -> usize {
        let id = stream.id;
        debug_assert!(self.ids.last().is_none_or(|(last, _)| *last < id), "ids rise");
        let slot = self.slots.insert(stream);
        self.ids.push((id, slot as u32));
        slot
    }

    pub(super) fn at(&mut self, slot: usize) -> &mut StreamState {
        &mut self.slots[slot]
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (usize, &mut StreamState)> {
        self.slots.iter_mut()
    }

    /// Removes a stream and remembers how it ended.
    pub(super) fn remove(&mut self, slot: usize) -> StreamState {
        let stream = self.slots.remove(slot);
        if let Ok(at) = self.ids.binary_search_by_key(&stream.id, |(id, _)| *id) {
            self.ids.remove(at);
        }
        if stream.peer != Half::Ended && !stream.is_reset_by_peer() {
            self.remember_reset(stream.id);
        } else {
            if self.ended.len() == REMEMBERED_ENDS {
                self.ended.pop_front();
            }
            self.ended.push_back(stream.id);
        }
        stream
    }

    /// Gives back the memory of streams, while there are none.
    pub(super) fn rest(&mut self) {
        self.slots = Slab::new();
        self.ids = Vec::new();
    }

    /// Memory that is held.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.slots.capacity() * size_of::<StreamState>()
            + self.ids.capacity() * size_of::<(u32, u32)>()
            + (self.reset_here.capacity() + self.ended.capacity()) * size_of::<u32>()
    }

    /// Frames may still come for a stream that was reset, or never accepted.
    pub(super) fn remember_reset(&mut self, id: u32) {
        if self.reset_here.len() == REMEMBERED_RESETS {
            self.reset_here.pop_front();
        }
        self.reset_here.push_back(id);
    }

    /// The memory of a stream that is not there.
    pub(super) fn past(&self, id: u32) -> Past {
        if self.reset_here.contains(&id) {
            Past::ResetHere
        } else if self.ended.contains(&id) {
            Past::Ended
        } else {
            Past::Forgotten
        }
    }
}
