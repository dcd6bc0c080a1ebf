//! What may be left when nothing is connected: nothing that has an effect.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{
    laptop,
    process::{eventually, sh},
};

/// Longest that a clean-up may take, also after kill -9.
const CLEAN_UP: Duration = Duration::from_secs(2);

/// After every case: where nobody is connected any more, nothing may be left.
pub(crate) fn after_case(name: &str, result: Result<()>) -> Result<()> {
    result?;
    if laptop::status()?.is_none() && laptop::daemons()?.is_empty() {
        nothing_left().with_context(|| format!("after {name}"))?;
    }
    Ok(())
}

/// Within two seconds there is no program, rule with effect, route, device, address, cgroup or process.
pub(crate) fn nothing_left() -> Result<()> {
    nothing_at_work()?;
    eventually(CLEAN_UP, || {
        let trees: Vec<PathBuf> = cgroups().into_iter().filter(|path| is_tree(path)).collect();
        ensure!(trees.is_empty(), "cgroups are left: {trees:?}");
        Ok(())
    })
}

/// As [`nothing_left`], but for the cgroups of process trees: they have no effect, hang on no file, and stay when the
/// privileged daemon is killed, until the next one starts.
pub(crate) fn nothing_at_work() -> Result<()> {
    eventually(CLEAN_UP, || {
        let daemons = laptop::daemons()?;
        ensure!(daemons.is_empty(), "processes are left: {daemons:?}");
        no_datapath()
    })
}

/// As [`nothing_left`], but daemons may go on.
pub(crate) fn no_datapath() -> Result<()> {
    let devices = sh("ip -o link | grep -c ' tpx[0-9]' || true")?.success()?;
    ensure!(devices.trim() == "0", "a device is left: {}", sh("ip -o link")?.stdout);
    // A rule over an empty table does nothing: the look-up goes on with the next rule.
    // Those of the marked sockets, then those of the floor.
    for table in (7071..7079).chain(7171..7179).chain(7271..7279) {
        for family in ["-4", "-6"] {
            let routes = sh(&format!("ip {family} route show table {table} 2>/dev/null"))?.stdout;
            ensure!(routes.trim().is_empty(), "routes are left in table {table}: {routes}");
        }
    }
    let links = links()?;
    ensure!(links.is_empty(), "programs are still attached: {links:?}");
    let sockets = sh("ss -Htlnp 'sport = :53' | grep tpx || true")?.stdout;
    ensure!(sockets.trim().is_empty(), "sockets are left: {sockets}");
    Ok(())
}

/// What is attached to this laptop: to its cgroup tree, or to its network namespace. Other laptops may be at work on the
/// same kernel.
fn links() -> Result<Vec<String>> {
    let inode = |path: PathBuf| fs::metadata(path).map(|meta| meta.ino()).ok();
    let cgroups: Vec<u64> = cgroups().into_iter().filter_map(inode).collect();
    let netns = fs::metadata("/proc/self/ns/net")?.ino();
    let all: Value = serde_json::from_str(&sh("bpftool -j link show")?.success()?)?;
    let ours = |link: &&Value| {
        link["cgroup_id"].as_u64().is_some_and(|id| cgroups.contains(&id)) || link["netns_ino"] == netns
    };
    Ok(all.as_array().into_iter().flatten().filter(ours).map(|link| link["attach_type"].to_string()).collect())
}

/// The directories of this laptop's cgroup tree, its root first.
fn cgroups() -> Vec<PathBuf> {
    let mut found = vec![PathBuf::from("/sys/fs/cgroup")];
    let mut next = 0;
    while let Some(directory) = found.get(next).cloned() {
        let inside = fs::read_dir(directory).into_iter().flatten().flatten();
        found
            .extend(inside.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()));
        next += 1;
    }
    found
}

/// Whether a directory was made for `tpx run`.
fn is_tree(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"tpx-tree-"))
}
