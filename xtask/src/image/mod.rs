//! The container images, built from static binaries and written as OCI archives: no Docker, the same bytes every time.

mod oci;

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use crate::lab::WORKLOAD;
use crate::paths;
use crate::run::{step, visibly};
use oci::{Archive, Image};

/// The image under every pod.
pub(crate) const PAUSE: &str = "tpx.local/pause:1";
/// The demo workloads.
const WORKLOAD_IMAGE: &str = "tpx.local/workload:1";
/// The cluster's DNS.
const DNS_IMAGE: &str = "tpx.local/coredns:1";
/// The traffic manager, under the name that a release has.
const MANAGER_IMAGE: &str = concat!("ghcr.io/tpx-dev/tpx-manager:", env!("CARGO_PKG_VERSION"));
/// Whom programs run as in the images; nobody on any node.
const NON_ROOT: &str = "65532:65532";
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The workload program, static: the lab also runs it outside of containers.
pub(crate) fn workload_program() -> PathBuf {
    paths::images().join(WORKLOAD)
}

/// The archives that exist.
pub(crate) fn archives() -> Result<Vec<PathBuf>> {
    let mut found: Vec<PathBuf> = fs::read_dir(paths::images())
        .context("no images: cargo xtask image")?
        .filter_map(|e| Some(e.ok()?.path()))
        .filter(|p| p.extension().is_some_and(|e| e == "tar"))
        .collect();
    found.sort();
    Ok(found)
}

/// Changes when an archive does.
pub(crate) fn stamp() -> Result<String> {
    archives()?
        .iter()
        .map(|path| Ok(format!("{} {}\n", path.display(), hex(&Sha256::digest(fs::read(path)?)))))
        .collect()
}

/// Builds the images when there are none.
pub(crate) fn need() -> Result<()> {
    let there = ["workload", "coredns"].iter().all(|name| paths::images().join(format!("{name}.tar")).exists());
    if there && workload_program().exists() { Ok(()) } else { build() }
}

/// Builds the programs and writes the archives.
pub(crate) fn build() -> Result<()> {
    let project = paths::project();
    let manager = project.join("manager/src/main.rs").exists();
    let mut packages = vec!["-p", WORKLOAD];
    if manager {
        packages.extend(["-p", "tpx-manager"]);
    }
    step("static programs", || {
        visibly(
            Command::new("cargo")
                .args(["build", "--quiet", "--release", "--target", TARGET])
                .args(packages)
                .env("RUSTFLAGS", "-C target-feature=+crt-static")
                .env("CARGO_PROFILE_RELEASE_STRIP", "debuginfo")
                .current_dir(&project),
        )
    })?;
    let built = paths::target().join(TARGET).join("release");
    step("images", || {
        fs::create_dir_all(paths::images())?;
        let workload = program(built.join(WORKLOAD))?;
        let base = |name: &str, program: &str, arguments: &[&str], user: &str| Image {
            name: name.into(),
            program: program.into(),
            arguments: arguments.iter().map(|a| (*a).into()).collect(),
            user: user.into(),
        };
        let mut archive = Archive::new();
        archive.add(&base(WORKLOAD_IMAGE, WORKLOAD, &[], "0:0"), &workload)?;
        archive.add(&base(PAUSE, WORKLOAD, &["pause"], NON_ROOT), &workload)?;
        archive.write(&paths::images().join("workload.tar"))?;
        fs::write(workload_program().with_extension("new"), &workload)?;
        fs::set_permissions(
            workload_program().with_extension("new"),
            std::os::unix::fs::PermissionsExt::from_mode(0o755),
        )?;
        fs::rename(workload_program().with_extension("new"), workload_program())?;
        let mut archive = Archive::new();
        archive.add(&base(DNS_IMAGE, "coredns", &[], "0:0"), &program(paths::cluster_bin().join("coredns"))?)?;
        archive.write(&paths::images().join("coredns.tar"))?;
        if manager {
            let mut archive = Archive::new();
            archive.add(&base(MANAGER_IMAGE, "tpx-manager", &[], NON_ROOT), &program(built.join("tpx-manager"))?)?;
            archive.write(&paths::images().join("tpx-manager.tar"))?;
        }
        Ok(())
    })
}

/// Reads a program and makes sure that it needs nothing from the image's file system.
fn program(path: PathBuf) -> Result<Vec<u8>> {
    let bytes = fs::read(&path).with_context(|| format!("{} is not built", path.display()))?;
    ensure!(
        is_static(&bytes),
        "{} needs a dynamic loader; it must be linked statically to run in an empty image",
        path.display()
    );
    Ok(bytes)
}

/// An ELF program without a PT_INTERP header.
fn is_static(elf: &[u8]) -> bool {
    const PT_INTERP: u32 = 3;
    let number = |at: usize, size: usize| {
        elf.get(at..at + size).map_or(0, |bytes| bytes.iter().rev().fold(0u64, |n, byte| n << 8 | u64::from(*byte)))
    };
    let (table, size, count) = (number(32, 8) as usize, number(54, 2) as usize, number(56, 2) as usize);
    elf.starts_with(b"\x7fELF\x02") && (0..count).all(|index| number(table + index * size, 4) != u64::from(PT_INTERP))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
