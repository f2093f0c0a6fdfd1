//! An endpoint as a hash looks at it: with the weight that its place was made from.

use lb_api::{Endpoints, Live};

#[derive(Debug)]
pub(crate) struct Server {
    live: Live,
    /// As configured, in the fixed point of [`Live::effective_weight`].
    weight: u32,
}

/// Which of the endpoints may be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// Those that are available, each with as many of its keys as its effective weight has of its configured one.
    Share,
    /// All that are available.
    Any,
}

impl Server {
    pub(crate) fn all(endpoints: Endpoints<'_>) -> Box<[Self]> {
        endpoints.iter().map(|e| Self { live: e.live(), weight: e.weight() << 16 }).collect()
    }

    /// Whether this server takes requests of this hash. Of two effective weights the larger one takes all that the
    /// smaller takes, so that slow start gives back the same keys again, one after the other.
    #[inline]
    pub(crate) fn takes(&self, hash: u32, rule: Rule) -> bool {
        self.live.is_available() && (rule == Rule::Any || self.has_share(hash))
    }

    #[inline]
    fn has_share(&self, hash: u32) -> bool {
        let effective = self.live.effective_weight();
        effective >= self.weight
            || (u64::from(scattered(hash)) * u64::from(self.weight)) >> 32 < u64::from(effective)
    }

    pub(crate) fn live(&self) -> Live {
        self.live
    }
}

/// Other bits than those that chose the place (the end of MurmurHash3, which spreads every bit over all).
#[inline]
fn scattered(mut hash: u32) -> u32 {
    hash ^= hash >> 16;
    hash = hash.wrapping_mul(0x85eb_ca6b);
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(0xc2b2_ae35);
    hash ^ (hash >> 16)
}
