//! A module's calls for `module test`, in a process that serves no requests.
#![allow(unsafe_code, reason = "vouches for the calls of a module that was loaded")]

use std::alloc::Layout;
use std::mem::MaybeUninit;
use std::ptr;

use lb_api::testkit::{Contract, Table};

use crate::module::Module;

impl Module {
    /// The contract that every module must keep, over the calls of this one.
    pub fn contract(&self) -> Contract<Table> {
        let trylist = self.trylist();
        let trylist = Layout::from_size_align(trylist.size, trylist.align)
            .expect("a module with another layout is not loaded");
        // SAFETY: the calls passed the checks of `load`, are never unloaded, and the layout is what `info` gave.
        let table = unsafe { Table::new(self.library.calls.table(self.abi()), trylist) };
        Contract::loaded(table.expect("a module without one of these calls is not loaded"))
    }
}

/// Each signal with the address of its handler in this process: 0 is the default, 1 ignores it.
pub fn signal_handlers() -> Vec<(i32, usize)> {
    let handler = |signal| {
        let mut action = MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: only asks; zero is a valid value of the struct where the signal is none.
        let action = unsafe {
            libc::sigaction(signal, ptr::null(), action.as_mut_ptr());
            action.assume_init()
        };
        (signal, action.sa_sigaction)
    };
    (1..libc::SIGRTMIN()).map(handler).collect()
}
