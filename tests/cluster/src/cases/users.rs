//! An ordinary user drives the privileged daemon; nobody else does.

use std::{
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::Case;
use crate::{
    laptop,
    process::{eventually, sh_as, wait},
    residue,
};

pub(super) const CASES: &[Case] = &[
    ("users::dev_with_the_privileged_daemon_as_a_service", service),
    ("users::dev_through_sudo", sudo),
    ("users::dev_after_roots_daemons_were_killed", after_a_crash),
];

/// rootd as a service manager runs it.
struct Service(Child);

impl Service {
    fn start(owner: &str) -> Result<Self> {
        let child = Command::new("tpx-rootd").args(["serve", "--owner", owner]).stdin(Stdio::null()).spawn()?;
        let mut service = Self(child);
        eventually(Duration::from_secs(5), || {
            ensure!(service.0.try_wait()?.is_none(), "tpx-rootd ended");
            Ok(std::os::unix::net::UnixStream::connect("/run/tpx/rootd.sock").map(drop)?)
        })?;
        Ok(service)
    }

    fn stop(mut self) -> Result<()> {
        kill_process(Pid::from_child(&self.0), Signal::TERM)?;
        let status = wait(&mut self.0, Duration::from_secs(5))?;
        ensure!(status.success(), "tpx-rootd ended with {status}");
        Ok(())
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn service() -> Result<()> {
    laptop::quit()?;
    residue::nothing_left()?;
    let service = Service::start("dev")?;
    sh_as("dev", "tpx connect -n emojivoto")?.success()?;
    let page = sh_as("dev", "curl -sS -m 10 http://web-app.emojivoto")?.success()?;
    ensure!(page.contains("Emoji Vote"), "{page}");
    // Without programs there are no rules to show.
    let rule = if laptop::is_tun() { "workstation" } else { "steer" };
    ensure!(sh_as("dev", "tpx maps dump")?.success()?.contains(rule));

    // Somebody else can neither drive nor read it.
    let other = sh_as("mallory", "tpx connect")?;
    ensure!(other.code() == 7 && other.stderr.contains("another user"), "{other:?}");
    let read = sh_as(
        "mallory",
        "cat </run/tpx/rootd.sock; python3 -c \"import socket; socket.socket(socket.AF_UNIX).connect('/run/tpx/rootd.sock')\"",
    )?;
    ensure!(read.code() != 0 && read.stderr.contains("PermissionError"), "{read:?}");
    let peek = sh_as("mallory", "ls /run/user/1000/tpx-userd; tpx status")?;
    ensure!(peek.code() == 3 && peek.stdout.trim().is_empty(), "{peek:?}");
    let quit = sh_as("mallory", "tpx quit")?;
    ensure!(quit.stdout.contains("Not connected"), "{quit:?}");
    ensure!(sh_as("dev", "tpx status")?.success()?.contains("connected"));

    sh_as("dev", "tpx quit")?.success()?;
    residue::no_datapath()?;
    service.stop()?;
    residue::nothing_left()
}

fn sudo() -> Result<()> {
    laptop::quit()?;
    residue::nothing_left()?;
    sh_as("dev", "tpx connect -n emojivoto")?.success()?;
    let page = sh_as("dev", "curl -sS -m 10 http://web-app")?.success()?;
    ensure!(page.contains("Emoji Vote"), "{page}");
    sh_as("dev", "tpx quit")?.success()?;
    // The daemon that sudo started leaves with the connection.
    residue::nothing_left()
}

/// What root's daemons leave behind when they are killed (the file of a socket) does not stand in another user's way.
fn after_a_crash() -> Result<()> {
    laptop::quit()?;
    laptop::connect()?;
    for (pid, _) in laptop::daemons()? {
        crate::process::sh(&format!("kill -9 {pid}"))?.success()?;
    }
    residue::nothing_left()?;
    sh_as("dev", "tpx connect -n emojivoto")?.success()?;
    let page = sh_as("dev", "curl -sS -m 10 http://web-app.emojivoto")?.success()?;
    ensure!(page.contains("Emoji Vote"), "{page}");
    sh_as("dev", "tpx quit")?.success()?;
    residue::nothing_left()
}
