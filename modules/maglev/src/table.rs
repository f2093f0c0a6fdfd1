//! Maglev's table (Eisenbud and others, NSDI 2016, section 3.4), with Envoy's weights.
//!
//! Every server has an order of its own in which it wants the slots: from `offset` on in steps of `skip`, which meets
//! every slot because their number is prime. Servers in the order of their names take turns, each the first slot of its
//! order that is free, until all are taken. A server of the largest weight has its turn in every pass; one of weight
//! `w` has it in pass `p` when `p · w` has reached as many times the largest weight as it has had turns.
//!
//! Envoy goes through all servers in every pass. With one heavy server among thousands of light ones most passes find
//! almost nobody whose turn it is, so that here a heap says who is next: the same order in time that depends on the
//! turns and not on the passes.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use xxhash_rust::xxh64::xxh64;

/// A slot that is free.
const FREE: u32 = u32::MAX;

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
    let mut slots = vec![FREE; size as usize].into_boxed_slice();
    // By pass, and within a pass by the order of the names.
    let mut turns: BinaryHeap<_> = (0..choosers.len()).map(|chooser| Reverse((1_u64, chooser))).collect();
    for _ in 0..size {
        let Some(mut turn) = turns.peek_mut() else { break };
        let Reverse((pass, chooser)) = *turn;
        let chooser = &mut choosers[chooser];
        let slot = chooser.choose(&slots);
        slots[slot] = chooser.server;
        chooser.target += most;
        turn.0.0 = chooser.next_pass(pass);
    }
    slots
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
    fn choose(&mut self, slots: &[u32]) -> usize {
        loop {
            let slot = self.slot as usize;
            // Below twice the size, which is far from what a word holds.
            self.slot += self.skip;
            if self.slot >= slots.len() as u32 {
                self.slot -= slots.len() as u32;
            }
            if slots[slot] == FREE {
                return slot;
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
