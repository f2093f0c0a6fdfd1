//! The fake host: its services for a module, and a test's values in their wire form.
#![allow(unsafe_code, reason = "services that a module calls by pointer")]

use std::ffi::c_void;
use std::net::{IpAddr, SocketAddr};
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::cluster::{FakeEndpoint, SettingValue};
use crate::error::Problem;
use crate::outcome::EventKind;
use crate::wire::{self, Str};

/// Lines of the log that are remembered.
const MAX_LINES: usize = 1000;

/// A host that remembers what it is told.
pub(super) struct Host {
    api: wire::HostApi,
    log: Mutex<Vec<String>>,
    panics: Mutex<Vec<String>>,
}

impl Host {
    pub(super) fn new() -> Arc<Self> {
        Arc::new_cyclic(|host: &Weak<Self>| {
            let api = wire::HostApi {
                size: size_of::<wire::HostApi>() as u32,
                reserved: 0,
                ctx: host.as_ptr().cast_mut().cast(),
                log: host_log,
                panicked: host_panicked,
            };
            Self { api, log: Mutex::default(), panics: Mutex::default() }
        })
    }

    /// As a module gets it; valid as long as the host.
    pub(super) fn api(&self) -> *const wire::HostApi {
        &raw const self.api
    }

    pub(super) fn logged(&self) -> Vec<String> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn last_panic(&self) -> Option<String> {
        self.panics.lock().unwrap_or_else(PoisonError::into_inner).last().cloned()
    }
}

unsafe extern "C" fn host_log(ctx: *mut c_void, level: u32, line: Str) {
    // SAFETY: `ctx` is the host, which outlives its balancer and is only ever shared.
    let host = unsafe { &*ctx.cast::<Host>() };
    let level = match level {
        wire::LOG_ERROR => "error",
        wire::LOG_WARN => "warn",
        wire::LOG_DEBUG => "debug",
        _ => "info",
    };
    let mut log = host.log.lock().unwrap_or_else(PoisonError::into_inner);
    // Memory that is kept for ever would pass for a leak of the module's.
    if log.len() < MAX_LINES {
        log.push(format!("{level}: {}", owned(line)));
    }
}

unsafe extern "C" fn host_panicked(ctx: *mut c_void, line: Str) {
    // SAFETY: as above.
    let host = unsafe { &*ctx.cast::<Host>() };
    host.panics.lock().unwrap_or_else(PoisonError::into_inner).push(owned(line));
}

/// Where `build` writes what is wrong.
pub(super) fn error_sink(errors: &Mutex<Vec<Problem>>) -> wire::ErrorSink {
    wire::ErrorSink {
        size: size_of::<wire::ErrorSink>() as u32,
        reserved: 0,
        ctx: ptr::from_ref(errors).cast_mut().cast(),
        error: note_error,
    }
}

unsafe extern "C" fn note_error(ctx: *mut c_void, path: Str, line: Str) {
    // SAFETY: `ctx` is the list that `build` lent to its sink.
    let errors = unsafe { &*ctx.cast::<Mutex<Vec<Problem>>>() };
    let problem = Problem { path: owned(path), text: owned(line) };
    errors.lock().unwrap_or_else(PoisonError::into_inner).push(problem);
}

/// Where `save` and `explain` write.
pub(super) fn sink(bytes: &Mutex<Vec<u8>>) -> wire::Sink {
    unsafe extern "C" fn write(ctx: *mut c_void, bytes: Str) {
        // SAFETY: `ctx` is the buffer that the sink was made of, and the bytes live to the end of the call.
        let (all, bytes) = unsafe { (&*ctx.cast::<Mutex<Vec<u8>>>(), bytes.bytes()) };
        all.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes.unwrap_or_default());
    }
    let ctx = ptr::from_ref(bytes).cast_mut().cast();
    wire::Sink { size: size_of::<wire::Sink>() as u32, reserved: 0, ctx, write }
}

fn owned(text: Str) -> String {
    // SAFETY: the text lives to the end of the call that brought it.
    String::from_utf8_lossy(unsafe { text.bytes() }.unwrap_or_default()).into_owned()
}

/// An element as a later host would send it: longer than ours, so that a stride that is not used shows.
#[repr(C)]
pub(super) struct Padded<T> {
    it: T,
    later: u64,
}

impl<T> Padded<T> {
    pub(super) fn new(it: T) -> Self {
        Self { it, later: u64::MAX }
    }
}

pub(super) fn text(text: &str) -> Str {
    Str::of(text.as_bytes())
}

pub(super) fn pairs(pairs: &[(String, String)]) -> Vec<wire::Pair> {
    pairs.iter().map(|(name, value)| wire::Pair { name: text(name), value: text(value) }).collect()
}

pub(super) fn endpoint(endpoint: &FakeEndpoint, metadata: &[wire::Pair]) -> wire::Endpoint {
    let FakeEndpoint { id, weight, url, name, port, counters, .. } = endpoint;
    wire::Endpoint {
        size: size_of::<Padded<wire::Endpoint>>() as u32,
        weight: *weight,
        id: *id,
        url: text(url),
        name: text(name),
        address: name.parse().map_or(NO_ADDRESS, |ip| address(SocketAddr::new(ip, *port))),
        port: (*port).into(),
        reserved: 0,
        metadata: metadata.as_ptr(),
        n_metadata: metadata.len(),
        counters: *counters,
    }
}

pub(super) fn setting(path: &str, kind: u32, value: &SettingValue) -> wire::Setting {
    wire::Setting {
        size: size_of::<Padded<wire::Setting>>() as u32,
        kind,
        path: text(path),
        text: match value {
            SettingValue::String(value) => text(value),
            _ => Str::ABSENT,
        },
        integer: match value {
            SettingValue::Integer(value) => *value,
            SettingValue::Boolean(value) => i64::from(*value),
            SettingValue::Table(n) | SettingValue::Array(n) => *n as i64,
            _ => 0,
        },
        real: match value {
            SettingValue::Float(value) => *value,
            _ => 0.0,
        },
    }
}
pub(super) fn outcome(
    kind: u32,
    endpoint: u32,
    status: Option<u16>,
    n_tries: usize,
    now_ns: u64,
) -> wire::Outcome {
    wire::Outcome {
        size: size_of::<wire::Outcome>() as u32,
        kind,
        endpoint,
        status: status.unwrap_or_default().into(),
        n_tries: n_tries as u32,
        reserved: 0,
        now_ns,
        connect_ns: 0,
        first_byte_ns: 1_000_000,
        total_ns: 1_000_000,
        bytes_sent: 100,
        bytes_received: 1000,
    }
}

pub(super) fn event_kind(kind: EventKind) -> u32 {
    match kind {
        EventKind::Connected => wire::EVENT_CONNECTED,
        EventKind::ResponseHeaders => wire::EVENT_RESPONSE_HEADERS,
        EventKind::TryEnded => wire::EVENT_TRY_ENDED,
    }
}

const NO_ADDRESS: wire::Address =
    wire::Address { family: wire::ADDRESS_NONE, port: 0, reserved: 0, bytes: [0; 16] };

pub(super) fn address(address: SocketAddr) -> wire::Address {
    let mut bytes = [0; 16];
    let family = match address.ip() {
        IpAddr::V4(ip) => {
            bytes[..4].copy_from_slice(&ip.octets());
            wire::ADDRESS_V4
        }
        IpAddr::V6(ip) => {
            bytes = ip.octets();
            wire::ADDRESS_V6
        }
    };
    wire::Address { family, port: address.port(), reserved: 0, bytes }
}
