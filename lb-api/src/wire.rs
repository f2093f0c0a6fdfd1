//! The structs and calls that cross the boundary, for every language: `include/lb_module.h` says the same in C.
//!
//! Rules that hold for all of them:
//! - A struct that may grow starts with its `size` in bytes as its sender compiled it; a receiver reads only what that
//!   size covers. Fields are only ever added at the end. [`Str`], [`Pair`] and [`Address`] have no size and never grow.
//! - Kinds are `u32` constants, never Rust enums, so that kinds can be added. A receiver treats a kind that it does
//!   not know as the default that the constant's list names.
//! - All text is UTF-8 unless it came from the network (paths, header values, keys), which is bytes.
//! - Times are nanoseconds of one monotonic clock; its zero means nothing.
//! - Pointers are valid for the time of the call unless the field says otherwise.

mod fields;

use std::ffi::c_void;
use std::sync::atomic::{AtomicU32, AtomicU64};

pub use fields::{FieldLayout, compare, wire_fields, wire_sizes};

/// Bytes that somebody else owns. A null `ptr` means absent, which is not the same as empty.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Str {
    /// First byte, or null where the text is absent.
    pub ptr: *const u8,
    /// Length in bytes.
    pub len: usize,
}

impl Str {
    /// Text that is not there.
    pub const ABSENT: Self = Self { ptr: std::ptr::null(), len: 0 };

    /// These bytes; valid for as long as they are.
    #[inline]
    pub const fn of(bytes: &[u8]) -> Self {
        Self { ptr: bytes.as_ptr(), len: bytes.len() }
    }

    /// These bytes, or absent.
    #[inline]
    pub const fn maybe(bytes: Option<&[u8]>) -> Self {
        match bytes {
            Some(bytes) => Self::of(bytes),
            None => Self::ABSENT,
        }
    }

    /// The bytes, or none where the text is absent.
    ///
    /// # Safety
    /// `ptr` is null, or points to `len` bytes that stay valid and unchanged for `'a`.
    #[inline]
    #[allow(unsafe_code, reason = "reads what the other side sent")]
    pub const unsafe fn bytes<'a>(self) -> Option<&'a [u8]> {
        if self.ptr.is_null() {
            return None;
        }
        // SAFETY: the caller's promise.
        Some(unsafe { std::slice::from_raw_parts(self.ptr, self.len) })
    }
}

/// A name and its value.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Pair {
    /// The name.
    pub name: Str,
    /// The value.
    pub value: Str,
}

/// An IP address and port, or none yet.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// One of the `ADDRESS_*` constants.
    pub family: u32,
    /// Port, in host byte order.
    pub port: u16,
    /// Zero.
    pub reserved: u16,
    /// The address in network byte order; IPv4 uses the first four bytes.
    pub bytes: [u8; 16],
}

/// No address: a name that is not resolved (yet), or a Unix socket.
pub const ADDRESS_NONE: u32 = 0;
/// IPv4.
pub const ADDRESS_V4: u32 = 4;
/// IPv6.
pub const ADDRESS_V6: u32 = 6;

/// An endpoint index that means "none".
pub const NO_ENDPOINT: u32 = u32::MAX;

// ---- what a call returns ---------------------------------------------------------------------------------------

/// The call did what it was asked.
pub const STATUS_OK: u32 = 0;
/// `build` refused; the reasons went to its error sink. Any unknown status is read as this.
pub const STATUS_REFUSED: u32 = 1;
/// The module panicked inside the call; message and place went to [`HostApi::panicked`] (to the error sink in `build`).
/// After this a trylist gets only its `drop`.
pub const STATUS_PANICKED: u32 = 2;

// ---- what the module says of itself -----------------------------------------------------------------------------

/// A module's description of itself, asked once a load. Text is static.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Info {
    /// Size of this struct.
    pub size: u32,
    /// ABI major number that the module was built for.
    pub abi_major: u32,
    /// ABI minor number that the module was built for.
    pub abi_minor: u32,
    /// Bytes that one trylist needs; the host provides them in place up to [`TRYLIST_IN_PLACE`].
    pub trylist_size: u32,
    /// Alignment of one trylist: a power of two, 16 at most.
    pub trylist_align: u32,
    /// Zero.
    pub reserved: u32,
    /// Module ID, snake_case; the name after which `load_module` asks.
    pub id: Str,
    /// Version of the module itself, for people.
    pub version: Str,
    /// One line on what it does.
    pub summary: Str,
}

/// Trylists up to this many bytes live inside the host's own request; larger ones cost an allocation a request.
pub const TRYLIST_IN_PLACE: usize = 128;
/// Alignment of the storage that the host provides for a trylist.
pub const TRYLIST_ALIGN: usize = 16;

// ---- what is balanced --------------------------------------------------------------------------------------------

/// The live numbers of one endpoint: written by the host, read by modules without a call. One slot never moves and is
/// never freed, so reading it is allowed for the life of the process. It belongs to its endpoint while an instance that was built
/// with it lives. Afterwards it means nothing: it says down, weight 0 and none in flight, or has another endpoint's numbers. What
/// instances share is keyed by [`Endpoint::id`], and each reads the counters of its own build.
#[repr(C)]
#[derive(Debug)]
pub struct Counters {
    /// Size of this struct.
    pub size: u32,
    /// One of the `STATE_*` constants. Any state but [`STATE_AVAILABLE`] gets no requests now.
    pub state: AtomicU32,
    /// Weight in 16.16 fixed point, with slow start and run-time changes applied. 65536 is a weight of 1.
    pub effective_weight: AtomicU32,
    /// Requests on their way to this endpoint, from the accepted answer to the end of the try.
    pub in_flight: AtomicU32,
    /// Of the process's other generations that still run, as last reported.
    pub in_flight_older: AtomicU32,
    /// Bits 0 to 30: requests it may have in flight at once, as in force now; 0 means no limit. Bit 31 is the host's: it is set
    /// while the endpoint is on trial after an ejection, when it takes one request at a time. Mask it off; a module that
    /// does not sees a limit that is never reached.
    pub max_in_flight: AtomicU32,
    /// Smoothed time to the response headers, nanoseconds; 0 while nothing is known.
    pub latency_ns: AtomicU64,
}

/// The endpoint takes requests.
pub const STATE_AVAILABLE: u32 = 0;
/// Active health checks fail.
pub const STATE_DOWN: u32 = 1;
/// Ejected for what its traffic showed.
pub const STATE_EJECTED: u32 = 2;
/// Marked by the operator: finishes what runs, takes nothing new but requests of its sessions, which the host alone brings. A
/// module never answers such an endpoint.
pub const STATE_DRAINING: u32 = 3;

/// Live numbers of the cluster as one instance sees it: they count the endpoints of that instance, and mean nothing once it was
/// dropped. Never moves and is never freed, like [`Counters`].
#[repr(C)]
#[derive(Debug)]
pub struct ClusterState {
    /// Size of this struct.
    pub size: u32,
    /// Endpoints in [`STATE_AVAILABLE`].
    pub n_available: AtomicU32,
    /// Rises after every change of an endpoint's state or effective weight: whoever made a table from them compares
    /// the epoch of then with the epoch of now. Loads acquire, the host's stores release.
    pub epoch: AtomicU64,
}

/// One endpoint. The text and pairs are valid for the time of `build`; of the counters see [`Counters`].
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Endpoint {
    /// Size of this struct; also the stride of a slice of them, unless the sender names a larger one.
    pub size: u32,
    /// Configured weight, 1 to 65,535.
    pub weight: u32,
    /// Stable over reloads: made of cluster, URL as written, occurrence of that URL, and address.
    pub id: u64,
    /// The URL as written in the configuration.
    pub url: Str,
    /// Host name or address as written, without brackets; the path of a Unix socket.
    pub name: Str,
    /// The resolved address, where it is known; its port is the endpoint's port.
    pub address: Address,
    /// Port as written or the scheme's default; 0 for a Unix socket.
    pub port: u32,
    /// Zero.
    pub reserved: u32,
    /// Metadata pairs in the order of the file.
    pub metadata: *const Pair,
    /// How many.
    pub n_metadata: usize,
    /// The live numbers.
    pub counters: *const Counters,
}

// ---- build -------------------------------------------------------------------------------------------------------

/// One value of the module's own settings table, flattened.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Size of this struct; also the stride, as for [`Endpoint`].
    pub size: u32,
    /// One of the `SETTING_*` constants.
    pub kind: u32,
    /// Where it stands: keys joined by dots (a key that is not of `A-Za-z0-9_-` in TOML's basic quotes), array
    /// elements as `[0]`: `choices`, `tiers[1].name`, `labels."a.b"`. Tables and arrays stand before their elements.
    pub path: Str,
    /// The text of a string.
    pub text: Str,
    /// An integer; a boolean as 0 or 1; the number of elements of a table or an array.
    pub integer: i64,
    /// A float. (In C `float` is a keyword.)
    pub real: f64,
}

/// A table; `integer` is its number of keys.
pub const SETTING_TABLE: u32 = 1;
/// An array; `integer` is its number of elements.
pub const SETTING_ARRAY: u32 = 2;
/// A string in `text`. Dates and times arrive as strings too.
pub const SETTING_STRING: u32 = 3;
/// An integer.
pub const SETTING_INTEGER: u32 = 4;
/// A float.
pub const SETTING_FLOAT: u32 = 5;
/// A boolean.
pub const SETTING_BOOLEAN: u32 = 6;

/// Where `build` reports what is wrong with its settings: any number of errors, then [`STATUS_REFUSED`].
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ErrorSink {
    /// Size of this struct.
    pub size: u32,
    /// Zero.
    pub reserved: u32,
    /// To be passed back.
    pub ctx: *mut c_void,
    /// `path` is a [`Setting::path`], or empty where no single setting is at fault. Both are copied.
    pub error: unsafe extern "C" fn(ctx: *mut c_void, path: Str, text: Str),
}

/// Where `save` and `explain` write.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Sink {
    /// Size of this struct.
    pub size: u32,
    /// Zero.
    pub reserved: u32,
    /// To be passed back.
    pub ctx: *mut c_void,
    /// Appends a copy of these bytes.
    pub write: unsafe extern "C" fn(ctx: *mut c_void, bytes: Str),
}

/// Services of the host for a balancer. They outlive the balancer; every call may come from any thread.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HostApi {
    /// Size of this struct.
    pub size: u32,
    /// Zero.
    pub reserved: u32,
    /// To be passed back.
    pub ctx: *mut c_void,
    /// Writes a line to the host's log under the balancer's name. `level` is one of the `LOG_*` constants.
    pub log: unsafe extern "C" fn(ctx: *mut c_void, level: u32, text: Str),
    /// Tells message and place of a panic that the module caught, before it returns [`STATUS_PANICKED`].
    pub panicked: unsafe extern "C" fn(ctx: *mut c_void, text: Str),
}

/// A request or a start failed.
pub const LOG_ERROR: u32 = 1;
/// Recovered, but someone should look.
pub const LOG_WARN: u32 = 2;
/// Start, stop, change. Any unknown level is read as this.
pub const LOG_INFO: u32 = 3;
/// Details.
pub const LOG_DEBUG: u32 = 4;

/// The data that a balancer asks for; the host gathers nothing else. `build` fills it in; the names stay valid
/// until the balancer is dropped.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Needs {
    /// Size of this struct, set by the host before the call: the module writes no field beyond it.
    pub size: u32,
    /// `NEEDS_*` bits.
    pub flags: u32,
    /// `EVENT_*` bits as `1 << EVENT_X`; without any, `observe` is never called.
    pub events: u32,
    /// Zero.
    pub reserved: u32,
    /// Names of request headers, any case.
    pub request_headers: *const Str,
    /// How many.
    pub n_request_headers: usize,
    /// Names of response headers, any case.
    pub response_headers: *const Str,
    /// How many.
    pub n_response_headers: usize,
}

/// [`Request::key`] is wanted.
pub const NEEDS_KEY: u32 = 1;

/// Input of `build`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct BuildCx {
    /// Size of this struct.
    pub size: u32,
    /// Zero.
    pub reserved: u32,
    /// Name of the cluster.
    pub cluster: Str,
    /// All endpoints of the instance in order; their index is their name in every other call, and another one in the next instance.
    pub endpoints: *const Endpoint,
    /// How many; at least 1.
    pub n_endpoints: usize,
    /// Bytes from one endpoint to the next.
    pub endpoint_stride: usize,
    /// The module's settings table, flattened.
    pub settings: *const Setting,
    /// How many.
    pub n_settings: usize,
    /// Bytes from one setting to the next.
    pub setting_stride: usize,
    /// The cluster's live numbers, of this instance alone.
    pub state: *const ClusterState,
    /// The instance that this one replaces, of the same load of the same module, borrowed for the time of the call and
    /// still in use; or null. Its endpoints may be others, in another order.
    pub previous: *const c_void,
    /// State saved by an instance of an earlier generation; absent if there is none, and where there is a previous instance. A
    /// build that refuses or panics with it is called once more without.
    pub saved: Str,
    /// The host's services.
    pub host: *const HostApi,
    /// Where to report errors.
    pub errors: *const ErrorSink,
    /// To be filled in.
    pub needs: *mut Needs,
}

// ---- a request -----------------------------------------------------------------------------------------------------

/// The downstream's request. Valid until the trylist is dropped.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// Size of this struct.
    pub size: u32,
    /// Endpoint that the host tries first by itself (stickiness), or [`NO_ENDPOINT`].
    pub preferred: u32,
    /// Method, as sent.
    pub method: Str,
    /// `http` or `https`, as the client spoke to the listener.
    pub scheme: Str,
    /// Host and port as asked for; absent in an HTTP/1.0 request without `Host`.
    pub authority: Str,
    /// Path, before any mapping by the route.
    pub path: Str,
    /// Query without the question mark; absent where there is no question mark.
    pub query: Str,
    /// Address of the client.
    pub client: Address,
    /// The cluster's key of this request, absent unless asked for ([`NEEDS_KEY`]) and present in the request.
    pub key: Str,
    /// Values of the request headers asked for, in the order asked, the first line of each; absent is not empty.
    pub headers: *const Str,
    /// How many: as many as were asked for.
    pub n_headers: usize,
}

/// Input of `next`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct NextCx {
    /// Size of this struct.
    pub size: u32,
    /// Tries made so far in this request.
    pub n_tries: u32,
    /// The time now.
    pub now_ns: u64,
    /// Uniform random bits, fresh for this call.
    pub random: u64,
    /// Bit `i % 64` of word `i / 64` is set for each endpoint that was answered before in this request, tried or declined; but
    /// not for one that was declined before the request waited in the queue: it may have come free. May be shorter than the
    /// endpoints: bits beyond `n_tried_words` are 0.
    pub tried: *const u64,
    /// How many words; 0 on the first call.
    pub n_tried_words: usize,
    /// The request.
    pub request: *const Request,
}

/// Answer of `next`. The host sets `size` before the call.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Answer {
    /// Size of this struct.
    pub size: u32,
    /// One of the `NEXT_*` constants; any other is a fault.
    pub kind: u32,
    /// Index of the endpoint, for [`NEXT_ENDPOINT`].
    pub endpoint: u32,
    /// Zero.
    pub reserved: u32,
}

/// Try this endpoint.
pub const NEXT_ENDPOINT: u32 = 1;
/// There is none left for this request.
pub const NEXT_EXHAUSTED: u32 = 2;
/// All are full: queue by the cluster's policy and ask again.
pub const NEXT_BUSY: u32 = 3;

/// Why a try did not reach the server; nothing of the request was sent.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Failure {
    /// Size of this struct.
    pub size: u32,
    /// One of the `FAILURE_*` constants.
    pub kind: u32,
    /// The endpoint.
    pub endpoint: u32,
    /// The try's number within the request, from 1.
    pub try_id: u32,
    /// `errno` where there is one, else 0.
    pub os_error: i32,
    /// Zero.
    pub reserved: u32,
    /// The time now.
    pub now_ns: u64,
    /// How long the try took.
    pub elapsed_ns: u64,
}

/// The name did not resolve.
pub const FAILURE_RESOLVE: u32 = 1;
/// The connection was refused or failed. Any unknown kind is read as this.
pub const FAILURE_CONNECT: u32 = 2;
/// No connection within the time allowed.
pub const FAILURE_CONNECT_TIMEOUT: u32 = 3;
/// The TLS handshake failed.
pub const FAILURE_TLS: u32 = 4;
/// The proxy itself lacked something (descriptors, ports): says nothing about the endpoint.
pub const FAILURE_LOCAL: u32 = 5;

/// How a try goes on; only for balancers that asked for it in [`Needs::events`].
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Event {
    /// Size of this struct.
    pub size: u32,
    /// One of the `EVENT_*` constants; a module ignores those it does not know.
    pub kind: u32,
    /// The try's number within the request, from 1.
    pub try_id: u32,
    /// The endpoint.
    pub endpoint: u32,
    /// HTTP status, 0 before there is one.
    pub status: u32,
    /// For [`EVENT_TRY_ENDED`]: one of the `TRY_*` constants; else 0.
    pub result: u32,
    /// The time now.
    pub now_ns: u64,
    /// From the accepted answer to the connection; 0 for one that was kept alive.
    pub connect_ns: u64,
    /// From the accepted answer to the response headers; 0 before.
    pub first_byte_ns: u64,
    /// From the accepted answer to now.
    pub total_ns: u64,
    /// Bytes sent to the endpoint so far, heads included.
    pub bytes_sent: u64,
    /// Bytes received from it so far, heads included.
    pub bytes_received: u64,
    /// Values of the response headers asked for, in the order asked; only for [`EVENT_RESPONSE_HEADERS`].
    pub headers: *const Str,
    /// How many.
    pub n_headers: usize,
}

/// A connection stands (a new one, or one kept alive).
pub const EVENT_CONNECTED: u32 = 1;
/// The response headers are here.
pub const EVENT_RESPONSE_HEADERS: u32 = 2;
/// The try is over; also for one that failed to connect, and for one that was sent and is then retried.
pub const EVENT_TRY_ENDED: u32 = 3;

/// The response was complete.
pub const TRY_SERVED: u32 = 1;
/// It could not be established; `report_failure` said why.
pub const TRY_NOT_ESTABLISHED: u32 = 2;
/// The connection ended before a response.
pub const TRY_CLOSED_EARLY: u32 = 3;
/// The response was not valid HTTP. Any unknown result is read as this.
pub const TRY_BAD_RESPONSE: u32 = 4;
/// No response, or no more of it, within the time allowed.
pub const TRY_TIMED_OUT: u32 = 5;
/// The response broke off in its body.
pub const TRY_BROKEN: u32 = 6;
/// The client went away, or its request broke off.
pub const TRY_ABORTED: u32 = 7;

/// How a request ended, told at most once.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// Size of this struct.
    pub size: u32,
    /// One of the `OUTCOME_*` constants.
    pub kind: u32,
    /// Endpoint of the last try that was established, or [`NO_ENDPOINT`].
    pub endpoint: u32,
    /// HTTP status that the client got; 0 where it got none.
    pub status: u32,
    /// Tries made.
    pub n_tries: u32,
    /// Zero.
    pub reserved: u32,
    /// The time now.
    pub now_ns: u64,
    /// Of the last try, as in [`Event`].
    pub connect_ns: u64,
    /// Of the last try, as in [`Event`].
    pub first_byte_ns: u64,
    /// From `load_balance` to now.
    pub total_ns: u64,
    /// Bytes sent to endpoints, heads included.
    pub bytes_sent: u64,
    /// Bytes received from endpoints, heads included.
    pub bytes_received: u64,
}

/// An endpoint's response went to the client whole, whatever its status.
pub const OUTCOME_SERVED: u32 = 1;
/// No endpoint was left, and none was tried.
pub const OUTCOME_NO_ENDPOINT: u32 = 2;
/// Every try failed. Any unknown outcome is read as this.
pub const OUTCOME_FAILED: u32 = 3;
/// The last try ran out of time.
pub const OUTCOME_TIMED_OUT: u32 = 4;
/// The response broke off in its body.
pub const OUTCOME_BROKEN: u32 = 5;
/// The client went away, or its request broke off.
pub const OUTCOME_ABORTED: u32 = 6;

// ---- the calls -----------------------------------------------------------------------------------------------------

/// A module's calls. A C module exports one symbol, `lb_module`, a pointer to one of these; a Rust module hands over
/// the same through the abi_stable root. `balancer` is what `build` made, `trylist` the storage that `load_balance`
/// filled in. Every call returns a `STATUS_*` unless it returns nothing.
///
/// Threads: any call may come from any thread; calls on one balancer run at the same time, calls on one trylist never do.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Module {
    /// Size of this struct.
    pub size: u32,
    /// ABI major number that the module was built for.
    pub abi_major: u32,
    /// ABI minor number that the module was built for.
    pub abi_minor: u32,
    /// Zero.
    pub reserved: u32,
    /// Fills in what the module says of itself. Once a load, before any other call.
    pub info: Option<unsafe extern "C" fn(info: *mut Info) -> u32>,
    /// Makes an instance for one cluster, and says what it needs.
    pub build: Option<unsafe extern "C" fn(cx: *const BuildCx, balancer: *mut *mut c_void) -> u32>,
    /// The hook: writes this request's trylist into `trylist`. Where it returns anything but [`STATUS_OK`] there is
    /// none, and none is dropped.
    pub load_balance: Option<
        unsafe extern "C" fn(balancer: *const c_void, request: *const Request, trylist: *mut c_void) -> u32,
    >,
    /// Answers with the endpoint for the next try.
    pub next: Option<
        unsafe extern "C" fn(
            balancer: *const c_void,
            trylist: *mut c_void,
            cx: *const NextCx,
            answer: *mut Answer,
        ) -> u32,
    >,
    /// A try could not be established.
    pub report_failure: Option<
        unsafe extern "C" fn(balancer: *const c_void, trylist: *mut c_void, failure: *const Failure) -> u32,
    >,
    /// A try goes on. Optional.
    pub observe: Option<
        unsafe extern "C" fn(balancer: *const c_void, trylist: *mut c_void, event: *const Event) -> u32,
    >,
    /// The request ended; at most once a trylist.
    pub finish: Option<
        unsafe extern "C" fn(balancer: *const c_void, trylist: *mut c_void, outcome: *const Outcome) -> u32,
    >,
    /// Gives up what the trylist owns; always last, exactly once.
    pub drop_trylist: Option<unsafe extern "C" fn(balancer: *const c_void, trylist: *mut c_void) -> u32>,
    /// Writes what the next generation's instance should know. Optional.
    pub save: Option<unsafe extern "C" fn(balancer: *const c_void, sink: *const Sink) -> u32>,
    /// Says in words why the trylist chose as it did. Optional.
    pub explain:
        Option<unsafe extern "C" fn(balancer: *const c_void, trylist: *mut c_void, sink: *const Sink) -> u32>,
    /// Gives up the instance, when the last request on it has ended.
    pub drop_balancer: Option<unsafe extern "C" fn(balancer: *mut c_void) -> u32>,
}
