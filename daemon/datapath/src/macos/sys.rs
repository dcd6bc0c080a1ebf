//! What needs unsafe code: opening a device that came as a file.
#![expect(unsafe_code, reason = "tun-rs takes a file descriptor by number")]

use std::{
    io,
    os::fd::{IntoRawFd as _, OwnedFd},
};

/// The utun device behind `file`, for reading and writing packets without the protocol family in front of them. Needs a
/// tokio runtime.
///
/// # Errors
/// When the file cannot be made non-blocking.
pub fn open(file: OwnedFd) -> io::Result<tun_rs::AsyncDevice> {
    // SAFETY: the number is that of an open file, and its only owner gives it up.
    let device = unsafe { tun_rs::SyncDevice::from_fd(file.into_raw_fd()) }?;
    device.set_ignore_packet_info(true);
    tun_rs::AsyncDevice::new(device)
}
