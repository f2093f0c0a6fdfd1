//! Messages between two processes of this program, with the descriptors that belong to them, over a Unix socket that
//! keeps packets apart.
//!
//! Both ends are the same binary, so there is no version to agree on. What is large goes through memory that the other
//! end maps for reading; descriptors that do not fit into one packet go ahead in packets of their own.

pub mod message;

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read as _, Seek as _, Write as _};
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::cmsg_space;
use rustix::fs::{MemfdFlags, OFlags, fcntl_getfl, fcntl_setfl, memfd_create};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Longest message that goes into a packet: well below what a socket's buffer takes, so that several fit.
const INLINE_BYTES: usize = 16 << 10;
/// Below the kernel's own limit for one packet (SCM_MAX_FD, 253).
const DESCRIPTORS: usize = 250;
/// A message that is longer than any that this program makes is a mistake.
const MAX_BYTES: u64 = 1 << 30;

/// First byte of a packet.
mod kind {
    /// The message follows.
    pub(super) const INLINE: u8 = 0;
    /// The message is in the file that the last descriptor names.
    pub(super) const IN_FILE: u8 = 1;
    /// Descriptors of a message to come.
    pub(super) const DESCRIPTORS: u8 = 2;
}

/// The end of a connection at which messages of one type come in.
#[derive(Debug)]
pub struct Receiver<T> {
    socket: Arc<OwnedFd>,
    /// Those that came ahead of their message.
    ahead: Vec<OwnedFd>,
    messages: PhantomData<fn() -> T>,
}

/// The same connection for messages that go out. Any thread may send.
#[derive(Debug)]
pub struct Sender<T> {
    socket: Arc<OwnedFd>,
    messages: PhantomData<fn(T)>,
}

/// What came in.
#[derive(Debug)]
pub enum Received<T> {
    /// A message and its descriptors.
    Message(T, Vec<OwnedFd>),
    /// Nothing now; only where the socket does not wait.
    Nothing,
    /// Whoever was at the other end is gone.
    End,
}

/// Two connected sockets, for [`connect`] here and in another process.
///
/// # Errors
/// Too many descriptors are open.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Both directions of one socket of a [`pair`].
pub fn connect<In, Out>(socket: OwnedFd) -> (Sender<Out>, Receiver<In>) {
    let socket = Arc::new(socket);
    let receiver = Receiver { socket: Arc::clone(&socket), ahead: Vec::new(), messages: PhantomData };
    (Sender { socket, messages: PhantomData }, receiver)
}

/// Has this end of a pair wait for nothing: neither for a message nor for room to send one.
///
/// # Errors
/// It is no socket.
pub fn set_nonblocking(socket: &impl AsFd) -> io::Result<()> {
    Ok(fcntl_setfl(socket, fcntl_getfl(socket)? | OFlags::NONBLOCK)?)
}

impl<T: Serialize> Sender<T> {
    /// Sends a message and the descriptors that belong to it, which stay open here.
    ///
    /// # Errors
    /// The other end is gone, or (where the socket does not wait) takes nothing now. What it was sent of this message is
    /// then of no use to it.
    pub fn send(&self, message: &T, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let bytes = postcard::to_stdvec(message).map_err(io::Error::other)?;
        let mut descriptors = descriptors.to_vec();
        let file;
        let (kind, payload) = if bytes.len() > INLINE_BYTES {
            file = in_file(&bytes)?;
            descriptors.push(file.as_fd());
            (kind::IN_FILE, &[][..])
        } else {
            (kind::INLINE, &bytes[..])
        };
        let mut rest = &descriptors[..];
        while rest.len() > DESCRIPTORS {
            let (now, later) = rest.split_at(DESCRIPTORS);
            self.send_packet(kind::DESCRIPTORS, &[], now)?;
            rest = later;
        }
        self.send_packet(kind, payload, rest)
    }

    fn send_packet(&self, kind: u8, payload: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
            unreachable!("there is room for as many as are sent at once");
        }
        let parts = [IoSlice::new(std::slice::from_ref(&kind)), IoSlice::new(payload)];
        rustix::io::retry_on_intr(|| sendmsg(&*self.socket, &parts, &mut ancillary, SendFlags::NOSIGNAL))?;
        Ok(())
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self { socket: Arc::clone(&self.socket), messages: PhantomData }
    }
}

impl<T: DeserializeOwned> Receiver<T> {
    /// The next message.
    ///
    /// # Errors
    /// What came is no message; nothing that comes after it can be trusted.
    pub fn receive(&mut self) -> io::Result<Received<T>> {
        loop {
            let mut buffer = [0; INLINE_BYTES + 1];
            let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(DESCRIPTORS))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let flags = RecvFlags::CMSG_CLOEXEC;
            let received = rustix::io::retry_on_intr(|| {
                recvmsg(&*self.socket, &mut [IoSliceMut::new(&mut buffer)], &mut ancillary, flags)
            });
            let received = match received {
                Ok(received) => received,
                Err(rustix::io::Errno::AGAIN) => return Ok(Received::Nothing),
                Err(rustix::io::Errno::CONNRESET) => return Ok(Received::End),
                Err(error) => return Err(error.into()),
            };
            for message in ancillary.drain() {
                if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                    self.ahead.extend(descriptors);
                }
            }
            if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
                // Without its descriptors this message is lost; the next ones need not be.
                self.ahead.clear();
                tracing::error!(
                    "a message between supervisor and worker is lost: too few descriptors are left"
                );
                continue;
            }
            let Some((kind, payload)) = buffer[..received.bytes].split_first() else {
                return Ok(Received::End);
            };
            let bytes = match *kind {
                kind::DESCRIPTORS => continue,
                kind::IN_FILE => self.ahead.pop().map(of_file).transpose()?.unwrap_or_default(),
                _ => payload.to_vec(),
            };
            let message = postcard::from_bytes(&bytes).map_err(io::Error::other)?;
            return Ok(Received::Message(message, std::mem::take(&mut self.ahead)));
        }
    }
}

impl<T> AsFd for Receiver<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn in_file(bytes: &[u8]) -> io::Result<OwnedFd> {
    let mut file = File::from(memfd_create("trylist-message", MemfdFlags::CLOEXEC)?);
    file.write_all(bytes)?;
    Ok(file.into())
}

fn of_file(file: OwnedFd) -> io::Result<Vec<u8>> {
    let mut file = File::from(file);
    // Both ends share the position, which is where the writer stopped.
    file.rewind()?;
    let mut bytes = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn both() -> (Sender<Vec<u8>>, Receiver<Vec<u8>>) {
        let (here, there) = pair().unwrap();
        set_nonblocking(&there).unwrap();
        let (sender, _) = connect::<(), _>(here);
        let (_, receiver) = connect::<_, ()>(there);
        (sender, receiver)
    }

    fn message(receiver: &mut Receiver<Vec<u8>>) -> (Vec<u8>, Vec<OwnedFd>) {
        match receiver.receive().unwrap() {
            Received::Message(message, descriptors) => (message, descriptors),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn messages_come_as_they_went_whatever_their_length() {
        let (sender, mut receiver) = both();
        for len in [0, 1, INLINE_BYTES, 1 << 20] {
            let bytes: Vec<u8> = (0..len).map(|i| i as u8).collect();
            sender.send(&bytes, &[]).unwrap();
            let (message, descriptors) = message(&mut receiver);
            assert!(message == bytes && descriptors.is_empty(), "{len}");
        }
        assert!(matches!(receiver.receive().unwrap(), Received::Nothing));
        drop(sender);
        assert!(matches!(receiver.receive().unwrap(), Received::End));
    }

    #[test]
    fn descriptors_come_in_their_order_with_their_message_however_many() {
        let (sender, mut receiver) = both();
        for (n, len) in [(1, 3), (DESCRIPTORS, 3), (DESCRIPTORS + 1, 3), (2 * DESCRIPTORS, 1 << 20)] {
            let folder = tempfile::tempdir().unwrap();
            let file = |i: usize| {
                std::fs::write(folder.path().join(i.to_string()), i.to_string()).unwrap();
                File::open(folder.path().join(i.to_string())).unwrap()
            };
            let files: Vec<File> = (0..n).map(file).collect();
            let descriptors: Vec<_> = files.iter().map(AsFd::as_fd).collect();
            sender.send(&vec![7; len], &descriptors).unwrap();
            let (message, descriptors) = message(&mut receiver);
            assert_eq!((message.len(), descriptors.len()), (len, n));
            for (i, descriptor) in descriptors.into_iter().enumerate() {
                let mut text = String::new();
                File::from(descriptor).read_to_string(&mut text).unwrap();
                assert_eq!(text, i.to_string());
            }
        }
    }

    #[test]
    fn rubbish_is_an_error_and_no_message() {
        let (here, there) = pair().unwrap();
        let (_, mut receiver) = connect::<Vec<String>, ()>(there);
        rustix::net::send(&here, &[kind::INLINE, 200, 1, 2], SendFlags::empty()).unwrap();
        assert!(receiver.receive().is_err());
    }
}
