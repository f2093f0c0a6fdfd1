//! The proxy under real traffic: one file for each subject, in folders named after the rooms of `host/src`.
#![allow(clippy::unwrap_used, reason = "a scenario that unwraps fails, as it should")]

mod process;
mod serve;
mod cluster;
mod module;
mod config;
mod http;
