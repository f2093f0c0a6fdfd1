//! One request: where it goes, what it carries, when it is tried again, and what is said of it.

mod answers;
mod explain;
mod failover;
mod forwarding;
mod headers;
mod keys;
mod observability;
mod retries;
