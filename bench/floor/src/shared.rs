//! smoltcp as its examples use it: one interface, all sockets in one set, packets of the device's size.

use std::{collections::HashMap, os::fd::OwnedFd, time::Duration};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::{read, write},
};
use smoltcp::{
    iface::{Config, Interface, SocketHandle, SocketSet},
    phy::{Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken},
    socket::tcp::{Socket, SocketBuffer},
    time::Instant,
    wire::{HardwareAddress, IpCidr, Ipv4Address},
};

use crate::serve::{ECHO, PORTS, SINK, SOURCE};

const MTU: usize = 1500;
/// As the floor has them.
const BUFFER: usize = 512 << 10;

struct Port<'a> {
    file: &'a OwnedFd,
    buffer: Vec<u8>,
}

struct Packet<'a>(&'a [u8]);
struct Out<'a>(&'a OwnedFd);

impl RxToken for Packet<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

impl TxToken for Out<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut packet = [0; MTU];
        let result = f(&mut packet[..len]);
        let _ = write(self.0, &packet[..len]);
        result
    }
}

impl Device for Port<'_> {
    type RxToken<'t>
        = Packet<'t>
    where
        Self: 't;
    type TxToken<'t>
        = Out<'t>
    where
        Self: 't;

    fn receive(&mut self, _: Instant) -> Option<(Packet<'_>, Out<'_>)> {
        let n = read(self.file, &mut self.buffer).ok()?;
        Some((Packet(&self.buffer[..n]), Out(self.file)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Out<'_>> {
        Some(Out(self.file))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut checksum = ChecksumCapabilities::ignored();
        (checksum.ipv4, checksum.tcp) = (Checksum::Tx, Checksum::Tx);
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = MTU;
        capabilities.checksum = checksum;
        capabilities
    }
}

/// Serves the ports until the process ends.
pub(crate) fn run(file: &OwnedFd) {
    let start = std::time::Instant::now();
    let now = || Instant::from_micros(start.elapsed().as_micros() as i64);
    let mut port = Port { file, buffer: vec![0; MTU] };
    let mut interface = Interface::new(Config::new(HardwareAddress::Ip), &mut port, now());
    interface.update_ip_addrs(|all| {
        let _ = all.push(IpCidr::new(Ipv4Address::new(10, 3, 0, 10).into(), 0));
    });
    let mut sockets = SocketSet::new(Vec::new());
    let mut listening: HashMap<u16, SocketHandle> = PORTS.iter().map(|p| (*p, listen(&mut sockets, *p))).collect();
    let mut open: HashMap<SocketHandle, (u16, (u64, u64))> = HashMap::new();
    let mut bytes = vec![0; 128 << 10];
    loop {
        interface.poll(now(), &mut port, &mut sockets);
        for (port, handle) in &mut listening {
            if sockets.get::<Socket>(*handle).is_active() {
                open.insert(*handle, (*port, (0, 0)));
                *handle = listen(&mut sockets, *port);
            }
        }
        let mut moved = false;
        open.retain(|handle, (port, part)| {
            let socket = sockets.get_mut::<Socket>(*handle);
            moved |= step(socket, *port, part, &mut bytes);
            let keep = socket.is_active();
            if !keep {
                sockets.remove(*handle);
            }
            keep
        });
        if !moved {
            let delay = interface.poll_delay(now(), &sockets).map_or(Duration::from_secs(1), Into::into);
            let wait = Timespec { tv_sec: delay.as_secs() as i64, tv_nsec: delay.subsec_nanos().into() };
            let _ = poll(&mut [PollFd::new(file, PollFlags::IN)], Some(&wait));
        }
    }
}

fn listen(sockets: &mut SocketSet<'_>, port: u16) -> SocketHandle {
    let mut socket = Socket::new(SocketBuffer::new(vec![0; BUFFER]), SocketBuffer::new(vec![0; BUFFER]));
    socket.set_nagle_enabled(false);
    socket.set_ack_delay(None);
    // The port is not 0, and the socket is new.
    let _ = socket.listen(port);
    sockets.add(socket)
}

/// What the server of that port does with its connection; whether it did anything. `part` is what is left of a part, and
/// the whole part.
fn step(socket: &mut Socket<'_>, port: u16, part: &mut (u64, u64), bytes: &mut [u8]) -> bool {
    if port == SOURCE {
        return socket.can_send() && socket.send_slice(bytes).is_ok_and(|n| n > 0);
    }
    if !socket.may_recv() && socket.may_send() {
        socket.close();
        return true;
    }
    if port == SINK && part.0 == 0 {
        let mut length = [0; 8];
        if socket.recv_queue() < length.len() || socket.recv_slice(&mut length).is_err() {
            return false;
        }
        let length = u64::from_be_bytes(length);
        *part = (length, length);
        return true;
    }
    let most = match port {
        ECHO => socket.send_capacity() - socket.send_queue(),
        _ => part.0 as usize,
    };
    let most = most.min(bytes.len());
    let n = socket.recv_slice(&mut bytes[..most]).unwrap_or(0);
    // What is sent fits; the connection may be gone meanwhile.
    if port == ECHO {
        let _ = socket.send_slice(&bytes[..n]);
    } else if n > 0 {
        part.0 -= n as u64;
        if part.0 == 0 {
            let _ = socket.send_slice(&part.1.to_be_bytes());
        }
    }
    n > 0
}
