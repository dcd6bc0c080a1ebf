//! Whether a process sees the cluster, and where its sockets lead.

use std::{
    collections::{BTreeSet, HashSet},
    fs,
    net::SocketAddr,
    path::Path,
};

use tpx_core::plan::{Plan, Road, Scope};

use super::processes;
use crate::ipc::ProcessExplanation;

/// Where cgroup2 is mounted on every system that systemd has started.
const CGROUPS: &str = "/sys/fs/cgroup";

/// Looks at a process; `None` when there is none.
pub(super) fn look(pid: u32, plan: &Plan) -> Option<ProcessExplanation> {
    let name = processes::name_of(pid)?;
    let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok().and_then(|text| cgroup2(&text));
    let network = |who: &str| fs::read_link(format!("/proc/{who}/ns/net")).ok();
    let own_network = network(&pid.to_string()).zip(network("self")).map(|(its, ours)| its == ours);
    let inodes: HashSet<u64> = processes::inodes_of(pid).into_iter().collect();
    let sockets = processes::sockets(&pid.to_string());
    let peers: BTreeSet<SocketAddr> = sockets
        .iter()
        .filter(|(_, socket)| inodes.contains(&socket.inode) && !socket.peer.ip().is_unspecified())
        .map(|(_, socket)| socket.peer)
        .collect();
    let scope = verdict(plan, cgroup.as_deref(), own_network).into();
    Some(ProcessExplanation { pid, name, cgroup, own_network, scope, peers: peers.into_iter().collect() })
}

/// The cgroup2 line of /proc/PID/cgroup (cgroups(7)).
fn cgroup2(text: &str) -> Option<String> {
    text.lines().find_map(|line| line.strip_prefix("0::")).map(str::to_owned)
}

fn verdict(plan: &Plan, cgroup: Option<&str>, own_network: Option<bool>) -> &'static str {
    let inside = |scope: &Path| match (cgroup, scope.strip_prefix(CGROUPS)) {
        (Some(cgroup), Ok(scope)) => Path::new(cgroup.trim_start_matches('/')).starts_with(scope),
        _ => false,
    };
    match (&plan.scope, own_network, plan.road) {
        (_, Some(false), _) => {
            "it is in another network namespace: only packets that its namespace routes through this host reach the \
             cluster, by the floor"
        }
        (Scope::Workstation, _, Road::Express) => {
            "it sees the cluster, as every process of this machine, by the express lane"
        }
        (Scope::Workstation, _, Road::Tun) => "it sees the cluster, as every process of this machine, by the floor",
        (Scope::Cgroup(path), ..) if inside(path) => {
            "it sees the cluster: it belongs to the process tree that was started in it"
        }
        (Scope::Cgroup(_) | Scope::Tree, ..) => {
            "it does not see the cluster: it is outside of the process tree that does"
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn cgroups_are_compared_as_paths() {
        let plan = |scope: &str| Plan { scope: Scope::Cgroup(scope.into()), ..Plan::default() };
        let sees = |scope: &str, cgroup: &str| verdict(&plan(scope), Some(cgroup), Some(true)).starts_with("it sees");
        assert!(sees("/sys/fs/cgroup/user.slice/tpx-1", "/user.slice/tpx-1"));
        assert!(sees("/sys/fs/cgroup/user.slice/tpx-1", "/user.slice/tpx-1/child"));
        assert!(!sees("/sys/fs/cgroup/user.slice/tpx-1", "/user.slice/tpx-10"));
        assert!(!sees("/sys/fs/cgroup/user.slice/tpx-1", "/"));
        assert_eq!(cgroup2("1:cpu:/x\n0::/user.slice\n").as_deref(), Some("/user.slice"));
        assert_eq!(cgroup2("1:cpu:/x\n"), None);
    }

    #[test]
    fn this_process_is_looked_at() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let found = look(std::process::id(), &Plan::default()).unwrap();
        assert_eq!(found.own_network, Some(true));
        assert!(found.peers.contains(&stream.peer_addr().unwrap()), "{found:?}");
        assert!(found.scope.contains("every process"));
        assert_eq!(look(u32::MAX, &Plan::default()), None);
    }
}
