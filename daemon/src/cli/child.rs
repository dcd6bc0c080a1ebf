//! Running a command in the place of this process: it has the terminal and the signals, and its end is ours.

use std::{
    io,
    os::{fd::OwnedFd, unix::process::ExitStatusExt as _},
    process::{Command, ExitStatus},
    thread,
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::retry_on_intr,
    process::{Pid, Signal, kill_process},
};
use tokio::{
    signal::unix::{Signal as Signals, SignalKind, signal},
    sync::oneshot,
};

/// Exit code for a command that does not exist, as shells have it (POSIX, "Exit Status for Commands").
pub(crate) const NOT_FOUND: u8 = 127;
/// Exit code for a command that cannot be executed.
pub(crate) const NOT_EXECUTABLE: u8 = 126;

/// How a command ended.
pub(crate) struct Ended {
    /// Its own status.
    pub(crate) status: ExitStatus,
    /// Whether it went on after the process beside it.
    pub(crate) outlived: bool,
}

/// Runs a command and waits for its end. Signals that are sent to this process are passed on, but not the keys of the terminal
/// (Ctrl-C, Ctrl-\): these reach the command as they reach everybody in the foreground, and must not do so twice. `beside` is
/// the file of a process (pidfd_open(2)) that should not end before.
///
/// # Errors
/// When it cannot be started.
pub(crate) fn run(command: Command, beside: Option<OwnedFd>) -> io::Result<Ended> {
    run_where(command, beside, is_in_foreground)
}

fn run_where(command: Command, beside: Option<OwnedFd>, is_in_foreground: fn() -> bool) -> io::Result<Ended> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        // Before the child exists, so that no signal falls between. A handler, because what is ignored would be ignored
        // by the child as well.
        let ignored = ignored();
        let mut interrupt = heard(SignalKind::interrupt(), ignored)?;
        let mut quit = heard(SignalKind::quit(), ignored)?;
        let mut terminate = heard(SignalKind::terminate(), ignored)?;
        let mut hang_up = heard(SignalKind::hangup(), ignored)?;
        let mut first = heard(SignalKind::user_defined1(), ignored)?;
        let mut second = heard(SignalKind::user_defined2(), ignored)?;
        let mut beside = beside.map(end_of);
        let mut child = tokio::process::Command::from(command).spawn()?;
        let pid = child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        let mut outlived = false;
        loop {
            let signal = tokio::select! {
                status = child.wait() => return Ok(Ended { status: status?, outlived }),
                () = ended(&mut beside) => {
                    beside = None;
                    // The command's own end may have been the reason.
                    outlived = child.try_wait()?.is_none();
                    continue;
                }
                () = next(&mut interrupt) => Signal::INT,
                () = next(&mut quit) => Signal::QUIT,
                () = next(&mut terminate) => Signal::TERM,
                () = next(&mut hang_up) => Signal::HUP,
                () = next(&mut first) => Signal::USR1,
                () = next(&mut second) => Signal::USR2,
            };
            let is_key = matches!(signal, Signal::INT | Signal::QUIT);
            if let Some(pid) = pid.filter(|_| !(is_key && is_in_foreground())) {
                // What it cannot take any more, it does not need.
                let _ = kill_process(pid, signal);
            }
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

/// Hears when the process behind a file has ended.
fn end_of(process: OwnedFd) -> oneshot::Receiver<()> {
    let (sender, ended) = oneshot::channel();
    // It waits as long as this process lives, which is hardly longer than the command.
    thread::spawn(move || {
        let waited = retry_on_intr(|| poll(&mut [PollFd::new(&process, PollFlags::IN)], None));
        if waited.is_ok() {
            let _ = sender.send(());
        }
    });
    ended
}

/// Resolves when that process has ended; never without one.
async fn ended(process: &mut Option<oneshot::Receiver<()>>) {
    let heard = match process {
        Some(process) => process.await.is_ok(),
        None => false,
    };
    if !heard {
        std::future::pending().await
    }
}

/// Whether this process is in the foreground of its terminal, if it has one.
fn is_in_foreground() -> bool {
    std::fs::read_to_string("/proc/self/stat").is_ok_and(|stat| foreground(&stat))
}

/// Whether the process group is the terminal's foreground one, in a file /proc/PID/stat (proc_pid_stat(5)): `pid (name) state
/// ppid pgrp session tty_nr tpgid`. The name may hold anything.
fn foreground(stat: &str) -> bool {
    let fields: Option<Vec<&str>> = stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace().collect());
    fields.is_some_and(|fields| fields.get(2).is_some_and(|group| fields.get(5) == Some(group)))
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
    use std::sync::{Mutex, PoisonError};

    use rustix::process::{PidfdFlags, pidfd_open};

    use super::*;

    /// Signals to this process reach whatever any test of it runs.
    static ALONE: Mutex<()> = Mutex::new(());

    fn sh_where(script: &str, is_in_foreground: fn() -> bool) -> u8 {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        code(run_where(command, None, is_in_foreground).unwrap().status)
    }

    #[test]
    fn codes_are_those_of_shells() {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let sh = |script| sh_where(script, || false);
        assert_eq!([sh("exit 0"), sh("exit 7"), sh("kill -KILL $$"), sh("kill -TERM $$")], [0, 7, 137, 143]);
        let fails = |path| run(Command::new(path), None).map(|_| ()).unwrap_err();
        assert_eq!(["/nonexistent/command", "/tmp"].map(|path| not_started(&fails(path))), [127, 126]);
    }

    #[test]
    fn signals_reach_the_command_once() {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        // Sends a signal to this process, and ends with 9 when it comes back, else with 4.
        let there_and_back = |name: &str| {
            format!(
                "trap 'exit 9' {name}; kill -{name} $PPID; n=0; while [ $n -lt 20 ]; do sleep 0.05; n=$((n+1)); done; exit 4"
            )
        };
        for name in ["TERM", "HUP", "USR1", "USR2", "INT", "QUIT"] {
            assert_eq!(sh_where(&there_and_back(name), || false), 9, "{name} in the background");
        }
        assert_eq!(sh_where(&there_and_back("USR1"), || true), 9);
        for key in ["INT", "QUIT"] {
            assert_eq!(sh_where(&there_and_back(key), || true), 4, "{key} in the foreground");
        }
    }

    #[test]
    fn the_foreground_is_known() {
        assert!(foreground("7 (a) b) S 1 7 7 34816 7 4194304 0"));
        assert!(!foreground("8 (sh) S 1 8 7 34816 7 4194304 0"));
        assert!(!foreground("9 (tpx) S 1 9 9 0 -1 4194304 0"));
        assert!(!foreground(""));
    }

    #[test]
    fn who_outlives_whom() {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let outlived = |beside: &str, script: &str| {
            let mut other = Command::new("sh").args(["-c", beside]).spawn().unwrap();
            let file = pidfd_open(Pid::from_child(&other), PidfdFlags::empty()).unwrap();
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            let ended = run(command, Some(file)).unwrap();
            let _ = other.kill();
            other.wait().unwrap();
            assert_eq!(code(ended.status), 3);
            ended.outlived
        };
        assert!(outlived("exit 0", "sleep 0.3; exit 3"));
        assert!(!outlived("sleep 10", "exit 3"));
    }

    #[test]
    fn the_mask_is_found() {
        assert_eq!(mask("SigBlk:\t0000000000000000\nSigIgn:\t0000000000001001\n"), Some(0x1001));
        assert_eq!(mask("Name:\tx\n"), None);
    }
}
