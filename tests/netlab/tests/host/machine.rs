//! Another machine: a network namespace at the other end of a veth pair.

use std::{
    fs::File,
    os::fd::AsRawFd as _,
    sync::mpsc,
    thread::{self, JoinHandle},
};

use anyhow::{Result, anyhow};
use nix::sched::{CloneFlags, unshare};
use rtnetlink::{LinkUnspec, LinkVeth};
use tokio::runtime::Runtime;
use tpx_netlab::World;

use crate::scopes::{address, with_netlink};

/// The laptop's end of the cable.
pub(crate) const DEVICE: &str = "lan0";
/// The neighbour's end.
pub(crate) const FAR: &str = "lan1";

/// A machine that does one thing.
pub(crate) struct Neighbour(JoinHandle<Result<()>>);

impl Neighbour {
    /// Lays the cable, gives both ends their addresses (IPv4 /24, IPv6 /120), and lets the neighbour `work`, with a
    /// runtime for what it wants to set up. The cable goes with the neighbour.
    pub(crate) fn start(
        world: &World,
        laptop: [&'static str; 2],
        neighbour: [&'static str; 2],
        work: impl FnOnce(&Runtime) -> Result<()> + Send + 'static,
    ) -> Result<Self> {
        let (tell, told) = mpsc::channel();
        let (go, wait) = mpsc::channel();
        let (say_up, up) = mpsc::channel();
        let thread = thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET)?;
            tell.send(File::open("/proc/thread-self/ns/net")?)?;
            wait.recv()?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(address(FAR, neighbour))?;
            say_up.send(())?;
            work(&runtime)
        });
        let netns = told.recv()?;
        world.block_on(async {
            with_netlink(async |handle| {
                let peer = LinkUnspec::new_with_name(FAR).setns_by_fd(netns.as_raw_fd()).build();
                handle.link().add(LinkVeth::new(DEVICE, FAR).build()).execute().await?;
                Ok(handle.link().change(peer).execute().await?)
            })
            .await?;
            address(DEVICE, laptop).await
        })?;
        go.send(())?;
        up.recv()?;
        Ok(Self(thread))
    }

    /// Waits until it has done its work.
    pub(crate) fn done(self) -> Result<()> {
        self.0.join().map_err(|_| anyhow!("the neighbour died"))?
    }
}
