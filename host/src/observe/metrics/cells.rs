//! The parts of a shard.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use super::labels::{
    CLIENT_CLASSES, ConnectionOrigin, FAILURES, ModuleCall, N_CODES, OUTCOMES, QueueEnd, STATUS_CLASSES,
    TRY_RESULTS,
};
use crate::cluster::places::PlaceTable;

/// One number of one thread.
#[derive(Debug, Default)]
pub(super) struct Cell(AtomicU64);

impl Cell {
    /// Not `fetch_add`: there is one writer, and a locked instruction costs twenty times a store.
    pub(super) fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    pub(super) fn read(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

pub(super) fn cells<const N: usize>() -> [Cell; N] {
    std::array::from_fn(|_| Cell::default())
}

/// Times, in buckets whose bounds double from `FIRST_NS`; the last of the `N` has no bound.
#[derive(Debug)]
pub(super) struct Histogram<const FIRST_NS: u64, const N: usize> {
    pub(super) buckets: [Cell; N],
    pub(super) sum_ns: Cell,
}

/// 50 µs, 100 µs, … 52.4 s, above: from a response out of a cache on the same machine to a client's patience.
pub(super) type Latency = Histogram<50_000, 22>;
/// 50 ns, 100 ns, … 1.6 ms, above: a module that needs more is ill.
pub(super) type ModuleTime = Histogram<50, 17>;

impl<const FIRST_NS: u64, const N: usize> Histogram<FIRST_NS, N> {
    pub(super) fn add(&self, ns: u64) {
        self.buckets[Self::bucket(ns)].add(1);
        self.sum_ns.add(ns);
    }
}

impl<const FIRST_NS: u64, const N: usize> Histogram<FIRST_NS, N> {
    /// How many times were added, and how many of them are of the bucket of `ns` or above.
    pub(super) fn counts(&self, ns: u64) -> (u64, u64) {
        let first = Self::bucket(ns);
        self.buckets.iter().enumerate().fold((0, 0), |(all, long): (u64, u64), (idx, bucket)| {
            let n = bucket.read();
            (all.wrapping_add(n), if idx < first { long } else { long.wrapping_add(n) })
        })
    }

    fn bucket(ns: u64) -> usize {
        let n_firsts = ns.div_ceil(FIRST_NS).max(1);
        (n_firsts.next_power_of_two().trailing_zeros() as usize).min(N - 1)
    }
}

impl<const FIRST_NS: u64, const N: usize> Default for Histogram<FIRST_NS, N> {
    fn default() -> Self {
        Self { buckets: cells(), sum_ns: Cell::default() }
    }
}

// 128: x86 fetches cache lines in pairs, so that a neighbour in the pair is disturbed too.

#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct ListenerCells {
    pub(super) opened: Cell,
    pub(super) closed: Cell,
    pub(super) accept_failures: Cell,
    pub(super) full: Cell,
    pub(super) over_per_client: Cell,
    pub(super) bad_proxy_headers: Cell,
    pub(super) failed_handshakes: Cell,
    pub(super) requests: [Cell; CLIENT_CLASSES.len()],
}

#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct RouteCells {
    pub(super) requests: [Cell; CLIENT_CLASSES.len()],
    pub(super) time_ns: Cell,
}

#[derive(Debug)]
#[repr(align(128))]
pub(super) struct RequestCells {
    pub(super) codes: [Cell; N_CODES],
    pub(super) outcomes: [Cell; OUTCOMES.len()],
    pub(super) duration: Latency,
    pub(super) first_byte: Latency,
    pub(super) received_bytes: Cell,
    pub(super) sent_bytes: Cell,
}

#[derive(Debug)]
#[repr(align(128))]
pub(super) struct ClusterCells {
    pub(super) requests: RequestCells,
    pub(super) balancers: Box<[BalancerCells]>,
    pub(super) queue_entered: Cell,
    pub(super) queue_left: [Cell; QueueEnd::N],
    pub(super) queue_full: Cell,
    pub(super) queue_client_full: Cell,
    pub(super) queue_time_ns: Cell,
    pub(super) retries: Cell,
    pub(super) retries_denied: Cell,
    pub(super) overloaded: Cell,
    pub(super) tunnels_opened: Cell,
    pub(super) tunnels_closed: Cell,
    /// By place: members come and go.
    pub(super) endpoints: PlaceTable<EndpointCells>,
}

#[derive(Debug)]
#[repr(align(128))]
pub(super) struct BalancerCells {
    pub(super) calls: [Cell; ModuleCall::N],
    pub(super) time: ModuleTime,
    /// The calls in that time.
    pub(super) timed_calls: Cell,
    pub(super) fallbacks: Cell,
    pub(super) declined: Cell,
    pub(super) busy: Cell,
}

#[derive(Debug)]
#[repr(align(128))]
pub(super) struct EndpointCells {
    pub(super) tries: [Cell; TRY_RESULTS.len()],
    pub(super) failures: [Cell; FAILURES.len()],
    pub(super) statuses: [Cell; STATUS_CLASSES.len()],
    pub(super) connections: [Cell; ConnectionOrigin::N],
    pub(super) time_ns: Cell,
}

impl Default for RequestCells {
    fn default() -> Self {
        Self {
            codes: cells(),
            outcomes: cells(),
            duration: Latency::default(),
            first_byte: Latency::default(),
            received_bytes: Cell::default(),
            sent_bytes: Cell::default(),
        }
    }
}

impl ClusterCells {
    pub(super) fn new(n_balancers: usize) -> Self {
        Self {
            requests: RequestCells::default(),
            balancers: (0..n_balancers).map(|_| BalancerCells::default()).collect(),
            queue_entered: Cell::default(),
            queue_left: cells(),
            queue_full: Cell::default(),
            queue_client_full: Cell::default(),
            queue_time_ns: Cell::default(),
            retries: Cell::default(),
            retries_denied: Cell::default(),
            overloaded: Cell::default(),
            tunnels_opened: Cell::default(),
            tunnels_closed: Cell::default(),
            endpoints: PlaceTable::new(0),
        }
    }
}

impl Default for BalancerCells {
    fn default() -> Self {
        Self {
            calls: cells(),
            time: ModuleTime::default(),
            timed_calls: Cell::default(),
            fallbacks: Cell::default(),
            declined: Cell::default(),
            busy: Cell::default(),
        }
    }
}

impl Default for EndpointCells {
    fn default() -> Self {
        Self {
            tries: cells(),
            failures: cells(),
            statuses: cells(),
            connections: cells(),
            time_ns: Cell::default(),
        }
    }
}

/// The counts of one endpoint, of all threads and of its health.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct EndpointCounts {
    pub(super) tries: [u64; TRY_RESULTS.len()],
    pub(super) failures: [u64; FAILURES.len()],
    pub(super) statuses: [u64; STATUS_CLASSES.len()],
    pub(super) connections: [u64; ConnectionOrigin::N],
    /// Health checks that passed, and that failed.
    pub(super) checks: [u64; 2],
    pub(super) time_ns: u64,
    pub(super) ejections: u64,
}

impl EndpointCounts {
    /// Adds one thread's cells.
    pub(super) fn add_cells(&mut self, cells: &EndpointCells) {
        add_each(&mut self.tries, &cells.tries);
        add_each(&mut self.failures, &cells.failures);
        add_each(&mut self.statuses, &cells.statuses);
        add_each(&mut self.connections, &cells.connections);
        self.time_ns = self.time_ns.wrapping_add(cells.time_ns.read());
    }

    /// The sum. It wraps, as cells do.
    pub(super) fn plus(self, other: &Self) -> Self {
        self.with(other, u64::wrapping_add)
    }

    /// The difference, to which the other can be added again.
    pub(super) fn less(self, other: &Self) -> Self {
        self.with(other, u64::wrapping_sub)
    }

    fn with(mut self, other: &Self, of: fn(u64, u64) -> u64) -> Self {
        let ours = (self.tries.iter_mut())
            .chain(&mut self.failures)
            .chain(&mut self.statuses)
            .chain(&mut self.connections)
            .chain(&mut self.checks)
            .chain([&mut self.time_ns, &mut self.ejections]);
        let theirs = (other.tries.iter())
            .chain(&other.failures)
            .chain(&other.statuses)
            .chain(&other.connections)
            .chain(&other.checks)
            .chain([&other.time_ns, &other.ejections]);
        for (a, b) in ours.zip(theirs) {
            *a = of(*a, *b);
        }
        self
    }
}

fn add_each<const N: usize>(sums: &mut [u64; N], cells: &[Cell; N]) {
    for (sum, cell) in sums.iter_mut().zip(cells) {
        *sum = sum.wrapping_add(cell.read());
    }
}
