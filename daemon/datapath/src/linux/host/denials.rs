//! What must not be reached, in the programs' maps.

use std::collections::BTreeSet;

use aya::maps::{Array, HashMap, LpmTrie, MapData, MapError, lpm_trie::Key};
use ipnet::IpNet;
use tpx_core::{plan::Plan, policy::DenyWith};
use tpx_ebpf_abi::Policy;

/// What a plan denies.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Denials {
    nets: BTreeSet<IpNet>,
    ports: BTreeSet<u16>,
    with: DenyWith,
}

impl Denials {
    pub(super) fn of(plan: &Plan) -> Self {
        Self {
            nets: plan.deny.iter().copied().collect(),
            ports: plan.deny_ports.iter().copied().collect(),
            with: plan.deny_with,
        }
    }

    /// The programs' word for it.
    fn policy(&self) -> Policy {
        let errno = match self.with {
            _ if self.nets.is_empty() && self.ports.is_empty() => 0,
            DenyWith::Access => libc::EACCES,
            DenyWith::Refused => libc::ECONNREFUSED,
        };
        Policy { errno: errno.unsigned_abs(), ports: u32::from(!self.ports.is_empty()) }
    }
}

/// The maps, and what they hold.
pub(super) struct Denied {
    pub(super) nets4: LpmTrie<MapData, [u8; 4], u32>,
    pub(super) nets6: LpmTrie<MapData, [u8; 16], u32>,
    pub(super) ports: HashMap<MapData, u16, u8>,
    policy: Array<MapData, Policy>,
    now: Denials,
}

impl Denied {
    pub(super) fn new(
        nets4: LpmTrie<MapData, [u8; 4], u32>,
        nets6: LpmTrie<MapData, [u8; 16], u32>,
        ports: HashMap<MapData, u16, u8>,
        policy: Array<MapData, Policy>,
    ) -> Self {
        Self { nets4, nets6, ports, policy, now: Denials::default() }
    }

    /// Changes the maps from what they hold to `want`, keeping account after each step. What stays denied is so all the
    /// time.
    pub(super) fn become_like(&mut self, want: &Denials) -> Result<(), MapError> {
        for net in want.nets.difference(&self.now.nets.clone()) {
            match net {
                IpNet::V4(n) => self.nets4.insert(&Key::new(n.prefix_len().into(), n.addr().octets()), 1, 0),
                IpNet::V6(n) => self.nets6.insert(&Key::new(n.prefix_len().into(), n.addr().octets()), 1, 0),
            }?;
            self.now.nets.insert(*net);
        }
        for port in want.ports.difference(&self.now.ports.clone()) {
            self.ports.insert(*port, 1, 0)?;
            self.now.ports.insert(*port);
        }
        self.policy.set(0, want.policy(), 0)?;
        self.now.with = want.with;
        for net in self.now.nets.clone().difference(&want.nets) {
            match net {
                IpNet::V4(n) => self.nets4.remove(&Key::new(n.prefix_len().into(), n.addr().octets())),
                IpNet::V6(n) => self.nets6.remove(&Key::new(n.prefix_len().into(), n.addr().octets())),
            }?;
            self.now.nets.remove(net);
        }
        for port in self.now.ports.clone().difference(&want.ports) {
            self.ports.remove(port)?;
            self.now.ports.remove(port);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_looked_up_where_nothing_is_denied() {
        let nothing = Denials::of(&Plan { deny_with: DenyWith::Refused, ..Plan::default() });
        assert_eq!(nothing.policy(), Policy::default());
        let port = Denials::of(&Plan { deny_ports: vec![7], ..Plan::default() });
        assert_eq!(port.policy(), Policy { errno: 13, ports: 1 });
        let net = Plan { deny: vec!["10.0.0.0/8".parse().unwrap()], deny_with: DenyWith::Refused, ..Plan::default() };
        assert_eq!(Denials::of(&net).policy(), Policy { errno: 111, ports: 0 });
    }
}
