//! Detects threads of a worker that are stuck outside of modules.
//!
//! Every thread that serves ticks on the [`Board`](crate::module::board::Board) once a second, idle or not. The supervisor
//! looks at the ticks twice a second, and adds up the time that passes without one. Time in which the supervisor was late
//! itself does not count: the machine was suspended, or too busy for both. After 10 s the state of the thread decides:
//!
//! | state | meaning | verdict |
//! |---|---|---|
//! | `T`, `S`, `D` | stopped, waits, waits for the kernel | stuck |
//! | `R` | runs, or wants to | stuck, if it used 5 s of processor time meanwhile; else it is not let run |
//! | none | it has ended | stuck |
//! | `t` | stopped by a debugger | traced: named, and left alone |
//!
//! Inside a module, time that a call runs or waits is the [watchdog](super::watchdog)'s to judge; here only `T`, `D` and its end
//! are.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::watchdog::{GONE, ThreadSample};
use crate::module::board::Seen;

/// How often to look.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Without a tick for so long, a thread is sampled.
const SUSPECT_AFTER: Duration = Duration::from_secs(2);
/// And judged.
const STUCK_AFTER: Duration = Duration::from_secs(10);
/// Processor time without which a thread that wants to run is not let.
const SPUN: Duration = Duration::from_secs(5);

/// A finding about a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PulseVerdict {
    /// It does not get on. Said once, until it does again.
    Stuck {
        /// As in [`ThreadSample`].
        state: char,
    },
    /// A debugger holds it. Said once, until it does not any more.
    Traced,
    /// It was stuck or traced, and goes on.
    GoesOn,
}

/// The ticks of one worker's threads.
#[derive(Debug, Default)]
pub(super) struct Pulse {
    looked: Option<Instant>,
    threads: HashMap<usize, Silence>,
}

/// How long a thread has not ticked.
#[derive(Clone, Copy, Debug)]
struct Silence {
    tid: u32,
    tick: u32,
    time: Duration,
    /// Processor time that it had used when it was sampled first.
    used: Option<Duration>,
    said: Option<PulseVerdict>,
}

impl Pulse {
    /// Judges what a look at the board showed, if it is time to. Only places below `n_places` have threads that tick.
    pub(super) fn look(
        &mut self,
        now: Instant,
        seen: &[Seen],
        n_places: usize,
        mut thread: impl FnMut(u32) -> Option<ThreadSample>,
    ) -> Vec<(usize, PulseVerdict)> {
        if self.looked.is_some_and(|looked| now < looked + LOOK_EVERY) {
            return Vec::new();
        }
        let window = self.looked.replace(now).map_or(Duration::ZERO, |looked| now - looked);
        let window = if window > 2 * LOOK_EVERY { Duration::ZERO } else { window };
        let mut before = std::mem::take(&mut self.threads);
        let mut verdicts = Vec::new();
        for seen in seen.iter().filter(|seen| seen.slot < n_places) {
            let known = before.remove(&seen.slot).filter(|known| known.tid == seen.tid);
            let mut silence = match known {
                Some(known) if known.tick == seen.tick => Silence { time: known.time + window, ..known },
                known => {
                    if known.is_some_and(|known| known.said.is_some()) {
                        verdicts.push((seen.slot, PulseVerdict::GoesOn));
                    }
                    Silence::new(seen)
                }
            };
            if silence.time >= SUSPECT_AFTER
                && let Some(sample) = thread(seen.tid)
            {
                verdicts.extend(silence.judge(seen, sample).map(|verdict| (seen.slot, verdict)));
            }
            self.threads.insert(seen.slot, silence);
        }
        verdicts
    }

    /// Stuck threads by their place, with the state in which they were found.
    pub(super) fn stuck(&self) -> Vec<(usize, char)> {
        let of = |(place, thread): (&usize, &Silence)| match thread.said {
            Some(PulseVerdict::Stuck { state }) => Some((*place, state)),
            _ => None,
        };
        let mut stuck: Vec<_> = self.threads.iter().filter_map(of).collect();
        stuck.sort_unstable();
        stuck
    }
}

impl Silence {
    fn new(seen: &Seen) -> Self {
        Self { tid: seen.tid, tick: seen.tick, time: Duration::ZERO, used: None, said: None }
    }

    fn judge(&mut self, seen: &Seen, sample: ThreadSample) -> Option<PulseVerdict> {
        let used = sample.cpu.saturating_sub(*self.used.get_or_insert(sample.cpu));
        if self.said == Some(PulseVerdict::Traced) && sample.state != 't' {
            *self = Self::new(seen);
            return Some(PulseVerdict::GoesOn);
        }
        if self.said.is_some() || self.time < STUCK_AFTER {
            return None;
        }
        let is_modules = seen.crumb.is_some_and(|crumb| !crumb.in_host);
        self.said = match sample.state {
            't' => Some(PulseVerdict::Traced),
            state @ ('T' | 'D' | GONE) => Some(PulseVerdict::Stuck { state }),
            state @ 'S' if !is_modules => Some(PulseVerdict::Stuck { state }),
            state @ 'R' if !is_modules && used >= SPUN => Some(PulseVerdict::Stuck { state }),
            _ => None,
        };
        self.said
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::module::board::{CallKind, Crumb};

    const MS: Duration = Duration::from_millis(1);

    /// One thread of a worker, looked at on an invented clock.
    struct PulseWorld {
        pulse: Pulse,
        now: Instant,
        seen: Seen,
        sample: ThreadSample,
    }

    impl PulseWorld {
        fn new() -> Self {
            let seen = Seen { slot: 0, tid: 7, crumb: None, raw: 0, tick: 1, n_requests: 0 };
            let sample = ThreadSample { cpu: Duration::ZERO, state: 'S' };
            let mut world = Self { pulse: Pulse::default(), now: Instant::now(), seen, sample };
            assert_eq!(world.look(0, 0, 'S'), None);
            world
        }

        /// Time goes on, in which the thread gets so much processor time and is in this state at its end.
        fn look(&mut self, ms: u32, cpu_ms: u32, state: char) -> Option<PulseVerdict> {
            self.now += ms * MS;
            self.sample = ThreadSample { cpu: self.sample.cpu + cpu_ms * MS, state };
            let sample = self.sample;
            let verdicts = self.pulse.look(self.now, &[self.seen], 1, |_| Some(sample));
            assert!(verdicts.len() <= 1 && verdicts.iter().all(|(slot, _)| *slot == 0));
            verdicts.first().map(|(_, verdict)| *verdict)
        }

        /// After how many looks in this way there is a verdict, of a thousand.
        fn looks_until_said(&mut self, ms: u32, cpu_ms: u32, state: char) -> Option<(usize, PulseVerdict)> {
            (1..=1000).find_map(|n| Some((n, self.look(ms, cpu_ms, state)?)))
        }
    }

    #[test]
    fn a_thread_that_is_stopped_or_waits_is_stuck_after_ten_seconds_and_named_once() {
        for state in ['T', 'S', 'D'] {
            let mut world = PulseWorld::new();
            assert_eq!(world.looks_until_said(500, 0, state), Some((20, PulseVerdict::Stuck { state })));
            assert_eq!(world.pulse.stuck(), [(0, state)]);
            assert_eq!(world.looks_until_said(500, 0, state), None);
            world.seen.tick += 1;
            assert_eq!(world.look(500, 0, state), Some(PulseVerdict::GoesOn));
            assert_eq!(world.pulse.stuck(), []);
            assert_eq!(world.looks_until_said(500, 0, state), Some((20, PulseVerdict::Stuck { state })));
        }
    }

    #[test]
    fn a_thread_that_ticks_is_never_stuck() {
        for state in ['T', 'S', 'D', 'R', 't'] {
            let mut world = PulseWorld::new();
            for _ in 0..100 {
                world.seen.tick = world.seen.tick.wrapping_add(1);
                assert_eq!(world.look(900, 900, state), None);
            }
        }
    }

    #[test]
    fn a_thread_that_is_not_let_run_is_left_alone_and_one_that_spins_is_not() {
        let mut world = PulseWorld::new();
        assert_eq!(world.looks_until_said(500, 0, 'R'), None);
        let mut world = PulseWorld::new();
        let stuck = PulseVerdict::Stuck { state: 'R' };
        assert_eq!(world.looks_until_said(500, 500, 'R'), Some((20, stuck)));
        // A tenth of a processor: 5 s of it take 50 s, after the 2 s in which it was not sampled.
        let mut world = PulseWorld::new();
        assert_eq!(world.looks_until_said(500, 50, 'R'), Some((104, stuck)));
    }

    #[test]
    fn a_debugger_is_named_and_left_alone() {
        let mut world = PulseWorld::new();
        assert_eq!(world.looks_until_said(500, 0, 't'), Some((20, PulseVerdict::Traced)));
        assert_eq!(world.looks_until_said(500, 0, 't'), None);
        assert_eq!(world.pulse.stuck(), []);
        // The debugger leaves it stopped: that is judged anew.
        assert_eq!(world.look(500, 0, 'T'), Some(PulseVerdict::GoesOn));
        assert_eq!(world.looks_until_said(500, 0, 'T'), Some((20, PulseVerdict::Stuck { state: 'T' })));
    }

    #[test]
    fn time_in_which_the_supervisor_was_late_does_not_count() {
        let mut world = PulseWorld::new();
        assert_eq!(world.looks_until_said(1001, 0, 'T'), None);
        assert_eq!(world.looks_until_said(1000, 0, 'T'), Some((10, PulseVerdict::Stuck { state: 'T' })));
    }

    #[test]
    fn looks_that_come_too_often_change_nothing() {
        let mut world = PulseWorld::new();
        assert_eq!(world.looks_until_said(100, 0, 'S'), Some((100, PulseVerdict::Stuck { state: 'S' })));
    }

    #[test]
    fn what_a_module_waits_for_is_not_judged_here_but_that_it_is_stopped_is() {
        let crumb = Crumb { kind: CallKind::Serving, module: 0, cluster: None, in_host: false };
        for (state, in_host, is_judged) in [
            ('S', false, false),
            ('R', false, false),
            ('S', true, true),
            ('T', false, true),
            ('D', false, true),
        ] {
            let mut world = PulseWorld::new();
            world.seen.crumb = Some(Crumb { in_host, ..crumb });
            let said = world.looks_until_said(500, 500, state);
            assert_eq!(said, is_judged.then_some((20, PulseVerdict::Stuck { state })), "{state} {in_host}");
        }
    }

    #[test]
    fn another_thread_in_the_same_place_begins_anew_and_one_without_a_tick_is_not_looked_at() {
        let mut world = PulseWorld::new();
        for _ in 0..19 {
            assert_eq!(world.look(500, 0, 'S'), None);
        }
        world.seen.tid += 1;
        assert_eq!(world.looks_until_said(500, 0, 'S'), Some((21, PulseVerdict::Stuck { state: 'S' })));
        world.seen.slot = 1;
        assert_eq!(world.looks_until_said(500, 0, 'S'), None, "behind those that tick");
    }
}
