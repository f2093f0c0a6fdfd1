//! Chooses the endpoint with the least load; of several, by a round of smooth weighted round robin, as nginx does.
//!
//! Each of the tied gets its weight added to its current weight; the largest is chosen, the first of equals, and the sum
//! of the tied ones' weights is taken off it. Endpoints that are not tied keep their current weights.
//!
//! All threads share the current weights, and a round changes those of all tied endpoints in one step. So they are behind a
//! lock, but no request waits for it: a request that finds it taken draws among the tied by weight, which gives each the same
//! share on average. Requests that come one after the other, on any threads, get exactly nginx's turns.
//!
//! nginx looks at all endpoints twice if there are ties. Here the first look lists the tied ones, behind the same lock.

use std::sync::{Mutex, PoisonError, TryLockError};

use super::{restore_currents, save_numbers};
use crate::{Endpoint, Endpoints, Rng};

/// Current weights, one for each endpoint.
#[derive(Debug)]
pub struct Ties {
    rounds: Mutex<Rounds>,
}

#[derive(Debug)]
struct Rounds {
    current: Box<[i64]>,
    /// As long as there are endpoints; in use only during a scan.
    tied: Box<[Tied]>,
}

/// An endpoint with the least load so far, and its weight.
#[derive(Clone, Copy, Debug, Default)]
struct Tied {
    endpoint: u32,
    weight: u32,
}

/// An endpoint's load when it was read. A weight of 0 takes no part.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Index of the endpoint.
    pub endpoint: u32,
    /// Its load.
    pub cost: u32,
    /// Its effective weight, in whatever unit all have.
    pub weight: u32,
}

impl Load {
    /// More than any that takes part.
    const MOST: Self = Self { endpoint: u32::MAX, cost: 1, weight: 0 };

    /// One side of a comparison of costs per weight, without the division.
    #[inline]
    fn times(self, other: Self) -> u64 {
        u64::from(self.cost) * u64::from(other.weight)
    }

    /// Whether its cost per weight is less than the other's.
    #[inline]
    pub fn is_less_than(self, other: Self) -> bool {
        self.times(other) < other.times(self)
    }
}

impl Ties {
    /// For so many endpoints; all start at 0.
    pub fn new(n_endpoints: usize) -> Self {
        Self::from(vec![0; n_endpoints].into())
    }

    /// Ties of these endpoints, from the state of the last [`save`](Self::save). Weights are the host's, in
    /// [`WEIGHT_ONE`](crate::WEIGHT_ONE)ths.
    pub fn restored(endpoints: Endpoints<'_>, saved: &[u8]) -> Self {
        let ids: Vec<u64> = endpoints.iter().map(Endpoint::id).collect();
        let total = endpoints.iter().map(|endpoint| i64::from(endpoint.weight()) << 16).sum();
        Self::from(restore_currents(saved, &ids, total))
    }

    fn from(current: Box<[i64]>) -> Self {
        let tied = vec![Tied::default(); current.len()].into();
        Self { rounds: Mutex::new(Rounds { current, tied }) }
    }

    /// The current weights, for endpoints with these IDs, in order. Waits for a round that is under way; requests that come
    /// meanwhile do not.
    pub fn save(&self, ids: &[u64]) -> Vec<u8> {
        let rounds = self.rounds.lock().unwrap_or_else(PoisonError::into_inner);
        save_numbers(ids, &rounds.current)
    }

    /// The least cost per weight of these, which come in ascending order.
    #[inline]
    pub fn least(&self, loads: impl Iterator<Item = Load>, rng: &mut Rng) -> Option<Load> {
        let mut rounds = match self.rounds.try_lock() {
            Ok(rounds) => rounds,
            // A panic here leaves current weights that are as good as any.
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return draw_instead(loads, rng),
        };
        rounds.least(loads)
    }
}

impl Rounds {
    #[inline]
    fn least(&mut self, loads: impl Iterator<Item = Load>) -> Option<Load> {
        let Self { current, tied } = self;
        let (least, n_tied) = loads.fold((Load::MOST, 0), |(least, n_tied), load| {
            let (mine, its) = (load.times(least), least.times(load));
            if mine > its || load.weight == 0 {
                return (least, n_tied);
            }
            let (least, n_tied) = if mine < its { (load, 0) } else { (least, n_tied) };
            let Some(slot) = tied.get_mut(n_tied) else { return (least, n_tied) };
            *slot = Tied { endpoint: load.endpoint, weight: load.weight };
            (least, n_tied + 1)
        });
        match n_tied {
            0 => None,
            1 => Some(least),
            _ => {
                let Tied { endpoint, weight } = round(current, &tied[..n_tied]);
                Some(Load { endpoint, weight, ..least })
            }
        }
    }
}

/// One round among these.
fn round(current: &mut [i64], tied: &[Tied]) -> Tied {
    let (mut best, mut most, mut total) = (&tied[0], i64::MIN, 0);
    for tied in tied {
        let current = &mut current[tied.endpoint as usize];
        *current += i64::from(tied.weight);
        total += i64::from(tied.weight);
        if *current > most {
            (best, most) = (tied, *current);
        }
    }
    current[best.endpoint as usize] -= total;
    *best
}

/// Apart from the scan that it stands in for, which would have to share its registers.
#[cold]
#[inline(never)]
fn draw_instead(loads: impl Iterator<Item = Load>, rng: &mut Rng) -> Option<Load> {
    draw(loads, rng)
}

/// The least of these; of several, a draw by weight.
pub fn draw(loads: impl Iterator<Item = Load>, rng: &mut Rng) -> Option<Load> {
    let (mut least, mut total) = (Load::MOST, 0);
    for load in loads.filter(|load| load.weight > 0) {
        if least.is_less_than(load) {
            continue;
        }
        if load.is_less_than(least) {
            total = 0;
        }
        // A reservoir of one: each keeps its place with the probability that is right so far.
        total += u64::from(load.weight);
        if rng.below(total) < u64::from(load.weight) {
            least = load;
        }
    }
    (least.weight > 0).then_some(least)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Endpoints that all have nothing to do.
    fn idle(weights: &[u32]) -> impl Iterator<Item = Load> {
        (0..).zip(weights).map(|(endpoint, weight)| Load { endpoint, cost: 0, weight: *weight })
    }

    #[test]
    fn rounds_are_smooth_weighted_round_robin_among_the_tied() {
        let ties = Ties::new(3);
        let choose = |weights: &[u32]| ties.least(idle(weights), &mut Rng::new(0)).unwrap().endpoint;
        let turns: Vec<_> = (0..7).map(|_| choose(&[5, 1, 1])).collect();
        assert_eq!(turns, [0, 0, 1, 0, 2, 0, 0]);
        // By hand, from 0 0 0: b and c alone, then all, then all.
        assert_eq!([choose(&[0, 1, 1]), choose(&[1, 1, 1]), choose(&[1, 1, 1])], [1, 2, 0]);
        assert!(ties.least(idle(&[]), &mut Rng::new(0)).is_none());
        assert!(ties.least(idle(&[0, 0]), &mut Rng::new(0)).is_none());
    }

    #[test]
    fn who_finds_the_lock_taken_draws_by_weight_and_does_not_wait() {
        const DRAWS: usize = 70_000;
        let ties = Ties::new(4);
        let _held = ties.rounds.lock().unwrap();
        let (mut rng, mut counts) = (Rng::new(1), [0_usize; 4]);
        for _ in 0..DRAWS {
            // The first has more to do than the others.
            let loads = idle(&[9, 5, 1, 1]).map(|load| Load { cost: (load.endpoint == 0).into(), ..load });
            counts[ties.least(loads, &mut rng).unwrap().endpoint as usize] += 1;
        }
        // The largest standard deviation is sqrt(70,000 · 5/7 · 2/7) = 120; four of these.
        for (count, expected) in counts.iter().zip([0, 50_000, 10_000, 10_000]) {
            assert!(count.abs_diff(expected) < 480, "{counts:?}");
        }
        assert_eq!(counts[0], 0);
    }
}
