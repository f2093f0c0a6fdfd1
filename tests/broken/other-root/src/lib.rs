//! A module that says it is of this ABI, and has a root of another shape.

use abi_stable::StableAbi;
use abi_stable::library::RootModule;
use abi_stable::prefix_type::PrefixTypeTrait as _;
use abi_stable::sabi_types::VersionStrings;
use abi_stable::std_types::RStr;

#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = RootRef)))]
pub struct Root {
    #[sabi(last_prefix_field)]
    pub unheard_of: u64,
}

impl RootModule for RootRef {
    abi_stable::declare_root_module_statics! {RootRef}
    const BASE_NAME: &'static str = "trylist_module";
    const NAME: &'static str = "trylist_module";
    const VERSION_STRINGS: VersionStrings = VersionStrings { version: RStr::from_str("1.0.0") };
}

#[abi_stable::export_root_module]
pub fn root() -> RootRef {
    Root { unheard_of: 1 }.leak_into_prefix()
}
