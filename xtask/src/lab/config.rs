//! The lab's names and addresses. Several labs can run at once with the same addresses: each lives in its own namespaces.

use std::path::PathBuf;

use anyhow::{Result, ensure};

use crate::paths;

/// The node's addresses on `node0`, a bridge without ports that stands for its interface.
pub(crate) const NODE_IP: &str = "172.31.77.1";
pub(crate) const NODE_IP6: &str = "fd31:77::1";

/// What pods and services get. The manifests repeat the DNS service's addresses.
pub(crate) const POD_CIDRS: &str = "10.244.0.0/16,fd10:244::/48";
pub(crate) const NODE_POD_CIDR: &str = "10.244.0.0/24";
pub(crate) const NODE_POD_CIDR6: &str = "fd10:244::/64";
pub(crate) const SERVICE_CIDR: &str = "10.96.0.0/16";
pub(crate) const SERVICE_CIDR6: &str = "fd10:96::/112";
pub(crate) const API_SERVICE_IP: &str = "10.96.0.1";
pub(crate) const DNS_SERVICE_IP: &str = "10.96.0.10";
pub(crate) const API_PORT: u16 = 6443;

/// What tells a lab's cluster from its second one: everything else is the same in both, subnets and names of workloads too.
pub(crate) struct Cluster {
    /// The name of its node, which its web page shows.
    pub(crate) node: &'static str,
    /// What the laptop's kubeconfig calls it.
    pub(crate) context: &'static str,
    /// The link between laptop and node; the API server's port is all that crosses it.
    pub(crate) link: &'static str,
    pub(crate) laptop_ip: &'static str,
    pub(crate) api_ip: &'static str,
}

const FIRST: Cluster =
    Cluster { node: "node1", context: "lab", link: "api0", laptop_ip: "172.31.78.2", api_ip: "172.31.78.1" };
const SECOND: Cluster =
    Cluster { node: "node2", context: "second", link: "api1", laptop_ip: "172.31.79.2", api_ip: "172.31.79.1" };

/// How the name of a second cluster's lab ends.
const SECOND_SUFFIX: &str = "-second";

/// The link between laptop and *internet*, and what answers there.
pub(crate) const LAPTOP_IP: &str = "198.51.100.2";
pub(crate) const LAPTOP_IP6: &str = "2001:db8:51::2";
pub(crate) const GATEWAY_IP: &str = "198.51.100.1";
pub(crate) const GATEWAY_IP6: &str = "2001:db8:51::1";
pub(crate) const NAME_SERVER: &str = "198.51.100.53";
pub(crate) const WEB_IP: &str = "203.0.113.80";
pub(crate) const WEB_IP6: &str = "2001:db8:113::80";

/// Users of the laptop: `dev` may use sudo without a password, `mallory` may do nothing special.
pub(crate) const USERS: [(&str, u32); 2] = [("dev", 1000), ("mallory", 1001)];

/// Where the laptop finds what belongs to the lab: kubeconfigs, programs.
pub(crate) const RUN_LAB: &str = "/run/lab";

/// Where the laptop finds what *internet* was asked, for tests that run there.
pub(crate) const QUERY_LOG: &str = "/run/lab/queries.log";

/// One lab: its name decides its state folder and its cgroups.
#[derive(Clone)]
pub(crate) struct Lab {
    pub(crate) name: String,
}

/// The three parts of a lab, each a set of namespaces; a second cluster is a node alone.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Part {
    /// The cluster.
    Node,
    /// The developer's machine.
    Laptop,
    /// The rest of the world.
    Internet,
}

impl Part {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Part::Node => "node",
            Part::Laptop => "laptop",
            Part::Internet => "internet",
        }
    }
}

impl Lab {
    pub(crate) fn new(name: &str) -> Result<Lab> {
        let fits = !name.is_empty()
            && name.len() <= 32
            && name.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-');
        ensure!(fits, "a lab's name is made of a-z, 0-9 and -, at most 32 of them: {name:?}");
        Ok(Lab { name: name.to_owned() })
    }

    /// The lab of the second cluster that this lab's laptop reaches.
    pub(crate) fn second(&self) -> Result<Lab> {
        ensure!(self.first().is_none(), "{} is a second cluster itself, and there is no third", self.name);
        Lab::new(&format!("{}{SECOND_SUFFIX}", self.name))
    }

    /// For a second cluster: the lab whose laptop reaches it.
    pub(crate) fn first(&self) -> Option<Lab> {
        let name = self.name.strip_suffix(SECOND_SUFFIX).filter(|name| !name.is_empty())?;
        Some(Lab { name: name.to_owned() })
    }

    /// The lab's own cluster.
    pub(crate) fn cluster(&self) -> &'static Cluster {
        if self.first().is_some() { &SECOND } else { &FIRST }
    }

    /// What is printed about it, told from what another lab that comes up at the same time prints.
    pub(crate) fn says(&self, what: &str) -> String {
        if self.first().is_some() { format!("second: {what}") } else { what.to_owned() }
    }

    /// The parts that it has.
    pub(crate) fn parts(&self) -> &'static [Part] {
        if self.first().is_some() { &[Part::Node] } else { &[Part::Node, Part::Laptop, Part::Internet] }
    }

    /// Everything this lab writes outside its namespaces.
    pub(crate) fn state(&self) -> PathBuf {
        paths::lab().join("run").join(&self.name)
    }

    pub(crate) fn pki(&self) -> PathBuf {
        self.state().join("pki")
    }

    pub(crate) fn etc(&self) -> PathBuf {
        self.state().join("etc")
    }

    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.state().join("log").join(format!("{name}.log"))
    }

    /// Every name that the laptop (or anyone) asked *internet* for, one line each.
    pub(crate) fn query_log(&self) -> PathBuf {
        self.log("queries")
    }

    /// The folder's name in every cgroup hierarchy.
    pub(crate) fn cgroup(&self) -> String {
        format!("tpx-lab-{}", self.name)
    }
}

/// The program that plays every workload, and *internet*.
pub(crate) const WORKLOAD: &str = "tpx-workload";

#[cfg(test)]
mod tests {
    use super::Lab;

    #[test]
    fn a_second_cluster_knows_its_lab() {
        let lab = Lab::new("lab").unwrap();
        let second = lab.second().unwrap();
        assert_eq!(second.name, "lab-second");
        assert_eq!(second.first().map(|first| first.name), Some("lab".into()));
        assert!(lab.first().is_none() && second.second().is_err());
        assert!(lab.cluster().node != second.cluster().node && lab.cgroup() != second.cgroup());
    }

    #[test]
    fn a_name_that_is_only_the_ending_is_a_lab() {
        assert!(Lab::new("-second").unwrap().first().is_none());
    }
}
