//! What each case works with: the namespace, a cgroup, and processes that end with the case.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, geteuid, kill_process};
use tpx_datapath::linux::probe;

/// The user that tpx-rootd serves; no other process of the machine should be his.
pub(crate) const OWNER: u32 = 64_311;
/// Somebody else.
pub(crate) const STRANGER: u32 = 64_312;
/// Longest that anything may take that should happen at once.
pub(crate) const SOON: Duration = Duration::from_secs(10);

/// Runs this program again in a network namespace of its own. Comes back only with what is missing.
pub(crate) fn move_away(words: &[String]) -> anyhow::Error {
    if !geteuid().is_root() {
        return anyhow::anyhow!("this needs root");
    }
    let again = || -> Result<std::convert::Infallible> {
        let mut command = Command::new("unshare");
        command.args(["--net", "--"]).arg(std::env::current_exe()?).args(["--role", "inside"]).args(words);
        Err(anyhow::Error::from(command.exec()).context("cannot run unshare of util-linux"))
    };
    match again() {
        Ok(never) => match never {},
        Err(e) => e,
    }
}

/// Makes the namespace and a cgroup ready.
///
/// # Errors
/// What is missing.
pub(crate) fn prepare() -> Result<()> {
    ip("link set lo up")?;
    probe(&[]).express_lane(OWNER).map_err(anyhow::Error::msg)?;
    fs::create_dir_all(cgroup()).context("cannot make a cgroup")
}

/// Removes the cgroup; the namespace goes with the last process.
pub(crate) fn tidy() {
    let removed = (0..50).any(|_| {
        thread::sleep(Duration::from_millis(20));
        fs::remove_dir(cgroup()).is_ok()
    });
    assert!(removed, "{} is still there: a process was left", cgroup().display());
}

/// The scope of every case.
pub(crate) fn cgroup() -> PathBuf {
    let root = probe(&[]).cgroup2.unwrap_or_default();
    root.join(format!("tpx-express-{}", std::process::id()))
}

/// Runs a case and then makes sure that it left nothing.
pub(crate) fn run(case: &dyn Fn(&Lab) -> Result<()>) -> Result<()> {
    let lab = Lab::new()?;
    let result = case(&lab);
    drop(lab);
    let clean = eventually("nothing is left", || left().map_or_else(|e| Err(format!("{e:#}")), |l| none(&l)));
    result.and(clean)
}

fn none(left: &str) -> Result<(), String> {
    if left.is_empty() { Ok(()) } else { Err(left.into()) }
}

/// What there is of tpx: devices, routes and rules in the namespace, and cgroups of process trees.
pub(crate) fn left() -> Result<String> {
    let mut left = active()?;
    for table in ["lookup 707", "lookup 717", "lookup 727", "lookup 737"] {
        left += &find(&[("rule show", table), ("-6 rule show", table)])?;
    }
    for entry in fs::read_dir(cgroup())? {
        let name = entry?.file_name();
        if name.to_string_lossy().starts_with("tpx-tree-") {
            left += &format!("{}; ", name.display());
        }
    }
    Ok(left)
}

/// What there is in the namespace that has an effect: a rule over an empty table has none.
pub(crate) fn active() -> Result<String> {
    find(&[("-o link show", "tpx"), ("route show table all", "tpx"), ("-6 route show table all", "tpx")])
}

fn find(queries: &[(&str, &str)]) -> Result<String> {
    let mut left = String::new();
    for (query, ours) in queries {
        left.extend(ip(query)?.lines().filter(|l| l.contains(*ours)).map(|l| format!("{l}; ")));
    }
    Ok(left)
}

pub(crate) fn ip(words: &str) -> Result<String> {
    let out = Command::new("ip").args(words.split_whitespace()).output().context("iproute2 is missing")?;
    ensure!(out.status.success(), "ip {words}: {}", String::from_utf8_lossy(&out.stderr));
    Ok(String::from_utf8(out.stdout)?)
}

/// Tries until it is so.
pub(crate) fn eventually(what: &str, mut check: impl FnMut() -> Result<(), String>) -> Result<()> {
    let end = Instant::now() + SOON;
    loop {
        match check() {
            Ok(()) => return Ok(()),
            Err(why) if Instant::now() > end => bail!("{what}: {why}"),
            Err(_) => thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// The files of one case.
pub(crate) struct Lab {
    directory: tempfile::TempDir,
}

impl Lab {
    fn new() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(directory.path(), mode)?;
        Ok(Self { directory })
    }

    pub(crate) fn folder(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder().join("rootd.sock")
    }

    /// tpx-rootd, listening.
    pub(crate) fn rootd(&self, more: &[&str]) -> Result<Process> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tpx-rootd"));
        command.arg("serve").arg("--socket").arg(self.socket()).args(["--owner", &OWNER.to_string()]).args(more);
        let process = Process::start(&mut command)?;
        process.expect("serving user")?;
        Ok(process)
    }

    /// A user daemon with a session, at work.
    pub(crate) fn user(&self) -> Result<Process> {
        let user = self.user_as(OWNER)?;
        user.expect("ready")?;
        Ok(user)
    }

    /// A user daemon, for better or worse.
    pub(crate) fn user_as(&self, uid: u32) -> Result<Process> {
        self.user_in(uid, "cgroup")
    }

    /// One that asks for another scope: `tree`, or `floor` for the workstation without programs.
    pub(crate) fn user_in(&self, uid: u32, scope: &str) -> Result<Process> {
        let socket = self.socket();
        role(&["user", &uid.to_string(), path(&socket)?, path(&cgroup())?, scope])
    }

    /// tpx-rootd and a user daemon.
    pub(crate) fn both(&self) -> Result<(Process, Process)> {
        Ok((self.rootd(&[])?, self.user()?))
    }
}

/// Runs an application to its end: what it printed.
pub(crate) fn app(words: &[&str]) -> Result<String> {
    let group = cgroup();
    let process = role(&[&["app", path(&group)?], words].concat())?;
    process.last_line(Duration::from_secs(60))
}

pub(crate) fn role(words: &[&str]) -> Result<Process> {
    Process::start(Command::new(std::env::current_exe()?).arg("--role").args(words))
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is no text")
}

/// A child whose lines are read; ended when dropped.
pub(crate) struct Process {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Process {
    pub(crate) fn start(command: &mut Command) -> Result<Self> {
        let (sender, lines) = mpsc::channel();
        let mut child = command
            .env_remove("RUST_LOG")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let (out, err) = (child.stdout.take().context("no stdout")?, child.stderr.take().context("no stderr")?);
        let also = sender.clone();
        thread::spawn(move || BufReader::new(out).lines().map_while(Result::ok).try_for_each(|l| sender.send(l)));
        thread::spawn(move || BufReader::new(err).lines().map_while(Result::ok).try_for_each(|l| also.send(l)));
        Ok(Self { child, lines })
    }

    /// Waits for a line with `text`; the line.
    pub(crate) fn expect(&self, text: &str) -> Result<String> {
        let (end, mut seen) = (Instant::now() + SOON, Vec::new());
        while let Ok(line) = self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
            if line.contains(text) {
                return Ok(line);
            }
            seen.push(line);
        }
        bail!("`{text}` was not said, but {seen:?}")
    }

    /// Everything said so far.
    pub(crate) fn said(&self) -> Vec<String> {
        self.lines.try_iter().collect()
    }

    /// Asks something on its standard input; the answer.
    pub(crate) fn ask(&mut self, question: &str) -> Result<String> {
        let stdin = self.child.stdin.as_mut().context("no stdin")?;
        writeln!(stdin, "{question}")?;
        self.expect(&format!("{question}: "))
    }

    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(self.child.id().cast_signed()).context("no pid")?;
        Ok(kill_process(pid, signal)?)
    }

    pub(crate) fn kill(&self) -> Result<()> {
        self.signal(Signal::KILL)
    }

    /// Its number.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for its end.
    pub(crate) fn ended(&mut self) -> Result<ExitStatus> {
        let end = Instant::now() + SOON;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            ensure!(Instant::now() < end, "it does not end");
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn last_line(mut self, limit: Duration) -> Result<String> {
        let end = Instant::now() + limit;
        let mut last = String::new();
        while let Ok(line) = self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
            last = line;
        }
        ensure!(self.ended()?.success(), "failed: {last}");
        Ok(last)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // tpx-rootd undoes its work when it is asked to end.
        if self.signal(Signal::TERM).is_err() || self.ended().is_err() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
