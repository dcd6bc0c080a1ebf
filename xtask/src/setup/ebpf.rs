//! What building eBPF programs needs beyond a stable toolchain: the source of `core`, and a linker for LLVM's BPF back end.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::debian;
use super::versions::{BPF_LINKER, LLVM_FEATURE, RUST, RUST_SRC, RUST_SRC_SHA256, RUST_SRC_SUITE};
use crate::paths;
use crate::run::{output, step};

/// Installs both into the cache, where `daemon/datapath/build.rs` looks.
pub(crate) fn toolchain() -> Result<()> {
    let version = output(Command::new("rustc").arg("--version")).context("rustc is missing: install it with rustup")?;
    ensure!(
        version.starts_with(&format!("rustc {RUST} ")),
        "the toolchain is {}, but the eBPF programs are built with {RUST}: rustup default {RUST}",
        version.trim()
    );
    library()?;
    linker()
}

fn library() -> Result<()> {
    let library = paths::ebpf().join("library");
    if library.join("core/Cargo.toml").exists() {
        println!("source of core {RUST}: ok");
        return Ok(());
    }
    println!("source of core {RUST}: installing");
    step(&format!("source of core {RUST}"), || {
        let root = paths::ebpf().join("rust-src");
        debian::from_suite(RUST_SRC_SUITE, &[&format!("rust-src={RUST_SRC}")], &root, Some(RUST_SRC_SHA256))?;
        let source = root.join(format!("usr/src/rustc-{RUST}/library"));
        fs::rename(&source, &library).with_context(|| format!("cannot move {}", source.display()))?;
        Ok(fs::remove_dir_all(&root)?)
    })
}

fn linker() -> Result<()> {
    let linker = paths::ebpf().join("bin/bpf-linker");
    let sysroot = PathBuf::from(output(Command::new("rustc").args(["--print", "sysroot"]))?.trim());
    // It loads the toolchain's own libLLVM through a link; a toolchain that moved gets a new link.
    llvm(&sysroot)?;
    if output(Command::new(&linker).arg("--version")).is_ok_and(|version| version.trim().ends_with(BPF_LINKER)) {
        println!("bpf-linker {BPF_LINKER}: ok");
        return Ok(());
    }
    println!("bpf-linker {BPF_LINKER}: installing");
    step(&format!("bpf-linker {BPF_LINKER}"), || {
        let target = paths::ebpf().join("target");
        let mut cargo = Command::new("cargo");
        cargo.args([
            "install",
            "--quiet",
            "--force",
            "--locked",
            "bpf-linker",
            "--version",
            BPF_LINKER,
            "--no-default-features",
            "--features",
            LLVM_FEATURE,
        ]);
        cargo
            .arg("--root")
            .arg(paths::ebpf())
            .env("LLVM_PREFIX", paths::ebpf().join("llvm"))
            .env("CARGO_TARGET_DIR", &target);
        cargo
            .env("CARGO_PROFILE_RELEASE_DEBUG", "0")
            .env("CARGO_PROFILE_RELEASE_STRIP", "true")
            .current_dir(paths::ebpf());
        output(&mut cargo)?;
        fs::remove_dir_all(&target).ok();
        output(Command::new(&linker).arg("--version")).map(drop)
    })
}

/// Shows the toolchain's libLLVM as an LLVM installation.
fn llvm(sysroot: &Path) -> Result<()> {
    let lib = paths::ebpf().join("llvm/lib");
    fs::create_dir_all(&lib)?;
    let found = fs::read_dir(sysroot.join("lib"))?
        .filter_map(|e| e.ok())
        .find(|e| e.file_name().to_string_lossy().starts_with("libLLVM.so."));
    let found = found.with_context(|| format!("{} has no libLLVM", sysroot.display()))?;
    for link in [lib.join("libLLVM.so"), lib.join(found.file_name())] {
        if fs::read_link(&link).ok() != Some(found.path()) {
            fs::remove_file(&link).ok();
            symlink(found.path(), &link)?;
        }
    }
    Ok(())
}
