//! What the processes say and hand to each other.
//!
//! ```text
//!  an operator's command ─ control ─► supervisor ─ channel: messages, descriptors ─► worker
//!                                         ▲ what a generation learned ────────┘
//! ```

pub mod control;
pub mod channel;
pub mod sockets;
pub mod preflight;
pub mod privileges;
