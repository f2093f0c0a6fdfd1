//! What is asked of the system: files that nobody else can put in the way, and a log that never waits. Knows nothing of
//! proxies.

pub mod trusted_path;
pub mod log_queue;
