//! The proxy's log, of all tests of the process together: whoever looks for a line names something that is its own, such
//! as its cluster or a port.

use std::io;
use std::sync::{Mutex, Once, PoisonError};

use tracing_subscriber::filter::LevelFilter;

static LOG: Mutex<String> = Mutex::new(String::new());

/// Starts to record, if nobody has.
pub fn start() {
    static START: Once = Once::new();
    START.call_once(|| {
        tracing_subscriber::fmt()
            .without_time()
            .with_ansi(false)
            .with_max_level(LevelFilter::DEBUG)
            .with_writer(|| Recorder)
            .init();
    });
}

/// All lines with each of these texts, so far.
pub fn lines(texts: &[&str]) -> Vec<String> {
    let log = LOG.lock().unwrap_or_else(PoisonError::into_inner);
    log.lines().filter(|line| texts.iter().all(|text| line.contains(text))).map(str::to_owned).collect()
}

/// Waits for a line with each of these texts.
///
/// # Panics
/// At the deadline.
#[track_caller]
pub fn line(texts: &[&str]) -> String {
    crate::eventually(&format!("a line in the log with {texts:?}"), || lines(texts).into_iter().next())
}

struct Recorder;

impl io::Write for Recorder {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut log = LOG.lock().unwrap_or_else(PoisonError::into_inner);
        log.push_str(&String::from_utf8_lossy(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
