//! One request, from its head to the end of its response: route, load_balance, try, move on or give up, relay.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::future::poll_fn;
use std::net::IpAddr;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use lb_api::wire;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::access_log;
use crate::cluster::Cluster;
use crate::config::{KeySource, Route};
use crate::downstream::Downstream;
use crate::error::Error;
use crate::headers::{self, Hop};
use crate::http1::body::Encoding;
use crate::http1::buffer::Buffer;
use crate::http1::head::{Framing, Method, Name, RequestHead, ResponseHead, Version};
use crate::http1::pump::{Pump, PumpError};
use crate::metrics::{self, Connection, QueueEnd, RequestEnd};
use crate::respond::{self, verdict};
use crate::route;
use crate::thread::{Thread, ns};
use crate::trylist::{Step, Trylist, View};
use crate::upstream::{self, ConnectError, NoResponse, Patience};

/// What is left of a request's body when its response is complete is read up to this many bytes, so that the connection
/// can go on; more ends it.
const SKIP_BYTES: u64 = 256 * 1024;
/// A request that waits in a queue asks again after this long, even if nothing came free: the module may have said
/// "busy" for a reason of its own.
const QUEUE_TICK: Duration = Duration::from_millis(20);

/// Memory that one connection's requests use one after the other.
#[derive(Debug, Default)]
pub struct Memory {
    request: Vec<u8>,
    response: Vec<u8>,
    response_head: ResponseHead,
}

/// What becomes of the client's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The next request may come.
    Keep,
    /// It is to be closed.
    Close,
    /// It is to be closed, but the client may still be sending.
    CloseUnread,
}

/// Where a request goes: all that its head and the configuration decide.
#[derive(Debug)]
struct Plan<'a> {
    route: &'a Route,
    authority: Option<&'a [u8]>,
    path: Cow<'a, [u8]>,
    query: Option<&'a [u8]>,
    max_forwards: Option<u32>,
}

/// One request under way.
struct Request<'a> {
    thread: &'a Thread,
    head: &'a RequestHead,
    plan: &'a Plan<'a>,
    cluster: &'a Cluster,
    started: Instant,
    /// Why each failed try failed, for the log.
    failures: String,
}

/// A response under way.
struct Response {
    server: TcpStream,
    buffer: Buffer,
    request: Pump,
    endpoint: usize,
}

/// What the client got, as metrics and log tell it.
#[derive(Clone, Copy, Debug, Default)]
struct Report {
    status: u16,
    outcome: u32,
    received_bytes: u64,
    sent_bytes: u64,
    body_bytes: u64,
}

/// Why a request ended without a whole response.
struct Failure {
    error: Error,
    outcome: u32,
    /// The client got a part of a response already: there is no telling it more.
    begun: Option<Report>,
}

/// Serves the request whose head was just read.
pub async fn forward(thread: &Thread, down: &mut Downstream, memory: &mut Memory, head: &RequestHead) -> End {
    let started = Instant::now();
    let plan = match plan(thread, head) {
        Ok(plan) => plan,
        Err(error) => return refuse(thread, down, memory, error, Some(head)).await,
    };
    if plan.max_forwards == Some(0) {
        return answer_options(thread, down, memory, head, started).await;
    }
    let cluster = &thread.clusters[plan.route.cluster];
    let mut request = Request { thread, head, plan: &plan, cluster, started, failures: String::new() };
    let key = cluster.key_source().and_then(|source| key(source, head, &plan, down.peer.ip()));
    let view = View {
        head,
        authority: plan.authority,
        path: &plan.path,
        query: plan.query,
        client: down.peer,
        key: key.as_deref(),
    };
    let mut trylist = Trylist::start(thread, plan.route.cluster, &view, started);
    let (report, end, now) = match request.serve(down, memory, &mut trylist).await {
        Ok(served) => served,
        Err(failure) => request.fail(down, memory, failure).await,
    };
    trylist.finish(report.outcome, report.status, now);
    request.conclude(down, &trylist, report, now);
    down.served_at = now;
    end
}

/// Answers a request that goes nowhere.
pub async fn refuse(
    thread: &Thread,
    down: &mut Downstream,
    memory: &mut Memory,
    error: Error,
    head: Option<&RequestHead>,
) -> End {
    let now = Instant::now();
    let method = head.map_or(Method::Other, |head| head.method);
    // A body that was not read stands between this request and the next.
    let keep = verdict(error).keep
        && head.is_some_and(|head| head.keep_alive && head.framing == Framing::None)
        && !thread.phase().is_ending();
    memory.response.clear();
    respond::write_error(thread, error, method, keep, now, &mut memory.response);
    let sent = write_all(thread, down, &memory.response).await;
    let report = Report {
        status: verdict(error).status,
        received_bytes: head.map_or(0, |head| head.len() as u64),
        sent_bytes: if sent { memory.response.len() as u64 } else { 0 },
        ..Report::default()
    };
    tracing::debug!(client = %down.peer, status = report.status, "request refused: {error}");
    conclude_unrouted(thread, down, head, report, now);
    down.served_at = Instant::now();
    match (sent, keep) {
        (true, true) => End::Keep,
        (true, false) => End::CloseUnread,
        (false, _) => End::Close,
    }
}

async fn answer_options(
    thread: &Thread,
    down: &mut Downstream,
    memory: &mut Memory,
    head: &RequestHead,
    started: Instant,
) -> End {
    let keep = head.keep_alive && head.framing == Framing::None && !thread.phase().is_ending();
    memory.response.clear();
    respond::write_options(thread, keep, started, &mut memory.response);
    let sent = write_all(thread, down, &memory.response).await;
    let sent_bytes = memory.response.len() as u64;
    let report = Report { status: 204, received_bytes: head.len() as u64, sent_bytes, ..Report::default() };
    conclude_unrouted(thread, down, Some(head), report, started);
    down.served_at = Instant::now();
    if sent && keep { End::Keep } else { End::CloseUnread }
}

/// Reads target, host and route out of a head.
fn plan<'a>(thread: &'a Thread, head: &'a RequestHead) -> Result<Plan<'a>, Error> {
    if matches!(head.method, Method::Connect | Method::Trace) {
        return Err(Error::Method);
    }
    if let (Framing::Length(n), Some(max)) = (head.framing, thread.config.limits.body_bytes)
        && n > max
    {
        return Err(Error::BodyTooLarge);
    }
    let host = head.host.map(|host| head.text(host)).filter(|host| !host.is_empty());
    let (authority, path, query) = split_target(head.text(head.target), head.method, host)?;
    let path = if path == b"*" { Cow::Borrowed(path) } else { route::normal_path(path) };
    // `OPTIONS *` is about the server as a whole, so it goes where the root goes.
    let routed = if *path == *b"*" { b"/" } else { &*path };
    let route = thread.routes.find(authority, routed).ok_or(Error::NoRoute)?;
    let max_forwards = match head.method {
        Method::Options => head.known(Name::MaxForwards).and_then(number),
        _ => None,
    };
    Ok(Plan { route, authority, path, query, max_forwards })
}

/// Authority, path and query of a target (RFC 9112 section 3.2). The authority of a target in absolute form counts more
/// than `Host`.
type Target<'a> = (Option<&'a [u8]>, &'a [u8], Option<&'a [u8]>);

fn split_target<'a>(target: &'a [u8], method: Method, host: Option<&'a [u8]>) -> Result<Target<'a>, Error> {
    let (authority, rest) = match target {
        [b'/', ..] => (host, target),
        b"*" if method == Method::Options => return Ok((host, target, None)),
        _ => {
            let lower = target.get(..8).unwrap_or(target).to_ascii_lowercase();
            let skip = match &lower[..] {
                [b'h', b't', b't', b'p', b':', b'/', b'/', ..] => 7,
                b"https://" => 8,
                _ => return Err(Error::Target("target is neither a path nor a URL")),
            };
            let rest = &target[skip..];
            let end = rest.iter().position(|b| matches!(b, b'/' | b'?')).unwrap_or(rest.len());
            let (authority, rest) = rest.split_at(end);
            if authority.is_empty() || !authority.iter().all(|&b| crate::http1::head::is_authority_byte(b)) {
                return Err(Error::Target("target's host is not a host and port"));
            }
            (Some(authority), rest)
        }
    };
    if target.contains(&b'#') {
        return Err(Error::Target("target has a fragment"));
    }
    let (path, query) = match memchr::memchr(b'?', rest) {
        Some(at) => (&rest[..at], Some(&rest[at + 1..])),
        None => (rest, None),
    };
    Ok((authority, if path.is_empty() { b"/" } else { path }, query))
}

impl Request<'_> {
    /// Tries endpoints until one answers, and relays its response.
    async fn serve(
        &mut self,
        down: &mut Downstream,
        memory: &mut Memory,
        trylist: &mut Trylist<'_>,
    ) -> Result<(Report, End, Instant), Failure> {
        let mut now = self.started;
        loop {
            let endpoint = match trylist.next(now) {
                Step::Try(endpoint) => endpoint,
                Step::Wait => {
                    self.wait_for_endpoint(down).await?;
                    now = Instant::now();
                    continue;
                }
                Step::Exhausted => return Err(self.exhausted(trylist)),
            };
            match self.attempt(down, memory, trylist, endpoint, now).await {
                Ok(response) => return self.relay(down, memory, trylist, response).await,
                Err(Attempt::NotEstablished(e)) => {
                    now = Instant::now();
                    self.note(endpoint, &e.text);
                    trylist.not_established(e.kind, e.os_error, now);
                }
                Err(Attempt::NoResponse(e)) => return Err(self.no_response(trylist, endpoint, e)),
            }
        }
    }

    /// One try: a connection kept alive or a new one, the request sent, the response's head received.
    async fn attempt(
        &mut self,
        down: &mut Downstream,
        memory: &mut Memory,
        trylist: &mut Trylist<'_>,
        endpoint: usize,
        now: Instant,
    ) -> Result<Response, Attempt> {
        let (thread, cluster_idx) = (self.thread, self.plan.route.cluster);
        let unsent = down.buffer.range();
        // Whether the request could be sent again from what is in memory.
        let replayable = match self.head.framing {
            Framing::None => true,
            Framing::Length(n) => n <= unsent.len() as u64,
            Framing::Chunked | Framing::UntilClose => false,
        } && self.head.method.is_idempotent();
        if let Some(server) = thread.pool.take(cluster_idx, endpoint, !replayable) {
            trylist.connected(Duration::ZERO, || now);
            down.holds_body = replayable && self.head.framing != Framing::None;
            let result = self.exchange(down, memory, trylist, endpoint, server, now).await;
            let held_body = std::mem::take(&mut down.holds_body);
            match result {
                // It was closed while it was idle, or as we sent: no failure of the server's, and no try.
                Err(Attempt::NoResponse(NoResponse::Closed(_))) if replayable => {
                    // Without a body nothing was taken, and the next request may have been read to the front.
                    if held_body {
                        down.buffer.rewind(unsent.start);
                    }
                    thread.metrics.upstream_connection(cluster_idx, endpoint, Connection::Stale);
                }
                result => {
                    thread.metrics.upstream_connection(cluster_idx, endpoint, Connection::Reused);
                    return result;
                }
            }
        }
        let before = Instant::now();
        let server =
            upstream::connect(&self.cluster.endpoints[endpoint], self.cluster.config.connect_timeout)
                .await
                .map_err(Attempt::NotEstablished)?;
        thread.metrics.upstream_connection(cluster_idx, endpoint, Connection::New);
        let connected = Instant::now();
        trylist.connected(connected - before, || connected);
        self.exchange(down, memory, trylist, endpoint, server, connected).await
    }

    async fn exchange(
        &self,
        down: &mut Downstream,
        memory: &mut Memory,
        trylist: &mut Trylist<'_>,
        endpoint: usize,
        mut server: TcpStream,
        now: Instant,
    ) -> Result<Response, Attempt> {
        let limits = &self.thread.config.limits;
        let mut request = self.request_pump(down, memory, endpoint);
        let mut buffer = Buffer::for_body();
        let result = upstream::response_head(
            down,
            &mut server,
            &mut buffer,
            &mut request,
            self.head,
            &mut memory.response_head,
            limits,
            Patience {
                response: self.cluster.config.response_timeout,
                request_body: self.thread.config.timeouts.body,
            },
            now,
        )
        .await;
        trylist.count_bytes(request.sent, buffer.range().end as u64);
        match result {
            Ok(()) => Ok(Response { server, buffer, request, endpoint }),
            Err(e) => {
                memory.request = request.into_memory();
                Err(Attempt::NoResponse(e))
            }
        }
    }

    fn request_pump(&self, down: &Downstream, memory: &mut Memory, endpoint: usize) -> Pump {
        let head = self.head;
        let target = self.target();
        let authority = self.plan.authority;
        let own = &self.cluster.endpoints[endpoint].authority;
        let hop = Hop {
            target: &target,
            host: self
                .cluster
                .host_header(self.plan.route.host_header.as_ref(), endpoint)
                .map(str::as_bytes)
                .or(authority)
                .unwrap_or(own.as_bytes()),
            client_host: authority,
            client: down.peer.ip(),
            max_forwards: self.plan.max_forwards.map(|n| n - 1),
        };
        let mut out = std::mem::take(&mut memory.request);
        out.clear();
        headers::write_request(head, &hop, &mut out);
        let encoding = match head.framing {
            Framing::Chunked => Encoding::Chunked,
            Framing::None | Framing::Length(_) | Framing::UntilClose => Encoding::Identity,
        };
        let mut pump = Pump::new(out, head.framing, encoding);
        pump.max_body_bytes = self.thread.config.limits.body_bytes.unwrap_or(u64::MAX);
        pump
    }

    /// The target as the server gets it, in origin form.
    fn target(&self) -> Cow<'_, [u8]> {
        let path = route::rewrite(self.plan.route, &self.plan.path);
        match (path, self.plan.query) {
            (path, None) => path,
            // As sent, where it was sent in origin form and is sent on as it is.
            (Cow::Borrowed(_), Some(_))
                if matches!(self.plan.path, Cow::Borrowed(_)) && self.sent_in_origin_form() =>
            {
                Cow::Borrowed(self.head.text(self.head.target))
            }
            (path, Some(query)) => {
                let mut target = path.into_owned();
                target.push(b'?');
                target.extend_from_slice(query);
                Cow::Owned(target)
            }
        }
    }

    fn sent_in_origin_form(&self) -> bool {
        self.head.text(self.head.target).starts_with(b"/")
    }

    /// Sends the response to the client while the rest of the request, if there is one, goes to the server.
    async fn relay(
        &mut self,
        down: &mut Downstream,
        memory: &mut Memory,
        trylist: &mut Trylist<'_>,
        response: Response,
    ) -> Result<(Report, End, Instant), Failure> {
        let Response { mut server, mut buffer, mut request, endpoint } = response;
        let (thread, now) = (self.thread, Instant::now());
        let head = &memory.response_head;
        trylist.response_headers(head, now);
        let received = buffer.range().end as u64;
        // Told the end before it was told to continue, the client may send its body now, or its next request: nobody can
        // tell which it is.
        let may_hold_back = self.head.expects_continue && !request.is_done();
        let keep = self.keeps(down) && !may_hold_back;
        let framing = headers::response_framing(head, self.head.version, keep);
        let mut out = std::mem::take(&mut memory.response);
        out.clear();
        headers::write_response(thread, head, framing, self.head.version, now, &mut out);
        let mut pump = Pump::new(out, head.framing, framing.encoding);
        let mut sending = Sending { request: &mut request, failed: false, gave_up: None };

        let relayed = self.relay_pumps(down, &mut server, &mut buffer, &mut sending, &mut pump, now).await;
        let failed = sending.failed;
        let now = Instant::now();
        let mut report = Report {
            status: memory.response_head.status,
            outcome: wire::OUTCOME_SERVED,
            received_bytes: self.head.len() as u64 + request.body_bytes,
            sent_bytes: pump.sent,
            body_bytes: pump.body_bytes,
        };
        let (request_sent, response_sent) = (request.is_done() && !failed, pump.sent);
        trylist.count_bytes(request.sent, received + pump.received);
        memory.response = pump.into_memory();
        if let Err(broken) = relayed {
            return Err(self.broken(
                down,
                trylist,
                endpoint,
                broken,
                report,
                response_sent,
                framing.encoding,
            ));
        }
        trylist.end_try(wire::TRY_SERVED, now);
        let may_reuse = memory.response_head.keep_alive && buffer.is_empty();
        let end = if request_sent {
            if may_reuse {
                thread.pool.put(self.plan.route.cluster, endpoint, server, now);
            }
            if framing.keep { End::Keep } else { End::Close }
        } else {
            // The server answered before it had the whole request.
            let skipped = framing.keep && skip_rest(thread, down, &mut request).await;
            if skipped { End::Keep } else { End::CloseUnread }
        };
        report.received_bytes = self.head.len() as u64 + request.body_bytes;
        memory.request = request.into_memory();
        Ok((report, end, now))
    }

    async fn relay_pumps(
        &self,
        down: &mut Downstream,
        server: &mut TcpStream,
        buffer: &mut Buffer,
        sending: &mut Sending<'_>,
        response: &mut Pump,
        now: Instant,
    ) -> Result<(), Broken> {
        let client_patience = self.thread.config.timeouts.body;
        let server_patience = self.cluster.config.body_timeout;
        let mut waited_for_sink = None;
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
                down.timer.set(known.take().unwrap_or_else(Instant::now) + patience);
            }
            ready!(down.timer.poll_expired(cx));
            Poll::Ready(Err(if response.waits_for_sink {
                Broken::Client(Error::ClientGone)
            } else {
                Broken::ServerStalled
            }))
        })
        .await
    }

    /// A response broke off after its head had come.
    #[expect(
        clippy::too_many_arguments,
        reason = "one call, which would otherwise be in the middle of `relay`"
    )]
    fn broken(
        &mut self,
        down: &Downstream,
        trylist: &mut Trylist<'_>,
        endpoint: usize,
        broken: Broken,
        report: Report,
        response_sent: u64,
        encoding: Encoding,
    ) -> Failure {
        let (result, outcome, error, text) = match broken {
            Broken::Client(error) => (wire::TRY_ABORTED, wire::OUTCOME_ABORTED, error, None),
            Broken::ServerStalled => (
                wire::TRY_TIMED_OUT,
                wire::OUTCOME_BROKEN,
                Error::ServerTimeout,
                Some(format!("response body stopped for {:?}", self.cluster.config.body_timeout)),
            ),
            Broken::Server(e) => {
                let text = match &e {
                    PumpError::SourceFailed(e) => format!("response body broke off: {e}"),
                    PumpError::SourceEnded => "response body broke off: connection closed".into(),
                    PumpError::Malformed(text) => format!("response body refused: {text}"),
                    PumpError::TooLarge | PumpError::SinkFailed(_) => "response body broke off".into(),
                };
                (wire::TRY_BROKEN, wire::OUTCOME_BROKEN, Error::BadResponse, Some(text))
            }
        };
        if let Some(text) = text {
            self.note(endpoint, &text);
        }
        trylist.end_try(result, Instant::now());
        if response_sent == 0 {
            return Failure { error, outcome, begun: None };
        }
        if encoding == Encoding::Identity {
            down.reset_on_close();
        }
        Failure { error, outcome, begun: Some(Report { outcome, ..report }) }
    }

    fn no_response(&mut self, trylist: &mut Trylist<'_>, endpoint: usize, e: NoResponse) -> Failure {
        let (result, outcome, error, text) = match e {
            NoResponse::Client(error) => (wire::TRY_ABORTED, wire::OUTCOME_ABORTED, error, None),
            NoResponse::TimedOut => (
                wire::TRY_TIMED_OUT,
                wire::OUTCOME_TIMED_OUT,
                Error::ServerTimeout,
                Some(format!("no response within {:?}", self.cluster.config.response_timeout)),
            ),
            NoResponse::Closed(how) => (
                wire::TRY_CLOSED_EARLY,
                wire::OUTCOME_FAILED,
                Error::BadResponse,
                Some(how.map_or_else(|| "closed without a response".into(), |e| format!("no response: {e}"))),
            ),
            NoResponse::Cut => (
                wire::TRY_CLOSED_EARLY,
                wire::OUTCOME_FAILED,
                Error::BadResponse,
                Some("closed within the response's head".into()),
            ),
            NoResponse::Bad(refusal) => (
                wire::TRY_BAD_RESPONSE,
                wire::OUTCOME_FAILED,
                Error::BadResponse,
                Some(format!("bad response: {refusal}")),
            ),
        };
        if let Some(text) = text {
            self.note(endpoint, &text);
        }
        trylist.end_try(result, Instant::now());
        Failure { error, outcome, begun: None }
    }

    fn exhausted(&self, trylist: &Trylist<'_>) -> Failure {
        let (error, outcome) = match trylist.tries().last() {
            None => (Error::NoEndpoint, wire::OUTCOME_NO_ENDPOINT),
            Some(last) if last.failure == Some(wire::FAILURE_CONNECT_TIMEOUT) => {
                (Error::ServerTimeout, wire::OUTCOME_TIMED_OUT)
            }
            Some(_) => (Error::Failed, wire::OUTCOME_FAILED),
        };
        Failure { error, outcome, begun: None }
    }

    /// Tells client and log that there is no (whole) response.
    async fn fail(
        &mut self,
        down: &mut Downstream,
        memory: &mut Memory,
        failure: Failure,
    ) -> (Report, End, Instant) {
        let Failure { error, outcome, begun } = failure;
        self.log_failure(down, error);
        if let Some(report) = begun {
            return (report, End::Close, Instant::now());
        }
        let verdict = verdict(error);
        if verdict.status == 0 {
            let received_bytes = self.head.len() as u64;
            let report = Report { outcome, received_bytes, ..Report::default() };
            return (report, End::Close, Instant::now());
        }
        let keep = verdict.keep && self.head.framing == Framing::None && self.keeps(down);
        memory.response.clear();
        respond::write_error(
            self.thread,
            error,
            self.head.method,
            keep,
            Instant::now(),
            &mut memory.response,
        );
        let sent = write_all(self.thread, down, &memory.response).await;
        let report = Report {
            status: verdict.status,
            outcome,
            received_bytes: self.head.len() as u64,
            sent_bytes: if sent { memory.response.len() as u64 } else { 0 },
            body_bytes: 0,
        };
        (report, if sent && keep { End::Keep } else { End::CloseUnread }, Instant::now())
    }

    fn log_failure(&self, down: &Downstream, error: Error) {
        let (cluster, client) = (&*self.cluster.config.name, down.peer);
        let target = String::from_utf8_lossy(self.head.text(self.head.target));
        match error.side() {
            crate::error::Side::Downstream => {
                tracing::debug!(cluster, %client, %target, "request given up: {error}");
            }
            crate::error::Side::Upstream if self.failures.is_empty() => {
                tracing::error!(cluster, %client, %target, "request failed: {error}");
            }
            crate::error::Side::Upstream => {
                tracing::error!(cluster, %client, %target, "request failed: {error} ({})", self.failures);
            }
        }
    }

    /// Remembers why a try failed.
    #[cold]
    fn note(&mut self, endpoint: usize, text: &str) {
        if !self.failures.is_empty() {
            self.failures.push_str(", ");
        }
        // Writing to a string cannot fail.
        let _ = write!(self.failures, "{}: {text}", self.cluster.endpoints[endpoint].url);
    }

    /// Waits in the cluster's queue until an endpoint may have come free.
    async fn wait_for_endpoint(&self, down: &mut Downstream) -> Result<(), Failure> {
        let busy = Failure { error: Error::Busy, outcome: wire::OUTCOME_NO_ENDPOINT, begun: None };
        let (metrics, cluster_idx) = (&self.thread.metrics, self.plan.route.cluster);
        let config = &self.cluster.config;
        let Some(place) = self.cluster.queue.enter(config.queue) else {
            metrics.queue_full(cluster_idx);
            return Err(busy);
        };
        let entered = Instant::now();
        let left = config.queue_timeout.saturating_sub(self.started.elapsed());
        if left.is_zero() {
            return Err(busy);
        }
        metrics.queue_entered(cluster_idx);
        let leave = |end| metrics.queue_left(cluster_idx, end, ns(entered.elapsed()));
        let gone = poll_fn(|cx| match down.watch(cx) {
            Err(error) => Poll::Ready(error),
            Ok(()) => Poll::Pending,
        });
        tokio::select! {
            () = place.freed() => leave(QueueEnd::Admitted),
            () = tokio::time::sleep(left.min(QUEUE_TICK)) => leave(QueueEnd::TimedOut),
            error = gone, if self.head.framing == Framing::None => {
                leave(QueueEnd::Abandoned);
                return Err(Failure { error, outcome: wire::OUTCOME_ABORTED, begun: None });
            }
        }
        Ok(())
    }

    /// Whether the client's connection goes on after this request, as far as that can be said beforehand.
    fn keeps(&self, down: &Downstream) -> bool {
        self.head.keep_alive
            && !down.read_closed
            && !self.thread.phase().is_ending()
            && self.thread.config.limits.requests_per_connection.is_none_or(|max| down.n_requests < max)
    }

    /// Metrics and access log.
    fn conclude(&self, down: &Downstream, trylist: &Trylist<'_>, report: Report, now: Instant) {
        let thread = self.thread;
        let duration_ns = ns(now.saturating_duration_since(self.started));
        let first_byte_ns = trylist.first_byte().map(ns);
        thread.metrics.request(&RequestEnd {
            cluster: Some(self.plan.route.cluster),
            outcome: report.outcome,
            status: report.status,
            duration_ns,
            first_byte_ns,
            received_bytes: report.received_bytes,
            sent_bytes: report.sent_bytes,
        });
        let Some(log) = &thread.access_log else { return };
        let endpoints = &self.cluster.endpoints;
        let entry = access_log::Entry {
            cluster: Some(&self.cluster.config.name),
            module: Some(&self.cluster.config.module),
            endpoint: trylist.endpoint().map(|endpoint| &*endpoints[endpoint].url),
            duration_ns,
            first_byte_ns,
            ..entry(down, Some(self.head), report)
        };
        let tries = trylist.tries().iter().map(|tried| access_log::Try {
            endpoint: &endpoints[tried.endpoint].url,
            result: tried.failure.map_or_else(|| metrics::try_result(tried.result), metrics::failure),
            duration_ns: ns(tried.total),
        });
        log.borrow_mut().log(&entry, tries);
    }
}

/// Why a try brought no response.
enum Attempt {
    NotEstablished(ConnectError),
    NoResponse(NoResponse),
}

/// Why a response broke off.
enum Broken {
    Client(Error),
    Server(PumpError),
    ServerStalled,
}

/// The rest of a request, sent while its response is relayed already.
struct Sending<'a> {
    request: &'a mut Pump,
    /// The server takes no more. Its response counts all the same.
    failed: bool,
    gave_up: Option<Error>,
}

impl Sending<'_> {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        down: &mut Downstream,
        server: &mut TcpStream,
    ) -> Result<(), Broken> {
        if self.failed || self.gave_up.is_some() || self.request.is_done() {
            return Ok(());
        }
        match self.request.poll(cx, &mut down.stream, &mut down.buffer, server) {
            Poll::Ready(Err(PumpError::SinkFailed(_))) => self.failed = true,
            Poll::Ready(Err(e)) => return Err(Broken::Client(upstream::client_error(&e))),
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
        Ok(())
    }
}

/// Reads the rest of a request that nobody wants any more; false where it is too much or does not come.
async fn skip_rest(thread: &Thread, down: &mut Downstream, request: &mut Pump) -> bool {
    let limit = request.body_bytes + SKIP_BYTES;
    down.timer.set(Instant::now() + thread.config.timeouts.body);
    poll_fn(|cx| match request.poll_discard(cx, &mut down.stream, &mut down.buffer, limit) {
        Poll::Ready(result) => Poll::Ready(result.is_ok()),
        Poll::Pending => down.timer.poll_expired(cx).map(|()| false),
    })
    .await
}

/// Writes a response of the proxy's own; false where the client does not take it.
async fn write_all(thread: &Thread, down: &mut Downstream, bytes: &[u8]) -> bool {
    let written = tokio::time::timeout(thread.config.timeouts.body, down.stream.write_all(bytes)).await;
    matches!(written, Ok(Ok(())))
}

fn conclude_unrouted(
    thread: &Thread,
    down: &Downstream,
    head: Option<&RequestHead>,
    report: Report,
    started: Instant,
) {
    let duration_ns = ns(started.elapsed());
    thread.metrics.request(&RequestEnd {
        cluster: None,
        outcome: 0,
        status: report.status,
        duration_ns,
        first_byte_ns: None,
        received_bytes: report.received_bytes,
        sent_bytes: report.sent_bytes,
    });
    if let Some(log) = &thread.access_log {
        let entry = access_log::Entry { duration_ns, ..entry(down, head, report) };
        log.borrow_mut().log(&entry, []);
    }
}

fn entry<'a>(down: &Downstream, head: Option<&'a RequestHead>, report: Report) -> access_log::Entry<'a> {
    access_log::Entry {
        client: down.peer.ip(),
        method: head.map_or(b"", |head| head.text(head.method_text)),
        target: head.map_or(b"", |head| head.text(head.target)),
        version: match head.map(|head| head.version) {
            Some(Version::Http10) => "HTTP/1.0",
            Some(Version::Http11) | None => "HTTP/1.1",
        },
        status: report.status,
        body_bytes: report.body_bytes,
        referer: head.and_then(|head| head.known(Name::Referer)),
        user_agent: head.and_then(|head| head.known(Name::UserAgent)),
        cluster: None,
        module: None,
        endpoint: None,
        duration_ns: 0,
        first_byte_ns: None,
    }
}

/// The cluster's key of a request; `None` where the request has none.
fn key<'a>(
    source: &KeySource,
    head: &'a RequestHead,
    plan: &'a Plan<'_>,
    client: IpAddr,
) -> Option<Cow<'a, [u8]>> {
    match source {
        KeySource::Client => Some(Cow::Owned(client.to_string().into_bytes())),
        KeySource::Header(name) => head.field(name.as_bytes()).map(Cow::Borrowed),
        KeySource::Cookie(name) => head
            .fields
            .iter()
            .filter(|field| head.text(field.name).eq_ignore_ascii_case(b"cookie"))
            .find_map(|field| parameter(head.text(field.value), b';', name.as_bytes()))
            .map(Cow::Borrowed),
        KeySource::Query(name) => {
            plan.query.and_then(|query| parameter(query, b'&', name.as_bytes())).map(Cow::Borrowed)
        }
        KeySource::Path => Some(Cow::Borrowed(&*plan.path)),
        KeySource::Uri => match plan.query {
            None => Some(Cow::Borrowed(&*plan.path)),
            Some(query) => Some(Cow::Owned([&*plan.path, b"?", query].concat())),
        },
    }
}

/// Value of `name` in a list of `name=value`.
fn parameter<'a>(list: &'a [u8], separator: u8, name: &[u8]) -> Option<&'a [u8]> {
    list.split(|&b| b == separator)
        .find_map(|pair| pair.trim_ascii().strip_prefix(name).and_then(|rest| rest.strip_prefix(b"=")))
}

fn number(text: &[u8]) -> Option<u32> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_every_form_of_target() {
        let host = Some(&b"h"[..]);
        let split = |target: &'static str, method| split_target(target.as_bytes(), method, host);
        assert_eq!(split("/a?b", Method::Get), Ok((host, &b"/a"[..], Some(&b"b"[..]))));
        assert_eq!(split("HTTP://x:1/a?", Method::Get), Ok((Some(&b"x:1"[..]), &b"/a"[..], Some(&b""[..]))));
        assert_eq!(split("http://x", Method::Get), Ok((Some(&b"x"[..]), &b"/"[..], None)));
        assert_eq!(split("http://x?q", Method::Get), Ok((Some(&b"x"[..]), &b"/"[..], Some(&b"q"[..]))));
        assert_eq!(split("*", Method::Options), Ok((host, &b"*"[..], None)));
        for refused in ["*", "x", "x:80", "ftp://x/", "http://", "http://a@b/", "/a#b"] {
            assert!(split(refused, Method::Get).is_err(), "{refused}");
        }
    }

    #[test]
    fn finds_a_parameter_by_its_whole_name() {
        assert_eq!(parameter(b"xid=1; id=2; id=3", b';', b"id"), Some(&b"2"[..]));
        assert_eq!(parameter(b"ids=1&id", b'&', b"id"), None);
    }
}
