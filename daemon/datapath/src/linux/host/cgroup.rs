//! The cgroup2 tree: where it is, and what is in it.

use std::{
    ffi::OsString,
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStringExt as _,
    },
    path::{Component, Path, PathBuf},
};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};

use super::system;
use crate::HostError;
pub(super) use crate::linux::cgroup::root;

/// The cgroup at `path`, open, and where it is. One that is not in the cgroup2 tree is not even looked at: the caller
/// must not learn from this process which files there are, nor have it open a pipe or a device.
pub(super) fn open(path: &Path) -> Result<(PathBuf, File), HostError> {
    let root = root().map_err(|e| system("find the root of the cgroup2 tree", e))?;
    let outside = || HostError::Refused(format!("{path:?} is not in the cgroup2 tree at {}", root.display()));
    let inside = path.strip_prefix(&root).map_err(|_| outside())?;
    // Also by dots, which may lead there.
    if inside.as_os_str().is_empty() || inside.components().any(|part| !matches!(part, Component::Normal(_))) {
        // It would have a slot of its own beside the workstation's, and mark the sockets of all.
        return Err(HostError::Refused(format!("{path:?} is the root of the cgroup2 tree: that is the workstation")));
    }
    let group = beneath(&root, inside).map_err(|e| system(format!("open the cgroup {path:?}"), e))?;
    Ok((path.into(), group.into()))
}

/// The root of the cgroup2 tree, open, and where it is.
pub(super) fn open_root() -> Result<(PathBuf, File), HostError> {
    let root = root().map_err(|e| system("find the root of the cgroup2 tree", e))?;
    let group = beneath(&root, Path::new("")).map_err(|e| system(format!("open the cgroup {root:?}"), e))?;
    Ok((root, group.into()))
}

/// A cgroup's inode: no other one has it while the host is up.
pub(super) fn inode(directory: &impl AsFd) -> Option<u64> {
    rustix::fs::fstat(directory).ok().map(|stat| stat.st_ino)
}

/// The root of the cgroup2 tree, and the cgroup that a process is in, below it.
///
/// # Errors
/// When the process is gone, or in a part of the tree that cannot be seen here.
pub(super) fn of_process(pid: u32) -> io::Result<(PathBuf, PathBuf)> {
    let inside = in_list(&fs::read(format!("/proc/{pid}/cgroup"))?).ok_or(io::ErrorKind::NotFound)?;
    Ok((root()?, inside))
}

/// The cgroup2 line of a /proc/PID/cgroup file (cgroups(7)), without its first slash. What lies outside of this process's
/// cgroup namespace begins with dots.
fn in_list(list: &[u8]) -> Option<PathBuf> {
    let path = list.split(|b| *b == b'\n').find_map(|line| line.strip_prefix(b"0::/"))?;
    let path = PathBuf::from(OsString::from_vec(path.to_vec()));
    path.components().all(|c| matches!(c, Component::Normal(_))).then_some(path)
}

/// Opens the cgroup `inside` the one at `root`, which nothing leads out of.
pub(super) fn beneath(root: &Path, inside: &Path) -> io::Result<OwnedFd> {
    let directory = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::openat(CWD, root, directory, Mode::empty())?;
    let inside = if inside.as_os_str().is_empty() { Path::new(".") } else { inside };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    Ok(openat2(root, inside, directory, Mode::empty(), resolve)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_outside_is_opened() {
        let outside = |path: &Path| matches!(open(path), Err(HostError::Refused(_) | HostError::System { .. }));
        assert!(outside(Path::new("/proc/1/fd/0")));
        // Without a tree, nothing can be opened either.
        let whole = root().unwrap_or_else(|_| "/sys/fs/cgroup".into());
        assert!(outside(&whole) && outside(&whole.join(".")) && outside(&whole.join("a/..")));
        let tree = std::env::temp_dir().join(format!("tpx-cgroup-{}", std::process::id()));
        fs::create_dir_all(tree.join("a/b")).unwrap();
        fs::write(tree.join("file"), "").unwrap();
        std::os::unix::fs::symlink("/", tree.join("link")).unwrap();
        let opens = ["a", "a/b", "."].map(|inside| beneath(&tree, Path::new(inside)).is_ok());
        let refused = ["file", "link", "link/etc", "..", "/etc", "none"].map(|i| beneath(&tree, Path::new(i)).is_err());
        fs::remove_dir_all(&tree).unwrap();
        assert_eq!((opens, refused), ([true; 3], [true; 6]));
    }

    #[test]
    fn the_cgroup_of_a_process() {
        let list = |text: &str| in_list(text.as_bytes());
        assert_eq!(list("12:cpu:/x\n0::/user.slice/a b\n"), Some("user.slice/a b".into()));
        assert_eq!(list("0::/\n"), Some(PathBuf::new()));
        for outside in ["", "1:name=systemd:/x\n", "0::/../x\n", "0::/..\n"] {
            assert_eq!(list(outside), None, "{outside}");
        }
    }
}
