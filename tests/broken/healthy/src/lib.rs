//! The root of a module that has nothing wrong with it, for others to spoil.

use std::ffi::c_void;

use abi_stable::std_types::RSlice;
use lb_api::export::{Root, wire_fields};
use lb_api::version::{ABI_MAJOR, ABI_MINOR};

/// A root that passes every check of the envelope. None of its calls does anything.
pub fn root() -> Root {
    Root {
        abi_major: ABI_MAJOR,
        abi_minor: ABI_MINOR,
        fields: RSlice::from_slice(wire_fields()),
        info: one,
        build,
        load_balance: three,
        next,
        report_failure: event,
        observe: event,
        finish: event,
        drop_trylist: two,
        save,
        explain: event,
        drop_balancer: one,
    }
}

unsafe extern "C" fn one(_: *mut c_void) -> u32 {
    0
}

unsafe extern "C" fn two(_: *const c_void, _: *mut c_void) -> u32 {
    0
}

unsafe extern "C" fn three(_: *const c_void, _: *const c_void, _: *mut c_void) -> u32 {
    0
}

unsafe extern "C" fn build(_: *const c_void, _: *mut *mut c_void) -> u32 {
    0
}

unsafe extern "C" fn next(_: *const c_void, _: *mut c_void, _: *const c_void, _: *mut c_void) -> u32 {
    0
}

unsafe extern "C" fn event(_: *const c_void, _: *mut c_void, _: *const c_void) -> u32 {
    0
}

unsafe extern "C" fn save(_: *const c_void, _: *const c_void) -> u32 {
    0
}
