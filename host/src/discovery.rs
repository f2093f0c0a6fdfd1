//! Who the servers are, as somebody outside says it: a file, so far. Everything here runs in the scout, a process of its own that
//! loads no module and has no key of a listener; nothing here knows what a cluster does with an answer.
//!
//! ```text
//! source ─ text ─► read: schema, bounds ─► follow: is it new? empty? too soon? ─► a complete answer, or an error in words
//! ```
//!
//! | files | what |
//! |---|---|
//! | `answer` | all servers that one source names |
//! | `read` | JSON or TOML becomes an answer, or a line that says what is wrong and where |
//! | `follow` | one source for as long as it is asked: what counts as news, and what is held back |
//! | `file` | a file and its changes |

pub(crate) mod answer;
mod file;
pub(crate) mod follow;
pub(crate) mod read;

use std::sync::Arc;

use tokio::sync::mpsc;

use self::answer::SourceAnswer;
use self::file::FileSource;
use self::follow::{Follower, SourceNews};
use crate::config::{SourceKind, SourceSpec};

/// Something that says who the servers are. It is started by making it, and stopped by dropping it.
pub(crate) trait DiscoverySource: Send {
    /// The next answer, complete: the first one at once, then each that may be another one. Waits for as long as there is none.
    ///
    /// # Errors
    /// It cannot be asked, or what it says is refused; in one line. It goes on to be asked, not without a pause.
    fn next(&mut self) -> impl Future<Output = Result<SourceAnswer, String>> + Send;
}

/// Follows a source for ever. `last` is its last answer as an earlier scout sent it; `orders` has it accept what it holds back.
pub(crate) async fn follow(
    spec: Arc<SourceSpec>,
    last: Option<Arc<SourceAnswer>>,
    orders: mpsc::Receiver<()>,
    tell: impl Fn(SourceNews) + Send,
) {
    let follower = Follower::new(Arc::clone(&spec), last, orders, tell);
    match &spec.kind {
        SourceKind::File { path } => follower.run(FileSource::new(path, &spec)).await,
    }
}
