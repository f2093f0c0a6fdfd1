//! The fake host: its services for a module, and a test's values in their wire form.
#![allow(unsafe_code, reason = "services that a module calls by pointer")]

use std::ffi::c_void;
use std::net::{IpAddr, SocketAddr};
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::cluster::{FakeEndpoint, SettingValue};
use super::memory::Block;
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

/// Bytes that a module writes, up to the limit of a host.
pub(super) struct Written {
    bytes: Mutex<(Vec<u8>, bool)>,
    limit: usize,
}

impl Written {
    pub(super) fn up_to(limit: usize) -> Self {
        Self { bytes: Mutex::default(), limit }
    }

    pub(super) fn sink(&self) -> wire::Sink {
        unsafe extern "C" fn write(ctx: *mut c_void, bytes: Str) {
            // SAFETY: `ctx` is what the sink was made of, and the bytes live to the end of the call.
            let (written, bytes) = unsafe { (&*ctx.cast::<Written>(), bytes.bytes().unwrap_or_default()) };
            let mut all = written.bytes.lock().unwrap_or_else(PoisonError::into_inner);
            let room = written.limit.saturating_sub(all.0.len());
            all.1 |= bytes.len() > room;
            all.0.extend_from_slice(&bytes[..bytes.len().min(room)]);
        }
        let ctx = ptr::from_ref(self).cast_mut().cast();
        wire::Sink { size: size_of::<wire::Sink>() as u32, reserved: 0, ctx, write }
    }

    /// All of it.
    ///
    /// # Errors
    /// It was more than the limit.
    pub(super) fn into_bytes(self) -> Result<Vec<u8>, String> {
        match self.bytes.into_inner().unwrap_or_else(PoisonError::into_inner) {
            (_, true) => Err(format!("wrote more than {} KiB, and a host takes no more", self.limit >> 10)),
            (bytes, false) => Ok(bytes),
        }
    }
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

/// Texts that a call may read while it lasts: copies, so that they can be spoiled behind it. They are readable until this is
/// dropped.
#[derive(Default)]
pub(super) struct LentTexts(Vec<Block>);

impl LentTexts {
    pub(super) fn lend(&mut self, text: &[u8]) -> Str {
        let copy = Block::copy_of(text);
        let lent = Str { ptr: copy.as_ptr(), len: copy.len() };
        self.0.push(copy);
        lent
    }

    pub(super) fn maybe(&mut self, text: Option<&[u8]>) -> Str {
        text.map_or(Str::ABSENT, |text| self.lend(text))
    }

    pub(super) fn spoil(&mut self) {
        self.0.iter_mut().for_each(Block::spoil);
    }
}

pub(super) fn pairs(pairs: &[(String, String)], texts: &mut LentTexts) -> Vec<wire::Pair> {
    let mut lend = |text: &String| texts.lend(text.as_bytes());
    pairs.iter().map(|(name, value)| wire::Pair { name: lend(name), value: lend(value) }).collect()
}

pub(super) fn endpoint(
    endpoint: &FakeEndpoint,
    metadata: &[wire::Pair],
    texts: &mut LentTexts,
) -> wire::Endpoint {
    let FakeEndpoint { id, weight, url, name, port, counters, .. } = endpoint;
    wire::Endpoint {
        size: size_of::<Padded<wire::Endpoint>>() as u32,
        weight: *weight,
        id: *id,
        url: texts.lend(url.as_bytes()),
        name: texts.lend(name.as_bytes()),
        address: name.parse().map_or(NO_ADDRESS, |ip| address(SocketAddr::new(ip, *port))),
        port: (*port).into(),
        reserved: 0,
        metadata: metadata.as_ptr(),
        n_metadata: metadata.len(),
        counters: *counters,
    }
}

pub(super) fn setting(path: &str, kind: u32, value: &SettingValue, texts: &mut LentTexts) -> wire::Setting {
    wire::Setting {
        size: size_of::<Padded<wire::Setting>>() as u32,
        kind,
        path: texts.lend(path.as_bytes()),
        text: match value {
            SettingValue::String(value) => texts.lend(value.as_bytes()),
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

/// The request's end. `total_ns`: time of the last try.
pub(super) fn outcome(
    kind: u32,
    endpoint: u32,
    status: Option<u16>,
    n_tries: usize,
    (now_ns, total_ns): (u64, u64),
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
        first_byte_ns: total_ns,
        total_ns,
        bytes_sent: 100,
        bytes_received: 1000,
    }
}

/// An event of a try that is served.
pub(super) fn served(kind: u32, now_ns: u64) -> wire::Event {
    let (has_response, has_ended) = (kind != wire::EVENT_CONNECTED, kind == wire::EVENT_TRY_ENDED);
    wire::Event {
        size: size_of::<wire::Event>() as u32,
        kind,
        try_id: 1,
        endpoint: wire::NO_ENDPOINT,
        status: if has_response { 200 } else { 0 },
        result: if has_ended { wire::TRY_SERVED } else { 0 },
        now_ns,
        connect_ns: 0,
        first_byte_ns: if has_response { 1_000_000 } else { 0 },
        total_ns: 1_000_000,
        bytes_sent: 100,
        bytes_received: if has_response { 1000 } else { 0 },
        headers: ptr::null(),
        n_headers: 0,
    }
}

/// A first try that could not be established.
pub(super) fn failure(kind: u32, now_ns: u64) -> wire::Failure {
    wire::Failure {
        size: size_of::<wire::Failure>() as u32,
        kind,
        endpoint: wire::NO_ENDPOINT,
        try_id: 1,
        os_error: if kind == wire::FAILURE_CONNECT { 111 } else { 0 },
        reserved: 0,
        now_ns,
        elapsed_ns: 1_000_000,
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

pub(super) fn maybe_address(address: Option<SocketAddr>) -> wire::Address {
    address.map_or(NO_ADDRESS, self::address)
}

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
