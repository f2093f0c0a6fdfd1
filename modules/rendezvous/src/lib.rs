//! `rendezvous`: the highest score of key and server (highest random weight), with weights, as Envoy computes it.
//!
//! Sends the same key to the same server, with shares exactly by weight; only keys of a changed server move. Use it
//! for caches in front of few servers. A choice looks at every server. Source: Envoy.
//!
//! For each server a hash of the request's key (the cluster's `key`) and the server's name makes a number `u` between 0
//! and 1, and with its weight `w` the score `-w / ln u`; the request goes to the highest score. There is no table, so
//! nothing is approximate: shares are exactly by weight, a server that leaves gives away its own keys only, one that
//! comes takes only what it then keeps, and a change of one weight moves keys only to or from that server.
//!
//! By hand: let the hashes of a key with a, b and c be 0.5, 0.8 and 0.6. With weights 1, 1, 1 the scores are 1.44, 4.48
//! and 1.96: b's. With a weight of 3 for c its score is 5.87, and the key is c's. Where c is down the key is b's again,
//! the second highest, and so on.
//!
//! Key and name are hashed by xxHash64; their exclusive-or is spread by xorshift*, and the logarithm is Envoy's
//! approximation: the server is Envoy's for every key. The name is host and port as `host:port` (of a name of
//! which each address is a server, address and port), which for addresses is Envoy's; the pair `hash_key = "…"` among a server's metadata is taken instead, so that a server can keep its keys
//! when its address changes.
//!
//! **Where that server is not available**, or failed this request before, the next highest score is taken; Envoy would
//! change the hash and draw again. **Weights** are the effective ones: slow start and other weights move as few keys
//! as can be, and always the same ones. **A request without a key** (an empty one is none) is drawn by weight,
//! unless the cluster's `key_missing` names another module for it.
//!
//! **When**: caches or state in servers that come, go and change their weights, up to some hundred of them. **When
//! not**: thousands of servers: every choice looks at all of them, at 2 to 3 ns each, where `maglev` and `ring_hash`
//! take the same time at any number.
//!
//! **Settings**: none. **Cost**: a pass over hashes and weights of all servers, side by side in memory; they are
//! brought up to date by the first request that finds that the cluster's epoch has moved on. **Source**: Envoy,
//! `source/extensions/load_balancing_policies/rendezvous_hash/rendezvous_hash_lb.cc`; Thaler and Ravishankar, 1998.
#![forbid(unsafe_code)]

mod score;

use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;

use lb_api::pick::{Epoch, hash_name};
use lb_api::{Balancer, BuildCx, BuildError, Live, Needs, Next, NextCx, Request, export_balancer};
use xxhash_rust::xxh64::xxh64;

/// The instance for one cluster.
#[derive(Debug)]
pub struct Rendezvous {
    lives: Box<[Live]>,
    /// Of the servers' names.
    hashes: Box<[u64]>,
    /// Effective weights, 0 for what is not available. Each is read by itself: a choice while they are
    /// replaced is one that either the old or the new ones could have made of each server.
    weights: Box<[AtomicU32]>,
    /// Of the weights.
    epoch: Epoch,
}

impl Balancer for Rendezvous {
    const ID: &'static str = "rendezvous";
    const SUMMARY: &'static str = "the highest weighted score of key and server, as Envoy's rendezvous hash";
    type Settings = ();
    /// The key's hash, once it is known: that of a request without a key is drawn at its first try.
    type Trylist = Option<u64>;

    fn build(cx: &BuildCx<'_, Self>, (): ()) -> Result<Self, BuildError> {
        let endpoints = cx.endpoints();
        let rendezvous = Self {
            epoch: Epoch::new(cx.cluster()),
            lives: endpoints.live(),
            hashes: endpoints.iter().map(|endpoint| xxh64(hash_name(endpoint).as_bytes(), 0)).collect(),
            weights: endpoints.iter().map(|_| AtomicU32::new(0)).collect(),
        };
        warn_of_twins(cx, &rendezvous.hashes);
        rendezvous.make();
        Ok(rendezvous)
    }

    fn needs(&self) -> Needs {
        Needs::default().key()
    }

    #[inline]
    fn load_balance(&self, request: &Request<'_>) -> Option<u64> {
        request.key().map(|key| xxh64(key, 0))
    }

    #[inline]
    fn next(&self, hash: &mut Option<u64>, cx: &NextCx<'_>) -> Next {
        self.epoch.follow(|| self.make());
        let hash = *hash.get_or_insert_with(|| cx.random());
        match score::highest(hash, self.weighted(), |_| true) {
            Some(server) if !cx.tried(server) && self.lives[server].is_available() => Next::Endpoint(server),
            _ => self.next_highest(hash, cx),
        }
    }

    fn explain(&self, hash: &Option<u64>) -> Option<String> {
        hash.map(|hash| format!("hash {hash:#018x}, the highest score of {} servers", self.hashes.len()))
    }
}

/// Of two servers of one name the first has the higher score for every key.
fn warn_of_twins(cx: &BuildCx<'_, Rendezvous>, hashes: &[u64]) {
    let mut order: Vec<usize> = (0..hashes.len()).collect();
    order.sort_by_key(|server| hashes[*server]);
    let url = |server: usize| cx.endpoints().get(server).url();
    let twins = order.windows(2).filter(|pair| hashes[pair[0]] == hashes[pair[1]]);
    let (first, n) = (twins.clone().map(|pair| (url(pair[0]), url(pair[1]))).next(), twins.count());
    if let Some((one, other)) = first {
        cx.log().warn(format_args!(
            "servers \"{one}\" and \"{other}\" have one name, so that the second gets no key while the first is there \
             ({n} such in all); a hash_key of its own among its metadata would give it some"
        ));
    }
}

impl Rendezvous {
    #[inline]
    fn weighted(&self) -> impl Iterator<Item = (u64, u32)> {
        self.hashes.iter().copied().zip(self.weights.iter().map(|weight| weight.load(Relaxed)))
    }

    /// The highest of what is left, and without any weight the first of that.
    #[cold]
    fn next_highest(&self, hash: u64, cx: &NextCx<'_>) -> Next {
        let left = |server: usize| !cx.tried(server) && self.lives[server].is_available();
        score::highest(hash, self.weighted(), left)
            .or_else(|| (0..self.lives.len()).find(|server| left(*server)))
            .map_or(Next::Exhausted, Next::Endpoint)
    }

    fn make(&self) {
        for (weight, live) in self.weights.iter().zip(&self.lives) {
            weight.store(if live.is_available() { live.effective_weight() } else { 0 }, Relaxed);
        }
    }
}

export_balancer!(Rendezvous);

#[cfg(test)]
mod tests;
