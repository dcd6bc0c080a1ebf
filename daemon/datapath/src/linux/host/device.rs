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

/// How long an owner that dies may take: the user daemon closes its files within a second after rootd is gone.
const RETRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(50);

/// Lives as long as any copy of its file.
#[derive(Debug)]
pub(super) struct Device {
    file: File,
    name: &'static str,
    /// Interface index.
    pub(super) index: u32,
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
        let file = made.map_err(|e| system(format!("create {name}{hint}"), e))?;
        let index = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)
            .and_then(|s| rustix::net::netdevice::name_to_index(s, name))
            .map_err(|e| system(format!("find {name}"), e.into()))?;
        Ok(Self { file, name, index })
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

fn open() -> io::Result<File> {
    // std adds O_CLOEXEC.
    OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")
}

fn exclusive(name: &str) -> io::Result<File> {
    let file = open()?;
    match sys::tun_attach(&file, name, true) {
        Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {
            let stale = open()?;
            sys::tun_attach(&stale, name, false)?;
            sys::tun_forget(&stale)?;
            drop(stale);
            sys::tun_attach(&file, name, true)?;
        }
        other => other?,
    }
    Ok(file)
}
