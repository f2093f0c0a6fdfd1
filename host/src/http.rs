//! HTTP of both versions, as bytes and heads. Knows no cluster, no route and no module.
//!
//! ```text
//!  bytes ─► stream ─┬─ h1: heads and bodies as text ─┬─► headers (what a proxy changes) ─► pump, pipe ─► bytes
//!                   └─ h2: streams, shown as text ───┘
//! ```

pub mod path;
pub mod date;
pub(crate) mod template;
pub(crate) mod drive;
pub mod headers;
pub mod h1;
pub mod h2;
pub mod stream;
pub mod pump;
pub mod pipe;
