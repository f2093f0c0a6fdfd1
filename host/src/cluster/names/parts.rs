//! The addresses of a name: IPv4 and IPv6 are two parts, looked up independently and merged here.
//!
//! | latest look-up of a family | its part of the name's addresses |
//! |---|---|
//! | found addresses | these |
//! | says that the name has none | none; but the last ones while the other family has none either |
//! | failed, or is under way | the last ones |
//!
//! So a look-up that fails takes no addresses away, and a name server that forgets a name takes no servers away.

use std::net::IpAddr;
use std::time::Duration;

use super::error::ResolveError;
use crate::config::Families;

/// Maximum addresses of one name. More are a mistake, or a broken name server.
pub(crate) const MAX_ADDRESSES: usize = 256;

/// A family of addresses. The type of its DNS record is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    /// A
    V4,
    /// AAAA
    V6,
}

/// How a look-up of one family ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum LookupEnd {
    /// It found addresses.
    Has {
        addresses: Vec<IpAddr>,
        valid_for: Duration,
        /// Index of the name that has them among the candidates of the search list.
        depth: usize,
    },
    /// The name server says that there are none.
    Without(ResolveError),
    /// It failed.
    Failed(ResolveError),
}

/// Both families.
#[derive(Debug)]
pub(super) struct Parts {
    v4: FamilyPart,
    v6: FamilyPart,
    /// The reason for no address that was logged last.
    logged: Option<ResolveError>,
}

/// One family.
#[derive(Debug, Default)]
struct FamilyPart {
    latest: LatestLookup,
    last: Vec<IpAddr>,
    /// [`LookupEnd::Has::depth`] of the last addresses; `None` where an earlier generation handed them over.
    depth: Option<usize>,
    /// The reason for keeping the last addresses that was logged last.
    logged: Option<ResolveError>,
}

#[derive(Debug, Default)]
enum LatestLookup {
    /// This family is not looked up.
    Unasked,
    /// The first look-up is under way.
    #[default]
    Pending,
    Has(Duration),
    Without(ResolveError),
    Failed(ResolveError),
}

/// The log line of a look-up.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum News {
    /// Nothing: the same as before.
    Nothing,
    /// It succeeds again.
    Again,
    /// The last addresses are kept, for this reason.
    Kept(ResolveError),
    /// The name has no address, for this reason.
    NoAddress(ResolveError),
}

impl Family {
    pub(super) const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// As in the log.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    /// Whether it is looked up.
    pub(super) fn is_of(self, families: Families) -> bool {
        matches!(
            (self, families),
            (_, Families::Any) | (Self::V4, Families::Ipv4) | (Self::V6, Families::Ipv6)
        )
    }

    fn has(self, address: IpAddr) -> bool {
        address.is_ipv4() == (self == Self::V4)
    }
}

impl Parts {
    /// With addresses that an earlier generation knew.
    pub(super) fn knowing(known: &[IpAddr]) -> Self {
        let part = |family: Family| FamilyPart {
            last: known.iter().copied().filter(|address| family.has(*address)).collect(),
            ..FamilyPart::default()
        };
        Self { v4: part(Family::V4), v6: part(Family::V6), logged: None }
    }

    /// From now on only these families count.
    pub(super) fn ask(&mut self, families: Families) {
        for family in Family::ALL.into_iter().filter(|family| !family.is_of(families)) {
            *self.part(family) = FamilyPart { latest: LatestLookup::Unasked, ..FamilyPart::default() };
        }
    }

    /// Records the result of a look-up.
    pub(super) fn record(&mut self, family: Family, outcome: &LookupEnd) {
        let part = self.part(family);
        match outcome {
            LookupEnd::Has { addresses, valid_for, depth } => {
                part.latest = LatestLookup::Has(*valid_for);
                part.last.clone_from(addresses);
                part.depth = Some(*depth);
            }
            LookupEnd::Without(e) => part.latest = LatestLookup::Without(e.clone()),
            LookupEnd::Failed(e) => part.latest = LatestLookup::Failed(e.clone()),
        }
        if self.is_any_fresh() {
            for part in [&mut self.v4, &mut self.v6] {
                if matches!(part.latest, LatestLookup::Without(_)) {
                    part.last.clear();
                }
            }
        }
    }

    /// The log line of a look-up that was recorded.
    pub(super) fn news(&mut self, family: Family) -> News {
        let nowhere = match self.merged() {
            Some(Err(e)) => Some(e),
            Some(Ok(_)) | None => None,
        };
        let is_again = nowhere.is_none() && self.logged.take().is_some();
        let part = self.part(family);
        match &part.latest {
            LatestLookup::Has(_) => {
                if part.logged.take().is_some() || is_again {
                    return News::Again;
                }
            }
            LatestLookup::Without(e) | LatestLookup::Failed(e) if !part.last.is_empty() => {
                if part.logged.as_ref() != Some(e) {
                    part.logged = Some(e.clone());
                    return News::Kept(e.clone());
                }
            }
            _ => {
                if let Some(e) = nowhere.filter(|e| self.logged.as_ref() != Some(e)) {
                    self.logged = Some(e.clone());
                    return News::NoAddress(e);
                }
            }
        }
        News::Nothing
    }

    /// All addresses, or why there are none. `None` while that is undecided.
    pub(super) fn merged(&self) -> Option<Result<Vec<IpAddr>, ResolveError>> {
        let parts = [&self.v4, &self.v6];
        let used = parts.iter().filter(|part| !part.last.is_empty());
        // Addresses of two names of the search list do not belong together. It is unknown which name addresses of an earlier
        // generation are of. So they displace none, and stay until their family is looked up.
        let depth = used.clone().filter_map(|part| part.depth).min();
        let is_of_name = |part: &&&FamilyPart| part.depth.is_none() || part.depth == depth;
        let addresses: Vec<IpAddr> = used.filter(is_of_name).flat_map(|part| &part.last).copied().collect();
        if !addresses.is_empty() {
            return Some(Ok(addresses));
        }
        self.is_decided().then(|| {
            let failed = parts.iter().find_map(|part| match &part.latest {
                LatestLookup::Failed(e) => Some(e),
                _ => None,
            });
            let without = parts.iter().find_map(|part| match &part.latest {
                LatestLookup::Without(e) => Some(e),
                _ => None,
            });
            Err(failed.or(without).cloned().unwrap_or_else(ResolveError::no_address))
        })
    }

    /// Whether all first look-ups are over.
    pub(super) fn is_decided(&self) -> bool {
        [&self.v4, &self.v6].iter().all(|part| !matches!(part.latest, LatestLookup::Pending))
    }

    /// How long the other family's addresses are valid, if it has any.
    pub(super) fn other_valid_for(&self, family: Family) -> Option<Duration> {
        let other = match family {
            Family::V4 => &self.v6,
            Family::V6 => &self.v4,
        };
        match other.latest {
            LatestLookup::Has(valid_for) => Some(valid_for),
            _ => None,
        }
    }

    fn is_any_fresh(&self) -> bool {
        [&self.v4, &self.v6].iter().any(|part| matches!(part.latest, LatestLookup::Has(_)))
    }

    fn part(&mut self, family: Family) -> &mut FamilyPart {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const TWO: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));
    const SIX: IpAddr = IpAddr::V6(std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 6));

    fn has(addresses: &[IpAddr]) -> LookupEnd {
        at_depth(addresses, 0)
    }

    fn at_depth(addresses: &[IpAddr], depth: usize) -> LookupEnd {
        LookupEnd::Has { addresses: addresses.to_vec(), valid_for: Duration::from_secs(9), depth }
    }

    fn without() -> LookupEnd {
        LookupEnd::Without(ResolveError::no_address())
    }

    fn failed() -> LookupEnd {
        LookupEnd::Failed(ResolveError::no_answer())
    }

    fn after(known: &[IpAddr], steps: &[(Family, LookupEnd)]) -> Option<Result<Vec<IpAddr>, ResolveError>> {
        let mut parts = Parts::knowing(known);
        for (family, outcome) in steps {
            parts.record(*family, outcome);
        }
        parts.merged()
    }

    use Family::{V4, V6};

    #[test]
    fn one_family_is_enough_and_is_there_as_soon_as_it_has_come() {
        assert_eq!(after(&[], &[]), None);
        assert_eq!(after(&[], &[(V4, has(&[ONE]))]), Some(Ok(vec![ONE])));
        for other in [without(), failed()] {
            assert_eq!(after(&[], &[(V4, other.clone())]), None, "the other may still come");
            assert_eq!(after(&[], &[(V4, other), (V6, has(&[SIX]))]), Some(Ok(vec![SIX])));
        }
        assert_eq!(after(&[], &[(V6, has(&[SIX])), (V4, has(&[TWO, ONE]))]), Some(Ok(vec![TWO, ONE, SIX])));
    }

    #[test]
    fn a_look_up_that_fails_takes_nothing_away() {
        let all = Some(Ok(vec![ONE, SIX]));
        assert_eq!(after(&[ONE, SIX], &[(V4, failed())]), all);
        assert_eq!(after(&[ONE, SIX], &[(V4, failed()), (V6, has(&[SIX]))]), all);
        assert_eq!(after(&[], &[(V4, has(&[ONE])), (V6, has(&[SIX])), (V4, failed()), (V6, failed())]), all);
    }

    #[test]
    fn a_family_that_has_none_any_more_goes_as_soon_as_the_other_has_some() {
        assert_eq!(after(&[ONE, SIX], &[(V6, without()), (V4, has(&[ONE]))]), Some(Ok(vec![ONE])));
        assert_eq!(after(&[ONE, SIX], &[(V4, has(&[ONE])), (V6, without())]), Some(Ok(vec![ONE])));
        // A name that is gone altogether keeps what it had, whichever answer came first.
        for (first, second) in [(V4, V6), (V6, V4)] {
            let gone = [(first, without()), (second, without())];
            assert_eq!(after(&[ONE, SIX], &gone), Some(Ok(vec![ONE, SIX])));
        }
        assert_eq!(after(&[ONE, SIX], &[(V4, without()), (V6, failed())]), Some(Ok(vec![ONE, SIX])));
    }

    #[test]
    fn addresses_of_two_names_of_the_search_list_do_not_mix() {
        assert_eq!(after(&[], &[(V4, has(&[ONE])), (V6, at_depth(&[SIX], 2))]), Some(Ok(vec![ONE])));
        assert_eq!(after(&[], &[(V4, at_depth(&[ONE], 1)), (V6, has(&[SIX]))]), Some(Ok(vec![SIX])));
    }

    /// Recalled addresses counted as those of the first search domain, and pushed out what another domain had just answered.
    #[test]
    fn addresses_of_an_earlier_generation_displace_no_fresh_ones() {
        let fresh = (V6, at_depth(&[SIX], 2));
        assert_eq!(after(&[ONE], std::slice::from_ref(&fresh)), Some(Ok(vec![ONE, SIX])));
        assert_eq!(after(&[ONE], &[fresh.clone(), (V4, failed())]), Some(Ok(vec![ONE, SIX])));
        assert_eq!(after(&[ONE], &[fresh.clone(), (V4, at_depth(&[TWO], 2))]), Some(Ok(vec![TWO, SIX])));
        assert_eq!(after(&[ONE], &[fresh.clone(), (V4, has(&[ONE]))]), Some(Ok(vec![ONE])));
        assert_eq!(after(&[ONE], &[fresh, (V4, without())]), Some(Ok(vec![SIX])));
    }

    #[test]
    fn what_failed_says_more_than_what_is_not_there() {
        assert_eq!(after(&[], &[(V4, without()), (V6, failed())]), Some(Err(ResolveError::no_answer())));
        assert_eq!(after(&[], &[(V4, without()), (V6, without())]), Some(Err(ResolveError::no_address())));
    }

    #[test]
    fn a_family_that_is_not_asked_for_does_not_count() {
        let mut parts = Parts::knowing(&[ONE, SIX]);
        parts.ask(Families::Ipv4);
        assert_eq!(parts.merged(), Some(Ok(vec![ONE])));
        parts.record(V4, &without());
        assert!(parts.is_decided());
        assert_eq!(parts.merged(), Some(Ok(vec![ONE])));
    }

    #[test]
    fn each_failure_is_news_once() {
        let mut parts = Parts::knowing(&[]);
        let mut hear = |family, outcome| {
            parts.record(family, &outcome);
            parts.news(family)
        };
        assert_eq!(hear(V4, failed()), News::Nothing);
        assert_eq!(hear(V6, without()), News::NoAddress(ResolveError::no_answer()));
        assert_eq!(hear(V4, failed()), News::Nothing);
        assert_eq!(hear(V4, has(&[ONE])), News::Again);
        assert_eq!(hear(V6, failed()), News::Nothing, "there was nothing that could be kept");
        assert_eq!(hear(V4, failed()), News::Kept(ResolveError::no_answer()));
        assert_eq!(hear(V4, failed()), News::Nothing);
        assert_eq!(hear(V4, has(&[ONE])), News::Again);
    }
}
