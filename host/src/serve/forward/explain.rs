//! Explains a request's choices to permitted clients. `trylist/why.rs` has the record.

use std::fmt::Write as _;
use std::time::Instant;

use super::request::Request;
use crate::net::address::Peer;
use crate::serve::thread::Thread;
use crate::serve::trylist::Trylist;

/// Whether the configuration permits this client to ask.
#[cold]
pub(super) fn may_ask(thread: &Thread, client: Peer) -> bool {
    thread.config.explain_to.contains(client)
}

/// The explanation as lines of a response's head; empty where the client did not ask.
pub(super) fn header_lines(trylist: &Trylist<'_>, now: Instant) -> Vec<u8> {
    let fields = trylist.explanation(now);
    let lines = fields.iter().flat_map(|(name, value)| [name.as_bytes(), b": ", value.as_bytes(), b"\r\n"]);
    lines.collect::<Vec<_>>().concat()
}

impl Request<'_> {
    /// The same as one line of the log, with how the last try ended. Without the key, which may be a secret of the
    /// client's.
    #[cold]
    pub(super) fn log_explanation(&self, trylist: &Trylist<'_>, status: u16, now: Instant) {
        let mut text = String::new();
        for (name, value) in trylist.explanation(now) {
            let name = name.trim_start_matches("X-Trylist-").to_ascii_lowercase();
            if !matches!(&*name, "cluster" | "key") {
                // Writing to a string cannot fail.
                let _ = write!(text, "; {name} {value}");
            }
        }
        let (cluster, client) = (&*self.cluster.config.name, self.view.plan.client.address);
        let target = String::from_utf8_lossy(self.view.head.text(self.view.head.target));
        tracing::info!(cluster, %client, %target, status, "explained{text}");
    }
}
