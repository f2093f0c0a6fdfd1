//! One request, from an accepted connection to its last byte.
//!
//! ```text
//!  listener ─► downstream ─► forward ─► trylist ─► upstream ─► pool
//!  accepts     one client's  plan, try, asks the   a connection  kept
//!              connection    relay      module     to a server   connections
//! ```
//!
//! `forward` is the story told in order; `plan` is what head and configuration decide of a request, and `trylist` keeps the
//! promises to the module. An error gets its status in `respond` and nowhere else. `thread` is what one worker thread owns.

pub(crate) mod listener;
mod http1;
mod http2;
mod active;
mod downstream;
mod forward;
pub(crate) mod trylist;
mod plan;
pub(crate) mod route;
mod upstream;
mod pool;
pub(crate) mod thread;
mod request_id;
mod respond;
mod error;
pub mod drain;
