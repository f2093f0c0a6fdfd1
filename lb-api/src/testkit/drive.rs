//! The driver: a host's half of the table of calls, with a host's checks.
#![allow(unsafe_code, reason = "plays the host's side of the boundary")]

use std::alloc::{Layout, alloc, dealloc};
use std::ffi::c_void;
use std::marker::PhantomData;
use std::net::{IpAddr, SocketAddr};
use std::ptr::{self, NonNull};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::cluster::{FakeCluster, FakeRequest, SettingValue, World};
use crate::balancer::Balancer;
use crate::error::{BuildError, Problem};
use crate::export;
use crate::outcome::{EventKind, FailureKind, OutcomeKind, TryResult};
use crate::trylist::Next;
use crate::wire::{self, STATUS_OK, Str};

/// A module's calls, and the room that one of its trylists needs: all that the driver needs to know of a module, whatever
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

/// What a [`TestBalancer`] is built from.
pub struct Builder<'a, B> {
    cluster: &'a FakeCluster,
    table: Table,
    settings: Vec<(String, u32, SettingValue)>,
    previous: Option<&'a TestBalancer<B>>,
    saved: Option<Vec<u8>>,
}

impl<'a, B> Builder<'a, B> {
    pub(super) fn new(cluster: &'a FakeCluster, table: Table) -> Self {
        Self { cluster, table, settings: Vec::new(), previous: None, saved: None }
    }

    /// One more setting, by its path: `choices`, `tiers[1].name`.
    #[must_use]
    pub fn setting(mut self, path: &str, value: impl Into<SettingValue>) -> Self {
        let mut parent = "";
        for (at, c) in separators(path) {
            let around = &path[..at];
            if !self.settings.iter().any(|(known, ..)| known == around) {
                self.count_element(parent);
                let kind = if c == '[' { wire::SETTING_ARRAY } else { wire::SETTING_TABLE };
                self.settings.push((around.into(), kind, SettingValue::Integer(0)));
            }
            parent = around;
        }
        self.count_element(parent);
        let value = value.into();
        let kind = match value {
            SettingValue::String(_) => wire::SETTING_STRING,
            SettingValue::Integer(_) => wire::SETTING_INTEGER,
            SettingValue::Float(_) => wire::SETTING_FLOAT,
            SettingValue::Boolean(_) => wire::SETTING_BOOLEAN,
            SettingValue::Table(_) => wire::SETTING_TABLE,
            SettingValue::Array(_) => wire::SETTING_ARRAY,
        };
        self.settings.push((path.into(), kind, value));
        self
    }

    /// A table or an array that came into being with an element says how many it has.
    fn count_element(&mut self, parent: &str) {
        if let Some((.., SettingValue::Integer(n))) = self.settings.iter_mut().find(|(at, ..)| at == parent) {
            *n += 1;
        }
    }

    /// The instance that this one replaces.
    #[must_use]
    pub fn previous(mut self, previous: &'a TestBalancer<B>) -> Self {
        self.previous = Some(previous);
        self
    }

    /// What [`TestBalancer::save`] gave, in this process or in an earlier one.
    #[must_use]
    pub fn saved(mut self, saved: Vec<u8>) -> Self {
        self.saved = Some(saved);
        self
    }

    /// Calls `build` as a host does.
    ///
    /// # Errors
    /// What the balancer says is wrong with its settings, or message and place of its panic.
    pub fn build(self) -> Result<TestBalancer<B>, BuildError> {
        self.build_or_panic_text().unwrap_or_else(|panicked| Err(BuildError::new(panicked)))
    }

    /// The same, with a panic told apart from a refusal.
    pub(super) fn build_or_panic_text(self) -> Result<Result<TestBalancer<B>, BuildError>, String> {
        let pairs: Vec<Vec<wire::Pair>> = self.cluster.endpoints.iter().map(|e| pairs(&e.metadata)).collect();
        let endpoints: Vec<Padded<wire::Endpoint>> = self
            .cluster
            .endpoints
            .iter()
            .zip(&pairs)
            .map(|(e, pairs)| wire::Endpoint {
                size: size_of::<Padded<wire::Endpoint>>() as u32,
                weight: e.weight,
                id: e.id,
                url: text(&e.url),
                name: text(&e.name),
                address: e.name.parse().map_or(NO_ADDRESS, |ip| address(SocketAddr::new(ip, e.port))),
                port: e.port.into(),
                reserved: 0,
                metadata: pairs.as_ptr(),
                n_metadata: pairs.len(),
                counters: e.counters,
            })
            .map(Padded::new)
            .collect();
        let settings: Vec<Padded<wire::Setting>> = self
            .settings
            .iter()
            .map(|(path, kind, value)| Padded::new(setting(path, *kind, value)))
            .collect();
        let host = Host::new();
        let errors = Mutex::new(Vec::<Problem>::new());
        let sink = wire::ErrorSink {
            size: size_of::<wire::ErrorSink>() as u32,
            reserved: 0,
            ctx: ptr::from_ref(&errors).cast_mut().cast(),
            error: note_error,
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
            cluster: text("test"),
            endpoints: endpoints.as_ptr().cast(),
            n_endpoints: endpoints.len(),
            endpoint_stride: size_of::<Padded<wire::Endpoint>>(),
            settings: settings.as_ptr().cast(),
            n_settings: settings.len(),
            setting_stride: size_of::<Padded<wire::Setting>>(),
            state: self.cluster.state,
            previous: self.previous.map_or(ptr::null(), |previous| previous.balancer.cast_const()),
            saved: Str::maybe(self.saved.as_deref()),
            host: &raw const host.api,
            errors: &raw const sink,
            needs: &raw mut needs,
        };
        let mut balancer = ptr::null_mut();
        // SAFETY: all that `cx` points to lives to the end of this function, the host API and the counters longer.
        let status = unsafe { call(self.table.calls.build)(&raw const cx, &raw mut balancer) };
        let problems = errors.into_inner().unwrap_or_else(PoisonError::into_inner);
        match status {
            STATUS_OK => Ok(Ok(TestBalancer {
                needs: Gathered::new(&needs),
                table: self.table,
                balancer,
                host,
                n_endpoints: endpoints.len(),
                world: Arc::clone(&self.cluster.world),
                of: PhantomData,
            })),
            wire::STATUS_PANICKED => {
                let text = problems.first().map(|problem| problem.text.clone());
                Err(text.unwrap_or_else(|| "panicked, and did not say where".into()))
            }
            _ if problems.is_empty() => {
                Ok(Err(BuildError::new(format!("refused with status {status}, and gave no reason"))))
            }
            _ => Ok(Err(BuildError::from_problems(problems))),
        }
    }
}

/// A balancer behind its table of calls. Dropping it calls `drop_balancer`.
pub struct TestBalancer<B> {
    table: Table,
    /// What `build` made; may be null, only the module knows.
    balancer: *mut c_void,
    needs: Gathered,
    /// Shared and not boxed: moving a `Box` takes away the right to use the pointer that the module was given.
    host: Arc<Host>,
    n_endpoints: usize,
    world: Arc<World>,
    of: PhantomData<fn() -> B>,
}

// SAFETY: the ABI promises that any call on a balancer may come from any thread, and the rest is not changed after `build`.
unsafe impl<B> Send for TestBalancer<B> {}
// SAFETY: as above.
unsafe impl<B> Sync for TestBalancer<B> {}

impl<B> TestBalancer<B> {
    /// Makes the trylist of a request.
    ///
    /// # Panics
    /// The balancer panicked.
    pub fn load_balance(&self, request: FakeRequest) -> TestTrylist<'_, B> {
        self.try_load_balance(request).unwrap_or_else(|why| panic!("load_balance: {why}"))
    }

    /// The same, where a test expects the balancer to panic.
    ///
    /// # Errors
    /// Message and place of the panic.
    pub fn try_load_balance(&self, request: FakeRequest) -> Result<TestTrylist<'_, B>, String> {
        let request = Rc::new(Sent::new(request, &self.needs));
        let layout = Layout::from_size_align(self.table.trylist.size().max(1), self.table.trylist.align())
            .expect("one byte has no layout that zero have not");
        // SAFETY: the layout is not empty.
        let storage = NonNull::new(unsafe { alloc(layout) }).expect("enough memory");
        let mut trylist = TestTrylist {
            of: self,
            request,
            storage,
            layout,
            tried: Vec::new(),
            tries: Vec::new(),
            made: true,
        };
        // SAFETY: `request` belongs to the trylist, is not moved, and so lives until after its drop; the storage is as `info` says.
        let status = unsafe {
            call(self.table.calls.load_balance)(
                self.balancer,
                &raw const trylist.request.wire,
                storage.as_ptr().cast(),
            )
        };
        // As the ABI has it: no trylist came to be, and none is dropped.
        trylist.made = status == STATUS_OK;
        self.status(status).map(|()| trylist)
    }

    /// The answers of `n` requests that are all served at the first try: the balancer's sequence.
    pub fn sequence(&self, n: usize) -> Vec<usize> {
        (0..n)
            .map(|_| {
                let mut trylist = self.load_balance(FakeRequest::get("/"));
                let Next::Endpoint(endpoint) = trylist.next() else { panic!("no endpoint for a first try") };
                trylist.serve();
                endpoint
            })
            .collect()
    }

    /// How often each endpoint was the first choice in `n` requests.
    pub fn distribution(&self, n: usize) -> Vec<usize> {
        let mut counts = vec![0; self.n_endpoints];
        self.sequence(n).into_iter().for_each(|endpoint| counts[endpoint] += 1);
        counts
    }

    /// How long `n` requests take that are all served at the first try, with nothing in between but the calls:
    /// `load_balance`, `next`, `finish` and the drop. The answers are not checked.
    ///
    /// # Panics
    /// The balancer panicked, or refused a call.
    pub fn time(&self, request: FakeRequest, n: usize) -> Duration {
        // The first one is dropped here, and its storage lent to the others.
        let mut list = self.load_balance(request);
        list.drop_in_module();
        let calls = &self.table.calls;
        let (load_balance, next) = (call(calls.load_balance), call(calls.next));
        let (finish, drop_trylist) = (call(calls.finish), call(calls.drop_trylist));
        let (request, room) = (&raw const list.request.wire, list.trylist());
        let mut cx = wire::NextCx {
            size: size_of::<wire::NextCx>() as u32,
            n_tries: 0,
            now_ns: self.world.now_ns(),
            random: self.world.random(),
            tried: ptr::null(),
            n_tried_words: 0,
            request,
        };
        let outcome = outcome(OutcomeKind::Served, 0, Some(200), 1, self.world.now_ns());
        let mut worst = STATUS_OK;
        let started = Instant::now();
        for _ in 0..n {
            cx.random = cx.random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            let mut answer = NO_ANSWER;
            // SAFETY: the calls of a request in their order, on storage of the right layout that holds no trylist before
            // and after them; a trylist that could not be made is neither asked nor dropped.
            unsafe {
                let mut status = load_balance(self.balancer, request, room);
                if status == STATUS_OK {
                    status = status.max(next(self.balancer, room, &raw const cx, &raw mut answer));
                    status = status.max(finish(self.balancer, room, &raw const outcome));
                    status = status.max(drop_trylist(self.balancer, room));
                }
                worst = worst.max(status);
            }
            std::hint::black_box(answer.endpoint);
        }
        let took = started.elapsed();
        self.status(worst).unwrap_or_else(|why| panic!("a request: {why}"));
        took
    }

    /// What it saves, wrapped as a host gets it; empty where it saves nothing.
    ///
    /// # Panics
    /// The balancer panicked.
    pub fn save(&self) -> Vec<u8> {
        let Some(save) = self.table.calls.save else { return Vec::new() };
        let bytes = Mutex::new(Vec::new());
        let sink = sink(&bytes);
        // SAFETY: the sink lives to the end of the call.
        let status = unsafe { save(self.balancer, &raw const sink) };
        self.status(status).unwrap_or_else(|why| panic!("save: {why}"));
        bytes.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lines that it wrote to the log, the first thousand.
    pub fn logged(&self) -> Vec<String> {
        self.host.lines(&self.host.log)
    }

    /// Whether it asked for events of this kind.
    pub fn observes(&self, kind: EventKind) -> bool {
        self.needs.events & 1 << event_kind(kind) != 0
    }

    fn status(&self, status: u32) -> Result<(), String> {
        match status {
            STATUS_OK => Ok(()),
            wire::STATUS_PANICKED => Err(self
                .host
                .lines(&self.host.panics)
                .pop()
                .unwrap_or_else(|| "panicked, and did not say where".into())),
            other => Err(format!("returned status {other}")),
        }
    }
}

impl<B> Drop for TestBalancer<B> {
    fn drop(&mut self) {
        // SAFETY: it came from `build`, and trylists borrow it, so that none is left.
        let status = unsafe { call(self.table.calls.drop_balancer)(self.balancer) };
        if status != STATUS_OK && !std::thread::panicking() {
            panic!("drop of the balancer: {:?}", self.host.lines(&self.host.panics).pop());
        }
    }
}

/// A trylist in its storage. Dropping it calls `drop_trylist`, whatever came before.
pub struct TestTrylist<'a, B> {
    of: &'a TestBalancer<B>,
    /// As [`TestBalancer::host`].
    request: Rc<Sent>,
    storage: NonNull<u8>,
    layout: Layout,
    tried: Vec<u64>,
    tries: Vec<usize>,
    made: bool,
}

impl<B> TestTrylist<'_, B> {
    /// Asks for the next endpoint and checks the answer as a host does. The endpoint then counts as tried.
    ///
    /// # Panics
    /// The balancer panicked, or answered with an endpoint that does not exist or was answered before.
    #[expect(clippy::should_implement_trait, reason = "named after the call")]
    pub fn next(&mut self) -> Next {
        self.try_next().unwrap_or_else(|why| panic!("next: {why}"))
    }

    /// The same, where a test expects the balancer to fail.
    ///
    /// # Errors
    /// Message and place of a panic, or what is wrong with the answer.
    pub fn try_next(&mut self) -> Result<Next, String> {
        let cx = wire::NextCx {
            size: size_of::<wire::NextCx>() as u32,
            n_tries: self.tries.len() as u32,
            now_ns: self.of.world.now_ns(),
            random: self.of.world.random(),
            tried: if self.tried.is_empty() { ptr::null() } else { self.tried.as_ptr() },
            n_tried_words: self.tried.len(),
            request: &raw const self.request.wire,
        };
        let mut answer = NO_ANSWER;
        // SAFETY: the trylist is made, and all pointers live to the end of the call.
        let status = unsafe {
            call(self.of.table.calls.next)(self.balancer(), self.trylist(), &raw const cx, &raw mut answer)
        };
        self.of.status(status)?;
        match answer.kind {
            wire::NEXT_ENDPOINT => {
                let (idx, n) = (answer.endpoint as usize, self.of.n_endpoints);
                if idx >= n {
                    return Err(format!("answered endpoint {idx} of {n}"));
                }
                if self.was_tried(idx) && !self.tries.contains(&idx) {
                    return Err(format!("answered endpoint {idx}, which the host had tried before"));
                }
                if self.was_tried(idx) {
                    return Err(format!("answered endpoint {idx} twice (tried: {:?})", self.tries));
                }
                self.mark_tried(idx);
                self.tries.push(idx);
                Ok(Next::Endpoint(idx))
            }
            wire::NEXT_EXHAUSTED => Ok(Next::Exhausted),
            wire::NEXT_BUSY => Ok(Next::Busy),
            other => Err(format!("answered kind {other}, which there is not")),
        }
    }

    /// All endpoints in the order in which this trylist answers them when every one fails to connect.
    pub fn all(&mut self) -> Vec<usize> {
        let mut order = Vec::new();
        while let Next::Endpoint(endpoint) = self.next() {
            order.push(endpoint);
            self.fail();
        }
        order
    }

    /// Marks an endpoint as answered before, as a host does with the preferred one.
    pub fn mark_tried(&mut self, endpoint: usize) {
        // No longer than need be, so that balancers meet words that are not there.
        let words = endpoint / 64 + 1;
        if self.tried.len() < words {
            self.tried.resize(words, 0);
        }
        self.tried[endpoint / 64] |= 1 << (endpoint % 64);
    }

    /// Takes back the last answer, as a host does that found the endpoint full and has waited since: it was no try, and
    /// may be answered again.
    pub fn decline_and_wait(&mut self) {
        if let Some(endpoint) = self.tries.pop() {
            self.tried[endpoint / 64] &= !(1 << (endpoint % 64));
        }
    }

    /// The last try was refused.
    pub fn fail(&mut self) {
        self.fail_with(FailureKind::Connect);
    }

    /// The last try could not be established: calls `report_failure`, and `observe` where that was asked for.
    ///
    /// # Panics
    /// The balancer panicked.
    pub fn fail_with(&mut self, kind: FailureKind) {
        let failure = wire::Failure {
            size: size_of::<wire::Failure>() as u32,
            kind: match kind {
                FailureKind::Resolve => wire::FAILURE_RESOLVE,
                FailureKind::Connect => wire::FAILURE_CONNECT,
                FailureKind::ConnectTimeout => wire::FAILURE_CONNECT_TIMEOUT,
                FailureKind::Tls => wire::FAILURE_TLS,
                FailureKind::Local => wire::FAILURE_LOCAL,
            },
            endpoint: self.last(),
            try_id: self.tries.len() as u32,
            os_error: if kind == FailureKind::Connect { 111 } else { 0 },
            reserved: 0,
            now_ns: self.of.world.now_ns(),
            elapsed_ns: 1_000_000,
        };
        // SAFETY: the trylist is made, and the failure lives to the end of the call.
        let status = unsafe {
            call(self.of.table.calls.report_failure)(self.balancer(), self.trylist(), &raw const failure)
        };
        self.of.status(status).unwrap_or_else(|why| panic!("report_failure: {why}"));
        self.observe(EventKind::TryEnded, None, Some(TryResult::NotEstablished), Duration::from_millis(1));
    }

    /// Tells that the last try goes on, where the balancer asked for such events.
    ///
    /// # Panics
    /// The balancer panicked.
    pub fn observe(
        &mut self,
        kind: EventKind,
        status: Option<u16>,
        result: Option<TryResult>,
        total: Duration,
    ) {
        self.observe_headers(kind, status, result, total, &[]);
    }

    /// The same with response headers, of which the balancer gets those that it asked for.
    ///
    /// # Panics
    /// The balancer panicked.
    pub fn observe_headers(
        &mut self,
        kind: EventKind,
        status: Option<u16>,
        result: Option<TryResult>,
        total: Duration,
        headers: &[(&str, &str)],
    ) {
        let Some(observe) = self.of.table.calls.observe.filter(|_| self.of.observes(kind)) else { return };
        let headers =
            select(&self.of.needs.response_headers, headers.iter().map(|(n, v)| (*n, v.as_bytes())));
        let total_ns = total.as_nanos() as u64;
        let event = wire::Event {
            size: size_of::<wire::Event>() as u32,
            kind: event_kind(kind),
            try_id: self.tries.len() as u32,
            endpoint: self.last(),
            status: status.unwrap_or_default().into(),
            result: match result {
                None => 0,
                Some(TryResult::Served) => wire::TRY_SERVED,
                Some(TryResult::NotEstablished) => wire::TRY_NOT_ESTABLISHED,
                Some(TryResult::ClosedEarly) => wire::TRY_CLOSED_EARLY,
                Some(TryResult::BadResponse) => wire::TRY_BAD_RESPONSE,
                Some(TryResult::TimedOut) => wire::TRY_TIMED_OUT,
                Some(TryResult::Broken) => wire::TRY_BROKEN,
                Some(TryResult::Aborted) => wire::TRY_ABORTED,
            },
            now_ns: self.of.world.now_ns(),
            connect_ns: 0,
            first_byte_ns: if status.is_some() { total_ns } else { 0 },
            total_ns,
            bytes_sent: 100,
            bytes_received: if status.is_some() { 1000 } else { 0 },
            headers: headers.as_ptr(),
            n_headers: headers.len(),
        };
        // SAFETY: the trylist is made, and the event lives to the end of the call.
        let status = unsafe { observe(self.balancer(), self.trylist(), &raw const event) };
        self.of.status(status).unwrap_or_else(|why| panic!("observe: {why}"));
    }

    /// The last try is served with a 200, and the request ends.
    pub fn serve(mut self) {
        let total = Duration::from_millis(1);
        self.observe(EventKind::Connected, None, None, total);
        self.observe(EventKind::ResponseHeaders, Some(200), None, total);
        self.observe(EventKind::TryEnded, Some(200), Some(TryResult::Served), total);
        self.finish(OutcomeKind::Served, Some(200));
    }

    /// The request ends: calls `finish`, then `drop_trylist`.
    ///
    /// # Panics
    /// The balancer panicked.
    pub fn finish(self, kind: OutcomeKind, status: Option<u16>) {
        let endpoint = if kind == OutcomeKind::Served { self.last() } else { wire::NO_ENDPOINT };
        let outcome = outcome(kind, endpoint, status, self.tries.len(), self.of.world.now_ns());
        // SAFETY: the trylist is made, and the outcome lives to the end of the call.
        let status =
            unsafe { call(self.of.table.calls.finish)(self.balancer(), self.trylist(), &raw const outcome) };
        self.of.status(status).unwrap_or_else(|why| panic!("finish: {why}"));
    }

    /// What it says of its choice; empty where it says nothing.
    ///
    /// # Panics
    /// The balancer panicked.
    pub fn explain(&mut self) -> String {
        let Some(explain) = self.of.table.calls.explain else { return String::new() };
        let text = Mutex::new(Vec::new());
        let sink = sink(&text);
        // SAFETY: the trylist is made, and the sink lives to the end of the call.
        let status = unsafe { explain(self.balancer(), self.trylist(), &raw const sink) };
        self.of.status(status).unwrap_or_else(|why| panic!("explain: {why}"));
        String::from_utf8_lossy(&text.into_inner().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }

    /// The module's half of its end; what is left is the storage.
    fn drop_in_module(&mut self) -> u32 {
        if !std::mem::take(&mut self.made) {
            return STATUS_OK;
        }
        // SAFETY: the trylist is made, and this is its last call.
        unsafe { call(self.of.table.calls.drop_trylist)(self.balancer(), self.trylist()) }
    }

    fn was_tried(&self, endpoint: usize) -> bool {
        self.tried.get(endpoint / 64).is_some_and(|word| word >> (endpoint % 64) & 1 == 1)
    }

    fn last(&self) -> u32 {
        self.tries.last().map_or(wire::NO_ENDPOINT, |endpoint| *endpoint as u32)
    }

    fn balancer(&self) -> *const c_void {
        self.of.balancer
    }

    fn trylist(&self) -> *mut c_void {
        self.storage.as_ptr().cast()
    }
}

impl<B> Drop for TestTrylist<'_, B> {
    fn drop(&mut self) {
        let status = self.drop_in_module();
        // SAFETY: allocated with this layout.
        unsafe { dealloc(self.storage.as_ptr(), self.layout) };
        if !std::thread::panicking() {
            self.of.status(status).unwrap_or_else(|why| panic!("drop of the trylist: {why}"));
        }
    }
}

/// An element as a later host would send it: longer than ours, so that a stride that is not used shows.
#[repr(C)]
struct Padded<T> {
    it: T,
    later: u64,
}

impl<T> Padded<T> {
    fn new(it: T) -> Self {
        Self { it, later: u64::MAX }
    }
}

/// What the balancer asked for.
struct Gathered {
    key: bool,
    events: u32,
    request_headers: Vec<String>,
    response_headers: Vec<String>,
}

impl Gathered {
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
struct Sent {
    wire: wire::Request,
    _request: FakeRequest,
    _headers: Vec<Str>,
}

impl Sent {
    fn new(request: FakeRequest, needs: &Gathered) -> Self {
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

/// Lines of the log that are remembered.
const MAX_LINES: usize = 1000;

/// A host that remembers what it is told.
struct Host {
    api: wire::HostApi,
    log: Mutex<Vec<String>>,
    panics: Mutex<Vec<String>>,
}

impl Host {
    fn new() -> Arc<Self> {
        Arc::new_cyclic(|host: &Weak<Self>| {
            let api = wire::HostApi {
                size: size_of::<wire::HostApi>() as u32,
                reserved: 0,
                ctx: host.as_ptr().cast_mut().cast(),
                log: host_log,
                panicked: host_panicked,
            };
            Self { api, log: Mutex::default(), panics: Mutex::default() }
        })
    }

    fn lines(&self, of: &Mutex<Vec<String>>) -> Vec<String> {
        of.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

unsafe extern "C" fn host_log(ctx: *mut c_void, level: u32, line: Str) {
    // SAFETY: `ctx` is the host, which outlives its balancer and is only ever shared.
    let host = unsafe { &*ctx.cast::<Host>() };
    let level = match level {
        wire::LOG_ERROR => "error",
        wire::LOG_WARN => "warn",
        wire::LOG_DEBUG => "debug",
        _ => "info",
    };
    let mut log = host.log.lock().unwrap_or_else(PoisonError::into_inner);
    // What is kept for ever would pass for a leak of the module's.
    if log.len() < MAX_LINES {
        log.push(format!("{level}: {}", owned(line)));
    }
}

unsafe extern "C" fn host_panicked(ctx: *mut c_void, line: Str) {
    // SAFETY: as above.
    let host = unsafe { &*ctx.cast::<Host>() };
    host.panics.lock().unwrap_or_else(PoisonError::into_inner).push(owned(line));
}

unsafe extern "C" fn note_error(ctx: *mut c_void, path: Str, line: Str) {
    // SAFETY: `ctx` is the list that `build` lent to its sink.
    let errors = unsafe { &*ctx.cast::<Mutex<Vec<Problem>>>() };
    let problem = Problem { path: owned(path), text: owned(line) };
    errors.lock().unwrap_or_else(PoisonError::into_inner).push(problem);
}

fn sink(bytes: &Mutex<Vec<u8>>) -> wire::Sink {
    unsafe extern "C" fn write(ctx: *mut c_void, bytes: Str) {
        // SAFETY: `ctx` is the buffer that the sink was made of, and the bytes live to the end of the call.
        let (all, bytes) = unsafe { (&*ctx.cast::<Mutex<Vec<u8>>>(), bytes.bytes()) };
        all.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes.unwrap_or_default());
    }
    let ctx = ptr::from_ref(bytes).cast_mut().cast();
    wire::Sink { size: size_of::<wire::Sink>() as u32, reserved: 0, ctx, write }
}

fn owned(text: Str) -> String {
    // SAFETY: the text lives to the end of the call that brought it.
    String::from_utf8_lossy(unsafe { text.bytes() }.unwrap_or_default()).into_owned()
}

/// Where a path goes down into a table or an array: dots and brackets that are not in a quoted key.
fn separators(path: &str) -> impl DoubleEndedIterator<Item = (usize, char)> {
    let (mut quoted, mut escaped) = (false, false);
    let found: Vec<_> = path
        .char_indices()
        .filter(|(_, c)| {
            let is_quote = *c == '"' && !escaped;
            escaped = *c == '\\' && !escaped;
            quoted ^= is_quote;
            !quoted && matches!(c, '.' | '[')
        })
        .collect();
    found.into_iter()
}

/// A call that every module has; `Table` was made of no other.
fn call<F>(call: Option<F>) -> F {
    call.expect("the table has every call that a module must have")
}

fn text(text: &str) -> Str {
    Str::of(text.as_bytes())
}

fn pairs(pairs: &[(String, String)]) -> Vec<wire::Pair> {
    pairs.iter().map(|(name, value)| wire::Pair { name: text(name), value: text(value) }).collect()
}

fn setting(path: &str, kind: u32, value: &SettingValue) -> wire::Setting {
    wire::Setting {
        size: size_of::<Padded<wire::Setting>>() as u32,
        kind,
        path: text(path),
        text: match value {
            SettingValue::String(value) => text(value),
            _ => Str::ABSENT,
        },
        integer: match value {
            SettingValue::Integer(value) => *value,
            SettingValue::Boolean(value) => i64::from(*value),
            SettingValue::Table(n) | SettingValue::Array(n) => *n as i64,
            _ => 0,
        },
        real: match value {
            SettingValue::Float(value) => *value,
            _ => 0.0,
        },
    }
}

fn outcome(
    kind: OutcomeKind,
    endpoint: u32,
    status: Option<u16>,
    n_tries: usize,
    now_ns: u64,
) -> wire::Outcome {
    wire::Outcome {
        size: size_of::<wire::Outcome>() as u32,
        kind: match kind {
            OutcomeKind::Served => wire::OUTCOME_SERVED,
            OutcomeKind::NoEndpoint => wire::OUTCOME_NO_ENDPOINT,
            OutcomeKind::Failed => wire::OUTCOME_FAILED,
            OutcomeKind::TimedOut => wire::OUTCOME_TIMED_OUT,
            OutcomeKind::Broken => wire::OUTCOME_BROKEN,
            OutcomeKind::Aborted => wire::OUTCOME_ABORTED,
        },
        endpoint,
        status: status.unwrap_or_default().into(),
        n_tries: n_tries as u32,
        reserved: 0,
        now_ns,
        connect_ns: 0,
        first_byte_ns: 1_000_000,
        total_ns: 1_000_000,
        bytes_sent: 100,
        bytes_received: 1000,
    }
}

/// What `next` is to fill in.
const NO_ANSWER: wire::Answer = wire::Answer {
    size: size_of::<wire::Answer>() as u32,
    kind: 0,
    endpoint: wire::NO_ENDPOINT,
    reserved: 0,
};

fn event_kind(kind: EventKind) -> u32 {
    match kind {
        EventKind::Connected => wire::EVENT_CONNECTED,
        EventKind::ResponseHeaders => wire::EVENT_RESPONSE_HEADERS,
        EventKind::TryEnded => wire::EVENT_TRY_ENDED,
    }
}

const NO_ADDRESS: wire::Address =
    wire::Address { family: wire::ADDRESS_NONE, port: 0, reserved: 0, bytes: [0; 16] };

fn address(address: SocketAddr) -> wire::Address {
    let mut bytes = [0; 16];
    let family = match address.ip() {
        IpAddr::V4(ip) => {
            bytes[..4].copy_from_slice(&ip.octets());
            wire::ADDRESS_V4
        }
        IpAddr::V6(ip) => {
            bytes = ip.octets();
            wire::ADDRESS_V6
        }
    };
    wire::Address { family, port: address.port(), reserved: 0, bytes }
}
