//! Descriptors of the host's that code of modules may not close: the channel to the supervisor, the board, logs.
//!
//! A worker that lost them would die or fall silent later, with nobody to blame. So they are looked at after each call into a module
//! during the start, while this process opens and closes none of these itself. While it serves they are not: it costs system calls.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::RawFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use crate::module::crash;

/// As they were found by [`guard`]; empty where nothing is guarded.
static GUARDED: Mutex<BTreeMap<RawFd, GuardedFile>> = Mutex::new(BTreeMap::new());

/// The file that a descriptor leads to.
#[derive(Debug, PartialEq, Eq)]
struct GuardedFile {
    name: PathBuf,
    device: u64,
    inode: u64,
}

/// Guards all descriptors that this process has open, but for `others`, until [`leave`].
pub fn guard(others: &[RawFd]) {
    let Ok(entries) = fs::read_dir("/proc/self/fd") else { return };
    let numbers = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let numbers: Vec<RawFd> = numbers.filter(|number| !others.contains(number)).collect();
    // The folder that was listed is closed by now.
    let found = numbers.into_iter().filter_map(|number| Some((number, GuardedFile::of(number)?)));
    *GUARDED.lock().unwrap_or_else(PoisonError::into_inner) = found.collect();
}

/// Guards none any more.
pub fn leave() {
    GUARDED.lock().unwrap_or_else(PoisonError::into_inner).clear();
}

/// Makes a call into a module. Where it has closed a guarded descriptor the process ends at once, and the board says so: what this
/// process has lost may be its way to tell. To be asked inside of the call's crumb.
pub(super) fn around<R>(call: impl FnOnce() -> R) -> R {
    let result = call();
    let guarded = GUARDED.lock().unwrap_or_else(PoisonError::into_inner);
    let lost = guarded.iter().filter(|(number, file)| GuardedFile::of(**number).as_ref() != Some(file));
    let lost: Vec<_> = lost.map(|(number, file)| describe(*number, file)).collect();
    if !lost.is_empty() {
        tracing::error!("a module has closed descriptors of the host: {}", lost.join(", "));
        crash::end_without_descriptors();
    }
    result
}

fn describe(number: RawFd, file: &GuardedFile) -> String {
    let name = file.name.display().to_string();
    format!("{number} ({})", name.trim_end_matches(" (deleted)"))
}

impl GuardedFile {
    fn of(number: RawFd) -> Option<Self> {
        let path = format!("/proc/self/fd/{number}");
        let name = fs::read_link(&path).ok()?;
        let metadata = fs::metadata(&path).ok()?;
        Some(Self { name, device: metadata.dev(), inode: metadata.ino() })
    }
}
