//! Builds the kernel programs, where the tools for that are there.
//!
//! They need two things that a plain toolchain lacks: the source of `core` (there is no ready-made one for BPF) and
//! bpf-linker. `cargo xtask setup` puts both into a cache directory; a developer's own `rust-src` component and a
//! bpf-linker on PATH do as well. Without them the crate builds too, and says at run time what is missing.

fn main() -> std::process::ExitCode {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-check-cfg=cfg(express_lane)");
    #[cfg(feature = "privileged")]
    return programs::build();
    #[cfg(not(feature = "privileged"))]
    return std::process::ExitCode::SUCCESS;
}

#[cfg(feature = "privileged")]
mod programs {
    use std::{
        env,
        path::{Path, PathBuf},
        process::{Command, ExitCode},
    };

    /// Set for the second run of this program, which has the environment that only the inner cargo may see.
    const INNER: &str = "TPX_BUILD_PROGRAMS";
    /// Set to have the programs log what they do (to rootd's own log, at level debug).
    const LOG: &str = "TPX_EBPF_LOG";
    const PACKAGE: &str = "tpx-ebpf";

    /// Where the tools are.
    struct Tools {
        /// The standard library's source; `None` where cargo finds it by itself.
        library: Option<PathBuf>,
        linker: PathBuf,
    }

    pub(crate) fn build() -> ExitCode {
        if env::var_os(INNER).is_some() {
            return inner();
        }
        for name in [LOG, "TPX_EBPF_TOOLS", "TPX_CACHE", "XDG_CACHE_HOME", "HOME", "PATH"] {
            println!("cargo:rerun-if-env-changed={name}");
        }
        println!("cargo:rerun-if-changed=../../ebpf");
        if env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("linux") {
            return ExitCode::SUCCESS;
        }
        match tools() {
            Some(tools) => outer(&tools),
            None => {
                println!(
                    "cargo:warning=the express lane is not built in (no bpf-linker or no source of core); \
                     run `cargo xtask setup` and build again"
                );
                ExitCode::SUCCESS
            }
        }
    }

    /// Starts this program again with the tools in its environment and keeps its output to itself unless it fails.
    fn outer(tools: &Tools) -> ExitCode {
        let me = env::current_exe().expect("a build script knows its own path");
        let mut again = Command::new(me);
        again.env(INNER, "1").env("RUSTC_BOOTSTRAP", "1");
        for end in ["BPFEL", "BPFEB"] {
            again.env(format!("CARGO_TARGET_{end}_UNKNOWN_NONE_LINKER"), &tools.linker);
        }
        if let Some(library) = &tools.library {
            again.env("__CARGO_TESTS_ONLY_SRC_ROOT", library);
        }
        let out = again.output().expect("a build script can start itself");
        if out.status.success() {
            println!("cargo:rustc-cfg=express_lane");
            return ExitCode::SUCCESS;
        }
        print!("{}", String::from_utf8_lossy(&out.stdout));
        eprint!("{}", String::from_utf8_lossy(&out.stderr));
        ExitCode::FAILURE
    }

    fn inner() -> ExitCode {
        let root = format!("{}/../../ebpf", env!("CARGO_MANIFEST_DIR"));
        // Log lines from the kernel cost time and name addresses, and kernels before 6.8 want CAP_PERFMON for them: tests
        // are to run what is released.
        let features: &[&str] = if env::var_os(LOG).is_some() { &["log"] } else { &[] };
        let package = aya_build::Package { name: PACKAGE, root_dir: &root, features, ..Default::default() };
        // rustup says in this variable which toolchain runs the outer cargo.
        let toolchain = env::var("RUSTUP_TOOLCHAIN").unwrap_or_else(|_| "stable".into());
        match aya_build::build_ebpf([package], aya_build::Toolchain::Custom(&toolchain)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(e) => {
                eprintln!("the kernel programs could not be built: {e:#}");
                ExitCode::FAILURE
            }
        }
    }

    fn tools() -> Option<Tools> {
        prepared().or_else(installed)
    }

    /// A directory with `library/` and `bin/bpf-linker`, as `cargo xtask setup` fills it.
    fn prepared() -> Option<Tools> {
        let path = |name| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let caches = [
            path("TPX_EBPF_TOOLS"),
            path("TPX_CACHE").map(|c| c.join("ebpf")),
            path("XDG_CACHE_HOME").map(|c| c.join("tpx/ebpf")),
            path("HOME").map(|h| h.join(".cache/tpx/ebpf")),
        ];
        for root in caches.into_iter().flatten() {
            let (library, linker) = (root.join("library"), root.join("bin/bpf-linker"));
            // While it is missing cargo runs this program each time, so the next build after a setup has the programs.
            println!("cargo:rerun-if-changed={}", linker.display());
            if library.join("core/Cargo.toml").is_file() && linker.is_file() {
                return Some(Tools { library: Some(library), linker });
            }
        }
        None
    }

    /// rustup's rust-src component and a linker on PATH.
    fn installed() -> Option<Tools> {
        let rustc = env::var_os("RUSTC")?;
        let out = Command::new(rustc).args(["--print", "sysroot"]).output().ok()?;
        let sysroot = String::from_utf8(out.stdout).ok()?;
        let core = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core/Cargo.toml");
        let linker = env::split_paths(&env::var_os("PATH")?).map(|d| d.join("bpf-linker")).find(|l| l.is_file())?;
        core.is_file().then_some(Tools { library: None, linker })
    }
}
