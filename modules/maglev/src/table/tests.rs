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
        let (offset, skip) = (xxh64(name.as_bytes(), 0) % size, xxh64(name.as_bytes(), 1) % (size - 1) + 1);
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
