//! Which road connections take into the tunnel, and why.

use tpx_core::{config::Datapath, plan::Road};
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
}
