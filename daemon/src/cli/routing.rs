//! Flags that set what `config.yml` can also set: the strongest layer of the configuration.

use clap::Args;
use tpx_core::config::{ConfigError, Origin, Partial};

/// The routing flags of `tpx connect`. Read by the configuration's own rules, so that a flag and a key mean the same.
#[derive(Args)]
#[command(next_help_heading = "Routing (stronger than config.yml, see `tpx config view`)")]
pub(crate) struct RoutingArgs {
    /// How connections enter the tunnel: auto, ebpf or tun
    ///
    /// auto takes eBPF where the kernel has it, and the TUN device for the rest; ebpf fails where it is missing; tun
    /// loads no program.
    #[arg(long, value_name = "auto|ebpf|tun", env = "TPX_DATAPATH")]
    datapath: Option<String>,
    /// Put a subnet behind virtual addresses: a CIDR, also, service, pods or all
    ///
    /// Names of the cluster then resolve to addresses in routing.virtualSubnet, and the subnet's own addresses go where
    /// the host's routes lead, as to a VPN. Repeatable. also: the subnets of --also-proxy. service, pods: the
    /// cluster's. all: all of these. What conflicts with a route of the host is moved without being asked for, unless
    /// routing.autoResolveConflicts is false.
    #[arg(long, value_name = "CIDR|SYMBOL")]
    vnat: Vec<String>,
    /// Reach these subnets through the cluster as well; the most specific subnet wins
    #[arg(long, value_name = "CIDR,CIDR")]
    also_proxy: Vec<String>,
    /// Never reach these subnets through the cluster; the most specific subnet wins
    #[arg(long, value_name = "CIDR,CIDR")]
    never_proxy: Vec<String>,
    /// Refuse connections to namespace:NAME, a CIDR or port:NUMBER in the cluster
    ///
    /// Repeatable. Programs get the error from connect() itself, and nothing is sent. namespace:NAME stands for the
    /// addresses that its services and pods have at the time.
    #[arg(long, value_name = "WHAT")]
    deny: Vec<String>,
    /// What connect() then says: access (permission denied) or refused (connection refused)
    #[arg(long, value_name = "access|refused")]
    deny_with: Option<String>,
    /// Where a cluster subnet and a route of the host overlap in these subnets, let the cluster win
    #[arg(long, value_name = "CIDR,CIDR")]
    allow_conflicting_subnets: Vec<String>,
}

impl RoutingArgs {
    /// What the flags set.
    ///
    /// # Errors
    /// The first value that is none; it names the flag.
    pub(crate) fn layer(&self) -> Result<Partial, ConfigError> {
        let mut layer = Partial::default();
        let datapath: Vec<String> = self.datapath.iter().cloned().collect();
        let deny_with: Vec<String> = self.deny_with.iter().cloned().collect();
        for (key, flag, words) in [
            ("datapath", "--datapath", &datapath),
            ("routing.vnat", "--vnat", &self.vnat),
            ("routing.alsoProxySubnets", "--also-proxy", &self.also_proxy),
            ("routing.neverProxySubnets", "--never-proxy", &self.never_proxy),
            ("policy.deny", "--deny", &self.deny),
            ("policy.denyWith", "--deny-with", &deny_with),
            ("routing.allowConflictingSubnets", "--allow-conflicting-subnets", &self.allow_conflicting_subnets),
        ] {
            layer.set(key, words, &Origin::flag(flag))?;
        }
        layer.check()?;
        Ok(layer)
    }
}
