//! New generations for names whose addresses have changed: the first at once, later ones after growing pauses.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Between two of them, where the second is wanted soon; then twice as long each time, up to the longest.
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);
/// By then most of what an older generation had on its way has ended.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Names whose addresses have changed, and when the next generation may start for them.
#[derive(Debug, Default)]
pub(super) struct Renewals {
    /// The addresses of each name that has changed.
    wanted: BTreeMap<String, Vec<IpAddr>>,
    /// When the last one was begun.
    last: Option<Instant>,
    pause: Duration,
    at: Option<Instant>,
}

impl Renewals {
    /// A name has these addresses now.
    pub(super) fn want(&mut self, name: &str, addresses: &[IpAddr], now: Instant) {
        self.wanted.insert(name.to_owned(), addresses.to_vec());
        let not_before = self.last.map_or(now, |last| last + self.pause);
        self.at.get_or_insert(not_before.max(now));
    }

    /// When there is one to be begun.
    pub(super) fn due(&self) -> Option<Instant> {
        self.at
    }

    /// Why one is to be begun now, if it is.
    pub(super) fn take(&mut self, now: Instant) -> Option<String> {
        self.at.filter(|at| now >= *at)?;
        let is_soon = self.last.is_some_and(|last| now < last + 2 * LONGEST_PAUSE);
        self.pause = if is_soon { (2 * self.pause).min(LONGEST_PAUSE) } else { SHORTEST_PAUSE };
        self.last = Some(now);
        // Should it fail, it is wanted still.
        self.at = Some(now + self.pause);
        let list = |(name, addresses): (&String, &Vec<IpAddr>)| {
            let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
            format!("\"{name}\" has the addresses {} now", addresses.join(", "))
        };
        Some(self.wanted.iter().map(list).collect::<Vec<_>>().join("; "))
    }

    /// A generation serves that has looked names up itself.
    pub(super) fn forget(&mut self) {
        self.wanted.clear();
        self.at = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    #[test]
    fn the_first_is_had_at_once_and_later_ones_after_pauses_that_grow_and_end() {
        let (mut renewals, mut now) = (Renewals::default(), Instant::now());
        let mut pauses = Vec::new();
        for _ in 0..8 {
            renewals.want("a", &[ADDRESS], now);
            let due = renewals.due().expect("it is wanted");
            pauses.push((due - now).as_secs());
            now = due;
            assert_eq!(renewals.take(now).as_deref(), Some("\"a\" has the addresses 127.0.0.1 now"));
            renewals.forget();
            assert_eq!((renewals.due(), renewals.take(now)), (None, None));
        }
        assert_eq!(pauses, [0, 1, 2, 4, 8, 16, 30, 30]);
        now += 2 * LONGEST_PAUSE;
        renewals.want("a", &[ADDRESS], now);
        assert_eq!(renewals.due(), Some(now));
    }

    #[test]
    fn one_that_fails_is_tried_again() {
        let (mut renewals, now) = (Renewals::default(), Instant::now());
        renewals.want("b", &[], now);
        renewals.want("a", &[ADDRESS, ADDRESS], now);
        let why = "\"a\" has the addresses 127.0.0.1, 127.0.0.1 now; \"b\" has the addresses  now";
        assert_eq!(renewals.take(now).as_deref(), Some(why));
        assert_eq!(renewals.take(now), None);
        assert_eq!(renewals.due(), Some(now + SHORTEST_PAUSE));
        assert_eq!(renewals.take(now + SHORTEST_PAUSE).as_deref(), Some(why));
    }
}
