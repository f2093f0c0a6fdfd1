//! HTTP/2 by hand: frames as they are written, for what no library would send.

use std::collections::VecDeque;
use std::net::{SocketAddr, TcpStream};

use socket2::{Domain, Socket, Type};

use crate::origin::Conn;
use crate::stream::{End, Stream};

/// A frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Its type.
    pub kind: u8,
    /// Its flags.
    pub flags: u8,
    /// Its stream.
    pub stream: u32,
    /// Its payload.
    pub payload: Vec<u8>,
}

/// Type of a frame.
pub const DATA: u8 = 0;
/// Type of a frame.
pub const HEADERS: u8 = 1;
/// Type of a frame.
pub const RST_STREAM: u8 = 3;
/// Type of a frame.
pub const SETTINGS: u8 = 4;
/// Type of a frame.
pub const PING: u8 = 6;
/// Type of a frame.
pub const GOAWAY: u8 = 7;
/// Type of a frame.
pub const WINDOW_UPDATE: u8 = 8;
/// Type of a frame.
pub const CONTINUATION: u8 = 9;

/// A setting: streams that the other side may have open at once.
pub const MAX_CONCURRENT_STREAMS: u16 = 3;
/// A setting: the window of a new stream.
pub const INITIAL_WINDOW_SIZE: u16 = 4;

/// Flag: the stream ends (DATA, HEADERS).
pub const END_STREAM: u8 = 1;
/// Flag: an answer (SETTINGS, PING).
pub const ACK: u8 = 1;
/// Flag: the header block is complete.
pub const END_HEADERS: u8 = 4;

/// A connection on which frames are written and read.
#[derive(Debug)]
pub struct Frames {
    stream: Stream,
    seen: VecDeque<Frame>,
}

impl Frame {
    /// As it goes over the wire.
    pub fn bytes(&self) -> Vec<u8> {
        let length = u32::try_from(self.payload.len()).unwrap().to_be_bytes();
        let mut bytes = vec![length[1], length[2], length[3], self.kind, self.flags];
        bytes.extend(self.stream.to_be_bytes());
        bytes.extend(&self.payload);
        bytes
    }

    /// The error code of RST_STREAM or GOAWAY.
    pub fn code(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }
}

/// A frame of these parts.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    Frame { kind, flags, stream, payload: payload.to_vec() }.bytes()
}

/// SETTINGS of these values.
pub fn settings(values: &[(u16, u32)]) -> Vec<u8> {
    let payload: Vec<u8> = values
        .iter()
        .flat_map(|(key, value)| [&key.to_be_bytes()[..], &value.to_be_bytes()].concat())
        .collect();
    frame(SETTINGS, 0, 0, &payload)
}

/// Opens a window by so many bytes; that of the connection is stream 0's.
pub fn window(stream: u32, n_bytes: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &n_bytes.to_be_bytes())
}

/// The header block of a request, spelt out without any table.
pub fn request(method: &str, path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let pseudo = [(":method", method), (":scheme", "http"), (":authority", "test"), (":path", path)];
    block(&[&pseudo, more].concat())
}

/// A header block of these lines, spelt out without any table.
pub fn block(lines: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in lines {
        block.push(0);
        for text in [name, value] {
            assert!(text.len() < 127, "longer ones are written in another way");
            block.push(u8::try_from(text.len()).unwrap());
            block.extend(text.as_bytes());
        }
    }
    block
}

/// The stream of the next request's head at the server's end of a connection of HTTP/2; `None` where it ended before.
pub fn next_request(conn: &mut Conn) -> Option<u32> {
    next_request_with(conn, &[])
}

/// The same of a server with these settings.
pub fn next_request_with(conn: &mut Conn, settings: &[(u16, u32)]) -> Option<u32> {
    loop {
        let head: [u8; 9] = conn.bytes(9).try_into().ok()?;
        if head == *b"PRI * HTT" {
            conn.bytes(24 - head.len());
            conn.send(self::settings(settings));
            continue;
        }
        let [a, b, c, kind, flags, stream @ ..] = head;
        conn.bytes(u32::from_be_bytes([0, a, b, c]) as usize);
        match (kind, flags) {
            (HEADERS, _) => return Some(u32::from_be_bytes(stream)),
            (SETTINGS, 0) => _ = conn.send(frame(SETTINGS, ACK, 0, &[])),
            _ => {}
        }
    }
}

/// A response without a body: 200.
pub fn ok(stream: u32) -> Vec<u8> {
    // RFC 7541 appendix A, entry 8.
    frame(HEADERS, END_HEADERS | END_STREAM, stream, &[0x88])
}

impl Frames {
    /// A connection that began as a client's does.
    #[track_caller]
    pub fn connect(address: SocketAddr) -> Self {
        Self::begin(TcpStream::connect(address).unwrap())
    }

    /// A connection that began with these settings.
    #[track_caller]
    pub fn connect_with(address: SocketAddr, settings: &[(u16, u32)]) -> Self {
        Self::begin_with(TcpStream::connect(address).unwrap(), settings)
    }

    /// One of whose answers the system keeps as few bytes as it can, until they are read.
    #[track_caller]
    pub fn connect_narrowly(address: SocketAddr) -> Self {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(1).unwrap();
        socket.connect(&address.into()).unwrap();
        Self::begin(socket.into())
    }

    fn begin(socket: TcpStream) -> Self {
        Self::begin_with(socket, &[])
    }

    fn begin_with(socket: TcpStream, settings: &[(u16, u32)]) -> Self {
        let mut stream = Stream::new(socket);
        stream.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        stream.send(self::settings(settings));
        Self { stream, seen: VecDeque::new() }
    }

    /// Sends exactly these bytes; false where the other side takes no more.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.stream.send(bytes)
    }

    /// Sends so many rounds of this, reading all the while as any client does; fewer where the other side takes no more.
    /// How many were sent.
    pub fn flood(&mut self, rounds: u32, mut round: impl FnMut(u32) -> Vec<u8>) -> u32 {
        for n in 0..rounds {
            if !self.send(round(n)) {
                return n;
            }
            self.stream.take_in();
        }
        rounds
    }

    /// A request without a body, on this stream.
    pub fn get(&mut self, stream: u32, path: &str) -> bool {
        self.send(frame(HEADERS, END_HEADERS | END_STREAM, stream, &request("GET", path, &[])))
    }

    /// The next frame.
    ///
    /// # Errors
    /// How the connection ended.
    #[expect(clippy::should_implement_trait, reason = "it ends in many ways")]
    pub fn next(&mut self) -> Result<Frame, End> {
        match self.seen.pop_front() {
            Some(frame) => Ok(frame),
            None => self.read(),
        }
    }

    fn read(&mut self) -> Result<Frame, End> {
        let (head, cut) = self.stream.read_bytes(9);
        if let Some(end) = cut {
            return Err(end);
        }
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let stream = u32::from_be_bytes(head[5..9].try_into().unwrap());
        let (payload, cut) = self.stream.read_bytes(length);
        match cut {
            Some(end) => Err(end),
            None => Ok(Frame { kind: head[3], flags: head[4], stream, payload }),
        }
    }

    /// The next frame of this type; those before it are passed over.
    ///
    /// # Panics
    /// Where the connection ends before it.
    #[track_caller]
    pub fn wait_for(&mut self, kind: u8) -> Frame {
        loop {
            let frame = self.next().unwrap_or_else(|end| panic!("no frame of type {kind}: {end:?}"));
            if frame.kind == kind {
                return frame;
            }
        }
    }

    /// The next frame of none of these types.
    ///
    /// # Panics
    /// Where the connection ends before it.
    #[track_caller]
    pub fn next_but(&mut self, kinds: &[u8]) -> Frame {
        loop {
            let frame = self.next().unwrap_or_else(|end| panic!("no frame but of types {kinds:?}: {end:?}"));
            if !kinds.contains(&frame.kind) {
                return frame;
            }
        }
    }

    /// The body of the response on this stream, which has to be whole.
    #[track_caller]
    pub fn body(&mut self, stream: u32) -> String {
        let mut body = Vec::new();
        loop {
            let frame = self.next().unwrap_or_else(|end| panic!("no end of stream {stream}: {end:?}"));
            assert!(!(frame.kind == RST_STREAM && frame.stream == stream), "reset: {}", frame.code());
            assert!(frame.kind != GOAWAY || frame.code() == 0, "given up: {}", frame.code());
            if frame.stream == stream && frame.kind == DATA {
                body.extend(&frame.payload);
            }
            if frame.stream == stream && matches!(frame.kind, DATA | HEADERS) && frame.flags & END_STREAM != 0
            {
                return String::from_utf8_lossy(&body).into_owned();
            }
        }
    }

    /// The code of the GOAWAY by which the connection is refused: the first that is not the graceful 0.
    ///
    /// # Panics
    /// Where the connection ends, or stays open, without.
    #[track_caller]
    pub fn goaway(&mut self) -> u32 {
        loop {
            let goaway = self.wait_for(GOAWAY);
            if goaway.code() != 0 {
                return goaway.code();
            }
        }
    }
}
