//! The way from the user daemon to the privileged one: a Unix socket whose messages carry open files.
//!
//! Lengths and JSON, because both ends are ours and messages are few; what matters is that a parser in a process with
//! privilege is small and refuses early.

mod client;
pub mod protocol;
mod wire;

pub use client::{ConnectError, RemoteHost, enter, look};
pub use wire::{Receiver, Sender, WireError, split, split_without_files};

/// Where tpx-rootd listens unless it was told otherwise.
pub const SOCKET: &str = "/run/tpx/rootd.sock";
