//! The request that a trylist is made for.

use std::fmt;
use std::net::SocketAddr;

use crate::endpoint::socket_addr;
use crate::export::view::View;
use crate::wire::{self, Str};

/// The downstream's request, as read-only bytes. It cannot be kept in a trylist; [`NextCx::request`](crate::NextCx)
/// shows it again.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    view: View<'a, wire::Request>,
}

impl<'a> Request<'a> {
    #[inline]
    pub(crate) fn new(view: View<'a, wire::Request>) -> Self {
        Self { view }
    }

    /// Stands for the request of a host that sends none.
    #[cold]
    pub(crate) fn empty() -> Self {
        const EMPTY: wire::Request = wire::Request {
            size: size_of::<wire::Request>() as u32,
            preferred: wire::NO_ENDPOINT,
            method: Str::ABSENT,
            scheme: Str::ABSENT,
            authority: Str::ABSENT,
            path: Str::ABSENT,
            query: Str::ABSENT,
            client: wire::Address { family: wire::ADDRESS_NONE, port: 0, reserved: 0, bytes: [0; 16] },
            key: Str::ABSENT,
            headers: std::ptr::null(),
            n_headers: 0,
        };
        Self { view: View::of_static(&EMPTY) }
    }

    /// Method, as sent.
    #[inline]
    pub fn method(self) -> &'a [u8] {
        self.view.bytes(|r| r.method).unwrap_or_default()
    }

    /// `http` or `https`, as the client spoke to the listener.
    #[inline]
    pub fn scheme(self) -> &'a [u8] {
        self.view.bytes(|r| r.scheme).unwrap_or_default()
    }

    /// Host and port as asked for; none in an HTTP/1.0 request without `Host`.
    #[inline]
    pub fn authority(self) -> Option<&'a [u8]> {
        self.view.bytes(|r| r.authority)
    }

    /// Path, before any mapping by the route.
    #[inline]
    pub fn path(self) -> &'a [u8] {
        self.view.bytes(|r| r.path).unwrap_or_default()
    }

    /// Query without its question mark; none where there is no question mark.
    #[inline]
    pub fn query(self) -> Option<&'a [u8]> {
        self.view.bytes(|r| r.query)
    }

    /// The client's address.
    #[inline]
    pub fn client(self) -> Option<SocketAddr> {
        socket_addr(&self.view.client)
    }

    /// The request's key by the cluster's `key` setting, where [`Needs::key`](crate::Needs::key) asked for it and the
    /// request has one. It is never empty: an empty key counts as none. In a cluster with `key_missing`, requests without a key
    /// go to another balancer.
    #[inline]
    pub fn key(self) -> Option<&'a [u8]> {
        self.view.bytes(|r| r.key)
    }

    /// Value of the `idx`-th header that [`Needs::request_header`](crate::Needs::request_header) asked for: the first
    /// line of that name. `None` if the request has no such line; an empty value is `Some`.
    #[inline]
    pub fn header(self, idx: usize) -> Option<&'a [u8]> {
        let headers = self.view.slice(|r| (r.headers, r.n_headers));
        View::of_element(headers.get(idx)?).bytes(|value| *value)
    }

    /// Endpoint that the host tries first by itself (stickiness). A balancer may charge it; it may also never hear of
    /// it again.
    #[inline]
    pub fn preferred(self) -> Option<usize> {
        (self.view.preferred != wire::NO_ENDPOINT).then_some(self.view.preferred as usize)
    }
}

impl fmt::Debug for Request<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = String::from_utf8_lossy;
        write!(f, "{} {}", text(self.method()), text(self.path()))
    }
}
