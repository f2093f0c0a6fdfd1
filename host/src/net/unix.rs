//! Connections over Unix sockets.
//!
//! They are held as a [`TcpStream`]. What that does with its descriptor (receive, send, shut down, wait) holds for any stream
//! socket; what only TCP has (addresses, `TCP_NODELAY`) fails, and is not asked of these. So TLS, HTTP/2, splicing and all
//! else that is built over connections takes them as they are, and connections over TCP do not get a case more for it.

use std::io;
use std::path::Path;
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::TcpStream;

/// Where the queue of a server's socket is full, it is tried again this much later.
const PAUSE: Duration = Duration::from_millis(5);

/// Connects to the socket at this path. Where as many wait there as it lets, it waits, as TCP does.
///
/// # Errors
/// As connect(2): nobody listens there, there is no such file, or it may not be used.
pub async fn connect(path: &Path) -> io::Result<TcpStream> {
    let address = SockAddr::unix(path)?;
    loop {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        match socket.connect(&address) {
            Ok(()) => return TcpStream::from_std(socket.into()),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => tokio::time::sleep(PAUSE).await,
            Err(e) => return Err(e),
        }
    }
}
