//! kill -9 of either daemon, or both: nothing is left that has an effect, and the next connect works at once.

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::Case;
use crate::{cluster, laptop, laptop::at, process::sh, residue};

pub(super) const CASES: &[Case] = &[
    ("crash::the_privileged_daemon", rootd),
    ("crash::the_user_daemon", userd),
    ("crash::both", both),
    ("crash::leftovers_of_a_crash_are_swept", swept),
    ("crash::the_cluster_side_is_replaced", manager),
];

/// kill -9.
pub(super) fn kill(pid: u32) -> Result<()> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(|| anyhow::anyhow!("no pid"))?;
    Ok(kill_process(pid, Signal::KILL)?)
}

fn killing(which: &[&str]) -> Result<()> {
    laptop::quit()?;
    residue::nothing_left()?;
    laptop::connect()?;
    let service = cluster::service("emojivoto", "web-app")?;
    ensure!(laptop::probe(at(service.v4, 80), &[])?.connected);
    let pids = which.iter().map(|what| laptop::daemon(what)).collect::<Result<Vec<_>>>()?;
    for pid in pids {
        kill(pid)?;
    }
    residue::nothing_left()?;
    own_traffic()?;
    let saw = laptop::probe(at(service.v4, 80), &["--patience", "1000"])?;
    ensure!(!saw.connected, "the cluster is still reached: {saw:?}");
    laptop::connect()?;
    ensure!(laptop::probe(at(service.v4, 80), &[])?.connected, "not after connecting again");
    own_traffic()
}

/// The laptop's own life: names and pages of the internet.
pub(super) fn own_traffic() -> Result<()> {
    let page = sh("curl -sS -m 10 http://www.internet.test")?.success()?;
    ensure!(page.contains("The Internet"), "{page}");
    let refused = sh("curl -sS -m 5 http://203.0.113.80:81")?;
    ensure!(refused.code() == 7, "{refused:?}");
    Ok(())
}

fn rootd() -> Result<()> {
    killing(&["tpx-rootd"])
}

fn userd() -> Result<()> {
    killing(&[" userd"])
}

fn both() -> Result<()> {
    killing(&[" userd", "tpx-rootd"])
}

/// A kernel below 6.6 leaves the rule, and anybody may leave a device: the next start removes both.
fn swept() -> Result<()> {
    laptop::quit()?;
    residue::nothing_left()?;
    let before = laptop::network_state()?;
    sh("ip rule add pref 90 fwmark 0x70000000/0xfe000000 lookup 7071; ip tuntap add dev tpx0 mode tun")?.success()?;
    laptop::connect()?;
    let service = cluster::service("emojivoto", "web-app")?;
    ensure!(laptop::probe(at(service.v4, 80), &[])?.connected);
    laptop::quit()?;
    residue::nothing_left()?;
    let after = laptop::network_state()?;
    ensure!(before == after, "the network is not as before:\n{before}\n---\n{after}");
    Ok(())
}

/// The manager's pod goes; new connections wait for the next one and succeed. If it takes too long they fail, but never at once:
/// neither on the lanes that have just been lost, nor before the next manager has taken this laptop in.
fn manager() -> Result<()> {
    laptop::connect()?;
    sh("kubectl -n tpx-system delete pod -l app.kubernetes.io/name=traffic-manager --grace-period=1")?.success()?;
    let service = cluster::service("emojivoto", "web-app")?;
    let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while std::time::Instant::now() < until {
        let saw = laptop::probe(at(service.v4, 80), &["--patience", "20000"])?;
        ensure!(saw.connected || saw.milliseconds > 14_000, "a connection failed at once: {saw:?}");
    }
    crate::process::eventually(std::time::Duration::from_secs(60), || {
        ensure!(laptop::probe(at(service.v4, 80), &["--patience", "20000"])?.connected);
        let page = sh("curl -sS -m 10 http://web-app.emojivoto")?.success()?;
        ensure!(page.contains("Emoji Vote"), "{page}");
        let status = laptop::status()?.context("not connected")?;
        ensure!(status["state"] == "connected" && status["manager"]["problem"].is_null(), "{status}");
        Ok(())
    })
}
