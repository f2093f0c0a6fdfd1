//! (to come)
pub mod export;
pub mod version;
pub mod wire;
