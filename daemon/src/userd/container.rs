//! The container of `--scope container:NAME`: where it is, by the word of the runtime that runs it. Another start of it may
//! have other addresses, so the runtime is asked again whenever the host's network has changed.

use std::{collections::BTreeSet, io, net::IpAddr, path::Path, process::Stdio, time::Duration};

use serde_json::Value;
use tokio::{process::Command, sync::watch, time::timeout};
use tpx_core::{
    devices::DevicePattern,
    plan::{Plan, Scope},
};
use tpx_datapath::linux::{self, routes::HostNetwork};

use crate::{
    cgroup,
    failure::{Failure, Kind},
};

/// Who runs containers; the first that knows the name is believed.
const RUNTIMES: [&str; 3] = ["docker", "podman", "nerdctl"];
/// Longest that one may think.
const PATIENCE: Duration = Duration::from_secs(10);
/// A device is there before the runtime says so.
const SOON: Duration = Duration::from_secs(1);
/// When one that did not answer is asked again.
const AGAIN: Duration = Duration::from_secs(5);
/// Containers that use each other's network, one after the other.
const DEPTH: usize = 4;

/// A container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Container {
    name: String,
    runtime: &'static str,
    network: Network,
}

/// Where a container's sockets are.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Network {
    /// In a network of its own, at these addresses.
    Own(BTreeSet<IpAddr>),
    /// On this machine, like those of any process; the number is that of its first one.
    Host(u32),
    /// Where those of another container are.
    Of(String),
    /// Nowhere: it does not run.
    Stopped,
}

impl Container {
    /// Looks for it.
    ///
    /// # Errors
    /// No runtime, none that knows it, or it does not run.
    pub(crate) async fn find(name: &str) -> Result<Self, Failure> {
        let mut said = None;
        for runtime in RUNTIMES {
            match inspect(runtime, name).await {
                Ok(Network::Stopped) => {
                    return Err(Failure::new(
                        Kind::Usage,
                        format!("container {name} does not run"),
                        format!("start it first: {runtime} start {name}"),
                    ));
                }
                Ok(network) => return Ok(Self { name: name.to_owned(), runtime, network }),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => drop(said.get_or_insert((runtime, e))),
            }
        }
        Err(match said {
            Some((runtime, e)) => Failure::new(
                Kind::Usage,
                format!("{runtime} does not say where container {name} is: {e}"),
                format!("`{runtime} ps` lists what runs"),
            ),
            None => Failure::new(
                Kind::Usage,
                format!("cannot look for container {name}: there is none of {} on the PATH", RUNTIMES.join(", ")),
                "give --scope cgroup:PATH, or connect the whole workstation",
            ),
        })
    }

    /// Whether it is behind a bridge, and so may move.
    pub(crate) fn has_own_network(&self) -> bool {
        matches!(self.network, Network::Own(_))
    }

    /// The scope that it makes.
    ///
    /// # Errors
    /// When its processes cannot be found.
    pub(crate) fn scope(&self) -> Result<Scope, Failure> {
        let Network::Host(pid) = self.network else { return Ok(Scope::Containers(self.addresses())) };
        let directory = || {
            let below = cgroup::of(pid)?.ok_or_else(|| io::Error::other("it is in none of the cgroup2 tree"))?;
            Ok::<_, io::Error>(linux::cgroup::root()?.join(below.trim_start_matches('/')))
        };
        let what = |e: io::Error| format!("cannot find the cgroup of container {} (process {pid}): {e}", self.name);
        let path = directory().map_err(|e| Failure::new(Kind::Host, what(e), "give --scope cgroup:PATH"))?;
        if path.file_name().is_none() || linux::cgroup::root().is_ok_and(|root| root == path) {
            let what = format!("container {} has no cgroup of its own", self.name);
            return Err(Failure::new(Kind::Host, what, "connect the whole workstation"));
        }
        Ok(Scope::Cgroup(path))
    }

    /// Checks that its packets come by: it has addresses, and each is behind a bridge.
    ///
    /// # Errors
    /// When it is somewhere else.
    pub(crate) fn check(&self, bridges: &[DevicePattern]) -> Result<(), Failure> {
        let Network::Own(addresses) = &self.network else { return Ok(()) };
        if !bridges.is_empty() {
            return Ok(());
        }
        let list: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
        let place = if list.is_empty() { "it has no address".into() } else { format!("it is at {}", list.join(", ")) };
        Err(Failure::new(
            Kind::Host,
            format!("container {} is not behind a bridge of this machine: {place}", self.name),
            "only packets that a bridge here carries can be steered: not those of rootless containers, macvlan or a virtual \
             machine",
        ))
    }

    fn addresses(&self) -> Vec<IpAddr> {
        match &self.network {
            Network::Own(addresses) => addresses.iter().copied().take(Plan::MAX_CONTAINERS).collect(),
            Network::Host(_) | Network::Of(_) | Network::Stopped => Vec::new(),
        }
    }

    /// Where it is from now on, and what has to run for that. `looks` changes whenever the host's network does.
    pub(crate) fn follow(
        mut self,
        mut looks: watch::Receiver<u64>,
    ) -> (watch::Receiver<Vec<IpAddr>>, impl Future<Output = ()> + Send) {
        let (tell, place) = watch::channel(self.addresses());
        let following = async move {
            let mut answered = true;
            loop {
                // A runtime that does not answer may be back without any other news.
                let patience = if answered { Duration::MAX } else { AGAIN };
                match timeout(patience, looks.changed()).await {
                    Ok(Err(_)) => return,
                    Ok(Ok(())) => {
                        self.look(&tell).await;
                        tokio::time::sleep(SOON).await;
                    }
                    Err(_) => {}
                }
                answered = self.look(&tell).await;
            }
        };
        (place, following)
    }

    /// Whether the runtime has answered. Where it has not, the container is nowhere: its address may be another's by now.
    async fn look(&mut self, tell: &watch::Sender<Vec<IpAddr>>) -> bool {
        let found = inspect(self.runtime, &self.name).await;
        let answered = found.is_ok();
        self.network = match found {
            Ok(Network::Host(_)) | Err(_) => Network::Stopped,
            Ok(network) => network,
        };
        let now = self.addresses();
        tell.send_if_modified(|told| {
            let new = *told != now;
            if new {
                tracing::info!("container {} is at {now:?} now", self.name);
                *told = now;
            }
            new
        });
        answered
    }
}

/// The bridges that these addresses are behind, by the host's routes.
pub(crate) fn bridges(addresses: &[IpAddr], network: &HostNetwork) -> Vec<DevicePattern> {
    let device = |ip: &IpAddr| Some(network.lookup(*ip).into_route()?.device);
    let devices: BTreeSet<String> = addresses.iter().filter_map(device).collect();
    let is_bridge = |name: &String| Path::new("/sys/class/net").join(name).join("bridge").is_dir();
    devices.into_iter().filter(is_bridge).filter_map(|name| name.parse().ok()).collect()
}

/// Waits until the container has moved; for ever where there is none. Cancel safe.
pub(crate) async fn moved(place: &mut Option<watch::Receiver<Vec<IpAddr>>>) {
    if let Some(place) = place
        && place.changed().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

/// Asks a runtime; follows a container whose network is another's.
async fn inspect(runtime: &str, name: &str) -> io::Result<Network> {
    let mut name = name.to_owned();
    for _ in 0..DEPTH {
        match ask(runtime, &name).await? {
            Network::Of(other) => name = other,
            network => return Ok(network),
        }
    }
    Err(io::Error::other("it uses the network of a container that uses another's, and so on"))
}

async fn ask(runtime: &str, name: &str) -> io::Result<Network> {
    let mut command = Command::new(runtime);
    command.args(["container", "inspect", name]).stdin(Stdio::null()).kill_on_drop(true);
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {PATIENCE:?}"));
    let output = timeout(PATIENCE, command.output()).await.map_err(late)??;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        let last = errors.trim().lines().last().map_or_else(|| output.status.to_string(), str::to_owned);
        return Err(io::Error::other(last));
    }
    let said: Value = serde_json::from_slice(&output.stdout)?;
    understand(said.get(0).unwrap_or(&Value::Null))
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "it answers with something else than a container"))
}

/// What Docker's, Podman's and nerdctl's `container inspect` have in common.
fn understand(container: &Value) -> Option<Network> {
    let state = container.get("State")?;
    if !state.get("Running")?.as_bool()? {
        return Some(Network::Stopped);
    }
    let mode = container["HostConfig"]["NetworkMode"].as_str().unwrap_or_default();
    if let Some(other) = mode.strip_prefix("container:") {
        return Some(Network::Of(other.to_owned()));
    }
    if mode == "host" {
        return Some(Network::Host(state.get("Pid")?.as_u64()?.try_into().ok()?));
    }
    let networks = container["NetworkSettings"]["Networks"].as_object();
    let addresses = networks.into_iter().flat_map(|networks| networks.values()).flat_map(|network| {
        ["IPAddress", "GlobalIPv6Address"].map(|key| network[key].as_str().and_then(|text| text.parse().ok()))
    });
    Some(Network::Own(addresses.flatten().collect()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn own(list: &[&str]) -> Network {
        Network::Own(list.iter().map(|ip| ip.parse().unwrap()).collect())
    }

    #[test]
    fn what_runtimes_say_is_understood() {
        let container = |running: bool, mode: &str, networks: Value| {
            let state = json!({"Running": running, "Pid": 42, "Status": "whatever"});
            understand(&json!({
                "Id": "ab", "State": state, "HostConfig": {"NetworkMode": mode}, "NetworkSettings": {"Networks": networks},
            }))
        };
        let at = |four: &str, six: &str| json!({"IPAddress": four, "GlobalIPv6Address": six, "Gateway": "172.17.0.1"});
        assert_eq!(container(true, "default", json!({"bridge": at("172.17.0.2", "")})), Some(own(&["172.17.0.2"])));
        let two = json!({"a": at("172.18.0.2", "fd18::2"), "b": at("172.19.0.2", "")});
        assert_eq!(container(true, "a", two), Some(own(&["172.18.0.2", "172.19.0.2", "fd18::2"])));
        assert_eq!(container(true, "slirp4netns", json!({})), Some(own(&[])));
        assert_eq!(container(true, "none", Value::Null), Some(own(&[])));
        assert_eq!(container(true, "host", json!({"host": at("", "")})), Some(Network::Host(42)));
        assert_eq!(container(true, "container:cd", json!({})), Some(Network::Of("cd".into())));
        assert_eq!(container(false, "default", json!({"bridge": at("", "")})), Some(Network::Stopped));
        assert_eq!(understand(&json!({"Id": "an image"})), None);
    }

    #[test]
    fn a_container_somewhere_else_is_refused() {
        let container = |network| Container { name: "box".into(), runtime: "podman", network };
        let docker0: DevicePattern = "docker0".parse().unwrap();
        assert!(container(own(&["172.17.0.2"])).check(&[docker0]).is_ok());
        let said = |network| container(network).check(&[]).unwrap_err().to_string();
        assert!(said(own(&[])).contains("no address") && said(own(&["10.0.2.100"])).contains("at 10.0.2.100"));
        assert!(container(Network::Host(1)).check(&[]).is_ok());
    }

    #[tokio::test]
    async fn where_there_is_none_nothing_moves() {
        assert!(timeout(Duration::from_millis(10), moved(&mut None)).await.is_err());
        let (tell, place) = watch::channel(Vec::new());
        let mut place = Some(place);
        tell.send_replace(vec![IpAddr::from([172, 17, 0, 2])]);
        assert!(timeout(Duration::from_secs(5), moved(&mut place)).await.is_ok());
        drop(tell);
        assert!(timeout(Duration::from_millis(10), moved(&mut place)).await.is_err());
    }
}
