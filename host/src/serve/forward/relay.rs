//! Relays the response to the client, while the rest of the request goes to the server.

use std::future::poll_fn;
use std::pin::pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use lb_api::wire;

use super::explain;
use super::failure::{FailedTry, RequestFailure};
use super::report::{RequestReport, Served};
use super::request::{AfterRequest, Memory, Request};
use crate::http::h1::buffer::Buffer;
use crate::http::h1::head::{Framing, ResponseHead};
use crate::http::headers::{self, Reply, ResponseFraming};
use crate::http::pump::{Pump, PumpError, PumpTerms};
use crate::http::stream::Stream;
use crate::serve::downstream::Downstream;
use crate::serve::error::Error;
use crate::serve::thread::Thread;
use crate::serve::trylist::Trylist;
use crate::serve::upstream::{self, Exchange};

/// When a response is complete, at most this many bytes of the request's body are still read, so that the connection
/// can go on. More ends it.
const SKIP_BYTES: u64 = 256 * 1024;
/// Why a response broke off.
pub(super) enum Broken {
    Client(Error),
    Server(PumpError),
    ServerStalled,
    OutOfTime,
}

/// The rest of a request, sent while its response is relayed.
pub(super) struct Sending<'a> {
    request: &'a mut Pump,
    /// The server takes no more. Its response counts all the same.
    failed: bool,
}

impl Request<'_> {
    /// Sends the response to the client while the rest of the request, if there is one, goes to the server.
    pub(super) async fn relay(
        &mut self,
        down: &mut Downstream,
        memory: &mut Memory,
        trylist: &mut Trylist<'_>,
        endpoint: usize,
        exchange: Exchange,
    ) -> Result<Served, RequestFailure> {
        let Exchange { mut server, mut buffer, mut request, .. } = exchange;
        let now = Instant::now();
        trylist.response_headers(&memory.response_head, now);
        let received = buffer.range().end as u64;
        let framing = self.response_framing(down, &memory.response_head, &request);
        let terms = self.response_terms(&memory.response_head, framing, server.is_h2());
        let mut pump =
            Pump::of_response(self.response_head(down, memory, (trylist, endpoint), framing, now), terms);
        let until_close = !down.stream.is_h2() && framing.ends_with_connection(&memory.response_head);
        if until_close {
            // A body that breaks off must not look whole, whatever becomes of this future.
            down.reset_on_close(true);
        }

        let mut sending = Sending { request: &mut request, failed: false };
        let relayed = {
            let relaying =
                pin!(self.relay_pumps(down, &mut server, &mut buffer, &mut sending, &mut pump, now));
            trylist.let_go_during(relaying).await
        };
        let is_sent = sending.is_sent();
        let mut at = Instant::now();
        let mut report = self.report_of(memory.response_head.status, &request, &pump);
        trylist.count_bytes(request.sent, received + pump.received);
        memory.response = pump.into_memory();
        if let Err(broken) = relayed {
            return Err(self.broken(trylist, endpoint, broken, report));
        }
        if until_close {
            down.reset_on_close(false);
        }
        trylist.end_try(wire::TRY_SERVED, at);
        let then = if is_sent {
            if memory.response_head.keep_alive && buffer.is_empty() {
                let member = trylist.member(endpoint);
                self.thread.keep_connection(self.view.plan.cluster, member, server, at);
            }
            self.end(down, framing.keep)
        } else {
            // The server answered before it had the whole request.
            let keeps = framing.keep && !down.stream.is_h2();
            let is_skipped = keeps && skip_rest(self.thread, down, &mut request).await;
            report.received_bytes = self.view.head.len() as u64 + request.body_bytes;
            at = Instant::now();
            if is_skipped { AfterRequest::Keep } else { AfterRequest::CloseUnread }
        };
        memory.request = request.into_memory();
        Ok(Served { report, then, at })
    }

    fn report_of(&self, status: u16, request: &Pump, response: &Pump) -> RequestReport {
        RequestReport {
            status,
            outcome: wire::OUTCOME_SERVED,
            received_bytes: self.view.head.len() as u64 + request.body_bytes,
            sent_bytes: response.sent,
            body_bytes: response.body_bytes,
        }
    }

    /// How the response is framed for its client, and whether its connection goes on.
    fn response_framing(&self, down: &Downstream, head: &ResponseHead, request: &Pump) -> ResponseFraming {
        // Told the end before it was told to continue, the client may send its body now, or its next request: nobody can
        // tell which it is.
        let may_hold_back = self.view.head.expects_continue && !request.is_done();
        let keep = self.keeps(down) && !may_hold_back;
        headers::response_framing(head, self.view.head.version, keep)
    }

    fn response_terms(&self, head: &ResponseHead, framing: ResponseFraming, ends_apart: bool) -> PumpTerms {
        let may_have_trailers = ends_apart || head.framing == Framing::Chunked;
        let rules = self.view.plan.route.response_headers.as_ref();
        PumpTerms {
            ends_apart,
            trailer_rules: rules.filter(|_| may_have_trailers).cloned(),
            ..PumpTerms::new(head.framing, framing.encoding)
        }
    }

    /// The response's head as the client gets it.
    fn response_head(
        &self,
        down: &Downstream,
        memory: &mut Memory,
        (trylist, endpoint): (&Trylist<'_>, usize),
        framing: ResponseFraming,
        now: Instant,
    ) -> Vec<u8> {
        let mut out = std::mem::take(&mut memory.response);
        out.clear();
        self.write_response_head(down, (trylist, endpoint), &memory.response_head, framing, now, &mut out);
        out
    }

    /// Apart from [`Self::relay`], so that what it looks at is not kept while the body is relayed.
    fn write_response_head(
        &self,
        down: &Downstream,
        (trylist, endpoint): (&Trylist<'_>, usize),
        head: &ResponseHead,
        framing: ResponseFraming,
        now: Instant,
        out: &mut Vec<u8>,
    ) {
        let mut more = self.session_cookie(trylist, endpoint);
        let with_why;
        if trylist.is_explained() {
            with_why = [more, &explain::header_lines(trylist, now)].concat();
            more = &with_why;
        }
        let values;
        let rules = match self.view.plan.route.response_headers.as_deref() {
            None => None,
            Some(rules) => {
                values = self.values(down, Some(trylist.member(endpoint)), head.status);
                Some((rules, &values))
            }
        };
        let reply = Reply { framing, client: self.view.head.version, more, rules };
        headers::write_response(&self.thread.date, head, &reply, now, out);
    }

    /// The `Set-Cookie` line of a new session, which brings the client back to this endpoint. Empty where the client's session is
    /// here already, or stays where it is.
    pub(super) fn session_cookie<'b>(&self, trylist: &'b Trylist<'_>, endpoint: usize) -> &'b [u8] {
        let members = trylist.members();
        let sticky = members.sticky.as_ref();
        let sticky = sticky.filter(|_| self.view.preferred != Some(endpoint) && !trylist.is_session_kept());
        let by_tls = self.view.plan.client.is_https;
        let idx = members.index_of_place(endpoint);
        sticky.zip(idx).and_then(|(sticky, idx)| sticky.set_cookie(idx, by_tls)).unwrap_or_default()
    }

    /// The fate of the client's connection after a request that was read to its end.
    fn end(&self, down: &Downstream, keep: bool) -> AfterRequest {
        match keep {
            true => AfterRequest::Keep,
            // The client did not ask for the end, and may be sending its next request.
            false if self.view.head.keep_alive || down.has_unread() => AfterRequest::CloseUnread,
            false => AfterRequest::Close,
        }
    }

    async fn relay_pumps(
        &self,
        down: &mut Downstream,
        server: &mut Stream,
        buffer: &mut Buffer,
        sending: &mut Sending<'_>,
        response: &mut Pump,
        now: Instant,
    ) -> Result<(), Broken> {
        let client_patience = self.thread.config.timeouts.body;
        let server_patience = self.cluster.config.body_timeout;
        let until = self.view.plan.timeout.map(|allowed| self.started + allowed);
        let (mut waited_for_sink, mut turn) = (None, None);
        let mut known = Some(now);
        poll_fn(|cx| {
            sending.poll(cx, down, server)?;
            match response.poll(cx, server, buffer, &mut down.stream) {
                Poll::Ready(Ok(())) => return Poll::Ready(Ok(())),
                Poll::Ready(Err(PumpError::SinkFailed(_))) => {
                    return Poll::Ready(Err(Broken::Client(Error::ClientGone)));
                }
                Poll::Ready(Err(e)) => return Poll::Ready(Err(Broken::Server(e))),
                Poll::Pending => {}
            }
            if sending.request.is_done() {
                down.watch(cx).map_err(Broken::Client)?;
            }
            let progressed =
                std::mem::take(&mut response.progressed) | std::mem::take(&mut sending.request.progressed);
            if progressed || waited_for_sink != Some(response.waits_for_sink) {
                waited_for_sink = Some(response.waits_for_sink);
                let patience = if response.waits_for_sink { client_patience } else { server_patience };
                let deadline = known.take().unwrap_or_else(Instant::now) + patience;
                down.timer.set(until.map_or(deadline, |until| deadline.min(until)));
            }
            loop {
                ready!(down.timer.poll_expired(cx));
                let now = Instant::now();
                let is_over = until.is_some_and(|until| now >= until);
                if is_over || !response.waits_for_sink || !takes_others(down, &mut turn) {
                    break;
                }
                let deadline = now + client_patience;
                down.timer.set(until.map_or(deadline, |until| deadline.min(until)));
            }
            // The side that is waited for has used up the time.
            Poll::Ready(Err(if response.waits_for_sink {
                // Closed without that, the kernel would keep what the client does not take, for minutes.
                down.reset_on_close(true);
                Broken::Client(Error::ClientGone)
            } else if sending.waits_for_client() {
                Broken::Client(Error::BodyTimeout)
            } else if until.is_some_and(|until| Instant::now() >= until) {
                Broken::OutOfTime
            } else {
                Broken::ServerStalled
            }))
        })
        .await
    }

    /// A response broke off after its head had come.
    fn broken(
        &mut self,
        trylist: &mut Trylist<'_>,
        endpoint: usize,
        broken: Broken,
        report: RequestReport,
    ) -> RequestFailure {
        let now = Instant::now();
        if matches!(broken, Broken::OutOfTime) {
            let allowed = self.view.plan.timeout.unwrap_or_default();
            trylist.ran_out_of_time(allowed, self.uploading, now);
        }
        let failed = self.broken_try(broken);
        self.end_failed(trylist, endpoint, &failed, now);
        let FailedTry { error, outcome, .. } = failed;
        if report.sent_bytes == 0 {
            return RequestFailure { error, outcome, begun: None };
        }
        RequestFailure { error, outcome, begun: Some(RequestReport { outcome, ..report }) }
    }
    fn broken_try(&self, broken: Broken) -> FailedTry {
        let (result, error, text) = match broken {
            Broken::Client(error) => return FailedTry::of_client(error),
            Broken::ServerStalled => {
                let text = format!("response body stopped for {:?}", self.cluster.config.body_timeout);
                (wire::TRY_TIMED_OUT, Error::ServerTimeout, text)
            }
            Broken::OutOfTime => {
                let text = format!("not done within {:?}", self.view.plan.timeout.unwrap_or_default());
                (wire::TRY_TIMED_OUT, Error::ServerTimeout, text)
            }
            Broken::Server(e) => {
                let text = match &e {
                    PumpError::SourceFailed(e) => format!("response body broke off: {e}"),
                    PumpError::SourceEnded => "response body broke off: connection closed".into(),
                    PumpError::Malformed(text) => format!("response body refused: {text}"),
                    PumpError::TooLarge | PumpError::SinkFailed(_) => "response body broke off".into(),
                };
                (wire::TRY_BROKEN, Error::BadResponse, text)
            }
        };
        FailedTry { result, outcome: wire::OUTCOME_BROKEN, error, text: Some(text) }
    }
}

impl Sending<'_> {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        down: &mut Downstream,
        server: &mut Stream,
    ) -> Result<(), Broken> {
        if self.failed || self.request.is_done() {
            return Ok(());
        }
        match self.request.poll(cx, &mut down.stream, &mut down.buffer, server) {
            Poll::Ready(Err(PumpError::SinkFailed(_))) => self.failed = true,
            Poll::Ready(Err(e)) => return Err(Broken::Client(upstream::client_error(&e))),
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
        Ok(())
    }

    /// Whether the server has got all of it.
    fn is_sent(&self) -> bool {
        self.request.is_done() && !self.failed
    }

    /// Whether the server may be waiting for the rest of a request that the client does not send.
    fn waits_for_client(&self) -> bool {
        !self.failed && !self.request.is_done() && !self.request.waits_for_sink
    }
}

/// Whether a client that takes nothing of this response takes what other streams of its connection have sent: it is slow, and
/// they have their turn.
fn takes_others(down: &Downstream, turn: &mut Option<u64>) -> bool {
    let before = std::mem::replace(turn, down.stream.turn());
    turn.is_some() && *turn != before
}

/// Discards the rest of a request's body; false where it is too long or does not come.
async fn skip_rest(thread: &Thread, down: &mut Downstream, request: &mut Pump) -> bool {
    let limit = request.body_bytes + SKIP_BYTES;
    down.timer.set(Instant::now() + thread.config.timeouts.body);
    poll_fn(|cx| match request.poll_discard(cx, &mut down.stream, &mut down.buffer, limit) {
        Poll::Ready(result) => Poll::Ready(result.is_ok()),
        Poll::Pending => down.timer.poll_expired(cx).map(|()| false),
    })
    .await
}
