//! Following the host's routes as they change.

use std::{io, sync::Arc, time::Duration};

use futures::StreamExt as _;
use rtnetlink::MulticastGroup;
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep, timeout_at},
};

use super::{HostRoutes, read::list};

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

/// Reads the host's routes now and whenever they change, until it is dropped.
#[derive(Debug)]
pub struct RouteMonitor {
    routes: watch::Receiver<Arc<HostRoutes>>,
    task: JoinHandle<()>,
}

impl Drop for RouteMonitor {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl RouteMonitor {
    /// Begins, on the current runtime, in the network namespace of the calling thread. The first look is done when this
    /// returns.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn start() -> io::Result<Self> {
        let mut follower = Follower::start()?;
        let first = follower.list().await?;
        let (tell, routes) = watch::channel(Arc::new(first));
        Ok(Self { routes, task: tokio::spawn(follow(follower, tell)) })
    }

    /// The routes now, and news of them: the value changes only when they do.
    #[must_use]
    pub fn routes(&self) -> watch::Receiver<Arc<HostRoutes>> {
        self.routes.clone()
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
        Ok(Self { handle, news: Box::pin(messages.map(drop)), connection: tokio::spawn(connection) })
    }

    async fn list(&mut self) -> io::Result<HostRoutes> {
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

async fn follow(mut follower: Follower, tell: watch::Sender<Arc<HostRoutes>>) {
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
