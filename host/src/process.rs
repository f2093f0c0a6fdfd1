//! Messages, sockets and commands between the processes.
//!
//! ```text
//!  an operator's command ─ control ─► supervisor ─ channel: messages, descriptors ─► worker
//!                                         ▲ what a generation learned ────────┘
//! ```

pub mod control;
pub(crate) mod channel;
pub mod sockets;
pub mod preflight;
pub mod privileges;
pub mod sandbox;
pub mod strangers;
pub(crate) mod two_files;
