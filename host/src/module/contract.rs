//! A module's calls for `module test`, in a process that serves no requests.
#![allow(unsafe_code, reason = "vouches for the calls of a module that was loaded")]

use std::alloc::Layout;

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
