//! Sources outside that name the servers: a file, a program, an inventory over HTTP, DNS. Everything here runs in the scout, a
//! process of its own that loads no module and has no key of a listener; nothing here knows what a cluster does with an answer.
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
//! | `exec` | a program that writes an answer a line |
//! | `http` | a server that is asked by GET |
//! | `dns` | A, AAAA and SRV records |

pub(crate) mod answer;
mod dns;
pub(crate) mod exec;
mod file;
pub(crate) mod follow;
mod http;
pub(crate) mod read;

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use self::answer::SourceAnswer;
use self::dns::DnsSource;
use self::exec::ExecSource;
use self::file::FileSource;
use self::follow::{Follower, SourceNews};
use self::http::HttpSource;
use self::read::AnswerForm;
use crate::cluster::names::Resolver;
use crate::config::{MayName, ResolverConfig, SourceKind, SourceSpec, WhenEmpty};

/// Something that says who the servers are. It is started by making it, and stopped by dropping it.
pub(crate) trait DiscoverySource: Send {
    /// The next answer, complete: the first one at once, then each that may be another one. Waits for as long as there is none.
    /// `None` where it says that nothing has changed.
    ///
    /// # Errors
    /// It cannot be asked, or what it says is refused; in one line. It goes on to be asked, not without a pause.
    fn next(&mut self) -> impl Future<Output = Result<Option<SourceAnswer>, String>> + Send;
}

/// Work that may wait for a disk, on another thread. It is started once, however often its result is waited for: a disk that does
/// not answer keeps one thread.
struct DiskWork<T>(Option<JoinHandle<T>>);

impl<T: Send + 'static> DiskWork<T> {
    const NONE: Self = Self(None);

    /// Its result: of this work, unless an earlier one is not over. Another turn goes on where this one is given up.
    ///
    /// # Errors
    /// It panicked.
    async fn result(&mut self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
        let result = self.0.get_or_insert_with(|| tokio::task::spawn_blocking(work)).await;
        self.0 = None;
        result.map_err(|_| "reading failed".to_owned())
    }
}

/// Reads which name servers the system has, where the configuration names none: that may wait for a disk.
fn resolver(rules: &ResolverConfig) -> Result<Resolver, String> {
    Resolver::new(rules).map_err(|error| format!("no name server: {error}"))
}

/// Follows a source for ever. `last` is its last answer as an earlier scout sent it; `orders` has it accept what it holds back.
pub(crate) fn follow(
    spec: &Arc<SourceSpec>,
    resolver: &ResolverConfig,
    last: Option<Arc<SourceAnswer>>,
    orders: mpsc::Receiver<()>,
    tell: impl Fn(SourceNews) + Send + 'static,
) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    let follower = Follower::new(Arc::clone(spec), last, orders, tell);
    match &spec.kind {
        SourceKind::File { path } => Box::pin(follower.run(FileSource::new(path, spec))),
        SourceKind::Exec { command, environment } => {
            Box::pin(follower.run(ExecSource::new(command, environment, spec)))
        }
        SourceKind::Http { .. } => Box::pin(follower.run(HttpSource::new(spec, resolver))),
        SourceKind::Dns { .. } => Box::pin(follower.run(DnsSource::new(spec, resolver))),
    }
}

/// Asks sources once, all at the same time, and waits `limit` for each. What each says, in their order, or why it says nothing.
///
/// # Errors
/// The system gives no means to ask.
pub(crate) fn ask(
    specs: Vec<Arc<SourceSpec>>,
    resolver: &ResolverConfig,
    limit: Duration,
) -> io::Result<Vec<Result<SourceAnswer, String>>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let answers = runtime.block_on(async {
        let all: Vec<_> = specs
            .into_iter()
            .map(|spec| tokio::task::spawn(tokio::time::timeout(limit, first_answer(spec, resolver.clone()))))
            .collect();
        let mut answers = Vec::with_capacity(all.len());
        for one in all {
            answers.push(match one.await {
                Ok(Ok(answer)) => answer,
                Ok(Err(_)) => Err(format!("no answer within {limit:?}")),
                Err(_) => Err("asking failed".to_owned()),
            });
        }
        answers
    });
    // A disk that does not answer is not waited for.
    runtime.shutdown_background();
    Ok(answers)
}

async fn first_answer(spec: Arc<SourceSpec>, resolver: ResolverConfig) -> Result<SourceAnswer, String> {
    async fn of(mut source: impl DiscoverySource) -> Result<SourceAnswer, String> {
        loop {
            if let Some(answer) = source.next().await? {
                return Ok(answer);
            }
        }
    }
    match &spec.kind {
        SourceKind::File { path } => of(FileSource::new(path, &spec)).await,
        SourceKind::Exec { command, environment } => of(ExecSource::new(command, environment, &spec)).await,
        SourceKind::Http { .. } => of(HttpSource::new(&spec, &resolver)).await,
        SourceKind::Dns { .. } => of(DnsSource::new(&spec, &resolver)).await,
    }
}

/// Checks a file of servers as a source that may name any server reads it: how many there are, and how many were left out because
/// they are named before.
///
/// # Errors
/// The mistake, and its place.
pub fn check(file: &Path) -> Result<(usize, usize), String> {
    let spec = SourceSpec {
        cluster: String::new(),
        name: String::new(),
        kind: SourceKind::File { path: file.to_owned() },
        may_name: MayName { http: true, https: true, unix: vec!["/".into()] },
        empty: WhenEmpty::Obey,
        settle: Duration::ZERO,
    };
    let (answer, n_twins) = read::read(&file::bytes_of(file)?, AnswerForm::of(file), &spec)?;
    Ok((answer.members.len(), n_twins))
}
