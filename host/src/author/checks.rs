//! The checks of `trylist module test`. They run in a process that the module may end, which writes one line at the begin of each
//! check and one at its end.

use std::fs;
use std::io::{self, Write};
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use lb_api::testkit::{
    Contract, FakeCluster, FakeRequest, Part, SettingValue, Table, TestBalancer, running_calls,
};
use lb_api::{Next, OutcomeKind};
use trylist::config::{self, Setting};
use trylist::module::{Module, load};
use trylist::process::sandbox::{self, SandboxTerms};

use super::process_state::ProcessState;
use crate::apart;
use crate::cli::Test;
use crate::output::{CommandFailure as Failure, count, line};

const LOADS: &str = "loads";
const BUILDS: &str = "builds with its settings";
const KEYS: &str = "keeps each key on its endpoint";
const WEIGHTS: &str = "follows effective weights";
const PROCESS: &str = "leaves its process as it was";
const TIME: &str = "time of a request's calls";
const OWN: [Part<Table>; 3] = [("frees what has ended", keeps_nothing), (TIME, |_| {}), (PROCESS, |_| {})];

/// Names of all checks, in their order.
pub(super) fn names() -> Vec<&'static str> {
    [LOADS, BUILDS].into_iter().chain(parts().map(|(name, _)| name)).collect()
}

fn parts() -> impl Iterator<Item = Part<Table>> {
    Contract::PARTS.into_iter().chain(OWN)
}

/// How a check ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum CheckResult {
    Ok(String),
    Failed(String),
    Skipped(String),
}

/// One line of what the child says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ChildLine {
    /// Name, version and file of the module.
    Module(String),
    Begun(usize),
    Ended(usize, CheckResult),
    /// A call does not return, so this process is of no more use.
    Hangs(usize, String),
}

/// Before each line, so that what a module prints is told apart.
const MARK: char = '\u{1}';

impl ChildLine {
    fn say(&self) {
        let text = match self {
            Self::Module(text) => format!("module\t{text}"),
            Self::Begun(check) => format!("begun\t{check}"),
            Self::Ended(check, CheckResult::Ok(text)) => format!("ok\t{check}\t{text}"),
            Self::Ended(check, CheckResult::Failed(text)) => format!("failed\t{check}\t{text}"),
            Self::Ended(check, CheckResult::Skipped(text)) => format!("skipped\t{check}\t{text}"),
            Self::Hangs(check, text) => format!("hangs\t{check}\t{text}"),
        };
        let text = text.replace(['\n', '\r'], " ");
        // A parent that is gone misses nothing.
        let mut stdout = io::stdout().lock();
        let _ = write!(stdout, "\n{MARK}{text}\n").and_then(|()| stdout.flush());
    }

    /// Reads such a line; none that somebody else printed.
    pub(super) fn read(line: &str) -> Option<Self> {
        let (kind, rest) = line.strip_prefix(MARK)?.split_once('\t')?;
        if kind == "module" {
            return Some(Self::Module(rest.to_owned()));
        }
        let (check, text) = rest.split_once('\t').unwrap_or((rest, ""));
        let (check, text) = (check.parse().ok()?, text.to_owned());
        Some(match kind {
            "begun" => Self::Begun(check),
            "ok" => Self::Ended(check, CheckResult::Ok(text)),
            "failed" => Self::Ended(check, CheckResult::Failed(text)),
            "skipped" => Self::Ended(check, CheckResult::Skipped(text)),
            "hangs" => Self::Hangs(check, text),
            _ => return None,
        })
    }
}

/// The settings that the command line gives.
pub(super) fn settings(test: &Test) -> Result<Vec<Setting>, Failure> {
    if let Some(file) = &test.settings {
        let name = file.display().to_string();
        let text = fs::read_to_string(file)
            .map_err(|error| Failure::new(format_args!("{name}: cannot be read: {error}")))?;
        return Ok(config::settings(&name, &text)?);
    }
    let mut lines = String::new();
    for setting in &test.setting {
        let Some((key, value)) = setting.split_once('=') else {
            return Err(Failure::new(format_args!("--setting {setting}: expected KEY=VALUE")));
        };
        let as_it_is = format!("{key} = {value}");
        let quoted = format!("{key} = {}", toml::Value::String(value.to_owned()));
        let is_toml = config::settings("--setting", &as_it_is).is_ok();
        lines.push_str(&line(if is_toml { &as_it_is } else { &quoted }));
    }
    Ok(config::settings("--setting", &lines)?)
}

/// Runs the checks from `first` on and prints their results. It does not fail itself.
pub(super) fn run(test: &Test, settings: Vec<Setting>, first: usize) {
    panic::set_hook(Box::new(|panic| {
        let payload = panic.payload();
        let text = payload.downcast_ref::<String>().cloned();
        let text = text.or_else(|| payload.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        let text = text.unwrap_or_else(|| "panicked".to_owned());
        // The first one is the cause; a scope of threads that one of them left panics too, and says less.
        PANIC.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(text);
    }));
    // After a restart these have been told.
    let tell = |said: ChildLine| {
        if first == 0 {
            said.say();
        }
    };
    watch_calls(Duration::from_secs(test.call_limit));
    begin(0);
    let without = ProcessState::now();
    let copied = load::read_file(&test.file).map_err(|error| error.to_string());
    // The file may be one that only root can read; its code is not to have root's rights.
    let copied = copied.and_then(|copied| apart::become_user(None, test.as_root).map(|()| copied));
    let copied = copied.and_then(|copied| copied.runnable().map_err(|error| error.to_string()));
    // A check looks for limits that the module has changed.
    let _ = sandbox::confine(SandboxTerms { tells_exits: false, holds_limits: false });
    let loaded = copied.and_then(|copied| load::open_any(copied).map_err(|error| error.to_string()));
    let module = match loaded {
        Ok(module) => module,
        Err(why) => return ChildLine::Ended(0, CheckResult::Failed(why)).say(),
    };
    let loaded = ProcessState::now();
    tell(ChildLine::Module(describe(&module)));
    tell(ChildLine::Ended(0, CheckResult::Ok(String::new())));
    let contract = contract(&module, test, settings);
    begin(1);
    match attempt(|| builds(&contract)) {
        Ok(text) => tell(ChildLine::Ended(1, CheckResult::Ok(text))),
        Err(why) => return ChildLine::Ended(1, CheckResult::Failed(why)).say(),
    }
    for (check, part) in (2..).zip(parts()).filter(|(check, _)| *check >= first) {
        begin(check);
        let verdict = match not_requested(test, part.0, &contract) {
            Some(text) => CheckResult::Skipped(text),
            None if part.0 == PROCESS => process_is_as_before(&without, &loaded),
            None => verdict(part, &contract),
        };
        ChildLine::Ended(check, verdict).say();
    }
}

/// The check that runs.
static RUNNING: AtomicUsize = AtomicUsize::new(0);

fn begin(check: usize) {
    RUNNING.store(check, Relaxed);
    ChildLine::Begun(check).say();
}

/// Tells the parent when a call takes longer than its limit. The parent ends this process.
fn watch_calls(limit: Duration) {
    let watch = move || {
        let mut seen = Vec::new();
        loop {
            std::thread::sleep(limit / 8);
            let running = running_calls();
            seen.retain(|(call, _)| running.contains(call));
            let new: Vec<_> =
                running.into_iter().filter(|call| !seen.iter().any(|(seen, _)| seen == call)).collect();
            seen.extend(new.into_iter().map(|call| (call, Instant::now())));
            if let Some(((_, name), _)) = seen.iter().find(|(_, since)| since.elapsed() >= limit) {
                let limit = count(limit.as_secs() as usize, "second");
                return ChildLine::Hangs(
                    RUNNING.load(Relaxed),
                    format!("{name} did not return within {limit}"),
                )
                .say();
            }
        }
    };
    // Without the thread, the parent's time limit remains.
    let _ = std::thread::Builder::new().name("time limit".to_owned()).spawn(watch);
}

/// Why a check is left out.
fn not_requested(test: &Test, name: &str, contract: &Contract<Table>) -> Option<String> {
    if test.only.as_ref().is_some_and(|only| !name.contains(only.as_str())) {
        return Some("not requested (--only)".to_owned());
    }
    match name {
        WEIGHTS if test.weighted.is_none() => {
            let found = match attempt(|| contract.largest_difference()) {
                Ok((difference, _)) if difference < 1.0 => {
                    format!("each endpoint is within {:.1} % of its share", 100.0 * difference)
                }
                Ok((_, text)) | Err(text) => text,
            };
            Some(format!("not requested (--weighted TOLERANCE); {found}"))
        }
        KEYS if !test.keyed => Some("not requested (--keyed)".to_owned()),
        _ => None,
    }
}

fn verdict((name, part): Part<Table>, contract: &Contract<Table>) -> CheckResult {
    let checked = attempt(|| match name {
        TIME => times(contract),
        _ => {
            part(contract);
            String::new()
        }
    });
    checked.map_or_else(CheckResult::Failed, CheckResult::Ok)
}

/// A runtime that comes with the library may install its own handlers and threads when it is loaded; nothing may change later.
fn process_is_as_before(without: &ProcessState, loaded: &ProcessState) -> CheckResult {
    let has_runtime = loaded.has_more_threads_than(without);
    // The image itself is a descriptor.
    let at_load = loaded.changes_since(&without.with_descriptors_of(loaded), has_runtime);
    let since = ProcessState::now().changes_since(loaded, has_runtime);
    match (since, at_load, has_runtime) {
        (Some(changes), ..) => CheckResult::Failed(changes),
        (None, Some(changes), false) => CheckResult::Failed(format!("{changes} (when it was loaded)")),
        (None, Some(changes), true) => {
            CheckResult::Ok(format!("but for the runtime that came with it: {changes}"))
        }
        (None, None, true) => {
            CheckResult::Ok("but for the threads of the runtime that came with it".to_owned())
        }
        (None, None, false) => CheckResult::Ok(String::new()),
    }
}

/// Settings may be right for clusters of other sizes only: those are left out, and told.
fn builds(contract: &Contract<Table>) -> String {
    drop(contract.build(&FakeCluster::equal(3)));
    let refused = contract.refused_sizes();
    let Some((_, why)) = refused.first() else { return String::new() };
    let sizes: Vec<_> = refused.iter().map(|(n, _)| n.to_string()).collect();
    format!("but not for clusters of {} ({why}), which are left out", sizes.join(", "))
}

static PANIC: Mutex<Option<String>> = Mutex::new(None);

/// Its result, or the text of its panic.
fn attempt<T>(check: impl FnOnce() -> T) -> Result<T, String> {
    let panicked = || PANIC.lock().unwrap_or_else(PoisonError::into_inner).take();
    panicked();
    panic::catch_unwind(AssertUnwindSafe(check)).map_err(|_| {
        let text = panicked().unwrap_or_default();
        text.strip_prefix("contract: ").unwrap_or(&text).to_owned()
    })
}

fn describe(module: &Module) -> String {
    let file = module.file().display();
    format!("{} {}, in {}: {file}", module.id(), module.version(), module.language())
}

fn contract(module: &Arc<Module>, test: &Test, settings: Vec<Setting>) -> Contract<Table> {
    let mut contract = module.contract();
    for Setting { path, value, .. } in settings {
        contract = contract.setting(&path, value_of(value));
    }
    contract = contract.seed(test.seed);
    if test.skips_unavailable {
        contract = contract.skips_unavailable();
    }
    if test.may_end_early {
        contract = contract.may_end_early();
    }
    if test.keyed {
        contract = contract.keyed();
    }
    match test.weighted {
        Some(tolerance) => contract.weighted(tolerance),
        None => contract,
    }
}

fn value_of(value: config::SettingValue) -> SettingValue {
    match value {
        config::SettingValue::Table(n) => SettingValue::Table(n),
        config::SettingValue::Array(n) => SettingValue::Array(n),
        config::SettingValue::String(text) => SettingValue::String(text.into()),
        config::SettingValue::Integer(integer) => SettingValue::Integer(integer),
        config::SettingValue::Float(float) => SettingValue::Float(float),
        config::SettingValue::Boolean(boolean) => SettingValue::Boolean(boolean),
    }
}

// ---- memory --------------------------------------------------------------------------------------------------------

/// That many requests, and that many instances, go by in a round. A leak of theirs must show in whole pages.
const REQUESTS: usize = 50_000;
const SAVES: usize = 2_000;
const EXPLANATIONS: usize = 10_000;
const INSTANCES: usize = 1_000;
/// Fewer instances where building them takes long; what takes long to build is large, and shows sooner.
const ROUND: Duration = Duration::from_secs(1);
const FEWEST_INSTANCES: usize = 50;
/// Growth that some rounds may leave behind, because of the allocator. Less than two bytes a request.
const LEFT_BYTES: usize = 256 << 10;
/// A leak may go into pages that others have left for a while, but not for so many rounds.
const ROUNDS: usize = 3;

fn keeps_nothing(contract: &Contract<Table>) {
    let few = FakeCluster::equal(3);
    let balancer = contract.build(&few);
    grows("request", REQUESTS, || (0..REQUESTS).for_each(|n| request(&balancer, n)));
    grows("save", SAVES, || (0..SAVES).for_each(|_| drop(balancer.save())));
    grows("explain", EXPLANATIONS, || {
        (0..EXPLANATIONS).for_each(|_| {
            let mut trylist = balancer.load_balance(FakeRequest::get("/"));
            let _ = (trylist.next(), trylist.explain());
        });
    });
    let many = FakeCluster::equal(200);
    let cluster = if contract.try_build(&many).is_ok() { &many } else { &few };
    let started = Instant::now();
    drop(contract.build(cluster));
    let fit = (ROUND.as_nanos() / started.elapsed().as_nanos().max(1)) as usize;
    let n = fit.clamp(FEWEST_INSTANCES, INSTANCES);
    grows(&format!("instance of {} endpoints", cluster.len()), n, || {
        (0..n).for_each(|_| drop(contract.build(cluster)));
    });
}

/// Requests that end in every way.
fn request(balancer: &TestBalancer<Table>, n: usize) {
    let asked = FakeRequest::get("/");
    // Few keys: what is remembered for each is no leak.
    let mut trylist =
        balancer.load_balance(if n % 8 < 4 { asked } else { asked.key(format!("key {}", n % 64)) });
    match n % 4 {
        0 => {}
        1 => {
            let _ = trylist.next();
        }
        2 => {
            while let Next::Endpoint(_) = trylist.next() {
                trylist.fail();
            }
            trylist.finish(OutcomeKind::Failed, Some(502));
        }
        _ => {
            let _ = trylist.next();
            trylist.serve();
        }
    }
}

/// A first round takes what every later one uses again. Growth once may be an allocator's; twice it is a leak.
#[track_caller]
fn grows(of: &str, n: usize, round: impl Fn()) {
    round();
    let mut least = usize::MAX;
    for _ in 0..2 {
        let before = resident_bytes();
        (0..ROUNDS).for_each(|_| round());
        least = least.min(resident_bytes().saturating_sub(before));
    }
    assert!(
        least <= LEFT_BYTES,
        "memory grows by about {} bytes for each {of} that has ended",
        least / n / ROUNDS
    );
}

/// Memory that this process has.
fn resident_bytes() -> usize {
    let text = fs::read_to_string("/proc/self/statm").expect("this is Linux");
    let pages: usize =
        text.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("a number of pages");
    pages * rustix::param::page_size()
}

// ---- time ----------------------------------------------------------------------------------------------------------

/// As long as one measurement should take.
const MEASURED: Duration = Duration::from_millis(20);

fn times(contract: &Contract<Table>) -> String {
    let of = |n: usize| match contract.try_build(&FakeCluster::equal(n)) {
        Ok(balancer) => {
            let built = balancer.built_in();
            format!("{} at {n} endpoints (built in {built:.1?})", time(TestBalancer::time, &balancer))
        }
        Err(why) => format!("refuses {n} endpoints ({why})"),
    };
    let served = [3, 100, 10_000].map(of).join(", ");
    match contract.try_build(&FakeCluster::equal(100)) {
        Ok(balancer) => {
            format!("{served}; {} after a failed try", time(TestBalancer::time_of_failure, &balancer))
        }
        Err(_) => served,
    }
}

/// Of one request: the best of several measurements, because others use this machine too.
fn time(
    of: fn(&TestBalancer<Table>, FakeRequest, usize) -> Duration,
    balancer: &TestBalancer<Table>,
) -> String {
    let request = || FakeRequest::get("/").key("a key");
    let few = 10;
    let one = of(balancer, request(), few).max(Duration::from_nanos(1)) / few as u32;
    let n = (MEASURED.as_nanos() / one.as_nanos().max(1)).clamp(few as u128, 1_000_000) as usize;
    let best = (0..5).map(|_| of(balancer, request(), n)).min().expect("five are more than none");
    format!("{:.0} ns", best.as_nanos() as f64 / n as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_what_is_read() {
        assert_eq!(ChildLine::read("\u{1}begun\t3"), Some(ChildLine::Begun(3)));
        let failed = ChildLine::Ended(4, CheckResult::Failed("a\tb".into()));
        assert_eq!(ChildLine::read("\u{1}failed\t4\ta\tb"), Some(failed));
        assert_eq!(
            ChildLine::read("\u{1}ok\t0\t"),
            Some(ChildLine::Ended(0, CheckResult::Ok(String::new())))
        );
        assert_eq!(ChildLine::read("what a module prints"), None);
    }

    #[test]
    fn the_parts_that_are_treated_apart_are_there() {
        assert!(parts().any(|(name, _)| name == WEIGHTS));
    }
}
