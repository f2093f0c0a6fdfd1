//! Choices that follow from an input, so that an input that fails once always fails.

/// Draws numbers from the bytes of an input.
#[derive(Clone, Debug)]
pub(super) struct Draws(u64);

impl Draws {
    pub(super) fn from(data: &[u8]) -> Self {
        // FNV-1a.
        let hash = data.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
        Self(hash | 1)
    }

    /// Xorshift64*.
    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `n`, which is not 0.
    pub(super) fn below(&mut self, n: usize) -> usize {
        ((self.next() >> 32) % n as u64) as usize
    }
}

/// Cuts an input into pieces as a network may: single bytes, small pieces, or a few large ones.
pub(super) fn pieces(data: &[u8]) -> Vec<&[u8]> {
    let mut draws = Draws::from(data);
    let longest = [1, 7, data.len().max(1)][draws.below(3)];
    let (mut pieces, mut rest) = (Vec::new(), data);
    while !rest.is_empty() {
        let (piece, behind) = rest.split_at(1 + draws.below(longest.min(rest.len())));
        pieces.push(piece);
        rest = behind;
    }
    pieces
}
