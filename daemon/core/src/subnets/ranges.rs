//! The ranges of virtual addresses: what they hold, and what may not be near them.

use ipnet::IpNet;
use tpx_ebpf_abi::slot;

use super::{HostRoute, Inputs, SubnetError};
use crate::{
    cidr,
    plan::{PlanError, may_be_steered},
};

/// Longest prefixes of a range: fewer addresses than four hold nothing but the network's and the last.
const NARROWEST: (u8, u8) = (30, 126);

/// The parts of a range that virtual addresses may come from: all but tpx's own addresses.
pub(crate) fn usable(range: IpNet) -> Vec<IpNet> {
    let own =
        [IpNet::new_assert(slot::OWN4.0.into(), slot::OWN4.1), IpNet::new_assert(slot::OWN6.0.into(), slot::OWN6.1)];
    cidr::difference(&[range], &own)
}

/// Checks that `range` can hold virtual addresses and that nothing else lives there.
pub(super) fn check(range: IpNet, inputs: &Inputs) -> Result<(), SubnetError> {
    can_hold(range).map_err(|why| SubnetError::VirtualUnusable { range, why })?;
    match neighbour(range, inputs) {
        Some(what) => Err(SubnetError::VirtualTaken { range, what }),
        None => Ok(()),
    }
}

/// Checks that `range` can hold virtual addresses, whatever lives there; says why not.
pub(crate) fn can_hold(range: IpNet) -> Result<(), String> {
    if range != range.trunc() {
        return Err(format!("bits are set behind its prefix; it could be {}", range.trunc()));
    }
    let narrowest = if range.addr().is_ipv4() { NARROWEST.0 } else { NARROWEST.1 };
    let usable = usable(range);
    if range.prefix_len() > narrowest || usable.is_empty() {
        return Err("it has no room".to_owned());
    }
    // tpx's own addresses may be cut out of it, but they may not make it narrower than it is.
    let why = usable.iter().find_map(|net| may_be_steered(net).err());
    let wide = may_be_steered(&range).err().filter(|why| matches!(why, PlanError::TooWide { .. }));
    if let Some(why) = wide.or(why) {
        return Err(why.to_string());
    }
    Ok(())
}

/// What else uses addresses of `range`.
fn neighbour(range: IpNet, inputs: &Inputs) -> Option<String> {
    let overlaps = |net: &IpNet| range.contains(net) || net.contains(&range);
    let taken = |route: &&HostRoute| !inputs.scoped && !route.is_default() && overlaps(&route.destination);
    let mut routes: Vec<_> = inputs.host_routes.iter().filter(taken).collect();
    routes.sort();
    if let Some(route) = routes.first() {
        return Some(format!("the host's route {route}"));
    }
    let policy = &inputs.policy;
    let lists = [
        ("the cluster's service subnet", &inputs.service_subnets),
        ("the cluster's pod subnet", &inputs.pod_subnets),
        ("--also-proxy", &policy.also_proxy),
    ];
    for (what, nets) in lists {
        if let Some(net) = nets.iter().filter(|net| overlaps(net)).min() {
            return Some(format!("{what} {net}"));
        }
    }
    if let Some(net) = super::decide::vnat_cidrs(policy).filter(overlaps).min() {
        return Some(format!("--vnat {net}"));
    }
    if let Some(net) = policy.never_proxy.iter().filter(|net| range.contains(*net)).min() {
        return Some(format!("--never-proxy {net}"));
    }
    let hosts = [
        ("the API server", &inputs.api_server),
        ("the name server", &inputs.name_servers),
        ("the gateway", &inputs.gateways),
    ];
    hosts
        .iter()
        .find_map(|(what, ips)| ips.iter().filter(|ip| range.contains(*ip)).min().map(|ip| format!("{what} {ip}")))
}
