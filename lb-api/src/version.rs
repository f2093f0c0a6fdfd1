//! The ABI's version, and the dated history of every change to it.
//!
//! A module is accepted when its major number equals the host's and its minor number is not above the host's. Within
//! a major number a released field, call, constant or meaning never changes; additions go to the end of their struct
//! or table, are optional, and have a default that the older side lives with. `tests/abi-1.N.txt` has every field and
//! constant of minor N, and a test holds the sources to all of them.
//!
//! | version | date | change |
//! |---|---|---|
//! | 1.0 | 2026-11-23 | first release |
//! | 1.0 | 2026-11-30 | stated, with no change for modules: bit 31 of [`Counters::max_in_flight`](crate::wire::Counters::max_in_flight) is the host's mark of an endpoint on trial; limits stay below 2^31 |
//! | 1.0 | 2026-11-30 | stated, with no change for modules: a slot of [`Counters`](crate::wire::Counters) belongs to its endpoint while an instance built with it lives, and means nothing afterwards; [`ClusterState`](crate::wire::ClusterState) is one instance's own; what instances share is keyed by id; `build` gets `previous` or `saved`, never both; endpoints that drain are never answered |

/// Modules and hosts of different majors do not understand each other.
pub const ABI_MAJOR: u32 = 1;

/// Rises with every addition; a host takes modules of its own minor and of every lower one.
pub const ABI_MINOR: u32 = 0;
