//! A utun device as the floor's device.

use std::{
    io,
    os::fd::OwnedFd,
    task::{Context, Poll},
};

use tun_rs::AsyncDevice;

use super::sys;
use crate::{Offload, PacketDevice};

/// An open utun device.
pub struct Tun(AsyncDevice);

impl Tun {
    /// Takes the file of a utun device. Needs a tokio runtime.
    ///
    /// # Errors
    /// When the runtime cannot watch the file.
    pub fn new(file: OwnedFd) -> io::Result<Self> {
        // Each packet has its protocol family in front; it is read and written there, not here.
        let device = sys::open(file)?;
        device.set_ignore_packet_info(true);
        AsyncDevice::new(device).map(Self)
    }
}

impl PacketDevice for Tun {
    fn poll_recv(&self, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        self.0.poll_recv(cx, into)
    }

    fn send(&self, packet: &[u8], _: Option<&Offload>) -> io::Result<()> {
        self.0.try_send(packet).map(drop)
    }

    fn offloads(&self) -> bool {
        false
    }
}
