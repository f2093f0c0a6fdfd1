//! A Rust module of the first release of the ABI: what its SDK made of a balancer, by hand. Turns over the endpoints, and
//! tells the host's log at the end of each request what it was told.

use std::ffi::c_void;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed};

use abi_stable::prefix_type::PrefixTypeTrait as _;
use abi_stable::std_types::RSlice;
use lb_api::*;

struct Balancer {
    turn: AtomicUsize,
    host: *const HostApi,
    counters: Vec<*const Counters>,
}

struct Trylist {
    at: usize,
    n_asked: u32,
    n_failures: u32,
}

const fn text(text: &'static str) -> Str {
    Str { ptr: text.as_ptr(), len: text.len() }
}

#[abi_stable::export_root_module]
pub fn root() -> RootRef {
    Root {
        abi_major: 1,
        abi_minor: 0,
        fields: RSlice::from_slice(FIELDS),
        info,
        build,
        load_balance,
        next,
        report_failure,
        observe,
        finish,
        drop_trylist,
        save,
        explain,
        drop_balancer,
    }
    .leak_into_prefix()
}

unsafe extern "C" fn info(info: *mut c_void) -> u32 {
    let info = unsafe { &mut *info.cast::<Info>() };
    (info.abi_major, info.abi_minor) = (1, 0);
    info.trylist_size = size_of::<Trylist>() as u32;
    info.trylist_align = align_of::<Trylist>() as u32;
    info.id = text("first_release");
    info.version = text("1.0.0");
    info.summary = text("in Rust, of the first release of the ABI");
    STATUS_OK
}

unsafe extern "C" fn build(cx: *const c_void, balancer: *mut *mut c_void) -> u32 {
    let cx = unsafe { &*cx.cast::<BuildCx>() };
    let endpoint = |i| unsafe { &*cx.endpoints.byte_add(i * cx.endpoint_stride) };
    let counters = (0..cx.n_endpoints).map(|i| endpoint(i).counters).collect();
    let made = Balancer { turn: AtomicUsize::new(0), host: cx.host, counters };
    unsafe { *balancer = Box::into_raw(Box::new(made)).cast() };
    STATUS_OK
}

unsafe extern "C" fn load_balance(balancer: *const c_void, _: *const c_void, trylist: *mut c_void) -> u32 {
    let balancer = unsafe { &*balancer.cast::<Balancer>() };
    let at = balancer.turn.fetch_add(1, Relaxed) % balancer.counters.len();
    unsafe { trylist.cast::<Trylist>().write(Trylist { at, n_asked: 0, n_failures: 0 }) };
    STATUS_OK
}

unsafe extern "C" fn next(
    balancer: *const c_void,
    trylist: *mut c_void,
    cx: *const c_void,
    answer: *mut c_void,
) -> u32 {
    let balancer = unsafe { &*balancer.cast::<Balancer>() };
    let trylist = unsafe { &mut *trylist.cast::<Trylist>() };
    let (cx, answer) = unsafe { (&*cx.cast::<NextCx>(), &mut *answer.cast::<Answer>()) };
    trylist.n_asked += 1;
    let n = balancer.counters.len();
    let is_tried =
        |i: usize| i / 64 < cx.n_tried_words && unsafe { *cx.tried.add(i / 64) } >> (i % 64) & 1 == 1;
    let state = |i: usize| unsafe { &(*balancer.counters[i]).state };
    let is_open = |i: &usize| !is_tried(*i) && AtomicU32::load(state(*i), Relaxed) == STATE_AVAILABLE;
    match (0..n).map(|step| (trylist.at + step) % n).find(is_open) {
        Some(endpoint) => (answer.kind, answer.endpoint) = (NEXT_ENDPOINT, endpoint as u32),
        None => answer.kind = NEXT_EXHAUSTED,
    }
    STATUS_OK
}

unsafe extern "C" fn report_failure(_: *const c_void, trylist: *mut c_void, _: *const c_void) -> u32 {
    unsafe { (*trylist.cast::<Trylist>()).n_failures += 1 };
    STATUS_OK
}

unsafe extern "C" fn observe(_: *const c_void, _: *mut c_void, _: *const c_void) -> u32 {
    STATUS_OK
}

unsafe extern "C" fn finish(balancer: *const c_void, trylist: *mut c_void, outcome: *const c_void) -> u32 {
    let host = unsafe { &*(*balancer.cast::<Balancer>()).host };
    let (trylist, outcome) = unsafe { (&*trylist.cast::<Trylist>(), &*outcome.cast::<Outcome>()) };
    let line = format!(
        "outcome {} from {}, status {}, tries {}; asked {}, failures {}",
        outcome.kind, outcome.endpoint, outcome.status, outcome.n_tries, trylist.n_asked, trylist.n_failures
    );
    unsafe { (host.log)(host.ctx, LOG_INFO, Str { ptr: line.as_ptr(), len: line.len() }) };
    STATUS_OK
}

unsafe extern "C" fn drop_trylist(_: *const c_void, _: *mut c_void) -> u32 {
    STATUS_OK
}

unsafe extern "C" fn save(_: *const c_void, _: *const c_void) -> u32 {
    STATUS_OK
}

unsafe extern "C" fn explain(_: *const c_void, _: *mut c_void, _: *const c_void) -> u32 {
    STATUS_OK
}

unsafe extern "C" fn drop_balancer(balancer: *mut c_void) -> u32 {
    drop(unsafe { Box::from_raw(balancer.cast::<Balancer>()) });
    STATUS_OK
}
