//! Seen from outside: what the proxy says of itself while it runs.
//!
//! ```text
//!  serve ─► metrics: a shard for each thread ─► totals ─► admin: /metrics, /healthz, /readyz
//!        └► access_log: a line for each request ─► a file
//!  cluster ─► status: how everything is ─► `trylist status`, admin: /api/v1
//!          └► events: the last that happened ─► the same
//! ```

pub mod metrics;
pub(crate) mod time;
pub mod events;
pub mod sources;
pub mod status;
pub mod access_log;
pub mod admin;
