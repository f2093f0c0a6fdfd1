//! The members, the next change, and how soon it shows.

use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use lb_api::Rng;

use crate::servers::Servers;
use crate::site::{Change, Site};

/// The results of the changes.
#[derive(Default)]
pub(crate) struct Seen {
    /// How long the rounds with changes took.
    pub(crate) took: Duration,
    /// From each command to its answer.
    pub(crate) answered: Vec<Duration>,
    /// From the command to the first request.
    pub(crate) added: Vec<Duration>,
    /// From the command to the last request; zero where that was before.
    pub(crate) removed: Vec<Duration>,
}

/// The members, of which half of the first number is always there, and a seeded mix of changes that are none of them no-ops.
pub(crate) struct Changes {
    rng: Rng,
    members: Vec<usize>,
    others: Vec<usize>,
    weights: Vec<u16>,
    /// Added, and without a request when last looked at: index, and when it was commanded.
    awaited: Vec<(usize, u64)>,
    /// Removed, and when that was commanded.
    gone: Vec<(usize, u64)>,
}

impl Changes {
    /// Over twice as many servers, of which the first `n` are members.
    pub(crate) fn new(n: usize) -> Self {
        Self {
            rng: Rng::new(16),
            members: (0..n).collect(),
            others: (n..2 * n).collect(),
            weights: vec![1; 2 * n],
            awaited: Vec::new(),
            gone: Vec::new(),
        }
    }

    /// Makes the next change, and returns when it was answered.
    pub(crate) fn make(&mut self, site: &mut impl Site, servers: &Servers, seen: &mut Seen) {
        self.look(servers, seen);
        let (server, change) = self.next();
        let (begun, at) = (Instant::now(), servers.now());
        match change {
            Change::Add(_) => {
                self.gone.retain(|(gone, _)| *gone != server);
                servers.first[server].store(u64::MAX, Ordering::Relaxed);
                self.awaited.push((server, at));
            }
            Change::Remove => {
                self.awaited.retain(|(awaited, _)| *awaited != server);
                self.gone.push((server, at));
            }
            Change::Weight(_) => {}
        }
        site.change(server, servers, change);
        seen.answered.push(begun.elapsed());
    }

    fn next(&mut self) -> (usize, Change) {
        let mut pick = |n: usize| self.rng.below(n as u64) as usize;
        // A random walk alone would come to no member at all.
        let (few, many) = (self.weights.len() / 4, self.weights.len() * 3 / 4);
        match pick(10) {
            kind @ 0..6 if self.members.len() < many && (kind < 3 || self.members.len() <= few) => {
                let server = self.others.swap_remove(pick(self.others.len()));
                self.members.push(server);
                (server, Change::Add(self.weights[server]))
            }
            0..6 => {
                let server = self.members.swap_remove(pick(self.members.len()));
                self.others.push(server);
                (server, Change::Remove)
            }
            _ => {
                let server = self.members[pick(self.members.len())];
                self.weights[server] = self.weights[server] % 8 + 1;
                (server, Change::Weight(self.weights[server]))
            }
        }
    }

    fn look(&mut self, servers: &Servers, seen: &mut Seen) {
        self.awaited.retain(|(server, since)| {
            let first = servers.first[*server].load(Ordering::Relaxed);
            if first != u64::MAX {
                seen.added.push(Duration::from_micros(first.saturating_sub(*since)));
            }
            first == u64::MAX
        });
        // A second is more than the last try could be late.
        let now = servers.now();
        for (server, since) in self.gone.extract_if(.., |gone| now > gone.1 + 1_000_000) {
            let last = servers.last[server].load(Ordering::Relaxed);
            seen.removed.push(Duration::from_micros(last.saturating_sub(since)));
        }
    }

    /// Waits until all that was removed has been silent.
    pub(crate) fn settle(&mut self, servers: &Servers, seen: &mut Seen) {
        thread::sleep(Duration::from_millis(1_100));
        self.look(servers, seen);
    }
}
