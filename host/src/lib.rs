//! The Trylist proxy: a host that knows how to proxy, and nothing of how to choose a server. That is in modules.
//!
//! # One request
//!
//! ```text
//!  listener ─► downstream ─► route ─► cluster ─── load_balance(request) ──► trylist
//!  accepts     HTTP/1.1,     host,    endpoints                               │
//!              time-outs     path     + balancer    ┌────── next(cx) ◄────────┤
//!                                                   ▼                         │ not established:
//!                                          forward: one try                   │ report_failure
//!                                          pool │ connect ────────────────────┘
//!                                                   ▼
//!                                          upstream: request sent, response's head
//!                                                   ▼
//!                                          http::pump: bodies, both ways at once
//!                                                   ▼
//!                             finish(outcome), drop ─► metrics, access log
//! ```
//!
//! `serve/forward.rs` is this story told in order; `serve/trylist.rs` keeps the promises to the module while it is told. An error
//! becomes a status in `serve/respond.rs` and nowhere else.
//!
//! # One module's life
//!
//! ```text
//!  .so file ─► sealed copy ─► checked: machine, ABI, ID, hash ─► Module, for the life of the process
//!                                                                   │ build(endpoints, settings), for each membership
//!                                                                   ▼
//!                                     Balancer ◄── load_balance, next, … from any thread
//!                                                                   │ dropped after the last request on it
//! ```
//!
//! See [`module`]. Nothing is ever unloaded: old code leaves memory with its process.
//!
//! # Processes
//!
//! `trylist run` is the [`supervisor`]: it holds the listening sockets, opens no module, and starts a worker for each
//! generation as a process of its own ([`worker::process`]). The learned state of one generation goes to the next
//! ([`cluster::learned`]). Tests and the demo start a [`worker::Worker`] in their own process.
//!
//! # Threads
//!
//! A [`worker::Worker`] has one thread for each core. Each thread (`serve/thread.rs`) owns a runtime, its sockets, its
//! connections to servers, its numbers, and its view of each cluster's members. Shared state is atomic or never changes,
//! so that no request waits for another thread. A cluster whose members change gets a new snapshot, which each thread switches to
//! at a turn of its loop ([`cluster`]). Threads beside them look names up, check servers, and build snapshots.
//!
//! # Rooms
//!
//! The modules below are the rooms of the house, from the top: each imports only those below it, and the files of one folder
//! import each other in one direction. `walls.rs` holds every import to that. Each room's page lists its files in reading order.

#![allow(
    rustdoc::private_intra_doc_links,
    reason = "pub is for the binary and for tests; the docs are for readers of the source, who follow private links too"
)]

#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
pub mod supervisor;
pub mod worker;
pub mod scout;
pub mod process;
pub mod serve;
pub mod observe;
pub mod discovery;
pub mod cluster;
pub mod module;
pub mod config;
pub mod http;
pub mod tls;
pub mod net;
pub mod os;
#[cfg(test)]
mod walls;
