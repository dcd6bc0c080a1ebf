//! The check that what is meant for macOS and Windows compiles, on a machine that is neither.
//!
//! Nothing is linked and nothing runs: `cargo check` with the standard library built from the source that the eBPF
//! toolchain brought. C code in dependencies is not compiled at all: programs that make empty files stand for the
//! compiler and the archiver.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::paths;

const TARGETS: [&str; 2] = ["aarch64-apple-darwin", "x86_64-pc-windows-msvc"];

/// What the TUN road consists of. The programs themselves still ask for Linux: `tpx` and `tpx-rootd` for the express lane
/// and for files over Unix sockets. `tpx-manager` runs in the cluster only.
const PACKAGES: [&str; 7] =
    ["tpx-api", "tpx-core", "tpx-datapath", "tpx-dns", "tpx-ebpf-abi", "tpx-install", "tpx-link"];
const FEATURES: &str = "tpx-link/port-forward";

/// Makes each file that a compiler (`-o FILE`, `-FoFILE`) or an archiver (`FILE.a`, `-out:FILE`) is asked for.
const STAND_IN: &str = r#"#!/bin/sh
previous=
for word; do
    case "$previous" in -o) : >"$word" ;; esac
    case "$word" in
    [-/]Fo?*) : >"${word#?Fo}" ;;
    [-/]out:*) : >"${word#?out:}" ;;
    *.a) : >"$word" ;;
    esac
    previous=$word
done
"#;

/// The check that has to succeed.
pub(crate) fn check() -> Result<Command> {
    let library = paths::ebpf().join("library");
    ensure!(library.join("std").exists(), "the standard library's source is missing: run `cargo xtask setup`");
    // Its own folder: building the standard library changes what cargo keeps about every crate.
    let target = paths::target().join("platforms");
    let tools = stand_ins(&target.join("stand-ins"))?;
    let mut cargo = Command::new("cargo");
    cargo.args(["check", "--quiet", "-Z", "build-std=std,panic_abort", "--features", FEATURES]);
    cargo.args(PACKAGES.iter().flat_map(|name| ["-p", name]));
    cargo.args(TARGETS.iter().flat_map(|target| ["--target", target]));
    cargo.arg("--target-dir").arg(&target);
    cargo.current_dir(paths::project());
    cargo.env("RUSTC_BOOTSTRAP", "1").env("__CARGO_TESTS_ONLY_SRC_ROOT", library);
    cargo.env("RUSTFLAGS", "-D warnings");
    // Half the size, and nobody looks at it with a debugger.
    cargo.env("CARGO_PROFILE_DEV_DEBUG", "0").env("CARGO_INCREMENTAL", "0");
    for target in TARGETS {
        for (tool, path) in &tools {
            cargo.env(format!("{tool}_{}", target.replace('-', "_")), path);
        }
    }
    Ok(cargo)
}

/// Writes the programs and says which variables name them.
fn stand_ins(folder: &Path) -> Result<Vec<(&'static str, PathBuf)>> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let write = |(tool, name): (&'static str, &str)| {
        let path = folder.join(name);
        // Only when it differs: build scripts run again when it is newer than their results.
        if fs::read_to_string(&path).ok().as_deref() != Some(STAND_IN) {
            fs::write(&path, STAND_IN)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        }
        Ok((tool, path))
    };
    [("CC", "cc"), ("CXX", "c++"), ("AR", "ar")].into_iter().map(write).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stand_ins_make_what_they_are_asked_for() {
        let folder = std::env::temp_dir().join(format!("tpx-stand-ins-{}", std::process::id()));
        let tools = stand_ins(&folder).unwrap();
        let [(_, cc), _, (_, ar)] = &tools[..] else { panic!("{tools:?}") };
        let run = |program: &Path, arguments: &[&str]| {
            assert!(Command::new(program).args(arguments).current_dir(&folder).status().unwrap().success());
        };
        run(cc, &["-c", "-o", "unix.o", "source.c"]);
        run(cc, &["-nologo", "-Fomsvc.obj", "-c", "source.c"]);
        run(ar, &["cq", "unix.a", "unix.o"]);
        run(ar, &["-out:msvc.lib", "-nologo", "msvc.obj"]);
        let made = ["unix.o", "msvc.obj", "unix.a", "msvc.lib"].map(|name| folder.join(name).exists());
        let source = folder.join("source.c").exists();
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!((made, source), ([true; 4], false));
    }
}
