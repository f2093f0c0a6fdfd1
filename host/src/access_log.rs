//! One line a request: combined format, then what the balancing did.
//!
//! ```text
//! 10.0.0.9 - - [23/Nov/2026:01:40:34 +0000] "GET /x HTTP/1.1" 200 130 "-" "curl/8.5.0" cluster=api module=round_robin
//!   endpoint=http://127.0.0.1:9001 tries="http://127.0.0.1:9002 connect 0.000312, http://127.0.0.1:9001 served 0.002107"
//!   time=0.003110 first_byte=0.002044
//! ```
//! (in one line; times in seconds.) Bytes that could end a field or a line are written as `\xHH`, as nginx does.
//!
//! A request never waits for the log. Each worker thread formats into a buffer of its own ([`Writer`]) and hands it over
//! when it is full, or every second, through a channel of fixed length; one thread writes. Where that cannot keep up,
//! lines are dropped, counted, and spoken of in one warning a while.

use std::fs::File;
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender, TrySendError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::config::AccessLogTarget;

/// Bytes that are handed over at once: some 150 lines, so that the channel costs a line next to nothing.
const CHUNK_BYTES: usize = 32 * 1024;
/// Chunks that may wait to be written: 2 MiB at most while the disk is busy.
const QUEUED_CHUNKS: usize = 64;
/// Between two warnings about the same trouble.
const WARN_EVERY: Duration = Duration::from_secs(10);

/// The log of one worker: a thread that writes what the [`Writer`]s hand over. Dropping it writes what it was handed
/// and ends the thread, so drop the writers first.
#[derive(Debug)]
pub struct AccessLog {
    sender: SyncSender<Message>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// How many lines there were.
#[derive(Debug, Default)]
pub struct Lines {
    written: AtomicU64,
    dropped: AtomicU64,
}

/// One thread's end of the log.
#[derive(Debug)]
pub struct Writer {
    sender: SyncSender<Message>,
    shared: Arc<Shared>,
    chunk: Chunk,
    date: Date,
}

/// What is said of one request. Text may be any bytes: whatever could break out of its field is escaped.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// Address of the client.
    pub client: IpAddr,
    /// Method as sent; empty where the request could not be read.
    pub method: &'a [u8],
    /// Target as sent.
    pub target: &'a [u8],
    /// `HTTP/1.1` or `HTTP/1.0`.
    pub version: &'a str,
    /// Status that the client got; 0 where it got none.
    pub status: u16,
    /// Bytes of the response's body that the client got.
    pub body_bytes: u64,
    /// `Referer`, where there is one.
    pub referer: Option<&'a [u8]>,
    /// `User-Agent`, where there is one.
    pub user_agent: Option<&'a [u8]>,
    /// Name of the cluster; `None` where no route matched.
    pub cluster: Option<&'a str>,
    /// Module ID of the cluster's balancer.
    pub module: Option<&'a str>,
    /// URL of the endpoint whose response the client got.
    pub endpoint: Option<&'a str>,
    /// From the end of the request's head to the end of the response.
    pub duration_ns: u64,
    /// From the end of the request's head to the response's head, where a server answered.
    pub first_byte_ns: Option<u64>,
}

/// One try of a request.
#[derive(Clone, Copy, Debug)]
pub struct Try<'a> {
    /// URL of the endpoint.
    pub endpoint: &'a str,
    /// How it ended, in one word: [`crate::metrics::try_result`], or [`crate::metrics::failure`] where it was not
    /// established.
    pub result: &'a str,
    /// How long it took.
    pub duration_ns: u64,
}

impl AccessLog {
    /// Opens the log, or `None` where it is off.
    ///
    /// # Errors
    /// The file cannot be opened, or the thread not be started.
    pub fn open(target: &AccessLogTarget) -> io::Result<Option<Self>> {
        let output = match target {
            AccessLogTarget::Off => return Ok(None),
            AccessLogTarget::Stdout => {
                Output { path: None, file: Box::new(io::stdout()), broken_line: false }
            }
            AccessLogTarget::File(path) => {
                Output { path: Some(path.clone()), file: Box::new(append_to(path)?), broken_line: false }
            }
        };
        Self::start(output).map(Some)
    }

    fn start(output: Output) -> io::Result<Self> {
        let (sender, receiver) = mpsc::sync_channel(QUEUED_CHUNKS);
        let shared = Arc::new(Shared::default());
        let scribe = Scribe { output, shared: Arc::clone(&shared), warned: None };
        let thread = thread::Builder::new().name("access-log".into()).spawn(move || scribe.run(&receiver))?;
        Ok(Self { sender, shared, thread: Some(thread) })
    }

    /// A thread's end of the log.
    pub fn writer(&self) -> Writer {
        Writer {
            sender: self.sender.clone(),
            shared: Arc::clone(&self.shared),
            chunk: Chunk::default(),
            date: Date::default(),
        }
    }

    /// The counts, for the metrics.
    pub fn lines(&self) -> Arc<Lines> {
        Arc::clone(&self.shared.lines)
    }

    /// Opens the file again by its name, after a rotation. Returns at once: the log's thread does it, before it writes
    /// what is handed over from now on. If that fails, it goes on with the old file and says so.
    pub fn reopen(&self) {
        self.shared.reopen.store(true, Ordering::Release);
        // If the channel is full, the thread is awake and looks at the flag after its next chunk.
        let _ = self.sender.try_send(Message::LookAtFlags);
    }
}

impl Drop for AccessLog {
    fn drop(&mut self) {
        // Waits where the channel is full, which is right here: nothing serves any more. It fails if the thread is gone.
        let _ = self.sender.send(Message::End);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Lines {
    /// Lines that were written.
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Lines that were lost, because the disk was too slow or refused them.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

impl Writer {
    /// Writes one line about a request that is over now, with its tries in the order they were made.
    pub fn log<'t>(&mut self, entry: &Entry<'_>, tries: impl IntoIterator<Item = Try<'t>>) {
        self.log_at(SystemTime::now(), entry, tries);
    }

    /// Hands over what is buffered. To be called about once a second by the thread that owns it, so that lines are not
    /// kept back while there is no traffic; dropping does it too.
    pub fn flush(&mut self) {
        if self.chunk.n_lines == 0 {
            return;
        }
        match self.sender.try_send(Message::Chunk(std::mem::take(&mut self.chunk))) {
            Ok(()) => {}
            Err(TrySendError::Full(message) | TrySendError::Disconnected(message)) => {
                let Message::Chunk(chunk) = message else { unreachable!("it was sent as a chunk") };
                self.chunk = chunk;
            }
        }
    }

    fn log_at<'t>(&mut self, now: SystemTime, entry: &Entry<'_>, tries: impl IntoIterator<Item = Try<'t>>) {
        if self.chunk.bytes.len() >= CHUNK_BYTES {
            self.flush();
            if self.chunk.n_lines > 0 {
                self.shared.drop_lines(1);
                return;
            }
        }
        self.date.set(now);
        entry.format(&mut self.chunk.bytes, self.date.text(), tries);
        self.chunk.n_lines += 1;
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.flush();
        if self.chunk.n_lines > 0 {
            self.shared.drop_lines(self.chunk.n_lines);
        }
    }
}

#[derive(Debug, Default)]
struct Shared {
    lines: Arc<Lines>,
    reopen: AtomicBool,
    /// Seconds since 1970 at the last warning about lines dropped.
    warned_s: AtomicU64,
}

impl Shared {
    /// Counts, and warns unless somebody did a moment ago. The warning comes from the thread that dropped, because the
    /// one that writes may be stuck in a write.
    fn drop_lines(&self, n: u64) {
        let dropped = self.lines.dropped.fetch_add(n, Ordering::Relaxed) + n;
        let now_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let warned_s = self.warned_s.load(Ordering::Relaxed);
        let due = now_s.abs_diff(warned_s) >= WARN_EVERY.as_secs();
        if due
            && self.warned_s.compare_exchange(warned_s, now_s, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        {
            tracing::warn!(dropped, "access log: lines are dropped because writing them cannot keep up");
        }
    }
}

/// Whole lines.
#[derive(Debug, Default)]
struct Chunk {
    bytes: Vec<u8>,
    n_lines: u64,
}

#[derive(Debug)]
enum Message {
    Chunk(Chunk),
    LookAtFlags,
    End,
}

// ---- the thread that writes -----------------------------------------------------------------------------------------

struct Scribe {
    output: Output,
    shared: Arc<Shared>,
    warned: Option<Instant>,
}

/// Where lines go.
struct Output {
    path: Option<PathBuf>,
    file: Box<dyn Write + Send>,
    /// A write failed within a line, so that the next one must end that first.
    broken_line: bool,
}

impl Scribe {
    fn run(mut self, receiver: &Receiver<Message>) {
        while let Ok(message) = receiver.recv() {
            if self.shared.reopen.swap(false, Ordering::Acquire) {
                self.reopen();
            }
            match message {
                Message::Chunk(chunk) => self.write(&chunk),
                Message::LookAtFlags => {}
                Message::End => break,
            }
        }
        // Chunks of writers that were dropped while the end was on its way.
        for message in receiver.try_iter() {
            if let Message::Chunk(chunk) = message {
                self.write(&chunk);
            }
        }
    }

    fn write(&mut self, chunk: &Chunk) {
        let n_written = match self.output.write(&chunk.bytes) {
            Ok(()) => chunk.n_lines,
            Err((error, n_bytes)) => {
                if self.warned.is_none_or(|at| at.elapsed() >= WARN_EVERY) {
                    self.warned = Some(Instant::now());
                    let file = self.output.name();
                    tracing::warn!(%error, "access log {file}: lines are lost because writing fails");
                }
                memchr::memchr_iter(b'\n', &chunk.bytes[..n_bytes]).count() as u64
            }
        };
        self.shared.lines.written.fetch_add(n_written, Ordering::Relaxed);
        self.shared.lines.dropped.fetch_add(chunk.n_lines - n_written, Ordering::Relaxed);
    }

    fn reopen(&mut self) {
        let Some(path) = &self.output.path else { return };
        match append_to(path) {
            Ok(file) => {
                self.output.file = Box::new(file);
                self.output.broken_line = false;
                tracing::info!("access log {}: opened again", path.display());
            }
            Err(error) => {
                tracing::error!(%error, "access log {}: cannot be opened again; the old file goes on", path.display());
            }
        }
    }
}

impl Output {
    /// Writes whole lines, or says how many bytes of them went before the error.
    fn write(&mut self, bytes: &[u8]) -> Result<(), (io::Error, usize)> {
        let mut n_done = 0;
        if self.broken_line {
            self.file.write_all(b"\n").map_err(|error| (error, n_done))?;
            self.broken_line = false;
        }
        while n_done < bytes.len() {
            match self.file.write(&bytes[n_done..]) {
                Ok(0) => return Err((io::ErrorKind::WriteZero.into(), n_done)),
                Ok(n) => {
                    n_done += n;
                    self.broken_line = bytes[n_done - 1] != b'\n';
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err((error, n_done)),
            }
        }
        self.file.flush().map_err(|error| (error, n_done))
    }

    fn name(&self) -> String {
        self.path.as_ref().map_or_else(|| "stdout".into(), |path| path.display().to_string())
    }
}

fn append_to(path: &Path) -> io::Result<File> {
    File::options().append(true).create(true).open(path)
}

// ---- the form of a line ---------------------------------------------------------------------------------------------

impl Entry<'_> {
    fn format<'t>(&self, line: &mut Vec<u8>, date: &[u8], tries: impl IntoIterator<Item = Try<'t>>) {
        put(line, format_args!("{} - - [", self.client));
        line.extend_from_slice(date);
        line.extend_from_slice(b"] \"");
        if self.method.is_empty() {
            line.push(b'-');
        } else {
            escape(line, self.method);
            line.push(b' ');
            escape(line, self.target);
            line.push(b' ');
            escape(line, self.version.as_bytes());
        }
        put(line, format_args!("\" {:03} {}", self.status, self.body_bytes));
        for field in [self.referer, self.user_agent] {
            line.extend_from_slice(b" \"");
            escape(line, field.unwrap_or(b"-"));
            line.push(b'"');
        }
        for (name, value) in
            [(" cluster=", self.cluster), (" module=", self.module), (" endpoint=", self.endpoint)]
        {
            line.extend_from_slice(name.as_bytes());
            escape_word(line, value);
        }
        line.extend_from_slice(b" tries=\"");
        let mut separator = "";
        for tried in tries {
            line.extend_from_slice(separator.as_bytes());
            separator = ", ";
            escape(line, tried.endpoint.as_bytes());
            line.push(b' ');
            escape(line, tried.result.as_bytes());
            line.push(b' ');
            put_seconds(line, tried.duration_ns);
        }
        if separator.is_empty() {
            line.push(b'-');
        }
        line.extend_from_slice(b"\" time=");
        put_seconds(line, self.duration_ns);
        line.extend_from_slice(b" first_byte=");
        match self.first_byte_ns {
            Some(ns) => put_seconds(line, ns),
            None => line.push(b'-'),
        }
        line.push(b'\n');
    }
}

fn put(line: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    line.write_fmt(text).expect("writing to a vector cannot fail");
}

fn put_seconds(line: &mut Vec<u8>, ns: u64) {
    let us = ns / 1_000;
    put(line, format_args!("{}.{:06}", us / 1_000_000, us % 1_000_000));
}

/// Bytes for within quotes. What nginx escapes: quotes, backslashes, control bytes, and all that is not ASCII.
fn escape(line: &mut Vec<u8>, bytes: &[u8]) {
    escape_if(line, bytes, |byte| matches!(byte, b'"' | b'\\' | ..b' ' | 0x7f..));
}

/// A word of its own: spaces would end it, and none is a dash.
fn escape_word(line: &mut Vec<u8>, word: Option<&str>) {
    let word = word.filter(|word| !word.is_empty()).unwrap_or("-");
    escape_if(line, word.as_bytes(), |byte| matches!(byte, b'"' | b'\\' | ..=b' ' | 0x7f..));
}

fn escape_if(line: &mut Vec<u8>, mut bytes: &[u8], is_special: impl Fn(u8) -> bool) {
    while let Some(at) = bytes.iter().position(|byte| is_special(*byte)) {
        line.extend_from_slice(&bytes[..at]);
        put(line, format_args!("\\x{:02X}", bytes[at]));
        bytes = &bytes[at + 1..];
    }
    line.extend_from_slice(bytes);
}

/// `23/Nov/2026:01:40:34 +0000`, made once a second.
#[derive(Debug, Default)]
struct Date {
    of_s: u64,
    text: Vec<u8>,
}

impl Date {
    fn set(&mut self, now: SystemTime) {
        let now_s = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        if now_s == self.of_s && !self.text.is_empty() {
            return;
        }
        self.of_s = now_s;
        // `Mon, 23 Nov 2026 01:40:34 GMT`, which has every part in a fixed place.
        let http = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(now_s));
        self.text.clear();
        put(
            &mut self.text,
            format_args!("{}/{}/{}:{} +0000", &http[5..7], &http[8..11], &http[12..16], &http[17..25]),
        );
    }

    fn text(&self) -> &[u8] {
        &self.text
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn writes_the_documented_line() {
        let tries = [
            Try { endpoint: "http://127.0.0.1:9002", result: "connect", duration_ns: 312_400 },
            Try { endpoint: "http://127.0.0.1:9001", result: "served", duration_ns: 2_107_000 },
        ];
        assert_eq!(
            line(&entry(), tries),
            "10.0.0.9 - - [23/Nov/2026:01:40:34 +0000] \"GET /x HTTP/1.1\" 200 130 \"-\" \"curl/8.5.0\" cluster=api \
             module=round_robin endpoint=http://127.0.0.1:9001 tries=\"http://127.0.0.1:9002 connect 0.000312, \
             http://127.0.0.1:9001 served 0.002107\" time=0.003110 first_byte=0.002044\n"
        );
    }

    #[test]
    fn what_is_not_known_is_a_dash() {
        let entry = Entry {
            client: "::1".parse().expect("an address"),
            method: b"",
            target: b"",
            version: "",
            status: 0,
            body_bytes: 0,
            referer: None,
            user_agent: None,
            cluster: None,
            module: None,
            endpoint: None,
            duration_ns: 1_500_000_000,
            first_byte_ns: None,
        };
        assert_eq!(
            line(&entry, []),
            "::1 - - [23/Nov/2026:01:40:34 +0000] \"-\" 000 0 \"-\" \"-\" cluster=- module=- endpoint=- tries=\"-\" \
             time=1.500000 first_byte=-\n"
        );
    }

    #[test]
    fn no_byte_breaks_out_of_its_field() {
        let every: Vec<u8> = (0..=255).collect();
        let word: String = (0..=255).map(char::from).collect();
        let entry = Entry {
            method: &every,
            target: &every,
            version: &word,
            referer: Some(&every),
            user_agent: Some(&every),
            cluster: Some(&word),
            module: Some(&word),
            endpoint: Some(&word),
            ..entry()
        };
        let line = line(&entry, [Try { endpoint: &word, result: &word, duration_ns: 0 }]);
        assert!(line.bytes().all(|byte| matches!(byte, b' '..=b'~' | b'\n')), "{line}");
        assert_eq!(line.matches('\n').count(), 1);
        assert_eq!(line.matches('"').count(), 8, "two around each of the four quoted fields: {line}");
        assert!(line.contains(r"\x09\x0A\x0B\x0C\x0D"), "{line}");
        assert!(
            line.contains(r#" !\x22#$"#) && line.contains(r"[\x5C]") && line.contains(r"~\x7F\x80"),
            "{line}"
        );
        let cluster =
            line.split(" cluster=").nth(1).and_then(|rest| rest.split(" module=").next()).expect("a cluster");
        assert!(cluster.contains(r"\x1F\x20!") && !cluster.contains(' '), "{cluster}");
    }

    #[test]
    fn the_date_follows_the_clock() {
        let mut date = Date::default();
        for (http, expected) in [
            ("Thu, 01 Jan 1970 00:00:00 GMT", "01/Jan/1970:00:00:00 +0000"),
            ("Tue, 29 Feb 2028 23:59:59 GMT", "29/Feb/2028:23:59:59 +0000"),
            ("Wed, 01 Mar 2028 00:00:00 GMT", "01/Mar/2028:00:00:00 +0000"),
        ] {
            date.set(httpdate::parse_http_date(http).expect("a date"));
            assert_eq!(date.text(), expected.as_bytes());
        }
    }

    #[test]
    fn off_is_nothing() {
        assert!(AccessLog::open(&AccessLogTarget::Off).expect("nothing to fail").is_none());
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_an_error() {
        let folder = tempfile::tempdir().expect("a folder");
        AccessLog::open(&AccessLogTarget::File(folder.path().into())).expect_err("a folder is not a file");
    }

    #[test]
    fn all_lines_of_all_threads_are_in_the_file_when_the_log_is_dropped() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("access.log");
        std::fs::write(&path, "an earlier line\n").expect("written");
        let log = open(&path);
        let threads: Vec<_> = (0..3)
            .map(|_| {
                let mut writer = log.writer();
                thread::spawn(move || (0..200).for_each(|_| writer.log(&entry(), [])))
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().expect("it logs"));
        let lines = log.lines();
        drop(log);
        let text = std::fs::read_to_string(&path).expect("the file");
        assert_eq!(text.lines().count(), 601);
        assert!(text.starts_with("an earlier line\n"), "it is appended to");
        assert!(
            text.lines().skip(1).all(|line| line.starts_with("10.0.0.9 - - [") && line.ends_with("0.002044"))
        );
        assert_eq!((lines.written(), lines.dropped()), (600, 0));
    }

    #[test]
    fn lines_are_there_after_a_flush_without_more_traffic() {
        let folder = tempfile::tempdir().expect("a folder");
        let log = open(&folder.path().join("access.log"));
        let mut writer = log.writer();
        writer.log(&entry(), []);
        writer.flush();
        wait_until(|| log.lines().written() == 1);
    }

    #[test]
    fn follows_a_rotation_when_asked_to_reopen() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, rotated) = (folder.path().join("access.log"), folder.path().join("access.log.1"));
        let log = open(&path);
        let mut writer = log.writer();
        for (n_written, target) in [(1, b"/first"), (2, b"/other")] {
            writer.log(&Entry { target, ..entry() }, []);
            writer.flush();
            wait_until(|| log.lines().written() == n_written);
            if n_written == 1 {
                std::fs::rename(&path, &rotated).expect("renamed");
                log.reopen();
                wait_until(|| path.exists());
            }
        }
        assert!(std::fs::read_to_string(&rotated).expect("the old file").contains("/first"));
        let text = std::fs::read_to_string(&path).expect("the new file");
        assert!(text.contains("/other") && !text.contains("/first"), "{text}");
    }

    #[test]
    fn goes_on_with_the_old_file_when_the_new_one_cannot_be_opened() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, rotated) = (folder.path().join("access.log"), folder.path().join("access.log.1"));
        let log = open(&path);
        std::fs::rename(&path, &rotated).expect("renamed");
        std::fs::create_dir(&path).expect("in the way");
        log.reopen();
        let mut writer = log.writer();
        writer.log(&entry(), []);
        drop(writer);
        drop(log);
        assert_eq!(std::fs::read_to_string(&rotated).expect("the old file").lines().count(), 1);
    }

    #[test]
    fn drops_and_counts_lines_while_the_output_is_stuck_and_loses_no_other() {
        let (open_gate, gate) = mpsc::channel();
        let text = Arc::new(Mutex::new(Vec::new()));
        let log = start(Gated { gate, text: Arc::clone(&text) });
        let mut writer = log.writer();
        let mut n_logged = 0;
        while log.lines().dropped() < 10 {
            writer.log(&entry(), []);
            n_logged += 1;
            assert!(n_logged < 1_000_000, "nothing bounds what waits");
        }
        assert_eq!(log.lines().written(), 0, "the output is stuck");
        drop(open_gate);
        wait_until(|| log.lines().written() > 0);
        drop(writer);
        let lines = log.lines();
        drop(log);
        assert_eq!(lines.written() + lines.dropped(), n_logged);
        let text = text.lock().expect("not poisoned");
        assert_eq!(memchr::memchr_iter(b'\n', &text).count() as u64, lines.written());
    }

    #[test]
    fn a_line_that_broke_off_does_not_swallow_the_next() {
        let text = Arc::new(Mutex::new(Vec::new()));
        let log = start(FailsOnce { after_bytes: Some(100), text: Arc::clone(&text) });
        let mut writer = log.writer();
        writer.log(&entry(), []);
        writer.log(&entry(), []);
        writer.flush();
        writer.log(&Entry { target: b"/after", ..entry() }, []);
        drop(writer);
        let lines = log.lines();
        drop(log);
        assert_eq!((lines.written(), lines.dropped()), (1, 2));
        let text = String::from_utf8(text.lock().expect("not poisoned").clone()).expect("ASCII");
        let last = text.lines().last().expect("lines");
        assert!(last.starts_with("10.0.0.9 - - [") && last.contains("/after"), "{text}");
    }

    #[test]
    fn lines_that_the_disk_refuses_are_counted() {
        let log = open(Path::new("/dev/full"));
        let mut writer = log.writer();
        writer.log(&entry(), []);
        writer.log(&entry(), []);
        drop(writer);
        wait_until(|| log.lines().dropped() == 2);
        assert_eq!(log.lines().written(), 0);
    }

    #[test]
    fn a_writer_that_outlives_the_log_only_counts() {
        let folder = tempfile::tempdir().expect("a folder");
        let log = open(&folder.path().join("access.log"));
        let (mut writer, lines) = (log.writer(), log.lines());
        drop(log);
        writer.log(&entry(), []);
        drop(writer);
        assert_eq!(lines.dropped(), 1);
    }

    fn entry() -> Entry<'static> {
        Entry {
            client: "10.0.0.9".parse().expect("an address"),
            method: b"GET",
            target: b"/x",
            version: "HTTP/1.1",
            status: 200,
            body_bytes: 130,
            referer: None,
            user_agent: Some(b"curl/8.5.0"),
            cluster: Some("api"),
            module: Some("round_robin"),
            endpoint: Some("http://127.0.0.1:9001"),
            duration_ns: 3_110_900,
            first_byte_ns: Some(2_044_000),
        }
    }

    /// The line that a writer would write at a fixed time.
    fn line<'t>(entry: &Entry<'_>, tries: impl IntoIterator<Item = Try<'t>>) -> String {
        let now = httpdate::parse_http_date("Mon, 23 Nov 2026 01:40:34 GMT").expect("a date");
        let log = start(io::sink());
        let mut writer = log.writer();
        writer.log_at(now, entry, tries);
        String::from_utf8(writer.chunk.bytes.clone()).expect("ASCII")
    }

    fn open(path: &Path) -> AccessLog {
        AccessLog::open(&AccessLogTarget::File(path.into())).expect("it opens").expect("it is on")
    }

    fn start(file: impl Write + Send + 'static) -> AccessLog {
        AccessLog::start(Output { path: None, file: Box::new(file), broken_line: false }).expect("a thread")
    }

    fn wait_until(happened: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !happened() {
            assert!(Instant::now() < deadline, "it never happened");
            thread::yield_now();
        }
    }

    /// Writes nothing until the other end of the gate is dropped.
    struct Gated {
        gate: Receiver<()>,
        text: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Gated {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.gate.recv();
            self.text.lock().expect("not poisoned").write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Fails once, after so many bytes.
    struct FailsOnce {
        after_bytes: Option<usize>,
        text: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for FailsOnce {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut text = self.text.lock().expect("not poisoned");
            match self.after_bytes {
                Some(0) => {
                    self.after_bytes = None;
                    Err(io::ErrorKind::StorageFull.into())
                }
                Some(left) => {
                    let n = left.min(bytes.len());
                    self.after_bytes = Some(left - n);
                    text.write(&bytes[..n])
                }
                None => text.write(bytes),
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
}
