//! Sending: heads, bodies in their turn, ends. All of it goes into one output, which leaves when no stream is ready.
//!
//! Streams that find no room, or no window of the connection, stand in a queue. A stream in its turn sends one frame, and then
//! stands behind all others (RFC 9113 leaves the order open; priorities are ignored).

use std::task::{Context, Poll};

use super::streams::{Half, StreamState, WRITES};
use super::{Session, StreamFailure};
use crate::http::h2::frame::{DEFAULT_MAX_FRAME, FrameHead, HEAD_LEN, flag, kind};
use crate::http::h2::hpack::Encoder;
use crate::http::h2::lines::{self, HeadLines};
use crate::http::h2::switch::{self, Switch};

/// Bodies wait while this much is to be sent.
pub(super) const OUTPUT_LIMIT: usize = 64 << 10;
/// Largest payload of our frames, which every peer takes: with its head it is one record of TLS.
const MAX_PAYLOAD: usize = DEFAULT_MAX_FRAME as usize - HEAD_LEN;

/// The request line of a head of ours.
#[derive(Clone, Copy, Debug)]
pub(in crate::http::h2) struct RequestLine<'a> {
    pub(in crate::http::h2) method: &'a [u8],
    pub(in crate::http::h2) scheme: &'a [u8],
    pub(in crate::http::h2) authority: &'a [u8],
    pub(in crate::http::h2) path: &'a [u8],
    /// It asks for a tunnel.
    pub(in crate::http::h2) switch: Option<&'a Switch>,
}

impl Session {
    /// Sends the head of a response; `status` is that of its first line.
    ///
    /// # Errors
    /// Nobody waits for it.
    pub(in crate::http::h2) fn poll_response(
        &mut self,
        slot: usize,
        cx: &Context<'_>,
        (status, head): (u16, &HeadLines<'_>),
        ends: bool,
    ) -> Poll<Result<(), StreamFailure>> {
        if let Some(failure) = self.streams.at(slot).failure {
            return Poll::Ready(Err(failure));
        }
        if self.output().len() >= OUTPUT_LIMIT {
            self.stand_in_queue(slot, cx);
            return Poll::Pending;
        }
        let id = self.streams.at(slot).id;
        self.head_frame(id, ends, |encoder, out| {
            encoder.status(status, out);
            encode_fields(encoder, head.each(), out);
        });
        let stream = self.streams.at(slot);
        if ends {
            stream.own = Half::Ended;
            self.closed(slot);
        } else if status >= 200 {
            stream.own = Half::Body;
        }
        Poll::Ready(Ok(()))
    }

    /// Whether the server lets streams become tunnels (RFC 8441), once its SETTINGS have come.
    pub(in crate::http::h2) fn poll_takes_tunnels(&mut self, cx: &Context<'_>) -> Poll<bool> {
        if self.peer.are_there || self.is_over() {
            return Poll::Ready(self.peer.takes_tunnels);
        }
        self.await_opening(cx);
        Poll::Pending
    }

    /// Has the task woken when more streams may be begun than now, or none at all any more.
    fn await_opening(&mut self, cx: &Context<'_>) {
        if !self.openers.iter().any(|waker| waker.will_wake(cx.waker())) {
            self.openers.push(cx.waker().clone());
        }
    }

    /// Begins a stream with the head of a request, when the server allows one more.
    ///
    /// # Errors
    /// The connection takes no more streams.
    pub(in crate::http::h2) fn poll_begin(
        &mut self,
        cx: &Context<'_>,
        line: RequestLine<'_>,
        head: &HeadLines<'_>,
        ends: bool,
    ) -> Poll<Result<usize, StreamFailure>> {
        if let Some(e) = self.failure {
            return Poll::Ready(Err(StreamFailure::NotBegun(e.text)));
        }
        if self.is_over() {
            return Poll::Ready(Err(StreamFailure::NotBegun("connection given up")));
        }
        if self.n_open >= self.peer.max_streams {
            self.await_opening(cx);
            return Poll::Pending;
        }
        let id = self.next_id;
        self.next_id += 2;
        self.head_frame(id, ends, |encoder, out| {
            let method = if line.switch.is_some() { b"CONNECT" } else { line.method };
            encoder.field(b":method", method, false, out);
            if let Some(switch) = line.switch {
                encoder.field(b":protocol", switch.protocol(), false, out);
            }
            encoder.field(b":scheme", line.scheme, false, out);
            encoder.field(b":authority", line.authority, false, out);
            encoder.field(b":path", line.path, false, out);
            let is_left_out = |name: &[u8]| {
                name.eq_ignore_ascii_case(b"host") || line.switch.is_some() && switch::is_left_out(name)
            };
            encode_fields(encoder, head.each().filter(|(name, _)| !is_left_out(name)), out);
        });
        let mut stream = StreamState::new(id, self.peer.initial_window);
        stream.is_head_method = line.method == b"HEAD";
        stream.switch = line.switch.map(|switch| Box::new(switch.clone()));
        stream.own = if ends { Half::Ended } else { Half::Body };
        self.n_open += 1;
        Poll::Ready(Ok(self.streams.insert(stream)))
    }

    /// Sends as much of a body as windows and room allow, and the end of the stream if `is_last` and all of it is sent.
    ///
    /// # Errors
    /// Nobody waits for it.
    pub(in crate::http::h2) fn poll_data(
        &mut self,
        slot: usize,
        cx: &Context<'_>,
        data: &[u8],
        is_last: bool,
    ) -> Poll<Result<usize, StreamFailure>> {
        let is_next = self.queue.is_empty() && self.n_turns == 0;
        let has_room = self.output().len() < OUTPUT_LIMIT && self.window > 0;
        let window = self.window;
        let stream = self.streams.at(slot);
        if let Some(failure) = stream.failure {
            return Poll::Ready(Err(failure));
        }
        if stream.window <= 0 {
            stream.wait_for(WRITES, cx);
            self.n_turns -= usize::from(std::mem::take(&mut stream.has_turn));
            return Poll::Pending;
        }
        if !has_room || !(is_next || stream.has_turn) {
            self.stand_in_queue(slot, cx);
            if has_room {
                self.wake_driver();
            }
            return Poll::Pending;
        }
        if std::mem::take(&mut stream.has_turn) {
            self.n_turns -= 1;
        }
        let allowed = usize::try_from(window.min(stream.window)).unwrap_or(usize::MAX);
        let n = data.len().min(MAX_PAYLOAD).min(allowed);
        let ends = is_last && n == data.len();
        let flags = if ends { flag::END_STREAM } else { 0 };
        stream.window -= n as i64;
        let head = FrameHead { length: n as u32, kind: kind::DATA, flags, stream: stream.id };
        if ends {
            stream.own = Half::Ended;
        }
        self.window -= n as i64;
        head.write(&mut self.output);
        self.output.extend_from_slice(&data[..n]);
        self.budget.sent(HEAD_LEN + n);
        if n < allowed || n == data.len() {
            self.budget.sent_whole();
        }
        if ends {
            self.closed(slot);
        }
        self.wake_driver();
        Poll::Ready(Ok(n))
    }

    /// Ends what a stream sends, with these lines as trailers.
    pub(in crate::http::h2) fn finish(&mut self, slot: usize, trailers: &[u8]) {
        let stream = self.streams.at(slot);
        if stream.failure.is_some() || stream.own == Half::Ended {
            return;
        }
        stream.own = Half::Ended;
        let id = stream.id;
        if trailers.is_empty() {
            let head = FrameHead { length: 0, kind: kind::DATA, flags: flag::END_STREAM, stream: id };
            head.write(&mut self.output);
            self.wake_driver();
        } else {
            self.head_frame(id, true, |encoder, out| encode_fields(encoder, lines::fields(trailers), out));
        }
        self.closed(slot);
    }

    /// Gives a turn to as many of those in the queue as there is room for.
    pub(in crate::http::h2) fn give_turns(&mut self) {
        let mut room = OUTPUT_LIMIT.saturating_sub(self.output().len());
        let mut window = self.window;
        while room > 0
            && let Some(&slot) = self.queue.front()
        {
            let stream = self.streams.at(slot);
            if window <= 0 && stream.own != Half::Head {
                break;
            }
            self.queue.pop_front();
            stream.is_queued = false;
            if !std::mem::replace(&mut stream.has_turn, true) {
                self.n_turns += 1;
            }
            room = room.saturating_sub(MAX_PAYLOAD);
            window -= stream.window.clamp(0, MAX_PAYLOAD as i64);
            self.has_woken |= stream.wake(WRITES);
        }
    }

    fn stand_in_queue(&mut self, slot: usize, cx: &Context<'_>) {
        let stream = self.streams.at(slot);
        stream.wait_for(WRITES, cx);
        if !std::mem::replace(&mut stream.is_queued, true) {
            if stream.has_turn { self.queue.push_front(slot) } else { self.queue.push_back(slot) }
        }
    }

    /// Writes a field block as HEADERS, and CONTINUATION where it is long.
    fn head_frame(&mut self, id: u32, ends: bool, encode: impl FnOnce(&mut Encoder, &mut Vec<u8>)) {
        let start = self.output.len();
        self.output.resize(start + HEAD_LEN, 0);
        self.encoder.begin(&mut self.output);
        encode(&mut self.encoder, &mut self.output);
        let length = self.output.len() - start - HEAD_LEN;
        let flags = if ends { flag::END_STREAM } else { 0 };
        if length <= MAX_PAYLOAD {
            let head = FrameHead {
                length: length as u32,
                kind: kind::HEADERS,
                flags: flags | flag::END_HEADERS,
                stream: id,
            };
            self.output[start..start + HEAD_LEN].copy_from_slice(&head.to_bytes());
        } else {
            let block = self.output.split_off(start + HEAD_LEN);
            self.output.truncate(start);
            let n_parts = block.len().div_ceil(MAX_PAYLOAD);
            for (i, part) in block.chunks(MAX_PAYLOAD).enumerate() {
                let (kind, mut flags) = if i == 0 { (kind::HEADERS, flags) } else { (kind::CONTINUATION, 0) };
                if i + 1 == n_parts {
                    flags |= flag::END_HEADERS;
                }
                FrameHead { length: part.len() as u32, kind, flags, stream: id }.write(&mut self.output);
                self.output.extend_from_slice(part);
            }
        }
        let n = self.output.len() - start;
        self.budget.sent(n);
        self.wake_driver();
    }
}

fn encode_fields<'a>(
    encoder: &mut Encoder,
    fields: impl Iterator<Item = (&'a [u8], &'a [u8])>,
    out: &mut Vec<u8>,
) {
    for (name, value) in fields {
        if !lines::is_said_by_frames(name) {
            encoder.field(name, value, false, out);
        }
    }
}
