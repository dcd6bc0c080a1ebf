//! What this host can do.

use std::{fs, path::PathBuf};

use aya::{
    programs::ProgramType,
    sys::{BpfHelper, is_helper_supported, is_program_supported},
    util::KernelVersion,
};

use super::cgroup;

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
const CAP_BPF: u32 = 39;

/// What this host can do, as this process sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Features {
    /// Whether the express lane can run; else why not, in one line.
    pub express_lane: Result<(), String>,
    /// Root of the cgroup2 tree, which is the scope of the whole workstation.
    pub cgroup2: Option<PathBuf>,
}

/// Looks at the host; changes nothing.
#[must_use]
pub fn probe() -> Features {
    let cgroup2 = cgroup::root().ok();
    let express_lane = reason(cgroup2.is_some()).map_or(Ok(()), Err);
    Features { express_lane, cgroup2 }
}

/// Whether programs can be attached to devices by links.
pub(super) fn has_tcx() -> bool {
    KernelVersion::current().is_ok_and(|version| version >= KernelVersion::new(6, 6, 0))
}

/// The first thing that is missing.
fn reason(cgroup2: bool) -> Option<String> {
    if let Err(why) = programs() {
        return Some(why.into());
    }
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    if let Some(missing) = missing_capability(&status) {
        return Some(format!("{missing} is missing; start tpx-rootd as root or as a service"));
    }
    if !fs::exists("/dev/net/tun").unwrap_or(false) {
        return Some("/dev/net/tun is missing; load the kernel module tun".into());
    }
    if !cgroup2 {
        return Some("no cgroup2 tree is mounted; mount one, for example at /sys/fs/cgroup/unified".into());
    }
    for (kind, name, since) in [
        (ProgramType::CgroupSockAddr, "connect hooks of cgroups", "5.8"),
        (ProgramType::SkLookup, "sk_lookup programs", "5.9"),
        (ProgramType::SocketFilter, "socket filter programs", "5.8"),
    ] {
        match is_program_supported(kind) {
            Ok(true) => {}
            Ok(false) => {
                return Some(format!("the kernel has no {name}; they need Linux {since} and CONFIG_BPF_SYSCALL"));
            }
            Err(e) => return Some(format!("the kernel does not say whether it has {name}: {e}")),
        }
    }
    None
}

/// Whether a hook may say which error a refused call ends with (Linux 5.18); elsewhere it is EPERM.
pub(super) fn names_errors() -> bool {
    matches!(is_helper_supported(ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_set_retval), Ok(true))
}

/// The first capability that the effective set of a `/proc/PID/status` file lacks.
fn missing_capability(status: &str) -> Option<&'static str> {
    let set = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0);
    let has = |cap: u32| set & (1 << cap) != 0;
    if !has(CAP_BPF) && !has(CAP_SYS_ADMIN) {
        Some("CAP_BPF")
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
        let says = reason(false).is_some_and(|why| why.contains("cargo xtask setup"));
        assert_eq!(says, programs().is_err());
    }

    #[test]
    fn capabilities() {
        let status = |set: u64| format!("Name:\tx\nCapPrm:\tffffffffffffffff\nCapEff:\t{set:016x}\nCapBnd:\t0\n");
        let all = 1 << CAP_BPF | 1 << CAP_NET_ADMIN | 1 << CAP_NET_RAW;
        assert_eq!(missing_capability(&status(all)), None);
        assert_eq!(missing_capability(&status(all & !(1 << CAP_BPF))), Some("CAP_BPF"));
        assert_eq!(missing_capability(&status(all & !(1 << CAP_BPF) | 1 << CAP_SYS_ADMIN)), None);
        assert_eq!(missing_capability(&status(all & !(1 << CAP_NET_ADMIN))), Some("CAP_NET_ADMIN"));
        assert_eq!(missing_capability(&status(all & !(1 << CAP_NET_RAW))), Some("CAP_NET_RAW"));
        assert_eq!(missing_capability(""), Some("CAP_BPF"));
    }
}
