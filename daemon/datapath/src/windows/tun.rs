//! A wintun device as the floor's device.

use std::{
    io,
    sync::Arc,
    task::{Context, Poll},
};

use tun_rs::AsyncDevice;

use crate::{Offload, PacketDevice};

/// An open wintun device; it goes with the last copy and the host that made it.
#[derive(Clone)]
pub struct Tun(pub(super) Arc<AsyncDevice>);

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
