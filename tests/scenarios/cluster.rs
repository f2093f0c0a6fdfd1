//! Which server a request may go to: health, ejection, limits, sessions, names, and the shares that result.

mod balancing;
mod discovery;
pub(crate) mod ejection;
mod every_module;
mod health;
mod live;
mod nginx;
mod sources;
