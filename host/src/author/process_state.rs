//! The state of the process that a module runs in and has to leave as it is: signal handlers, folder, limits, threads, descriptors.

use std::collections::BTreeMap;
use std::fs;

use trylist::module::contract::signal_handlers;

/// That state at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ProcessState {
    /// The handler of each signal, as an address.
    handlers: Vec<(i32, usize)>,
    /// Mask of blocked signals, in hexadecimal.
    blocked: String,
    cwd: String,
    umask: String,
    limits: String,
    n_threads: usize,
    /// Target of each descriptor.
    descriptors: BTreeMap<u32, String>,
}

impl ProcessState {
    /// As it is now. Where the system does not tell a part, that part is empty, and never differs.
    pub(super) fn now() -> Self {
        let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
        let of = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or_default().trim().to_owned()
        };
        let cwd = std::env::current_dir().map(|cwd| cwd.display().to_string());
        Self {
            handlers: signal_handlers(),
            blocked: of("SigBlk:"),
            cwd: cwd.unwrap_or_default(),
            umask: of("Umask:"),
            limits: fs::read_to_string("/proc/self/limits").unwrap_or_default(),
            n_threads: of("Threads:").parse().unwrap_or_default(),
            descriptors: descriptors(),
        }
    }

    /// Changes since an earlier state, in words; none where there are none. A language's runtime (`has_runtime`) may start threads,
    /// and open descriptors for them, whenever it likes.
    pub(super) fn changes_since(&self, before: &Self, has_runtime: bool) -> Option<String> {
        let mut changes = Vec::new();
        let changed: Vec<_> =
            self.handlers.iter().filter(|handler| !before.handlers.contains(handler)).collect();
        if !changed.is_empty() {
            let signals: Vec<_> = changed.iter().map(|(signal, _)| signal.to_string()).collect();
            changes.push(format!(
                "it changed the handlers of signals {} (the host's tell which module died)",
                signals.join(", ")
            ));
        }
        if self.blocked != before.blocked {
            changes
                .push(format!("it changed the blocked signals from {} to {}", before.blocked, self.blocked));
        }
        if self.cwd != before.cwd {
            changes.push(format!("it changed the working directory from {} to {}", before.cwd, self.cwd));
        }
        if self.umask != before.umask {
            changes.push(format!("it changed the umask from {} to {}", before.umask, self.umask));
        }
        let limits = self.limits.lines().zip(before.limits.lines()).filter(|(now, before)| now != before);
        for (now, _) in limits {
            changes.push(format!(
                "it changed a limit: {}",
                now.split_whitespace().collect::<Vec<_>>().join(" ")
            ));
        }
        if has_runtime {
            return (!changes.is_empty()).then(|| changes.join("; "));
        }
        if self.n_threads > before.n_threads {
            changes.push(format!(
                "it started threads: {} more than before (balancers have none)",
                self.n_threads - before.n_threads
            ));
        }
        let opened =
            self.descriptors.iter().filter(|(fd, target)| before.descriptors.get(fd) != Some(target));
        let opened: Vec<_> = opened.map(|(fd, target)| format!("{fd} ({target})")).collect();
        if !opened.is_empty() {
            changes.push(format!("it left {} descriptors open or replaced: {}", opened.len(), some(&opened)));
        }
        let closed: Vec<_> = before
            .descriptors
            .iter()
            .filter(|(fd, _)| !self.descriptors.contains_key(fd))
            .map(|(fd, _)| fd.to_string())
            .collect();
        if !closed.is_empty() {
            changes.push(format!("it closed descriptors of the process: {}", some(&closed)));
        }
        (!changes.is_empty()).then(|| changes.join("; "))
    }

    /// This state with the descriptors of another one.
    pub(super) fn with_descriptors_of(&self, other: &Self) -> Self {
        Self { descriptors: other.descriptors.clone(), ..self.clone() }
    }

    /// Whether there are more threads than that one: a language's runtime.
    pub(super) fn has_more_threads_than(&self, before: &Self) -> bool {
        self.n_threads > before.n_threads
    }
}

fn some(all: &[String]) -> String {
    const READ: usize = 5;
    let more = if all.len() > READ { ", …" } else { "" };
    format!("{}{more}", all.iter().take(READ).cloned().collect::<Vec<_>>().join(", "))
}

fn descriptors() -> BTreeMap<u32, String> {
    let Ok(entries) = fs::read_dir("/proc/self/fd") else { return BTreeMap::new() };
    let all = entries.flatten().filter_map(|entry| {
        let fd = entry.file_name().to_str()?.parse().ok()?;
        let target = fs::read_link(entry.path()).ok()?.display().to_string();
        // The listing itself.
        (!target.starts_with("/proc/")).then_some((fd, target))
    });
    all.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_named() {
        let before = ProcessState::now();
        assert_eq!(before.changes_since(&before, false), None);
        let file = fs::File::open("/dev/null").expect("it is always there");
        let now =
            ProcessState { n_threads: before.n_threads + 2, umask: "0000".into(), ..ProcessState::now() };
        drop(file);
        let changes = now.changes_since(&ProcessState { umask: "0022".into(), ..before.clone() }, false);
        let changes = changes.expect("three of them");
        for part in ["umask from 0022 to 0000", "2 more than before", "(/dev/null)"] {
            assert!(changes.contains(part), "{part}: {changes}");
        }
        // A runtime starts threads as it likes.
        let more = ProcessState { n_threads: before.n_threads + 9, ..before.clone() };
        assert_eq!(more.changes_since(&before, true), None);
    }
}
