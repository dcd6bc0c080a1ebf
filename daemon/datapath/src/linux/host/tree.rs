//! The cgroup of a process tree: made below the caller's own, removed when the session ends.
//!
//! Cgroups hang on no file: one whose maker was killed stays. So each is locked (flock(2)) as long as its session lives,
//! and the next start removes those with a name of ours that nobody has locked. Processes are never ended: what is still
//! inside moves to the cgroup around.

use std::{
    ffi::CStr,
    io::{self, Read as _},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    fs::{AtFlags, CWD, Dir, FileType, FlockOperation, Mode, OFlags, flock, fstat, mkdirat, openat, unlinkat},
    io::Errno,
    process::geteuid,
};
use tpx_ebpf_abi::slot::Slot;

use super::{cgroup, process::Process, system};
use crate::{
    HostError,
    linux::cgroup::{TREE, is_tree},
};

/// Trees of one slot that may lie side by side: those whose processes could not be moved, and those around a live one.
const NAMES: u32 = 64;
/// How often a cgroup is emptied again because processes in it went on to make others, and the pause in between.
const ROUNDS: u32 = 100;
const PAUSE: Duration = Duration::from_millis(5);
/// How deep cgroups are looked into, and how many directories are looked at in all.
const DEPTH: u32 = 32;
const DIRECTORIES: u32 = 100_000;

/// A live process tree. Dropping it removes the cgroup.
#[derive(Debug)]
pub(super) struct Tree {
    parent: OwnedFd,
    name: String,
    /// Where it is.
    pub(super) path: PathBuf,
    /// Open, and locked.
    pub(super) directory: OwnedFd,
}

impl Tree {
    /// Makes one for `slot` as a child of the cgroup that the process `caller` is in, else that of this process.
    pub(super) fn create(slot: Slot, caller: Option<&Process>) -> Result<Self, HostError> {
        let around = || {
            let found = cgroup::of_process(caller.map_or_else(std::process::id, Process::id))?;
            // What was read is another process's once this one has ended.
            match caller.map(Process::is_alive).transpose()? {
                Some(false) => Err(Errno::SRCH.into()),
                _ => Ok(found),
            }
        };
        let (root, inside) = around().map_err(|e| system("find the caller's cgroup", e))?;
        let around = root.join(&inside);
        let make = || -> io::Result<Self> {
            let parent = cgroup::beneath(&root, &inside)?;
            for n in 0..NAMES {
                let name = format!("{TREE}{}-{n}", slot.index());
                match mkdirat(&parent, &name, Mode::from_raw_mode(0o755)) {
                    // Left behind by a session that could not remove it.
                    Err(Errno::EXIST) => continue,
                    made => made?,
                }
                let locked = open(parent.as_fd(), &name).and_then(|directory| {
                    flock(&directory, FlockOperation::NonBlockingLockExclusive)?;
                    Ok(directory)
                });
                match locked {
                    Ok(directory) => return Ok(Self { path: around.join(&name), parent, name, directory }),
                    // Anybody may open the directory, and lock it first.
                    Err(_) => unlinkat(&parent, &name, AtFlags::REMOVEDIR)?,
                }
            }
            Err(io::ErrorKind::AlreadyExists.into())
        };
        make().map_err(|e| system(format!("make a cgroup in {}", around.display()), e))
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        if let Err(e) = remove(self.parent.as_fd(), &self.name, self.parent.as_fd(), DEPTH) {
            tracing::warn!("cannot remove the cgroup {}: {e}", self.path.display());
        }
        // It may have been the last thing in trees that have ended before it.
        let mut child = self.path.as_path();
        while let Some(path) = child.parent().filter(|path| path.file_name().is_some_and(is_tree)) {
            if path.parent().is_none_or(|around| remove_if_dead(around, path).is_err()) {
                break;
            }
            child = path;
        }
    }
}

/// Moves a process of user `uid` into the tree at `path`, which [`Tree::create`] has made.
///
/// # Errors
/// [`HostError::Refused`] for any other path, or when the process is too far away from it; [`HostError::System`] when it is
/// gone or the kernel says no.
pub fn enter(path: &Path, process: &Process, uid: u32) -> Result<(), HostError> {
    if !path.file_name().is_some_and(is_tree) {
        return Err(HostError::Refused(format!("{path:?} is no process tree of tpx")));
    }
    let (_, directory) = cgroup::open(path)?;
    let what = |e: io::Error| system(format!("move process {} into {}", process.id(), path.display()), e);
    let (root, from) = cgroup::of_process(process.id()).map_err(what)?;
    if !process.is_alive().map_err(what)? {
        return Err(what(Errno::SRCH.into()));
    }
    if uid != 0 && !is_near(path.strip_prefix(&root).unwrap_or(path), &from, uid) {
        let why = format!("process {} may not come into {}", process.id(), path.display());
        return Err(HostError::Refused(format!("{why}: it may be confined to another part of the machine")));
    }
    add(directory.as_fd(), process.id()).map_err(what)
}

/// Whether a process in the cgroup `from` may come into the tree at `tree`, both below the root: it does not leave limits
/// that somebody has put around it. It comes from around the tree, or both are the user's own session. The kernel's own rule
/// (cgroup-v2.rst, "Delegation Containment") would ask for the right to write around both, which users lack.
fn is_near(tree: &Path, from: &Path, uid: u32) -> bool {
    let session = PathBuf::from(format!("user.slice/user-{uid}.slice"));
    tree.parent().is_some_and(|around| from.starts_with(around))
        || (tree.starts_with(&session) && from.starts_with(&session))
}

/// Removes the process trees that killed daemons have left behind, wherever they are, until it takes too long. What cannot be
/// removed is logged.
pub(super) fn sweep(until: Instant) -> io::Result<()> {
    let root = cgroup::root()?;
    let directory = openat(CWD, &root, DIRECTORY, Mode::empty())?;
    let mut left = DIRECTORIES;
    sweep_in(directory.as_fd(), DEPTH, &mut left, until);
    Ok(())
}

fn sweep_in(directory: BorrowedFd<'_>, depth: u32, left: &mut u32, until: Instant) {
    for name in children(directory).unwrap_or_default() {
        if depth == 0 || *left == 0 || Instant::now() >= until {
            return;
        }
        *left -= 1;
        // One that has just gone needs no sweeping.
        let Ok(child) = open(directory, &name) else { continue };
        // What is inside goes first, so that a dead one around dead ones goes as well.
        sweep_in(child.as_fd(), depth - 1, left, until);
        // What somebody else has made under such a name is theirs.
        let made_here = fstat(&child).is_ok_and(|stat| stat.st_uid == geteuid().as_raw());
        if made_here && is_tree(name.as_ref()) && is_dead(&child) {
            match remove(directory, &name, directory, depth) {
                Ok(()) => tracing::info!("removed the cgroup {name} of a session that was killed"),
                Err(e) => tracing::warn!("cannot remove the cgroup {name} of a session that was killed: {e}"),
            }
        }
    }
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);

fn open(parent: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd> {
    Ok(openat(parent, name, DIRECTORY, Mode::empty())?)
}

/// Whether no session has it.
fn is_dead(directory: &OwnedFd) -> bool {
    flock(directory, FlockOperation::NonBlockingLockExclusive).is_ok()
}

fn remove_if_dead(around: &Path, path: &Path) -> io::Result<()> {
    let parent = openat(CWD, around, DIRECTORY, Mode::empty())?;
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let directory = open(parent.as_fd(), name)?;
    if is_dead(&directory) { remove(parent.as_fd(), name, parent.as_fd(), DEPTH) } else { Err(Errno::BUSY.into()) }
}

/// Removes a cgroup and those inside it; their processes move to `around`. Trees inside that are alive stay, and so does
/// what is around them.
fn remove(parent: BorrowedFd<'_>, name: &str, around: BorrowedFd<'_>, depth: u32) -> io::Result<()> {
    let directory = match open(parent, name) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened?,
    };
    let mut last = Errno::BUSY;
    for round in 0..ROUNDS {
        if round > 0 {
            thread::sleep(PAUSE);
        }
        for child in children(directory.as_fd())? {
            if depth == 0 {
                return Err(Errno::LOOP.into());
            }
            let alive = is_tree(child.as_ref()) && !open(directory.as_fd(), &child).is_ok_and(|child| is_dead(&child));
            if !alive {
                remove(directory.as_fd(), &child, around, depth - 1)?;
            }
        }
        empty(directory.as_fd(), around)?;
        match unlinkat(parent, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::BUSY) if !children(directory.as_fd())?.is_empty() => return Ok(()),
            Err(e) => last = e,
        }
    }
    Err(last.into())
}

/// Moves the processes of one cgroup to another.
fn empty(directory: BorrowedFd<'_>, around: BorrowedFd<'_>) -> io::Result<()> {
    let mut list = String::new();
    let procs = openat(directory, "cgroup.procs", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    std::fs::File::from(procs).read_to_string(&mut list)?;
    // Processes of another PID namespace are listed as 0, which would mean this one.
    for pid in list.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid != 0) {
        // Its number may be somebody else's by now.
        if !is_inside(pid, directory) {
            continue;
        }
        match add(around, pid) {
            // It has ended.
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => {}
            moved => moved?,
        }
    }
    Ok(())
}

/// Whether a process is in this very cgroup now.
fn is_inside(pid: u32, directory: BorrowedFd<'_>) -> bool {
    let now = cgroup::of_process(pid).and_then(|(root, inside)| cgroup::beneath(&root, &inside));
    now.is_ok_and(|now| cgroup::inode(&now) == cgroup::inode(&directory))
}

fn add(directory: BorrowedFd<'_>, pid: u32) -> io::Result<()> {
    let procs = openat(directory, "cgroup.procs", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(procs, pid.to_string().as_bytes())?;
    Ok(())
}

/// The names of the cgroups inside one.
fn children(directory: BorrowedFd<'_>) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = match entry {
            // It went while it was read.
            Err(Errno::NOENT | Errno::NODEV) => break,
            entry => entry?,
        };
        let dots = |name: &CStr| matches!(name.to_bytes(), b"." | b"..");
        if entry.file_type() == FileType::Directory
            && !dots(entry.file_name())
            && let Ok(name) = entry.file_name().to_str()
        {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_leaves_what_confines_him() {
        let near = |tree: &str, from: &str| is_near(Path::new(tree), Path::new(from), 1000);
        let own = "user.slice/user-1000.slice/session-2.scope/tpx-tree-1-0";
        for from in
            ["user.slice/user-1000.slice/session-2.scope", "user.slice/user-1000.slice/user@1000.service/app.slice"]
        {
            assert!(near(own, from), "{from}");
        }
        for from in ["system.slice/shop.service", "user.slice/user-1001.slice/session-3.scope", ""] {
            assert!(!near(own, from), "{from}");
        }
        assert!(near("system.slice/ci.service/tpx-tree-1-0", "system.slice/ci.service/job"));
        assert!(near("tpx-tree-1-0", "anywhere"));
    }

    #[test]
    fn nothing_but_a_tree_is_entered() {
        let me = Process::open(std::process::id()).unwrap();
        for path in ["/sys/fs/cgroup", "/", "relative", "/sys/fs/cgroup/user.slice"] {
            assert!(matches!(enter(Path::new(path), &me, 0), Err(HostError::Refused(_))), "{path}");
        }
        for path in ["/tmp/tpx-tree-1-0", "/sys/fs/cgroup/../tpx-tree-1-0"] {
            assert!(enter(Path::new(path), &me, 0).is_err(), "{path}");
        }
    }
}
