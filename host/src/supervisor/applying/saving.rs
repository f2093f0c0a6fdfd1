//! How operators' changes of servers come to the disk, where `state` names a folder: the scout writes them, and says so. A start
//! reads them. With them go the last addresses of names, for a start while no name server answers.

use std::time::{Instant, SystemTime};

use super::APPLY_TIMEOUT;
use crate::supervisor::Supervisor;
use crate::supervisor::acts::Acts;
use crate::supervisor::acts::stored::Recalled;
use crate::supervisor::commands::ClientId;

/// The acts that are on the disk, and the clients that wait for that.
#[derive(Debug, Default)]
pub(in crate::supervisor) struct Saving {
    /// The version that the scout was told to write.
    told: Option<u64>,
    /// The newest version that is on the disk, or could not be written; why.
    tried: Option<(u64, Option<String>)>,
    waiting: Vec<SaveWaiter>,
}

/// A change that is in use, and maybe not on the disk yet.
#[derive(Debug)]
struct SaveWaiter {
    client: ClientId,
    version: u64,
    text: String,
    until: Instant,
}

impl Saving {
    /// Another scout has to be told.
    pub(in crate::supervisor) fn begin_anew(&mut self) {
        (self.told, self.tried) = (None, None);
    }

    /// Names have other addresses.
    pub(in crate::supervisor) fn names_are_new(&mut self) {
        self.told = None;
    }

    /// When somebody has waited for long enough.
    pub(super) fn due(&self) -> Option<Instant> {
        self.waiting.iter().map(|waiter| waiter.until).min()
    }
}

impl Supervisor {
    /// The acts of an earlier run hold again, as far as they make sense.
    pub(in crate::supervisor) fn recall_acts(&mut self) {
        let Some(state) = self.scouting.state() else { return };
        let shown = state.path().display();
        let text = match state.acts() {
            Ok(Some(text)) => text,
            Ok(None) => return,
            Err(error) => return tracing::error!("state \"{shown}\": acts cannot be read: {error}"),
        };
        match Acts::from_json(&text, &self.bundle.config, SystemTime::now()) {
            Ok(Recalled { acts, names, said }) => {
                for line in said {
                    tracing::info!("{line}");
                }
                let n = acts.status(SystemTime::now()).len();
                if n > 0 {
                    tracing::info!(
                        "state \"{shown}\": {n} changes of servers of before the start hold again"
                    );
                }
                self.applying.n_added = acts.n_added();
                self.acts = acts;
                for (name, addresses) in names {
                    self.state.answered(&name, &addresses);
                }
            }
            Err(why) => tracing::error!("state \"{shown}\": the acts there are not used: {why}"),
        }
    }

    /// Tells the scout of acts that it is to write, and answers those who have waited for long enough.
    pub(super) fn save_acts(&mut self, now: Instant) {
        let (version, saving) = (self.acts.version(), &mut self.applying.saving);
        if saving.told != Some(version)
            && self.scouting.keep_acts(version, || self.acts.to_json(self.state.answers()))
        {
            saving.told = Some(version);
        }
        let late: Vec<_> = saving.waiting.extract_if(.., |waiter| now >= waiter.until).collect();
        for SaveWaiter { client, text, .. } in late {
            let text = format!("{text}, but it is not saved yet after {APPLY_TIMEOUT:?}");
            tracing::warn!("{text}");
            self.tell_and_end(client, &text);
        }
    }

    /// Answers whoever asked for a change that is in use, once it is on the disk.
    pub(super) fn tell_once_saved(&mut self, client: ClientId, version: u64, text: String, until: Instant) {
        if self.scouting.state().is_none() {
            return self.tell_and_end(client, &text);
        }
        self.applying.saving.waiting.push(SaveWaiter { client, version, text, until });
        self.tell_saved();
    }

    /// The scout has written acts, or cannot.
    pub(in crate::supervisor) fn acts_kept(&mut self, version: u64, error: Option<String>) {
        if self.applying.saving.told.is_some_and(|told| version <= told) {
            self.applying.saving.tried = Some((version, error));
            self.tell_saved();
        }
    }

    fn tell_saved(&mut self) {
        let Saving { tried: Some((version, error)), waiting, .. } = &mut self.applying.saving else { return };
        let but = error.as_ref().map(|why| format!(", but it is not saved: {why}")).unwrap_or_default();
        let over: Vec<_> = waiting.extract_if(.., |waiter| waiter.version <= *version).collect();
        for SaveWaiter { client, text, .. } in over {
            self.tell_and_end(client, &format!("{text}{but}"));
        }
    }
}
