//! Connections over Unix sockets.
//!
//! They are held as a [`TcpStream`]. Its calls to receive, send, shut down and wait work on any stream socket. Calls for TCP alone
//! (addresses, `TCP_NODELAY`) fail, and are not made. So TLS, HTTP/2 and splicing work without a case of their own.

use std::io;
use std::path::Path;
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::TcpStream;

/// Pause before another try if the backlog of the server's socket is full.
const PAUSE: Duration = Duration::from_millis(5);

/// Connects to the socket at this path. If its backlog is full, it waits, as TCP does.
///
/// # Errors
/// As connect(2): no listener, no such file, or no permission.
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
