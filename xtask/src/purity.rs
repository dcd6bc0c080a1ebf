//! The proof that decisions have no effects: the pure crates are built for a machine without files, sockets, clocks or
//! threads. The standard library comes as source from the eBPF toolchain, because rustup's is for this machine only.

use std::process::Command;

use anyhow::{Result, ensure};

use crate::paths;

const PURE: [&str; 2] = ["tpx-core", "tpx-ebpf-abi"];

/// The build that has to succeed.
pub(crate) fn build() -> Result<Command> {
    let library = paths::ebpf().join("library");
    ensure!(library.join("std").exists(), "the standard library's source is missing: run `cargo xtask setup`");
    let mut cargo = Command::new("cargo");
    cargo.args(["build", "--quiet", "--target", "wasm32-unknown-unknown", "-Z", "build-std=std,panic_abort"]);
    cargo.args(PURE.iter().flat_map(|name| ["-p", name]));
    // Its own folder: building the standard library changes what cargo keeps about every crate.
    cargo.arg("--target-dir").arg(paths::target().join("purity"));
    cargo.current_dir(paths::project());
    cargo.env("RUSTC_BOOTSTRAP", "1").env("__CARGO_TESTS_ONLY_SRC_ROOT", library);
    Ok(cargo)
}
