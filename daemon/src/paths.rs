//! Where things are on this machine.

use std::{
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::PathBuf,
};

/// The folder of the user daemons' sockets, made on first use; nobody else can enter it.
///
/// `$XDG_RUNTIME_DIR/tpx-userd`, else `/tmp/tpx-userd-UID`.
///
/// # Errors
/// When it cannot be made, or belongs to somebody else.
pub(crate) fn runtime_dir() -> io::Result<PathBuf> {
    let uid = rustix::process::geteuid().as_raw();
    let dir = match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(base) if !base.is_empty() => PathBuf::from(base).join("tpx-userd"),
        _ => PathBuf::from(format!("/tmp/tpx-userd-{uid}")),
    };
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
    let meta = std::fs::symlink_metadata(&dir)?;
    if !meta.is_dir() || meta.uid() != uid || meta.mode() & 0o077 != 0 {
        return Err(io::Error::other(format!("{} is not a private folder of uid {uid}", dir.display())));
    }
    Ok(dir)
}

/// The socket of the user daemon called `name`.
///
/// # Errors
/// As [`runtime_dir`].
pub(crate) fn socket(name: &str) -> io::Result<PathBuf> {
    Ok(runtime_dir()?.join(format!("{name}.sock")))
}

/// The user daemon's log file; its folder is made on first use. Those of `tpx run` whose names were made up share one:
/// every run would leave another.
///
/// # Errors
/// When the folder cannot be made.
pub(crate) fn log_file(name: &str) -> io::Result<PathBuf> {
    let state = match std::env::var_os("XDG_STATE_HOME") {
        Some(base) if !base.is_empty() => PathBuf::from(base),
        _ => match std::env::var_os("HOME") {
            Some(home) if !home.is_empty() => PathBuf::from(home).join(".local/state"),
            _ => runtime_dir()?,
        },
    };
    let dir = state.join("tpx");
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
    let file = if is_made_up(name) { "run" } else { name };
    Ok(dir.join(format!("{file}.log")))
}

/// The name of a connection that `tpx run` makes in the process `pid`, unless told otherwise.
pub(crate) fn made_up_name(pid: u32) -> String {
    format!("{MADE_UP}{pid}")
}

fn is_made_up(name: &str) -> bool {
    name.strip_prefix(MADE_UP).is_some_and(|pid| pid.parse::<u32>().is_ok())
}

const MADE_UP: &str = "run-";

/// Where the privileged daemon listens unless told otherwise.
pub(crate) const ROOTD_SOCKET: &str = "/run/tpx/rootd.sock";

/// The privileged daemon's binary: beside this one, else found on PATH by whoever starts it.
pub(crate) fn rootd_binary() -> PathBuf {
    std::env::current_exe()
        .ok()
        .and_then(|exe| Some(exe.parent()?.join("tpx-rootd")))
        .filter(|path| path.is_file())
        .unwrap_or_else(|| PathBuf::from("tpx-rootd"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_up_names_are_known_again() {
        assert!(is_made_up(&made_up_name(4711)));
        assert!(!is_made_up("run") && !is_made_up("run-shop") && !is_made_up("default"));
    }
}
