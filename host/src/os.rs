//! Safe use of the system: files that nobody else can put in the way, and output that loses no line. Knows nothing of
//! proxies.

pub(crate) mod trusted_path;
pub mod log;
pub mod log_queue;
mod log_output;
mod local_time;
pub(crate) mod memory;
pub(crate) mod blocking_writer;
