//! What a balancer module for Trylist is: the trait that its author writes, and the ABI that it crosses.
//!
//! Trylist is a reverse proxy that has no way of choosing a server built in. Every way is a *module*: a `.so` made from a
//! crate of its own, loaded by a line of configuration, called by its module ID. This page is the guide for whoever writes
//! one.
//!
//! # A whole module
//!
//! `trylist module new NAME` writes one that builds, passes its tests and loads as it is (`--lang c` in C). By hand, it is two
//! files. `Cargo.toml`: a `cdylib` that depends on this crate.
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
//! lb-api = { path = "…/lb-api" }
//!
//! [dev-dependencies]
//! lb-api = { path = "…/lb-api", features = ["testkit"] }
//! ```
//!
//! `src/lib.rs`: a state, a trait, an export line.
//!
//! ```
//! use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
//!
//! use lb_api::{Balancer, BuildCx, BuildError, Next, NextCx, Request, export_balancer};
//!
//! pub struct Turns {
//!     n_endpoints: usize,
//!     turn: AtomicUsize,
//! }
//!
//! impl Balancer for Turns {
//!     const ID: &'static str = "turns";
//!     const SUMMARY: &'static str = "round robin in the order of the file";
//!     type Settings = ();
//!     type Trylist = usize;
//!
//!     fn build(cx: &BuildCx<'_, Self>, (): ()) -> Result<Self, BuildError> {
//!         Ok(Self { n_endpoints: cx.endpoints().len(), turn: AtomicUsize::new(0) })
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
//! `cargo build --release` makes `target/release/libmod_turns.so`, and these lines use it; `trylist module inspect` shows
//! what the file says of itself:
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
//! This is `proxy_lb` (`modules/proxy-lb`) under another name, the balancer that came with the patch to httpd's proxy of
//! which Trylist is the heir. Line by line:
//!
//! - A value of the type is a **balancer**: the instance for one cluster. `build` makes it from the cluster's endpoints and
//!   the module's own settings (here none: `()`), and whatever work grows with the number of endpoints is done there.
//! - An endpoint is known by its **index**, its place in the configuration. Indices do not change while the balancer lives,
//!   whatever the endpoints' health.
//! - `load_balance` is the hook: once for each request, it makes that request's **trylist**, the state between its tries.
//!   Here that is the server to go to next. It is placed in the proxy's own memory, so that it costs no allocation.
//! - `next` names the endpoint for a try. Nearly always it is asked once. It is asked again when the connection failed, and
//!   when the host declined the answer because that endpoint is down, draining or full; `cx.tried` knows both.
//! - `Exhausted` ends the request: the host says 502, or 503 where nothing was tried.
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
//! - [`report_failure`](Balancer::report_failure): the try never reached the server. The host asks `next` for another.
//! - [`observe`](Balancer::observe): how a try goes on, only for events that [`needs`](Balancer::needs) asks for.
//! - [`finish`](Balancer::finish): how the request ended. A client that goes away ends it too. Only after a panic does
//!   `finish` not come, so that what must be undone in any case belongs into the trylist's `Drop`.
//!
//! An endpoint that does not exist, or one that was answered before in the same request, is a *fault*: the host logs it and
//! serves that request by its own fallback. A declined answer is no fault; still, looking at [`Live::is_available`] first
//! saves a call. After 16 declined answers the host looks for an endpoint by itself.
//!
//! What is the host's business is no module's: health checks, slow start, draining, limits, queues, retries and stickiness.
//! They reach a module as the [`Live`] numbers of each endpoint, which it reads without a call, and as the cluster's
//! [epoch](Cluster::epoch), which tells when a table made from them is stale. See `modules/round-robin` and
//! `modules/random` for both ways of using it.
//!
//! # Settings
//!
//! [`Balancer::Settings`] is any type that serde can read, and receives the table `settings` of the cluster:
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
//! Unknown keys are refused with the nearest known one, types are checked, and all problems are reported in one run, with
//! file and line; nothing of that is the author's work. (Inside `#[serde(flatten)]` and tagged enums serde does not say
//! which keys are known; add `deny_unknown_fields` there.) What only the module can know, `build` checks, and reports as a
//! [`BuildError`]: `Err(BuildError::setting("choices", "expected 2 or more, found 1"))`.
//!
//! # Headers, keys and events
//!
//! The host gathers nothing that nobody asked for. [`needs`](Balancer::needs) asks, once for each instance:
//!
//! ```
//! # use lb_api::{EventKind, Needs};
//! let needs = Needs::default().request_header("x-user").event(EventKind::TryEnded);
//! ```
//!
//! and from then on [`Request::header`]`(0)` is that header's value. A key ([`Needs::key`]) is what the operator chose in
//! the cluster's `key` setting; a module that hashes should use that rather than a header of its own choice.
//!
//! # What is learned, and how it lives on
//!
//! A reload starts a new process, whose balancers are built while those of the one before still serve. What they should
//! know, [`save`](Balancer::save) turns into bytes and [`BuildCx::saved`] hands over, best keyed by [`Endpoint::id`], since
//! servers come and go; a crash loses at most what was learned since the host last asked, seconds before. Raise
//! [`STATE_VERSION`](Balancer::STATE_VERSION) when their form changes. A host may also build anew within one process:
//! [`BuildCx::previous`] then shows the instance before, and what is learned can be shared with it by `Arc`. `trylist` itself
//! does not do that so far, so that what only `previous` carries over is lost at a reload. `tests/third-party` does both.
//!
//! # Parts
//!
//! [`pick`] has what most balancers are made of: a weighted draw in constant time, who takes which keys, smooth turns among
//! those that are tied. [`Time`] is a setting such as `"250ms"`.
//!
//! # Threads
//!
//! A balancer is shared by all threads, without a lock around it: any call may come from any thread, at the same time as any
//! other, `save` and the next `build` included. State is therefore atomic, or immutable and replaced as a whole. A lock on
//! the way of a request makes the threads of the proxy wait for each other. A trylist moves between threads but is never
//! used by two at once.
//!
//! A balancer does no I/O, starts no threads, and reads neither clock nor random source: [`NextCx`] has the time and random
//! bits. That is what makes it testable to the last choice.
//!
//! # Panics
//!
//! A panic is caught inside the module, in every call, and in the drop of trylist and balancer too. The host hears message
//! and place, counts the fault and serves the request by its own fallback; the trylist gets nothing more but its drop. A
//! panic in `build` refuses the configuration. Nothing is printed: a module has a standard library of its own, and its panic
//! hook is the SDK's. All that needs unwinding, and so a module does not compile under `panic = "abort"`. A module must not
//! panic while it unwinds from a panic, nor overflow its stack: these end the process, as everywhere in Rust.
//!
//! # Testing
//!
//! With the feature `testkit`, `cargo test` needs no proxy and no network. One line is the contract that every balancer must
//! keep, the rest is the module's own promise:
//!
//! ```
//! # use lb_api::{Balancer, BuildCx, BuildError, Next, NextCx, Request};
//! # struct Turns(usize, std::sync::atomic::AtomicUsize);
//! # impl Balancer for Turns {
//! #     const ID: &'static str = "turns";
//! #     const SUMMARY: &'static str = "";
//! #     type Settings = ();
//! #     type Trylist = usize;
//! #     fn build(cx: &BuildCx<'_, Self>, (): ()) -> Result<Self, BuildError> {
//! #         Ok(Self(cx.endpoints().len(), Default::default()))
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
//! Who promises more than every balancer must keep says so, and has it tried as well: `Contract`'s `skips_unavailable` (nothing
//! unavailable is answered), `weighted` (shares are those of weights) and `keyed` (a key keeps its endpoint).
//!
//! `trylist module test FILE.so` tries the same contract on the library as it was built, in whatever language, in a process of
//! its own, so that a crash, an abort or a call that does not return is a line of its report; and it looks at what nothing in
//! the module itself can see: memory that is not given back, and the time of a request's calls.
//!
//! A crate that other crates test against is `crate-type = ["cdylib", "rlib"]`. A module's root has one name in every module,
//! and an `rlib` brings it along: a program that links the `rlib`s of *two* modules does not link, unless its build script
//! prints `cargo::rustc-link-arg=-Wl,-z,muldefs`. Loading the `.so` files instead has no such limit.
//!
//! # In C, or any other language
//!
//! `include/lb_module.h` is the same ABI; a module in C exports one symbol and is loaded by the same line. Every struct, call
//! and constant is described there and, word for word nearly, in [`wire`]. `modules/c-example/c_example.c` is a whole module,
//! written to be copied. What the SDK does for Rust (settings into structs, wrapping of saved bytes, containing panics) is
//! the author's there.
//!
//! # How the ABI grows
//!
//! A module is accepted when its major number is the host's and its minor number is not above the host's, so that a module
//! once built loads in every later host of that major. A released field, call, constant or meaning never changes; additions go
//! to the end, are optional, and have a default. [`version`] keeps the history. A Rust module carries the fields of every
//! struct as its compiler laid them out, and the host compares them with its own before it calls anything.

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
