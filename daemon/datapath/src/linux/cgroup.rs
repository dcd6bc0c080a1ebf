//! The cgroup2 tree (cgroups(7)): where it is mounted, and whether anybody is in a directory of it.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File},
    io,
    os::{fd::OwnedFd, unix::ffi::OsStringExt as _},
    path::{Path, PathBuf},
};

use tokio::io::{Interest, unix::AsyncFd};

use super::sys;

/// Begins the name of every process tree's cgroup; the slot and a number follow.
pub(super) const TREE: &str = "tpx-tree-";

/// Whether this is the name of a process tree's cgroup, which tpx has made.
#[must_use]
pub fn is_tree(name: &OsStr) -> bool {
    let numbers = name.to_str().and_then(|name| name.strip_prefix(TREE)).and_then(|rest| rest.split_once('-'));
    let number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    numbers.is_some_and(|(slot, n)| number(slot) && number(n))
}

/// Whether anybody is in a directory or below it, and word of it when that changes.
#[derive(Debug)]
pub struct Population {
    /// `cgroup.events`, of which poll(2) tells when it changes.
    events: AsyncFd<OwnedFd>,
}

impl Population {
    /// Begins to watch a directory. Inside of a tokio runtime only.
    ///
    /// # Errors
    /// When it is none, or is gone.
    pub fn watch(cgroup: &Path) -> io::Result<Self> {
        let events = File::open(cgroup.join("cgroup.events"))?;
        Ok(Self { events: sys::watch_priority(events.into())? })
    }

    /// Whether any process is inside now.
    ///
    /// # Errors
    /// `ENODEV` when the directory is gone.
    pub fn is_populated(&self) -> io::Result<bool> {
        let mut text = [0; 256];
        let length = rustix::io::pread(self.events.get_ref(), &mut text, 0)?;
        Ok(is_populated(&String::from_utf8_lossy(&text[..length])))
    }

    /// Resolves when something has changed since [`is_populated`](Self::is_populated) looked. Cancel safe.
    pub async fn changed(&self) {
        if let Ok(mut ready) = self.events.ready(Interest::PRIORITY).await {
            ready.clear_ready();
        }
    }
}

/// What the file `cgroup.events` of a directory says.
#[must_use]
pub fn is_populated(events: &str) -> bool {
    events.lines().any(|line| line == "populated 1")
}

/// The directory of the cgroup2 tree's root, as this process sees it.
///
/// # Errors
/// When mountinfo cannot be read; `NotFound` without such a mount.
pub fn root() -> io::Result<PathBuf> {
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

    #[test]
    fn names_of_trees() {
        for name in ["tpx-tree-1-0", "tpx-tree-7-63"] {
            assert!(is_tree(OsStr::new(name)), "{name}");
        }
        for name in ["tpx-tree-1", "tpx-tree--", "tpx-tree-1-x", "tpx-rootd.service", "a-tpx-tree-1-0", "tpx-tree-1-0 "]
        {
            assert!(!is_tree(OsStr::new(name)), "{name}");
        }
    }

    #[test]
    fn events_are_read() {
        assert!(is_populated("populated 1\nfrozen 0\n"));
        assert!(!is_populated("populated 0\nfrozen 1\n"));
    }

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
