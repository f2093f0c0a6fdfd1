//! A module that panics before it has said a word.

use lb_api::export::RootRef;

#[abi_stable::export_root_module]
pub fn root() -> RootRef {
    panic!("not today")
}
