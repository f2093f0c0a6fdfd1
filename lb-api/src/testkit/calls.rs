//! The calls of a module, with types that Rust checks around them: the one file of the testkit that calls through a table.
#![allow(unsafe_code, reason = "calls a module as a host does")]

use std::alloc::Layout;
use std::ffi::c_void;
use std::ptr;
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::build::BuildFailure;
use super::cluster::{FakeCluster, FakeRequest, SettingValue};
use super::host::{self, Host, LentTexts, Padded, Written, maybe_address, pairs};
use super::memory::{self, Block};
use crate::balancer::Balancer;
use crate::error::{BuildError, Problem};
use crate::export;
use crate::wire::{self, STATUS_OK, Str};

/// Most that a host takes of a saved state.
const SAVE_BYTES: usize = 64 << 20;

/// Most that a host takes of an explanation.
const EXPLAIN_BYTES: usize = 64 << 10;

/// A module's table of calls and the layout of its trylist: all that the testkit needs to know of a module, whatever
/// language it is written in.
#[derive(Clone, Copy, Debug)]
pub struct Table {
    calls: wire::Module,
    trylist: Layout,
}

impl Table {
    /// The table of a module that was loaded.
    ///
    /// # Safety
    /// The calls are those of a module of this ABI that stays loaded for the life of the process, and keep what
    /// [`wire::Module`] says of them. The layout is the one that its `info` gives.
    ///
    /// # Errors
    /// The name of a call that every module must have and this one has not.
    pub unsafe fn new(calls: wire::Module, trylist: Layout) -> Result<Self, &'static str> {
        let required = [
            ("build", calls.build.is_some()),
            ("load_balance", calls.load_balance.is_some()),
            ("next", calls.next.is_some()),
            ("report_failure", calls.report_failure.is_some()),
            ("finish", calls.finish.is_some()),
            ("drop_trylist", calls.drop_trylist.is_some()),
            ("drop_balancer", calls.drop_balancer.is_some()),
        ];
        match required.into_iter().find(|(_, is_there)| !is_there) {
            Some((name, _)) => Err(name),
            None => Ok(Self { calls, trylist }),
        }
    }

    /// The table of a balancer of this program.
    pub(super) fn of<B: Balancer>() -> Self {
        let trylist = Layout::new::<B::Trylist>();
        assert!(trylist.align() <= wire::TRYLIST_ALIGN, "a trylist may be aligned to 16 at most");
        Self { calls: export::in_process::<B>(), trylist }
    }
}

/// A call that every module has; [`Table`] was made of no other.
fn call<F>(call: Option<F>) -> F {
    call.expect("the table has every call that a module must have")
}

/// The instance that a module's `build` made, with its services. Dropping it calls `drop_balancer`.
pub(super) struct Instance {
    table: Table,
    /// May be null, only the module knows.
    balancer: *mut c_void,
    needs: GatheredNeeds,
    /// Shared and not boxed: moving a `Box` takes away the right to use the pointer that the module was given.
    host: Arc<Host>,
    /// Time that the module took to build it.
    built_in: Duration,
    /// Texts are overwritten behind the call that they were lent to.
    spoils: bool,
    /// Texts that its module was lent. A module that keeps a pointer into it reads the wrong thing and nobody else's memory.
    lent: Mutex<Vec<LentTexts>>,
    _arguments: BuildArguments,
}

/// The arrays that `build` was called with.
struct BuildArguments {
    endpoints: Vec<Padded<wire::Endpoint>>,
    settings: Vec<Padded<wire::Setting>>,
    _pairs: Vec<Vec<wire::Pair>>,
}

impl BuildArguments {
    fn new(cluster: &FakeCluster, settings: &[(String, u32, SettingValue)], texts: &mut LentTexts) -> Self {
        let pairs: Vec<_> = cluster.endpoints.iter().map(|e| pairs(&e.metadata, texts)).collect();
        let endpoints = cluster.endpoints.iter().zip(&pairs);
        let endpoints = endpoints.map(|(e, pairs)| Padded::new(host::endpoint(e, pairs, texts))).collect();
        let setting = |(path, kind, value): &(String, u32, SettingValue)| {
            Padded::new(host::setting(path, *kind, value, texts))
        };
        Self { endpoints, settings: settings.iter().map(setting).collect(), _pairs: pairs }
    }
}

// SAFETY: the ABI promises that any call on a balancer may come from any thread, and the rest is not changed after `build`.
unsafe impl Send for Instance {}
// SAFETY: as above.
unsafe impl Sync for Instance {}

impl Instance {
    /// Calls `build`. Settings are path, `wire::SETTING_*` kind and value. `spoils`: texts are overwritten behind each call.
    pub(super) fn build(
        table: Table,
        (cluster, settings): (&FakeCluster, &[(String, u32, SettingValue)]),
        previous: Option<&Self>,
        saved: Option<&[u8]>,
        spoils: bool,
    ) -> Result<Self, BuildFailure> {
        let mut texts = LentTexts::default();
        let arguments = BuildArguments::new(cluster, settings, &mut texts);
        let host = Host::new();
        let errors = Mutex::new(Vec::<Problem>::new());
        let sink = host::error_sink(&errors);
        let mut needs = NO_NEEDS;
        let cx = wire::BuildCx {
            size: size_of::<wire::BuildCx>() as u32,
            reserved: 0,
            cluster: texts.lend(b"test"),
            endpoints: arguments.endpoints.as_ptr().cast(),
            n_endpoints: arguments.endpoints.len(),
            endpoint_stride: size_of::<Padded<wire::Endpoint>>(),
            settings: arguments.settings.as_ptr().cast(),
            n_settings: arguments.settings.len(),
            setting_stride: size_of::<Padded<wire::Setting>>(),
            state: cluster.state,
            previous: previous.map_or(ptr::null(), |previous| previous.balancer.cast_const()),
            saved: texts.maybe(saved),
            host: host.api(),
            errors: &raw const sink,
            needs: &raw mut needs,
        };
        let mut balancer = ptr::null_mut();
        let started = Instant::now();
        let build = call(table.calls.build);
        // SAFETY: all that `cx` points to lives to the end of this function, the host API and the counters longer.
        let status = inside(CallName::Build, || unsafe { build(&raw const cx, &raw mut balancer) });
        let built_in = started.elapsed();
        let problems = errors.into_inner().unwrap_or_else(PoisonError::into_inner);
        match status {
            STATUS_OK => {
                let needs = GatheredNeeds::new(&needs);
                if spoils {
                    texts.spoil();
                }
                let lent = Mutex::new(vec![texts]);
                let _arguments = arguments;
                Ok(Self { table, balancer, needs, host, built_in, spoils, lent, _arguments })
            }
            wire::STATUS_PANICKED => {
                let text = problems.first().map(|problem| problem.text.clone());
                Err(BuildFailure::Panicked(text.unwrap_or_else(|| NO_PANIC_TEXT.into())))
            }
            _ if problems.is_empty() => {
                let text = format!("refused with status {status} and no reason");
                Err(BuildFailure::Refused(BuildError::new(text)))
            }
            _ => Err(BuildFailure::Refused(BuildError::from_problems(problems))),
        }
    }

    /// Calls `save`: the bytes as a host gets them, wrapped by the SDK; empty where the module has no such call.
    pub(super) fn save(&self) -> Result<Vec<u8>, String> {
        let Some(save) = self.table.calls.save else { return Ok(Vec::new()) };
        let written = Written::up_to(SAVE_BYTES);
        let sink = written.sink();
        // SAFETY: the sink lives to the end of the call.
        let status = inside(CallName::Save, || unsafe { save(self.balancer, &raw const sink) });
        self.judge(status)?;
        written.into_bytes()
    }

    /// Time that the module took to build it.
    pub(super) fn built_in(&self) -> Duration {
        self.built_in
    }

    /// Lines that it wrote to the log.
    pub(super) fn logged(&self) -> Vec<String> {
        self.host.logged()
    }

    /// Whether it asked for this event, one of `wire::EVENT_*`, and can be told of it.
    pub(super) fn observes(&self, event: u32) -> bool {
        self.needs.events & 1 << event != 0
    }

    /// Takes back the texts of a call that has returned.
    fn take_back(&self, mut texts: LentTexts) {
        if self.spoils {
            texts.spoil();
            self.lent.lock().unwrap_or_else(PoisonError::into_inner).push(texts);
        }
    }

    /// Judges a status. The error is the text of the panic, or names a status that no call may return.
    fn judge(&self, status: u32) -> Result<(), String> {
        match status {
            STATUS_OK => Ok(()),
            wire::STATUS_PANICKED => Err(self.host.last_panic().unwrap_or_else(|| NO_PANIC_TEXT.into())),
            other => Err(format!("returned status {other}")),
        }
    }
}

const NO_PANIC_TEXT: &str = "panicked without a message";

impl Drop for Instance {
    fn drop(&mut self) {
        let drop_balancer = call(self.table.calls.drop_balancer);
        // SAFETY: it came from `build`, and trylists borrow it, so that none is left.
        let status = inside(CallName::DropBalancer, || unsafe { drop_balancer(self.balancer) });
        if status != STATUS_OK && !std::thread::panicking() {
            panic!("drop of the balancer: {:?}", self.host.last_panic());
        }
    }
}

/// A trylist in its storage, with the request that it was made for. Dropping it calls `drop_trylist`.
pub(super) struct TrylistCalls<'a> {
    instance: &'a Instance,
    /// As [`Instance::host`].
    request: Rc<SentRequest>,
    storage: Block,
    made: bool,
}

impl<'a> TrylistCalls<'a> {
    /// Calls `load_balance`. After an error no trylist came to be, and none is dropped.
    pub(super) fn load_balance(instance: &'a Instance, request: FakeRequest) -> Result<Self, String> {
        let request = Rc::new(SentRequest::new(request, &instance.needs));
        debug_assert!(instance.table.trylist.align() <= memory::ALIGN);
        let storage = Block::new(instance.table.trylist.size());
        let mut trylist = Self { instance, request, storage, made: false };
        let load_balance = call(instance.table.calls.load_balance);
        let wire = &raw const trylist.request.wire;
        // SAFETY: `request` belongs to the trylist, is not moved, and so lives until after its drop; the storage is as `info` says.
        let status = inside(CallName::LoadBalance, || unsafe {
            load_balance(instance.balancer, wire, trylist.storage.as_ptr().cast())
        });
        trylist.made = status == STATUS_OK;
        instance.judge(status).map(|()| trylist)
    }

    /// Calls `next`: what the module wrote, unchecked. `tried` has a bit for each endpoint.
    pub(super) fn next(
        &mut self,
        n_tries: usize,
        now_ns: u64,
        random: u64,
        tried: &[u64],
    ) -> Result<wire::Answer, String> {
        let cx = self.next_cx(n_tries, now_ns, random, tried);
        let mut answer = NO_ANSWER;
        let (next, balancer, trylist) = (call(self.calls().next), self.balancer(), self.trylist());
        // SAFETY: the trylist is made, and all pointers live to the end of the call.
        let status =
            inside(CallName::Next, || unsafe { next(balancer, trylist, &raw const cx, &raw mut answer) });
        self.instance.judge(status).map(|()| answer)
    }

    /// Calls `report_failure`.
    pub(super) fn report_failure(&mut self, failure: &wire::Failure) -> Result<(), String> {
        let report_failure = call(self.calls().report_failure);
        let (balancer, trylist) = (self.balancer(), self.trylist());
        // SAFETY: the trylist is made, and the failure lives to the end of the call.
        let status =
            inside(CallName::ReportFailure, || unsafe { report_failure(balancer, trylist, failure) });
        self.instance.judge(status)
    }

    /// Calls `observe` where the module has that call, with those of the headers that it asked for.
    pub(super) fn observe(&mut self, event: wire::Event, headers: &[(&str, &str)]) -> Result<(), String> {
        let Some(observe) = self.calls().observe else { return Ok(()) };
        let headers = headers.iter().map(|(name, value)| (*name, value.as_bytes()));
        let mut texts = LentTexts::default();
        let headers = select(&self.instance.needs.response_headers, headers, &mut texts);
        let event = wire::Event { headers: headers.as_ptr(), n_headers: headers.len(), ..event };
        let (balancer, trylist) = (self.balancer(), self.trylist());
        // SAFETY: the trylist is made, and the event and its headers live to the end of the call.
        let status = inside(CallName::Observe, || unsafe { observe(balancer, trylist, &raw const event) });
        self.instance.take_back(texts);
        self.instance.judge(status)
    }

    /// Calls `finish`.
    pub(super) fn finish(&mut self, outcome: &wire::Outcome) -> Result<(), String> {
        let (finish, balancer, trylist) = (call(self.calls().finish), self.balancer(), self.trylist());
        // SAFETY: the trylist is made, and the outcome lives to the end of the call.
        let status = inside(CallName::Finish, || unsafe { finish(balancer, trylist, outcome) });
        self.instance.judge(status)
    }

    /// Calls `explain`; empty where the module has no such call.
    pub(super) fn explain(&mut self) -> Result<String, String> {
        let Some(explain) = self.calls().explain else { return Ok(String::new()) };
        let written = Written::up_to(EXPLAIN_BYTES);
        let sink = written.sink();
        let (balancer, trylist) = (self.balancer(), self.trylist());
        // SAFETY: the trylist is made, and the sink lives to the end of the call.
        let status = inside(CallName::Explain, || unsafe { explain(balancer, trylist, &raw const sink) });
        self.instance.judge(status)?;
        Ok(String::from_utf8_lossy(&written.into_bytes()?).into_owned())
    }

    /// Time of `n` requests like the one that this trylist was made for, with nothing in between but the calls: all that a host
    /// makes for a request that is served at the first try, or at the second one after a failure to connect. This trylist is
    /// dropped first, and its storage lent to the others.
    pub(super) fn time(
        mut self,
        n: usize,
        (now_ns, random): (u64, u64),
        fails: bool,
    ) -> Result<Duration, String> {
        let room = self.trylist();
        let status = self.drop_in_module();
        self.instance.judge(status)?;
        let outcome =
            host::outcome(wire::OUTCOME_SERVED, 0, Some(200), 1 + usize::from(fails), (now_ns, 1_000_000));
        let events = [wire::EVENT_CONNECTED, wire::EVENT_RESPONSE_HEADERS, wire::EVENT_TRY_ENDED];
        let events: Vec<wire::Event> = events
            .into_iter()
            .filter(|event| self.instance.observes(*event))
            .map(|kind| host::served(kind, now_ns))
            .collect();
        let failure = fails.then(|| host::failure(wire::FAILURE_CONNECT, now_ns));
        let mut cx = self.next_cx(0, now_ns, random, &[]);
        let mut worst = STATUS_OK;
        let started = Instant::now();
        for _ in 0..n {
            cx.random = cx.random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            worst = worst.max(self.one(room, &mut cx, failure, (&events, &outcome)));
        }
        let took = started.elapsed();
        self.instance.judge(worst).map(|()| took)
    }

    /// The calls of one request, unchecked; the worst status.
    #[inline]
    fn one(
        &self,
        room: *mut c_void,
        cx: &mut wire::NextCx,
        failure: Option<wire::Failure>,
        (events, outcome): (&[wire::Event], &wire::Outcome),
    ) -> u32 {
        let (calls, balancer) = (self.calls(), self.balancer());
        let mut tried = [0_u64; 4];
        (cx.n_tries, cx.tried, cx.n_tried_words) = (0, ptr::null(), 0);
        let mut answer = NO_ANSWER;
        // SAFETY: the calls of a request in their order, on storage of the right layout that holds no trylist before and after
        // them; a trylist that could not be made is neither asked nor dropped. Arguments live to the end of each call.
        unsafe {
            let mut status = call(calls.load_balance)(balancer, &raw const self.request.wire, room);
            if status != STATUS_OK {
                return status;
            }
            status = status.max(call(calls.next)(balancer, room, &raw const *cx, &raw mut answer));
            if let Some(mut failure) = failure {
                failure.endpoint = answer.endpoint;
                status = status.max(call(calls.report_failure)(balancer, room, &raw const failure));
                // A set that reaches as far as the endpoints of a small cluster.
                if let Some(word) = tried.get_mut(answer.endpoint as usize / 64) {
                    *word |= 1 << (answer.endpoint % 64);
                    (cx.n_tries, cx.tried, cx.n_tried_words) = (1, tried.as_ptr(), tried.len());
                    status = status.max(call(calls.next)(balancer, room, &raw const *cx, &raw mut answer));
                }
            }
            if let Some(observe) = calls.observe {
                for event in events {
                    let event = wire::Event { endpoint: answer.endpoint, ..*event };
                    status = status.max(observe(balancer, room, &raw const event));
                }
            }
            let outcome = wire::Outcome { endpoint: answer.endpoint, ..*outcome };
            status = status.max(call(calls.finish)(balancer, room, &raw const outcome));
            std::hint::black_box(answer.endpoint);
            status.max(call(calls.drop_trylist)(balancer, room))
        }
    }

    fn next_cx(&self, n_tries: usize, now_ns: u64, random: u64, tried: &[u64]) -> wire::NextCx {
        wire::NextCx {
            size: size_of::<wire::NextCx>() as u32,
            n_tries: n_tries as u32,
            now_ns,
            random,
            tried: if tried.is_empty() { ptr::null() } else { tried.as_ptr() },
            n_tried_words: tried.len(),
            request: &raw const self.request.wire,
        }
    }

    /// The module's half of its end; what is left is the storage.
    fn drop_in_module(&mut self) -> u32 {
        if !self.made {
            return STATUS_OK;
        }
        let trylist = self.trylist();
        self.made = false;
        let (drop_trylist, balancer) = (call(self.calls().drop_trylist), self.balancer());
        // SAFETY: the trylist was made, and this is its last call.
        inside(CallName::DropTrylist, || unsafe { drop_trylist(balancer, trylist) })
    }

    fn calls(&self) -> wire::Module {
        self.instance.table.calls
    }

    fn balancer(&self) -> *const c_void {
        self.instance.balancer
    }

    fn trylist(&self) -> *mut c_void {
        assert!(self.made, "the trylist has ended");
        self.storage.as_ptr().cast()
    }
}

impl Drop for TrylistCalls<'_> {
    fn drop(&mut self) {
        let status = self.drop_in_module();
        if let Some(request) = Rc::get_mut(&mut self.request) {
            self.instance.take_back(std::mem::take(&mut request.texts));
        }
        if !std::thread::panicking() {
            self.instance.judge(status).unwrap_or_else(|why| panic!("drop of the trylist: {why}"));
        }
    }
}

/// The answer for `next` to fill in.
const NO_ANSWER: wire::Answer = wire::Answer {
    size: size_of::<wire::Answer>() as u32,
    kind: 0,
    endpoint: wire::NO_ENDPOINT,
    reserved: 0,
};

/// The needs of a balancer that sets none.
const NO_NEEDS: wire::Needs = wire::Needs {
    size: size_of::<wire::Needs>() as u32,
    flags: 0,
    events: 0,
    reserved: 0,
    request_headers: ptr::null(),
    n_request_headers: 0,
    response_headers: ptr::null(),
    n_response_headers: 0,
};

/// The data that a balancer asked for when it was built.
struct GatheredNeeds {
    key: bool,
    events: u32,
    request_headers: Vec<String>,
    response_headers: Vec<String>,
}

impl GatheredNeeds {
    fn new(needs: &wire::Needs) -> Self {
        let names = |ptr: *const Str, len: usize| {
            (0..len)
                // SAFETY: `build` has just filled them in, and the names live as long as the balancer.
                .map(|idx| unsafe { (*ptr.add(idx)).bytes() }.unwrap_or_default())
                .map(|name| String::from_utf8(name.to_vec()).expect("a header's name is text"))
                .collect()
        };
        Self {
            key: needs.flags & wire::NEEDS_KEY != 0,
            events: needs.events,
            request_headers: names(needs.request_headers, needs.n_request_headers),
            response_headers: names(needs.response_headers, needs.n_response_headers),
        }
    }
}

/// A request with the memory that its wire form points to.
struct SentRequest {
    wire: wire::Request,
    texts: LentTexts,
    _request: FakeRequest,
    _headers: Vec<Str>,
}

impl SentRequest {
    fn new(request: FakeRequest, needs: &GatheredNeeds) -> Self {
        let mut texts = LentTexts::default();
        let sent = request.headers.iter().map(|(name, value)| (name.as_str(), value.as_slice()));
        let headers = select(&needs.request_headers, sent, &mut texts);
        let wire = wire::Request {
            size: size_of::<wire::Request>() as u32,
            preferred: request.preferred.map_or(wire::NO_ENDPOINT, |endpoint| endpoint as u32),
            method: texts.lend(request.method.as_bytes()),
            scheme: texts.lend(b"http"),
            authority: texts.maybe(request.authority.as_deref()),
            path: texts.lend(&request.path),
            query: texts.maybe(request.query.as_deref()),
            client: maybe_address(request.client),
            key: texts.maybe(request.key.as_deref().filter(|_| needs.key)),
            headers: headers.as_ptr(),
            n_headers: headers.len(),
        };
        Self { wire, texts, _request: request, _headers: headers }
    }
}

/// The values of the headers asked for, in the order asked.
fn select<'a>(
    asked: &[String],
    sent: impl Iterator<Item = (&'a str, &'a [u8])>,
    texts: &mut LentTexts,
) -> Vec<Str> {
    let sent: Vec<_> = sent.collect();
    let value =
        |name: &String| sent.iter().find(|(sent, _)| sent.eq_ignore_ascii_case(name)).map(|(_, v)| *v);
    asked.iter().map(|name| texts.maybe(value(name))).collect()
}

// ---- the call that runs --------------------------------------------------------------------------------------------

thread_local! {
    static RUNNING: RunningCall = RunningCall::new();
}

/// Calls that run now, one of each thread; for who watches over them.
static CALLS: Mutex<Vec<Arc<CallSlot>>> = Mutex::new(Vec::new());

#[derive(Debug)]
struct CallSlot {
    /// No other thread has it, nor ever had.
    id: usize,
    /// Place of the name in [`CALL_NAMES`] and one more, or 0 outside of calls.
    name: AtomicUsize,
    /// Rises with each call.
    number: AtomicU64,
}

struct RunningCall(Arc<CallSlot>);

impl RunningCall {
    fn new() -> Self {
        static THREADS: AtomicUsize = AtomicUsize::new(0);
        let id = THREADS.fetch_add(1, Relaxed);
        let slot = Arc::new(CallSlot { id, name: AtomicUsize::new(0), number: AtomicU64::new(0) });
        CALLS.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&slot));
        Self(slot)
    }
}

impl Drop for RunningCall {
    fn drop(&mut self) {
        CALLS.lock().unwrap_or_else(PoisonError::into_inner).retain(|slot| !Arc::ptr_eq(slot, &self.0));
    }
}

#[derive(Clone, Copy, Debug)]
enum CallName {
    Build,
    LoadBalance,
    Next,
    ReportFailure,
    Observe,
    Finish,
    Save,
    Explain,
    DropTrylist,
    DropBalancer,
}

/// In the order of [`CallName`].
const CALL_NAMES: [&str; 10] = [
    "build",
    "load_balance",
    "next",
    "report_failure",
    "observe",
    "finish",
    "save",
    "explain",
    "drop of the trylist",
    "drop of the balancer",
];

/// Notes that this thread is inside this call.
#[inline]
fn inside(name: CallName, call: impl FnOnce() -> u32) -> u32 {
    RUNNING.with(|RunningCall(slot)| {
        slot.number.fetch_add(1, Relaxed);
        slot.name.store(name as usize + 1, Relaxed);
        let status = call();
        slot.name.store(0, Relaxed);
        status
    })
}

/// The calls that run now, in all threads: a number that no other call has, and the call's name. For who watches over time limits.
pub fn running() -> Vec<((usize, u64), &'static str)> {
    let slots = CALLS.lock().unwrap_or_else(PoisonError::into_inner);
    let running = slots.iter().filter_map(|slot| {
        let name = CALL_NAMES.get(slot.name.load(Relaxed).checked_sub(1)?)?;
        Some(((slot.id, slot.number.load(Relaxed)), *name))
    });
    running.collect()
}
