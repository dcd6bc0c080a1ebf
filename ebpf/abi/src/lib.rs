//! What the kernel programs and the daemons have to agree on: keys and values of maps, their names, socket marks, the
//! addresses of a datapath, and the steering decisions themselves.
//!
//! Everything is plain data without padding; addresses and ports are byte arrays in network order, so that no side
//! depends on the other's endianness or alignment.
#![no_std]

mod container;
mod counter;
mod decide;
mod flow;
pub mod maps;
pub mod mark;
mod owner;
mod policy;
mod rule;
pub mod slot;
mod syn;
#[cfg(feature = "user")]
#[expect(unsafe_code, reason = "aya::Pod is an unsafe marker trait")]
mod sys;
mod target;

pub use container::{Station, may_send4, may_send6, ports4, ports6, takes};
pub use counter::Counter;
pub use decide::{DNS_PORT, Kind, Road, decide, is_connection_request, is_v4_mapped, v4_in, v4_mapped};
pub use flow::{Flow, Verdict};
pub use owner::{Owner, Pids};
pub use policy::Policy;
pub use rule::{Action, Rule};
pub use syn::{HeldSyn, IP_HEADER_MAX, SYN_BARE, SYN_MAX, SynRecord, TCP_HEADER_MAX};
pub use target::{BLOCK4, BLOCK6, INDEX_END, Target};
