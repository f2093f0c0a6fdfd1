//! The body of a request or a response, as far as it has come and was not read yet.
//!
//! `h2` keeps each DATA frame apart, at some 250 bytes for one of one byte, and ends a client's connection that makes it keep too
//! many. So what has come is taken from it at once, whatever the request waits for, and small frames are joined here: a stream
//! costs its window at most, and no number of small messages ends a connection.

use std::collections::VecDeque;
use std::io;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use h2::RecvStream;
use tokio::io::ReadBuf;

use super::io_error;

/// Frames below this are copied.
const SMALL: usize = 1024;
/// Memory for small frames that is kept while there are none.
const KEPT: usize = 4 * 1024;

#[derive(Debug)]
pub(super) struct Inbox {
    /// What is still to come.
    pub(super) body: RecvStream,
    chunks: VecDeque<Bytes>,
    /// Small frames that came behind all chunks.
    joined: BytesMut,
}

impl Inbox {
    pub(super) fn new(body: RecvStream) -> Self {
        Self { body, chunks: VecDeque::new(), joined: BytesMut::new() }
    }

    /// Takes in what has come, and has this task woken when more does. The peer gets no credit for it until it is read.
    pub(super) fn absorb(&mut self, cx: &mut Context<'_>) {
        // That the stream has failed is said again to whoever reads.
        while let Poll::Ready(Some(Ok(data))) = self.body.poll_data(cx) {
            self.push(data);
        }
    }

    fn push(&mut self, data: Bytes) {
        if data.len() < SMALL {
            self.joined.extend_from_slice(&data);
            return;
        }
        if !self.joined.is_empty() {
            self.chunks.push_back(self.joined.split().freeze());
        }
        self.chunks.push_back(data);
    }

    /// Reads of it, in the order in which it came; nothing where it has ended.
    ///
    /// # Errors
    /// The stream's, behind all that came before.
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let n = if self.chunks.is_empty() && self.joined.is_empty() {
            match ready!(self.poll_data(cx)) {
                Some(Ok(data)) => self.pass(data, buf),
                Some(Err(e)) => return Poll::Ready(Err(io_error(e))),
                None => return Poll::Ready(Ok(())),
            }
        } else {
            self.take(buf)
        };
        // Fails only where the stream is gone, which the next read says.
        let _ = self.body.flow_control().release_capacity(n);
        Poll::Ready(Ok(()))
    }

    /// Never empty: that would be taken for the end.
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, h2::Error>>> {
        loop {
            match ready!(self.body.poll_data(cx)) {
                Some(Ok(data)) if data.is_empty() => {}
                data => return Poll::Ready(data),
            }
        }
    }

    /// Reads of what has just come, with nothing before it. Most often that is all of it, and needs no memory here.
    fn pass(&mut self, mut data: Bytes, buf: &mut ReadBuf<'_>) -> usize {
        let n = data.len().min(buf.remaining());
        buf.put_slice(&data[..n]);
        data.advance(n);
        if !data.is_empty() {
            self.push(data);
        }
        n
    }

    /// Bytes that have come and were not read, and memory that is kept for them.
    #[cfg(test)]
    pub(super) fn sizes(&self) -> (usize, usize) {
        let n_bytes = self.chunks.iter().map(Bytes::len).sum::<usize>() + self.joined.len();
        // A chunk keeps its frame, of at least this much.
        let chunks = self.chunks.iter().map(|chunk| chunk.len().max(SMALL)).sum::<usize>();
        (n_bytes, chunks + self.chunks.capacity() * size_of::<Bytes>() + self.joined.capacity())
    }

    fn take(&mut self, buf: &mut ReadBuf<'_>) -> usize {
        if let Some(first) = self.chunks.front_mut() {
            let n = first.len().min(buf.remaining());
            buf.put_slice(&first[..n]);
            first.advance(n);
            if first.is_empty() {
                self.chunks.pop_front();
            }
            return n;
        }
        let n = self.joined.len().min(buf.remaining());
        buf.put_slice(&self.joined[..n]);
        self.joined.advance(n);
        if self.joined.is_empty() && self.joined.capacity() > KEPT {
            self.joined = BytesMut::new();
        }
        n
    }
}
