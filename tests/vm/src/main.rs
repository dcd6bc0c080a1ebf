//! The first process of the emulated machine that `cargo xtask vm` starts: it makes the kernel a place where the tests of
//! `tests/netlab` run, runs those that the kernel's command line names, and stops the machine.
//!
//! All that is said goes to the serial console. The last line is [`END`] and an exit code; without it the machine broke
//! down.

use std::{
    env, fs,
    path::Path,
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result};
use nix::{
    kmod::{ModuleInitFlags, finit_module},
    mount::{MsFlags, mount},
    sys::reboot::{RebootMode, reboot},
};

/// The program that is run.
const PROGRAM: &str = "/tests";
/// Kernel modules, named so that the order of names is the order of dependencies.
const MODULES: &str = "/modules";
/// What the last line begins with.
const END: &str = "vm: exit";

fn main() -> ExitCode {
    if std::process::id() != 1 {
        eprintln!("this is the first process of an emulated machine: cargo xtask vm");
        return ExitCode::FAILURE;
    }
    let code = run().unwrap_or_else(|e| {
        println!("vm: {e:#}");
        1
    });
    println!("{END} {code}");
    // The emulator takes a restart for the end. Nothing has been written that a sync would have to save.
    match reboot(RebootMode::RB_AUTOBOOT) {
        Ok(never) => match never {},
        Err(_) => ExitCode::FAILURE,
    }
}

fn run() -> Result<i32> {
    for (what, at) in
        [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys"), ("tmpfs", "/tmp"), ("cgroup2", "/sys/fs/cgroup")]
    {
        mount(Some("vm"), at, Some(what), MsFlags::empty(), None::<&str>).with_context(|| format!("mount {at}"))?;
    }
    let mut modules = fs::read_dir(MODULES)?.map(|m| Ok(m?.path())).collect::<std::io::Result<Vec<_>>>()?;
    modules.sort();
    for module in &modules {
        load(module).with_context(|| format!("load {}", module.display()))?;
    }
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    println!("vm: Linux {}, {} modules", release.trim(), modules.len());
    let mut worst = 0;
    for filter in env::args_os().skip(1) {
        let mut tests = Command::new(PROGRAM);
        // Without colours: the output is read by a program.
        tests.args(["--color", "never"]).arg(filter).env("PATH", "/bin").env("TPX_REQUIRE_TIER", "2");
        let status = tests.status().with_context(|| format!("run {PROGRAM}"))?;
        worst = worst.max(status.code().unwrap_or(1));
    }
    Ok(worst)
}

fn load(module: &Path) -> Result<()> {
    Ok(finit_module(&fs::File::open(module)?, c"", ModuleInitFlags::empty())?)
}
