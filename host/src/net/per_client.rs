//! How many connections, or waiting requests, each client has: over all threads, without a lock, in memory of a fixed size.
//!
//! A table of counters, in lines of eight as the cache has them. An address belongs to one line and takes any free counter
//! of it, under a keyed fingerprint; a counter that falls to zero is free again. There are twice as many counters as there
//! can be connections, so a line is rarely full. An address that finds no counter is let through uncounted, so that nobody
//! can keep others out by crowding a line. Two threads that see an address for the first time at once may take two counters
//! for it. So it may get a few connections more than its limit, never fewer.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counters of a line: 64 bytes.
const LINE: usize = 8;
/// A counter is a fingerprint, and in its low bits how many connections there are.
const COUNT_BITS: u32 = 24;
const COUNT_MASK: u64 = (1 << COUNT_BITS) - 1;

/// Connections, or requests, of each client in one place.
#[derive(Debug)]
pub struct PerClient {
    max: u64,
    lines: Box<[CacheLine]>,
    key: RandomState,
}

#[repr(align(64))]
#[derive(Debug, Default)]
struct CacheLine([AtomicU64; LINE]);

/// A connection or a request, counted until this is dropped.
#[derive(Debug)]
pub struct Counted {
    table: Arc<PerClient>,
    /// CacheLine and counter; `None` for one that is let through uncounted.
    place: Option<(u32, u8)>,
}

impl PerClient {
    /// For at most `max` of each client, of `max_in_all`.
    pub fn new(max: u32, max_in_all: usize) -> Self {
        let n_lines = (2 * max_in_all).div_ceil(LINE).max(1).min(u32::MAX as usize);
        let lines = (0..n_lines).map(|_| CacheLine::default()).collect();
        Self { max: u64::from(max).min(COUNT_MASK), lines, key: RandomState::new() }
    }

    /// Counts one more of this client. `None` where it has as many as it may.
    pub fn enter(self: &Arc<Self>, client: IpAddr) -> Option<Counted> {
        let hash = self.key.hash_one(prefix(client));
        let line_idx = (hash % self.lines.len() as u64) as u32;
        // Not zero, which a free counter has.
        let fingerprint = (hash & !COUNT_MASK) | 1 << (u64::BITS - 1);
        let line = &self.lines[line_idx as usize].0;
        loop {
            let seen: [u64; LINE] = std::array::from_fn(|i| line[i].load(Ordering::Relaxed));
            let own = seen.iter().position(|counter| counter & !COUNT_MASK == fingerprint);
            let Some(i) = own.or_else(|| seen.iter().position(|counter| *counter == 0)) else {
                return Some(Counted { table: Arc::clone(self), place: None });
            };
            let count = seen[i] & COUNT_MASK;
            if count >= self.max {
                return None;
            }
            let next = fingerprint | (count + 1);
            if line[i].compare_exchange(seen[i], next, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                return Some(Counted { table: Arc::clone(self), place: Some((line_idx, i as u8)) });
            }
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let Some((line, i)) = self.place else { return };
        let counter = &self.table.lines[line as usize].0[usize::from(i)];
        let less = |counter: u64| Some(if counter & COUNT_MASK <= 1 { 0 } else { counter - 1 });
        let _ = counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }
}

/// One client: an IPv4 address, or the /64 that a subscriber of IPv6 has to himself.
fn prefix(client: IpAddr) -> (bool, u64) {
    match client.to_canonical() {
        IpAddr::V4(v4) => (true, u64::from(v4.to_bits())),
        IpAddr::V6(v6) => (false, (v6.to_bits() >> 64) as u64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn each_client_has_its_own_count() {
        let table = Arc::new(PerClient::new(2, 100));
        let (a, b) = (address("10.0.0.1"), address("10.0.0.2"));
        let first = table.enter(a).expect("one of two");
        let _second = table.enter(address("::ffff:10.0.0.1")).expect("two of two");
        assert!(table.enter(a).is_none());
        assert!(table.enter(b).is_some(), "another client");
        drop(first);
        assert!(table.enter(a).is_some(), "one has ended");
    }

    #[test]
    fn a_network_of_ipv6_is_one_client() {
        let table = Arc::new(PerClient::new(1, 100));
        let _one = table.enter(address("2001:db8::1")).expect("the first");
        assert!(table.enter(address("2001:db8::ffff:1")).is_none());
        assert!(table.enter(address("2001:db8:0:1::1")).is_some());
    }

    #[test]
    fn who_finds_no_counter_is_let_through() {
        let table = Arc::new(PerClient::new(1, 1));
        let held: Vec<_> =
            (1..=20).map(|i| table.enter([10, 0, 0, i].into()).expect("let through")).collect();
        let counted = held.iter().filter(|counted| counted.place.is_some()).count();
        assert_eq!(counted, LINE);
        drop(held);
        assert!(
            table.lines.iter().flat_map(|line| &line.0).all(|counter| counter.load(Ordering::Relaxed) == 0)
        );
    }

    #[test]
    fn counts_right_from_many_threads_at_once() {
        let table = Arc::new(PerClient::new(1000, 1000));
        std::thread::scope(|scope| {
            for thread in 0..4_u8 {
                let table = &table;
                scope.spawn(move || {
                    for i in 0..5000_u32 {
                        let held = table.enter([10, 0, (i % 7) as u8, thread % 2].into());
                        assert!(held.is_some(), "far from the limit");
                    }
                });
            }
        });
        assert!(
            table.lines.iter().flat_map(|line| &line.0).all(|counter| counter.load(Ordering::Relaxed) == 0)
        );
    }
}
