//! nginx's own form of the generator, which can do what [`Smooth`](crate::smooth::Smooth) cannot: choose among some.
//!
//! After a failed try nginx chooses again, among the peers that the request has not tried, by the same rule: each of those
//! gains its weight, and the chosen one loses what they gained together. So a server that fails leaves its turns to all others
//! by weight, and the turns of later requests are not what they would have been.

/// Endpoints with their current weights. Endless as an iterator, unless there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Peers {
    /// In ascending order of endpoints.
    peers: Vec<Peer>,
    /// All weights are multiplied by this.
    scale: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Peer {
    endpoint: u32,
    weight: i64,
    current: i64,
}

impl Peers {
    /// In the midst of a sequence: endpoint, weight and current weight of each, and what all weights are multiplied by.
    pub(crate) fn standing(peers: impl Iterator<Item = (u32, i64, i64)>, scale: i64) -> Self {
        let mut peers: Vec<_> =
            peers.map(|(endpoint, weight, current)| Peer { endpoint, weight, current }).collect();
        peers.sort_by_key(|peer| peer.endpoint);
        Self { peers, scale }
    }

    /// At the beginning of the sequence; endpoints in ascending order. A weight of 0 is never chosen.
    #[cfg(test)]
    pub(crate) fn new(weights: impl Iterator<Item = (u32, u32)>) -> Self {
        let weighted: Vec<(u32, u32)> = weights.filter(|(_, weight)| *weight > 0).collect();
        let divisor = weighted.iter().fold(0, |divisor, (_, weight)| gcd(divisor, *weight)).max(1);
        let peer = |(endpoint, weight): (u32, u32)| Peer {
            endpoint,
            weight: i64::from(weight / divisor),
            current: 0,
        };
        Self { peers: weighted.into_iter().map(peer).collect(), scale: 1 }
    }

    pub(crate) fn len(&self) -> u64 {
        self.peers.len() as u64
    }

    /// The debt to each of so many endpoints: its current weight as a part of the sum of all weights.
    #[cfg(test)]
    pub(crate) fn credits(&self, n_endpoints: usize) -> Vec<f64> {
        let mut credits = vec![0.0; n_endpoints];
        self.write_credits(&mut credits);
        credits
    }

    /// Writes them for the endpoints that there are here.
    pub(crate) fn write_credits(&self, credits: &mut [f64]) {
        let total = self.total().max(1) as f64;
        for peer in &self.peers {
            if let Some(credit) = credits.get_mut(peer.endpoint as usize) {
                *credit = peer.current as f64 / total;
            }
        }
    }

    /// After so many choices among all the current weights are what they were, unless choices among some came before.
    pub(crate) fn period(&self) -> u64 {
        (self.total() / self.scale).unsigned_abs()
    }

    /// The choice among those that fit.
    pub(crate) fn choose(&mut self, fits: impl Fn(u32) -> bool) -> Option<u32> {
        let (mut total, mut best): (i64, Option<(usize, i64)>) = (0, None);
        for (idx, peer) in self.peers.iter_mut().enumerate() {
            if fits(peer.endpoint) {
                total += peer.weight;
                peer.current += peer.weight;
                if best.is_none_or(|(_, most)| peer.current > most) {
                    best = Some((idx, peer.current));
                }
            }
        }
        let peer = &mut self.peers[best?.0];
        peer.current -= total;
        Some(peer.endpoint)
    }

    /// Goes on by these choices among all, which are those that it would make.
    pub(crate) fn replay(&mut self, choices: impl Iterator<Item = u32>) {
        self.step(choices, 1);
    }

    /// Goes back by these choices among all, which are the last ones.
    pub(crate) fn undo(&mut self, choices: impl Iterator<Item = u32>) {
        self.step(choices, -1);
    }

    fn step(&mut self, choices: impl Iterator<Item = u32>, sign: i64) {
        let (total, mut n_choices) = (self.total(), 0);
        for choice in choices {
            n_choices += sign;
            if let Ok(idx) = self.peers.binary_search_by_key(&choice, |peer| peer.endpoint) {
                self.peers[idx].current -= sign * total;
            }
        }
        for peer in &mut self.peers {
            peer.current += n_choices * peer.weight;
        }
    }

    fn total(&self) -> i64 {
        self.peers.iter().map(|peer| peer.weight).sum()
    }
}

impl Iterator for Peers {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        self.choose(|_| true)
    }
}

#[cfg(test)]
fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peers(weights: &[u32]) -> Peers {
        Peers::new((0..).zip(weights.iter().copied()))
    }

    #[test]
    fn is_back_at_its_beginning_after_a_period() {
        for weights in [&[5, 1, 1][..], &[40, 8, 8], &[1, 2, 3, 4], &[7]] {
            let mut generator = peers(weights);
            let n = generator.by_ref().take(peers(weights).period() as usize).count();
            assert_eq!((generator, n as u64), (peers(weights), peers(weights).period()), "{weights:?}");
        }
    }

    #[test]
    fn replaying_is_choosing() {
        let (mut chosen, mut replayed) = (peers(&[5, 3, 1]), peers(&[5, 3, 1]));
        let choices: Vec<_> = chosen.by_ref().take(5).collect();
        replayed.replay(choices.iter().copied());
        assert_eq!(chosen, replayed);
        replayed.undo(choices.into_iter());
        assert_eq!(replayed, peers(&[5, 3, 1]));
    }

    #[test]
    fn a_choice_among_some_moves_only_theirs() {
        let mut generator = peers(&[1, 1, 1]);
        assert_eq!(generator.by_ref().take(2).collect::<Vec<_>>(), [0, 1]);
        // Current weights are -1, -1, 2: of the first and the last the last has more, and is left with 1.
        assert_eq!(generator.choose(|endpoint| endpoint != 1), Some(2));
        assert_eq!(generator.take(4).collect::<Vec<_>>(), [2, 0, 1, 2]);
        assert_eq!(peers(&[1, 1]).choose(|_| false), None);
        assert_eq!(peers(&[]).next(), None);
    }
}
