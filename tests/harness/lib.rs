//! Test harness.

pub mod artifacts;
