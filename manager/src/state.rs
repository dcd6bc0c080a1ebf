//! The manager's decisions, pure: no clock, no I/O.

pub mod facts;
pub mod idle;
pub mod sessions;
