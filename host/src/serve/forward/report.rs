//! The end of a request: metrics and access log. Also requests that are answered without a server.

use std::io;
use std::time::{Duration, Instant};

use tokio::io::{AsyncWrite, AsyncWriteExt};

use super::request::{AfterRequest, Memory, Request, keeps};
use crate::http::h1::head::{Framing, Name, RequestHead, Version};
use crate::module::wire::ns;
use crate::observe::access_log;
use crate::observe::metrics::{self, EndedRequest};
use crate::serve::downstream::Downstream;
use crate::serve::error::Error;
use crate::serve::plan::Plan;
use crate::serve::respond::{self, ErrorReply, Written, status_of};
use crate::serve::thread::Thread;
use crate::serve::trylist::Trylist;

/// The response that the client got, for metrics and log.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RequestReport {
    pub(super) status: u16,
    pub(super) outcome: u32,
    pub(super) received_bytes: u64,
    pub(super) sent_bytes: u64,
    pub(super) body_bytes: u64,
}

/// The end of a request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Served {
    pub(super) report: RequestReport,
    /// The fate of its connection.
    pub(super) then: AfterRequest,
    /// When it was over.
    pub(super) at: Instant,
}

/// Answers a request that has no route with an error.
pub(crate) async fn refuse(
    thread: &Thread,
    down: &mut Downstream,
    memory: &mut Memory,
    error: Error,
    head: Option<&RequestHead>,
) -> AfterRequest {
    refuse_with(thread, down, memory, error, head, None).await
}

/// Answers a request that its route sends to no server with an error.
pub(super) async fn refuse_routed(
    thread: &Thread,
    down: &mut Downstream,
    memory: &mut Memory,
    (plan, head): (&Plan<'_>, &RequestHead),
    error: Error,
) -> AfterRequest {
    refuse_with(thread, down, memory, error, Some(head), Some(plan)).await
}

async fn refuse_with(
    thread: &Thread,
    down: &mut Downstream,
    memory: &mut Memory,
    error: Error,
    head: Option<&RequestHead>,
    plan: Option<&Plan<'_>>,
) -> AfterRequest {
    let now = Instant::now();
    // An unread body stands between this request and the next.
    let keep = status_of(error).keep
        && head.is_some_and(|head| head.framing == Framing::None && keeps(thread, down, head));
    memory.response.clear();
    let pages = plan.and_then(|plan| plan.route.errors.as_deref()).unwrap_or(&thread.config.errors);
    let reply = ErrorReply { error, head, keep, more: &[], pages };
    let Written { status, body_bytes, rest } =
        respond::write_error((&thread.date, now), &reply, &mut memory.response);
    let sent = write_whole(thread, down, &memory.response, rest).await;
    let report = RequestReport {
        status,
        received_bytes: head.map_or(0, |head| head.len() as u64),
        sent_bytes: if sent { (memory.response.len() + rest.len()) as u64 } else { 0 },
        body_bytes: if sent { body_bytes } else { 0 },
        ..RequestReport::default()
    };
    tracing::debug!(client = %down.peer, status = report.status, "request refused: {error}");
    conclude_without_server(thread, down, head, plan, report, now);
    down.served_at = Instant::now();
    end(sent, keep)
}

pub(super) async fn answer_options(
    thread: &Thread,
    down: &mut Downstream,
    memory: &mut Memory,
    head: &RequestHead,
    started: Instant,
) -> AfterRequest {
    let keep = head.framing == Framing::None && keeps(thread, down, head);
    memory.response.clear();
    respond::write_options(&thread.date, head, keep, started, &mut memory.response);
    let sent = write_whole(thread, down, &memory.response, &[]).await;
    let sent_bytes = memory.response.len() as u64;
    let report = RequestReport {
        status: 204,
        received_bytes: head.len() as u64,
        sent_bytes,
        ..RequestReport::default()
    };
    conclude_without_server(thread, down, Some(head), None, report, started);
    down.served_at = Instant::now();
    end(sent, keep)
}

impl Request<'_> {
    /// Updates metrics and access log, and explains the request where its client asked for that.
    pub(super) fn conclude(
        &self,
        down: &Downstream,
        trylist: &Trylist<'_>,
        report: RequestReport,
        now: Instant,
    ) {
        let thread = self.thread;
        if trylist.is_explained() {
            self.log_explanation(trylist, report.status, now);
        }
        let duration_ns = ns(now.saturating_duration_since(self.started));
        let first_byte_ns = trylist.first_byte().map(ns);
        thread.metrics.request(&EndedRequest {
            listener: usize::from(down.listener),
            route: Some(self.view.plan.route.idx),
            cluster: Some(self.view.plan.cluster),
            outcome: report.outcome,
            status: report.status,
            duration_ns,
            first_byte_ns,
            received_bytes: report.received_bytes,
            sent_bytes: report.sent_bytes,
        });
        let Some(log) = &thread.access_log else { return };
        let entry = access_log::LogEntry {
            cluster: Some(&self.cluster.config.name),
            module: Some(trylist.module()),
            endpoint: trylist.last_endpoint().map(|endpoint| &*trylist.member(endpoint).url),
            duration_ns,
            first_byte_ns,
            request_id: self.view.plan.request_id.as_deref(),
            client: self.view.plan.client.address.ip(),
            ..entry(down, Some(self.view.head), Some(self.view.plan), report)
        };
        let tries = trylist.tries().iter().enumerate().map(|(i, tried)| access_log::Try {
            endpoint: &trylist.member(tried.endpoint).url,
            result: tried.failure.map_or_else(|| metrics::try_result(tried.result), metrics::failure),
            status: tried.status,
            duration_ns: ns(tried.total),
            reason: self.failures.of(i),
        });
        log.borrow_mut().log(&entry, tries);
    }
}

/// Writes a response of the proxy's own, and the rest of its body behind it; false where the client does not take it, whose
/// connection is then of no use.
pub(super) async fn write_whole(
    thread: &Thread,
    down: &mut Downstream,
    response: &[u8],
    rest: &[u8],
) -> bool {
    let mut is_written = write_all(thread, down, response).await;
    if is_written && !rest.is_empty() {
        is_written = write_all(thread, down, rest).await;
    }
    if is_written {
        down.stream.finish(b"");
    }
    is_written
}

/// Writes the beginning of a response that goes on; false as above.
pub(super) async fn write_all(thread: &Thread, down: &mut Downstream, bytes: &[u8]) -> bool {
    match write_in_time(&mut down.stream, bytes, thread.config.timeouts.body).await {
        Ok(()) => true,
        Err(error) => {
            if error.kind() == io::ErrorKind::TimedOut {
                // Closed without that, the kernel would keep what the client does not take, for minutes.
                down.reset_on_close(true);
            }
            false
        }
    }
}

/// Writes all. Whoever takes nothing for so long has left.
async fn write_in_time<W: AsyncWrite + Unpin>(
    to: &mut W,
    mut bytes: &[u8],
    time: Duration,
) -> io::Result<()> {
    while !bytes.is_empty() {
        match tokio::time::timeout(time, to.write(bytes)).await?? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            n => bytes = &bytes[n..],
        }
    }
    tokio::time::timeout(time, to.flush()).await?
}

/// The fate of a connection after a response of the proxy's own.
pub(super) fn end(sent: bool, keep: bool) -> AfterRequest {
    match (sent, keep) {
        (true, true) => AfterRequest::Keep,
        (true, false) => AfterRequest::CloseUnread,
        (false, _) => AfterRequest::Close,
    }
}

/// Updates metrics and access log after a request that went to no server.
pub(super) fn conclude_without_server(
    thread: &Thread,
    down: &Downstream,
    head: Option<&RequestHead>,
    plan: Option<&Plan<'_>>,
    report: RequestReport,
    started: Instant,
) {
    let duration_ns = ns(started.elapsed());
    thread.metrics.request(&EndedRequest {
        listener: usize::from(down.listener),
        route: plan.map(|plan| plan.route.idx),
        cluster: None,
        outcome: 0,
        status: report.status,
        duration_ns,
        first_byte_ns: None,
        received_bytes: report.received_bytes,
        sent_bytes: report.sent_bytes,
    });
    if let Some(log) = &thread.access_log {
        let client = match (plan, head) {
            (Some(plan), _) => plan.client.address,
            (None, Some(head)) => thread.config.forwarded.client(head, down.peer).address,
            (None, None) => down.peer,
        };
        let client = client.ip();
        let request_id = plan.and_then(|plan| plan.request_id.as_deref());
        let entry =
            access_log::LogEntry { client, duration_ns, request_id, ..entry(down, head, plan, report) };
        log.borrow_mut().log(&entry, []);
    }
}

fn entry<'a>(
    down: &'a Downstream,
    head: Option<&'a RequestHead>,
    plan: Option<&Plan<'a>>,
    report: RequestReport,
) -> access_log::LogEntry<'a> {
    access_log::LogEntry {
        client: down.peer.ip(),
        method: head.map_or(b"", |head| head.text(head.method_text)),
        target: head.map_or(b"", |head| head.text(head.target)),
        version: match head.map(|head| head.version) {
            Some(Version::Http10) => "HTTP/1.0",
            Some(Version::Http11) | None => "HTTP/1.1",
            Some(Version::Http2) => "HTTP/2.0",
        },
        host: match plan {
            Some(plan) => plan.authority,
            None => head.and_then(|head| head.host.map(|host| head.text(host))),
        },
        scheme: match plan.map_or(down.stream.is_secure(), |plan| plan.client.is_https) {
            true => "https",
            false => "http",
        },
        tls: down.stream.tls().map(|(version, name)| access_log::TlsSeen { version, name }),
        received_bytes: report.received_bytes,
        sent_bytes: report.sent_bytes,
        status: report.status,
        body_bytes: report.body_bytes,
        referer: head.and_then(|head| head.known(Name::Referer)),
        user_agent: head.and_then(|head| head.known(Name::UserAgent)),
        cluster: None,
        module: None,
        endpoint: None,
        duration_ns: 0,
        first_byte_ns: None,
        request_id: None,
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_takes_a_page_slowly_gets_all_of_it_and_who_takes_nothing_is_given_up() {
        let time = Duration::from_secs(10);
        let (mut server, mut client) = tokio::io::duplex(1024);
        let page = vec![b'x'; 16 * 1024];
        let slow = async {
            for _ in 0..16 {
                tokio::time::sleep(time * 3 / 4).await;
                client.read_exact(&mut [0; 1024]).await.expect("more");
            }
        };
        let (written, ()) = tokio::join!(write_in_time(&mut server, &page, time), slow);
        written.expect("all of it");
        let error = write_in_time(&mut server, &page, time).await.expect_err("nobody reads");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
