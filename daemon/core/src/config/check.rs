//! What no single value shows: subnets that do not fit together, within a layer or across layers.

use ipnet::IpNet;

use super::{Config, ConfigError, Partial, Setting, settings::List};

/// The longest prefixes of virtual ranges: below these there is no room for addresses worth the name.
const LONGEST: (u8, u8) = (28, 112);
/// The shortest prefixes of anything that is steered.
const SHORTEST: (u8, u8) = (8, 16);

const VIRTUAL: &str = "routing.virtualSubnet";
const ALSO: &str = "routing.alsoProxySubnets";
const NEVER: &str = "routing.neverProxySubnets";

impl Partial {
    /// Checks one layer by itself, so that the layer is blamed which is wrong whatever the others say.
    ///
    /// # Errors
    /// The first [`ConfigError`].
    pub fn check(&self) -> Result<(), ConfigError> {
        fn of<T>(list: &Option<Setting<List<T>>>) -> &[Setting<T>] {
            list.as_ref().map_or(&[], |setting| &setting.value)
        }
        check(of(&self.virtual_subnet), of(&self.also_proxy_subnets), of(&self.never_proxy_subnets))
    }
}

impl Config {
    /// Checks the whole.
    ///
    /// # Errors
    /// The first [`ConfigError`]; it names both places.
    pub fn check(&self) -> Result<(), ConfigError> {
        check(&self.virtual_subnet.value, &self.also_proxy_subnets.value, &self.never_proxy_subnets.value)
    }
}

fn check(ranges: &[Setting<IpNet>], also: &[Setting<IpNet>], never: &[Setting<IpNet>]) -> Result<(), ConfigError> {
    for (index, range) in ranges.iter().enumerate() {
        usable(range)?;
        if let Some(other) = ranges[..index].iter().find(|other| is_v4(other) == is_v4(range)) {
            return Err(ConfigError::new(
                range.origin.clone(),
                VIRTUAL,
                format!("{} is the second range of its family, after {}", range.value, other.value),
                "give one IPv4 and one IPv6 range at most",
            ));
        }
    }
    for subnet in also {
        let shortest = if is_v4(subnet) { SHORTEST.0 } else { SHORTEST.1 };
        if subnet.value.prefix_len() < shortest {
            return Err(ConfigError::new(
                subnet.origin.clone(),
                ALSO,
                format!("{} is too wide: nothing shorter than /{shortest} is ever steered", subnet.value),
                "name the subnets that you need",
            ));
        }
        if let Some(range) = ranges.iter().find(|range| overlap(&range.value, &subnet.value)) {
            return Err(collision(range, subnet, ALSO));
        }
    }
    let inside = |net: &IpNet| ranges.iter().find(|range| range.value.contains(net));
    match never.iter().find_map(|subnet| Some((inside(&subnet.value)?, subnet))) {
        Some((range, subnet)) => Err(collision(range, subnet, NEVER)),
        None => Ok(()),
    }
}

fn usable(range: &Setting<IpNet>) -> Result<(), ConfigError> {
    let net = &range.value;
    let error = |what: String, next: &str| Err(ConfigError::new(range.origin.clone(), VIRTUAL, what, next));
    let (shortest, longest) = if is_v4(range) { (SHORTEST.0, LONGEST.0) } else { (SHORTEST.1, LONGEST.1) };
    if !(shortest..=longest).contains(&net.prefix_len()) {
        let what = format!("{net} is too {}", if net.prefix_len() < shortest { "wide" } else { "narrow" });
        return error(what, &format!("choose a prefix from /{shortest} to /{longest}"));
    }
    let (first, last) = (net.network(), net.broadcast());
    for address in [first, last] {
        let what = match address {
            a if a.is_loopback() => "loopback",
            a if a.is_multicast() => "multicast",
            std::net::IpAddr::V4(a) if a.is_link_local() => "link-local",
            std::net::IpAddr::V6(a) if a.is_unicast_link_local() => "link-local",
            std::net::IpAddr::V4(a) if a.octets()[0] == 0 => "\"this network\"",
            _ => continue,
        };
        return error(format!("{net} touches {what} addresses"), "choose a range that nothing uses, as 246.246.0.0/16");
    }
    Ok(())
}

fn collision(range: &Setting<IpNet>, subnet: &Setting<IpNet>, key: &str) -> ConfigError {
    // The stronger layer is the one that a user changed last, and on equal terms the range is what can be moved.
    let ranges = range.origin.source >= subnet.origin.source;
    let what = |other: &Setting<IpNet>, key: &str| format!("overlaps {} ({key}, {})", other.value, other.origin);
    if ranges {
        let what = format!("{} {}", range.value, what(subnet, key));
        ConfigError::new(range.origin.clone(), VIRTUAL, what, "choose another virtual subnet")
    } else {
        let what = format!("{} {}", subnet.value, what(range, VIRTUAL));
        ConfigError::new(subnet.origin.clone(), key, what, "choose another subnet, or set routing.virtualSubnet")
    }
}

fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

fn is_v4(net: &Setting<IpNet>) -> bool {
    matches!(net.value, IpNet::V4(_))
}
