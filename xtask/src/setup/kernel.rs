//! An older kernel, unpacked into the cache, for tests in an emulated machine.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::debian;
use super::versions::{KERNEL, KERNEL_SUITE};
use crate::paths;
use crate::run::step;

/// An unpacked kernel.
pub(crate) struct Kernel {
    /// As `uname -r` says it.
    pub(crate) release: String,
    root: PathBuf,
}

impl Kernel {
    /// What a boot loader loads.
    pub(crate) fn image(&self) -> PathBuf {
        self.root.join(format!("boot/vmlinuz-{}", self.release))
    }

    /// The folder with its modules.
    pub(crate) fn modules(&self) -> PathBuf {
        self.root.join(format!("lib/modules/{}/kernel", self.release))
    }
}

/// Unpacks the newest kernel of [`KERNEL_SUITE`] that `KERNEL` stands for.
pub(crate) fn kernel() -> Result<Kernel> {
    let root = paths::cache().join("kernel").join(KERNEL_SUITE);
    if let Some(release) = fs::read_dir(root.join("lib/modules")).ok().and_then(|mut dir| dir.next()) {
        let release = release?.file_name().to_string_lossy().into_owned();
        println!("Linux {release} for emulation: ok");
        return Ok(Kernel { release, root });
    }
    step(&format!("{KERNEL} of {KERNEL_SUITE}"), || {
        let new = root.with_extension("new");
        debian::meant_by(KERNEL_SUITE, KERNEL, "linux-image-", &new)?;
        fs::rename(&new, &root).with_context(|| format!("cannot make {}", root.display()))
    })?;
    kernel()
}
