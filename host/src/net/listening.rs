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

/// A socket that one thread accepts from.
#[derive(Debug)]
pub struct Listening {
    socket: AsyncFd<OwnedFd>,
    is_unix: bool,
}

impl Listening {
    /// Listens by this thread's reactor to a socket of this address that does not block.
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

    /// The next connection.
    ///
    /// # Errors
    /// As accept(2).
    pub async fn accept(&self) -> io::Result<(TcpStream, Peer)> {
        // Those that were accepted get their turn, however many more come.
        coop::consume_budget().await;
        loop {
            let mut ready = self.socket.readable().await?;
            let Ok(accepted) = ready.try_io(|_| self.take()) else { continue };
            // To be told "none" by accepting costs the kernel a socket, made and thrown away: a look beforehand does not.
            if !self.is_waited_at() {
                ready.clear_ready();
            }
            return accepted;
        }
    }

    /// Accepts a connection that waits, as the kernel knows it.
    ///
    /// # Errors
    /// As accept(2); [`io::ErrorKind::WouldBlock`] where none waits.
    pub fn take(&self) -> io::Result<(TcpStream, Peer)> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let (stream, peer) = rustix::net::acceptfrom_with(self.socket.get_ref(), flags)?;
        let peer = match peer {
            _ if self.is_unix => Peer::Unix,
            Some(peer) => Peer::Ip(peer.try_into()?),
            // Only a client that is gone already has no address.
            None => return Err(io::ErrorKind::ConnectionAborted.into()),
        };
        Ok((TcpStream::from_std(stream.into())?, peer))
    }

    /// Has the kernel hand out connections as soon as they are made, as for a socket that is about to be closed.
    pub fn stop_deferring(&self) {
        // Where it fails, who connects now is told of the end by a reset instead.
        let _ = defer_accept(self.socket.get_ref(), false);
    }

    /// Whether a connection waits to be accepted.
    fn is_waited_at(&self) -> bool {
        let mut asked = [PollFd::new(self.socket.get_ref(), PollFlags::IN)];
        // An answer that says nothing is a yes: the next try to accept finds out.
        !matches!(rustix::event::poll(&mut asked, Some(&Timespec::default())), Ok(0))
    }
}

/// Whether the kernel hands out a connection only when its client has said something, or a second after it was made: one
/// wake-up serves both, and who connects and says nothing costs a thread nothing meanwhile. httpd does the same
/// (`AcceptFilter http data`).
///
/// # Errors
/// As setsockopt(2): the socket is none of TCP.
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

/// Errors that say something of the connection that was to be accepted, not of us (accept(2)).
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
