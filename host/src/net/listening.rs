//! A listening socket and the connections that wait at it.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::SocketFlags;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::TcpStream;
use tokio::task::coop;

use crate::net::address::{Address, Peer};

/// A listening socket of one thread.
#[derive(Debug)]
pub struct Listening {
    socket: AsyncFd<OwnedFd>,
    is_unix: bool,
}

impl Listening {
    /// Registers a non-blocking socket with this thread's reactor.
    ///
    /// # Errors
    /// The reactor cannot take it.
    #[expect(unsafe_code, reason = "the reactor trusts that a descriptor stays what it is")]
    pub fn new(address: &Address, socket: OwnedFd) -> io::Result<Self> {
        // SAFETY: an `OwnedFd` is the same descriptor for as long as it lives, and nobody gets it mutably.
        let registered = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) };
        let is_unix = matches!(address, Address::Unix(_));
        registered.map(|socket| Self { socket, is_unix }).map_err(io::Error::from)
    }

    /// Accepts the next connection.
    ///
    /// # Errors
    /// As accept(2).
    pub async fn accept(&self) -> io::Result<(TcpStream, Peer)> {
        // Accepted connections get their turn, however many more wait.
        coop::consume_budget().await;
        loop {
            let mut ready = self.socket.readable().await?;
            let Ok(accepted) = ready.try_io(|_| self.take()) else { continue };
            // An accept without a waiting connection makes the kernel allocate and free a socket; a poll before it does not.
            if !self.is_waited_at() {
                ready.clear_ready();
            }
            return accepted;
        }
    }

    /// Accepts a waiting connection.
    ///
    /// # Errors
    /// As accept(2); [`io::ErrorKind::WouldBlock`] where none waits.
    pub fn take(&self) -> io::Result<(TcpStream, Peer)> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let (stream, peer) = rustix::net::acceptfrom_with(self.socket.get_ref(), flags)?;
        let peer = match peer {
            _ if self.is_unix => Peer::Unix,
            Some(peer) => Peer::Ip(peer.try_into()?),
            // Only a client that is gone has no address.
            None => return Err(io::ErrorKind::ConnectionAborted.into()),
        };
        Ok((TcpStream::from_std(stream.into())?, peer))
    }

    /// Turns `TCP_DEFER_ACCEPT` off, for a socket that will be closed.
    pub fn stop_deferring(&self) {
        // If it fails, new connections are reset instead.
        let _ = defer_accept(self.socket.get_ref(), false);
    }

    /// Whether a connection waits to be accepted.
    fn is_waited_at(&self) -> bool {
        let mut asked = [PollFd::new(self.socket.get_ref(), PollFlags::IN)];
        // If poll fails, the next accept finds out.
        !matches!(rustix::event::poll(&mut asked, Some(&Timespec::default())), Ok(0))
    }
}

/// Sets `TCP_DEFER_ACCEPT`: a connection is accepted with its client's first bytes, or after a second. One wake-up serves both,
/// and silent connections cost a thread nothing. httpd does the same (`AcceptFilter http data`).
///
/// # Errors
/// As setsockopt(2): the socket is not TCP.
#[expect(unsafe_code, reason = "no library has a safe call for it on Linux")]
pub fn defer_accept(socket: &impl AsRawFd, defer: bool) -> io::Result<()> {
    let seconds = libc::c_int::from(defer);
    let size = size_of_val(&seconds) as libc::socklen_t;
    let (level, option) = (libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT);
    // SAFETY: the descriptor is open, and the value is read for the time of the call.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const seconds).cast(), size) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Errors of the connection to be accepted, not of the listener (accept(2)).
pub fn is_of_one_connection(e: &io::Error) -> bool {
    use io::ErrorKind;
    matches!(
        e.kind(),
        ErrorKind::ConnectionAborted
            | ErrorKind::ConnectionReset
            | ErrorKind::Interrupted
            | ErrorKind::HostUnreachable
            | ErrorKind::NetworkUnreachable
            | ErrorKind::NetworkDown
    )
}
