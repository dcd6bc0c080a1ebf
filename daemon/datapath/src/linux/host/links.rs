//! The host's bridges, followed as they come and go (rtnetlink(7)).

use std::pin::Pin;

use futures::{FutureExt as _, Stream, StreamExt as _, TryStreamExt as _};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use rtnetlink::{Handle, MulticastGroup};
use tokio::task::JoinHandle;

use super::{failed, system};
use crate::HostError;

/// A bridge device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BridgeLink {
    /// Interface index; not used again while the host is up.
    pub(super) index: u32,
    /// Its name now.
    pub(super) name: String,
}

/// A netlink connection that hears of links, in the network namespace of the thread that opened it.
pub(super) struct Links {
    handle: Handle,
    news: Pin<Box<dyn Stream<Item = ()> + Send>>,
    connection: JoinHandle<()>,
}

impl Drop for Links {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Links {
    /// Begins to listen.
    pub(super) fn open() -> Result<Self, HostError> {
        let (connection, handle, messages) = rtnetlink::new_multicast_connection(&[MulticastGroup::Link])
            .map_err(|e| system("open netlink for news of devices", e))?;
        // What happened does not matter: all are listed again.
        Ok(Self { handle, news: Box::pin(messages.map(drop)), connection: tokio::spawn(connection) })
    }

    /// Waits for news, and takes those that have come with them. False when the connection has ended, which happens when
    /// news were lost.
    pub(super) async fn changed(&mut self) -> bool {
        if self.news.next().await.is_none() {
            return false;
        }
        while let Some(more) = self.news.next().now_or_never() {
            if more.is_none() {
                return false;
            }
        }
        true
    }

    /// The bridges that there are.
    pub(super) async fn bridges(&mut self) -> Result<Vec<BridgeLink>, HostError> {
        let links: Vec<LinkMessage> =
            self.handle.link().get().execute().try_collect().await.map_err(|e| failed("list the devices", &e))?;
        Ok(links.iter().filter_map(bridge).collect())
    }
}

fn bridge(link: &LinkMessage) -> Option<BridgeLink> {
    let is_kind = |info: &LinkInfo| matches!(info, LinkInfo::Kind(InfoKind::Bridge));
    let is_bridge = |a: &LinkAttribute| matches!(a, LinkAttribute::LinkInfo(infos) if infos.iter().any(is_kind));
    let name = |a: &LinkAttribute| if let LinkAttribute::IfName(name) = a { Some(name.clone()) } else { None };
    if !link.attributes.iter().any(is_bridge) {
        return None;
    }
    Some(BridgeLink { index: link.header.index, name: link.attributes.iter().find_map(name)? })
}
