//! The cables of the laptop: one to each node, one to *internet*. Network namespaces are named by a process in each.

use std::process::Command;

use anyhow::Result;
use rustix::thread::ThreadNameSpaceType as Ns;

use super::config::{Cluster, GATEWAY_IP, GATEWAY_IP6, LAPTOP_IP, LAPTOP_IP6};
use crate::run::feed;
use crate::sys::{self, Entry};

/// Connects a cluster's node with the laptop.
pub(crate) fn cluster(node: u32, laptop: u32, cluster: &Cluster) -> Result<()> {
    let Cluster { link, api_ip, laptop_ip, .. } = cluster;
    ip(
        node,
        &format!(
            "link add laptop0 type veth peer name {link} netns {laptop}
addr add {api_ip}/30 dev laptop0
link set laptop0 up
"
        ),
    )?;
    ip(laptop, &format!("addr add {laptop_ip}/30 dev {link}\nlink set {link} up\n"))
}

/// Takes a cable away from the laptop, both ends of it. It would go with the node's network namespace, but that may live on for
/// minutes after the last process: connections whose other side has gone are sent again and again.
pub(crate) fn cut(laptop: u32, link: &str) -> Result<()> {
    ip(laptop, &format!("link del {link}\n"))
}

/// Connects *internet* with the laptop.
pub(crate) fn internet(internet: u32, laptop: u32) -> Result<()> {
    // The name server and the web server have their addresses on the far `lo` already.
    ip(
        internet,
        &format!(
            "link add laptop0 type veth peer name eth0 netns {laptop}
addr add {GATEWAY_IP}/24 dev laptop0
addr add {GATEWAY_IP6}/64 dev laptop0 nodad
link set laptop0 up
"
        ),
    )?;
    ip(
        laptop,
        &format!(
            "addr add {LAPTOP_IP}/24 dev eth0
addr add {LAPTOP_IP6}/64 dev eth0 nodad
link set eth0 up
route add default via {GATEWAY_IP}
route add default via {GATEWAY_IP6}
"
        ),
    )
}

fn ip(process: u32, lines: &str) -> Result<()> {
    let mut command = Command::new("ip");
    command.args(["-batch", "-"]);
    sys::enter(&mut command, Entry { enter: Some((sys::pidfd(process)?, Ns::NETWORK)), ..Entry::default() });
    feed(&mut command, lines).map(drop)
}
