//! What the parts of the lab mount over the machine's own file system. All of it is gone with the part's mount namespace.

use std::ffi::CString;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};

use super::config::RUN_LAB;

/// Nothing mounted from here on is seen outside; a /proc for the new PID namespace, a /sys for the new network namespace.
pub(crate) fn private() -> Result<()> {
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)
        .context("cannot make the mounts private")?;
    fresh("proc", "/proc", "")?;
    fresh("sysfs", "/sys", "")
}

/// A new instance of a file system.
pub(crate) fn fresh(kind: &str, target: &str, options: &str) -> Result<()> {
    let options = CString::new(options)?;
    mount(kind, target, kind, MountFlags::NODEV, options.as_c_str())
        .with_context(|| format!("cannot mount {kind} on {target}"))
}

/// An empty folder of the part's own.
pub(crate) fn empty(target: &str, mode: &str) -> Result<()> {
    fresh("tmpfs", target, &format!("mode={mode}"))
}

/// The folder for what belongs to the lab, on an own /run.
pub(crate) fn run_lab() -> Result<()> {
    empty("/run", "755")?;
    Ok(fs::create_dir_all(RUN_LAB)?)
}

/// A folder whose changes stay in the part.
pub(crate) fn writable_copy(target: &str, scratch: &Path) -> Result<()> {
    let (upper, work) = (scratch.join("upper"), scratch.join("work"));
    fs::create_dir_all(&upper)?;
    fs::create_dir_all(&work)?;
    let options = CString::new(format!("lowerdir={target},upperdir={},workdir={}", upper.display(), work.display()))?;
    mount("overlay", target, "overlay", MountFlags::empty(), options.as_c_str())
        .with_context(|| format!("cannot mount an overlay on {target}"))
}
