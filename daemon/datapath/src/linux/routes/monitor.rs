//! Following the host's routes as they change.

use std::{io, sync::Arc, time::Duration};

use futures::StreamExt as _;
use netlink_packet_route::{RouteNetlinkMessage, link::LinkAttribute, route::RouteAttribute, rule::RuleAttribute};
use rtnetlink::{
    MulticastGroup,
    packet_core::{NetlinkMessage, NetlinkPayload},
};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep, timeout_at},
};

use tpx_ebpf_abi::slot::Slot;

use super::{HostNetwork, LOCAL_TABLE, read::list};

/// What can change the answer.
const GROUPS: [MulticastGroup; 7] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Rule,
];
/// Changes come in swarms: a VPN adds its routes one by one. The routes are read when none has come for this long.
const QUIET: Duration = Duration::from_millis(100);
/// Not longer than this after the first one, even if they never end.
const PATIENCE: Duration = Duration::from_millis(500);
/// Pause after netlink failed.
const AGAIN: Duration = Duration::from_millis(500);

/// Follows the host's network until it is dropped. Needs no privilege.
#[derive(Debug)]
pub struct Monitor {
    network: watch::Receiver<Arc<HostNetwork>>,
    losses: watch::Receiver<u64>,
    looks: watch::Receiver<u64>,
    task: JoinHandle<()>,
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Monitor {
    /// Begins, on the current runtime, in the network namespace of the calling thread. The first look is done when this
    /// returns.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn start() -> io::Result<Self> {
        let mut follower = Follower::start(watch::Sender::new(0))?;
        let first = follower.list().await?;
        let (tell, network) = watch::channel(Arc::new(first));
        let losses = follower.losses.subscribe();
        let (look, looks) = watch::channel(0);
        Ok(Self { network, losses, looks, task: tokio::spawn(follow(follower, tell, look)) })
    }

    /// What it looks like now.
    #[must_use]
    pub fn now(&self) -> Arc<HostNetwork> {
        Arc::clone(&self.network.borrow())
    }

    /// Follows it: the value changes only when the network does. The sender goes when the monitor is dropped.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Arc<HostNetwork>> {
        self.network.clone()
    }

    /// Counts how often the network was looked at again, because a device, an address or a route changed; also where that
    /// made no difference to where packets go.
    #[must_use]
    pub fn looks(&self) -> watch::Receiver<u64> {
        self.looks.clone()
    }

    /// Counts what was removed of tpx's own: devices, rules, routes. Whoever has the right may have done so, as well as the
    /// privileged daemon for a new plan.
    #[must_use]
    pub fn losses(&self) -> watch::Receiver<u64> {
        self.losses.clone()
    }
}

/// A netlink connection that hears of changes.
struct Follower {
    handle: rtnetlink::Handle,
    news: std::pin::Pin<Box<dyn futures::Stream<Item = News> + Send>>,
    losses: watch::Sender<u64>,
    connection: JoinHandle<()>,
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Follower {
    fn start(losses: watch::Sender<u64>) -> io::Result<Self> {
        let (connection, handle, messages) = rtnetlink::new_multicast_connection(&GROUPS)?;
        let news = messages.filter_map(|(message, _)| std::future::ready(News::of(&message)));
        Ok(Self { handle, news: Box::pin(news), losses, connection: tokio::spawn(connection) })
    }

    async fn list(&mut self) -> io::Result<HostNetwork> {
        list(&self.handle).await.map_err(io::Error::other)
    }

    /// Waits for a change and the quiet after it. False when the connection has ended, which happens when news were lost.
    async fn changed(&mut self) -> bool {
        let Some(first) = self.news.next().await else {
            return false;
        };
        let (latest, mut lost) = (Instant::now() + PATIENCE, first == News::Loss);
        while let Ok(more) = timeout_at(latest.min(Instant::now() + QUIET), self.news.next()).await {
            let Some(more) = more else {
                return false;
            };
            lost |= more == News::Loss;
            if Instant::now() >= latest {
                break;
            }
        }
        if lost {
            self.losses.send_modify(|losses| *losses += 1);
        }
        true
    }
}

/// What a message is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum News {
    /// The host's network changed. How does not matter: everything is read again.
    Host,
    /// Something of tpx's own was removed.
    Loss,
}

impl News {
    /// `None` for the kernel's own tables, and for what tpx adds to its own: each plan changes hundreds of routes there.
    fn of(message: &NetlinkMessage<RouteNetlinkMessage>) -> Option<Self> {
        let NetlinkPayload::InnerMessage(message) = &message.payload else {
            return Some(Self::Host);
        };
        match message {
            RouteNetlinkMessage::DelLink(link) => {
                let named = |a: &LinkAttribute| matches!(a, LinkAttribute::IfName(name) if Slot::owns_device(name));
                Some(if link.attributes.iter().any(named) { Self::Loss } else { Self::Host })
            }
            RouteNetlinkMessage::DelRule(rule) => {
                let ours = |a: &RuleAttribute| matches!(a, RuleAttribute::Table(table) if Slot::owns_table(*table));
                Some(if rule.attributes.iter().any(ours) { Self::Loss } else { Self::Host })
            }
            RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) => {
                let wide = |a: &RouteAttribute| if let RouteAttribute::Table(t) = a { Some(*t) } else { None };
                let table = route.attributes.iter().find_map(wide).unwrap_or_else(|| route.header.table.into());
                let removed = matches!(message, RouteNetlinkMessage::DelRoute(_));
                match (Slot::owns_table(table), removed) {
                    (true, true) => Some(Self::Loss),
                    (true, false) => None,
                    (false, _) => (table != LOCAL_TABLE).then_some(Self::Host),
                }
            }
            _ => Some(Self::Host),
        }
    }
}

async fn follow(mut follower: Follower, tell: watch::Sender<Arc<HostNetwork>>, look: watch::Sender<u64>) {
    loop {
        if !follower.changed().await {
            tracing::debug!("news of routes were lost");
            sleep(QUIET).await;
            match Follower::start(follower.losses.clone()) {
                Ok(again) => follower = again,
                Err(e) => {
                    tracing::warn!("routes cannot be followed: {e}");
                    sleep(AGAIN).await;
                }
            }
        }
        match follower.list().await {
            Ok(now) => {
                tell.send_if_modified(|known| {
                    let new = **known != now;
                    if new {
                        *known = Arc::new(now);
                    }
                    new
                });
                look.send_modify(|looks| *looks += 1);
            }
            Err(e) => {
                tracing::warn!("routes cannot be read: {e}");
                sleep(AGAIN).await;
            }
        }
    }
}
