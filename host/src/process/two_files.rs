//! Something that is kept on a disk over restarts of the proxy: two files, written in turn, of which the newer whole one counts.
//!
//! ```text
//! {"format":1,"number":7,"bytes":123,"sha256":"…"}
//! {"answers":[{"cluster":"app","source":"file","members":[…]}]}
//! ```
//!
//! The supervisor has opened the files: the scout, which writes them, need not be able to reach them. A write that is cut short, by
//! a crash or a full disk, spoils one file and not the other. A file that does not begin like one of these is somebody else's, or of
//! a later version: it is left alone.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::module::Hex;

/// The form above.
const FORMAT: u64 = 1;
/// How a file of any form begins.
const BEGINNING: &[u8] = b"{\"format\":";
/// A longer first line is none of ours.
const MAX_HEAD_BYTES: usize = 4096;
/// Longer files are neither read nor written.
const MAX_FILE_BYTES: u64 = 512 << 20;

/// Two files, open for reading and writing.
pub(crate) struct TwoFiles {
    folder: PathBuf,
    /// The name before their numbers: what is kept there.
    what: &'static str,
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

/// Content of a file.
enum Content {
    /// Nothing yet.
    Nothing,
    /// A write that was cut short, or a byte that has changed.
    Torn,
    Whole(u64, Vec<u8>),
    /// It is not ours to write; why.
    Foreign(String),
}

impl TwoFiles {
    /// The files of this name in a folder. Reads both; returns what they hold, if one of them is whole.
    pub(crate) fn open(folder: &Path, what: &'static str, files: [OwnedFd; 2]) -> (Self, Option<Vec<u8>>) {
        let files = files.map(File::from);
        let (number, next) = (0, 0);
        let folder = folder.to_owned();
        let mut two = Self { folder, what, files, number, next, is_closed: false, has_failed: false };
        let shown = two.folder.display();
        let mut newest = None;
        for (idx, file) in two.files.iter().enumerate() {
            match content_of(file, what) {
                Ok(Content::Whole(number, body)) if number >= two.number => {
                    (two.number, two.next) = (number, 1 - idx);
                    newest = Some(body);
                }
                Ok(Content::Whole(..) | Content::Nothing) => {}
                Ok(Content::Torn) => {
                    tracing::warn!("state \"{shown}\": {what}-{idx}.json is not whole, so it is not used");
                }
                Ok(Content::Foreign(why)) => {
                    tracing::error!(
                        "state \"{shown}\": {what}-{idx}.json {why}; it is left alone, and no {what} are saved"
                    );
                    two.is_closed = true;
                }
                Err(error) => tracing::error!("state \"{shown}\": {what}-{idx}.json cannot be read: {error}"),
            }
        }
        (two, newest)
    }

    /// The newest whole content of these files. Mistakes in them are logged by the process that opens them for writing.
    pub(crate) fn read(files: [OwnedFd; 2]) -> Option<Vec<u8>> {
        let contents = files.into_iter().filter_map(|file| content_of(&File::from(file), "").ok());
        let whole = contents.filter_map(|content| match content {
            Content::Whole(number, body) => Some((number, body)),
            Content::Nothing | Content::Torn | Content::Foreign(_) => None,
        });
        whole.max_by_key(|(number, _)| *number).map(|(_, body)| body)
    }

    /// Whether anything can be written.
    pub(crate) fn is_open(&self) -> bool {
        !self.is_closed
    }

    /// Writes this, and waits for the disk. A failure is logged once.
    ///
    /// # Errors
    /// It is not on the disk, because one of the files is somebody else's or the disk does not take it.
    pub(crate) fn write(&mut self, body: io::Result<Vec<u8>>) -> io::Result<()> {
        if self.is_closed {
            return Err(io::Error::other(format!("a file of {} there is not of this program", self.what)));
        }
        let (shown, what) = (self.folder.display(), self.what);
        match body.and_then(|body| self.try_write(&body)) {
            Ok((number, next)) => {
                if std::mem::take(&mut self.has_failed) {
                    tracing::info!("state \"{shown}\": {what} can be written again");
                }
                (self.number, self.next) = (number, next);
                Ok(())
            }
            Err(error) => {
                if !std::mem::replace(&mut self.has_failed, true) {
                    tracing::error!(
                        "state \"{shown}\": {what} cannot be written: {error}; what was written before stays"
                    );
                }
                Err(error)
            }
        }
    }

    /// The number that was written, and the file for the next one.
    fn try_write(&self, body: &[u8]) -> io::Result<(u64, usize)> {
        let number = self.number.saturating_add(1);
        let sha256: [u8; 32] = Sha256::digest(body).into();
        let head =
            Head { format: FORMAT, number, bytes: body.len() as u64, sha256: Hex(&sha256).to_string() };
        let mut bytes = serde_json::to_vec(&head)?;
        bytes.push(b'\n');
        bytes.extend(body);
        if bytes.len() as u64 > MAX_FILE_BYTES {
            return Err(io::Error::other(format!(
                "they are longer than the {} MiB that are read back",
                MAX_FILE_BYTES >> 20
            )));
        }
        let file = &self.files[self.next];
        file.write_all_at(&bytes, 0)?;
        file.set_len(bytes.len() as u64)?;
        file.sync_data()?;
        Ok((number, 1 - self.next))
    }
}

fn content_of(file: &File, what: &str) -> io::Result<Content> {
    let len = file.metadata()?.len();
    if len == 0 {
        return Ok(Content::Nothing);
    }
    if len > MAX_FILE_BYTES {
        return Ok(Content::Foreign(format!("is longer than {} MiB", MAX_FILE_BYTES >> 20)));
    }
    let mut bytes = vec![0; usize::try_from(len).map_err(io::Error::other)?];
    file.read_exact_at(&mut bytes, 0)?;
    let beginning = &bytes[..bytes.len().min(BEGINNING.len())];
    if !BEGINNING.starts_with(beginning) {
        return Ok(Content::Foreign(format!("is not a file of {what}")));
    }
    let head = bytes.iter().take(MAX_HEAD_BYTES).position(|byte| *byte == b'\n');
    let Some(end) = head else { return Ok(Content::Torn) };
    // Of another form only this key is known.
    let format = serde_json::from_slice::<serde_json::Value>(&bytes[..end]).ok();
    let format = format.as_ref().and_then(|head| head.get("format")).and_then(serde_json::Value::as_u64);
    if let Some(format) = format.filter(|format| *format != FORMAT) {
        return Ok(Content::Foreign(format!("has format {format}, this program knows {FORMAT}")));
    }
    let Ok(head) = serde_json::from_slice::<Head>(&bytes[..end]) else { return Ok(Content::Torn) };
    let rest = &bytes[end + 1..];
    let Some(body) = usize::try_from(head.bytes).ok().and_then(|n| rest.get(..n)) else {
        return Ok(Content::Torn);
    };
    let sha256: [u8; 32] = Sha256::digest(body).into();
    if Hex(&sha256).to_string() != head.sha256 {
        return Ok(Content::Torn);
    }
    Ok(Content::Whole(head.number, body.to_vec()))
}
