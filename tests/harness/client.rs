//! A client that sends exactly what it is told and sees exactly what it gets.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use socket2::{Domain, Socket, Type};

use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

use crate::stream::{End, Message, Stream};

/// One connection to the proxy.
#[derive(Debug)]
pub struct Client {
    stream: Stream,
    /// None where it came over a Unix socket.
    address: Option<SocketAddr>,
}

impl Client {
    /// Connects.
    ///
    /// # Panics
    /// If nobody listens.
    #[track_caller]
    pub fn connect(address: SocketAddr) -> Self {
        Self::try_connect(address).unwrap_or_else(|e| panic!("{address}: {e}"))
    }

    /// Connects, if somebody listens.
    ///
    /// # Errors
    /// Why it could not.
    pub fn try_connect(address: SocketAddr) -> std::io::Result<Self> {
        let socket = TcpStream::connect(address)?;
        let address = socket.local_addr()?;
        Ok(Self { stream: Stream::new(socket), address: Some(address) })
    }

    /// Connects to a Unix socket.
    ///
    /// # Errors
    /// Why it could not.
    pub fn try_connect_unix(path: &Path) -> std::io::Result<Self> {
        // Nothing that is done with it here is TCP's alone.
        let socket = TcpStream::from(OwnedFd::from(UnixStream::connect(path)?));
        Ok(Self { stream: Stream::new(socket), address: None })
    }

    /// Connects to a Unix socket.
    ///
    /// # Panics
    /// If nobody listens.
    #[track_caller]
    pub fn connect_unix(path: &Path) -> Self {
        Self::try_connect_unix(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    /// Over a connection that was made elsewhere.
    ///
    /// # Panics
    /// Where it is none.
    pub fn of(socket: TcpStream) -> Self {
        let address = socket.local_addr().expect("a connected socket");
        Self { stream: Stream::new(socket), address: Some(address) }
    }

    /// The socket, for another protocol. Bytes that were read and not used are lost.
    pub fn socket(&self) -> &TcpStream {
        self.stream.socket()
    }

    /// The next response, or how the connection ended before one.
    ///
    /// # Errors
    /// How it ended.
    pub fn try_reply(&mut self) -> Result<Message, End> {
        self.stream.read_response("GET")
    }

    /// Connects from this address of the machine's own, all of 127.0.0.0/8 among them.
    ///
    /// # Panics
    /// If nobody listens, or the address is not the machine's.
    #[track_caller]
    pub fn connect_from(own: IpAddr, address: SocketAddr) -> Self {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::new(own, 0).into()).unwrap();
        socket.connect(&address.into()).unwrap_or_else(|e| panic!("{address} from {own}: {e}"));
        let socket = TcpStream::from(socket);
        let address = socket.local_addr().unwrap();
        Self { stream: Stream::new(socket), address: Some(address) }
    }

    /// Its own address, as the proxy sees it.
    ///
    /// # Panics
    /// Where it came over a Unix socket.
    #[track_caller]
    pub fn address(&self) -> SocketAddr {
        self.address.expect("an IP address")
    }

    /// Sends exactly these bytes. That the proxy takes no more of them is no failure here: its answer says why.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        self.stream.send(bytes);
        self
    }

    /// Sends `GET path` with `Host: test`.
    pub fn get(&mut self, path: &str) -> &mut Self {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n"))
    }

    /// Says that it sends nothing more.
    pub fn end_sending(&mut self) -> &mut Self {
        self.stream.end_sending();
        self
    }

    /// The next response, interim ones included; to a request that is not HEAD.
    ///
    /// # Panics
    /// Where none comes.
    #[track_caller]
    pub fn reply(&mut self) -> Message {
        self.reply_to("GET")
    }

    /// The next response to a request with this method.
    ///
    /// # Panics
    /// Where none comes.
    #[track_caller]
    pub fn reply_to(&mut self, method: &str) -> Message {
        let reply = self.stream.read_response(method).unwrap_or_else(|end| panic!("no response: {end:?}"));
        assert_ne!(reply.cut, Some(End::Silent), "the response stopped: {:?}", reply.head);
        reply
    }

    /// Whether there is something to read, or the connection has ended.
    pub fn is_answered(&self) -> bool {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        recv(self.stream.socket(), &mut [0_u8], flags) != Err(Errno::AGAIN)
    }

    /// The next response's head; its body can be read with [`Client::bytes`].
    ///
    /// # Panics
    /// Where none comes.
    #[track_caller]
    pub fn reply_head(&mut self) -> Message {
        self.stream.read_head().unwrap_or_else(|end| panic!("no response: {end:?}"))
    }

    /// So many bytes as they come.
    ///
    /// # Panics
    /// Where there are fewer.
    #[track_caller]
    pub fn bytes(&mut self, n: usize) -> Vec<u8> {
        let (bytes, cut) = self.stream.read_bytes(n);
        assert_eq!(cut, None, "{} of {n} bytes", bytes.len());
        bytes
    }

    /// Waits for the end of the connection, before which nothing more comes, and says how it ended.
    ///
    /// # Panics
    /// Where something comes, or nothing happens.
    #[track_caller]
    pub fn end(&mut self) -> End {
        let (bytes, end) = self.stream.read_to_end();
        assert_eq!(String::from_utf8_lossy(&bytes), "", "expected the end of the connection");
        assert_ne!(end, End::Silent, "the connection stays open");
        end
    }

    /// Everything up to the end of the connection, and how it ended.
    ///
    /// # Panics
    /// Where it does not end.
    #[track_caller]
    pub fn rest(&mut self) -> (String, End) {
        let (bytes, end) = self.stream.read_to_end();
        assert_ne!(end, End::Silent, "the connection stays open");
        (String::from_utf8_lossy(&bytes).into_owned(), end)
    }

    /// Resets the connection.
    pub fn reset(mut self) {
        self.reset_now();
    }

    /// Resets the connection; it is of no use from then on.
    pub fn reset_now(&mut self) {
        self.stream.reset();
    }
}
