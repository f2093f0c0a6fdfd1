//! The memory of a trylist while its request lasts: the storage that the module writes to, and the request it reads.
#![allow(unsafe_code, reason = "a module holds pointers into this, so it is reached by raw pointer alone")]

use std::cell::RefCell;
use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::ptr::{self, NonNull};

use lb_api::wire;

use super::view::{Tried, View};
use crate::module::balancer::Balancer;
use crate::module::wire::address;

/// Maximum that a thread keeps for reuse.
const MAX_SPARE: usize = 256;

thread_local! {
    #[expect(clippy::vec_box, reason = "lent and given back as a pointer, not copied")]
    static SPARE: RefCell<Vec<Box<Slot>>> = const { RefCell::new(Vec::new()) };
}

/// Storage of one request at a time; reused, because it is larger than what a request should allocate.
#[derive(Debug)]
pub(super) struct Slot {
    pinned: NonNull<Pinned>,
    /// For trylists that do not fit in place.
    large: Vec<Storage>,
    headers: Vec<wire::Str>,
    pub(super) response_headers: Vec<wire::Str>,
    /// Bits of the endpoints answered; empty until `next` is asked a second time.
    pub(super) answered_bits: Vec<u64>,
    first_answer: Option<usize>,
    /// Bits of those of them that were declined; empty unless one was.
    declined_bits: Vec<u64>,
    pub(super) tries: Vec<Tried>,
}

/// The memory that a module may point to from `load_balance` to `drop`. Reached by raw pointer alone: a reference would
/// claim for the host what the module has its hands on.
#[derive(Debug)]
struct Pinned {
    storage: Storage,
    request: wire::Request,
}

/// As much as the ABI promises in place.
#[repr(C, align(16))]
#[derive(Clone, Copy, Debug)]
struct Storage([MaybeUninit<u8>; wire::TRYLIST_IN_PLACE]);

const _: () = assert!(align_of::<Storage>() >= wire::TRYLIST_ALIGN);

impl Default for Slot {
    fn default() -> Self {
        let pinned = Box::new(Pinned {
            storage: Storage([MaybeUninit::uninit(); wire::TRYLIST_IN_PLACE]),
            request: NO_REQUEST,
        });
        Self {
            pinned: NonNull::from(Box::leak(pinned)),
            large: Vec::new(),
            headers: Vec::new(),
            response_headers: Vec::new(),
            answered_bits: Vec::new(),
            first_answer: None,
            declined_bits: Vec::new(),
            tries: Vec::new(),
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // SAFETY: made from a box by `default`, and freed only here; the guard has dropped the trylist before.
        drop(unsafe { Box::from_raw(self.pinned.as_ptr()) });
    }
}

impl Slot {
    /// Storage for a trylist, of those that this thread keeps.
    #[inline]
    pub(super) fn lend() -> Box<Self> {
        SPARE.with_borrow_mut(Vec::pop).unwrap_or_default()
    }

    /// Storage that is no longer used.
    #[inline]
    pub(super) fn give_back(slot: Box<Self>) {
        SPARE.with_borrow_mut(|spare| {
            if spare.len() < MAX_SPARE {
                spare.push(slot);
            }
        });
    }

    /// Makes it ready for a trylist of this balancer. The tries of the request stay.
    pub(super) fn prepare(&mut self, balancer: &Balancer, view: &View<'_>, preferred: u32) {
        let size = balancer.module().trylist().size;
        if size > wire::TRYLIST_IN_PLACE {
            let n = size.div_ceil(size_of::<Storage>());
            self.large.resize(n, Storage([MaybeUninit::uninit(); wire::TRYLIST_IN_PLACE]));
        }
        self.headers.clear();
        let names = balancer.needs().request_headers.iter();
        self.headers.extend(names.map(|name| wire::Str::maybe(view.head.field(name.as_bytes()))));
        let request = wire::Request {
            preferred,
            method: wire::Str::of(view.head.text(view.head.method_text)),
            scheme: wire::Str::of(if view.plan.client.is_https { b"https" } else { b"http" }),
            authority: wire::Str::maybe(view.plan.authority),
            path: wire::Str::of(&view.plan.path),
            query: wire::Str::maybe(view.plan.query),
            client: address(view.plan.client.address.socket()),
            key: wire::Str::maybe(view.key),
            headers: self.headers.as_ptr(),
            n_headers: self.headers.len(),
            ..NO_REQUEST
        };
        // SAFETY: the slot owns the allocation, and no trylist is alive in it now.
        unsafe { (*self.pinned.as_ptr()).request = request };
    }

    /// Begins with no answers, as in another tier.
    pub(super) fn forget_answers(&mut self) {
        self.answered_bits.clear();
        self.first_answer = None;
        self.declined_bits.clear();
    }

    /// Where a trylist of `size` bytes is, or goes.
    pub(super) fn storage(&mut self, size: usize) -> *mut c_void {
        if size > wire::TRYLIST_IN_PLACE {
            return self.large.as_mut_ptr().cast();
        }
        // SAFETY: the slot owns the allocation; taking a field's address reads nothing.
        unsafe { (&raw mut (*self.pinned.as_ptr()).storage).cast() }
    }

    /// Where the request is.
    pub(super) fn request(&self) -> *const wire::Request {
        // SAFETY: the slot owns the allocation; taking a field's address reads nothing.
        unsafe { &raw const (*self.pinned.as_ptr()).request }
    }

    /// Remembers an answer. The first is kept as a number: most requests have no second, and their bits need no memory.
    pub(super) fn answered(&mut self, endpoint: usize) {
        if self.answered_bits.is_empty() {
            self.first_answer = Some(endpoint);
        } else {
            self.answered_bits[endpoint / 64] |= 1 << (endpoint % 64);
        }
    }

    /// Puts the first answer into bits, if there was one.
    pub(super) fn spread(&mut self, n_endpoints: usize) {
        if let Some(first) = self.first_answer.take() {
            self.answered_bits.resize(n_endpoints.div_ceil(64), 0);
            self.answered(first);
        }
    }

    /// Remembers that an endpoint that was answered was declined.
    #[cold]
    pub(super) fn declined(&mut self, endpoint: usize, n_endpoints: usize) {
        self.declined_bits.resize(n_endpoints.div_ceil(64), 0);
        self.declined_bits[endpoint / 64] |= 1 << (endpoint % 64);
    }

    /// Whether any endpoint that was answered was declined.
    #[inline]
    pub(super) fn has_declined(&self) -> bool {
        !self.declined_bits.is_empty()
    }

    /// Whether this endpoint was answered and declined.
    pub(super) fn is_declined(&self, endpoint: usize) -> bool {
        self.declined_bits.get(endpoint / 64).is_some_and(|word| word & (1 << (endpoint % 64)) != 0)
    }

    /// Remembers that an endpoint that was declined is tried now.
    #[cold]
    pub(super) fn no_longer_declined(&mut self, endpoint: usize) {
        if let Some(word) = self.declined_bits.get_mut(endpoint / 64) {
            *word &= !(1 << (endpoint % 64));
        }
    }

    /// Makes endpoints that were answered and declined count as not answered; that they were is remembered.
    #[cold]
    pub(super) fn forget_declined(&mut self, n_endpoints: usize) {
        self.spread(n_endpoints);
        for (answered, declined) in self.answered_bits.iter_mut().zip(&self.declined_bits) {
            *answered &= !declined;
        }
    }

    pub(super) fn is_answered(&self, endpoint: usize) -> bool {
        self.first_answer == Some(endpoint)
            || self.answered_bits.get(endpoint / 64).is_some_and(|word| word & (1 << (endpoint % 64)) != 0)
    }
}

const NO_ADDRESS: wire::Address =
    wire::Address { family: wire::ADDRESS_NONE, port: 0, reserved: 0, bytes: [0; 16] };

const NO_REQUEST: wire::Request = wire::Request {
    size: size_of::<wire::Request>() as u32,
    preferred: wire::NO_ENDPOINT,
    method: wire::Str::ABSENT,
    scheme: wire::Str::ABSENT,
    authority: wire::Str::ABSENT,
    path: wire::Str::ABSENT,
    query: wire::Str::ABSENT,
    client: NO_ADDRESS,
    key: wire::Str::ABSENT,
    headers: ptr::null(),
    n_headers: 0,
};
