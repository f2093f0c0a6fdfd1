//! Writing that waits, to a descriptor that may be set not to.
//!
//! Standard output and standard error belong to the program that started this one, and other programs share them. So their
//! O_NONBLOCK is left as it is, and a write that finds no room waits until there is some.

use std::io::{self, Write};
use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

/// Writes to a descriptor, and waits where it takes nothing now.
#[derive(Debug)]
pub(crate) struct BlockingWriter<F>(pub(crate) F);

impl<F: AsFd> Write for BlockingWriter<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match rustix::io::write(&self.0, bytes) {
                Err(Errno::AGAIN) => match poll(&mut [PollFd::new(&self.0, PollFlags::OUT)], None) {
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                },
                written => return Ok(written?),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read as _;
    use std::thread;

    use rustix::pipe::{PipeFlags, pipe_with};

    use super::*;

    /// More than a pipe holds.
    static BYTES: [u8; 1 << 20] = [b'x'; 1 << 20];

    #[test]
    fn waits_for_room_where_the_descriptor_does_not() {
        let (reader, writer) = pipe_with(PipeFlags::NONBLOCK).unwrap();
        assert_eq!(
            File::from(writer.try_clone().unwrap()).write_all(&BYTES).unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
        let reading = thread::spawn(move || {
            let mut text = Vec::new();
            BlockingReader(File::from(reader)).read_to_end(&mut text).map(|_| text.len())
        });
        BlockingWriter(&writer).write_all(&BYTES).unwrap();
        drop(writer);
        assert!(reading.join().unwrap().unwrap() >= BYTES.len());
    }

    struct BlockingReader(File);

    impl io::Read for BlockingReader {
        fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
            poll(&mut [PollFd::new(&self.0, PollFlags::IN)], None)?;
            self.0.read(bytes)
        }
    }
}
