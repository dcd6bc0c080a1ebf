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

/// A child cgroup of ours, removed on drop.
struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    fn create() -> Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let root = mounts
            .lines()
            .find(|line| line.contains(" - cgroup2 "))
            .and_then(|line| line.split(' ').nth(4))
            .context("no cgroup2 tree is mounted")?;
        let path = Path::new(root).join(format!("tpx-netlab-{}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("create {}", path.display()))?;
        Ok(Self { path })
    }

    /// Ends what still runs in it and removes it. Returns the processes that were left.
    fn remove(self) -> Result<Vec<String>> {
        let groups = [self.path.join("in"), self.path.join("out"), self.path.clone()];
        let members = |group: &PathBuf| fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
        let left: Vec<String> =
            groups.iter().flat_map(|g| members(g).lines().map(String::from).collect::<Vec<_>>()).collect();
        for pid in left.iter().filter_map(|pid| pid.parse().ok()) {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
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
