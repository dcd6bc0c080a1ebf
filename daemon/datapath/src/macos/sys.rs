//! What needs unsafe code: opening a device that came as a file.
#![expect(unsafe_code, reason = "tun-rs takes a file descriptor by number")]

use std::{
    io,
    os::fd::{IntoRawFd as _, OwnedFd},
};

use tun_rs::SyncDevice;

/// The utun device behind `file`.
pub(super) fn open(file: OwnedFd) -> io::Result<SyncDevice> {
    // SAFETY: the number is that of an open file, and its only owner gives it up.
    unsafe { SyncDevice::from_fd(file.into_raw_fd()) }
}
