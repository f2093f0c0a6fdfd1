//! A sequence of choices that many threads read while one replaces it.
//!
//! Readers take no lock: a table of atomics with a version that is odd while somebody writes (a seqlock). A pointer that
//! is swapped (`arc-swap`) was tried and costs a read two locked instructions, this one none.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU32, AtomicU64, fence};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use crate::peers::Peers;
use crate::smooth::Smooth;

/// Entries of a table, at most: 256 KiB.
const MAX_TABLE: u64 = 1 << 16;

/// Entries of a table that cluster sizes and weights do not ask for: room for what a change of weights may bring.
const MIN_TABLE: u64 = 1 << 10;

/// Comparisons that one period may take, at most: two or three milliseconds of one request after a change.
const MAX_WORK: u64 = 1 << 20;

/// Comparisons of one batch of a period that is too long: a third of a millisecond, again and again.
const BATCH_WORK: u64 = 1 << 17;

/// Steps that a failed try may take, at most, to make the turns that follow it: some 30 microseconds, about what the failed
/// connection costs.
const RETRY_WORK: u64 = 1 << 15;

/// The choices of all turns: the table holds one period, or, where that is too long, the turns that come next.
#[derive(Debug)]
pub(crate) struct Sequence {
    /// Odd while the fields below are written.
    version: AtomicU64,
    /// The cluster's epoch that the table is made from.
    epoch: AtomicU64,
    /// Turn of the first entry, or [`PERIODIC`].
    start: AtomicU64,
    /// Entries in use.
    len: AtomicU64,
    table: Box<[AtomicU32]>,
    writer: Mutex<Writer>,
}

/// No cluster's epoch: of a table that was not made yet.
const NO_EPOCH: u64 = u64::MAX;

/// The table is one period: turn `t` is entry `t % len`.
const PERIODIC: u64 = u64::MAX;

#[derive(Debug)]
struct Writer {
    /// Goes on where the table ends, unless that is periodic.
    generator: Generator,
    /// The current weights at a turn that is in the table, or was before those that are. None where they are not known: in
    /// a long sequence that no failed try has changed.
    known: Option<Known>,
    /// The debt to each endpoint of the cluster when it was last in a table; the next table goes on from there.
    credits: Box<[f64]>,
}

#[derive(Clone, Debug)]
enum Generator {
    Smooth(Smooth),
    /// After a failed try equal weights do not make equal turns any more.
    Peers(Peers),
}

impl Generator {
    fn peers(&self) -> Peers {
        match self {
            Self::Smooth(smooth) => smooth.peers(),
            Self::Peers(peers) => peers.clone(),
        }
    }

    fn is(&self, other: &Smooth) -> bool {
        matches!(self, Self::Smooth(smooth) if smooth == other)
    }

    /// Endpoints, and the choices after which it begins again.
    fn size(&self) -> (u64, u64) {
        match self {
            Self::Smooth(smooth) => (smooth.len(), smooth.period()),
            Self::Peers(peers) => (peers.len(), peers.period()),
        }
    }
}

#[derive(Debug)]
struct Known {
    /// Before this turn.
    turn: u64,
    generator: Generator,
}

/// Result of a read.
struct Seen {
    epoch: u64,
    len: u64,
    /// Entry of the turn; none where the table does not reach so far.
    entry: Option<u64>,
    endpoint: u32,
}

impl Sequence {
    /// A sequence over as many endpoints as there are credits, whose configured weights have a period of `period`. It is filled
    /// at the first look.
    pub(crate) fn new(credits: Box<[f64]>, period: u64) -> Self {
        let entries = period.clamp(MIN_TABLE, MAX_TABLE).max(credits.len() as u64);
        Self {
            version: AtomicU64::new(0),
            epoch: AtomicU64::new(NO_EPOCH),
            start: AtomicU64::new(PERIODIC),
            len: AtomicU64::new(0),
            table: (0..entries).map(|_| AtomicU32::new(0)).collect(),
            writer: Mutex::new(Writer {
                generator: Generator::Smooth(Smooth::new(std::iter::empty())),
                known: None,
                credits,
            }),
        }
    }

    /// The debt to each endpoint before this turn. Waits for a table that is being made.
    pub(crate) fn credits(&self, turn: u64) -> Box<[f64]> {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        self.note_credits(&mut writer, turn);
        writer.credits.clone()
    }

    /// Fills the table before anybody looks: the next turn that anybody takes is `turn`.
    pub(crate) fn fill(&self, turn: u64, epoch: u64, weights: impl Iterator<Item = (u32, u32)>) {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        self.replace(&mut writer, turn, epoch, weights);
    }

    /// The choice of this turn and its entry, as of this epoch; none where there is nothing to choose from. `weights`
    /// are those of now, for a table that goes on from there where the epoch has moved on.
    #[inline]
    pub(crate) fn at<I: Iterator<Item = (u32, u32)>>(
        &self,
        turn: u64,
        epoch: u64,
        weights: impl Fn() -> I,
    ) -> Option<(u64, u32)> {
        match self.look(turn) {
            Some(Seen { epoch: of, entry: Some(entry), endpoint, .. }) if of == epoch => {
                Some((entry, endpoint))
            }
            seen => self.make(turn, epoch, seen, weights),
        }
    }

    /// The choices behind this entry, each entry once.
    pub(crate) fn after(&self, entry: u64) -> impl Iterator<Item = (u64, u32)> + '_ {
        let len = self.len.load(Relaxed).max(1);
        (1..=len).map(move |step| (entry + step) % len).map(|entry| (entry, self.entry(entry)))
    }

    /// The choice after a failed try, among the endpoints that fit, as of this epoch; the turns from `turn` on, the next that
    /// anybody takes, are what nginx makes of it. None where they cannot be told, because the sequence is too long, or where
    /// another request is changing it just now.
    #[cold]
    pub(crate) fn retry(&self, turn: u64, epoch: u64, fits: impl Fn(u32) -> bool) -> Option<u32> {
        let mut writer = match self.writer.try_lock() {
            Ok(writer) => writer,
            Err(TryLockError::Poisoned(error)) => error.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        // Nobody else writes now.
        let known = writer.known.as_ref().filter(|_| self.epoch.load(Relaxed) == epoch)?;
        let (n_peers, period) = known.generator.size();
        if period > self.table.len() as u64 || period * n_peers > RETRY_WORK {
            return None;
        }
        let mut peers = self.peers_before(known, turn)?;
        let chosen = peers.choose(fits)?;
        let mut generator = peers.clone();
        let mut choices: Vec<_> = generator.by_ref().take(period as usize).collect();
        let is_periodic = generator == peers;
        if is_periodic {
            // Turn `t` is entry `t % len`.
            choices.rotate_right((turn % period) as usize);
        }
        writer.generator = Generator::Peers(generator);
        writer.known = Some(Known { turn, generator: Generator::Peers(peers) });
        self.write(epoch, if is_periodic { PERIODIC } else { turn }, &choices);
        Some(chosen)
    }

    /// The current weights before this turn. Called by the one who holds the lock, as those below are.
    fn peers_before(&self, known: &Known, turn: u64) -> Option<Peers> {
        let (start, len) = (self.start.load(Relaxed), self.len.load(Relaxed));
        if len == 0 {
            return None;
        }
        let n_passed = turn.checked_sub(known.turn)?;
        let (first, n_passed) = match start {
            PERIODIC => (known.turn, n_passed % len),
            _ if n_passed <= len => (0, n_passed),
            _ => return None,
        };
        let mut peers = known.generator.peers();
        peers.replay((0..n_passed).map(|n| self.entry((first + n) % len)));
        Some(peers)
    }

    /// Takes down what the endpoints of the table are owed before this turn.
    fn note_credits(&self, writer: &mut Writer, turn: u64) {
        let (start, len) = (self.start.load(Relaxed), self.len.load(Relaxed));
        let peers = match &writer.known {
            _ if len == 0 => return,
            Some(known) => self.peers_before(known, turn).unwrap_or_else(|| known.generator.peers()),
            None => {
                // The generator stands where the table ends.
                let mut peers = writer.generator.peers();
                let end = start.saturating_add(len);
                peers.undo((turn.clamp(start, end)..end).map(|turn| self.entry(turn - start)));
                peers
            }
        };
        peers.write_credits(&mut writer.credits);
    }

    /// After how many turns the sequence repeats; none where that is more than the table holds.
    pub(crate) fn period(&self) -> Option<u64> {
        (self.start.load(Relaxed) == PERIODIC).then(|| self.len.load(Relaxed))
    }

    /// None while somebody writes.
    #[inline]
    fn look(&self, turn: u64) -> Option<Seen> {
        let version = self.version.load(Acquire);
        let (epoch, start, len) =
            (self.epoch.load(Relaxed), self.start.load(Relaxed), self.len.load(Relaxed));
        let entry = match (start, len) {
            (_, 0) => None,
            (PERIODIC, _) => Some(remainder(turn, len)),
            _ => turn.checked_sub(start).filter(|entry| *entry < len),
        };
        let endpoint = self.entry(entry.unwrap_or(0));
        // Orders the loads above before the one below: who read anything of a writer sees its version too.
        fence(Acquire);
        (version.is_multiple_of(2) && self.version.load(Relaxed) == version).then_some(Seen {
            epoch,
            len,
            entry,
            endpoint,
        })
    }

    #[inline]
    fn entry(&self, entry: u64) -> u32 {
        self.table.get(entry as usize).map_or(0, |entry| entry.load(Relaxed))
    }

    /// The way of those who find the table stale, too short, or being written.
    #[cold]
    fn make<I: Iterator<Item = (u32, u32)>>(
        &self,
        turn: u64,
        epoch: u64,
        seen: Option<Seen>,
        weights: impl Fn() -> I,
    ) -> Option<(u64, u32)> {
        let mut writer = match (self.writer.try_lock(), seen) {
            (Ok(writer), _) => writer,
            // Somebody is making a new table. Until it is there the old one serves.
            (Err(TryLockError::WouldBlock), Some(Seen { entry: Some(entry), endpoint, .. })) => {
                return Some((entry, endpoint));
            }
            (Err(_), _) => self.writer.lock().unwrap_or_else(PoisonError::into_inner),
        };
        let stale = |seen: &Seen| seen.epoch != epoch;
        // Nobody else writes now, so that a look always succeeds.
        let mut seen = self.look(turn)?;
        if stale(&seen) {
            self.replace(&mut writer, turn, epoch, weights());
            seen = self.look(turn)?;
        }
        while seen.entry.is_none() && seen.len > 0 {
            let start = self.start.load(Relaxed);
            if turn < start {
                // This thread was stopped for longer than a table lasts; its own entry is gone, any other is as good.
                let entry = turn % seen.len;
                return Some((entry, self.entry(entry)));
            }
            self.go_on(&mut writer, start + seen.len);
            seen = self.look(turn)?;
        }
        seen.entry.map(|entry| (entry, seen.endpoint))
    }

    /// A table of these weights that goes on where the one before stands.
    fn replace(
        &self,
        writer: &mut MutexGuard<'_, Writer>,
        turn: u64,
        epoch: u64,
        weights: impl Iterator<Item = (u32, u32)>,
    ) {
        let is_first = self.epoch.load(Relaxed) == NO_EPOCH;
        self.note_credits(writer, turn);
        let begin = Smooth::going_on(weights, &writer.credits);
        let (period, room) = (begin.period(), self.table.len() as u64);
        if period > room || period * begin.n_classes() > MAX_WORK {
            writer.generator = Generator::Smooth(begin);
            let choices = self.batch(writer, turn);
            return self.write(epoch, turn, &choices);
        }
        let mut generator = begin.clone();
        let mut choices: Vec<_> = generator.by_ref().take(period as usize).collect();
        // From its beginning a sequence is the same in every process, whatever turn it is.
        let from_its_beginning = is_first && writer.credits.iter().all(|credit| *credit == 0.0);
        let known =
            Known { turn: if from_its_beginning { 0 } else { turn }, generator: Generator::Smooth(begin) };
        let is_periodic = known.generator.is(&generator);
        if is_periodic && period > 0 {
            // Turn `t` is entry `t % len`.
            choices.rotate_right((known.turn % period) as usize);
        }
        writer.known = Some(known);
        writer.generator = Generator::Smooth(generator);
        self.write(epoch, if is_periodic { PERIODIC } else { turn }, &choices);
    }

    fn go_on(&self, writer: &mut MutexGuard<'_, Writer>, start: u64) {
        let choices = self.batch(writer, start);
        self.write(self.epoch.load(Relaxed), start, &choices);
    }

    /// The next choices of a period that is too long: so many that the lock is seldom taken, and so few that it is not
    /// held for long.
    fn batch(&self, writer: &mut MutexGuard<'_, Writer>, start: u64) -> Vec<u32> {
        let batch = |steps: u64| (BATCH_WORK / steps.max(1)).clamp(1, MIN_TABLE) as usize;
        let writer = &mut **writer;
        match &mut writer.generator {
            Generator::Smooth(smooth) => {
                writer.known = None;
                let n_choices = batch(smooth.n_classes());
                smooth.by_ref().take(n_choices).collect()
            }
            Generator::Peers(peers) => {
                writer.known = Some(Known { turn: start, generator: Generator::Peers(peers.clone()) });
                let n_choices = batch(peers.len());
                peers.by_ref().take(n_choices).collect()
            }
        }
    }

    /// Called by the one who holds the lock.
    fn write(&self, epoch: u64, start: u64, choices: &[u32]) {
        let version = self.version.load(Relaxed);
        self.version.store(version + 1, Relaxed);
        // Orders the store above before those below.
        fence(Release);
        self.epoch.store(epoch, Relaxed);
        self.start.store(start, Relaxed);
        self.len.store(choices.len() as u64, Relaxed);
        for (entry, choice) in self.table.iter().zip(choices) {
            entry.store(*choice, Relaxed);
        }
        self.version.store(version + 2, Release);
    }
}

/// `turn % len`; both fit into 32 bits nearly always, and dividing these takes a third of the time.
#[inline]
fn remainder(turn: u64, len: u64) -> u64 {
    match (u32::try_from(turn), u32::try_from(len)) {
        (Ok(turn), Ok(len)) if len > 0 => u64::from(turn % len),
        _ => turn % len,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered(weights: &[u32]) -> impl Iterator<Item = (u32, u32)> + '_ {
        (0..).zip(weights.iter().copied())
    }

    fn smooth(weights: &[u32]) -> Smooth {
        Smooth::new(numbered(weights))
    }

    fn read(sequence: &Sequence, turns: std::ops::Range<u64>, epoch: u64, weights: &[u32]) -> Vec<u32> {
        turns.map(|turn| sequence.at(turn, epoch, || numbered(weights)).unwrap().1).collect()
    }

    #[test]
    fn a_short_period_is_one_table() {
        let sequence = Sequence::new([0.0; 3].into(), 7);
        assert_eq!(read(&sequence, 0..14, 1, &[5, 1, 1]), smooth(&[5, 1, 1]).take(14).collect::<Vec<_>>());
        assert_eq!(sequence.start.load(Relaxed), PERIODIC);
    }

    #[test]
    fn a_period_that_is_too_long_is_made_batch_by_batch() {
        let weights = [100_003, 100_019, 7];
        let sequence = Sequence::new([0.0; 3].into(), smooth(&weights).period());
        assert_eq!(read(&sequence, 0..5000, 1, &weights), smooth(&weights).take(5000).collect::<Vec<_>>());
        assert_ne!(sequence.start.load(Relaxed), PERIODIC);
        // A turn that nobody took in time, and one far ahead.
        assert!(sequence.at(3, 1, || numbered(&weights)).is_some());
        let ahead = sequence.at(20_000, 1, || numbered(&weights)).unwrap().1;
        assert_eq!(Some(ahead), smooth(&weights).nth(20_000));
    }

    #[test]
    fn a_new_epoch_makes_a_new_table() {
        let sequence = Sequence::new([0.0; 3].into(), 3);
        assert_eq!(read(&sequence, 0..3, 1, &[1, 1, 1]), [0, 1, 2]);
        // It goes on where that stands: the first had its turn at 3.
        assert_eq!(read(&sequence, 4..8, 2, &[1, 0, 1]), [2, 0, 2, 0]);
        assert!(sequence.at(8, 3, || numbered(&[0, 0, 0])).is_none());
        // An endpoint that was away keeps the debt from when it left.
        assert_eq!(read(&sequence, 9..12, 4, &[1, 1, 1]), [2, 1, 0]);
    }

    #[test]
    fn readers_see_whole_tables_only() {
        // Tables of different lengths; each names endpoints that no other names.
        let sequence = Sequence::new([0.0; 8].into(), 8);
        let tables: [&[u32]; 2] = [&[1, 1], &[0, 0, 1, 1, 1]];
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for epoch in 1..20_000 {
                    let _ = sequence.at(0, epoch, || numbered(tables[epoch as usize % 2]));
                }
                done.store(true, Relaxed);
            });
            while !done.load(Relaxed) {
                for turn in 0..10 {
                    if let Some(Seen { epoch, entry: Some(_), endpoint, .. }) = sequence.look(turn) {
                        let of = [&[0, 1][..], &[2, 3, 4]][epoch as usize % 2];
                        assert!(of.contains(&endpoint), "endpoint {endpoint} in the table of epoch {epoch}");
                    }
                }
            }
        });
    }
}
