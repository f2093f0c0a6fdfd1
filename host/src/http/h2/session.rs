//! One HTTP/2 connection without its socket: bytes come in, streams change, bytes to send stand in [`Session::output`].
//!
//! Both roles are one machine. Its streams are read and written by their tasks through [`Session`], and a driver moves the
//! bytes (see [`super::driver`]). Nothing here waits, and nothing is kept of a body but what its reader has not taken.
//!
//! ```text
//!  bytes ─► receive ─► streams: arrived ─► poll_read ─► a stream's task ─► poll_data ─► output ─► bytes
//! ```
//!
//! # Errors (RFC 9113)
//!
//! | rule | section | level | code |
//! |---|---|---|---|
//! | the preface is not the preface, or no SETTINGS follows it | 3.4 | connection | PROTOCOL_ERROR |
//! | a frame longer than 16,384 bytes | 4.2 | connection | FRAME_SIZE_ERROR |
//! | a field block that cannot be decompressed | 4.3 | connection | COMPRESSION_ERROR |
//! | a frame between HEADERS and the end of its field block | 4.3, 6.10 | connection | PROTOCOL_ERROR |
//! | DATA, HEADERS that are no trailers: after END_STREAM | 5.1 | stream | STREAM_CLOSED |
//! | DATA, HEADERS behind the peer's RST_STREAM, while the stream's task has not seen it | 5.1 | stream | STREAM_CLOSED |
//! | HEADERS for a stream that has ended | 5.1 | connection | STREAM_CLOSED |
//! | DATA, RST_STREAM, WINDOW_UPDATE for an idle stream | 5.1 | connection | PROTOCOL_ERROR |
//! | a new stream with an even id, or one below the last | 5.1.1 | connection | PROTOCOL_ERROR |
//! | more streams than were allowed | 5.1.2 | stream | REFUSED_STREAM |
//! | more DATA than a window allows | 5.2, 6.9 | stream, connection | FLOW_CONTROL_ERROR |
//! | a stream that depends on itself | 5.3.1 of RFC 7540 | stream | PROTOCOL_ERROR |
//! | DATA, HEADERS, RST_STREAM, PRIORITY on stream 0 | 6.1 to 6.4 | connection | PROTOCOL_ERROR |
//! | padding as long as its frame | 6.1, 6.2 | connection | PROTOCOL_ERROR |
//! | PRIORITY of another length than 5 | 6.3 | stream | FRAME_SIZE_ERROR |
//! | RST_STREAM, PING, WINDOW_UPDATE, SETTINGS, GOAWAY of a wrong length | 6.4 to 6.9 | connection | FRAME_SIZE_ERROR |
//! | SETTINGS, PING, GOAWAY on a stream | 6.5, 6.7, 6.8 | connection | PROTOCOL_ERROR |
//! | a value that a setting cannot have | 6.5.2 | connection | PROTOCOL_ERROR, FLOW_CONTROL_ERROR |
//! | SETTINGS that are not acknowledged within 10 s | 6.5.3 | connection | SETTINGS_TIMEOUT |
//! | PUSH_PROMISE | 6.6, 8.4 | connection | PROTOCOL_ERROR |
//! | WINDOW_UPDATE by 0 | 6.9 | stream, connection | PROTOCOL_ERROR |
//! | a window above 2^31-1 | 6.9.1, 6.9.2 | stream, connection | FLOW_CONTROL_ERROR |
//! | CONTINUATION without a block | 6.10 | connection | PROTOCOL_ERROR |
//! | HEADERS behind the first that do not end the stream | 8.1 | stream | PROTOCOL_ERROR |
//! | a malformed head or trailers | 8.1.1 | stream | PROTOCOL_ERROR |
//! | DATA that differ from Content-Length | 8.1.1 | stream | PROTOCOL_ERROR |
//! | interim responses without end, and nobody reads them | 10.5 | stream | ENHANCE_YOUR_CALM |
//! | more frames of no use than a budget allows; a field block without end | 10.5 | connection | ENHANCE_YOUR_CALM |

mod arrived;
mod budget;
mod flow;
mod heads;
mod liveness;
mod receive;
mod send;
mod streams;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::error::Error;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};
use std::{fmt, io};

use tokio::io::ReadBuf;

use self::budget::FrameBudget;
use self::flow::{CONNECTION_WINDOW, ReceiveWindow, SharedWindow};
use self::heads::FieldReader;
use self::liveness::{LIVENESS_PING, Liveness, LivenessStep};
use self::receive::Block;
use self::streams::{Half, READS, Streams, WATCHES, WRITES};
use super::frame::{self, DEFAULT_WINDOW, ErrorCode, MAX_WINDOW, PREFACE, setting};
use super::hpack::Encoder;
use super::message::FieldLimits;
use crate::http::h1::head::{Refusal, RequestHead};

pub(crate) use self::heads::give_back;
pub use self::liveness::PingTerms;
pub(super) use self::send::RequestLine;

/// How long the peer has to acknowledge our SETTINGS.
const SETTINGS_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a drain waits for the answer to its PING, behind which no request can be under way any more.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);
/// Opaque data of that PING.
const DRAIN_PING: [u8; 8] = *b"trylist\0";
/// The highest stream id.
const LAST_ID: u32 = MAX_WINDOW;
/// Entries of our HPACK decoder, in bytes; the default of RFC 9113 section 6.5.2.
const TABLE_BYTES: usize = 4096;

/// Which end of the connection this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// The peer is a client, and begins all streams.
    Server,
    /// The peer is a server.
    Client,
}

/// The terms of a connection for its peer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SessionTerms {
    /// Which end this is.
    pub(crate) side: Side,
    /// Streams that a client may have open at once.
    pub(crate) max_streams: u32,
    /// Limits of a message's fields.
    pub(crate) limits: FieldLimits,
    /// When a silent peer is asked whether it is there, if ever.
    pub(crate) ping: Option<PingTerms>,
}

/// Why a connection ends with an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SessionError {
    /// The code of its GOAWAY.
    pub(crate) code: ErrorCode,
    /// In words, for the log.
    pub(crate) text: &'static str,
}

/// Why a stream ends before its message does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StreamFailure {
    /// The peer has reset it.
    Reset(ErrorCode),
    /// The proxy has reset it, for an error of the peer.
    Refused(ErrorCode),
    /// The peer has reset it before it looked at the request.
    NotAccepted,
    /// The peer says that it has not looked at the request, and will not.
    GoneAway(ErrorCode),
    /// The connection took no more requests.
    NotBegun(&'static str),
    /// The connection is lost.
    Lost(&'static str),
}

/// A request that nobody has looked at yet.
#[derive(Debug)]
pub(crate) struct Accepted {
    /// Its stream.
    pub(crate) slot: usize,
    /// Its head.
    pub(crate) head: Box<RequestHead>,
    /// Why it is answered by an error.
    pub(crate) refusal: Option<Refusal>,
    /// Its method is HEAD.
    pub(crate) is_head: bool,
    /// It asks to become a tunnel (extended CONNECT, RFC 8441), and its head says so in the words of HTTP/1.1.
    pub(crate) is_connect: bool,
}

/// The peer's announcements.
#[derive(Clone, Copy, Debug)]
struct PeerSettings {
    initial_window: u32,
    max_streams: u32,
    /// Streams may become tunnels (RFC 8441).
    takes_tunnels: bool,
    /// They have come.
    are_there: bool,
}

/// How far the end of a connection without an error is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DrainStep {
    /// None is under way.
    None,
    /// The client was asked to begin no more streams.
    Announced { until: Instant },
    /// It was told up to which stream requests are served.
    Told,
}

/// One connection, without its socket.
pub(crate) struct Session {
    side: Side,
    max_streams: u32,
    limits: FieldLimits,
    reader: FieldReader,
    encoder: Encoder,
    /// Memory for heads.
    text: Vec<u8>,
    streams: Streams,
    /// Streams that are counted for the most that may be open.
    n_open: u32,
    /// Requests that nobody has looked at.
    accepted: VecDeque<usize>,
    /// Streams that want to send, in their turn.
    queue: VecDeque<usize>,
    /// Streams that may send before those in the queue.
    n_turns: usize,
    /// Tasks that wait until they may begin a stream.
    openers: Vec<Waker>,
    /// Of the preface, until all of it has come.
    preface: &'static [u8],
    /// A field block that goes on.
    block: Option<Block>,
    peer: PeerSettings,
    /// Bytes that we may send on all streams together.
    window: i64,
    receive: ReceiveWindow,
    pool: SharedWindow,
    budget: FrameBudget,
    settings_until: Option<Instant>,
    liveness: Option<Liveness>,
    drain: DrainStep,
    failure: Option<SessionError>,
    /// The peer begins, or looks at, no more streams.
    is_over: bool,
    /// The highest id that the peer has begun.
    last_peer_id: u32,
    /// The highest of those that are served, which GOAWAY names.
    last_served_id: u32,
    /// The id of our next stream.
    next_id: u32,
    output: Vec<u8>,
    output_at: usize,
    /// Bytes that were sent in all.
    n_sent: u64,
    /// A task was woken since this was cleared, and may have more to send.
    has_woken: bool,
    driver: Option<Waker>,
    is_driver_woken: bool,
    n_reads: u64,
}

impl Session {
    /// A connection that begins now.
    pub(crate) fn new(terms: SessionTerms, now: Instant) -> Self {
        let is_server = terms.side == Side::Server;
        let mut session = Self {
            side: terms.side,
            max_streams: terms.max_streams,
            limits: terms.limits,
            reader: FieldReader::new(TABLE_BYTES, terms.limits, is_server),
            encoder: Encoder::new(),
            text: Vec::new(),
            streams: Streams::default(),
            n_open: 0,
            accepted: VecDeque::new(),
            queue: VecDeque::new(),
            n_turns: 0,
            openers: Vec::new(),
            preface: if is_server { &PREFACE[..] } else { b"" },
            block: None,
            peer: PeerSettings {
                initial_window: DEFAULT_WINDOW,
                max_streams: u32::MAX,
                takes_tunnels: false,
                are_there: false,
            },
            window: i64::from(DEFAULT_WINDOW),
            receive: ReceiveWindow::new(CONNECTION_WINDOW),
            pool: SharedWindow::default(),
            budget: FrameBudget::new(is_server, now),
            settings_until: Some(now + SETTINGS_TIMEOUT),
            liveness: terms.ping.map(|ping| Liveness::new(ping, now)),
            drain: DrainStep::None,
            failure: None,
            is_over: false,
            last_peer_id: 0,
            last_served_id: 0,
            next_id: 1,
            output: Vec::new(),
            output_at: 0,
            n_sent: 0,
            has_woken: false,
            driver: None,
            is_driver_woken: false,
            n_reads: 0,
        };
        session.write_preface();
        session
    }

    fn write_preface(&mut self) {
        let head_bytes = u32::try_from(self.limits.list_bytes).unwrap_or(u32::MAX);
        let out = &mut self.output;
        match self.side {
            Side::Server => frame::write_settings(
                &[
                    (setting::MAX_CONCURRENT_STREAMS, self.max_streams),
                    (setting::MAX_HEADER_LIST_SIZE, head_bytes),
                    (setting::ENABLE_CONNECT_PROTOCOL, 1),
                ],
                out,
            ),
            Side::Client => {
                out.extend_from_slice(PREFACE);
                frame::write_settings(
                    &[(setting::ENABLE_PUSH, 0), (setting::MAX_HEADER_LIST_SIZE, head_bytes)],
                    out,
                );
            }
        }
        frame::write_window_update(0, CONNECTION_WINDOW - DEFAULT_WINDOW, out);
    }

    // ---- streams, as their tasks use them --------------------------------------------------------------------------

    /// The next request that nobody has looked at, and whose client still wants it.
    pub(crate) fn accept(&mut self) -> Option<Accepted> {
        loop {
            let slot = self.accepted.pop_front()?;
            let stream = self.streams.at(slot);
            match stream.failure {
                None => {
                    return Some(Accepted {
                        slot,
                        head: stream.head.take().unwrap_or_default(),
                        refusal: stream.refusal,
                        is_head: stream.is_head_method,
                        is_connect: stream.is_connect,
                    });
                }
                // It is no load for any server.
                Some(StreamFailure::Refused(_)) => self.budget.reset(),
                Some(_) => {}
            }
            self.remove(slot);
        }
    }

    /// Reads what has come of a message; nothing at its end.
    ///
    /// # Errors
    /// The stream has ended before the message did, behind all that came before.
    pub(crate) fn poll_read(
        &mut self,
        slot: usize,
        cx: &Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<Result<(), StreamFailure>> {
        let stream = self.streams.at(slot);
        if stream.arrived.len() == 0 {
            if stream.peer == Half::Ended {
                return Poll::Ready(Ok(()));
            }
            if let Some(failure) = stream.failure {
                return Poll::Ready(Err(failure));
            }
            stream.wait_for(READS, cx);
            return Poll::Pending;
        }
        let n = stream.arrived.read(buf);
        if n > 0 && stream.peer != Half::Ended && stream.failure.is_none() {
            let unread = stream.arrived.len();
            let (id, credit) = (stream.id, stream.receive.take_shared(n, unread, &mut self.pool));
            if let Some(credit) = credit {
                frame::write_window_update(id, credit, &mut self.output);
                self.wake_driver();
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Bytes that have come and were not read, and memory that is kept for them.
    #[cfg(test)]
    pub(super) fn sizes(&mut self, slot: usize) -> (usize, usize) {
        let arrived = &self.streams.at(slot).arrived;
        (arrived.len(), arrived.capacity())
    }

    /// How many bytes the connection has sent, if this stream waits until others have had their turn: it moves while they do.
    pub(crate) fn turn(&mut self, slot: usize) -> Option<u64> {
        let stream = self.streams.at(slot);
        (stream.is_queued || stream.has_turn).then_some(self.n_sent)
    }

    /// Lines of the trailers, each ended by CRLF, behind a body that was read to its end.
    pub(crate) fn take_trailers(&mut self, slot: usize) -> Vec<u8> {
        std::mem::take(&mut self.streams.at(slot).trailers)
    }

    /// Ready when nobody waits for what this stream sends.
    pub(crate) fn poll_gone(&mut self, slot: usize, cx: &Context<'_>) -> Poll<()> {
        let stream = self.streams.at(slot);
        if stream.failure.is_some() {
            return Poll::Ready(());
        }
        stream.wait_for(WATCHES, cx);
        Poll::Pending
    }

    /// Its task has done with this stream; it is reset where its messages are not complete.
    pub(crate) fn release(&mut self, slot: usize) {
        let stream = self.streams.at(slot);
        let is_complete = stream.own == Half::Ended;
        if self.side == Side::Server && is_complete && !matches!(stream.failure, Some(StreamFailure::Lost(_)))
        {
            self.budget.answered();
        }
        if matches!(stream.failure, Some(StreamFailure::Refused(_))) && !is_complete {
            // It may have cost a server work (CVE-2025-8671).
            self.budget.reset();
        }
        if !stream.is_over() {
            let code = match (self.side, is_complete) {
                (Side::Client, _) => ErrorCode::CANCEL,
                // The rest of the request is of no more use (RFC 9113 section 8.1).
                (Side::Server, true) => ErrorCode::NO_ERROR,
                (Side::Server, false) => ErrorCode::INTERNAL_ERROR,
            };
            frame::write_rst_stream(stream.id, code, &mut self.output);
            stream.failure = Some(StreamFailure::Refused(code));
            self.wake_driver();
        }
        self.remove(slot);
        self.check_budget();
    }

    // ---- the connection, as its driver uses it ---------------------------------------------------------------------

    /// Has this task woken when there is something to send, and forgets that it was.
    pub(crate) fn drive(&mut self, cx: &Context<'_>) {
        self.is_driver_woken = false;
        if !self.driver.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            self.driver = Some(cx.waker().clone());
        }
    }

    /// Whether tasks were woken since this was asked: they may have something to send.
    pub(crate) fn take_woken(&mut self) -> bool {
        std::mem::take(&mut self.has_woken)
    }

    /// Bytes to send.
    pub(crate) fn output(&self) -> &[u8] {
        &self.output[self.output_at..]
    }

    /// So many bytes of it were sent.
    pub(crate) fn sent(&mut self, n: usize) {
        self.output_at += n;
        self.n_sent += n as u64;
        if self.output_at == self.output.len() {
            self.output_at = 0;
            self.output.clear();
        }
    }

    /// Something has come.
    pub(crate) fn heard(&mut self) {
        self.n_reads += 1;
    }

    /// How often something has come.
    pub(crate) fn n_reads(&self) -> u64 {
        self.n_reads
    }

    /// Gives memory back that a connection does not need while nothing passes.
    pub(crate) fn rest(&mut self) {
        if self.output.is_empty() {
            self.output = Vec::new();
        }
        if self.streams.len() == 0 {
            self.streams.rest();
            self.reader.rest();
            self.text = Vec::new();
            self.queue = VecDeque::new();
            self.accepted = VecDeque::new();
        }
    }

    /// Streams that tasks hold, or that nobody has looked at.
    pub(crate) fn n_streams(&self) -> usize {
        self.streams.len()
    }

    /// How many streams the peer allows at once, once it has said so.
    pub(crate) fn peer_max_streams(&self) -> Option<u32> {
        self.peer.are_there.then_some(self.peer.max_streams)
    }

    /// Nothing more can be begun.
    pub(crate) fn is_over(&self) -> bool {
        self.is_over || self.failure.is_some() || self.next_id > LAST_ID
    }

    /// Why it ends with an error.
    pub(crate) fn failure(&self) -> Option<SessionError> {
        self.failure
    }

    /// Nothing more passes but what is to be sent.
    pub(crate) fn is_finished(&self) -> bool {
        let is_told = self.drain == DrainStep::Told || (self.is_over && self.side == Side::Server);
        self.failure.is_some() || (is_told && self.streams.len() == 0)
    }

    /// When the next deadline of its own is.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let drain = match self.drain {
            DrainStep::Announced { until } => Some(until),
            DrainStep::None | DrainStep::Told => None,
        };
        let settings = self.settings_until.filter(|_| self.failure.is_none());
        let liveness = self.liveness.as_ref().filter(|_| self.failure.is_none()).map(Liveness::due);
        drain.into_iter().chain(settings).chain(liveness).min()
    }

    /// Acts on deadlines of its own that are over.
    pub(crate) fn check_deadlines(&mut self, now: Instant) {
        if self.settings_until.is_some_and(|until| until <= now) {
            self.fail(SessionError {
                code: ErrorCode::SETTINGS_TIMEOUT,
                text: "SETTINGS are not acknowledged",
            });
        }
        if matches!(self.drain, DrainStep::Announced { until } if until <= now) {
            self.tell_last();
        }
        let has_streams = self.streams.len() > 0;
        match self.liveness.as_mut().map(|liveness| liveness.look(self.n_reads, has_streams, now)) {
            Some(LivenessStep::Ping) => frame::write_ping(&LIVENESS_PING, false, &mut self.output),
            Some(LivenessStep::GiveUp) => {
                self.fail(SessionError { code: ErrorCode::NO_ERROR, text: "PING is not answered" });
            }
            Some(LivenessStep::None) | None => {}
        }
    }

    /// Begins no more streams, and ends with those that there are.
    pub(crate) fn close(&mut self) {
        if self.drain != DrainStep::Told && self.failure.is_none() {
            self.is_over = true;
            self.tell_last();
        }
    }

    /// Asks the client to begin no more streams, and then ends with those that it has begun.
    pub(crate) fn begin_drain(&mut self, now: Instant) {
        if self.drain == DrainStep::None && self.failure.is_none() {
            self.drain = DrainStep::Announced { until: now + DRAIN_TIMEOUT };
            frame::write_goaway(LAST_ID, ErrorCode::NO_ERROR, b"", &mut self.output);
            frame::write_ping(&DRAIN_PING, false, &mut self.output);
            self.wake_driver();
        }
    }

    fn tell_last(&mut self) {
        self.drain = DrainStep::Told;
        frame::write_goaway(self.last_served_id, ErrorCode::NO_ERROR, b"", &mut self.output);
        self.wake_driver();
    }

    /// Ends the connection with an error, and all its streams.
    pub(crate) fn fail(&mut self, e: SessionError) {
        if self.failure.is_none() {
            frame::write_goaway(self.last_served_id, e.code, e.text.as_bytes(), &mut self.output);
            self.lose(e);
        }
    }

    /// The connection has ended by itself.
    pub(crate) fn lost(&mut self, text: &'static str) {
        if self.failure.is_none() {
            self.lose(SessionError { code: ErrorCode::NO_ERROR, text });
        }
    }

    fn lose(&mut self, e: SessionError) {
        self.failure = Some(e);
        self.block = None;
        self.queue.clear();
        for (_, stream) in self.streams.iter_mut() {
            stream.is_queued = false;
            if !stream.is_over() {
                stream.failure = Some(StreamFailure::Lost(e.text));
            }
            stream.wake(READS | WRITES | WATCHES);
        }
        self.openers.drain(..).for_each(Waker::wake);
        self.wake_driver();
    }

    fn check_budget(&mut self) {
        if self.budget.is_spent() {
            self.fail(SessionError { code: ErrorCode::ENHANCE_YOUR_CALM, text: "too many control frames" });
        }
    }

    fn wake_driver(&mut self) {
        if !self.is_driver_woken
            && let Some(driver) = &self.driver
        {
            self.is_driver_woken = true;
            driver.wake_by_ref();
        }
    }

    fn wake(&mut self, slot: usize, what: u8) {
        self.has_woken |= self.streams.at(slot).wake(what);
    }

    /// Resets a stream for an error of the peer.
    fn reset(&mut self, slot: usize, code: ErrorCode) {
        let stream = self.streams.at(slot);
        if stream.failure.is_some() {
            return;
        }
        stream.failure = Some(StreamFailure::Refused(code));
        stream.arrived.clear();
        let id = stream.id;
        self.refuse(id, code);
        self.closed(slot);
    }

    /// Says that a stream is reset for an error of the peer.
    fn refuse(&mut self, id: u32, code: ErrorCode) {
        frame::write_rst_stream(id, code, &mut self.output);
        if code == ErrorCode::REFUSED_STREAM { self.budget.reset() } else { self.budget.frame() }
    }

    /// A stream may be over: it counts no more, and its task hears of it.
    fn closed(&mut self, slot: usize) {
        let stream = self.streams.at(slot);
        if stream.is_over() && std::mem::take(&mut stream.is_counted) {
            self.n_open -= 1;
            self.openers.drain(..).for_each(Waker::wake);
        }
        self.wake(slot, READS | WRITES | WATCHES);
    }

    fn remove(&mut self, slot: usize) {
        let mut stream = self.streams.remove(slot);
        stream.receive.leave(&mut self.pool);
        if stream.is_queued {
            self.queue.retain(|queued| *queued != slot);
        }
        if stream.is_counted {
            self.n_open -= 1;
            self.openers.drain(..).for_each(Waker::wake);
        }
        self.n_turns -= usize::from(stream.has_turn);
        if self.streams.len() == 0 || stream.has_turn {
            self.wake_driver();
        }
    }
}

impl SessionError {
    fn new(code: ErrorCode, text: &'static str) -> Self {
        Self { code, text }
    }
}

impl fmt::Display for SessionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text)
    }
}

impl Error for StreamFailure {}

impl From<StreamFailure> for io::Error {
    fn from(e: StreamFailure) -> Self {
        Self::new(io::ErrorKind::ConnectionReset, e)
    }
}

impl fmt::Display for StreamFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reset(code) | Self::Refused(code) => write!(f, "stream reset: {code}"),
            Self::NotAccepted => f.write_str("stream refused"),
            Self::GoneAway(code) => write!(f, "connection given up: {code}"),
            Self::NotBegun(text) | Self::Lost(text) => f.write_str(text),
        }
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("side", &self.side)
            .field("streams", &self.streams.len())
            .field("failure", &self.failure)
            .finish_non_exhaustive()
    }
}
