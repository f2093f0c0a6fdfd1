//! Frames that come: each is checked, and changes its stream or the connection.

use super::flow::widened;
use super::heads;
use super::streams::{Half, Past, READS, StreamState, WRITES};
use super::{DRAIN_PING, DrainStep, Session, SessionError, Side, StreamFailure};
use crate::http::h2::frame::{
    self, DEFAULT_MAX_FRAME, Dependency, ErrorCode, FrameHead, HEAD_LEN, Settings, flag, kind, setting,
};
use crate::http::h2::message::{CheckedResponse, Fault};

/// A field block may have this many bytes for each byte that its header list may have, and at least [`MIN_BLOCK`]: one that
/// is refused by its stream has to be read to its end, since its connection's table changes with it.
const BLOCK_RATIO: usize = 4;
const MIN_BLOCK: usize = 64 << 10;

/// A field block of which more comes.
#[derive(Debug)]
pub(super) struct Block {
    bytes: Vec<u8>,
    of: BlockOf,
}

/// The message of a field block.
#[derive(Clone, Copy, Debug)]
struct BlockOf {
    id: u32,
    ends_stream: bool,
    /// Its stream depends on itself.
    is_circular: bool,
}

type Received = Result<(), SessionError>;

fn protocol<T>(text: &'static str) -> Result<T, SessionError> {
    Err(SessionError::new(ErrorCode::PROTOCOL_ERROR, text))
}

fn wrong_size<T>(text: &'static str) -> Result<T, SessionError> {
    Err(SessionError::new(ErrorCode::FRAME_SIZE_ERROR, text))
}

impl Session {
    /// Takes in whole frames, at most so many, and returns how many bytes they had. The rest is to be passed again, with
    /// more behind it; the flag says that it may hold whole frames.
    pub(crate) fn receive(&mut self, bytes: &[u8], max_frames: usize) -> (usize, bool) {
        if self.failure.is_some() {
            return (bytes.len(), false);
        }
        let mut at = 0;
        if !self.preface.is_empty() {
            at = self.preface.len().min(bytes.len());
            if bytes[..at] != self.preface[..at] {
                self.fail(SessionError::new(ErrorCode::PROTOCOL_ERROR, "no preface"));
                return (at, false);
            }
            self.preface = &self.preface[at..];
        }
        for _ in 0..max_frames {
            let Some(head) = bytes[at..].first_chunk().map(FrameHead::parse) else { return (at, false) };
            let length = head.length as usize;
            if head.length > DEFAULT_MAX_FRAME {
                self.fail(SessionError::new(ErrorCode::FRAME_SIZE_ERROR, "frame too long"));
                return (at, false);
            }
            let begin = at + HEAD_LEN;
            let Some(payload) = bytes.get(begin..begin + length) else { return (at, false) };
            at = begin + length;
            if let Err(e) = self.frame(head, payload) {
                self.fail(e);
            }
            self.check_budget();
            if self.failure.is_some() {
                return (at, false);
            }
        }
        (at, true)
    }

    fn frame(&mut self, head: FrameHead, payload: &[u8]) -> Received {
        // Servers are forgiven: some answer before they say what they allow.
        let begins = !self.peer.are_there && self.side == Side::Server;
        if begins && (head.kind != kind::SETTINGS || head.has(flag::ACK)) {
            return protocol("the first frame is not SETTINGS");
        }
        if let Some(block) = &self.block
            && (head.kind != kind::CONTINUATION || head.stream != block.of.id)
        {
            return protocol("a frame within a field block");
        }
        match head.kind {
            kind::DATA => self.data(head, payload),
            kind::HEADERS => self.headers(head, payload),
            kind::PRIORITY => self.priority(head, payload),
            kind::RST_STREAM => self.rst_stream(head, payload),
            kind::SETTINGS => self.settings(head, payload),
            kind::PUSH_PROMISE => protocol("PUSH_PROMISE"),
            kind::PING => self.ping(head, payload),
            kind::GOAWAY => self.goaway(head, payload),
            kind::WINDOW_UPDATE => self.window_update(head, payload),
            kind::CONTINUATION => self.continuation(head, payload),
            _ => {
                self.budget.frame();
                Ok(())
            }
        }
    }

    fn is_idle(&self, id: u32) -> bool {
        match self.side {
            Side::Server => id > self.last_peer_id || id.is_multiple_of(2),
            Side::Client => id >= self.next_id || id.is_multiple_of(2),
        }
    }

    // ---- DATA ------------------------------------------------------------------------------------------------------

    fn data(&mut self, head: FrameHead, payload: &[u8]) -> Received {
        if head.stream == 0 {
            return protocol("DATA on stream 0");
        }
        let data =
            frame::unpad(payload, head.flags).map_err(|code| SessionError::new(code, "malformed padding"))?;
        if !self.receive.receive(payload.len()) {
            return Err(SessionError::new(
                ErrorCode::FLOW_CONTROL_ERROR,
                "more DATA than the connection's window",
            ));
        }
        if let Some(credit) = self.receive.take(payload.len()) {
            frame::write_window_update(0, credit, &mut self.output);
        }
        if data.is_empty() {
            self.budget.frame();
        }
        let ends = head.has(flag::END_STREAM);
        let Some(slot) = self.streams.find(head.stream) else {
            if self.is_idle(head.stream) {
                return protocol("DATA for an idle stream");
            }
            if self.streams.past(head.stream) != Past::ResetHere {
                self.refuse(head.stream, ErrorCode::STREAM_CLOSED);
            }
            return Ok(());
        };
        if self.streams.at(slot).is_reset_by_peer() {
            self.refuse(head.stream, ErrorCode::STREAM_CLOSED);
        } else if let Err(code) = self.body(slot, data, payload.len(), ends) {
            self.reset(slot, code);
        }
        Ok(())
    }

    fn body(&mut self, slot: usize, data: &[u8], n_counted: usize, ends: bool) -> Result<(), ErrorCode> {
        let (side, stream) = (self.side, self.streams.at(slot));
        if stream.peer == Half::Ended {
            return if stream.failure.is_none() { Err(ErrorCode::STREAM_CLOSED) } else { Ok(()) };
        }
        if stream.failure.is_some() {
            return Ok(());
        }
        if side == Side::Client && stream.peer == Half::Head {
            return Err(ErrorCode::PROTOCOL_ERROR);
        }
        if !stream.receive.receive(n_counted) {
            return Err(ErrorCode::FLOW_CONTROL_ERROR);
        }
        if let Some(left) = &mut stream.expected {
            *left = left.checked_sub(data.len() as u64).ok_or(ErrorCode::PROTOCOL_ERROR)?;
        }
        stream.arrived.push(data);
        if n_counted > data.len() && !ends {
            // Nobody reads padding.
            let unread = stream.arrived.len();
            if let Some(credit) = stream.receive.take_shared(n_counted - data.len(), unread, &mut self.pool) {
                frame::write_window_update(stream.id, credit, &mut self.output);
            }
        }
        if ends {
            self.end_of_peer(slot)?;
        } else if !data.is_empty() {
            self.wake(slot, READS);
        }
        Ok(())
    }

    /// The peer's message is complete.
    fn end_of_peer(&mut self, slot: usize) -> Result<(), ErrorCode> {
        let stream = self.streams.at(slot);
        if stream.expected.is_some_and(|left| left > 0) {
            return Err(ErrorCode::PROTOCOL_ERROR);
        }
        stream.peer = Half::Ended;
        self.wake(slot, READS);
        if self.streams.at(slot).is_over() {
            self.closed(slot);
        }
        Ok(())
    }

    // ---- field blocks ----------------------------------------------------------------------------------------------

    fn headers(&mut self, head: FrameHead, payload: &[u8]) -> Received {
        if head.stream == 0 {
            return protocol("HEADERS on stream 0");
        }
        let malformed = |code| SessionError::new(code, "malformed padding or priority");
        let (block, dependency) = frame::headers_block(payload, head.flags).map_err(malformed)?;
        let is_circular = dependency == Some(Dependency(head.stream));
        if self.side == Side::Server && head.stream.is_multiple_of(2) {
            return protocol("a stream with an even id");
        }
        let of = BlockOf { id: head.stream, ends_stream: head.has(flag::END_STREAM), is_circular };
        if head.has(flag::END_HEADERS) {
            return self.fields(of, block);
        }
        self.block = Some(Block { bytes: block.to_vec(), of });
        Ok(())
    }

    fn continuation(&mut self, head: FrameHead, payload: &[u8]) -> Received {
        self.budget.frame();
        let Some(mut block) = self.block.take() else { return protocol("CONTINUATION without a block") };
        if block.bytes.len() + payload.len() > MIN_BLOCK.max(BLOCK_RATIO * self.limits.list_bytes) {
            return Err(SessionError::new(ErrorCode::ENHANCE_YOUR_CALM, "a field block without end"));
        }
        block.bytes.extend_from_slice(payload);
        if head.has(flag::END_HEADERS) {
            return self.fields(block.of, &block.bytes);
        }
        self.block = Some(block);
        Ok(())
    }

    /// A field block is complete.
    fn fields(&mut self, of: BlockOf, block: &[u8]) -> Received {
        if let Some(slot) = self.streams.find(of.id) {
            if self.streams.at(slot).is_reset_by_peer() {
                self.refuse(of.id, ErrorCode::STREAM_CLOSED);
                return self.reader.skip(block);
            }
            return match self.side {
                Side::Client if self.streams.at(slot).peer == Half::Head => self.response(slot, of, block),
                _ => self.trailers(slot, of, block),
            };
        }
        let is_new = self.is_idle(of.id);
        if !is_new {
            let past = self.streams.past(of.id);
            if self.side == Side::Server {
                match past {
                    Past::ResetHere => {}
                    Past::Ended => {
                        return Err(SessionError::new(
                            ErrorCode::STREAM_CLOSED,
                            "HEADERS for a stream that ended",
                        ));
                    }
                    Past::Forgotten => return protocol("a new stream with an id below the last"),
                }
            }
            return self.reader.skip(block);
        }
        match self.side {
            Side::Server => self.request(of, block),
            Side::Client => protocol("HEADERS for an idle stream"),
        }
    }

    /// A client begins a stream.
    fn request(&mut self, of: BlockOf, block: &[u8]) -> Received {
        self.last_peer_id = of.id;
        if self.drain == DrainStep::Told {
            // The client was told that this one is not served, and what else it has sent of it is ignored (section 6.8).
            self.streams.remember_reset(of.id);
            return self.reader.skip(block);
        }
        self.last_served_id = of.id;
        let is_refused = self.n_open >= self.max_streams;
        if is_refused || of.is_circular {
            let code = if is_refused { ErrorCode::REFUSED_STREAM } else { ErrorCode::PROTOCOL_ERROR };
            self.streams.remember_reset(of.id);
            self.refuse(of.id, code);
            return self.reader.skip(block);
        }
        let mut head = heads::lend();
        let mut stream = StreamState::new(of.id, self.peer.initial_window);
        let (is_head, checked) = self.reader.request(block, of.ends_stream, &mut head)?;
        stream.is_head_method = is_head;
        match checked {
            Ok(request) => {
                stream.expected = request.length;
                stream.is_connect = request.is_extended_connect;
            }
            Err(Fault::Malformed(_)) => {
                self.streams.remember_reset(of.id);
                self.refuse(of.id, ErrorCode::PROTOCOL_ERROR);
                heads::give_back(head);
                return Ok(());
            }
            Err(Fault::Refused(refusal)) => stream.refusal = Some(refusal),
        }
        stream.head = Some(head);
        stream.peer = if of.ends_stream { Half::Ended } else { Half::Body };
        self.n_open += 1;
        let slot = self.streams.insert(stream);
        self.accepted.push_back(slot);
        self.has_woken = true;
        Ok(())
    }

    /// The head of a response, or of an interim one.
    fn response(&mut self, slot: usize, of: BlockOf, block: &[u8]) -> Received {
        let to_head = self.streams.at(slot).is_head_method;
        let mut text = std::mem::take(&mut self.text);
        let checked = self.reader.response(block, (to_head, of.ends_stream), &mut text)?;
        let stream = self.streams.at(slot);
        if stream.failure.is_none() {
            match checked {
                Err(_) => self.reset(slot, ErrorCode::PROTOCOL_ERROR),
                Ok(response) => self.response_head(slot, response, &text, of.ends_stream),
            }
        }
        self.text = text;
        Ok(())
    }

    fn response_head(&mut self, slot: usize, response: CheckedResponse, text: &[u8], ends: bool) {
        let stream = self.streams.at(slot);
        // In HTTP/2 a stream becomes a tunnel by success, and in HTTP/1.1 by 101 alone (RFC 8441 section 4).
        let switch = stream.switch.as_deref().filter(|_| matches!(response.status, 200..300));
        let switched = switch.map(|switch| switch.head(text));
        let (text, is_tunnel) = (switched.as_deref().unwrap_or(text), switched.is_some());
        if response.status < 200 && stream.arrived.len() + text.len() > self.limits.list_bytes {
            // No window counts them, and their reader may be slow.
            return self.reset(slot, ErrorCode::ENHANCE_YOUR_CALM);
        }
        stream.arrived.push_head(text);
        if response.status >= 200 {
            stream.peer = Half::Body;
            stream.expected = match response.has_no_body {
                _ if is_tunnel => None,
                true => Some(0),
                false => response.length,
            };
        }
        if !ends {
            self.wake(slot, READS);
        } else if let Err(code) = self.end_of_peer(slot) {
            self.reset(slot, code);
        }
    }

    fn trailers(&mut self, slot: usize, of: BlockOf, block: &[u8]) -> Received {
        let mut lines = Vec::new();
        let checked = self.reader.trailers(block, &mut lines)?;
        let stream = self.streams.at(slot);
        if stream.failure.is_some() {
            return Ok(());
        }
        let result = match stream.peer {
            Half::Ended => Err(ErrorCode::STREAM_CLOSED),
            _ if of.is_circular || !of.ends_stream || checked.is_err() => Err(ErrorCode::PROTOCOL_ERROR),
            _ => {
                stream.trailers = lines;
                self.end_of_peer(slot)
            }
        };
        if let Err(code) = result {
            self.reset(slot, code);
        }
        Ok(())
    }

    // ---- the other frames of streams -------------------------------------------------------------------------------

    fn priority(&mut self, head: FrameHead, payload: &[u8]) -> Received {
        self.budget.frame();
        if head.stream == 0 {
            return protocol("PRIORITY on stream 0");
        }
        let code = match *payload {
            [a, b, c, d, _weight] if frame::number([a, b, c, d]) == head.stream => ErrorCode::PROTOCOL_ERROR,
            [_, _, _, _, _] => return Ok(()),
            _ => ErrorCode::FRAME_SIZE_ERROR,
        };
        match self.streams.find(head.stream) {
            Some(slot) => self.reset(slot, code),
            // RST_STREAM must not be sent for it.
            None if self.is_idle(head.stream) => {
                return Err(SessionError::new(code, "malformed PRIORITY for an idle stream"));
            }
            None => {}
        }
        Ok(())
    }

    fn rst_stream(&mut self, head: FrameHead, payload: &[u8]) -> Received {
        let Ok(code) = payload.try_into().map(u32::from_be_bytes) else {
            return wrong_size("RST_STREAM of another length than 4");
        };
        if head.stream == 0 || self.is_idle(head.stream) {
            return protocol("RST_STREAM for an idle stream");
        }
        self.budget.reset();
        let Some(slot) = self.streams.find(head.stream) else { return Ok(()) };
        let (side, stream) = (self.side, self.streams.at(slot));
        if stream.failure.is_some() {
            return Ok(());
        }
        let code = ErrorCode(code);
        stream.failure = Some(match (side, code) {
            (Side::Client, ErrorCode::REFUSED_STREAM) => StreamFailure::NotAccepted,
            _ => StreamFailure::Reset(code),
        });
        self.closed(slot);
        Ok(())
    }

    fn window_update(&mut self, head: FrameHead, payload: &[u8]) -> Received {
        self.budget.frame();
        let Ok(more) = payload.try_into().map(frame::number) else {
            return wrong_size("WINDOW_UPDATE of another length than 4");
        };
        let more = i64::from(more);
        if head.stream == 0 {
            if more == 0 {
                return protocol("WINDOW_UPDATE by 0");
            }
            self.window = widened(self.window, more).ok_or(SessionError::new(
                ErrorCode::FLOW_CONTROL_ERROR,
                "the connection's window becomes too large",
            ))?;
            return Ok(());
        }
        let Some(slot) = self.streams.find(head.stream) else {
            return match self.is_idle(head.stream) {
                true => protocol("WINDOW_UPDATE for an idle stream"),
                false => Ok(()),
            };
        };
        let stream = self.streams.at(slot);
        match widened(stream.window, more) {
            _ if more == 0 => self.reset(slot, ErrorCode::PROTOCOL_ERROR),
            None => self.reset(slot, ErrorCode::FLOW_CONTROL_ERROR),
            Some(window) => {
                stream.window = window;
                if window > 0 {
                    self.wake(slot, WRITES);
                }
            }
        }
        Ok(())
    }

    // ---- frames of the connection ----------------------------------------------------------------------------------

    fn settings(&mut self, head: FrameHead, payload: &[u8]) -> Received {
        if head.stream != 0 {
            return protocol("SETTINGS on a stream");
        }
        if head.has(flag::ACK) {
            if !payload.is_empty() {
                return wrong_size("an acknowledgement of SETTINGS with a payload");
            }
            if self.settings_until.take().is_none() {
                self.budget.frame();
            }
            return Ok(());
        }
        let malformed = |code| SessionError::new(code, "malformed SETTINGS");
        let settings = Settings::parse(payload).map_err(malformed)?;
        if self.peer.are_there {
            self.budget.frame();
        }
        self.peer.are_there = true;
        for setting in settings {
            let (key, value) = setting.map_err(malformed)?;
            self.setting(key, value)?;
        }
        frame::write_settings_ack(&mut self.output);
        self.openers.drain(..).for_each(std::task::Waker::wake);
        Ok(())
    }

    fn setting(&mut self, key: u16, value: u32) -> Received {
        match key {
            setting::HEADER_TABLE_SIZE => self.encoder.set_peer_table_size(value),
            setting::ENABLE_PUSH if value == 1 && self.side == Side::Client => {
                return protocol("a server cannot be pushed to");
            }
            setting::MAX_CONCURRENT_STREAMS => self.peer.max_streams = value,
            setting::INITIAL_WINDOW_SIZE => return self.initial_window(value),
            setting::ENABLE_CONNECT_PROTOCOL if value == 0 && self.peer.takes_tunnels => {
                return protocol("tunnels that were allowed are not");
            }
            setting::ENABLE_CONNECT_PROTOCOL => self.peer.takes_tunnels = value == 1,
            _ => {}
        }
        Ok(())
    }

    fn initial_window(&mut self, value: u32) -> Received {
        let too_large = SessionError::new(ErrorCode::FLOW_CONTROL_ERROR, "a window becomes too large");
        let more = i64::from(value) - i64::from(std::mem::replace(&mut self.peer.initial_window, value));
        for (_, stream) in self.streams.iter_mut() {
            stream.window = widened(stream.window, more).ok_or(too_large)?;
            if stream.window > 0 {
                self.has_woken |= stream.wake(WRITES);
            }
        }
        Ok(())
    }

    fn ping(&mut self, head: FrameHead, payload: &[u8]) -> Received {
        if head.stream != 0 {
            return protocol("PING on a stream");
        }
        let Ok(data) = <[u8; 8]>::try_from(payload) else {
            return wrong_size("PING of another length than 8");
        };
        if !head.has(flag::ACK) {
            self.budget.frame();
            frame::write_ping(&data, true, &mut self.output);
        } else if data == DRAIN_PING && matches!(self.drain, DrainStep::Announced { .. }) {
            self.tell_last();
        } else {
            self.budget.frame();
        }
        Ok(())
    }

    fn goaway(&mut self, head: FrameHead, payload: &[u8]) -> Received {
        self.budget.frame();
        if head.stream != 0 {
            return protocol("GOAWAY on a stream");
        }
        let (Some((last, rest)), true) = (payload.split_first_chunk::<4>(), payload.len() >= 8) else {
            return wrong_size("GOAWAY that is too short");
        };
        let last = frame::number(*last);
        let code = ErrorCode(rest.first_chunk().copied().map_or(0, u32::from_be_bytes));
        self.is_over = true;
        self.openers.drain(..).for_each(std::task::Waker::wake);
        if self.side == Side::Server {
            return Ok(());
        }
        let above: Vec<usize> = self
            .streams
            .iter_mut()
            .filter(|(_, stream)| stream.id > last && !stream.is_over())
            .map(|(slot, stream)| {
                stream.failure = Some(StreamFailure::GoneAway(code));
                slot
            })
            .collect();
        above.into_iter().for_each(|slot| self.closed(slot));
        Ok(())
    }
}
