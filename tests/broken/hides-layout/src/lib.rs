//! A module that left the layout of its root out, so that nobody could tell whether it fits.

use abi_stable::prefix_type::PrefixTypeTrait as _;
use lb_api::export::RootRef;

#[abi_stable::export_root_module]
#[unsafe_no_layout_constant]
pub fn root() -> RootRef {
    healthy::root().leak_into_prefix()
}
