//! The laptop under test: connecting, leaving, probing.

use std::{
    net::{IpAddr, SocketAddr},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use serde_json::Value;

use crate::process::{Ended, run, sh};

/// What `tpx-probe` printed.
#[derive(Debug, Deserialize)]
pub(crate) struct Saw {
    /// Whether connect() succeeded.
    pub connected: bool,
    /// Its error number.
    pub errno: Option<i32>,
    /// How long it took.
    pub milliseconds: u64,
    /// What getpeername() said.
    pub peer: Option<SocketAddr>,
    /// The real user.
    pub uid: u32,
    /// The effective user.
    pub effective_uid: u32,
    /// What the server answered.
    pub body: Option<String>,
}

/// Whether this is the lab's laptop: these tests may run nowhere else.
pub(crate) fn check() -> Result<()> {
    ensure!(std::env::var_os("TPX_LAB").is_some(), "this is not the lab's laptop");
    ensure!(rustix::process::geteuid().is_root(), "root is needed");
    Ok(())
}

/// Makes sure that the laptop is connected, by root, under the default name.
pub(crate) fn connect() -> Result<Value> {
    if let Some(status) = status()? {
        return Ok(status);
    }
    run(Command::new("tpx").args(["connect", "-n", "emojivoto"]))?.success().context("tpx connect")?;
    status()?.context("connected, but there is no status")
}

/// Connects anew, with further flags; what `tpx connect` printed.
pub(crate) fn connect_with(flags: &[&str]) -> Result<String> {
    quit()?;
    run(Command::new("tpx").args(["connect", "-n", "emojivoto"]).args(flags))?
        .success()
        .with_context(|| format!("tpx connect {flags:?}"))
}

/// Whether this run of the tests is about the floor alone.
pub(crate) fn is_tun() -> bool {
    std::env::var("TPX_DATAPATH").is_ok_and(|road| road == "tun")
}

/// `tpx status` of root's connection; `None` when there is none.
pub(crate) fn status() -> Result<Option<Value>> {
    let ended = run(Command::new("tpx").args(["status", "--format", "json"]))?;
    match ended.code() {
        0 => Ok(Some(serde_json::from_str(&ended.stdout)?)),
        3 => Ok(None),
        _ => anyhow::bail!("tpx status: {ended:?}"),
    }
}

/// Leaves, wherever connected.
pub(crate) fn quit() -> Result<()> {
    run(Command::new("tpx").args(["quit", "--all"]))?.success().map(drop)
}

/// Runs the probe as root.
pub(crate) fn probe(address: SocketAddr, arguments: &[&str]) -> Result<Saw> {
    saw(&run(Command::new("tpx-probe").arg(address.to_string()).args(arguments))?)
}

/// Reads what a probe printed.
pub(crate) fn saw(ended: &Ended) -> Result<Saw> {
    ensure!(ended.status.success(), "the probe failed: {ended:?}");
    serde_json::from_str(&ended.stdout).with_context(|| format!("the probe said {ended:?}"))
}

/// Processes of tpx on this laptop: (pid, command line).
pub(crate) fn daemons() -> Result<Vec<(u32, String)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Ok(line) = std::fs::read(entry.path().join("cmdline")) else { continue };
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let program = line.split(' ').next().unwrap_or_default();
        let is = |name: &str| program == name || program.ends_with(&format!("/{name}"));
        if is("tpx-rootd") || (is("tpx") && line.contains(" userd")) {
            found.push((pid, line));
        }
    }
    Ok(found)
}

/// The pid of the one daemon whose command line contains `what`.
pub(crate) fn daemon(what: &str) -> Result<u32> {
    let found: Vec<_> = daemons()?.into_iter().filter(|(_, line)| line.contains(what)).collect();
    ensure!(found.len() == 1, "expected one {what}: {found:?}");
    Ok(found[0].0)
}

/// Ends whatever the tests left running. Reports nothing: the cases have done that.
pub(crate) fn tidy() {
    let _ = quit();
    for (pid, _) in daemons().unwrap_or_default() {
        if let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
    }
    std::thread::sleep(Duration::from_millis(200));
}

/// An address and a port.
pub(crate) fn at(ip: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(ip, port)
}

/// What `ip` prints, for comparing before and after.
pub(crate) fn network_state() -> Result<String> {
    sh("ip -o link; ip -o addr | sed 's/ *valid_lft.*//'; ip rule; ip -6 rule; ip route show table all; ip -6 route show table all; cat /etc/resolv.conf")?.success()
}
