//! Carriers, lanes and streams: how bytes travel between laptop and cluster.
//!
//! - A [`carrier`] is one transport connection: a port-forward today, TLS or QUIC later.
//! - A [`lane`] speaks HTTP/2 over a carrier and opens streams; control goes over a lane of its own.
//! - A [`stream`] is one flow's road: HTTP/2 `CONNECT`, answered only when the far side's dial succeeded.
//! - [`datagrams`] and [`echoes`] are the same for UDP and ping, with datagrams as [`capsule`]s.
//! - [`relay`] moves bytes between a socket and a stream without changing what either end sees.
//! - [`server`] is the far end: streams and gRPC on one port.
#![deny(unsafe_code)]

mod body;
pub mod capsule;
pub mod carrier;
pub mod datagrams;
pub mod echoes;
mod exchange;
mod heartbeat;
pub mod lane;
#[cfg(feature = "port-forward")]
pub mod portforward;
pub mod proxy_status;
pub mod relay;
mod report;
pub mod server;
mod settings;
pub mod stream;
mod target;
mod tcp;
mod traffic;

pub use self::{
    datagrams::Datagrams,
    echoes::{Echo, Echoes},
    settings::Settings,
    stream::Stream,
    target::{Target, TargetError},
    traffic::Traffic,
};
