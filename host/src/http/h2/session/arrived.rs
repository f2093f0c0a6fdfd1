//! Bytes of a message that have come and were not read yet, however small their frames were.

use tokio::io::ReadBuf;

/// Memory that is kept while all was read.
const KEPT: usize = 16 << 10;

/// Bytes of a message: for a response the text of its heads, then its body.
#[derive(Debug, Default)]
pub(super) struct Arrived {
    bytes: Vec<u8>,
    at: usize,
    /// The first bytes are heads, which no window counts.
    n_uncounted: usize,
}

impl Arrived {
    /// Bytes that were not read.
    pub(super) fn len(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// Appends bytes of the body.
    pub(super) fn push(&mut self, data: &[u8]) {
        // Moves what is left to the front rather than into more memory.
        if self.at > 0 && self.bytes.len() + data.len() > self.bytes.capacity() {
            self.bytes.drain(..self.at);
            self.at = 0;
        }
        self.bytes.extend_from_slice(data);
    }

    /// Appends a head, before any byte of the body has come.
    pub(super) fn push_head(&mut self, text: &[u8]) {
        self.push(text);
        self.n_uncounted += text.len();
    }

    /// Reads, and returns how many bytes of the body that took.
    pub(super) fn read(&mut self, buf: &mut ReadBuf<'_>) -> usize {
        let n = self.len().min(buf.remaining());
        buf.put_slice(&self.bytes[self.at..self.at + n]);
        self.at += n;
        if self.at == self.bytes.len() {
            self.at = 0;
            self.bytes.clear();
            if self.bytes.capacity() > KEPT {
                self.bytes = Vec::new();
            }
        }
        let uncounted = n.min(self.n_uncounted);
        self.n_uncounted -= uncounted;
        n - uncounted
    }

    /// Drops all that was not read.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.bytes.capacity()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(arrived: &mut Arrived, n: usize) -> (usize, Vec<u8>) {
        let mut memory = vec![0; n];
        let mut buf = ReadBuf::new(&mut memory);
        let counted = arrived.read(&mut buf);
        (counted, buf.filled().to_vec())
    }

    #[test]
    fn heads_are_read_before_the_body_and_not_counted() {
        let mut arrived = Arrived::default();
        arrived.push_head(b"head");
        arrived.push(b"bo");
        arrived.push(b"dy");
        assert_eq!(read(&mut arrived, 2), (0, b"he".to_vec()));
        assert_eq!(read(&mut arrived, 3), (1, b"adb".to_vec()));
        assert_eq!(read(&mut arrived, 9), (3, b"ody".to_vec()));
        assert_eq!(arrived.len(), 0);
    }

    #[test]
    fn costs_about_what_it_holds() {
        let mut arrived = Arrived::default();
        for _ in 0..1_000 {
            arrived.push(&[7; 60]);
            read(&mut arrived, 59);
        }
        assert_eq!(arrived.len(), 1_000);
        assert!(arrived.capacity() < 4_096, "{}", arrived.capacity());
    }
}
