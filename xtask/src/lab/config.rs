//! The lab's names and addresses. Several labs can run at once with the same addresses: each lives in its own namespaces.

use std::path::PathBuf;

use anyhow::{Result, ensure};

use crate::paths;

/// The node's name and its addresses on `node0`, a bridge without ports that stands for its interface.
pub(crate) const NODE: &str = "node1";
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

/// The link between laptop and node; the API server's port is all that crosses it.
pub(crate) const LAPTOP_API_IP: &str = "172.31.78.2";
pub(crate) const API_IP: &str = "172.31.78.1";

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

/// The three parts of a lab, each a set of namespaces.
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
    pub(crate) const ALL: [Part; 3] = [Part::Node, Part::Laptop, Part::Internet];

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
