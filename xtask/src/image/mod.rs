//! The container images, built from static binaries and written as OCI archives: no Docker, the same bytes every time.

mod oci;

use std::fs;
use std::os::unix::fs::MetadataExt;
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
/// The same program, built to say that it is of another version.
pub(crate) const OTHER_MANAGER: &str = "tpx.local/tpx-manager-other:1";
const OTHER_VERSION: &str = "99.0.0";
const MANAGER: &str = "tpx-manager";
const ROOT: &str = "0:0";
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

/// One line per archive that says whether it has been written since: time, size, path.
pub(crate) fn stamp() -> Result<String> {
    archives()?
        .iter()
        .map(|path| {
            let about = fs::metadata(path)?;
            Ok(format!("{}.{} {} {}\n", about.mtime(), about.mtime_nsec(), about.len(), path.display()))
        })
        .collect()
}

/// Builds the images when there are none.
pub(crate) fn need() -> Result<()> {
    let there =
        ["workload", "coredns", "tpx-manager"].iter().all(|name| paths::images().join(format!("{name}.tar")).exists());
    if there && workload_program().exists() { Ok(()) } else { build() }
}

/// Builds the programs and writes the archives.
pub(crate) fn build() -> Result<()> {
    let built = step("static programs", || static_programs(&[WORKLOAD, MANAGER], None))?;
    step("images", || {
        fs::create_dir_all(paths::images())?;
        let workload = program(built.join(WORKLOAD))?;
        let mut archive = Archive::new();
        archive.add(&image(WORKLOAD_IMAGE, WORKLOAD, &[], ROOT), &workload)?;
        archive.add(&image(PAUSE, WORKLOAD, &["pause"], NON_ROOT), &workload)?;
        archive.write(&paths::images().join("workload.tar"))?;
        oci::replace(&workload_program(), &workload, 0o755)?;
        one(&image(DNS_IMAGE, "coredns", &[], ROOT), paths::cluster_bin().join("coredns"), "coredns.tar")?;
        one(&image(MANAGER_IMAGE, MANAGER, &[], NON_ROOT), built.join(MANAGER), "tpx-manager.tar")
    })
}

/// Builds the manager as if it were of another version, for a test. It need not follow every change of the manager, only
/// those of what it says to a laptop.
pub(crate) fn build_other_manager() -> Result<()> {
    let api = paths::project().join("manager/api");
    let mut files = vec![api.join("Cargo.toml")];
    for dir in ["src", "proto"] {
        files.extend(
            fs::read_dir(api.join(dir))
                .into_iter()
                .flatten()
                .filter_map(|e| Some(e.ok()?.path()))
                .filter(|p| p.is_file()),
        );
    }
    files.sort();
    let mut sum = Sha256::new();
    for file in &files {
        sum.update(fs::read(file)?);
    }
    let (stamp, now) = (paths::images().join("other-manager.api"), hex(&sum.finalize()));
    if fs::read_to_string(&stamp).is_ok_and(|have| have == now) {
        return Ok(());
    }
    step("manager of another version", || {
        let built = static_programs(&[MANAGER], Some(OTHER_VERSION))?;
        one(&image(OTHER_MANAGER, MANAGER, &[], NON_ROOT), built.join(MANAGER), "other-manager.tar")?;
        Ok(fs::write(&stamp, now)?)
    })?;
    // The next build finds the manager as it was.
    step("manager again", || static_programs(&[MANAGER], None).map(drop))
}

/// Builds packages as static programs and returns the folder that they are in.
fn static_programs(packages: &[&str], version: Option<&str>) -> Result<PathBuf> {
    let mut cargo = Command::new("cargo");
    cargo.args(["build", "--quiet", "--release", "--target", TARGET]).current_dir(paths::project());
    cargo.args(packages.iter().flat_map(|package| ["-p", package]));
    cargo.env("RUSTFLAGS", "-C target-feature=+crt-static").env("CARGO_PROFILE_RELEASE_STRIP", "debuginfo");
    cargo.envs(version.map(|version| ("TPX_VERSION", version)));
    visibly(&mut cargo)?;
    Ok(paths::target().join(TARGET).join("release"))
}

fn image(name: &str, program: &str, arguments: &[&str], user: &str) -> Image {
    let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    Image { name: name.to_owned(), program: program.to_owned(), arguments, user: user.to_owned() }
}

/// An archive with one image.
fn one(image: &Image, from: PathBuf, file: &str) -> Result<()> {
    let mut archive = Archive::new();
    archive.add(image, &program(from)?)?;
    archive.write(&paths::images().join(file))
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
