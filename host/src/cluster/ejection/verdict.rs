//! How a try ended, and whether that counts for or against its server.

use std::fmt;
use std::io;
use std::time::Duration;

use lb_api::wire;

use super::Trial;
use crate::config::CountedStatuses;

/// How a try ended, as far as it says something of the server.
#[derive(Clone, Copy, Debug, Default)]
pub struct TryEnd {
    /// One of [`wire`]'s `TRY_*`.
    pub result: u32,
    /// One of [`wire`]'s `FAILURE_*` and the system's error, where the try was not established.
    pub failure: Option<(u32, Option<i32>)>,
    /// The response's, 0 where there is none.
    pub status: u16,
    /// How long it took.
    pub total: Duration,
    /// It timed out, but most of its time was used up before it: in the queue, or by earlier tries.
    pub was_hurried: bool,
    /// Its part in the endpoint's trial.
    pub trial: Trial,
}

/// The verdict of a try's end on its server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TryVerdict {
    Good,
    Bad,
    /// The client, or the proxy itself, was at fault.
    Nothing,
}

/// Why an endpoint is ejected, as the log says it.
pub(super) enum EjectionReason<'a> {
    InRow(u32, &'a TryEnd),
    Rate {
        failed: u32,
        of: u32,
    },
    Trial(&'a TryEnd),
    /// An earlier worker ejected it.
    Inherited,
}

impl TryEnd {
    /// The verdict on its server, where these statuses count as failures.
    pub(super) fn verdict(&self, counted: CountedStatuses) -> TryVerdict {
        match (self.result, self.failure) {
            (wire::TRY_NOT_ESTABLISHED, Some((wire::FAILURE_LOCAL, _))) | (wire::TRY_ABORTED, _) => {
                TryVerdict::Nothing
            }
            _ if self.was_hurried => TryVerdict::Nothing,
            (wire::TRY_SERVED, _) if counted.contain(self.status) => TryVerdict::Bad,
            (wire::TRY_SERVED, _) => TryVerdict::Good,
            _ => TryVerdict::Bad,
        }
    }
}

impl fmt::Display for TryEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match (self.result, self.failure) {
            (_, Some((wire::FAILURE_RESOLVE, _))) => "look-up failed",
            (_, Some((wire::FAILURE_CONNECT_TIMEOUT, _))) => "no connection in time",
            (_, Some((wire::FAILURE_TLS, _))) => "TLS handshake failed",
            (_, Some((_, Some(os_error)))) => return write_os_error(f, os_error),
            (wire::TRY_NOT_ESTABLISHED, _) => "no connection",
            (wire::TRY_CLOSED_EARLY, _) => "connection closed before a response",
            (wire::TRY_TIMED_OUT, _) => "no response in time",
            (wire::TRY_BROKEN, _) => "response broke off",
            (wire::TRY_SERVED, _) => return write!(f, "status {}", self.status),
            _ => "bad response",
        };
        f.write_str(text)
    }
}

/// Why the system made no connection.
fn write_os_error(f: &mut fmt::Formatter<'_>, os_error: i32) -> fmt::Result {
    match io::Error::from_raw_os_error(os_error).kind() {
        // Of a Unix socket.
        io::ErrorKind::NotFound => f.write_str("no such socket"),
        kind @ (io::ErrorKind::ConnectionRefused
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::HostUnreachable
        | io::ErrorKind::NetworkUnreachable
        | io::ErrorKind::PermissionDenied) => write!(f, "{kind}"),
        _ => write!(f, "no connection (os error {os_error})"),
    }
}

impl fmt::Display for EjectionReason<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InRow(1, last) => write!(f, "1 failure ({last})"),
            Self::InRow(n, last) => write!(f, "{n} consecutive failures ({last})"),
            Self::Rate { failed, of } => write!(f, "{failed} of {of} tries failed"),
            Self::Trial(last) => write!(f, "its trial failed ({last})"),
            Self::Inherited => f.write_str("as it was before the reload"),
        }
    }
}
