//! One question to the kernel: which way would this address go?

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use netlink_packet_route::{
    RouteNetlinkMessage,
    route::{RouteAttribute, RouteMessage, RouteType},
};
use rtnetlink::{
    RouteMessageBuilder,
    packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
    sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE},
};
use tpx_ebpf_abi::slot::Slot;

/// The device that a packet to `to` leaves by (RTM_GETROUTE, rtnetlink(7)); `None` when it stays on this host.
///
/// # Errors
/// No route; or one that leads into tpx.
pub(in crate::linux) fn device_to(to: IpAddr) -> io::Result<Option<String>> {
    let route = ask(to)?;
    if route.header.kind == RouteType::Local {
        return Ok(None);
    }
    let unreachable = || io::Error::from(io::ErrorKind::NetworkUnreachable);
    let out = |a: &RouteAttribute| if let RouteAttribute::Oif(index) = a { Some(*index) } else { None };
    let index = route.attributes.iter().find_map(out).ok_or_else(unreachable)?;
    let any = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
    let device = rustix::net::netdevice::index_to_name(any, index)?;
    if Slot::all().any(|slot| slot.device() == device) {
        return Err(io::Error::other(format!("{to} is steered into {device}")));
    }
    Ok(Some(device))
}

fn ask(to: IpAddr) -> io::Result<RouteMessage> {
    let question = match to {
        IpAddr::V4(ip) => RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(ip, 32).build(),
        IpAddr::V6(ip) => RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(ip, 128).build(),
    };
    let mut message = NetlinkMessage::from(RouteNetlinkMessage::GetRoute(question));
    message.header.flags = NLM_F_REQUEST;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    // The kernel answers within the call.
    let socket = Socket::new(NETLINK_ROUTE)?;
    socket.send_to(&bytes, &SocketAddr::new(0, 0), 0)?;
    let (answer, _) = socket.recv_from_full()?;
    match NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer).map_err(io::Error::other)?.payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route)) => Ok(route),
        NetlinkPayload::Error(e) => Err(e.to_io()),
        other => Err(io::Error::new(io::ErrorKind::InvalidData, format!("no route: {other:?}"))),
    }
}
