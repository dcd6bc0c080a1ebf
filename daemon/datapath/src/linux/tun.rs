//! A TUN device as the floor's device.

use std::{
    io::{self, IoSlice, IoSliceMut},
    os::fd::OwnedFd,
    task::{Context, Poll, ready},
};

use rustix::io::{Errno, readv, writev};
use tokio::io::unix::AsyncFd;

use super::sys;
use crate::{Offload, PacketDevice};

/// Bytes of `struct virtio_net_hdr`, unless TUNSETVNETHDRSZ says otherwise (linux/virtio_net.h).
const HEADER: usize = 10;
const NEEDS_CSUM: u8 = 1;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;

/// An open TUN device (`IFF_TUN`, `IFF_NO_PI`).
pub struct Tun {
    file: AsyncFd<OwnedFd>,
    header: bool,
}

impl Tun {
    /// Takes a file that is attached to a device and non-blocking. `vnet_hdr` says that it has `IFF_VNET_HDR`, with a
    /// header of the usual size and byte order; then segmentation and checksums are left to the kernel.
    ///
    /// # Errors
    /// When the runtime cannot watch the file.
    pub fn new(file: OwnedFd, vnet_hdr: bool) -> io::Result<Self> {
        Ok(Self { file: sys::watch_file(file)?, header: vnet_hdr })
    }
}

impl PacketDevice for Tun {
    fn poll_recv(&self, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.file.poll_read_ready(cx))?;
            let mut header = [0; HEADER];
            let skip = if self.header { HEADER } else { 0 };
            let mut parts = [IoSliceMut::new(&mut header[..skip]), IoSliceMut::new(into)];
            // What the header says is of no use here: large segments and unfinished checksums are welcome.
            match readv(self.file.get_ref(), &mut parts[usize::from(!self.header)..]) {
                Ok(len) => return Poll::Ready(Ok(len.saturating_sub(skip))),
                Err(Errno::AGAIN) => ready.clear_ready(),
                Err(Errno::INTR) => {}
                Err(e) => return Poll::Ready(Err(e.into())),
            }
        }
    }

    fn send(&self, packet: &[u8], offload: Option<&Offload>) -> io::Result<()> {
        let header = header(packet, offload);
        let parts = [IoSlice::new(&header), IoSlice::new(packet)];
        writev(self.file.get_ref(), &parts[usize::from(!self.header)..])?;
        Ok(())
    }

    fn offloads(&self) -> bool {
        self.header
    }
}

/// `struct virtio_net_hdr`, in the byte order of this machine.
fn header(packet: &[u8], offload: Option<&Offload>) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    if let Some(offload) = offload {
        header[0] = NEEDS_CSUM;
        if offload.segment > 0 {
            header[1] = if packet[0] >> 4 == 4 { GSO_TCPV4 } else { GSO_TCPV6 };
            header[2..4].copy_from_slice(&offload.headers.to_ne_bytes());
            header[4..6].copy_from_slice(&offload.segment.to_ne_bytes());
        }
        header[6..8].copy_from_slice(&offload.checksum_from.to_ne_bytes());
        header[8..10].copy_from_slice(&offload.checksum_at.to_ne_bytes());
    }
    header
}
