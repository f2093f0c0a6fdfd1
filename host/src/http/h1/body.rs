//! Bodies: where one ends in a stream, and chunks decoded and encoded in place.
//!
//! One read becomes one write. The decoder moves the data of all chunks of a read together, and [`frame`] writes the new
//! chunk's size and end into the bytes around it, where the old ones were.

use std::ops::Range;

use super::buffer::Buffer;
use super::head::{Framing, is_refused_as_trailer};

/// Offset of reads into a body's buffer, so that a chunk size fits in front of the data.
pub const HEAD_ROOM: usize = 16;
/// Limit of chunk extensions in one body, white space before them included. Only attackers use them.
const MAX_EXTENSION_BYTES: usize = 1024;
/// Maximum digits of a chunk size in a request, which cannot overflow.
const MAX_DIGITS: u8 = 15;
/// Maximum digits of a chunk size in a response: some servers pad with zeros. The value is checked as it grows.
const MAX_PADDED_DIGITS: u8 = 32;
/// Largest chunk of a response, as in nginx.
const MAX_CHUNK_BYTES: u64 = i64::MAX as u64;
/// Limit of a body's trailers.
const MAX_TRAILER_BYTES: usize = 8 * 1024;

/// Reads one body of a stream.
#[derive(Debug)]
pub enum BodyReader {
    /// The body has ended.
    Done,
    /// This many bytes remain.
    Length(u64),
    /// Chunks.
    Chunked(ChunkDecoder),
    /// The body goes on to the stream's end.
    UntilClose,
}

/// A piece of a body, taken from a buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Its range in [`Buffer::all`], until the buffer is filled again.
    pub data: Range<usize>,
    /// End of the bytes that carried it.
    pub raw_end: usize,
    /// Whether the body ends with it.
    pub last: bool,
}

/// Why a body was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadBody(pub &'static str);

/// How a body is framed for its receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// Unchanged: by its length, or by the end of the connection.
    Identity,
    /// In chunks.
    Chunked,
}

/// Decodes chunks; each byte passes through it once.
#[derive(Debug, Default)]
pub struct ChunkDecoder {
    state: ChunkState,
    left: u64,
    digits: u8,
    extension_bytes: usize,
    trailers: Vec<u8>,
    /// For responses: sizes may have leading zeros and trailing white space, as some servers send them.
    is_lenient: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum ChunkState {
    #[default]
    Size,
    /// White space behind a size.
    SizeSpace,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    Trailers,
    Done,
}

impl BodyReader {
    /// For a message framed like this.
    pub fn new(framing: Framing) -> Self {
        match framing {
            Framing::None => Self::Done,
            Framing::Length(n) => Self::Length(n),
            Framing::Chunked => Self::Chunked(ChunkDecoder::default()),
            Framing::UntilClose => Self::UntilClose,
        }
    }

    /// For a response framed like this. It accepts forms of chunk sizes that are refused in requests, where they would allow
    /// request smuggling.
    pub fn of_response(framing: Framing) -> Self {
        match framing {
            Framing::Chunked => Self::Chunked(ChunkDecoder { is_lenient: true, ..ChunkDecoder::default() }),
            framing => Self::new(framing),
        }
    }

    /// Whether all of it was taken.
    pub fn is_done(&self) -> bool {
        matches!(self, Self::Done)
    }

    /// Maximum bytes to read without reading beyond the body, as far as known.
    pub fn read_limit(&self) -> usize {
        match self {
            Self::Length(left) => usize::try_from(*left).unwrap_or(usize::MAX),
            Self::Done => 0,
            Self::Chunked(_) | Self::UntilClose => usize::MAX,
        }
    }

    /// Takes this body's bytes from the buffer. After the last piece, the rest of the buffer follows the body.
    ///
    /// # Errors
    /// The chunks are malformed; the stream cannot be used further.
    pub fn take(&mut self, buffer: &mut Buffer) -> Result<Piece, BadBody> {
        let raw = buffer.range();
        let piece = match self {
            Self::Done => Piece { data: raw.start..raw.start, raw_end: raw.start, last: true },
            Self::UntilClose => Piece { data: raw.clone(), raw_end: raw.end, last: false },
            Self::Length(left) => {
                let n = raw.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= n as u64;
                let end = raw.start + n;
                Piece { data: raw.start..end, raw_end: end, last: *left == 0 }
            }
            Self::Chunked(decoder) => decoder.take(buffer.all_mut(), raw.clone())?,
        };
        buffer.consume(piece.raw_end - raw.start);
        if piece.last && !matches!(self, Self::Chunked(_)) {
            *self = Self::Done;
        }
        Ok(piece)
    }

    /// The trailers of a body that has ended, each line ended by CRLF, without names that must not be trailers.
    ///
    /// # Errors
    /// A line is not a header.
    pub fn finish(&mut self) -> Result<Vec<u8>, BadBody> {
        match std::mem::replace(self, Self::Done) {
            Self::Chunked(decoder) if decoder.trailers.len() > 2 => checked_trailers(&decoder.trailers),
            _ => Ok(Vec::new()),
        }
    }
}

impl ChunkDecoder {
    fn take(&mut self, all: &mut [u8], raw: Range<usize>) -> Result<Piece, BadBody> {
        let mut data = raw.start..raw.start;
        let mut at = raw.start;
        while at < raw.end && self.state != ChunkState::Done {
            let byte = all[at];
            match self.state {
                ChunkState::Data => {
                    let n = (raw.end - at).min(usize::try_from(self.left).unwrap_or(usize::MAX));
                    if data.is_empty() {
                        data = at..at + n;
                    } else {
                        all.copy_within(at..at + n, data.end);
                        data.end += n;
                    }
                    self.left -= n as u64;
                    at += n;
                    if self.left == 0 {
                        self.state = ChunkState::DataCr;
                    }
                    continue;
                }
                ChunkState::Size => self.size_byte(byte)?,
                ChunkState::SizeSpace => match byte {
                    b'\r' if self.is_lenient => self.state = ChunkState::SizeLf,
                    // RFC 9112 section 7.1.1: white space before it is to be taken, in any message.
                    b';' => self.state = ChunkState::Extension,
                    b'\t' | b' ' => self.count_extension()?,
                    _ => return Err(BadBody("chunk size is not a number")),
                },
                ChunkState::Extension => match byte {
                    b'\r' => self.state = ChunkState::SizeLf,
                    b'\t' | b' '..=b'~' | 0x80.. => self.count_extension()?,
                    _ => return Err(BadBody("control character in a chunk extension")),
                },
                ChunkState::SizeLf => {
                    expect(byte, b'\n', "chunk size not ended by CRLF")?;
                    self.state = if self.left == 0 { ChunkState::Trailers } else { ChunkState::Data };
                }
                ChunkState::DataCr => {
                    expect(byte, b'\r', "chunk longer than its size")?;
                    self.state = ChunkState::DataLf;
                }
                ChunkState::DataLf => {
                    expect(byte, b'\n', "chunk not ended by CRLF")?;
                    self.state = ChunkState::Size;
                    self.digits = 0;
                }
                ChunkState::Trailers => self.trailer_byte(byte)?,
                ChunkState::Done => {}
            }
            at += 1;
        }
        Ok(Piece { data, raw_end: at, last: self.state == ChunkState::Done })
    }

    fn size_byte(&mut self, byte: u8) -> Result<(), BadBody> {
        let max_digits = if self.is_lenient { MAX_PADDED_DIGITS } else { MAX_DIGITS };
        match (byte as char).to_digit(16) {
            Some(digit) if self.digits < max_digits && self.left <= (MAX_CHUNK_BYTES >> 4) => {
                self.left = self.left * 16 + u64::from(digit);
                self.digits += 1;
                Ok(())
            }
            Some(_) => Err(BadBody("chunk size too large")),
            None if self.digits == 0 => Err(BadBody("chunk size is not a number")),
            None => {
                self.state = match byte {
                    b'\r' => ChunkState::SizeLf,
                    b';' => ChunkState::Extension,
                    b'\t' | b' ' => ChunkState::SizeSpace,
                    _ => return Err(BadBody("chunk size is not a number")),
                };
                Ok(())
            }
        }
    }

    fn count_extension(&mut self) -> Result<(), BadBody> {
        self.extension_bytes += 1;
        if self.extension_bytes > MAX_EXTENSION_BYTES {
            return Err(BadBody("chunk extensions over their limit"));
        }
        Ok(())
    }

    fn trailer_byte(&mut self, byte: u8) -> Result<(), BadBody> {
        if byte == b'\n' && self.trailers.last() != Some(&b'\r') {
            return Err(BadBody("trailer ended by a bare line feed"));
        }
        if self.trailers.len() == MAX_TRAILER_BYTES {
            return Err(BadBody("trailers over their limit"));
        }
        self.trailers.push(byte);
        if self.trailers == b"\r\n" || self.trailers.ends_with(b"\r\n\r\n") {
            self.state = ChunkState::Done;
        }
        Ok(())
    }
}

/// Writes a chunk's size and end around a piece of data, and returns the range of the chunk. `end` adds the last chunk, for a
/// body that ends here without trailers.
///
/// The bytes around the data are free: in front the head or [`HEAD_ROOM`], behind the old chunk's end or the buffer's room.
pub fn frame(all: &mut [u8], piece: &Piece, end: bool) -> Range<usize> {
    const LAST: &[u8] = b"0\r\n\r\n";
    if piece.data.is_empty() {
        if !end {
            return piece.data.clone();
        }
        // The bytes in front are free; those behind may be the next request.
        let start = piece.raw_end - LAST.len();
        all[start..piece.raw_end].copy_from_slice(LAST);
        return start..piece.raw_end;
    }
    let Range { mut start, end: mut stop } = piece.data;
    let mut size = piece.data.len();
    start -= 2;
    all[start..start + 2].copy_from_slice(b"\r\n");
    while size > 0 {
        start -= 1;
        all[start] = b"0123456789abcdef"[size % 16];
        size /= 16;
    }
    all[stop..stop + 2].copy_from_slice(b"\r\n");
    stop += 2;
    if end {
        all[stop..stop + LAST.len()].copy_from_slice(LAST);
        stop += LAST.len();
    }
    start..stop
}

fn expect(byte: u8, wanted: u8, text: &'static str) -> Result<(), BadBody> {
    if byte == wanted { Ok(()) } else { Err(BadBody(text)) }
}

fn checked_trailers(raw: &[u8]) -> Result<Vec<u8>, BadBody> {
    let mut lines = [httparse::EMPTY_HEADER; 64];
    let Ok(httparse::Status::Complete((_, lines))) = httparse::parse_headers(raw, &mut lines) else {
        return Err(BadBody("malformed trailers"));
    };
    let mut out = Vec::with_capacity(raw.len());
    for line in lines.iter().filter(|line| !is_refused_as_trailer(line.name.as_bytes())) {
        out.extend_from_slice(line.name.as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(line.value);
        out.extend_from_slice(b"\r\n");
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Data, what was written, and what is left in the buffer.
    type Relayed = (Vec<u8>, Vec<u8>, Vec<u8>);

    /// Sends a request's chunked body through decoder and framing in reads of `step` bytes.
    fn relay(text: &[u8], step: usize) -> Result<Relayed, BadBody> {
        relay_body(BodyReader::new(Framing::Chunked), text, step)
    }

    fn relay_body(mut body: BodyReader, text: &[u8], step: usize) -> Result<Relayed, BadBody> {
        let mut buffer = Buffer::for_head(4096);
        let (mut data, mut written) = (Vec::new(), Vec::new());
        for read in text.chunks(step) {
            buffer.restart_at(HEAD_ROOM);
            buffer.append(read);
            let piece = body.take(&mut buffer)?;
            data.extend_from_slice(&buffer.all()[piece.data.clone()]);
            let left = buffer.bytes().to_vec();
            let framed = frame(buffer.all_mut(), &piece, piece.last);
            written.extend_from_slice(&buffer.all()[framed]);
            assert_eq!(buffer.bytes(), left, "framing touched what follows the body");
            if piece.last {
                return Ok((data, written, left));
            }
        }
        panic!("incomplete");
    }

    #[test]
    fn gathers_the_chunks_of_a_read_into_one() {
        let text = b"5\r\nhello\r\n1;ext=\"a\"\r\n \r\n05\r\nworld\r\n0\r\n\r\n";
        let (data, written, left) = relay(text, text.len()).expect("well-formed");
        assert_eq!(data, b"hello world");
        assert_eq!(written, b"b\r\nhello world\r\n0\r\n\r\n");
        assert_eq!(left, b"");
    }

    #[test]
    fn is_the_same_however_the_reads_fall() {
        let text = b"5\r\nhello\r\n10\r\n0123456789abcdef\r\n0\r\n\r\nGET /next";
        for step in 1..text.len() {
            let (data, written, _) = relay(text, step).expect("well-formed");
            assert_eq!(data, b"hello0123456789abcdef", "{step}");
            let (again, _, left) = relay(&written, written.len()).expect("what we write is well-formed");
            assert_eq!((again, left), (data, Vec::new()), "{step}");
        }
        let (.., left) = relay(text, text.len()).expect("well-formed");
        assert_eq!(left, b"GET /next");
    }

    #[test]
    fn refuses_bad_chunks() {
        for text in [
            &b"\r\n"[..],
            b"x\r\n",
            b"-1\r\n",
            b"0x5\r\n",
            b"5 \r\nhello\r\n",
            b"5\nhello\r\n",
            b"5\r\nhello\n",
            b"5\r\nhello!\r\n",
            b"5;a\nb\r\nhello\r\n",
            b"1000000000000000\r\n",
            b"0\r\nX: y\n\r\n",
        ] {
            for step in [1, text.len()] {
                assert!(relay(text, step).is_err(), "{:?}", String::from_utf8_lossy(text));
            }
        }
    }

    /// nginx and HAProxy take all of these.
    #[test]
    fn takes_padded_sizes_of_servers_and_white_space_before_extensions_of_all() {
        for (size, may_be_of_a_client) in [
            ("5 ;a=b", true),
            ("5\t ;a", true),
            ("5 ", false),
            ("5 \t ", false),
            ("0000000000000005", false),
            ("00000000000000000000000000000005", false),
        ] {
            let text = format!("{size}\r\nhello\r\n0 ;z\r\n\r\n");
            for step in [1, text.len()] {
                let of_response = BodyReader::of_response(Framing::Chunked);
                let (data, ..) = relay_body(of_response, text.as_bytes(), step).expect(size);
                assert_eq!(data, b"hello", "{size:?}");
                assert_eq!(relay(text.as_bytes(), step).is_ok(), may_be_of_a_client, "{size:?}");
            }
        }
        for size in
            ["8000000000000000", "ffffffffffffffff", "10000000000000005", &"0".repeat(33), "5 5", "5 x", " 5"]
        {
            let text = format!("{size}\r\nhello\r\n0\r\n\r\n");
            let of_response = BodyReader::of_response(Framing::Chunked);
            assert!(relay_body(of_response, text.as_bytes(), text.len()).is_err(), "{size:?}");
        }
    }

    #[test]
    fn hands_on_trailers_but_not_those_that_frame() {
        let mut body = BodyReader::new(Framing::Chunked);
        let mut buffer = Buffer::for_head(4096);
        buffer.append(b"0\r\nX-Sum: 1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n");
        assert!(body.take(&mut buffer).expect("well-formed").last);
        assert_eq!(body.finish().expect("well-formed"), b"X-Sum: 1\r\n");
        assert!(body.is_done());
    }

    #[test]
    fn bounds_trailers_and_extensions() {
        let trailers = [b"0\r\nX: ".to_vec(), vec![b'y'; 10_000]].concat();
        let extensions = [b"5;".to_vec(), vec![b'y'; 2_000]].concat();
        for text in [trailers, extensions] {
            assert!(relay(&text, 1000).is_err());
        }
    }

    #[test]
    fn takes_no_more_than_its_length() {
        let mut body = BodyReader::new(Framing::Length(3));
        let mut buffer = Buffer::for_head(100);
        buffer.append(b"abcdef");
        assert_eq!(body.take(&mut buffer), Ok(Piece { data: 0..3, raw_end: 3, last: true }));
        assert!(body.is_done());
        assert_eq!(buffer.bytes(), b"def");
    }
}
