//! Tools for authors of modules: `trylist module new` and `trylist module test`.

mod checks;
mod process_state;
pub(crate) mod new;
pub(crate) mod test;
