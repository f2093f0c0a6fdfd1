//! The process that starts workers, watches them and replaces them.

pub mod watchdog;
