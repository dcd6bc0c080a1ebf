//! The lab from outside: programs run in its parts to their end, or in the background until they are dropped.

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Longer than anything takes that works.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// Who types the commands.
pub(crate) const DEVELOPER: &str = "dev";
/// Whose the laptop is.
pub(crate) const ROOT: &str = "root";

/// Where in the lab.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// The developer's machine, as its user.
    Laptop,
    /// The cluster.
    Node,
}

/// A lab that is up.
pub(crate) struct Lab {
    xtask: PathBuf,
    name: String,
    /// The load client's path: cargo's output looks different from inside the laptop.
    load: PathBuf,
    /// The name of its cgroup.
    pub(crate) cgroup: String,
}

impl Lab {
    /// The lab of this name, reached through the project's own tool.
    pub(crate) fn new(xtask: PathBuf, name: &str) -> Result<Lab> {
        let load = std::env::current_exe()?.with_file_name("tpx-load");
        let mut lab = Lab { xtask, name: name.to_owned(), load, cgroup: String::new() };
        let mut status = Command::new(&lab.xtask);
        let said = finish(status.args(["lab", "status", "--json", "--name", name]), LIMIT)?;
        let facts: Value = serde_json::from_str(&said).context("lab status")?;
        lab.cgroup = facts["cgroup"].as_str().context("the lab's status has no cgroup")?.to_owned();
        Ok(lab)
    }

    fn command(&self, part: Part, user: &str, words: &[&str]) -> Command {
        let mut command = Command::new(&self.xtask);
        command.args(["lab", "exec", "--name", &self.name]);
        match part {
            Part::Laptop if user == ROOT => command.args(["laptop", "--profile", "release"]),
            Part::Laptop => command.args(["laptop", "--user", user, "--profile", "release"]),
            Part::Node => command.arg("node"),
        };
        command.arg("--").args(words);
        command
    }

    /// Runs a program to its end and returns what it prints.
    pub(crate) fn run(&self, part: Part, words: &[&str]) -> Result<String> {
        self.run_within(LIMIT, part, words)
    }

    /// The same for what may take longer.
    pub(crate) fn run_within(&self, limit: Duration, part: Part, words: &[&str]) -> Result<String> {
        finish(&mut self.command(part, DEVELOPER, words), limit)
    }

    /// Runs the load client and returns what it saw.
    pub(crate) fn load<T: DeserializeOwned>(&self, part: Part, words: &[&str]) -> Result<T> {
        let outside = self.load.to_string_lossy();
        let program = if part == Part::Laptop { "tpx-load" } else { &outside };
        let said = self.run(part, &[&[program], words].concat())?;
        serde_json::from_str(said.trim()).with_context(|| format!("tpx-load says {said:?}"))
    }

    /// Starts a program in the background, as the laptop's developer or as `user`, and waits for a line of which `is` makes
    /// something.
    pub(crate) fn start<T>(
        &self,
        part: Part,
        user: &str,
        words: &[&str],
        is: impl Fn(&str) -> Option<T>,
    ) -> Result<(Background, T)> {
        let what = words.join(" ");
        let mut command = self.command(part, user, words);
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn();
        let mut background = Background { child: child.with_context(|| format!("cannot start {what}"))? };
        let stdout = background.child.stdout.take().context("no output")?;
        let (say, hear) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                // Later lines are read so that the program can go on, and concern nobody.
                say.send(line).ok();
            }
        });
        let deadline = Instant::now() + LIMIT;
        loop {
            match hear.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    if let Some(found) = is(&line) {
                        return Ok((background, found));
                    }
                }
                Err(mpsc::RecvTimeoutError::Timeout) => bail!("{what} does not say that it is ready"),
                Err(mpsc::RecvTimeoutError::Disconnected) => bail!("{what} ended"),
            }
        }
    }
}

/// A program in the lab that is ended, and waited for, when this is dropped.
pub(crate) struct Background {
    child: Child,
}

impl Background {
    /// Whether it still runs.
    pub(crate) fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// Asks it to end, and makes it end two seconds later. What `lab exec` started dies with it.
fn end(child: &mut Child) {
    let gone = |child: &mut Child, limit: Duration| {
        let begin = Instant::now();
        while begin.elapsed() < limit {
            if !matches!(child.try_wait(), Ok(None)) {
                return true;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        false
    };
    if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw)
        && matches!(child.try_wait(), Ok(None))
    {
        kill_process(pid, Signal::TERM).ok();
    }
    if !gone(child, Duration::from_secs(2)) {
        child.kill().ok();
        child.wait().ok();
    }
}

/// Runs a program to its end, which has to come within `limit`; a failure is an error with what it said.
pub(crate) fn finish(command: &mut Command, limit: Duration) -> Result<String> {
    let shown = {
        let words = command.get_args().map(|word| word.to_string_lossy()).collect::<Vec<_>>();
        // What runs in the lab says more than the way into it.
        let at = words.iter().position(|word| word == "--").map_or(0, |at| at + 1);
        words.get(at..).unwrap_or_default().join(" ")
    };
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.with_context(|| format!("cannot start {}", command.get_program().display()))?;
    let (stdout, stderr) = (child.stdout.take().context("no output")?, child.stderr.take().context("no output")?);
    let (stdout, stderr) = (collect(stdout), collect(stderr));
    let deadline = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() > deadline {
            end(&mut child);
            bail!("{shown} did not end within {} s", limit.as_secs());
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    // A daemon that the program left behind may hold a pipe open: what was said until now is enough.
    let text = |pipe: mpsc::Receiver<Vec<u8>>| {
        let mut bytes = Vec::new();
        while let Ok(more) = pipe.recv_timeout(Duration::from_millis(100)) {
            bytes.extend(more);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let (stdout, stderr) = (text(stdout), text(stderr));
    if !status.success() {
        bail!("{shown} failed ({status}): {}{}", stderr.trim(), stdout.trim());
    }
    Ok(stdout)
}

fn collect(mut pipe: impl Read + Send + 'static) -> mpsc::Receiver<Vec<u8>> {
    let (say, hear) = mpsc::channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 8192];
        while let Ok(count @ 1..) = pipe.read(&mut buffer) {
            if say.send(buffer[..count].to_vec()).is_err() {
                return;
            }
        }
    });
    hear
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_failure_says_what_the_program_said() {
        assert_eq!(finish(&mut shell("echo good"), LIMIT).unwrap(), "good\n");
        let error = finish(&mut shell("echo bad >&2; exit 3"), LIMIT).unwrap_err().to_string();
        assert!(error.contains("bad") && error.contains('3'), "{error}");
    }

    #[test]
    fn what_does_not_end_is_ended() {
        let begin = Instant::now();
        assert!(finish(&mut shell("exec sleep 50"), Duration::from_millis(200)).is_err());
        assert!(begin.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn a_daemon_that_keeps_the_pipe_does_not_keep_us() {
        let begin = Instant::now();
        assert_eq!(finish(&mut shell("echo ready; sleep 5 & exit 0"), LIMIT).unwrap(), "ready\n");
        assert!(begin.elapsed() < Duration::from_secs(4));
    }
}
