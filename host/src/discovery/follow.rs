//! One source for as long as it is asked: what of it is news, and what is held back.
//!
//! - An answer that says what the last one said is none.
//! - An answer without servers after one with some is held back, unless the configuration wants it obeyed.
//! - Two answers are `settle` apart. An answer in between is not lost: the source is asked again then.
//! - An error changes nothing, whatever it is.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::DiscoverySource;
use super::answer::{SourceAnswer, SourceMember};
use crate::config::{SourceSpec, WhenEmpty};

/// Between two answers, however short `settle` is: a source that says something all the time is not all that a scout does.
const SHORTEST_PAUSE: Duration = Duration::from_millis(10);
/// A line about a change names so many servers.
const MAX_NAMED: usize = 10;
/// Longest words of an error that are shown.
const MAX_ERROR_CHARS: usize = 400;

/// The state of a source, as it is told.
#[derive(Debug)]
pub(crate) enum SourceNews {
    /// A new answer, and how the source is with it.
    Answer(Arc<SourceAnswer>, SourceReport),
    /// How the source is.
    Report(SourceReport),
    /// The result of an order to accept what is held back: how many servers it names, if there was something.
    Accepted(Option<u32>),
}

/// How a source is.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct SourceReport {
    /// Answers that were news.
    pub(crate) n_answers: u64,
    /// Times that it could not be asked, or said something that was refused.
    pub(crate) n_errors: u64,
    /// Answers without servers that were held back.
    pub(crate) n_held: u64,
    /// The error that holds now.
    pub(crate) error: Option<String>,
    /// An answer without servers is held back now.
    pub(crate) is_held: bool,
}

/// Follows one source.
pub(crate) struct Follower<F> {
    spec: Arc<SourceSpec>,
    last: Option<Arc<SourceAnswer>>,
    held: Option<SourceAnswer>,
    report: SourceReport,
    orders: mpsc::Receiver<()>,
    tell: F,
}

impl<F: Fn(SourceNews) + Send> Follower<F> {
    pub(super) fn new(
        spec: Arc<SourceSpec>,
        last: Option<Arc<SourceAnswer>>,
        orders: mpsc::Receiver<()>,
        tell: F,
    ) -> Self {
        Self { spec, last, held: None, report: SourceReport::default(), orders, tell }
    }

    /// For ever.
    pub(super) async fn run(mut self, mut source: impl DiscoverySource) {
        let pause = self.spec.settle.max(SHORTEST_PAUSE);
        loop {
            let result = {
                let mut next = pin!(source.next());
                loop {
                    tokio::select! {
                        result = &mut next => break result,
                        Some(()) = self.orders.recv() => self.accept(),
                    }
                }
            };
            self.take(result);
            let mut paused = pin!(sleep_until(Instant::now() + pause));
            loop {
                tokio::select! {
                    () = &mut paused => break,
                    Some(()) = self.orders.recv() => self.accept(),
                }
            }
        }
    }

    fn take(&mut self, result: Result<Option<SourceAnswer>, String>) {
        let answer = match result {
            Ok(answer) => answer,
            Err(error) => return self.failed(&error),
        };
        if let Some(error) = self.report.error.take() {
            tracing::info!("{}: answers again (it was: {error})", self.name());
        }
        let Some(answer) = answer else { return (self.tell)(SourceNews::Report(self.report.clone())) };
        let had_any = self.last.as_ref().is_some_and(|last| !last.members.is_empty());
        if answer.members.is_empty() && had_any && self.spec.empty == WhenEmpty::Keep {
            return self.hold(answer);
        }
        if self.held.take().is_some() {
            self.report.is_held = false;
            tracing::info!("{}: names servers again", self.name());
        }
        self.say(answer);
    }

    /// Tells an answer, unless it is the last one.
    fn say(&mut self, answer: SourceAnswer) {
        if self.last.as_deref() == Some(&answer) {
            return (self.tell)(SourceNews::Report(self.report.clone()));
        }
        let answer = Arc::new(answer);
        let before = self.last.replace(Arc::clone(&answer)).unwrap_or_default();
        tracing::info!("{}: {}", self.name(), describe(&before, &answer));
        self.report.n_answers += 1;
        (self.tell)(SourceNews::Answer(answer, self.report.clone()));
    }

    fn hold(&mut self, answer: SourceAnswer) {
        if self.held.is_none() {
            let SourceSpec { cluster, name, .. } = &*self.spec;
            let n = self.last.as_ref().map_or(0, |last| last.members.len());
            tracing::warn!(
                "{}: names no server any more; its last {n} stay (to obey it: trylist discovery accept {cluster} {name})",
                self.name()
            );
            self.report.n_held += 1;
        }
        self.held = Some(answer);
        self.report.is_held = true;
        (self.tell)(SourceNews::Report(self.report.clone()));
    }

    fn accept(&mut self) {
        let Some(held) = self.held.take() else { return (self.tell)(SourceNews::Accepted(None)) };
        self.report.is_held = false;
        let n = u32::try_from(held.members.len()).unwrap_or(u32::MAX);
        self.say(held);
        (self.tell)(SourceNews::Accepted(Some(n)));
    }

    fn failed(&mut self, error: &str) {
        let error = one_line(error);
        self.report.n_errors += 1;
        if self.report.error.as_ref() != Some(&error) {
            let keeps = match self.last.as_ref().map(|last| last.members.len()) {
                Some(n) => format!("its last {n} servers stay"),
                None => "it has not answered yet".to_owned(),
            };
            tracing::warn!("{}: {error} ({keeps})", self.name());
        }
        self.report.error = Some(error);
        (self.tell)(SourceNews::Report(self.report.clone()));
    }

    fn name(&self) -> String {
        format!("cluster \"{}\": source \"{}\"", self.spec.cluster, self.spec.name)
    }
}

/// Words that may come from outside, as one short line.
pub(super) fn one_line(text: &str) -> String {
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    let mut line: String = text.chars().map(clean).take(MAX_ERROR_CHARS).collect();
    if text.chars().nth(MAX_ERROR_CHARS).is_some() {
        line.push('…');
    }
    line
}

/// A change in words: how many came, left and changed, and some of their names.
fn describe(before: &SourceAnswer, now: &SourceAnswer) -> String {
    fn by_url(answer: &SourceAnswer) -> HashMap<&str, &SourceMember> {
        answer.members.iter().map(|member| (&*member.url, member)).collect()
    }
    let (old, new) = (by_url(before), by_url(now));
    let urls = |answer: &SourceAnswer, is_so: &dyn Fn(&SourceMember) -> bool| -> Vec<String> {
        let members = answer.members.iter().filter(|member| is_so(member));
        members.map(|member| member.url.clone()).collect()
    };
    let came = urls(now, &|member| !old.contains_key(&*member.url));
    let left = urls(before, &|member| !new.contains_key(&*member.url));
    let changed = urls(now, &|member| old.get(&*member.url).is_some_and(|before| **before != *member));
    let mut parts = Vec::new();
    let mut n_named = 0;
    for (what, urls) in [("came", came), ("left", left), ("changed", changed)] {
        if urls.is_empty() {
            continue;
        }
        let named: Vec<&str> = urls.iter().take(MAX_NAMED - n_named).map(String::as_str).collect();
        n_named += named.len();
        let more = if named.len() < urls.len() { ", …" } else { "" };
        parts.push(match named.is_empty() {
            true => format!("{} {what}", urls.len()),
            false => format!("{} {what} ({}{more})", urls.len(), named.join(", ")),
        });
    }
    if parts.is_empty() {
        parts.push("the same in another order".to_owned());
    }
    let n = now.members.len();
    format!("{}; {n} server{} now", parts.join(", "), if n == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Mutex;

    use super::*;
    use crate::config::{MayName, SourceKind};

    /// Says these things one after the other, then nothing.
    struct Script(VecDeque<Result<SourceAnswer, String>>);

    impl DiscoverySource for Script {
        async fn next(&mut self) -> Result<Option<SourceAnswer>, String> {
            match self.0.pop_front() {
                Some(result) => result.map(Some),
                None => std::future::pending().await,
            }
        }
    }

    fn answer(urls: &[&str]) -> Result<SourceAnswer, String> {
        let member = |url: &&str| SourceMember { url: (*url).to_owned(), ..SourceMember::default() };
        Ok(SourceAnswer { members: urls.iter().map(member).collect() })
    }

    /// The news of a source that says these things and then is asked to obey what it holds back.
    async fn told(
        empty: WhenEmpty,
        last: Option<&[&str]>,
        says: Vec<Result<SourceAnswer, String>>,
        accepts: bool,
    ) -> Vec<String> {
        let spec = SourceSpec {
            cluster: "app".into(),
            name: "s".into(),
            kind: SourceKind::File { path: "f".into() },
            may_name: MayName { http: true, https: false, unix: vec![] },
            empty,
            settle: Duration::from_secs(1),
        };
        let (orders, inbox) = mpsc::channel(1);
        let heard = Mutex::new(Vec::new());
        let last = last.map(|urls| Arc::new(answer(urls).unwrap()));
        let follower = Follower::new(Arc::new(spec), last, inbox, |news| {
            heard.lock().unwrap().push(match news {
                SourceNews::Answer(answer, _) => format!("{} servers", answer.members.len()),
                SourceNews::Report(SourceReport { error: Some(error), n_errors, .. }) => {
                    format!("{n_errors}: {error}")
                }
                SourceNews::Report(SourceReport { is_held: true, .. }) => "held".to_owned(),
                SourceNews::Report(_) => "well".to_owned(),
                SourceNews::Accepted(n) => format!("accepted {n:?}"),
            });
        });
        let n = says.len() as u64;
        let run = follower.run(Script(says.into()));
        let _ = tokio::time::timeout(Duration::from_secs(n + 5), async {
            let ask = async {
                tokio::time::sleep(Duration::from_secs(n + 1)).await;
                if accepts {
                    orders.send(()).await.unwrap();
                }
            };
            tokio::join!(run, ask)
        })
        .await;
        heard.into_inner().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_is_no_news_and_an_error_changes_nothing() {
        let says =
            vec![answer(&["a"]), answer(&["a"]), Err("no\nway".into()), answer(&["a"]), answer(&["a", "b"])];
        assert_eq!(
            told(WhenEmpty::Keep, None, says, false).await,
            ["1 servers", "well", "1: no way", "well", "2 servers"]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_that_names_none_any_more_is_held_back_until_it_is_accepted() {
        let none_first = vec![answer(&[])];
        assert_eq!(told(WhenEmpty::Keep, None, none_first, true).await, ["0 servers", "accepted None"]);
        let says = || vec![answer(&["a"]), answer(&[])];
        assert_eq!(
            told(WhenEmpty::Keep, None, says(), true).await,
            ["1 servers", "held", "0 servers", "accepted Some(0)"]
        );
        assert_eq!(told(WhenEmpty::Obey, None, says(), false).await, ["1 servers", "0 servers"]);
        // Another scout goes on from the last answer.
        assert_eq!(told(WhenEmpty::Keep, Some(&["a"]), vec![answer(&[])], false).await, ["held"]);
        assert_eq!(told(WhenEmpty::Keep, Some(&["a"]), vec![answer(&["a"])], false).await, ["well"]);
        // It names some again, and there is nothing left to accept.
        let again = vec![answer(&["a"]), answer(&[]), answer(&["b"])];
        assert_eq!(
            told(WhenEmpty::Keep, None, again, true).await,
            ["1 servers", "held", "1 servers", "accepted None"]
        );
    }

    #[test]
    fn a_change_names_ten_servers_at_most() {
        let urls: Vec<String> = (0..12).map(|i| format!("u{i}")).collect();
        let urls: Vec<&str> = urls.iter().map(String::as_str).collect();
        let (none, all) = (answer(&[]).unwrap(), answer(&urls).unwrap());
        let named = "u0, u1, u2, u3, u4, u5, u6, u7, u8, u9, …";
        assert_eq!(describe(&none, &all), format!("12 came ({named}); 12 servers now"));
        let (one, other) = (answer(&["a", "b"]).unwrap(), answer(&["b", "c"]).unwrap());
        assert_eq!(describe(&one, &other), "1 came (c), 1 left (a); 2 servers now");
        assert_eq!(describe(&one, &answer(&["b", "a"]).unwrap()), "the same in another order; 2 servers now");
    }
}
