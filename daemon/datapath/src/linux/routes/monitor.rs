//! Following the host's routes as they change.

use std::{io, sync::Arc, time::Duration};

use futures::StreamExt as _;
use netlink_packet_route::{RouteNetlinkMessage, route::RouteAttribute};
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
        let mut follower = Follower::start()?;
        let first = follower.list().await?;
        let (tell, network) = watch::channel(Arc::new(first));
        Ok(Self { network, task: tokio::spawn(follow(follower, tell)) })
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
}

/// A netlink connection that hears of changes.
struct Follower {
    handle: rtnetlink::Handle,
    news: std::pin::Pin<Box<dyn futures::Stream<Item = ()> + Send>>,
    connection: JoinHandle<()>,
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Follower {
    fn start() -> io::Result<Self> {
        let (connection, handle, messages) = rtnetlink::new_multicast_connection(&GROUPS)?;
        // What changed does not matter: everything is read again.
        let news = messages.filter_map(|(message, _)| std::future::ready(concerns_the_host(&message).then_some(())));
        Ok(Self { handle, news: Box::pin(news), connection: tokio::spawn(connection) })
    }

    async fn list(&mut self) -> io::Result<HostNetwork> {
        list(&self.handle).await.map_err(io::Error::other)
    }

    /// Waits for a change and the quiet after it. False when the connection has ended, which happens when news were lost.
    async fn changed(&mut self) -> bool {
        if self.news.next().await.is_none() {
            return false;
        }
        let latest = Instant::now() + PATIENCE;
        while let Ok(more) = timeout_at(latest.min(Instant::now() + QUIET), self.news.next()).await {
            if more.is_none() {
                return false;
            }
            if Instant::now() >= latest {
                break;
            }
        }
        true
    }
}

/// Not so the kernel's and tpx's own tables: each plan changes hundreds of routes there.
fn concerns_the_host(message: &NetlinkMessage<RouteNetlinkMessage>) -> bool {
    let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route)) =
        &message.payload
    else {
        return true;
    };
    let wide = |a: &RouteAttribute| if let RouteAttribute::Table(table) = a { Some(*table) } else { None };
    let table = route.attributes.iter().find_map(wide).unwrap_or_else(|| route.header.table.into());
    table != LOCAL_TABLE && !Slot::owns_table(table)
}

async fn follow(mut follower: Follower, tell: watch::Sender<Arc<HostNetwork>>) {
    loop {
        if !follower.changed().await {
            tracing::debug!("news of routes were lost");
            sleep(QUIET).await;
            match Follower::start() {
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
            }
            Err(e) => {
                tracing::warn!("routes cannot be read: {e}");
                sleep(AGAIN).await;
            }
        }
    }
}
