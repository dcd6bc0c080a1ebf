//! What the configuration means to those who decide by it.

use ipnet::IpNet;

use super::{Config, List};
use crate::{devices::DevicePattern, dns::PolicyConfig, policy::DenyRule, subnets::RoutingPolicy};

impl Config {
    /// The rules of routing. A family without a range of its own keeps the usual one.
    #[must_use]
    pub fn routing(&self) -> RoutingPolicy {
        fn values<T: Clone>(list: &List<T>) -> Vec<T> {
            list.iter().map(|setting| setting.value.clone()).collect()
        }
        let mut policy = RoutingPolicy {
            vnat: values(&self.vnat.value),
            also_proxy: values(&self.also_proxy_subnets.value),
            never_proxy: values(&self.never_proxy_subnets.value),
            allow_conflicting: values(&self.allow_conflicting_subnets.value),
            auto_resolve: self.auto_resolve_conflicts.value,
            ..RoutingPolicy::here()
        };
        for range in &self.virtual_subnet.value {
            match range.value {
                IpNet::V4(net) => policy.virtual4 = net,
                IpNet::V6(net) => policy.virtual6 = net,
            }
        }
        policy
    }

    /// What must not be reached.
    #[must_use]
    pub fn denials(&self) -> Vec<DenyRule> {
        self.deny.value.iter().map(|setting| setting.value.clone()).collect()
    }

    /// The bridges whose containers see the cluster; none when containers are left out.
    #[must_use]
    pub fn served_devices(&self) -> Vec<DevicePattern> {
        let devices = self.container_devices.value.iter().filter(|_| self.containers.value);
        devices.map(|setting| setting.value.clone()).collect()
    }

    /// Adds the user's rules to what decides about names.
    pub fn rule_names(&self, policy: &mut PolicyConfig) {
        let names = |list: &List<super::DnsName>| list.iter().map(|setting| setting.value.name()).collect();
        policy.include_suffixes = names(&self.include_suffixes.value);
        policy.exclude_suffixes = names(&self.exclude_suffixes.value);
        policy.excludes = names(&self.excludes.value);
        // Both were names when they were read.
        policy.mappings = self
            .mappings
            .value
            .iter()
            .filter_map(|mapping| Some((mapping.value.name.parse().ok()?, mapping.value.alias_for.parse().ok()?)))
            .collect();
    }
}
