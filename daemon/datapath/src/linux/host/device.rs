//! The TUN device that everything hangs on.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{fd::OwnedFd, unix::fs::OpenOptionsExt as _},
    time::Duration,
};

use tpx_ebpf_abi::slot::Slot;

use super::system;
use crate::{HostError, linux::sys};

/// The device's MTU in bytes: what applications may expect of a network. Segments that are handed over whole (TSO) do
/// not care.
pub(super) const MTU: u32 = 1500;
/// Packets that wait for the user daemon. Enough for a burst of datagrams; TCP's are counted in segments of 64 KiB.
pub(super) const QUEUE: u32 = 2000;

/// How long an owner that dies may take: the user daemon closes its files within a second after rootd is gone.
const RETRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(50);

/// Lives as long as any copy of its file.
#[derive(Debug)]
pub(super) struct Device {
    file: File,
    pub(super) name: &'static str,
    /// Interface index.
    pub(super) index: u32,
    /// Whether packets begin with a `virtio_net_hdr`.
    pub(super) vnet_hdr: bool,
}

impl Device {
    /// Makes the slot's device. One that nobody has open (left behind as a persistent device) is replaced; one that is
    /// in use gets a moment to go away, since its owner may be dying.
    pub(super) async fn create(slot: Slot) -> Result<Self, HostError> {
        let name = slot.device();
        let busy = |e: &io::Error| e.raw_os_error() == Some(libc::EBUSY);
        let mut made = exclusive(name);
        for _ in 0..RETRIES {
            if !made.as_ref().is_err_and(busy) {
                break;
            }
            tokio::time::sleep(PAUSE).await;
            made = exclusive(name);
        }
        let hint = if made.as_ref().is_err_and(busy) { " (is another tpx running?)" } else { "" };
        let (file, vnet_hdr) = made.map_err(|e| system(format!("create {name}{hint}"), e))?;
        if vnet_hdr && let Err(e) = sys::tun_offload(&file) {
            // The header stays, and says that nothing was left undone.
            tracing::info!("{name} works without segmentation offload: {e}");
        }
        let index = index_of(name).map_err(|e| system(format!("find {name}"), e))?;
        Ok(Self { file, name, index, vnet_hdr })
    }

    /// Whether it still exists: anybody with the right may delete it, whoever has its file.
    pub(super) fn exists(&self) -> bool {
        index_of(self.name).is_ok_and(|index| index == self.index)
    }

    /// A copy of its file.
    pub(super) fn file(&self) -> io::Result<OwnedFd> {
        self.file.try_clone().map(OwnedFd::from)
    }

    /// Whether the host lets it have IPv6 addresses (net.ipv6.conf.*.disable_ipv6).
    pub(super) fn has_ipv6(&self) -> bool {
        fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{}/disable_ipv6", self.name))
            .is_ok_and(|flag| flag.trim() == "0")
    }
}

fn index_of(name: &str) -> io::Result<u32> {
    let any = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
    Ok(rustix::net::netdevice::name_to_index(any, name)?)
}

fn open() -> io::Result<File> {
    // std adds O_CLOEXEC.
    OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")
}

/// The new device, and whether its packets have the header.
fn exclusive(name: &str) -> io::Result<(File, bool)> {
    let file = open()?;
    match attach(&file, name) {
        Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {
            let stale = open()?;
            sys::tun_attach(&stale, name, sys::Tun { exclusive: false, vnet_hdr: false })?;
            sys::tun_forget(&stale)?;
            drop(stale);
            attach(&file, name).map(|vnet_hdr| (file, vnet_hdr))
        }
        other => other.map(|vnet_hdr| (file, vnet_hdr)),
    }
}

/// With the header, where the kernel knows it.
fn attach(file: &File, name: &str) -> io::Result<bool> {
    match sys::tun_attach(file, name, sys::Tun { exclusive: true, vnet_hdr: true }) {
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
            sys::tun_attach(file, name, sys::Tun { exclusive: true, vnet_hdr: false }).map(|()| false)
        }
        other => other.map(|()| true),
    }
}
