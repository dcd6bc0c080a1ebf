//! From what the cluster and the host say to the plan.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;

use crate::plan::{Plan, Scope};

/// What the plan depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inputs {
    /// Who is affected.
    pub scope: Scope,
    /// The cluster's service subnets.
    pub service_subnets: Vec<IpNet>,
    /// The cluster's pod subnets.
    pub pod_subnets: Vec<IpNet>,
    /// Where the API server (or the proxy in front of it) is; the tunnel itself runs over it.
    pub api_server: Vec<IpAddr>,
    /// The name servers of resolv.conf, in its order.
    pub name_servers: Vec<IpAddr>,
}

/// Makes the plan. The order of the subnets does not matter.
#[must_use]
pub fn plan(inputs: &Inputs) -> Plan {
    let steer: BTreeSet<IpNet> = inputs.service_subnets.iter().chain(&inputs.pod_subnets).map(IpNet::trunc).collect();
    let covered = |ip: &&IpAddr| steer.iter().any(|net| net.contains(*ip));
    let except: BTreeSet<IpNet> =
        inputs.api_server.iter().chain(&inputs.name_servers).filter(covered).map(|ip| IpNet::from(*ip)).collect();
    let mut name_servers = Vec::new();
    for server in &inputs.name_servers {
        if !name_servers.contains(server) && name_servers.len() < Plan::MAX_NAME_SERVERS {
            name_servers.push(*server);
        }
    }
    Plan {
        scope: inputs.scope.clone(),
        steer: steer.into_iter().collect(),
        except: except.into_iter().collect(),
        name_servers,
        ..Plan::default()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn inputs() -> Inputs {
        Inputs {
            scope: Scope::Workstation,
            service_subnets: vec!["10.96.0.0/16".parse().unwrap(), "fd10:96::/112".parse().unwrap()],
            pod_subnets: vec!["10.244.0.0/16".parse().unwrap()],
            api_server: vec!["10.96.200.1".parse().unwrap(), "192.0.2.1".parse().unwrap()],
            name_servers: vec!["192.0.2.53".parse().unwrap(), "192.0.2.53".parse().unwrap()],
        }
    }

    #[test]
    fn an_api_server_inside_a_cluster_subnet_stays_reachable() {
        let plan = plan(&inputs());
        assert_eq!(plan.except, ["10.96.200.1/32".parse().unwrap()]);
        assert_eq!(plan.steer.len(), 3);
        assert_eq!(plan.name_servers, ["192.0.2.53".parse::<IpAddr>().unwrap()]);
    }

    proptest! {
        #[test]
        fn the_order_of_subnets_does_not_matter(a: [u8; 4], b: [u8; 4], n in 8u8..=32, m in 8u8..=32) {
            let nets = [IpNet::new(IpAddr::from(a), n).unwrap(), IpNet::new(IpAddr::from(b), m).unwrap()];
            let one = Inputs { pod_subnets: nets.to_vec(), ..inputs() };
            let other = Inputs { pod_subnets: vec![nets[1], nets[0]], ..inputs() };
            prop_assert_eq!(plan(&one), plan(&other));
        }
    }
}
