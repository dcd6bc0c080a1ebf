//! What this host can do.

use std::{fs, path::PathBuf};

use aya::{
    maps::{Array, MapType},
    programs::ProgramType,
    sys::{BpfHelper, is_helper_supported, is_map_supported, is_program_supported},
    util::KernelVersion,
};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};

use super::cgroup;
use crate::linux::{Feature, sys};

/// The object file with the kernel programs; else why there is none.
#[cfg(express_lane)]
pub(super) fn programs() -> Result<&'static [u8], &'static str> {
    Ok(aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/tpx-ebpf")))
}

/// The build lacked the tools for kernel programs.
#[cfg(not(express_lane))]
pub(super) fn programs() -> Result<&'static [u8], &'static str> {
    Err("the express lane is not built in; run `cargo xtask setup` and build again")
}

/// Capability numbers of linux/capability.h.
const CAP_NET_ADMIN: u32 = 12;
const CAP_NET_RAW: u32 = 13;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

/// What this host can do, as this process sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Features {
    /// What the kernel lacks.
    pub missing: Vec<Feature>,
    /// Root of the cgroup2 tree, which is the scope of the whole workstation.
    pub cgroup2: Option<PathBuf>,
    /// What else the express lane lacks, in one line.
    obstacle: Option<String>,
}

impl Features {
    /// Whether the express lane can run for the daemon of user `uid`; else why not, in one line.
    ///
    /// # Errors
    /// The first thing that is missing.
    pub fn express_lane(&self, uid: u32) -> Result<(), String> {
        if let Some(why) = &self.obstacle {
            return Err(why.clone());
        }
        let needed = self.missing.iter().find(|feature| feature.is_needed(uid));
        needed.map_or(Ok(()), |feature| Err(format!("the kernel has no {}", feature.about())))
    }
}

/// Looks at the host; changes nothing. The features `without` count as missing.
#[must_use]
pub fn probe(without: &[Feature]) -> Features {
    let cgroup2 = cgroup::root().ok();
    let obstacle = obstacle(cgroup2.is_some());
    // Without the right to ask, the kernel says of everything that it does not exist.
    let may_ask = missing_capability(&status(), false).is_none();
    let lacks = |feature: &Feature| without.contains(feature) || (may_ask && !has(*feature));
    let missing = Feature::ALL.into_iter().filter(lacks).collect();
    Features { missing, cgroup2, obstacle }
}

/// Whether programs load only with CAP_PERFMON. Before Linux 6.8 the verifier takes a number of one byte on the stack for a
/// pointer that was put there, and without that capability lets nobody write beside it ("bpf: fix check for attempt to
/// corrupt spilled pointer").
#[must_use]
pub fn needs_perfmon() -> bool {
    KernelVersion::current().is_ok_and(|version| version < KernelVersion::new(6, 8, 0))
}

/// Asks the kernel.
pub(super) fn has(feature: Feature) -> bool {
    let program = |kind| is_program_supported(kind).unwrap_or(false);
    match feature {
        Feature::ConnectHooks => program(ProgramType::CgroupSockAddr),
        Feature::SkLookup => program(ProgramType::SkLookup),
        Feature::SocketFilter => {
            program(ProgramType::SocketFilter) && is_map_supported(MapType::RingBuf).unwrap_or(false)
        }
        Feature::UserMaps => user_maps(),
        Feature::SetRetval => {
            is_helper_supported(ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_set_retval).unwrap_or(false)
        }
        Feature::NetnsCookie => std::net::UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0))
            .and_then(|socket| sys::netns_cookie(&socket))
            .is_ok(),
        Feature::Tcx => KernelVersion::current().is_ok_and(|version| version >= KernelVersion::new(6, 6, 0)),
    }
}

/// Uses a map as the user daemon will: a thread without any capability that was handed the file.
fn user_maps() -> bool {
    let Ok(map) = Array::<_, u32>::create(1, 0) else {
        return false;
    };
    let powerless = move || -> Option<u32> {
        let none = CapabilitySets {
            effective: CapabilitySet::empty(),
            permitted: CapabilitySet::empty(),
            inheritable: CapabilitySet::empty(),
        };
        // Capabilities are a thread's own; they end with it.
        set_capabilities(None, none).ok()?;
        map.get(&0, 0).ok()
    };
    std::thread::spawn(powerless).join().is_ok_and(|value| value.is_some())
}

fn status() -> String {
    fs::read_to_string("/proc/thread-self/status").unwrap_or_default()
}

/// The first thing that is in the way, other than a kernel that is too old.
fn obstacle(cgroup2: bool) -> Option<String> {
    if let Err(why) = programs() {
        return Some(why.into());
    }
    if let Some(missing) = missing_capability(&status(), needs_perfmon()) {
        return Some(format!("{missing} is missing; start tpx-rootd as root or as a service"));
    }
    if !fs::exists("/dev/net/tun").unwrap_or(false) {
        return Some("/dev/net/tun is missing; load the kernel module tun".into());
    }
    if !cgroup2 {
        return Some("no cgroup2 tree is mounted; mount one, for example at /sys/fs/cgroup/unified".into());
    }
    None
}

/// The first capability that the effective set of a `/proc/PID/status` file lacks.
fn missing_capability(status: &str, perfmon: bool) -> Option<&'static str> {
    let set = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0);
    let has = |cap: u32| set & (1 << cap) != 0;
    if !has(CAP_BPF) && !has(CAP_SYS_ADMIN) {
        Some("CAP_BPF")
    } else if perfmon && !has(CAP_PERFMON) && !has(CAP_SYS_ADMIN) {
        Some("CAP_PERFMON, which kernels before 6.8 want,")
    } else if !has(CAP_NET_ADMIN) {
        Some("CAP_NET_ADMIN")
    } else if !has(CAP_NET_RAW) {
        Some("CAP_NET_RAW")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_without_programs_says_so_before_anything_else() {
        let says = obstacle(false).is_some_and(|why| why.contains("cargo xtask setup"));
        assert_eq!(says, programs().is_err());
    }

    #[test]
    fn capabilities() {
        let status = |set: u64| format!("Name:\tx\nCapPrm:\tffffffffffffffff\nCapEff:\t{set:016x}\nCapBnd:\t0\n");
        let all = 1 << CAP_BPF | 1 << CAP_NET_ADMIN | 1 << CAP_NET_RAW;
        assert_eq!(missing_capability(&status(all), false), None);
        assert_eq!(missing_capability(&status(all & !(1 << CAP_BPF)), false), Some("CAP_BPF"));
        assert_eq!(missing_capability(&status(all & !(1 << CAP_BPF) | 1 << CAP_SYS_ADMIN), false), None);
        assert_eq!(missing_capability(&status(all & !(1 << CAP_NET_ADMIN)), false), Some("CAP_NET_ADMIN"));
        assert_eq!(missing_capability(&status(all & !(1 << CAP_NET_RAW)), false), Some("CAP_NET_RAW"));
        assert!(missing_capability(&status(all), true).is_some_and(|what| what.starts_with("CAP_PERFMON")));
        assert_eq!(missing_capability(&status(all | 1 << CAP_PERFMON), true), None);
        assert_eq!(missing_capability("", false), Some("CAP_BPF"));
    }
}
