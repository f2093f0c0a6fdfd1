//! Finds the server at a place of a line on which each server is as long as its weight.
//!
//! nginx walks the list and subtracts. Here a table of about as many entries as there are servers says between which
//! two the answer lies, and a binary search finds it there: one step for equal weights, about one for most others, and
//! never more than the logarithm of their number.

/// The line.
#[derive(Debug)]
pub struct Places {
    /// Where each server ends.
    ends: Box<[u64]>,
    /// For each stretch of `1 << shift` places, the server at its first; one more entry than stretches.
    guide: Box<[u32]>,
    shift: u32,
}

impl Places {
    /// A line of servers with these weights, whose sum fits in 64 bits. A weight of 0 has no place. O(servers).
    pub fn new(weights: impl Iterator<Item = u64>) -> Self {
        let mut total = 0_u64;
        let ends: Box<[u64]> = weights
            .map(|weight| {
                total = total.saturating_add(weight);
                total
            })
            .collect();
        let shift = (total / ends.len().max(1) as u64).max(1).ilog2();
        let mut server = 0;
        let guide = (0..(total >> shift) + 2)
            .map(|stretch| {
                while ends.get(server).is_some_and(|end| *end <= stretch << shift) {
                    server += 1;
                }
                server as u32
            })
            .collect();
        Self { ends, guide, shift }
    }

    /// The sum of all weights: places are below it.
    #[inline]
    pub fn total(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    /// The server at this place. One step for equal weights, never more than the logarithm of their number.
    ///
    /// # Panics
    /// The place is not below the total.
    #[inline]
    pub fn at(&self, place: u64) -> usize {
        let stretch = (place >> self.shift) as usize;
        let (first, last) = (self.guide[stretch] as usize, self.guide[stretch + 1] as usize);
        if first == last {
            return first;
        }
        first + self.ends[first..last].partition_point(|end| *end <= place)
    }
}

#[cfg(test)]
mod tests {
    use crate::Rng;

    use super::*;

    /// As nginx has it.
    fn walked(weights: &[u64], mut place: u64) -> usize {
        let mut server = 0;
        while place >= weights[server] {
            place -= weights[server];
            server += 1;
        }
        server
    }

    #[test]
    fn finds_what_a_walk_finds() {
        let mut rng = Rng::new(5);
        for round in 0..300 {
            let n = 1 + rng.below(40) as usize;
            let most = [1, 4, 1000, 1 << 40][round % 4];
            let mut weights: Vec<u64> = (0..n).map(|_| rng.below(most + 1)).collect();
            if round % 3 == 0 {
                // One that has nearly all, among many that have next to nothing.
                weights[rng.below(n as u64) as usize] = 65_535;
            }
            let places = Places::new(weights.iter().copied());
            assert_eq!(places.total(), weights.iter().sum::<u64>());
            let total = places.total();
            let edges = weights.iter().scan(0, |end, weight| {
                *end += weight;
                Some(*end)
            });
            let edges: Vec<u64> = edges.flat_map(|end| [end.saturating_sub(1), end]).collect();
            let drawn: Vec<u64> = (0..200).map(|_| rng.below(total)).collect();
            for place in edges.into_iter().chain(drawn).filter(|place| *place < total) {
                assert_eq!(places.at(place), walked(&weights, place), "{place} of {weights:?}");
            }
        }
    }

    #[test]
    fn equal_weights_need_no_search() {
        let places = Places::new([1; 1000].into_iter());
        assert!((0..1000).all(|place| places.guide[place] as usize == place));
    }

    #[test]
    fn no_weights_make_no_places() {
        assert_eq!(Places::new([0, 0].into_iter()).total(), 0);
        assert_eq!(Places::new(std::iter::empty()).total(), 0);
    }
}
