//! (to come)
pub mod version;
pub mod wire;
