//! The inner process: its namespaces, its two cgroups, its runtime.

use std::{
    collections::BTreeSet,
    fs,
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::Mutex,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use aya::maps::MapData;
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use tokio::runtime::Runtime;
use tpx_core::plan::Scope;

use crate::Residue;

/// How long the kernel may take to remove what nobody holds any more.
const PATIENCE: Duration = Duration::from_secs(2);

/// Where the tests run.
pub struct World {
    runtime: Runtime,
    tree: PathBuf,
    maps: Mutex<BTreeSet<u32>>,
}

impl World {
    /// Leaves the machine: enters `cgroup` and namespaces of its own. Has to happen before there are threads.
    pub(crate) fn enter(cgroup: &Path) -> Result<Self> {
        fs::write(cgroup.join("cgroup.procs"), "0").context("enter the cgroup")?;
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWCGROUP)
            .context("leave the machine's namespaces")?;
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("keep mounts private")?;
        // The machine's own daemons (D-Bus, systemd-resolved) are out of reach.
        mount(Some("netlab"), "/run", Some("tmpfs"), MsFlags::empty(), none).context("hide /run")?;
        // sysfs shows the network namespace that it was mounted in.
        mount(Some("netlab"), "/mnt", Some("tmpfs"), MsFlags::empty(), none).context("mount a tmpfs")?;
        let tree = PathBuf::from("/mnt/cgroup");
        fs::create_dir(&tree)?;
        mount(Some("netlab"), &tree, Some("cgroup2"), MsFlags::empty(), none).context("mount the cgroup2 tree")?;
        for group in ["in", "out"] {
            fs::create_dir_all(tree.join(group))?;
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let world = Self { runtime, tree, maps: Mutex::default() };
        world.move_to("in")?;
        world.block_on(up())?;
        Ok(world)
    }

    /// Runs a test and compares the world after it with the world before.
    pub(crate) fn check(&self, case: &fn(&Self) -> Result<()>) -> Result<()> {
        let before = self.residue()?;
        let result = case(self);
        self.move_to("in")?;
        let start = Instant::now();
        while self.residue()? != before && start.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(10));
        }
        let after = self.residue()?;
        result?;
        ensure!(after == before, "something was left behind\nbefore: {before:#?}\nafter: {after:#?}");
        Ok(())
    }

    /// Waits for `work` on the runtime that also carries its background tasks.
    pub fn block_on<F: Future>(&self, work: F) -> F::Output {
        self.runtime.block_on(work)
    }

    /// The scope that these tests run in.
    #[must_use]
    pub fn scope(&self) -> Scope {
        Scope::Cgroup(self.tree.join("in"))
    }

    /// The whole cgroup2 tree that can be seen here: the supervisor's cgroup, which both others lie in.
    #[must_use]
    pub fn tree(&self) -> &Path {
        &self.tree
    }

    /// Makes something (a socket stays in the cgroup that made it) outside the scope.
    ///
    /// # Errors
    /// When the process cannot be moved, and those of `make`.
    pub fn outside<T>(&self, make: impl FnOnce() -> Result<T>) -> Result<T> {
        self.move_to("out")?;
        let made = make();
        self.move_to("in")?;
        made
    }

    /// Programs that use this map are expected to be gone when the test is over.
    ///
    /// # Errors
    /// When it is no map.
    pub fn expect_gone(&self, map: impl AsFd) -> Result<u32> {
        let map = MapData::from_fd(map.as_fd().try_clone_to_owned()?)?;
        let id = map.info()?.id();
        self.expect_gone_id(id);
        Ok(id)
    }

    /// The same for a map by its id.
    pub fn expect_gone_id(&self, id: u32) {
        self.maps.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(id);
    }

    /// What there is now.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn residue(&self) -> Result<Residue> {
        let maps = self.maps.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        self.block_on(Residue::now(&maps, &self.tree))
    }

    fn move_to(&self, group: &str) -> Result<()> {
        fs::write(self.tree.join(group).join("cgroup.procs"), "0").with_context(|| format!("enter {group}"))
    }
}

/// Sets the loopback device up.
async fn up() -> Result<()> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    let connection = tokio::spawn(connection);
    handle.link().change(rtnetlink::LinkUnspec::new_with_index(1).up().build()).execute().await?;
    connection.abort();
    Ok(())
}
