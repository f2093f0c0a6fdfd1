//! A module's instance for one cluster, and the only way to its calls.
//!
//! Every call that enters a module goes through `board::inside`, so that a supervisor knows which module killed a
//! worker. The status of a call is judged in one place, `Balancer::judge`. The *answer* of a call is judged by its caller:
//! `trylist.rs` checks the endpoint and reports a fault here, so that all faults of a balancer are counted and logged once.
#![allow(unsafe_code, reason = "calls into modules take raw pointers; no other file makes them")]

mod build;
mod quarantine;
mod scope;
#[cfg(test)]
pub(super) mod tests;

use std::ffi::c_void;
use std::fmt;
use std::ptr;
use std::sync::Arc;

use lb_api::wire;

pub use self::build::{BuildError, BuildInput, BuildProblem, EndpointInput, Needs};
pub use self::scope::{ModuleFault, ModuleScope};
use self::scope::{panic_text, take_panic};
use crate::module::board::{self, ModuleMark};
use crate::module::wire::slice;
use crate::module::{Calls, Module};

/// The module panicked in this call, or returned a status other than "done". It is already counted and logged. After this the
/// trylist is only dropped; after [`Balancer::load_balance`] there is no trylist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Panicked;

/// A module's instance for one cluster. Any call may come from any thread.
pub struct Balancer {
    calls: Calls,
    /// The module's own pointer; may be null, only the module knows.
    instance: *mut c_void,
    /// Its identity in crumbs.
    mark: ModuleMark,
    events: u32,
    needs: Needs,
    scope: Arc<ModuleScope>,
    module: Arc<Module>,
}

// SAFETY: the ABI promises (`wire::Module`, "Threads") that any call on an instance may come from any thread, at the
// same time as others; the pointer is never used but in such calls.
unsafe impl Send for Balancer {}
// SAFETY: as above.
unsafe impl Sync for Balancer {}

impl Balancer {
    /// The data that it asks for.
    pub fn needs(&self) -> &Needs {
        &self.needs
    }

    /// The module that it is an instance of.
    pub fn module(&self) -> &Arc<Module> {
        &self.module
    }

    /// Whether its module is in quarantine in this cluster ([`ModuleScope::is_quarantined`]).
    #[inline]
    pub fn is_quarantined(&self) -> bool {
        self.scope.is_quarantined()
    }

    /// Counts a fault of its module ([`ModuleScope::fault`]).
    #[cold]
    pub fn fault(&self, fault: ModuleFault, detail: &dyn fmt::Display) {
        self.scope.fault(fault, detail);
    }

    /// State for the balancer that replaces it in another process; `None` if its module does not save.
    /// Requests go on meanwhile. It may take as long as the module takes: not to be called from a thread that serves.
    ///
    /// # Errors
    ///
    /// The module failed in the call (counted and logged), or wrote more than anybody should carry.
    pub fn save(&self) -> Result<Option<Vec<u8>>, SaveError> {
        let Some(save) = self.calls.save else { return Ok(None) };
        let mut bytes = Vec::new();
        let mut writer = SinkWriter { bytes: &mut bytes, limit: SAVE_BYTES, overflowed: false };
        let sink = writer.sink();
        // SAFETY: the instance is alive, and `sink` and its writer live until after the call.
        let call = || unsafe { save(self.instance, &raw const sink) };
        self.judge("save", board::inside(self.mark.long(), call)).map_err(|Panicked| SaveError::Panicked)?;
        if writer.overflowed { Err(SaveError::TooLong) } else { Ok(Some(bytes)) }
    }

    /// Every status goes through here: what is not "done" is counted and logged at once.
    #[inline]
    fn judge(&self, call: &str, status: u32) -> Result<(), Panicked> {
        if status == wire::STATUS_OK { Ok(()) } else { Err(self.failed(call, status)) }
    }

    #[cold]
    fn failed(&self, call: &str, status: u32) -> Panicked {
        if status == wire::STATUS_PANICKED {
            self.fault(ModuleFault::Panic, &panic_text(call, take_panic()));
        } else {
            self.fault(ModuleFault::Status, &format_args!("{call} returned status {status}"));
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
        let status = board::inside(self.mark, || unsafe {
            (self.calls.load_balance)(self.instance, request, trylist)
        });
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
        let status =
            board::inside(self.mark, || unsafe { (self.calls.next)(self.instance, trylist, cx, answer) });
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
        let status = board::inside(self.mark, || unsafe {
            (self.calls.report_failure)(self.instance, trylist, failure)
        });
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
        let status = board::inside(self.mark, || unsafe { observe(self.instance, trylist, event) });
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
        let status =
            board::inside(self.mark, || unsafe { (self.calls.finish)(self.instance, trylist, outcome) });
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
        let status =
            board::inside(self.mark, || unsafe { (self.calls.drop_trylist)(self.instance, trylist) });
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
        let mut writer = SinkWriter { bytes: text, limit: EXPLAIN_BYTES, overflowed: false };
        let sink = writer.sink();
        // SAFETY: the caller's promise; the instance lives as long as `self`, `sink` and its writer beyond the call.
        let status = board::inside(self.mark, || unsafe { explain(self.instance, trylist, &raw const sink) });
        self.judge("explain", status)
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        // SAFETY: `build` made the instance, this is its only drop, and nobody else holds `self`.
        let status = board::inside(self.mark.long(), || unsafe { (self.calls.drop_balancer)(self.instance) });
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
pub(crate) const SAVE_BYTES: usize = 64 << 20;
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

/// Where a [`wire::Sink`] writes.
struct SinkWriter<'a> {
    bytes: &'a mut Vec<u8>,
    limit: usize,
    overflowed: bool,
}

impl SinkWriter<'_> {
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
    // SAFETY: `SinkWriter::sink` made `ctx`, and whoever called it leaves the writer alone during the call.
    let writer = unsafe { &mut *ctx.cast::<SinkWriter<'_>>() };
    // SAFETY: the ABI promises valid bytes for the time of the call.
    let bytes = unsafe { slice(&bytes) };
    let room = writer.limit.saturating_sub(writer.bytes.len());
    writer.overflowed |= bytes.len() > room;
    writer.bytes.extend_from_slice(&bytes[..bytes.len().min(room)]);
}
