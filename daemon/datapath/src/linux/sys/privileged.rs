//! System calls of the privileged half.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd as _},
};

use aya_log::EbpfLogger;
use tokio::io::{Interest, unix::AsyncFd};

/// asm-generic/socket.h; the libc crate does not have it.
const SO_NETNS_COOKIE: libc::c_int = 71;

/// How to attach to a TUN device.
#[derive(Debug, Clone, Copy)]
pub(in crate::linux) struct Tun {
    /// The device must not exist yet.
    pub(in crate::linux) exclusive: bool,
    /// Packets begin with a `virtio_net_hdr`.
    pub(in crate::linux) vnet_hdr: bool,
}

/// Turns an open `/dev/net/tun` into the layer 3 device `name` (TUNSETIFF, networking/tuntap.rst).
///
/// # Errors
/// What the kernel says; EBUSY when somebody else has the device.
pub(in crate::linux) fn tun_attach(tun: &File, name: &str, how: Tun) -> io::Result<()> {
    if name.len() >= libc::IFNAMSIZ {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: an all-zero `ifreq` is valid: integers, and a union of such.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    let flags = libc::IFF_TUN
        | libc::IFF_NO_PI
        | if how.exclusive { libc::IFF_TUN_EXCL } else { 0 }
        | if how.vnet_hdr { libc::IFF_VNET_HDR } else { 0 };
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: this request reads and writes one `ifreq`, which outlives the call.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })
}

/// Lets an attached device hand over TCP segments of up to 64 KiB, their checksums not computed (TUNSETOFFLOAD).
///
/// # Errors
/// What the kernel says.
pub(in crate::linux) fn tun_offload(tun: &File) -> io::Result<()> {
    let offload = libc::c_ulong::from(libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6);
    // SAFETY: this request takes a number.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETOFFLOAD, offload) })
}

/// Makes an attached device disappear with its last file (TUNSETPERSIST).
///
/// # Errors
/// What the kernel says.
pub(in crate::linux) fn tun_forget(tun: &File) -> io::Result<()> {
    // SAFETY: this request takes a number.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETPERSIST, 0) })
}

/// Cookie of the network namespace that a socket lives in (kernel 5.14).
///
/// # Errors
/// What the kernel says.
pub(in crate::linux) fn netns_cookie(socket: impl AsFd) -> io::Result<u64> {
    let (mut cookie, mut len) = (0u64, size_of::<u64>() as libc::socklen_t);
    // SAFETY: the kernel writes at most `len` bytes to `cookie`; both outlive the call.
    check(unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    })?;
    Ok(cookie)
}

/// Lets a listener take data with the SYN (RFC 7413); `pending` bounds such connections.
///
/// # Errors
/// What the kernel says.
pub(in crate::linux) fn set_fast_open(listener: impl AsFd, pending: i32) -> io::Result<()> {
    // SAFETY: the kernel reads one integer, which outlives the call.
    check(unsafe {
        libc::setsockopt(
            listener.as_fd().as_raw_fd(),
            libc::SOL_TCP,
            libc::TCP_FASTOPEN,
            (&raw const pending).cast(),
            size_of::<i32>() as libc::socklen_t,
        )
    })
}

/// Waits for the log of the kernel programs on the current runtime.
///
/// # Errors
/// When the runtime cannot watch the file.
pub(in crate::linux) fn watch_log<L>(log: EbpfLogger<L>) -> io::Result<AsyncFd<EbpfLogger<L>>> {
    // SAFETY: the logger owns its map's file and gives out the same number until it is dropped.
    unsafe { AsyncFd::register_with_interest(log, Interest::READABLE) }.map_err(io::Error::from)
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
