//! Which road connections take into the tunnel, and why.

use tpx_core::{
    config::Datapath,
    plan::{Road, Scope},
};
use tpx_datapath::HostError;

use crate::failure::{Failure, Kind};

/// The road, with the reason where it is not the usual one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chosen {
    /// The road.
    pub road: Road,
    /// Why, for people.
    pub because: String,
}

impl Chosen {
    /// The floor, where the express lane could not be laid although nothing was known to be missing: a kernel that
    /// refuses a program, for example. `None` where it was insisted on, or the plan itself was refused.
    pub(crate) fn instead(&self, asked: Datapath, error: &HostError) -> Option<Self> {
        let may = asked == Datapath::Auto && self.road == Road::Express && !matches!(error, HostError::Refused(_));
        may.then(|| Self { road: Road::Tun, because: format!("the eBPF datapath could not be set up: {error}") })
    }
}

/// Chooses: what was asked for (`--datapath`), unless the privileged daemon says that it cannot be had.
///
/// # Errors
/// When the express lane was asked for and is not available.
pub(crate) fn choose(asked: Datapath, origin: &str, unavailable: Option<&str>) -> Result<Chosen, Failure> {
    match (asked, unavailable) {
        (Datapath::Tun, _) => Ok(Chosen { road: Road::Tun, because: format!("{origin} says so") }),
        (Datapath::Auto | Datapath::Ebpf, None) => {
            Ok(Chosen { road: Road::Express, because: "the kernel has all that it needs".into() })
        }
        (Datapath::Auto, Some(why)) => {
            Ok(Chosen { road: Road::Tun, because: format!("the eBPF datapath is not available: {why}") })
        }
        (Datapath::Ebpf, Some(why)) => Err(Failure::new(
            Kind::Host,
            format!("the eBPF datapath is not available: {why}"),
            "leave --datapath away to use the TUN device instead, or see README.md, \"What the laptop needs\"",
        )),
    }
}

/// Whoever is not the whole workstation needs the express lane: the floor's routes serve everybody.
///
/// # Errors
/// When the road is the floor.
pub(crate) fn check_scope(scope: &Scope, chosen: &Chosen) -> Result<(), Failure> {
    match (scope, chosen.road) {
        (Scope::Workstation, _) | (_, Road::Express) => Ok(()),
        (_, Road::Tun) => Err(no_scope(Kind::Host, &chosen.because)),
    }
}

/// Says that a scope is not to be had without the express lane.
pub(crate) fn no_scope(kind: Kind, because: &str) -> Failure {
    Failure::new(
        kind,
        format!("only the eBPF datapath can show the cluster to some processes and not to others, and {because}"),
        "use --datapath auto where the kernel has it, or `tpx connect` for the whole workstation",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floor_is_for_those_who_ask_and_those_who_must() {
        let why = Some("CAP_BPF is missing");
        let road = |asked, unavailable| choose(asked, "--datapath", unavailable).map(|chosen| chosen.road);
        assert_eq!(road(Datapath::Auto, None).unwrap(), Road::Express);
        assert_eq!(road(Datapath::Auto, why).unwrap(), Road::Tun);
        assert_eq!(road(Datapath::Tun, None).unwrap(), Road::Tun);
        assert_eq!(road(Datapath::Ebpf, None).unwrap(), Road::Express);
        assert!(road(Datapath::Ebpf, why).unwrap_err().to_string().contains("CAP_BPF"));
        assert!(choose(Datapath::Auto, "", why).unwrap().because.contains("CAP_BPF"));
        let express = choose(Datapath::Auto, "", None).unwrap();
        let failed = HostError::Unsupported("no sk_lookup".into());
        assert_eq!(express.instead(Datapath::Auto, &failed).map(|chosen| chosen.road), Some(Road::Tun));
        assert_eq!(express.instead(Datapath::Ebpf, &failed), None);
        assert_eq!(express.instead(Datapath::Auto, &HostError::Refused("loopback".into())), None);
    }

    #[test]
    fn scopes_need_the_express_lane() {
        let why = Some("CAP_BPF is missing");
        let chosen = |unavailable| choose(Datapath::Auto, "", unavailable).unwrap();
        assert!(check_scope(&Scope::Workstation, &chosen(why)).is_ok());
        assert!(check_scope(&Scope::Tree, &chosen(None)).is_ok());
        for scope in [Scope::Tree, Scope::Cgroup("/sys/fs/cgroup/x".into())] {
            let said = check_scope(&scope, &chosen(why)).unwrap_err().to_string();
            assert!(said.contains("CAP_BPF") && said.contains("`tpx connect`"), "{said}");
        }
    }
}
