//! Messages between two processes of this program, with the descriptors that belong to them, over a Unix socket that
//! keeps packets apart.
//!
//! Both ends are the same binary, so there is no version to agree on. A large message goes through sealed memory that the
//! other end reads; descriptors that do not fit into one packet go ahead in packets of their own.
//!
//! A module can write to its worker's end. So each kind of message has a largest length, which is checked before the
//! message is read, and [`Receiver::receive`] returns after every packet: its caller decides how many it takes.

pub(crate) mod message;
pub(crate) mod scouting;

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Write as _};
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use postcard::ser_flavors::Size;
use rustix::cmsg_space;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{
    MemfdFlags, OFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fcntl_getfl, fcntl_setfl, memfd_create,
};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, Shutdown, SocketFlags, SocketType, recvmsg, sendmsg, shutdown,
    socketpair,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

/// Longest message that goes into a packet: well below what a socket's buffer takes, so that several fit.
const INLINE_BYTES: usize = 16 << 10;
/// Below the kernel's own limit for one packet (SCM_MAX_FD, 253).
const DESCRIPTORS: usize = 250;
/// Memory with a message in it, which nobody can change any more.
const SEALS: SealFlags = SealFlags::WRITE.union(SealFlags::GROW).union(SealFlags::SHRINK);

/// First byte of a packet.
mod kind {
    /// The message follows.
    pub(super) const INLINE: u8 = 0;
    /// The message is in the file that the last descriptor names.
    pub(super) const IN_FILE: u8 = 1;
    /// Descriptors of a message to come.
    pub(super) const DESCRIPTORS: u8 = 2;
}

/// A type of messages: an enum whose variants are the kinds.
pub(crate) trait ChannelMessage {
    /// Most descriptors of one message, with the one of the memory that a large message is in.
    const MOST_DESCRIPTORS: usize;

    /// Most bytes of a message of this kind, by the number of its variant; 0 where there is no such kind.
    fn most_bytes(kind: u8) -> u64;
}

/// The end of a connection at which messages of one type come in.
#[derive(Debug)]
pub(crate) struct Receiver<T> {
    socket: Arc<OwnedFd>,
    /// Descriptors that came ahead of their message.
    ahead: Vec<OwnedFd>,
    n_bytes: u64,
    messages: PhantomData<fn() -> T>,
}

/// The same connection for messages that go out. Any thread may send.
#[derive(Debug)]
pub(crate) struct Sender<T> {
    socket: Arc<OwnedFd>,
    messages: PhantomData<fn(T)>,
}

/// One step of receiving.
#[derive(Debug)]
pub(crate) enum Received<T> {
    /// A message and its descriptors.
    Message(T, Vec<OwnedFd>),
    /// Part of a message.
    Part,
    /// A message is lost: this process could open no more descriptors.
    Lost,
    /// Nothing now; only where the socket does not wait.
    Nothing,
    /// The other end is closed.
    End,
}

/// Two connected sockets, for [`connect`] here and in another process.
///
/// # Errors
/// Too many descriptors are open.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Both directions of one socket of a [`pair`].
pub(crate) fn connect<In, Out>(socket: OwnedFd) -> (Sender<Out>, Receiver<In>) {
    let socket = Arc::new(socket);
    let receiver =
        Receiver { socket: Arc::clone(&socket), ahead: Vec::new(), n_bytes: 0, messages: PhantomData };
    (Sender { socket, messages: PhantomData }, receiver)
}

/// Sets this end of a pair to non-blocking, for messages in both directions.
///
/// # Errors
/// It is no socket.
pub(crate) fn set_nonblocking(socket: &impl AsFd) -> io::Result<()> {
    Ok(fcntl_setfl(socket, fcntl_getfl(socket)? | OFlags::NONBLOCK)?)
}

impl<T: Serialize> Sender<T> {
    /// Sends a message and the descriptors that belong to it, which stay open here.
    ///
    /// # Errors
    /// The other end is gone, or (where the socket does not wait) takes nothing now. A part of the message that
    /// was sent is then of no use to it.
    pub(crate) fn send(&self, message: &T, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let bytes = serialized(message)?;
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

    /// Ends the connection, in both directions and for whoever waits at this end.
    pub(crate) fn close(&self) {
        // Where it has ended already, that is as good.
        let _ = shutdown(&*self.socket, Shutdown::Both);
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

impl<T> AsFd for Sender<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl<T: DeserializeOwned + ChannelMessage> Receiver<T> {
    /// The next packet, and the message that it completes.
    ///
    /// # Errors
    /// An invalid message, or one that is too long for its kind. Later messages cannot be trusted.
    pub(crate) fn receive(&mut self) -> io::Result<Received<T>> {
        let mut buffer = Zeroizing::new([0; INLINE_BYTES + 1]);
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = rustix::io::retry_on_intr(|| {
            recvmsg(&*self.socket, &mut [IoSliceMut::new(&mut *buffer)], &mut ancillary, flags)
        });
        let received = match received {
            Ok(received) => received,
            Err(rustix::io::Errno::AGAIN) => return Ok(Received::Nothing),
            // The other end was closed before it had read all. The system says so once, before what came from there: that is
            // still to be read, and often says why.
            Err(rustix::io::Errno::CONNRESET) => return Ok(Received::Part),
            Err(error) => return Err(error.into()),
        };
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                self.ahead.extend(descriptors);
            }
        }
        if self.ahead.len() > T::MOST_DESCRIPTORS {
            self.ahead.clear();
            return Err(invalid("a message with too many descriptors"));
        }
        if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
            // Without its descriptors this message is lost; the next ones need not be.
            self.ahead.clear();
            tracing::error!("a message of another process is lost: out of descriptors");
            return Ok(Received::Lost);
        }
        let Some((kind, payload)) = buffer[..received.bytes].split_first() else {
            return Ok(Received::End);
        };
        let in_file;
        let bytes = match *kind {
            kind::DESCRIPTORS => return Ok(Received::Part),
            kind::IN_FILE => {
                in_file = self.ahead.pop().map(of_file::<T>).transpose()?.unwrap_or_default();
                &in_file[..]
            }
            _ => payload,
        };
        self.n_bytes = bytes.len() as u64;
        let message = postcard::from_bytes(bytes).map_err(io::Error::other)?;
        Ok(Received::Message(message, std::mem::take(&mut self.ahead)))
    }

    /// How long the last message was.
    pub(crate) fn n_bytes(&self) -> u64 {
        self.n_bytes
    }
}

impl<T> Receiver<T> {
    /// Whether the other end is closed, messages that wait or not.
    pub(crate) fn is_closed(&self) -> bool {
        let mut fds = [PollFd::new(&*self.socket, PollFlags::empty())];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut fds, Some(&now)).is_ok() && fds[0].revents().intersects(PollFlags::HUP)
    }

    /// Takes nothing more: senders get an error and do not wait. The other direction is
    /// unaffected.
    pub(crate) fn close(self) {
        // Where the other end is gone already, that is as good.
        let _ = shutdown(&*self.socket, Shutdown::Read);
    }
}

impl<T> AsFd for Receiver<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A message may hold private keys: what it was made of is wiped, and is in one piece from the beginning, because a vector
/// that grows leaves copies behind.
fn serialized(message: &impl Serialize) -> io::Result<Zeroizing<Vec<u8>>> {
    let size = postcard::serialize_with_flavor(message, Size::default()).map_err(io::Error::other)?;
    let bytes = postcard::to_extend(message, Vec::with_capacity(size)).map_err(io::Error::other)?;
    Ok(Zeroizing::new(bytes))
}

/// A value in memory that has no process and that nobody can change, for several processes to read.
///
/// # Errors
/// The system has no memory or no descriptor left.
pub(crate) fn seal(value: &impl Serialize) -> io::Result<OwnedFd> {
    in_file(&serialized(value)?)
}

/// The value that [`seal`] has written. Only for memory that comes from a process that is trusted.
///
/// # Errors
/// It is something else.
pub(crate) fn unseal<T: DeserializeOwned>(file: OwnedFd) -> io::Result<T> {
    let file = File::from(file);
    let n_bytes = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
    let mut bytes = Zeroizing::new(vec![0; n_bytes]);
    file.read_exact_at(&mut bytes, 0)?;
    postcard::from_bytes(&bytes).map_err(io::Error::other)
}

/// Checks memory that another process has made: nobody can change it any more, and it has no more bytes than these.
///
/// # Errors
/// It is something else.
pub(crate) fn check_sealed(file: &OwnedFd, most_bytes: u64) -> io::Result<()> {
    if !fcntl_get_seals(file).is_ok_and(|seals| seals.contains(SEALS)) {
        return Err(invalid("a message outside of sealed memory"));
    }
    match rustix::fs::fstat(file)?.st_size {
        n if u64::try_from(n).is_ok_and(|n| n <= most_bytes) => Ok(()),
        n => Err(invalid(format!("a message of {n} bytes, {most_bytes} are the most"))),
    }
}

/// Standard input's descriptor, with nothing in its place: the end of a channel that a process was started with.
///
/// # Errors
/// It is closed.
pub(crate) fn take_stdin() -> io::Result<OwnedFd> {
    let socket = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), RawFd::from(3_u8))?;
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    Ok(socket)
}

fn in_file(bytes: &[u8]) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut file = File::from(memfd_create("trylist-message", flags)?);
    file.write_all(bytes)?;
    fcntl_add_seals(&file, SEALS | SealFlags::SEAL)?;
    Ok(file.into())
}

fn of_file<T: ChannelMessage>(file: OwnedFd) -> io::Result<Zeroizing<Vec<u8>>> {
    // To read anything but memory could take for ever: a pipe, a file of a file system that does not answer.
    if !fcntl_get_seals(&file).is_ok_and(|seals| seals.contains(SEALS)) {
        return Err(invalid("a message outside of sealed memory"));
    }
    let file = File::from(file);
    let len = file.metadata()?.len();
    let mut kind = [0];
    file.read_exact_at(&mut kind, 0)?;
    let most = T::most_bytes(kind[0]);
    if len > most {
        return Err(invalid(format!("a message of {len} bytes, but its kind has {most} at most")));
    }
    let mut bytes = Zeroizing::new(vec![0; usize::try_from(len).map_err(io::Error::other)?]);
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

fn invalid(text: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text.into())
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    impl ChannelMessage for Vec<u8> {
        const MOST_DESCRIPTORS: usize = 600;

        fn most_bytes(_: u8) -> u64 {
            2 << 20
        }
    }

    fn both() -> (Sender<Vec<u8>>, Receiver<Vec<u8>>) {
        let (here, there) = pair().unwrap();
        set_nonblocking(&there).unwrap();
        let (sender, _) = connect::<(), _>(here);
        let (_, receiver) = connect::<_, ()>(there);
        (sender, receiver)
    }

    fn message(receiver: &mut Receiver<Vec<u8>>) -> (Vec<u8>, Vec<OwnedFd>) {
        loop {
            match receiver.receive().unwrap() {
                Received::Message(message, descriptors) => return (message, descriptors),
                Received::Part => {}
                other => panic!("{other:?}"),
            }
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
        assert!(matches!(receiver.receive().unwrap(), Received::Nothing) && !receiver.is_closed());
        drop(sender);
        assert!(receiver.is_closed());
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
    fn what_is_sealed_can_be_read_often_and_never_changed() {
        let sealed = seal(&vec![7_u8; 100_000]).unwrap();
        for _ in 0..2 {
            let bytes: Vec<u8> = unseal(sealed.try_clone().unwrap()).unwrap();
            assert!(bytes == [7; 100_000]);
        }
        assert!(File::from(sealed).write_all(b"x").is_err());
    }

    #[test]
    fn rubbish_is_an_error_and_no_message() {
        let (here, there) = pair().unwrap();
        let (_, mut receiver) = connect::<Vec<u8>, ()>(there);
        rustix::net::send(&here, &[kind::INLINE, 200, 1, 2], SendFlags::empty()).unwrap();
        assert!(receiver.receive().is_err());
    }

    #[test]
    fn what_is_too_long_is_an_error_before_it_is_read() {
        let (sender, mut receiver) = both();
        sender.send(&vec![0; 3 << 20], &[]).unwrap();
        let error = receiver.receive().unwrap_err().to_string();
        assert_eq!(error, "a message of 3145732 bytes, but its kind has 2097152 at most");
    }

    #[test]
    fn more_descriptors_than_a_message_may_have_are_an_error() {
        let (sender, mut receiver) = both();
        let file = File::open("/dev/null").unwrap();
        sender.send(&Vec::new(), &vec![file.as_fd(); 601]).unwrap();
        let error = (0..9).find_map(|_| receiver.receive().err()).unwrap();
        assert_eq!(error.to_string(), "a message with too many descriptors");
    }

    #[test]
    fn a_message_that_there_are_no_descriptors_for_is_known_to_be_lost_and_the_next_one_comes() {
        let (sender, mut receiver) = both();
        let file = File::open("/dev/null").unwrap();
        // As many as the kernel sends at once: there is no room for them, as where no more can be open.
        let many = [file.as_fd(); 253];
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(253))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&many)));
        let payload = [IoSlice::new(&[kind::INLINE, 0])];
        sendmsg(&*sender.socket, &payload, &mut ancillary, SendFlags::empty()).unwrap();
        assert!(matches!(receiver.receive().unwrap(), Received::Lost));
        sender.send(&vec![7], &[]).unwrap();
        let (message, descriptors) = message(&mut receiver);
        assert_eq!((message, descriptors.len()), (vec![7], 0));
    }

    /// A pipe would have its reader wait for ever.
    #[test]
    fn a_message_in_anything_but_sealed_memory_is_an_error() {
        let (reader, _writer) = std::io::pipe().unwrap();
        let unsealed = memfd_create("x", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        for file in [reader.as_fd(), unsealed.as_fd()] {
            let (sender, mut receiver) = both();
            sender.send_packet(kind::IN_FILE, &[], &[file]).unwrap();
            let error = receiver.receive().unwrap_err().to_string();
            assert_eq!(error, "a message outside of sealed memory");
        }
    }

    #[test]
    fn the_last_message_of_an_end_that_had_not_read_all_is_heard() {
        let (here, there) = pair().unwrap();
        let (to_there, mut from_there) = connect::<Vec<u8>, Vec<u8>>(here);
        let (to_here, _) = connect::<Vec<u8>, Vec<u8>>(there);
        to_there.send(&vec![1], &[]).unwrap();
        to_here.send(&vec![2], &[]).unwrap();
        drop(to_here);
        assert_eq!(message(&mut from_there).0, [2]);
        assert!(matches!(from_there.receive().unwrap(), Received::End));
    }

    #[test]
    fn who_sends_to_an_end_that_is_closed_does_not_wait() {
        let (sender, receiver) = both();
        receiver.close();
        let error = sender.send(&Vec::new(), &[]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
