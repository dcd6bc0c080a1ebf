//! Another machine: a network namespace at the other end of a cable.

use std::{
    process::Command,
    sync::mpsc,
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::{
    sched::{CloneFlags, unshare},
    unistd::gettid,
};

type Job = Box<dyn FnOnce() + Send>;

/// Runs iproute2 in the calling thread's namespace; what it prints.
pub(crate) fn ip(words: &str) -> Result<String> {
    let out = Command::new("ip").args(words.split_whitespace()).output().context("iproute2 is missing")?;
    ensure!(out.status.success(), "ip {words}: {}", String::from_utf8_lossy(&out.stderr).trim());
    Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
}

/// Where a packet to `destination` would go: the first line of `ip route get`, or its complaint.
pub(crate) fn route_get(destination: &str) -> String {
    let text = ip(&format!("route get {destination}")).unwrap_or_else(|e| e.to_string());
    text.lines().next().unwrap_or_default().split(" uid ").next().unwrap_or_default().trim().to_owned()
}

/// A cable from the device `NAME0` here to `NAME1` in a namespace of its own. Cut when dropped.
pub(crate) struct Neighbour {
    here: String,
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Neighbour {
    /// Plugs it in: `here` and `there` are addresses with prefix lengths.
    pub(crate) fn plug(name: &str, here: &[&str], there: &[&str]) -> Result<Self> {
        let (jobs, work) = mpsc::channel::<Job>();
        let (tell, told) = mpsc::channel();
        let thread = thread::spawn(move || {
            let _ = tell.send(unshare(CloneFlags::CLONE_NEWNET).map(|()| gettid()));
            for job in work {
                job();
            }
        });
        let tid = told.recv()?.context("a namespace for the neighbour")?;
        let (near, far) = (format!("{name}0"), format!("{name}1"));
        let neighbour = Self { here: near.clone(), jobs: Some(jobs), thread: Some(thread) };
        ip(&format!("link add {near} type veth peer name {far} netns {tid}"))?;
        address(&near, here)?;
        let there: Vec<String> = there.iter().map(|a| (*a).to_owned()).collect();
        neighbour.run(move || {
            ip("link set lo up")?;
            address(&far, &there.iter().map(String::as_str).collect::<Vec<_>>())
        })?;
        Ok(neighbour)
    }

    /// Does something over there.
    pub(crate) fn run<T: Send + 'static>(&self, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
        let (tell, told) = mpsc::channel();
        let job = Box::new(move || drop(tell.send(work())));
        self.jobs.as_ref().and_then(|jobs| jobs.send(job).ok()).ok_or_else(|| anyhow!("the neighbour is gone"))?;
        told.recv().context("the neighbour's thread died")?
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        let _ = ip(&format!("link del {}", self.here));
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn address(device: &str, addresses: &[&str]) -> Result<()> {
    for address in addresses {
        // Nobody else has them: no waiting for duplicate address detection.
        let nodad = if address.contains(':') { "nodad" } else { "" };
        ip(&format!("address add {address} dev {device} {nodad}"))?;
    }
    ip(&format!("link set {device} up")).map(drop)
}
