//! What crossed the boundary in ABI 1.0, as its modules were compiled: the structs, the table of their fields that a module
//! carries, and the root. It is never changed, and so it is short: what authors saw of 1.0 is in the project's history.

use std::ffi::c_void;
use std::mem::{offset_of, size_of};
use std::sync::atomic::{AtomicU32, AtomicU64};

use abi_stable::StableAbi;
use abi_stable::library::RootModule;
use abi_stable::sabi_types::VersionStrings;
use abi_stable::std_types::{RSlice, RStr};

pub const STATUS_OK: u32 = 0;
pub const STATE_AVAILABLE: u32 = 0;
pub const NEXT_ENDPOINT: u32 = 1;
pub const NEXT_EXHAUSTED: u32 = 2;
pub const LOG_INFO: u32 = 3;

#[repr(C)]
#[derive(StableAbi, Clone, Copy, Debug, PartialEq, Eq)]
pub struct FieldLayout {
    pub owner: RStr<'static>,
    pub name: RStr<'static>,
    pub offset: u32,
    pub size: u32,
    pub type_name: RStr<'static>,
}

#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = RootRef, prefix_fields = RootPrefix)))]
pub struct Root {
    pub abi_major: u32,
    pub abi_minor: u32,
    pub fields: RSlice<'static, FieldLayout>,
    pub info: unsafe extern "C" fn(*mut c_void) -> u32,
    pub build: unsafe extern "C" fn(*const c_void, *mut *mut c_void) -> u32,
    pub load_balance: unsafe extern "C" fn(*const c_void, *const c_void, *mut c_void) -> u32,
    pub next: unsafe extern "C" fn(*const c_void, *mut c_void, *const c_void, *mut c_void) -> u32,
    pub report_failure: unsafe extern "C" fn(*const c_void, *mut c_void, *const c_void) -> u32,
    pub observe: unsafe extern "C" fn(*const c_void, *mut c_void, *const c_void) -> u32,
    pub finish: unsafe extern "C" fn(*const c_void, *mut c_void, *const c_void) -> u32,
    pub drop_trylist: unsafe extern "C" fn(*const c_void, *mut c_void) -> u32,
    pub save: unsafe extern "C" fn(*const c_void, *const c_void) -> u32,
    pub explain: unsafe extern "C" fn(*const c_void, *mut c_void, *const c_void) -> u32,
    #[sabi(last_prefix_field)]
    pub drop_balancer: unsafe extern "C" fn(*mut c_void) -> u32,
}

impl RootModule for RootRef {
    abi_stable::declare_root_module_statics! {RootRef}
    const BASE_NAME: &'static str = "trylist_module";
    const NAME: &'static str = "trylist_module";
    const VERSION_STRINGS: VersionStrings = VersionStrings { version: RStr::from_str("1.0.0") };
}

macro_rules! structs {
    ($($owner:ident { $($name:ident: $type:ty,)* })*) => {
        $(#[repr(C)]
        pub struct $owner {
            $(pub $name: $type,)*
        })*
        pub const FIELDS: &[FieldLayout] = &[$($(
            FieldLayout {
                owner: RStr::from_str(stringify!($owner)),
                name: RStr::from_str(stringify!($name)),
                offset: offset_of!($owner, $name) as u32,
                size: size_of::<$type>() as u32,
                type_name: RStr::from_str(stringify!($type)),
            },
        )*)*];
    };
}

#[rustfmt::skip]
structs! {
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
