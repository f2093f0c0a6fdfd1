//! Processes: start, reload, drain, crash, commands, and their surroundings.

mod commands;
pub(crate) mod control;
mod drain;
mod log;
mod reload;
mod soak;
mod storm;
mod supervision;
mod surroundings;
