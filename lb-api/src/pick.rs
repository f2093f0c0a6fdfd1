//! Parts for balancers. The modules that come with `trylist` are made of them.
//!
//! - [`Draws`]: draws an endpoint by weight, in constant time ([`alias`] is the method alone);
//! - [`Places`]: finds the endpoint at a place, for hashes modulo the weights;
//! - [`Servers`]: which endpoint takes which keys, with slow start;
//! - [`Epoch`]: rebuilds a module's table when the cluster changes;
//! - [`Turns`] and [`Ties`]: smooth weighted round robin among some of the endpoints;
//! - [`save_numbers`] and [`restore_currents`]: turns that go on after a reload;
//! - [`large_vec`]: memory for large tables with random access;
//! - [`hash_name`]: the name of a server for hashing;
//! - [`left_over`]: the answer when no endpoint with a weight is left.
//!
//! None of them takes a lock that a request would wait for. None writes to shared memory when it only reads.

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

/// The answer when no endpoint with a weight is left: one of weight 0 that has room, else busy if all are full, else exhausted.
/// One pass over the endpoints.
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
