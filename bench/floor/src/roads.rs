//! The roads that are compared.

use std::{
    io::{self, IoSlice},
    net::{IpAddr, Ipv4Addr},
    os::fd::OwnedFd,
    pin::Pin,
    task::{Context, Poll, ready},
};

use anyhow::{Context as _, Result};
use ipstack::{IpStack, IpStackConfig, IpStackStream};
use rtnetlink::{LinkUnspec, RouteMessageBuilder};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpListener,
};
use tpx_datapath::{Arrival, Floor, FlowSource as _, FlowStream, NetStream, PacketDevice as _, linux::Tun};

use crate::{
    serve::{PORTS, serve},
    shared, sys,
};

pub(crate) const LOOPBACK: &str = "loopback";
const MTU: u16 = 1500;

pub(crate) struct Road {
    pub(crate) name: &'static str,
    pub(crate) host: IpAddr,
}

/// Opens them all; loopback is the first.
pub(crate) async fn all() -> Result<Vec<Road>> {
    let (connection, netlink, _) = rtnetlink::new_connection()?;
    tokio::spawn(connection);
    netlink.link().change(LinkUnspec::new_with_index(1).up().build()).execute().await?;
    for port in PORTS {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let _ = stream.set_nodelay(true);
                tokio::spawn(serve(port, stream));
            }
        });
    }
    let mut roads = vec![Road { name: LOOPBACK, host: Ipv4Addr::LOCALHOST.into() }];
    let names = ["floor", "floor-plain", "shared", "ipstack"];
    for (number, name) in (1u8..).zip(names) {
        let file = sys::tun(name, name == "floor")?;
        let index = rustix::net::netdevice::name_to_index(
            rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?,
            name,
        )?;
        netlink.link().change(LinkUnspec::new_with_index(index).mtu(MTU.into()).up().build()).execute().await?;
        let own = Ipv4Addr::new(198, 18, number, 1);
        netlink.address().add(index, own.into(), 32).execute().await?;
        let to = Ipv4Addr::new(10, number, 0, 0);
        let route = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(to, 16).output_interface(index);
        netlink.route().add(route.pref_source(own).build()).execute().await?;
        match name {
            "floor" => drop(tokio::spawn(floor(Floor::new(Tun::new(file, true)?, MTU)))),
            "floor-plain" => drop(tokio::spawn(floor(Floor::new(Tun::new(file, false)?, MTU)))),
            "shared" => drop(std::thread::spawn(move || shared::run(&file))),
            _ => drop(tokio::spawn(stranger(file))),
        }
        roads.push(Road { name, host: Ipv4Addr::new(10, number, 0, 10).into() });
    }
    Ok(roads)
}

async fn floor(mut floor: Floor) {
    while let Some(arrival) = floor.next().await {
        if let Arrival::Connection(knock) = arrival {
            tokio::spawn(async move {
                let port = knock.destination().port();
                if let Ok(FlowStream::Netstack(stream)) = knock.release().await {
                    let _ = serve(port, OfFloor(stream)).await;
                }
            });
        }
    }
}

async fn stranger(file: OwnedFd) -> Result<()> {
    let mut config = IpStackConfig::default();
    config.mtu(MTU).context("MTU")?;
    let mut stack = IpStack::new(config, AsTun(Tun::new(file, false)?));
    loop {
        if let IpStackStream::Tcp(stream) = stack.accept().await? {
            let port = stream.peer_addr().port();
            tokio::spawn(serve(port, stream));
        }
    }
}

/// A stream of the floor with tokio's traits.
struct OfFloor(NetStream);

impl AsyncRead for OfFloor {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(cx))?;
            match self.0.try_read(into.initialize_unfilled()) {
                Ok(n) => {
                    into.advance(n);
                    return Poll::Ready(Ok(()));
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
    }
}

impl AsyncWrite for OfFloor {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(cx))?;
            match self.0.try_write_vectored(&[IoSlice::new(bytes)]) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.0.shutdown_write())
    }
}

/// A TUN device with tokio's traits: one packet at a time.
struct AsTun(Tun);

impl AsyncRead for AsTun {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let n = ready!(self.0.poll_recv(cx, into.initialize_unfilled()))?;
        into.advance(n);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for AsTun {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, packet: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(self.0.send(packet, None).map(|()| packet.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
