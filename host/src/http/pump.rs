//! Moves one message from one connection to another: its head, then its body as it arrives.

use std::io::{self, Write as _};
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use crate::http::h1::body::{BodyReader, Encoding, HEAD_ROOM, Piece, frame};
use crate::http::h1::buffer::{BODY_BYTES, Buffer};
use crate::http::h1::head::Framing;
use crate::http::headers::rules::Rules;
use crate::http::pipe::Pipe;
use crate::http::stream::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Data up to this size is copied behind the head, which costs less than a second system call.
const JOIN_BYTES: usize = 16 * 1024;
/// Bodies with at least this much left are spliced. Two more system calls and a pipe cost about as much as copying 16 KiB.
const SPLICE_BYTES: u64 = 32 * 1024;

/// One direction of an exchange.
#[derive(Debug)]
pub struct Pump {
    /// Sent first.
    head: Vec<u8>,
    head_at: usize,
    body: BodyReader,
    encoding: Encoding,
    /// Range of the buffer to send.
    pending: Range<usize>,
    /// Sent last: the last chunk with trailers.
    tail: Vec<u8>,
    tail_at: usize,
    /// Carries the rest of the body.
    pipe: Option<Pipe>,
    may_splice: bool,
    /// Trailers of a body without a framing of its own.
    trailers: Vec<u8>,
    trailer_rules: Option<Arc<Rules>>,
    ends_apart: bool,
    /// The receiver knows that the message is complete.
    is_finished: bool,
    kept: Option<Box<Kept>>,
    /// Bytes of the body, without framing.
    pub body_bytes: u64,
    /// Bytes written.
    pub sent: u64,
    /// Bytes read from the source by this pump.
    pub received: u64,
    max_body_bytes: u64,
    /// Whether any byte moved since this was last cleared.
    pub progressed: bool,
    /// Whether the source was read into the buffer, so that earlier bytes of it may be overwritten.
    pub has_read: bool,
    /// Whether the last poll waits for the receiver, not for the source.
    pub waits_for_sink: bool,
}

/// How a message is moved.
#[derive(Debug)]
pub struct PumpTerms {
    /// How the source frames the body.
    pub framing: Framing,
    /// How the receiver gets it.
    pub encoding: Encoding,
    /// The end of the source's stream is awaited, even where the body says by itself that it is complete: trailers come with
    /// it, and dropping a stream of HTTP/2 earlier would cancel it.
    pub ends_apart: bool,
    /// Trailers that these rules remove are not passed on.
    pub trailer_rules: Option<Arc<Rules>>,
    /// Largest body.
    pub max_body_bytes: u64,
    /// Keep what is taken of the body, up to so many bytes, so that it can be sent again.
    pub keep_bytes: Option<usize>,
}

/// The part of a body that was read, kept to be sent again.
#[derive(Debug)]
struct Kept {
    data: Vec<u8>,
    trailers: Vec<u8>,
    limit: usize,
}

/// A body that was partly or wholly taken from its source: the bytes taken, and how the rest is read.
#[derive(Debug)]
pub struct Rest {
    kept: Box<Kept>,
    body: BodyReader,
    body_bytes: u64,
}

/// Why moving a message failed.
#[derive(Debug)]
pub enum PumpError {
    /// The source failed.
    SourceFailed(io::Error),
    /// The source ended before the message did.
    SourceEnded,
    /// The message is not well formed.
    Malformed(&'static str),
    /// The body exceeds its limit.
    TooLarge,
    /// The receiver failed.
    SinkFailed(io::Error),
}

impl PumpTerms {
    /// Without trailers to wait for, rules, limit or copy.
    pub fn new(framing: Framing, encoding: Encoding) -> Self {
        Self {
            framing,
            encoding,
            ends_apart: false,
            trailer_rules: None,
            max_body_bytes: u64::MAX,
            keep_bytes: None,
        }
    }
}

impl Rest {
    /// Whether the whole body was taken from its source.
    pub fn is_whole(&self) -> bool {
        self.body.is_done()
    }
}

impl Pump {
    /// For a request with this head, written anew.
    pub fn new(head: Vec<u8>, terms: PumpTerms) -> Self {
        let body = BodyReader::new(terms.framing);
        Self::of(head, body, terms)
    }

    /// For a response with this head. Its framing is read less strictly than a request's.
    pub fn of_response(head: Vec<u8>, terms: PumpTerms) -> Self {
        let body = BodyReader::of_response(terms.framing);
        Self::of(head, body, terms)
    }

    /// For a message that was sent before, as far as its body had come.
    pub fn again(mut head: Vec<u8>, rest: Rest, terms: PumpTerms) -> Self {
        let Rest { kept, body, body_bytes } = rest;
        let mut trailers = Vec::new();
        match terms.encoding {
            Encoding::Identity => {
                head.extend_from_slice(&kept.data);
                trailers.clone_from(&kept.trailers);
            }
            Encoding::Chunked => {
                if !kept.data.is_empty() {
                    // Writing to a vector cannot fail.
                    let _ = write!(head, "{:x}\r\n", kept.data.len());
                    head.extend_from_slice(&kept.data);
                    head.extend_from_slice(b"\r\n");
                }
                if body.is_done() {
                    head.extend_from_slice(b"0\r\n");
                    head.extend_from_slice(&kept.trailers);
                    head.extend_from_slice(b"\r\n");
                }
            }
        }
        let pump = Self::of(head, body, PumpTerms { keep_bytes: None, ..terms });
        Self { trailers, body_bytes, may_splice: false, kept: Some(kept), ..pump }
    }

    fn of(head: Vec<u8>, body: BodyReader, terms: PumpTerms) -> Self {
        // A body that is known to be longer cannot be kept whole.
        let is_longer = |limit: usize| matches!(body, BodyReader::Length(n) if n > limit as u64);
        let limit = terms.keep_bytes.filter(|limit| !is_longer(*limit));
        let kept = limit.map(|limit| Box::new(Kept { data: Vec::new(), trailers: Vec::new(), limit }));
        Self {
            head,
            head_at: 0,
            body,
            encoding: terms.encoding,
            pending: 0..0,
            tail: Vec::new(),
            tail_at: 0,
            trailers: Vec::new(),
            trailer_rules: terms.trailer_rules,
            ends_apart: terms.ends_apart,
            is_finished: false,
            pipe: None,
            may_splice: kept.is_none(),
            kept,
            body_bytes: 0,
            sent: 0,
            received: 0,
            max_body_bytes: terms.max_body_bytes,
            progressed: false,
            has_read: false,
            waits_for_sink: false,
        }
    }

    /// Whether what was taken of the body can be sent again.
    pub fn is_kept(&self) -> bool {
        self.kept.is_some()
    }

    /// Takes what is needed to send the body again; `None` if it was not kept or was too long. The pump moves nothing more.
    pub fn take_rest(&mut self) -> Option<Rest> {
        let kept = self.kept.take()?;
        let body = std::mem::replace(&mut self.body, BodyReader::Done);
        Some(Rest { kept, body, body_bytes: self.body_bytes })
    }

    /// Whether everything was sent.
    pub fn is_done(&self) -> bool {
        let is_told = self.is_finished || !self.ends_apart;
        self.body.is_done() && !self.has_output() && self.pipe.is_none() && is_told
    }

    /// The head's memory, for reuse.
    pub fn into_memory(mut self) -> Vec<u8> {
        self.head.clear();
        self.head
    }

    /// Moves what it can; ready when the message is sent. `buffer` holds bytes of the source behind the head.
    ///
    /// # Errors
    /// See [`PumpError`]. The pump moves nothing more.
    pub fn poll(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut Stream,
        buffer: &mut Buffer,
        sink: &mut Stream,
    ) -> Poll<Result<(), PumpError>> {
        loop {
            // The first bytes of the body are joined to the head.
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
                if !self.is_finished {
                    if self.ends_apart {
                        ready!(self.poll_end(cx, source))?;
                    }
                    self.is_finished = true;
                    sink.finish(&self.trailers);
                }
                return Poll::Ready(Ok(()));
            }
            if buffer.is_empty() {
                let sockets = source.plain().zip(sink.plain());
                ready!(match sockets.and_then(|sockets| Some((sockets, self.rest_to_splice()?))) {
                    Some(((source, sink), left)) => self.poll_splice(cx, source, sink, left),
                    None => self.poll_read(cx, source, buffer),
                })?;
            }
        }
    }

    /// Bytes of the body that remain, if they can be spliced.
    fn rest_to_splice(&mut self) -> Option<u64> {
        match self.body {
            BodyReader::Length(left) if self.pipe.is_some() => Some(left),
            BodyReader::Length(left) if left >= SPLICE_BYTES && self.may_splice => {
                self.pipe = Pipe::lend();
                self.may_splice = self.pipe.is_some();
                self.pipe.as_ref().map(|_| left)
            }
            _ => None,
        }
    }

    fn poll_splice(
        &mut self,
        cx: &mut Context<'_>,
        source: &TcpStream,
        sink: &TcpStream,
        mut left: u64,
    ) -> Poll<Result<(), PumpError>> {
        let Some(pipe) = &mut self.pipe else { return Poll::Ready(Ok(())) };
        loop {
            while pipe.filled() > 0 {
                self.waits_for_sink = true;
                let n = ready!(pipe.poll_drain(cx, sink)).map_err(PumpError::SinkFailed)?;
                self.waits_for_sink = false;
                self.sent += n as u64;
                self.progressed = true;
            }
            if left == 0 {
                self.body = BodyReader::Done;
                if let Some(pipe) = self.pipe.take() {
                    pipe.give_back();
                }
                return Poll::Ready(Ok(()));
            }
            let limit = usize::try_from(left).unwrap_or(usize::MAX);
            match ready!(pipe.poll_fill(cx, source, limit)) {
                Ok(0) => return Poll::Ready(Err(PumpError::SourceEnded)),
                Ok(n) => {
                    left -= n as u64;
                    self.body = BodyReader::Length(left);
                    self.body_bytes += n as u64;
                    self.received += n as u64;
                    self.progressed = true;
                    self.has_read = true;
                }
                Err(e) if e.kind() == io::ErrorKind::InvalidInput => {
                    // These two cannot be spliced, so the body is copied.
                    self.may_splice = false;
                    self.pipe = None;
                    return Poll::Ready(Ok(()));
                }
                Err(e) => return Poll::Ready(Err(PumpError::SourceFailed(e))),
            }
        }
    }

    /// Reads and drops the rest of the message; ready at its end, or after `limit` bytes.
    ///
    /// # Errors
    /// As [`PumpError`] says.
    pub fn poll_discard(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut Stream,
        buffer: &mut Buffer,
        limit: u64,
    ) -> Poll<Result<(), PumpError>> {
        // With the bytes in it, which may be the last of the body.
        self.pipe = None;
        if matches!(self.body, BodyReader::Length(0)) {
            self.body = BodyReader::Done;
        }
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
        sink: &mut Stream,
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
        Pin::new(sink).poll_flush(cx).map_err(PumpError::SinkFailed)
    }

    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut Stream,
        buffer: &mut Buffer,
    ) -> Poll<Result<(), PumpError>> {
        let limit = match &self.body {
            // A read may go beyond the chunks into the next request, which must fit into a buffer for heads.
            BodyReader::Chunked(_) => self.chunked_read_bytes(buffer),
            body => body.read_limit(),
        };
        if limit > buffer.all().len() && buffer.all().len() < BODY_BYTES {
            *buffer = Buffer::for_body();
        }
        buffer.restart_at(HEAD_ROOM);
        self.has_read = true;
        match ready!(buffer.poll_fill(cx, source, limit)) {
            Ok(0) if matches!(self.body, BodyReader::UntilClose) => {
                self.body = BodyReader::Done;
                let trailers = self.ruled(source.trailers());
                if let Some(kept) = &mut self.kept {
                    kept.trailers.extend_from_slice(&trailers);
                }
                self.end_with(trailers);
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
        let trailers = self.ruled(trailers);
        if let Some(kept) = &mut self.kept {
            kept.trailers.extend_from_slice(&trailers);
            if kept.data.len() + data.len() > kept.limit {
                self.kept = None;
                self.may_splice = true;
            } else {
                kept.data.extend_from_slice(&buffer.all()[data.clone()]);
            }
        }
        let piece = Piece { data, raw_end, last };
        self.pending = match self.encoding {
            Encoding::Identity => piece.data,
            Encoding::Chunked => frame(buffer.all_mut(), &piece, last && trailers.is_empty()),
        };
        if !trailers.is_empty() {
            self.end_with(trailers);
        }
        Ok(())
    }

    /// Awaits the end of a stream whose body is complete.
    fn poll_end(&mut self, cx: &mut Context<'_>, source: &mut Stream) -> Poll<Result<(), PumpError>> {
        self.has_read = true;
        let mut byte = [0];
        let mut target = ReadBuf::new(&mut byte);
        ready!(Pin::new(&mut *source).poll_read(cx, &mut target)).map_err(PumpError::SourceFailed)?;
        if !target.filled().is_empty() {
            return Poll::Ready(Err(PumpError::Malformed("more body than its length")));
        }
        let trailers = self.ruled(source.trailers());
        if !trailers.is_empty() && self.encoding == Encoding::Identity {
            self.trailers = trailers;
        }
        Poll::Ready(Ok(()))
    }

    fn ruled(&self, trailers: Vec<u8>) -> Vec<u8> {
        match &self.trailer_rules {
            Some(rules) if !trailers.is_empty() => rules.strip(&trailers),
            _ => trailers,
        }
    }

    fn end_with(&mut self, trailers: Vec<u8>) {
        match self.encoding {
            Encoding::Chunked => {
                self.tail.extend_from_slice(b"0\r\n");
                self.tail.extend_from_slice(&trailers);
                self.tail.extend_from_slice(b"\r\n");
            }
            Encoding::Identity => self.trailers = trailers,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    async fn connected() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let connect = TcpStream::connect(listener.local_addr().expect("bound"));
        let (client, accepted) = tokio::join!(connect, listener.accept());
        (client.expect("connected"), accepted.expect("accepted").0)
    }

    /// The server answered before it had taken the last of the request, which was in the pipe: nothing was left to be
    /// read, and the pump tried to read it.
    #[tokio::test]
    async fn discards_what_is_left_in_the_pipe() {
        const BODY: usize = 40_000;
        let (mut client, source) = connected().await;
        let (sink, _server) = connected().await;
        // Until it takes no more.
        sink.writable().await.expect("connected");
        while sink.try_write(&[0; 65_536]).is_ok() {}
        client.write_all(&[b'x'; BODY]).await.expect("sent");
        let mut buffer = Buffer::for_head(100);
        let mut pump =
            Pump::new(Vec::new(), PumpTerms::new(Framing::Length(BODY as u64), Encoding::Identity));
        source.readable().await.expect("connected");
        let (mut source, mut sink) = (Stream::from(source), Stream::from(sink));
        let polled = poll_fn(|cx| Poll::Ready(pump.poll(cx, &mut source, &mut buffer, &mut sink))).await;
        assert!(polled.is_pending() && pump.received == BODY as u64, "{pump:?}");
        let discarded = poll_fn(|cx| pump.poll_discard(cx, &mut source, &mut buffer, 1 << 20)).await;
        assert!(discarded.is_ok() && pump.is_done(), "{discarded:?}");
    }

    /// Has a pump take `sent` from its source, in one read, and gives up on the sink.
    async fn interrupted(pump: &mut Pump, sent: &[u8]) {
        let (mut client, source) = connected().await;
        let (sink, _server) = connected().await;
        client.write_all(sent).await.expect("sent");
        source.readable().await.expect("connected");
        let (mut source, mut sink) = (Stream::from(source), Stream::from(sink));
        let mut buffer = Buffer::for_head(100);
        let _ = poll_fn(|cx| Poll::Ready(pump.poll(cx, &mut source, &mut buffer, &mut sink))).await;
    }

    /// The output of a pump whose source sends this and ends.
    async fn sent_by(mut pump: Pump, source: &[u8]) -> String {
        let (mut client, from) = connected().await;
        let (sink, mut server) = connected().await;
        let (mut from, mut sink) = (Stream::from(from), Stream::from(sink));
        client.write_all(source).await.expect("sent");
        let mut buffer = Buffer::for_head(100);
        poll_fn(|cx| pump.poll(cx, &mut from, &mut buffer, &mut sink)).await.expect("moved");
        drop(sink);
        let mut received = String::new();
        tokio::io::AsyncReadExt::read_to_string(&mut server, &mut received).await.expect("text");
        received
    }

    #[tokio::test]
    async fn sends_what_it_kept_again_and_goes_on_with_the_rest() {
        let terms =
            PumpTerms { keep_bytes: Some(10), ..PumpTerms::new(Framing::Length(10), Encoding::Identity) };
        let mut pump = Pump::new(b"head ".to_vec(), terms);
        interrupted(&mut pump, b"01234").await;
        let rest = pump.take_rest().expect("kept");
        assert!(!rest.is_whole());
        let again = Pump::again(b"again ".to_vec(), rest, PumpTerms::new(Framing::None, Encoding::Identity));
        assert_eq!(sent_by(again, b"56789").await, "again 0123456789");
    }

    #[tokio::test]
    async fn sends_chunks_and_trailers_again() {
        let terms =
            PumpTerms { keep_bytes: Some(100), ..PumpTerms::new(Framing::Chunked, Encoding::Chunked) };
        let mut pump = Pump::new(Vec::new(), terms);
        interrupted(&mut pump, b"3\r\nabc\r\n2\r\nde\r\n0\r\nX: y\r\n\r\n").await;
        let rest = pump.take_rest().expect("kept");
        assert!(rest.is_whole());
        let again = Pump::again(Vec::new(), rest, PumpTerms::new(Framing::None, Encoding::Chunked));
        assert_eq!(sent_by(again, b"").await, "5\r\nabcde\r\n0\r\nX: y\r\n\r\n");
    }

    #[tokio::test]
    async fn goes_on_with_chunks_where_it_was_interrupted() {
        let terms =
            PumpTerms { keep_bytes: Some(100), ..PumpTerms::new(Framing::Chunked, Encoding::Chunked) };
        let mut pump = Pump::new(Vec::new(), terms);
        interrupted(&mut pump, b"3\r\nabc\r\n4\r\nde").await;
        let again = Pump::again(
            Vec::new(),
            pump.take_rest().expect("kept"),
            PumpTerms::new(Framing::None, Encoding::Chunked),
        );
        assert_eq!(sent_by(again, b"fg\r\n0\r\n\r\n").await, "5\r\nabcde\r\n2\r\nfg\r\n0\r\n\r\n");
    }

    #[tokio::test]
    async fn keeps_no_more_than_it_was_told() {
        let terms =
            PumpTerms { keep_bytes: Some(10), ..PumpTerms::new(Framing::Length(11), Encoding::Identity) };
        let mut long = Pump::new(Vec::new(), terms);
        assert!(long.take_rest().is_none(), "it is known beforehand");
        let terms = PumpTerms { keep_bytes: Some(10), ..PumpTerms::new(Framing::Chunked, Encoding::Chunked) };
        let mut pump = Pump::new(Vec::new(), terms);
        interrupted(&mut pump, b"b\r\n01234567890\r\n").await;
        assert!(pump.take_rest().is_none());
    }
}
