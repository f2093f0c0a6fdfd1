//! Scenarios.

mod module_loading;
