//! Parts that balancers are made of, each tried by those that come with `trylist`: take what fits.
//!
//! - [`Draws`]: an endpoint by weight, in constant time ([`alias`] is the method alone);
//! - [`Places`]: endpoints side by side on a line, and which one is at a place;
//! - [`Servers`]: who takes which keys, with slow start giving the same ones back;
//! - [`Turns`] and [`Ties`]: smooth weighted round robin among those that a rule leaves open.
//!
//! None of them takes a lock that a request would wait for, and none writes what threads share where it only looks.

pub mod alias;
mod draws;
mod places;
mod servers;
mod ties;
mod turns;

pub use draws::Draws;
pub use places::Places;
pub use servers::Servers;
pub use ties::{Load, Ties, draw};
pub use turns::Turns;
