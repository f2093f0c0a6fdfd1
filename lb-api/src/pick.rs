//! Parts that balancers are made of, each tried by those that come with `trylist`: take what fits.
//!
//! - [`Draws`]: an endpoint by weight, in constant time ([`alias`] is the method alone);
//! - [`Places`]: endpoints side by side on a line, and which one is at a place;
//! - [`Servers`]: who takes which keys, with slow start giving the same ones back;
//! - [`Epoch`]: when a table of one's own is to be made anew, and who makes it;
//! - [`Turns`] and [`Ties`]: smooth weighted round robin among those that a rule leaves open;
//! - [`save_numbers`] and [`restore_currents`]: turns that go on over a reload where they were;
//! - [`large_vec`]: memory of large tables that are looked at here and there;
//! - [`hash_name`]: what a server is called where its name is hashed;
//! - [`left_over`]: what to answer where nothing with a weight is left.
//!
//! None of them takes a lock that a request would wait for, and none writes what threads share where it only looks.

use std::net::SocketAddr;

use crate::{Endpoint, Live, Next, NextCx};

pub mod alias;
mod draws;
mod epoch;
mod large;
mod numbers;
mod places;
mod servers;
mod ties;
mod turns;

pub use draws::Draws;
pub use epoch::Epoch;
pub use large::large_vec;
pub use numbers::{restore_currents, restore_numbers, save_numbers};
pub use places::Places;
pub use servers::Servers;
pub use ties::{Load, Ties, draw};
pub use turns::Turns;

/// The name of a server that hashing modules use: the pair `hash_key` of its metadata, so that it can keep its keys when
/// its address changes; else `address:port`, which is Envoy's, or `host:port` where the address is not fixed; a Unix socket
/// by its path.
pub fn hash_name(endpoint: Endpoint<'_>) -> String {
    let given = endpoint.metadata().find(|(name, _)| *name == "hash_key");
    match (given, endpoint.address()) {
        (Some((_, given)), _) => given.to_owned(),
        // One of a name's addresses has it in common with the others.
        (None, Some(address)) => SocketAddr::new(address.ip(), endpoint.port()).to_string(),
        (None, None) if endpoint.port() == 0 => endpoint.name().to_owned(),
        (None, None) => format!("{}:{}", endpoint.name(), endpoint.port()),
    }
}

/// What to answer where none of those with a weight is left: one of weight 0 that has room, else that all are full, else that
/// none is available. One pass over the endpoints.
#[cold]
pub fn left_over(endpoints: &[Live], cx: &NextCx<'_>) -> Next {
    let left = (0..endpoints.len()).filter(|idx| !cx.tried(*idx));
    let mut available = left.filter(|idx| endpoints[*idx].is_available()).peekable();
    match (available.peek().copied(), available.find(|idx| !endpoints[*idx].is_full())) {
        (_, Some(endpoint)) => Next::Endpoint(endpoint),
        (Some(_), None) => Next::Busy,
        (None, None) => Next::Exhausted,
    }
}
