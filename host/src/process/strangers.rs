//! Processes that code of modules started, and left behind when its worker ended.
//!
//! Where the sandbox of workers is off, or the kernel has none, a module may fork. Such a child has the worker's listening sockets:
//! connections would go to a process that never accepts them. So the supervisor is the parent of whatever loses its parent below it,
//! and ends what it did not start itself at each end of a worker: first the worker's process group, while nobody else can have its
//! number, then everybody who has come to be a child of this process.

use std::collections::HashSet;
use std::fs;
use std::time::{Duration, Instant};

use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, WaitOptions, getpid, getsid, kill_process, kill_process_group,
    set_child_subreaper, waitid, waitpid,
};

/// Between two looks at processes that were killed: a child of one that has just died is found at the next.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// Between two times that ended orphans are taken note of.
const REAP_EVERY: Duration = Duration::from_secs(1);
/// So many looks; then it is the kernel that keeps them.
const MAX_LOOKS: u32 = 300;

/// Children of this process that it did not start.
#[derive(Debug)]
pub struct Strangers {
    /// Those that were there at the start, of whoever became this program.
    inherited: HashSet<Pid>,
    /// When to look again, and how often still.
    next: Option<(Instant, u32)>,
    /// Those that were logged.
    known: HashSet<Pid>,
    reaped: Instant,
}

impl Strangers {
    /// From now on orphans below this process are its own children.
    pub fn adopt() -> Self {
        if let Err(error) = set_child_subreaper(Some(getpid())) {
            tracing::warn!("processes that modules leave behind cannot be ended: {error}");
        }
        let inherited = children().into_iter().collect();
        Self { inherited, next: None, known: HashSet::new(), reaped: Instant::now() }
    }

    /// When to look again.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.next.map(|(at, _)| at)
    }

    /// A worker has ended: ends all that is left of it. `own` are the processes that the supervisor started.
    pub(crate) fn end(&mut self, own: &HashSet<Pid>, now: Instant) {
        self.next = Some((now, MAX_LOOKS));
        self.look(own, now);
    }

    /// Takes note of the ends of orphans, now and then: a command of the scout may leave some behind each time that it runs.
    pub(crate) fn reap(&mut self, own: &HashSet<Pid>, now: Instant) {
        if now < self.reaped + REAP_EVERY {
            return;
        }
        self.reaped = now;
        let orphans =
            children().into_iter().filter(|pid| !own.contains(pid) && !self.inherited.contains(pid));
        orphans.for_each(|pid| _ = has_ended(pid));
    }

    /// Looks again, if it is time to.
    pub(crate) fn look(&mut self, own: &HashSet<Pid>, now: Instant) {
        let Some((_, n_left)) = self.next.filter(|(at, _)| now >= *at) else { return };
        let strangers =
            || children().into_iter().filter(|pid| !own.contains(pid) && !self.inherited.contains(pid));
        let left: Vec<Pid> = strangers().filter(|pid| !has_ended(*pid) && self.may_kill(*pid)).collect();
        for pid in &left {
            if self.known.insert(*pid) {
                tracing::warn!(
                    "a process was left behind by a module or by a command: {} (pid {pid}); killed",
                    name(*pid)
                );
            }
            let _ = kill_process(*pid, Signal::KILL);
        }
        self.next =
            n_left.checked_sub(1).filter(|_| !left.is_empty()).map(|n_left| (now + LOOK_AGAIN, n_left));
        if left.is_empty() {
            self.known.clear();
        }
    }

    /// Ends all that is left and waits for it, at this process's own end. Whether there was any.
    pub fn end_all(&mut self, own: &HashSet<Pid>) -> bool {
        self.end(own, Instant::now());
        let was_any = self.next.is_some();
        while let Some((at, _)) = self.next {
            std::thread::sleep(LOOK_AGAIN);
            self.look(own, at);
        }
        was_any
    }

    /// A supervisor that others started may have orphans of its own, which come here too. In a container, where this is the first
    /// process, those of commands from outside do; they have sessions of their own.
    fn may_kill(&self, pid: Pid) -> bool {
        let is_first = getpid().as_raw_nonzero().get() == 1;
        self.inherited.is_empty() && (!is_first || getsid(Some(pid)).ok() == getsid(None).ok())
    }
}

/// Whether a worker's process has ended. If so, what is left of its process group is killed: nobody has taken its end note of, so
/// the number is still its own.
pub(crate) fn end_group(worker: Pid) -> bool {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    if matches!(waitid(WaitId::Pid(worker), options), Ok(None)) {
        return false;
    }
    let _ = kill_process_group(worker, Signal::KILL);
    true
}

/// Takes note of a child's end, if it has ended.
fn has_ended(pid: Pid) -> bool {
    matches!(waitpid(Some(pid), WaitOptions::NOHANG), Ok(Some(_)) | Err(_))
}

fn name(pid: Pid) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    format!("{:?}", text.trim_end())
}

/// This process's children, dead ones too.
fn children() -> Vec<Pid> {
    let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let lists: Result<Vec<String>, _> =
        tasks.map(|task| fs::read_to_string(task.path().join("children"))).collect();
    let pid = |text: &str| text.parse().ok().and_then(Pid::from_raw);
    match lists {
        Ok(lists) => lists.iter().flat_map(|list| list.split_ascii_whitespace()).filter_map(pid).collect(),
        // A kernel without these files.
        Err(_) => {
            let all = fs::read_dir("/proc").into_iter().flatten().flatten();
            let all = all.filter_map(|entry| pid(entry.file_name().to_str()?));
            all.filter(|pid| parent(*pid) == Some(getpid())).collect()
        }
    }
}

fn parent(pid: Pid) -> Option<Pid> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // In the name before it may be anything, a `)` too.
    let (_, rest) = stat.rsplit_once(") ")?;
    Pid::from_raw(rest.split(' ').nth(1)?.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn children_are_found_by_either_way() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = Pid::from_child(&child);
        assert!(children().contains(&pid));
        assert_eq!(parent(pid), Some(getpid()));
        assert!(!end_group(pid), "it runs");
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!children().contains(&pid));
    }
}
