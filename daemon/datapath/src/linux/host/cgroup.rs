//! The cgroup2 tree: where it is, and what is in it.

use std::{
    ffi::OsString,
    fs::{self, File},
    io,
    os::{fd::OwnedFd, unix::ffi::OsStringExt as _},
    path::{Component, Path, PathBuf},
};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};

use super::system;
use crate::HostError;

/// The cgroup at `path`, open, and where it is. One that is not in the cgroup2 tree is not even looked at: the caller
/// must not learn from this process which files there are, nor have it open a pipe or a device.
pub(super) fn open(path: &Path) -> Result<(PathBuf, File), HostError> {
    let root = root().map_err(|e| system("find the root of the cgroup2 tree", e))?;
    let outside = || HostError::Refused(format!("{path:?} is not in the cgroup2 tree at {}", root.display()));
    let inside = path.strip_prefix(&root).map_err(|_| outside())?;
    let group = beneath(&root, inside).map_err(|e| system(format!("open the cgroup {path:?}"), e))?;
    Ok((path.into(), group.into()))
}

/// The root of the cgroup2 tree, open, and where it is.
pub(super) fn open_root() -> Result<(PathBuf, File), HostError> {
    let root = root().map_err(|e| system("find the root of the cgroup2 tree", e))?;
    let group = beneath(&root, Path::new("")).map_err(|e| system(format!("open the cgroup {root:?}"), e))?;
    Ok((root, group.into()))
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

/// The directory of the cgroup2 tree's root, as this process sees it.
///
/// # Errors
/// When mountinfo cannot be read; `NotFound` without such a mount.
pub(super) fn root() -> io::Result<PathBuf> {
    find(&fs::read("/proc/self/mountinfo")?).ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no cgroup2 mount"))
}

/// The mount point of a whole cgroup2 tree in a mountinfo file (proc_pid_mountinfo(5)); the last one, which hides
/// earlier ones at the same place. Mounts of a part of the tree (another cgroup namespace's) do not count.
fn find(mountinfo: &[u8]) -> Option<PathBuf> {
    let mount = |line: &[u8]| {
        let fields: Vec<&[u8]> = line.split(|b| *b == b' ').collect();
        let kind = fields.iter().skip(6).position(|f| *f == b"-").and_then(|at| fields.get(at + 7))?;
        (*kind == b"cgroup2" && *fields.get(3)? == b"/").then(|| unescape(fields[4]))
    };
    mountinfo.split(|b| *b == b'\n').filter_map(mount).next_back()
}

/// Spaces and the like are written as three octal digits.
fn unescape(field: &[u8]) -> PathBuf {
    let (mut out, mut rest) = (Vec::with_capacity(field.len()), field);
    while let Some((first, tail)) = rest.split_first() {
        let octal = |d: &[u8]| d.iter().try_fold(0u32, |n, c| Some(n * 8 + (char::from(*c)).to_digit(8)?));
        match (*first == b'\\').then(|| tail.get(..3).and_then(octal)).flatten().and_then(|n| u8::try_from(n).ok()) {
            Some(byte) => {
                out.push(byte);
                rest = &tail[3..];
            }
            None => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
25 20 0:22 / /sys rw,nosuid shared:7 - sysfs sysfs rw
30 25 0:26 / /sys/fs/cgroup rw shared:9 - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
32 30 0:28 / /sys/fs/cgroup/cpu rw shared:10 master:2 - cgroup cgroup rw,cpu
";

    #[test]
    fn finds_the_tree_among_others() {
        assert_eq!(find(HYBRID.as_bytes()), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(find(b"25 20 0:22 / /sys rw shared:7 - sysfs sysfs rw\n"), None);
        assert_eq!(find(b""), None);
    }

    #[test]
    fn nothing_outside_is_opened() {
        assert!(matches!(open(Path::new("/proc/1/fd/0")), Err(HostError::Refused(_) | HostError::System { .. })));
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

    #[test]
    fn a_part_of_the_tree_does_not_count() {
        let inside = "31 30 0:27 /../.. /sys/fs/cgroup rw - cgroup2 c rw\n40 30 0:27 / /run/cg rw - cgroup2 c rw\n";
        assert_eq!(find(inside.as_bytes()), Some("/run/cg".into()));
    }

    #[test]
    fn odd_names() {
        assert_eq!(find(br"31 30 0:27 / /mnt/a\040b\134 rw - cgroup2 c rw"), Some(r"/mnt/a b\".into()));
        assert_eq!(unescape(br"a\9x\77"), PathBuf::from(r"a\9x\77"));
    }
}
