//! Where the log's thread writes lines: stderr, a file, or the socket of a syslog daemon.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::blocking_writer::BlockingWriter;

/// For a syslog daemon that is busy or starts anew. Waited once; after that each line is tried once, until one is taken.
const PATIENCE: Duration = Duration::from_millis(500);
/// Between two tries meanwhile.
const PAUSE: Duration = Duration::from_millis(5);

/// Where lines go.
pub(crate) trait LogOutput: Send {
    /// Writes whole lines. An error comes with the number of lines that are lost.
    fn write_lines(&mut self, lines: &[u8]) -> Result<(), (io::Error, u64)>;

    /// Its name for people, where it is not stderr.
    fn name(&self) -> Option<&Path>;
}

/// Anything that takes bytes: stderr, or a file with its path.
pub(crate) struct StreamOutput<W> {
    stream: W,
    path: Option<PathBuf>,
    /// The last write ended within a line, which the next write has to end first.
    is_within_line: bool,
}

/// The socket of a syslog daemon. Each line is a datagram of its own, by path: so one daemon can take another one's place.
pub(crate) struct SyslogOutput {
    socket: UnixDatagram,
    path: PathBuf,
    /// The last line was not taken.
    is_failing: bool,
}

impl<W: Write> StreamOutput<W> {
    pub(crate) fn new(stream: W, path: Option<PathBuf>) -> Self {
        Self { stream, path, is_within_line: false }
    }
}

/// This process's stderr. Without the lock that `std` has around it, which a thread that panics would wait for.
pub(crate) fn stderr() -> StreamOutput<BlockingWriter<BorrowedFd<'static>>> {
    StreamOutput::new(BlockingWriter(rustix::stdio::stderr()), None)
}

/// A file that is open to append to.
pub(crate) fn file(file: File, path: &Path) -> StreamOutput<File> {
    StreamOutput::new(file, Some(path.to_owned()))
}

impl<W: Write + Send> LogOutput for StreamOutput<W> {
    fn write_lines(&mut self, lines: &[u8]) -> Result<(), (io::Error, u64)> {
        let mut rest = lines;
        let ends_line: &[u8] = if self.is_within_line { b"\n" } else { b"" };
        let mut before = ends_line;
        while !before.is_empty() || !rest.is_empty() {
            let part = if before.is_empty() { &mut rest } else { &mut before };
            match self.stream.write(part) {
                Ok(n) if n > 0 => {
                    self.is_within_line = part[n - 1] != b'\n';
                    *part = &part[n..];
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(_) => return Err((io::ErrorKind::WriteZero.into(), count(rest))),
                // The reader is gone, or the disk is full.
                Err(error) => return Err((error, count(rest))),
            }
        }
        Ok(())
    }

    fn name(&self) -> Option<&Path> {
        self.path.as_deref()
    }
}

impl SyslogOutput {
    /// # Errors
    /// The system gives no socket. A daemon need not be there yet.
    pub(crate) fn new(path: &Path) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, path: path.to_owned(), is_failing: false })
    }

    fn send(&mut self, line: &[u8]) -> io::Result<()> {
        let until = Instant::now() + if self.is_failing { Duration::ZERO } else { PATIENCE };
        loop {
            match self.socket.send_to(line, &self.path) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A line that is too long stays so.
                Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => return Err(error),
                Err(error) if Instant::now() >= until => return Err(error),
                Err(_) => thread::sleep(PAUSE),
            }
        }
    }
}

impl LogOutput for SyslogOutput {
    fn write_lines(&mut self, lines: &[u8]) -> Result<(), (io::Error, u64)> {
        let mut lost: Option<(io::Error, u64)> = None;
        for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            match self.send(line) {
                Ok(()) => self.is_failing = false,
                Err(error) => {
                    self.is_failing = error.raw_os_error() != Some(libc::EMSGSIZE);
                    let n = lost.map_or(0, |(_, n)| n);
                    lost = Some((error, n + 1));
                }
            }
        }
        lost.map_or(Ok(()), Err)
    }

    fn name(&self) -> Option<&Path> {
        Some(&self.path)
    }
}

pub(super) fn count(lines: &[u8]) -> u64 {
    memchr::memchr_iter(b'\n', lines).count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes so many bytes, then none.
    struct FullDisk(Vec<u8>, usize);

    impl Write for FullDisk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let n = bytes.len().min(self.1 - self.0.len());
            if n == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.0.extend_from_slice(&bytes[..n]);
            Ok(n)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn after_a_full_disk_lines_begin_on_a_line_of_their_own() {
        let mut output = StreamOutput::new(FullDisk(Vec::new(), 8), None);
        assert_eq!(output.write_lines(b"first\nsecond\nthird\n").unwrap_err().1, 2);
        output.stream.1 = 100;
        output.write_lines(b"fourth\n").unwrap();
        assert_eq!(output.stream.0, b"first\nse\nfourth\n");
    }

    #[test]
    fn a_syslog_daemon_may_go_away_and_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut output = SyslogOutput::new(&path).unwrap();
        assert_eq!(output.write_lines(b"<30>a\n<30>b\n").unwrap_err().1, 2, "nobody is there");
        let mut bytes = [0; 64];
        for _ in 0..2 {
            let daemon = UnixDatagram::bind(&path).unwrap();
            output.write_lines(b"<30>c\n<30>d\n").unwrap();
            for line in ["<30>c", "<30>d"] {
                let n = daemon.recv(&mut bytes).unwrap();
                assert_eq!(&bytes[..n], line.as_bytes());
            }
            drop(daemon);
            assert_eq!(output.write_lines(b"<30>e\n").unwrap_err().1, 1);
            std::fs::remove_file(&path).unwrap();
        }
    }

    #[test]
    fn a_syslog_daemon_that_reads_nothing_loses_lines_and_holds_nobody_for_long() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let daemon = UnixDatagram::bind(&path).unwrap();
        let mut output = SyslogOutput::new(&path).unwrap();
        let (_, n_lost) = output.write_lines(&b"<30>x\n".repeat(20_000)).unwrap_err();
        daemon.set_nonblocking(true).unwrap();
        let n_there = std::iter::from_fn(|| daemon.recv(&mut [0; 64]).ok()).count() as u64;
        assert!(n_there > 0 && n_there + n_lost == 20_000, "{n_there} {n_lost}");
        output.write_lines(b"<30>y\n").unwrap();
    }
}
