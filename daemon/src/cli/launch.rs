//! Starting the two daemons.

use std::{
    fs::OpenOptions,
    io::IsTerminal as _,
    os::unix::{fs::OpenOptionsExt as _, net::UnixStream, process::CommandExt as _},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use tpx_core::config::LogLevel;

use super::output::Progress;
use crate::{
    failure::{Failure, Kind},
    ipc::Client,
    paths,
};

/// How long a daemon may take until it listens.
const START: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(5);

/// Makes sure that the privileged daemon listens; starts it, through sudo where this user is not root, and then it logs
/// at level `log`. It stays at least as long as the connection that is returned.
///
/// # Errors
/// When it cannot be started.
pub(crate) fn rootd(socket: &Path, log: Option<LogLevel>, progress: &Progress) -> Result<UnixStream, Failure> {
    match UnixStream::connect(socket) {
        Ok(open) => return Ok(open),
        Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied && is_alive(socket) => {
            return Err(Failure::new(
                Kind::Host,
                format!("the privileged daemon on {} serves another user", socket.display()),
                "ask its owner, or have it started with `tpx-rootd serve --owner` for you",
            ));
        }
        Err(_) => {}
    }
    let uid = rustix::process::geteuid();
    let binary = paths::rootd_binary();
    let mut command = if uid.is_root() {
        Command::new(&binary)
    } else {
        allow_sudo(&binary, progress)?;
        let mut sudo = Command::new("sudo");
        sudo.arg("-n").arg(&binary);
        sudo
    };
    command.args(["serve", "--exit-when-idle", "--owner"]).arg(uid.as_raw().to_string()).arg("--socket").arg(socket);
    if let Some(level) = log {
        command.args(["--log", level.word()]);
    }
    // Keys of the terminal are for the foreground (`tpx run` is in it for long), and signals to that group not for a daemon.
    // The session stays the same: sudo remembers whom it has asked by the terminal.
    command.process_group(0);
    progress.step("Starting the privileged daemon");
    let log = paths::log_file("rootd").map_err(|e| Failure::internal(e.to_string()))?;
    let mut child =
        spawn(&mut command, &log).map_err(|e| no_rootd(&format!("cannot run {}: {e}", binary.display())))?;
    wait(&mut child, "the privileged daemon", &log, || UnixStream::connect(socket).ok()).map_err(|e| no_rootd(&e))
}

/// Whether somebody listens at a socket that we may not connect to. One whose daemon was killed leaves its file behind, but
/// not its line in the kernel's list, which everybody may read (proc_net(5)).
fn is_alive(socket: &Path) -> bool {
    match std::fs::read_to_string("/proc/net/unix") {
        Ok(list) => lists(&list, socket),
        Err(_) => true,
    }
}

fn lists(list: &str, socket: &Path) -> bool {
    list.lines().filter_map(|line| line.split_whitespace().nth(7)).any(|path| Path::new(path) == socket)
}

/// Asks for the password in the foreground, once, if one is needed.
fn allow_sudo(binary: &Path, progress: &Progress) -> Result<(), Failure> {
    let quiet = || {
        Command::new("sudo")
            .args(["-n", "-v"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
    };
    match quiet() {
        Ok(status) if status.success() => return Ok(()),
        Ok(_) => {}
        Err(e) => return Err(no_rootd(&format!("cannot run sudo: {e}"))),
    }
    if !std::io::stdin().is_terminal() {
        return Err(no_rootd("sudo asks for a password and there is no terminal to type it"));
    }
    progress.step(&format!("Need root privileges to run {}", binary.display()));
    if let Progress::Spinner(bar) = progress {
        bar.disable_steady_tick();
    }
    match Command::new("sudo").arg("-v").status() {
        Ok(status) if status.success() => Ok(()),
        _ => Err(no_rootd("sudo was refused")),
    }
}

fn no_rootd(why: &str) -> Failure {
    Failure::new(
        Kind::Host,
        format!("the privileged daemon does not run and could not be started: {why}"),
        "run `sudo tpx-rootd serve --owner $USER` in another terminal or as a service, then connect again",
    )
}

/// Starts the user daemon and returns a connection to it.
///
/// # Errors
/// When it does not listen in time.
pub(crate) fn userd(name: &str) -> Result<Client, Failure> {
    let internal = |e: std::io::Error| Failure::internal(format!("cannot start the user daemon: {e}"));
    let socket = paths::socket(name).map_err(internal)?;
    let log = paths::log_file(name).map_err(internal)?;
    let exe = std::env::current_exe().map_err(internal)?;
    let mut child = spawn(Command::new(exe).args(["userd", "--name", name]), &log).map_err(internal)?;
    wait(&mut child, "the user daemon", &log, || Client::connect(&socket).ok().flatten()).map_err(Failure::internal)
}

/// Starts a process that outlives this one, its words going to `log`.
fn spawn(command: &mut Command, log: &Path) -> std::io::Result<Child> {
    let log = OpenOptions::new().create(true).append(true).mode(0o600).open(log)?;
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()
}

fn wait<T>(child: &mut Child, who: &str, log: &Path, ready: impl Fn() -> Option<T>) -> Result<T, String> {
    let until = Instant::now() + START;
    loop {
        if let Some(ready) = ready() {
            return Ok(ready);
        }
        if let Ok(Some(status)) = child.try_wait() {
            return Err(format!("{who} ended with {status}: {}", last_line(log)));
        }
        if Instant::now() > until {
            return Err(format!("{who} did not listen within {} s; its log is {}", START.as_secs(), log.display()));
        }
        std::thread::sleep(POLL);
    }
}

fn last_line(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing").trim().to_owned()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_file_without_a_listener_is_dead() {
        let path = std::env::temp_dir().join(format!("tpx-launch-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        assert!(is_alive(&path));
        drop(listener);
        assert!(path.exists() && !is_alive(&path));
        std::fs::remove_file(&path).unwrap();
    }
}
