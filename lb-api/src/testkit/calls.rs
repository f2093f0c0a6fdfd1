//! The calls of a module, with types that Rust checks around them: the one file of the testkit that calls through a table.
#![allow(unsafe_code, reason = "calls a module as a host does")]

use std::alloc::{Layout, alloc, dealloc};
use std::ffi::c_void;
use std::ptr::{self, NonNull};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::build::BuildFailure;
use super::cluster::{FakeCluster, FakeRequest, SettingValue};
use super::host::{self, Host, Padded, address, pairs, text};
use crate::balancer::Balancer;
use crate::error::{BuildError, Problem};
use crate::export;
use crate::wire::{self, STATUS_OK, Str};

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
}

// SAFETY: the ABI promises that any call on a balancer may come from any thread, and the rest is not changed after `build`.
unsafe impl Send for Instance {}
// SAFETY: as above.
unsafe impl Sync for Instance {}

impl Instance {
    /// Calls `build`. Settings are path, `wire::SETTING_*` kind and value.
    pub(super) fn build(
        table: Table,
        cluster: &FakeCluster,
        settings: &[(String, u32, SettingValue)],
        previous: Option<&Self>,
        saved: Option<&[u8]>,
    ) -> Result<Self, BuildFailure> {
        let pairs: Vec<Vec<wire::Pair>> = cluster.endpoints.iter().map(|e| pairs(&e.metadata)).collect();
        let endpoints: Vec<Padded<wire::Endpoint>> = cluster
            .endpoints
            .iter()
            .zip(&pairs)
            .map(|(e, pairs)| Padded::new(host::endpoint(e, pairs)))
            .collect();
        let settings: Vec<Padded<wire::Setting>> = settings
            .iter()
            .map(|(path, kind, value)| Padded::new(host::setting(path, *kind, value)))
            .collect();
        let host = Host::new();
        let errors = Mutex::new(Vec::<Problem>::new());
        let sink = host::error_sink(&errors);
        let mut needs = NO_NEEDS;
        let cx = wire::BuildCx {
            size: size_of::<wire::BuildCx>() as u32,
            reserved: 0,
            cluster: text("test"),
            endpoints: endpoints.as_ptr().cast(),
            n_endpoints: endpoints.len(),
            endpoint_stride: size_of::<Padded<wire::Endpoint>>(),
            settings: settings.as_ptr().cast(),
            n_settings: settings.len(),
            setting_stride: size_of::<Padded<wire::Setting>>(),
            state: cluster.state,
            previous: previous.map_or(ptr::null(), |previous| previous.balancer.cast_const()),
            saved: Str::maybe(saved),
            host: host.api(),
            errors: &raw const sink,
            needs: &raw mut needs,
        };
        let mut balancer = ptr::null_mut();
        // SAFETY: all that `cx` points to lives to the end of this function, the host API and the counters longer.
        let status = unsafe { call(table.calls.build)(&raw const cx, &raw mut balancer) };
        let problems = errors.into_inner().unwrap_or_else(PoisonError::into_inner);
        match status {
            STATUS_OK => Ok(Self { needs: GatheredNeeds::new(&needs), table, balancer, host }),
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
        let bytes = Mutex::new(Vec::new());
        let sink = host::sink(&bytes);
        // SAFETY: the sink lives to the end of the call.
        let status = unsafe { save(self.balancer, &raw const sink) };
        self.judge(status)?;
        Ok(bytes.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    /// Lines that it wrote to the log.
    pub(super) fn logged(&self) -> Vec<String> {
        self.host.logged()
    }

    /// Whether it asked for this event, one of `wire::EVENT_*`, and can be told of it.
    pub(super) fn observes(&self, event: u32) -> bool {
        self.needs.events & 1 << event != 0
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
        // SAFETY: it came from `build`, and trylists borrow it, so that none is left.
        let status = unsafe { call(self.table.calls.drop_balancer)(self.balancer) };
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
    storage: NonNull<u8>,
    layout: Layout,
    made: bool,
}

impl<'a> TrylistCalls<'a> {
    /// Calls `load_balance`. After an error no trylist came to be, and none is dropped.
    pub(super) fn load_balance(instance: &'a Instance, request: FakeRequest) -> Result<Self, String> {
        let request = Rc::new(SentRequest::new(request, &instance.needs));
        let layout = instance.table.trylist;
        let layout = Layout::from_size_align(layout.size().max(1), layout.align())
            .expect("one byte has no layout that zero have not");
        // SAFETY: the layout is not empty.
        let storage = NonNull::new(unsafe { alloc(layout) }).expect("enough memory");
        let mut trylist = Self { instance, request, storage, layout, made: false };
        // SAFETY: `request` belongs to the trylist, is not moved, and so lives until after its drop; the storage is as `info` says.
        let status = unsafe {
            call(instance.table.calls.load_balance)(
                instance.balancer,
                &raw const trylist.request.wire,
                storage.as_ptr().cast(),
            )
        };
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
        // SAFETY: the trylist is made, and all pointers live to the end of the call.
        let status = unsafe {
            call(self.calls().next)(self.balancer(), self.trylist(), &raw const cx, &raw mut answer)
        };
        self.instance.judge(status).map(|()| answer)
    }

    /// Calls `report_failure`.
    pub(super) fn report_failure(&mut self, failure: &wire::Failure) -> Result<(), String> {
        // SAFETY: the trylist is made, and the failure lives to the end of the call.
        let status = unsafe { call(self.calls().report_failure)(self.balancer(), self.trylist(), failure) };
        self.instance.judge(status)
    }

    /// Calls `observe` where the module has that call, with those of the headers that it asked for.
    pub(super) fn observe(&mut self, event: wire::Event, headers: &[(&str, &str)]) -> Result<(), String> {
        let Some(observe) = self.calls().observe else { return Ok(()) };
        let headers = headers.iter().map(|(name, value)| (*name, value.as_bytes()));
        let headers = select(&self.instance.needs.response_headers, headers);
        let event = wire::Event { headers: headers.as_ptr(), n_headers: headers.len(), ..event };
        // SAFETY: the trylist is made, and the event and its headers live to the end of the call.
        let status = unsafe { observe(self.balancer(), self.trylist(), &raw const event) };
        self.instance.judge(status)
    }

    /// Calls `finish`.
    pub(super) fn finish(&mut self, outcome: &wire::Outcome) -> Result<(), String> {
        // SAFETY: the trylist is made, and the outcome lives to the end of the call.
        let status = unsafe { call(self.calls().finish)(self.balancer(), self.trylist(), outcome) };
        self.instance.judge(status)
    }

    /// Calls `explain`; empty where the module has no such call.
    pub(super) fn explain(&mut self) -> Result<String, String> {
        let Some(explain) = self.calls().explain else { return Ok(String::new()) };
        let text = Mutex::new(Vec::new());
        let sink = host::sink(&text);
        // SAFETY: the trylist is made, and the sink lives to the end of the call.
        let status = unsafe { explain(self.balancer(), self.trylist(), &raw const sink) };
        self.instance.judge(status)?;
        Ok(String::from_utf8_lossy(&text.into_inner().unwrap_or_else(PoisonError::into_inner)).into_owned())
    }

    /// How long `n` requests take like the one that this trylist was made for, with nothing in between but the calls. This
    /// trylist is dropped first, and its storage lent to the others.
    pub(super) fn time(mut self, n: usize, now_ns: u64, random: u64) -> Result<Duration, String> {
        let (balancer, room) = (self.balancer(), self.trylist());
        let status = self.drop_in_module();
        self.instance.judge(status)?;
        let calls = self.calls();
        let (load_balance, next) = (call(calls.load_balance), call(calls.next));
        let (finish, drop_trylist) = (call(calls.finish), call(calls.drop_trylist));
        let request = &raw const self.request.wire;
        let mut cx = self.next_cx(0, now_ns, random, &[]);
        let outcome = host::outcome(wire::OUTCOME_SERVED, 0, Some(200), 1, now_ns);
        let mut worst = STATUS_OK;
        let started = Instant::now();
        for _ in 0..n {
            cx.random = cx.random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            let mut answer = NO_ANSWER;
            // SAFETY: the calls of a request in their order, on storage of the right layout that holds no trylist before
            // and after them; a trylist that could not be made is neither asked nor dropped.
            unsafe {
                let mut status = load_balance(balancer, request, room);
                if status == STATUS_OK {
                    status = status.max(next(balancer, room, &raw const cx, &raw mut answer));
                    status = status.max(finish(balancer, room, &raw const outcome));
                    status = status.max(drop_trylist(balancer, room));
                }
                worst = worst.max(status);
            }
            std::hint::black_box(answer.endpoint);
        }
        let took = started.elapsed();
        self.instance.judge(worst).map(|()| took)
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
        // SAFETY: the trylist was made, and this is its last call.
        unsafe { call(self.calls().drop_trylist)(self.balancer(), trylist) }
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
        // SAFETY: allocated with this layout.
        unsafe { dealloc(self.storage.as_ptr(), self.layout) };
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
    _request: FakeRequest,
    _headers: Vec<Str>,
}

impl SentRequest {
    fn new(request: FakeRequest, needs: &GatheredNeeds) -> Self {
        let headers =
            select(&needs.request_headers, request.headers.iter().map(|(n, v)| (n.as_str(), v.as_slice())));
        let wire = wire::Request {
            size: size_of::<wire::Request>() as u32,
            preferred: request.preferred.map_or(wire::NO_ENDPOINT, |endpoint| endpoint as u32),
            method: text(&request.method),
            scheme: text("http"),
            authority: Str::maybe(request.authority.as_deref().map(str::as_bytes)),
            path: text(&request.path),
            query: Str::maybe(request.query.as_deref().map(str::as_bytes)),
            client: address(request.client),
            key: Str::maybe(request.key.as_deref().filter(|_| needs.key)),
            headers: headers.as_ptr(),
            n_headers: headers.len(),
        };
        // Moving these moves no text: it is on the heap.
        Self { wire, _request: request, _headers: headers }
    }
}

/// The values of the headers asked for, in the order asked.
fn select<'a>(asked: &[String], sent: impl Iterator<Item = (&'a str, &'a [u8])>) -> Vec<Str> {
    let sent: Vec<_> = sent.collect();
    let value =
        |asked: &String| sent.iter().find(|(name, _)| name.eq_ignore_ascii_case(asked)).map(|(_, v)| *v);
    asked.iter().map(|name| Str::maybe(value(name))).collect()
}
