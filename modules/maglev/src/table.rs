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
    /// What pass times weight must reach for its next turn.
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
mod tests {
    use lb_api::Rng;

    use super::*;

    /// Envoy's own way: pass after pass, with products instead of steps.
    fn envoy(size: u64, servers: &[(&str, u32)]) -> Vec<u32> {
        struct Entry {
            server: u32,
            offset: u64,
            skip: u64,
            weight: f64,
            target: f64,
            next: u64,
        }
        let sum: u32 = servers.iter().map(|(_, weight)| weight).sum();
        let mut most = 0.0_f64;
        let mut named: Vec<_> =
            (0..).zip(servers).map(|(server, (name, weight))| (*name, server, *weight)).collect();
        named.sort();
        let mut entries: Vec<Entry> = Vec::new();
        for (name, server, weight) in named {
            let weight = f64::from(weight) * 1.0 / f64::from(sum);
            most = most.max(weight);
            let (offset, skip) =
                (xxh64(name.as_bytes(), 0) % size, xxh64(name.as_bytes(), 1) % (size - 1) + 1);
            entries.push(Entry { server, offset, skip, weight, target: 0.0, next: 0 });
        }
        let mut table = vec![None; size as usize];
        let (mut filled, mut iteration) = (0, 1_u32);
        while filled < size {
            for entry in &mut entries {
                if filled == size {
                    break;
                }
                if f64::from(iteration) * entry.weight < entry.target {
                    continue;
                }
                entry.target += most;
                let slot = |next: u64| ((entry.offset + entry.skip * next) % size) as usize;
                let mut c = slot(entry.next);
                while table[c].is_some() {
                    entry.next += 1;
                    c = slot(entry.next);
                }
                table[c] = Some(entry.server);
                entry.next += 1;
                filled += 1;
            }
            iteration += 1;
        }
        table.into_iter().map(Option::unwrap).collect()
    }

    fn names(n: usize) -> Vec<String> {
        // Not in their own order.
        (0..n).map(|i| format!("10.0.{}.{}:8080", (i * 7) % 13, i)).collect()
    }

    fn compare(size: u32, weights: &[u32]) {
        let names = names(weights.len());
        let servers: Vec<_> = names.iter().map(String::as_str).zip(weights.iter().copied()).collect();
        assert!(*table(size, &servers) == *envoy(size.into(), &servers), "size {size}, weights {weights:?}");
    }

    #[test]
    fn has_the_slots_that_envoy_s_construction_gives() {
        let mut rng = Rng::new(11);
        compare(65_537, &[1, 1, 1]);
        compare(65_537, &[5, 1, 1, 13, 20]);
        for round in 0..60 {
            let most = [1, 2, 10, 1000, 65_535][round % 5];
            let size = next_prime(100 + rng.below(3000) as u32);
            let weights: Vec<_> = (0..1 + rng.below(40)).map(|_| 1 + rng.below(most) as u32).collect();
            compare(size, &weights);
        }
        compare(997, &[1, 65_535, 1, 1]);
        compare(2, &[1, 1]);
    }

    #[test]
    fn slots_are_even_to_one_part_in_a_hundred_where_there_are_a_hundred_times_as_many() {
        let names = names(100);
        let servers: Vec<_> = names.iter().map(|name| (name.as_str(), 1)).collect();
        let mut counts = [0_u32; 100];
        table(65_537, &servers).iter().for_each(|server| counts[*server as usize] += 1);
        // Turns in every pass: no two servers differ by more than one slot.
        assert!(counts.iter().all(|count| (655..=656).contains(count)), "{counts:?}");
    }

    #[test]
    fn slots_follow_the_weights() {
        let names = names(4);
        let weights = [1, 2, 3, 10];
        let servers: Vec<_> = names.iter().map(String::as_str).zip(weights).collect();
        let mut counts = [0_u32; 4];
        table(65_537, &servers).iter().for_each(|server| counts[*server as usize] += 1);
        for (count, weight) in counts.iter().zip(weights) {
            assert!(count.abs_diff(65_537 * weight / 16) <= 2, "{counts:?}");
        }
    }

    #[test]
    fn knows_primes() {
        let primes: Vec<_> = (0..30).filter(|n| is_prime(*n)).collect();
        assert_eq!(primes, [2, 3, 5, 7, 11, 13, 17, 19, 23, 29]);
        assert!(is_prime(65_537) && !is_prime(65_536) && is_prime(5_000_011));
        assert_eq!(next_prime(65_536), 65_537);
    }
}
