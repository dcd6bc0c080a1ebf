//! The cgroup of `--scope cgroup:PATH|unit:NAME|user:NAME`: whoever made it may remove it and make another one of that name, as
//! systemd does when a service is restarted. The hooks went with the first.

use std::{fs, os::unix::fs::MetadataExt as _, path::PathBuf, time::Duration};

use tokio::time::{Interval, MissedTickBehavior, interval};
use tpx_core::plan::Scope;

/// How often it is looked at: nobody tells.
const LOOK: Duration = Duration::from_millis(500);

/// A cgroup that is looked at again and again.
pub(crate) struct Directory {
    path: PathBuf,
    last: Option<u64>,
    ticks: Interval,
}

/// What became of it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// It is gone.
    Gone(PathBuf),
    /// Another one is there.
    Anew,
}

impl Directory {
    /// That of a scope that tpx has not made itself. Needs a tokio runtime.
    pub(crate) fn of(scope: &Scope) -> Option<Self> {
        let Scope::Cgroup(path) = scope else { return None };
        let mut ticks = interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut directory = Self { path: path.clone(), last: None, ticks };
        directory.last = directory.inode();
        Some(directory)
    }

    /// Waits for a change. Cancel safe.
    pub(crate) async fn changed(&mut self) -> Change {
        loop {
            self.ticks.tick().await;
            if let Some(change) = self.look() {
                return change;
            }
        }
    }

    fn look(&mut self) -> Option<Change> {
        let now = self.inode();
        if now == self.last {
            return None;
        }
        self.last = now;
        Some(now.map_or_else(|| Change::Gone(self.path.clone()), |_| Change::Anew))
    }

    /// No other cgroup has it while the host is up.
    fn inode(&self) -> Option<u64> {
        fs::metadata(&self.path).ok().map(|about| about.ino())
    }
}

/// Waits for a change of the directory; for ever where there is none. Cancel safe.
pub(crate) async fn changed(directory: &mut Option<Directory>) -> Change {
    match directory {
        Some(directory) => directory.changed().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn another_one_of_that_name_is_noticed() {
        let around = tempfile::tempdir().unwrap();
        let path = around.path().join("db.service");
        fs::create_dir(&path).unwrap();
        let mut directory = Directory::of(&Scope::Cgroup(path.clone())).unwrap();
        assert_eq!(directory.look(), None);
        // So that the first one's inode is not given to the second.
        fs::rename(&path, around.path().join("kept")).unwrap();
        assert_eq!((directory.look(), directory.look()), (Some(Change::Gone(path.clone())), None));
        fs::create_dir(&path).unwrap();
        assert_eq!(directory.changed().await, Change::Anew);
        assert_eq!(directory.look(), None);
        assert!(Directory::of(&Scope::Tree).is_none() && Directory::of(&Scope::Workstation).is_none());
    }
}
