//! The last answers on a disk, over restarts of the proxy: two files, written in turn, of which the newer whole one counts.
//!
//! ```text
//! {"format":1,"number":7,"bytes":123,"sha256":"…"}
//! {"answers":[{"cluster":"app","source":"file","members":[…]}]}
//! ```
//!
//! The supervisor has opened the files: this process need not be able to reach them. A write that is cut short, by a crash or a
//! full disk, spoils one file and not the other. A file that does not begin like one of these is somebody else's, or of a later
//! version: it is left alone.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::discovery::answer::{SourceAnswer, SourceMember};
use crate::module::Hex;

/// The form above.
const FORMAT: u64 = 1;
/// How a file of any form begins.
const BEGINNING: &[u8] = b"{\"format\":";
/// A longer first line is none of ours.
const MAX_HEAD_BYTES: usize = 4096;
/// Longer files are neither read nor written.
const MAX_FILE_BYTES: u64 = 512 << 20;

/// Answers by cluster and source.
pub(super) type Answers = BTreeMap<(String, String), Arc<SourceAnswer>>;

/// Two files, open for reading and writing.
pub(super) struct State {
    path: PathBuf,
    files: [File; 2],
    /// The number of the newer one.
    number: u64,
    /// The one that is written next.
    next: usize,
    /// One of them is not to be written to.
    is_closed: bool,
    has_failed: bool,
}

#[derive(Serialize, Deserialize)]
struct Head {
    format: u64,
    number: u64,
    bytes: u64,
    sha256: String,
}

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

/// Content of a file.
enum Content {
    /// Nothing yet, or a write that was cut short.
    Nothing,
    Whole(u64, StateBody),
    /// It is not ours to write; why.
    Foreign(String),
}

impl State {
    /// Reads both files.
    pub(super) fn open(path: &Path, files: [OwnedFd; 2]) -> (Self, Answers) {
        let files = files.map(File::from);
        let mut state =
            Self { path: path.to_owned(), files, number: 0, next: 0, is_closed: false, has_failed: false };
        let mut newest = None;
        for (idx, file) in state.files.iter().enumerate() {
            match content_of(file) {
                Ok(Content::Whole(number, body)) if number >= state.number => {
                    (state.number, state.next) = (number, 1 - idx);
                    newest = Some(body);
                }
                Ok(Content::Whole(..) | Content::Nothing) => {}
                Ok(Content::Foreign(why)) => {
                    let shown = path.display();
                    tracing::error!(
                        "state \"{shown}\": answers-{idx}.json {why}; it is left alone, and nothing is saved"
                    );
                    state.is_closed = true;
                }
                Err(error) => tracing::error!("state \"{}\": cannot be read: {error}", path.display()),
            }
        }
        let answers = newest.map_or_else(Answers::new, |body| {
            let answer = |stored: StoredAnswer| {
                let StoredAnswer { cluster, source, members } = stored;
                ((cluster, source), Arc::new(SourceAnswer { members }))
            };
            body.answers.into_iter().map(answer).collect()
        });
        (state, answers)
    }

    /// Whether anything can be written.
    pub(super) fn is_open(&self) -> bool {
        !self.is_closed
    }

    /// Writes these answers, and waits for the disk. A failure to write is said once.
    pub(super) fn write(&mut self, answers: &Answers) -> bool {
        match self.try_write(answers) {
            Ok(()) => {
                if std::mem::take(&mut self.has_failed) {
                    tracing::info!("state \"{}\": can be written again", self.path.display());
                }
                true
            }
            Err(error) => {
                if !std::mem::replace(&mut self.has_failed, true) {
                    let shown = self.path.display();
                    tracing::error!(
                        "state \"{shown}\": cannot be written: {error}; what was written before stays"
                    );
                }
                false
            }
        }
    }

    fn try_write(&mut self, answers: &Answers) -> io::Result<()> {
        let stored = |((cluster, source), answer): (&(String, String), &Arc<SourceAnswer>)| StoredAnswer {
            cluster: cluster.clone(),
            source: source.clone(),
            members: answer.members.clone(),
        };
        let body = serde_json::to_vec(&StateBody { answers: answers.iter().map(stored).collect() })?;
        let number = self.number + 1;
        let sha256: [u8; 32] = Sha256::digest(&body).into();
        let head =
            Head { format: FORMAT, number, bytes: body.len() as u64, sha256: Hex(&sha256).to_string() };
        let mut bytes = serde_json::to_vec(&head)?;
        bytes.push(b'\n');
        bytes.extend(body);
        if bytes.len() as u64 > MAX_FILE_BYTES {
            return Err(io::Error::other(format!(
                "the answers are longer than the {} MiB that are read back",
                MAX_FILE_BYTES >> 20
            )));
        }
        let file = &self.files[self.next];
        file.write_all_at(&bytes, 0)?;
        file.set_len(bytes.len() as u64)?;
        file.sync_data()?;
        (self.number, self.next) = (number, 1 - self.next);
        Ok(())
    }
}

fn content_of(file: &File) -> io::Result<Content> {
    let len = file.metadata()?.len();
    if len > MAX_FILE_BYTES {
        return Ok(Content::Foreign(format!("is longer than {} MiB", MAX_FILE_BYTES >> 20)));
    }
    let mut bytes = vec![0; usize::try_from(len).map_err(io::Error::other)?];
    file.read_exact_at(&mut bytes, 0)?;
    let beginning = &bytes[..bytes.len().min(BEGINNING.len())];
    if !BEGINNING.starts_with(beginning) {
        return Ok(Content::Foreign("is not a file of answers".to_owned()));
    }
    let head = bytes.iter().take(MAX_HEAD_BYTES).position(|byte| *byte == b'\n');
    let Some(end) = head else { return Ok(Content::Nothing) };
    // Of another form only this key is known.
    let format = serde_json::from_slice::<serde_json::Value>(&bytes[..end]).ok();
    let format = format.as_ref().and_then(|head| head.get("format")).and_then(serde_json::Value::as_u64);
    if let Some(format) = format.filter(|format| *format != FORMAT) {
        return Ok(Content::Foreign(format!("has format {format}, this program knows {FORMAT}")));
    }
    let Ok(head) = serde_json::from_slice::<Head>(&bytes[..end]) else { return Ok(Content::Nothing) };
    let body = &bytes[end + 1..];
    let Some(body) = usize::try_from(head.bytes).ok().and_then(|n| body.get(..n)) else {
        return Ok(Content::Nothing);
    };
    let sha256: [u8; 32] = Sha256::digest(body).into();
    if Hex(&sha256).to_string() != head.sha256 {
        return Ok(Content::Nothing);
    }
    Ok(serde_json::from_slice(body).map_or(Content::Nothing, |body| Content::Whole(head.number, body)))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn open(folder: &Path) -> (State, Answers) {
        let file = |idx: usize| {
            let path = folder.join(format!("answers-{idx}.json"));
            File::options().read(true).write(true).create(true).truncate(false).open(path).unwrap().into()
        };
        State::open(folder, [file(0), file(1)])
    }

    fn answers(url: &str) -> Answers {
        let member = SourceMember { url: url.into(), weight: Some(3), ..SourceMember::default() };
        Answers::from([(("app".into(), "file".into()), Arc::new(SourceAnswer { members: vec![member] }))])
    }

    #[test]
    fn the_newer_whole_file_counts_and_a_torn_one_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let (mut state, before) = open(folder.path());
        assert_eq!(before, Answers::new());
        for url in ["http://a-long-name:80", "http://b:80", "http://c:80"] {
            assert!(state.write(&answers(url)));
            assert_eq!(open(folder.path()).1, answers(url));
        }
        // The third went to the first file. Every beginning of it, and every changed byte, is told from the whole.
        let newest = folder.path().join("answers-0.json");
        let whole = fs::read(&newest).unwrap();
        for n in 0..whole.len() {
            fs::write(&newest, &whole[..n]).unwrap();
            assert_eq!(open(folder.path()).1, answers("http://b:80"), "{n} bytes");
        }
        for n in BEGINNING.len() + 2..whole.len() {
            let mut changed = whole.clone();
            changed[n] ^= 1;
            fs::write(&newest, &changed).unwrap();
            let found = open(folder.path()).1;
            assert!(found == answers("http://b:80") || found == answers("http://c:80"), "byte {n}");
        }
    }

    #[test]
    fn a_file_of_somebody_else_is_left_alone() {
        for text in ["something else\n", "{\"format\":2,\"more\":7}\n{}"] {
            let folder = tempfile::tempdir().unwrap();
            let (mut state, _) = open(folder.path());
            assert!(state.write(&answers("http://a:80")));
            fs::write(folder.path().join("answers-1.json"), text).unwrap();
            let (state, found) = open(folder.path());
            assert_eq!((state.is_open(), found), (false, answers("http://a:80")));
            assert_eq!(fs::read_to_string(folder.path().join("answers-1.json")).unwrap(), text);
        }
    }

    #[test]
    fn a_disk_that_takes_nothing_keeps_what_it_has() {
        let folder = tempfile::tempdir().unwrap();
        let (mut state, _) = open(folder.path());
        assert!(state.write(&answers("http://a:80")));
        let file = |idx: usize| File::open(folder.path().join(format!("answers-{idx}.json"))).unwrap().into();
        let (mut state, _) = State::open(folder.path(), [file(0), file(1)]);
        assert!(!state.write(&answers("http://b:80")) && !state.write(&answers("http://b:80")));
        assert_eq!(open(folder.path()).1, answers("http://a:80"));
    }
}
