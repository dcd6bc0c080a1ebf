//! The name server in place of the laptop's own: cluster names from the cluster, all others from where they came.
//!
//! The decisions are [`tpx_core::dns`]'s; this crate carries them over sockets. One [`BoundSockets`] stands for one
//! original name server, so that a question which is not the cluster's goes on to the very server it was meant for.
//!
//! Queries are read with `hickory-server`'s [`Request`], answers written with `hickory-proto`; `hickory-server`'s own
//! `Server` does not hold the sockets. Its `ResponseHandler` accepts only a `MessageResponse`, so a forwarded answer
//! would be taken apart and encoded anew (other compression, reserved header bits lost); it answers FORMERR by itself
//! to messages that it cannot parse but the original server could; and it starts a task for every datagram without a
//! bound. "Untouched" needs the bytes; hence the small loops in `udp` and `tcp`.
//!
//! [`Request`]: hickory_server::server::Request

mod asker;
mod cluster;
mod quick;
mod reply;
mod server;
mod tcp;
mod translate;
mod udp;
mod upstream;

pub use asker::Asker;
pub use cluster::{ClusterResolver, ResolveError};
pub use reply::Transport;
pub use server::{BoundSockets, Counts, Limits, Server, ServerHandle, StartError};
pub use translate::{NoTranslation, Translate};
pub use upstream::{Bypass, NoBypass};
