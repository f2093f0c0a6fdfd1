//! A module's instance for one cluster, and the only way to its calls.
//!
//! Every call that enters a module goes through [`in_module`], and what a call says of itself (its status) is judged in
//! one place, [`Balancer::judge`]. What a call *answers* is judged by whoever asked: `trylist.rs` checks the endpoint and
//! reports a fault here, so that all faults of a balancer are counted and logged in one place.
#![allow(unsafe_code, reason = "calls into modules take raw pointers; no other file makes them")]

use std::cell::Cell;
use std::ffi::c_void;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use lb_api::wire;

use crate::config::{Place, Setting, SettingValue};
use crate::module::{Calls, Module, OneLine};

/// One endpoint as a balancer gets to know it. Its index in [`BuildInput::endpoints`] is its name in every call.
#[derive(Clone, Copy, Debug)]
pub struct Endpoint<'a> {
    /// Stable over reloads: made of cluster, URL as written, occurrence of that URL, and address.
    pub id: u64,
    /// The URL as written.
    pub url: &'a str,
    /// Host name or address as written, without brackets.
    pub name: &'a str,
    /// Port as written or the scheme's default.
    pub port: u16,
    /// The resolved address, where it is known.
    pub address: Option<IpAddr>,
    /// 1 to 65,535.
    pub weight: u16,
    /// Pairs in the order of the file.
    pub metadata: &'a [(Arc<str>, Arc<str>)],
    /// The live numbers: the module may keep this reference for the life of the process.
    pub counters: &'static wire::Counters,
}

/// What a balancer is built from.
#[derive(Clone, Copy, Debug)]
pub struct BuildInput<'a> {
    /// Name of the cluster.
    pub cluster: &'a str,
    /// All endpoints, in configuration order; at least one.
    pub endpoints: &'a [Endpoint<'a>],
    /// The cluster's live numbers.
    pub state: &'static wire::ClusterState,
    /// The module's own settings.
    pub settings: &'a [Setting],
    /// The cluster's balancer that the new one will replace. The module sees it only where it is its own, of the same load.
    pub previous: Option<&'a Balancer>,
    /// What the cluster's balancer of an earlier generation saved.
    pub saved: Option<&'a [u8]>,
}

/// Why a module refused to build: every reason that it gave, at least one.
#[derive(Debug)]
pub struct BuildError {
    /// Name of the cluster.
    pub cluster: Box<str>,
    /// ID of the module.
    pub module: Box<str>,
    /// The reasons.
    pub problems: Vec<Problem>,
}

/// One reason why a module refused to build.
#[derive(Debug)]
pub struct Problem {
    /// The setting at fault in the form of [`wire::Setting::path`], or empty.
    pub path: Box<str>,
    /// What is wrong, on one line.
    pub text: Box<str>,
    /// Where the setting (or, where it is missing, its table) stands in the configuration.
    pub place: Option<Place>,
}

/// What a balancer wants gathered for it; the host gathers nothing else.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// The cluster's key of each request.
    pub key: bool,
    /// `1 << EVENT_X` for every event to be observed.
    pub events: u32,
    /// Names of request headers, lower case, in the module's order.
    pub request_headers: Box<[Box<str>]>,
    /// Names of response headers, lower case, in the module's order.
    pub response_headers: Box<[Box<str>]>,
}

/// The module panicked in this call, or said by its status that it did not do what it was asked. It is already counted
/// and logged. The trylist gets nothing more but its `drop`; after [`Balancer::load_balance`] there is no trylist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Panicked;

/// What a module did wrong while serving a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
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
}

/// A module's instance for one cluster. Any call may come from any thread.
pub struct Balancer {
    calls: Calls,
    /// What the module's `build` made; may be null, only the module knows.
    instance: *mut c_void,
    events: u32,
    needs: Needs,
    scope: Arc<Scope>,
    module: Arc<Module>,
}

// SAFETY: the ABI promises (`wire::Module`, "Threads") that any call on an instance may come from any thread, at the
// same time as others; the pointer is never used but in such calls.
unsafe impl Send for Balancer {}
// SAFETY: as above.
unsafe impl Sync for Balancer {}

/// What outlives one balancer: the services that its module was given, and the count of its faults. A balancer that
/// replaces one of the same module takes it over, because the two may share learned state that still logs through it.
struct Scope {
    api: wire::HostApi,
    cluster: Box<str>,
    module: Arc<Module>,
    start: Instant,
    faults: [Tally; Fault::ALL.len()],
}

// SAFETY: all but `api` is `Send` and `Sync`; its one pointer points to the `Scope` itself and is only handed over.
unsafe impl Send for Scope {}
// SAFETY: as above.
unsafe impl Sync for Scope {}

/// Every module call goes through here, so that what surrounds a call is said once. This is where a thread leaves its
/// breadcrumb (two relaxed stores, before and after) when a supervisor wants to know which module killed a worker.
#[inline(always)]
pub(super) fn in_module<R>(call: impl FnOnce() -> R) -> R {
    call()
}

impl Balancer {
    /// Makes an instance of `module`. Costs what the module makes of it, and one pass over endpoints and settings.
    ///
    /// # Errors
    ///
    /// What the module said against it; also where it panicked, or asks for what no host can give.
    pub fn build(module: &Arc<Module>, input: BuildInput<'_>) -> Result<Self, BuildError> {
        let previous = input.previous.filter(|previous| previous.is_replaceable_by(module, input.cluster));
        let scope = previous.map_or_else(
            || Scope::new(Arc::clone(module), input.cluster),
            |previous| Arc::clone(&previous.scope),
        );
        let refused = |problems| BuildError {
            cluster: input.cluster.into(),
            module: module.id().into(),
            problems: place(problems, input.settings),
        };

        let metadata: Vec<Box<[wire::Pair]>> = input.endpoints.iter().map(|e| pairs(e.metadata)).collect();
        let endpoints: Vec<wire::Endpoint> =
            input.endpoints.iter().zip(&metadata).map(|(endpoint, pairs)| endpoint.to_wire(pairs)).collect();
        let settings: Vec<wire::Setting> = input.settings.iter().map(setting).collect();
        let mut problems: Vec<(String, String)> = Vec::new();
        let errors = wire::ErrorSink {
            size: size_of::<wire::ErrorSink>() as u32,
            reserved: 0,
            ctx: (&raw mut problems).cast(),
            error: push_problem,
        };
        let mut needs = wire::Needs {
            size: size_of::<wire::Needs>() as u32,
            flags: 0,
            events: 0,
            reserved: 0,
            request_headers: ptr::null(),
            n_request_headers: 0,
            response_headers: ptr::null(),
            n_response_headers: 0,
        };
        let cx = wire::BuildCx {
            size: size_of::<wire::BuildCx>() as u32,
            reserved: 0,
            cluster: text(input.cluster),
            endpoints: endpoints.as_ptr(),
            n_endpoints: endpoints.len(),
            endpoint_stride: size_of::<wire::Endpoint>(),
            settings: settings.as_ptr(),
            n_settings: settings.len(),
            setting_stride: size_of::<wire::Setting>(),
            state: input.state,
            previous: previous.map_or(ptr::null(), |previous| previous.instance.cast_const()),
            saved: input.saved.map_or(ABSENT, bytes),
            host: &raw const scope.api,
            errors: &raw const errors,
            needs: &raw mut needs,
        };
        let calls = module.library.calls;
        let mut instance = ptr::null_mut();
        // SAFETY: `cx` and all that it points to live until after the call, `scope` until after the balancer, and
        // `previous` is an instance of this very library. The module keeps to the ABI, as `load` checked by its version.
        let status = in_module(|| unsafe { (calls.build)(&raw const cx, &raw mut instance) });

        match status {
            wire::STATUS_OK => {}
            wire::STATUS_PANICKED => {
                let why = problems.pop().map(|(_, text)| text).or_else(take_panic);
                return Err(refused(vec![(
                    String::new(),
                    format!("it panicked in build: {}", why.as_deref().unwrap_or("no message")),
                )]));
            }
            _ if problems.is_empty() => {
                return Err(refused(vec![(
                    String::new(),
                    "it refused to build, and did not say why".into(),
                )]));
            }
            _ => return Err(refused(problems)),
        }
        let mut balancer = Self {
            calls,
            instance,
            events: needs.events,
            needs: Needs::default(),
            scope,
            module: Arc::clone(module),
        };
        // From here on the instance is dropped by `balancer`, whatever else is found.
        // SAFETY: the ABI keeps the names valid until the balancer is dropped.
        match unsafe { Needs::from_wire(&needs) } {
            Ok(needs) => balancer.needs = needs,
            Err(why) => problems.push((String::new(), why)),
        }
        if balancer.events != 0 && calls.observe.is_none() {
            problems.push((String::new(), "it asks for events, but has no call \"observe\"".into()));
        }
        if problems.is_empty() { Ok(balancer) } else { Err(refused(problems)) }
    }

    /// What it wants gathered.
    pub fn needs(&self) -> &Needs {
        &self.needs
    }

    /// The module that it is an instance of.
    pub fn module(&self) -> &Arc<Module> {
        &self.module
    }

    /// How often its module did this wrong, in this cluster, since the first of the balancers that followed each other.
    pub fn faults(&self, fault: Fault) -> u64 {
        self.scope.faults[fault as usize].count.load(Ordering::Relaxed)
    }

    /// Counts a fault that the host found in an answer. The first of each kind is logged as an error, and then one line
    /// at most every ten seconds, so that a bad module fills no disk.
    #[cold]
    pub fn fault(&self, fault: Fault, detail: &dyn fmt::Display) {
        self.scope.fault(fault, detail, Instant::now());
    }

    /// What it learned, for the balancer that replaces it in another process; `None` where its module does not save.
    /// Requests go on meanwhile. It may take as long as the module takes: not to be called from a thread that serves.
    ///
    /// # Errors
    ///
    /// The module failed in the call (counted and logged), or wrote more than anybody should carry.
    pub fn save(&self) -> Result<Option<Vec<u8>>, SaveError> {
        let Some(save) = self.calls.save else { return Ok(None) };
        let mut bytes = Vec::new();
        let mut writer = Writer { bytes: &mut bytes, limit: SAVE_BYTES, overflowed: false };
        let sink = writer.sink();
        // SAFETY: the instance is alive, and `sink` and its writer live until after the call.
        self.judge("save", in_module(|| unsafe { save(self.instance, &raw const sink) }))
            .map_err(|Panicked| SaveError::Panicked)?;
        if writer.overflowed { Err(SaveError::TooLong) } else { Ok(Some(bytes)) }
    }

    fn is_replaceable_by(&self, module: &Module, cluster: &str) -> bool {
        ptr::eq(self.module.library, module.library) && *self.scope.cluster == *cluster
    }

    /// Every status goes through here: what is not "done" is counted and logged at once.
    #[inline]
    fn judge(&self, call: &str, status: u32) -> Result<(), Panicked> {
        if status == wire::STATUS_OK { Ok(()) } else { Err(self.failed(call, status)) }
    }

    #[cold]
    fn failed(&self, call: &str, status: u32) -> Panicked {
        if status == wire::STATUS_PANICKED {
            let why = take_panic();
            let why = why.as_deref().unwrap_or("no message");
            self.fault(Fault::Panic, &format_args!("it panicked in {call}: {why}"));
        } else {
            self.fault(Fault::Status, &format_args!("{call} returned status {status}"));
        }
        Panicked
    }
}

/// The calls of one request, for the guard in `trylist.rs` and nobody else. None of them allocates, locks, or waits.
///
/// # Safety
///
/// For all of them: `trylist` points to storage of the size and alignment of [`Module::trylist`] that does not move, was
/// filled in by a successful `load_balance` of this balancer, and has not been dropped; `request` stays valid until it is;
/// no two calls on one trylist run at the same time; after an error only `drop_trylist` follows.
impl Balancer {
    /// The hook: writes this request's trylist into `trylist`. After an error nothing is there to be dropped.
    ///
    /// # Safety
    ///
    /// As above, but that nothing is in `trylist` yet.
    ///
    /// # Errors
    ///
    /// The module failed in the call.
    #[inline]
    pub unsafe fn load_balance(
        &self,
        request: *const wire::Request,
        trylist: *mut c_void,
    ) -> Result<(), Panicked> {
        // SAFETY: the caller's promise; the instance lives as long as `self`.
        let status = in_module(|| unsafe { (self.calls.load_balance)(self.instance, request, trylist) });
        self.judge("load_balance", status)
    }

    /// Asks for the endpoint of the next try. The answer is what the module wrote, unchecked.
    ///
    /// # Safety
    ///
    /// As above.
    ///
    /// # Errors
    ///
    /// The module failed in the call; the answer means nothing then.
    #[inline]
    pub unsafe fn next(
        &self,
        trylist: *mut c_void,
        cx: &wire::NextCx,
        answer: &mut wire::Answer,
    ) -> Result<(), Panicked> {
        // SAFETY: the caller's promise; the instance lives as long as `self`.
        let status = in_module(|| unsafe { (self.calls.next)(self.instance, trylist, cx, answer) });
        self.judge("next", status)
    }

    /// Tells that a try could not be established.
    ///
    /// # Safety
    ///
    /// As above.
    ///
    /// # Errors
    ///
    /// The module failed in the call.
    #[inline]
    pub unsafe fn report_failure(
        &self,
        trylist: *mut c_void,
        failure: &wire::Failure,
    ) -> Result<(), Panicked> {
        // SAFETY: the caller's promise; the instance lives as long as `self`.
        let status = in_module(|| unsafe { (self.calls.report_failure)(self.instance, trylist, failure) });
        self.judge("report_failure", status)
    }

    /// Whether the balancer wants to hear of this event, one of the `wire::EVENT_*` constants: what is not wanted need
    /// not be gathered.
    #[inline]
    pub fn wants(&self, event: u32) -> bool {
        self.events & (1 << event) != 0
    }

    /// Tells how a try goes on, if the balancer wants to hear it.
    ///
    /// # Safety
    ///
    /// As above.
    ///
    /// # Errors
    ///
    /// The module failed in the call.
    #[inline]
    pub unsafe fn observe(&self, trylist: *mut c_void, event: &wire::Event) -> Result<(), Panicked> {
        let Some(observe) = self.calls.observe.filter(|_| self.wants(event.kind)) else { return Ok(()) };
        // SAFETY: the caller's promise; the instance lives as long as `self`.
        let status = in_module(|| unsafe { observe(self.instance, trylist, event) });
        self.judge("observe", status)
    }

    /// Tells how the request ended.
    ///
    /// # Safety
    ///
    /// As above, and at most once a trylist.
    ///
    /// # Errors
    ///
    /// The module failed in the call.
    #[inline]
    pub unsafe fn finish(&self, trylist: *mut c_void, outcome: &wire::Outcome) -> Result<(), Panicked> {
        // SAFETY: the caller's promise; the instance lives as long as `self`.
        let status = in_module(|| unsafe { (self.calls.finish)(self.instance, trylist, outcome) });
        self.judge("finish", status)
    }

    /// Gives up what the trylist owns.
    ///
    /// # Safety
    ///
    /// As above; nothing is in `trylist` afterwards, also after an error.
    ///
    /// # Errors
    ///
    /// The module failed in the call; the caller need not do anything about it.
    #[inline]
    pub unsafe fn drop_trylist(&self, trylist: *mut c_void) -> Result<(), Panicked> {
        // SAFETY: the caller's promise; the instance lives as long as `self`.
        let status = in_module(|| unsafe { (self.calls.drop_trylist)(self.instance, trylist) });
        self.judge("drop_trylist", status)
    }

    /// Appends to `text` in words why the trylist chose as it did; nothing where the module cannot say.
    ///
    /// # Safety
    ///
    /// As above.
    ///
    /// # Errors
    ///
    /// The module failed in the call.
    pub unsafe fn explain(&self, trylist: *mut c_void, text: &mut Vec<u8>) -> Result<(), Panicked> {
        let Some(explain) = self.calls.explain else { return Ok(()) };
        let mut writer = Writer { bytes: text, limit: EXPLAIN_BYTES, overflowed: false };
        let sink = writer.sink();
        // SAFETY: the caller's promise; the instance lives as long as `self`, `sink` and its writer beyond the call.
        let status = in_module(|| unsafe { explain(self.instance, trylist, &raw const sink) });
        self.judge("explain", status)
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        // SAFETY: `build` made the instance, this is its only drop, and nobody else holds `self`.
        let status = in_module(|| unsafe { (self.calls.drop_balancer)(self.instance) });
        // A failure is counted and logged; nothing more can be done for an instance that is gone.
        let _ = self.judge("drop_balancer", status);
    }
}

impl fmt::Debug for Balancer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Balancer")
            .field("module", &self.module.id())
            .field("cluster", &self.scope.cluster)
            .field("needs", &self.needs)
            .finish_non_exhaustive()
    }
}

/// Why a balancer's knowledge could not be saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SaveError {
    /// The module failed in the call; it is counted and logged.
    Panicked,
    /// It wrote more than [`SAVE_BYTES`].
    TooLong,
}

/// Most that a balancer may save: 64 MiB are 6 KiB for each of 10,000 endpoints, and more than that is a leak.
pub const SAVE_BYTES: usize = 64 << 20;
/// Most that a trylist may say of itself.
const EXPLAIN_BYTES: usize = 64 << 10;

impl fmt::Display for SaveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Panicked => f.write_str("the module failed in save"),
            Self::TooLong => write!(f, "the module wrote more than {} MiB", SAVE_BYTES >> 20),
        }
    }
}

impl std::error::Error for SaveError {}

impl BuildError {
    /// One line for each problem.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        self.problems.iter().map(|problem| {
            let place = problem.place.as_ref().map(|place| format!("{place}: ")).unwrap_or_default();
            let path =
                if problem.path.is_empty() { String::new() } else { format!("settings.{}: ", problem.path) };
            let Self { cluster, module, .. } = self;
            format!("{place}cluster \"{cluster}\": module \"{module}\": {path}{}", problem.text)
        })
    }
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lines()
            .enumerate()
            .try_for_each(|(i, line)| write!(f, "{}{line}", if i == 0 { "" } else { "; " }))
    }
}

impl std::error::Error for BuildError {}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Panic, Self::Status, Self::OutOfRange, Self::AlreadyTried, Self::UnknownKind];

    /// Its name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Panic => "panic",
            Self::Status => "status",
            Self::OutOfRange => "out_of_range",
            Self::AlreadyTried => "already_tried",
            Self::UnknownKind => "unknown_kind",
        }
    }
}

impl Needs {
    /// # Safety
    ///
    /// The names that `needs` points to are valid.
    unsafe fn from_wire(needs: &wire::Needs) -> Result<Self, String> {
        // SAFETY: the caller's promise.
        let names = |what, first, n| unsafe { header_names(what, first, n) };
        Ok(Self {
            key: needs.flags & wire::NEEDS_KEY != 0,
            events: needs.events,
            request_headers: names("request", needs.request_headers, needs.n_request_headers)?,
            response_headers: names("response", needs.response_headers, needs.n_response_headers)?,
        })
    }
}

/// Most headers that a balancer may ask for; each is looked for in every request.
const MAX_HEADERS: usize = 64;

/// # Safety
///
/// `first` points to `n` names, unless `n` is absurd.
unsafe fn header_names(what: &str, first: *const wire::Str, n: usize) -> Result<Box<[Box<str>]>, String> {
    if n == 0 {
        return Ok(Box::default());
    }
    if n > MAX_HEADERS || first.is_null() {
        return Err(format!("it asks for {n} {what} headers, {MAX_HEADERS} at most can be given"));
    }
    // SAFETY: the caller's promise; `n` is small and `first` not null.
    let names = unsafe { std::slice::from_raw_parts(first, n) };
    names
        .iter()
        .map(|name| {
            // SAFETY: the caller's promise.
            let name = unsafe { slice(name) };
            match std::str::from_utf8(name) {
                Ok(text) if !text.is_empty() && text.bytes().all(is_token) => {
                    Ok(text.to_ascii_lowercase().into_boxed_str())
                }
                _ => Err(format!("it asks for {what} header \"{}\", which is no header name", OneLine(name))),
            }
        })
        .collect()
}

/// What RFC 9110 section 5.6.2 allows in a header name.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

impl Scope {
    fn new(module: Arc<Module>, cluster: &str) -> Arc<Self> {
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
            start: Instant::now(),
            faults: Default::default(),
        })
    }

    fn fault(&self, fault: Fault, detail: &dyn fmt::Display, now: Instant) {
        let (module, cluster, kind) = (self.module.id(), &*self.cluster, fault.name());
        match self.faults[fault as usize].add(now.saturating_duration_since(self.start)) {
            Some(0) => tracing::error!(module, cluster, fault = kind, "module fault: {detail}"),
            Some(unsaid) => tracing::error!(module, cluster, fault = kind, unsaid, "module fault: {detail}"),
            None => tracing::debug!(module, cluster, fault = kind, "module fault: {detail}"),
        }
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
        let exchanged = self.due_ms.compare_exchange(due_ms, next_ms, Ordering::Relaxed, Ordering::Relaxed);
        if now_ms < due_ms || exchanged.is_err() {
            return None;
        }
        Some(count.saturating_sub(self.said.swap(count, Ordering::Relaxed) + 1))
    }
}

// ---- what modules call -------------------------------------------------------------------------------------------

thread_local! {
    /// What the module said of the panic that it caught, until its call returns and says in which call it was.
    static PANIC: Cell<Option<String>> = const { Cell::new(None) };
}

fn take_panic() -> Option<String> {
    PANIC.try_with(Cell::take).ok().flatten()
}

/// [`wire::HostApi::panicked`].
unsafe extern "C" fn panicked(_ctx: *mut c_void, text: wire::Str) {
    // SAFETY: the ABI promises valid text for the time of the call.
    let text = OneLine(unsafe { slice(&text) }).to_string();
    let _ = PANIC.try_with(|panic| panic.set(Some(text)));
}

/// [`wire::HostApi::log`].
unsafe extern "C" fn log(ctx: *mut c_void, level: u32, text: wire::Str) {
    // SAFETY: `ctx` is that of a `HostApi` that `Scope::new` made, and the balancer keeps its scope alive.
    let scope = unsafe { &*ctx.cast_const().cast::<Scope>() };
    let (module, cluster) = (scope.module.id(), &*scope.cluster);
    // SAFETY: the ABI promises valid text for the time of the call.
    let text = OneLine(unsafe { slice(&text) });
    match level {
        wire::LOG_ERROR => tracing::error!(module, cluster, "{text}"),
        wire::LOG_WARN => tracing::warn!(module, cluster, "{text}"),
        wire::LOG_DEBUG => tracing::debug!(module, cluster, "{text}"),
        _ => tracing::info!(module, cluster, "{text}"),
    }
}

/// Problems beyond these say nothing new.
const MAX_PROBLEMS: usize = 100;

/// [`wire::ErrorSink::error`].
unsafe extern "C" fn push_problem(ctx: *mut c_void, path: wire::Str, text: wire::Str) {
    // SAFETY: `build` made `ctx` from its `Vec`, which nobody else touches during the call.
    let problems = unsafe { &mut *ctx.cast::<Vec<(String, String)>>() };
    if problems.len() < MAX_PROBLEMS {
        // SAFETY: the ABI promises valid text for the time of the call.
        let (path, text) = unsafe { (slice(&path), slice(&text)) };
        problems.push((OneLine(path).to_string(), OneLine(text).to_string()));
    }
}

/// Where a [`wire::Sink`] writes.
struct Writer<'a> {
    bytes: &'a mut Vec<u8>,
    limit: usize,
    overflowed: bool,
}

impl Writer<'_> {
    fn sink(&mut self) -> wire::Sink {
        wire::Sink {
            size: size_of::<wire::Sink>() as u32,
            reserved: 0,
            ctx: ptr::from_mut(self).cast(),
            write,
        }
    }
}

/// [`wire::Sink::write`].
unsafe extern "C" fn write(ctx: *mut c_void, bytes: wire::Str) {
    // SAFETY: `Writer::sink` made `ctx`, and whoever called it leaves the writer alone during the call.
    let writer = unsafe { &mut *ctx.cast::<Writer<'_>>() };
    // SAFETY: the ABI promises valid bytes for the time of the call.
    let bytes = unsafe { slice(&bytes) };
    let room = writer.limit.saturating_sub(writer.bytes.len());
    writer.overflowed |= bytes.len() > room;
    writer.bytes.extend_from_slice(&bytes[..bytes.len().min(room)]);
}

// ---- to and from the wire form -------------------------------------------------------------------------------------

const ABSENT: wire::Str = wire::Str { ptr: ptr::null(), len: 0 };

fn bytes(bytes: &[u8]) -> wire::Str {
    wire::Str { ptr: bytes.as_ptr(), len: bytes.len() }
}

fn text(text: &str) -> wire::Str {
    bytes(text.as_bytes())
}

/// The bytes of a text; absent ones are empty.
///
/// # Safety
///
/// The text is valid for as long as the slice is used.
pub(super) unsafe fn slice(text: &wire::Str) -> &[u8] {
    if text.ptr.is_null() {
        return &[];
    }
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts(text.ptr, text.len) }
}

fn pairs(pairs: &[(Arc<str>, Arc<str>)]) -> Box<[wire::Pair]> {
    pairs.iter().map(|(name, value)| wire::Pair { name: text(name), value: text(value) }).collect()
}

impl Endpoint<'_> {
    fn to_wire(self, metadata: &[wire::Pair]) -> wire::Endpoint {
        wire::Endpoint {
            size: size_of::<wire::Endpoint>() as u32,
            weight: u32::from(self.weight),
            id: self.id,
            url: text(self.url),
            name: text(self.name),
            address: address(self.address.map(|ip| SocketAddr::new(ip, self.port))),
            port: u32::from(self.port),
            reserved: 0,
            metadata: metadata.as_ptr(),
            n_metadata: metadata.len(),
            counters: self.counters,
        }
    }
}

/// An address as modules see it.
pub fn address(address: Option<SocketAddr>) -> wire::Address {
    let (family, port, bytes) = match address {
        None => (wire::ADDRESS_NONE, 0, [0; 16]),
        Some(SocketAddr::V6(v6)) => (wire::ADDRESS_V6, v6.port(), v6.ip().octets()),
        Some(SocketAddr::V4(v4)) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&v4.ip().octets());
            (wire::ADDRESS_V4, v4.port(), bytes)
        }
    };
    wire::Address { family, port, reserved: 0, bytes }
}

fn setting(setting: &Setting) -> wire::Setting {
    let mut wire = wire::Setting {
        size: size_of::<wire::Setting>() as u32,
        kind: 0,
        path: text(&setting.path),
        text: ABSENT,
        integer: 0,
        float: 0.0,
    };
    wire.kind = match &setting.value {
        SettingValue::Table(n) => {
            wire.integer = *n as i64;
            wire::SETTING_TABLE
        }
        SettingValue::Array(n) => {
            wire.integer = *n as i64;
            wire::SETTING_ARRAY
        }
        SettingValue::String(string) => {
            wire.text = text(string);
            wire::SETTING_STRING
        }
        SettingValue::Integer(integer) => {
            wire.integer = *integer;
            wire::SETTING_INTEGER
        }
        SettingValue::Float(float) => {
            wire.float = *float;
            wire::SETTING_FLOAT
        }
        SettingValue::Boolean(boolean) => {
            wire.integer = i64::from(*boolean);
            wire::SETTING_BOOLEAN
        }
    };
    wire
}

/// Finds where the settings at fault stand: the setting itself, else the nearest table or array around it.
fn place(problems: Vec<(String, String)>, settings: &[Setting]) -> Vec<Problem> {
    let around = |path: &str, setting: &Setting| {
        path.strip_prefix(&*setting.path)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']) || setting.path.is_empty())
    };
    problems
        .into_iter()
        .map(|(path, text)| Problem {
            place: settings
                .iter()
                .filter(|setting| around(&path, setting))
                .max_by_key(|setting| setting.path.len())
                .map(|setting| setting.place.clone()),
            path: path.into(),
            text: text.into(),
        })
        .collect()
}
