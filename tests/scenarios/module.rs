//! Modules: what is loaded, how a faulty one is contained, and what their authors get.

mod abi;
mod apart;
mod author;
mod blame;
mod debug;
mod faults;
mod module_loading;
mod pace;
mod quarantine;
mod sandbox;
mod trylist_calls;
