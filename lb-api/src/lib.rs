//! (to come)
pub mod balancer;
pub mod endpoint;
pub mod request;
pub mod trylist;
pub mod outcome;
mod settings;
pub mod error;
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
pub use trylist::{Next, NextCx, Rng};
