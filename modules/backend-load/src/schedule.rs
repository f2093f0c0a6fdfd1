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
    /// Servers of equal weight, in ascending order, and which of them has turn 0.
    Equal(Box<[u32]>, u64),
    Weighted(Places),
}

impl Schedule {
    /// None where no server has a weight.
    pub(crate) fn new(weights: &[u64]) -> Option<Self> {
        let mut some = (0..).zip(weights).filter(|(_, weight)| **weight > 0);
        let (_, first) = some.clone().next()?;
        if some.all(|(_, weight)| weight == first) {
            let members = (0..).zip(weights).filter(|(_, weight)| **weight > 0).map(|(server, _)| server);
            return Some(Self::Equal(members.collect(), 0));
        }
        Some(Self::Weighted(Places::new(weights.iter().copied())))
    }

    /// The same, going on at this turn with this server, or the next one where it has no weight. Where servers have turns by
    /// weight, any stretch of turns is as good.
    pub(crate) fn going_on(self, turn: u64, next: usize) -> Self {
        match self {
            Self::Equal(members, _) => {
                let n = members.len() as u64;
                let place = members.partition_point(|server| (*server as usize) < next) as u64;
                Self::Equal(members, (place + n - turn % n) % n)
            }
            weighted => weighted,
        }
    }

    /// The servers from this turn on, each once; where turns are by weight, none.
    pub(crate) fn from(&self, turn: u64) -> impl Iterator<Item = usize> + '_ {
        let n = match self {
            Self::Equal(members, _) => members.len() as u64,
            Self::Weighted(_) => 0,
        };
        (0..n).map(move |step| self.at(turn.wrapping_add(step)))
    }

    /// The server whose turn it is.
    #[inline]
    pub(crate) fn at(&self, turn: u64) -> usize {
        match self {
            Self::Equal(members, first) => {
                members[(turn.wrapping_add(*first) % members.len() as u64) as usize] as usize
            }
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
    fn equal_servers_go_on_where_others_stood() {
        let before = Schedule::new(&[7, 7, 7, 7]).unwrap();
        assert_eq!(before.from(6).collect::<Vec<_>>(), [2, 3, 0, 1]);
        let after = Schedule::new(&[7, 0, 0, 7, 7]).unwrap().going_on(6, 2);
        assert_eq!(after.from(6).collect::<Vec<_>>(), [3, 4, 0]);
        let after = Schedule::new(&[7, 7]).unwrap().going_on(6, 2);
        assert_eq!(after.from(6).collect::<Vec<_>>(), [0, 1], "behind the last comes the first");
        assert_eq!(Schedule::new(&[1, 2]).unwrap().from(6).count(), 0);
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
