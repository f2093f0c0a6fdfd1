//! Moves one message from one connection to another: what is to be sent first (its head), then its body, as it comes.

use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;
use tokio::net::TcpStream;

use super::body::{BodyReader, Encoding, HEAD_ROOM, Piece, frame};
use super::buffer::{BODY_BYTES, Buffer};
use super::head::Framing;

/// Data up to this size is sent in one piece with the head; copying it costs less than a second system call.
const JOIN_BYTES: usize = 16 * 1024;

/// One direction of an exchange.
#[derive(Debug)]
pub struct Pump {
    /// Sent first.
    head: Vec<u8>,
    head_at: usize,
    body: BodyReader,
    encoding: Encoding,
    /// What of the buffer is to be sent.
    pending: Range<usize>,
    /// Sent last: trailers, or the last chunk where it did not fit behind the data.
    tail: Vec<u8>,
    tail_at: usize,
    /// Bytes of the body, without framing.
    pub body_bytes: u64,
    /// Bytes written.
    pub sent: u64,
    /// Bytes read from the source by this pump.
    pub received: u64,
    /// The body may have this many bytes.
    pub max_body_bytes: u64,
    /// Whether anything moved since this was last cleared.
    pub progressed: bool,
    /// Whether the buffer was read into, so that what was taken from it is gone.
    pub refilled: bool,
    /// Whether the last poll was left waiting for the receiver, not for the source.
    pub waits_for_sink: bool,
}

/// Why a message could not be moved to its end.
#[derive(Debug)]
pub enum PumpError {
    /// The source failed.
    SourceFailed(io::Error),
    /// The source ended before the message did.
    SourceEnded,
    /// The message is not well formed.
    Malformed(&'static str),
    /// The body is over its limit.
    TooLarge,
    /// The receiver failed.
    SinkFailed(io::Error),
}

impl Pump {
    /// For a message whose head is `head`, written anew, and whose body comes as `framing` says and goes as `encoding`.
    pub fn new(head: Vec<u8>, framing: Framing, encoding: Encoding) -> Self {
        Self {
            head,
            head_at: 0,
            body: BodyReader::new(framing),
            encoding,
            pending: 0..0,
            tail: Vec::new(),
            tail_at: 0,
            body_bytes: 0,
            sent: 0,
            received: 0,
            max_body_bytes: u64::MAX,
            progressed: false,
            refilled: false,
            waits_for_sink: false,
        }
    }

    /// Whether everything was sent.
    pub fn is_done(&self) -> bool {
        self.body.is_done() && !self.has_output()
    }

    /// The head's memory, for reuse.
    pub fn into_memory(mut self) -> Vec<u8> {
        self.head.clear();
        self.head
    }

    /// Moves what can be moved; ready when all is sent. `buffer` holds what was read of the source beyond the head.
    ///
    /// # Errors
    /// As [`PumpError`] says. Nothing more can be moved then.
    pub fn poll(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut TcpStream,
        buffer: &mut Buffer,
        sink: &mut TcpStream,
    ) -> Poll<Result<(), PumpError>> {
        loop {
            // Joined to the head: what is there of the body when the message begins.
            if self.pending.is_empty() && !self.body.is_done() && !buffer.is_empty() && self.tail.is_empty() {
                self.take(buffer)?;
                if self.head_at < self.head.len() && self.pending.len() <= JOIN_BYTES {
                    self.head.extend_from_slice(&buffer.all()[std::mem::take(&mut self.pending)]);
                }
            }
            self.waits_for_sink = true;
            ready!(self.poll_flush(cx, buffer, sink))?;
            self.waits_for_sink = false;
            if self.body.is_done() {
                return Poll::Ready(Ok(()));
            }
            if buffer.is_empty() {
                ready!(self.poll_read(cx, source, buffer))?;
            }
        }
    }

    /// Reads and forgets what is left of the message; ready at its end, or after `limit` bytes.
    ///
    /// # Errors
    /// As [`PumpError`] says.
    pub fn poll_discard(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut TcpStream,
        buffer: &mut Buffer,
        limit: u64,
    ) -> Poll<Result<(), PumpError>> {
        while !self.body.is_done() {
            if self.body_bytes > limit {
                return Poll::Ready(Err(PumpError::TooLarge));
            }
            if buffer.is_empty() {
                ready!(self.poll_read(cx, source, buffer))?;
            }
            self.take(buffer)?;
            self.pending = 0..0;
            self.tail.clear();
        }
        Poll::Ready(Ok(()))
    }

    fn has_output(&self) -> bool {
        self.head_at < self.head.len() || !self.pending.is_empty() || self.tail_at < self.tail.len()
    }

    fn poll_flush(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &Buffer,
        sink: &mut TcpStream,
    ) -> Poll<Result<(), PumpError>> {
        while self.has_output() {
            let parts =
                [&self.head[self.head_at..], &buffer.all()[self.pending.clone()], &self.tail[self.tail_at..]];
            let written = match parts {
                [head, [], []] => Pin::new(&mut *sink).poll_write(cx, head),
                [[], data, []] => Pin::new(&mut *sink).poll_write(cx, data),
                _ => Pin::new(&mut *sink).poll_write_vectored(cx, &parts.map(io::IoSlice::new)),
            };
            let mut n = match ready!(written) {
                Ok(0) => return Poll::Ready(Err(PumpError::SinkFailed(io::ErrorKind::WriteZero.into()))),
                Ok(n) => n,
                Err(e) => return Poll::Ready(Err(PumpError::SinkFailed(e))),
            };
            self.sent += n as u64;
            self.progressed = true;
            let mut used = |available: usize| {
                let taken = n.min(available);
                n -= taken;
                taken
            };
            self.head_at += used(self.head.len() - self.head_at);
            self.pending.start += used(self.pending.len());
            self.tail_at += used(self.tail.len() - self.tail_at);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut TcpStream,
        buffer: &mut Buffer,
    ) -> Poll<Result<(), PumpError>> {
        let limit = match &self.body {
            // What follows chunks in one read may be the next request, which has to fit where heads are read.
            BodyReader::Chunked(_) => self.chunked_read_bytes(buffer),
            body => body.read_limit(),
        };
        if limit > buffer.all().len() && buffer.all().len() < BODY_BYTES {
            *buffer = Buffer::for_body();
        }
        buffer.restart_at(HEAD_ROOM);
        self.refilled = true;
        match ready!(buffer.poll_fill(cx, source, limit)) {
            Ok(0) if matches!(self.body, BodyReader::UntilClose) => {
                self.body = BodyReader::Done;
                if self.encoding == Encoding::Chunked {
                    self.tail.extend_from_slice(b"0\r\n\r\n");
                }
                Poll::Ready(Ok(()))
            }
            Ok(0) => Poll::Ready(Err(PumpError::SourceEnded)),
            Ok(n) => {
                self.received += n as u64;
                self.progressed = true;
                Poll::Ready(Ok(()))
            }
            Err(e) => Poll::Ready(Err(PumpError::SourceFailed(e))),
        }
    }

    fn chunked_read_bytes(&self, buffer: &Buffer) -> usize {
        buffer.all().len() - HEAD_ROOM
    }

    fn take(&mut self, buffer: &mut Buffer) -> Result<(), PumpError> {
        let Piece { data, raw_end, last } =
            self.body.take(buffer).map_err(|bad| PumpError::Malformed(bad.0))?;
        self.body_bytes += data.len() as u64;
        if self.body_bytes > self.max_body_bytes {
            return Err(PumpError::TooLarge);
        }
        let trailers =
            if last { self.body.finish().map_err(|bad| PumpError::Malformed(bad.0))? } else { Vec::new() };
        let piece = Piece { data, raw_end, last };
        self.pending = match self.encoding {
            Encoding::Identity => piece.data,
            Encoding::Chunked => frame(buffer.all_mut(), &piece, last && trailers.is_empty()),
        };
        if self.encoding == Encoding::Chunked && !trailers.is_empty() {
            self.tail.extend_from_slice(b"0\r\n");
            self.tail.extend_from_slice(&trailers);
            self.tail.extend_from_slice(b"\r\n");
        }
        Ok(())
    }
}
