//! The one place with `unsafe`: what a child does between `fork` and `exec` to enter or make namespaces.
#![allow(
    unsafe_code,
    reason = "Command::pre_exec is unsafe and there is no other way into a namespace for a child alone"
)]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

use anyhow::{Context, Result};
use rustix::process::{Gid, Pid, PidfdFlags, Signal, Uid};
use rustix::thread::{ThreadNameSpaceType as Ns, UnshareFlags};

/// How a child starts; everything in it is applied in the child alone, in the order of the fields.
#[derive(Default)]
pub(crate) struct Entry {
    /// Open `cgroup.procs` files; the child joins each of these cgroups.
    pub(crate) cgroups: Vec<OwnedFd>,
    /// The process whose namespaces are entered, and which of them.
    pub(crate) enter: Option<(OwnedFd, Ns)>,
    /// A session and namespaces of its own, for the first process of a part of the lab.
    pub(crate) fresh: bool,
    /// The user to become.
    pub(crate) user: Option<(u32, Vec<u32>)>,
    /// The working directory, as seen from inside.
    pub(crate) cwd: Option<CString>,
    /// Whether the child dies with its parent.
    pub(crate) die_with_parent: bool,
}

impl Entry {
    /// Applies it to the calling process. Only system calls on memory that exists already: this runs after `fork`.
    fn apply(&self) -> io::Result<()> {
        for procs in &self.cgroups {
            rustix::io::write(procs, b"0")?;
        }
        if let Some((process, which)) = &self.enter {
            rustix::thread::move_into_thread_name_spaces(process.as_fd(), *which)?;
        }
        if self.fresh {
            rustix::process::setsid()?;
            let flags = UnshareFlags::NEWNS
                | UnshareFlags::NEWNET
                | UnshareFlags::NEWUTS
                | UnshareFlags::NEWIPC
                | UnshareFlags::NEWCGROUP;
            // SAFETY: the process has one thread and shares no memory, file table or file-system state that this would take apart.
            unsafe { rustix::thread::unshare_unsafe(flags) }?;
        }
        if let Some((id, groups)) = &self.user {
            let mut list = [Gid::ROOT; 8];
            let count = groups.len().min(list.len());
            for (slot, group) in list.iter_mut().zip(groups) {
                *slot = Gid::from_raw(*group);
            }
            rustix::thread::set_thread_groups(list.get(..count).unwrap_or(&[]))?;
            let (uid, gid) = (Uid::from_raw(*id), Gid::from_raw(*id));
            rustix::thread::set_thread_res_gid(gid, gid, gid)?;
            rustix::thread::set_thread_res_uid(uid, uid, uid)?;
        }
        if let Some(cwd) = &self.cwd {
            rustix::process::chdir(cwd.as_c_str())?;
        }
        if self.die_with_parent {
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        }
        Ok(())
    }
}

/// Makes `command` start as `entry` says.
pub(crate) fn enter(command: &mut Command, entry: Entry) {
    // SAFETY: `Entry::apply` makes system calls only; it neither allocates nor takes a lock.
    unsafe { command.pre_exec(move || entry.apply()) };
}

/// A handle on a process that cannot come to mean another one.
pub(crate) fn pidfd(pid: u32) -> Result<OwnedFd> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).context("not a process id")?;
    rustix::process::pidfd_open(pid, PidfdFlags::empty())
        .with_context(|| format!("process {} is gone", pid.as_raw_nonzero()))
}

/// Starts `command` as the first process of a new PID namespace; the id is the one seen from here.
pub(crate) fn spawn_in_new_pid_namespace(command: &mut Command) -> Result<Child> {
    // SAFETY: a PID namespace counts for later children only; nothing of this process changes.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWPID) }.context("no new PID namespace: this needs root")?;
    let child = command.spawn();
    children_here()?;
    child.with_context(|| format!("cannot start {}", command.get_program().display()))
}

/// Starts `command` in the PID namespace of `process`.
pub(crate) fn spawn_in_pid_namespace(process: BorrowedFd<'_>, command: &mut Command) -> Result<Child> {
    rustix::thread::move_into_thread_name_spaces(process, Ns::PROCESS_ID)
        .context("cannot enter the PID namespace: this needs root")?;
    let child = command.spawn();
    children_here()?;
    child.with_context(|| format!("cannot start {}", command.get_program().display()))
}

/// Later children belong to this process's own PID namespace again.
fn children_here() -> Result<()> {
    let own = std::fs::File::open("/proc/self/ns/pid").context("/proc is not mounted")?;
    rustix::thread::move_into_link_name_space(own.as_fd(), Some(rustix::thread::LinkNameSpaceType::ProcessID))
        .context("cannot return to the own PID namespace")
}

/// Gives the calling thread a root, working directory and umask of its own, as entering a mount namespace asks for.
pub(crate) fn own_file_system_view() -> Result<()> {
    // SAFETY: only the calling thread's view changes, and it is about to end.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }.context("unshare(CLONE_FS)")
}
