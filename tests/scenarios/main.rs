//! The proxy under real traffic: one file for each thing that it promises.
#![allow(clippy::unwrap_used, reason = "a scenario that unwraps fails, as it should")]

mod balancing;
mod bodies;
mod failover;
mod forwarding;
mod framing;
mod limits;
mod module_loading;
mod trylist_calls;
