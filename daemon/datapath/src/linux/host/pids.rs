//! By which numbers the programs know processes: those that /proc shows to the daemons.

use aya::{
    programs::ProgramType,
    sys::{BpfHelper, is_helper_supported},
};
use rustix::fs::{major, minor, stat};
use tpx_ebpf_abi::Pids;

/// Inode of the initial PID namespace (PROC_PID_INIT_INO of linux/proc_ns.h).
const INITIAL: u64 = 0xefff_fffc;

/// A PID namespace, for the programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PidNamespace {
    /// Whether and how its numbers can be had.
    pub(super) kind: Pids,
    /// Its device, as the kernel's own code writes device numbers.
    pub(super) device: u64,
    /// Its inode.
    pub(super) inode: u64,
}

impl PidNamespace {
    /// No numbers at all.
    pub(super) const NONE: Self = Self { kind: Pids::Off, device: 0, inode: 0 };

    /// This process's. Where the kernel cannot translate into it, connections have no owners in the kernel, and are looked
    /// for in /proc.
    pub(super) fn own() -> Self {
        let Ok(found) = stat("/proc/self/ns/pid") else { return Self::NONE };
        let allowed = |helper| matches!(is_helper_supported(ProgramType::CgroupSockAddr, helper), Ok(true));
        if found.st_ino == INITIAL {
            let kind = if allowed(BpfHelper::BPF_FUNC_get_current_pid_tgid) { Pids::Initial } else { Pids::Off };
            return Self { kind, ..Self::NONE };
        }
        if !allowed(BpfHelper::BPF_FUNC_get_ns_current_pid_tgid) {
            return Self::NONE;
        }
        // MKDEV of linux/kdev_t.h.
        let device = u64::from(major(found.st_dev)) << 20 | u64::from(minor(found.st_dev));
        Self { kind: Pids::Namespace, device, inode: found.st_ino }
    }
}
