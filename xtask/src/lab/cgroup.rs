//! The lab's cgroups: how its processes are found again and ended, and what the laptop sees as the root of its cgroup tree.
//!
//! cgroup2 has one folder per lab with one child per part. Where cgroup v1 hierarchies are mounted as well, the node gets
//! a folder in each of them, because that is where its kubelet and runc look.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::config::{Lab, Part};

/// One mounted hierarchy, as /proc/self/mountinfo names it.
pub(crate) struct Hierarchy {
    pub(crate) path: PathBuf,
    /// What to pass as mount options to mount it again; nothing for cgroup2.
    pub(crate) v1: Option<String>,
}

/// The mounted hierarchies, cgroup2 first.
pub(crate) fn hierarchies() -> Result<Vec<Hierarchy>> {
    let table = fs::read_to_string("/proc/self/mountinfo").context("/proc is not mounted")?;
    let mut found: Vec<Hierarchy> = table.lines().filter_map(hierarchy).collect();
    found.sort_by_key(|h| h.v1.is_some());
    match found.first() {
        Some(Hierarchy { v1: None, .. }) => Ok(found),
        _ => bail!("no cgroup2 tree is mounted; mount one: mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified"),
    }
}

/// Reads one line of the mount table: `id parent dev root path options [tags] - type source super-options`.
fn hierarchy(line: &str) -> Option<Hierarchy> {
    let (mount, fs) = line.split_once(" - ")?;
    let (mut mount, mut fs) = (mount.split(' '), fs.split(' '));
    let (root, path) = (mount.nth(3)?, PathBuf::from(mount.next()?));
    let (kind, options) = (fs.next()?, fs.nth(1)?);
    // Seen from a cgroup namespace below it, the root is "/..", "/../.." and so on.
    if !root.trim_start_matches('/').split('/').all(|part| matches!(part, "" | "..")) {
        return None;
    }
    match kind {
        "cgroup2" => Some(Hierarchy { path, v1: None }),
        "cgroup" => {
            let named = options.split(',').find(|o| o.starts_with("name="));
            let controllers = options
                .split(',')
                .filter(|o| !matches!(*o, "rw" | "ro" | "xattr" | "clone_children"))
                .collect::<Vec<_>>()
                .join(",");
            Some(Hierarchy { path, v1: Some(named.map_or(controllers, |name| format!("none,{name}"))) })
        }
        _ => None,
    }
}

/// Makes the part's cgroups and opens their `cgroup.procs`, for its first process to join.
pub(crate) fn create(lab: &Lab, part: Part) -> Result<Vec<OwnedFd>> {
    let mut joins = Vec::new();
    for hierarchy in hierarchies()? {
        let dir = match hierarchy.v1 {
            None => hierarchy.path.join(lab.cgroup()).join(part.as_str()),
            Some(_) if part == Part::Node => hierarchy.path.join(lab.cgroup()),
            Some(_) => continue,
        };
        fs::create_dir_all(&dir).with_context(|| format!("cannot make the cgroup {}", dir.display()))?;
        // An empty cpuset takes no process.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if hierarchy.v1.is_some() && dir.join(file).exists() {
                let value = fs::read_to_string(hierarchy.path.join(file))?;
                fs::write(dir.join(file), value.trim()).with_context(|| format!("cannot set {file}"))?;
            }
        }
        joins.push(procs(&dir)?);
    }
    Ok(joins)
}

/// The cgroup that later processes of the part join: only the cgroup2 one matters to programs attached to it.
pub(crate) fn join(lab: &Lab, part: Part) -> Result<OwnedFd> {
    let hierarchies = hierarchies()?;
    let root = hierarchies.first().context("no cgroup2 tree")?;
    let dir = root.path.join(lab.cgroup()).join(part.as_str());
    // On a machine with cgroup2 alone the node's own tree has processes in its leaves only.
    let leaf = dir.join("init");
    procs(if leaf.is_dir() { &leaf } else { &dir })
}

fn procs(dir: &Path) -> Result<OwnedFd> {
    let file = dir.join("cgroup.procs");
    let open = File::options().write(true).open(&file).with_context(|| format!("cannot open {}", file.display()))?;
    Ok(open.into())
}

/// Ends every process of the lab and removes its cgroups. Everything the lab started is in them, whatever else went wrong.
pub(crate) fn destroy(lab: &Lab) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    for hierarchy in hierarchies()? {
        let dir = hierarchy.path.join(lab.cgroup());
        if hierarchy.v1.is_none() && dir.is_dir() {
            let kill = dir.join("cgroup.kill");
            File::options()
                .write(true)
                .open(&kill)
                .and_then(|mut f| f.write_all(b"1"))
                .with_context(|| format!("cannot write {} (Linux 5.14 or newer has it)", kill.display()))?;
        }
        while dir.is_dir() && !remove(&dir) {
            if Instant::now() > deadline {
                bail!("the cgroup {} does not empty", dir.display());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    Ok(())
}

/// Whether any of the lab's cgroups is there.
pub(crate) fn exists(lab: &Lab) -> Result<bool> {
    Ok(hierarchies()?.iter().any(|h| h.path.join(lab.cgroup()).is_dir()))
}

/// Removes a cgroup and those below it; false while one still has processes.
fn remove(dir: &Path) -> bool {
    let children =
        fs::read_dir(dir).into_iter().flatten().flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir()));
    for child in children.collect::<Vec<_>>() {
        remove(&child.path());
    }
    fs::remove_dir(dir).is_ok() || !dir.exists()
}
