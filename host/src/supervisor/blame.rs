//! Where a worker was when it hung or died, and which module is to blame.
//!
//! | death | blamed | rolled back within its probation |
//! |---|---|---|
//! | the record on the board fits, inside a module | that module | if its file or settings are new |
//! | the record's instruction is a module's code, on any thread | that module | if its file or settings are new |
//! | no record, and all threads inside of modules are inside the same one | probably that module | if any module's file or settings are new |
//! | several modules, none, or code of the host or of a library | nobody | if any module's file or settings are new |
//! | SIGKILL: want of memory, or an operator | nobody | if any module's file is new |
//!
//! A module that only probably did it gets into quarantine when that was so at two deaths. There is no such guess about a module
//! that threads are inside of nearly all the time: it would be found there whoever did it.

use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;

use rustix::process::Pid;

use super::bundle::short_path;
use super::generation::{Generation, GenerationPhase};
use crate::module::board::{CallKind, Crumb, Fatal, FatalCause, Seen};
use crate::process::strangers::end_group;

/// The module that is to blame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Blame {
    /// Index in the configuration.
    pub(super) module: usize,
    pub(super) cluster: Option<usize>,
}

/// The party at fault for the end of a worker, as far as that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Culprit {
    /// This module's.
    Certain(Blame),
    /// Nothing shows who did it, and this is the only module that a thread was inside of.
    Probable(Blame),
    /// It may be any module's, or none's.
    Unknown,
    /// The sender of SIGKILL: the kernel for want of memory, or an operator.
    Killer,
}

impl Culprit {
    /// The module that is held to account.
    pub(super) fn blame(self) -> Option<Blame> {
        match self {
            Self::Certain(blame) | Self::Probable(blame) => Some(blame),
            Self::Unknown | Self::Killer => None,
        }
    }
}

/// How its process ended.
pub(super) enum WorkerEnd {
    /// As it was to.
    Orderly,
    /// Somehow else; what is to be said of it, and whose fault it is. Nothing is lost `after_all`: it had said its last word.
    Death { text: String, culprit: Culprit, after_all: bool },
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

    /// Whether it drains, and no thread serves a request but those that hang. Requests of these never end.
    pub(super) fn has_only_what_hangs(&self) -> bool {
        let n_threads = self.bundle.config.threads;
        let goes_on = |seen: &Seen| seen.slot < n_threads && !self.watchdog.hangs(seen.slot);
        self.is_draining
            && self.watchdog.n_hanging(n_threads) > 0
            && self.board.look().iter().filter(|seen| goes_on(seen)).all(|seen| seen.n_requests == 0)
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
        if !end_group(Pid::from_child(&self.child)) {
            return None;
        }
        let status = match self.child.try_wait() {
            Ok(Some(status)) => status,
            Ok(None) => return None,
            Err(error) => {
                let text = format!("its end cannot be waited for: {error}");
                return Some(WorkerEnd::Death { text, culprit: Culprit::Unknown, after_all: false });
            }
        };
        // The board may hold what a module wrote there: it counts where it fits the end.
        let fatal = self.board.fatal().filter(|fatal| match fatal.by {
            FatalCause::Signal(signal) => status.signal() == Some(signal),
            FatalCause::Exit | FatalCause::Closing => status.code().is_some(),
        });
        let recorded = fatal.and_then(|fatal| self.recorded(fatal));
        // One that is not listened to cannot say that it has ended.
        let is_done = self.is_unheard && self.is_leaving() && status.success();
        let has_ended = matches!(self.phase, GenerationPhase::Ended { .. });
        let after_all = has_ended && !self.is_given_up;
        // Balancers are dropped then, and destructors of modules run. One that could not start says so by its exit code.
        let is_odd = match status.signal() {
            Some(signal) => signal != SIGKILL,
            None => self.ready.is_some() && !status.success(),
        };
        if (has_ended || is_done) && recorded.is_none() && !(after_all && is_odd) {
            return Some(WorkerEnd::Orderly);
        }
        let mut text = match fatal {
            Some(Fatal { by: FatalCause::Closing, .. }) => {
                "ended because descriptors of the host were closed".to_owned()
            }
            _ => died_by(status),
        };
        let culprit = match recorded {
            Some((blame, how)) => {
                text += &how;
                Culprit::Certain(blame)
            }
            None if status.signal() == Some(SIGKILL) => Culprit::Killer,
            // A death outside of modules left a record too: what other threads did then is no evidence.
            None if fatal.is_some() && !after_all => Culprit::Unknown,
            None if after_all => {
                text += &self.whose_end();
                Culprit::Unknown
            }
            None => self.guess(&mut text),
        };
        Some(WorkerEnd::Death { text, culprit, after_all })
    }

    /// Where a worker that has nothing left to serve is, in words that follow what became of it.
    pub(super) fn whose_end(&self) -> String {
        let n_threads = self.bundle.config.threads;
        let is_at_end = |seen: &Seen| seen.slot <= n_threads + 1;
        let inside = self.board.look().into_iter().filter(is_at_end).find_map(|seen| self.blame(seen.crumb?));
        if let Some(blame) = inside {
            return format!(" in drop_balancer of {}", self.describe(blame));
        }
        let ids = self.says.iter().flatten().map(|says| format!("\"{}\"", says.id)).collect::<Vec<_>>();
        format!(", perhaps in a destructor of a module ({})", ids.join(", "))
    }

    /// The module that a record names, and how, in words that follow what happened.
    fn recorded(&self, fatal: Fatal) -> Option<(Blame, String)> {
        let code = self.code_at(fatal.ip).or_else(|| self.code_at(fatal.caller));
        let at = |module: usize| match code {
            Some((of, offset)) if of == module => {
                format!(" ({}+{offset:#x})", short_path(&self.copies[of].file))
            }
            _ => String::new(),
        };
        match (fatal.crumb.and_then(|crumb| self.blame(crumb)), code) {
            (Some(blame), _) => {
                Some((blame, format!(" while inside {}{}", self.describe(blame), at(blame.module))))
            }
            (None, Some((module, _))) => {
                let blame = Blame { module, cluster: None };
                let what = self.describe(blame);
                Some((blame, format!(" in code of {what}{}, outside of the host's calls", at(module))))
            }
            (None, None) => None,
        }
    }

    /// The module whose code this instruction is, and where in its image that is.
    fn code_at(&self, ip: u64) -> Option<(usize, u64)> {
        let modules = self.says.iter().take(self.copies.len()).enumerate();
        modules.filter_map(|(module, says)| Some((module, says.as_ref()?.code.offset_of(ip)?))).next()
    }

    /// The party that is probably at fault for a death without a record, by where threads were. Adds that in words.
    fn guess(&self, text: &mut String) -> Culprit {
        let crumbs = self.board.look().into_iter().filter_map(|seen| self.blame(seen.crumb?));
        let mut there: Vec<Blame> = crumbs.collect();
        there.sort_by_key(|blame| blame.module);
        there.dedup_by_key(|blame| blame.module);
        let names = there.iter().map(|blame| self.describe(*blame)).collect::<Vec<_>>().join("; ");
        match there[..] {
            [] => Culprit::Unknown,
            [blame] if !self.bundle.presence().is_usual(blame.module) => {
                *text += &format!(", probably by {names}, the only one that a thread was inside of");
                Culprit::Probable(blame)
            }
            [_] => {
                *text += &format!("; nobody is blamed: threads are inside of {names} most of the time");
                Culprit::Unknown
            }
            _ => {
                *text += &format!("; nobody is blamed: threads were inside of several modules ({names})");
                Culprit::Unknown
            }
        }
    }
}

const SIGKILL: i32 = nix::sys::signal::Signal::SIGKILL as i32;

fn died_by(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(SIGKILL), _) => "died by SIGKILL (for want of memory, or by somebody's hand)".to_owned(),
        (Some(signal), _) => format!("died by {}", signal_name(signal)),
        (None, Some(code)) => format!("exited unexpectedly with code {code}"),
        (None, None) => "ended somehow".to_owned(),
    }
}

fn signal_name(signal: i32) -> String {
    let known = nix::sys::signal::Signal::try_from(signal);
    known.map_or_else(|_| format!("signal {signal}"), |signal| signal.as_str().to_owned())
}
