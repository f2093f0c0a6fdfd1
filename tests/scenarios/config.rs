//! Files of configuration: the samples, the mail of 2003, and how mistakes are reported.

mod by_hand;
mod config_errors;
mod mail;
mod samples;
