//! One question to the kernel: which way would this address go?

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use netlink_packet_route::{
    RouteNetlinkMessage,
    route::{RouteAttribute, RouteFlags, RouteMessage, RouteType},
};
use rtnetlink::{
    RouteMessageBuilder,
    packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
    sys::{Socket, SocketAddr as Netlink, protocols::NETLINK_ROUTE},
};
use tpx_ebpf_abi::slot::Slot;

/// The device that a packet to `to` leaves by (RTM_GETROUTE, rtnetlink(7)); `None` when it stays on this host.
///
/// # Errors
/// No route; or one that leads into tpx.
pub(in crate::linux) fn device_to(to: SocketAddr) -> io::Result<Option<String>> {
    let device = match to {
        // One of several links with the same addresses, which the routes do not tell apart.
        SocketAddr::V6(to) if to.scope_id() != 0 => name(to.scope_id())?,
        _ => {
            let route = ask(to.ip(), RouteFlags::empty())?;
            if route.header.kind == RouteType::Local {
                return Ok(None);
            }
            out(&route)?
        }
    };
    if Slot::all().any(|slot| slot.device() == device) {
        return Err(io::Error::other(format!("{to} is steered into {device}")));
    }
    Ok(Some(device))
}

/// The device that has the address `own` of this host: a socket bound to it, and to no other one, reaches servers there.
///
/// # Errors
/// No device has it.
pub(in crate::linux) fn device_of(own: IpAddr) -> io::Result<String> {
    // The route in the table: what the kernel makes of it leads to the loopback device, whichever has the address.
    out(&ask(own, RouteFlags::FibMatch)?)
}

fn out(route: &RouteMessage) -> io::Result<String> {
    let index = |a: &RouteAttribute| if let RouteAttribute::Oif(index) = a { Some(*index) } else { None };
    let index = route.attributes.iter().find_map(index);
    name(index.ok_or_else(|| io::Error::from(io::ErrorKind::NetworkUnreachable))?)
}

fn name(index: u32) -> io::Result<String> {
    let any = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
    Ok(rustix::net::netdevice::index_to_name(any, index)?)
}

fn ask(to: IpAddr, flags: RouteFlags) -> io::Result<RouteMessage> {
    let mut question = match to {
        IpAddr::V4(ip) => RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(ip, 32).build(),
        IpAddr::V6(ip) => RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(ip, 128).build(),
    };
    question.header.flags = flags;
    let mut message = NetlinkMessage::from(RouteNetlinkMessage::GetRoute(question));
    message.header.flags = NLM_F_REQUEST;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    // The kernel answers within the call.
    let socket = Socket::new(NETLINK_ROUTE)?;
    socket.send_to(&bytes, &Netlink::new(0, 0), 0)?;
    let (answer, _) = socket.recv_from_full()?;
    match NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer).map_err(io::Error::other)?.payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route)) => Ok(route),
        NetlinkPayload::Error(e) => Err(e.to_io()),
        other => Err(io::Error::new(io::ErrorKind::InvalidData, format!("no route: {other:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_of_this_host_is_behind_the_device_that_has_its_address() {
        for own in ["127.0.0.53", "::1"].map(|ip| ip.parse::<IpAddr>().unwrap()) {
            assert_eq!(device_to(SocketAddr::new(own, 53)).unwrap(), None);
            assert_eq!(device_of(own).unwrap(), "lo");
        }
    }

    #[test]
    fn a_scope_names_its_device() {
        let any = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None).unwrap();
        let lo = rustix::net::netdevice::name_to_index(any, "lo").unwrap();
        let link_local = std::net::SocketAddrV6::new("fe80::53".parse().unwrap(), 53, 0, lo);
        assert_eq!(device_to(link_local.into()).unwrap().as_deref(), Some("lo"));
    }
}
