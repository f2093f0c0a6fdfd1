//! Events as they happen: server-sent events (`text/event-stream`), until the client has enough.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame};
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::{AdminProgress, Readiness, handed_over_or_gone};
use crate::observe::events::{Event, EventLog};

/// EventStreams at once. They are not counted among the other connections, so that they keep no probe out.
const MAX_STREAMS: usize = 32;
/// A comment shows a client, and everything between, that the stream lives.
const COMMENT_EVERY: Duration = Duration::from_secs(15);
/// Timeout of what there is to send. A client that takes nothing for so long has left.
const TIME_TO_TAKE: Duration = Duration::from_secs(30);
/// Then the client asks again, with the number of the last event that it has.
const LONGEST: Duration = Duration::from_secs(3600);

/// EventStreams that are open.
#[derive(Clone, Debug, Default)]
pub(super) struct EventStreams(Arc<AtomicUsize>);

/// One of them, counted until this is dropped.
pub(super) struct OpenStream(Arc<AtomicUsize>);

impl EventStreams {
    /// One more, if there is room.
    pub(super) fn open(&self) -> Option<OpenStream> {
        let next = |n: usize| (n < MAX_STREAMS).then_some(n + 1);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).ok()?;
        Some(OpenStream(Arc::clone(&self.0)))
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The events that a stream is to show.
pub(super) struct StreamTerms {
    /// The last event that the client has.
    pub(super) after: u64,
    /// Only those of this cluster.
    pub(super) cluster: Option<String>,
    /// Only those of this kind.
    pub(super) kind: Option<String>,
}

impl StreamTerms {
    pub(super) fn shows(&self, event: &Event) -> bool {
        (self.cluster.is_none() || event.cluster == self.cluster)
            && self.kind.as_ref().is_none_or(|kind| event.kind == *kind)
    }
}

/// The body of such a response. A client that takes nothing has nothing made for it.
pub(super) struct StreamBody(mpsc::Receiver<Bytes>);

impl StreamBody {
    /// Begins a stream, which tells `progress` when it ends.
    pub(super) fn begin(
        open: OpenStream,
        log: Arc<EventLog>,
        terms: StreamTerms,
        ready: watch::Receiver<Readiness>,
        progress: Arc<AdminProgress>,
    ) -> Self {
        let (to, body) = mpsc::channel(1);
        tokio::spawn(async move {
            let _open = open;
            feed(&to, &log, terms, ready).await;
            progress.end_stream();
        });
        Self(body)
    }
}

async fn feed(
    to: &mpsc::Sender<Bytes>,
    log: &EventLog,
    mut terms: StreamTerms,
    mut ready: watch::Receiver<Readiness>,
) {
    let mut newest = log.watch();
    let mut end = pin!(async {
        tokio::select! {
            () = sleep(LONGEST) => {}
            _ = handed_over_or_gone(&mut ready) => {}
        }
    });
    let mut comments = interval(COMMENT_EVERY);
    comments.set_missed_tick_behavior(MissedTickBehavior::Delay);
    comments.reset();
    let mut text = "retry: 2000\n\n".to_owned();
    loop {
        newest.mark_unchanged();
        let events = log.after(terms.after);
        let expected = terms.after + 1;
        if events.first().is_some_and(|first| terms.after > 0 && first.id > expected) {
            text.push_str(": events before these are lost\n\n");
        }
        for event in &events {
            terms.after = event.id;
            if terms.shows(event) {
                write_event(event, &mut text);
            }
        }
        if !text.is_empty() {
            let send = timeout(TIME_TO_TAKE, to.send(std::mem::take(&mut text).into()));
            tokio::select! {
                biased;
                sent = send => if !matches!(sent, Ok(Ok(()))) { return },
                () = &mut end => return,
            }
        }
        tokio::select! {
            changed = newest.changed() => if changed.is_err() { return },
            _ = comments.tick() => text.push_str(":\n\n"),
            () = to.closed() => return,
            () = &mut end => return,
        }
    }
}

fn write_event(event: &Event, text: &mut String) {
    // It has no line breaks: JSON escapes them.
    let json = serde_json::to_string(event).unwrap_or_default();
    let _ = write!(text, "id: {}\nevent: {}\ndata: {json}\n\n", event.id, event.kind);
}

impl Body for StreamBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(cx).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stream whose client takes nothing, with more to send than fits into what lies between.
    async fn feed_to_nobody(ready: watch::Receiver<Readiness>) {
        let log = EventLog::new(None);
        let (to, _body) = mpsc::channel(1);
        to.try_send(Bytes::new()).expect("room for one");
        let terms = StreamTerms { after: 0, cluster: None, kind: None };
        feed(&to, &log, terms, ready).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_given_up_in_time() {
        let (_ready, asked) = watch::channel(Readiness::Ready);
        timeout(TIME_TO_TAKE * 2, feed_to_nobody(asked)).await.expect("an end");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_holds_no_worker_that_has_handed_over() {
        let (_ready, asked) = watch::channel(Readiness::HandedOver);
        timeout(TIME_TO_TAKE / 2, feed_to_nobody(asked)).await.expect("an end");
    }
}
