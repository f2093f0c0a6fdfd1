//! Maglev's table (Eisenbud and others, NSDI 2016, section 3.4), with Envoy's weights.
//!
//! Every server has an order of its own in which it wants the slots: from `offset` on in steps of `skip`, which meets
//! every slot because their number is prime. Servers in the order of their names take turns, each the first slot of its
//! order that is free, until all are taken. A server of the largest weight has its turn in every pass; one of weight
//! `w` has it in pass `p` when `p · w` has reached as many times the largest weight as it has had turns.
//!
//! Envoy goes through all servers in every pass. With one heavy server among thousands of light ones most passes find
//! almost nobody whose turn it is, so that here everybody is in the list of the pass of its next turn: the same order in time
//! that depends on the turns and not on the passes. Which slots are free is looked up some 14 times for each in a large
//! table, and in a bit for each, which a near cache holds.

use std::collections::BTreeMap;

use xxhash_rust::xxh64::xxh64;

/// A server while it chooses slots.
struct Chooser {
    /// Its index.
    server: u32,
    /// Slot that it wants next.
    slot: u32,
    skip: u32,
    /// Part of all weights.
    weight: f64,
    /// Its next turn comes when pass times weight reaches this.
    target: f64,
}

/// The server of each slot, for servers of these names and weights. The size is prime.
pub(crate) fn table(size: u32, servers: &[(&str, u32)]) -> Box<[u32]> {
    let mut choosers = choosers(size, servers);
    let most = choosers.iter().map(|chooser| chooser.weight).fold(0.0, f64::max);
    let mut slots = vec![0; size as usize].into_boxed_slice();
    let mut free = Free::new(size);
    let mut passes = BTreeMap::from([(1_u64, (0..choosers.len()).collect::<Vec<_>>())]);
    let mut left = size;
    while let Some((pass, mut turns)) = passes.pop_first() {
        turns.sort_unstable();
        for idx in turns {
            if left == 0 {
                return slots;
            }
            left -= 1;
            let chooser = &mut choosers[idx];
            slots[chooser.choose(&mut free)] = chooser.server;
            chooser.target += most;
            passes.entry(chooser.next_pass(pass)).or_default().push(idx);
        }
    }
    slots
}

/// Which slots are free: a bit for each.
struct Free {
    bits: Vec<u64>,
    len: u32,
}

impl Free {
    fn new(len: u32) -> Self {
        Self { bits: vec![u64::MAX; len.div_ceil(u64::BITS) as usize], len }
    }

    /// Takes this slot; whether it was free.
    fn take(&mut self, slot: u32) -> bool {
        let (bits, bit) = (&mut self.bits[(slot / u64::BITS) as usize], 1 << (slot % u64::BITS));
        let was_free = *bits & bit != 0;
        *bits &= !bit;
        was_free
    }
}

fn choosers(size: u32, servers: &[(&str, u32)]) -> Vec<Chooser> {
    let sum: u64 = servers.iter().map(|(_, weight)| u64::from(*weight)).sum();
    let mut order: Vec<u32> = (0..servers.len() as u32).collect();
    order.sort_by_key(|server| servers[*server as usize].0);
    let chooser = |server: u32| {
        let (name, weight) = servers[server as usize];
        Chooser {
            server,
            slot: (xxh64(name.as_bytes(), 0) % u64::from(size)) as u32,
            skip: (xxh64(name.as_bytes(), 1) % u64::from(size - 1) + 1) as u32,
            weight: f64::from(weight) / sum as f64,
            target: 0.0,
        }
    };
    order.into_iter().map(chooser).collect()
}

impl Chooser {
    /// The first free slot in its order.
    fn choose(&mut self, free: &mut Free) -> usize {
        loop {
            let slot = self.slot;
            // Below twice the size, which is far from what a word holds.
            self.slot += self.skip;
            if self.slot >= free.len {
                self.slot -= free.len;
            }
            if free.take(slot) {
                return slot as usize;
            }
        }
    }

    /// The first pass after this one in which it has a turn. Found by division, then put right by the comparison that
    /// Envoy makes, so that no rounding makes a difference.
    fn next_pass(&self, pass: u64) -> u64 {
        let has_turn = |pass: u64| pass as f64 * self.weight >= self.target;
        let mut next = ((self.target / self.weight) as u64).max(pass + 1);
        while next > pass + 1 && has_turn(next - 1) {
            next -= 1;
        }
        while !has_turn(next) {
            next += 1;
        }
        next
    }
}

/// Whether there is no divisor but 1 and the number itself.
pub(crate) fn is_prime(n: u32) -> bool {
    n >= 2 && (2..=n.isqrt()).all(|divisor| !n.is_multiple_of(divisor))
}

/// The smallest prime at or above this one.
pub(crate) fn next_prime(n: u32) -> u32 {
    (n..).find(|n| is_prime(*n)).unwrap_or(n)
}

#[cfg(test)]
mod tests;
