//! Everything that building and testing needs, on a machine with nothing but rustup's toolchain. Each part does nothing when it is there.

mod cluster;
mod debian;
mod ebpf;
mod kernel;
mod versions;

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use anyhow::{Context, Result};
use rustix::fs::{FlockOperation, flock};

use crate::paths;
use crate::run::step;
pub(crate) use kernel::Kernel;

/// All of it.
pub(crate) fn all() -> Result<()> {
    let _lock = lock()?;
    debian::installed()?;
    ebpf::toolchain()?;
    debian::unpacked()?;
    kernel::kernel()?;
    cluster::programs()
}

/// What building tpx needs.
pub(crate) fn build() -> Result<()> {
    let _lock = lock()?;
    debian::installed()?;
    ebpf::toolchain()
}

/// What the lab needs.
pub(crate) fn need_lab() -> Result<()> {
    let _lock = lock()?;
    debian::installed()?;
    debian::unpacked()?;
    cluster::programs()
}

/// The kernel of the emulated machine, and what emulates it.
pub(crate) fn need_kernel() -> Result<Kernel> {
    let _lock = lock()?;
    debian::installed()?;
    kernel::kernel()
}

/// One setup at a time; held until dropped.
fn lock() -> Result<OwnedFd> {
    let cache = paths::cache();
    fs::create_dir_all(&cache).with_context(|| format!("cannot make {}", cache.display()))?;
    let file = File::create(cache.join("setup.lock"))?;
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        step("waiting for another setup", || Ok(flock(&file, FlockOperation::LockExclusive)?))?;
    }
    Ok(file.into())
}

/// A Go that builds for the machine.
pub(crate) fn go() -> Result<PathBuf> {
    cluster::go()
}
