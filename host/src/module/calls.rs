//! A module's table of calls in the form that the host uses, for Rust and C modules alike.

use std::ffi::c_void;

use lb_api::wire::{Answer, BuildCx, Event, Failure, Module, NextCx, Outcome, Request, Sink};

type BalancerPtr = *const c_void;
type TrylistPtr = *mut c_void;

/// The calls; only optional ones are in an `Option`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Calls {
    pub(super) load_balance: unsafe extern "C" fn(BalancerPtr, *const Request, TrylistPtr) -> u32,
    pub(super) next: unsafe extern "C" fn(BalancerPtr, TrylistPtr, *const NextCx, *mut Answer) -> u32,
    pub(super) report_failure: unsafe extern "C" fn(BalancerPtr, TrylistPtr, *const Failure) -> u32,
    pub(super) observe: Option<unsafe extern "C" fn(BalancerPtr, TrylistPtr, *const Event) -> u32>,
    pub(super) finish: unsafe extern "C" fn(BalancerPtr, TrylistPtr, *const Outcome) -> u32,
    pub(super) drop_trylist: unsafe extern "C" fn(BalancerPtr, TrylistPtr) -> u32,
    pub(super) build: unsafe extern "C" fn(*const BuildCx, *mut *mut c_void) -> u32,
    pub(super) save: Option<unsafe extern "C" fn(BalancerPtr, *const Sink) -> u32>,
    pub(super) explain: Option<unsafe extern "C" fn(BalancerPtr, TrylistPtr, *const Sink) -> u32>,
    pub(super) drop_balancer: unsafe extern "C" fn(*mut c_void) -> u32,
}

impl Calls {
    /// Takes the calls out of a table.
    ///
    /// # Errors
    ///
    /// The name of the first required call that is null.
    pub(crate) fn from_table(table: &Module) -> Result<Self, &'static str> {
        Ok(Self {
            load_balance: table.load_balance.ok_or("load_balance")?,
            next: table.next.ok_or("next")?,
            report_failure: table.report_failure.ok_or("report_failure")?,
            observe: table.observe,
            finish: table.finish.ok_or("finish")?,
            drop_trylist: table.drop_trylist.ok_or("drop_trylist")?,
            build: table.build.ok_or("build")?,
            save: table.save,
            explain: table.explain,
            drop_balancer: table.drop_balancer.ok_or("drop_balancer")?,
        })
    }

    /// The calls as a table again; without `info`, which is asked once a load.
    pub(crate) fn table(&self, abi: (u32, u32)) -> Module {
        Module {
            size: size_of::<Module>() as u32,
            abi_major: abi.0,
            abi_minor: abi.1,
            reserved: 0,
            info: None,
            build: Some(self.build),
            load_balance: Some(self.load_balance),
            next: Some(self.next),
            report_failure: Some(self.report_failure),
            observe: self.observe,
            finish: Some(self.finish),
            drop_trylist: Some(self.drop_trylist),
            save: self.save,
            explain: self.explain,
            drop_balancer: Some(self.drop_balancer),
        }
    }
}
