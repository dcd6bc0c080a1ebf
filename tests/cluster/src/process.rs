//! Running programs with a bound on their time.

use std::{
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

/// How a program ended and what it said.
#[derive(Debug)]
pub(crate) struct Ended {
    /// Its status.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Ended {
    /// The exit code; -1 after a signal.
    pub(crate) fn code(&self) -> i32 {
        self.status.code().unwrap_or(-1)
    }

    /// Its standard output, if it succeeded.
    pub(crate) fn success(self) -> Result<String> {
        ensure!(self.status.success(), "{}: {}{}", self.status, self.stdout, self.stderr);
        Ok(self.stdout)
    }
}

/// Runs a shell command line as root.
pub(crate) fn sh(line: &str) -> Result<Ended> {
    run(Command::new("sh").args(["-c", line]))
}

/// Runs a shell command line as a user of the laptop.
pub(crate) fn sh_as(user: &str, line: &str) -> Result<Ended> {
    run(as_user(user).args(["sh", "-c", line]))
}

/// A command line's beginning that runs the rest as `user`, with that user's home and runtime folder.
pub(crate) fn as_user(user: &str) -> Command {
    let id = if user == "dev" { "1000" } else { "1001" };
    let mut command = Command::new("setpriv");
    command.args(["--reuid", id, "--regid", id, "--init-groups", "--"]);
    command.env("USER", user).env("HOME", format!("/home/{user}")).env("XDG_RUNTIME_DIR", format!("/run/user/{id}"));
    command
}

/// Runs a command for at most a minute and a half.
pub(crate) fn run(command: &mut Command) -> Result<Ended> {
    run_for(command, Duration::from_secs(90))
}

/// Runs a command for at most `limit`.
pub(crate) fn run_for(command: &mut Command, limit: Duration) -> Result<Ended> {
    let what = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {what}"))?;
    let stdout = drain(child.stdout.take());
    let stderr = drain(child.stderr.take());
    let status = wait(&mut child, limit).with_context(|| what)?;
    Ok(Ended { status, stdout: stdout.join().unwrap_or_default(), stderr: stderr.join().unwrap_or_default() })
}

/// Waits for a child; ends it when it takes longer than `limit`.
pub(crate) fn wait(child: &mut Child, limit: Duration) -> Result<ExitStatus> {
    let until = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if Instant::now() > until {
            child.kill()?;
            child.wait()?;
            bail!("did not end within {limit:?}");
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Tries until `check` succeeds, for at most `limit`; then its last error counts.
pub(crate) fn eventually<T>(limit: Duration, mut check: impl FnMut() -> Result<T>) -> Result<T> {
    let until = Instant::now() + limit;
    loop {
        match check() {
            Ok(value) => return Ok(value),
            Err(e) if Instant::now() > until => return Err(e.context(format!("not within {limit:?}"))),
            Err(_) => thread::sleep(Duration::from_millis(20)),
        }
    }
}

fn drain(pipe: Option<impl std::io::Read + Send + 'static>) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}
