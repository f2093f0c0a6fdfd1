//! Tools for authors of modules: `trylist module new` and `trylist module test`.

mod checks;
pub(crate) mod new;
pub(crate) mod test;
