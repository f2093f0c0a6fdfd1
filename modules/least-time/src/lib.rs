//! `least_time`: the server that should be done first, by nginx's rule.
//!
//! Sends each request to the server that should finish it first, by its average response time and its requests in
//! flight. Use it where servers differ in speed. A choice looks at every server. Source: nginx.
//!
//! Each server has an average time of its responses in whole milliseconds, of which each new response is a twentieth, rounded.
//! It is taken in steps of 20 ms, so that servers that are about as fast are alike; more than 5 s is 5 s. Times 1 and the
//! requests in flight it is what the server needs to be done with them and one more; the server with the least of that per
//! weight is chosen, ties by smooth weighted round robin among the tied.
//!
//! By hand, servers of equal weight with averages of 37, 23 and 81 ms, and 0, 1 and 0 requests in flight:
//!
//! | server | in steps | times 1 + in flight | |
//! |---|---|---|---|
//! | a | 40 ms | 40 | chosen |
//! | b | 40 ms | 80 | |
//! | c | 100 ms | 100 | |
//!
//! With one in flight on a too, a and b are tied at 80 and take turns; with two on each, c is chosen.
//!
//! - **`time`** says what is averaged: `"header"` the time to the response headers, `"last_byte"` that to the end of the
//!   response. Only responses that came whole count.
//! - **`inflight`** also looks at requests that are not answered yet (`"last_byte"`: not over): where their average age,
//!   averaged over the looks at it, is more than the average time, it counts instead. So a server that hangs is seen
//!   before its first late response.
//! - **`fail_timeout`**: a server that was not chosen for longer has its time halved once in each such span (and a second),
//!   until a slow one gets another chance. In nginx it is the server's parameter of that name.
//!
//! # Where it departs from nginx
//! - Weights are the host's effective ones, in steps of 1/65,536; who is available, full or failed is the host's business.
//! - nginx decides and counts in one step under a lock. Here the host counts in-flight requests when it has accepted the
//!   answer, so that two threads at the same moment may choose the same server; the lock around the current weights of ties is
//!   only tried, see `least_request`. Averages are single words: no sample is lost, and a look is not delayed.
//! - In the round among the tied, nginx compares those behind with the time of the first of them and the weight of whichever
//!   is ahead by then. Where these two have different weights, it so leaves out who is tied. Here all of the tied take part.
//! - nginx also averages responses that broke off after their headers. A try that stickiness sends is learned from, but its
//!   age is not looked at. Seconds are those of the host's monotonic clock.
//!
//! **Changes.** An instance that takes over in the same process, when servers come and go, has the averages of the one before it
//! and counts its requests in flight, both by server. The times of requests that began before reach the newest instance. Averages
//! are saved for the next process. Where `time` has changed, all of it begins anew.
//!
//! **When**: few servers of different speed, requests of about the same cost. **When not**: unequal weights and little load (the
//! heaviest of those that are idle and equally fast gets everything, until it has something in flight), many proxies (all run to the server
//! that is fastest at present; `peak_ewma` draws), or responses whose time is not the server's doing (long polls, downloads
//! with `"last_byte"`).
//!
//! # Settings
//! | key | default | |
//! |---|---|---|
//! | `time` | `"header"` | or `"last_byte"` |
//! | `inflight` | `false` | whether the age of requests in flight counts |
//! | `fail_timeout` | `"10s"` | whole seconds, `"0s"` to `"24h"` |
//!
//! **Cost**: a look at every endpoint. **Source**: nginx 1.31, `src/http/modules/ngx_http_upstream_least_time_module.c`.
#![forbid(unsafe_code)]

mod peer;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use lb_api::pick::{self, Load, Ties};
use lb_api::serde::Deserialize;
use lb_api::{
    Balancer, BuildCx, BuildError, Event, EventKind, Live, Needs, Next, NextCx, Outcome, Request, Time,
    TryResult, export_balancer,
};

use peer::{Look, Peer, Waiting};

const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// The module's settings.
#[derive(Debug, Deserialize)]
#[serde(crate = "lb_api::serde", default)]
pub struct Settings {
    time: Measure,
    inflight: bool,
    fail_timeout: Time,
}

impl Default for Settings {
    fn default() -> Self {
        Self { time: Measure::Header, inflight: false, fail_timeout: Time(Duration::from_secs(10)) }
    }
}

/// The part of a response that is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(crate = "lb_api::serde", rename_all = "snake_case")]
enum Measure {
    Header,
    LastByte,
}

/// The instance for one cluster.
#[derive(Debug)]
pub struct LeastTime {
    measure: Measure,
    inflight: bool,
    fail_timeout_secs: u32,
    endpoints: Box<[Live]>,
    peers: Arc<Peers>,
    /// Those of the newest of the instances that follow one another: older ones tell it what they still learn.
    newest: Arc<ArcSwap<Peers>>,
    ties: Ties,
}

/// Averages of all endpoints, in order.
#[derive(Debug)]
struct Peers {
    ids: Box<[u64]>,
    peers: Box<[Peer]>,
    /// Of the ids.
    places: HashMap<u64, usize>,
}

/// State of a request: its last answer for `explain`, and whether that one is in flight, with its endpoint.
#[derive(Debug, Default)]
pub struct Chosen {
    load: Option<Load>,
    waiting: Option<(usize, Waiting)>,
}

impl Balancer for LeastTime {
    const ID: &'static str = "least_time";
    const SUMMARY: &'static str =
        "the server that should be done first, by average time and requests in flight";
    /// The kind of time, a byte; the number of endpoints, 32 bits; then id, 64 bits, and average, 32 bits, of each, little-endian;
    /// then the current weights of ties, as [`Ties::save`] has them.
    const STATE_VERSION: u32 = 2;
    type Settings = Settings;
    type Trylist = Chosen;

    fn build(cx: &BuildCx<'_, Self>, settings: Settings) -> Result<Self, BuildError> {
        let Settings { time: measure, inflight, fail_timeout } = settings;
        let fail_timeout_secs = whole_seconds(fail_timeout)?;
        let endpoints = cx.endpoints();
        let ids: Box<[u64]> = endpoints.iter().map(lb_api::Endpoint::id).collect();
        let previous = cx.previous().filter(|previous| previous.measure == measure);
        let (peers, newest) = match previous {
            Some(previous) => (previous.taken_over_by(ids), Arc::clone(&previous.newest)),
            None => {
                let saved = saved(cx, measure);
                let peer = |id| saved.get(id).map_or_else(Peer::unknown, |time| Peer::restored(*time));
                let peers = ids.iter().map(peer).collect();
                let peers = Arc::new(Peers::new(ids, peers));
                (Arc::clone(&peers), Arc::new(ArcSwap::new(peers)))
            }
        };
        newest.store(Arc::clone(&peers));
        Ok(Self {
            measure,
            inflight,
            fail_timeout_secs,
            peers,
            newest,
            ties: Ties::restored(endpoints, &ties_before(cx)),
            endpoints: endpoints.live(),
        })
    }

    fn needs(&self) -> Needs {
        let needs = Needs::default().event(EventKind::TryEnded);
        if self.learns_at_headers() { needs.event(EventKind::ResponseHeaders) } else { needs }
    }

    #[inline]
    fn load_balance(&self, _: &Request<'_>) -> Chosen {
        Chosen::default()
    }

    #[inline]
    fn next(&self, chosen: &mut Chosen, cx: &NextCx<'_>) -> Next {
        // The answer before this one is over: it failed, or the host declined it.
        chosen.waiting = None;
        let look = Look::new(cx.now_ns(), self.fail_timeout_secs);
        let is_first = cx.is_first();
        let was_tried = move |endpoint: u32| !is_first && cx.tried(endpoint as usize);
        chosen.load = match self.inflight {
            // A scan of its own for what is most common: what it need not ask of each is a tenth of the work.
            false if is_first => self.least(cx, |_| false, move |peer| peer.expected_ms(&look)),
            false => self.least(cx, was_tried, move |peer| peer.expected_ms(&look)),
            true => self.least(cx, was_tried, move |peer| peer.expected_with_inflight_ms(&look)),
        };
        let Some(load) = chosen.load else { return pick::left_over(&self.endpoints, cx) };
        let endpoint = load.endpoint as usize;
        let peer = &self.peers.peers[endpoint];
        peer.choose(&look);
        if self.inflight {
            chosen.waiting = Some((endpoint, peer.begin(&look)));
        }
        Next::Endpoint(endpoint)
    }

    fn observe(&self, chosen: &mut Chosen, event: &Event<'_>) {
        chosen.waiting.take_if(|(endpoint, _)| *endpoint == event.endpoint);
        let learns = match event.kind {
            EventKind::ResponseHeaders => true,
            _ => event.result == Some(TryResult::Served) && !self.learns_at_headers(),
        };
        let time = match self.measure {
            Measure::Header => event.first_byte,
            Measure::LastByte => Some(event.total),
        };
        if let Some(time) = time.filter(|_| learns) {
            self.learn(event.endpoint, u32::try_from(time.as_millis()).unwrap_or(u32::MAX));
        }
    }

    fn finish(&self, chosen: &mut Chosen, _: &Outcome) {
        chosen.waiting = None;
    }

    fn save(&self) -> Option<Vec<u8>> {
        let mut saved = vec![self.measure as u8];
        saved.extend((self.peers.ids.len() as u32).to_le_bytes());
        for (id, peer) in self.peers.ids.iter().zip(&self.peers.peers) {
            saved.extend(id.to_le_bytes());
            saved.extend(peer.time().to_le_bytes());
        }
        saved.extend(self.ties.save(&self.peers.ids));
        Some(saved)
    }

    fn explain(&self, chosen: &Chosen) -> Option<String> {
        let Load { endpoint, cost, .. } = chosen.load?;
        let average = self.peers.peers.get(endpoint as usize)?.time();
        Some(format!(
            "endpoint {endpoint} should be done first, after {cost} ms; its average is {average} ms"
        ))
    }
}

impl Peers {
    fn new(ids: Box<[u64]>, peers: Box<[Peer]>) -> Self {
        Self { places: ids.iter().copied().zip(0..).collect(), ids, peers }
    }

    fn of(&self, id: u64) -> Option<&Peer> {
        self.peers.get(*self.places.get(&id)?)
    }
}

impl LeastTime {
    /// Averages for an instance with these endpoints.
    fn taken_over_by(&self, ids: Box<[u64]>) -> Arc<Peers> {
        if self.peers.ids == ids {
            // It goes on learning while that one starts.
            return Arc::clone(&self.peers);
        }
        let peer = |id: &u64| self.peers.of(*id).map_or_else(Peer::unknown, Peer::taken_over);
        let peers = ids.iter().map(peer).collect();
        Arc::new(Peers::new(ids, peers))
    }

    /// A response of this endpoint took so long.
    fn learn(&self, endpoint: usize, ms: u32) {
        let Some(peer) = self.peers.peers.get(endpoint) else { return };
        peer.learn(ms);
        let newest = self.newest.load();
        if !Arc::ptr_eq(&newest, &self.peers)
            && let Some(peer) = newest.of(self.peers.ids[endpoint])
        {
            peer.learn(ms);
        }
    }

    /// nginx waits for the end of the response with what it needs only for that.
    fn learns_at_headers(&self) -> bool {
        self.inflight && self.measure == Measure::Header
    }

    /// The endpoint that should be done first, of those that fit and were not tried.
    #[inline]
    fn least(
        &self,
        cx: &NextCx<'_>,
        was_tried: impl Fn(u32) -> bool,
        expected_ms: impl Fn(&Peer) -> u64,
    ) -> Option<Load> {
        let peers = self.endpoints.iter().zip(&self.peers.peers);
        let loads = (0..self.endpoints.len() as u32).zip(peers).map(move |(endpoint, (live, peer))| {
            let fits = |_: &u32| live.is_available() && !was_tried(endpoint);
            let Some(in_flight) = live.in_flight_if_room().filter(fits) else {
                return Load { endpoint, cost: 0, weight: 0 };
            };
            // More than 800,000 requests of 5 s are as bad as any number of them.
            let cost = expected_ms(peer) * (u64::from(in_flight) + 1);
            let cost = cost.min(u32::MAX.into()) as u32;
            Load { endpoint, cost, weight: live.effective_weight() }
        });
        self.ties.least(loads, &mut cx.rng())
    }
}

fn whole_seconds(time: Time) -> Result<u32, BuildError> {
    match u32::try_from(time.0.as_secs()) {
        Ok(secs) if time.0.subsec_nanos() == 0 && time.0 <= LONGEST => Ok(secs),
        _ => {
            let text =
                format!("expected whole seconds from \"0s\" to \"{}\", found \"{time}\"", Time(LONGEST));
            Err(BuildError::setting("fail_timeout", text))
        }
    }
}

/// Averages of the same times that an earlier process saved, by id.
fn saved(cx: &BuildCx<'_, LeastTime>, measure: Measure) -> HashMap<u64, u32> {
    let times = match cx.saved().and_then(Saved::read) {
        Some(saved) if saved.timed == measure as u8 => saved.times,
        _ => &[],
    };
    let times = times.chunks_exact(TIME_BYTES).filter_map(|bytes| {
        let (id, time) = bytes.split_first_chunk()?;
        Some((u64::from_le_bytes(*id), u32::from_le_bytes(time.try_into().ok()?)))
    });
    times.collect()
}

/// The turn among the tied: of the previous instance, or of an earlier process.
fn ties_before(cx: &BuildCx<'_, LeastTime>) -> Vec<u8> {
    match (cx.previous(), cx.saved().and_then(Saved::read)) {
        (Some(previous), _) => previous.ties.save(&previous.peers.ids),
        (None, Some(saved)) => saved.ties.to_vec(),
        (None, None) => Vec::new(),
    }
}

/// Bytes of one endpoint's average, with its id.
const TIME_BYTES: usize = 12;

/// The state that an earlier process saved, in its parts.
struct Saved<'a> {
    timed: u8,
    times: &'a [u8],
    ties: &'a [u8],
}

impl<'a> Saved<'a> {
    /// None where it is too short to be that.
    fn read(bytes: &'a [u8]) -> Option<Self> {
        let (timed, bytes) = bytes.split_first()?;
        let (n_endpoints, bytes) = bytes.split_first_chunk()?;
        let n_bytes = (u32::from_le_bytes(*n_endpoints) as usize).checked_mul(TIME_BYTES)?;
        let (times, ties) = bytes.split_at_checked(n_bytes)?;
        Some(Self { timed: *timed, times, ties })
    }
}

export_balancer!(LeastTime);

#[cfg(test)]
mod tests;
