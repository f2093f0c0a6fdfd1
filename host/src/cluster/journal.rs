//! Events of a cluster and its servers, for those who look on.
//!
//! A note is made where the state changes, also by the request that was one failure too many. So it waits for nobody: where too
//! many notes have not been read yet, it is lost.

use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::mpsc;

use crate::cluster::health::unix_ms;

/// Notes that wait to be read, at most.
const MAX_WAITING: usize = 1_000;

/// Something that happened to a cluster.
#[derive(Debug)]
pub(crate) struct ClusterNote {
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// Its name.
    pub cluster: Arc<str>,
    /// URL of the server.
    pub server: Option<Arc<str>>,
    /// What.
    pub kind: NoteKind,
    /// In words.
    pub text: String,
}

/// The event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoteKind {
    /// A server's state changed.
    Server,
    /// Panic began or ended.
    Panic,
    /// A change of its servers is refused.
    Refused,
}

/// Takes the notes of all clusters of a worker.
#[derive(Clone, Debug)]
pub(crate) struct Journal(mpsc::Sender<ClusterNote>);

impl Journal {
    /// With the end where they are read.
    pub(crate) fn new() -> (Self, mpsc::Receiver<ClusterNote>) {
        let (to, from) = mpsc::channel(MAX_WAITING);
        (Self(to), from)
    }

    pub(super) fn note(&self, cluster: &Arc<str>, server: Option<&Arc<str>>, kind: NoteKind, text: String) {
        let note = ClusterNote {
            at_ms: unix_ms(SystemTime::now()),
            cluster: Arc::clone(cluster),
            server: server.cloned(),
            kind,
            text,
        };
        let _ = self.0.try_send(note);
    }
}
