//! What no single value shows: subnets that cannot be used, or not together, within a layer or across layers.
//!
//! [`decide`](crate::subnets::decide) finds the same and more, because it knows the cluster and the host; but it does not
//! know places, and by then something has been started.

use ipnet::IpNet;

use super::{Config, ConfigError, List, Mapping, Partial, Setting};
use crate::{
    devices::DevicePattern,
    plan::{Plan, may_be_steered},
    subnets::{VnatSelector, ranges},
};

const VIRTUAL: &str = "routing.virtualSubnet";
const VNAT: &str = "routing.vnat";
const ALSO: &str = "routing.alsoProxySubnets";
const NEVER: &str = "routing.neverProxySubnets";
const MAPPINGS: &str = "dns.mappings";
const DEVICES: &str = "containers.devices";

impl Partial {
    /// Checks one layer by itself, so that the layer is blamed which is wrong whatever the others say.
    ///
    /// # Errors
    /// The first [`ConfigError`].
    pub fn check(&self) -> Result<(), ConfigError> {
        fn of<T>(list: &Option<Setting<List<T>>>) -> &[Setting<T>] {
            list.as_ref().map_or(&[], |setting| &setting.value)
        }
        check(of(&self.virtual_subnet), of(&self.vnat), of(&self.also_proxy_subnets), of(&self.never_proxy_subnets))?;
        few_devices(of(&self.container_devices))?;
        mapped_once(of(&self.mappings))
    }
}

impl Config {
    /// Checks the whole.
    ///
    /// # Errors
    /// The first [`ConfigError`]; it names both places.
    pub fn check(&self) -> Result<(), ConfigError> {
        check(
            &self.virtual_subnet.value,
            &self.vnat.value,
            &self.also_proxy_subnets.value,
            &self.never_proxy_subnets.value,
        )
    }
}

/// As many as a plan takes.
fn few_devices(devices: &[Setting<DevicePattern>]) -> Result<(), ConfigError> {
    match devices.get(Plan::MAX_CONTAINER_DEVICES) {
        Some(one) => {
            let what = format!("{} is one too many: {} are possible", one.value, Plan::MAX_CONTAINER_DEVICES);
            Err(ConfigError::new(one.origin.clone(), DEVICES, what, "join some with * or ?"))
        }
        None => Ok(()),
    }
}

/// One layer alone sets all mappings, so this is no question of the whole.
fn mapped_once(mappings: &[Setting<Mapping>]) -> Result<(), ConfigError> {
    for (index, mapping) in mappings.iter().enumerate() {
        if let Some(first) = mappings[..index].iter().find(|other| other.value.name == mapping.value.name) {
            let what = format!("{} is mapped twice, first at {}", mapping.value.name, first.origin);
            return Err(ConfigError::new(mapping.origin.clone(), MAPPINGS, what, "leave one of them out"));
        }
    }
    Ok(())
}

fn check(
    ranges: &[Setting<IpNet>],
    vnat: &[Setting<VnatSelector>],
    also: &[Setting<IpNet>],
    never: &[Setting<IpNet>],
) -> Result<(), ConfigError> {
    for (index, range) in ranges.iter().enumerate() {
        let error = |what: String, next: &str| Err(ConfigError::new(range.origin.clone(), VIRTUAL, what, next));
        if let Err(why) = ranges::can_hold(range.value) {
            let what = format!("{} cannot hold virtual addresses: {why}", range.value);
            return error(what, "choose a range that nothing uses, as 246.246.0.0/16");
        }
        let same_family = |other: &&Setting<IpNet>| other.value.addr().is_ipv4() == range.value.addr().is_ipv4();
        if let Some(other) = ranges[..index].iter().find(same_family) {
            let what = format!("{} is the second range of its family, after {}", range.value, other.value);
            return error(what, "give one IPv4 and one IPv6 range at most");
        }
    }
    let selected = vnat.iter().filter_map(|selector| match selector.value {
        VnatSelector::Cidr(net) => Some((Setting::new(net, selector.origin.clone()), VNAT)),
        _ => None,
    });
    for (subnet, key) in selected.chain(also.iter().map(|subnet| (subnet.clone(), ALSO))) {
        if let Err(why) = may_be_steered(&subnet.value) {
            let next = "name the subnets that you need";
            return Err(ConfigError::new(subnet.origin, key, why.to_string(), next));
        }
        let overlaps =
            |range: &&Setting<IpNet>| range.value.contains(&subnet.value) || subnet.value.contains(&range.value);
        if let Some(range) = ranges.iter().find(overlaps) {
            return Err(collision(range, &subnet, key));
        }
    }
    let around = |net: &IpNet| ranges.iter().find(|range| range.value.contains(net));
    match never.iter().find_map(|subnet| Some((around(&subnet.value)?, subnet))) {
        Some((range, subnet)) => Err(collision(range, subnet, NEVER)),
        None => Ok(()),
    }
}

/// Blames the stronger layer, which is what somebody has changed last; on equal terms the range, which can be moved.
fn collision(range: &Setting<IpNet>, subnet: &Setting<IpNet>, key: &str) -> ConfigError {
    let overlaps = |one: &Setting<IpNet>, other: &Setting<IpNet>, key: &str| {
        format!("{} overlaps {} ({key}, {})", one.value, other.value, other.origin)
    };
    if range.origin.source >= subnet.origin.source {
        let what = overlaps(range, subnet, key);
        ConfigError::new(range.origin.clone(), VIRTUAL, what, "choose another virtual subnet")
    } else {
        let what = overlaps(subnet, range, VIRTUAL);
        ConfigError::new(subnet.origin.clone(), key, what, "choose another subnet, or set routing.virtualSubnet")
    }
}
