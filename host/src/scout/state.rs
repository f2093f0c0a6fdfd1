//! The last answers on a disk, over restarts of the proxy.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::discovery::answer::{SourceAnswer, SourceMember};
use crate::process::two_files::TwoFiles;

/// Answers by cluster and source.
pub(super) type Answers = BTreeMap<(String, String), Arc<SourceAnswer>>;

#[derive(Serialize, Deserialize)]
struct StateBody {
    answers: Vec<StoredAnswer>,
}

#[derive(Serialize, Deserialize)]
struct StoredAnswer {
    cluster: String,
    source: String,
    members: Vec<SourceMember>,
}

/// Reads both files.
pub(super) fn open(path: &Path, files: [OwnedFd; 2]) -> (TwoFiles, Answers) {
    let (files, body) = TwoFiles::open(path, "answers", files);
    let answers = match body.map(|body| serde_json::from_slice::<StateBody>(&body)) {
        Some(Ok(body)) => body.answers.into_iter().map(StoredAnswer::into_answer).collect(),
        Some(Err(error)) => {
            tracing::error!("state \"{}\": the answers there are not used: {error}", path.display());
            Answers::new()
        }
        None => Answers::new(),
    };
    (files, answers)
}

/// Writes these answers, and waits for the disk.
///
/// # Errors
/// They are not on the disk.
pub(super) fn write(files: &mut TwoFiles, answers: &Answers) -> io::Result<()> {
    let stored = |((cluster, source), answer): (&(String, String), &Arc<SourceAnswer>)| StoredAnswer {
        cluster: cluster.clone(),
        source: source.clone(),
        members: answer.members.clone(),
    };
    let body = StateBody { answers: answers.iter().map(stored).collect() };
    files.write(serde_json::to_vec(&body).map_err(io::Error::from))
}

impl StoredAnswer {
    fn into_answer(self) -> ((String, String), Arc<SourceAnswer>) {
        let Self { cluster, source, members } = self;
        ((cluster, source), Arc::new(SourceAnswer { members }))
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use super::*;

    /// How a file of any form begins.
    const BEGINNING: &[u8] = b"{\"format\":";

    fn in_folder(folder: &Path) -> (TwoFiles, Answers) {
        let file = |idx: usize| {
            let path = folder.join(format!("answers-{idx}.json"));
            File::options().read(true).write(true).create(true).truncate(false).open(path).unwrap().into()
        };
        open(folder, [file(0), file(1)])
    }

    fn answers(url: &str) -> Answers {
        let member = SourceMember { url: url.into(), weight: Some(3), ..SourceMember::default() };
        Answers::from([(("app".into(), "file".into()), Arc::new(SourceAnswer { members: vec![member] }))])
    }

    #[test]
    fn the_newer_whole_file_counts_and_a_torn_one_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let (mut state, before) = in_folder(folder.path());
        assert_eq!(before, Answers::new());
        for url in ["http://a-long-name:80", "http://b:80", "http://c:80"] {
            write(&mut state, &answers(url)).unwrap();
            assert_eq!(in_folder(folder.path()).1, answers(url));
        }
        // The third went to the first file. Every beginning of it, and every changed byte, is told from the whole.
        let newest = folder.path().join("answers-0.json");
        let whole = fs::read(&newest).unwrap();
        for n in 0..whole.len() {
            fs::write(&newest, &whole[..n]).unwrap();
            assert_eq!(in_folder(folder.path()).1, answers("http://b:80"), "{n} bytes");
        }
        for n in BEGINNING.len() + 2..whole.len() {
            let mut changed = whole.clone();
            changed[n] ^= 1;
            fs::write(&newest, &changed).unwrap();
            let found = in_folder(folder.path()).1;
            assert!(found == answers("http://b:80") || found == answers("http://c:80"), "byte {n}");
        }
    }

    #[test]
    fn a_file_of_somebody_else_is_left_alone() {
        for text in ["something else\n", "{\"format\":2,\"more\":7}\n{}"] {
            let folder = tempfile::tempdir().unwrap();
            let (mut state, _) = in_folder(folder.path());
            write(&mut state, &answers("http://a:80")).unwrap();
            fs::write(folder.path().join("answers-1.json"), text).unwrap();
            let (state, found) = in_folder(folder.path());
            assert_eq!((state.is_open(), found), (false, answers("http://a:80")));
            assert_eq!(fs::read_to_string(folder.path().join("answers-1.json")).unwrap(), text);
        }
    }

    #[test]
    fn a_disk_that_takes_nothing_keeps_what_it_has() {
        let folder = tempfile::tempdir().unwrap();
        let (mut state, _) = in_folder(folder.path());
        write(&mut state, &answers("http://a:80")).unwrap();
        let file = |idx: usize| File::open(folder.path().join(format!("answers-{idx}.json"))).unwrap().into();
        let (mut state, _) = open(folder.path(), [file(0), file(1)]);
        assert!((0..2).all(|_| write(&mut state, &answers("http://b:80")).is_err()));
        assert_eq!(in_folder(folder.path()).1, answers("http://a:80"));
    }
}
