//! One try: a connection kept alive or a new one, the request sent, the response's head received.

use std::rc::Rc;
use std::time::{Duration, Instant};

use lb_api::wire;

use super::request::{Memory, Request};
use crate::cluster::endpoint::Endpoint;
use crate::http::h1::body::Encoding;
use crate::http::h1::head::{Framing, RequestHead};
use crate::http::headers::{self, Hop};
use crate::http::pump::{Pump, PumpTerms};
use crate::http::stream::Stream;
use crate::observe::metrics::ConnectionOrigin;
use crate::serve::downstream::Downstream;
use crate::serve::trylist::Trylist;
use crate::serve::upstream::{self, ConnectError, Exchange, ExchangeTerms, NoResponse};

/// Why a try brought no response.
pub(super) enum TryError {
    NotEstablished(ConnectError),
    NoResponse(NoResponse),
}

/// How a request could be sent again.
#[derive(Clone, Copy)]
struct Replay {
    /// Where its body begins in the client's buffer.
    start: usize,
    /// It may be sent again though the server may have had it: it is idempotent, or a retry policy says so.
    is_safe: bool,
    /// Its whole body is in the client's buffer, where it can stay until a try has succeeded.
    may_hold: bool,
}

impl Replay {
    fn of(head: &RequestHead, down: &Downstream, has_policy: bool) -> Self {
        let unsent = down.buffer.range();
        // Whether the body is kept by the pump that takes it.
        let is_kept = head.framing != Framing::None && has_policy;
        // Whether the request could be sent again from what is in memory.
        let is_in_hand = match head.framing {
            Framing::None => true,
            Framing::Length(n) => n <= unsent.len() as u64,
            Framing::Chunked | Framing::UntilClose => false,
        };
        Self {
            start: unsent.start,
            is_safe: is_kept || is_in_hand && head.method.is_idempotent(),
            may_hold: is_in_hand && !is_kept && head.framing != Framing::None,
        }
    }

    /// Whether a kept connection was closed while it was idle, or as we sent: the server has not failed, and this was no try.
    fn is_stale(self, e: &TryError) -> bool {
        match e {
            TryError::NoResponse(NoResponse::Closed(_)) => self.is_safe,
            TryError::NoResponse(e) => matches!(e, NoResponse::Unprocessed(_)),
            TryError::NotEstablished(_) => false,
        }
    }
}

impl Request<'_> {
    /// Sends the request to an endpoint and receives the head of its response.
    pub(super) async fn attempt(
        &mut self,
        down: &mut Downstream,
        memory: &mut Memory,
        trylist: &mut Trylist<'_>,
        endpoint: usize,
        now: Instant,
    ) -> Result<Exchange, TryError> {
        let (thread, cluster_idx) = (self.thread, self.view.plan.cluster);
        let replay = Replay::of(self.view.head, down, self.policy().is_some());
        if let Some(server) =
            thread.pool.take(cluster_idx, endpoint, !replay.is_safe, self.view.plan.upgrade, now)
        {
            trylist.connected(Duration::ZERO, || now);
            down.holds_body = replay.may_hold && (replay.is_safe || server.is_h2());
            match self.exchange(down, memory, trylist, endpoint, server, now).await {
                Err(e) if replay.is_stale(&e) && self.takes_back(down, replay.start) => {
                    thread.metrics.upstream_connection(cluster_idx, endpoint, ConnectionOrigin::Stale);
                }
                result => {
                    self.n_sent += 1;
                    thread.metrics.upstream_connection(cluster_idx, endpoint, ConnectionOrigin::Reused);
                    return result;
                }
            }
        }
        let (server, now) = self.connect(down, trylist, endpoint).await?;
        down.holds_body = replay.may_hold && server.is_h2();
        match self.exchange(down, memory, trylist, endpoint, server, now).await {
            Err(TryError::NoResponse(NoResponse::Unprocessed(e))) if self.takes_back(down, replay.start) => {
                // As one that refuses connections.
                let text = format!("not processed: {e}");
                let (kind, os_error) = (wire::FAILURE_CONNECT, None);
                Err(TryError::NotEstablished(ConnectError { kind, os_error, text }))
            }
            result => {
                self.n_sent += 1;
                result
            }
        }
    }
    /// Makes a connection to an endpoint, and says when it was there.
    async fn connect(
        &self,
        down: &Downstream,
        trylist: &mut Trylist<'_>,
        endpoint: usize,
    ) -> Result<(Stream, Instant), TryError> {
        let (thread, cluster_idx, config) = (self.thread, self.view.plan.cluster, &self.cluster.config);
        let before = Instant::now();
        let (patience, _) = self.patience(config.connect_timeout, before);
        let left = self.last_moment().map(|(end, _)| end.saturating_duration_since(before));
        let patience = left.map_or(patience, |left| patience.min(left));
        if patience.is_zero() {
            // A kept connection took all the time there was, which says nothing of a new one.
            let text = "no time left for a connection".into();
            let (kind, os_error) = (wire::FAILURE_LOCAL, None);
            return Err(TryError::NotEstablished(ConnectError { kind, os_error, text }));
        }
        let client = self.view.plan.client.address;
        let preface = config
            .send_proxy_protocol
            .map(|version| version.header(client.socket(), down.stream.local_addr().ok()));
        let preface = preface.as_deref().unwrap_or_default();
        let (members, upgrade) = (Rc::clone(trylist.members()), self.view.plan.upgrade);
        let to = (cluster_idx, &**members.at_place(endpoint).expect("it was just chosen"));
        let made = upstream::connection(thread, self.cluster, to, patience, preface, upgrade).await;
        let now = Instant::now();
        match made {
            Ok(server) => {
                thread.metrics.upstream_connection(cluster_idx, endpoint, ConnectionOrigin::New);
                thread.pool.begun(cluster_idx, &server, now);
                trylist.connected(now - before, || now);
                Ok((server, now))
            }
            Err(e) => {
                if now.saturating_duration_since(before) >= patience {
                    trylist.ran_out_of_time(self.fair(config.connect_timeout), Duration::ZERO, now);
                }
                Err(TryError::NotEstablished(e))
            }
        }
    }

    /// Has the body where it was before a try that came to nothing; false where what was taken of it is gone.
    fn takes_back(&self, down: &mut Downstream, start: usize) -> bool {
        match self.view.head.framing {
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

    /// Sends the request over a connection and receives the head of its response.
    async fn exchange(
        &mut self,
        down: &mut Downstream,
        memory: &mut Memory,
        trylist: &mut Trylist<'_>,
        endpoint: usize,
        server: Stream,
        now: Instant,
    ) -> Result<Exchange, TryError> {
        if self.n_sent > self.n_retried {
            self.n_retried = self.n_sent;
            self.thread.metrics.retried(self.view.plan.cluster);
        }
        let pump = self.request_pump(down, memory, trylist.member(endpoint), server.is_h2());
        let mut exchange = Exchange::new(server, pump);
        let (response, allowed) = self.patience(self.cluster.config.response_timeout, now);
        let terms = ExchangeTerms {
            limits: &self.thread.config.limits,
            response,
            allowed,
            request_body: self.thread.config.timeouts.body,
            until: self.last_moment(),
            upgrade: self.view.plan.upgrade,
            rules: self.view.plan.route.response_headers.as_deref(),
        };
        let result =
            exchange.response_head(down, self.view.head, &mut memory.response_head, &terms, now).await;
        trylist.count_bytes(exchange.request.sent, exchange.buffer.range().end as u64);
        let held_body = std::mem::take(&mut down.holds_body);
        self.uploading = exchange.sent_at.map_or(Duration::ZERO, |sent_at| sent_at - now);
        match result {
            Ok(()) => Ok(exchange),
            Err(e) => {
                if matches!(e, NoResponse::TimedOut(_)) {
                    let allowed = match exchange.sent_at {
                        Some(_) => self.cluster.config.response_timeout,
                        None => self.cluster.config.response_timeout.min(terms.request_body),
                    };
                    trylist.ran_out_of_time(self.fair(allowed), self.uploading, Instant::now());
                }
                self.keep_rest(memory, exchange, held_body);
                Err(TryError::NoResponse(e))
            }
        }
    }

    /// Keeps what a try has left of the request, for the next one.
    fn keep_rest(&mut self, memory: &mut Memory, mut exchange: Exchange, held_body: bool) {
        self.sending += self.uploading;
        self.has_passed_on |= exchange.has_passed_on;
        // Bytes behind a body that was sent whole may be read over it.
        self.is_untouched = !exchange.request.has_read && (held_body || exchange.sent_at.is_none());
        self.rest = exchange.request.take_rest();
        memory.request = exchange.request.into_memory();
    }

    /// The pump of the request: its head as the server gets it, then its body.
    fn request_pump(
        &mut self,
        down: &Downstream,
        memory: &mut Memory,
        endpoint: &Endpoint,
        to_h2: bool,
    ) -> Pump {
        let head = self.view.head;
        let mut out = std::mem::take(&mut memory.request);
        out.clear();
        self.write_request_head(down, endpoint, &mut out);
        let encoding = match head.framing {
            Framing::Chunked | Framing::UntilClose if !to_h2 => Encoding::Chunked,
            Framing::None | Framing::Length(_) | Framing::Chunked | Framing::UntilClose => Encoding::Identity,
        };
        // Behind a request that asks for another protocol, a stream goes on in that.
        let ends_apart = down.stream.is_h2() && !head.asks_upgrade;
        let may_have_trailers = ends_apart || head.framing == Framing::Chunked;
        let rules = self.view.plan.route.request_headers.as_ref();
        let policy = self.policy().filter(|_| head.framing != Framing::None);
        let terms = PumpTerms {
            ends_apart,
            trailer_rules: rules.filter(|_| may_have_trailers).cloned(),
            max_body_bytes: self.thread.config.limits.body_bytes.unwrap_or(u64::MAX),
            keep_bytes: policy.map(|policy| policy.buffer_bytes),
            ..PumpTerms::new(head.framing, encoding)
        };
        match self.rest.take() {
            Some(rest) => Pump::again(out, rest, terms),
            None => Pump::new(out, terms),
        }
    }

    /// Writes the request's head as the server gets it.
    fn write_request_head(&self, down: &Downstream, endpoint: &Endpoint, out: &mut Vec<u8>) {
        let head = self.view.head;
        let target = self.view.plan.target(head);
        let authority = self.view.plan.authority;
        let own = endpoint.authority.as_bytes();
        let host = self.cluster.host_header(self.view.plan.route.host_header.as_ref(), endpoint);
        let values;
        let rules = match self.view.plan.route.request_headers.as_deref() {
            None => None,
            Some(rules) => {
                values = self.values(down, Some(endpoint), 0);
                Some((rules, &values))
            }
        };
        let hop = Hop {
            target: &target,
            host: host.map(str::as_bytes).or(authority).unwrap_or(own),
            client_host: authority,
            peer: down.peer,
            scheme: if down.stream.is_secure() { b"https" } else { b"http" },
            client_scheme: self.view.plan.scheme(),
            identity: down.identity.as_deref().unwrap_or_default(),
            is_trusted: self.view.plan.client.is_trusted,
            forwarded: &self.thread.config.forwarded,
            max_forwards: self.view.plan.max_forwards.map(|n| n - 1),
            upgrade: self.view.plan.upgrade,
            rules,
        };
        headers::write_request(head, &hop, out);
    }
}
