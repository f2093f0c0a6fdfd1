//! The fields of every wire struct, as this crate was compiled: name, offset, size and type.
//!
//! A Rust module carries its own table and the host compares it with its own, so that two compilations that
//! disagree are found when the module is loaded, and not by a crash later.

use std::ffi::c_void;
use std::mem::{offset_of, size_of};
use std::sync::atomic::{AtomicU32, AtomicU64};

use abi_stable::StableAbi;
use abi_stable::std_types::RStr;

use super::*;

/// One field of one wire struct. Frozen: abi_stable checks it as it is here, so it can never grow.
#[repr(C)]
#[derive(StableAbi, Clone, Copy, Debug, PartialEq, Eq)]
pub struct FieldLayout {
    /// The struct's name.
    pub owner: RStr<'static>,
    /// The field's name.
    pub name: RStr<'static>,
    /// Bytes from the struct's start.
    pub offset: u32,
    /// Size in bytes.
    pub size: u32,
    /// The field's type as this table writes it; what of it counts is in [`compare`].
    pub type_name: RStr<'static>,
}

/// Every field of every wire struct, structs in the order of this list and fields in the order of their struct.
pub fn wire_fields() -> &'static [FieldLayout] {
    FIELDS
}

/// The size of every wire struct, by name.
pub fn wire_sizes() -> &'static [(&'static str, usize)] {
    SIZES
}

/// Checks that the structs a module was compiled with are this crate's, as far as the module's go: every field of its
/// own must be here with equal offset, size and type, and this crate may have more behind them.
///
/// Types are equal if they are the same kind at the boundary. Spaces, paths, names of arguments and `unsafe` mean nothing
/// there, and the next release, or another compiler, may write them in another way. The names of structs and fields are
/// those of the ABI: a struct that `wire.rs` renames is `use`d under its old name by this table.
///
/// # Errors
///
/// One line about the first field that differs.
pub fn compare(module: &[FieldLayout], host: &[FieldLayout]) -> Result<(), String> {
    for field in module {
        let place = format!("{}.{}", field.owner, field.name);
        let Some(ours) = host.iter().find(|f| f.owner == field.owner && f.name == field.name) else {
            return Err(format!("wire field {place} is not known here"));
        };
        if (field.offset, field.size) != (ours.offset, ours.size) {
            return Err(format!(
                "wire field {place} is {} bytes at offset {}, here {} bytes at offset {}",
                field.size, field.offset, ours.size, ours.offset
            ));
        }
        if !same_type(&field.type_name, &ours.type_name) {
            return Err(format!("wire field {place} is a {}, here a {}", field.type_name, ours.type_name));
        }
    }
    Ok(())
}

fn same_type(a: &str, b: &str) -> bool {
    a == b || kind(a) == kind(b)
}

/// The tokens of a type that count at the boundary.
fn kind(type_name: &str) -> Vec<&str> {
    let tokens = tokens(type_name);
    let next = |i: usize| tokens.get(i + 1).copied();
    let counts = |&(i, token): &(usize, &str)| match token {
        "unsafe" | ":" | "::" => false,
        "," => next(i) != Some(")"),
        // An argument's name, or a part of a path.
        _ => !matches!(next(i), Some(":" | "::")),
    };
    tokens.iter().copied().enumerate().filter(counts).map(|(_, token)| token).collect()
}

/// Words, `::`, and other signs one by one.
fn tokens(mut text: &str) -> Vec<&str> {
    let mut tokens = Vec::new();
    loop {
        text = text.trim_start();
        let Some(first) = text.chars().next() else { return tokens };
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let len = match first {
            c if is_word(c) => text.find(|c| !is_word(c)).unwrap_or(text.len()),
            ':' if text.starts_with("::") => 2,
            c => c.len_utf8(),
        };
        let (token, rest) = text.split_at(len);
        tokens.push(token);
        text = rest;
    }
}

/// Makes the table, and does not compile where it leaves a field out, names one that is not there, or gives it another
/// type.
macro_rules! tables {
    ($($owner:ident { $($name:ident: $type:ty,)* })*) => {
        const FIELDS: &[FieldLayout] = &[$($(
            FieldLayout {
                owner: RStr::from_str(stringify!($owner)),
                name: RStr::from_str(stringify!($name)),
                offset: offset_of!($owner, $name) as u32,
                size: size_of::<$type>() as u32,
                type_name: RStr::from_str(stringify!($type)),
            },
        )*)*];
        $(const _: fn(&$owner) = |it| {
            let $owner { $($name,)* } = it;
            $(let _: &$type = $name;)*
        };)*
        const SIZES: &[(&str, usize)] = &[$((stringify!($owner), size_of::<$owner>()),)*];
    };
}

#[rustfmt::skip]
tables! {
    Str {
        ptr: *const u8,
        len: usize,
    }
    Pair {
        name: Str,
        value: Str,
    }
    Address {
        family: u32,
        port: u16,
        reserved: u16,
        bytes: [u8; 16],
    }
    Info {
        size: u32,
        abi_major: u32,
        abi_minor: u32,
        trylist_size: u32,
        trylist_align: u32,
        reserved: u32,
        id: Str,
        version: Str,
        summary: Str,
    }
    Counters {
        size: u32,
        state: AtomicU32,
        effective_weight: AtomicU32,
        in_flight: AtomicU32,
        in_flight_older: AtomicU32,
        max_in_flight: AtomicU32,
        latency_ns: AtomicU64,
    }
    ClusterState {
        size: u32,
        n_available: AtomicU32,
        epoch: AtomicU64,
    }
    Endpoint {
        size: u32,
        weight: u32,
        id: u64,
        url: Str,
        name: Str,
        address: Address,
        port: u32,
        reserved: u32,
        metadata: *const Pair,
        n_metadata: usize,
        counters: *const Counters,
    }
    Setting {
        size: u32,
        kind: u32,
        path: Str,
        text: Str,
        integer: i64,
        real: f64,
    }
    ErrorSink {
        size: u32,
        reserved: u32,
        ctx: *mut c_void,
        error: unsafe extern "C" fn(ctx: *mut c_void, path: Str, text: Str),
    }
    Sink {
        size: u32,
        reserved: u32,
        ctx: *mut c_void,
        write: unsafe extern "C" fn(ctx: *mut c_void, bytes: Str),
    }
    HostApi {
        size: u32,
        reserved: u32,
        ctx: *mut c_void,
        log: unsafe extern "C" fn(ctx: *mut c_void, level: u32, text: Str),
        panicked: unsafe extern "C" fn(ctx: *mut c_void, text: Str),
    }
    Needs {
        size: u32,
        flags: u32,
        events: u32,
        reserved: u32,
        request_headers: *const Str,
        n_request_headers: usize,
        response_headers: *const Str,
        n_response_headers: usize,
    }
    BuildCx {
        size: u32,
        reserved: u32,
        cluster: Str,
        endpoints: *const Endpoint,
        n_endpoints: usize,
        endpoint_stride: usize,
        settings: *const Setting,
        n_settings: usize,
        setting_stride: usize,
        state: *const ClusterState,
        previous: *const c_void,
        saved: Str,
        host: *const HostApi,
        errors: *const ErrorSink,
        needs: *mut Needs,
    }
    Request {
        size: u32,
        preferred: u32,
        method: Str,
        scheme: Str,
        authority: Str,
        path: Str,
        query: Str,
        client: Address,
        key: Str,
        headers: *const Str,
        n_headers: usize,
    }
    NextCx {
        size: u32,
        n_tries: u32,
        now_ns: u64,
        random: u64,
        tried: *const u64,
        n_tried_words: usize,
        request: *const Request,
    }
    Answer {
        size: u32,
        kind: u32,
        endpoint: u32,
        reserved: u32,
    }
    Failure {
        size: u32,
        kind: u32,
        endpoint: u32,
        try_id: u32,
        os_error: i32,
        reserved: u32,
        now_ns: u64,
        elapsed_ns: u64,
    }
    Event {
        size: u32,
        kind: u32,
        try_id: u32,
        endpoint: u32,
        status: u32,
        result: u32,
        now_ns: u64,
        connect_ns: u64,
        first_byte_ns: u64,
        total_ns: u64,
        bytes_sent: u64,
        bytes_received: u64,
        headers: *const Str,
        n_headers: usize,
    }
    Outcome {
        size: u32,
        kind: u32,
        endpoint: u32,
        status: u32,
        n_tries: u32,
        reserved: u32,
        now_ns: u64,
        connect_ns: u64,
        first_byte_ns: u64,
        total_ns: u64,
        bytes_sent: u64,
        bytes_received: u64,
    }
    Module {
        size: u32,
        abi_major: u32,
        abi_minor: u32,
        reserved: u32,
        info: Option<unsafe extern "C" fn(info: *mut Info) -> u32>,
        build: Option<unsafe extern "C" fn(cx: *const BuildCx, balancer: *mut *mut c_void) -> u32>,
        load_balance: Option<unsafe extern "C" fn(balancer: *const c_void, request: *const Request, trylist: *mut c_void) -> u32>,
        next: Option<unsafe extern "C" fn(balancer: *const c_void, trylist: *mut c_void, cx: *const NextCx, answer: *mut Answer) -> u32>,
        report_failure: Option<unsafe extern "C" fn(balancer: *const c_void, trylist: *mut c_void, failure: *const Failure) -> u32>,
        observe: Option<unsafe extern "C" fn(balancer: *const c_void, trylist: *mut c_void, event: *const Event) -> u32>,
        finish: Option<unsafe extern "C" fn(balancer: *const c_void, trylist: *mut c_void, outcome: *const Outcome) -> u32>,
        drop_trylist: Option<unsafe extern "C" fn(balancer: *const c_void, trylist: *mut c_void) -> u32>,
        save: Option<unsafe extern "C" fn(balancer: *const c_void, sink: *const Sink) -> u32>,
        explain: Option<unsafe extern "C" fn(balancer: *const c_void, trylist: *mut c_void, sink: *const Sink) -> u32>,
        drop_balancer: Option<unsafe extern "C" fn(balancer: *mut c_void) -> u32>,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn altered(change: impl FnOnce(&mut FieldLayout)) -> Result<(), String> {
        let mut fields = wire_fields().to_vec();
        let field = fields.iter_mut().find(|f| f.owner == "Endpoint" && f.name == "weight").unwrap();
        change(field);
        compare(&fields, wire_fields())
    }

    #[test]
    fn a_table_equals_itself_and_any_beginning_of_itself() {
        assert_eq!(compare(wire_fields(), wire_fields()), Ok(()));
        assert_eq!(compare(&wire_fields()[..20], wire_fields()), Ok(()));
    }

    #[test]
    fn names_the_field_that_differs() {
        let moved = altered(|f| f.offset = 8).unwrap_err();
        assert_eq!(moved, "wire field Endpoint.weight is 4 bytes at offset 8, here 4 bytes at offset 4");
        let retyped = altered(|f| f.type_name = RStr::from_str("i32")).unwrap_err();
        assert_eq!(retyped, "wire field Endpoint.weight is a i32, here a u32");
        let newer = altered(|f| f.name = RStr::from_str("zone")).unwrap_err();
        assert_eq!(newer, "wire field Endpoint.zone is not known here");
    }

    /// Whether a module whose table writes this type for one call of `Module` is taken.
    fn written(name: &str, type_name: &'static str) -> Result<(), String> {
        let mut fields = wire_fields().to_vec();
        let field = fields.iter_mut().find(|f| f.owner == "Module" && f.name == name).unwrap();
        field.type_name = RStr::from_str(type_name);
        compare(&fields, wire_fields())
    }

    #[test]
    fn how_a_type_is_written_means_nothing() {
        for same in [
            "Option<unsafe extern \"C\" fn(info: *mut Info) -> u32>",
            "Option<unsafe extern \"C\" fn(about: *mut Info) -> u32>",
            "Option<unsafe extern \"C\" fn(*mut Info) -> u32>",
            "Option < unsafe extern \"C\" fn (info : * mut Info,) -> u32 >",
            "std::option::Option<extern \"C\" fn(_: *mut crate::wire::Info) -> u32>",
        ] {
            assert_eq!(written("info", same), Ok(()), "{same}");
        }
    }

    #[test]
    fn another_type_is_refused() {
        for other in [
            "Option<unsafe extern \"C\" fn(info: *mut Needs) -> u32>",
            "Option<unsafe extern \"C\" fn(info: *const Info) -> u32>",
            "Option<unsafe extern \"C\" fn(info: *mut Info) -> u64>",
            "Option<unsafe extern \"C\" fn(info: *mut Info, more: u32) -> u32>",
            "Option<unsafe extern \"C\" fn(info: *mut Info)>",
            "Option<unsafe fn(info: *mut Info) -> u32>",
            "unsafe extern \"C\" fn(info: *mut Info) -> u32",
            "*mut Info",
            "",
        ] {
            let refused = written("info", other).unwrap_err();
            assert!(
                refused.starts_with(&format!("wire field Module.info is a {other}, here a Option<")),
                "{refused}"
            );
        }
        // Words stay apart.
        assert!(!same_type("*mut c_void", "*mutc_void"));
    }

    #[test]
    fn structs_that_may_grow_start_with_their_size() {
        for (owner, _) in SIZES.iter().filter(|(owner, _)| !["Str", "Pair", "Address"].contains(owner)) {
            let first = wire_fields().iter().find(|f| f.owner == *owner).unwrap();
            assert_eq!((&*first.name, first.offset, first.size), ("size", 0, 4), "{owner}");
        }
    }
}
