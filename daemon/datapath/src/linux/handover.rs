//! What the privileged half hands to the user daemon: open files, which need no privilege to use.

use std::{
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
    path::PathBuf,
};

use serde::{Deserialize, Serialize};

/// The open files of an applied plan. All are close-on-exec; sockets are non-blocking.
#[derive(Debug)]
pub struct Handover {
    /// Number of the datapath's slot.
    pub slot: u32,
    /// The cgroup directory whose processes see the cluster; `None` when all do.
    pub scope: Option<PathBuf>,
    /// The TUN device. Device, addresses and routes last as long as any copy of this file.
    pub device: OwnedFd,
    /// Whether each packet on the device begins with a `virtio_net_hdr` (10 bytes, IFF_VNET_HDR of
    /// networking/tuntap.rst) and may be a segment of up to 64 KiB whose checksum is not computed yet.
    pub vnet_hdr: bool,
    /// The device's MTU in bytes.
    pub mtu: u32,
    /// The express lane's files; `None` when the floor carries everything.
    pub express: Option<ExpressFiles>,
    /// One for each name server of the plan that can be steered, in the plan's order (IPv6 ones are missing on a host
    /// without IPv6).
    pub dns: Vec<DnsSockets>,
    /// Name servers of the plan whose port 53 is not answered by tpx: without the express lane those on the host's own
    /// addresses, since nothing comes before the kernel's own local table.
    pub unsteered_name_servers: Vec<IpAddr>,
    /// Whether systemd-resolved was told the plan's resolver. False too when the plan has none.
    pub resolved: bool,
}

/// The files of the express lane.
#[derive(Debug)]
pub struct ExpressFiles {
    /// Transparent TCP listeners for IPv4 and IPv6, listening, with the filter that holds SYNs. Accepted sockets
    /// inherit the filter: detach it (SO_DETACH_FILTER) at accept. On a kernel without IPv6 the second one is another
    /// IPv4 socket that nothing ever reaches.
    pub listeners: [OwnedFd; 2],
    /// Raw sockets for IPv4 and IPv6 that send whole packets, which the filter lets pass. The same holds without IPv6.
    pub raws: [OwnedFd; 2],
    /// Ring buffer of [`tpx_ebpf_abi::SynRecord`].
    pub syns: OwnedFd,
    /// Hash map [`tpx_ebpf_abi::Flow`] to [`tpx_ebpf_abi::Verdict`].
    pub held: OwnedFd,
    /// LRU hash map [`tpx_ebpf_abi::Flow`] to [`tpx_ebpf_abi::Owner`].
    pub owners: OwnedFd,
    /// LRU hash map: socket cookie (`u64`) to `u8`. Sockets in it are never touched by any program.
    pub bypass: OwnedFd,
    /// UDP sockets for IPv4 and IPv6, bound to the same port. A datagram's own destination (IP_PKTINFO) carries the
    /// index of what it was meant for; answers go out under that address. Without IPv6 nothing reaches the second one.
    pub datagrams: [OwnedFd; 2],
    /// Hash map `u32` to [`tpx_ebpf_abi::Target`]: what an index stands for.
    pub targets: OwnedFd,
    /// Hash map `[u8; 4]` to `[u8; 4]`: virtual address to the one behind it, for [`Translations`](super::Translations).
    pub virtual4: OwnedFd,
    /// The same for IPv6, `[u8; 16]` to `[u8; 16]`.
    pub virtual6: OwnedFd,
    /// Hash map `[u8; 4]` to `[u8; 4]`: address to the virtual one before it.
    pub real4: OwnedFd,
    /// The same for IPv6, `[u8; 16]` to `[u8; 16]`.
    pub real6: OwnedFd,
    /// Per-CPU array of `u64`, indexed by [`tpx_ebpf_abi::Counter`].
    pub counters: OwnedFd,
}

/// Sockets that answer for one name server.
#[derive(Debug)]
pub struct DnsSockets {
    /// The server that applications believe they ask.
    pub name_server: IpAddr,
    /// Where the questions arrive: tpx's own address on the express lane, else the server's, port 53.
    pub address: SocketAddr,
    /// Bound UDP socket.
    pub udp: OwnedFd,
    /// Listening TCP socket.
    pub tcp: OwnedFd,
}

/// The part of a [`Handover`] that is data; it travels in the message whose ancillary data carries the files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layout {
    /// [`Handover::slot`].
    pub slot: u32,
    /// [`Handover::scope`].
    pub scope: Option<PathBuf>,
    /// [`Handover::vnet_hdr`].
    pub vnet_hdr: bool,
    /// [`Handover::mtu`].
    pub mtu: u32,
    /// Whether the express lane's files are there.
    pub express: bool,
    /// Name server and own address of each [`DnsSockets`].
    pub dns: Vec<(IpAddr, SocketAddr)>,
    /// [`Handover::unsteered_name_servers`].
    pub unsteered_name_servers: Vec<IpAddr>,
    /// [`Handover::resolved`].
    pub resolved: bool,
}

/// The files do not fit the layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{got} files arrived where {expected} belong")]
pub struct WrongCount {
    /// How many files the layout asks for.
    pub expected: usize,
    /// How many came.
    pub got: usize,
}

impl Layout {
    /// How many files belong to it.
    #[must_use]
    pub fn files(&self) -> usize {
        1 + if self.express { ExpressFiles::COUNT } else { 0 } + 2 * self.dns.len()
    }
}

impl ExpressFiles {
    /// How many there are.
    pub const COUNT: usize = 16;

    fn into_fds(self) -> [OwnedFd; Self::COUNT] {
        let [listener4, listener6] = self.listeners;
        let [raw4, raw6] = self.raws;
        let [datagrams4, datagrams6] = self.datagrams;
        [
            listener4,
            listener6,
            raw4,
            raw6,
            self.syns,
            self.held,
            self.owners,
            self.bypass,
            datagrams4,
            datagrams6,
            self.targets,
            self.virtual4,
            self.virtual6,
            self.real4,
            self.real6,
            self.counters,
        ]
    }

    /// In the order of [`into_fds`](Self::into_fds).
    fn take<E>(mut next: impl FnMut() -> Result<OwnedFd, E>) -> Result<Self, E> {
        Ok(Self {
            listeners: [next()?, next()?],
            raws: [next()?, next()?],
            syns: next()?,
            held: next()?,
            owners: next()?,
            bypass: next()?,
            datagrams: [next()?, next()?],
            targets: next()?,
            virtual4: next()?,
            virtual6: next()?,
            real4: next()?,
            real6: next()?,
            counters: next()?,
        })
    }
}

impl Handover {
    /// Takes it apart for the way through a Unix socket.
    #[must_use]
    pub fn into_fds(self) -> (Layout, Vec<OwnedFd>) {
        let mut layout = Layout {
            slot: self.slot,
            scope: self.scope,
            vnet_hdr: self.vnet_hdr,
            mtu: self.mtu,
            express: self.express.is_some(),
            dns: Vec::with_capacity(self.dns.len()),
            unsteered_name_servers: self.unsteered_name_servers,
            resolved: self.resolved,
        };
        let mut fds = vec![self.device];
        fds.extend(self.express.into_iter().flat_map(ExpressFiles::into_fds));
        for d in self.dns {
            layout.dns.push((d.name_server, d.address));
            fds.extend([d.udp, d.tcp]);
        }
        (layout, fds)
    }

    /// Puts it together again.
    ///
    /// # Errors
    /// [`WrongCount`] when the number of files is not [`Layout::files`]; all of them are closed then.
    pub fn from_fds(layout: Layout, fds: Vec<OwnedFd>) -> Result<Self, WrongCount> {
        let wrong = WrongCount { expected: layout.files(), got: fds.len() };
        if wrong.got != wrong.expected {
            return Err(wrong);
        }
        let mut fds = fds.into_iter();
        let mut next = || fds.next().ok_or(wrong);
        Ok(Self {
            slot: layout.slot,
            scope: layout.scope,
            device: next()?,
            vnet_hdr: layout.vnet_hdr,
            mtu: layout.mtu,
            express: layout.express.then(|| ExpressFiles::take(&mut next)).transpose()?,
            dns: layout
                .dns
                .into_iter()
                .map(|(name_server, address)| Ok(DnsSockets { name_server, address, udp: next()?, tcp: next()? }))
                .collect::<Result<_, WrongCount>>()?,
            unsteered_name_servers: layout.unsteered_name_servers,
            resolved: layout.resolved,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::fd::AsRawFd as _};

    use super::*;

    fn layout(express: bool) -> Layout {
        Layout {
            slot: 3,
            scope: Some("/sys/fs/cgroup/x".into()),
            vnet_hdr: true,
            mtu: 1500,
            express,
            dns: vec![("192.0.2.53".parse().unwrap(), "246.246.255.53:53".parse().unwrap())],
            unsteered_name_servers: vec!["127.0.0.53".parse().unwrap()],
            resolved: false,
        }
    }

    fn files(n: usize) -> Vec<OwnedFd> {
        (0..n).map(|_| File::open("/dev/null").unwrap().into()).collect()
    }

    #[test]
    fn the_way_there_and_back_keeps_every_file_in_its_place() {
        for layout in [layout(true), layout(false)] {
            let fds = files(layout.files());
            let numbers: Vec<_> = fds.iter().map(|f| f.as_raw_fd()).collect();
            let (again, fds) = Handover::from_fds(layout.clone(), fds).unwrap().into_fds();
            assert_eq!(again, layout);
            assert_eq!(fds.iter().map(|f| f.as_raw_fd()).collect::<Vec<_>>(), numbers);
        }
    }

    #[test]
    fn a_wrong_number_of_files_is_refused() {
        for (express, expected) in [(false, 3), (true, 3 + ExpressFiles::COUNT)] {
            for n in (0..40).filter(|n| *n != expected) {
                let e = Handover::from_fds(layout(express), files(n)).unwrap_err();
                assert_eq!(e, WrongCount { expected, got: n });
            }
        }
    }
}
