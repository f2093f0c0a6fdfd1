//! One request, from an accepted connection to its last byte.
//!
//! ```text
//!  listener ─► downstream ─► forward ─► trylist ─► upstream ─► pool
//!  accepts     one client's  route,     asks the   a connection  kept
//!              connection    try, relay module     to a server   connections
//! ```
//!
//! [`forward`] is the story told in order; [`trylist`] keeps the promises to the module while it is told. An error becomes
//! a status in [`respond`] and nowhere else. [`thread`] is what one worker thread owns.

pub mod listener;
pub mod http1;
pub mod http2;
mod active;
pub mod downstream;
pub mod forward;
pub mod route;
pub mod trylist;
pub mod upstream;
pub mod pool;
pub mod thread;
pub mod request_id;
pub mod respond;
pub mod error;
pub mod drain;
