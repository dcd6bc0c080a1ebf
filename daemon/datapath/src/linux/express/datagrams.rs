//! Datagrams that the kernel steered here: each came to an address that carries the index of its destination.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd as _, OwnedFd},
    sync::Arc,
    time::Duration,
};

use aya::maps::{HashMap, Map, MapData, MapError};
use bytes::Bytes;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, SockaddrIn6, recvmsg, sendmsg};
use tokio::{io::Interest, net::UdpSocket, sync::mpsc, task::JoinSet, time::interval};
use tpx_core::dial::DialFailure;
use tpx_ebpf_abi::{Target, slot::Slot};

use super::{
    associations::{Arrived, Associations},
    raw::Raws,
};
use crate::{DatagramFlow, DatagramReturn, linux::translations::present, packet};

/// Most datagrams read in one go, so that other tasks have their turn.
const BATCH: usize = 64;
/// Longer than any UDP payload.
const BUFFER: usize = 65_536;
/// New associations that wait to be taken.
const ANNOUNCED: usize = 4096;
/// How often associations that ended are forgotten.
const SWEEP: Duration = Duration::from_secs(10);

/// Starts to receive; new associations arrive at the other end.
pub(super) fn start(
    sockets: [OwnedFd; 2],
    targets: &OwnedFd,
    raws: &Arc<Raws>,
    tasks: &mut JoinSet<()>,
) -> io::Result<mpsc::Receiver<DatagramFlow>> {
    let (announce, arrivals) = mpsc::channel(ANNOUNCED);
    for socket in sockets {
        let inlet = Inlet {
            targets: Targets::new(targets.try_clone()?)?,
            associations: Associations::default(),
            outlet: Arc::new(Outlet { socket: UdpSocket::from_std(socket.into())?, raws: Arc::clone(raws) }),
            announce: announce.clone(),
        };
        tasks.spawn(inlet.run());
    }
    Ok(arrivals)
}

/// One socket's incoming side.
struct Inlet {
    targets: Targets,
    associations: Associations,
    outlet: Arc<Outlet>,
    announce: mpsc::Sender<DatagramFlow>,
}

impl Inlet {
    async fn run(mut self) {
        let outlet = Arc::clone(&self.outlet);
        let mut buffer = vec![0; BUFFER];
        let mut sweep = interval(SWEEP);
        loop {
            let ready = tokio::select! {
                ready = outlet.socket.readable() => ready,
                _ = sweep.tick() => {
                    self.associations.sweep();
                    continue;
                }
            };
            if ready.is_err() {
                return;
            }
            for _ in 0..BATCH {
                match outlet.socket.try_io(Interest::READABLE, || receive(&outlet.socket, &mut buffer)) {
                    Ok(Some(arrived)) => self.handle(&arrived, &buffer[..arrived.length]),
                    Ok(None) => {}
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                    Err(e) => {
                        tracing::debug!("a datagram: {e}");
                        break;
                    }
                }
            }
            tokio::task::yield_now().await;
        }
    }

    fn handle(&mut self, arrived: &Datagram, payload: &[u8]) {
        let Some(index) = index(arrived.to) else {
            // Sent to the device's own address: nobody of ours does that.
            return;
        };
        let Some(destination) = self.targets.get(index) else {
            tracing::debug!("a datagram for the unknown index {index}");
            return;
        };
        match self.associations.handle_datagram(arrived.source, index, Bytes::copy_from_slice(payload)) {
            Arrived::Known => {}
            Arrived::Lost => tracing::trace!("a datagram for {destination} was lost"),
            Arrived::New(incoming) => {
                let source = arrived.source;
                let back = Back { outlet: Arc::clone(&self.outlet), source, stands_for: arrived.to };
                let flow = DatagramFlow { source, destination, incoming, back: Box::new(back) };
                if self.announce.try_send(flow).is_err() {
                    tracing::warn!("datagrams for {destination} were dropped: too many associations wait");
                }
            }
        }
    }
}

/// What indices stand for. They are never used for another destination, so what was read once stays true.
struct Targets {
    map: HashMap<MapData, u32, Target>,
    known: BTreeMap<u32, SocketAddr>,
}

impl Targets {
    fn new(file: OwnedFd) -> io::Result<Self> {
        let map = MapData::from_fd(file).and_then(Map::from_map_data).map_err(io::Error::other)?;
        Ok(Self { map: map.try_into().map_err(|e: MapError| io::Error::other(e))?, known: BTreeMap::new() })
    }

    fn get(&mut self, index: u32) -> Option<SocketAddr> {
        if let Some(known) = self.known.get(&index) {
            return Some(*known);
        }
        let address = present(self.map.get(&index, 0)).ok()??.address();
        self.known.insert(index, address);
        Some(address)
    }
}

/// The index that an address carries; whichever slot it is of, it came here.
fn index(ip: IpAddr) -> Option<u32> {
    Slot::all().find_map(|slot| match ip {
        IpAddr::V4(ip) => slot.decode4(ip.octets()),
        IpAddr::V6(ip) => slot.decode6(&ip.octets()),
    })
}

/// One socket's outgoing side.
struct Outlet {
    socket: UdpSocket,
    raws: Arc<Raws>,
}

/// The way back of one association.
struct Back {
    outlet: Arc<Outlet>,
    source: SocketAddr,
    /// The address that stands for the destination.
    stands_for: IpAddr,
}

impl Back {
    /// What the application's datagram looked like, for errors to quote.
    fn sent(&self) -> Option<Vec<u8>> {
        let port = self.outlet.socket.local_addr().ok()?.port();
        packet::datagram(self.source, SocketAddr::new(self.stands_for, port), &[])
    }

    fn tell(&self, error: Option<Vec<u8>>) {
        if let Some(error) = error {
            self.outlet.raws.emit(&error, self.source.ip());
        }
    }
}

impl DatagramReturn for Back {
    fn send(&self, payload: &[u8]) {
        if let Err(e) = reply(&self.outlet.socket, self.stands_for, self.source, payload) {
            tracing::debug!("a datagram back to {}: {e}", self.source);
        }
    }

    fn unreachable(&self, why: DialFailure) {
        self.tell(self.sent().and_then(|sent| packet::unreachable(&sent, why)));
    }

    fn too_big(&self, mtu: u32) {
        self.tell(self.sent().map(|sent| packet::too_big(&sent, mtu)));
    }
}

/// A datagram in the buffer.
struct Datagram {
    source: SocketAddr,
    to: IpAddr,
    length: usize,
}

/// Reads one; `None` for what does not say where it was sent.
fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<Option<Datagram>> {
    let mut control = nix::cmsg_space!(libc::in6_pktinfo);
    let mut parts = [io::IoSliceMut::new(buffer)];
    let message = recvmsg::<nix::sys::socket::SockaddrStorage>(
        socket.as_raw_fd(),
        &mut parts,
        Some(&mut control),
        MsgFlags::MSG_DONTWAIT,
    )?;
    let to = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::Ipv4PacketInfo(info) => Some(IpAddr::from(info.ipi_addr.s_addr.to_ne_bytes())),
        ControlMessageOwned::Ipv6PacketInfo(info) => Some(IpAddr::from(info.ipi6_addr.s6_addr)),
        _ => None,
    });
    let source = message.address.as_ref().and_then(|address| {
        let four = address.as_sockaddr_in().map(|a| SocketAddr::V4((*a).into()));
        four.or_else(|| address.as_sockaddr_in6().map(|a| SocketAddr::V6((*a).into())))
    });
    Ok(source.zip(to).map(|(source, to)| Datagram { source, to, length: message.bytes }))
}

/// Sends one from an address that no device has.
fn reply(socket: &UdpSocket, from: IpAddr, to: SocketAddr, payload: &[u8]) -> io::Result<()> {
    let (socket, payload, flags) = (socket.as_raw_fd(), [io::IoSlice::new(payload)], MsgFlags::MSG_DONTWAIT);
    match (from, to) {
        (IpAddr::V4(from), SocketAddr::V4(to)) => {
            let any = libc::in_addr { s_addr: 0 };
            let spec = libc::in_addr { s_addr: u32::from_ne_bytes(from.octets()) };
            let info = libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: spec, ipi_addr: any };
            sendmsg(socket, &payload, &[ControlMessage::Ipv4PacketInfo(&info)], flags, Some(&SockaddrIn::from(to)))
        }
        (IpAddr::V6(from), SocketAddr::V6(to)) => {
            let info = libc::in6_pktinfo { ipi6_addr: libc::in6_addr { s6_addr: from.octets() }, ipi6_ifindex: 0 };
            sendmsg(socket, &payload, &[ControlMessage::Ipv6PacketInfo(&info)], flags, Some(&SockaddrIn6::from(to)))
        }
        _ => return Err(io::ErrorKind::InvalidInput.into()),
    }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_of_all_slots() {
        for slot in Slot::all() {
            assert_eq!(index(slot.encode4(9).into()), Some(9));
            assert_eq!(index(slot.encode6(9).into()), Some(9));
            assert_eq!(index(slot.ipv4().into()), None);
            assert_eq!(index(slot.ipv6().into()), None);
        }
    }
}
