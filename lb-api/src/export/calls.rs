//! The calls of the wire table, for any [`Balancer`].
#![allow(unsafe_code, reason = "the boundary itself")]

use std::ffi::c_void;
use std::mem::{align_of, size_of};

use crate::balancer::{Balancer, BuildCx, Log, Needs};
use crate::error::BuildError;
use crate::export::view::{self, Host, View};
use crate::export::{panics, state};
use crate::outcome::{Event, Failure, Outcome};
use crate::request::Request;
use crate::trylist::{Next, NextCx};
use crate::version::{ABI_MAJOR, ABI_MINOR};
use crate::wire::{self, STATUS_OK, STATUS_PANICKED, STATUS_REFUSED, Str};
use crate::{export::Package, settings};

/// The balancer as `build` hands it to the host.
struct Instance<B> {
    balancer: B,
    host: Host,
    log: Log,
    /// They own the text and the slices that the host has pointers to. Vectors, because moving a `Box` takes away the right to use
    /// the pointers that were made of it before.
    _needs: Needs,
    _headers: [Vec<Str>; 2],
}

// SAFETY: the pointers in `_headers` go to text that `_needs` owns and nobody changes; the rest is `Send` and `Sync`.
unsafe impl<B: Balancer> Send for Instance<B> {}
// SAFETY: as above.
unsafe impl<B: Balancer> Sync for Instance<B> {}

/// The content of the host's storage. `None` if there is no trylist: `load_balance` panicked, or it was dropped.
type Slot<B> = Option<<B as Balancer>::Trylist>;

/// The wire table of `B`, told to be of package version `P`.
pub(crate) fn table<B: Balancer, P: Package>() -> wire::Module {
    const {
        assert!(
            align_of::<Slot<B>>() <= wire::TRYLIST_ALIGN,
            "Balancer::Trylist needs an alignment above 16"
        );
        assert!(size_of::<Slot<B>>() <= u32::MAX as usize, "Balancer::Trylist is too large");
        assert!(is_id(B::ID), "Balancer::ID is not in snake_case: a-z first, then a-z, 0-9 and _");
    }
    wire::Module {
        size: size_of::<wire::Module>() as u32,
        abi_major: ABI_MAJOR,
        abi_minor: ABI_MINOR,
        reserved: 0,
        info: Some(info::<B, P>),
        build: Some(build::<B>),
        load_balance: Some(load_balance::<B>),
        next: Some(next::<B>),
        report_failure: Some(report_failure::<B>),
        observe: Some(observe::<B>),
        finish: Some(finish::<B>),
        drop_trylist: Some(drop_trylist::<B>),
        save: Some(save::<B>),
        explain: Some(explain::<B>),
        drop_balancer: Some(drop_balancer::<B>),
    }
}

const fn is_id(id: &str) -> bool {
    let bytes = id.as_bytes();
    let mut idx = 0;
    while idx < bytes.len() {
        let ok = bytes[idx].is_ascii_lowercase() || idx > 0 && matches!(bytes[idx], b'0'..=b'9' | b'_');
        if !ok {
            return false;
        }
        idx += 1;
    }
    !bytes.is_empty()
}

unsafe extern "C" fn info<B: Balancer, P: Package>(info: *mut wire::Info) -> u32 {
    // SAFETY: the host passes its own struct with `size` set.
    if info.is_null() || unsafe { (*info).size as usize } < size_of::<wire::Info>() {
        return STATUS_REFUSED;
    }
    // SAFETY: as above, and it is long enough.
    unsafe {
        *info = wire::Info {
            size: size_of::<wire::Info>() as u32,
            abi_major: ABI_MAJOR,
            abi_minor: ABI_MINOR,
            trylist_size: size_of::<Slot<B>>() as u32,
            trylist_align: align_of::<Slot<B>>() as u32,
            reserved: 0,
            id: Str::of(B::ID.as_bytes()),
            version: Str::of(P::VERSION.as_bytes()),
            summary: Str::of(B::SUMMARY.as_bytes()),
        };
    }
    STATUS_OK
}

unsafe extern "C" fn build<B: Balancer>(cx: *const wire::BuildCx, balancer: *mut *mut c_void) -> u32 {
    // SAFETY: the host's `BuildCx` is valid for the time of the call.
    let Some(view) = (unsafe { View::new(cx) }) else { return STATUS_REFUSED };
    match panics::catch(|| make::<B>(view)) {
        Ok(Ok(instance)) => {
            // SAFETY: `balancer` is the host's, to be written to.
            unsafe { *balancer = Box::into_raw(instance).cast() };
            STATUS_OK
        }
        Ok(Err(error)) => {
            for problem in error.problems() {
                view::report(view, &problem.path, &problem.text);
            }
            STATUS_REFUSED
        }
        Err(text) => {
            view::report(view, "", &text);
            STATUS_PANICKED
        }
    }
}

fn make<B: Balancer>(view: View<'_, wire::BuildCx>) -> Result<Box<Instance<B>>, BuildError> {
    let broken = || {
        BuildError::new("the host's structs are shorter than its ABI version says, or it has no endpoints")
    };
    // SAFETY: the host's promise; the instance closes its `Log` when it is dropped, and uses `host` in calls only.
    let host = unsafe { Host::new(view) }.ok_or_else(broken)?;
    let log = Log::new(host);
    // If this ends without an instance, a `Log` that was kept must not write any more.
    let close = CloseOnDrop(Some(&log));
    // SAFETY: `previous` of the host is an instance that `build` of this same module made.
    let previous = unsafe { view.previous.cast::<Instance<B>>().as_ref() }.map(|instance| &instance.balancer);
    let saved = view.bytes(|cx| cx.saved).and_then(|sealed| {
        state::open(B::ID, B::STATE_VERSION, sealed)
            .map_err(|why| log.info(format_args!("saved state {why}: starting without it")))
            .ok()
    });
    let cx = BuildCx::new(view, previous, saved, log.clone()).ok_or_else(broken)?;
    let settings = view.strided(|cx| (cx.settings, cx.n_settings, cx.setting_stride));
    if settings.len() != view.n_settings || (0..settings.len()).any(|idx| settings.get(idx).is_none()) {
        return Err(broken());
    }
    let balancer = B::build(&cx, settings::read(settings)?)?;
    let needs = balancer.needs();
    let headers = [&needs.request_headers, &needs.response_headers]
        .map(|names| names.iter().map(|name| Str::of(name.as_bytes())).collect::<Vec<_>>());
    // SAFETY: the host's own struct, with `size` set, to be written to during the call.
    let out = unsafe { view.needs.as_mut() };
    if let Some(out) = out.filter(|out| out.size as usize >= size_of::<wire::Needs>()) {
        out.flags = needs.flags;
        out.events = needs.events;
        out.request_headers = headers[0].as_ptr();
        out.n_request_headers = headers[0].len();
        out.response_headers = headers[1].as_ptr();
        out.n_response_headers = headers[1].len();
    }
    close.keep();
    Ok(Box::new(Instance { balancer, host, log, _needs: needs, _headers: headers }))
}

struct CloseOnDrop<'a>(Option<&'a Log>);

impl CloseOnDrop<'_> {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for CloseOnDrop<'_> {
    fn drop(&mut self) {
        if let Some(log) = self.0 {
            log.close();
        }
    }
}

/// The status of a call, with a panic told to the host.
#[inline(always)]
fn contain<B>(instance: &Instance<B>, call: impl FnOnce() -> u32) -> u32 {
    match panics::catch(call) {
        Ok(status) => status,
        Err(text) => {
            instance.host.panicked(&text);
            STATUS_PANICKED
        }
    }
}

/// The instance behind the host's pointer.
///
/// # Safety
/// `balancer` came from `build::<B>` and has not been dropped.
#[inline(always)]
unsafe fn instance<'a, B>(balancer: *const c_void) -> &'a Instance<B> {
    // SAFETY: the caller's promise.
    unsafe { &*balancer.cast() }
}

/// The trylist in the host's storage.
///
/// # Safety
/// `load_balance::<B>` has written to `trylist`, and nobody else uses it during this call.
#[inline(always)]
unsafe fn slot<'a, B: Balancer>(trylist: *mut c_void) -> &'a mut Slot<B> {
    // SAFETY: the caller's promise.
    unsafe { &mut *trylist.cast() }
}

unsafe extern "C" fn load_balance<B: Balancer>(
    balancer: *const c_void,
    request: *const wire::Request,
    trylist: *mut c_void,
) -> u32 {
    // SAFETY: the host's promise.
    let instance = unsafe { instance::<B>(balancer) };
    // SAFETY: the host's promise: valid until the trylist is dropped. The author cannot keep it longer than this call.
    let Some(request) = (unsafe { View::new(request) }) else { return STATUS_REFUSED };
    let trylist = trylist.cast::<Slot<B>>();
    contain(instance, || {
        // SAFETY: the host's storage is as large and as aligned as `info` asked for, and holds nothing yet. `None` stays
        // there if the author's code panics, so that dropping it is right in any case.
        unsafe { trylist.write(None) };
        let made = instance.balancer.load_balance(&Request::new(request));
        // SAFETY: as above.
        unsafe { trylist.write(Some(made)) };
        STATUS_OK
    })
}

unsafe extern "C" fn next<B: Balancer>(
    balancer: *const c_void,
    trylist: *mut c_void,
    cx: *const wire::NextCx,
    answer: *mut wire::Answer,
) -> u32 {
    // SAFETY: the host's promise, for all four.
    let (instance, slot, cx) = unsafe { (instance::<B>(balancer), slot::<B>(trylist), View::new(cx)) };
    let (Some(trylist), Some(cx)) = (slot, cx) else { return STATUS_REFUSED };
    contain(instance, || {
        let (kind, endpoint) = match instance.balancer.next(trylist, &NextCx::new(cx)) {
            // An index beyond u32 does not exist; `NO_ENDPOINT` does not either.
            Next::Endpoint(idx) => (wire::NEXT_ENDPOINT, u32::try_from(idx).unwrap_or(wire::NO_ENDPOINT)),
            Next::Exhausted => (wire::NEXT_EXHAUSTED, wire::NO_ENDPOINT),
            Next::Busy => (wire::NEXT_BUSY, wire::NO_ENDPOINT),
        };
        // SAFETY: the host's own struct; both fields are of the first release.
        unsafe {
            (*answer).kind = kind;
            (*answer).endpoint = endpoint;
        }
        STATUS_OK
    })
}

unsafe extern "C" fn report_failure<B: Balancer>(
    balancer: *const c_void,
    trylist: *mut c_void,
    failure: *const wire::Failure,
) -> u32 {
    // SAFETY: the host's promise.
    let (instance, slot, failure) =
        unsafe { (instance::<B>(balancer), slot::<B>(trylist), View::new(failure)) };
    let (Some(trylist), Some(failure)) = (slot, failure) else { return STATUS_REFUSED };
    contain(instance, || {
        instance.balancer.report_failure(trylist, &Failure::new(failure));
        STATUS_OK
    })
}

unsafe extern "C" fn observe<B: Balancer>(
    balancer: *const c_void,
    trylist: *mut c_void,
    event: *const wire::Event,
) -> u32 {
    // SAFETY: the host's promise.
    let (instance, slot, event) = unsafe { (instance::<B>(balancer), slot::<B>(trylist), View::new(event)) };
    let (Some(trylist), Some(event)) = (slot, event) else { return STATUS_REFUSED };
    contain(instance, || {
        if let Some(event) = Event::new(event) {
            instance.balancer.observe(trylist, &event);
        }
        STATUS_OK
    })
}

unsafe extern "C" fn finish<B: Balancer>(
    balancer: *const c_void,
    trylist: *mut c_void,
    outcome: *const wire::Outcome,
) -> u32 {
    // SAFETY: the host's promise.
    let (instance, slot, outcome) =
        unsafe { (instance::<B>(balancer), slot::<B>(trylist), View::new(outcome)) };
    let (Some(trylist), Some(outcome)) = (slot, outcome) else { return STATUS_REFUSED };
    contain(instance, || {
        instance.balancer.finish(trylist, &Outcome::new(outcome));
        STATUS_OK
    })
}

unsafe extern "C" fn drop_trylist<B: Balancer>(balancer: *const c_void, trylist: *mut c_void) -> u32 {
    // SAFETY: the host's promise.
    let (instance, slot) = unsafe { (instance::<B>(balancer), slot::<B>(trylist)) };
    contain(instance, || {
        // Taken first, so that a drop that panics is not run again.
        drop(slot.take());
        STATUS_OK
    })
}

unsafe extern "C" fn save<B: Balancer>(balancer: *const c_void, sink: *const wire::Sink) -> u32 {
    // SAFETY: the host's promise.
    let (instance, sink) = unsafe { (instance::<B>(balancer), View::new(sink)) };
    let Some(sink) = sink else { return STATUS_REFUSED };
    contain(instance, || {
        if let Some(bytes) = instance.balancer.save() {
            view::write(sink, &state::seal(B::ID, B::STATE_VERSION, &bytes));
        }
        STATUS_OK
    })
}

unsafe extern "C" fn explain<B: Balancer>(
    balancer: *const c_void,
    trylist: *mut c_void,
    sink: *const wire::Sink,
) -> u32 {
    // SAFETY: the host's promise.
    let (instance, slot, sink) = unsafe { (instance::<B>(balancer), slot::<B>(trylist), View::new(sink)) };
    let (Some(trylist), Some(sink)) = (slot, sink) else { return STATUS_REFUSED };
    contain(instance, || {
        if let Some(text) = instance.balancer.explain(trylist) {
            view::write(sink, text.as_bytes());
        }
        STATUS_OK
    })
}

unsafe extern "C" fn drop_balancer<B: Balancer>(balancer: *mut c_void) -> u32 {
    // SAFETY: the host's promise: it came from `build::<B>`, no call on it runs and none will come.
    let instance = unsafe { Box::from_raw(balancer.cast::<Instance<B>>()) };
    let Instance { balancer, host, log, .. } = *instance;
    let dropped = panics::catch(|| drop(balancer));
    let status = match dropped {
        Ok(()) => STATUS_OK,
        Err(text) => {
            host.panicked(&text);
            STATUS_PANICKED
        }
    };
    log.close();
    status
}
