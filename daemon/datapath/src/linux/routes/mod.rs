//! What the host would do without tpx: its routes and policy rules, read without privilege, and followed as they change.

mod ask;
mod monitor;

pub(super) use ask::device_to;
pub use monitor::{HostNetwork, Monitor};
