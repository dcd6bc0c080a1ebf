//! Addresses, policy rules and routes, by netlink (rtnetlink(7)).

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use futures::{StreamExt as _, TryStreamExt as _};
use ipnet::IpNet;
use netlink_packet_route::{
    AddressFamily,
    address::AddressHeaderFlags,
    route::{RouteMessage, RouteScope, RouteType},
    rule::RuleMessage,
};
use rtnetlink::{Handle, IpVersion, LinkUnspec, RouteMessageBuilder, packet_core::ErrorMessage};
use tokio::task::JoinHandle;
use tpx_ebpf_abi::slot::Slot;

use super::{
    desired::Table,
    device::{Device, MTU, QUEUE},
    failed,
    rules::{Rule, is_ours},
    system,
};
use crate::HostError;

/// How long a new IPv6 address may take to become usable; usually under a millisecond.
const LOCAL_RETRIES: u32 = 2500;
const LOCAL_PAUSE: Duration = Duration::from_millis(2);
/// The kernel's own table of local addresses (linux/rtnetlink.h).
const RT_TABLE_LOCAL: u32 = 255;

/// A netlink connection into the network namespace of the thread that opened it.
pub(super) struct Network {
    handle: Handle,
    connection: JoinHandle<()>,
    /// While mending: what was missing. What is to be added may be there already.
    missing: Option<AtomicU32>,
}

impl Drop for Network {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Network {
    pub(super) fn open() -> Result<Self, HostError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(|e| system("open netlink", e))?;
        Ok(Self { handle, connection: tokio::spawn(connection), missing: None })
    }

    /// The same, to add only what is not there.
    pub(super) fn mending() -> Result<Self, HostError> {
        let mut network = Self::open()?;
        network.missing = Some(AtomicU32::new(0));
        Ok(network)
    }

    /// How much was not there.
    pub(super) fn missing(&self) -> u32 {
        self.missing.as_ref().map_or(0, |missing| missing.load(Ordering::Relaxed))
    }

    /// Removes rules that an earlier run left behind. Its routes and device went with its files.
    pub(super) async fn sweep(&self, slot: Slot) -> Result<(), HostError> {
        for version in [IpVersion::V4, IpVersion::V6] {
            let family = if matches!(version, IpVersion::V4) { AddressFamily::Inet } else { AddressFamily::Inet6 };
            let rules: Vec<RuleMessage> = match self.handle.rule().get(version).execute().try_collect().await {
                Ok(rules) => rules,
                // A kernel without IPv6 has no such rules.
                Err(rtnetlink::Error::NetlinkError(e))
                    if family == AddressFamily::Inet6 && is(&e, libc::EAFNOSUPPORT) =>
                {
                    continue;
                }
                Err(e) => return Err(failed("list the policy rules", &e)),
            };
            for rule in rules.into_iter().filter(|r| r.header.family == family && is_ours(r, slot)) {
                let gone = self.handle.rule().del(rule).execute().await;
                tolerate(gone, libc::ENOENT).map_err(|e| failed("remove a policy rule", &e))?;
            }
        }
        Ok(())
    }

    /// Gives the device its own addresses and its measures, and sets it up.
    pub(super) async fn bring_up(&self, device: &Device, slot: Slot, ipv6: bool) -> Result<(), HostError> {
        self.add_address(device, slot.ipv4().into()).await?;
        if ipv6 {
            self.add_address(device, slot.ipv6().into()).await?;
        }
        let up = LinkUnspec::new_with_index(device.index).mtu(MTU).txqueuelen(QUEUE).up().build();
        self.handle.link().change(up).execute().await.map_err(|e| failed(format!("set {} up", slot.device()), &e))
    }

    /// Adds one host address.
    pub(super) async fn add_address(&self, device: &Device, ip: IpAddr) -> Result<(), HostError> {
        let mut request = self.handle.address().add(device.index, ip, host_prefix(ip));
        if ip.is_ipv6() {
            // Nobody else is on this link: no need to wait for duplicate address detection (RFC 4862, 5.4).
            request.message_mut().header.flags = AddressHeaderFlags::Nodad;
        }
        self.added(request.execute().await).map_err(|e| failed(format!("add the address {ip}"), &e))?;
        match ip {
            IpAddr::V4(_) => Ok(()),
            IpAddr::V6(six) => self.wait_for_local(six).await,
        }
    }

    /// The kernel adds an IPv6 address's local route later, from a work queue (addrconf_dad_work); until then packets to
    /// the address leave through the device.
    async fn wait_for_local(&self, ip: Ipv6Addr) -> Result<(), HostError> {
        for _ in 0..LOCAL_RETRIES {
            let question = RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(ip, 128).build();
            let mut answer = Box::pin(self.handle.route().get(question).execute());
            if let Some(Ok(route)) = answer.next().await
                && route.header.kind == RouteType::Local
            {
                return Ok(());
            }
            tokio::time::sleep(LOCAL_PAUSE).await;
        }
        Err(system(format!("wait for the local route of {ip}"), io::ErrorKind::TimedOut.into()))
    }

    /// Removes one host address.
    pub(super) async fn remove_address(&self, device: &Device, ip: IpAddr) -> Result<(), HostError> {
        let mut request = self.handle.address().add(device.index, ip, host_prefix(ip));
        let message = request.message_mut().clone();
        let gone = self.handle.address().del(message).execute().await;
        tolerate(gone, libc::EADDRNOTAVAIL).map_err(|e| failed(format!("remove the address {ip}"), &e))
    }

    /// Adds a policy rule.
    pub(super) async fn add_rule(&self, slot: Slot, rule: Rule) -> Result<(), HostError> {
        let mut request = self.handle.rule().add();
        *request.message_mut() = rule.message(slot);
        self.added(request.execute().await).map_err(|e| failed(format!("add the policy rule {rule}"), &e))
    }

    /// Undoes [`add_rule`](Self::add_rule).
    pub(super) async fn remove_rule(&self, slot: Slot, rule: Rule) -> Result<(), HostError> {
        let gone = self.handle.rule().del(rule.message(slot)).execute().await;
        tolerate(gone, libc::ENOENT).map_err(|e| failed(format!("remove the policy rule {rule}"), &e))
    }

    /// Makes the addresses that stand for destinations of datagrams local ones, for marked and unmarked sockets alike: a
    /// mark would come too late for the first datagram. Nothing else on this host uses them.
    pub(super) async fn add_blocks(&self, device: &Device, slot: Slot, ipv6: bool) -> Result<(), HostError> {
        let ((four, len4), (six, len6)) = (slot.block4(), slot.block6());
        let six = ipv6.then_some(IpNet::new_assert(six.into(), len6));
        for net in [IpNet::new_assert(four.into(), len4)].into_iter().chain(six) {
            self.put(route_in(device, slot, RT_TABLE_LOCAL, true, net))
                .await
                .map_err(|e| failed(format!("add the route to {net}"), &e))?;
        }
        Ok(())
    }

    /// Leads the addresses of `net` to this host or to the device, as the table is.
    pub(super) async fn add_route(
        &self,
        device: &Device,
        slot: Slot,
        table: Table,
        net: IpNet,
    ) -> Result<(), HostError> {
        let put = self.put(route(device, slot, table, net)).await;
        put.map_err(|e| failed(format!("add the route to {net}"), &e))
    }

    async fn put(&self, route: RouteMessage) -> Result<(), rtnetlink::Error> {
        match self.handle.route().add(route.clone()).execute().await {
            // One of IPv6 stays without its source when the address goes.
            Err(rtnetlink::Error::NetlinkError(e)) if self.missing.is_some() && is(&e, libc::EEXIST) => {
                self.handle.route().add(route).replace().execute().await
            }
            added => self.added(added),
        }
    }

    fn added(&self, result: Result<(), rtnetlink::Error>) -> Result<(), rtnetlink::Error> {
        let Some(missing) = &self.missing else {
            return result;
        };
        if result.is_ok() {
            missing.fetch_add(1, Ordering::Relaxed);
        }
        tolerate(result, libc::EEXIST)
    }

    /// Undoes [`add_route`](Self::add_route).
    pub(super) async fn remove_route(
        &self,
        device: &Device,
        slot: Slot,
        table: Table,
        net: IpNet,
    ) -> Result<(), HostError> {
        let gone = self.handle.route().del(route(device, slot, table, net)).execute().await;
        tolerate(gone, libc::ESRCH).map_err(|e| failed(format!("remove the route to {net}"), &e))
    }

    /// Whether the host itself has this address: no policy rule comes before its local table.
    pub(super) async fn is_local(&self, ip: IpAddr) -> Result<bool, HostError> {
        let question = match ip {
            IpAddr::V4(four) => RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(four, 32).build(),
            IpAddr::V6(six) => RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(six, 128).build(),
        };
        let mut answer = Box::pin(self.handle.route().get(question).execute());
        // No route is an answer as well.
        Ok(matches!(answer.next().await, Some(Ok(route)) if route.header.kind == RouteType::Local))
    }

    /// Whether the slot's device is there.
    pub(super) async fn has_device(&self, slot: Slot) -> bool {
        let mut found = Box::pin(self.handle.link().get().match_name(slot.device()).execute());
        matches!(found.next().await, Some(Ok(_)))
    }

    /// Removes the slot's device, also while somebody else has copies of its file.
    async fn remove_device(&self, slot: Slot) -> Result<(), HostError> {
        let mut found = Box::pin(self.handle.link().get().match_name(slot.device()).execute());
        let Some(Ok(link)) = found.next().await else {
            return Ok(());
        };
        let gone = self.handle.link().del(link.header.index).execute().await;
        tolerate(gone, libc::ENODEV).map_err(|e| failed(format!("remove {}", slot.device()), &e))
    }
}

fn route(device: &Device, slot: Slot, table: Table, net: IpNet) -> RouteMessage {
    route_in(device, slot, table.id(slot), table.is_local(), net)
}

fn route_in(device: &Device, slot: Slot, table: u32, local: bool, net: IpNet) -> RouteMessage {
    let (kind, scope) =
        if local { (RouteType::Local, RouteScope::Host) } else { (RouteType::Unicast, RouteScope::Link) };
    match net {
        IpNet::V4(net) => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(net.addr(), net.prefix_len())
            // Without it the source of a local route would be the destination, and connections could meet themselves.
            .pref_source(slot.ipv4())
            .scope(scope)
            .kind(kind)
            .output_interface(device.index)
            .table_id(table)
            .build(),
        IpNet::V6(net) => RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(net.addr(), net.prefix_len())
            .pref_source(slot.ipv6())
            .kind(kind)
            .output_interface(device.index)
            .table_id(table)
            .build(),
    }
}

fn host_prefix(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 32 } else { 128 }
}

fn is(error: &ErrorMessage, errno: i32) -> bool {
    error.raw_code() == -errno
}

/// What is gone already need not be removed, nor what is there added.
fn tolerate(result: Result<(), rtnetlink::Error>, errno: i32) -> Result<(), rtnetlink::Error> {
    match result {
        Err(rtnetlink::Error::NetlinkError(e)) if is(&e, errno) => Ok(()),
        other => other,
    }
}

/// What does not hang on our files: rules always, the device while somebody else has its file. Removed on drop.
#[derive(Debug)]
pub(super) struct Footprint {
    slot: Option<Slot>,
}

impl Footprint {
    pub(super) fn of(slot: Slot) -> Self {
        Self { slot: Some(slot) }
    }

    /// Removes it now.
    pub(super) async fn remove(mut self) -> Result<(), HostError> {
        let Some(slot) = self.slot else {
            return Ok(());
        };
        remove(slot).await?;
        self.slot = None;
        Ok(())
    }
}

impl Drop for Footprint {
    fn drop(&mut self) {
        let Some(slot) = self.slot.take() else {
            return;
        };
        // A runtime of its own: this may run inside another one, or after its end. A new thread stays in the network
        // namespace of this one.
        let cleaner = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
            runtime.block_on(remove(slot)).map_err(std::io::Error::other)
        });
        match cleaner.join() {
            Ok(Ok(())) => {}
            Ok(Err(e)) => tracing::warn!("clean up after {}: {e}", slot.device()),
            Err(_) => tracing::warn!("clean up after {}: the thread died", slot.device()),
        }
    }
}

async fn remove(slot: Slot) -> Result<(), HostError> {
    let network = Network::open()?;
    let rules = network.sweep(slot).await;
    network.remove_device(slot).await.and(rules)
}
