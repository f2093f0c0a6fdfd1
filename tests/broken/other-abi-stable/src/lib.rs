//! A module as the next abi_stable would build it: only the first words of its header are known.

use abi_stable::library::AbiHeader;

#[repr(C)]
pub struct Header {
    magic: [u8; 32],
    major: u32,
    minor: u32,
    rest: [u64; 32],
}

/// The name is that of `abi_stable::library::ROOT_MODULE_LOADER_NAME`, which an attribute cannot take from there.
#[unsafe(export_name = "_1as_0lib_1header_0root_bmodule_bloader")]
pub static HEADER: Header = Header {
    magic: AbiHeader::VALUE.magic_string,
    major: AbiHeader::VALUE.abi_major,
    minor: AbiHeader::VALUE.abi_minor + 1,
    rest: [0; 32],
};
