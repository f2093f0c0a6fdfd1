//! One request, from its head to the end of its response: route, load_balance, try, move on or give up, relay.

mod again;
mod explain;
mod failure;
mod plan;
mod relay;
mod report;
mod tunnel;

use std::future::poll_fn;
use std::task::Poll;
use std::time::{Duration, Instant};

use lb_api::wire;

use crate::cluster::retries::Retrying;
use crate::cluster::{Cluster, QueueSignal};
use crate::http::h1::body::Encoding;
use crate::http::h1::head::{Framing, RequestHead, ResponseHead};
use crate::http::headers::rules::Values;
use crate::http::headers::{self, Hop};
use crate::http::pump::{Pump, PumpTerms, Rest};
use crate::http::stream::Stream;
use crate::module::wire::ns;
use crate::net::per_client::Counted;
use crate::observe::metrics::{ConnectionOrigin, QueueEnd};
use crate::serve::downstream::Downstream;
use crate::serve::error::Error;
use crate::serve::thread::Thread;
use crate::serve::trylist::{Step, Trylist, View};
use crate::serve::upstream::{self, ConnectError, Exchange, NoResponse, Terms};

use self::again::Last;
use self::failure::Failure;
use self::plan::Plan;
use self::report::Report;
pub use self::report::refuse;

/// A request that waits in a queue asks again after this long, even if nothing came free: the module may have said
/// "busy" for a reason of its own.
const QUEUE_TICK: Duration = Duration::from_millis(20);

/// Where the servers' limits are what is waited for, who comes free says so; this is for modules that say "busy" there.
const LIMITED_QUEUE_TICK: Duration = Duration::from_millis(250);

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

/// One request under way.
struct Request<'a> {
    thread: &'a Thread,
    head: &'a RequestHead,
    plan: &'a Plan<'a>,
    cluster: &'a Cluster,
    started: Instant,
    /// The endpoint that its session is of.
    preferred: Option<usize>,
    /// Why each failed try failed, for the log.
    failures: String,
    /// How often it was sent.
    n_sent: u32,
    /// Of these, the last that was counted as a retry.
    n_retried: u32,
    /// What was taken of its body, and what is still to come, after a try that can be repeated.
    rest: Option<Rest>,
    /// Whether the last try left what it took of the body where it was.
    is_untouched: bool,
    /// What its client took to send it, in all tries but the last.
    sending: Duration,
    /// The same in the last.
    uploading: Duration,
    /// The client has got an interim response.
    has_passed_on: bool,
    /// Its share of the cluster's retry budget, once it has one.
    retrying: Option<Retrying<'a>>,
    /// What the client gets is a response that would have been bettered, had another server been there.
    is_last_resort: bool,
}

/// Serves the request whose head was just read.
pub async fn forward(thread: &Thread, down: &mut Downstream, memory: &mut Memory, head: &RequestHead) -> End {
    let started = Instant::now();
    let plan = match plan::plan(thread, head, down.peer, down.stream.is_secure()) {
        Ok(plan) => plan,
        Err(error) => return refuse(thread, down, memory, error, Some(head)).await,
    };
    if plan.max_forwards == Some(0) {
        return report::answer_options(thread, down, memory, head, started).await;
    }
    let cluster = &thread.clusters[plan.route.cluster];
    let Ok(_admitted) = cluster.admit() else {
        thread.metrics.overloaded(plan.route.cluster);
        return refuse(thread, down, memory, Error::Overloaded, Some(head)).await;
    };
    let mut request = Request {
        thread,
        head,
        plan: &plan,
        cluster,
        started,
        preferred: None,
        failures: String::new(),
        n_sent: 0,
        n_retried: 0,
        rest: None,
        is_untouched: false,
        sending: Duration::ZERO,
        uploading: Duration::ZERO,
        has_passed_on: false,
        retrying: None,
        is_last_resort: false,
    };
    let client = plan.client.address;
    let key = cluster.key_source().and_then(|source| plan.key(source, head, client));
    let preferred = cluster.sticky.as_ref().and_then(|sticky| plan.preferred(sticky, head, client));
    request.preferred = preferred;
    let view = View {
        preferred,
        head,
        authority: plan.authority,
        path: &plan.path,
        query: plan.query,
        client,
        is_secure: plan.client.is_https,
        key: key.as_deref(),
    };
    let mut trylist = Trylist::start(thread, plan.route.cluster, &view, started);
    if head.asks_why && explain::may_ask(thread, client) {
        trylist.explain();
    }
    let (report, end, now) = match request.serve(down, memory, &mut trylist).await {
        Ok(served) => {
            if !request.failures.is_empty() {
                request.log_recovery();
            }
            served
        }
        Err(failure) => {
            let more = explain::header_lines(&trylist, Instant::now());
            request.fail(down, memory, failure, &more).await
        }
    };
    trylist.finish(report.outcome, report.status, now);
    request.conclude(down, &trylist, report, now);
    down.served_at = now;
    end
}

impl Request<'_> {
    /// Tries endpoints until one answers, and relays its response.
    ///
    /// What is rare has a future of its own, so that all others are not the larger for it.
    async fn serve(
        &mut self,
        down: &mut Downstream,
        memory: &mut Memory,
        trylist: &mut Trylist<'_>,
    ) -> Result<(Report, End, Instant), Failure> {
        let mut now = self.started;
        let mut last: Option<Last> = None;
        loop {
            // Who comes while others wait stands behind them, or they might wait for ever.
            let is_behind =
                self.cluster.has_limits && trylist.tries().is_empty() && self.cluster.queue.has_precedence();
            let mut step = if is_behind { Step::Wait } else { trylist.next(now) };
            if step == Step::Wait {
                (step, now) = match self.wait_for_endpoint(down, trylist).await {
                    Ok(waited) => waited,
                    Err(failure) => {
                        return Box::pin(self.give_up(down, memory, trylist, last, failure)).await;
                    }
                };
            }
            let Step::Try(endpoint) = step else {
                let failure = self.exhausted(trylist);
                return Box::pin(self.give_up(down, memory, trylist, last, failure)).await;
            };
            let kept = match self.attempt(down, memory, trylist, endpoint, now).await {
                Ok(exchange) if self.retries_response(&memory.response_head, &exchange) => {
                    self.let_go(last, now);
                    self.hold(memory, trylist, endpoint, exchange)
                }
                Ok(exchange) => {
                    self.let_go(last, now);
                    if memory.response_head.status == 101 {
                        return Box::pin(self.tunnel(down, memory, trylist, endpoint, exchange)).await;
                    }
                    return self.relay(down, memory, trylist, endpoint, exchange).await;
                }
                Err(Attempt::NotEstablished(e)) => {
                    now = Instant::now();
                    self.note(endpoint, &e.text);
                    trylist.not_established(e.kind, e.os_error, now);
                    if self.is_overdue(now) {
                        let failure = self.out_of_time();
                        return Box::pin(self.give_up(down, memory, trylist, last, failure)).await;
                    }
                    continue;
                }
                Err(Attempt::NoResponse(e)) => {
                    self.let_go(last, now);
                    let is_retried = self.retries_failure(&e);
                    let failure = self.no_response(trylist, endpoint, e);
                    if !is_retried {
                        return Err(failure);
                    }
                    Last::Failure(failure)
                }
            };
            match Box::pin(self.back_off(down)).await? {
                Some(then) => (now, last) = (then, Some(kept)),
                None => return Box::pin(self.settle(down, memory, trylist, kept)).await,
            }
        }
    }

    /// Ends where no further try is to be made: with what the tries before have left, or else with this.
    async fn give_up(
        &mut self,
        down: &mut Downstream,
        memory: &mut Memory,
        trylist: &mut Trylist<'_>,
        last: Option<Last>,
        failure: Failure,
    ) -> Result<(Report, End, Instant), Failure> {
        match last {
            Some(last) if failure.error != Error::ClientGone => {
                self.settle(down, memory, trylist, last).await
            }
            _ => Err(failure),
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
    ) -> Result<Exchange, Attempt> {
        let (thread, cluster_idx) = (self.thread, self.plan.route.cluster);
        let unsent = down.buffer.range();
        // Whether the body is kept by the pump that takes it.
        let is_kept = self.head.framing != Framing::None && self.policy().is_some();
        // Whether the request could be sent again from what is in memory.
        let is_in_hand = match self.head.framing {
            Framing::None => true,
            Framing::Length(n) => n <= unsent.len() as u64,
            Framing::Chunked | Framing::UntilClose => false,
        };
        let replayable = is_kept || is_in_hand && self.head.method.is_idempotent();
        let may_hold = is_in_hand && !is_kept && self.head.framing != Framing::None;
        if let Some(server) = thread.pool.take(cluster_idx, endpoint, !replayable, self.plan.upgrade, now) {
            trylist.connected(Duration::ZERO, || now);
            down.holds_body = may_hold && (replayable || server.is_h2());
            let result = self.exchange(down, memory, trylist, endpoint, server, now).await;
            match result {
                // It was closed while it was idle, or as we sent: no failure of the server's, and no try.
                Err(Attempt::NoResponse(e))
                    if (replayable && matches!(e, NoResponse::Closed(_))
                        || matches!(e, NoResponse::Unprocessed(_)))
                        && self.takes_back(down, unsent.start) =>
                {
                    thread.metrics.upstream_connection(cluster_idx, endpoint, ConnectionOrigin::Stale);
                }
                result => {
                    self.n_sent += 1;
                    thread.metrics.upstream_connection(cluster_idx, endpoint, ConnectionOrigin::Reused);
                    return result;
                }
            }
        }
        let before = Instant::now();
        let (patience, _) = self.patience(self.cluster.config.connect_timeout, before);
        let patience = self
            .last_moment()
            .map_or(patience, |(end, _)| patience.min(end.saturating_duration_since(before)));
        if patience.is_zero() {
            // A kept connection took all the time there was, which says nothing of a new one.
            let text = "no time left for a connection".into();
            let (kind, os_error) = (wire::FAILURE_LOCAL, None);
            return Err(Attempt::NotEstablished(ConnectError { kind, os_error, text }));
        }
        let preface =
            self.cluster.config.send_proxy_protocol.map(|version| {
                version.header(self.plan.client.address.socket(), down.stream.local_addr().ok())
            });
        let preface = preface.as_deref().unwrap_or_default();
        let (place, upgrade) = ((cluster_idx, endpoint), self.plan.upgrade);
        let server = match upstream::connection(thread, self.cluster, place, patience, preface, upgrade).await
        {
            Ok(server) => server,
            Err(e) => {
                let now = Instant::now();
                if now.saturating_duration_since(before) >= patience {
                    let fair = self.fair(self.cluster.config.connect_timeout);
                    trylist.ran_out_of_time(fair, Duration::ZERO, now);
                }
                return Err(Attempt::NotEstablished(e));
            }
        };
        thread.metrics.upstream_connection(cluster_idx, endpoint, ConnectionOrigin::New);
        let connected = Instant::now();
        trylist.connected(connected - before, || connected);
        down.holds_body = may_hold && server.is_h2();
        match self.exchange(down, memory, trylist, endpoint, server, connected).await {
            // As one that refuses connections.
            Err(Attempt::NoResponse(NoResponse::Unprocessed(e))) if self.takes_back(down, unsent.start) => {
                let text = format!("not processed: {e}");
                Err(Attempt::NotEstablished(ConnectError {
                    kind: wire::FAILURE_CONNECT,
                    os_error: None,
                    text,
                }))
            }
            result => {
                self.n_sent += 1;
                result
            }
        }
    }

    /// Has the body where it was before a try that came to nothing; false where what was taken of it is gone.
    fn takes_back(&self, down: &mut Downstream, start: usize) -> bool {
        match self.head.framing {
            // Nothing was taken, and the next request may have been read to the front.
            Framing::None => true,
            _ if self.rest.is_some() => true,
            _ if self.is_untouched => {
                down.buffer.rewind(start);
                true
            }
            _ => false,
        }
    }

    async fn exchange(
        &mut self,
        down: &mut Downstream,
        memory: &mut Memory,
        trylist: &mut Trylist<'_>,
        endpoint: usize,
        server: Stream,
        now: Instant,
    ) -> Result<Exchange, Attempt> {
        if self.n_sent > self.n_retried {
            self.n_retried = self.n_sent;
            self.thread.metrics.retried(self.plan.route.cluster);
        }
        let pump = self.request_pump(down, memory, endpoint, server.is_h2());
        let mut exchange = Exchange::new(server, pump);
        let (response, allowed) = self.patience(self.cluster.config.response_timeout, now);
        let terms = Terms {
            limits: &self.thread.config.limits,
            response,
            allowed,
            request_body: self.thread.config.timeouts.body,
            until: self.last_moment(),
            upgrade: self.plan.upgrade,
            rules: self.plan.route.response_headers.as_deref(),
        };
        let result = exchange.response_head(down, self.head, &mut memory.response_head, &terms, now).await;
        trylist.count_bytes(exchange.request.sent, exchange.buffer.range().end as u64);
        let held_body = std::mem::take(&mut down.holds_body);
        self.uploading = exchange.sent_at.map_or(Duration::ZERO, |sent_at| sent_at - now);
        match result {
            Ok(()) => Ok(exchange),
            Err(e) => {
                self.sending += self.uploading;
                if matches!(e, NoResponse::TimedOut(_)) {
                    let allowed = match exchange.sent_at {
                        Some(_) => self.cluster.config.response_timeout,
                        None => self.cluster.config.response_timeout.min(terms.request_body),
                    };
                    trylist.ran_out_of_time(self.fair(allowed), self.uploading, Instant::now());
                }
                self.has_passed_on |= exchange.has_passed_on;
                // What is behind a body that was sent whole may be read over it.
                self.is_untouched = !exchange.request.has_read && (held_body || exchange.sent_at.is_none());
                self.rest = exchange.request.take_rest();
                memory.request = exchange.request.into_memory();
                Err(Attempt::NoResponse(e))
            }
        }
    }

    fn request_pump(&mut self, down: &Downstream, memory: &mut Memory, endpoint: usize, to_h2: bool) -> Pump {
        let head = self.head;
        let target = self.plan.target(head);
        let authority = self.plan.authority;
        let own = &self.cluster.endpoints[endpoint].authority;
        let values;
        let rules = match self.plan.route.request_headers.as_deref() {
            None => None,
            Some(rules) => {
                values = self.values(down, Some(endpoint), 0);
                Some((rules, &values))
            }
        };
        let hop = Hop {
            target: &target,
            host: self
                .cluster
                .host_header(self.plan.route.host_header.as_ref(), endpoint)
                .map(str::as_bytes)
                .or(authority)
                .unwrap_or(own.as_bytes()),
            client_host: authority,
            peer: down.peer,
            scheme: if down.stream.is_secure() { b"https" } else { b"http" },
            client_scheme: self.plan.scheme(),
            identity: down.identity.as_deref().unwrap_or_default(),
            is_trusted: self.plan.client.is_trusted,
            forwarded: &self.thread.config.forwarded,
            max_forwards: self.plan.max_forwards.map(|n| n - 1),
            upgrade: self.plan.upgrade,
            rules,
        };
        let mut out = std::mem::take(&mut memory.request);
        out.clear();
        headers::write_request(head, &hop, &mut out);
        let encoding = match head.framing {
            Framing::Chunked | Framing::UntilClose if !to_h2 => Encoding::Chunked,
            Framing::None | Framing::Length(_) | Framing::Chunked | Framing::UntilClose => Encoding::Identity,
        };
        let ends_apart = down.stream.is_h2();
        let may_have_trailers = ends_apart || head.framing == Framing::Chunked;
        let policy = self.policy().filter(|_| head.framing != Framing::None);
        let terms = PumpTerms {
            ends_apart,
            trailer_rules: self.plan.route.request_headers.as_ref().filter(|_| may_have_trailers).cloned(),
            max_body_bytes: self.thread.config.limits.body_bytes.unwrap_or(u64::MAX),
            keep_bytes: policy.map(|policy| policy.buffer_bytes),
            ..PumpTerms::new(head.framing, encoding)
        };
        match self.rest.take() {
            Some(rest) => Pump::again(out, rest, terms),
            None => Pump::new(out, terms),
        }
    }

    /// Waits in the cluster's queue until the trylist knows what to do; never answers [`Step::Wait`].
    #[cold]
    async fn wait_for_endpoint(
        &self,
        down: &mut Downstream,
        trylist: &mut Trylist<'_>,
    ) -> Result<(Step, Instant), Failure> {
        let busy = Failure { error: Error::Busy, outcome: wire::OUTCOME_NO_ENDPOINT, begun: None };
        let (metrics, cluster_idx) = (&self.thread.metrics, self.plan.route.cluster);
        let config = &self.cluster.config;
        // Held while it waits.
        let _share = self.share_of_queue()?;
        // From here on no endpoint comes free unseen.
        let Some(place) = self.cluster.queue.enter(config.queue, trylist.wanted()) else {
            metrics.queue_full(cluster_idx);
            return Err(busy);
        };
        trylist.yields_no_longer();
        let entered = Instant::now();
        let until = entered + config.queue_timeout;
        let until = self.deadline().map_or(until, |deadline| until.min(deadline));
        if config.queue_timeout.is_zero() {
            return Err(busy);
        }
        metrics.queue_entered(cluster_idx);
        let leave = |end| metrics.queue_left(cluster_idx, end, ns(entered.elapsed()));
        let tick = if self.cluster.has_limits { LIMITED_QUEUE_TICK } else { QUEUE_TICK };
        let mut may_ask = place.may_ask;
        let mut told = None;
        let mut now = entered;
        loop {
            if may_ask {
                let step = trylist.next(now);
                if let Some(QueueSignal::Freed(offer)) = told
                    && trylist.has_room(offer.endpoint)
                {
                    place.pass_on(offer);
                }
                if step != Step::Wait {
                    leave(QueueEnd::Admitted);
                    return Ok((step, now));
                }
                may_ask = place.found_none(trylist.wanted());
                if may_ask && now < until {
                    told = None;
                    continue;
                }
            }
            if now >= until {
                leave(QueueEnd::TimedOut);
                return Err(busy);
            }
            let gone = poll_fn(|cx| match down.watch(cx) {
                Err(error) => Poll::Ready(error),
                Ok(()) => Poll::Pending,
            });
            told = None;
            tokio::select! {
                biased;
                // First, or a request whose client is gone would be sent when its turn comes. What came of its body is kept.
                error = gone => {
                    leave(QueueEnd::Abandoned);
                    return Err(Failure { error, outcome: wire::OUTCOME_ABORTED, begun: None });
                }
                what = place.told() => told = Some(what),
                () = tokio::time::sleep((until - now).min(tick)) => {}
            }
            if told == Some(QueueSignal::Leave) {
                leave(QueueEnd::Displaced);
                return Err(busy);
            }
            now = Instant::now();
            may_ask = true;
        }
    }

    /// Counts the request as one of its client's in the queue, where the cluster limits those.
    fn share_of_queue(&self) -> Result<Option<Counted>, Failure> {
        let shares = self.cluster.queue_shares.as_ref().zip(self.plan.client.address.ip());
        let Some((shares, client)) = shares else { return Ok(None) };
        let share = shares.enter(client).ok_or_else(|| {
            self.thread.metrics.queue_client_full(self.plan.route.cluster);
            Failure { error: Error::ClientBusy, outcome: wire::OUTCOME_NO_ENDPOINT, begun: None }
        });
        share.map(Some)
    }

    /// What headers can say of this request, and of the endpoint that answers it, if one does.
    #[cold]
    fn values<'b>(&'b self, down: &Downstream, endpoint: Option<usize>, status: u16) -> Values<'b> {
        Values {
            client: self.plan.client.address,
            peer: down.peer,
            request_id: self.plan.request_id.as_deref().unwrap_or_default(),
            scheme: self.plan.scheme(),
            host: self.plan.authority.unwrap_or_default(),
            method: self.head.text(self.head.method_text),
            path: &self.plan.path,
            query: self.plan.query.unwrap_or_default(),
            cluster: &self.cluster.config.name,
            endpoint: endpoint.map_or("", |endpoint| &self.cluster.endpoints[endpoint].url),
            status,
        }
    }

    fn keeps(&self, down: &Downstream) -> bool {
        keeps(self.thread, down, self.head)
    }
}

/// Why a try brought no response.
enum Attempt {
    NotEstablished(ConnectError),
    NoResponse(NoResponse),
}

/// Whether the client's connection goes on after this request, as far as that can be said beforehand.
fn keeps(thread: &Thread, down: &Downstream, head: &RequestHead) -> bool {
    head.keep_alive
        // A client that sends nothing more may have sent further requests already.
        && !(down.read_closed && down.buffer.is_empty())
        && !thread.phase().is_ending()
        && thread.config.limits.requests_per_connection.is_none_or(|max| down.n_requests < max)
}
