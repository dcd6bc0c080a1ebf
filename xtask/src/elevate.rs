//! Root for the few things that need it: namespaces, and what runs in them. Everything is built as whoever asked.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::run::status;

/// Variables that decide where things are and survive the change of user.
const KEPT: [&str; 9] = [
    "PATH",
    "HOME",
    "CARGO_HOME",
    "CARGO_MANIFEST_DIR",
    "CARGO_TARGET_DIR",
    "RUSTUP_HOME",
    "RUST_BACKTRACE",
    "TERM",
    "XDG_CACHE_HOME",
];

/// This program again, as root.
pub(crate) fn this(arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Result<Command> {
    let mut command = if rustix::process::geteuid().is_root() { own() } else { program(&std::env::current_exe()?) };
    command.args(arguments);
    Ok(command)
}

/// This very program, also when a build has put another one in its place.
pub(crate) fn own() -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("xtask");
    command
}

/// A program as root.
pub(crate) fn program(program: &Path) -> Command {
    if rustix::process::geteuid().is_root() {
        return Command::new(program);
    }
    let mut sudo = Command::new("sudo");
    sudo.arg("env");
    let ours = std::env::vars().filter(|(name, _)| KEPT.contains(&name.as_str()) || name.starts_with("TPX_"));
    sudo.args(ours.map(|(name, value)| format!("{name}={value}"))).arg(program);
    sudo
}

/// Runs the same command line as root and returns its exit code; nothing where this is root.
pub(crate) fn again() -> Result<Option<i32>> {
    if rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let mut command = this(std::env::args_os().skip(1))?;
    Ok(Some(command.spawn()?.wait()?.code().unwrap_or(1)))
}

/// Runs this program as root with its output on the terminal.
pub(crate) fn visibly(arguments: &[&str]) -> Result<bool> {
    Ok(status(&mut this(arguments)?)?.success())
}
