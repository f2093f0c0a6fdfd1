//! A module in one cluster: the host's services to it, its faults and its quarantine, all of which outlive one balancer.

use std::cell::Cell;
use std::ffi::c_void;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use lb_api::wire;

use super::quarantine::{Quarantine, WINDOW};
use crate::module::board::{self, ModuleMark};
use crate::module::wire::slice;
use crate::module::{Module, OneLine};

/// A module's mistake while serving a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModuleFault {
    /// It panicked.
    Panic,
    /// It returned a status other than "done".
    Status,
    /// It answered with an endpoint that the cluster does not have.
    OutOfRange,
    /// It answered with an endpoint that it had answered before in this request.
    AlreadyTried,
    /// It answered with a kind that the ABI does not have.
    UnknownKind,
    /// It was in a call for longer than a call may take, but came back. Seen from outside, by a supervisor.
    Overrun,
}

impl ModuleFault {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Panic, Self::Status, Self::OutOfRange, Self::AlreadyTried, Self::UnknownKind, Self::Overrun];

    /// Its name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Panic => "panic",
            Self::Status => "status",
            Self::OutOfRange => "out_of_range",
            Self::AlreadyTried => "already_tried",
            Self::UnknownKind => "unknown_kind",
            Self::Overrun => "overrun",
        }
    }
}

/// A module in one cluster of one generation: the services that it was given, its faults, its quarantine. All its balancers there
/// share it, those of each tier and those that replace each other, which may share learned state that still logs through it.
pub struct ModuleScope {
    pub(super) api: wire::HostApi,
    pub(super) cluster: Box<str>,
    pub(super) module: Arc<Module>,
    /// Its identity in crumbs.
    pub(super) mark: ModuleMark,
    start: Instant,
    faults: [Tally; ModuleFault::ALL.len()],
    lines: LineRate,
    quarantine: Quarantine,
}

// SAFETY: all but `api` is `Send` and `Sync`; its one pointer points to the `ModuleScope` itself and is only handed over.
unsafe impl Send for ModuleScope {}

// SAFETY: as above.
unsafe impl Sync for ModuleScope {}

impl ModuleScope {
    /// The scope of this module in the cluster of this name. `cluster_idx` is its index in the configuration, where a supervisor
    /// is to know what a thread is inside of. So many faults within a minute put the module in quarantine; 0 is never.
    pub fn new(
        module: &Arc<Module>,
        cluster: &str,
        cluster_idx: Option<usize>,
        fault_limit: u32,
    ) -> Arc<Self> {
        let mark = cluster_idx.map_or(module.mark, |idx| module.mark.in_cluster(idx));
        let module = Arc::clone(module);
        Arc::new_cyclic(|this: &Weak<Self>| Self {
            api: wire::HostApi {
                size: size_of::<wire::HostApi>() as u32,
                reserved: 0,
                ctx: this.as_ptr().cast_mut().cast(),
                log,
                panicked,
            },
            cluster: cluster.into(),
            module,
            mark,
            start: Instant::now(),
            faults: Default::default(),
            lines: LineRate::default(),
            quarantine: Quarantine::after(fault_limit),
        })
    }

    /// The module.
    pub fn module(&self) -> &Arc<Module> {
        &self.module
    }

    /// Number of these faults.
    pub fn faults(&self, fault: ModuleFault) -> u64 {
        self.faults[fault as usize].count.load(Ordering::Relaxed)
    }

    /// Whether it had too many faults: its balancers get no new trylists, the existing ones go on to their end, and no more are
    /// built. It stays so.
    #[inline]
    pub fn is_quarantined(&self) -> bool {
        self.quarantine.is_in()
    }

    /// Puts it in quarantine, for a reason that is logged once.
    #[cold]
    pub fn enter_quarantine(&self, why: &dyn fmt::Display) {
        if self.quarantine.enter() {
            let (module, version, cluster) = (self.module.id(), self.module.version(), &*self.cluster);
            tracing::error!(
                "cluster \"{cluster}\": module \"{module}\" {version} is in quarantine until the next reload: {why}; the host \
                 chooses servers for its requests"
            );
        }
    }

    /// Counts a fault that the host found in an answer, or a supervisor in how long a call took. The first of each kind
    /// is logged as an error, and then one line at most every ten seconds, so that a bad module fills no disk.
    #[cold]
    pub fn fault(&self, fault: ModuleFault, detail: &dyn fmt::Display) {
        let (module, cluster, kind) = (self.module.id(), &*self.cluster, fault.name());
        let now = self.start.elapsed();
        match self.faults[fault as usize].add(now) {
            Some(0) => tracing::error!(module, cluster, fault = kind, "module fault: {detail}"),
            Some(suppressed) => {
                tracing::error!(module, cluster, fault = kind, suppressed, "module fault: {detail}");
            }
            None => tracing::debug!(module, cluster, fault = kind, "module fault: {detail}"),
        }
        if self.quarantine.fault(now) {
            let (version, limit) = (self.module.version(), self.quarantine.limit());
            tracing::error!(
                "cluster \"{cluster}\": module \"{module}\" {version} is in quarantine until the next reload: {limit} \
                 faults within {} s (last: {detail}); the host chooses servers for its requests",
                WINDOW.as_secs()
            );
        }
    }
}

impl fmt::Debug for ModuleScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (module, cluster) = (self.module.id(), &self.cluster);
        f.debug_struct("ModuleScope")
            .field("module", &module)
            .field("cluster", cluster)
            .finish_non_exhaustive()
    }
}

/// A count whose every rise wants to be logged, and is not.
#[derive(Debug, Default)]
struct Tally {
    count: AtomicU64,
    /// How many of them have had, or were counted by, a line.
    said: AtomicU64,
    /// When the next line may come, milliseconds.
    due_ms: AtomicU64,
}

/// Time between two lines on the same fault of the same balancer.
const LINE_EVERY: Duration = Duration::from_secs(10);

impl Tally {
    /// Counts one. Where a line is due, says how many went without one since the last.
    fn add(&self, now: Duration) -> Option<u64> {
        let count = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        let now_ms = now.as_millis() as u64;
        let due_ms = self.due_ms.load(Ordering::Relaxed);
        let next_ms = now_ms + LINE_EVERY.as_millis() as u64;
        // Of several threads at the same time one gets the line.
        let is_mine = now_ms >= due_ms
            && self.due_ms.compare_exchange(due_ms, next_ms, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        is_mine.then(|| count.saturating_sub(self.said.swap(count, Ordering::Relaxed) + 1))
    }
}

/// Lines that a module may log in a second for one cluster. More are a mistake, and would fill a disk.
const LINES_A_SECOND: u64 = 100;

/// The lines of one second: its number in the upper half, their count in the lower.
#[derive(Debug, Default)]
struct LineRate(AtomicU64);

impl LineRate {
    /// Counts a line. None where it is one too many, else how many too many there were in the second with the last line before.
    fn take(&self, second: u64) -> Option<u64> {
        const COUNT: u64 = u32::MAX as u64;
        let second = second & COUNT;
        let count = |word: u64| Some(if word >> 32 == second { word + 1 } else { second << 32 | 1 });
        let before = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, count);
        let before = before.unwrap_or_else(|word| word);
        match (before >> 32 == second, before & COUNT) {
            (true, n) => (n < LINES_A_SECOND).then_some(0),
            (false, n) => Some(n.saturating_sub(LINES_A_SECOND)),
        }
    }
}

impl LineRate {
    /// How many too many there were in the last second with a line.
    fn left_out(&self) -> u64 {
        (self.0.load(Ordering::Relaxed) & u64::from(u32::MAX)).saturating_sub(LINES_A_SECOND)
    }
}

impl Drop for ModuleScope {
    /// No further line will say it.
    fn drop(&mut self) {
        say_left_out(&self.module, &self.cluster, self.lines.left_out());
    }
}

fn say_left_out(module: &Module, cluster: &str, n: u64) {
    if n > 0 {
        tracing::warn!(
            module = module.id(),
            cluster,
            "{n} lines of the module were left out: {LINES_A_SECOND} a second are logged"
        );
    }
}

thread_local! {
    /// Text of the panic that the module caught, until its call returns and says in which call it was.
    static PANIC: Cell<Option<String>> = const { Cell::new(None) };
}

pub(super) fn take_panic() -> Option<String> {
    PANIC.try_with(Cell::take).ok().flatten()
}

/// Text of the module's panic in this call. The SDK writes `panicked at src/lib.rs:5: …`.
pub(super) fn panic_text(call: &str, text: Option<String>) -> String {
    match text {
        Some(text) if text.starts_with("panicked") => format!("{call} {text}"),
        Some(text) => format!("{call} panicked: {text}"),
        None => format!("{call} panicked without a message"),
    }
}

/// [`wire::HostApi::panicked`].
unsafe extern "C" fn panicked(_ctx: *mut c_void, text: wire::Str) {
    // SAFETY: the ABI promises valid text for the time of the call.
    let text = OneLine(unsafe { slice(&text) }).to_string();
    let _ = PANIC.try_with(|panic| panic.set(Some(text)));
}

/// [`wire::HostApi::log`].
unsafe extern "C" fn log(ctx: *mut c_void, level: u32, text: wire::Str) {
    // SAFETY: `ctx` is that of a `HostApi` that `ModuleScope::new` made, and the balancer keeps its scope alive.
    let scope = unsafe { &*ctx.cast_const().cast::<ModuleScope>() };
    let (module, cluster) = (scope.module.id(), &*scope.cluster);
    let Some(n_left_out) = scope.lines.take(scope.start.elapsed().as_secs()) else { return };
    say_left_out(&scope.module, cluster, n_left_out);
    // SAFETY: the ABI promises valid text for the time of the call.
    let text = OneLine(unsafe { slice(&text) });
    // A slow reader of the log is not the module's fault.
    board::in_host(|| match level {
        wire::LOG_ERROR => tracing::error!(module, cluster, "{text}"),
        wire::LOG_WARN => tracing::warn!(module, cluster, "{text}"),
        wire::LOG_DEBUG => tracing::debug!(module, cluster, "{text}"),
        _ => tracing::info!(module, cluster, "{text}"),
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_second_are_limited_and_the_next_says_how_many_were_left_out() {
        let lines = LineRate::default();
        let said = |second, n| (0..n).filter(|_| lines.take(second).is_some()).count();
        assert_eq!(said(0, 100), 100);
        assert_eq!(said(0, 25), 0);
        assert_eq!(lines.take(3), Some(25));
        assert_eq!(said(3, 200), 99);
        assert_eq!((lines.take(4), lines.take(9)), (Some(101), Some(0)));
    }

    #[test]
    fn one_fault_in_ten_seconds_is_logged_and_all_are_counted() {
        let tally = Tally::default();
        let second = Duration::from_secs;
        assert_eq!(tally.add(second(3)), Some(0));
        assert_eq!(tally.add(second(3)), None);
        assert_eq!(tally.add(second(12)), None, "the others do not put the next line off");
        assert_eq!(tally.add(second(13)), Some(2));
        assert_eq!(tally.add(second(30)), Some(0));
        assert_eq!(tally.count.load(Ordering::Relaxed), 5);
    }
}
