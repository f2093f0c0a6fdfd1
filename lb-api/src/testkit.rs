//! Everything that a balancer's tests need, with no `.so`, no network, no clock and no chance.
//!
//! A [`FakeCluster`] has endpoints whose state, weight and load the test sets, a clock that moves when told and random
//! numbers from a seed. A [`TestBalancer`] is built on it and driven through the same table of calls that a host uses;
//! it checks each answer as a host does. [`Contract`] is what every balancer must pass:
//!
//! ```
//! # use lb_api::{Balancer, BuildCx, BuildError, Next, NextCx, Request};
//! # struct First(usize);
//! # impl Balancer for First {
//! #     const ID: &'static str = "first";
//! #     const SUMMARY: &'static str = "the first that was not tried";
//! #     type Settings = ();
//! #     type Trylist = ();
//! #     fn build(cx: &BuildCx<'_, Self>, (): ()) -> Result<Self, BuildError> {
//! #         Ok(Self(cx.endpoints().len()))
//! #     }
//! #     fn load_balance(&self, _: &Request<'_>) {}
//! #     fn next(&self, _: &mut (), cx: &NextCx<'_>) -> Next {
//! #         (0..self.0).find(|idx| !cx.tried(*idx)).map_or(Next::Exhausted, Next::Endpoint)
//! #     }
//! # }
//! use lb_api::testkit::{Contract, FakeCluster, FakeRequest};
//!
//! Contract::<First>::new().check();
//!
//! let cluster = FakeCluster::equal(3);
//! let balancer = cluster.balancer::<First>().build().unwrap();
//! let mut trylist = balancer.load_balance(FakeRequest::get("/"));
//! assert_eq!(trylist.next(), Next::Endpoint(0));
//! trylist.fail();
//! assert_eq!(trylist.next(), Next::Endpoint(1));
//! trylist.serve();
//! ```

mod cluster;
mod contract;
mod build;
mod balancer;
mod trylist;
mod calls;
mod host;
mod memory;
pub mod keyed;

pub use balancer::TestBalancer;
pub use build::Builder;
pub use calls::{Table, running as running_calls};
pub use cluster::{FakeCluster, FakeRequest, SettingValue};
pub use contract::{Contract, Part};
pub use trylist::TestTrylist;
