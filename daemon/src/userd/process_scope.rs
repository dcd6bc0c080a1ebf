//! Whether a process sees the cluster, and where its sockets lead.

use std::{
    collections::{BTreeSet, HashSet},
    fs,
    net::SocketAddr,
};

use tpx_core::plan::Road;

use super::{processes, status::Scope};
use crate::{cgroup, ipc::ProcessExplanation};

/// Looks at a process; `None` when there is none. `sees` is the connection whose cluster it sees, if it is of this host's
/// own network; `own` is the connection that is asked.
pub(super) fn look(pid: u32, own: &Own<'_>, sees: Option<String>) -> Option<ProcessExplanation> {
    let name = processes::name_of(pid)?;
    let cgroup = cgroup::of(pid).ok().flatten();
    let network = |who: &str| fs::read_link(format!("/proc/{who}/ns/net")).ok();
    let own_network = network(&pid.to_string()).zip(network("self")).map(|(its, ours)| its == ours);
    let inodes: HashSet<u64> = processes::inodes_of(pid).into_iter().collect();
    let sockets = processes::sockets(&pid.to_string());
    let peers: BTreeSet<SocketAddr> = sockets
        .iter()
        .filter(|(_, socket)| inodes.contains(&socket.inode) && !socket.peer.ip().is_unspecified())
        .map(|(_, socket)| socket.peer)
        .collect();
    let connection = sees.filter(|_| own_network != Some(false));
    let scope = verdict(own, connection.as_deref(), own_network);
    Some(ProcessExplanation { pid, name, cgroup, own_network, connection, scope, peers: peers.into_iter().collect() })
}

/// The connection that is asked.
pub(super) struct Own<'a> {
    /// Its name.
    pub name: &'a str,
    /// Whose processes see its cluster.
    pub scope: &'a Scope,
    /// How they reach it.
    pub road: Road,
}

fn verdict(own: &Own<'_>, sees: Option<&str>, own_network: Option<bool>) -> String {
    match (sees, own.scope, own.road) {
        _ if own_network == Some(false) => {
            "it is in another network namespace: only packets that its namespace routes through this host reach the \
             cluster, by the floor"
                .into()
        }
        (Some(other), ..) if other != own.name => {
            format!("it sees the cluster of connection {other}, not that of {}", own.name)
        }
        (Some(_), Scope::Workstation, Road::Express) => {
            "it sees the cluster, as every process of this machine, by the express lane".into()
        }
        (Some(_), Scope::Workstation, Road::Tun) => {
            "it sees the cluster, as every process of this machine, by the floor".into()
        }
        (Some(_), Scope::Cgroup { cgroup } | Scope::Tree { cgroup }, _) => {
            format!("it sees the cluster by sockets that it opens in {}", cgroup.display())
        }
        // Nobody's own processes are in it.
        (Some(_), Scope::Container { .. }, _) | (None, ..) => {
            let Own { name, scope, .. } = own;
            format!("it does not see the cluster: it is outside of the {scope} of {name}")
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn whose_cluster_it_is_is_said() {
        let tree = Scope::Tree { cgroup: "/sys/fs/cgroup/tpx-1".into() };
        let own = |scope| Own { name: "shop", scope, road: Road::Express };
        assert!(verdict(&own(&tree), Some("shop"), Some(true)).contains("/sys/fs/cgroup/tpx-1"));
        assert!(verdict(&own(&tree), Some("bank"), None).contains("of connection bank, not that of shop"));
        assert!(verdict(&own(&tree), None, Some(true)).contains("does not see"));
        assert!(verdict(&own(&Scope::Workstation), Some("bank"), Some(true)).contains("bank"));
        assert!(verdict(&own(&tree), Some("shop"), Some(false)).contains("another network namespace"));
    }

    #[test]
    fn this_process_is_looked_at() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let own = Own { name: "default", scope: &Scope::Workstation, road: Road::Express };
        let found = look(std::process::id(), &own, Some("default".into())).unwrap();
        assert_eq!((found.own_network, found.connection.as_deref()), (Some(true), Some("default")));
        assert!(found.peers.contains(&stream.peer_addr().unwrap()), "{found:?}");
        assert!(found.scope.contains("every process"));
        assert_eq!(look(u32::MAX, &own, None), None);
    }
}
