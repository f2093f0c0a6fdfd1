//! Endpoints as the configuration has them, and their live numbers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::Ordering::{Acquire, Relaxed};
use std::time::Duration;

use crate::export::view::{Strided, View};
use crate::wire;

/// All endpoints of a balancer in order. An endpoint's index in here is its name in every call, and stays the same for the
/// balancer's life whatever the endpoint's health. The next instance may have another index for it: [`Endpoint::id`] stays.
#[derive(Clone, Copy)]
pub struct Endpoints<'a> {
    pub(crate) slice: Strided<'a, wire::Endpoint>,
}

/// One endpoint. Text is valid for the time of `build`; what is to be kept must be copied. [`Live`] can be kept.
#[derive(Clone, Copy)]
pub struct Endpoint<'a> {
    view: View<'a, wire::Endpoint>,
    live: Live,
}

/// The live numbers of one endpoint: written by the host, read by a balancer at any time without a call. Reading one
/// costs a load. They are read one by one, so that two of them need not be of the same moment.
///
/// They are its endpoint's while a balancer that was built with them lives. Afterwards they mean nothing: down, weight 0 and none in
/// flight, or another endpoint's numbers. A balancer reads those of its own build, never those of
/// [`previous`](crate::BuildCx::previous).
#[derive(Clone, Copy, Debug)]
pub struct Live(&'static wire::Counters);

/// The live numbers of a cluster, for one balancer: they count the endpoints that it was built with.
#[derive(Clone, Copy, Debug)]
pub struct Cluster(pub(crate) &'static wire::ClusterState);

/// Whether an endpoint takes requests, and why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum State {
    /// It takes requests.
    Available,
    /// Active health checks fail. Also any state that this version does not know.
    Down,
    /// Ejected for what its traffic showed.
    Ejected,
    /// Marked by the operator: finishes what runs, takes nothing new but requests of its sessions, which the host alone brings. A
    /// balancer never answers it.
    Draining,
}

/// The bits of `max_in_flight` that are the limit. The other one is the host's mark of an endpoint on trial.
const LIMIT_BITS: u32 = !(1 << 31);

/// A weight of 1 in the fixed point of [`Live::effective_weight`].
pub const WEIGHT_ONE: u32 = 1 << 16;

impl<'a> Endpoints<'a> {
    /// How many there are; at least 1, whatever their health.
    #[expect(clippy::len_without_is_empty, reason = "there is always one")]
    pub fn len(self) -> usize {
        self.slice.len()
    }

    /// The endpoint with this index.
    ///
    /// # Panics
    /// Where there is none.
    pub fn get(self, idx: usize) -> Endpoint<'a> {
        assert!(idx < self.len(), "endpoint {idx} of {}", self.len());
        // `build` does not start before each element has been found to be readable.
        Endpoint::new(self.slice.get(idx).expect("checked before build")).expect("checked before build")
    }

    /// All of them, in order.
    pub fn iter(self) -> impl ExactSizeIterator<Item = Endpoint<'a>> + use<'a> {
        (0..self.len()).map(move |idx| self.get(idx))
    }

    /// The live numbers of all, in order: what most balancers keep.
    pub fn live(self) -> Box<[Live]> {
        self.iter().map(Endpoint::live).collect()
    }

    /// Whether every element is as long as ours and has counters.
    pub(crate) fn readable(self) -> bool {
        (0..self.len()).all(|idx| self.slice.get(idx).and_then(Endpoint::new).is_some())
    }
}

impl<'a> Endpoint<'a> {
    fn new(view: View<'a, wire::Endpoint>) -> Option<Self> {
        Some(Self { view, live: Live(View::counters(view)?) })
    }

    /// Stable over reloads and restarts: made of cluster, URL as written, occurrence of that URL, and address. The key
    /// for whatever is learned about an endpoint.
    pub fn id(self) -> u64 {
        self.view.id
    }

    /// The URL as written in the configuration.
    pub fn url(self) -> &'a str {
        self.view.text(|e| e.url)
    }

    /// Host name or address as written, without brackets; the path of a Unix socket, whose port is 0.
    pub fn name(self) -> &'a str {
        self.view.text(|e| e.name)
    }

    /// Port as written or the scheme's default.
    pub fn port(self) -> u16 {
        self.view.port as u16
    }

    /// The resolved address, where it is known.
    pub fn address(self) -> Option<SocketAddr> {
        socket_addr(&self.view.address)
    }

    /// Weight as configured, 1 to 65,535. [`Live::effective_weight`] is the weight in force now.
    pub fn weight(self) -> u32 {
        self.view.weight
    }

    /// Metadata pairs in the order of the file.
    pub fn metadata(self) -> impl Iterator<Item = (&'a str, &'a str)> {
        let pairs = self.view.slice(|e| (e.metadata, e.n_metadata));
        pairs.iter().map(View::of_pair).map(|pair| (pair.text(|p| p.name), pair.text(|p| p.value)))
    }

    /// Its live numbers.
    pub fn live(self) -> Live {
        self.live
    }
}

impl Live {
    /// Whether it takes requests now, or why not.
    pub fn state(self) -> State {
        match self.0.state.load(Relaxed) {
            wire::STATE_AVAILABLE => State::Available,
            wire::STATE_EJECTED => State::Ejected,
            wire::STATE_DRAINING => State::Draining,
            _ => State::Down,
        }
    }

    /// Whether it takes requests now. The host declines any other endpoint and asks again.
    #[inline]
    pub fn is_available(self) -> bool {
        self.0.state.load(Relaxed) == wire::STATE_AVAILABLE
    }

    /// The weight in force, with slow start and run-time changes applied, in 16.16 fixed point: [`WEIGHT_ONE`] is a
    /// weight of 1. May be 0.
    #[inline]
    pub fn effective_weight(self) -> u32 {
        self.0.effective_weight.load(Relaxed)
    }

    /// Requests on their way to it, from the accepted answer to the end of the try.
    #[inline]
    pub fn in_flight(self) -> u32 {
        self.0.in_flight.load(Relaxed)
    }

    /// Requests on their way to it from other generations of the process, draining or newer, as last reported.
    #[inline]
    pub fn in_flight_older(self) -> u32 {
        self.0.in_flight_older.load(Relaxed)
    }

    /// Requests on their way to it from all generations of the process. Its limit is for these.
    #[inline]
    pub fn in_flight_of_all(self) -> u32 {
        self.in_flight().saturating_add(self.in_flight_older())
    }

    /// The same, if there is room for one more; `None` if the endpoint is full. Cheaper than asking [`is_full`](Self::is_full)
    /// as well.
    #[inline]
    pub fn in_flight_if_room(self) -> Option<u32> {
        let in_flight = u64::from(self.in_flight()) + u64::from(self.in_flight_older());
        // No limit is 0, and becomes the largest number, so that a scan has no branch for it.
        let last = self.limit().wrapping_sub(1);
        (in_flight <= u64::from(last)).then_some(in_flight as u32)
    }

    /// Maximum concurrent requests to it, if there is a limit. An endpoint on trial after an ejection takes one request at a
    /// time, whatever this says; the host declines the others.
    pub fn max_in_flight(self) -> Option<u32> {
        Some(self.limit()).filter(|max| *max > 0)
    }

    /// Whether its limit is reached.
    #[inline]
    pub fn is_full(self) -> bool {
        let max = self.limit();
        max > 0 && self.in_flight_of_all() >= max
    }

    /// 0 for no limit.
    #[inline]
    fn limit(self) -> u32 {
        self.0.max_in_flight.load(Relaxed) & LIMIT_BITS
    }

    /// Smoothed time to the response headers, once something is known.
    pub fn latency(self) -> Option<Duration> {
        Some(self.0.latency_ns.load(Relaxed)).filter(|ns| *ns > 0).map(Duration::from_nanos)
    }
}

impl Cluster {
    pub(crate) fn new(cx: View<'_, wire::BuildCx>) -> Option<Self> {
        View::state(cx).map(Self)
    }

    /// Rises after every change of an endpoint's state or effective weight. A balancer that makes a table from these
    /// reads the epoch *before* it makes the table, keeps it, and makes the table anew when the epoch has moved on.
    #[inline]
    pub fn epoch(self) -> u64 {
        self.0.epoch.load(Acquire)
    }

    /// How many endpoints are available now.
    #[inline]
    pub fn n_available(self) -> usize {
        self.0.n_available.load(Relaxed) as usize
    }
}

/// The address and port, where there is one.
pub(crate) fn socket_addr(address: &wire::Address) -> Option<SocketAddr> {
    let b = address.bytes;
    let ip = match address.family {
        wire::ADDRESS_V4 => IpAddr::V4(Ipv4Addr::new(b[0], b[1], b[2], b[3])),
        wire::ADDRESS_V6 => IpAddr::V6(Ipv6Addr::from(b)),
        _ => return None,
    };
    Some(SocketAddr::new(ip, address.port))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, AtomicU64};

    use super::*;

    fn live(in_flight: u32, older: u32, max: u32) -> Live {
        let counters = wire::Counters {
            size: size_of::<wire::Counters>() as u32,
            state: AtomicU32::new(wire::STATE_AVAILABLE),
            effective_weight: AtomicU32::new(WEIGHT_ONE),
            in_flight: AtomicU32::new(in_flight),
            in_flight_older: AtomicU32::new(older),
            max_in_flight: AtomicU32::new(max),
            latency_ns: AtomicU64::new(0),
        };
        Live(Box::leak(Box::new(counters)))
    }

    #[test]
    fn a_limit_is_for_all_generations_together() {
        for (in_flight, older, max, room) in [
            (0, 0, 0, Some(0)),
            (3, 4, 0, Some(7)),
            (3, 4, 8, Some(7)),
            (3, 4, 7, None),
            (9, 0, 7, None),
            (0, 0, 1, Some(0)),
            (0, 1, 1, None),
            (LIMIT_BITS - 2, 1, LIMIT_BITS, Some(LIMIT_BITS - 1)),
            (u32::MAX, u32::MAX, LIMIT_BITS, None),
        ] {
            let live = live(in_flight, older, max);
            assert_eq!(live.in_flight_if_room(), room, "{in_flight} and {older} of {max}");
            assert_eq!(live.is_full(), room.is_none());
            assert_eq!(live.in_flight_of_all(), in_flight.saturating_add(older));
        }
    }

    #[test]
    fn the_mark_of_an_endpoint_on_trial_is_no_part_of_its_limit() {
        for max in [0, 1, 7, 8, LIMIT_BITS] {
            let (plain, on_trial) = (live(3, 4, max), live(3, 4, max | !LIMIT_BITS));
            assert_eq!(on_trial.max_in_flight(), plain.max_in_flight());
            assert_eq!(on_trial.is_full(), plain.is_full());
            assert_eq!(on_trial.in_flight_if_room(), plain.in_flight_if_room());
        }
    }
}
