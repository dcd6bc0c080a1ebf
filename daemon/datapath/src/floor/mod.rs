//! The floor: flows out of the packets of a TUN device, on every platform.
//!
//! One task reads packets and hands each to its flow; whoever changes a flow (that task, the clock, or the user of its
//! stream) also sends what the flow then has to say. Nothing waits for the device: a packet that it does not take is
//! lost, as on any network.

mod associations;
mod clock;
mod connections;
mod datagrams;
mod device;
mod echoes;
mod flow;
mod knock;
mod shared;
mod stream;

use std::{future::poll_fn, io, sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::{sync::mpsc, task::JoinSet, time::sleep_until};
use tpx_core::syngate::{Counters, Limits};

use self::shared::Shared;
pub use self::{device::PacketDevice, stream::NetStream};
use crate::{Arrival, FlowSource};

/// Bounds and periods of a floor.
#[derive(Debug, Clone)]
pub struct FloorSettings {
    /// Of attempts to connect.
    pub limits: Limits,
    /// Most UDP associations, and most pairs that ping; the one that was longest idle makes room.
    pub associations: usize,
    /// Datagrams and echo requests that wait for whoever takes them; further ones are lost.
    pub queue: usize,
    /// Bytes of receive buffer of a connection: its window. Memory is used as far as it fills.
    pub receive: usize,
    /// Bytes of send buffer of a connection, the same way.
    pub send: usize,
    /// An application that is silent for this time is asked whether it is there.
    pub keep_alive: Duration,
    /// One that does not answer for this time is gone.
    pub patience: Duration,
}

impl Default for FloorSettings {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            associations: 4096,
            queue: 128,
            receive: 512 << 10,
            send: 512 << 10,
            keep_alive: Duration::from_secs(300),
            patience: Duration::from_secs(900),
        }
    }
}

/// The road that yields flows from packets.
pub struct Floor {
    arrivals: mpsc::Receiver<Arrival>,
    shared: Arc<Shared>,
    /// They end with the floor.
    _tasks: JoinSet<()>,
}

impl Floor {
    /// Starts a floor over `device`, whose packets have at most `mtu` bytes (1280 or more), on the current runtime. When
    /// it is dropped it ends, and all its connections are reset.
    #[must_use]
    pub fn new(device: impl PacketDevice, mtu: u16) -> Self {
        Self::with_settings(device, mtu, FloorSettings::default())
    }

    /// The same with other bounds and periods.
    #[must_use]
    pub fn with_settings(device: impl PacketDevice, mtu: u16, settings: FloorSettings) -> Self {
        // Every open attempt has room, so that none is turned away here.
        let (announce, arrivals) = mpsc::channel(settings.limits.open.max(1) + 2 * settings.associations);
        let shared = Arc::new(Shared::new(Box::new(device), mtu, settings));
        let mut tasks = JoinSet::new();
        tasks.spawn(read(Arc::clone(&shared), announce));
        tasks.spawn(tick(Arc::clone(&shared)));
        Self { arrivals, shared, _tasks: tasks }
    }

    /// A handle to look at the floor with, wherever the floor itself goes.
    #[must_use]
    pub fn gauge(&self) -> FloorGauge {
        FloorGauge(Arc::clone(&self.shared))
    }
}

#[async_trait]
impl FlowSource for Floor {
    async fn next(&mut self) -> Option<Arrival> {
        self.arrivals.recv().await
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        self.shared.abort_all();
    }
}

/// Looks at a [`Floor`].
#[derive(Clone)]
pub struct FloorGauge(Arc<Shared>);

/// How a floor is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FloorReading {
    /// Attempts that are held or released.
    pub open: usize,
    /// Refusals that are remembered.
    pub remembered: usize,
    /// Connections, also those that are closing.
    pub connections: usize,
    /// UDP associations.
    pub datagrams: usize,
    /// Pairs that ping.
    pub echoes: usize,
    /// How often things happened to attempts.
    pub counters: Counters,
}

impl FloorGauge {
    /// One look.
    #[must_use]
    pub fn read(&self) -> FloorReading {
        self.0.reading()
    }
}

/// Reads packets until the device fails.
async fn read(shared: Arc<Shared>, announce: mpsc::Sender<Arrival>) {
    let mut batch = shared::Batch::default();
    loop {
        let done: io::Result<()> = poll_fn(|cx| shared.poll_packets(cx, &mut batch, &announce)).await;
        match done {
            // Others have their turn between batches.
            Ok(()) => tokio::task::yield_now().await,
            Err(e) => return tracing::error!("the TUN device: {e}"),
        }
    }
}

/// Does what the clock asks for.
async fn tick(shared: Arc<Shared>) {
    loop {
        let due = shared.expire();
        let sleep = async {
            match due {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = sleep => {}
            () = shared.clock.earlier() => {}
        }
    }
}
