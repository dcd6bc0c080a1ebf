//! The outer process: makes the cgroup, starts the inner one, cleans up whatever happens there.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use libtest_mimic::{Arguments, Trial};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::World;

/// One test.
pub type Case = (&'static str, fn(&World) -> Result<()>);

/// Which tier this is: real root, real kernel, own namespaces.
const TIER: u8 = 2;
/// Set in the inner process: the cgroup it belongs to.
const INSIDE: &str = "TPX_NETLAB_CGROUP";
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs the tests. Without root they are shown as ignored, or fail if TPX_REQUIRE_TIER asks for this tier.
pub fn run(cases: &'static [Case]) -> ExitCode {
    let args = Arguments::from_args();
    if let Some(cgroup) = env::var_os(INSIDE) {
        return inside(args, cases, Path::new(&cgroup));
    }
    let root = nix::unistd::geteuid().is_root();
    if args.list || !root {
        return listed(&args, cases, root);
    }
    match supervise() {
        Ok(code) => code,
        Err(e) => {
            eprintln!("netlab: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn listed(args: &Arguments, cases: &[Case], root: bool) -> ExitCode {
    let required = env::var("TPX_REQUIRE_TIER").ok().and_then(|t| t.parse().ok()).unwrap_or(0) >= TIER;
    let trial = |(name, _): &Case| {
        Trial::test(*name, || Err("this test needs root".into())).with_ignored_flag(!root && !required)
    };
    libtest_mimic::run(args, cases.iter().map(trial).collect()).exit_code()
}

fn inside(mut args: Arguments, cases: &'static [Case], cgroup: &Path) -> ExitCode {
    // One after the other: they share the namespace.
    args.test_threads = Some(1);
    // Should the supervisor be killed, so are the tests; the next supervisor removes the cgroup.
    if nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).is_err() || nix::unistd::getppid().as_raw() == 1 {
        return ExitCode::FAILURE;
    }
    let world = match World::enter(cgroup) {
        Ok(world) => &*Box::leak(Box::new(world)),
        Err(e) => {
            eprintln!("netlab: {e:#}");
            return ExitCode::FAILURE;
        }
    };
    let trial = |(name, case): &'static Case| {
        Trial::test(*name, move || world.check(case).map_err(|e| format!("{e:#}").into()))
    };
    libtest_mimic::run(&args, cases.iter().map(trial).collect()).exit_code()
}

fn supervise() -> Result<ExitCode> {
    let cgroup = Cgroup::create()?;
    let mut inner = Command::new(env::current_exe()?);
    inner.args(env::args_os().skip(1)).env(INSIDE, &cgroup.path);
    let status = inner.status().context("start the inner process")?;
    let left = cgroup.remove()?;
    ensure!(left.is_empty(), "processes were left behind: {left:?}");
    match status.code() {
        Some(code) => Ok(u8::try_from(code).unwrap_or(1).into()),
        None => bail!("the inner process died: {status}"),
    }
}

/// A child cgroup of ours.
struct Cgroup {
    path: PathBuf,
}

const PREFIX: &str = "tpx-netlab-";

impl Cgroup {
    fn create() -> Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let root = mounts
            .lines()
            .find(|line| line.contains(" - cgroup2 "))
            .and_then(|line| line.split(' ').nth(4))
            .context("no cgroup2 tree is mounted")?;
        sweep(Path::new(root))?;
        let path = Path::new(root).join(format!("{PREFIX}{}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("create {}", path.display()))?;
        Ok(Self { path })
    }

    /// Ends what still runs in it and removes it. Returns the processes that were left.
    fn remove(self) -> Result<Vec<String>> {
        let groups = [self.path.join("in"), self.path.join("out"), self.path.clone()];
        let mut left = Vec::new();
        for group in &groups {
            let members = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
            left.extend(members.lines().map(String::from));
        }
        for pid in left.iter().filter_map(|pid| pid.parse().ok()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        let start = Instant::now();
        while self.path.exists() && start.elapsed() < PATIENCE {
            for group in groups.iter().filter(|g| g.exists()) {
                let _ = fs::remove_dir(group);
            }
            thread::sleep(Duration::from_millis(20));
        }
        ensure!(!self.path.exists(), "{} cannot be removed", self.path.display());
        Ok(left)
    }
}

/// Removes the cgroups of supervisors that were killed.
fn sweep(root: &Path) -> Result<()> {
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|n| n.strip_prefix(PREFIX)).and_then(|n| n.parse().ok()) else {
            continue;
        };
        // Signal 0 asks whether there is such a process (kill(2)).
        if kill(Pid::from_raw(pid), None).is_err() {
            Cgroup { path: entry.path() }.remove()?;
        }
    }
    Ok(())
}
