//! Where a worker was when it hung or died, and which module is to blame.

use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;

use super::generation::{Generation, GenerationPhase};
use crate::module::board::{CallKind, Crumb, FatalCause};

/// The module that is to blame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Blame {
    /// Index in the configuration.
    pub(super) module: usize,
    pub(super) cluster: Option<usize>,
}

/// How its process ended.
pub(super) enum WorkerEnd {
    /// As it was to.
    Orderly,
    /// Somehow else; what is to be said of it, and whose fault it is if that is known.
    Death { text: String, blame: Option<Blame> },
}

impl Generation {
    /// Where a thread is inside a module right now, if anywhere: for one that is not ready in time.
    pub(super) fn inside(&self) -> Option<Blame> {
        self.board.look().into_iter().find_map(|seen| seen.crumb).and_then(|crumb| self.blame(crumb))
    }

    /// Where a thread is inside a module with something that no request waits for, if anywhere.
    pub(super) fn inside_for_long(&self) -> Option<Blame> {
        let crumbs = self.board.look().into_iter().filter_map(|seen| seen.crumb);
        crumbs.filter(|crumb| crumb.kind == CallKind::Long).find_map(|crumb| self.blame(crumb))
    }

    /// Whether every thread that serves hangs.
    pub(super) fn do_all_hang(&self) -> bool {
        self.watchdog.n_hanging(self.bundle.config.threads) >= self.bundle.config.threads
    }

    /// Whether a thread of it hangs while, as far as it last said, nothing is on its way to a server: what is may be another
    /// thread's, and end. Most hanging calls hang before there is a server to go to.
    pub(super) fn has_only_what_hangs(&self) -> bool {
        let hangs = self.watchdog.n_hanging(self.bundle.config.threads) > 0;
        hangs && self.is_draining && self.load.as_ref().is_some_and(|load| load.endpoints.is_empty())
    }

    /// A crumb is what a process wrote into shared memory that a module may have run wild in: it may be anything.
    pub(super) fn blame(&self, crumb: Crumb) -> Option<Blame> {
        self.copies.get(crumb.module)?;
        let is_there = |cluster: &usize| *cluster < self.bundle.config.clusters.len();
        Some(Blame { module: crumb.module, cluster: crumb.cluster.filter(is_there) })
    }

    /// `module "greedy" 1.0.0, cluster "api"`.
    pub(super) fn describe(&self, blame: Blame) -> String {
        let mut text = format!("module \"{}\"", self.bundle.config.modules[blame.module].id);
        if let Some(Some(says)) = self.says.get(blame.module) {
            text += &format!(" {}", says.version);
        }
        if let Some(cluster) = blame.cluster {
            text += &format!(", cluster \"{}\"", self.bundle.config.clusters[cluster].name);
        }
        text
    }

    /// How its process ended, if it has.
    pub(super) fn end(&mut self) -> Option<WorkerEnd> {
        let status = match self.child.try_wait() {
            Ok(Some(status)) => status,
            Ok(None) => return None,
            Err(error) => {
                let text = format!("its end cannot be waited for: {error}");
                return Some(WorkerEnd::Death { text, blame: None });
            }
        };
        // The board may hold what a module wrote there: it counts where it fits the end.
        let fatal = self.board.fatal().filter(|fatal| match fatal.by {
            FatalCause::Signal(signal) => status.signal() == Some(signal),
            FatalCause::Exit => status.code().is_some(),
        });
        let blame = fatal.and_then(|fatal| fatal.crumb).and_then(|crumb| self.blame(crumb));
        // One that is not listened to cannot say that it has ended.
        let is_done = self.is_unheard && self.is_leaving() && status.success();
        if (matches!(self.phase, GenerationPhase::Ended { .. }) || is_done) && blame.is_none() {
            return Some(WorkerEnd::Orderly);
        }
        // A SIGKILL, which leaves no record, is the kernel's for want of memory, or an operator's: no module's, whatever one
        // was doing.
        let mut text = died_by(status);
        if let Some(blame) = blame {
            text += &format!(" while inside {}", self.describe(blame));
        }
        Some(WorkerEnd::Death { text, blame })
    }
}

fn died_by(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(signal), _) => format!("died by {}", signal_name(signal)),
        (None, Some(code)) => format!("exited unexpectedly with code {code}"),
        (None, None) => "ended somehow".to_owned(),
    }
}

fn signal_name(signal: i32) -> String {
    let known = nix::sys::signal::Signal::try_from(signal);
    known.map_or_else(|_| format!("signal {signal}"), |signal| signal.as_str().to_owned())
}
