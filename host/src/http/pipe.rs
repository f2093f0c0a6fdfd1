//! Long bodies are moved from socket to socket inside the kernel (splice(2)), without a copy in user space.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::task::{Context, Poll, ready};

use rustix::pipe::{PipeFlags, SpliceFlags};
use tokio::io::Interest;
use tokio::net::TcpStream;

/// Requested size of a pipe. Above a total of 64 MiB, the kernel gives unprivileged users tiny pipes.
const PIPE_BYTES: usize = 256 * 1024;
/// Maximum pipes that a thread keeps for reuse.
const MAX_SPARE: usize = 32;

thread_local! {
    static SPARE: RefCell<Vec<Pipe>> = const { RefCell::new(Vec::new()) };
}

/// A pipe between two sockets.
#[derive(Debug)]
pub struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    filled: usize,
}

impl Pipe {
    /// An empty pipe; `None` without free file descriptors.
    pub fn lend() -> Option<Self> {
        SPARE.with_borrow_mut(Vec::pop).or_else(|| {
            let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).ok()?;
            // A smaller pipe only needs more steps.
            let _ = rustix::pipe::fcntl_setpipe_size(&write, PIPE_BYTES);
            Some(Self { read, write, filled: 0 })
        })
    }

    /// Puts an empty pipe back; a filled one is closed.
    pub fn give_back(self) {
        if self.filled == 0 {
            SPARE.with_borrow_mut(|spare| {
                if spare.len() < MAX_SPARE {
                    spare.push(self);
                }
            });
        }
    }

    /// Bytes in it.
    pub fn filled(&self) -> usize {
        self.filled
    }

    /// Moves up to `limit` bytes from a socket into the pipe, which has to be empty; 0 is the end of the stream.
    ///
    /// # Errors
    /// As splice(2): EINVAL where the socket's kind cannot do it.
    pub fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        source: &TcpStream,
        limit: usize,
    ) -> Poll<io::Result<usize>> {
        debug_assert_eq!(self.filled, 0);
        loop {
            ready!(source.poll_read_ready(cx))?;
            let limit = limit.min(PIPE_BYTES);
            match source.try_io(Interest::READABLE, || splice(source, &self.write, limit)) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Ok(n) => {
                    self.filled = n;
                    return Poll::Ready(Ok(n));
                }
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
    }

    /// Moves bytes of the pipe into a socket, as many as it takes.
    ///
    /// # Errors
    /// As splice(2).
    pub fn poll_drain(&mut self, cx: &mut Context<'_>, sink: &TcpStream) -> Poll<io::Result<usize>> {
        loop {
            ready!(sink.poll_write_ready(cx))?;
            match sink.try_io(Interest::WRITABLE, || splice(&self.read, sink, self.filled)) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Ok(n) => {
                    self.filled -= n;
                    return Poll::Ready(Ok(n));
                }
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
    }
}

fn splice(from: impl AsFd, to: impl AsFd, n: usize) -> io::Result<usize> {
    let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
    Ok(rustix::pipe::splice(from, None, to, None, n, flags)?)
}
