//! Connects once and says what connect() said: the truth inside the cluster, for the laptop's to be compared with.

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;

/// `ADDRESS MILLISECONDS`: one JSON document with `connected`, `errno` and `milliseconds`.
pub(crate) fn dial(options: &[String]) -> Result<()> {
    let [address, patience] = options else { anyhow::bail!("dial ADDRESS MILLISECONDS") };
    let address: SocketAddr = address.parse().context("not an address and port")?;
    let patience = Duration::from_millis(patience.parse().context("not a number")?);
    let began = Instant::now();
    let result = TcpStream::connect_timeout(&address, patience);
    println!(
        "{}",
        json!({
            "connected": result.is_ok(),
            "errno": result.as_ref().err().and_then(std::io::Error::raw_os_error),
            "milliseconds": u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        })
    );
    Ok(())
}
