//! Where things are: the checkout, cargo's output, and the cache that outlives both.

use std::env;
use std::path::PathBuf;

/// The checkout's root: the folder above this crate.
pub(crate) fn project() -> PathBuf {
    let krate =
        env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    // Started by `cargo xtask` the variable names this crate; started by another crate's test it names that one.
    let own = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let krate = if krate.ends_with("xtask") { krate } else { own };
    krate.parent().map_or_else(|| krate.clone(), PathBuf::from)
}

/// Cargo's output folder.
pub(crate) fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| project().join("target"), |dir| project().join(dir))
}

/// What setup builds and downloads once per machine: `$TPX_CACHE`, else `$XDG_CACHE_HOME/tpx`, else `~/.cache/tpx`.
pub(crate) fn cache() -> PathBuf {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(dir) = set("TPX_CACHE") {
        return dir;
    }
    if let Some(dir) = set("XDG_CACHE_HOME") {
        return dir.join("tpx");
    }
    set("HOME").unwrap_or_else(|| PathBuf::from("/root")).join(".cache/tpx")
}

/// The eBPF toolchain: the standard library's source and the linker.
pub(crate) fn ebpf() -> PathBuf {
    cache().join("ebpf")
}

/// What every lab shares: cluster programs, unpacked packages, images.
pub(crate) fn lab() -> PathBuf {
    cache().join("lab")
}

/// Kubernetes, etcd, kubectl and CoreDNS.
pub(crate) fn cluster_bin() -> PathBuf {
    lab().join("bin")
}

/// Debian packages that are unpacked instead of installed, so that none of their services start.
pub(crate) fn packages() -> PathBuf {
    lab().join("root")
}

/// The OCI archives.
pub(crate) fn images() -> PathBuf {
    lab().join("images")
}
