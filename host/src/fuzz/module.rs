//! Input from a module: its table of calls, its description and its answers.

use std::collections::BTreeSet;

use lb_api::version::{ABI_MAJOR, ABI_MINOR};
use lb_api::wire;

use super::pieces::Draws;
use crate::module::calls::Calls;
use crate::module::load::{ModuleInfo, c_table};
use crate::serve::trylist::{NextTry, check_answer};

/// Struct by struct: refused with a reason, or within what the ABI allows.
pub fn module_wire(data: &[u8]) {
    table(data);
    info(data);
    answers(data);
}

/// The input as a C module's table.
fn table(data: &[u8]) {
    // As long as the host's own, whatever size it claims; the words make it aligned.
    const WORDS: usize = size_of::<wire::Module>() / size_of::<u64>();
    let mut words = [0_u64; WORDS];
    for (word, bytes) in words.iter_mut().zip(data.chunks(size_of::<u64>())) {
        let mut full = [0; size_of::<u64>()];
        full[..bytes.len()].copy_from_slice(bytes);
        *word = u64::from_ne_bytes(full);
    }
    // Of a table that claims more, what lies behind it would be read.
    let size = words[0] as u32;
    let pointer: *const wire::Module = words.as_ptr().cast();
    let Ok(table) = c_table(&raw const pointer) else { return };
    assert_eq!(table.size, size);
    #[allow(clippy::absurd_extreme_comparisons, reason = "the minor version will rise")]
    let is_known = table.abi_major == ABI_MAJOR && table.abi_minor <= ABI_MINOR;
    assert!(is_known, "another ABI is taken");
    match Calls::from_table(&table) {
        Ok(calls) => {
            let same = calls.table((table.abi_major, table.abi_minor));
            assert_eq!(same.next.map(|call| call as usize), table.next.map(|call| call as usize));
            assert_eq!(same.save.map(|call| call as usize), table.save.map(|call| call as usize));
        }
        Err(missing) => assert!(!missing.is_empty()),
    }
}

/// The input as what a module says of itself: numbers first, then its texts.
fn info(data: &[u8]) {
    let mut rest = data;
    let mut number = || {
        let (head, behind) = rest.split_at(rest.len().min(4));
        rest = behind;
        head.iter().rev().fold(0, |n: u32, byte| n << 8 | u32::from(*byte))
    };
    let (abi_major, abi_minor, trylist_size, trylist_align) = (number(), number(), number(), number());
    let (id_len, version_len, wild) = (number(), number(), number());
    let (id, behind) = rest.split_at(rest.len().min(id_len as usize));
    let (version, summary) = behind.split_at(behind.len().min(version_len as usize));
    let text = |bytes: &[u8]| wire::Str { ptr: bytes.as_ptr(), len: bytes.len() };
    let id = match wild {
        // Nowhere that can be read.
        1 => wire::Str { ptr: std::ptr::without_provenance(8), len: id.len().max(1) },
        2 => wire::Str { ptr: std::ptr::null(), len: id.len() },
        3 => wire::Str { ptr: id.as_ptr(), len: usize::MAX },
        _ => text(id),
    };
    let info = wire::Info {
        size: size_of::<wire::Info>() as u32,
        abi_major,
        abi_minor,
        trylist_size,
        trylist_align,
        reserved: 0,
        id,
        version: text(version),
        summary: text(summary),
    };
    let Ok(info) = ModuleInfo::check(&info, (ABI_MAJOR, ABI_MINOR)) else { return };
    assert!(wild == 0 || wild > 3, "an ID that is no text is taken");
    assert_eq!((abi_major, abi_minor), (ABI_MAJOR, ABI_MINOR), "another ABI is taken");
    let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    assert!(!info.id.is_empty() && info.id.bytes().all(is_word), "{:?}", info.id);
    for text in [&info.version, &info.summary] {
        assert!(!text.contains(char::is_control), "{text:?}");
    }
    let layout = info.trylist;
    assert!(layout.align.is_power_of_two() && layout.align <= wire::TRYLIST_ALIGN, "{layout:?}");
    assert!(layout.size <= 64 << 10, "{layout:?}");
}

/// The input as a request's answers: a byte for the kind and one for the endpoint.
fn answers(data: &[u8]) {
    let n_endpoints = Draws::from(data).below(20);
    let mut tried = BTreeSet::new();
    for pair in data.chunks_exact(2) {
        let wild = |byte: u8| if byte > 250 { u32::MAX - u32::from(byte - 251) } else { u32::from(byte) };
        let answer = wire::Answer {
            size: size_of::<wire::Answer>() as u32,
            kind: wild(pair[0]),
            endpoint: wild(pair[1]),
            reserved: 0,
        };
        match check_answer(&answer, n_endpoints, |endpoint| tried.contains(&endpoint)) {
            Ok(NextTry::Endpoint(endpoint)) => {
                assert!(endpoint < n_endpoints, "there is no endpoint {endpoint}");
                assert!(tried.insert(endpoint), "endpoint {endpoint} is tried again");
            }
            Ok(_) => assert!(matches!(answer.kind, wire::NEXT_EXHAUSTED | wire::NEXT_BUSY)),
            Err((_, words)) => assert!(!words.is_empty()),
        }
    }
}
