//! Write a load balancer for Trylist: the trait that a module implements, the ABI between module and proxy, and a testkit.
//!
//! Trylist is a reverse proxy whose load balancing is a plug-in. Each strategy is a *module*: a `.so` built from a crate of its
//! own, loaded by a line of the configuration, and named there by its module ID. This page is the guide for authors of modules.
//!
//! # A whole module
//!
//! `trylist module new NAME` writes a module that builds, passes its tests and loads (`--lang c` for C). By hand, it is two
//! files. `Cargo.toml` is a `cdylib` that depends on this crate; until it is on crates.io, by `path` from a checkout of Trylist.
//!
//! ```toml
//! [package]
//! name = "mod-turns"
//! version = "0.1.0"
//! edition = "2024"
//!
//! [lib]
//! crate-type = ["cdylib"]
//!
//! [dependencies]
//! lb-api = { version = "1.0", path = "…/lb-api" }
//!
//! [dev-dependencies]
//! lb-api = { version = "1.0", path = "…/lb-api", features = ["testkit"] }
//! ```
//!
//! `src/lib.rs` is a state, a trait and an export line:
//!
//! ```
//! use std::sync::Arc;
//! use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
//!
//! use lb_api::{Balancer, BuildCx, BuildError, Next, NextCx, Request, export_balancer};
//!
//! pub struct Turns {
//!     n_endpoints: usize,
//!     turn: Arc<AtomicUsize>,
//! }
//!
//! impl Balancer for Turns {
//!     const ID: &'static str = "turns";
//!     const SUMMARY: &'static str = "round robin in the order of the file";
//!     type Settings = ();
//!     type Trylist = usize;
//!
//!     fn build(cx: &BuildCx<'_, Self>, (): ()) -> Result<Self, BuildError> {
//!         // The instance that this one replaces is still in use: both take turns of one counter.
//!         let turn = cx.previous().map(|previous| Arc::clone(&previous.turn)).unwrap_or_default();
//!         Ok(Self { n_endpoints: cx.endpoints().len(), turn })
//!     }
//!
//!     fn load_balance(&self, _: &Request<'_>) -> usize {
//!         self.turn.fetch_add(1, Relaxed) % self.n_endpoints
//!     }
//!
//!     fn next(&self, server: &mut usize, cx: &NextCx<'_>) -> Next {
//!         for _ in 0..self.n_endpoints {
//!             let candidate = *server;
//!             *server = (candidate + 1) % self.n_endpoints;
//!             if !cx.tried(candidate) {
//!                 return Next::Endpoint(candidate);
//!             }
//!         }
//!         Next::Exhausted
//!     }
//! }
//!
//! export_balancer!(Turns);
//! # lb_api::testkit::Contract::<Turns>::new().check();
//! ```
//!
//! `cargo build --release` makes `target/release/libmod_turns.so`. `trylist module inspect FILE.so` shows its ID, version and ABI.
//! These lines of the configuration use it:
//!
//! ```toml
//! [load_module]
//! turns = "/path/to/libmod_turns.so"
//!
//! [[cluster]]
//! name = "cluster1"
//! module = "turns"
//! servers = ["http://127.0.0.1:9001", "http://127.0.0.1:9002"]
//! ```
//!
//! This is `proxy_lb` (`modules/proxy-lb`), the smallest module of this repository, without the lines that find the next server by
//! its id and let it go on after a reload. Line by line:
//!
//! - A value of the type is a **balancer**: the instance for one cluster and one list of endpoints. `build` makes it from the
//!   endpoints and the module's own settings (here none: `()`). Work that grows with the number of endpoints belongs there.
//! - An endpoint is known by its **index**, its place in that list. Indices do not change while the balancer lives, whatever the
//!   endpoints' health. The next instance may have other ones.
//! - `load_balance` is the hook. The host calls it once a request; it returns that request's **trylist**, the state between its
//!   tries. Here that is the server to try next. The host stores it in its own memory, without an allocation.
//! - `next` returns the endpoint for a try. Most requests call it once. The host calls it again after a failed connection, and
//!   after it declined an endpoint that is down, draining or full. `cx.tried` is true for both.
//! - `Exhausted` ends the request: the host answers 502, or 503 if nothing was tried.
//!
//! # The life of a request
//!
//! ```text
//! load_balance(request) ──► trylist
//!        ┌──────► next ──► Endpoint(i) ──► the host connects
//!        │                                  │         │
//!        └── report_failure ◄── look-up, connection   └─► observe: connected, response headers, try ended
//!                               or TLS failed                         │
//!                                                   finish(outcome) ◄─┘   at most once
//!                                                   the trylist is dropped, always, exactly once
//! ```
//!
//! - [`report_failure`](Balancer::report_failure): the try did not reach the server. The host asks `next` for another one.
//! - [`observe`](Balancer::observe): the progress of a try, for events that [`needs`](Balancer::needs) asks for.
//! - [`finish`](Balancer::finish): the end of the request, also when the client goes away. It does not come after a panic, so put
//!   what must always be undone into the trylist's `Drop`.
//!
//! An answer with an endpoint that does not exist, or that was answered before in the same request, is a *fault*: the host logs
//! it and chooses a server by itself. A declined answer is not a fault; checking [`Live::is_available`] first saves a call. After
//! 16 declined answers the host scans the endpoints by itself.
//!
//! Health checks, slow start, draining, limits, queues, retries and sessions belong to the host. A module sees them as the [`Live`]
//! numbers of each endpoint, which it reads without a call. The cluster's [epoch](Cluster::epoch) tells when a table made from
//! these numbers is stale: see `modules/round-robin` and `modules/random`.
//!
//! # Settings
//!
//! [`Balancer::Settings`] is any type that serde can deserialize. It receives the cluster's table `settings`:
//!
//! ```
//! use lb_api::serde::Deserialize;
//!
//! #[derive(Deserialize)]
//! #[serde(crate = "lb_api::serde", default)]
//! pub struct Settings {
//!     choices: u8,
//! }
//!
//! impl Default for Settings {
//!     fn default() -> Self {
//!         Self { choices: 2 }
//!     }
//! }
//! ```
//!
//! The SDK checks types, refuses unknown keys with the nearest known one, and reports all problems in one run, with file and
//! line. (Inside `#[serde(flatten)]` and tagged enums serde does not say which keys are known: add `deny_unknown_fields` there.)
//! `build` checks what only the module can know, and returns a [`BuildError`]:
//! `Err(BuildError::setting("choices", "expected 2 or more, found 1"))`.
//!
//! # Headers, keys and events
//!
//! The host gathers only what a module asks for. It calls [`needs`](Balancer::needs) once for each instance:
//!
//! ```
//! # use lb_api::{EventKind, Needs};
//! let needs = Needs::default().request_header("x-user").event(EventKind::TryEnded);
//! ```
//!
//! From then on [`Request::header`]`(0)` is that header's value. The key ([`Needs::key`]) is what the operator chose as the
//! cluster's `key`; a module that hashes should use it rather than a header of its own choice.
//!
//! # Endpoints come and go
//!
//! When endpoints come, go, move or change weight, the host builds a new instance in the same process while requests run. `build`
//! then gets [`BuildCx::previous`], the instance that the new one replaces. That one is borrowed for the time of `build`, stays in
//! use until its last request has ended, and may still learn. So share what is learned by `Arc`, and key it by [`Endpoint::id`]:
//!
//! ```
//! # use std::collections::HashMap;
//! # use std::sync::{Arc, atomic::AtomicU64};
//! # use lb_api::{Balancer, BuildCx, BuildError, Live, Next, NextCx, Request};
//! struct Known {
//!     id: u64,
//!     live: Live,
//!     learned: Arc<AtomicU64>,
//! }
//!
//! struct Learns {
//!     endpoints: Vec<Known>,
//! }
//!
//! # impl Balancer for Learns {
//! # const ID: &'static str = "learns";
//! # const SUMMARY: &'static str = "";
//! # type Settings = ();
//! # type Trylist = ();
//! fn build(cx: &BuildCx<'_, Self>, (): ()) -> Result<Self, BuildError> {
//!     let before = cx.previous().map_or(&[][..], |previous| &previous.endpoints);
//!     let before: HashMap<u64, &Known> = before.iter().map(|known| (known.id, known)).collect();
//!     let endpoints = cx.endpoints().iter().map(|endpoint| Known {
//!         id: endpoint.id(),
//!         // Of this build, never of the one before.
//!         live: endpoint.live(),
//!         learned: before.get(&endpoint.id()).map(|known| Arc::clone(&known.learned)).unwrap_or_default(),
//!     });
//!     Ok(Self { endpoints: endpoints.collect() })
//! }
//! # fn load_balance(&self, _: &Request<'_>) {}
//! # fn next(&self, _: &mut (), cx: &NextCx<'_>) -> Next {
//! #     (0..self.endpoints.len()).find(|idx| !cx.tried(*idx)).map_or(Next::Exhausted, Next::Endpoint)
//! # }
//! # }
//! # lb_api::testkit::Contract::<Learns>::new().check();
//! ```
//!
//! A [`Live`] belongs to its endpoint while an instance that was built with it lives, and means nothing afterwards. [`Cluster`],
//! with its epoch, belongs to one instance. Endpoints that drain are never to be answered: the host alone takes the requests of
//! their sessions there. A sequence that begins anew with each instance serves only the first endpoints of a cluster that changes
//! often: let it go on.
//!
//! # State that survives a reload
//!
//! A reload starts a new process, where there is no `previous`. Its balancers are built while the old ones still serve.
//! [`save`](Balancer::save) returns what they should know as bytes, and [`BuildCx::saved`] hands these over, never together with
//! `previous`. Key them by [`Endpoint::id`], since servers come and go, and raise [`STATE_VERSION`](Balancer::STATE_VERSION) when
//! their form changes. The host also calls `save` every few seconds, so that a crash loses little. A module that starts at the
//! first server after each reload overloads that server: save the turn.
//!
//! # Parts
//!
//! [`pick`] has the parts that most balancers need: a weighted draw in constant time, shares of keys, smooth turns among
//! equals. [`Time`] is a setting such as `"250ms"`.
//!
//! # Threads
//!
//! All threads share a balancer, without a lock around it. Any call may come from any thread, at the same time as any other,
//! `save` and the next `build` included. So state is atomic, or immutable and replaced as a whole. A lock in a request's calls
//! makes the proxy's threads wait for each other. A trylist moves between threads but is never used by two at once.
//!
//! A balancer does no I/O, starts no threads, and reads neither clock nor random source: [`NextCx`] has the time and random
//! bits. So tests can check every choice.
//!
//! # Panics
//!
//! The SDK catches panics in every call, and in the drop of trylist and balancer. The host gets the message and its place, counts a
//! fault and chooses a server by itself; after that the trylist is only dropped. A panic in `build` refuses the configuration.
//! Nothing is printed: a module has its own standard library, and the SDK sets its panic hook. This needs unwinding, so a module
//! does not compile with `panic = "abort"`. A panic during unwinding and a stack overflow end the process, as everywhere in Rust.
//!
//! # Testing
//!
//! With the feature `testkit`, `cargo test` needs no proxy and no network. One line checks the contract that every balancer must
//! keep; the other tests are the module's own:
//!
//! ```
//! # use lb_api::{Balancer, BuildCx, BuildError, Next, NextCx, Request};
//! # struct Turns(usize, std::sync::Arc<std::sync::atomic::AtomicUsize>);
//! # impl Balancer for Turns {
//! #     const ID: &'static str = "turns";
//! #     const SUMMARY: &'static str = "";
//! #     type Settings = ();
//! #     type Trylist = usize;
//! #     fn build(cx: &BuildCx<'_, Self>, (): ()) -> Result<Self, BuildError> {
//! #         Ok(Self(cx.endpoints().len(), cx.previous().map(|it| it.1.clone()).unwrap_or_default()))
//! #     }
//! #     fn load_balance(&self, _: &Request<'_>) -> usize {
//! #         self.1.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
//! #     }
//! #     fn next(&self, at: &mut usize, cx: &NextCx<'_>) -> Next {
//! #         (0..self.0).map(|step| (*at + step) % self.0).find(|idx| !cx.tried(*idx)).map_or(Next::Exhausted, Next::Endpoint)
//! #     }
//! # }
//! use lb_api::testkit::{Contract, FakeCluster};
//!
//! // #[test] fn keeps_the_contract()
//! Contract::<Turns>::new().check();
//!
//! // #[test] fn takes_turns()
//! let balancer = FakeCluster::equal(3).balancer::<Turns>().build().unwrap();
//! assert_eq!(balancer.sequence(4), [0, 1, 2, 0]);
//! ```
//!
//! The contract's chapter on membership lets endpoints come, go, move and change weight while requests run, and poisons the slots
//! of those that left. `Contract` checks more on request: `skips_unavailable` (no unavailable endpoint is answered), `weighted`
//! (shares follow weights) and `keyed` (a key keeps its endpoint).
//!
//! `trylist module test FILE.so` checks the same contract on a built library in any language. It uses a process of its own, so a
//! crash, an abort or a call that does not return is a line of its report. It also finds memory leaks and measures the time of a
//! request's calls.
//!
//! A crate that other crates test against is `crate-type = ["cdylib", "rlib"]`. The root has the same symbol name in every module,
//! so a program cannot link the `rlib`s of *two* modules, unless its build script prints
//! `cargo::rustc-link-arg=-Wl,-z,muldefs`. Loading the `.so` files has no such limit.
//!
//! # In C, or any other language
//!
//! `include/lb_module.h` is the same ABI. A module in C exports one symbol and is loaded by the same line. The header describes every
//! struct, call and constant, as [`wire`] does for Rust. `modules/c-example/c_example.c` is a whole module, written to be copied.
//! In C the author does what the SDK does in Rust: reading settings, checking saved bytes, containing exceptions.
//!
//! # How the ABI grows
//!
//! A host accepts a module with its own major number and the same or a lower minor number. So a module loads in every later host
//! of its major. A released field, call, constant or meaning never changes. Additions go to the end, are optional, and have a
//! default; [`version`] keeps the history. A Rust module carries the layout of every struct, and the host compares it with its own
//! before the first call.

mod balancer;
mod endpoint;
mod request;
mod trylist;
mod outcome;
pub mod pick;
mod settings;
mod error;
pub mod wire;
pub mod export;
pub mod version;
#[cfg(feature = "testkit")]
pub mod testkit;

pub use balancer::{Balancer, BuildCx, Log, Needs};
pub use endpoint::{Cluster, Endpoint, Endpoints, Live, State, WEIGHT_ONE};
pub use error::{BuildError, Problem};
pub use outcome::{Event, EventKind, Failure, FailureKind, Outcome, OutcomeKind, TryResult};
pub use request::Request;
pub use serde;
pub use settings::time::Time;
pub use trylist::{Next, NextCx, Rng};
