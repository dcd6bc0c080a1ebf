//! A VPN, as far as the laptop can tell: a device whose far end is a company that answers at every address of
//! 10.0.0.0/8 and at the web server's address on *internet*.

use std::{
    net::IpAddr,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::process::{eventually, sh};

/// The device on the laptop.
pub(crate) const DEVICE: &str = "vpn0";
/// A host behind the VPN.
pub(crate) const HOST: &str = "10.1.2.3";
/// What its page is called.
pub(crate) const TITLE: &str = "<title>Corporate</title>";

const COMPANY: &str = "company";

/// A VPN that is up. Goes when dropped.
pub(crate) struct Vpn {
    server: Child,
}

impl Vpn {
    /// The seed's example: a private route for 10.0.0.0/8 in the main table.
    pub(crate) fn private() -> Result<Self> {
        let vpn = Self::device()?;
        sh(&format!("ip route add 10.0.0.0/8 via 10.8.0.1 dev {DEVICE}"))?.success()?;
        Ok(vpn)
    }

    /// As wg-quick does it for 0.0.0.0/0: a table of its own with the default route, reached by all that is not marked.
    pub(crate) fn wg_quick() -> Result<Self> {
        let vpn = Self::device()?;
        for line in [
            format!("ip route add default dev {DEVICE} table 51820"),
            "ip rule add not fwmark 0xca6c table 51820".to_owned(),
            "ip rule add table main suppress_prefixlength 0".to_owned(),
        ] {
            sh(&line)?.success()?;
        }
        Ok(vpn)
    }

    /// Owns the default route of the main table.
    pub(crate) fn default_route() -> Result<Self> {
        let vpn = Self::device()?;
        // As OpenVPN does: two halves, more specific than the default route itself.
        for half in ["0.0.0.0/1", "128.0.0.0/1"] {
            sh(&format!("ip route add {half} via 10.8.0.1 dev {DEVICE}"))?.success()?;
        }
        Ok(vpn)
    }

    /// The device and the company behind it, without routes.
    fn device() -> Result<Self> {
        remove();
        for line in [
            format!("ip netns add {COMPANY}"),
            format!("ip link add {DEVICE} type veth peer name far0 netns {COMPANY}"),
            format!("ip addr add 10.8.0.2/24 dev {DEVICE}"),
            format!("ip link set {DEVICE} up"),
            format!("ip -n {COMPANY} link set lo up"),
            format!("ip -n {COMPANY} addr add 10.8.0.1/24 dev far0"),
            format!("ip -n {COMPANY} link set far0 up"),
            format!("ip -n {COMPANY} route add local 10.0.0.0/8 dev lo"),
            format!("ip -n {COMPANY} route add local 203.0.113.0/24 dev lo"),
            // More specific than the local route: the way back to the laptop.
            format!("ip -n {COMPANY} route add 10.8.0.2/32 dev far0 table local"),
            format!("ip -n {COMPANY} route add 198.51.100.0/24 via 10.8.0.2"),
        ] {
            sh(&line)?.success().context(line)?;
        }
        let server = Command::new("ip")
            .args(["netns", "exec", COMPANY, "tpx-workload", "web", "80", "Corporate"])
            .stdin(Stdio::null())
            .spawn()
            .context("the company's web server")?;
        let vpn = Self { server };
        eventually(Duration::from_secs(5), || {
            sh(&format!("ip netns exec {COMPANY} curl -sS -m 2 -o /dev/null http://{HOST}"))?.success()
        })?;
        Ok(vpn)
    }
}

impl Drop for Vpn {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
        remove();
    }
}

fn remove() {
    for line in [
        format!("ip link del {DEVICE} 2>/dev/null"),
        format!("ip netns del {COMPANY} 2>/dev/null"),
        "ip rule del not fwmark 0xca6c table 51820 2>/dev/null".to_owned(),
        "ip rule del table main suppress_prefixlength 0 2>/dev/null".to_owned(),
    ] {
        let _ = sh(&line);
    }
}

/// What the host would do with packets to `ip`: the line of `ip route get`, without what differs from call to call.
pub(crate) fn route_to(ip: impl Into<IpAddr>) -> Result<String> {
    let ip = ip.into();
    Ok(sh(&format!("ip -o route get {ip}"))?.success()?.trim().to_owned())
}
