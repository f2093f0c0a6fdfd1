//! Detects calls into modules that take too long, from outside of the worker.
//!
//! The supervisor looks at the worker's [`Board`](crate::module::board::Board) ever so often. A thread that stands in the
//! same call at two looks in a row is charged for the time between them, and a call whose charge reaches the limit hangs.
//! It is charged its own time: where the thread waited inside the module all the time, that time;
//! else the processor time that it got. So a worker that is starved, throttled, stopped, traced, swapped out or waits for
//! a disk is not condemned, however long it takes. If it is the supervisor that was late, nobody is charged. While the module
//! has called the host, waiting is the host's; what it makes the host do is its own.
//!
//! A call whose thread has ended never returns, and hangs at the second look that does not find the thread. One look is not
//! enough: a process that ends loses its threads one after the other. While all that are left are to end, none counts as ended.
//!
//! By hand, limit 1 s, a look every 100 ms, a call that begins at 0.05 s and spins: first seen at 0.1 s, then charged
//! 100 ms a look, it hangs at 1.1 s. Beside nine others that spin on one processor it gets 10 ms a look, and ten times as
//! long.

use std::collections::HashMap;
use std::io;
use std::time::{Duration, Instant};

use crate::module::board::{CallKind, Crumb, Seen};

/// How long calls may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CallLimits {
    /// Calls that a request waits for.
    pub(super) call: Duration,
    /// dlopen, info, build, save, and the drop of a balancer.
    pub(super) long: Duration,
}

/// A thread's state, as `/proc` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ThreadSample {
    /// Processor time that it has had in its life.
    pub(super) cpu: Duration,
    /// `R` runs or wants to, `S` waits, `D` waits for the kernel, `T` and `t` is stopped: the letters of `/proc`.
    pub(super) state: char,
}

/// A finding about a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Finding {
    /// It has reached the limit, and has not returned. Said once a call.
    Hang {
        /// The thread's place on the board.
        slot: usize,
        /// Where it is.
        crumb: Crumb,
        /// The time charged to the call.
        charged: Duration,
        /// The thread's state, as in [`ThreadSample`].
        state: char,
    },
    /// It has returned, after half of the limit or more.
    Overrun {
        /// The thread's place on the board.
        slot: usize,
        /// Where it was.
        crumb: Crumb,
        /// The time charged to the call; it took at least as long.
        charged: Duration,
    },
}

/// Keeps account of the calls of one worker.
#[derive(Debug)]
pub(super) struct Watchdog {
    limits: CallLimits,
    last_look: Option<Instant>,
    /// By slot: the calls that were running at the last look.
    calls: HashMap<usize, Call>,
}

/// A call that was seen running.
#[derive(Clone, Copy, Debug)]
struct Call {
    id: (u32, u64),
    crumb: Crumb,
    /// The thread at the last look, if it could be sampled.
    sample: Option<ThreadSample>,
    charged: Duration,
    /// Two looks in a row did not find its thread.
    is_gone: bool,
    is_condemned: bool,
}

/// The state of a thread that the system does not know any more.
pub(super) const GONE: char = 'X';

/// A limit is told to this part of it.
const LOOKS_PER_LIMIT: u32 = 10;
/// Looking more often would cost more than anybody wants to know so exactly.
const MIN_INTERVAL: Duration = Duration::from_millis(10);

impl Watchdog {
    /// For a worker that was just started.
    pub(super) fn new(limits: CallLimits) -> Self {
        Self { limits, last_look: None, calls: HashMap::new() }
    }

    /// Whether the thread in this place is in a call that hangs.
    pub(super) fn hangs(&self, place: usize) -> bool {
        self.calls.get(&place).is_some_and(|call| call.is_condemned)
    }

    /// How many threads with places below this one are in a call that hangs.
    pub(super) fn n_hanging(&self, places: usize) -> usize {
        self.calls.iter().filter(|(place, call)| **place < places && call.is_condemned).count()
    }

    /// How often to look. It is also what tells that the supervisor was late: after more than twice as long.
    pub(super) fn interval(&self) -> Duration {
        (self.limits.call.min(self.limits.long) / LOOKS_PER_LIMIT).max(MIN_INTERVAL)
    }

    /// Whether it is time to look.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.last_look.is_none_or(|last| now >= last + self.interval())
    }

    /// Judges what a look at the board showed. `thread` samples a thread of the worker by its number; it is asked only for
    /// those that are inside a module.
    pub(super) fn look(
        &mut self,
        now: Instant,
        seen: &[Seen],
        mut thread: impl FnMut(u32) -> Option<ThreadSample>,
    ) -> Vec<Finding> {
        let late = 2 * self.interval();
        let window = self.last_look.replace(now).map(|last| now - last).filter(|window| *window <= late);
        let mut before = std::mem::take(&mut self.calls);
        let mut findings = Vec::new();
        for seen in seen {
            let known = before.remove(&seen.slot);
            let running = seen.crumb.map(|crumb| Call {
                id: (seen.tid, seen.call()),
                crumb,
                sample: thread(seen.tid),
                charged: Duration::ZERO,
                is_gone: false,
                is_condemned: false,
            });
            match (known, running) {
                (Some(known), Some(running)) if known.id == running.id => {
                    let mut call = known.continued(&running, window);
                    findings.extend(call.judge(seen.slot, self.limits));
                    self.calls.insert(seen.slot, call);
                }
                (known, running) => {
                    findings.extend(known.and_then(|known| known.ended(seen.slot, self.limits)));
                    self.calls.extend(running.map(|running| (seen.slot, running)));
                }
            }
        }
        findings
    }
}

impl Call {
    /// The same call at the next look; `window` is the time between them, if it is to be charged.
    fn continued(self, later: &Self, window: Option<Duration>) -> Self {
        let charge = match (window, self.sample, later.sample) {
            (Some(_), Some(before), Some(now)) if self.crumb.in_host || later.crumb.in_host => {
                now.cpu.saturating_sub(before.cpu)
            }
            (Some(window), Some(before), Some(now)) if before.state == 'S' && now.state == 'S' => window,
            // Also where it waits only now: it may have wanted to run until a moment ago, and not been let.
            (Some(_), Some(before), Some(now)) => now.cpu.saturating_sub(before.cpu),
            _ => Duration::ZERO,
        };
        let has_no_thread =
            |call: &Self| call.sample.is_some_and(|sample: ThreadSample| sample.state == GONE);
        Self {
            charged: self.charged + charge,
            is_gone: has_no_thread(&self) && has_no_thread(later),
            is_condemned: self.is_condemned,
            ..*later
        }
    }

    fn judge(&mut self, slot: usize, limits: CallLimits) -> Option<Finding> {
        if self.is_condemned || !self.is_gone && self.charged < self.limit(limits) {
            return None;
        }
        self.is_condemned = true;
        let state = self.sample.map_or('?', |sample| sample.state);
        Some(Finding::Hang { slot, crumb: self.crumb, charged: self.charged, state })
    }

    fn ended(self, slot: usize, limits: CallLimits) -> Option<Finding> {
        let is_overrun = !self.is_condemned && self.charged >= self.limit(limits) / 2;
        is_overrun.then_some(Finding::Overrun { slot, crumb: self.crumb, charged: self.charged })
    }

    fn limit(&self, limits: CallLimits) -> Duration {
        match self.crumb.kind {
            CallKind::Serving => limits.call,
            CallKind::Long => limits.long,
        }
    }
}

/// The same for a thread that was there, in a process whose threads can be seen: one that is not there has ended.
pub(super) fn sample_of_known(pid: u32, tid: u32) -> Option<ThreadSample> {
    match read_sample(pid, tid) {
        // The first thread of a process stays as long as the others run.
        Ok(sample) if !(tid == pid && sample.state == 'Z') => Some(sample),
        Err(error) if !is_absence(&error) => None,
        // Where none runs, it is the process that ends.
        Ok(_) | Err(_) => has_threads(pid).then_some(ThreadSample { cpu: Duration::ZERO, state: GONE }),
    }
}

/// Samples a thread of another process; `None` where there is no such thread (any more).
#[cfg(test)]
pub(super) fn thread_sample(pid: u32, tid: u32) -> Option<ThreadSample> {
    read_sample(pid, tid).ok()
}

fn read_sample(pid: u32, tid: u32) -> io::Result<ThreadSample> {
    let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/{file}"));
    let stat = Stat::read(&read("stat")?).ok_or(io::ErrorKind::InvalidData)?;
    // In nanoseconds; not every kernel has it.
    let exact = read("schedstat").ok().and_then(|text| text.split(' ').next()?.parse().ok());
    Ok(ThreadSample { cpu: exact.map_or_else(|| stat.cpu(), Duration::from_nanos), state: stat.state })
}

/// Whether the error says that there is no such thread, and not that this process could not look.
fn is_absence(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

/// Whether any thread of this process runs, and is not to end with it.
fn has_threads(pid: u32) -> bool {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    let mut stats = threads.flatten().filter_map(|thread| {
        let text = std::fs::read_to_string(thread.path().join("stat")).ok()?;
        Stat::read(&text)
    });
    stats.any(|stat| !stat.is_ending && !matches!(stat.state, 'Z' | GONE))
}

/// Fields of `/proc/PID/task/TID/stat`.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    state: char,
    ticks: u64,
    /// It has been told to end with its process, or does so now.
    is_ending: bool,
}

/// Of `include/linux/sched.h`: the thread is on its way out.
const PF_EXITING: u64 = 0x4;
/// The bit of SIGKILL among pending signals. The kernel sends it to every other thread as a process begins to exit.
const KILL_PENDING: u64 = 1 << (libc::SIGKILL - 1);

impl Stat {
    fn read(text: &str) -> Option<Self> {
        // The second field is the thread's name in parentheses; in the name may be anything, a `)` too.
        let (_, rest) = text.rsplit_once(") ")?;
        let fields: Vec<&str> = rest.split(' ').collect();
        let mut state = fields.first()?.chars();
        // Counted from 1 in proc(5), with the state as the third.
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        let ticks = field(14)?.saturating_add(field(15)?);
        let is_ending = field(9)? & PF_EXITING != 0 || field(31)? & KILL_PENDING != 0;
        Some(Self { state: state.next()?, ticks, is_ending })
    }

    fn cpu(&self) -> Duration {
        let per_second = rustix::param::clock_ticks_per_second().max(1);
        Duration::from_nanos((u128::from(self.ticks) * 1_000_000_000 / u128::from(per_second)) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: CallLimits = CallLimits { call: Duration::from_secs(1), long: Duration::from_secs(10) };
    const MS: Duration = Duration::from_millis(1);

    /// A worker of invented threads, looked at every 100 ms of an invented clock.
    struct WatchdogWorld {
        watchdog: Watchdog,
        now: Instant,
        seen: Vec<Seen>,
        samples: HashMap<u32, ThreadSample>,
    }

    impl WatchdogWorld {
        fn new() -> Self {
            let watchdog = Watchdog::new(LIMITS);
            assert_eq!(watchdog.interval(), 100 * MS);
            let mut world = Self { watchdog, now: Instant::now(), seen: Vec::new(), samples: HashMap::new() };
            assert_eq!(world.look(100, &[]), []);
            world
        }

        /// The thread in this slot is inside module `slot`, in the call of this number; 0 is none.
        fn enter(&mut self, slot: usize, call: u64, kind: CallKind) {
            let tid = 100 + slot as u32;
            let crumb = (call > 0).then_some(crumb(slot, kind));
            self.seen.retain(|seen| seen.slot != slot);
            self.seen.push(Seen {
                slot,
                tid,
                crumb,
                raw: call << 32 | u64::from(call > 0),
                tick: 0,
                n_requests: 0,
            });
            self.samples.entry(tid).or_insert(ThreadSample { cpu: Duration::ZERO, state: 'R' });
        }

        /// Time goes on, in which threads (by slot) get this much processor time and are in this state at its end.
        fn look(&mut self, ms: u32, threads: &[(usize, u32, char)]) -> Vec<Finding> {
            self.now += ms * MS;
            for (slot, cpu_ms, state) in threads {
                let sample = self.samples.get_mut(&(100 + *slot as u32)).unwrap();
                *sample = ThreadSample { cpu: sample.cpu + *cpu_ms * MS, state: *state };
            }
            let samples = &self.samples;
            self.watchdog.look(self.now, &self.seen, |tid| samples.get(&tid).copied())
        }

        /// Looks in this way until something is found, and says in which look, and what.
        fn look_until_found(&mut self, ms: u32, threads: &[(usize, u32, char)]) -> Option<(usize, Finding)> {
            (1..=1000).find_map(|n| Some((n, *self.look(ms, threads).first()?)))
        }
    }

    fn crumb(module: usize, kind: CallKind) -> Crumb {
        Crumb { kind, module, cluster: Some(0), in_host: false }
    }

    fn hang(slot: usize, charged_ms: u32, state: char) -> Finding {
        Finding::Hang { slot, crumb: crumb(slot, CallKind::Serving), charged: charged_ms * MS, state }
    }

    #[test]
    fn a_call_that_spins_hangs_when_it_has_used_the_limit() {
        let mut world = WatchdogWorld::new();
        world.enter(0, 1, CallKind::Serving);
        // The first look sees it for the first time.
        assert_eq!(world.look_until_found(100, &[(0, 100, 'R')]), Some((11, hang(0, 1000, 'R'))));
    }

    #[test]
    fn a_call_that_waits_hangs_though_it_uses_nothing() {
        let mut world = WatchdogWorld::new();
        world.enter(0, 1, CallKind::Serving);
        // Of the first window it is not known whether it waited all the time.
        assert_eq!(world.look(100, &[(0, 0, 'R')]), []);
        assert_eq!(world.look_until_found(100, &[(0, 0, 'S')]), Some((11, hang(0, 1000, 'S'))));
    }

    #[test]
    fn a_hang_is_told_once_a_call() {
        let mut world = WatchdogWorld::new();
        world.enter(0, 1, CallKind::Serving);
        assert!(world.look_until_found(100, &[(0, 100, 'R')]).is_some());
        assert_eq!(world.look_until_found(100, &[(0, 100, 'R')]), None);
        world.enter(0, 0, CallKind::Serving);
        assert_eq!(world.look(100, &[]), [], "nor is it an overrun when it ends after all");
        world.enter(0, 2, CallKind::Serving);
        assert!(world.look_until_found(100, &[(0, 100, 'R')]).is_some(), "the next one is told again");
    }

    #[test]
    fn a_busy_thread_in_one_call_after_another_is_never_charged() {
        let mut world = WatchdogWorld::new();
        for call in 1..1000 {
            world.enter(0, call, CallKind::Serving);
            assert_eq!(world.look(100, &[(0, 100, 'R')]), []);
        }
    }

    #[test]
    fn nothing_is_charged_outside_of_modules() {
        let mut world = WatchdogWorld::new();
        world.enter(0, 0, CallKind::Serving);
        assert_eq!(world.look_until_found(100, &[(0, 100, 'R')]), None);
        assert_eq!(world.look_until_found(100, &[(0, 0, 'S')]), None);
    }

    #[test]
    fn a_worker_that_is_not_let_run_is_not_condemned() {
        // Starved or throttled, waiting for a disk, stopped, traced.
        for state in ['R', 'D', 'T', 't', 'I', '?'] {
            let mut world = WatchdogWorld::new();
            world.enter(0, 1, CallKind::Serving);
            assert_eq!(world.look_until_found(100, &[(0, 0, state)]), None, "{state}");
        }
    }

    #[test]
    fn a_starved_call_is_charged_what_it_got() {
        let mut world = WatchdogWorld::new();
        world.enter(0, 1, CallKind::Serving);
        assert_eq!(world.look_until_found(100, &[(0, 10, 'R')]), Some((101, hang(0, 1000, 'R'))));
    }

    #[test]
    fn a_stop_in_the_middle_of_waiting_is_not_charged() {
        let mut world = WatchdogWorld::new();
        world.enter(0, 1, CallKind::Serving);
        for _ in 0..6 {
            assert_eq!(world.look(100, &[(0, 0, 'S')]), []);
        }
        for _ in 0..100 {
            assert_eq!(world.look(100, &[(0, 0, 'T')]), []);
        }
        // 500 ms before it was stopped, the window in which it goes on is not known whole.
        assert_eq!(world.look_until_found(100, &[(0, 0, 'S')]), Some((6, hang(0, 1000, 'S'))));
    }

    #[test]
    fn a_window_in_which_the_supervisor_was_late_is_discarded() {
        let mut world = WatchdogWorld::new();
        world.enter(0, 1, CallKind::Serving);
        assert_eq!(world.look_until_found(201, &[(0, 201, 'R')]), None);
        assert_eq!(world.look_until_found(201, &[(0, 0, 'S')]), None);
        // Up to twice the interval is not late; what was used while it was late stays uncharged.
        assert_eq!(world.look_until_found(200, &[(0, 200, 'R')]), Some((5, hang(0, 1000, 'R'))));
    }

    #[test]
    fn long_calls_have_the_long_limit() {
        let mut world = WatchdogWorld::new();
        world.enter(0, 1, CallKind::Long);
        let finding =
            Finding::Hang { slot: 0, crumb: crumb(0, CallKind::Long), charged: 10_000 * MS, state: 'S' };
        assert_eq!(world.look(100, &[(0, 0, 'S')]), []);
        assert_eq!(world.look_until_found(100, &[(0, 0, 'S')]), Some((100, finding)));
    }

    #[test]
    fn a_call_that_ends_after_half_of_the_limit_is_an_overrun() {
        for (looks, is_overrun) in [(5, false), (6, true)] {
            let mut world = WatchdogWorld::new();
            world.enter(0, 1, CallKind::Serving);
            for _ in 0..looks {
                assert_eq!(world.look(100, &[(0, 100, 'R')]), []);
            }
            let finding = Finding::Overrun { slot: 0, crumb: crumb(0, CallKind::Serving), charged: 500 * MS };
            // It does not matter whether the thread is seen outside or in the next call.
            world.enter(0, 2, CallKind::Serving);
            assert_eq!(world.look(100, &[]), is_overrun.then_some(finding).as_slice());
            assert_eq!(world.look(100, &[]), [], "told once");
        }
    }

    #[test]
    fn threads_are_charged_apart() {
        let mut world = WatchdogWorld::new();
        for slot in 0..3 {
            world.enter(slot, 7, CallKind::Serving);
        }
        world.enter(1, 0, CallKind::Serving);
        let all = [(0, 40, 'R'), (1, 20, 'R'), (2, 100, 'R')];
        assert_eq!(world.look_until_found(100, &all), Some((11, hang(2, 1000, 'R'))));
        assert_eq!(world.look_until_found(100, &all), Some((15, hang(0, 1000, 'R'))));
    }

    #[test]
    fn what_a_module_waits_for_in_the_host_is_not_charged() {
        let mut world = WatchdogWorld::new();
        world.enter(0, 1, CallKind::Serving);
        for _ in 0..6 {
            assert_eq!(world.look(100, &[(0, 0, 'S')]), []);
        }
        // The log is slow; the call is still the same.
        let outside = world.seen[0];
        let inside_host = Crumb { in_host: true, ..outside.crumb.unwrap() };
        world.seen[0] = Seen { crumb: Some(inside_host), raw: outside.raw | 1 << 30, ..outside };
        assert_eq!(world.look_until_found(100, &[(0, 0, 'S')]), None);
        world.seen[0] = outside;
        assert_eq!(world.look_until_found(100, &[(0, 0, 'S')]), Some((6, hang(0, 1000, 'S'))));
    }

    #[test]
    fn a_thread_that_cannot_be_sampled_is_not_charged() {
        let mut world = WatchdogWorld::new();
        world.enter(0, 1, CallKind::Serving);
        world.samples.clear();
        assert_eq!(world.look_until_found(100, &[]), None);
    }

    #[test]
    fn a_call_whose_thread_has_ended_hangs_at_the_second_look_without_it() {
        let mut world = WatchdogWorld::new();
        world.enter(0, 1, CallKind::Long);
        assert_eq!(world.look(100, &[(0, 0, 'R')]), []);
        assert_eq!(world.look(100, &[(0, 0, GONE)]), [], "the process may be ending");
        let gone =
            Finding::Hang { slot: 0, crumb: crumb(0, CallKind::Long), charged: Duration::ZERO, state: GONE };
        assert_eq!(world.look(100, &[(0, 0, GONE)]), [gone]);
        assert_eq!(world.look(100, &[(0, 0, GONE)]), [], "told once");
    }

    #[test]
    fn what_a_module_has_the_host_do_without_end_is_charged() {
        let mut world = WatchdogWorld::new();
        world.enter(0, 1, CallKind::Serving);
        world.seen[0].crumb.as_mut().unwrap().in_host = true;
        let found = world.look_until_found(100, &[(0, 100, 'R')]);
        assert!(matches!(found, Some((11, Finding::Hang { .. }))), "{found:?}");
    }

    #[test]
    fn another_thread_in_the_same_place_is_another_call() {
        let mut world = WatchdogWorld::new();
        world.enter(0, 1, CallKind::Serving);
        for _ in 0..10 {
            assert_eq!(world.look(100, &[(0, 100, 'R')]), []);
        }
        world.seen[0].tid = 999;
        let found = world.look(100, &[]);
        assert!(matches!(found[..], [Finding::Overrun { .. }]), "{found:?}");
        assert_eq!(world.look_until_found(100, &[]), None);
    }

    #[test]
    fn short_limits_are_not_looked_at_all_the_time() {
        let short = CallLimits { call: MS, long: 10 * MS };
        assert_eq!(Watchdog::new(short).interval(), MIN_INTERVAL);
        let odd = CallLimits { call: 60_000 * MS, long: 1000 * MS };
        assert_eq!(Watchdog::new(odd).interval(), 100 * MS, "the shorter one counts");
    }

    #[test]
    fn a_name_may_look_like_anything() {
        // The flags are the sixth of these, the pending signals the last.
        let rest = "1 1 1 0 -1 4194560 10 0 0 0 25 17 0 0 20 0 1 0 100 1000 10 9 1 2 3 4 5 0";
        for name in ["cat", "a b", ") R 1 (", "))", ""] {
            let stat = Stat::read(&format!("42 ({name}) S {rest}"));
            assert_eq!(stat, Some(Stat { state: 'S', ticks: 42, is_ending: false }), "{name}");
        }
        let of = |rest: &str| Stat::read(&format!("42 (cat) R {rest}")).map(|stat| stat.is_ending);
        assert_eq!(of(&rest.replace("4194560", "4194564")), Some(true), "it exits");
        assert_eq!(of(&format!("{}256", rest.trim_end_matches('0'))), Some(true), "it is killed");
        assert_eq!(Stat::read("42 (cat) S 1 2"), None);
        assert_eq!(Stat::read("42 (cat"), None);
        assert_eq!(Stat::read(""), None);
        let per_second = rustix::param::clock_ticks_per_second();
        assert_eq!(
            Stat { state: 'R', ticks: per_second * 3, is_ending: false }.cpu(),
            Duration::from_secs(3)
        );
    }

    #[test]
    fn finds_a_real_thread_that_spins_and_one_that_waits_and_no_other() {
        use std::sync::atomic::{AtomicBool, Ordering};
        use std::sync::{Arc, mpsc};

        use crate::module::board::{Board, ModuleMark, inside, take_place};

        let board = Board::create(3).unwrap();
        let worker = Board::open(board.fd().try_clone_to_owned().unwrap()).unwrap();
        let worker: &'static Board = Box::leak(Box::new(worker));
        let end = Arc::new(AtomicBool::new(false));
        let is_over = || {
            let end = Arc::clone(&end);
            move || end.load(Ordering::Relaxed)
        };
        let (over, waits) = mpsc::channel::<()>();
        let (spins_until, calls_until) = (is_over(), is_over());
        let threads = [
            std::thread::spawn(move || {
                take_place(worker, 0);
                inside(ModuleMark::of_module(0), || {
                    while !spins_until() {
                        std::hint::spin_loop();
                    }
                });
            }),
            std::thread::spawn(move || {
                take_place(worker, 1);
                let _ = inside(ModuleMark::of_module(1), || waits.recv());
            }),
            std::thread::spawn(move || {
                take_place(worker, 2);
                while !calls_until() {
                    inside(ModuleMark::of_module(2), std::thread::yield_now);
                }
            }),
        ];
        let mut watchdog = Watchdog::new(CallLimits { call: 300 * MS, long: 1000 * MS });
        let mut hanging = HashMap::new();
        let deadline = Instant::now() + Duration::from_secs(60);
        while hanging.len() < 2 && Instant::now() < deadline {
            let sample = |tid| thread_sample(std::process::id(), tid);
            for finding in watchdog.look(Instant::now(), &board.look(), sample) {
                if let Finding::Hang { slot, crumb, state, .. } = finding {
                    hanging.insert(slot, (crumb.module, state));
                }
            }
            std::thread::yield_now();
        }
        end.store(true, Ordering::Relaxed);
        drop(over);
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(hanging, HashMap::from([(0, (0, 'R')), (1, (1, 'S'))]));
    }

    #[test]
    fn there_is_no_sample_of_a_thread_that_is_not_there() {
        assert!(thread_sample(std::process::id(), u32::MAX).is_none());
        assert!(thread_sample(std::process::id(), std::process::id()).is_some());
    }
}
