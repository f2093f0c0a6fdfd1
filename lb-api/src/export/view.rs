//! Reading what the other side of the boundary sent, with lifetimes instead of pointers.
#![allow(unsafe_code, reason = "the boundary itself")]

use std::marker::PhantomData;
use std::ops::Deref;
use std::ptr::NonNull;
use std::slice;

use crate::wire::{self, Str};

/// A wire struct whose pointers all stay valid for `'a`. Its maker vouches for that, and the accessors of the
/// public types on top of it are safe.
pub(crate) struct View<'a, T> {
    it: &'a T,
}

impl<T> Clone for View<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for View<'_, T> {}

impl<T> Deref for View<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        self.it
    }
}

// SAFETY: the text and slices behind a view are shared and constant for `'a`, like a `&'a [u8]`; the wire structs
// carry raw pointers only because they cross the boundary.
unsafe impl<T> Send for View<'_, T> {}
// SAFETY: as above.
unsafe impl<T> Sync for View<'_, T> {}

/// A wire struct that starts with its size.
///
/// # Safety
/// The first field is `size: u32`, and says how many bytes its sender wrote.
pub(crate) unsafe trait Sized32 {}

macro_rules! sized32 {
    ($($name:ident)*) => {
        // SAFETY: `wire::fields` has a test that each starts with its size.
        $(unsafe impl Sized32 for wire::$name {})*
    };
}
sized32!(Info Counters ClusterState Endpoint Setting ErrorSink Sink HostApi Needs BuildCx Request NextCx Answer);
sized32!(Failure Event Outcome Module);

impl<'a, T: Sized32> View<'a, T> {
    /// `None` where the sender's struct is shorter than ours. A host is never of a lower minor than its modules, and
    /// its structs are at least as long, so that one is broken and nothing of it is read.
    ///
    /// # Safety
    /// `ptr` is null, or points to at least as many bytes as its `size` says; they, and all that its pointers name,
    /// stay valid and unchanged for `'a`.
    #[inline]
    pub(crate) unsafe fn new(ptr: *const T) -> Option<Self> {
        if ptr.is_null() {
            return None;
        }
        // SAFETY: not null, and the caller vouches for `size`, which is the first field.
        let size = unsafe { ptr.cast::<u32>().read() };
        if (size as usize) < size_of::<T>() {
            return None;
        }
        // SAFETY: long enough, and the caller vouches for the rest.
        Some(Self { it: unsafe { &*ptr } })
    }
}

impl<'a, T> View<'a, T> {
    /// Text of one of the struct's own fields.
    #[inline]
    pub(crate) fn bytes(self, field: impl FnOnce(&T) -> Str) -> Option<&'a [u8]> {
        // SAFETY: the view's promise covers all of the struct's pointers, and `field` picks one of these.
        unsafe { field(self.it).bytes() }
    }

    /// As [`bytes`](Self::bytes), for fields that are UTF-8 by contract. Other bytes are shown as empty.
    pub(crate) fn text(self, field: impl FnOnce(&T) -> Str) -> &'a str {
        self.bytes(field).and_then(|bytes| str::from_utf8(bytes).ok()).unwrap_or_default()
    }

    /// A slice that one of the struct's fields points to and another counts.
    #[inline]
    pub(crate) fn slice<U>(self, field: impl FnOnce(&T) -> (*const U, usize)) -> &'a [U] {
        let (ptr, len) = field(self.it);
        if ptr.is_null() || len == 0 {
            return &[];
        }
        // SAFETY: as in `bytes`.
        unsafe { slice::from_raw_parts(ptr, len) }
    }

    /// A struct that one of the fields points to.
    #[inline]
    pub(crate) fn inner<U: Sized32>(self, field: impl FnOnce(&T) -> *const U) -> Option<View<'a, U>> {
        // SAFETY: as in `bytes`.
        unsafe { View::new(field(self.it)) }
    }

    /// A slice whose elements are further apart than ours are long where the sender's are longer.
    pub(crate) fn strided<U: Sized32>(
        self,
        field: impl FnOnce(&T) -> (*const U, usize, usize),
    ) -> Strided<'a, U> {
        let (ptr, len, stride) = field(self.it);
        let len = if ptr.is_null() || stride < size_of::<U>() { 0 } else { len };
        Strided { ptr, len, stride, valid: PhantomData }
    }
}

impl<'a> View<'a, Str> {
    /// Elements of a slice of a view: as valid as the view that the slice came from.
    #[inline]
    pub(crate) fn of_element(it: &'a Str) -> Self {
        Self { it }
    }
}

impl<'a> View<'a, wire::Pair> {
    /// As [`View::of_element`].
    pub(crate) fn of_pair(it: &'a wire::Pair) -> Self {
        Self { it }
    }
}

impl View<'static, wire::Request> {
    /// A request without pointers.
    pub(crate) fn of_static(it: &'static wire::Request) -> Self {
        Self { it }
    }
}

impl View<'static, wire::Counters> {
    /// The counters of an endpoint: the host promises that a slot never moves and is never freed.
    pub(crate) fn counters(endpoint: View<'_, wire::Endpoint>) -> Option<&'static wire::Counters> {
        // SAFETY: the wire's promise on `Endpoint::counters`.
        unsafe { View::new(endpoint.counters) }.map(|view: View<'static, _>| view.it)
    }
}

impl View<'static, wire::ClusterState> {
    /// The live numbers of the cluster, with the same promise.
    pub(crate) fn state(cx: View<'_, wire::BuildCx>) -> Option<&'static wire::ClusterState> {
        // SAFETY: the wire's promise on `ClusterState`.
        unsafe { View::new(cx.state) }.map(|view: View<'static, _>| view.it)
    }
}

/// A slice with a stride of its own.
pub(crate) struct Strided<'a, T> {
    ptr: *const T,
    len: usize,
    stride: usize,
    valid: PhantomData<&'a T>,
}

impl<T> Clone for Strided<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Strided<'_, T> {}

// SAFETY: as for `View`.
unsafe impl<T> Send for Strided<'_, T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Strided<'_, T> {}

impl<'a, T: Sized32> Strided<'a, T> {
    pub(crate) fn len(self) -> usize {
        self.len
    }

    pub(crate) fn get(self, idx: usize) -> Option<View<'a, T>> {
        if idx >= self.len {
            return None;
        }
        // SAFETY: within the sender's slice, whose elements are `stride` apart.
        unsafe { View::new(self.ptr.byte_add(idx * self.stride)) }
    }
}

/// The sink that `save` and `explain` write to.
pub(crate) fn write(sink: View<'_, wire::Sink>, bytes: &[u8]) {
    // SAFETY: the sink is valid for the time of the call, as its view says, and copies the bytes.
    unsafe { (sink.write)(sink.ctx, Str::of(bytes)) }
}

/// The host's services, for as long as its balancer lives.
#[derive(Clone, Copy)]
pub(crate) struct Host {
    api: NonNull<wire::HostApi>,
}

// SAFETY: every call of it may come from any thread.
unsafe impl Send for Host {}
// SAFETY: as above.
unsafe impl Sync for Host {}

impl Host {
    /// # Safety
    /// The host's promise: the API outlives the balancer; and the caller's: it is not used after the balancer's drop.
    pub(crate) unsafe fn new(cx: View<'_, wire::BuildCx>) -> Option<Self> {
        let api = cx.inner(|cx| cx.host)?;
        Some(Self { api: NonNull::from(api.it) })
    }

    pub(crate) fn log(self, level: u32, text: &str) {
        // SAFETY: see `new`.
        unsafe {
            let api = self.api.as_ref();
            (api.log)(api.ctx, level, Str::of(text.as_bytes()));
        }
    }

    pub(crate) fn panicked(self, text: &str) {
        // SAFETY: see `new`.
        unsafe {
            let api = self.api.as_ref();
            (api.panicked)(api.ctx, Str::of(text.as_bytes()));
        }
    }
}

/// Reports the reason why `build` refuses.
pub(crate) fn report(cx: View<'_, wire::BuildCx>, path: &str, text: &str) {
    if let Some(sink) = cx.inner(|cx| cx.errors) {
        // SAFETY: the sink is valid for the time of `build`, and copies both.
        unsafe { (sink.error)(sink.ctx, Str::of(path.as_bytes()), Str::of(text.as_bytes())) }
    }
}
