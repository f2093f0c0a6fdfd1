//! A module that was compiled with another idea of one wire struct: its `Endpoint` has weight and size swapped.

use abi_stable::prefix_type::PrefixTypeTrait as _;
use abi_stable::std_types::RSlice;
use lb_api::export::{FieldLayout, Root, RootRef, wire_fields};

#[abi_stable::export_root_module]
pub fn root() -> RootRef {
    let mut fields: Vec<FieldLayout> = wire_fields().to_vec();
    for field in fields.iter_mut().filter(|field| field.owner == "Endpoint") {
        match &*field.name {
            "size" => field.offset = 4,
            "weight" => field.offset = 0,
            _ => {}
        }
    }
    Root { fields: RSlice::from_slice(fields.leak()), ..healthy::root() }.leak_into_prefix()
}
