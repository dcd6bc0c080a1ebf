//! What must not be reached: `--deny`, for what is there and for what comes later.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use rustix::io::Errno;
use serde_json::json;

use super::Case;
use crate::{
    cluster::{self, kubectl},
    laptop::{self, at},
    process::{eventually, sh},
};

pub(super) const CASES: &[Case] =
    &[("policy::a_denied_namespace_and_port_give_eacces", denied), ("policy::denied_as_if_nobody_listened", refused)];

fn ensure_errno(to: SocketAddr, errno: Errno) -> Result<()> {
    let saw = laptop::probe(to, &[])?;
    ensure!(saw.errno == Some(errno.raw_os_error()), "{to}: {saw:?}");
    Ok(())
}

/// Where no program sees `connect()`, the user daemon answers, and ICMP's "prohibited" is another errno in IPv4.
fn ensure_denied(to: SocketAddr) -> Result<()> {
    ensure_errno(to, if laptop::is_tun() && to.is_ipv4() { Errno::HOSTUNREACH } else { Errno::ACCESS })
}

fn denied() -> Result<()> {
    laptop::connect_with(&["--deny", "namespace:emojivoto", "--deny", "port:7"])?;
    let (web, echo) = (cluster::service("emojivoto", "web-app")?, cluster::service("default", "echo")?);
    // Names resolve; what they lead to is denied.
    let found = sh("getent ahosts web-app.emojivoto")?.success()?;
    ensure!(found.contains(&web.v4.to_string()), "{found}");
    for to in [at(web.v4, 80), at(web.v6, 80), at(echo.v4, 7), at(echo.v6, 7)] {
        ensure_denied(to)?;
    }
    for (program, ip, words) in [("ping -4", web.v4, "acket filtered"), ("ping -6", web.v6, "rohibited")] {
        let said = sh(&format!("{program} -c 2 -i 0.2 -W 5 {ip}"))?;
        // Where programs deny the connect() by which it looks for its source, no packet has to say so.
        let denied = if laptop::is_tun() {
            said.stdout.matches(words).count() == 2
        } else {
            said.stderr.contains("firewall rules") || said.stderr.contains("Permission denied")
        };
        ensure!(!said.status.success() && denied, "{said:?}");
    }
    for other in [at(echo.v4, 9), at(echo.v6, 9)] {
        ensure!(laptop::probe(other, &[])?.connected, "{other} is of another namespace");
    }

    let why = sh(&format!("tpx explain {}", web.v4))?.success()?;
    ensure!(why.contains("denied by --deny namespace:emojivoto"), "{why}");
    let status = laptop::status()?.context("not connected")?;
    ensure!(status["datapath"]["policy"]["deny"] == json!(["namespace:emojivoto", "port:7"]), "{status}");
    if !laptop::is_tun() {
        let maps = sh("tpx maps dump rules")?.success()?;
        ensure!(maps.contains(&format!("{}/32", web.v4)) && maps.contains("port 7"), "{maps}");
    }

    sh("kubectl -n emojivoto create service clusterip later --tcp=80:80")?.success()?;
    let later = denied_later();
    sh("kubectl -n emojivoto delete service later")?.success()?;
    later?;
    laptop::quit()
}

/// A service that was not there when the laptop connected.
fn denied_later() -> Result<()> {
    let service = kubectl(&["-n", "emojivoto", "get", "service", "later"])?;
    let address: IpAddr = service["spec"]["clusterIP"].as_str().context("no address")?.parse()?;
    eventually(Duration::from_secs(10), || {
        let why = sh(&format!("tpx explain {address}"))?.success()?;
        ensure!(why.contains("denied by --deny namespace:emojivoto"), "{why}");
        Ok(())
    })?;
    ensure_denied(at(address, 80))
}

fn refused() -> Result<()> {
    laptop::connect_with(&["--deny", "namespace:emojivoto", "--deny-with", "refused"])?;
    let web = cluster::service("emojivoto", "web-app")?;
    ensure_errno(at(web.v4, 80), Errno::CONNREFUSED)?;
    let echo = cluster::service("default", "echo")?;
    ensure!(laptop::probe(at(echo.v4, 7), &[])?.connected, "another namespace");
    laptop::quit()
}
