//! Addresses and sockets. Knows no HTTP.
//!
//! ```text
//!  address ─► listening ─► a connection ─► proxy_protocol (whose it is) ─► … ─► linger (how it ends)
//! ```

pub mod address;
pub mod network;
pub mod unix;
pub mod listening;
pub mod per_client;
pub mod proxy_protocol;
pub mod timer;
pub mod linger;
