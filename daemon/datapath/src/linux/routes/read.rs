//! Listing what the kernel has, by netlink (rtnetlink(7)). Anybody may.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use futures::TryStreamExt as _;
use ipnet::IpNet;
use netlink_packet_route::{
    address::AddressAttribute,
    link::LinkAttribute,
    route::{RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteNextHopFlags, RouteType, RouteVia},
};
use rtnetlink::{Handle, IpVersion, RouteMessageBuilder};
use tpx_core::subnets::HostRoute;

use super::{HostNetwork, Kind, Row, is_ours, rule::Rule};

/// Reads routes, rules and addresses of the calling thread's network namespace.
///
/// # Errors
/// What the kernel says.
pub async fn read() -> io::Result<HostNetwork> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    let connection = tokio::spawn(connection);
    let routes = list(&handle).await.map_err(io::Error::other);
    connection.abort();
    routes
}

pub(super) async fn list(handle: &Handle) -> Result<HostNetwork, rtnetlink::Error> {
    let devices = devices(handle).await?;
    let uid = rustix::process::geteuid().as_raw();
    let (mut rules, mut lines) = (Vec::new(), Vec::new());
    for ipv4 in [true, false] {
        let version = || if ipv4 { IpVersion::V4 } else { IpVersion::V6 };
        let listed = match handle.rule().get(version()).execute().try_collect::<Vec<_>>().await {
            Ok(listed) => listed,
            // A kernel without IPv6.
            Err(_) if !ipv4 => continue,
            Err(e) => return Err(e),
        };
        rules.extend(listed.iter().map(|rule| Rule::of(rule, ipv4, uid)));
        let any = if ipv4 {
            RouteMessageBuilder::<Ipv4Addr>::new().build()
        } else {
            RouteMessageBuilder::<Ipv6Addr>::new().build()
        };
        let routes: Vec<RouteMessage> = handle.route().get(any).execute().try_collect().await?;
        lines.extend(routes.iter().flat_map(|route| rows(route, ipv4, &devices)));
    }
    Ok(HostNetwork::of(rules, lines, addresses(handle, &devices).await?))
}

async fn devices(handle: &Handle) -> Result<BTreeMap<u32, String>, rtnetlink::Error> {
    let mut names = BTreeMap::new();
    let mut links = Box::pin(handle.link().get().execute());
    while let Some(link) = links.try_next().await? {
        let name = |a: &LinkAttribute| if let LinkAttribute::IfName(name) = a { Some(name.clone()) } else { None };
        names.extend(link.attributes.iter().find_map(name).map(|name| (link.header.index, name)));
    }
    Ok(names)
}

async fn addresses(handle: &Handle, devices: &BTreeMap<u32, String>) -> Result<BTreeSet<IpAddr>, rtnetlink::Error> {
    let mut own = BTreeSet::new();
    let mut listed = Box::pin(handle.address().get().execute());
    while let Some(message) = listed.try_next().await? {
        if devices.get(&message.header.index).is_some_and(|device| is_ours(device)) {
            continue;
        }
        // On a point-to-point link "address" is the other end, and "local" this one.
        let local = |a: &AddressAttribute| if let AddressAttribute::Local(ip) = a { Some(*ip) } else { None };
        let address = |a: &AddressAttribute| if let AddressAttribute::Address(ip) = a { Some(*ip) } else { None };
        let attributes = &message.attributes;
        own.extend(attributes.iter().find_map(local).or_else(|| attributes.iter().find_map(address)));
    }
    own.retain(|ip| !ip.is_loopback() && !is_link_local(*ip));
    Ok(own)
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

/// A line for each next hop.
fn rows(message: &RouteMessage, ipv4: bool, devices: &BTreeMap<u32, String>) -> Vec<Row> {
    // Not routes, but what the kernel has learnt about destinations (RTM_F_CLONED).
    if message.header.flags.contains(RouteFlags::Cloned) {
        return Vec::new();
    }
    let kind = match message.header.kind {
        RouteType::Unicast => Kind::Unicast,
        RouteType::Local | RouteType::Anycast | RouteType::Broadcast => Kind::Local,
        RouteType::BlackHole | RouteType::Unreachable | RouteType::Prohibit => Kind::Refusing,
        RouteType::Throw => Kind::Throw,
        _ => return Vec::new(),
    };
    let everything: IpAddr = if ipv4 { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let (mut destination, mut table, mut metric) = (everything, u32::from(message.header.table), 0);
    let mut hops: Vec<(u32, Option<IpAddr>)> = Vec::new();
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(to) => destination = address_of(to).unwrap_or(destination),
            RouteAttribute::Table(id) => table = *id,
            RouteAttribute::Priority(value) => metric = *value,
            RouteAttribute::MultiPath(ways) => {
                let alive = ways.iter().filter(|way| !way.flags.contains(RouteNextHopFlags::Dead));
                hops.extend(alive.map(|way| (way.interface_index, gateway(&way.attributes))));
            }
            RouteAttribute::Oif(index) => hops.push((*index, gateway(&message.attributes))),
            _ => {}
        }
    }
    let Ok(destination) = IpNet::new(destination, message.header.destination_prefix_length) else {
        return Vec::new();
    };
    if hops.is_empty() && kind != Kind::Unicast {
        hops.push((0, None));
    }
    let row = |(index, gateway): (u32, Option<IpAddr>)| {
        let device = devices.get(&index).cloned().unwrap_or_default();
        Row::new(HostRoute { destination, device, gateway, table }, metric, kind)
    };
    hops.into_iter().map(row).collect()
}

fn gateway(attributes: &[RouteAttribute]) -> Option<IpAddr> {
    attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(address) => address_of(address),
        RouteAttribute::Via(RouteVia::Inet(ip)) => Some((*ip).into()),
        RouteAttribute::Via(RouteVia::Inet6(ip)) => Some((*ip).into()),
        _ => None,
    })
}

fn address_of(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some((*ip).into()),
        RouteAddress::Inet6(ip) => Some((*ip).into()),
        _ => None,
    }
}
