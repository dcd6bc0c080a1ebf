//! *internet*: a name server and a web server that stand for the rest of the world. Its namespace has no way on.

use std::process::Command;

use anyhow::Result;

use super::config::{Lab, NAME_SERVER, WEB_IP, WEB_IP6};
use super::supervise::{self, After, Daemon};
use super::{config, mounts};
use crate::run::feed;

/// Runs as the first process of *internet*.
pub(crate) fn init(lab: &Lab) -> Result<()> {
    rustix::system::sethostname(b"internet")?;
    mounts::private()?;
    mounts::run_lab()?;
    // The addresses answer on any link, so they can be there before the laptop's end is.
    let addresses = [NAME_SERVER, WEB_IP].map(|ip| format!("addr add {ip}/32 dev lo\n")).concat();
    let addresses6 = format!("addr add {WEB_IP6}/128 dev lo nodad\n");
    feed(Command::new("ip").args(["-batch", "-"]), &format!("link set lo up\n{addresses}{addresses6}"))?;
    supervise::mark("network")?;
    let mut command = Command::new(workload(lab));
    command
        .arg("internet")
        .arg("--dns")
        .arg(format!("{NAME_SERVER}:53"))
        .args(["--web", WEB_IP, "--web6", WEB_IP6])
        .arg("--log")
        .arg(lab.query_log());
    supervise::run(lab, vec![Daemon { name: "internet", command, after: vec![After::File(workload(lab))] }])
}

/// The lab's own copy of the workload program: the build may replace the original at any time.
pub(crate) fn workload(lab: &Lab) -> std::path::PathBuf {
    lab.state().join("bin").join(config::WORKLOAD)
}
