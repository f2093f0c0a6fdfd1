//! Weighted turns in constant time.
//!
//! Servers stand side by side, each as long as its weight, and turn `t` goes to the one at the place `t · φ` of the
//! whole length, without its whole part, where `φ` is the golden ratio: such places spread more evenly than any others
//! (Weyl, 1916; Knuth, volume 3, section 6.4), so that after any number of turns each server has had its share give or
//! take a few. Servers of equal weight just take turns.

use lb_api::pick::Places;

/// The golden ratio without its whole part, of 2^64.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

#[derive(Debug)]
pub(crate) enum Schedule {
    /// Servers of equal weight.
    Equal(Box<[u32]>),
    Weighted(Places),
}

impl Schedule {
    /// None where no server has a weight.
    pub(crate) fn new(weights: &[u64]) -> Option<Self> {
        let mut some = (0..).zip(weights).filter(|(_, weight)| **weight > 0);
        let (_, first) = some.clone().next()?;
        if some.all(|(_, weight)| weight == first) {
            let members = (0..).zip(weights).filter(|(_, weight)| **weight > 0).map(|(server, _)| server);
            return Some(Self::Equal(members.collect()));
        }
        Some(Self::Weighted(Places::new(weights.iter().copied())))
    }

    /// The server whose turn it is.
    #[inline]
    pub(crate) fn at(&self, turn: u64) -> usize {
        match self {
            Self::Equal(members) => members[(turn % members.len() as u64) as usize] as usize,
            Self::Weighted(places) => {
                let part = turn.wrapping_mul(GOLDEN);
                places.at(((u128::from(part) * u128::from(places.total())) >> 64) as u64)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(weights: &[u64], n: u64) -> Vec<usize> {
        let schedule = Schedule::new(weights).unwrap();
        (0..n).map(|turn| schedule.at(turn)).collect()
    }

    #[test]
    fn equal_servers_take_turns() {
        assert_eq!(turns(&[7, 7, 7], 7), [0, 1, 2, 0, 1, 2, 0]);
        assert_eq!(turns(&[0, 7, 0, 7], 3), [1, 3, 1]);
    }

    #[test]
    fn after_any_number_of_turns_each_has_had_its_share_give_or_take_a_few() {
        for weights in
            [&[5, 1, 1][..], &[1, 2, 3, 4, 10, 100], &[1000, 999, 1], &[1, 1_000_000], &[3, 0, 1 << 40]]
        {
            let total: u64 = weights.iter().sum();
            let mut had = vec![0; weights.len()];
            for (n, server) in (1..).zip(turns(weights, 20_000)) {
                had[server] += 1;
                for (had, weight) in had.iter().zip(weights) {
                    let share = n as f64 * *weight as f64 / total as f64;
                    assert!(
                        (f64::from(*had) - share).abs() < 4.0,
                        "{had} for {share} after {n} of {weights:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn without_weights_there_are_no_turns() {
        assert!(Schedule::new(&[0, 0]).is_none() && Schedule::new(&[]).is_none());
    }
}
