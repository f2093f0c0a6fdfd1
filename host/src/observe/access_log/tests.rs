//! The form of a line, and the fate of lines that cannot be written.

use std::sync::Mutex;

use super::*;
use crate::config::{LogField, LogPart};

#[test]
fn writes_the_documented_line() {
    let tries = two_tries(None);
    assert_eq!(
        line(&entry(), tries),
        "10.0.0.9 - - [23/Nov/2026:01:40:34 +0000] \"GET /x HTTP/1.1\" 200 130 \"-\" \"curl/8.5.0\" cluster=api \
         module=round_robin endpoint=http://127.0.0.1:9001 tries=\"http://127.0.0.1:9002 connect 0.000312, \
         http://127.0.0.1:9001 served 200 0.002107\" time=0.003110 first_byte=0.002044\n"
    );
}

#[test]
fn writes_the_combined_format_alone() {
    assert_eq!(
        line_as(LogFormat::Combined, &entry(), []),
        "10.0.0.9 - - [23/Nov/2026:01:40:34 +0000] \"GET /x HTTP/1.1\" 200 130 \"-\" \"curl/8.5.0\"\n"
    );
}

#[test]
fn writes_every_field_as_json() {
    let tries = two_tries(Some("refused \"now\""));
    let line = line_as(LogFormat::Json, &entry(), tries);
    assert!(line.ends_with("}\n") && line.matches('\n').count() == 1, "{line}");
    let object: serde_json::Value = serde_json::from_str(&line).expect("JSON");
    let expected = serde_json::json!({
        "time": "2026-11-23T01:40:34.007Z", "client": "10.0.0.9", "method": "GET", "target": "/x",
        "version": "HTTP/1.1", "host": "site.test", "scheme": "https", "tls_version": "1.3", "sni": "site.test",
        "status": 200, "received_bytes": 77, "sent_bytes": 300, "body_bytes": 130, "referer": null,
        "user_agent": "curl/8.5.0", "cluster": "api", "module": "round_robin",
        "endpoint": "http://127.0.0.1:9001",
        "tries": [
            { "endpoint": "http://127.0.0.1:9002", "result": "connect", "status": null, "time": 0.000_312, "reason": "refused \"now\"" },
            { "endpoint": "http://127.0.0.1:9001", "result": "served", "status": 200, "time": 0.002_107 },
        ],
        "duration": 0.003_110, "first_byte": 0.002_044, "request_id": null,
    });
    assert_eq!(object, expected);
    // Every name of a template is there, but for the two forms of the time.
    for (name, _) in crate::config::LogField::ALL {
        assert!(name == "time_iso" || object.get(name).is_some(), "{name}");
    }
}

#[test]
fn every_byte_of_a_peer_is_valid_json() {
    let every: Vec<u8> = (0..=255).collect();
    let entry = LogEntry { target: &every, user_agent: Some("é\u{2028}\"".as_bytes()), ..entry() };
    let line = line_as(LogFormat::Json, &entry, []);
    assert!(!line.trim_end().contains(char::is_control), "{line}");
    let object: serde_json::Value = serde_json::from_str(&line).expect("JSON");
    assert_eq!(object["user_agent"], "é\u{2028}\"");
    let target = object["target"].as_str().expect("a text");
    assert!(
        target.starts_with("\0\u{1}") && target.contains("!\"#") && target.ends_with('\u{fffd}'),
        "{target}"
    );
}

#[test]
fn writes_a_template() {
    let field = LogPart::Field;
    let parts = vec![
        LogPart::Text("t=".into()),
        field(LogField::TimeIso),
        LogPart::Text(" ua=\"".into()),
        field(LogField::UserAgent),
        LogPart::Text("\" ".into()),
        field(LogField::Tries),
        LogPart::Text(" ".into()),
        field(LogField::RequestId),
    ];
    let entry = LogEntry { user_agent: Some(b"a \"b\"\n"), ..entry() };
    assert_eq!(
        line_as(LogFormat::Template(parts), &entry, []),
        "t=2026-11-23T01:40:34.007Z ua=\"a \\x22b\\x22\\x0A\" - -\n"
    );
}

#[test]
fn what_is_not_known_is_a_dash_and_a_unix_socket_is_called_so() {
    let entry = LogEntry {
        client: None,
        method: b"",
        target: b"",
        version: "",
        host: None,
        scheme: "http",
        tls: None,
        received_bytes: 0,
        sent_bytes: 0,
        status: 0,
        body_bytes: 0,
        referer: None,
        user_agent: None,
        cluster: None,
        module: None,
        endpoint: None,
        duration_ns: 1_500_000_000,
        first_byte_ns: None,
        request_id: None,
    };
    assert_eq!(
        line(&entry, []),
        "unix: - - [23/Nov/2026:01:40:34 +0000] \"-\" 000 0 \"-\" \"-\" cluster=- module=- endpoint=- tries=\"-\" \
         time=1.500000 first_byte=-\n"
    );
}

#[test]
fn no_byte_breaks_out_of_its_field() {
    let every: Vec<u8> = (0..=255).collect();
    let word: String = (0..=255).map(char::from).collect();
    let entry = LogEntry {
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
    let line =
        line(&entry, [Try { endpoint: &word, result: &word, status: 0, duration_ns: 0, reason: None }]);
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
    let mut date = LogDate::default();
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
    assert!(AccessLog::open(&AccessLogTarget::Off, None).expect("nothing to fail").is_none());
}

#[test]
fn a_file_that_cannot_be_opened_is_an_error() {
    let folder = tempfile::tempdir().expect("a folder");
    AccessLog::open(&AccessLogTarget::File(folder.path().into()), None).expect_err("a folder is not a file");
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
        writer.log(&LogEntry { target, ..entry() }, []);
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
    writer.log(&LogEntry { target: b"/after", ..entry() }, []);
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

/// Names that nobody could open: the files are those that were handed over.
#[test]
fn writes_to_files_that_somebody_else_has_opened() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str| append_to(&folder.path().join(name)).expect("it opens");
    let text = |name: &str| std::fs::read_to_string(folder.path().join(name)).expect("it is there");
    let target = AccessLogTarget::File("/no/such/folder/access.log".into());
    assert!(AccessLog::open(&target, None).is_err());
    let log = AccessLog::open(&target, Some(file("first"))).expect("it is open").expect("it is on");
    let mut writer = log.writer();
    writer.log(&entry(), []);
    writer.flush();
    wait_until(|| log.lines().written() == 1);
    log.reopen();
    writer.log(&entry(), []);
    writer.flush();
    wait_until(|| log.lines().written() == 2);
    log.reopen_with(file("second"));
    writer.log(&entry(), []);
    drop(writer);
    drop(log);
    assert_eq!((text("first").lines().count(), text("second").lines().count()), (2, 1));
}

#[test]
fn a_log_that_is_off_stays_off_whatever_is_handed_over() {
    let file = tempfile::tempfile().expect("a file");
    assert!(AccessLog::open(&AccessLogTarget::Off, Some(file)).expect("nothing to fail").is_none());
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

#[test]
fn a_named_pipe_needs_no_reader_and_its_reader_sees_no_end_between_two_workers() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("log");
    make_pipe(&path);
    // As a supervisor has it, whose worker gets a copy.
    let first = append_to(&path).expect("nobody reads it yet");
    let mut reader = File::open(&path).expect("it has a writer");
    (&first).write_all(b"1").expect("written");
    let second = append_to(&path).expect("it opens");
    drop(first);
    (&second).write_all(b"2").expect("written");
    let mut text = [0; 2];
    io::Read::read_exact(&mut reader, &mut text).expect("both");
    assert_eq!(&text, b"12");
}

#[test]
fn lines_are_kept_where_standard_output_takes_nothing_for_a_while() {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::NONBLOCK).expect("a pipe");
    let log = AccessLog::open(&AccessLogTarget::Stdout, Some(File::from(writer))).expect("it opens");
    let log = log.expect("it is on");
    let lines = log.lines();
    let n_lines = 2000;
    let reading = thread::spawn(move || {
        let (mut text, mut piece) = (Vec::new(), vec![0; 4096]);
        while memchr::memchr_iter(b'\n', &text).count() < n_lines {
            match rustix::io::read(&reader, &mut piece) {
                Ok(n) => text.extend_from_slice(&piece[..n]),
                Err(_) => thread::yield_now(),
            }
        }
    });
    // More than the pipe takes, of which nothing is read before it is full.
    let mut writer = log.writer();
    for _ in 0..n_lines {
        writer.log(&entry(), []);
    }
    drop(writer);
    log.end();
    reading.join().expect("every line");
    assert_eq!((lines.written(), lines.dropped()), (n_lines as u64, 0));
}

#[test]
fn what_was_handed_over_is_written_when_the_log_has_ended() {
    let text = Arc::new(Mutex::new(Vec::new()));
    let (open, gate) = mpsc::channel();
    let log = start(Gated { gate, text: Arc::clone(&text) });
    let mut writer = log.writer();
    writer.log(&entry(), []);
    drop(writer);
    drop(open);
    log.end();
    assert_eq!(memchr::memchr_iter(b'\n', &text.lock().expect("not poisoned")).count(), 1);
    log.end();
}

fn make_pipe(path: &Path) {
    rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0)
        .expect("a pipe");
}

/// One that is not established, for this reason, and one that is served.
fn two_tries(reason: Option<&str>) -> [Try<'_>; 2] {
    let failed =
        Try { endpoint: "http://127.0.0.1:9002", result: "connect", status: 0, duration_ns: 312_400, reason };
    let (endpoint, result) = ("http://127.0.0.1:9001", "served");
    [failed, Try { endpoint, result, status: 200, duration_ns: 2_107_000, reason: None }]
}

fn entry() -> LogEntry<'static> {
    LogEntry {
        client: Some([10, 0, 0, 9].into()),
        method: b"GET",
        target: b"/x",
        version: "HTTP/1.1",
        host: Some(b"site.test"),
        scheme: "https",
        tls: Some(TlsSeen { version: "1.3", name: Some("site.test") }),
        received_bytes: 77,
        sent_bytes: 300,
        status: 200,
        body_bytes: 130,
        referer: None,
        user_agent: Some(b"curl/8.5.0"),
        cluster: Some("api"),
        module: Some("round_robin"),
        endpoint: Some("http://127.0.0.1:9001"),
        duration_ns: 3_110_900,
        first_byte_ns: Some(2_044_000),
        request_id: None,
    }
}

/// The line that a writer would write at a fixed time.
fn line<'t>(entry: &LogEntry<'_>, tries: impl IntoIterator<Item = Try<'t>, IntoIter: Clone>) -> String {
    line_as(LogFormat::Full, entry, tries)
}

/// The same in another form.
fn line_as<'t>(
    format: LogFormat,
    entry: &LogEntry<'_>,
    tries: impl IntoIterator<Item = Try<'t>, IntoIter: Clone>,
) -> String {
    let now = httpdate::parse_http_date("Mon, 23 Nov 2026 01:40:34 GMT").expect("a date");
    let now = now + Duration::from_millis(7);
    let log = start(io::sink()).with_format(&Arc::new(format));
    let mut writer = log.writer();
    writer.log_at(now, entry, tries);
    String::from_utf8(writer.chunk.bytes.clone()).expect("ASCII")
}

fn open(path: &Path) -> AccessLog {
    AccessLog::open(&AccessLogTarget::File(path.into()), None).expect("it opens").expect("it is on")
}

fn start(file: impl Write + Send + 'static) -> AccessLog {
    AccessLog::start(LogOutput { path: None, file: Box::new(file), broken_line: false }).expect("a thread")
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
