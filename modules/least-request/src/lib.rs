//! `least_request`: the server with the fewest requests in flight.
//!
//! Sends each request to the server with the fewest requests in flight for its weight. Use it where requests differ
//! much in length. A choice looks at two servers, or at all with `choices = "all"`. Source: Envoy; nginx for `"all"`.
//!
//! The load of an endpoint is its requests in flight divided by its weight. The host counts them over all its threads and
//! generations; the module measures nothing. There are two ways of looking:
//!
//! - **`choices = 2`** (the default; any number): draw so many endpoints by weight, each draw from all, and take the one with
//!   the fewest in flight per weight, the first drawn of equals. Looking at two instead of one is nearly as good as looking at
//!   all (the *power of two choices*: with n requests on n endpoints, one draw leaves about ln n / ln ln n on the busiest,
//!   two about ln ln n / ln 2), at constant cost, and many proxies do not all run to the one endpoint that is idle.
//! - **`choices = "all"`**: look at all, and break ties by smooth weighted round robin among the tied. This is nginx's
//!   `least_conn`, choice by choice.
//!
//! By hand, `"all"`, for weights a=2, b=1, c=1 and requests that do not end:
//!
//! | request | in flight per weight (a, b, c) | tied | their current weights | chosen | afterwards |
//! |---|---|---|---|---|---|
//! | 1 | 0/2, 0/1, 0/1 | a b c | 2, 1, 1 | a | -2, 1, 1 |
//! | 2 | 1/2, 0/1, 0/1 | b c | -2, 2, 2 | b | -2, 0, 2 |
//! | 3 | 1/2, 1/1, 0/1 | none | | c | |
//! | 4 | 1/2, 1/1, 1/1 | none | | a | |
//! | 5 | 2/2, 1/1, 1/1 | a b c | 0, 1, 3 | c | 0, 1, -1 |
//!
//! By hand, 2, for endpoints of equal weight with 3, 0 and 5 in flight: the pairs are equally likely, and of the nine the
//! second endpoint wins each of the five that it is in, the first the three others that it is in, the third only the draw
//! of itself twice: 3/9, 5/9, 1/9.
//!
//! # Where it departs from nginx and Envoy
//! - Weights are the host's effective ones, in steps of 1/65,536, so that slow start reaches in here; nginx compares by the
//!   configured weight and lets failures lower the other one, of the round robin. The host decides on availability.
//! - A name with several addresses is one endpoint, unless the host makes one of each (`resolve = "all"`), as nginx does.
//! - In nginx the choice and the count of it are one step under a lock. Here the host counts when it has accepted the
//!   answer, so that two threads that look at the same time may choose the same endpoint. The lock around the current weights
//!   of ties is only tried: who finds it taken draws among the tied by weight (`ties.rs`).
//! - Envoy draws uniformly where all weights are equal, and that is what drawing by weight is then. Where they are not, it
//!   keeps a schedule by deadlines (EDF) with the weight `weight / (active + 1)^bias`, in a heap for each worker thread. A
//!   heap that all threads share would be a lock that every request takes, and one for each thread would know a part of the
//!   past only. So there is one rule here for equal and unequal weights, with no jump when slow start makes them unequal:
//!   draws by weight, compared by requests in flight per weight, as nginx's `random two least_conn` and HAProxy's
//!   `random(2)` have it. Idle endpoints get shares in proportion to their weights, busy ones as much in flight as their
//!   weights say; Envoy's schedule tends to the root of the weight (bias 1).
//! - Who wants Envoy's weighing gives `active_request_bias`: then one of the drawn is chosen at random, each with a chance in
//!   proportion to `1 / (active + 1)^bias`. The more draws, the closer to the shares of Envoy's schedule; two move an
//!   endpoint's share to the double at most. 0 is a plain weighted draw, as it is plain round robin in Envoy. Envoy looks at
//!   its bias only while weights differ; here it holds whenever it is given.
//!
//! **When**: requests that differ much in cost, servers of which one may be slow; 2 for many servers or many proxies, `"all"`
//! for a few. **When not**: servers that fail fast look idle (eject them), and where an exact share counts (`round_robin`).
//!
//! # Settings
//! | key | default | |
//! |---|---|---|
//! | `choices` | `2` | 2 to 64 draws, or `"all"` |
//! | `active_request_bias` | none: the least wins | 0 to 100, with draws only: random among the drawn, as above |
//!
//! **Cost**: two draws take constant time and write nothing that threads share. `"all"` looks at each endpoint once. **Source**:
//! nginx, `src/http/modules/ngx_http_upstream_least_conn_module.c`; Envoy,
//! `source/extensions/load_balancing_policies/least_request/least_request_lb.cc`; Mitzenmacher, "The Power of Two Choices in
//! Randomized Load Balancing", 1996.
#![forbid(unsafe_code)]

use std::fmt;

use lb_api::pick::{self, Draws, Load, Ties};
use lb_api::serde::{Deserialize, Deserializer, de};
use lb_api::{
    Balancer, BuildCx, BuildError, Endpoint, Live, Next, NextCx, Request, Rng, WEIGHT_ONE, export_balancer,
};

/// More draws than this are a scan by chance.
const MAX_CHOICES: u32 = 64;

/// Draws that may hit an endpoint that is tried or full, before what there is has to do.
const MISSES: u32 = 8;

/// With more, a single request in flight is all that counts.
const MAX_BIAS: f64 = 100.0;

/// The module's settings.
#[derive(Debug, Default, Deserialize)]
#[serde(crate = "lb_api::serde", default)]
pub struct Settings {
    choices: Choices,
    active_request_bias: Option<f64>,
}

/// How many are looked at.
#[derive(Clone, Copy, Debug)]
enum Choices {
    All,
    Drawn(u32),
}

/// The instance for one cluster.
#[derive(Debug)]
pub struct LeastRequest {
    endpoints: Box<[Live]>,
    /// Of the endpoints.
    ids: Box<[u64]>,
    way: Way,
}

#[derive(Debug)]
enum Way {
    All(Ties),
    Drawn { choices: u32, bias: Option<f64>, draws: Draws },
}

/// A request's last answer, for `explain`.
#[derive(Debug, Default)]
pub struct Chosen(Option<Load>);

impl Balancer for LeastRequest {
    const ID: &'static str = "least_request";
    const SUMMARY: &'static str = "the fewest requests in flight per weight, of two drawn or of all";
    /// Current weights of ties, as [`Ties::save`] has them.
    const STATE_VERSION: u32 = 1;
    type Settings = Settings;
    type Trylist = Chosen;

    fn build(cx: &BuildCx<'_, Self>, settings: Settings) -> Result<Self, BuildError> {
        let endpoints = cx.endpoints().live();
        let way = match (settings.choices, settings.active_request_bias) {
            (Choices::All, None) => {
                let before = cx.previous().and_then(Self::save);
                let before = before.as_deref().or(cx.saved()).unwrap_or_default();
                Way::All(Ties::restored(cx.endpoints(), before))
            }
            (Choices::All, Some(_)) => {
                let text = "only where endpoints are drawn: leave it out, or give choices a number";
                return Err(BuildError::setting("active_request_bias", text));
            }
            (Choices::Drawn(_), Some(bias)) if !(0.0..=MAX_BIAS).contains(&bias) => {
                let text = format!("expected a number from 0 to {MAX_BIAS}, found {bias}");
                return Err(BuildError::setting("active_request_bias", text));
            }
            (Choices::Drawn(choices), bias) => {
                Way::Drawn { choices, bias, draws: Draws::new(cx.cluster(), &endpoints) }
            }
        };
        Ok(Self { endpoints, ids: cx.endpoints().iter().map(Endpoint::id).collect(), way })
    }

    #[inline]
    fn load_balance(&self, _: &Request<'_>) -> Chosen {
        Chosen::default()
    }

    #[inline]
    fn next(&self, chosen: &mut Chosen, cx: &NextCx<'_>) -> Next {
        chosen.0 = match &self.way {
            Way::All(ties) => ties.least(self.loads(cx), &mut cx.rng()),
            Way::Drawn { choices, bias, draws } => self.least_of_drawn(cx, *choices, *bias, draws),
        };
        match chosen.0 {
            Some(load) => Next::Endpoint(load.endpoint as usize),
            None => pick::left_over(&self.endpoints, cx),
        }
    }

    fn save(&self) -> Option<Vec<u8>> {
        match &self.way {
            // A reload is no reason for the first of the tied to be the first again.
            Way::All(ties) => Some(ties.save(&self.ids)),
            Way::Drawn { .. } => None,
        }
    }

    fn explain(&self, chosen: &Chosen) -> Option<String> {
        let Load { endpoint, cost: in_flight, weight } = chosen.0?;
        let of = match &self.way {
            Way::All(_) => "all".to_owned(),
            Way::Drawn { choices, .. } => format!("{choices} drawn"),
        };
        let weight = f64::from(weight) / f64::from(WEIGHT_ONE);
        Some(format!("of {of}, endpoint {endpoint} with {in_flight} in flight and weight {weight}"))
    }
}

impl LeastRequest {
    /// All endpoints; those that do not fit with a weight of 0.
    #[inline]
    fn loads(&self, cx: &NextCx<'_>) -> impl Iterator<Item = Load> {
        let first = cx.is_first();
        (0..self.endpoints.len() as u32).zip(&self.endpoints).map(move |(endpoint, live)| {
            let tried = !first && cx.tried(endpoint as usize);
            load(endpoint, *live, tried).unwrap_or(Load { endpoint, cost: 0, weight: 0 })
        })
    }

    #[inline]
    fn least_of_drawn(
        &self,
        cx: &NextCx<'_>,
        choices: u32,
        bias: Option<f64>,
        draws: &Draws,
    ) -> Option<Load> {
        draws.refresh(&self.endpoints);
        let mut rng = cx.rng();
        let (mut least, mut shares): (Option<Load>, f64) = (None, 0.0);
        let mut left = choices;
        for _ in 0..choices + MISSES {
            let endpoint = draws.draw(&mut rng)?;
            let Some(load) = load(endpoint as u32, self.endpoints[endpoint], cx.tried(endpoint)) else {
                continue;
            };
            let better = match bias {
                None => least.is_none_or(|other| load.is_less_than(other)),
                Some(bias) => {
                    let share = share(load.cost, bias);
                    shares += share;
                    least.is_none() || unit(&mut rng) * shares < share
                }
            };
            if better {
                least = Some(load);
            }
            left -= 1;
            if left == 0 {
                break;
            }
        }
        // Where draws do not hit what is left of a request's endpoints.
        least.or_else(|| pick::draw(self.loads(cx), &mut cx.rng()))
    }
}

/// Load of an endpoint, if it takes the request.
#[inline]
fn load(endpoint: u32, live: Live, tried: bool) -> Option<Load> {
    let in_flight = live.in_flight_if_room().filter(|_| live.is_available() && !tried)?;
    Some(Load { endpoint, cost: in_flight, weight: live.effective_weight() })
}

/// Envoy's factor to the weight.
fn share(in_flight: u32, bias: f64) -> f64 {
    let active = f64::from(in_flight) + 1.0;
    if bias == 1.0 { 1.0 / active } else { active.powf(-bias) }
}

/// From 0 to less than 1.
fn unit(rng: &mut Rng) -> f64 {
    (rng.bits() >> 11) as f64 / (1_u64 << 53) as f64
}

impl Default for Choices {
    fn default() -> Self {
        Self::Drawn(2)
    }
}

impl<'de> Deserialize<'de> for Choices {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = Choices;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "an integer from 2 to {MAX_CHOICES} or \"all\"")
            }

            fn visit_i64<E: de::Error>(self, found: i64) -> Result<Choices, E> {
                match u32::try_from(found) {
                    Ok(choices @ 2..=MAX_CHOICES) => Ok(Choices::Drawn(choices)),
                    _ => Err(E::invalid_value(de::Unexpected::Signed(found), &self)),
                }
            }

            fn visit_str<E: de::Error>(self, found: &str) -> Result<Choices, E> {
                match found {
                    "all" => Ok(Choices::All),
                    _ => Err(E::invalid_value(de::Unexpected::Str(found), &self)),
                }
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

export_balancer!(LeastRequest);

#[cfg(test)]
mod tests;
