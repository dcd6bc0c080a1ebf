//! What the cluster has, asked of its API server.

use std::{net::IpAddr, process::Command};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::process::run;

/// `kubectl` with JSON output.
pub(crate) fn kubectl(arguments: &[&str]) -> Result<Value> {
    let text = run(Command::new("kubectl").args(arguments).args(["-o", "json"]))?.success()?;
    serde_json::from_str(&text).context("kubectl printed no JSON")
}

/// The addresses of a Service: IPv4 first, then IPv6.
pub(crate) fn service(namespace: &str, name: &str) -> Result<Addresses> {
    let service = kubectl(&["-n", namespace, "get", "service", name])?;
    addresses(&service["spec"]["clusterIPs"], |entry| entry.as_str())
}

/// The addresses of the first pod with a label.
pub(crate) fn pod(namespace: &str, label: &str) -> Result<Addresses> {
    let pods = kubectl(&["-n", namespace, "get", "pods", "-l", label, "--field-selector=status.phase=Running"])?;
    addresses(&pods["items"][0]["status"]["podIPs"], |entry| entry["ip"].as_str())
}

/// One address of each family.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Addresses {
    /// IPv4.
    pub v4: IpAddr,
    /// IPv6.
    pub v6: IpAddr,
}

fn addresses(list: &Value, text: impl Fn(&Value) -> Option<&str>) -> Result<Addresses> {
    let all: Vec<IpAddr> =
        list.as_array().into_iter().flatten().filter_map(|entry| text(entry)?.parse().ok()).collect();
    let of = |v4: bool| all.iter().copied().find(|ip| ip.is_ipv4() == v4);
    let missing = || format!("the cluster is not dual-stack: {list}");
    Ok(Addresses { v4: of(true).with_context(missing)?, v6: of(false).with_context(missing)? })
}
