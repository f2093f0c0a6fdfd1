//! The proxy under real traffic: one file for each thing that it promises.
#![allow(clippy::unwrap_used, reason = "a scenario that unwraps fails, as it should")]

mod abi;
mod balancing;
mod bodies;
mod commands;
mod config_errors;
mod control;
mod drain;
mod explain;
mod failover;
mod forwarding;
mod framing;
mod grpc;
mod health;
mod headers;
mod host_share;
mod http2;
mod http2_attacks;
mod kit;
mod limits;
mod mail;
mod module_loading;
mod nginx;
mod observability;
mod outlier;
mod pipelining;
mod quarantine;
mod retries;
mod reload;
mod rubbish;
mod samples;
mod tls;
mod supervision;
mod trylist_calls;
mod tunnels;
