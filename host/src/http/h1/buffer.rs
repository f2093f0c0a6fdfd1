//! Read buffers, reused through a free list of each thread.

use std::cell::RefCell;
use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, ReadBuf};

/// Free room at the end of each buffer, for a chunk's end, the last chunk and the end of trailers.
const TAIL_ROOM: usize = 8;
/// Maximum bytes of a body in one read.
pub const BODY_BYTES: usize = 64 * 1024;
/// Maximum buffers of each size that a thread keeps for reuse.
const MAX_SPARE: usize = 128;

thread_local! {
    static SPARE_BODY: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
    static SPARE_HEAD: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// Bytes read and not yet used, at `start..end` of one allocation that never moves or grows.
#[derive(Debug, Default)]
pub struct Buffer {
    data: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Buffer {
    /// A buffer for heads of up to `bytes`. Buffers are reused by callers that pass the same number.
    pub fn for_head(bytes: usize) -> Self {
        let len = bytes + TAIL_ROOM;
        let spare = SPARE_HEAD.with_borrow_mut(Vec::pop).filter(|data| data.len() == len);
        Self { data: spare.unwrap_or_else(|| vec![0; len].into_boxed_slice()), start: 0, end: 0 }
    }

    /// A buffer of [`BODY_BYTES`].
    pub fn for_body() -> Self {
        let spare = SPARE_BODY.with_borrow_mut(Vec::pop);
        Self { data: spare.unwrap_or_else(|| vec![0; BODY_BYTES].into_boxed_slice()), start: 0, end: 0 }
    }

    /// Whether it has an allocation; the default has none.
    pub fn is_allocated(&self) -> bool {
        !self.data.is_empty()
    }

    /// Bytes read and not used.
    pub fn bytes(&self) -> &[u8] {
        &self.data[self.start..self.end]
    }

    /// Where [`Buffer::bytes`] lies in [`Buffer::all`].
    pub fn range(&self) -> Range<usize> {
        self.start..self.end
    }

    /// The whole allocation; spans of a parsed head are positions in this.
    pub fn all(&self) -> &[u8] {
        &self.data
    }

    /// The whole allocation.
    pub fn all_mut(&mut self) -> &mut [u8] {
        &mut self.data
    }

    /// Bytes waiting.
    pub fn len(&self) -> usize {
        self.end - self.start
    }

    /// Whether no bytes are waiting.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Room behind the bytes read.
    pub fn room(&self) -> usize {
        (self.data.len().saturating_sub(TAIL_ROOM)).saturating_sub(self.end)
    }

    /// Sets the begin of [`Buffer::range`] back, to use consumed bytes again. Only before the next read.
    pub fn rewind(&mut self, start: usize) {
        debug_assert!(start <= self.start);
        self.start = start;
    }

    /// Consumes `n` bytes.
    ///
    /// # Panics
    /// In debug builds, if there are fewer.
    pub fn consume(&mut self, n: usize) {
        debug_assert!(n <= self.len());
        self.start += n;
    }

    /// Drops all bytes; the next read goes to `offset`.
    pub fn restart_at(&mut self, offset: usize) {
        self.start = offset;
        self.end = offset;
    }

    /// Moves the waiting bytes to the front. Not while spans of this buffer are in use.
    pub fn compact(&mut self) {
        if self.start > 0 {
            self.data.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
    }

    /// Makes room for the rest of a head of up to `bytes`: moves its begin to the front, or into a larger buffer. Not while
    /// spans of this buffer are in use.
    pub fn make_room(&mut self, bytes: usize) {
        if self.start > 0 {
            self.compact();
        } else if self.data.len() < bytes + TAIL_ROOM {
            let mut larger = Self::for_head(bytes);
            larger.append(self.bytes());
            *self = larger;
        }
    }

    /// Appends as many of these bytes as fit, and returns their number.
    pub fn append(&mut self, bytes: &[u8]) -> usize {
        let n = bytes.len().min(self.room());
        self.data[self.end..self.end + n].copy_from_slice(&bytes[..n]);
        self.end += n;
        n
    }

    /// Reads at most `limit` bytes; 0 is the end of the stream. The buffer must have room.
    ///
    /// # Errors
    /// As the stream's.
    pub fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut (impl AsyncRead + Unpin),
        limit: usize,
    ) -> Poll<io::Result<usize>> {
        let n = self.room().min(limit);
        debug_assert!(n > 0, "no room to read into");
        let mut target = ReadBuf::new(&mut self.data[self.end..self.end + n]);
        match Pin::new(stream).poll_read(cx, &mut target) {
            Poll::Ready(Ok(())) => {
                let n = target.filled().len();
                self.end += n;
                Poll::Ready(Ok(n))
            }
            Poll::Ready(Err(e)) => Poll::Ready(Err(e)),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let data = std::mem::take(&mut self.data);
        if data.is_empty() {
            return;
        }
        let spare = if data.len() == BODY_BYTES { &SPARE_BODY } else { &SPARE_HEAD };
        // The list is gone while its thread ends; then the buffer is freed.
        let _ = spare.try_with(|spare| {
            if let Ok(mut spare) = spare.try_borrow_mut()
                && spare.len() < MAX_SPARE
            {
                spare.push(data);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_room_for_a_chunk_end() {
        let mut buffer = Buffer::for_head(100);
        assert_eq!(buffer.append(&[b'x'; 200]), 100);
        assert_eq!(buffer.room(), 0);
        assert_eq!(buffer.all().len(), 100 + TAIL_ROOM);
    }

    #[test]
    fn compacts_to_the_front() {
        let mut buffer = Buffer::for_head(100);
        buffer.append(b"abcdef");
        buffer.consume(4);
        buffer.compact();
        assert_eq!((buffer.bytes(), buffer.range()), (&b"ef"[..], 0..2));
    }

    #[test]
    fn is_reused_on_its_thread() {
        let buffer = Buffer::for_body();
        let first = buffer.all().as_ptr();
        drop(buffer);
        assert_eq!(Buffer::for_body().all().as_ptr(), first);
    }
}
