//! The host's own routes, followed as they change: a VPN may come and go while tpx is connected.

use std::{
    collections::{BTreeSet, HashMap},
    io,
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _};
use ipnet::IpNet;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    link::LinkAttribute,
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteType, RouteVia},
};
use rtnetlink::{
    Handle, MulticastGroup, RouteMessageBuilder, new_multicast_connection,
    packet_core::{NetlinkMessage, NetlinkPayload},
};
use tokio::{sync::watch, task::JoinSet};
use tpx_core::subnets::HostRoute;
use tpx_ebpf_abi::slot::Slot;

/// A VPN that comes up changes many routes at once; they are looked at together.
const SETTLE: Duration = Duration::from_millis(100);
/// The kernel's own table of local addresses (linux/rtnetlink.h).
const RT_TABLE_LOCAL: u32 = 255;

/// What the host's network looks like without tpx.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostNetwork {
    /// Unicast routes of all tables but the kernel's own and tpx's, default routes included, sorted.
    pub routes: Vec<HostRoute>,
    /// Routers that these routes go through, sorted.
    pub gateways: Vec<IpAddr>,
}

/// Follows the host's network. Needs no privilege. Ends when dropped.
#[derive(Debug)]
pub struct Monitor {
    network: watch::Receiver<Arc<HostNetwork>>,
    _tasks: JoinSet<()>,
}

impl Monitor {
    /// Reads everything once and begins to follow, in the network namespace of the calling thread.
    ///
    /// # Errors
    /// When netlink cannot be opened or the routes cannot be read.
    pub async fn start() -> io::Result<Self> {
        let groups = [MulticastGroup::Ipv4Route, MulticastGroup::Ipv6Route, MulticastGroup::Link].as_slice();
        let (connection, handle, mut changes) = new_multicast_connection(groups)?;
        let mut tasks = JoinSet::new();
        tasks.spawn(connection);
        // Those that come while we read make us read again.
        let (sender, network) = watch::channel(Arc::new(read(&handle).await?));
        tasks.spawn(async move {
            while let Some((message, _)) = changes.next().await {
                if !concerns_the_host(&message) {
                    continue;
                }
                tokio::time::sleep(SETTLE).await;
                while changes.next().now_or_never().flatten().is_some() {}
                match read(&handle).await {
                    Ok(now) => {
                        sender.send_if_modified(|known| {
                            let changed = **known != now;
                            *known = Arc::new(now);
                            changed
                        });
                    }
                    Err(e) => tracing::warn!("the host's routes cannot be read: {e}"),
                }
            }
        });
        Ok(Self { network, _tasks: tasks })
    }

    /// What it looks like now.
    #[must_use]
    pub fn now(&self) -> Arc<HostNetwork> {
        Arc::clone(&self.network.borrow())
    }

    /// Follows it; the sender goes when the monitor is dropped, or netlink ends.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Arc<HostNetwork>> {
        self.network.clone()
    }
}

/// Whether a message is about something else than the kernel's and tpx's own tables.
fn concerns_the_host(message: &NetlinkMessage<RouteNetlinkMessage>) -> bool {
    match &message.payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route)) => {
            is_foreign(table_of(route))
        }
        NetlinkPayload::InnerMessage(_) => true,
        _ => false,
    }
}

fn is_foreign(table: u32) -> bool {
    table != RT_TABLE_LOCAL && !Slot::owns_table(table)
}

async fn read(handle: &Handle) -> io::Result<HostNetwork> {
    let mut devices = HashMap::new();
    let mut links = Box::pin(handle.link().get().execute());
    while let Some(link) = links.try_next().await.map_err(io::Error::other)? {
        let name = |a: LinkAttribute| if let LinkAttribute::IfName(name) = a { Some(name) } else { None };
        if let Some(name) = link.attributes.into_iter().find_map(name) {
            devices.insert(link.header.index, name);
        }
    }
    let four = RouteMessageBuilder::<std::net::Ipv4Addr>::new().build();
    let six = RouteMessageBuilder::<std::net::Ipv6Addr>::new().build();
    let (mut routes, mut gateways) = (BTreeSet::new(), BTreeSet::new());
    for question in [four, six] {
        let mut answers = Box::pin(handle.route().get(question).execute());
        while let Some(route) = answers.try_next().await.map_err(io::Error::other)? {
            for route in host_routes(&route, &devices) {
                gateways.extend(route.gateway);
                routes.insert(route);
            }
        }
    }
    Ok(HostNetwork { routes: routes.into_iter().collect(), gateways: gateways.into_iter().collect() })
}

/// A route as the host's own, once for each of its next hops; none for those of tpx, of the kernel, and for those that
/// lead nowhere.
fn host_routes(route: &RouteMessage, devices: &HashMap<u32, String>) -> Vec<HostRoute> {
    let table = table_of(route);
    if route.header.kind != RouteType::Unicast || !is_foreign(table) {
        return Vec::new();
    }
    let prefix = route.header.destination_prefix_length;
    let to = route.attributes.iter().find_map(|a| match a {
        RouteAttribute::Destination(to) => address(to),
        _ => None,
    });
    let everywhere =
        if route.header.address_family == AddressFamily::Inet { IpAddr::from([0; 4]) } else { [0; 16].into() };
    let Ok(destination) = IpNet::new(to.unwrap_or(everywhere), prefix) else {
        return Vec::new();
    };
    let mut hops = vec![(oif(&route.attributes), gateway(&route.attributes))];
    for attribute in &route.attributes {
        if let RouteAttribute::MultiPath(paths) = attribute {
            hops.extend(paths.iter().map(|path| (Some(path.interface_index), gateway(&path.attributes))));
        }
    }
    let known = |(index, gateway): (Option<u32>, Option<IpAddr>)| {
        let device = devices.get(&index?)?.clone();
        let ours = Slot::all().any(|slot| slot.device() == device);
        (!ours).then_some(HostRoute { destination, device, gateway, table })
    };
    hops.into_iter().filter_map(known).collect()
}

fn table_of(route: &RouteMessage) -> u32 {
    let wide = |a: &RouteAttribute| if let RouteAttribute::Table(table) = a { Some(*table) } else { None };
    route.attributes.iter().find_map(wide).unwrap_or_else(|| route.header.table.into())
}

fn oif(attributes: &[RouteAttribute]) -> Option<u32> {
    attributes.iter().find_map(|a| if let RouteAttribute::Oif(index) = a { Some(*index) } else { None })
}

fn gateway(attributes: &[RouteAttribute]) -> Option<IpAddr> {
    attributes.iter().find_map(|a| match a {
        RouteAttribute::Gateway(gateway) => address(gateway),
        RouteAttribute::Via(RouteVia::Inet(ip)) => Some((*ip).into()),
        RouteAttribute::Via(RouteVia::Inet6(ip)) => Some((*ip).into()),
        _ => None,
    })
}

fn address(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some((*ip).into()),
        RouteAddress::Inet6(ip) => Some((*ip).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn devices() -> HashMap<u32, String> {
        [(2, "eth0".to_owned()), (7, "tpx0".to_owned()), (9, "wg0".to_owned())].into()
    }

    fn route(table: u32, index: u32, kind: RouteType) -> RouteMessage {
        RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(Ipv4Addr::new(10, 0, 0, 0), 8)
            .gateway(Ipv4Addr::new(192, 0, 2, 1))
            .output_interface(index)
            .table_id(table)
            .kind(kind)
            .build()
    }

    #[test]
    fn the_hosts_own_routes_only() {
        let seen = host_routes(&route(51820, 9, RouteType::Unicast), &devices());
        let expected = HostRoute {
            destination: "10.0.0.0/8".parse().unwrap(),
            device: "wg0".into(),
            gateway: Some("192.0.2.1".parse().unwrap()),
            table: 51820,
        };
        assert_eq!(seen, [expected]);
        assert!(host_routes(&route(Slot::FIRST.table(), 2, RouteType::Unicast), &devices()).is_empty(), "tpx's table");
        assert!(host_routes(&route(254, 7, RouteType::Unicast), &devices()).is_empty(), "tpx's device");
        assert!(host_routes(&route(RT_TABLE_LOCAL, 2, RouteType::Local), &devices()).is_empty(), "the kernel's");
        assert!(host_routes(&route(254, 2, RouteType::BlackHole), &devices()).is_empty(), "leads nowhere");
    }

    #[test]
    fn a_default_route_has_no_destination() {
        let default = RouteMessageBuilder::<Ipv4Addr>::new().output_interface(2).build();
        let seen = host_routes(&default, &devices());
        assert!(seen.len() == 1 && seen[0].is_default() && seen[0].table == 254, "{seen:?}");
    }
}
