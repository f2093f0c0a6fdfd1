//! One end of a connection, and the HTTP messages that come over it, read by a reader of its own: a test must not judge
//! the proxy by the proxy's own parser.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use rustix::net::{RecvFlags, recv};
use socket2::{Domain, SockRef, Socket, Type};

use crate::DEADLINE;

/// Bytes, far above what any test sends up to a connection's end, and far below the machine's memory.
const MOST_TO_THE_END: usize = 1 << 30;

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The other side closed it.
    Eof,
    /// The other side reset it.
    Reset,
    /// It did not end, and nothing came until the deadline.
    Silent,
}

/// A message as it was received.
#[derive(Clone, Debug)]
pub struct Message {
    /// First line and headers, with the empty line.
    pub head: String,
    /// The body, taken out of its framing.
    pub body: Vec<u8>,
    /// Trailer lines, where there were any.
    pub trailers: String,
    /// How the connection ended within the body; `None` where the body is whole.
    pub cut: Option<End>,
}

/// A connection with what was read from it and not used.
#[derive(Debug)]
pub struct Stream {
    socket: TcpStream,
    buffer: Vec<u8>,
}

/// The end of a body.
enum Framing {
    Length(usize),
    Chunked,
    UntilClose,
}

impl Message {
    /// The first line, without its end.
    pub fn line(&self) -> &str {
        self.head.lines().next().unwrap_or_default()
    }

    /// Status of a response.
    ///
    /// # Panics
    /// Where the first line has none.
    #[track_caller]
    pub fn status(&self) -> u16 {
        let status = self.line().split(' ').nth(1).and_then(|text| text.parse().ok());
        status.unwrap_or_else(|| panic!("no status in {:?}", self.head))
    }

    /// Value of the only header of this name; `None` where there is none.
    ///
    /// # Panics
    /// Where there are two.
    #[track_caller]
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers(name);
        assert!(found.len() < 2, "{name} more than once in {:?}", self.head);
        found.first().copied()
    }

    /// Values of all headers of this name.
    pub fn headers(&self, name: &str) -> Vec<&str> {
        let fields = self.head.lines().skip(1).filter_map(|line| line.split_once(':'));
        fields.filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim()).collect()
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Whether this response leaves no body behind it, whatever its headers say.
    fn is_bodiless(&self, method: &str) -> bool {
        method == "HEAD" || matches!(self.status(), 100..=199 | 204 | 304)
    }

    fn framing(&self, otherwise: Framing) -> Framing {
        match (self.header("transfer-encoding"), self.header("content-length")) {
            (Some(coding), None) => {
                assert_eq!(coding, "chunked", "{:?}", self.head);
                Framing::Chunked
            }
            (None, Some(length)) => Framing::Length(length.parse().expect("a length")),
            (None, None) => otherwise,
            (Some(_), Some(_)) => panic!("two framings in {:?}", self.head),
        }
    }
}

impl Stream {
    /// Of a connected socket; gives it the deadline.
    pub fn new(socket: TcpStream) -> Self {
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        socket.set_write_timeout(Some(DEADLINE)).unwrap();
        // Unix sockets have none.
        let _ = socket.set_nodelay(true);
        Self { socket, buffer: Vec::new() }
    }

    /// The socket.
    pub fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// Sends exactly these bytes; false where the other side takes no more.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.socket.write_all(bytes.as_ref()).is_ok()
    }

    /// Takes in what has come by now, without waiting. How the connection ended shows where it is read.
    pub fn take_in(&mut self) {
        let mut bytes = [0; 16 * 1024];
        while let Ok((n, _)) = recv(&self.socket, &mut bytes, RecvFlags::DONTWAIT)
            && n > 0
        {
            self.buffer.extend_from_slice(&bytes[..n]);
        }
    }

    /// Ends this half of the connection.
    pub fn end_sending(&self) {
        self.socket.shutdown(Shutdown::Write).unwrap();
    }

    /// Resets the connection.
    pub fn reset(&mut self) {
        SockRef::from(&self.socket).set_linger(Some(Duration::ZERO)).unwrap();
        // A socket of no connection takes its place; this one's end is the reset.
        self.socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap().into();
    }

    /// The next request, whole.
    ///
    /// # Errors
    /// How the connection ended before its head was complete.
    pub fn read_request(&mut self) -> Result<Message, End> {
        let mut message = self.read_head()?;
        self.read_body(&mut message, Framing::Length(0));
        Ok(message)
    }

    /// The next response, to a request with this method; an interim one (100, 103) is one, too.
    ///
    /// # Errors
    /// As [`Stream::read_request`].
    pub fn read_response(&mut self, method: &str) -> Result<Message, End> {
        let mut message = self.read_head()?;
        if !message.is_bodiless(method) {
            self.read_body(&mut message, Framing::UntilClose);
        }
        Ok(message)
    }

    /// The next message's head; its body is left.
    ///
    /// # Errors
    /// As [`Stream::read_request`].
    pub fn read_head(&mut self) -> Result<Message, End> {
        let end = loop {
            if let Some(at) = self.buffer.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                break at + 4;
            }
            self.fill()?;
        };
        let head: Vec<u8> = self.buffer.drain(..end).collect();
        Ok(Message {
            head: String::from_utf8_lossy(&head).into_owned(),
            body: Vec::new(),
            trailers: String::new(),
            cut: None,
        })
    }

    /// So many bytes, or fewer if the connection ends.
    pub fn read_bytes(&mut self, n: usize) -> (Vec<u8>, Option<End>) {
        let cut = self.want(n).err();
        let n = n.min(self.buffer.len());
        (self.buffer.drain(..n).collect(), cut)
    }

    /// The bytes that have come by now and were not used.
    pub fn has_come(&mut self) -> &[u8] {
        self.socket.set_nonblocking(true).unwrap();
        // An end shows in the next read that waits.
        while self.fill().is_ok() {}
        self.socket.set_nonblocking(false).unwrap();
        &self.buffer
    }

    /// Everything up to the connection's end, and how it ended.
    ///
    /// # Panics
    /// Where it is more than any test sends.
    pub fn read_to_end(&mut self) -> (Vec<u8>, End) {
        loop {
            assert!(self.buffer.len() <= MOST_TO_THE_END, "what comes does not end");
            if let Err(end) = self.fill() {
                return (std::mem::take(&mut self.buffer), end);
            }
        }
    }

    fn read_body(&mut self, message: &mut Message, otherwise: Framing) {
        match message.framing(otherwise) {
            Framing::Length(n) => (message.body, message.cut) = self.read_bytes(n),
            Framing::Chunked => message.cut = self.read_chunks(message).err(),
            Framing::UntilClose => {
                let (body, end) = self.read_to_end();
                message.body = body;
                message.cut = Some(end).filter(|end| *end != End::Eof);
            }
        }
    }

    fn read_chunks(&mut self, message: &mut Message) -> Result<(), End> {
        loop {
            let line = self.read_line()?;
            let size = usize::from_str_radix(&line, 16).unwrap_or_else(|_| panic!("chunk size {line:?}"));
            if size == 0 {
                break;
            }
            let result = self.want(size + 2);
            let n = size.min(self.buffer.len());
            message.body.extend(self.buffer.drain(..n));
            result?;
            assert_eq!(self.buffer.drain(..2).collect::<Vec<_>>(), b"\r\n", "end of a chunk");
        }
        loop {
            let line = self.read_line()?;
            if line.is_empty() {
                return Ok(());
            }
            message.trailers.push_str(&line);
            message.trailers.push('\n');
        }
    }

    fn read_line(&mut self) -> Result<String, End> {
        loop {
            if let Some(at) = self.buffer.windows(2).position(|bytes| bytes == b"\r\n") {
                let line: Vec<u8> = self.buffer.drain(..at + 2).collect();
                return Ok(String::from_utf8_lossy(&line[..at]).into_owned());
            }
            self.fill()?;
        }
    }

    fn want(&mut self, n: usize) -> Result<(), End> {
        while self.buffer.len() < n {
            self.fill()?;
        }
        Ok(())
    }

    fn fill(&mut self) -> Result<(), End> {
        let mut bytes = [0; 64 * 1024];
        loop {
            match self.socket.read(&mut bytes) {
                Ok(0) => return Err(End::Eof),
                Ok(n) => {
                    self.buffer.extend_from_slice(&bytes[..n]);
                    return Ok(());
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    return Err(End::Silent);
                }
                Err(_) => return Err(End::Reset),
            }
        }
    }
}
