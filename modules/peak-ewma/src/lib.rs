//! `peak_ewma`: of two endpoints drawn, the one that should answer first.
//!
//! Draws two servers and takes the one with the lower latency times requests in flight. Use it where a server may
//! become slow. A choice looks at two servers. Source: tower, Finagle.
//!
//! For each endpoint there is an estimate of its latency, the time to its response headers. A sample above the estimate
//! replaces it; any other moves it by as much as time has passed since the last, with the weight 1 - e^(-Δt / decay). So
//! trouble is seen at the first slow response, and forgotten slowly. An endpoint that gets no requests has no samples: its
//! estimate decays towards 0 meanwhile, so that it is tried again. A request costs the estimate times the requests that are
//! on their way there, this one included; two different endpoints are drawn, and the one that costs less gets it, the first
//! drawn of equals.
//!
//! By hand, decay 10 s, for an endpoint at 20 ms:
//!
//! | time | event | estimate |
//! |---|---|---|
//! | 0 s | sample 100 ms: a peak | 100 ms |
//! | 1 s | sample 20 ms: 100 · 0.905 + 20 · 0.095 | 92.4 ms |
//! | 2 s | sample 20 ms: 92.4 · 0.905 + 20 · 0.095 | 85.5 ms |
//! | 12 s | read, after 10 s without any: 85.5 · 0.368 | 31.5 ms |
//! | 12 s | cost with 2 on their way: 31.5 · 3 | 94.4 ms |
//!
//! Endpoints are drawn by weight, so that one in slow start is looked at rarely; what is compared then is the cost alone. A
//! strong server need not be told from a weak one: its latency says so. Shares in proportion to weights are not promised.
//!
//! # Where it departs from tower, linkerd and Finagle
//! - There a reading stores what it has worked out, and so puts the time of the last sample to now. How much the next sample
//!   counts then depends on how often the endpoint is looked at: under load hardly at all, and the estimate falls towards 0
//!   between peaks rather than towards the average. Here a reading writes nothing: a sample counts by the time since the last
//!   sample, and threads that look share no line that is written.
//! - There a request that fails is a sample like any other, and servers that fail fast attract requests. Here a try that ends
//!   without response headers (refused, timed out, broken off, given up by the client) may raise the estimate to the time that
//!   it took, and never lowers it. A shortage of the proxy itself is no failure of the server.
//! - tower draws uniformly; and an unknown endpoint has `default_rtt` there from when it was discovered, here from when it was
//!   first looked at.
//! - Responses with an error status are samples here as there: a server that answers 500 at once is to be ejected by the host.
//!
//! Estimates are shared with the previous instance (unless `decay` has changed, then they are copied), and saved for the next
//! process as they are at the time of the latest sample.
//!
//! **When**: servers of different or changing speed, garbage collection, neighbours on the same machine; many servers, many
//! proxies. **When not**: the time to the headers says nothing of the work (long polls, streams), or shares must be exact.
//!
//! # Settings
//! | key | default | |
//! |---|---|---|
//! | `decay` | `"10s"` | `"1ms"` to `"24h"`: the time in which an old estimate fades to 37 % |
//! | `default_rtt` | `"1s"` | `"1ms"` to `"24h"`: the estimate of an endpoint without any sample. Far above the usual latency it makes a new endpoint careful for some decay times; linkerd has 30 ms |
//!
//! **Cost**: constant. **Source**: tower, `tower/src/load/peak_ewma.rs` and `tower/src/balance/p2c`; Finagle, `PeakEwma.scala`.
#![forbid(unsafe_code)]

mod estimate;

use std::collections::HashMap;
use std::hint::select_unpredictable;
use std::sync::Arc;
use std::time::Duration;

use lb_api::pick::{self, Draws};
use lb_api::serde::Deserialize;
use lb_api::{
    Balancer, BuildCx, BuildError, Event, EventKind, Failure, FailureKind, Live, Needs, Next, NextCx,
    Request, Time, TryResult, export_balancer,
};

use estimate::{Clock, Estimate, as_of_the_latest};

/// Draws that may hit an endpoint that is tried, full, or drawn before, until what there is has to do.
const MISSES: u32 = 8;

const SHORTEST: Duration = Duration::from_millis(1);
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// The module's settings.
#[derive(Debug, Deserialize)]
#[serde(crate = "lb_api::serde", default)]
pub struct Settings {
    decay: Time,
    default_rtt: Time,
}

impl Default for Settings {
    fn default() -> Self {
        Self { decay: Time(Duration::from_secs(10)), default_rtt: Time(Duration::from_secs(1)) }
    }
}

/// The instance for one cluster.
#[derive(Debug)]
pub struct PeakEwma {
    ids: Box<[u64]>,
    endpoints: Box<[Live]>,
    estimates: Box<[Arc<Estimate>]>,
    draws: Draws,
    clock: Clock,
}

/// A request's last answer, for `explain`.
#[derive(Debug, Default)]
pub struct Chosen(Option<Candidate>);

#[derive(Clone, Copy, Debug)]
struct Candidate {
    endpoint: usize,
    pending: u32,
    estimate_ns: f32,
}

impl Balancer for PeakEwma {
    const ID: &'static str = "peak_ewma";
    const SUMMARY: &'static str =
        "of two drawn, the least latency (peak-sensitive average) times requests on their way";
    /// id, 64 bits, and estimate in nanoseconds, an f32, of each endpoint, little-endian.
    const STATE_VERSION: u32 = 1;
    type Settings = Settings;
    type Trylist = Chosen;

    fn build(cx: &BuildCx<'_, Self>, settings: Settings) -> Result<Self, BuildError> {
        let (decay, default_rtt) =
            (within("decay", settings.decay), within("default_rtt", settings.default_rtt));
        let (decay, default_rtt) = match (decay, default_rtt) {
            (Ok(decay), Ok(default_rtt)) => (decay, default_rtt),
            (Err(one), Err(other)) => return Err(one.and(other)),
            (Err(error), _) | (_, Err(error)) => return Err(error),
        };
        let clock = Clock::new(decay);
        let known = known(cx, clock);
        let estimate = |id: u64| match known.get(&id) {
            Some(estimate) => Arc::clone(estimate),
            None => Arc::new(Estimate::new(default_rtt.as_nanos() as f64)),
        };
        let endpoints = cx.endpoints().live();
        Ok(Self {
            ids: cx.endpoints().iter().map(lb_api::Endpoint::id).collect(),
            estimates: cx.endpoints().iter().map(|endpoint| estimate(endpoint.id())).collect(),
            draws: Draws::new(cx.cluster(), &endpoints),
            endpoints,
            clock,
        })
    }

    fn needs(&self) -> Needs {
        Needs::default().event(EventKind::ResponseHeaders).event(EventKind::TryEnded)
    }

    #[inline]
    fn load_balance(&self, _: &Request<'_>) -> Chosen {
        Chosen::default()
    }

    #[inline]
    fn next(&self, chosen: &mut Chosen, cx: &NextCx<'_>) -> Next {
        self.draws.refresh(&self.endpoints);
        chosen.0 = self.better_of_two(cx).or_else(|| self.best_of_all(cx));
        match chosen.0 {
            Some(best) => Next::Endpoint(best.endpoint),
            None => pick::left_over(&self.endpoints, cx),
        }
    }

    fn report_failure(&self, _: &mut Chosen, failure: &Failure) {
        if failure.kind != FailureKind::Local {
            self.at_least(failure.endpoint, failure.elapsed, failure.now_ns);
        }
    }

    fn observe(&self, _: &mut Chosen, event: &Event<'_>) {
        match (event.kind, event.first_byte, event.result) {
            (EventKind::ResponseHeaders, Some(first_byte), _) => {
                if let Some(estimate) = self.estimates.get(event.endpoint) {
                    estimate.sample(first_byte.as_nanos() as f32, self.clock.at(event.now_ns));
                }
            }
            // Tries that were not established have been reported, with more to tell them apart by.
            (EventKind::TryEnded, None, Some(result)) if result != TryResult::NotEstablished => {
                self.at_least(event.endpoint, event.total, event.now_ns);
            }
            _ => {}
        }
    }

    fn save(&self) -> Option<Vec<u8>> {
        let estimates: Vec<_> = self.estimates.iter().map(|estimate| estimate.last()).collect();
        let saved = self.ids.iter().zip(as_of_the_latest(&estimates));
        Some(saved.flat_map(|(id, ns)| id.to_le_bytes().into_iter().chain(ns.to_le_bytes())).collect())
    }

    fn explain(&self, chosen: &Chosen) -> Option<String> {
        let Candidate { endpoint, pending, estimate_ns } = chosen.0?;
        let ms = estimate_ns / 1e6;
        Some(format!("endpoint {endpoint} costs least of two: {ms:.3} ms times 1 and {pending} on their way"))
    }
}

impl PeakEwma {
    #[inline]
    fn better_of_two(&self, cx: &NextCx<'_>) -> Option<Candidate> {
        let now = self.clock.at(cx.now_ns());
        let (first, second) = self.draw_two(cx);
        let (first, second) = (self.candidate(first?, now), second.map(|second| self.candidate(second, now)));
        let Some(second) = second else { return Some(first) };
        // Which one is better nobody can predict, and a wrong guess costs more than all the rest.
        let better = second.cost() < first.cost();
        Some(Candidate {
            endpoint: select_unpredictable(better, second.endpoint, first.endpoint),
            pending: select_unpredictable(better, second.pending, first.pending),
            estimate_ns: select_unpredictable(better, second.estimate_ns, first.estimate_ns),
        })
    }

    /// Two that are not the same, or as many as draws hit.
    #[inline]
    fn draw_two(&self, cx: &NextCx<'_>) -> (Option<usize>, Option<usize>) {
        let (mut rng, mut first) = (cx.rng(), None);
        let draws = if self.endpoints.len() > 1 { 2 + MISSES } else { 1 };
        for _ in 0..draws {
            let Some(endpoint) = self.draws.draw(&mut rng) else { break };
            if first == Some(endpoint) || !self.fits(endpoint, cx) {
                continue;
            }
            if first.is_some() {
                return (first, Some(endpoint));
            }
            first = Some(endpoint);
        }
        (first, None)
    }

    /// Where draws do not hit what is left of a request's endpoints.
    #[cold]
    fn best_of_all(&self, cx: &NextCx<'_>) -> Option<Candidate> {
        let now = self.clock.at(cx.now_ns());
        (0..self.endpoints.len())
            .filter(|idx| self.fits(*idx, cx) && self.endpoints[*idx].effective_weight() > 0)
            .map(|idx| self.candidate(idx, now))
            .min_by(|a, b| a.cost().total_cmp(&b.cost()))
    }

    #[inline]
    fn fits(&self, endpoint: usize, cx: &NextCx<'_>) -> bool {
        let live = self.endpoints[endpoint];
        !cx.tried(endpoint) && live.is_available() && !live.is_full()
    }

    #[inline]
    fn candidate(&self, endpoint: usize, now: u32) -> Candidate {
        let live = self.endpoints[endpoint];
        let pending = live.in_flight_of_all();
        Candidate { endpoint, pending, estimate_ns: self.estimates[endpoint].read(now) }
    }

    fn at_least(&self, endpoint: usize, elapsed: Duration, now_ns: u64) {
        if let Some(estimate) = self.estimates.get(endpoint) {
            estimate.at_least(elapsed.as_nanos() as f32, self.clock.at(now_ns));
        }
    }
}

impl Candidate {
    #[inline]
    fn cost(self) -> f32 {
        self.estimate_ns * (self.pending as f32 + 1.0)
    }
}

fn within(path: &str, time: Time) -> Result<Duration, BuildError> {
    if (SHORTEST..=LONGEST).contains(&time.0) {
        return Ok(time.0);
    }
    let text = format!("expected from \"{}\" to \"{}\", found \"{time}\"", Time(SHORTEST), Time(LONGEST));
    Err(BuildError::setting(path, text))
}

/// The estimates there are: the previous instance's, and beside them what an earlier process saved.
fn known(cx: &BuildCx<'_, PeakEwma>, clock: Clock) -> HashMap<u64, Arc<Estimate>> {
    let saved = cx.saved().unwrap_or_default().chunks_exact(12).filter_map(|bytes| {
        let (id, ns) = bytes.split_first_chunk()?;
        let ns = f32::from_le_bytes(ns.try_into().ok()?);
        let sound = ns.is_finite() && ns >= 0.0;
        sound.then(|| (u64::from_le_bytes(*id), Arc::new(Estimate::new(ns.into()))))
    });
    let mut known: HashMap<_, _> = saved.collect();
    if let Some(previous) = cx.previous() {
        // Times are told in parts of the decay time: those of another one cannot be read.
        let estimate = |estimate: &Arc<Estimate>| match previous.clock == clock {
            true => Arc::clone(estimate),
            false => Arc::new(Estimate::new(estimate.last().0.into())),
        };
        known.extend(previous.ids.iter().copied().zip(previous.estimates.iter().map(estimate)));
    }
    known
}

export_balancer!(PeakEwma);

#[cfg(test)]
mod tests;
