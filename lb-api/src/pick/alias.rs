//! The alias method: a weighted draw by one look into a table (Walker 1977; made as Vose 1991 does, in whole numbers).

/// A slot of the table in one word, so that it can be replaced under those who read it: a threshold in the upper half, an
/// endpoint in the lower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot(
    /// The word.
    pub u64,
);

impl Slot {
    /// `share` of `whole` belongs to the slot's own endpoint, the rest to `other`.
    fn new(share: u128, whole: u128, other: usize) -> Self {
        let threshold = ((share << 32) / whole).min(u32::MAX.into()) as u64;
        Self(threshold << 32 | other as u64)
    }

    /// The endpoint for these 32 random bits, in the slot of endpoint `own`.
    #[inline]
    pub fn draw(self, own: usize, bits: u32) -> usize {
        if u64::from(bits) < self.0 >> 32 { own } else { self.other() }
    }

    fn other(self) -> usize {
        (self.0 & u64::from(u32::MAX)) as usize
    }
}

/// A slot for each endpoint; none at all where no endpoint has a weight.
pub fn table(weights: impl Iterator<Item = u32>) -> Option<Vec<Slot>> {
    let weights: Vec<u128> = weights.map(u128::from).collect();
    let (n, whole) = (weights.len() as u128, weights.iter().sum::<u128>());
    if whole == 0 {
        return None;
    }
    // In units in which all slots together hold `n` wholes, and so each holds one.
    let mut left: Vec<u128> = weights.iter().map(|weight| weight * n).collect();
    // A slot of its own is full; it names itself for the last of the 2^32 cases too.
    let mut slots: Vec<Slot> = (0..weights.len()).map(|own| Slot::new(whole, whole, own)).collect();
    let (mut small, mut large): (Vec<usize>, Vec<usize>) =
        (0..weights.len()).partition(|idx| left[*idx] < whole);
    while let (Some(few), Some(many)) = (small.pop(), large.pop()) {
        slots[few] = Slot::new(left[few], whole, many);
        left[many] -= whole - left[few];
        if left[many] < whole { small.push(many) } else { large.push(many) }
    }
    Some(slots)
}

#[cfg(test)]
mod tests {
    use crate::Rng;

    use super::*;

    /// Sum of all slots for each endpoint. Every slot has the same chance.
    fn shares(weights: &[u32]) -> Vec<f64> {
        let slots = table(weights.iter().copied()).unwrap();
        let mut shares = vec![0.0; weights.len()];
        for (own, slot) in slots.iter().enumerate() {
            let threshold = (slot.0 >> 32) as f64 / 2f64.powi(32);
            shares[own] += threshold / weights.len() as f64;
            shares[slot.other()] += (1.0 - threshold) / weights.len() as f64;
        }
        shares
    }

    #[test]
    fn shares_are_the_weights_to_one_part_in_a_thousand_million() {
        let mut rng = Rng::new(3);
        for n in [1, 2, 3, 7, 50, 1000] {
            for most in [1, 2, 1000, u32::MAX] {
                let weights: Vec<u32> =
                    (0..n).map(|_| 1 + rng.below(most.into()) as u32 % most.max(2)).collect();
                let total: f64 = weights.iter().copied().map(f64::from).sum();
                for (weight, share) in weights.iter().zip(shares(&weights)) {
                    let expected = f64::from(*weight) / total;
                    assert!(
                        (share - expected).abs() < 1e-9,
                        "{share} for {expected} with weights {weights:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn the_example_of_the_docs_comes_out() {
        let slots = table([5, 1, 1].into_iter()).unwrap();
        let three_sevenths = ((3u128 << 32) / 7) as u64;
        assert_eq!(slots[1..], [Slot(three_sevenths << 32), Slot(three_sevenths << 32)]);
        assert_eq!(slots[0].other(), 0);
    }

    #[test]
    fn a_weight_of_0_is_never_drawn() {
        let slots = table([0, 3, 0].into_iter()).unwrap();
        for (own, slot) in slots.into_iter().enumerate() {
            assert_eq!([slot.draw(own, 0), slot.draw(own, u32::MAX)], [1, 1]);
        }
        assert_eq!(table([0, 0].into_iter()), None);
        assert_eq!(table(std::iter::empty()), None);
    }
}
