//! The system calls that are left after start-up (seccomp(2)), for this thread and all that it starts.
//!
//! Three answers, by what a call would mean. Calls by which a taken-over process would go on (running programs, looking
//! into other processes, loading kernel modules) are made by no honest path: they kill the process, and with it goes all
//! that it has changed. `clone3` does not exist (ENOSYS), because its flags cannot be looked at and the C library then
//! takes `clone`, whose flags can. Every other call off the list fails with EPERM: it may come from a newer C library on
//! an honest path, and the step that fails is named and undone, where a killed process would tell nobody why.

use std::collections::BTreeMap;

use anyhow::Context as _;
use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    apply_filter,
};

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Gives up all other system calls, for good. Threads that exist already keep theirs.
///
/// # Errors
/// When the kernel has no seccomp filters.
pub(crate) fn install() -> anyhow::Result<()> {
    let deadly = DEADLY.iter().map(|call| (*call, vec![])).collect();
    let missing = Rules::from([(libc::SYS_clone3, vec![])]);
    let filters = [
        filter(deadly, SeccompAction::Allow, SeccompAction::KillProcess),
        filter(missing, SeccompAction::Allow, SeccompAction::Errno(libc::ENOSYS.cast_unsigned())),
        // The last, since it no longer lets filters be set.
        filter(allowed()?, SeccompAction::Errno(libc::EPERM.cast_unsigned()), SeccompAction::Allow),
    ];
    for program in filters {
        apply_filter(&program?).context("the kernel takes no system call filter; `--no-seccomp` goes without")?;
    }
    Ok(())
}

fn filter(rules: Rules, otherwise: SeccompAction, matched: SeccompAction) -> anyhow::Result<BpfProgram> {
    let arch = std::env::consts::ARCH.try_into().context("seccomp on this processor")?;
    let filter = SeccompFilter::new(rules, otherwise, matched, arch).context("seccomp rules")?;
    filter.try_into().context("seccomp program")
}

/// The calls that start-up has left to make: those of serving, with what their arguments may be.
fn allowed() -> anyhow::Result<Rules> {
    let mut rules: Rules = ALLOWED.iter().chain(LEGACY).map(|call| (*call, vec![])).collect();
    let families = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];
    let family = |family: i32| argument(0, SeccompCmpOp::Eq, u64::from(family.cast_unsigned()));
    rules.insert(libc::SYS_socket, families.into_iter().map(family).collect::<anyhow::Result<_>>()?);
    rules.insert(libc::SYS_socketpair, vec![family(libc::AF_UNIX)?]);
    // Threads, but no namespaces.
    rules.insert(libc::SYS_clone, vec![lacks(0, NAMESPACES)?]);
    // No new code.
    let exec = u64::from(libc::PROT_EXEC.cast_unsigned());
    rules.insert(libc::SYS_mmap, vec![lacks(2, exec)?]);
    rules.insert(libc::SYS_mprotect, vec![lacks(2, exec)?]);
    Ok(rules)
}

fn lacks(index: u8, bits: u64) -> anyhow::Result<SeccompRule> {
    argument(index, SeccompCmpOp::MaskedEq(bits), 0)
}

fn argument(index: u8, operator: SeccompCmpOp, value: u64) -> anyhow::Result<SeccompRule> {
    let condition = SeccompCondition::new(index, SeccompCmpArgLen::Dword, operator, value).context("seccomp rule")?;
    SeccompRule::new(vec![condition]).context("seccomp rule")
}

/// `CLONE_NEW*` of linux/sched.h; clone(2) cannot make time namespaces.
const NAMESPACES: u64 = 0x7e02_0000;

const DEADLY: &[c_long] = &[
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_setuid,
    libc::SYS_setresuid,
    libc::SYS_add_key,
    libc::SYS_keyctl,
    libc::SYS_request_key,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
];

const ALLOWED: &[c_long] = &[
    // Files: /proc, /dev/net/tun, cgroups, type information of the kernel, the own socket.
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_close,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    libc::SYS_unlinkat,
    // Cgroups of process trees, and who is in them.
    libc::SYS_mkdirat,
    libc::SYS_flock,
    libc::SYS_pidfd_open,
    libc::SYS_fcntl,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_pipe2,
    libc::SYS_ioctl,
    // What it is for.
    libc::SYS_bpf,
    libc::SYS_connect,
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_shutdown,
    // Memory, threads, time, signals.
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    // Left to the filter that denies its existence: of two error numbers the last filter's wins.
    libc::SYS_clone3,
    libc::SYS_futex,
    libc::SYS_rseq,
    libc::SYS_set_robust_list,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_restart_syscall,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_tgkill,
    libc::SYS_prctl,
    libc::SYS_prlimit64,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    libc::SYS_getrandom,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_ppoll,
    // The next of the three filters; it takes no privilege and can only take more away.
    libc::SYS_seccomp,
];

/// What the C library calls where the processor's table is older than the calls above.
#[cfg(target_arch = "x86_64")]
const LEGACY: &[c_long] = &[
    libc::SYS_open,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_readlink,
    libc::SYS_unlink,
    libc::SYS_poll,
    libc::SYS_epoll_wait,
    libc::SYS_time,
];
#[cfg(not(target_arch = "x86_64"))]
const LEGACY: &[c_long] = &[];

#[cfg(test)]
mod tests {
    use std::{fs, io, net::UdpSocket, process::Command, thread};

    use rustix::net::{AddressFamily, SocketType, socket};

    use super::*;

    /// A filter is its thread's own.
    fn filtered<T: Send + 'static>(then: impl FnOnce() -> T + Send + 'static) -> T {
        thread::spawn(move || {
            install().unwrap();
            then()
        })
        .join()
        .unwrap()
    }

    #[test]
    fn what_is_needed_works() {
        filtered(|| {
            assert!(fs::read_to_string("/proc/thread-self/status").unwrap().contains("Seccomp:\t2"));
            UdpSocket::bind("127.0.0.1:0").unwrap();
            socket(AddressFamily::NETLINK, SocketType::RAW, None).unwrap();
            assert_eq!(thread::spawn(|| vec![1_u8; 1 << 22].len()).join().unwrap(), 1 << 22);
        });
    }

    #[test]
    fn the_rest_is_refused() {
        // Without the filter the kernel lets everybody do this.
        rustix::process::setpriority_process(None, 0).unwrap();
        filtered(|| {
            let refused = socket(AddressFamily::PACKET, SocketType::DGRAM, None).unwrap_err();
            assert_eq!(refused, rustix::io::Errno::PERM);
            let refused = fs::set_permissions("/dev/null", fs::metadata("/dev/null").unwrap().permissions());
            assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
            let refused = rustix::process::setpriority_process(None, 0).unwrap_err();
            assert_eq!(refused, rustix::io::Errno::PERM);
        });
    }

    #[test]
    fn no_program_is_run() {
        let marker = tempfile::tempdir().unwrap();
        let ran = |name: &str| {
            let path = marker.path().join(name);
            let until = std::time::Instant::now() + std::time::Duration::from_millis(500);
            while !path.exists() && std::time::Instant::now() < until {
                thread::sleep(std::time::Duration::from_millis(5));
            }
            path.exists()
        };
        let touch = |name: &str| {
            let path = marker.path().join(name);
            move || drop(Command::new("touch").arg(path).spawn())
        };
        touch("free")();
        assert!(ran("free"));
        // The child dies at execve(2); that it ended at all may not be asked for either.
        filtered(touch("filtered"));
        assert!(!ran("filtered"));
    }
}
