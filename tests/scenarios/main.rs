//! Scenarios.
#![allow(clippy::unwrap_used, reason = "a scenario that unwraps fails, as it should")]

mod module_loading;
