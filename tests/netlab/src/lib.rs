//! A place to try the datapath on the real kernel without touching the machine.
//!
//! A supervisor makes one child cgroup and starts the tests in it, in a network, mount and cgroup namespace of their
//! own. So even a plan for "the whole workstation" ends at that cgroup, and packets end in that namespace. After each
//! test the [`World`] is compared with what it was before; in the end the supervisor removes the cgroup, and fails if
//! something is left in it.

mod residue;
mod supervise;
mod world;

pub use residue::Residue;
pub use supervise::{Case, run};
pub use world::World;
