//! Everything that touches the host's network: the [`Host`] seam for privileged changes and the [`FlowSource`] seam
//! for connections that enter the tunnel.

mod floor;
mod flow;
mod host;
#[cfg(target_os = "linux")]
pub mod linux;
pub mod macos;
mod maps;
mod netstack;
mod packet;
#[cfg(target_os = "linux")]
pub mod remote;
pub mod routed;
pub mod windows;

pub use floor::{Floor, FloorGauge, FloorReading, FloorSettings, NetStream, PacketDevice};
pub use flow::{
    Arrival, Caller, DatagramFlow, DatagramReturn, Echo, EchoFlow, EchoReturn, FlowSource, FlowStream, Knock,
};
pub use host::{Host, HostError};
pub use maps::{CounterRow, DatagramRow, HeldRow, MapsDump, NameServerRow, RuleRow, Tables, VirtualRow};
pub use netstack::Offload;
