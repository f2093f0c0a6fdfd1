//! What makes a module of a [`Balancer`](crate::Balancer), and what a host needs to open one.

mod root;

pub use crate::wire::{FieldLayout, compare, wire_fields};
pub use root::{AbiHeaderRef, C_SYMBOL, ROOT_SYMBOL, Root, RootRef, open_root};
