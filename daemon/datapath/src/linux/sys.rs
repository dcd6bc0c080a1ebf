//! System calls that no safe crate offers.

#[cfg(feature = "privileged")]
mod privileged;

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _, OwnedFd},
};

use aya::maps::{MapData, RingBuf};
use tokio::io::{Interest, unix::AsyncFd};

#[cfg(feature = "privileged")]
pub(super) use privileged::{Tun, netns_cookie, set_fast_open, tun_attach, tun_forget, tun_offload, watch_log};

/// Waits for records of a ring buffer on the current runtime.
///
/// # Errors
/// When the runtime cannot watch the file.
pub(super) fn watch(ring: RingBuf<MapData>) -> io::Result<AsyncFd<RingBuf<MapData>>> {
    // SAFETY: the ring buffer owns its file, always names the same one, and closes it only when the `AsyncFd` that holds
    // it is dropped.
    Ok(unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }?)
}

/// Waits until a file can be read, on the current runtime.
///
/// # Errors
/// When the runtime cannot watch the file.
pub(super) fn watch_file(file: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the file stays open and the same until the `AsyncFd` that owns it is dropped.
    Ok(unsafe { AsyncFd::register_with_interest(file, Interest::READABLE) }?)
}

/// Tells when a file has something out of the ordinary to say, as those of cgroups do when they change.
pub(super) fn watch_priority(file: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: as for `watch_file`.
    Ok(unsafe { AsyncFd::register_with_interest(file, Interest::PRIORITY) }?)
}

/// Bytes that were sent on a Unix socket and that the other side has not read (SIOCOUTQ, tcp(7)).
///
/// # Errors
/// What the kernel says.
pub(crate) fn unread(socket: impl AsFd) -> io::Result<u32> {
    let mut count: libc::c_int = 0;
    // SAFETY: this request writes one number, which outlives the call.
    match unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut count) } {
        0 => Ok(count.unsigned_abs()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Has large blocks of memory come from the kernel, untouched, and go back there when they are freed.
///
/// The C library does so only until the first such block is freed; then it keeps them, and zeroes them when they are
/// asked for again (`M_MMAP_THRESHOLD` of mallopt(3)). A connection of the floor has two, and uses a part of them: each
/// would cost a megabyte of writing and keep it for good.
pub fn return_large_blocks() {
    // Less than a buffer of the floor, more than what comes and goes all the time.
    #[cfg(target_env = "gnu")]
    const LARGE: libc::c_int = 384 << 10;
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes two numbers, and changes only where later blocks come from. A failure changes nothing.
    let _ = unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE) };
}
