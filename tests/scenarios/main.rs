//! The proxy under real traffic: one file for each thing that it promises.
#![allow(clippy::unwrap_used, reason = "a scenario that unwraps fails, as it should")]

mod abi;
mod balancing;
mod bodies;
mod commands;
mod config_errors;
mod drain;
mod failover;
mod forwarding;
mod framing;
mod headers;
mod health;
mod host_share;
mod kit;
mod limits;
mod mail;
mod module_loading;
mod observability;
mod outlier;
mod pipelining;
mod quarantine;
mod retries;
mod rubbish;
mod samples;
mod trylist_calls;
mod tunnels;
