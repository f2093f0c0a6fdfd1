//! `by_traffic`: the server that has moved the fewest bytes per weight.
//!
//! Sends each request to the server that has moved the fewest bytes for its weight. Use it to move from httpd's
//! `lbmethod=bytraffic`, or where the network is the bottleneck. A choice looks at every server. Source: httpd.
//!
//! httpd's `lbmethod=bytraffic`. It counts not the requests but their bytes, both ways, since the
//! beginning: bytes sent to the server divided by its `lbfactor`, which is 100 times its weight, plus bytes received from it
//! divided by the same, each division a whole-number one. The least is chosen, the first of equals.
//!
//! By hand, for weights a=1, b=2 (lbfactors 100, 200) and requests of 100 bytes with responses of 1,000:
//!
//! | request | sent, received (a; b) | traffic (a; b) | chosen |
//! |---|---|---|---|
//! | 1 | 0, 0; 0, 0 | 0; 0 | a, the first |
//! | 2 | 100, 1000; 0, 0 | 1+10 = 11; 0 | b |
//! | 3 | 100, 1000; 100, 1000 | 11; 0+5 = 5 | b |
//! | 4 | 100, 1000; 200, 2000 | 11; 1+10 = 11 | a, the first |
//!
//! **When bytes count.** httpd counts bytes as they pass, so that a request counts before there is any response. Here a request is
//! charged when it is chosen for, with what it will take to send it: its body as `Content-Length` says, and what heads have
//! taken on average. The charge is replaced by what was really sent when the response headers are there, or the try ends; the
//! rest counts when the try ends. So a burst of requests spreads over the servers, and one that accepts requests and never
//! answers gets no more than its share. Each try counts, also one that was sent and then retried. A try without a connection
//! counts nothing. Heads of responses count too, of which httpd counts the request's alone.
//!
//! **What is remembered** are the bytes of each server, over reloads and restarts, and shared with the previous instance, which
//! goes on counting. A server that comes new into a cluster that has counted starts level with the one that has moved the
//! least per weight; in httpd it starts at 0, and gets every request until it is level. A server that was away for a while
//! does come back behind the others, as in httpd, and is given what it missed.
//!
//! **Other departures**: in slow start a byte counts for as much more as the effective weight is below the configured one at the
//! time, so that a server on its way back gets its share of what comes, and what it moved before is neither more nor less
//! than it was. A weight that a reload changes counts for all bytes of the past, as it does in httpd. Sets, spares and
//! standbys are the host's tiers, errors and retries its health.
//!
//! **When**: responses that differ much in size, lines that are paid by the byte or narrow. **When not**: response time
//! matters (a server that answers slowly, and so little, is the preferred one), or servers often come and go. `least_request`
//! has neither of these weaknesses.
//!
//! **Settings**: none. **Cost**: a look at every endpoint, and no division; no lock, and nothing is written where endpoints are
//! only looked at. **Source**: httpd, `modules/proxy/balancers/mod_lbmethod_bytraffic.c`.
#![forbid(unsafe_code)]

mod account;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use lb_api::pick;
use lb_api::{
    Balancer, BuildCx, BuildError, Event, EventKind, Live, Needs, Next, NextCx, Outcome, Request, WEIGHT_ONE,
    export_balancer,
};

use account::{Account, at_weight, lbfactor, measure};

/// The instance for one cluster.
#[derive(Debug)]
pub struct ByTraffic {
    ids: Box<[u64]>,
    endpoints: Box<[Live]>,
    /// As configured, in 16.16 fixed point.
    weights: Box<[u32]>,
    accounts: Box<[Arc<Account>]>,
    /// Bytes of a request's head, on average over the last ones; 0 while nothing is known.
    head_bytes: AtomicU64,
}

/// State of a request: the bytes counted for its current try, and its last answer for `explain`.
#[derive(Debug, Default)]
pub struct Counted {
    try_id: u32,
    sent: u64,
    received: u64,
    chosen: Option<(u32, u64)>,
    /// Bytes that it is going to send, and how many of them are its body.
    bytes: u64,
    body_bytes: u64,
    charged: Option<Charge>,
}

/// Bytes that are charged to an endpoint and not yet counted.
#[derive(Clone, Copy, Debug)]
struct Charge {
    endpoint: u32,
    bytes: u64,
}

impl Balancer for ByTraffic {
    const ID: &'static str = "by_traffic";
    const SUMMARY: &'static str =
        "the server that has moved the fewest bytes per weight, as httpd's bytraffic";
    /// id, bytes sent and bytes received of each endpoint, 64 bits each, little-endian.
    const STATE_VERSION: u32 = 1;
    type Settings = ();
    type Trylist = Counted;

    fn build(cx: &BuildCx<'_, Self>, (): ()) -> Result<Self, BuildError> {
        let endpoints = cx.endpoints();
        let known = known(cx);
        let level = endpoints.iter().filter_map(|endpoint| {
            let (sent, received) = known.get(&endpoint.id())?.bytes();
            Some(measure(sent, received, u64::from(endpoint.weight()) * 100))
        });
        let level = level.min().unwrap_or(0);
        let account = |id: u64, weight: u32| match known.get(&id) {
            Some(account) => Arc::clone(account),
            None => Arc::new(Account::new(level.saturating_mul(u64::from(weight) * 100), 0)),
        };
        Ok(Self {
            ids: endpoints.iter().map(lb_api::Endpoint::id).collect(),
            endpoints: endpoints.live(),
            weights: endpoints.iter().map(|e| e.weight().saturating_mul(WEIGHT_ONE)).collect(),
            accounts: endpoints.iter().map(|e| account(e.id(), e.weight())).collect(),
            head_bytes: AtomicU64::new(cx.previous().map_or(0, |previous| previous.head_bytes.load(Relaxed))),
        })
    }

    fn needs(&self) -> Needs {
        Needs::default()
            .request_header("content-length")
            .event(EventKind::ResponseHeaders)
            .event(EventKind::TryEnded)
    }

    #[inline]
    fn load_balance(&self, request: &Request<'_>) -> Counted {
        let length = request.header(0).and_then(|length| std::str::from_utf8(length).ok()?.parse().ok());
        let body_bytes: u64 = length.unwrap_or(0);
        let head_bytes = match self.head_bytes.load(Relaxed) {
            0 => least_head(request),
            known => known,
        };
        let bytes = head_bytes.saturating_add(body_bytes);
        let mut counted = Counted { bytes, body_bytes, ..Counted::default() };
        if let Some(preferred) = request.preferred() {
            self.charge(&mut counted, preferred);
        }
        counted
    }

    #[inline]
    fn next(&self, counted: &mut Counted, cx: &NextCx<'_>) -> Next {
        // It was declined.
        self.settle(counted, None, 0, 0);
        let first = cx.is_first();
        let mut best: Option<(usize, u64)> = None;
        let all = self.endpoints.iter().zip(&self.accounts).zip(&self.weights);
        for (idx, ((live, account), weight)) in all.enumerate() {
            let fits = live.is_available() && !live.is_full() && (first || !cx.tried(idx));
            if !fits || live.effective_weight() == 0 {
                continue;
            }
            let traffic = account.traffic(*weight);
            if best.is_none_or(|(_, least)| traffic < least) {
                best = Some((idx, traffic));
            }
        }
        counted.chosen = best.map(|(idx, traffic)| (idx as u32, traffic));
        let next = best.map_or_else(|| pick::left_over(&self.endpoints, cx), |(idx, _)| Next::Endpoint(idx));
        if let Next::Endpoint(idx) = next {
            self.charge(counted, idx);
        }
        next
    }

    fn observe(&self, counted: &mut Counted, event: &Event<'_>) {
        if counted.try_id != event.try_id {
            *counted = Counted { try_id: event.try_id, sent: 0, received: 0, ..*counted };
        }
        // An event has the bytes of the try so far.
        let sent = event.bytes_sent.saturating_sub(counted.sent);
        let received = event.bytes_received.saturating_sub(counted.received);
        counted.sent += sent;
        counted.received += received;
        if let Some(head_bytes) = event.bytes_sent.checked_sub(counted.body_bytes).filter(|bytes| *bytes > 0)
        {
            // Two threads at once may lose a sample; none is worth more.
            let old = self.head_bytes.load(Relaxed);
            let new = if old == 0 { head_bytes } else { old - old / 8 + head_bytes / 8 };
            self.head_bytes.store(new, Relaxed);
        }
        self.settle(counted, Some(event.endpoint), sent, received);
    }

    fn finish(&self, counted: &mut Counted, _: &Outcome) {
        self.settle(counted, None, 0, 0);
    }

    fn save(&self) -> Option<Vec<u8>> {
        let accounts = self.ids.iter().zip(&self.accounts).map(|(id, account)| {
            let (sent, received) = account.bytes();
            [*id, sent, received]
        });
        Some(accounts.flatten().flat_map(u64::to_le_bytes).collect())
    }

    fn explain(&self, counted: &Counted) -> Option<String> {
        let (endpoint, traffic) = counted.chosen?;
        let factor = lbfactor(*self.weights.get(endpoint as usize)?);
        Some(format!("endpoint {endpoint} has moved the least: {traffic} per lbfactor, which is {factor}"))
    }
}

impl ByTraffic {
    /// Charges what the request is going to send to this endpoint.
    fn charge(&self, counted: &mut Counted, endpoint: usize) {
        let Some((account, weight)) = self.account(endpoint) else { return };
        let bytes = self.at_weight(counted.bytes, endpoint);
        account.charge(bytes, weight);
        counted.charged = Some(Charge { endpoint: endpoint as u32, bytes });
    }

    /// Takes back what is charged, and counts these bytes of an endpoint.
    fn settle(&self, counted: &mut Counted, endpoint: Option<usize>, sent: u64, received: u64) {
        let charged = counted.charged.take();
        let mut of_endpoint = 0;
        if let Some(Charge { endpoint: charged_to, bytes }) = charged {
            if endpoint == Some(charged_to as usize) {
                of_endpoint = bytes;
            } else if let Some((account, weight)) = self.account(charged_to as usize) {
                account.settle(bytes, 0, 0, weight);
            }
        }
        let Some(endpoint) = endpoint.filter(|_| of_endpoint > 0 || sent > 0 || received > 0) else { return };
        if let Some((account, weight)) = self.account(endpoint) {
            let counts = |bytes| self.at_weight(bytes, endpoint);
            account.settle(of_endpoint, counts(sent), counts(received), weight);
        }
    }

    fn account(&self, endpoint: usize) -> Option<(&Account, u32)> {
        Some((self.accounts.get(endpoint)?, *self.weights.get(endpoint)?))
    }

    fn at_weight(&self, bytes: u64, endpoint: usize) -> u64 {
        let live = self.endpoints.get(endpoint).zip(self.weights.get(endpoint));
        live.map_or(bytes, |(live, weight)| at_weight(bytes, *weight, live.effective_weight()))
    }
}

/// Bytes of a request's head without its fields, except the host.
fn least_head(request: &Request<'_>) -> u64 {
    let around = "  HTTP/1.1\r\nHost: \r\n\r\n".len();
    let text = [request.method(), request.path(), request.query().unwrap_or_default()];
    let text = text.iter().map(|text| text.len()).sum::<usize>();
    (around + text + request.authority().unwrap_or_default().len()) as u64
}

/// The accounts there are: the previous instance's, and beside them what an earlier process saved.
fn known(cx: &BuildCx<'_, ByTraffic>) -> HashMap<u64, Arc<Account>> {
    let saved = cx.saved().unwrap_or_default().chunks_exact(24).map(|account| {
        let number =
            |at: usize| account[at..at + 8].iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte));
        (number(0), Arc::new(Account::new(number(8), number(16))))
    });
    let mut known: HashMap<_, _> = saved.collect();
    if let Some(previous) = cx.previous() {
        known.extend(previous.ids.iter().copied().zip(previous.accounts.iter().map(Arc::clone)));
    }
    known
}

export_balancer!(ByTraffic);

#[cfg(test)]
mod tests;
