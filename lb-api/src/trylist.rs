//! The question for each try of a request, and its answer.

use std::fmt;

use crate::export::view::View;
use crate::request::Request;
use crate::wire;

/// The answer of `next`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Try this endpoint. The host declines one that is not available now, and counts it as tried. An endpoint that does not
    /// exist, or that was answered before in this request, is a fault: the host logs it and chooses a server by itself.
    Endpoint(usize),
    /// No endpoint is left for this request.
    Exhausted,
    /// All endpoints that could serve it are full: the host queues the request and asks again.
    Busy,
}

/// Input of [`Balancer::next`](crate::Balancer::next): everything that changes from try to try. Balancers read no clock
/// and no random source, so that they can be tested exactly; both are in here.
#[derive(Clone, Copy)]
pub struct NextCx<'a> {
    view: View<'a, wire::NextCx>,
    tried: &'a [u64],
}

impl<'a> NextCx<'a> {
    #[inline]
    pub(crate) fn new(view: View<'a, wire::NextCx>) -> Self {
        Self { view, tried: view.slice(|cx| (cx.tried, cx.n_tried_words)) }
    }

    /// Whether this endpoint was answered before in this request, tried or declined.
    #[inline]
    pub fn tried(self, endpoint: usize) -> bool {
        self.tried.get(endpoint / 64).is_some_and(|word| word >> (endpoint % 64) & 1 == 1)
    }

    /// Whether no endpoint was answered yet: the usual case, in which nothing needs to be looked up.
    #[inline]
    pub fn is_first(self) -> bool {
        self.tried.iter().all(|word| *word == 0)
    }

    /// How many endpoints were answered before in this request.
    #[inline]
    pub fn n_tried(self) -> usize {
        self.tried.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Tries made so far in this request. Declined answers are no tries.
    #[inline]
    pub fn n_tries(self) -> u32 {
        self.view.n_tries
    }

    /// The time now: nanoseconds of a monotonic clock whose zero means nothing.
    #[inline]
    pub fn now_ns(self) -> u64 {
        self.view.now_ns
    }

    /// Uniform random bits, fresh for this call.
    #[inline]
    pub fn random(self) -> u64 {
        self.view.random
    }

    /// Any number of random numbers, drawn from [`random`](Self::random).
    #[inline]
    pub fn rng(self) -> Rng {
        Rng(self.view.random)
    }

    /// The request.
    #[inline]
    pub fn request(self) -> Request<'a> {
        self.view.inner(|cx| cx.request).map_or_else(Request::empty, Request::new)
    }
}

impl fmt::Debug for NextCx<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tried: Vec<_> = (0..self.tried.len() * 64).filter(|idx| self.tried(*idx)).collect();
        write!(f, "try {} after {tried:?}", self.n_tries() + 1)
    }
}

/// A stream of random numbers from one seed (SplitMix64; Steele, Lea and Flood, OOPSLA 2014).
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// The stream of this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// 64 uniform bits.
    #[inline]
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from 0 to `n` - 1, each as likely as the next to one part in 2^64 / `n`; 0 for an `n` of 0.
    #[inline]
    pub fn below(&mut self, n: u64) -> u64 {
        // The high half of a product (Lemire, 2019) without its rejection step: the bias is beyond measuring for any
        // number of endpoints.
        ((u128::from(self.bits()) * u128::from(n)) >> 64) as u64
    }
}
