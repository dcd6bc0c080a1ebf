//! The kernel half of the express lane.
//!
//! A socket that connects into the cluster is marked ([`connect`]); a policy rule leads it to a table whose routes end
//! at the TUN device as local addresses; [`lookup`] hands its SYN to the daemon's listener; the listener's filter
//! ([`hold`]) keeps the SYN until the daemon knows how the cluster answers. Datagrams for the cluster are sent to addresses
//! that stand for their destinations, which lead to the daemon's socket ([`datagrams`]). Questions to name servers are led
//! to the daemon's own addresses and back ([`names`]). [`owner`] notes whose the connections are.
//! What must not be reached is refused before all that ([`policy`]). Containers have sockets elsewhere: their packets are
//! taken off their bridges ([`container`]).
//!
//! Compiled for the host this is an empty program, so that the workspace can be checked as a whole.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(not(target_arch = "bpf"), expect(dead_code, reason = "the programs exist in the kernel only"))]

mod connect;
mod container;
mod create;
mod datagrams;
mod hold;
mod lookup;
mod maps;
mod message;
mod names;
mod owner;
mod policy;
#[expect(unsafe_code, reason = "contexts and helpers of the kernel are raw pointers")]
mod sys;

#[cfg(not(target_arch = "bpf"))]
fn main() {}
