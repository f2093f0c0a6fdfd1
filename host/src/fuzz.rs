//! Properties of all parsers of bytes from outside. Each property is a function of arbitrary bytes that panics
//! where it does not hold.
//!
//! ```text
//!  tests/fuzz/seeds/TARGET ─┬─► cargo fuzz (tests/fuzz, nightly): as long as you like ─┐
//!                           └─► cases: a fixed number of changed seeds, `cargo test` ──┴─► a property below
//! ```
//!
//! Compiled for tests and with the feature `fuzzing` alone. [`TARGETS`] lists the properties; [`pieces`] cuts an input as a
//! network may cut it.

mod pieces;
mod http1;
mod http2;
mod proxy;
mod config;
mod lists;
mod module;
#[cfg(test)]
mod cases;

pub use self::config::{httpd, toml};
pub use self::http1::{chunked_body, request_head, response_head};
pub use self::http2::{h2_frames, h2_hpack, h2_message, h2_session};
pub use self::lists::members;
pub use self::module::module_wire;
pub use self::proxy::proxy_header;

/// A property.
pub type Property = fn(&[u8]);

/// Every property, by the name of its folder of seeds.
pub const TARGETS: [(&str, Property); 12] = [
    ("request_head", request_head),
    ("response_head", response_head),
    ("chunked_body", chunked_body),
    ("proxy_header", proxy_header),
    ("h2_frames", h2_frames),
    ("h2_hpack", h2_hpack),
    ("h2_message", h2_message),
    ("h2_session", h2_session),
    ("toml", toml),
    ("httpd", httpd),
    ("members", members),
    ("module_wire", module_wire),
];
