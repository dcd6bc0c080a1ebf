//! What `tpx-load` prints, one JSON object per run.

use serde::{Deserialize, Serialize};

/// One-stream transfer.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bulk {
    /// Bytes that arrived, as far as they were timed.
    pub bytes: u64,
    /// How long these took, in seconds.
    pub seconds: f64,
    /// All bytes, with those that only warmed the connection up.
    pub total: u64,
}

impl Bulk {
    /// MiB per second.
    pub fn rate(&self) -> f64 {
        self.bytes as f64 / f64::from(1 << 20) / self.seconds
    }

    /// All of it, in GiB.
    pub fn gib(&self) -> f64 {
        self.total as f64 / f64::from(1 << 30)
    }
}

/// Round trips over one warm connection.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ping {
    /// How many were timed.
    pub count: usize,
    /// Their median, in milliseconds.
    pub p50: f64,
    /// 99 of 100 were no slower, in milliseconds.
    pub p99: f64,
    /// The transfer that ran beside them, MiB per second.
    pub beside: Option<f64>,
}

/// Connections, each with one byte sent and echoed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Connects {
    /// Connections that brought their byte back.
    pub count: usize,
    /// Connections that did not.
    pub failed: usize,
    /// What the first of those said.
    pub error: Option<String>,
    /// How long all of them took, in seconds.
    pub seconds: f64,
}

impl Connects {
    /// Good connections per second.
    pub fn rate(&self) -> f64 {
        self.count as f64 / self.seconds
    }
}

/// From nothing to the first byte of a page.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cold {
    /// Until the road was there, in seconds: `tpx connect` returned, or port-forward said that it listens.
    pub ready: f64,
    /// Until the page's first byte, in seconds.
    pub first_byte: f64,
}

/// Flows that were opened and stay open, each proved by a byte that came back.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Held {
    /// TCP connections.
    pub connections: usize,
    /// UDP associations.
    pub associations: usize,
    /// How long it took to open them, in seconds.
    pub seconds: f64,
}

impl Held {
    /// All of them.
    pub fn flows(&self) -> usize {
        self.connections + self.associations
    }
}

/// What connect() costs where nothing is steered.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Touched {
    /// Calls that were timed.
    pub count: usize,
    /// Mean time of one, in nanoseconds.
    pub nanoseconds: f64,
}

/// A cluster that was made large.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Populated {
    /// Namespaces that are there now.
    pub namespaces: usize,
    /// Services that are there now.
    pub services: usize,
    /// How long it took, in seconds.
    pub seconds: f64,
}

/// Datagrams that ask for an answer each: questions to a name server, or echoes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Asked {
    /// How many were answered.
    pub count: usize,
    /// How many were not.
    pub lost: usize,
    /// How long all of them took, in seconds.
    pub seconds: f64,
    /// Median time until the answer, in milliseconds.
    pub p50: f64,
    /// 99 of 100 were answered no later, in milliseconds.
    pub p99: f64,
}

impl Asked {
    /// Answers per second.
    pub fn rate(&self) -> f64 {
        self.count as f64 / self.seconds
    }
}
