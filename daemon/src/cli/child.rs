//! Running a command in the foreground: it has the terminal and the terminal's signals, and its end is ours.

use std::{
    io,
    os::unix::process::ExitStatusExt as _,
    process::{Command, ExitStatus},
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::signal::unix::{Signal as Signals, SignalKind, signal};

/// Exit code for a command that does not exist, as shells have it (POSIX, "Exit Status for Commands").
pub(crate) const NOT_FOUND: u8 = 127;
/// Exit code for a command that cannot be executed.
pub(crate) const NOT_EXECUTABLE: u8 = 126;

/// Runs a command and waits for its end. Keys of the terminal (Ctrl-C, Ctrl-\) reach it as they reach everybody in the
/// foreground, and this process ignores them; SIGTERM and SIGHUP, which are sent to this process alone, are passed on.
///
/// # Errors
/// When it cannot be started.
pub(crate) fn run(command: Command) -> io::Result<ExitStatus> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        // Before the child exists, so that no signal falls between. A handler, because what is ignored would be ignored
        // by the child as well.
        let ignored = ignored();
        let _keys = (heard(SignalKind::interrupt(), ignored)?, heard(SignalKind::quit(), ignored)?);
        let mut terminate = heard(SignalKind::terminate(), ignored)?;
        let mut hang_up = heard(SignalKind::hangup(), ignored)?;
        let mut child = tokio::process::Command::from(command).spawn()?;
        let pid = child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        let pass_on = |signal| pid.map(|pid| kill_process(pid, signal));
        loop {
            // What it cannot take any more, it does not need.
            let _ = tokio::select! {
                status = child.wait() => return status,
                () = next(&mut terminate) => pass_on(Signal::TERM),
                () = next(&mut hang_up) => pass_on(Signal::HUP),
            };
        }
    })
}

/// The exit code of a process as shells have it: 128 and the number of the signal that ended it.
pub(crate) fn code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|number| 128 + number));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

/// The exit code for a command that did not start.
pub(crate) fn not_started(error: &io::Error) -> u8 {
    if error.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { NOT_EXECUTABLE }
}

/// Listens for a signal; not for one that is ignored, as by nohup(1): the child has to ignore it, too.
fn heard(kind: SignalKind, ignored: u64) -> io::Result<Option<Signals>> {
    let is_ignored = ignored >> (kind.as_raw_value() - 1) & 1 == 1;
    (!is_ignored).then(|| signal(kind)).transpose()
}

async fn next(signals: &mut Option<Signals>) {
    match signals {
        Some(signals) => drop(signals.recv().await),
        None => std::future::pending().await,
    }
}

/// The signals that this process ignores, a bit each.
fn ignored() -> u64 {
    std::fs::read_to_string("/proc/self/status").ok().and_then(|text| mask(&text)).unwrap_or(0)
}

/// The line `SigIgn` of /proc/PID/status (proc_pid_status(5)).
fn mask(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("SigIgn:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> u8 {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        code(run(command).unwrap())
    }

    #[test]
    fn codes_are_those_of_shells() {
        assert_eq!([sh("exit 0"), sh("exit 7"), sh("kill -KILL $$"), sh("kill -TERM $$")], [0, 7, 137, 143]);
        let missing = run(Command::new("/nonexistent/command")).unwrap_err();
        let folder = run(Command::new("/tmp")).unwrap_err();
        assert_eq!([not_started(&missing), not_started(&folder)], [127, 126]);
    }

    #[test]
    fn the_mask_is_found() {
        assert_eq!(mask("SigBlk:\t0000000000000000\nSigIgn:\t0000000000001001\n"), Some(0x1001));
        assert_eq!(mask("Name:\tx\n"), None);
    }
}
